"""Integers of data files that Arrow would round: a gold answer must be the one in the file, or an error."""

import json

import pytest
from datasets import Dataset

from trl_fork.data.benchmarks import load_benchmark
from trl_fork.data.prompt_and_solution import to_prompt_and_solution
from trl_fork.data.splits import load_split
from trl_fork.data.training_sets import load_training_set


HUGE = 12345678901234567890123
ODD = 2**53 + 1  # no float


def write(path, rows):
    """A file of `rows`, in the format that its name says; numbers are written as Python writes them."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("suffix", "streaming"),
    [("jsonl", False), ("json", False), ("csv", False), ("jsonl", True), ("json", True)],
)
@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        ([HUGE, 5], [str(HUGE), "5"]),
        ([-HUGE, 5], [str(-HUGE), "5"]),
        ([2**63, -5], [str(2**63), "-5"]),
        ([2**64 + 1, 3], [str(2**64 + 1), "3"]),
        ([ODD, 0.5], [str(ODD), "0.5"]),  # beside a float, Arrow makes it one
        ([ODD, 5], [str(ODD), "5"]),
        ([2**63 - 1, -(2**63)], [str(2**63 - 1), str(-(2**63))]),
        ([72, 3], ["72", "3"]),
    ],
    ids=str,
)
def test_the_gold_is_the_number_in_the_file(suffix, streaming, answers, texts, tmp_path):
    path = write(tmp_path / f"a.{suffix}", [{"question": f"{n}?", "answer": a} for n, a in enumerate(answers)])
    assert [row["solution"] for row in load_training_set(path, streaming=streaming)] == texts
    if not streaming:
        assert load_benchmark(path)["solution"][:] == texts


def test_an_empty_cell_of_a_csv_file_does_not_round_the_others(tmp_path):
    path = write(tmp_path / "a.csv", [{"question": "1?", "answer": ODD}, {"question": "2?", "answer": None}])
    assert load_split(path, "train")["answer"][:] == [str(ODD), None]


def test_nested_lists_and_texts_beside_it(tmp_path):
    rows = [
        {"prompt": "1?", "reward_model": {"ground_truth": HUGE, "style": "rule"}, "level": 3, "flag": True},
        {"prompt": "2?", "reward_model": {"ground_truth": 7, "style": "rule"}, "level": 4, "extra": "e"},
    ]
    data = load_training_set(write(tmp_path / "a.jsonl", rows))
    assert data["solution"][:] == [str(HUGE), "7"]
    assert data["level"][:] == [3, 4] and data["flag"][:] == [True, None] and data["extra"][:] == [None, "e"]
    rows = [{"question": "1?", "answer": [HUGE, 1]}, {"question": "2?", "answer": [2]}]
    assert load_split(write(tmp_path / "b.json", rows), "train")["answer"][:] == [[str(HUGE), "1"], ["2"]]
    rows = [{"question": "1?", "answer": "x + 1"}, {"question": "2?", "answer": HUGE}]
    assert load_split(write(tmp_path / "c.jsonl", rows), "train")["answer"][:] == ["x + 1", str(HUGE)]


def test_long_digits_that_are_no_number_change_nothing(tmp_path):
    rows = [{"question": f"{HUGE} + 1?", "answer": n, "id": "0" * 30, "p": 0.12345678901234567} for n in range(2)]
    data = load_split(write(tmp_path / "a.jsonl", rows), "train")
    assert data.to_list() == rows and str(data.features["answer"].dtype) == "int64"


@pytest.mark.parametrize("make", [Dataset.to_iterable_dataset, lambda data: data], ids=["stream", "whole"])
def test_a_number_that_came_rounded_is_refused_by_row_and_column(make, tmp_path):
    """From the Hub, from Parquet, from Python: the original number cannot be recovered."""
    data = Dataset.from_list([{"question": "1?", "answer": 5.0}, {"question": "2?", "answer": float(HUGE)}])
    with pytest.raises(ValueError, match=r"row 1, column 'answer': 1\.2345678901234568e\+22 is a float"):
        list(to_prompt_and_solution(make(data)))
    data.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 1, column 'answer'"):
        load_benchmark(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("value", [6.02e23, 4.5e33, 1e30, 27.0, 0.1 + 0.2, 2.0**53 - 1, 3.141592653589793])
def test_floats_that_say_what_they_mean_are_taken(value):
    data = Dataset.from_list([{"question": "1?", "answer": value}])
    assert to_prompt_and_solution(data)["solution"][0]
