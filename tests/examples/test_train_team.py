"""The example of a team with very few steps: its files, its numbers, and that nothing is made twice."""

import itertools
import json
import re
import statistics

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from examples import train_team
from tests.snippets import ROOT
from trl_fork.report.conventions import plot_conventions
from trl_fork.tasks import split_sums as task
from trl_fork.tasks import team_play


ARMS = ["policy_gradient_forking", "balance", "mirror_forking"]
WORDS = ["--warm_up_steps", "3", "--max_steps", "5", "--arms", *ARMS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("team") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_team, "EVERY", 4)
        patch.setattr(train_team, "WARM_UP_BATCH", 4)
        patch.setattr(train_team, "NUM_PROBLEMS", 2)
        patch.setattr(train_team, "EPISODES", 2)
        patch.setattr(train_team, "accuracy_reward", accuracy_reward)
        patch.setattr(task, "held_out_problems", few(task.held_out_problems()))
        train_team.main(["--output_dir", str(path), *WORDS])
    return path


def accuracy_reward(completions, **kwargs):
    """Right answers do not occur within these steps, and without different rewards nothing is trained."""
    return [len(completion[0]["content"]) % 3 / 2 for completion in completions]


def few(problems):
    return lambda: problems[:12]


def read(path):
    return json.loads(path.read_text())


def test_summary_and_files(folder):
    summary = read(folder / "summary.json")
    assert summary["num_test_problems"] == 12 and summary["settings"]["beta"] == 0.4
    (run,) = summary["runs"]
    assert run["seed"] == 1 and list(run["arms"]) == ARMS
    for arm in ARMS:
        history = run["arms"][arm]["history"]
        assert [values["step"] for values in history] == [4, 5]  # after the generation batch, and at the end
        assert all("all" in values for values in history)
    assert (folder / "table.md").read_text() == train_team.markdown(summary) + "\n"
    assert (folder / "teams.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_measurement_is_of_the_model_that_is_saved(folder):
    (run,) = read(folder / "summary.json")["runs"]
    problems = task.held_out_problems()[:12]
    for arm, path in {"start": folder / "seed-1" / "start", "balance": folder / "seed-1" / "balance"}.items():
        model, tokenizer = Qwen3ForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
        found = run["start"] if arm == "start" else run["arms"][arm]["history"][-1]
        assert {role: found[role] for role in ("left", "right")} == {
            role: pytest.approx(value, abs=1e-4)
            for role, value in team_play.conventions(model, tokenizer, problems).items()
        }
        episodes = team_play.play(model, tokenizer, problems, 1)
        assert found["all"] == pytest.approx(sum(episode.is_right for episode in episodes) / 12, abs=1e-4)


def test_arms_train_what_they_say(folder):
    weights = [
        Qwen3ForCausalLM.from_pretrained(folder / "seed-1" / name).model.embed_tokens.weight
        for name in ("start", *ARMS)
    ]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(weights, 2))
    logs = {arm: (folder / "seed-1" / arm / "train.log").read_text() for arm in ARMS}
    assert ["balance/residual_abs" in logs[arm] for arm in ARMS] == [False, True, True]
    assert ["balance/step_kl" in logs[arm] for arm in ARMS] == [False, False, True]
    assert ["forking/selected_fraction" in logs[arm] for arm in ARMS] == [True, False, True]
    assert all("rewards/accuracy_reward/mean" in log for log in logs.values())


def test_what_was_made_is_not_made_again(folder, capsys, monkeypatch):
    monkeypatch.setattr(task, "held_out_problems", few(task.held_out_problems()))
    before = (folder / "summary.json").read_text()
    path = folder / "seed-1" / "balance" / "model.safetensors"
    made = path.stat().st_mtime_ns
    train_team.main(["--output_dir", str(folder), *WORDS])
    assert (folder / "summary.json").read_text() == before and path.stat().st_mtime_ns == made
    assert capsys.readouterr().out.count("made before") == 4
    monkeypatch.setattr(train_team, "reinforce", lambda *arguments: "made anew")
    options = train_team.parse_arguments([*WORDS, "--beta", "0.3"])
    measured = folder / "seed-1" / "balance" / "measured.json"
    content = measured.read_text()
    assert train_team.once(measured, train_team.reinforce, options) == "made anew", "of another temperature"
    measured.write_text(content)


# ---------------------------------------------------------------------- numbers


START = {"left": 0.6, "right": 0.5, "all": 0.5, "agree": 0.9, "differ": 0.1}


def run_of(*points, seed=1):
    history = [
        {"step": 4 * n + 4, "left": left, "right": right, "all": 0.7, "agree": 0.8, "differ": 0.0}
        for n, (left, right) in enumerate(points)
    ]
    return {
        "seed": seed,
        "start": START,
        "equilibrium": {"left": 0.8, "right": 0.9},
        "arms": {"balance": {"history": history}, "mirror_forking": {"history": history}},
    }


def test_outcome_of_a_run():
    run = run_of((0.1, 0.9), (0.5, 0.5), (0.6, 0.6), (0.9, 0.5))
    assert train_team.outcome(run, "balance") == {
        "accuracy": 0.7,
        "agree": 0.8,
        "left": 0.9,
        "right": 0.5,
        "from start": pytest.approx(0.15),
        "from equilibrium": pytest.approx(0.25),
        "drift": pytest.approx(statistics.mean([0.1, 0.2])),  # from the second of four batches on
    }
    assert train_team.outcome(run_of((0.9, 0.5)), "balance")["drift"] == pytest.approx(0.15)  # from the start


def test_table():
    summary = {"runs": [run_of((0.9, 0.5)), run_of((0.7, 0.5), seed=2)]}
    before, balance, mirror, equilibrium = train_team.cells_of(summary)
    assert before[0] == "before" and before[1].startswith("0.500") and before[-1] == ""
    assert balance[0] == "balance" and balance[3] == "0.800 ± 0.141"
    assert mirror[0] == "mirror, forking"
    assert equilibrium == ["equilibrium (HQRE)", "", "", "0.800 ± 0.000", "0.900 ± 0.000", "", "", ""]
    assert train_team.cells_of(summary, spread=False)[1][-1] == "0.1000"
    lines = train_team.markdown(summary).splitlines()
    assert len(lines) == 6 and len({line.count("|") for line in lines}) == 1


def test_equilibrium_is_a_fixed_point_of_the_game_that_was_measured():
    """Each role answers the other one's share with the logistic response, with the start as its prior."""
    found = train_team.equilibrium(START, 0.4)
    for role, other in (("left", "right"), ("right", "left")):
        gain = (START["agree"] - START["differ"]) * (2 * found[other] - 1)  # of plain over mirrored
        logit = np.log(START[role] / (1 - START[role])) + gain / 0.4
        assert found[role] == pytest.approx(1 / (1 + np.exp(-logit)), abs=2e-3)
    assert found["left"] > 0.7 and found["right"] > 0.7


def test_picture(tmp_path):
    runs = [run_of((0.9, 0.5), (0.8, 0.8)), run_of((0.7, 0.5), (0.9, 0.9), seed=2)]
    plot_conventions(runs, tmp_path / "picture.svg", 256)
    text = (tmp_path / "picture.svg").read_text()
    for words in ("balance", "mirror, forking", "beta alone", "equilibrium (HQRE)", "mean of 2 seeds"):
        assert words in text
    assert "with the mirror term" not in text  # this arm was not run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "0"], "--max_steps must be above 0, got 0"),
        (["--beta", "-1"], "--beta must be above 0, got -1.0"),
        (["--mirror_step_size", "0"], "--mirror_step_size must be above 0, got 0.0"),
        (["--learning_rate", "nan"], "--learning_rate must be above 0, got nan"),
        (["--arms", "mirrors"], "got 'mirrors'; did you mean 'mirror'?"),
    ],
)
def test_bad_options_are_refused_before_the_warm_up(words, message, capsys):
    with pytest.raises(SystemExit):
        train_team.parse_arguments(words)
    assert message in capsys.readouterr().err


def test_study():
    options = train_team.parse_arguments(["--study"])
    assert options.seeds == [1, 2, 3, 4, 5] and options.arms == list(train_team.ARMS)


def test_the_table_of_the_page_is_that_of_the_results():
    summary = read(ROOT / "docs" / "teams_results.json")
    page = (ROOT / "docs" / "teams.md").read_text()
    assert train_team.markdown(summary) in page
    assert len(summary["runs"]) == 5 and all(list(run["arms"]) == list(train_team.ARMS) for run in summary["runs"])
    assert re.search(rf"\b{summary['num_test_problems']} (held-out )?problems", page)
