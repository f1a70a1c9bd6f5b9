"""Datasets as they lie on disk, and rewards by name."""

import json

import pytest
from datasets import Dataset, DatasetDict

from trl_fork.data import final_answer, load_split, to_prompt_and_solution
from trl_fork.grading import accuracy_reward
from trl_fork.rewards import get_reward_function


ROWS = [{"question": f"{i} + 1?", "answer": f"Add one. #### {i + 1},000"} for i in range(4)]


def test_local_files_and_folders(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    data = Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.to_csv(tmp_path / "a.csv")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "splits")
    for name in ("a.jsonl", "a.parquet", "a.csv", "saved", "splits"):
        assert load_split(str(tmp_path / name), "train").to_list() == ROWS
    assert len(load_split(str(tmp_path / "splits"), "test")) == 1
    assert list(load_split(str(tmp_path / "a.jsonl"), "train", streaming=True)) == ROWS
    with pytest.raises(ValueError, match=r"no split 'validation'; it has \['test', 'train'\]"):
        load_split(str(tmp_path / "splits"), "validation")
    with pytest.raises(ValueError, match="there is no file"):
        load_split(str(tmp_path / "missing.jsonl"), "train")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="files must be one of"):
        load_split(str(tmp_path / "a.txt"), "train")


@pytest.mark.parametrize("stream", [False, True])
def test_columns_by_their_usual_names(stream):
    dapo = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "34", "style": "rule"}}
    for row, prompt, solution in (
        (ROWS[0], "0 + 1?", "1000"),
        ({"problem": "p", "solution": r"So \boxed{3}.", "answer": "3", "level": 5}, "p", "3"),
        ({"problem": "p", "solution": r"So \boxed{3}."}, "p", r"So \boxed{3}."),
        ({"prompt": "p", "solution": 7}, "p", "7"),
        (dapo, "q", "34"),
    ):
        data = Dataset.from_list([row])
        data = to_prompt_and_solution(data.to_iterable_dataset() if stream else data)
        (found,) = list(data)
        assert found["prompt"] == [{"role": "user", "content": prompt}]
        assert found["solution"] == solution
        assert found.get("level") == row.get("level")


def test_instruction_and_given_columns():
    data = Dataset.from_list([{"text": "2?", "gold": {"value": "2"}}])
    (row,) = to_prompt_and_solution(
        data, prompt_column="text", solution_column="gold.value", instruction=r"{question} Use \boxed{}."
    )
    assert row == {"prompt": [{"role": "user", "content": r"2? Use \boxed{}."}], "solution": "2"}
    with pytest.raises(ValueError, match=r"instruction must contain '\{question\}', got 'Answer:'"):
        to_prompt_and_solution(data, prompt_column="text", solution_column="gold.value", instruction="Answer:")


def test_missing_column_names_what_there_is():
    data = Dataset.from_list([{"text": "2?", "answer": "2"}])
    with pytest.raises(
        ValueError, match=r"prompt_column: .* no column one of \['prompt', .*it has \['text', 'answer'\]"
    ):
        to_prompt_and_solution(data)
    with pytest.raises(ValueError, match=r"solution_column: .* no column 'gold'; it has"):
        to_prompt_and_solution(data, prompt_column="text", solution_column="gold")
    with pytest.raises(ValueError, match="no rows and no columns"):
        to_prompt_and_solution(Dataset.from_list([]))


def test_final_answers_are_what_the_reward_parses():
    assert final_answer("48/2 = <<48/2=24>>24 clips.\n#### 72") == "72"
    assert final_answer("a #### b #### 1,234,567") == "1234567"
    assert final_answer(5) == "5"
    completions = [[{"role": "assistant", "content": text}] for text in (r"\boxed{72}", r"\boxed{71}", "72")]
    assert accuracy_reward(completions, [final_answer("#### 72")] * 3) == [1.0, 0.0, 0.0]


def test_rewards_by_name_and_path(tmp_path, monkeypatch):
    assert get_reward_function("accuracy_reward") is accuracy_reward
    (tmp_path / "own_rewards_for_test.py").write_text("def exact(completions, **kwargs):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    assert get_reward_function("own_rewards_for_test.exact")(None) == [1.0]
    for name, message in (
        ("acuracy_reward", r"unknown reward function 'acuracy_reward'. Pass one of \['accuracy_reward'"),
        ("no_such_module_here.f", "cannot import 'no_such_module_here.f'"),
        ("own_rewards_for_test.missing", "cannot import"),
    ):
        with pytest.raises(ValueError, match=message):
            get_reward_function(name)
