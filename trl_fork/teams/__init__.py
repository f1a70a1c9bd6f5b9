"""Teams: several roles, played by one policy, that are trained on a joint return."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "loading": ["load_team"],
        "rewards": ["joint_reward"],
        "roles": ["Role"],
        "rollouts": ["TeamRollout"],
    },
)
