"""The published rules against naive ones, and the numbers of their papers."""

from dataclasses import replace
from itertools import pairwise
from math import inf, log

import pytest
import torch

from tests import naive_rules
from tests.credit.batches import TOKENIZER, batch_of_signals
from tests.naive_rules import Facts
from tests.oracles import priority
from trl_fork.credit import (
    EntropyAdvantage,
    Interval,
    NaNSignalError,
    Proportional,
    Rank,
    Rollouts,
    Signals,
    Span,
    Spurious,
    build_credit,
    normalise,
    pool_of,
    random_priorities,
    totals,
)
from trl_fork.credit.windows import share_of_window
from trl_fork.ranks import Ranks


def texts_of(ids, mask):
    """Text that each token adds, up to the last valid one."""
    ids = ids[: int(mask.nonzero().max()) + 1] if mask.any() else ids[:0]
    lengths = [len(TOKENIZER.decode(ids[:k])) for k in range(len(ids) + 1)]
    return [TOKENIZER.decode(ids)[a:b] for a, b in pairwise(lengths)]


def facts_of(signals, pools=None, advantages=None) -> Facts:
    valid = [tuple(key) for key in signals.mask.nonzero().tolist()]
    rows = range(len(signals.mask))
    log_probs, contrast = signals.log_probs.double().tolist(), signals.contrast_log_probs.double().tolist()
    entropies = signals.entropies.double().tolist()
    return Facts(
        left=valid,
        scores={
            "entropy": dict(enumerate(entropies)),
            "surprisal": {row: [-x for x in log_probs[row]] for row in rows},
            "relative_surprisal": {
                row: [-x / h for x, h in zip(log_probs[row], entropies[row], strict=True)] for row in rows
            },
            "prompt_contrast": {
                row: [naive_rules.contrast_score(*pair) for pair in zip(log_probs[row], contrast[row], strict=True)]
                for row in rows
            },
            "prompt_shift": {
                row: [abs(a - b) for a, b in zip(log_probs[row], contrast[row], strict=True)] for row in rows
            },
            "row_priority": {
                row: priority(0, (0, 5, 0, row), min((t for r, t in valid if r == row), default=0), 0) for row in rows
            },
            "text": {row: texts_of(signals.completion_ids[row], signals.mask[row]) for row in rows},
            "valid": dict(enumerate(signals.mask.tolist())),
        },
        advantages=dict(enumerate(signals.advantages.tolist() if advantages is None else advantages)),
        groups=dict(enumerate(signals.groups.tolist())),
        pools=pools or [list(rows)],
    )


CASES = [
    ("proportional", {}),
    ("proportional", {"window": 5, "temperature": 0.25, "rows": "all"}),
    ("proportional", {"score": "entropy", "strength": 0.3}),
    ("rank", {}),
    ("rank", {"score": "prompt_shift", "power": 1.0, "strength": 0.7}),
    ("interval", {"low": 0.4, "high": 1.9}),
    ("interval", {"score": "surprisal", "low": 1.0, "high": 4.0}),
    ("span", {"pattern": "[a-e]"}),
    ("span", {"pattern": "[a-e]", "missing": "drop"}),
    ("entropy_advantage", {}),
    ("entropy_advantage", {"alpha": 0.05, "kappa": 1.0, "strength": 0.5}),
    ("spurious", {"entropy_quantile": 0.6, "probability": 0.2}),
    ("rollouts", {}),
    ("rollouts", {"keep": 0.7, "positives": "random", "negatives": "low_entropy_sum", "top_tokens": 0.2}),
    ("rollouts", {"keep": 0.01}),
]


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_equals_the_naive_rule(name, parameters):
    signals = batch_of_signals()
    weights = build_credit({name: parameters})(signals)
    expected = getattr(naive_rules, name)(facts_of(signals), **parameters)
    assert len(set(expected.values())) > 1
    for (row, t), weight in expected.items():
        assert weights[row, t].item() == pytest.approx(weight, rel=2e-5, abs=1e-7), (row, t)


def test_the_pool_of_a_quantile():
    signals = batch_of_signals()
    rule = {"entropy_quantile": 0.6, "probability": 0.2}
    expected = naive_rules.spurious(facts_of(signals, pools=[[row] for row in range(32)]), **rule)
    weights = build_credit({"spurious": {**rule, "pool": "sequence"}})(signals)
    assert all(weights[key].item() == weight for key, weight in expected.items())
    assert not torch.equal(weights, build_credit({"spurious": rule})(signals))


# ---------------------------------------------------------------------- PEPO


def shares(values, window=101, temperature=1.0):
    values = torch.tensor([values])
    return share_of_window(values, torch.ones_like(values), window, temperature)[0]


@pytest.mark.parametrize("length", [1, 2, 40, 50, 51, 101, 150])
def test_windows_of_every_length(length):
    """Reflection needs 50 neighbours; a shorter row has none, and its window is cut to what can be mirrored."""
    values = torch.rand(length, generator=torch.Generator().manual_seed(length)).mul(5).tolist()
    expected = naive_rules.window_shares(values)
    assert shares(values).tolist() == pytest.approx(expected, rel=1e-6)
    if length == 1:
        assert expected == [1.0]


def test_windows_do_not_see_what_the_model_has_not_written():
    entropies = torch.tensor([[0.5, 7.0, 1.5, 9.0, 0.25, 3.0]])
    mask = torch.tensor([[1, 0, 1, 0, 1, 1]])
    apart = share_of_window(entropies, mask, window=3)
    assert apart[mask == 1].tolist() == shares([0.5, 1.5, 0.25, 3.0], window=3).tolist()
    assert not apart[mask == 0].any()


def test_windows_are_shift_invariant_and_finite():
    values = torch.tensor([0.1, 4.0, 12.0, 0.0, 2.5])
    moved = [float(x) for x in values + 3.0]
    assert torch.allclose(shares(values.tolist()), shares(moved), rtol=1e-6)
    for temperature in (0.02, 1.0, 50.0):
        found = shares(values.tolist(), window=3, temperature=temperature)
        assert found.isfinite().all() and (found >= 0).all() and found[2] == found.max()


def test_windows_take_memory_linear_in_the_length():
    """Tables of windows would be a hundred times as large as the row."""
    values = torch.rand(1, 100_000)
    mask = torch.ones_like(values)
    with torch.profiler.profile(profile_memory=True) as profile:
        share_of_window(values, mask)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert 0 < allocated < 20 * values.numel() * 8


def test_weights_of_a_row_have_mean_one():
    signals = batch_of_signals()
    for rule in (Proportional(rows="all"), Proportional(), Rank(), Rank("entropy", strength=0.4)):
        weights, counts = rule(signals, pool_of("batch")), signals.mask.sum(1)
        torch.testing.assert_close(weights.sum(1), counts.float())
    positive = signals.advantages > 0
    assert torch.equal(Proportional()(signals, pool_of("batch"))[~positive], signals.mask[~positive].float())
    certain = replace(signals, entropies=torch.full_like(signals.entropies, -1e-8))
    assert torch.equal(Proportional("entropy", rows="all")(certain, pool_of("batch")), signals.mask.float())


# ---------------------------------------------------------------------- GCPO


def test_equal_scores_share_a_rank():
    log_probs = torch.tensor([[-1.0, -2.0, -0.5, -3.0]])
    same = Signals(torch.ones(1, 4), log_probs=log_probs, contrast_log_probs=log_probs.clone())
    assert build_credit("gcpo")(same).tolist() == [[1.0, 1.0, 1.0, 1.0]]
    # d = 3 and 5 both reach the cap of 10; d = -2 scores less than d = 2.
    shift = torch.tensor([[3.0, -2.0, 5.0, 2.0]])
    weights = build_credit("gcpo")(replace(same, contrast_log_probs=log_probs + shift))
    ranks = [3.5, 1.0, 3.5, 2.0]
    levels = [(rank / 4) ** 2.1507 for rank in ranks]
    assert weights[0].tolist() == pytest.approx([4 * level / sum(levels) for level in levels], rel=1e-6)
    two_sided = Rank("prompt_shift")(replace(same, contrast_log_probs=log_probs + shift), pool_of("batch"))
    assert two_sided[0].argsort().tolist() in ([1, 3, 0, 2], [3, 1, 0, 2])


def test_numbers_of_the_paper():
    """The power of 80 % on 40 %; scores of d = 2 and -2; the largest weight and the share of equal weights ."""
    assert log(1 - 0.8) / log(1 - 0.4) - 1 == pytest.approx(Rank().power, abs=5e-5)
    assert naive_rules.contrast_score(-2.0, 0.0) == pytest.approx(4.389, abs=1e-3)
    assert naive_rules.contrast_score(0.0, -2.0) == pytest.approx(1.135, abs=1e-3)
    n = 5000
    signals = Signals(
        torch.ones(1, n), log_probs=torch.zeros(1, n), contrast_log_probs=-torch.arange(n).float()[None] / n
    )
    weights = build_credit("gcpo")(signals)[0].double()
    assert weights.max().item() == pytest.approx(3.15, abs=0.01)
    assert (weights.sum() ** 2 / n / (weights**2).sum()).item() == pytest.approx(0.534, abs=1e-3)
    assert weights.sort(descending=True)[0][: 2 * n // 5].sum().item() / n == pytest.approx(0.8, abs=1e-3)
    smallest = Rank()(replace(signals, mask=torch.ones(1, n)), pool_of("batch")).min()
    assert smallest > 0


# ---------------------------------------------------------------------- entropy advantage, STAPO


def test_the_weight_is_the_shaped_advantage_over_the_advantage():
    advantages = torch.tensor([1.5, -1.5, 0.25, -0.25, 0.0])
    entropies = torch.tensor([[0.1, 0.8, 4.0]]).expand(5, 3)
    signals = Signals(torch.ones(5, 3), entropies=entropies, advantages=advantages)
    weights = build_credit("entropy_advantage")(signals)
    for row, advantage in enumerate(advantages.tolist()):
        for t, entropy in enumerate([0.1, 0.8, 4.0]):
            shaped = naive_rules.shaped_advantage(advantage, entropy)
            assert weights[row, t].item() * advantage == pytest.approx(shaped if advantage else 0, abs=1e-6)
    assert weights.min() >= 0.5 and weights.max() <= 1.5 and (weights[4] == 1).all()
    chain = build_credit("temporal_advantage")
    assert torch.allclose(chain(signals) - 1, 0.99 * (weights - 1), atol=1e-6)
    assert torch.equal(chain(replace(signals, progress=0.8)), torch.ones(5, 3))
    halves = chain(replace(signals, progress=0.4)) - 1
    assert torch.allclose(halves, 0.495 * (weights - 1), atol=1e-6)
    per_token = replace(signals, advantages=advantages[:, None].expand(5, 3))
    assert torch.equal(build_credit("entropy_advantage")(per_token), weights)


def test_shaping_is_not_counted():
    signals = batch_of_signals()
    chain = build_credit({"top_fraction": {"fraction": 0.5}, "entropy_advantage": {}})
    credit = chain.apply(signals, pool_of("batch"), Ranks())
    assert torch.equal(credit.mass, (credit.weights != 0).float()) and chain.mass == "from_masks"


def test_veto_needs_all_three_conditions():
    signals = Signals(
        torch.ones(2, 4),
        entropies=torch.tensor([[0.1, 0.2, 3.0, 4.0], [0.15, 0.25, 5.0, 6.0]]),
        log_probs=torch.tensor([[log(0.001), log(0.003), log(0.001), -0.1], [log(0.001), -0.1, -0.2, -0.3]]),
        advantages=torch.tensor([0.7, -0.7]),
    )
    assert Spurious(0.5)(signals, pool_of("batch")).tolist() == [[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]


# ---------------------------------------------------------------------- rollouts


def test_rollouts_keep_some_of_each_kind():
    """Groups of 8 with 1, 4 and 8 right completions, one with none, and one spread over two halves of the batch."""
    right = [1, 4, 8, 0]
    advantages = torch.cat([torch.tensor([1.0] * n + [-0.5] * (8 - n)) for n in right])
    signals = replace(batch_of_signals(), advantages=advantages, mask=torch.ones(32, 24).long())
    weights = Rollouts()(signals, pool_of("batch"))
    kept = (weights != 0).any(1).view(4, 8)
    counts = [(int(kept[g, :n].sum()), int(kept[g, n:].sum())) for g, n in enumerate(right)]
    assert counts == [(1, 3), (2, 2), (4, 0), (0, 4)]
    sums = [naive_rules.high_entropy_sum(row, 0.005) for row in signals.entropies.tolist()]
    best = sorted(range(8, 12), key=lambda row: -sums[row])[:2]
    assert kept[1, :4].nonzero().flatten().tolist() == sorted(row - 8 for row in best)
    assert set(weights.sum(1).tolist()) == {0.0, 24.0}


def test_random_rollouts_are_another_draw_than_random_tokens():
    """Both read the priorities of the batch: the tokens of rows that stay would otherwise be those of high ones."""
    signals = batch_of_signals(rows=64, columns=3)
    signals = replace(signals, mask=torch.tensor([[1, 0, 0]] * 64), advantages=-torch.ones(64))
    rows = Rollouts(positives="random")(signals, pool_of("batch"))
    tokens = build_credit({"random": {"fraction": 0.5}})(signals)
    assert rows.sum() == tokens.sum() == 32 and 8 < (rows * tokens).sum() < 24


# ---------------------------------------------------------------------- NAT


def test_random_with_the_selected_denominator_is_unbiased():
    """NAT's uniform estimator: the mean over a sample has the mean over all tokens as its expectation."""
    rows, columns, draws = 4, 25, 800
    gradients = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.ones(rows, columns)
    chain, pool = build_credit("nat"), pool_of("batch")
    estimates = []
    for draw in range(draws):
        signals = Signals(mask, priorities=random_priorities(0, (0, draw, 0), 0, (rows, columns)))
        credit = chain.apply(signals, pool, Ranks())
        weights = normalise(credit.weights, *totals(credit, mask, Ranks()), "selected")
        estimates.append((weights * gradients).sum() / mask.sum())
    estimates = torch.stack(estimates)
    error = (estimates.mean() - gradients.mean()).abs() / (estimates.std() / draws**0.5)
    assert error < 4 and estimates.std() > 0.01
    forking = build_credit("forking")(Signals(mask, entropies=gradients.float())) * gradients
    assert (forking.sum() / 20 - gradients.mean()).abs() > 1, "a selection by the values themselves is not"


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (Proportional, {"window": 100}, "window must be an odd whole number of tokens, got 100"),
        (Proportional, {"temperature": 0}, "temperature must be a number of at least 0.02, got 0"),
        (Proportional, {"rows": "negative"}, "rows must be 'positive' or 'all', got 'negative'"),
        (Proportional, {"score": "surprisal", "window": 51}, "are parameters of the score 'local_entropy'"),
        (Proportional, {"strength": 1.5}, r"strength must be in \[0, 1\], got 1.5"),
        (Proportional, {"score": "entropies"}, "score must be one of"),
        (Rank, {"power": -1}, "power must be a number from 0"),
        (Rank, {"strength": {"linear": [2, 0, 0.8]}}, r"strength must be in \[0, 1\], got 2"),
        (Interval, {"low": 2, "high": 2}, "low must be below high, got low=2 and high=2"),
        (Interval, {"low": "0.1", "high": 2}, "low must be a finite number, got '0.1'"),
        (Interval, {"low": 0.1, "high": float("inf")}, "high must be a finite number"),
        (Span, {"pattern": "("}, r"pattern='\(' is no regular expression"),
        (Span, {"pattern": ""}, "pattern must be a regular expression"),
        (Span, {"pattern": "a", "missing": "skip"}, "missing must be 'completion' or 'drop', got 'skip'"),
        (EntropyAdvantage, {"kappa": 0.9}, "kappa must be a number of at least 1, got 0.9. Below 1 the bonus could"),
        (EntropyAdvantage, {"kappa": 0}, "kappa must be a number of at least 1, got 0"),
        (EntropyAdvantage, {"alpha": 0}, "alpha must be a positive number, got 0"),
        (Spurious, {"entropy_quantile": 1}, r"entropy_quantile must be in \(0, 1\), got 1"),
        (Spurious, {"entropy_quantile": 0.2, "probability": 0}, r"probability must be in \(0, 1\], got 0"),
        (Spurious, {"entropy_quantile": 0.2, "pool": "row"}, "pool must be one of"),
        (Rollouts, {"keep": 0}, r"keep must be in \(0, 1\], got 0"),
        (Rollouts, {"positives": "best"}, "positives must be one of"),
        (Rollouts, {"top_tokens": 5}, r"top_tokens must be in \(0, 1\], got 5"),
    ],
)
def test_bad_parameters(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(**arguments)


def test_parameters_without_a_sensible_default_are_required():
    for name, missing in (("interval", "low, high"), ("span", "pattern"), ("spurious", "entropy_quantile")):
        with pytest.raises(ValueError, match=f"{name} needs a value for {missing}"):
            build_credit({name: {}})


def test_scores_other_than_entropy_are_of_the_starting_policy():
    for spec in (
        "local_forking",
        "gmts",
        {"top_fraction": {"score": "surprisal"}},
        {"top_fraction": {"score": "position"}},
    ):
        build_credit(spec).check_pool("sequence")
        for pool in ("micro_batch", "local"):
            with pytest.raises(ValueError, match="are those of the policy that starts a generation"):
                build_credit(spec).check_pool(pool)
    for spec in ("pepo", "gcpo", "rsi", "answer_span", "stapo", "high_entropy_rollouts"):
        with pytest.raises(ValueError, match="cannot be used with entropy_threshold_scope='local'"):
            build_credit(spec).check_pool("local")
    for spec in ("forking", "random", "entropy_advantage"):
        build_credit(spec).check_pool("local")


def test_span_in_several_alphabets():
    """The first token of the match is found by decoding, where a character takes three tokens of a byte each."""
    from tests.trainer.test_features import byte_tokenizer

    tokenizer = byte_tokenizer()
    texts = ["a: 1 → 答案: 42", "答案: 1 答案: 7", "no answer →"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    signals = Signals(mask, completion_ids=ids, tokenizer=tokenizer)
    for missing in ("completion", "drop"):
        rule = Span("答案", missing)
        weights = rule(signals, pool_of("batch"))
        for row, text in enumerate(texts):
            start = text.rfind("答案")
            first = len(text[:start].encode()) if start >= 0 else 0 if missing == "completion" else width
            assert weights[row].nonzero().flatten().tolist() == list(range(first, len(rows[row])))
        assert rule.metrics(signals, Ranks()) == {"span_found": pytest.approx(2 / 3)}


def test_a_span_does_not_begin_in_the_output_of_a_tool():
    ids = torch.tensor([TOKENIZER.convert_tokens_to_ids(list("xayaz"))])
    mask = torch.tensor([[1, 1, 1, 0, 1]])
    signals = Signals(mask, completion_ids=ids, tokenizer=TOKENIZER)
    assert Span("a")(signals, pool_of("batch")).tolist() == [[0.0, 1.0, 1.0, 0.0, 1.0]]


@pytest.mark.parametrize("score", ["surprisal", "relative_surprisal"])
@pytest.mark.parametrize("rows", ["positive", "all"])
def test_an_infinite_score_has_no_share(score, rows):
    """The log-probability of a token that underflows: its weight was NaN, and so was the model after the step."""
    signals = Signals(
        torch.ones(1, 3),
        entropies=torch.tensor([[0.5, 1.0, 0.2]]),
        log_probs=torch.tensor([[-inf, -1.0, -0.5]]),
        advantages=torch.tensor([1.0]),
    )
    with pytest.raises(NaNSignalError, match=f"1 of 3 valid tokens have a NaN weight by {score}"):
        build_credit({"proportional": {"score": score, "rows": rows}})(signals)
