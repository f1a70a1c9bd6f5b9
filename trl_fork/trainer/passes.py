"""The forward passes of a generation batch's updates: which rows they hold, and whether a limit of tokens can hold."""

import sys
from typing import Any

from .._logging import logger
from ..ranks import Ranks
from ._trl import TrainerMixin
from .arranging import arrange
from .batch import Padding
from .batch_credit import WEIGHTS
from .context import WithContext
from .savings import Savings
from .scoring_graph import ScoringGraph


ARRANGED = "rows_arranged"  # marks micro-batches that have been through `arrange`


class PassesMixin(WithContext, TrainerMixin):
    """Arranges the rows of a generation batch for its updates, within `max_tokens_per_forward`."""

    batch_layout: dict[str, Padding]
    _buffered_inputs: Any  # micro-batches of this process
    _ranks: Ranks
    _savings: Savings
    _graph: ScoringGraph | None

    def _arrange_rows(self) -> None:
        steps = self.args.steps_per_generation
        self._buffered_inputs, largest = arrange(
            self._buffered_inputs,
            min(self.args.gradient_accumulation_steps, steps),
            self._savings,
            WEIGHTS,
            self._ranks,
            self.batch_layout,
            # With a graph all rows are in one pass: it runs no model.
            max_tokens=sys.maxsize if self._graph is not None else self.args.max_tokens_per_forward,
            equal_counts=self.loss_type == "vespo" or self.args.importance_sampling_level == "sequence",
        )
        if self._graph is None:
            self._warn_of_large_passes(largest)
        self._buffered_inputs = [{**batch, ARRANGED: True} for batch in self._buffered_inputs]

    def _warn_of_idle_limit(self) -> None:
        limit, why = self.args.max_tokens_per_forward, self._savings.reasons
        if limit is not None and not (self._savings.packing and self._savings.ordering):
            logger.warning(
                f"max_tokens_per_forward={limit} does not limit the passes of training here: rows stay in their "
                f"micro-batches ({why.get('packing') or why.get('ordering')}). per_device_train_batch_size does."
            )

    def _warn_of_large_passes(self, largest: int) -> None:
        limit = self.args.max_tokens_per_forward
        if limit is not None and largest > limit and self.accelerator.is_main_process:
            args = self.args
            self._warn_once(
                "large passes",
                f"max_tokens_per_forward={limit}: step {self.state.global_step} has a pass of {largest} tokens. "
                f"An optimizer step makes at most {args.gradient_accumulation_steps} passes on a process "
                "(gradient_accumulation_steps), and a row is not divided. Set gradient_accumulation_steps and "
                f"steps_per_generation larger and per_device_train_batch_size ({args.per_device_train_batch_size}) "
                "smaller by the same factor: the gradient is the same. Or lower max_completion_length.",
            )
