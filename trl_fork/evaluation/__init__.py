"""Sampled accuracy: avg@K and pass@K, resumable, and paired comparisons."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "metrics": ["Difference", "compare", "pass_at_k"],
    },
)
