"""The trainer: a thin adapter between TRL's hooks and the functions of this package."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "batch": ["GenerationBatch"],
        "callbacks": ["ForkReportCallback", "GenerationCallback"],
        "forking_grpo_config": ["ForkingGRPOConfig"],
        "forking_grpo_trainer": ["ForkingGRPOTrainer"],
        "telemetry": ["SummaryCallback"],
    },
)
