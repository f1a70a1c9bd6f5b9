"""The trainer: a thin adapter between TRL's hooks and the functions of this package."""

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import ProcessorMixin
from trl import GRPOTrainer

from .._logging import logger
from ..generation.rotary import rescales_with_length
from ..ranks import Ranks
from ._trl import (
    check_attributes,
    check_hooks,
    let_weights_apply,
    old_logps_are_computed,
    peft_model_function,
    refuse_unsloth,
    truncates_sampling,
    warn_of_cast_weights,
    warn_of_truncated_sampling,
)
from .adapter_checks import add_adapter
from .arguments import checked_arguments
from .balance import BalanceMixin
from .batch import LAYOUT, GenerationBatch
from .batch_credit import PRIORITIES, PROGRESS, SCALE, WEIGHTS, BatchCreditMixin
from .batching import loss_mask, with_gradient
from .call_names import CallNames
from .callbacks import GenerationCallback
from .checkpoints import ResumableGenerationMixin
from .checks import check_processing_class, refuse_frozen_model
from .completions_table import CompletionMarks, CompletionsTableMixin
from .context import PolicyScores, context_of
from .contrast import CONTRAST_LOG_PROBS, ContrastMixin, check_contrast
from .dynamic_sampling import DynamicSamplingMixin
from .episodes import EpisodesMixin, counted_rollouts
from .forking_grpo_config import ForkingGRPOConfig
from .generating import CompactGenerationMixin
from .health import HealthCallback
from .lm_head import row_sparse_head
from .metrics import partial_metrics
from .out_of_memory import explain_out_of_memory
from .packed_attention import find_obstacle, packed_attention
from .passes import ARRANGED, PassesMixin
from .publishing import PublishingMixin
from .reward_checks import checked_reward
from .savings import ALL_TOKENS, plan_savings
from .scoring_graph import SCORED_ROW, ScoringGraphMixin
from .skipping import EmptyBatchError, SkipsEmptyBatches
from .telemetry import TelemetryMixin, timed_rollouts
from .token_credit import TokenCredit, naming_the_step


# What this trainer adds to TRL's batches, for `compute_loss` to take out again. Those with a column per token are in
# `batch.LAYOUT`.
_ADDED = (WEIGHTS, PRIORITIES, SCALE, PROGRESS, ARRANGED, CONTRAST_LOG_PROBS, SCORED_ROW)


class ForkingGRPOTrainer(
    PassesMixin,
    ScoringGraphMixin,
    PublishingMixin,
    ResumableGenerationMixin,
    EpisodesMixin,
    DynamicSamplingMixin,
    ContrastMixin,
    BalanceMixin,
    TelemetryMixin,
    CompletionsTableMixin,
    BatchCreditMixin,
    CompactGenerationMixin,
    GRPOTrainer,
    SkipsEmptyBatches,
):
    """
    [`~trl.GRPOTrainer`] with the policy gradient on the tokens that matter, by default the forking tokens only.

    The loss is TRL's own, for any `loss_type`. Its policy term is multiplied by weights: zero at tokens that are not
    selected, `N / K` at the `K` of `N` valid tokens that are, so that TRL's division by `N` becomes one by `K` (paper
    section 5.1, Eq. 6 of v2). The KL term, the entropy bonus and the auxiliary loss keep TRL's scale.
    [`ForkingGRPOConfig`] sets which tokens are selected, with what weight and over which pool. With
    `objective="trajectory_balance"` the loss is [`~objectives.TrajectoryBalance`], and the weights multiply gradients.

    With `top_entropy_quantile=1.0`, `epsilon_high=None`, `skip_inert_compute=False` and `compact_generation=False`
    this is `GRPOTrainer`, bit for bit.

    It takes every argument of [`~trl.GRPOTrainer`], in its order. Differences:

    Args:
        args ([`ForkingGRPOConfig`], *optional*):
            Configuration of this trainer. Defaults to the paper's selection.
        token_credit_func (`Callable`, *optional*):
            A credit rule of yours: it takes [`~credit.Signals`] and returns weights of at least 0, shape
            `(batch, seq)`, see [`~credit.UserRule`]. It stands in for `top_entropy_quantile` and
            `token_selection`.
        rollout_func (`RolloutFunc`, *optional*):
            TRL's argument. Rows and tokens that do not match are refused, see [`~trainer.checks.check_rollouts`].
            It finds the rows of the data set in `trainer.rollout_examples`. Two attributes of it are read:
            `rows_per_episode` and `check_run`, see [`~trainer.episodes.check_episodes`] and [`~teams.TeamRollout`].

    Raises:
        `TypeError`: if `args` is not a [`ForkingGRPOConfig`].
        `ValueError`: for a data set, tokenizer or model that cannot be trained with, see
            [`~trainer.checks.check_training_data`], [`~trainer.checks.check_tokenizer`] and
            [`~trainer.checks.refuse_frozen_model`]; for negative prompts that are missing or that no rule reads, see
            [`~trainer.contrast.check_contrast`]; for estimates of `log Z` that are missing, see
            [`~trainer.balance.check_balance`].
        `NotImplementedError`: for image-text models, and where unsloth has replaced TRL's loss.
        `ImportError`: if the installed TRL has moved the methods this trainer overrides.

    Example:
        ```python
        from datasets import load_dataset
        from trl.rewards import accuracy_reward
        from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer

        trainer = ForkingGRPOTrainer(
            model="Qwen/Qwen3-0.6B",
            reward_funcs=accuracy_reward,
            args=ForkingGRPOConfig(output_dir="Qwen3-0.6B-forking"),
            train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
        )
        trainer.train()
        ```
    """

    _tag_names = ["trl", "grpo", "forking-tokens"]
    # Padding of every tensor of a batch that has one column per token. A subclass that adds one names it here.
    batch_layout = LAYOUT
    _until_backward_ends: ExitStack | None = None  # contexts of a training step, its backward pass included

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: ForkingGRPOConfig | None = None,
        *positional,
        token_credit_func=None,
        **keywords,
    ):
        check_hooks()
        refuse_unsloth(type(self), model)
        call, args, chain, rows_per_episode = checked_arguments(
            self, model, reward_funcs, args, positional, keywords, token_credit_func
        )
        with peft_model_function(add_adapter):
            super().__init__(*call.args[1:], **call.kwargs)
        check_attributes(self)
        self.reward_funcs = [*map(checked_reward, self.reward_funcs, self.reward_func_names)]
        self._add_end_tokens()
        if call.arguments.get("processing_class") is None:  # its special tokens were not known before
            check_contrast(args, chain, call.arguments | {"processing_class": self.processing_class})
        self._init_loops()
        refuse_frozen_model(self.model)
        check_processing_class(self.processing_class, self.train_dataset, chain)
        warn_of_cast_weights(self)
        warn_of_truncated_sampling(self)
        self._ranks = Ranks(self.accelerator)
        if chain is not None:
            self.token_credit = TokenCredit(
                chain,
                scope=args.entropy_threshold_scope,
                denominator=args.loss_denominator,
                loss_type=self.loss_type,
                ranks=self._ranks,
            )
            let_weights_apply(self)
        self._init_objective()
        self._needs_scores = self._partition_of_groups or (chain is not None and self.token_credit.needs_scores)
        self._init_checkpoints()
        self._init_episodes(rows_per_episode)
        self._init_dynamic_sampling()
        if self.rollout_func is not None:
            self.rollout_func = counted_rollouts(timed_rollouts(self.rollout_func))
        self._health = HealthCallback()
        self.add_callback(self._health)
        if self.log_completions:
            self._marks = CompletionMarks(self.args.generation_batch_size)
            self.add_callback(self._marks)
        # Rules that read nothing and leave nothing out are GRPO, which stays TRL's to the last bit.
        reads = chain is not None and bool(chain.sparse or chain.needs)
        self._differs_from_trl = args.skip_inert_compute or reads or self._objective is not None
        self._differs_from_trl |= args.loop_credit is not None
        self._savings = self._plan_savings(rescales_with_length(self.model.config))
        reasons = [f"{name}: {reason}" for name, reason in self._savings.reasons.items() if reason != ALL_TOKENS]
        if reasons and self.accelerator.is_main_process:
            logger.warning(f"skip_inert_compute: not everything can be left out of this run ({'; '.join(reasons)}).")
        self._warn_of_idle_limit()
        self._check_scoring_graph()
        self._generations, self._turns = CallNames(), CallNames()

    def _plan_savings(self, length_shows: bool, obstacle_to_packing: str | None = None):
        return plan_savings(
            self.args,
            self.token_credit,
            length_shows=length_shows,
            image_inputs=isinstance(self.processing_class, ProcessorMixin),
            auxiliary_loss=self.aux_loss_enabled,
            obstacle_to_packing=obstacle_to_packing or find_obstacle(self.model),
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        [`~transformers.Trainer.train`]; `resume_from_checkpoint=True` takes the newest checkpoint that is complete.

        Raises:
            `torch.OutOfMemoryError`: naming what was going on and the settings to turn, the first one first.
            `ValueError`: if there is no complete checkpoint, or the one named is half-written.
        """
        self._generations, self._turns = CallNames(), CallNames()
        with explain_out_of_memory(self):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        with ExitStack() as self._until_backward_ends:
            try:
                loss = super().training_step(model, inputs, num_items_in_batch)
            finally:
                self._until_backward_ends = None
        self._health.look_at(loss)
        return loss

    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        credit = self.token_credit
        # In evaluation the entropies of the evaluation pass itself are those of the policy that is evaluated.
        scores_needed = mode == "train" and self._needs_scores
        reused: list[PolicyScores] | None = [] if scores_needed and old_logps_are_computed(self) else None
        with self._within(old_policy_scores=reused):
            output = super()._generate_and_score_completions(inputs)
        if truncates_sampling(self.args) and output.get("sampling_per_token_logps") is not None:
            self._report_kept_mass(mode, output)
        scores = None
        if scores_needed:
            keep = self._keeps_graph
            scores = self._scores_for_update(output) if keep else self._starting_policy_scores(output, reused)
        if credit is not None:
            if "priorities" in credit.chain.needs:
                output[PRIORITIES] = self._priorities(mode, output)
            if mode == "train" and not credit.at_loss_time:
                output[WEIGHTS] = self._batch_weights(output, scores if credit.needs_scores else None)
                output.pop(PRIORITIES, None)
        self._prepare_balance(output, scores)
        self._show_batch(mode, output, scores)
        if mode == "train":
            output.pop(CONTRAST_LOG_PROBS, None)  # the weights are made of it
        return output

    def _show_batch(self, mode, output, scores: PolicyScores | None):
        rewards: Any = self._rewards
        first = self.accelerator.process_index * len(output["completion_ids"])
        batch = GenerationBatch(
            **{name: output[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")},
            mask=loss_mask(output),
            advantages=output["advantages"],
            rewards=rewards[first : first + len(output["completion_ids"])],
            entropies=None if scores is None else scores.entropies,
            log_probs=None if scores is None else scores.log_probs,
            weights=output.get(WEIGHTS),
            contrast_log_probs=output.get(CONTRAST_LOG_PROBS),
        )
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, GenerationCallback):
                show = callback.on_generation if mode == "train" else callback.on_evaluation_generation
                show(self, batch)

    def _report_kept_mass(self, mode, output):
        """Log the mean probability mass that truncated sampling kept; the engine's probabilities are divided by it."""
        if output.get("old_per_token_logps") is None:
            return
        share = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).exp()
        known = (loss_mask(output) != 0) & ~share.isnan()
        total, count = self._ranks.sum(torch.stack([share[known].sum(), known.sum()])).tolist()
        if count:
            self._metrics[mode]["sampling/kept_mass"].append(total / count)

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        credit = self.token_credit
        if credit is not None and credit.at_loss_time and SCALE not in inputs:
            progress = self._training_progress
            scale = credit.scale([loss_mask(batch) for batch in self._buffered_inputs], progress)
            for batch in self._buffered_inputs:
                batch[SCALE] = torch.tensor(scale, device=batch["completion_mask"].device)
                batch[PROGRESS] = progress
        if self._savings.padding and not self._checked_width:
            # The batch is from a checkpoint, and nothing has been generated since.
            self._check_rows(*map(self._buffered_tokens, ("prompt", "completion")))
        if self._savings.padding and ARRANGED not in inputs:
            self._arrange_rows()
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        if len(inputs["prompt_ids"]) == 0:
            raise EmptyBatchError
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # A new dictionary: TRL keeps the batch for further iterations over it.
        batch = {key: value for key, value in inputs.items() if key not in _ADDED}
        log_probs_needed = self.token_credit is not None and "log_probs" in self.token_credit.chain.needs
        if self._savings.packing and self.model.training and self._until_backward_ends is not None:
            # With gradient checkpointing the backward pass calls the layers again.
            self._until_backward_ends.enter_context(packed_attention(self._own(model)))
        with self._within(loss_inputs=inputs, loss_log_probs=[] if log_probs_needed else None):
            if not (self._savings.head_backward and self.model.training):
                return super().compute_loss(model, batch, return_outputs, num_items_in_batch)
            wanted = batch["completion_mask"]
            if self._savings.head_forward:
                # A token that is not scored has log-probability 0: an old one of -100 would make the ratio infinite,
                # and infinity times a weight of 0 is NaN.
                wanted = with_gradient(inputs[WEIGHTS], inputs["advantages"])
                if batch.get("old_per_token_logps") is not None:
                    batch["old_per_token_logps"] = batch["old_per_token_logps"] * wanted
            with row_sparse_head(wanted, batch["completion_mask"]), self._metrics_of_this_pass() as metrics:
                loss = super().compute_loss(model, batch, return_outputs, num_items_in_batch)
            if self._savings.partial_forward:
                mask = loss_mask(batch)
                seen = wanted if self._savings.head_forward else mask
                counts = self._ranks.sum(torch.stack([(mask != 0).sum(), (seen != 0).sum()])).tolist()
                metrics = partial_metrics(metrics, *counts)
            for name, values in metrics.items():
                self._metrics["train"][name] += values
            return loss

    @contextmanager
    def _metrics_of_this_pass(self):
        """Separates the metrics that are logged inside from those logged before."""
        before = self._metrics["train"]
        self._metrics["train"] = defaultdict(list)
        try:
            yield self._metrics["train"]
        finally:
            self._metrics["train"] = before

    def get_high_entropy_mask(self, entropies, mask, threshold):
        """
        Weights of the policy term at each token, in place of TRL's mask.

        Args:
            entropies (`torch.Tensor` of shape `(batch, seq)`):
                Entropies of the current policy in nats.
            mask (`torch.Tensor` of shape `(batch, seq)`):
                Valid tokens of the micro-batch.
            threshold (`float`):
                TRL's quantile level, `1 - top_entropy_quantile`. Only TRL's own rule, outside a loss, reads it.

        Returns:
            `torch.Tensor` of shape `(batch, seq)`: float weights inside [`compute_loss`]; TRL's boolean mask outside
            it, where there is no batch to select from.
        """
        context = context_of(self)
        inputs = context.loss_inputs
        if inputs is None or self.token_credit is None:
            return super().get_high_entropy_mask(entropies, mask, threshold)
        entropies, credit = entropies.detach(), self.token_credit
        mode = "train" if self.model.training else "eval"
        weights = inputs.get(WEIGHTS)
        with naming_the_step(self.state.global_step):
            if weights is not None or "entropies" not in credit.chain.needs:
                credit.check(entropies, mask)
            known = weights is not None
            if weights is None:
                log_probs = context.loss_log_probs[-1] if context.loss_log_probs else None
                signals = replace(self._signals(inputs, mask), entropies=entropies, log_probs=log_probs)
                if mode == "train":
                    weights = credit.micro_batch_weights(signals, inputs[SCALE])
                else:
                    groups = self._groups(len(mask), self.num_generations_eval)
                    weights = credit.batch_weights(replace(signals, groups=groups))
                self._record(mode, credit.metrics(signals, weights))
        # If no pass has scored the generation batch and these entropies cover all tokens, they are the first.
        if not known or not (credit.needs_scores or self._savings.partial_forward):
            self._record(mode, credit.entropy_metrics(entropies, mask, weights))
        return credit.loss_weights(weights, mask)
