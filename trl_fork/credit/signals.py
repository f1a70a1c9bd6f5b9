"""Signals: the data about a batch's tokens that a credit rule may read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from .spans import tokens_matching


# Signals that take work to compute. A rule must name those it reads in its `needs`.
SIGNALS = ("entropies", "log_probs", "contrast_log_probs", "completion_ids", "priorities")


@dataclass(frozen=True, eq=False)
class Signals:
    """
    Signals of the rows of one process, without gradient. A signal that no rule of a chain needs is `None`.

    Args:
        mask (`torch.Tensor` of shape `(batch, seq)`):
            Nonzero at the tokens that a rule may weigh. The other signals are never read elsewhere.
        entropies (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Token entropies in nats, float32.
        log_probs (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Log-probabilities of the sampled tokens in nats, float32.
        contrast_log_probs (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Log-probabilities of the same tokens after another prompt, in nats, float32.
        completion_ids (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Token ids.
        priorities (`torch.LongTensor` of shape `(batch, seq)`, *optional*):
            Uniform hashes for random draws, see [`~credit.random_priorities`].
        advantages (`torch.Tensor` of shape `(batch,)` or `(batch, seq)`, *optional*):
            Advantages of the completions, or of the tokens.
        groups (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Number of the group (completions of one prompt) of each row, equal on all processes.
        progress (`float`, *optional*, defaults to `0.0`):
            Share of the training that is done, `global_step / max_steps`, in [0, 1].
        tokenizer (`Any`, *optional*):
            The tokenizer of the run, for [`matching`].
        valid (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Nonzero at the valid tokens of the rows, of which an earlier rule of a chain may have left fewer in `mask`.
            Defaults to `mask`.
    """

    mask: torch.Tensor
    entropies: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    contrast_log_probs: torch.Tensor | None = None
    completion_ids: torch.Tensor | None = None
    priorities: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    progress: float = 0.0
    tokenizer: Any = None
    valid: torch.Tensor | None = None

    @property
    def places(self) -> torch.Tensor:
        """
        Index of each token among the valid tokens of its row, from 0; -1 at tokens that are not valid.

        An earlier rule of a chain narrows `mask` but not this count: a token keeps its place in the completion.

        Returns:
            `torch.LongTensor` of shape `(batch, seq)`.
        """
        valid = (self.mask if self.valid is None else self.valid).bool()
        return (valid.cumsum(1) - 1).masked_fill(~valid, -1)

    @property
    def token_advantages(self) -> torch.Tensor:
        """Advantages that broadcast to `(batch, seq)`."""
        advantages = self.required("advantages")
        return advantages if advantages.dim() == 2 else advantages.unsqueeze(1)

    def matching(self, pattern: str) -> torch.Tensor:
        """
        Tokens of `mask` that hold any character of a match of `pattern` in the text of their completion.

        A rule that calls this has `completion_ids` among its `needs`. Special tokens are part of the text.

        Args:
            pattern (`str`): A regular expression. With `(?s)` a dot matches line ends, `(?i)` ignores case.

        Returns:
            `torch.BoolTensor` of shape `(batch, seq)`.
        """
        found = torch.zeros_like(self.mask, dtype=torch.bool)
        for row, (ids, _) in enumerate(self.completions()):
            marked = tokens_matching(ids, self.decode, pattern)
            found[row, : len(ids)] = torch.tensor(marked, dtype=torch.bool, device=found.device)
        return found & self.mask.bool()

    def completions(self) -> Iterator[tuple[list[int], list[bool]]]:
        """Token ids of each row up to its last valid token, and which of them are valid."""
        valid = (self.mask if self.valid is None else self.valid).bool()
        for ids, marks in zip(self.required("completion_ids").tolist(), valid.tolist(), strict=True):
            length = len(marks) - marks[::-1].index(True) if any(marks) else 0
            yield ids[:length], marks[:length]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.required("tokenizer").decode(ids, clean_up_tokenization_spaces=False)

    def required(self, name: str) -> Any:
        """The signal of that name. A missing signal is an error that names it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"Signals.{name} is needed by the credit rule and has not been given: pass {name}=...")
        return value

    def only(self, names: frozenset[str]) -> "Signals":
        """The same without the signals that a rule does not name in its `needs`, as if it were alone in its chain."""
        hidden: dict[str, Any] = dict.fromkeys(set(SIGNALS) - names)
        return replace(self, **hidden)

    def narrowed(self, mask: torch.Tensor) -> "Signals":
        """The same signals for a rule that may weigh the tokens of `mask` only."""
        return replace(self, mask=mask, valid=self.mask if self.valid is None else self.valid)
