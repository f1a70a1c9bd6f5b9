"""The console output of `log_completions`, with the tokens that are trained on marked in colour."""

import random
from collections import deque

import torch
from accelerate.utils import gather_object

from ._trl import TrainerMixin, completions_printer
from .report import completions_table


class MarkedCompletionsMixin(TrainerMixin):
    """
    What [`ForkingGRPOTrainer`] changes in `log_completions=True`: in TRL's table on the console, the tokens a
    completion is trained on are marked, where they are known before the update (the scopes `batch` and `sequence`).
    """

    def _init_marked_completions(self):
        # In step with TRL's own deques of what it logs: one entry per row of all processes.
        self._marked_completions = deque(maxlen=self.args.generation_batch_size)

    def _mark_completions(self, output: dict, selected: torch.Tensor | None) -> None:
        """To be called with every batch that TRL has generated, on all processes."""
        if not self.log_completions:
            return
        rows: list[tuple | None] = [None] * len(output["completion_ids"])
        if selected is not None:
            masks = output["completion_mask"].bool()
            rows = [
                (ids[mask].tolist(), (marks[mask] != 0).tolist())
                for ids, mask, marks in zip(output["completion_ids"], masks, selected, strict=True)
            ]
        self._marked_completions.extend(gather_object(rows))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        with completions_printer(self._print_completions):
            super().log(logs, start_time)

    def _print_completions(self, prompts, completions, rewards, advantages, step, num_samples=None, extra=None):
        from rich.console import Console  # TRL calls this only where rich is installed

        rows = range(len(prompts))
        if num_samples is not None and num_samples < len(rows):
            rows = random.sample(rows, max(num_samples, 0))  # as TRL draws them
        columns = {name: list(values) for name, values in rewards.items()}
        columns |= {"Advantage": list(advantages)} if advantages is not None else {}
        columns |= {name: list(values) for name, values in (extra or {}).items()}
        table = completions_table(
            self.processing_class,
            [prompts[row] for row in rows],
            [self._marked_completions[row] or completions[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in columns.items()},
            title=f"Step {step}{': tokens trained on are marked' if any(self._marked_completions) else ''}",
        )
        if rows:
            Console().print(table)
