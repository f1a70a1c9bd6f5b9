"""Forking tokens while a model trains: a page every few steps, and a histogram and a table for trackers."""

import math
import shutil
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from transformers import ProcessorMixin, TrainerCallback
from transformers.integrations import TensorBoardCallback

from .._files import replacing
from .._logging import logger
from ..credit import Constant, Schedule, select_tokens
from ..ranks import Ranks
from ..report.marks import token_texts
from ..report.page import write_report_page
from ..report.page_responses import score_response
from ._trl import evaluation_mode
from .batch import GenerationBatch
from .forking_grpo_config import ForkingGRPOConfig
from .metrics import weighted_sum


_NUM_BINS = 128  # bins of the entropy histogram, between 0 and the largest possible entropy
_NUM_TOKENS = 20  # rows of the table of the most frequent forking tokens


class GenerationCallback(TrainerCallback):
    """A [`~transformers.TrainerCallback`] that also gets the generation batches of [`ForkingGRPOTrainer`]."""

    def on_generation(self, trainer, batch: GenerationBatch) -> None:
        """
        Called on every process after a batch to train on is generated and scored, before the first update on it.

        Args:
            trainer ([`ForkingGRPOTrainer`]):
                The trainer; its model is the policy that wrote the batch.
            batch ([`~trainer.batch.GenerationBatch`]):
                The rows of this process.
        """

    def on_evaluation_generation(self, trainer, batch: GenerationBatch) -> None:
        """As `on_generation`, for a batch of an evaluation."""


class ForkReportCallback(GenerationCallback):
    """
    Write a page with the forking tokens of a few responses, and log the entropies of the whole batch, every N steps.

    The page is `step-N.html`, and the newest one also `latest.html`. Trackers that are on (TensorBoard, trackio, W&B)
    get a histogram of the token entropies and a table of the most frequent forking tokens, over all processes.

    The report shows the first batch generated at or after every N-th step, before the first update on it. Every
    process runs one forward pass per response over the same responses, because models sharded over processes need
    that; only the main process writes. If the selection does not need the entropies of the whole batch
    (`entropy_threshold_scope` of a micro-batch, `token_selection="random"`), the callback scores them.
    The forking set shown is always that of the whole batch; in a run on all tokens it is the top 20 %. Where a rule
    gives weights other than 0 and 1, the page shows these, too. Random numbers and gradients are not touched.

    Args:
        every_n_steps (`int`, *optional*, defaults to `50`):
            Optimizer steps between two reports.
        num_responses (`int`, *optional*, defaults to `8`):
            Responses on a page, spread evenly over the rows of the main process.
        output_dir (`str` or `Path`, *optional*):
            Folder of the pages; by default `fork_report` in the run's `output_dir`.
        correctness_reward (`str`, *optional*, defaults to `"accuracy_reward"`):
            Name of the reward function that gives 1 to right responses and less to others. In a run without it, the
            page does not say which responses are right.
        max_response_tokens (`int`, *optional*, defaults to `2048`):
            Tokens after which a response is cut on the page: all of its logits are in memory at once.

    Example:
        ```python
        from trl_fork.trainer import ForkReportCallback

        callbacks = [ForkReportCallback(every_n_steps=20)]  # of a ForkingGRPOTrainer
        ```
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        num_responses: int = 8,
        output_dir: str | Path | None = None,
        *,
        correctness_reward: str = "accuracy_reward",
        max_response_tokens: int = 2048,
    ):
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("num_responses", num_responses),
            ("max_response_tokens", max_response_tokens),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}. For no report, leave the callback out.")
        self.every_n_steps = every_n_steps
        self.num_responses = num_responses
        self.output_dir = output_dir
        self.correctness_reward = correctness_reward
        self.max_response_tokens = max_response_tokens
        self._last_step = None

    def on_train_begin(self, args, state, control, processing_class=None, **kwargs):
        if not isinstance(args, ForkingGRPOConfig):
            raise TypeError(f"ForkReportCallback needs a ForkingGRPOTrainer, got one with {type(args).__name__}.")
        if isinstance(processing_class, ProcessorMixin):
            raise NotImplementedError("ForkReportCallback does not show image inputs: leave it out of this run.")
        self._last_step = None

    def on_generation(self, trainer, batch):
        step = trainer.state.global_step
        if self._last_step is not None and step // self.every_n_steps == self._last_step // self.every_n_steps:
            return
        self._last_step = step
        if batch.entropies is None:
            batch = replace(batch, entropies=trainer.score(batch).entropies)
        forks = forks_of_batch(trainer, batch)
        responses = self._responses(trainer, batch)
        if not trainer.accelerator.is_main_process:
            return
        self._write_page(trainer, forks, responses)
        log_forks(trainer, forks)

    def _responses(self, trainer, batch) -> list:
        """The responses shown, the same on every process: if one left out a forward pass, the others would hang."""
        drafts: list = [None]
        if trainer.accelerator.is_main_process:
            drafts = [self._drafts(trainer, batch)]
        with evaluation_mode(trainer.model):
            return [
                score_response(trainer.model, trainer.processing_class, temperature=trainer.args.temperature, **draft)
                for draft in broadcast_object_list(drafts)[0]
            ]

    def _drafts(self, trainer, batch) -> list[dict]:
        mask, entropies, rewards = batch.mask, batch.entropies, batch.rewards
        soft = batch.weights is not None and not trainer.token_credit.chain.selects
        rows = mask.any(1).nonzero().flatten().tolist()
        count = min(self.num_responses, len(rows))
        total = weighted_sum(rewards, trainer.reward_weights).tolist()
        right = [None] * len(mask)
        if self.correctness_reward in trainer.reward_func_names:
            column = rewards[:, trainer.reward_func_names.index(self.correctness_reward)].tolist()
            right = [None if math.isnan(value) else value >= 1 for value in column]
        drafts = []
        for row in (rows[i * len(rows) // count] for i in range(count)):
            prompt = batch.prompt_mask[row].bool()
            completion = batch.completion_mask[row].bool()
            shown = slice(self.max_response_tokens)
            drafts.append(
                {
                    "prompt_ids": batch.prompt_ids[row][prompt].tolist(),
                    "completion_ids": batch.completion_ids[row][completion][shown].tolist(),
                    "entropies": entropies[row][completion][shown].tolist(),
                    "mask": mask[row][completion][shown].bool().tolist(),
                    "correct": right[row],
                    "label": f"row {row}, reward {total[row]:.3g}",
                    "weights": batch.weights[row][completion][shown].tolist() if soft else None,
                }
            )
        return drafts

    def _write_page(self, trainer, forks, responses):
        args, credit, step = trainer.args, trainer.token_credit, trainer.state.global_step
        folder = Path(self.output_dir or Path(args.output_dir) / "fork_report")
        page, latest = folder / f"step-{step}.html", folder / "latest.html"
        summary = {
            "Responses shown": f"{len(responses)} of {args.generation_batch_size}",
            "Forking tokens of the batch": f"{sum(forks.forks):,} of {sum(forks.occurrences):,}",
            "Threshold of the batch": f"{forks.threshold:.3f} nats",
            "Trained on": "all tokens" if credit is None else credit.chain.in_words,
            **({} if credit is None else {"Pool": credit.pool_names}),
            "Most frequent forks": ", ".join(f"{row[0]!r} ({row[1]:,})" for row in forks.table[:8]),
        }
        try:
            write_report_page(
                page,
                responses,
                title=f"{Path(args.output_dir).name}: forks at step {step}",
                summary=summary,
                threshold=forks.threshold,
            )
            with replacing(latest) as unfinished:
                shutil.copyfile(page, unfinished)
        except OSError as error:  # a run does not need the page, so a full disk must not end it
            logger.warning(f"Step {step}: no fork report was written to {folder}: {error}")


@dataclass
class BatchForks:
    """
    Entropies and forking tokens of a generation batch, over all processes.

    Args:
        edges (`list[float]`): Bounds of the histogram's bins, in nats.
        counts (`list[int]`): Valid tokens in each bin.
        threshold (`float`): Smallest entropy in the forking set, in nats.
        forks, occurrences (`list[int]`): Counts by token id, in the forking set and in the batch.
        table (`list[tuple[str, int, int, float]]`): The most frequent forking tokens, the most frequent one first:
            text, times in the forking set, times in the batch, mean entropy in nats.
    """

    edges: list[float]
    counts: list[int]
    threshold: float
    forks: list[int]
    occurrences: list[int]
    table: list[tuple[str, int, int, float]]


def forks_of_batch(trainer, batch: GenerationBatch) -> BatchForks:
    """
    Count the forks of a generation batch whose entropies are known.

    Processes exchange counts only, by bin and by token id.
    """
    ranks = Ranks(trainer.accelerator)
    tokenizer = trainer.processing_class
    mask, entropies = batch.mask.bool(), batch.entropies.float()
    forking = select_tokens(entropies, mask, forking_fraction(trainer), ranks=ranks)
    infinity = entropies.new_tensor([float("inf")])
    threshold = ranks.gather(torch.cat([entropies[forking], infinity]).min()).min().item()

    size = max(trainer.model.config.get_text_config().vocab_size, len(tokenizer))
    ids = batch.completion_ids
    forks, occurrences = ranks.sum(
        torch.stack([torch.bincount(ids[forking], minlength=size), torch.bincount(ids[mask], minlength=size)])
    )
    sums = ranks.sum(torch.bincount(ids[mask], weights=entropies[mask], minlength=size).float())
    largest = math.log(size)
    counts = ranks.sum(torch.histc(entropies[mask].clamp(0, largest), _NUM_BINS, 0, largest).long())
    top = [token for token in forks.argsort(descending=True, stable=True)[:_NUM_TOKENS].tolist() if forks[token]]
    return BatchForks(
        edges=torch.linspace(0, largest, _NUM_BINS + 1).tolist(),
        counts=counts.tolist(),
        threshold=threshold,
        forks=forks.tolist(),
        occurrences=occurrences.tolist(),
        table=[
            (text, int(forks[token]), int(occurrences[token]), (sums[token] / occurrences[token]).item())
            for token, text in zip(top, token_texts(tokenizer, top), strict=True)
        ],
    )


def forking_fraction(trainer) -> float:
    """Fraction of tokens that is shown as forking: the run's if it is a constant, else the paper's."""
    rules = () if trainer.token_credit is None else trainer.token_credit.chain.rules
    found = (getattr(rule, "fraction", None) for rule in rules)
    fractions = [fraction for fraction in found if isinstance(fraction, (Constant, Schedule))]
    if len(fractions) == 1 and fractions[0].is_constant:
        return fractions[0](0.0)
    return ForkingGRPOConfig.top_entropy_quantile


def log_forks(trainer, forks: BatchForks) -> None:
    """
    Log a histogram of entropies and a table of forking tokens to the trackers of the run.

    TensorBoard is reached through its callback's writer, W&B and trackio through the run that their callbacks have
    opened, as in TRL and transformers.
    """
    args, step = trainer.args, trainer.state.global_step
    histogram, table = "forking/entropies", "forking/frequent_tokens"
    columns = ["token", "forking", "in the batch", "mean entropy"]
    rows = [[repr(token), *numbers] for token, *numbers in forks.table]
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            middles = [(low + high) / 2 for low, high in zip(forks.edges, forks.edges[1:], strict=False)]
            moments = [sum(c * m**power for c, m in zip(forks.counts, middles, strict=True)) for power in (1, 2)]
            callback.tb_writer.add_histogram_raw(
                histogram,
                min=forks.edges[0],
                max=forks.edges[-1],
                num=sum(forks.counts),
                sum=moments[0],
                sum_squares=moments[1],
                bucket_limits=forks.edges[1:],
                bucket_counts=forks.counts,
                global_step=step,
            )
            callback.tb_writer.add_text(table, _markdown(columns, rows), step)
    trackers = []
    if "wandb" in args.report_to:
        import wandb

        if wandb.run is not None:
            trackers.append(wandb)
    if "trackio" in args.report_to:
        import trackio

        trackers.append(trackio)
    for tracker in trackers:
        tracker.log(
            {
                histogram: tracker.Histogram(np_histogram=(forks.counts, forks.edges)),
                table: tracker.Table(columns=columns, data=rows),
                "train/global_step": step,
            }
        )


def _markdown(columns, rows) -> str:
    def cell(value):
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        # Neither HTML nor a table's own characters
        return "".join(f"&#{ord(c)};" if c in "|`*_[]\\~" else escape(c) for c in text)

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
