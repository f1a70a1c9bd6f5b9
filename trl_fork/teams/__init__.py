"""
Teams: several roles that are trained or steered together, and the equilibria that they come to.

This package knows nothing of a trainer.
"""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "equilibrium": [
            "Equilibrium",
            "contraction",
            "local_contraction",
            "mirror_step",
            "quantal_response",
            "solve_hqre",
        ],
        "loading": ["load_team"],
        "prompt_control": ["PromptControl"],
        "rewards": ["joint_reward"],
        "roles": ["Role"],
        "rollouts": ["TeamRollout"],
    },
)
