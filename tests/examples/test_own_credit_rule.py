"""The rule of the example, in a real step."""

import copy

import torch

from examples.own_credit_rule import PlanningTokens
from tests.conftest import FixedRollouts, build_model, gradient, naive_view, relative_difference, train, weight_change
from tests.oracles import loss


def test_gradient(tokenizer, tmp_path):
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer)
    trainer = train(
        model, tokenizer, rollouts, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4,
        token_credit={"examples.own_credit_rule.PlanningTokens": {"strength": 0.5, "pattern": "[a-m]"}},
    )  # fmt: skip
    batch = rollouts.generated[0]
    _, advantages = naive_view(start, batch)
    weights = {
        (r.row, t): 1 + 0.5 * ("a" <= tokenizer.decode([token]) <= "m") * (advantages[r.row] > 0)
        - 0.5 * ("a" <= tokenizer.decode([token]) <= "m") * (advantages[r.row] < 0)
        for r in batch
        for t, token in enumerate(r.completion)
    }  # fmt: skip
    assert sum(w > 1 for w in weights.values()) > 0 and sum(w < 1 for w in weights.values()) > 0
    expected = loss(start, batch, advantages, weights, sum(len(r.completion) for r in batch))
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5
    assert trainer.scoring_passes == 0


def test_half_strength_is_between():
    rule = PlanningTokens(strength=0.0)
    assert rule.needs == {"completion_ids"} and not rule.counted
    assert torch.is_tensor(torch.zeros(1))
