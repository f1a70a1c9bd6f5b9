"""
The table of completions: on the console the tokens that are trained on are marked in colour, and everywhere the
columns that reward functions add stand beside the completions they are of.
"""

import random
from collections import defaultdict, deque

import pyarrow as pa
import torch
from accelerate.utils import gather_object

from .._logging import logger
from ..report.marks import completions_table
from ._trl import TrainerMixin, completions_printer


class MarkedCompletionsMixin(TrainerMixin):
    """
    What [`ForkingGRPOTrainer`] changes in `log_completions=True`: in TRL's table on the console, the tokens a
    completion is trained on are marked, where they are known before the update (the scopes `batch` and `sequence`).
    """

    def _init_marked_completions(self):
        # In step with TRL's own deques of what it logs: one entry per row of all processes.
        self._marked_completions = deque(maxlen=self.args.generation_batch_size)
        self._told_of_columns = set()

    def _generate_and_score_completions(self, inputs):
        """
        TRL's columns of `log_extra` keep what they have where a generation adds nothing to them, and stand beside the
        completions of later ones. Here a generation adds one value per row to every column: `None` where it has none.
        """
        prompts, extra = self._logs["prompt"], self._logs["extra"]
        self._logs["prompt"] = deque(maxlen=prompts.maxlen)
        self._logs["extra"] = defaultdict(lambda: deque(maxlen=prompts.maxlen))
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            added, columns = self._logs["prompt"], self._logs["extra"]
            for name in {*extra, *columns}:
                if name not in extra:
                    extra[name].extend([None] * len(prompts))
                values = columns.get(name, ())
                extra[name].extend(values if len(values) == len(added) else [None] * len(added))
                _make_texts_of_what_no_table_holds(extra[name])
            prompts.extend(added)
            self._logs["prompt"], self._logs["extra"] = prompts, extra

    def _calculate_rewards(self, inputs, *arguments):
        rewards = super()._calculate_rewards(inputs, *arguments)
        self._pending_extra_logs.update(self._take_extra_logs(len(inputs)))
        return rewards

    def _take_extra_logs(self, num_rows: int) -> dict[str, list]:
        """The columns that reward functions have logged for this rank's rows, and no others."""
        logged = dict(self._pending_extra_logs)
        self._pending_extra_logs.clear()
        for name, values in list(logged.items()):
            if len(values) != num_rows:
                del logged[name]
                if name not in self._told_of_columns:
                    self._told_of_columns.add(name)
                    logger.warning(
                        f"log_extra({name!r}, ...) got {len(values)} values for {num_rows} completions on process "
                        f"{self.accelerator.process_index}: nobody knows whose they are, and the column stays empty. "
                        "Log one value per completion, and each column from one reward function."
                    )
        return logged

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


def _make_texts_of_what_no_table_holds(values: deque) -> None:
    """
    Turn the values of a column into texts where they are of several types, or of one that Arrow does not know: TRL
    writes the table as Parquet, and would end the run. `None` stays.
    """
    try:
        pa.array(values)
    except pa.ArrowException:
        texts = [None if value is None else str(value) for value in values]
        values.clear()
        values.extend(texts)
