"""What credit rules see of a generation batch, and the weights that they give it."""

from dataclasses import replace

import torch

from ..credit import Signals, random_priorities
from ..ranks import Ranks
from ._trl import TrainerMixin
from .batching import loss_mask
from .call_names import CallNames
from .context import PolicyScores, WithContext
from .contrast import CONTRAST_LOG_PROBS
from .savings import Savings
from .token_credit import TokenCredit, naming_the_step


# What credit rules add to TRL's batches. Those with a column per token are in `batch.LAYOUT`.
WEIGHTS = "credit_weights"  # (batch, seq) float: multiplies the policy term
PRIORITIES = "credit_priorities"  # (batch, seq) long: for random draws from pools that do not exist yet
SCALE = "credit_scale"  # scalar: N / W, where the pools are micro-batches
PROGRESS = "credit_progress"  # scalar: share of the training that was done when the batch was generated, likewise


class BatchCreditMixin(WithContext, TrainerMixin):
    """Gives the trainer the signals of its batches, and the weights of those that hold whole pools."""

    token_credit: TokenCredit | None = None  # `None`: every token has weight 1, GRPO's objective
    _ranks: Ranks
    _savings: Savings
    _generations: CallNames

    def _priorities(self, mode, output):
        rows, columns = output["completion_ids"].shape
        return random_priorities(
            self.args.seed,
            self._generations.next(mode, self.state.global_step),
            self.accelerator.process_index * rows,
            (rows, columns),
            device=output["completion_ids"].device,
        )

    def _batch_weights(self, output, scores: PolicyScores | None):
        credit, mask = self.token_credit, loss_mask(output)
        signals = replace(self._signals(output, mask), groups=self._groups(len(mask), self.num_generations))
        if scores is not None:
            signals = replace(signals, entropies=scores.entropies, log_probs=scores.log_probs)
        with naming_the_step(self.state.global_step):
            weights = credit.batch_weights(signals)
        metrics = credit.metrics(signals, weights)
        self._record("train", metrics)
        if metrics["forking/selected_fraction"] == 0:
            self._warn_of_nothing_selected()
        elif metrics.get("credit/span_found") == 0:
            self._warn_of_nothing_found()
        if scores is not None:
            self._record("train", credit.entropy_metrics(scores.entropies, mask, weights))
            if self._savings.partial_forward:  # replaces the average over the tokens that the training pass scores
                sums = self._ranks.sum(torch.stack([(scores.entropies * mask).sum(), mask.sum()]))
                self._record("train", {"entropy": (sums[0] / sums[1].clamp(min=1)).item()})
        return weights

    def _warn_of_nothing_selected(self):
        if self.accelerator.is_main_process:
            self._warn_once(
                "nothing selected",
                f"Step {self.state.global_step}: token_credit gives no token of the generation batch a weight "
                f"(rules {self.token_credit.chain.describe()}), so that nothing is learned from it, here and wherever "
                "forking/selected_fraction is 0. Look at what the rules match, such as a pattern, in a completion "
                "(log_completions: true).",
            )

    def _warn_of_nothing_found(self):
        if self.accelerator.is_main_process:
            self._warn_once(
                "nothing found",
                f"Step {self.state.global_step}: the pattern of token_credit matches in no completion of the "
                f"generation batch (rules {self.token_credit.chain.describe()}), so that all of their tokens are "
                "trained on, here and wherever credit/span_found is 0. Look at what it has to match in a completion "
                "(log_completions: true), or set missing: drop.",
            )

    def _signals(self, batch, mask) -> Signals:
        """Signals of a batch that need no pass of the model."""
        return Signals(
            mask,
            completion_ids=batch["completion_ids"],
            priorities=batch.get(PRIORITIES),
            advantages=batch["advantages"],
            progress=batch.get(PROGRESS, self._training_progress),
            tokenizer=self._tokenizer,
            contrast_log_probs=batch.get(CONTRAST_LOG_PROBS),
        )

    def _groups(self, num_rows: int, size: int) -> torch.Tensor:
        """Number of the group of each row of this process, in the order of generation; groups may span processes."""
        first = self.accelerator.process_index * num_rows
        return torch.arange(first, first + num_rows, device=self.accelerator.device) // size

    @property
    def _training_progress(self) -> float:
        steps = self.state.max_steps
        return min(self.state.global_step / steps, 1.0) if steps > 0 else 0.0

    def _record(self, mode, metrics):
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
