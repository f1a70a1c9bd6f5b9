"""Sampling: engines, and a temperature of its own for forking tokens."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "fork_temperature": ["ForkTemperatureLogitsProcessor"],
    },
)
