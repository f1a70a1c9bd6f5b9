"""Where the time of an optimizer step goes: generation, rewards, scoring, training, and the rest."""

import statistics
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

from .instruments import Clock
from .whole_step_table import PHASES, WHOLE


class Phases(TrainerCallback):
    """
    Seconds of the phases of each optimizer step, by the clock on the wall and of the processor.

    A phase inside another is counted once, as its own. `whole` is from the start of a step to the end of its update,
    and `other` what no phase has claimed.
    """

    def __init__(self, device):
        self.now = Clock(device).now
        self.steps, self.open, self.current = [], [], {}

    @contextmanager
    def __call__(self, name):
        start = self.now()
        self.open.append((0.0, 0.0))
        try:
            yield
        finally:
            elapsed = _minus(self.now(), start)
            inside = self.open.pop()
            self.current[name] = _plus(self.current.get(name, (0.0, 0.0)), _minus(elapsed, inside))
            if self.open:
                self.open[-1] = _plus(self.open[-1], elapsed)

    def on_step_begin(self, args=None, state=None, control=None, **kwargs):
        self.current, self.start = {}, self.now()

    def on_step_end(self, args=None, state=None, control=None, **kwargs):
        whole = _minus(self.now(), self.start)
        step = {name: self.current.get(name, (0.0, 0.0)) for name in PHASES}
        claimed = (sum(step[name][clock] for name in PHASES[:-1]) for clock in (0, 1))
        step["other"] = _minus(whole, tuple(claimed))
        self.steps.append({**step, WHOLE: whole})

    def medians(self, warm_up):
        """Medians of the steps after the first `warm_up`: `seconds` and `processor_seconds`, by phase."""
        measured = self.steps[warm_up:]
        return {
            clock: {name: statistics.median(step[name][i] for step in measured) for name in measured[0]}
            for i, clock in enumerate(("seconds", "processor_seconds"))
        }


def _plus(a, b):
    return a[0] + b[0], a[1] + b[1]


def _minus(a, b):
    return a[0] - b[0], a[1] - b[1]


def watched(phases, before_generation):
    """
    What makes a trainer class keep the seconds of its phases.

    Args:
        phases ([`Phases`]): Where they are kept; a callback of the trainer too.
        before_generation (`Callable`): Called before each generation batch, without arguments.
    """

    def wrap(base):
        class Watched(base):
            def training_step(self, *args, **kwargs):
                with phases("training"):
                    return super().training_step(*args, **kwargs)

            def _prepare_inputs(self, *args, **kwargs):  # called in a training step: rollouts, credit, arrangement
                with phases("other"):
                    return super()._prepare_inputs(*args, **kwargs)

            def _generate_single_turn(self, *args, **kwargs):
                before_generation()
                with phases("generation"):
                    return super()._generate_single_turn(*args, **kwargs)

            def _calculate_rewards(self, *args, **kwargs):
                with phases("rewards"):
                    return super()._calculate_rewards(*args, **kwargs)

            def _get_per_token_logps_and_entropies(self, *args, **kwargs):
                if torch.is_grad_enabled():
                    return super()._get_per_token_logps_and_entropies(*args, **kwargs)
                with phases("scoring"):
                    return super()._get_per_token_logps_and_entropies(*args, **kwargs)

        Watched.__name__ = base.__name__
        return Watched

    return wrap
