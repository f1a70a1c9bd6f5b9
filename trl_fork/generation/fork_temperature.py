"""Decoding forking tokens at one temperature and all other tokens at another (paper section 3, Eq. 5, Fig. 3)."""

import torch
from transformers import LogitsProcessor

from ..entropy import token_entropy


class ForkTemperatureLogitsProcessor(LogitsProcessor):
    """
    Samples forking tokens at one temperature and all other tokens at another, for `generate` of transformers.

    ```
    T' = T_high if H > threshold else T_low,    H the entropy at temperature 1        (paper Eq. 5)
    ```

    The comparison is strict, row by row and step by step: rows of a batch do not influence each other. The threshold
    is fixed; the paper's, for Qwen3-8B, is 0.672 nats, the 80th percentile of its entropies
    (`trl-fork analyze` prints it for another model).

    Pass it to `generate` in `logits_processor`, with `do_sample=True, temperature=1.0, top_k=0, top_p=1.0`.
    `generate` applies its own warpers (temperature, top-k, top-p) after it, so a temperature there would multiply, and
    a `generation_config.json` often sets them. Processors that `generate` applies before it (a repetition penalty, a
    minimal length) change the distribution whose entropy is taken. It does not work for beam search, whose scores are
    sums of log-probabilities.

    Args:
        threshold (`float`):
            Entropy in nats above which a token is a forking token.
        forking_temperature (`float`, *optional*, defaults to `1.0`):
            T_high, the temperature of forking tokens; 0 takes the most likely token.
        other_temperature (`float`, *optional*, defaults to `1.0`):
            T_low, the temperature of all other tokens; 0 takes the most likely token.

    Raises:
        `ValueError`: if a temperature is negative or not finite, or the threshold is NaN.

    Example:
        ```python
        >>> from trl_fork import ForkTemperatureLogitsProcessor
        >>> processor = ForkTemperatureLogitsProcessor(0.672, forking_temperature=1.0, other_temperature=0.3)
        >>> output = model.generate(  # doctest: +SKIP
        ...     **inputs, logits_processor=[processor], do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        ... )
        ```
    """

    def __init__(self, threshold: float, forking_temperature: float = 1.0, other_temperature: float = 1.0):
        if threshold != threshold:
            raise ValueError("threshold must be an entropy in nats, got NaN: no token would be a forking token.")
        for name, value in (("forking_temperature", forking_temperature), ("other_temperature", other_temperature)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}: 0 takes the most likely token.")
        self.threshold = threshold
        self.forking_temperature = forking_temperature
        self.other_temperature = other_temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, seq)`): Not used.
            scores (`torch.FloatTensor` of shape `(batch, vocabulary)`): Logits of the next token.

        Returns:
            `torch.FloatTensor` of shape `(batch, vocabulary)`: logits divided by the temperature of their row.
        """
        is_fork = token_entropy(scores) > self.threshold  # (batch,)
        # Each temperature divides all rows, as transformers' own warper does: the same bits where the two are equal.
        return torch.where(  # type: ignore[return-value]
            is_fork[:, None], _scaled(scores, self.forking_temperature), _scaled(scores, self.other_temperature)
        )


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature > 0:
        return logits / temperature
    # The limit: all probability on the largest logit, the first of equal ones as in greedy decoding.
    return torch.full_like(logits, float("-inf")).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
