"""
Teams: several roles that are trained or steered together, and the equilibria that they come to.

This package knows nothing of a trainer.
"""

from .equilibrium import Equilibrium, contraction, local_contraction, mirror_step, quantal_response, solve_hqre
from .prompt_control import PromptControl


__all__ = [
    "Equilibrium",
    "PromptControl",
    "contraction",
    "local_contraction",
    "mirror_step",
    "quantal_response",
    "solve_hqre",
]
