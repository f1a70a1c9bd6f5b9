"""Sampled accuracy: avg@K and pass@K, resumable, paired comparisons, and the calibration of forecasts."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "calibration": ["ReliabilityBin", "brier_score", "expected_calibration_error", "reliability_bins"],
        "metrics": ["Difference", "compare", "pass_at_k"],
    },
)
