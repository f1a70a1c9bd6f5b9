"""Rewards: graders of mathematical answers and of forecasts that no answer can stall, and rewards by name."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "forecasts": ["brier_reward", "read_probability"],
        "functions": ["get_reward_function"],
        "grading": ["GradingPool", "Verdict", "accuracy_reward", "reasoning_accuracy_reward"],
    },
)
