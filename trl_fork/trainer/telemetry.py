"""Time of a run by activity, the time that remains, and one line per log."""

import sys
import time
from collections import defaultdict, deque
from contextlib import contextmanager
from functools import cached_property, wraps

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..report.curves import EFFECTIVE, SELECTED, scheduled_parameters, weighs_softly
from ._trl import TrainerMixin


ACTIVITIES = ("generation", "waiting", "rewards", "scoring", "training")


class Stopwatch:
    """Seconds by activity. Nested time counts for the inner activity; `interrupted` is the one that an error ended."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.interrupted: str | None = None
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def measure(self, activity: str):
        self._switch()
        self._stack.append(activity)
        try:
            yield
        except BaseException:
            self.interrupted = self.interrupted or activity  # the innermost comes first
            raise
        finally:
            self._switch()
            self._stack.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


class TelemetryMixin(TrainerMixin):
    """
    Logs the time of a run, in seconds per optimizer step since the last log:
    `time/generation`, `time/waiting` (for the slowest process to finish generating), `time/rewards`, `time/scoring`
    (passes without gradient), `time/training` (forward and backward) and `time/other` (optimizer, checkpoints,
    evaluation); `tokens_per_second` (prompts and completions of all processes) and `time/remaining` (seconds for the
    rest), both over at least one generation batch.

    The times are those of the main process.
    """

    @cached_property
    def _stopwatch(self) -> Stopwatch:
        return Stopwatch()

    @cached_property
    def _progress(self) -> deque[tuple[float, int, int]]:  # (time, optimizer steps, tokens) at each log
        return deque()

    def train(self, *args, **kwargs):
        self._progress.clear()
        return super().train(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self._progress:
            self._progress.append(self._position())
        with self._stopwatch.measure("training"):
            return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(self, *args, **kwargs):
        stopwatch, self._stopwatch = self._stopwatch, Stopwatch()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._stopwatch = stopwatch

    def _generate(self, prompts):
        # Time outside the two methods that generate is waiting, as TRL gathers lengths next. A barrier would measure
        # it better, but hang if processes generate a different number of times, as they do with tools.
        with self._stopwatch.measure("waiting"):
            return super()._generate(prompts)

    def _generate_single_turn(self, *args, **kwargs):
        with self._stopwatch.measure("generation"):
            return super()._generate_single_turn(*args, **kwargs)

    def _tool_call_loop(self, *args, **kwargs):
        with self._stopwatch.measure("generation"):
            return super()._tool_call_loop(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        with self._stopwatch.measure("rewards"):
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self._stopwatch.measure("scoring"):
            output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if self.accelerator.device.type == "cuda":  # otherwise the time would count where the result is first read
                torch.cuda.synchronize()
            return output

    def log(self, logs, start_time=None):
        if "loss" in logs and self._progress:
            self._log_times()
        super().log(logs, start_time)

    def _position(self):
        return time.perf_counter(), self.state.global_step, self.state.num_input_tokens_seen

    def _log_times(self) -> None:
        now, before = self._position(), self._progress[-1]
        steps = now[1] - before[1]
        if steps <= 0:
            return
        measured, self._stopwatch.seconds = self._stopwatch.seconds, defaultdict(float)
        metrics = self._metrics["train"]
        for activity in ACTIVITIES:
            metrics[f"time/{activity}"] = [measured[activity] / steps]
        metrics["time/other"] = [max(now[0] - before[0] - sum(measured.values()), 0.0) / steps]
        # Nothing is generated between two generations, so a rate over less than a generation batch means nothing.
        period = self.args.steps_per_generation * self.num_iterations / self.args.gradient_accumulation_steps
        self._progress.append(now)
        while len(self._progress) > 2 and now[1] - self._progress[1][1] >= period:
            self._progress.popleft()
        seconds, steps, tokens = (new - old for new, old in zip(now, self._progress[0], strict=True))
        metrics["tokens_per_second"] = [tokens / seconds]
        metrics["time/remaining"] = [(self.state.max_steps - now[1]) * seconds / steps]


class SummaryCallback(ProgressCallback):
    """
    One line of the essentials per log, in place of the Trainer's whole dictionary, and a progress bar on a terminal.

    `trainer_state.json` and the trackers still get everything.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            # In a file, each step would add the whole bar once more. `None`: off where there is no terminal.
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=args.disable_tqdm or None)
        self.current_step = 0

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.training_bar is None or not self.training_bar.disable:
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs:
            line = summary_line(logs, state.global_step, state.max_steps)
            if line:
                self.training_bar.write(line)
                sys.stdout.flush()  # a pipe would keep it for hours


class LastLogCallback(TrainerCallback):
    """Log the last step of a run too, if it is no multiple of `logging_steps`: a short run would log nothing."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.logging_strategy == IntervalStrategy.STEPS and state.global_step >= state.max_steps:
            control.should_log = True


def timed_rollouts(rollout_func):
    """A rollout function whose time counts as generation."""

    @wraps(rollout_func)
    def timed(prompts, trainer):
        with trainer._stopwatch.measure("generation"):
            return rollout_func(prompts, trainer)

    return timed


def summary_line(logs: dict, step: int, max_steps: int) -> str:
    """
    The essentials of one log as a line of text; nothing for a log without any, such as the last one of a run.

    Args:
        logs (`dict`): Log of the trainer.
        step, max_steps (`int`): Optimizer steps done, and those of the whole run.
    """
    if "eval_reward" in logs:
        return f"step {step}/{max_steps}  evaluation: {_rewards(logs, 'eval_')}"
    if "loss" not in logs:
        return ""
    left = logs.get("time/remaining")
    parts = [f"step {step}/{max_steps}" + (f", {_duration(left)} left" if left else ""), _rewards(logs, "")]
    if logs.get("dynamic_sampling/informative_group_fraction") is not None:
        parts.append(f"{logs['dynamic_sampling/informative_group_fraction']:.0%} of groups informative")
    elif logs.get("frac_reward_zero_std") is not None:
        parts.append(f"{1 - logs['frac_reward_zero_std']:.0%} of groups informative")
    if logs.get("completions/mean_length") is not None:
        parts.append(f"{logs['completions/mean_length']:.0f} tokens long")
    if logs.get("entropy") is not None:
        parts.append(f"mean entropy {logs['entropy']:.2f} nats")
    if logs.get(SELECTED) is not None:
        threshold = logs.get("forking/entropy_threshold")
        entropy = "" if threshold is None else f", entropy from {threshold:.2f} nats"
        effect = f", effectively {logs[EFFECTIVE]:.0%}" if weighs_softly(logs) else ""
        parts.append(f"trained on {logs[SELECTED]:.0%}{effect}{entropy}")
    if logs.get("balance/residual_abs") is not None:
        parts.append(f"residual {logs['balance/residual_abs']:.3g} nats")
    # Logged under a schedule only
    parts += [f"{name} {logs[key]:.3g}" for key, name in scheduled_parameters(logs).items() if logs[key] is not None]
    times = {name: logs.get(f"time/{name}") for name in (*ACTIVITIES, "other")}
    total = sum(value for value in times.values() if value)
    if total:
        shares = ", ".join(f"{name} {value / total:.0%}" for name, value in times.items() if value / total >= 0.03)
        parts.append(f"{total:.1f} s/step ({shares}), {logs['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)


def _rewards(logs: dict, prefix: str) -> str:
    names = [name for name in logs if name.startswith(f"{prefix}rewards/") and name.endswith("/mean")]
    parts = [f"reward {logs[f'{prefix}reward']:.3f}"] if logs.get(f"{prefix}reward") is not None else []
    if len(names) > 1 or (names and "accuracy" in names[0]):
        parts += [f"{name.split('/')[-2]} {logs[name]:.3f}" for name in names if logs[name] is not None]
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if minutes >= 90:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
