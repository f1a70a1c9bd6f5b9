"""
Objectives that are not a weighted policy gradient.

This package imports torch, but neither TRL nor a trainer.
"""

from .losses import OBJECTIVES, LossInputs, LossOutputs, TrajectoryBalance, with_weighted_gradient
from .mirror import mirror_beta, mirror_reference
from .trajectory_balance import (
    LogPartitionFit,
    balance_loss,
    balance_residual,
    effective_sample_size,
    fit_log_partition,
    group_log_partition,
    importance_ratio,
    log_ratio,
    proposal_log_partition,
    proposal_standard_error,
    ridge_map,
)


__all__ = [
    "OBJECTIVES",
    "LogPartitionFit",
    "LossInputs",
    "LossOutputs",
    "TrajectoryBalance",
    "balance_loss",
    "balance_residual",
    "effective_sample_size",
    "fit_log_partition",
    "group_log_partition",
    "importance_ratio",
    "log_ratio",
    "mirror_beta",
    "mirror_reference",
    "proposal_log_partition",
    "proposal_standard_error",
    "ridge_map",
    "with_weighted_gradient",
]
