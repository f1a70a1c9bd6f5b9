"""Metrics of the forward passes of an optimizer step, over all of its tokens or completions alike."""

import torch

from ..ranks import Ranks


class PassMetrics:
    """
    Collects metrics over forward passes and processes, of which each holds another number of rows.

    All processes must add the same names, and call [`result`] together.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}  # sum and number of the values
        self._largest: dict[str, torch.Tensor] = {}

    def add(self, name: str, values: torch.Tensor) -> None:
        """
        Add the values of a pass.

        Args:
            name (`str`): Name of the metric: the mean of all values, or with the ending `_max` the largest.
            values (`torch.Tensor` of shape `(num_values,)`): Values without gradient; there may be none.
        """
        values = values.float()
        if name.endswith("_max"):
            bottom = values.new_full((1,), -torch.inf)
            self._largest[name] = torch.cat([self._largest.get(name, bottom), values]).max().reshape(1)
        else:
            found = torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
            self._sums[name] = self._sums.get(name, 0) + found

    def result(self, ranks: Ranks) -> dict[str, float]:
        """Metrics of all that was added since the last call, without those that have no value."""
        sums, self._sums = self._sums, {}
        largest, self._largest = self._largest, {}
        found: dict[str, float] = {}
        if sums:
            totals = ranks.sum(torch.stack(list(sums.values()))).tolist()
            found |= {name: total / count for name, (total, count) in zip(sums, totals, strict=True) if count}
        if largest:
            values = ranks.gather_vectors(torch.cat(list(largest.values()))).amax(0).tolist()
            found |= {name: value for name, value in zip(largest, values, strict=True) if value > -torch.inf}
        return found
