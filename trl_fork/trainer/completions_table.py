"""
The table of completions. The console marks the tokens that are trained on by weight, and the columns that reward
functions add keep to their completions.
"""

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial

import pyarrow as pa
from accelerate.utils import gather_object

from ..report.marks import STYLES_IN_WORDS, completions_table
from ._trl import TrainerMixin, completions_printer
from .callbacks import GenerationCallback
from .context import WithContext


class CompletionMarks(GenerationCallback):
    """
    TRL's table of completions, with the tokens marked that are trained on, by their weights where these differ.

    Tokens are marked if the selection is known before the update (the scopes `batch` and `sequence`).

    Args:
        size (`int`): Number of completions in TRL's own log.
    """

    def __init__(self, size: int):
        # In step with TRL's deques of what it logs: one entry per row of all processes.
        self._rows: deque[tuple | None] = deque(maxlen=size)

    def on_generation(self, trainer, batch):
        rows: list[tuple | None] = [None] * len(batch.completion_ids)
        if batch.weights is not None:
            masks = batch.completion_mask.bool()
            rows = [
                (ids[mask].tolist(), weights[mask].tolist())
                for ids, mask, weights in zip(batch.completion_ids, masks, batch.weights, strict=True)
            ]
        self._rows.extend(gather_object(rows))

    on_evaluation_generation = on_generation

    def print_table(self, tokenizer, prompts, completions, rewards, advantages, step, num_samples=None, extra=None):
        """In place of TRL's `print_prompt_completions_sample`, with its arguments after the tokenizer."""
        from rich.console import Console  # TRL calls this only where rich is installed

        rows: Sequence[int] = range(len(prompts))
        if num_samples is not None and num_samples < len(rows):
            rows = random.sample(rows, max(num_samples, 0))  # as TRL draws them
        columns = {name: list(values) for name, values in rewards.items()}
        columns |= {"Advantage": list(advantages)} if advantages is not None else {}
        columns |= {name: list(values) for name, values in (extra or {}).items()}
        weights = [weight for row in self._rows if row is not None for weight in row[1] if weight > 0]
        largest = max(weights, default=0.0)
        table = completions_table(
            tokenizer,
            [prompts[row] for row in rows],
            [self._rows[row] or completions[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in columns.items()},
            title=f"Step {step}{_legend(min(weights, default=0.0), largest) if any(self._rows) else ''}",
            largest=largest,
        )
        if rows:
            Console().print(table)


def _legend(smallest: float, largest: float) -> str:
    soft = smallest < largest * (1 - 1e-6)  # otherwise equal up to rounding
    return f": tokens trained on are marked{f' by weight, {STYLES_IN_WORDS}' if soft else ''}"


class CompletionsTableMixin(WithContext, TrainerMixin):
    """What [`ForkingGRPOTrainer`] changes in `log_completions=True`."""

    _marks: CompletionMarks | None = None

    def _generate_and_score_completions(self, inputs):
        """
        In TRL, a column of `log_extra` to which a generation adds nothing keeps its old values, beside later
        completions. Here a generation adds one value per row to every column, `None` where it has none.
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
                self._warn_once(
                    f"column {name}",
                    f"log_extra({name!r}, ...) got {len(values)} values for {num_rows} completions on process "
                    f"{self.accelerator.process_index}: they cannot be matched to completions, and the column stays "
                    "empty. Log one value per completion, and each column from one reward function.",
                )
        return logged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._marks is None:
            super().log(logs, start_time)
            return
        with completions_printer(partial(self._marks.print_table, self.processing_class)):
            super().log(logs, start_time)


def _make_texts_of_what_no_table_holds(values: deque) -> None:
    """
    Turn the values of a column into texts if they have several types, or one that Arrow does not support. TRL writes
    the table as Parquet, and the error would end the run. `None` stays.
    """
    try:
        pa.array(values)
    except pa.ArrowException:
        texts = [None if value is None else str(value) for value in values]
        values.clear()
        values.extend(texts)
