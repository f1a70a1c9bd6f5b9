"""The task of the quickstart, the pictures it shows, and the quickstart itself as a newcomer runs it."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from trl.rewards import accuracy_reward

from tests.conftest import build_model
from tests.report.test_report_page import read
from trl_fork import token_entropy
from trl_fork.entropy import completion_entropies
from trl_fork.report.curves import plot_training
from trl_fork.report.marks import highlight_tokens
from trl_fork.tasks import digit_sums as task


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer():
    return task.make_tokenizer()


# ---------------------------------------------------------------------- the task


def test_no_problem_is_on_both_sides():
    held_out = task.held_out_problems(1024, random.Random(0))
    training = task.training_problems(5000, random.Random(0))
    assert len(set(held_out)) == 1024
    assert not set(held_out) & set(training)


def test_the_split_says_nothing_about_the_answer():
    """Each answer is as frequent among the held-out problems as among all of the same number of operands."""
    lowest, highest = task.OPERANDS
    digits = range(lowest, highest + 1)
    shares = {
        answer: (sum(map(task.is_held_out, group)), len(group))
        for answer in "0123456789"
        for group in [[p for p in itertools.product(digits, repeat=6) if task.solution(p) == answer]]
    }
    total = [sum(column) for column in zip(*shares.values(), strict=True)]
    for held_out, count in shares.values():
        expected = count * total[0] / total[1]
        assert abs(held_out - expected) < 5 * expected**0.5


def test_another_seed_draws_other_problems():
    assert task.training_problems(20, random.Random(1)) != task.training_problems(20, random.Random(2))
    assert task.training_problems(20, random.Random(1)) == task.training_problems(20, random.Random(1))


@pytest.mark.parametrize(("operands", "answer"), [((4, 1, 3, 2), "0"), ((1, 1, 1, 1), "4"), ((4, 4, 3, 4, 4, 4), "3")])
def test_the_solution_is_the_last_digit_of_the_sum(operands, answer):
    assert task.solution(operands) == answer


def test_the_question_names_every_operand():
    assert task.question((4, 1, 3, 2)) == " a4 b1 c3 d2"


def test_demonstrations_are_right_unless_they_guess():
    rng = random.Random(0)
    problems = task.training_problems(1000, rng)
    texts = [task.demonstration(problem, rng) for problem in problems]
    rewards = accuracy_reward(
        [[{"role": "assistant", "content": text}] for text in texts], [task.solution(problem) for problem in problems]
    )
    careful = [reward for text, reward in zip(texts, rewards, strict=True) if f" {task.HASTY} " not in text]
    guessed = [reward for text, reward in zip(texts, rewards, strict=True) if f" {task.HASTY} " in text]
    assert all(reward == 1.0 for reward in careful)
    assert 0.05 < sum(guessed) / len(guessed) < 0.15  # one in ten
    assert 0.25 < sum(rewards) / len(rewards) < 0.40


@pytest.mark.parametrize("text", [r"done 7", r"done \boxed{", "then 4 b7=7."])
def test_an_answer_without_a_box_earns_nothing(text):
    assert accuracy_reward([[{"role": "assistant", "content": text}]], ["7"]) == [0.0]


def test_text_survives_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    for problem in task.training_problems(50, rng):
        for text in (task.question(problem), task.demonstration(problem, rng)):
            for tok in (tokenizer, loaded):
                ids = tok(text)["input_ids"]
                assert tok.decode(ids) == text
                assert tok.unk_token_id not in ids
    conversation = [{"role": "user", "content": " a4"}, {"role": "assistant", "content": "done"}]
    assert loaded.apply_chat_template(conversation, tokenize=False) == "<bos><user> a4<assistant>done<eos>"
    assert loaded.apply_chat_template(conversation[:1], tokenize=False, add_generation_prompt=True) == (
        "<bos><user> a4<assistant>"
    )


def test_the_longest_careful_answer_fits(tokenizer):
    from trl_fork.commands import quickstart

    rng = random.Random(0)
    longest = max(len(tokenizer(task.demonstration((1,) * 6, rng))["input_ids"]) for _ in range(300))
    assert longest + 1 <= quickstart.MAX_COMPLETION_LENGTH  # with the end token


def test_the_seed_decides_the_weights(tokenizer):
    weights = [task.make_model(tokenizer, seed).model.embed_tokens.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# ---------------------------------------------------------------------- entropies and pictures


def test_entropy_belongs_to_the_token_it_predicts(tokenizer):
    """Against each completion by itself, without padding, its last prompt position predicting its first token."""
    model = build_model(tokenizer).eval()
    generator = torch.Generator().manual_seed(0)
    rows = [
        (torch.randint(6, len(tokenizer), (p,), generator=generator), torch.randint(6, 30, (c,), generator=generator))
        for p, c in ((2, 5), (6, 3))
    ]
    input_ids = torch.full((2, 11), tokenizer.pad_token_id)
    attention_mask = torch.zeros(2, 11, dtype=torch.long)
    for i, (prompt, completion) in enumerate(rows):
        input_ids[i, 6 - len(prompt) : 6 + len(completion)] = torch.cat([prompt, completion])
        attention_mask[i, 6 - len(prompt) : 6 + len(completion)] = 1
    entropies = completion_entropies(model, input_ids, attention_mask, 5, temperature=0.7)
    assert entropies.shape == (2, 5)
    for i, (prompt, completion) in enumerate(rows):
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0]
        expected = token_entropy(logits[len(prompt) - 1 : -1], 0.7)
        torch.testing.assert_close(entropies[i, : len(completion)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [0, 4, 5])
def test_a_completion_without_prompt_is_refused(length, tokenizer):
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"completion_length must be in \[1, 3\]"):
        completion_entropies(build_model(tokenizer), ids, ids, length)


def test_highlighting_keeps_the_text(tokenizer):
    text = r"start with a4. so 4 rest=3. done \boxed{3}"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id]
    so = tokenizer.convert_tokens_to_ids(" so")
    rendered = highlight_tokens(tokenizer, ids, [i == so for i in ids])
    assert rendered.plain == text
    assert [rendered.plain[span.start : span.end] for span in rendered.spans if span.style] == [" so"]


def history(*keys):
    return [{"step": step, **dict.fromkeys(keys, step / 10)} for step in (1, 2, 3)] + [
        {"step": 3, "train_runtime": 1.0}
    ]


def drawn_panels(monkeypatch, log_history, path):
    from matplotlib.figure import Figure

    titles = []
    save = Figure.savefig

    def spy(self, *arguments, **keywords):
        titles.extend([self.get_suptitle(), *(x.get_title("left") for x in self.axes)])
        return save(self, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", spy)
    plot_training(log_history, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    has_weights = any(name.startswith(("forking/", "credit/")) for entry in log_history for name in entry)
    assert titles.pop(0) == f"Reinforcement learning{' with token credit' if has_weights else ''}"
    return titles


@pytest.mark.parametrize(
    ("keys", "titles"),
    [
        (["reward", "forking/selected_fraction"], ["Training reward", "Tokens trained on"]),
        (["forking/selected_fraction", "credit/effective_fraction"], ["Tokens trained on"]),
        (["credit/fraction", "credit/strength"], ["Scheduled fraction", "Scheduled strength"]),
        (["credit/top_fraction_fraction", "credit/weight_max"], ["Scheduled fraction of top_fraction"]),
        (["eval_reward"], ["Held-out reward"]),
        (["eval_reward", "eval_rewards/accuracy_reward/mean"], ["Held-out accuracy"]),
        ([], []),
    ],
    ids=[
        "without evaluation",
        "a selection",
        "schedules",
        "schedule of a chain",
        "another reward",
        "accuracy",
        "nothing",
    ],
)
def test_panels_without_data_are_left_out(keys, titles, monkeypatch, tmp_path):
    assert drawn_panels(monkeypatch, history(*keys), tmp_path / "training.png") == titles


# ---------------------------------------------------------------------- the quickstart


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    from trl_fork.commands import quickstart

    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="no quickstart made it"):
        quickstart.prepare_directory(tmp_path)
    assert (tmp_path / "thesis.tex").exists()

    own = quickstart.prepare_directory(tmp_path / "run")
    (own / "trainer_state.json").write_text("{}")
    assert not (quickstart.prepare_directory(own) / "trainer_state.json").exists()


def test_a_failed_stage_shows_why(tmp_path, monkeypatch, capfd):
    from trl_fork.commands import quickstart

    with pytest.raises(SystemExit, match="Reinforcement learning failed with exit status 1"):
        quickstart.reinforce(tmp_path, seed=0, max_steps=1)  # there is no model
    assert "There is no folder" in capfd.readouterr().err


DEFAULT = "42"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", os.environ.get("QUICKSTART_SEEDS", DEFAULT).split())
def test_quickstart_learns(seed, tmp_path):
    """The script of `make quickstart` (test_readme.py); once a week there are more seeds (compat.yml)."""
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    command += [] if seed == DEFAULT else ["--seed", seed]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_quickstart(tmp_path / "outputs" / "quickstart", int(seed))
    assert "275/275" in done.stderr  # the bar of TRL's trainer
    assert " 60/60" not in done.stderr  # ours is for terminals; the same line is in the log
    assert "step 60/60" in (tmp_path / "outputs" / "quickstart" / "train.log").read_text()
    for noise in ("Warning", "'loss':"):
        assert noise not in done.stdout + done.stderr


def check_quickstart(run, seed):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seed"] == seed
    assert 0.15 <= summary["accuracy_before"] <= 0.40
    assert summary["accuracy_after"] - summary["accuracy_before"] >= 0.40
    assert summary["mean_length_after"] > summary["mean_length_before"]
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    fractions = [entry["forking/selected_fraction"] for entry in log if "forking/selected_fraction" in entry]
    assert fractions and all(fraction == pytest.approx(0.2, abs=0.005) for fraction in fractions)
    for name in ("model.safetensors", "start/model.safetensors", "train.jsonl", "test.jsonl"):
        assert (run / name).stat().st_size > 1000, name
    assert (run / "training.png").stat().st_size > 10_000
    _, responses = read(run / "report.html")
    assert [entry["label"].split(":")[0] for entry, *_ in responses] == ["before", "after"] * 12
    names = sorted(path.name for path in (run / "fork_report").iterdir())
    assert names == ["latest.html", "step-0.html", "step-20.html", "step-40.html"]
