"""The example of prompt control with very few steps, and its two roles played by rules."""

import json
import random
import re

import numpy as np
import pytest

from examples import prompt_control as example
from trl_fork.report.prompt_policies import plot_prompt_policies
from trl_fork.rewards import GradingPool
from trl_fork.tasks import digit_sums as task
from trl_fork.teams import PromptControl, solve_hqre


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "run"
    small = {"WARM_UP_STEPS": 3, "BATCH": 4, "EPISODES_PER_PAIR": 4, "EPISODES_PER_PROMPT": 2, "NUM_STEPS": 2}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**small, "NUM_TEST": 16, "MAX_NEW_TOKENS": 8}.items():
            patch.setattr(example, name, value)
        example.main(["--output_dir", str(path), "--seed", "7"])
    return path


def test_summary_and_files(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seed"] == 7 and summary["num_test_problems"] == 16
    assert 0 <= summary["accuracy_before"] <= 1 and 0 <= summary["accuracy_after"] <= 1
    assert (folder / "prompt_control.png").read_bytes().startswith(b"\x89PNG")
    control = PromptControl(example.PROMPTS, example.TEMPERATURES, example.STEP_SIZE)
    control.load_state_dict(json.loads((folder / "control.json").read_text()))
    assert len(control.history) == 3
    want = solve_hqre(np.array(summary["payoffs"]), [*example.TEMPERATURES.values()])
    for role, policy in zip(example.PROMPTS, want.policies, strict=True):
        assert summary["policies"][role] == control.policies[role].tolist()
        assert summary["equilibrium"][role] == pytest.approx(policy)


def test_demonstrations_are_sums_in_three_notations(monkeypatch):
    monkeypatch.setattr(example, "P_WRONG", dict.fromkeys(example.NOTATIONS, 0.0))
    rng, read_as = (
        random.Random(0),
        {"plain": lambda d: d, "nines": lambda d: 9 - d, "shifted": lambda d: (d - 3) % 10},
    )
    tokenizer = example.make_tokenizer()
    for operands in task.training_problems(20, rng):
        cut = len(operands) // 2
        for notation, read in read_as.items():
            question, answer = example.demonstration(operands, notation, "first", rng)
            assert re.findall(r"\d", question) == [*map(str, operands[:cut])] and f" {notation}" in question
            assert read(int(re.search(r"boxed\{(\d)\}", answer)[1])) == sum(operands[:cut]) % 10
            ids = tokenizer(question + answer).input_ids
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == question + answer
            question, answer = example.demonstration(operands, notation, "second", rng)
            message = int(re.search(r" (\d)", question)[1])
            total = (read(message) + sum(operands[cut:])) % 10
            assert int(re.search(r"boxed\{(\d)\}", answer)[1]) == total


class RuleTeam(example.Team):
    """Both roles never err. Only what the model would say is replaced."""

    def __init__(self, pool):
        self.pool = pool

    def _say(self, texts, batch_size=256):
        answers = []
        for text in texts:
            verb, notation, rest = text.split(maxsplit=2)
            total = sum(map(int, re.findall(r"[a-f](\d)", rest)))
            if verb == "read":
                (message,) = re.match(r"(\d) ", rest).groups()
                total += {"plain": int(message), "nines": 9 - int(message), "shifted": int(message) - 3}[notation]
                answers.append(f"\\boxed{{{total % 10}}}")
            else:
                answers.append(f"\\boxed{{{example.written(total % 10, notation)}}}")
        return answers


def test_prompts_that_fit_win_and_control_finds_them(monkeypatch):
    monkeypatch.setattr(example, "EPISODES_PER_PAIR", 40)
    monkeypatch.setattr(example, "EPISODES_PER_PROMPT", 8)
    with GradingPool(num_workers=1) as pool:
        team = RuleTeam(pool)
        payoffs = example.measure_game(team, random.Random(1))
        assert np.diag(payoffs).tolist() == [1.0, 1.0, 1.0]
        # Read in another way, the digit is right only where both ways write it alike
        assert (payoffs[~np.eye(3, dtype=bool)] < 0.5).all() and payoffs[0, 2] == payoffs[2, 0] == 0
        control = example.control_prompts(team, random.Random(2), seed=3)
        test = task.held_out_problems(64, random.Random(4))
        before, after = (example.accuracy(team, control.history[step], test, 0) for step in (0, -1))
    best = [policy.argmax() for policy in control.policies.values()]
    assert best[0] == best[1] and min(policy.max() for policy in control.policies.values()) > 0.9
    assert before < 0.6 < 0.85 < after


def test_picture(tmp_path):
    history = [{"first": [0.5, 0.5]}, {"first": [0.9, 0.1]}]
    plot_prompt_policies(history, {"first": [1.0, 0.0]}, {"first": ["plain", "nines"]}, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text()
    assert "plain" in text and "equilibrium" in text and text.count("stroke-dasharray") >= 2


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="nothing was touched"):
        example.main(["--output_dir", str(tmp_path)])
