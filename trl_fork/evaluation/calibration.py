"""How good forecasts are: the Brier score, the expected calibration error, and the bins of a reliability diagram."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReliabilityBin:
    """
    Forecasts of one bin.

    Args:
        low, high (`float`): Its ends. The lower one belongs to it, and the upper one to the next bin; 1 belongs to the
            last bin.
        count (`int`): Number of forecasts.
        forecast (`float`): Their mean.
        rate (`float`): Mean of their outcomes.
    """

    low: float
    high: float
    count: int
    forecast: float
    rate: float


def brier_score(forecasts: Sequence[float], outcomes: Sequence[float]) -> float:
    """
    The mean squared distance of forecasts from outcomes.

    Args:
        forecasts (`sequence` of `float`): Probabilities, in [0, 1].
        outcomes (`sequence` of `float`): What happened, 0 or 1; or a rate or a true probability in [0, 1].

    Returns:
        `float`: 0 is best. A forecast of 0.5 for everything has 0.25 on outcomes of 0 and 1.

    Raises:
        `ValueError`: for no forecasts, other numbers of outcomes than of forecasts, or values outside [0, 1].
    """
    p, y = _checked(forecasts, outcomes)
    return float(np.mean((p - y) ** 2))


def expected_calibration_error(forecasts: Sequence[float], outcomes: Sequence[float], num_bins: int = 10) -> float:
    """
    The mean distance between forecast and rate over bins of equal width, weighted by their forecasts:
    `sum(count / n * |mean forecast - mean outcome|)`.

    With `n` forecasts a calibrated forecaster has about `0.8 * sqrt(p (1 - p) / count)` in each bin, not 0. A constant
    forecast of the base rate has 0 and says nothing: read it beside the Brier score.

    Args:
        forecasts, outcomes: As those of [`~evaluation.brier_score`].
        num_bins (`int`, *optional*, defaults to `10`): Bins, each `1 / num_bins` wide.

    Returns:
        `float`: in [0, 1]; 0 is best.

    Raises:
        `ValueError`: as [`~evaluation.brier_score`] does, and for less than one bin.
    """
    bins = reliability_bins(forecasts, outcomes, num_bins)
    total = sum(b.count for b in bins)
    return sum(b.count / total * abs(b.forecast - b.rate) for b in bins)


def reliability_bins(
    forecasts: Sequence[float], outcomes: Sequence[float], num_bins: int = 10
) -> list[ReliabilityBin]:
    """
    The bins of equal width that hold any forecast, from the lowest.

    Args and errors are those of [`~evaluation.expected_calibration_error`].

    Returns:
        `list[ReliabilityBin]`: at most `num_bins`.
    """
    p, y = _checked(forecasts, outcomes)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    edges = np.arange(num_bins + 1) / num_bins  # 3 / 10 is 0.3, where 3 * 0.1 is not
    index = np.minimum(np.searchsorted(edges, p, side="right") - 1, num_bins - 1)
    return [
        ReliabilityBin(
            float(edges[k]), float(edges[k + 1]), int(own.sum()), float(p[own].mean()), float(y[own].mean())
        )
        for k in range(num_bins)
        if (own := index == k).any()
    ]


def _checked(forecasts, outcomes) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(forecasts, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or len(p) == 0:
        raise ValueError(f"Expected as many outcomes as forecasts, and at least one; got {y.shape} and {p.shape}.")
    for name, values in (("forecasts", p), ("outcomes", y)):
        wrong = ~((values >= 0) & (values <= 1))  # NaN too
        if wrong.any():
            raise ValueError(
                f"{name} must be in [0, 1]; number {int(wrong.argmax())} is {values[wrong][0]}. Divide percentages by "
                "100, and leave out what has no value."
            )
    return p, y
