"""
A credit rule of your own, in one file: more weight on the words with which a model plans.

    trl-fork train --recipe gsm8k_single_gpu --token_credit own_credit_rule.PlanningTokens

run where this file is. HICRA (arXiv 2509.03646) adds 20 % of the advantage's size to the tokens of planning phrases.
On an advantage `A` that is the weight `1 + 0.2 sign(A)`: such phrases are reinforced more where the answer was right,
and punished less where it was wrong. Its list of phrases is mined from rollouts; this one is made up.
"""

from dataclasses import dataclass

import torch

from trl_fork.credit import Pool, Signals


PHRASES = r"(?i)\b(wait|however|alternatively|let me check|on the other hand|first|so that means)\b"


@dataclass(frozen=True)
class PlanningTokens:
    """
    Weight `1 + strength * sign(advantage)` on the tokens of planning phrases, and 1 on all others.

    Args:
        strength (`float`, *optional*, defaults to `0.2`): In [0, 1].
        pattern (`str`, *optional*): Regular expression of the phrases.
    """

    strength: float = 0.2
    pattern: str = PHRASES

    needs = frozenset({"completion_ids"})  # no scores: the scoring pass is left out
    sparse = False  # every token has a weight
    counted = False  # the loss is divided by the number of tokens, not by their weights: this reshapes advantages

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        planning = signals.matching(self.pattern).float()
        return signals.mask.bool() * (1 + self.strength * planning * signals.advantages.sign().unsqueeze(1))
