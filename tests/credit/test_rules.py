"""What each rule of `RULES` gives, against sorting in Python."""

from fractions import Fraction
from math import ceil

import pytest
import torch

from tests.credit.batches import batch_of_signals
from tests.naive_rules import contrast_score, window_shares
from tests.oracles import priority, top
from trl_fork.credit import SCORES, Chain, Random, Signals, TopFraction, build_credit


def score(name, signals, row, t):
    entropy, log_prob = signals.entropies[row, t].item(), signals.log_probs[row, t].item()
    if name == "entropy":
        return entropy
    if name == "position":
        return sum(signals.mask[row, :t].tolist())
    if name == "surprisal":
        return -log_prob
    if name == "relative_surprisal":
        return -log_prob / entropy
    contrast = signals.contrast_log_probs[row, t].item()
    if name == "prompt_contrast":
        return contrast_score(log_prob, contrast)
    if name == "prompt_shift":
        return abs(log_prob - contrast)
    if name == "local_entropy":
        mask = signals.mask[row].bool()
        return window_shares(signals.entropies[row][mask].tolist())[int(mask[:t].sum())]
    return abs(signals.advantages[row].item()) * entropy


def selected_by(score_of, mask, fraction, pool):
    rows = range(len(mask))
    chosen = set()
    for members in [[row] for row in rows] if pool == "sequence" else [rows]:
        valid = [(row, t) for row in members for t, ok in enumerate(mask[row].tolist()) if ok]
        chosen |= top({key: score_of(*key) for key in valid}, fraction)
    return chosen


def support(weights):
    assert set(weights.unique().tolist()) <= {0.0, 1.0}
    return {tuple(key) for key in weights.nonzero().tolist()}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("pool", ["batch", "sequence"])
@pytest.mark.parametrize("fraction", [0.2, 0.55])
def test_top_fraction_of_every_score(name, pool, fraction):
    signals = batch_of_signals()
    expected = selected_by(lambda row, t: score(name, signals, row, t), signals.mask, fraction, pool)
    chain = build_credit({"top_fraction": {"fraction": fraction, "score": name, "pool": pool}})
    assert support(chain(signals)) == expected
    everything = support((signals.mask != 0).float())
    other = build_credit({"top_fraction": {"fraction": fraction, "score": name, "pool": pool, "complement": True}})
    assert support(other(signals)) == everything - expected


@pytest.mark.parametrize("pool", ["batch", "sequence"])
def test_random_takes_the_largest_priorities(pool):
    signals = batch_of_signals()
    expected = selected_by(lambda row, t: priority(0, (0, 5, 0), row, t), signals.mask, 0.3, pool)
    assert support(build_credit({"random": {"fraction": 0.3, "pool": pool}})(signals)) == expected


def test_position_takes_the_end_of_each_row():
    signals = batch_of_signals()
    for progress, fraction in ((0.0, 0.01), (0.2, 0.2575), (0.8, 1.0), (1.0, 1.0)):
        now = Signals(mask=signals.mask, progress=progress)
        weights = build_credit("temporal_position")(now)
        for row, mask in zip(weights.tolist(), signals.mask.tolist(), strict=True):
            valid = [t for t, ok in enumerate(mask) if ok]
            kept = ceil(Fraction(str(fraction)) * len(valid))
            assert [t for t, weight in enumerate(row) if weight] == valid[len(valid) - kept :]


def test_relative_surprisal_of_certain_tokens_is_zero():
    entropies = torch.tensor([[0.0, 1e-9, 0.5, 2.0]])
    log_probs = torch.tensor([[0.0, -3.0, -1.0, -1.0]])
    scores = SCORES["relative_surprisal"].function(Signals(torch.ones(1, 4), entropies=entropies, log_probs=log_probs))
    assert scores.tolist() == [[0.0, 0.0, 2.0, 0.5]]


def test_a_score_that_is_not_a_number_is_refused():
    signals = Signals(torch.ones(1, 3), entropies=torch.rand(1, 3), advantages=torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="3 of 3 valid tokens have a NaN gradient_magnitude"):
        build_credit({"top_fraction": {"score": "gradient_magnitude"}})(signals)
    infinite = torch.tensor([[float("inf"), 1.0, 1.0]])
    signals = Signals(torch.ones(1, 3), entropies=infinite, log_probs=-infinite)
    with pytest.raises(ValueError, match="1 of 3 valid tokens have a NaN relative_surprisal"):
        build_credit({"top_fraction": {"score": "relative_surprisal"}})(signals)


def test_forking_set():
    signals = batch_of_signals()
    chain = build_credit("forking")
    weights = chain(signals)
    assert torch.equal(chain.forking_set(weights * 3.7, signals.mask), weights != 0)
    bottom = build_credit("forking_bottom")
    assert torch.equal(bottom.forking_set(bottom(signals), signals.mask), weights != 0)
    for spec in ("random", "temporal_position"):
        assert build_credit(spec).forking_set(weights, signals.mask) is None
    assert Chain((TopFraction(), TopFraction())).forking_set(weights, signals.mask) is None


def test_an_empty_batch():
    nothing = torch.zeros(2, 3)
    signals = Signals(nothing, entropies=torch.full((2, 3), float("nan")), priorities=nothing.long())
    for rule in (TopFraction(), TopFraction(complement=True), Random()):
        assert not Chain((rule,))(signals).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 20}, r"fraction must be in \(0, 1\], got 20"),
        ({"score": "entropies"}, r"score must be one of \['entropy'.*got 'entropies'"),
        ({"complement": "yes"}, "complement must be true or false, got 'yes'"),
        ({"pool": "all"}, r"pool must be one of \['batch'.*got 'all'"),
        ({"complement": True, "fraction": 1}, "selects no token .* Lower the fraction"),
        ({"complement": True, "fraction": {"linear": [0.2, 1.0, 0.8]}}, "selects no token"),
        ({"complement": True, "fraction": {"linear": [1, 0.2, 0.8]}}, "selects no token"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        TopFraction(**arguments)
    if set(arguments) <= {"fraction", "pool"}:
        with pytest.raises(ValueError, match=message):
            Random(**arguments)


def test_rules_are_equal_by_their_parameters():
    assert TopFraction(0.2) == TopFraction() != TopFraction(0.3)
    assert hash(Random({"linear": [0.1, 1.0, 0.8]})) == hash(Random({"linear": [0.1, 1.0, 0.8]}))
    assert TopFraction().needs == {"entropies"} and TopFraction(score="position").needs == frozenset()
    assert TopFraction(score="relative_surprisal").needs == {"entropies", "log_probs"}
    assert Random().needs == {"priorities"}
