"""The objective `trajectory_balance` in a trainer: what it adds to TRL's batches, and the loss in place of TRL's."""

from dataclasses import fields
from typing import Any

import torch
from transformers import ProcessorMixin

from .._logging import logger
from ..data.columns import LOG_PARTITION, LOG_PARTITION_SETTINGS
from ..objectives import (
    OBJECTIVES,
    LossInputs,
    TrajectoryBalance,
    group_log_partition,
    log_ratio,
    mirror_beta,
    mirror_reference,
)
from ..ranks import Ranks
from ._trl import TrainerMixin, updates_per_batch
from .batching import loss_mask
from .checks import named_datasets
from .context import PolicyScores, WithContext
from .metrics import weighted_sum
from .partition_column import check_partition_column, check_partition_settings, log_partition_of
from .pass_metrics import PassMetrics
from .role_betas import check_role_column, refuse_role_betas, role_beta_of
from .sampling_checks import check_model_sampling


# What the objective adds to TRL's batches, beside LOG_PARTITION, (batch,) float.
REWARDS = "balance_rewards"  # (batch,) float: NaN at completions that are left out
ROLE_BETAS = "balance_betas"  # (batch,) float: KL coefficients to the reference model
NUM_COMPLETIONS = "num_completions_in_batch"  # scalar: completions that count, over the generation batch and all ranks
# (batch, seq) float: with mirror steps, log-probabilities by the policy that starts the generation batch
START_LOG_PROBS = "start_per_token_logps"


class BalanceMixin(WithContext, TrainerMixin):
    """
    Adds rewards and estimates of `log Z` to a batch, and computes the loss of an objective of this package.

    In the order of the trainer's bases it comes after dynamic sampling, so that the examples it sees are those of the
    final batch.
    """

    _objective: TrajectoryBalance | None = None  # `None`: TRL's loss
    _rows_per_episode: int  # row `i` of a process is turn `i % _rows_per_episode` of its episode
    _ranks: Ranks
    _rewards: Any  # (rows of all processes, reward functions), of the latest batch

    def _init_objective(self):
        if self.args.objective in OBJECTIVES:
            kind = OBJECTIVES[self.args.objective]
            self._objective = kind(**{field.name: getattr(self.args, field.name) for field in fields(kind)})
            self._warn_of_single_updates()
            if isinstance(self.processing_class, ProcessorMixin):  # not known before it was loaded
                _refuse_images(self.args.objective)
            if not self.use_vllm and self.rollout_func is None:
                check_model_sampling(self.accelerator.unwrap_model(self.model), self.generation_config.to_dict())
        self._pass_metrics = {"train": PassMetrics(), "eval": PassMetrics()}

    def _warn_of_single_updates(self) -> None:
        step, beta = self.args.mirror_step_size, self.args.beta
        if step is not None and updates_per_batch(self) <= 1 and self.accelerator.is_main_process:
            logger.warning(
                f"mirror_step_size={step}: with one update per generation batch, the policy is the one that starts "
                "the batch, and a mirror step multiplies the gradient of a completion by eta beta / (1 + eta beta), "
                f"{step * beta / (1 + step * beta):.3g} for beta={beta}, and does nothing else. Set num_iterations "
                "above 1, or steps_per_generation above gradient_accumulation_steps."
            )

    def train(self, *args, **kwargs):
        self._pass_metrics = {"train": PassMetrics(), "eval": PassMetrics()}  # an error may have ended a step halfway
        return super().train(*args, **kwargs)

    @property
    def _partition_of_groups(self) -> bool:
        return self._objective is not None and self.args.partition == "group"

    def _generate_and_score_completions(self, inputs):
        step = f"Step {self.state.global_step}, process {self.accelerator.process_index}"
        if self._objective is None:
            output = super()._generate_and_score_completions(inputs)
            refuse_role_betas(inputs, step)
            return output
        places = [
            f"{step}, row {row} of the batch, prompt {str(example.get('prompt'))[:60]!r}"
            for row, example in enumerate(inputs)
        ]
        estimates = []
        if self.args.partition == "offline":
            # The rows of a stream have not been looked at yet, and an error is cheaper before their completions exist.
            for example, where in zip(inputs, places, strict=True):
                estimates.append(log_partition_of(example, where))
                check_partition_settings(example.get(LOG_PARTITION_SETTINGS), self.args, where)
        output = super()._generate_and_score_completions(inputs)
        # By now TRL has added to the examples what a rollout function says of its rows.
        betas = [role_beta_of(example, self.args, where) for example, where in zip(inputs, places, strict=True)]
        output[ROLE_BETAS] = torch.tensor(betas, device=output["completion_ids"].device)
        if estimates:
            output[LOG_PARTITION] = torch.tensor(estimates, device=output["completion_ids"].device)
        return output

    def _prepare_balance(self, output: dict, scores: PolicyScores | None) -> None:
        """Add to a batch what the loss needs beside TRL's. Its rewards are known, and in training its scores."""
        if self._objective is None:
            return
        output[REWARDS] = rewards = self._balance_rewards(output)
        output[NUM_COMPLETIONS] = self._ranks.sum((~rewards.isnan()).sum())
        if scores is not None and self._partition_of_groups:
            if self.args.mirror_step_size is not None:
                output[START_LOG_PROBS] = scores.log_probs.float()
            output[LOG_PARTITION] = self._group_partition(output, scores.log_probs, self.num_generations)

    def _balance_rewards(self, output: dict) -> torch.Tensor:
        """Rewards of this process's completions: NaN without a valid token or a reward."""
        training = self.model.training
        rewards = weighted_sum(self._rewards, self.reward_weights)
        # An infinite reward leaves its group without a finite advantage: none of it is trained on.
        groups = rewards.unflatten(0, (-1, self.num_generations if training else self.num_generations_eval))
        usable = ~groups.isinf().any(1, keepdim=True).expand_as(groups).flatten() & ~rewards.isnan()
        first = self.accelerator.process_index * len(output["completion_ids"])
        own = slice(first, first + len(output["completion_ids"]))
        found = rewards[own] if self.args.balance_reward == "reward" else output["advantages"]
        if found.dim() > 1:
            raise NotImplementedError(
                f"{type(self).__name__} makes an advantage for each token, and objective='trajectory_balance' needs "
                "one for each completion. Set balance_reward='reward'."
            )
        return found.float().masked_fill(~(usable[own] & (loss_mask(output) != 0).any(1)), torch.nan)

    def _target(self, batch: dict, start_log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the reference of the residual, shape `(batch, seq)`, and KL coefficients `(batch,)`."""
        reference, betas, step_size = batch["ref_per_token_logps"], batch[ROLE_BETAS], self.args.mirror_step_size
        if step_size is None:
            return reference, betas
        return mirror_reference(start_log_probs, reference, betas, step_size), mirror_beta(betas, step_size)

    def _group_partition(self, batch: dict, log_probs: torch.Tensor, size: int) -> torch.Tensor:
        """
        Estimates of this process's rows, in the order of generation, from groups that may span processes. Roles have
        prompts of their own, so that only rows of the same turn share an estimate.
        """
        assert self._objective is not None
        log_probs = log_probs.detach().float()
        reference, betas = self._target(batch, log_probs)
        ratios = log_ratio(log_probs, reference, loss_mask(batch), length_normalized=self._objective.length_normalized)
        rows = self._ranks.gather_vectors(torch.cat([ratios, batch[REWARDS], betas])).unflatten(1, (3, -1))
        ratios, rewards, betas = rows.transpose(0, 1).flatten(1)
        turns = torch.arange(len(rewards), device=rewards.device)
        groups = turns // size * self._rows_per_episode + turns % self._rows_per_episode
        found = group_log_partition(ratios, rewards, betas, groups, ~rewards.isnan())
        return found.view(self._ranks.count, -1)[self._ranks.index]

    def _compute_loss(self, model, inputs):
        if self._objective is None:
            return super()._compute_loss(model, inputs)
        mask = loss_mask(inputs)
        log_probs, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        log_probs = log_probs.float()
        # In evaluation, the policy that is evaluated is the one of this pass, from which a mirror step would start.
        start_log_probs = inputs.get(START_LOG_PROBS, log_probs.detach())
        reference, betas = self._target(inputs, start_log_probs)
        log_partition = inputs.get(LOG_PARTITION)
        if log_partition is None:
            log_partition = self._group_partition(inputs, log_probs, self.num_generations_eval)
        outputs = self._objective(
            LossInputs(
                log_probs=log_probs,
                ref_log_probs=reference,
                mask=mask,
                rewards=inputs[REWARDS],
                log_partition=log_partition,
                normalizer=self._normalizer(inputs[NUM_COMPLETIONS]),
                old_log_probs=inputs.get("old_per_token_logps"),
                weights=self._gradient_weights(inputs, entropies, mask),
                beta=betas,
            )
        )
        loss, mode = outputs.loss, "train" if self.model.training else "eval"
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * aux_loss / steps
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        valid = mask != 0
        kl = self._kl(inputs, log_probs.detach())[valid]
        metrics = {**outputs.metrics, "kl": kl, "entropy": entropies.detach()[valid]}
        if START_LOG_PROBS in inputs:
            moved = (log_probs.detach() - start_log_probs)[valid]
            metrics["balance/step_kl"] = moved.exp() - moved - 1  # of KL(start, policy): the tokens are the former's
        self._report_passes(mode, metrics)
        return loss

    def _normalizer(self, num_completions: torch.Tensor) -> torch.Tensor:
        """The completions of a window on one process, as TRL makes it of `num_items_in_batch`."""
        normalizer = num_completions.clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            normalizer = normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return normalizer

    def _gradient_weights(self, inputs: dict, entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """Weights of tokens: those of credit rules, and vLLM's importance sampling ratio."""
        weights = None
        if self.top_entropy_quantile < 1.0:  # the gate of TRL's loss
            weights = self.get_high_entropy_mask(entropies, mask, 1 - self.top_entropy_quantile)
        if self.use_vllm and self.vllm_importance_sampling_correction:
            ratio = inputs["importance_sampling_ratio"]
            weights = ratio if weights is None else weights * ratio
        return weights

    def _record(self, mode, metrics):
        if self._objective is not None:  # a completion without an advantage has a gradient
            metrics = {name: value for name, value in metrics.items() if name != "forking/inert_row_fraction"}
        super()._record(mode, metrics)  # type: ignore[misc]  # of `BatchCreditMixin`

    def _kl(self, inputs: dict, log_probs: torch.Tensor) -> torch.Tensor:
        """TRL's estimate of the KL divergence from the reference at each token, for the log alone."""
        difference = inputs["ref_per_token_logps"] - log_probs
        kl = difference.exp() - difference - 1
        old = inputs.get("old_per_token_logps")
        return kl * (log_probs - old).exp() if old is not None and self.args.use_bias_correction_kl else kl

    def _report_passes(self, mode: str, values: dict[str, torch.Tensor]) -> None:
        """Log metrics over all passes of an optimizer step at its last one, and of each pass of an evaluation."""
        for name, tensor in values.items():
            self._pass_metrics[mode].add(name, tensor)
        if mode == "eval" or self.accelerator.sync_gradients:
            for name, value in self._pass_metrics[mode].result(self._ranks).items():
                self._metrics[mode][name].append(value)


def check_balance(args, given: dict) -> None:
    """
    Refuse data and models that trajectory balance cannot be trained on, before a model is loaded.

    Args:
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        given (`dict`): Arguments of the trainer by name.

    Raises:
        `ValueError`: for `partition="offline"` and a data set without a usable column `log_partition`, see
            [`~trainer.partition_column.check_partition_column`]; for KL coefficients of roles that cannot be used, see
            [`~trainer.role_betas.role_beta_of`].
        `NotImplementedError`: for image-text models.
    """
    if args.objective not in OBJECTIVES:
        return
    datasets = named_datasets(given.get("train_dataset"), given.get("eval_dataset"))
    images = [name for name, data in datasets if {"image", "images"} & {*(getattr(data, "column_names", None) or ())}]
    if images or isinstance(given.get("processing_class"), ProcessorMixin):
        _refuse_images(args.objective)
    for name, data in datasets:
        check_role_column(name, data, args)
        if args.partition == "offline":
            check_partition_column(name, data, args)


def _refuse_images(objective: str):
    raise NotImplementedError(
        f"objective={objective!r} has not been tested with image inputs. Pass a tokenizer (--text_only true of "
        "`trl-fork train`) and data without images, or set objective='policy_gradient'."
    )
