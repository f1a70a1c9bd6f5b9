"""The study of distribution matching: its measures, its plan, its runs, and that its page is of its results."""

import itertools
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studies import cells
from studies.distribution_matching import plan, report, run, runs, strategies
from studies.distribution_matching.outcomes import CONFIGURATIONS
from studies.which_tokens import reach_target
from studies.which_tokens import run as which_tokens


ROOT = Path(__file__).parents[2]
PROBLEM = (7, 3, 2, 2, 1)


# ---------------------------------------------------------------------- strategies


@pytest.mark.parametrize(
    ("one", "other", "same", "same_order"),
    [
        ("from 7. less 7 b2=5. done \\boxed{0}", "start at 7. minus 7 b2=5. stop at \\boxed{0}", True, True),
        ("from 7. less 7 b2=5. plus 5 a3=8. x", "from 7. add 7 a3=0. less 0 b2=8. x", True, False),
        ("from 7. less 7 b2=5. x", "from 7. less 7 c2=5. x", False, False),  # equal numbers, two labels
        ("from 7. less 7 b2=5. x", "from 7. plus 7 b2=9. x", False, False),
        ("from 7. less 7 b2=5. x", "from 7. less 7 b2=5. less 5 a3=2. x", False, False),
    ],
)
def test_what_counts_as_one_strategy(one, other, same, same_order):
    assert (strategies.strategy(one) == strategies.strategy(other)) is same
    assert (strategies.ordered_strategy(one) == strategies.ordered_strategy(other)) is same_order


def test_measures_by_hand():
    three = ["from 7. plus 7 a3=0. done \\boxed{0}", "start at 7. add 7 a3=0. stop at \\boxed{0}"]
    other = [
        "from 7. less 7 c2=5. minus 5 a3=2. less 2 b2=0. done \\boxed{0}",
        "from 7. less 7 a3=4. minus 4 b2=2. less 2 c2=0. done \\boxed{0}",
    ]
    wrong = "from 7. plus 7 a3=0. done \\boxed{1}"
    found = strategies.measures([PROBLEM, PROBLEM], [[*three, *other], [wrong, wrong, three[0], wrong]])
    assert found["accuracy"] == (1 + 1 / 4) / 2
    assert found["pass@4"] == 1.0 and "pass@16" not in found
    assert found["distinct"] == (2 + 1) / 2
    assert found["distinct_ordered"] == (3 + 1) / 2
    assert found["agreement"] == pytest.approx(2 / 6)  # of the first alone: the second has one right sample
    assert math.isnan(strategies.measures([PROBLEM], [[wrong]])["agreement"])


def test_agreement_does_not_depend_on_the_number_of_samples():
    """Against the average over all pairs of each size of sample, drawn from one population of 12."""
    population = [0] * 6 + [1] * 4 + [2] * 2
    for size in (2, 3, 5):
        drawn = itertools.combinations(population, size)
        values = [strategies.agreement([each.count(kind) for kind in set(each)]) for each in drawn]
        assert sum(values) / len(values) == pytest.approx((30 + 12 + 2) / 132)


def test_number_of_strategies_by_enumeration():
    for problem in reach_target.held_out_problems(20, random.Random(0)):
        start, *operands = problem
        naive = sum(
            any(signs) and (start + sum(map(int.__mul__, signs, operands))) % 10 == 0
            for signs in itertools.product((0, 1, -1), repeat=len(operands))
        )
        assert strategies.num_strategies(problem) == naive


# ---------------------------------------------------------------------- the plan


def made_up(cell: plan.Cell) -> dict:
    accuracy = 0.5 - abs(math.log2(cell.learning_rate / plan.LEARNING_RATES[1])) / 10
    return {**vars(cell), "accuracy": accuracy}


def test_every_run_is_planned_once_and_rates_are_chosen_on_other_seeds():
    rows = [made_up(cell) for cell in plan.tuning_cells()]
    assert plan.main_cells(rows[:2]) == []
    planned = plan.main_cells(rows)
    assert len(set(planned)) == len(planned) == len(CONFIGURATIONS) * len(plan.SEEDS)
    assert {cell.learning_rate for cell in planned} == {plan.LEARNING_RATES[1]}
    assert len(plan.SEEDS) >= 5 and not set(plan.SEEDS) & set(plan.TUNING_SEEDS)


def test_arms_differ_in_what_they_are_named_for_and_in_nothing_else():
    full = runs.configuration(plan.Cell(*plan.BASELINE, 5e-4, 0)).to_dict()
    for arm, beta in CONFIGURATIONS:
        other = runs.configuration(plan.Cell(arm, beta, 5e-4, 0)).to_dict()
        assert {name for name in full if full[name] != other[name]} <= {*plan.ARMS[arm], "beta"}


# ---------------------------------------------------------------------- runs


def test_offline_constants_are_those_of_the_samples():
    """The root, put into its equation; and the two ends: nothing right, everything right."""
    drawn = {
        (1,): {"rewards": [1.0, 0.0, 0.0, 1.0], "lengths": [30, 40, 20, 35]},
        (2,): {"rewards": [0.0] * 4, "lengths": [30, 40, 20, 35]},
        (3,): {"rewards": [1.0] * 4, "lengths": [30, 40, 20, 35]},
    }
    constants = runs.log_partitions(drawn, beta=5.0)
    row = drawn[1,]
    terms = [
        math.exp(length * (reward / 5 - constants[1,]))
        for reward, length in zip(row["rewards"], row["lengths"], strict=True)
    ]
    assert sum(terms) / 4 == pytest.approx(1.0)
    assert constants[2,] == pytest.approx(0.0) and constants[3,] == pytest.approx(0.2)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Runs of seconds, from weights that are hardly warmed up."""
    from studies.which_tokens import runs as warm_ups

    monkeypatch.setitem(runs.SIZES, "tiny", replace(runs.SIZES["tiny"], prompts_per_update=2))
    monkeypatch.setattr(warm_ups, "WARM_UP_STEPS", {plan.TASK: 1})
    for name, value in {"UPDATES": 4, "EVALUATIONS": (2, 4), "NUM_TEST": 4, "PARTITION_SAMPLES": 4}.items():
        monkeypatch.setattr(runs, name, value)
    which_tokens.make_starts(tmp_path, "tiny", [plan.TASK])
    return tmp_path


def test_a_cell_runs_and_can_be_made_again(small):
    threads = torch.get_num_threads()
    cell = plan.Cell("balance_offline", 1.0, 1e-3, 0)
    data = runs.training_data(cell, small)
    assert data.column_names == ["prompt", "problem", "log_partition"] and len(data) == 8
    assert "log_partition" not in runs.training_data(replace(cell, arm="balance_group"), small).column_names
    first, second = runs.run(cell, small), runs.run(cell, small)
    for row in (first, second):
        assert row.pop("processor_seconds") > 0
    assert json.dumps(first) == json.dumps(second)
    assert plan.cell_of(first) == cell and [each["step"] for each in first["evaluations"]] == [2]
    assert all(len(curve) == 4 and None not in curve for curve in first["training"].values())
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def results():
    return report.load_study()


def test_the_results_are_all_runs_of_the_plan_and_no_others(results):
    found = [plan.cell_of(row) for row in results.rows]
    assert len(set(found)) == len(found)
    assert set(found) == {cell for stage in plan.STAGES.values() for cell in stage(results.rows)}
    with pytest.raises(ValueError, match="--stage tune"):
        report.page(report.Study(results.rows[:-1], results.start))


def test_the_page_is_of_the_results(results):
    page = (ROOT / "docs" / "distribution_matching.md").read_text()
    assert page == report.page(results), "run `python -m studies.distribution_matching.report`"
    for name in re.findall(r"\]\((study/\w+\.png)\)", page):
        assert (ROOT / "docs" / name).is_file()


def test_differences_by_hand(results):
    """A paired t-test over seeds, and Holm's correction, from the lines of the file."""
    from scipy import stats

    lines = cells.read_rows(run.RESULTS / "tiny.jsonl")

    def values(arm, beta):
        rate = results.learning_rates[plan.RATE_OF.get(arm, arm)]
        found = {
            row["seed"]: row["distinct"]
            for row in lines
            if (row["arm"], row["beta"], row["learning_rate"]) == (arm, beta, rate)
        }
        return [found[seed] for seed in plan.SEEDS]

    baseline = values(*plan.BASELINE)
    others = [each for each in CONFIGURATIONS if each != plan.BASELINE]
    tests = [stats.ttest_rel(values(*each), baseline) for each in others]
    order = sorted(range(len(others)), key=lambda i: tests[i].pvalue)
    adjusted, highest = {}, 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, tests[index].pvalue * (len(others) - rank)))
        adjusted[others[index]] = highest
    for found in results.comparisons("distinct"):
        test = tests[others.index((found.arm, found.beta))]
        low, high = test.confidence_interval(0.95)
        assert found.difference.mean == pytest.approx((low + high) / 2)
        assert found.difference.half_width == pytest.approx((high - low) / 2)
        assert found.p == pytest.approx(adjusted[found.arm, found.beta])


def test_statements_of_the_page_hold(results):
    """Those that are written, not computed."""

    def directions(compare, measure):
        return {(each.arm, each.beta): each.direction for each in compare(measure)}

    # No arm has more distinct right strategies than GRPO, none less agreement.
    for compare in (results.comparisons, results.against_common, results.common_comparisons):
        assert 1 not in directions(compare, "distinct").values()
        assert -1 not in directions(compare, "agreement").values()
    # Against a KL term that pulls as hard: less agreement at one KL coefficient, more at the other.
    found = directions(results.counterparts, "agreement")
    assert found["balance_group", 1.0] == -1 and found["balance_group", 5.0] == 1
    # More distinct ones in every arm than before training, as accuracy rises in every arm.
    for each in CONFIGURATIONS:
        for measure in ("accuracy", "distinct"):
            assert results.values(*each, measure).mean > results.start[measure]
    # The partitions at one learning rate; a strong pull steadies training
    offline, group = (results.common_values(arm, 1.0, "accuracy") for arm in ("balance_offline", "balance_group"))
    assert offline.mean < group.mean
    strong = {("grpo_kl", 0.333), ("balance_group", 5.0)}
    widths = {
        each: results.values(*each, "accuracy").half_width
        for each in CONFIGURATIONS
        if results.learning_rates[plan.RATE_OF.get(each[0], each[0])] == results.learning_rates["grpo"]
    }
    assert 2 * max(widths[each] for each in strong) < min(
        width for each, width in widths.items() if each not in strong
    )
    # The other seed's accuracy of GRPO, and the two learning rates of GRPO
    (tuned,) = (
        results.by_cell[cell]["accuracy"] for cell in plan.tuning_cells() if str(cell) == "grpo beta0 lr0.0005 seed100"
    )
    assert f"{tuned:.2f}" == "0.46"
    own, common = results.values(*plan.BASELINE, "agreement"), results.common_values(*plan.BASELINE, "agreement")
    assert common.mean < own.mean and common.half_width < own.half_width
    assert {arm for arm, rate in results.learning_rates.items() if rate == plan.COMMON_RATE} == {
        "forking",
        "balance_offline",
    }
    assert results.learning_rates["grpo"] == 2 * plan.COMMON_RATE
