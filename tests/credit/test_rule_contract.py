"""The contract of every rule, run over all of `RULES` and over rules of a user."""

import json
from itertools import pairwise

import pytest
import torch

from tests.credit.batches import batch_of_signals, map_signals, padded, rows_of
from tests.credit.simulated_ranks import all_results, on_ranks
from trl_fork.credit import (
    RULES,
    NaNSignalError,
    build_credit,
    normalise,
    pool_of,
    total_from_masks,
    totals,
)
from trl_fork.ranks import Ranks


LINEAR = {"linear": [0.05, 1.0, 0.8]}
SETTINGS = {
    "top_fraction": [
        {},
        {"fraction": 0.55, "complement": True},
        {"fraction": 1.0},
        {"fraction": LINEAR, "score": "position", "pool": "sequence"},
        {"fraction": LINEAR, "pool": "sequence"},
        {"score": "surprisal"},
        {"score": "relative_surprisal"},
        {"score": "gradient_magnitude"},
    ],
    "random": [{}, {"fraction": 1.0}, {"fraction": LINEAR, "pool": "sequence"}],
    "proportional": [{}, {"window": 5, "temperature": 0.5, "rows": "all"}, {"score": "entropy", "strength": LINEAR}],
    "rank": [{}, {"score": "entropy", "power": 1.5}, {"score": "prompt_shift", "strength": 0.25}],
    "interval": [{"low": 0.3, "high": 1.7}, {"score": "entropy", "low": 1.0, "high": 3.0}],
    "span": [{"pattern": "[a-d]"}, {"pattern": "[ab][^z]", "missing": "drop"}],
    "entropy_advantage": [{}, {"alpha": 0.1, "kappa": 1.5, "strength": {"power": [1.0, 0.0, 0.9]}}],
    "spurious": [{"entropy_quantile": 0.5, "probability": 0.1}, {"entropy_quantile": 0.8, "pool": "sequence"}],
    "rollouts": [
        {},
        {"keep": 0.3, "positives": "random", "negatives": "low_entropy_sum", "top_tokens": 0.3},
        {"keep": 1.0},
    ],
}
CHAINS = [{name: parameters} for name, settings in SETTINGS.items() for parameters in settings]
CHAINS += [
    {"span": {"pattern": "[ab]"}, "top_fraction": {"fraction": 0.5, "pool": "sequence"}},
    {"top_fraction": {"fraction": 0.6}, "proportional": {}, "entropy_advantage": {}},
    {"rollouts": {}, "spurious": {"entropy_quantile": 0.6, "probability": 0.1}, "rank": {"score": "surprisal"}},
]
CHAINS += [{f"tests.credit.own_rules.{name}": {}} for name in ("HalfOfAnswer", "RowShare", "long_rows", "surprisal")]
CHAINS += [
    {
        "tests.credit.own_rules.HalfOfAnswer": {"fraction": 0.9},
        "top_fraction": {"fraction": 0.5, "score": "surprisal"},
    },
    {"random": {"fraction": 0.5}, "top_fraction": {"fraction": 0.5}, "tests.credit.own_rules.RowShare": None},
]
every_chain = pytest.mark.parametrize("spec", CHAINS, ids=json.dumps)


def only_needed(signals, chain):
    """Signals with `None` wherever the chain says that it does not read them."""
    kept = {"mask", "advantages", "groups", *chain.needs}
    return map_signals(lambda name, tensor: tensor if name in kept else None, signals)


def weights_on(pool="batch"):
    def weights(chain, signals, ranks):
        return chain.apply(signals, pool_of(pool, ranks), ranks).weights

    return weights


def test_every_rule_is_covered():
    assert set(SETTINGS) == set(RULES)
    assert all(rule.name == name for name, rule in RULES.items())


@every_chain
def test_weights_are_non_negative_and_zero_outside_the_mask(spec):
    chain, signals = build_credit(spec), batch_of_signals()
    before = map_signals(lambda name, tensor: tensor.clone(), signals)
    weights = chain(only_needed(signals, chain))
    assert weights.dtype == torch.float32 and weights.shape == signals.mask.shape
    assert (weights >= 0).all() and weights.isfinite().all() and weights.any()
    assert not weights[signals.mask == 0].any()
    for name in ("mask", "entropies", "log_probs", "completion_ids", "priorities", "advantages"):
        assert torch.equal(getattr(signals, name), getattr(before, name))


@every_chain
def test_sparse_says_whether_valid_tokens_get_no_weight(spec):
    chain, signals = build_credit(spec), batch_of_signals()
    zeros = (chain(signals)[signals.mask != 0] == 0).any()
    # The weights of a user's rule may be zero, which only its author can know.
    assert zeros == chain.sparse or (chain.sparse and "tests.credit.own_rules.surprisal" in spec)


@every_chain
def test_padding_changes_nothing(spec):
    chain, signals = build_credit(spec), batch_of_signals()
    expected = chain(signals)
    for garbage in (float("nan"), float("inf"), -1e30):
        weights = chain(padded(signals, rows=3, columns=5, garbage=garbage))
        assert torch.equal(weights[:32, :24], expected)
        assert not weights[32:].any() and not weights[:, 24:].any()


@every_chain
@pytest.mark.parametrize("cuts", [[0, 16, 32], [0, 13, 13, 32]], ids=["two_ranks", "an_empty_rank"])
def test_the_cut_over_ranks_changes_nothing(spec, cuts):
    chain, signals = build_credit(spec), batch_of_signals()
    parts = [(chain, rows_of(signals, slice(a, b))) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(all_results(weights_on(), parts)), chain(signals))


@every_chain
def test_nan_of_one_rank_is_refused_on_all(spec):
    chain, signals = build_credit(spec), batch_of_signals()
    for needed in chain.needs - {"completion_ids", "priorities"}:
        broken = map_signals(lambda name, tensor: tensor.clone(), signals)
        getattr(broken, needed)[30, broken.mask[30].nonzero()[0]] = float("nan")
        parts = [(chain, rows_of(broken, slice(0, 16))), (chain, rows_of(broken, slice(16, 32)))]
        _, errors = on_ranks(weights_on(), parts)
        num_valid = int(signals.mask.sum())
        for error in errors:
            assert isinstance(error, NaNSignalError) and error.signal == needed
            assert f"1 of {num_valid} valid tokens have a NaN" in str(error)


@every_chain
def test_the_same_again_and_from_its_description(spec):
    chain, signals = build_credit(spec), batch_of_signals()
    described = chain.describe()
    again = build_credit(json.loads(json.dumps(described)))
    assert again == chain and again.describe() == described
    assert torch.equal(again(signals), chain(signals))


@every_chain
@pytest.mark.parametrize("pool", ["batch", "micro_batch", "local", "sequence"])
def test_mass_says_what_is_known_of_the_total(spec, pool):
    chain = build_credit(spec)
    ranks = Ranks()
    masks = []
    for seed in range(4):
        signals = batch_of_signals(seed=seed)
        credit = chain.apply(signals, pool_of(pool, ranks), ranks)
        mass_total, num_valid = totals(credit, signals.mask, ranks)
        assert num_valid == signals.mask.sum()
        assert mass_total == pytest.approx(credit.mass.double().sum().item())
        masks.append((signals.mask, mass_total, signals.progress))
        if chain.mass == "one_per_row":
            kept = (credit.mass != 0).sum(1)
            torch.testing.assert_close(credit.mass.sum(1), kept.float())
    if chain.mass == "from_masks":
        for mask, mass_total, progress in masks:
            expected = (mass_total, int(mask.sum()))
            assert total_from_masks(chain, [mask], pool_of(pool, ranks), ranks, progress) == expected


@every_chain
def test_normalised_mass_sums_to_the_valid_tokens(spec):
    chain, signals = build_credit(spec), batch_of_signals()
    credit = chain.apply(signals, pool_of("batch"), Ranks())
    mass_total, num_valid = totals(credit, signals.mask, Ranks())
    assert normalise(credit.mass, mass_total, num_valid, "selected").double().sum() == pytest.approx(num_valid)
    assert normalise(credit.weights, mass_total, num_valid, "all") is credit.weights


def test_all_tokens_have_weight_one_and_no_signal_is_needed():
    signals = batch_of_signals()
    for spec in ({"top_fraction": {"fraction": 1.0}}, {"random": {"fraction": 1}}):
        chain = build_credit(spec)
        assert chain.needs == frozenset() and not chain.sparse
        credit = chain.apply(only_needed(signals, chain), pool_of("batch"), Ranks())
        weights = normalise(credit.weights, *totals(credit, signals.mask, Ranks()), "selected")
        assert torch.equal(weights, signals.mask.float())
