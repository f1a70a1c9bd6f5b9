"""Chains: the order of rules, what is known of them, and what is refused."""

from dataclasses import dataclass

import pytest
import torch

from tests.credit import own_rules
from tests.credit.batches import batch_of_signals, rows_of
from tests.credit.simulated_ranks import on_ranks
from tests.oracles import top
from trl_fork.credit import Chain, Signals, TopFraction, build_credit, normalise, pool_of, total_from_masks, totals
from trl_fork.ranks import Ranks


@dataclass(frozen=True)
class Told:
    """A rule with the given attributes."""

    mass: str = "summed"
    sparse: bool = False
    counted: bool = True
    needs = ()

    def __call__(self, signals):
        return torch.full(signals.mask.shape, 2.0)


def answer_of(signals, row, marker=7):
    """Places of a row from its last valid marker on; all of its places without one."""
    valid = [t for t, ok in enumerate(signals.mask[row].tolist()) if ok]
    found = [t for t in valid if signals.completion_ids[row, t] == marker]
    return [t for t in valid if not found or t >= found[-1]]


def test_half_of_the_answer_by_surprisal():
    signals = batch_of_signals()
    expected = set()
    for row in range(32):
        surprisals = {(row, t): -signals.log_probs[row, t].item() for t in answer_of(signals, row)}
        expected |= top(surprisals, 0.5)
    weights = build_credit("tests.credit.own_rules.HalfOfAnswer")(signals)
    assert {tuple(key) for key in weights.nonzero().tolist()} == expected
    assert weights.unique().tolist() == [0.0, 1.0]


def test_a_fraction_after_a_span_is_one_of_the_span():
    signals = batch_of_signals()
    span = {"tests.credit.own_rules.HalfOfAnswer": {"fraction": 1.0}}
    expected = {(row, t): signals.entropies[row, t].item() for row in range(32) for t in answer_of(signals, row)}
    weights = build_credit({**span, "top_fraction": {"fraction": 0.3}})(signals)
    assert {tuple(key) for key in weights.nonzero().tolist()} == top(expected, 0.3)
    other = build_credit({"top_fraction": {"fraction": 0.3}, **span})(signals)
    assert not torch.equal(other, weights)


def test_weights_multiply_and_shaping_is_not_counted():
    signals = batch_of_signals()
    chosen = build_credit("forking")(signals)
    chain = Chain((TopFraction(), Told(), Told(counted=False)))
    credit = chain.apply(signals, pool_of("batch"), Ranks())
    assert torch.equal(credit.weights, chosen * 4)
    assert torch.equal(credit.mass, chosen * 2)
    assert totals(credit, signals.mask, Ranks()) == (2 * chosen.sum().item(), int(signals.mask.sum()))


def test_no_rule_is_weight_one():
    signals = batch_of_signals()
    assert torch.equal(Chain()(signals), signals.mask.float())
    assert Chain().mass == "from_masks" and not Chain().sparse and Chain().needs == frozenset()


def test_places_are_of_the_completion_after_a_span_too():
    seen = []

    def look(signals):
        seen.append((signals.places, signals.mask))
        return (signals.places >= 1).float()

    look.needs = ()
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    Chain((look, look))(Signals(mask))
    expected = [[0, -1, 1, 2, -1], [-1] * 5]
    assert [places.tolist() for places, _ in seen] == [expected, expected]
    assert seen[1][1].int().tolist() == [[0, 0, 1, 1, 0], [0] * 5]


@pytest.mark.parametrize(
    ("rules", "mass"),
    [
        (["from_masks", "from_masks"], "from_masks"),
        (["from_masks", "one_per_row"], "one_per_row"),
        (["one_per_row", "from_masks"], "summed"),
        (["one_per_row", "one_per_row"], "summed"),
        (["summed", "one_per_row"], "summed"),
        (["one_per_row", "one_per_row uncounted"], "one_per_row"),
        (["summed uncounted", "from_masks"], "from_masks"),
        (["from_masks", "summed sparse uncounted"], "from_masks"),
        # Which tokens the second rule sees depends on the scores of the first.
        (["summed sparse uncounted", "from_masks"], "summed"),
        (["from_masks sparse uncounted", "from_masks"], "from_masks"),
    ],
)
def test_what_is_known_of_the_total(rules, mass):
    told = [Told(text.split()[0], "sparse" in text, "uncounted" not in text) for text in rules]
    assert Chain(tuple(told)).mass == mass


def test_properties_over_all_rules():
    chain = build_credit({"random": {"fraction": 0.5}, "top_fraction": {"fraction": {"linear": [0.1, 1.0, 0.8]}}})
    assert chain.needs == {"priorities", "entropies"} and chain.sparse and chain.scheduled
    assert not build_credit("forking").scheduled and not build_credit("tests.credit.own_rules.long_rows").scheduled
    assert build_credit("tests.credit.own_rules.later").scheduled
    assert not build_credit({"top_fraction": {"fraction": {"linear": [0.3, 0.3, 0.8]}}}).scheduled
    assert chain.describe() == [
        {"random": {"fraction": 0.5, "pool": None}},
        {
            "top_fraction": {
                "fraction": {"linear": [0.1, 1.0, 0.8]},
                "score": "entropy",
                "complement": False,
                "pool": None,
            }
        },
    ]
    turned = build_credit({"top_fraction": {"fraction": {"linear": [0.1, 1.0, 0.8]}}, "random": {"fraction": 0.5}})
    assert turned.describe() != chain.describe()


def test_schedules_are_logged_by_the_name_of_their_parameter():
    signals = batch_of_signals()
    fading = {"strength": {"linear": [1.0, 0.0, 1.0]}}
    chain = build_credit({"random": {"fraction": {"linear": [0.1, 1.0, 1.0]}}, "entropy_advantage": fading})
    assert chain.metrics(signals, Ranks()) == {"fraction": 0.37, "strength": 0.7}
    assert build_credit({"rank": fading, "entropy_advantage": fading}).metrics(signals, Ranks()) == {
        "rank_strength": 0.7,
        "entropy_advantage_strength": 0.7,
    }
    assert build_credit("forking").metrics(signals, Ranks()) == {}
    assert 0 < build_credit({"span": {"pattern": "[ab]"}}).metrics(signals, Ranks())["span_found"] < 1


def test_pools_that_a_chain_cannot_have():
    for name in ("batch", "sequence", "micro_batch", "local"):
        build_credit("forking").check_pool(name)
    soft = build_credit("tests.credit.own_rules.RowShare")
    soft.check_pool("sequence")
    for name in ("micro_batch", "local"):
        with pytest.raises(
            ValueError, match=f"tests.credit.own_rules.RowShare cannot be used with entropy_threshold_scope='{name}'"
        ):
            soft.check_pool(name)
    build_credit("temporal_position").check_pool("batch")
    with pytest.raises(
        ValueError, match=r"top_fraction takes the pool 'sequence', .* Set entropy_threshold_scope to 'batch' or 'seq"
    ):
        build_credit("temporal_position").check_pool("micro_batch")
    with pytest.raises(ValueError, match="the score 'position' cannot be used with entropy_threshold_scope='local'"):
        build_credit({"top_fraction": {"score": "position"}}).check_pool("local")
    with pytest.raises(ValueError, match="top_fraction takes the pool 'local', which exists only at the loss"):
        build_credit({"top_fraction": {"pool": "local"}}).check_pool("batch")


def test_signals_that_do_not_fit():
    mask = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"Signals.entropies is needed"):
        build_credit("forking")(Signals(mask))
    with pytest.raises(ValueError, match=r"Signals.entropies must have the shape of the mask, \(2, 3\), got \(2, 4\)"):
        build_credit("forking")(Signals(mask, entropies=torch.ones(2, 4)))
    with pytest.raises(ValueError, match=r"Signals.advantages is needed"):
        build_credit({"top_fraction": {"score": "gradient_magnitude"}})(Signals(mask, entropies=mask))


# ---------------------------------------------------------------------- rules of a user


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            own_rules.negative,
            "rule tests.credit.own_rules.negative gives 6 negative weights and 0 that are not finite to 6 tokens",
        ),
        (own_rules.infinite, "gives 0 negative weights and 6 that are not finite"),
        (own_rules.one_number, r"tests.credit.own_rules.one_number failed .*signals.mask, \(2, 4\), got \(\)"),
    ],
)
def test_weights_of_a_user_are_checked(function, message):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    signals = Signals(mask, entropies=torch.ones(2, 4), log_probs=torch.ones(2, 4), completion_ids=mask)
    with pytest.raises(ValueError, match=message):
        build_credit(function)(signals)


@pytest.mark.parametrize("function", [own_rules.negative, own_rules.fails_on_short_batches])
def test_a_bad_rule_raises_on_all_ranks(function):
    signals = batch_of_signals(rows=6)
    signals.mask[:4] *= int(function is not own_rules.negative)  # only the second rank has a token
    chain = build_credit(function)

    def weights(part, ranks):
        return chain.apply(part, pool_of("batch", ranks), ranks)

    _, errors = on_ranks(weights, [(rows_of(signals, slice(0, 4)),), (rows_of(signals, slice(4, 6)),)])
    assert all(isinstance(error, ValueError) for error in errors)
    assert all(f"tests.credit.own_rules.{function.__name__}" in str(error) for error in errors)


def test_weights_of_a_user_outside_of_the_mask_are_ignored():
    mask = torch.tensor([[1, 1, 0]])

    def rule(signals):
        return torch.tensor([[2.0, 0.5, float("nan")]], requires_grad=True) * 1

    rule.needs = ()
    weights = build_credit(rule)(Signals(mask))
    assert weights.tolist() == [[2.0, 0.5, 0.0]] and not weights.requires_grad


def test_total_of_micro_batches_before_their_scores_exist():
    chain, ranks = build_credit({"random": {"fraction": 0.5}, "top_fraction": {"fraction": 0.3}}), Ranks()
    batches = [batch_of_signals(rows=8, seed=seed) for seed in range(5)]
    for name in ("micro_batch", "local"):
        pool = pool_of(name, ranks)
        expected = [totals(chain.apply(b, pool, ranks), b.mask, ranks) for b in batches]
        known = total_from_masks(chain, [b.mask for b in batches], pool, ranks)
        assert known == tuple(map(sum, zip(*expected, strict=True)))
    with pytest.raises(ValueError, match="is not known from masks"):
        total_from_masks(build_credit("tests.credit.own_rules.RowShare"), [batches[0].mask], pool, ranks)


def test_total_counts_the_pools_of_each_rank():
    # Two ranks, two micro-batches: pools of 3 + 4 and 5 + 1 tokens over the ranks, of 3, 4, 5 and 1 on each.
    sizes = [(3, 5), (4, 1)]
    masks = [([(torch.arange(6) < n)[None] for n in of_rank],) for of_rank in sizes]
    chain = build_credit("forking")

    def known(name):
        return on_ranks(lambda m, ranks: total_from_masks(chain, m, pool_of(name, ranks), ranks), masks)

    assert known("micro_batch") == ([(2 + 2, 13)] * 2, [None] * 2)
    assert known("local") == ([(1 + 1 + 1 + 1, 13)] * 2, [None] * 2)


def test_denominators():
    weights = torch.tensor([[0.1, 0.0, 0.3]])
    assert normalise(weights, 0.4, 3, "selected").sum().item() == pytest.approx(3)
    assert torch.equal(normalise(torch.zeros(1, 3), 0.0, 3, "selected"), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="loss_denominator must be 'selected' or 'all', got 'some'"):
        normalise(weights, 0.4, 3, "some")


def skip_first(signals):
    return (signals.places > 0).float()


skip_first.mass, skip_first.needs = "from_masks", ()


def test_totals_that_are_not_known_before_the_loss_are_refused():
    """How many tokens a rule keeps is known from the masks; which ones, and so what the next rule finds, is not."""
    behind_scores = build_credit({"top_fraction": {"fraction": 0.2}, f"{__name__}.skip_first": {}})
    finer_pool = build_credit([{"top_fraction": {"fraction": 0.5}}, {"random": {"fraction": 0.5, "pool": "local"}}])
    for chain, what in ((behind_scores, "a rule of your own"), (finer_pool, "several pools")):
        with pytest.raises(ValueError, match=f"a chain with {what} cannot be used with entropy_threshold_scope"):
            chain.check_pool("micro_batch")
    behind_scores.check_pool("batch")
    build_credit(skip_first).check_pool("micro_batch")
    build_credit([{"top_fraction": {"fraction": 0.5}}, {"random": {"fraction": 0.5}}]).check_pool("micro_batch")


def test_a_bonus_as_large_as_the_advantage_leaves_tokens_out():
    """With kappa 1 a negative advantage may end at 0; a later rule then sees fewer tokens than the masks say."""
    mask = torch.ones(2, 5)
    signals = Signals(mask, entropies=torch.arange(10.0).view(2, 5), advantages=torch.tensor([-1.0, -2.0]))
    for kappa, is_known in ((1.0, False), (1.01, True)):
        shaped = {"entropy_advantage": {"alpha": 0.5, "kappa": kappa}}
        chain, ranks = build_credit({**shaped, "top_fraction": {"fraction": 0.5}}), Ranks()
        credit = chain.apply(signals, pool_of("micro_batch", ranks), ranks)
        assert (totals(credit, mask, ranks) == (5, 10)) == is_known == (chain.mass == "from_masks")
        assert chain.rules[0].sparse != is_known
        build_credit(shaped).check_pool("micro_batch")  # alone, and last, it is not counted
        build_credit({"top_fraction": {"fraction": 0.5}, **shaped}).check_pool("micro_batch")
        if is_known:
            chain.check_pool("micro_batch")
        else:
            with pytest.raises(ValueError, match=r"top_fraction cannot be used with .* total of its weights"):
                chain.check_pool("micro_batch")


def test_a_rule_that_fails_on_one_rank_ends_on_all_where_the_others_wait_in_its_pool():
    def rule(signals, pool):
        if signals.entropies.shape[0] == 1:
            raise KeyError("answer")
        return pool.top(signals.entropies, signals.mask, 0.5).float()

    chain = build_credit(rule)
    batches = [Signals(torch.ones(rows, 3), *[torch.rand(rows, 3)] * 3, torch.ones(rows, 3)) for rows in (2, 1)]
    _, errors = on_ranks(lambda s, ranks: chain.apply(s, pool_of("batch", ranks), ranks), [(s,) for s in batches])
    assert [type(error).__name__ for error in errors] == ["CreditRuleError", "CreditRuleError"]
    assert "failed on another process" in str(errors[0]) and "KeyError: 'answer'" in str(errors[1])


def test_undeclared_signals_are_hidden_from_the_trial_too():
    def rule(signals):
        return -signals.log_probs

    rule.needs = {"entropies"}
    signals = Signals(torch.ones(1, 2), torch.rand(1, 2), -torch.rand(1, 2))
    with pytest.raises(ValueError, match=r"TypeError: .*log_probs.* were None, as its attribute needs does not name"):
        build_credit(rule)(signals)
