"""The study's arms on a real model: problems, what counts as right, runs of two steps, and the numbers of the page."""

import json
import re
from pathlib import Path

import pytest

from studies.which_tokens import real_model, real_tasks
from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer


ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------------- problems and answers


@pytest.mark.parametrize("task", real_tasks.TASKS)
def test_no_problem_is_on_both_sides_or_in_the_prompt(task):
    pytest.importorskip("reasoning_gym")
    training, test = real_tasks.problems(task, 2000)
    asked, held_out = ({problem.question for problem in part} for part in (training, test))
    assert len(test) == real_tasks.NUM_TEST and len(training) > 500
    assert not asked & held_out and not (asked | held_out) & set(real_tasks.TASKS[task].examples)
    for problem in test[:50]:
        numbers = list(map(int, re.findall(r"\d+", problem.question)))
        if task == "chain_sum":
            assert eval(re.search(r": (.*) =", problem.question)[1]) == int(problem.answer)
        else:
            assert max(d for d in range(1, 21) if not any(number % d for number in numbers)) == int(problem.answer)


@pytest.mark.parametrize("task", real_tasks.TASKS)
def test_examples_are_right_and_in_the_words_of_reasoning_gym(task):
    words = real_tasks.TASKS[task]
    for question, answer in words.examples.items():
        first, second = map(int, re.findall(r"\d+", question))
        expected = first - second if " - " in question else first + second
        if task == "gcd":
            expected = max(d for d in range(1, 21) if first % d == second % d == 0)
        assert real_tasks.is_right(task, answer, str(expected))
    messages = real_tasks.conversation(task, "Well?")
    assert [message["role"] for message in messages] == ["user", "assistant"] * len(words.examples) + ["user"]
    assert messages[-1]["content"] == "Well?"
    pytest.importorskip("reasoning_gym")
    asked = real_tasks.problems(task, 300)[0][0].question
    assert {re.sub(r"\d+", "N", text).replace("+", "-") for text in (*words.examples, asked)} == {
        re.sub(r"\d+", "N", asked).replace("+", "-")
    }


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 - 7 = -4. \\boxed{-4}", True),
        ("\\boxed{4} or \\boxed{-4}", True),
        ("\\boxed{-4} or \\boxed{4}", False),
        ("-4", False),
        ("\\boxed{-4.0}", False),
        ("\\boxed{-04}", False),
        ("\\boxed{}", False),
        ("", False),
    ],
)
def test_the_integer_in_the_last_box_counts(text, right, installed, monkeypatch):
    if installed:
        pytest.importorskip("reasoning_gym")
    else:
        monkeypatch.setattr(real_tasks, "_gym", lambda task: None)
    assert real_tasks.is_right("chain_sum", text, "-4") is right
    assert real_model.reward_of("chain_sum")([[{"role": "assistant", "content": text}]], ["-4"]) == [float(right)]


@pytest.mark.parametrize("task", real_tasks.TASKS)
def test_without_reasoning_gym_the_verdict_is_the_same(task, monkeypatch):
    pytest.importorskip("reasoning_gym")
    cases = [(f"\\boxed{{{found}}}", str(answer)) for found in range(-12, 13) for answer in range(-12, 13)]
    cases += [(f"\\boxed{{{found}}}", "7") for found in ("+7", "7.0", "007", "7 ", "1,007", "seven", "70", "-7")]
    verified = [real_tasks.is_right(task, *case) for case in cases]
    monkeypatch.setattr(real_tasks, "_gym", lambda task: None)
    assert [real_tasks.is_right(task, *case) for case in cases] == verified
    assert sum(verified) == 25


PROBLEMS = [real_tasks.Problem(f"{number} + {number + 2} =", str(2 * number + 2)) for number in range(12)]


def test_problems_are_carried_by_a_file(tmp_path):
    path = tmp_path / "problems.json"
    real_tasks.write_problems(path, "gcd", PROBLEMS[:5], PROBLEMS[5:7])
    assert real_tasks.read_problems(path, "gcd") == (PROBLEMS[:5], PROBLEMS[5:7])
    with pytest.raises(ValueError, match=r"is of .*'gcd'.*, and the run of .*'chain_sum'.*: write it anew"):
        real_tasks.read_problems(path, "chain_sum")


# ---------------------------------------------------------------------- runs


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A run of two steps with a tiny model, on problems of a file."""
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    real_tasks.write_problems(tmp_path / "problems.json", "chain_sum", PROBLEMS[:8], PROBLEMS[8:])
    monkeypatch.setattr(real_model, "MAX_COMPLETION_LENGTH", {"chain_sum": 6})
    # What a model without training writes now and then, so that there is something to learn.
    monkeypatch.setattr(real_tasks, "is_right", lambda task, text, answer: len(text) % 2 == int(answer) // 2 % 2)
    return [
        *("--model", str(tmp_path / "model"), "--problems", str(tmp_path / "problems.json")),
        *("--max_steps", "2", "--prompts_per_step", "2", "--num_test", "2", "--save_steps", "1"),
    ]


def test_an_arm_that_was_cut_off_ends_as_if_it_had_not_been(command, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    real_model.main([*command, "--arms", "forking", "--output", str(whole)])
    real_model.main([*command, "--arms", "forking", "--output", str(cut), "--time_limit", "0.001"])
    half = json.loads((cut / "forking-0.json").read_text())
    assert len(half["steps"]) == 1 and not half["done"] and (cut / "forking-0" / "checkpoint-1").is_dir()
    real_model.main([*command, "--arms", "forking", "--output", str(cut), "--save_models"])
    one, other = (json.loads((folder / "forking-0.json").read_text()) for folder in (whole, cut))
    for record in (one, other):
        assert record["done"] and len(record["steps"]) == 2 and record.pop("seconds") > 0
        times = [step.pop("seconds") for step in record["steps"]]
        assert times == sorted(times)
    assert one == other and one["steps"][0]["forking/selected_fraction"] < 0.25
    assert not (whole / "forking-0").exists() and (cut / "forking-0" / "model.safetensors").exists()
    assert "| forking, seed 0 | 2 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"is of a run with learning_rate .*, not 0.5\. Choose another folder"):
        (cut / "forking-0.json").write_text(json.dumps(half))
        real_model.main([*command, "--arms", "forking", "--output", str(cut), "--learning_rate", "0.5"])


@pytest.mark.parametrize("arm", [arm for arm in real_model.ARMS if arm != "forking"])
def test_every_arm_takes_two_steps(arm, command, tmp_path):
    real_model.main([*command, "--arms", arm, "--output", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / f"{arm}-0.json").read_text())
    assert record["done"] and [step["grad_norm"] > 0 for step in record["steps"]] == [True, True]
    fractions = {"all": None, "random": 0.2, "bottom": 0.8, "pepo": 1.0}
    assert record["steps"][0].get("forking/selected_fraction") == pytest.approx(fractions[arm], abs=0.05)


def test_arms_that_are_done_are_left_out(command, tmp_path, monkeypatch, capsys):
    record = {"arm": "all", "seed": 0, "steps": [{}] * 3, "accuracy_before": 0.1, "accuracy_after": 0.25, "done": True}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "all-0.json").write_text(json.dumps(record))
    ran = []
    monkeypatch.setattr(real_model, "run", lambda arm, options: ran.append(arm))
    real_model.main([*command, "--output", str(tmp_path / "out"), "--arms", "all", "pepo"])
    assert ran == ["pepo"]
    assert "| all, seed 0 | 3 | 0.100 | 0.250 |  |" in capsys.readouterr().out


def test_what_is_missing_is_named_in_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no outputs/SmolLM2-135M-Instruct; `make smollm2` makes it"):
        real_model.main(["--model", "smollm2", *command[2:4]])
    with pytest.raises(SystemExit, match=r"--problems: there is no none\.json; --write_problems makes it"):
        real_model.main([*command[:2], "--problems", "none.json"])
    monkeypatch.setattr(real_tasks, "has_gym", lambda: False)
    with pytest.raises(SystemExit, match=r"pip install '\.\[study\]'"):
        real_model.main(command[:2])
    assert str(real_model.parse_arguments([*command[:4], "--task", "gcd"]).output) == "outputs/real_model/gcd"


# ---------------------------------------------------------------------- the page


def test_the_page_has_the_numbers_of_the_results():
    runs = json.loads((ROOT / "studies" / "which_tokens" / "results" / "smollm2.json").read_text())["runs"]
    page = (ROOT / "docs" / "study.md").read_text()
    assert {run["arm"] for run in runs} == set(real_model.ARMS)
    for run in runs:
        cells = [run["arm"], len(run["steps"]), f"{run['accuracy_before']:.3f}", f"{run['accuracy_after']:.3f}"]
        assert "| " + " | ".join(map(str, cells)) + " |" in page
    error = (runs[0]["accuracy_before"] * (1 - runs[0]["accuracy_before"]) / 2048) ** 0.5
    assert re.search(rf"standard error of {error:.3f}", page)
