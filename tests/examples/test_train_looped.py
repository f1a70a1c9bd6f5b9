"""The looped example with very few steps: its files, and its numbers from the models that it leaves."""

import json
import random

import pytest
import torch
from transformers import AutoTokenizer

from examples import train_looped
from trl_fork.looped import OuroForCausalLM
from trl_fork.report.loop_accuracy import plot_loop_accuracy
from trl_fork.tasks import digit_sums as task


NUM_TEST, SEED = 24, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("looped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_looped, "NUM_TEST", NUM_TEST)
        patch.setattr(train_looped, "NUM_TRAIN", 32)
        patch.setattr(train_looped, "BATCH", 4)
        words = ["--output_dir", str(path), "--warm_up_steps", "3", "--max_steps", "1", "--seed", str(SEED)]
        train_looped.main(words)
    return path


def read(path):
    return json.loads(path.read_text())


def test_summary_and_files(folder):
    summary = read(folder / "summary.json")
    assert summary["seed"] == SEED and summary["num_test_problems"] == NUM_TEST
    for when in ("before", "after"):
        by_loops = summary[f"accuracy_by_loops_{when}"]
        assert len(by_loops) == 3 and all(0 <= value <= 1 for value in by_loops)
        assert summary[f"accuracy_{when}"] == by_loops[-1]
    seconds = summary["seconds"]
    assert seconds["total"] == pytest.approx(seconds["warm_up"] + seconds["rl"] + seconds["evaluation"], abs=0.3)
    for name in ("accuracy_by_loops.png", "training.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    test = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert (len(train), len(test)) == (32, NUM_TEST)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}


def test_stage_one_trains_the_gate_and_rl_does_not(folder):
    random_weights = train_looped.make_model(task.make_tokenizer(), SEED).state_dict()
    start, final = (OuroForCausalLM.from_pretrained(path).state_dict() for path in (folder / "start", folder))
    gates = [name for name in start if "early_exit_gate" in name]
    assert len(gates) == 2 and all(torch.equal(start[name], final[name]) for name in gates)
    for name, values in start.items():
        assert not torch.equal(values, random_weights[name]), f"{name}: Stage I trains everything"
    log = read(folder / "trainer_state.json")["log_history"]
    fractions = [entry["forking/selected_fraction"] for entry in log if "forking/selected_fraction" in entry]
    assert fractions == [pytest.approx(0.2, abs=0.01)]


def test_accuracy_is_that_of_a_model_with_so_many_layers_run(folder):
    """Greedy answers by the plainest loop there is: a model whose config says so, without cache, a row at a time."""
    problems = task.held_out_problems(2, random.Random(3))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = set()
    for num_loops in (1, 2, 3):
        model = OuroForCausalLM.from_pretrained(folder, total_ut_steps=num_loops).eval()
        completions, correct = train_looped.quickstart.answer(model, tokenizer, problems, SEED, greedy=True)
        for problem, completion, right in zip(problems, completions, correct, strict=True):
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": task.question(problem)}], add_generation_prompt=True, return_dict=False
            )
            for token in completion:
                with torch.no_grad():
                    assert model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax() == token
                ids = [*ids, token]
            assert right == task.is_correct(problem, tokenizer.decode(completion, skip_special_tokens=True))
        ends.add(tuple(map(tuple, completions)))
    assert len(ends) == 3, "the loops answer differently"


def test_picture(tmp_path):
    plot_loop_accuracy([0.1, 0.2], [0.8, 0.9], tmp_path / "picture.svg", 1024)
    text = (tmp_path / "picture.svg").read_text()
    assert "before" in text and "after RL" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--warm_up_steps", "0"], "--warm_up_steps must be at least 1, got 0"),
        (["--max_steps", "-2"], "--max_steps must be at least 1, got -2"),
    ],
)
def test_bad_options_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        train_looped.parse_arguments(words)
    assert message in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="nothing was touched"):
        train_looped.main(["--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
