"""
Token credit: which tokens are trained on, how much, and when.

A rule is a pure function from [`Signals`] to non-negative weights of shape `(batch, seq)`, which multiply the policy
term of TRL's loss. This package imports torch, but neither TRL nor a trainer.
"""

from .build import RULES, build_credit
from .chain import Chain, Credit
from .effect import credit_effect
from .entropy_advantage import EntropyAdvantage
from .interval import Interval
from .normalise import normalise, total_from_masks, totals
from .pools import POOLS, NaNSignalError, Pool, forking_count, pool_of
from .presets import load_preset, preset_names
from .proportional import Proportional
from .random_fraction import Random
from .rank import Rank
from .rollouts import Rollouts
from .rules import Rule
from .schedules import Constant, Schedule, as_schedule
from .scores import SCORES
from .selection import TOKEN_SELECTIONS, random_priorities, select_tokens
from .signals import Signals
from .span import Span
from .spurious import Spurious
from .top_fraction import TopFraction
from .user_rules import CreditRuleError, UserRule


__all__ = [
    "POOLS",
    "RULES",
    "SCORES",
    "TOKEN_SELECTIONS",
    "Chain",
    "Constant",
    "Credit",
    "CreditRuleError",
    "EntropyAdvantage",
    "Interval",
    "NaNSignalError",
    "Pool",
    "Proportional",
    "Random",
    "Rank",
    "Rollouts",
    "Rule",
    "Schedule",
    "Signals",
    "Span",
    "Spurious",
    "TopFraction",
    "UserRule",
    "as_schedule",
    "build_credit",
    "credit_effect",
    "forking_count",
    "load_preset",
    "normalise",
    "pool_of",
    "preset_names",
    "random_priorities",
    "select_tokens",
    "total_from_masks",
    "totals",
]
