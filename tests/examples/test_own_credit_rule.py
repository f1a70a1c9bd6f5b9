"""The rule of the example, in a real step."""

import copy
import re

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
    signs = {row: (advantage > 0) - (advantage < 0) for row, advantage in advantages.items()}
    weights = {
        (r.row, t): 1 + 0.5 * signs[r.row] * bool(re.search("[a-m]", tokenizer.decode([token])))
        for r in batch
        for t, token in enumerate(r.completion)
    }
    assert sum(w > 1 for w in weights.values()) > 0 and sum(w < 1 for w in weights.values()) > 0
    expected = loss(start, batch, advantages, weights, sum(len(r.completion) for r in batch))
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5
    assert trainer.scoring_passes == 0
