"""One real step of `trainer.train()` against the naive objective: gradients, not losses."""

import pytest

from tests.conftest import FixedRollouts, gradient, naive_view, relative_difference, train, weight_change
from tests.oracles import gap_at_threshold, loss, priority, select


RHO = 0.2
CUTS = {"32x1": (32, 1), "8x4": (8, 4), "2x16": (2, 16)}


def pools_of(scope, batch, micro_batches):
    if scope == "batch":
        return [[r.row for r in batch]]
    if scope == "sequence":
        return [[r.row] for r in batch]
    return micro_batches


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("denominator", ["selected", "all"])
@pytest.mark.parametrize("scope", ["batch", "micro_batch", "local", "sequence"])
@pytest.mark.parametrize("rule", ["high_entropy", "low_entropy", "random"])
def test_gradient_equals_naive_objective(rule, scope, denominator, cut, model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    size, accumulation = CUTS[cut]
    trainer = train(
        model,
        tokenizer,
        rollouts,
        tmp_path,
        top_entropy_quantile=RHO,
        token_selection=rule,
        entropy_threshold_scope=scope,
        loss_denominator=denominator,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    batch = rollouts.generated[0]
    entropies, advantages = naive_view(start, batch)
    pools = pools_of(scope, batch, trainer.rows_of_micro_batches(batch))
    assert sorted(row for pool in pools for row in pool) == list(range(32))
    scores = entropies
    if rule == "random":
        scores = {r.row: [priority(42, (0, 0, 0), r.row, t) for t in range(len(r.completion))] for r in batch}
    else:
        assert gap_at_threshold(batch, entropies, RHO, pools) > 1e-5
    selected = select(batch, scores, RHO, rule, pools)
    valid = sum(sum(r.valid) for r in batch)
    expected = loss(start, batch, advantages, selected, len(selected) if denominator == "selected" else valid)
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5
