"""Weight 1 from the last match of a pattern to the end of a completion."""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ranks import Ranks
from .pools import Pool
from .rules import PackageRule
from .signals import Signals
from .spans import last_match


# A control character that was meant as a backslash and a letter, or a word boundary before "oxed".
_EATEN = re.compile(r"[\x08\x0c]|(?<!\\)(?:\\\\)*\\boxed")


@dataclass(frozen=True)
class Span(PackageRule):
    """
    Weight 1 on the tokens from the start of the last match on, 0 on those before: credit for the answer.

    The idea is that of "Verifiable Rewards for Calibrated Probabilistic Forecasting" (arXiv 2607.00164), whose code
    narrows the completion mask. TRL makes the attention mask from it, so that the answer no longer sees the reasoning.
    Weights leave the context of every token as it is.

    The pattern is looked for in the decoded completion; a match that begins in a token that the model has not written,
    such as a tool's output, does not count. A token that holds the first character of the match has weight 1.

    Args:
        pattern (`str`):
            A regular expression for the beginning of the answer, such as `"Probability:"`.
        missing (`str`, *optional*, defaults to `"completion"`):
            A completion without a match: `"completion"` trains on all of it, `"drop"` on none.

    Raises:
        `ValueError`: if the pattern is empty or not a regular expression, or if an escape of the file or the command
            line has eaten its backslash.
    """

    pattern: str
    missing: str = "completion"

    name: ClassVar[str] = "span"
    needs: ClassVar[frozenset[str]] = frozenset({"completion_ids"})
    sparse: ClassVar[bool] = True
    mass: ClassVar[str] = "summed"

    def __post_init__(self):
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ValueError(f"pattern must be a regular expression such as 'Probability:', got {self.pattern!r}.")
        if _EATEN.search(self.pattern):
            raise ValueError(
                f"pattern={self.pattern!r} has lost a backslash. JSON and double quotes of YAML read \\b as a "
                "backspace and \\f as a form feed; a regular expression reads \\b as a word boundary. For \\boxed "
                "write '\\\\boxed' "
                'between single quotes of YAML, or "\\\\\\\\boxed" in JSON.'
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern={self.pattern!r} is no regular expression: {error}. Put a backslash before a character that "
                "means itself, such as \\\\boxed or \\$."
            ) from None
        if self.missing not in ("completion", "drop"):
            raise ValueError(f"missing must be 'completion' or 'drop', got {self.missing!r}.")

    @property
    def needs_whole_completions(self) -> bool:
        """Whether a completion that was cut off, which has no answer, would be trained on as a whole."""
        return self.missing == "completion"

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        without = "all of a completion" if self.missing == "completion" else "no token"
        return f'the tokens from the last match of "{self.pattern}" on, and {without} without one'

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        mask = signals.mask.bool()
        starts = torch.tensor(self._starts(signals), device=mask.device)
        if self.missing == "completion":
            starts = starts.masked_fill(starts < 0, 0)
        columns = torch.arange(mask.shape[1], device=mask.device)
        return (mask & (columns >= starts.view(-1, 1)) & (starts.view(-1, 1) >= 0)).float()

    def _starts(self, signals: Signals) -> list[int]:
        """Column of the first token of each row's span; -1 without a match."""
        found = (last_match(ids, valid, signals.decode, self.pattern) for ids, valid in signals.completions())
        return [-1 if start is None else start for start in found]

    def metrics(self, signals: Signals, ranks: Ranks) -> dict[str, float]:
        """`span_found`: fraction of the completions with a valid token that have a match, over all ranks."""
        present = signals.mask.bool().any(1)
        matched = torch.tensor(self._starts(signals), device=present.device) >= 0
        found, count = ranks.sum(torch.stack([(matched & present).sum(), present.sum()])).tolist()
        return {"span_found": found / count if count else float("nan")}
