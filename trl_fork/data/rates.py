"""Empirical rates of an outcome by nested cells: targets of forecasts with less noise than the outcomes themselves."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any


class HierarchicalRates:
    """
    Rates of an outcome in nested cells, each drawn towards the rate of the cell around it (arXiv 2607.00164).

    The cell of level `L` is that of the first `L` features: level 0 holds all rows, and every level divides the cells
    of the one before. A cell with `n` rows, of which `w` had the outcome, has the rate

        rate_L = (w + strength * rate_(L-1)) / (n + strength)

    with the plain rate of all rows at level 0. A row gets the rate of the deepest of its cells that was seen.

    Args:
        features (`dict[str, sequence of float or None]`):
            Features in the order of their levels: the name of a column, and the ascending edges that divide its
            numbers into bins. An edge belongs to the bin above it (`bisect_right`). `None` takes each value of the
            column, a text or a number, for a bin of its own.
        strength (`float`, *optional*, defaults to `25.0`):
            How many rows the rate of the outer cell counts for.

    Example:
        ```python
        >>> from trl_fork.data import HierarchicalRates
        >>> rates = HierarchicalRates({"margin": [0], "half": None}, strength=2)
        >>> rows = [{"margin": 3, "half": 1}, {"margin": 5, "half": 2}, {"margin": -1, "half": 1}]
        >>> _ = rates.fit(rows, outcomes=[1, 1, 0])
        >>> [round(rate, 3) for rate in rates.predict([{"margin": 9, "half": 2}, {"margin": -4, "half": 2}])]
        [0.889, 0.444]
        ```
    """

    def __init__(self, features: Mapping[str, Sequence[float] | None], strength: float = 25.0):
        for name, edges in features.items():
            if edges is not None and not all(low < high for low, high in pairwise(edges)):
                raise ValueError(f"features: the edges of {name!r} must ascend, got {list(edges)}.")
        if not features:
            raise ValueError("features: there must be at least one. Without any, every rate is that of all rows.")
        if not strength > 0:
            raise ValueError(f"strength must be above 0, got {strength}.")
        self.features = dict(features)
        self.strength = strength
        self._rates: dict[tuple, float] = {}

    def cell(self, row: Mapping[str, Any]) -> tuple:
        """
        The deepest cell of a row: its bin of each feature, counted from 0.

        Raises:
            `ValueError`: for a row without one of the features, or with a value that is no number where edges are.
        """
        key = []
        for name, edges in self.features.items():
            value = row.get(name)
            if value is None or value != value:  # NaN
                raise ValueError(f"column {name!r}: the value is {value}, in the row {dict(row)!r}.")
            if edges is None:
                key.append(value)
            elif isinstance(value, Real):
                key.append(bisect_right(edges, value))
            else:
                raise ValueError(f"column {name!r}: {value!r} is no number, and cannot be put between edges.")
        return tuple(key)

    def fit(self, rows: Iterable[Mapping[str, Any]], outcomes: Sequence[float]) -> "HierarchicalRates":
        """
        Count the rows to learn from. Rows to be evaluated on must not be among them.

        Args:
            rows (`iterable` of `dict`): Rows with a value of each feature.
            outcomes (`sequence` of `float`): 0 or 1, one per row; a rate in [0, 1] counts as its part of a row.

        Returns:
            [`HierarchicalRates`]: itself.

        Raises:
            `ValueError`: for no rows, other numbers of outcomes than of rows, or an outcome outside [0, 1].
        """
        counts: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0])  # outcomes and rows by cell, of all levels
        rows = list(rows)
        if len(rows) != len(outcomes) or not rows:
            raise ValueError(f"Expected one outcome per row, and a row; got {len(outcomes)} for {len(rows)} rows.")
        for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
            if not (isinstance(outcome, Real) and 0 <= outcome <= 1):
                raise ValueError(f"outcomes: row {number}: {outcome!r} is not a number in [0, 1].")
            cell = self.cell(row)
            for level in range(len(cell) + 1):
                count = counts[cell[:level]]
                count[0] += float(outcome)
                count[1] += 1
        wins, total = counts.pop(())
        self._rates = {(): wins / total}
        for cell in sorted(counts, key=len):  # outer cells first
            wins, total = counts[cell]
            self._rates[cell] = (wins + self.strength * self._rates[cell[:-1]]) / (total + self.strength)
        return self

    def predict(self, rows: Iterable[Mapping[str, Any]]) -> list[float]:
        """
        The rate of each row: that of the deepest of its cells that [`fit`] has seen.

        Raises:
            `RuntimeError`: before `fit`.
        """
        if not self._rates:
            raise RuntimeError("There are no rates yet: call fit(rows, outcomes) first.")
        return [self._rate(self.cell(row)) for row in rows]

    def _rate(self, cell: tuple) -> float:
        return next(self._rates[cell[:level]] for level in range(len(cell), -1, -1) if cell[:level] in self._rates)
