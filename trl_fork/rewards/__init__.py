"""Rewards: graders of mathematical answers that a hostile answer cannot stall, and reward functions by name."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "functions": ["get_reward_function"],
        "grading": ["GradingPool", "Verdict", "accuracy_reward", "reasoning_accuracy_reward"],
    },
)
