"""What is logged of the run itself, and the warnings that would have a person stop it."""

import io
import logging
import sys
import time
import types

import pytest
from peft import LoraConfig

import trl_fork.trainer.telemetry as telemetry
from tests.conftest import FixedRollouts, SpyTrainer, build_model, train
from trl_fork.trainer.telemetry import Stopwatch, SummaryCallback, summary_line


def test_of_nested_activities_the_inner_one_counts():
    watch = Stopwatch()
    started = time.perf_counter()
    with watch.measure("outer"):
        time.sleep(0.02)
        with watch.measure("inner"):
            time.sleep(0.05)
        time.sleep(0.02)
    total = time.perf_counter() - started
    assert watch.seconds["inner"] >= 0.05
    assert watch.seconds["outer"] >= 0.04
    assert sum(watch.seconds.values()) <= total


class Slow(SpyTrainer):
    """A known time in every activity, beside the little that a tiny model takes."""

    def _calculate_rewards(self, *args):
        with self._stopwatch.measure("rewards"):
            time.sleep(0.2)
        return super()._calculate_rewards(*args)


def test_times_add_up_to_the_step(tokenizer, tmp_path):
    class SlowRollouts(FixedRollouts):
        def __call__(self, prompts, trainer):
            time.sleep(0.3)
            return super().__call__(prompts, trainer)

    started = time.perf_counter()
    trainer = train(
        build_model(tokenizer), tokenizer, SlowRollouts(tokenizer), tmp_path, Slow, max_steps=5, logging_steps=2
    )
    wall = time.perf_counter() - started
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert entry["time/generation"] >= 0.3
        assert entry["time/rewards"] >= 0.2
        assert entry["time/scoring"] > 0
        assert entry["time/training"] > 0
    names = [f"time/{name}" for name in (*telemetry.ACTIVITIES, "other")]
    assert sum(2 * entry[name] for entry in logs for name in names) < wall
    for entry, steps in zip(logs, (3, 1), strict=True):
        assert entry["time/remaining"] == pytest.approx(steps * sum(entry[name] for name in names), rel=1e-3)
    tokens = sum(entry["tokens_per_second"] * 2 * sum(entry[name] for name in names) for entry in logs)
    assert tokens == pytest.approx(logs[1]["num_tokens"], rel=1e-3)


def watch(tokenizer, tmp_path, caplog, monkeypatch, entropies, **settings):
    """Warnings of a run whose logged entropies are the given ones."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)

    class Told(SpyTrainer):
        def log(self, logs, start_time=None):
            step = self.state.global_step - 1
            if "loss" in logs:
                self._metrics["train"]["entropy"] = [entropies[step]]
            super().log(logs, start_time)

    with caplog.at_level(logging.WARNING):
        train(
            build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Told, max_steps=len(entropies),
            learning_rate=0.0, **settings,
        )  # fmt: skip
    return [record.message for record in caplog.records if record.message.startswith("Step ")]


@pytest.mark.parametrize(
    ("entropies", "word"),
    [
        ([0.6, 0.1, 0.029, 0.02], "collapsed, from 0.600 nats at the first log to 0.029"),
        ([0.6, 2.3, 2.5, 9.0], "exploded, from 0.600 nats at the first log to 2.500"),
    ],
)
@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({}, "epsilon_high"),
        (
            {
                "objective": "trajectory_balance", "beta": 0.1, "loss_denominator": "all",
                "peft_config": LoraConfig(target_modules="all-linear"),
            },
            "higher beta",
        ),
    ],
    ids=["policy gradient", "trajectory balance"],
)  # fmt: skip
def test_entropy_that_leaves_its_range_is_told_once(
    settings, remedy, entropies, word, tokenizer, tmp_path, caplog, monkeypatch
):
    (message,) = watch(tokenizer, tmp_path, caplog, monkeypatch, entropies=entropies, **settings)
    assert message.startswith("Step 3: ") and word in message and "Resume from an earlier checkpoint" in message
    assert remedy in message and ("epsilon_high" in message) == (not settings)


def test_healthy_entropy_is_not_talked_about(tokenizer, tmp_path, caplog, monkeypatch):
    assert watch(tokenizer, tmp_path, caplog, monkeypatch, entropies=[0.3, 0.8, 1.1, 0.2, 0.05]) == []


def test_loss_that_is_no_number_is_told_once(tokenizer, tmp_path, caplog, monkeypatch):
    """transformers leaves such losses out of the log by default (`logging_nan_inf_filter`): the log shows 0.0."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)

    class Broken(SpyTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.state.global_step == 1 else loss

    with caplog.at_level(logging.WARNING):
        trainer = train(
            build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Broken, max_steps=2,
            learning_rate=0.0,
        )  # fmt: skip
    assert trainer.state.log_history[1]["loss"] == 0.0
    (message,) = [r.message for r in caplog.records if r.message.startswith("Step ")]
    assert message.startswith("Step 2: the loss or its gradient is not a number.") and "learning_rate" in message


def test_evaluation_is_no_part_of_generation(tokenizer, tmp_path):
    class SlowRollouts(FixedRollouts):
        def __call__(self, prompts, trainer):
            time.sleep(0.0 if trainer.model.training else 0.5)
            return super().__call__(prompts, trainer)

    rollouts = SlowRollouts(tokenizer)
    trainer = train(
        build_model(tokenizer), tokenizer, rollouts, tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1,
        eval_dataset=rollouts.dataset, per_device_eval_batch_size=32, eval_on_start=False,
    )  # fmt: skip
    second = [entry for entry in trainer.state.log_history if "loss" in entry][1]
    assert second["time/generation"] < 0.4 < 0.5 < second["time/other"]


def test_what_remains_is_estimated_over_whole_generation_batches(tokenizer, tmp_path):
    """Four steps on each batch: between two generations the rate is not zero, nor the rest fast."""

    class SlowRollouts(FixedRollouts):
        def __call__(self, prompts, trainer):
            time.sleep(0.8)
            return super().__call__(prompts, trainer)

    trainer = train(
        build_model(tokenizer), tokenizer, SlowRollouts(tokenizer), tmp_path, max_steps=12, steps_per_generation=4,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, learning_rate=0.0,
    )  # fmt: skip
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 for entry in logs)
    assert logs[7]["time/remaining"] > 0.8, "the four steps to come have a generation"


def test_summary_line():
    logs = {
        "loss": 0.1, "reward": 0.41, "rewards/accuracy_reward/mean": 0.43, "rewards/soft/mean": -0.02,
        "frac_reward_zero_std": 0.25, "completions/mean_length": 231.4, "forking/selected_fraction": 0.2,
        "forking/entropy_threshold": 0.672, "entropy": 0.317,
        "time/generation": 8.0, "time/waiting": 0.1, "time/rewards": 0.0, "time/scoring": 1.0,
        "time/training": 3.0, "time/other": 0.4, "time/remaining": 5400.0, "tokens_per_second": 3210.4,
    }  # fmt: skip
    assert summary_line(logs, 20, 452) == (
        "step 20/452, 1.5 h left  reward 0.410  accuracy_reward 0.430  soft -0.020  75% of groups informative  "
        "231 tokens long  mean entropy 0.32 nats  trained on 20%, entropy from 0.67 nats  "
        "12.5 s/step (generation 64%, scoring 8%, training 24%, other 3%), 3,210 tokens/s"
    )
    # The effective fraction of a selection is the fraction selected: it is not said twice.
    said = {"trained on 20%, entropy from 0.67 nats": {"credit/effective_fraction": 0.2}}
    said["trained on 20%, effectively 8%, entropy from 0.67 nats"] = {"credit/effective_fraction": 0.08}
    said["trained on 20%, entropy from 0.67 nats  fraction 0.258  strength 0.5"] = {
        "credit/fraction": 0.2575, "credit/strength": 0.5, "credit/effective_fraction": 0.20001,
    }  # fmt: skip
    said["trained on 20%, entropy from 0.67 nats  residual 1.23 nats"] = {"balance/residual_abs": 1.2345}
    for words, more in said.items():
        assert f"  {words}  12.5 s/step" in summary_line(logs | more, 20, 452)
    assert summary_line(logs | {"time/remaining": 0.0}, 452, 452).startswith("step 452/452  reward")
    assert summary_line({"train_runtime": 3.0}, 452, 452) == ""
    assert summary_line({"eval_reward": 0.5, "eval_rewards/accuracy_reward/mean": 0.5}, 20, 452) == (
        "step 20/452  evaluation: reward 0.500  accuracy_reward 0.500"
    )


@pytest.mark.parametrize(("is_terminal", "disable_tqdm"), [(True, False), (False, False), (True, True)])
def test_lines_without_a_bar_where_there_is_no_terminal(is_terminal, disable_tqdm, monkeypatch):
    """A file or a pipe gets each line at once, and no bar: that is drawn anew at every step."""
    lines, bars = io.StringIO(), io.StringIO()
    flushed: list[str] = []
    lines.flush = lambda: flushed.append(lines.getvalue())  # type: ignore[method-assign]
    bars.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", lines)
    monkeypatch.setattr(sys, "stderr", bars)
    args = types.SimpleNamespace(disable_tqdm=disable_tqdm)
    state = types.SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=7)
    callback = SummaryCallback()
    callback.on_train_begin(args, state, None)
    state.global_step = 3
    callback.on_step_end(args, state, None)
    callback.on_log(args, state, None, logs={"loss": 0.5, "reward": 0.25, "entropy": 1.5})
    for _ in range(2):
        callback.on_prediction_step(args, state, None, eval_dataloader=[1, 2])
    callback.on_evaluate(args, state, None)
    callback.on_train_end(args, state, None)
    assert lines.getvalue() == "step 3/7  reward 0.250  mean entropy 1.50 nats\n" and flushed[-1] == lines.getvalue()
    assert ("/7 [" in bars.getvalue()) == ("/2 [" in bars.getvalue()) == (is_terminal and not disable_tqdm)
    assert bars.getvalue() or not is_terminal or disable_tqdm


def test_own_generation_is_generation(tokenizer, tmp_path):
    from tests.trainer.test_checkpoints import run

    trainer = run(tokenizer, tmp_path, max_steps=1, save_strategy="no")
    log = trainer.state.log_history[0]
    assert 0 < log["time/waiting"] < log["time/generation"], "on one process only the decoding of completions"
