"""What comes after the last step, and fails, does not cost the model."""

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.conftest import NUM_GENERATIONS, FixedRollouts, fixed_reward
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.commands.finishing import attempt, files_of, train_and_save
from trl_fork.report.curves import plot_training


@pytest.fixture
def build(model, tokenizer, tmp_path):
    def build(*callbacks, reward=fixed_reward, **settings):
        rollouts = FixedRollouts(tokenizer)
        settings = {"max_steps": 2, "save_strategy": "no", "eval_strategy": "no"} | settings
        return ForkingGRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=ForkingGRPOConfig(
                str(tmp_path / "run"),
                per_device_train_batch_size=32,
                num_generations=NUM_GENERATIONS,
                max_completion_length=16,
                learning_rate=0.01,
                use_cpu=True,
                bf16=False,
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=rollouts.dataset,
            eval_dataset=rollouts.dataset,
            processing_class=tokenizer,
            rollout_func=rollouts,
            callbacks=list(callbacks),
        )

    return build


class Failing(TrainerCallback):
    """Fails at one event of the last step or after it, as a tracker without a network does."""

    def __init__(self, event, error=RuntimeError):
        def fail(args, state, control, **kwargs):
            if state.global_step == state.max_steps:
                raise error(f"no network at {event}")

        setattr(self, event, fail)


def saved_is(trainer) -> bool:
    saved = load_file(Path(trainer.args.output_dir) / "model.safetensors")
    parameters = dict(trainer.model.named_parameters())
    return len(saved) > 5 and all(torch.equal(saved[name], parameters[name]) for name in saved)


@pytest.mark.parametrize("event", ["on_train_end", "on_log", "on_step_end", "on_epoch_end", "on_evaluate"])
def test_a_callback_that_fails_after_the_last_step(event, build, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    trainer = build(Failing(event), eval_strategy="steps" if event == "on_evaluate" else "no", eval_steps=2)
    train_and_save(trainer)
    assert trainer.state.global_step == 2
    assert saved_is(trainer)
    assert "what came after the last step failed" in caplog.text and f"no network at {event}" in caplog.text


def test_the_model_is_there_before_trackers_finish(build, tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            seen.append((tmp_path / "run" / "model.safetensors").exists())

    trainer = build(Tracker())
    before = list(trainer.callback_handler.callbacks)
    train_and_save(trainer)
    assert seen == [True]
    assert trainer.callback_handler.callbacks == before


@pytest.mark.parametrize("event", ["on_train_end", "on_log"])
def test_an_interruption_after_the_last_step_saves_and_interrupts(event, build):
    trainer = build(Failing(event, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_and_save(trainer)
    assert saved_is(trainer)


def test_a_failure_within_the_training_is_raised(build, tmp_path):
    class Early(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("early")

    with pytest.raises(RuntimeError, match="early"):
        train_and_save(build(Early()))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_that_a_callback_ends_early_is_saved(build):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

        def on_train_end(self, args, state, control, **kwargs):
            raise RuntimeError("late")

    trainer = build(Stop())
    train_and_save(trainer)
    assert trainer.state.global_step == 1
    assert saved_is(trainer)


def test_an_output_directory_that_was_removed(build, tmp_path):
    class Remove(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    trainer = build(Remove())
    train_and_save(trainer)
    assert saved_is(trainer)


def test_a_model_that_cannot_be_saved_is_an_error(build, tmp_path):
    class Block(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            (tmp_path / "run").write_text("a file")

    with pytest.raises(OSError):
        train_and_save(build(Block()))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_rewards_that_are_not_finite(value, build, tmp_path):
    """In the log of a real run, and in its picture."""

    def reward(completions, **kwargs):
        return [value] * len(completions)

    trainer = build(reward=[fixed_reward, reward], reward_weights=[1.0, 0.0] if math.isnan(value) else [1.0, 1.0])
    train_and_save(trainer)
    assert (tmp_path / "run" / "model.safetensors").exists()
    trainer.save_state()
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    if math.isinf(value):
        assert any(entry.get("reward") is not None and not math.isfinite(entry["reward"]) for entry in history)
    plot_training(history, tmp_path / "run" / "training.png")
    assert (tmp_path / "run" / "training.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "values",
    [[math.nan], [math.inf], [0.0, -math.inf, 1.0], [math.nan] * 40, [1e308, -1e308], [3e38, 1.0], [0.0]],
    ids=str,
)
def test_curves_with_gaps(values, tmp_path):
    history = [
        {"step": step, "reward": value, "forking/selected_fraction": value, "entropy": 0.5}
        for step, value in enumerate(values)
    ]
    plot_training(history, tmp_path / "a.svg")
    picture = (tmp_path / "a.svg").read_text()
    left_out = sum(not math.isfinite(value) or abs(value) > 1e300 for value in values)
    notes = picture.count(f"{left_out} of {len(values)} values not finite")
    assert notes == (2 if left_out else 0)  # of reward and fraction, not of entropy


def test_what_a_finished_run_can_do_without(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    assert attempt("adding", lambda: 1 + 1) == 2 and not caplog.text
    assert attempt("drawing a.png", lambda: plot_training([], tmp_path / "gone" / "a.png")) is None
    assert "The model is saved, but drawing a.png failed (FileNotFoundError: " in caplog.text
    (tmp_path / "a.png").touch()
    assert files_of(tmp_path, "b.json", "a.png") == f"Model and a.png are in {tmp_path}."
    (tmp_path / "b.json").touch()
    assert files_of(tmp_path, "b.json", "a.png") == f"Model, b.json and a.png are in {tmp_path}."
    assert files_of(tmp_path / "gone", "a.png") == f"Model is in {tmp_path / 'gone'}."
