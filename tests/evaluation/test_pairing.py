"""Which problems of two evaluations are the same, and a paired interval by an oracle of its own."""

import random
import statistics

import numpy as np
import pytest

from trl_fork.evaluation.pairing import pair_datasets


def rows(accuracies, dataset="d", solution="{}", prompt="{}?"):
    """Four samples of each problem, of which the given number is right."""
    return [
        {
            "dataset": dataset,
            "problem_id": name,
            "sample": number,
            "prompt": prompt.format(name),
            "solution": solution.format(name),
            "correct": number < right,
        }
        for name, right in accuracies.items()
        for number in range(4)
    ]


def draw(seed, count=40):
    rng = random.Random(seed)
    return {f"p{number}": rng.randint(0, 4) for number in range(count)}


def test_the_interval_is_that_of_a_bootstrap_over_problems():
    first, second = draw(1), {name: min(4, right + (right % 2)) for name, right in draw(1).items()}
    (pair,) = pair_datasets(rows(first), rows(second)[::-1])
    changes = np.array([(second[name] - first[name]) / 4 for name in first])
    means = [statistics.mean(random.Random(seed).choices(changes.tolist(), k=len(changes))) for seed in range(4000)]
    assert pair.difference.mean == pytest.approx(changes.mean()) and pair.difference.num_problems == 40
    assert (pair.difference.low, pair.difference.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert (pair.dataset_a, pair.dataset_b, pair.refused, pair.other_prompts) == ("d", "d", None, 0)


def test_a_file_of_another_name_is_known_by_its_problems():
    first, second = draw(1), draw(2)
    a = rows(first, "a/test.jsonl") + rows({"x": 1}, "only_a")
    b = rows({"y": 3}, "only_b") + rows(second, "b/test.jsonl") + rows({"p1": 2}, "few.jsonl")
    found = {pair.dataset_a: pair for pair in pair_datasets(a, b)}
    assert found["a/test.jsonl"].dataset_b == "b/test.jsonl"
    mean = statistics.mean((second[name] - first[name]) / 4 for name in first)
    assert found["a/test.jsonl"].difference.mean == pytest.approx(mean)
    assert found["only_a"].refused == "only one of the two was evaluated on these problems"
    alone = [pair for pair in pair_datasets(a, b) if pair.dataset_a is None]
    assert [pair.dataset_b for pair in alone] == ["only_b", "few.jsonl"]
    assert all(pair.difference is None and pair.refused for pair in alone)


def test_the_common_problems_alone_are_compared():
    first, second = draw(1), dict(list(draw(2).items())[30:]) | {"new": 4}
    (pair,) = pair_datasets(rows(first), rows(second))
    common = [name for name in first if name in second]
    assert len(common) == pair.difference.num_problems == 10
    assert pair.difference.mean == pytest.approx(statistics.mean((second[n] - first[n]) / 4 for n in common))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (rows(draw(1), solution="{} or so"), "40 of the 40 problems of the same id have another solution"),
        (rows({"z": 1, "y": 2}), "the two have no problem in common"),
        (rows({"p3": 1}), "an interval needs at least two common problems"),
    ],
)
def test_a_pair_that_cannot_be_compared_says_why(other, reason):
    (pair,) = pair_datasets(rows(draw(1)), other)
    assert pair.refused == reason
    assert pair.difference is None or (pair.difference.num_problems, pair.difference.low) == (1, None)


def test_other_prompts_are_counted():
    (pair,) = pair_datasets(rows(draw(1)), rows(draw(1), prompt="Think. {}?"))
    assert pair.other_prompts == 40 and pair.difference.mean == 0 and pair.refused is None
