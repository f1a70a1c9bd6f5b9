"""`trl-fork report` on two real, tiny trainings with evaluations, its numbers recomputed, and what it refuses."""

import json
import math
import random
import shutil
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import t as student
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import build_model
from tests.report.test_report_page import Scripts
from tests.trainer.test_features import byte_tokenizer
from trl_fork._files import weights_fingerprint
from trl_fork.commands import dispatch


GSM8K = Path(__file__).parents[1] / "files" / "gsm8k.jsonl"
TINY = (
    *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"),
    *("--max_completion_length", "8", "--num_generations", "4", "--per_device_train_batch_size", "4"),
)


def command(*words) -> int:
    return dispatch.main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `a` (three steps) and `b` (two, other settings) of one tiny model, and evaluations of both."""
    path = tmp_path_factory.mktemp("runs")
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    (path / "own_length.py").write_text(
        "def letters(completions, **kwargs):\n    return [float(len(set(c[0]['content']))) for c in completions]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        for name, more in (
            ("a", ("--max_steps", "3", "--save_strategy", "no")),
            ("b", ("--max_steps", "2", "--save_steps", "1", "--seed", "7", "--top_entropy_quantile", "0.5")),
        ):
            data = ("--model_name_or_path", path / "model", "--dataset_name", GSM8K, "--output_dir", path / name)
            rewards = ("--reward_funcs", "own_length.letters", "--logging_steps", "1", "--learning_rate", "0.05")
            assert command("train", *data, *rewards, *TINY, *more) == 0
    for name, samples in (("a", 3), ("b", 2)):
        sizes = ("--num_samples", samples, "--limit", "4", "--max_new_tokens", "8")
        out = ("--output", path / name / "evaluation")
        assert command("evaluate", "--model", path / name, "--dataset", GSM8K, *sizes, *out) == 0
    return path


@pytest.fixture(scope="module")
def compared(folder):
    """What the command has written, with the responses of `a` read by both models."""
    completions = folder / "a" / "evaluation" / "completions.jsonl"
    words = ("--completions", completions, "--min_token_count", "1", "--output", folder / "out")
    assert command("report", folder / "a", folder / "b", *words) == 0
    return json.loads((folder / "out" / "report.json").read_text())


def samples_of(folder, name):
    return [json.loads(line) for line in (folder / name / "evaluation" / "completions.jsonl").read_text().splitlines()]


def test_options_that_differ(compared):
    rows = {row["name"]: row["values"] for row in compared["settings"]}
    assert rows["seed"] == [42, 7] and rows["top_entropy_quantile"] == [0.2, 0.5] and rows["max_steps"] == [3, 2]
    assert not {"output_dir", "learning_rate", "dataset_name", "run_name", "num_processes"} & set(rows)


def test_curves_are_the_logs(folder, compared):
    logs = [json.loads((folder / name / "trainer_state.json").read_text())["log_history"] for name in ("a", "b")]
    for key in ("reward", "entropy", "grad_norm", "completions/mean_length", "forking/selected_fraction"):
        expected = [
            {"steps": [e["step"] for e in log if key in e], "values": [e[key] for e in log if key in e]}
            for log in logs
        ]
        assert compared["curves"][key] == expected
        assert [len(curve["steps"]) for curve in expected] == [3, 2]
        (metric,) = [metric for metric in compared["metrics"] if metric["key"] == key]
        assert metric["step"] == 2 and metric["values"] == [curve["values"][1] for curve in expected]
        assert metric["last"][0] == {"step": 3, "value": expected[0]["values"][2]}
    for run, log in zip(compared["runs"], logs, strict=True):
        times = [sum(value for key, value in entry.items() if key.startswith("time/") and key != "time/remaining")
                 for entry in log if "loss" in entry]  # fmt: skip
        assert run["speed"]["time/step"] == pytest.approx(statistics.mean(times))
        assert run["speed"]["tokens_per_second"] > 0


def test_accuracy_is_paired_by_problem(folder, compared):
    accuracies = []
    for name in ("a", "b"):
        rights = defaultdict(list)
        for row in samples_of(folder, name):
            rights[row["problem_id"]].append(row["correct"])
        accuracies.append({problem: statistics.mean(values) for problem, values in rights.items()})
    (row,) = compared["differences"]
    changes = [accuracies[1][problem] - accuracies[0][problem] for problem in accuracies[0]]
    assert row["num_problems"] == 4 == len(changes) and row["mean"] == pytest.approx(statistics.mean(changes))
    assert row["low"] <= row["mean"] <= row["high"]
    assert row["other_settings"] == {"num_samples": [3, 2]} and row["other_prompts"] == 0


def entropies_of(path, rows):
    """Entropy of every completion token, from full logits of one row at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    found = []
    for row in rows:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        completion += [tokenizer.eos_token_id] * (not row["truncated"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
        log_probs = logits.log_softmax(-1)
        values = -(log_probs.exp() * log_probs).sum(-1)
        found += [(row["problem_id"], token, value) for token, value in zip(completion, values.tolist(), strict=True)]
    return found


def test_change_of_entropy_by_token(folder, compared):
    rows = samples_of(folder, "a")
    before, after = (entropies_of(folder / name, rows) for name in ("a", "b"))
    changes = defaultdict(list)
    for (problem, token, old), (_, _, new) in zip(before, after, strict=True):
        changes[token].append((problem, new - old))
    listed = {token: group for token, group in changes.items() if len(group) > 1}
    (found,) = compared["tokens"]
    assert found["num_tokens"] == len(before) and {row["token_id"] for row in found["types"]} == set(listed)
    assert found["all"]["mean_change"] == pytest.approx(
        statistics.mean(new[2] - old[2] for old, new in zip(before, after, strict=True)), abs=2e-6
    )
    assert abs(found["all"]["mean_change"]) > 1e-4, "the two models differ"
    for row in found["types"]:
        group = listed[row["token_id"]]
        mean = statistics.mean(change for _, change in group)
        assert row["count"] == len(group) and row["mean_change"] == pytest.approx(mean, abs=2e-6)
        residuals = defaultdict(float)
        for problem, change in group:
            residuals[problem] += change - mean
        n = len(residuals)
        if n > 1:
            error = math.sqrt(n / (n - 1) * sum(r**2 for r in residuals.values())) / len(group)
            quantile = student.ppf(1 - 0.025 / len(listed), n - 1)
            # Entropies of other batches are equal to 1e-6 or so, which few degrees of freedom magnify.
            assert row["high"] - row["mean_change"] == pytest.approx(quantile * error, rel=1e-2, abs=2e-6 * quantile)


def test_the_page_and_the_console(folder, compared, capsys):
    assert command("report", folder / "a", folder / "b") == 0
    printed = capsys.readouterr().out
    assert "top_entropy_quantile" in printed and "Difference in accuracy, paired by problem" in printed
    assert "num_samples of the evaluations is 3 in A and 2 in B" in printed
    assert "See which tokens gained or lost entropy" in printed and "--completions" in printed
    page = folder / "a" / "report-b" / "report.html"
    assert page.resolve().as_uri() in printed
    assert len(Scripts(page.read_text()).texts["figcaption"]) == len(compared["metrics"])


def test_one_run_and_a_checkpoint_of_a_run_that_goes_on(folder, tmp_path, capsys):
    shutil.copytree(folder / "b", tmp_path / "cut")
    for path in ("trainer_state.json", "checkpoint-2", "evaluation"):
        (shutil.rmtree if (tmp_path / "cut" / path).is_dir() else Path.unlink)(tmp_path / "cut" / path)
    assert command("report", tmp_path / "cut") == 0
    printed = capsys.readouterr().out
    assert "(step 1 of 2: cut off, or still running)" in printed and "Compare it with another run" in printed
    assert "trl-fork evaluate --model" in printed and f"--dataset {GSM8K}" in printed
    numbers = json.loads((tmp_path / "cut" / "report" / "report.json").read_text())
    assert {"seed", "top_entropy_quantile", "learning_rate"} <= {row["name"] for row in numbers["settings"]}
    assert numbers["differences"] == numbers["tokens"] == []


def test_settings_of_a_run_from_python_are_those_of_its_arguments(folder, tmp_path, capsys):
    shutil.copytree(folder / "b", tmp_path / "b")
    (tmp_path / "b" / "training_settings.json").unlink()
    assert command("report", folder / "a", tmp_path / "b", "--output", tmp_path / "out") == 0
    rows = {row["name"]: row["values"] for row in json.loads((tmp_path / "out/report.json").read_text())["settings"]}
    assert rows["seed"] == [42, 7] and rows["save_strategy"] == ["no", "steps"]
    assert set(rows) <= {"seed", "top_entropy_quantile", "max_steps", "save_strategy", "save_steps"}, rows


def test_scores_of_an_analysis_are_used(folder, tmp_path, capsys):
    """An analysis that has read the text with both models needs no option, and no model."""
    shutil.copytree(folder / "b", tmp_path / "b", copy_function=shutil.copy2)
    completions = folder / "a" / "evaluation" / "completions.jsonl"
    models = ("--model", tmp_path / "b", "--reference_model", folder / "a", "--analyses", "change")
    assert command("analyze", *models, "--completions", completions, "--output", tmp_path / "b" / "entropy") == 0
    assert command("report", folder / "a", tmp_path / "b", "--min_token_count", "1", "--output", tmp_path / "o") == 0
    expected = json.loads((folder / "out" / "report.json").read_text())["tokens"][0]
    (found,) = json.loads((tmp_path / "o" / "report.json").read_text())["tokens"]
    assert not (tmp_path / "o" / "scores").exists()
    for row, other in zip(found["types"], expected["types"], strict=True):
        assert row["token_id"] == other["token_id"] and row["mean_change"] == pytest.approx(other["mean_change"])


# ---------------------------------------------------------------------- folders made by hand


def evaluation(path, rights, *, settings=None, solution="{}", seed=0):
    """An evaluation of two samples a problem, with a state of a training beside it."""
    rng = random.Random(seed)
    path.mkdir(parents=True)
    rows = [
        {"dataset": "d", "problem_id": name, "sample": number, "prompt": f"{name}?", "completion": "x", "length": 3,
         "truncated": False, "solution": solution.format(name), "correct": number < right, "answer": None,
         "grading_failure": None}
        for name, right in rights.items() for number in range(2)
    ]  # fmt: skip
    mean = statistics.mean(rights.values()) / 2
    result = {"avg@2": mean, "avg@2_stderr": 0.1, "pass@2": 0.9, "mean_length": 3.0, "truncated_fraction": 0.0,
              "num_problems": len(rights), "num_samples": 2, "grading_failures": 0}  # fmt: skip
    (path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "results.json").write_text(json.dumps({"d": result}))
    (path / "settings.json").write_text(json.dumps({"settings": {"temperature": 1.0, **(settings or {})}}))
    log = [{"step": step, "loss": 0.1, "reward": rng.random()} for step in range(1, 4)]
    state = {"global_step": 3, "max_steps": 3, "log_history": log}
    (path.parent / "trainer_state.json").write_text(json.dumps(state))


def report(tmp_path, *names, more=()):
    assert command("report", *(tmp_path / name for name in names), "--output", tmp_path / "out", *more) == 0
    return json.loads((tmp_path / "out" / "report.json").read_text())


def test_other_problems_are_not_paired(tmp_path, capsys):
    evaluation(tmp_path / "a" / "evaluation", {"p": 1, "q": 2})
    evaluation(tmp_path / "b" / "evaluation", {"p": 0, "q": 1}, solution="{} or so")
    numbers = report(tmp_path, "a", "b")
    (row,) = numbers["differences"]
    assert row["mean"] is row["low"] is None
    assert [row["accuracy"] for row in numbers["results"]] == [0.75, 0.25], "the unpaired numbers are there"
    printed = capsys.readouterr().out
    reason = "no paired interval, because 2 of the 2 problems of the same id have another solution."
    assert reason in printed and "75.00%" in printed and "25.00%" in printed
    assert reason in (tmp_path / "out" / "report.html").read_text()


def test_an_evaluation_of_earlier_weights_is_named(tmp_path, capsys):
    weights = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    for name, saved in (("a", weights), ("b", weights + 1e-4)):
        evaluated = {"model": str(tmp_path / name), "weights": {}}
        (tmp_path / name).mkdir()
        save_file({"x": weights}, tmp_path / name / "model.safetensors")
        evaluated["weights"]["model"] = weights_fingerprint(tmp_path / name)
        evaluation(tmp_path / name / "evaluation", {"p": 1, "q": 2, "r": 0}, settings=evaluated)
        save_file({"x": saved}, tmp_path / name / "model.safetensors")
    report(tmp_path, "a", "b")
    printed = " ".join(capsys.readouterr().out.split())
    assert "b/evaluation is of earlier weights of this run: evaluate it again" in printed
    assert "a/evaluation is of earlier" not in printed


def test_other_settings_of_an_evaluation_are_named(tmp_path, capsys):
    evaluation(tmp_path / "a" / "evaluation", {"p": 1, "q": 2, "r": 2}, settings={"temperature": 0.6, "model": "m"})
    evaluation(tmp_path / "b" / "evaluation", {"p": 1, "q": 1, "r": 0}, settings={"max_new_tokens": 9})
    (row,) = report(tmp_path, "a", "b")["differences"]
    assert row["mean"] == pytest.approx(-0.5)
    assert row["other_settings"] == {"temperature": [0.6, 1.0], "max_new_tokens": [None, 9]}
    printed = capsys.readouterr().out
    assert "temperature of the evaluations is 0.6 in A and 1 in B" in printed
    assert f"The evaluation in {tmp_path / 'a' / 'evaluation'} is of m." in printed


def test_runs_without_a_step_in_common(tmp_path, capsys):
    evaluation(tmp_path / "a" / "evaluation", {"p": 1, "q": 2})
    (tmp_path / "b").mkdir()
    log = [{"step": step, "loss": 0.1, "reward": 0.25 * step} for step in (10, 20)]
    (tmp_path / "b" / "trainer_state.json").write_text(
        json.dumps({"global_step": 20, "max_steps": 20, "log_history": log})
    )
    numbers = report(tmp_path, "a", "b")
    (metric,) = [metric for metric in numbers["metrics"] if metric["key"] == "reward"]
    assert metric["step"] is None and metric["values"] == [None, None]
    assert metric["last"][1] == {"step": 20, "value": 5.0}
    assert "have logged no step in common (steps A 1 to 3, B 10 to 20)" in capsys.readouterr().out


def test_an_evaluation_is_chosen(tmp_path, capsys):
    evaluation(tmp_path / "a" / "greedy", {"p": 1, "q": 2})
    evaluation(tmp_path / "a" / "sampled", {"p": 2, "q": 2})
    assert report(tmp_path, "a")["results"] == []
    assert "holds several evaluations (greedy, sampled): choose one with --evaluation" in capsys.readouterr().out
    (row,) = report(tmp_path, "a", more=("--evaluation", "greedy"))["results"]
    assert row["accuracy"] == 0.75
    (tmp_path / "a" / "greedy" / "results.json").unlink()
    assert report(tmp_path, "a", more=("--evaluation", "greedy"))["results"] == []
    assert "no finished evaluation in a folder 'greedy'" in capsys.readouterr().out


def test_several_runs_are_compared_with_the_first(tmp_path, capsys):
    for number, name in enumerate("abc"):
        evaluation(tmp_path / name / "evaluation", {"p": number, "q": 2}, seed=number)
    assert command("report", *(tmp_path / name for name in "abc")) == 0
    numbers = json.loads((tmp_path / "a" / "report-b-c" / "report.json").read_text())
    assert [(row["baseline"], row["run"], row["mean"]) for row in numbers["differences"]] == [
        ("A", "B", 0.25),
        ("A", "C", 0.5),
    ]
    (metric,) = numbers["metrics"]
    rewards = [random.Random(number) for number in range(3)]
    assert metric["values"] == [[rng.random() for _ in range(3)][2] for rng in rewards]
    assert "C: " in capsys.readouterr().out


def test_an_evaluation_alone_is_a_run(tmp_path):
    evaluation(tmp_path / "base" / "x", {"p": 1, "q": 2})
    evaluation(tmp_path / "b" / "evaluation", {"p": 2, "q": 2})
    numbers = report(tmp_path, "base/x", "b")
    assert numbers["runs"][0]["step"] is None and numbers["runs"][1]["step"] == 3
    assert numbers["differences"][0]["mean"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nothing"], 1, "There is no folder 'nothing' (looked from "),
        (["empty"], 1, "'empty' is no run: it holds no trainer_state.json"),
        (["begun"], 1, "The run in 'begun' has left no log yet: trainer_state.json is written with each checkpoint"),
        (["run", "run/"], 2, "'run' is given twice"),
        (["run", "--completions", "c.jsonl"], 2, "--completions: there is no file 'c.jsonl'"),
        (["run", "--completions", "file"], 2, "--completions compares the tokens of two models"),
        (["run", "other", "--completions", "file"], 1, "'run' holds none (no config.json and no adapter_config.json)"),
        (["run", "--temperature", "0", "--max_responses", "0"], 2, "2 settings cannot be taken"),
        (["damaged"], 1, "results.json is no JSON"),
        (["foreign"], 1, "completions.jsonl, line 1, has no problem_id, sample"),
    ],
)
def test_what_is_refused(words, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "other", "damaged", "foreign"):
        evaluation(tmp_path / name / "evaluation", {"p": 1, "q": 2})
    (tmp_path / "damaged" / "evaluation" / "results.json").write_text("{")
    (tmp_path / "foreign" / "evaluation" / "completions.jsonl").write_text('{"dataset": "d", "prompt": "p"}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "training_settings.json").write_text('{"settings": {"seed": 1}}')
    (tmp_path / "file").write_text("")
    try:
        found = command("report", *words)
    except SystemExit as ended:
        found = ended.code
    error = capsys.readouterr().err
    assert found == status and message in error and error.startswith("trl-fork report: error: "), error
    assert np.all([line.startswith(("trl-fork", "  ", "All options")) for line in error.splitlines()])


def test_settings_of_a_training_hold_no_token(folder):
    text = (folder / "a" / "training_settings.json").read_text()
    assert "hub_token" not in text and "push_to_hub" in text
    saved = json.loads(text)
    assert saved["settings"]["num_processes"] == 1 and saved["settings"]["reward_funcs"] == ["own_length.letters"]
    assert {"seed", "output_dir"} & set(saved["changed"]) == {"output_dir"}
    assert saved["versions"]["trl"]
