"""
The tables of data sets, and the real loading code on a local mirror of the Hub.

`load_dataset` reads a relative path as a repository. It has the files, configurations, splits and columns that the
published ones have; the rows are made up.
"""

import logging
import re

import datasets
import pytest
import yaml
from datasets import Dataset
from trl.rewards import accuracy_reward

from trl_fork.data.benchmarks import load_benchmark
from trl_fork.data.math_datasets import BENCHMARKS, PAPER_PROMPT, TRAINING_SETS, MathDataset, strip_instruction
from trl_fork.data.training_sets import load_training_set


DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
PARAGRAPHS = "Let $a=1$.\n\nFind $a+1$."


def verl(text, answer, index=0, **columns):
    """One row of verl's layout."""
    return {
        "data_source": "math",
        "prompt": [{"content": text, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": str(index)},
        **columns,
    }


def olympiad(number, question, answers, context=None):
    return {
        "id": number,
        "question": question,
        "solution": ["A worked text."],
        "final_answer": answers,
        "context": context,
        "modality": "Text-only",
        "is_multiple_answer": len(answers) > 1,
        "answer_type": "Numerical",
        "unit": None,
        "error": None,
    }


# (repository, file, configuration, split) -> rows
FILES = {
    ("BytedTsinghua-SIA/DAPO-Math-17k", "data/dapo-math-17k.parquet", "default", "train"): [
        verl(DAPO.format(question), answer, index)
        for index, (question, answer) in enumerate(
            [("1+1?", "2"), (PARAGRAPHS, "2"), ("1+1?", "2"), ("2+2?", "4")] * 3
        )
    ],
    ("open-r1/DAPO-Math-17k-Processed", "all/train.parquet", "all", "train"): [
        {"prompt": question, "solution": "2", "source_prompt": verl(DAPO.format(question), "2")["prompt"]}
        for question in ("1+1?", "一加一")
    ],
    ("open-r1/DAPO-Math-17k-Processed", "en/train.parquet", "en", "train"): [{"prompt": "1+1?", "solution": "2"}],
    # The code domain has other columns: loading the whole repository would fail.
    ("LLM360/guru-RL-92k", "train/codegen.parquet", None, "train"): [{"prompt": "def f", "tests": [1]}],
    ("LLM360/guru-RL-92k", "train/math__combined_54.4k.parquet", None, "train"): [
        verl(
            "What is $x$? Please output the final answer within \\boxed{}.",
            r"11\sqrt{2}",
            **{"apply_chat_template": True, "qwen2.5_7b_pass_rate": 0.5},
        )
    ],
    ("openai/gsm8k", "main/train.parquet", "main", "train"): [{"question": "72?", "answer": "It is.\n#### 72"}],
    ("openai/gsm8k", "main/test.parquet", "main", "test"): [{"question": "1,000?", "answer": "So.\n#### 1,000"}],
    ("openai/gsm8k", "socratic/train.parquet", "socratic", "train"): [{"question": "72?", "answer": "?\n#### 72"}],
    ("HuggingFaceH4/aime_2024", "data/train.parquet", "default", "train"): [
        {"id": 60, "problem": "p", "solution": "Worked.", "answer": "204", "url": "u", "year": "2024"}
    ],
    ("math-ai/aime25", "test.jsonl", "default", "test"): [{"problem": "p", "answer": "70", "id": "0"}],
    ("math-ai/amc23", "test.parquet", "default", "test"): [
        {"id": 0, "question": "p", "answer": "27.0", "url": "u"},
        {"id": 1, "question": "q", "answer": "36", "url": "u"},
    ],
    ("HuggingFaceH4/MATH-500", "test.jsonl", "default", "test"): [
        {
            "problem": "Convert.",
            "solution": "Worked.",
            "answer": r"\left( 3, \frac{\pi}{2} \right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        }
    ],
    ("math-ai/minervamath", "test.jsonl", "default", "test"): [
        {"question": "How many?", "answer": "4.5e33"},
        {"question": "And?", "answer": r"\arctan{10}"},
    ],
    ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP/train.parquet", "OE_TO_maths_en_COMP", "train"): [
        olympiad(1606, "Both?", ["$2$", "$3$"]),
        olympiad(1610, "Alone?", ["$\\frac{1}{2}$"], context="Let $T=1$."),
    ],
    ("Hothan/OlympiadBench", "OE_TO_physics_en_COMP/train.parquet", "OE_TO_physics_en_COMP", "train"): [
        olympiad(1, "Physics?", ["1"])
    ],
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder laid out as the repositories are, as the working directory."""
    configs = {}
    for (repository, name, config, split), rows in FILES.items():
        path = tmp_path / repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = Dataset.from_list(rows)
        data.to_parquet(path) if path.suffix == ".parquet" else data.to_json(path)
        if config:
            splits = configs.setdefault(repository, {}).setdefault(config, [])
            splits.append({"split": split, "path": name})
    for repository, found in configs.items():
        header = {"configs": [{"config_name": name, "data_files": files} for name, files in found.items()]}
        (tmp_path / repository / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n")
    monkeypatch.chdir(tmp_path)
    # The user's own cache knows data sets of these names, and by relative paths takes them for those here.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_tables():
    assert {"dapo-math-17k", "dapo-math-17k-processed", "guru-math", "gsm8k"} <= set(TRAINING_SETS)
    assert set(BENCHMARKS) == {"aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k"}
    counts = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 674}
    assert {name: BENCHMARKS[name].num_problems for name in counts} == counts
    for name, entry in [*TRAINING_SETS.items(), *BENCHMARKS.items()]:
        assert isinstance(entry, MathDataset) and name == name.lower()
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub_id)
        assert isinstance(entry.num_problems, int) and entry.num_problems > 0
        assert entry.num_rows is None or entry.num_rows > entry.num_problems
        assert all(
            isinstance(text, str) and text for text in (entry.split, entry.prompt_column, entry.solution_column)
        )
        assert entry.licence in {"apache-2.0", "mit", "not stated", "unknown"}
    assert all(entry.split == "train" for entry in TRAINING_SETS.values())
    for table in (TRAINING_SETS, BENCHMARKS):
        sources = [(entry.hub_id, entry.config, entry.data_files, entry.split) for entry in table.values()]
        assert len(set(sources)) == len(sources)
    assert {entry.hub_id for entry in (TRAINING_SETS | BENCHMARKS).values()} == {name for name, *_ in FILES}


@pytest.mark.parametrize("name", ["dapo-math-17k", "BytedTsinghua-SIA/DAPO-Math-17k"])
def test_dapo_loses_its_repetitions_and_its_instruction(name, hub, capsys):
    data = load_training_set(name, prompt_template=PAPER_PROMPT)
    questions = ["1+1?", PARAGRAPHS, "2+2?"]
    assert data["prompt"][:] == [
        f"User:\n{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n\nAssistant:\n"
        for question in questions
    ]
    assert data["solution"][:] == ["2", "2", "4"]
    assert data["extra_info"][2] == {"index": "3"}  # other columns stay: the first row of each problem
    assert "3 different problems in 12 rows" in capsys.readouterr().out
    assert len(load_training_set(name, deduplicate=False)) == 12


def test_dapo_asks_for_what_the_reward_reads(hub):
    """`Answer: 2`, which its own instruction asks for, earns nothing."""
    assert accuracy_reward([[{"content": "Answer: 2"}], [{"content": r"\boxed{2}"}]], ["2"] * 2) == [0.0, 1.0]
    (message,) = load_training_set("dapo-math-17k")[0]["prompt"]
    assert message["role"] == "user" and "Answer:" not in message["content"] and "\\boxed{}" in message["content"]
    (message,) = load_training_set("dapo-math-17k", instruction="{question} Go.")[0]["prompt"]
    assert message["content"] == "1+1? Go."


def test_training_sets(hub):
    assert len(load_training_set("dapo-math-17k-processed")) == 2
    assert len(load_training_set("open-r1/DAPO-Math-17k-Processed", config="en")) == 1
    assert load_training_set("dapo-math-17k-processed-en", prompt_template="{question}")["prompt"][:] == ["1+1?"]
    guru = load_training_set("guru-math", prompt_template="{question}")
    assert (guru["prompt"][:], guru["solution"][:]) == (["What is $x$?"], [r"$11\sqrt{2}$"])
    assert load_training_set("gsm8k", prompt_template="{question}")["solution"][:] == ["72"]
    assert load_training_set("gsm8k", "test")["solution"][:] == ["1000"]
    assert load_training_set("openai/gsm8k", config="socratic")["solution"][:] == ["72"]
    (row,) = load_training_set("gsm8k", streaming=True)
    assert row["prompt"][0]["content"].startswith("72?\nPlease reason step by step")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(name, hub):
    data = load_benchmark(name, prompt_template=PAPER_PROMPT)
    expected = {
        "aime24": [("p", "204", "60")],
        "aime25": [("p", "70", "0")],
        "amc23": [("p", "27.0", "0"), ("q", "36", "1")],
        "math500": [("Convert.", r"$\left( 3, \frac{\pi}{2} \right)$", "test/precalculus/807.json")],
        "minerva": [("How many?", r"$4.5 \times 10^{33}$", None), ("And?", r"$\arctan{10}$", None)],
        "olympiadbench": [("Both?", "$2, 3$", "1606"), ("Let $T=1$.\nAlone?", r"$\frac{1}{2}$", "1610")],
        "gsm8k": [("1,000?", "1000", None)],
    }[name]
    assert data.column_names == ["prompt", "solution", "id"]
    for row, (question, solution, identity) in zip(data, expected, strict=True):
        assert row["prompt"] == PAPER_PROMPT.replace("{question}", question)
        assert row["solution"] == solution
        assert row["id"] == identity or (identity is None and re.fullmatch("[0-9a-f]{16}", row["id"]))
    conversation = load_benchmark(name)[0]["prompt"]
    assert [message["role"] for message in conversation] == ["user"]
    assert conversation[0]["content"].startswith(expected[0][0]) and "\\boxed{}" in conversation[0]["content"]


def test_benchmark_files(tmp_path):
    """Copies for avg@k are one problem; identities do not depend on the order of rows."""
    rows = [verl(DAPO.format(f"{n}?"), str(n), n) for n in range(3)]
    Dataset.from_list(rows * 8).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(rows[::-1]).to_json(tmp_path / "b.jsonl")
    first = load_benchmark(str(tmp_path / "a.parquet"), prompt_template="{question}")
    second = load_benchmark(str(tmp_path / "b.jsonl"), prompt_template="{question}")
    assert first["prompt"][:] == ["0?", "1?", "2?"]
    assert {row["prompt"]: row["id"] for row in first} == {row["prompt"]: row["id"] for row in second}
    assert len(set(first["id"])) == 3
    # One question with two answers is two problems, and so are two questions with one answer.
    Dataset.from_list([verl("a?", "1"), verl("a?", "2"), verl("b?", "1")]).to_parquet(tmp_path / "c.parquet")
    assert len(set(load_benchmark(str(tmp_path / "c.parquet"))["id"])) == 3


def test_a_benchmark_of_another_size_is_reported(hub, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    load_benchmark("aime25")
    assert "aime25: 1 problems where 30 are known" in caplog.text


def test_instructions_are_stripped_and_nothing_else():
    for text in (PARAGRAPHS, "1+1?", "Solve the following math problem step by step. What is 1+1?"):
        assert strip_instruction(text) == strip_instruction(DAPO.format(text)) == text
    assert strip_instruction("1+1? Please output the final answer within \\boxed{}.") == "1+1?"
