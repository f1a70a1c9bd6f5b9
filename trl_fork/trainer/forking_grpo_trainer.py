"""The trainer: a thin adapter between TRL's hooks and the functions of this package."""

import inspect
from collections import defaultdict
from contextlib import contextmanager, nullcontext

import torch
from transformers import ProcessorMixin
from trl import GRPOTrainer

from .._logging import logger
from ..credit.selection import (
    NaNEntropyError,
    check_entropies,
    random_priorities,
    select_in_scope,
    selected_count,
)
from ..ranks import Ranks
from ._trl import (
    check_hooks,
    evaluation_mode,
    get_config_model_id,
    old_logps_are_computed,
    refuse_unsloth,
    training_adapter_is_active,
    truncates_sampling,
    warn_of_cast_weights,
    warn_of_truncated_sampling,
)
from .batching import loss_mask, without_advantage
from .callbacks import GenerationCallback
from .checkpoints import ResumableGenerationMixin
from .checks import check_rollouts, check_tokenizer, check_training_data, refuse_frozen_model
from .completions_log import MarkedCompletionsMixin
from .dynamic_sampling import DynamicSamplingMixin, check_dynamic_sampling
from .forking_grpo_config import ForkingGRPOConfig
from .lm_head import row_sparse_head
from .metrics import count_metrics, entropy_metrics, partial_metrics
from .out_of_memory import OutOfMemoryMixin
from .publishing import PublishingMixin
from .right_padding import RightPadded
from .savings import (
    ALL_TOKENS,
    arrange,
    padding_effect,
    plan_savings,
    rescales_with_length,
    rounding,
    score_by_length,
)
from .telemetry import TelemetryMixin


# What this trainer adds to TRL's batches, for `compute_loss` to take out again.
_WEIGHTS = "selection_weights"  # (batch, seq) float: multiplies the policy term
_PRIORITIES = "selection_priorities"  # (batch, seq) long: for random selections from pools that do not exist yet
_SCALE = "selection_scale"  # scalar: N / K, where the pools are micro-batches
_ARRANGED = "rows_arranged"  # marks micro-batches that have been through `arrange`
_ADDED = (_WEIGHTS, _PRIORITIES, _SCALE, _ARRANGED)


class ForkingGRPOTrainer(
    OutOfMemoryMixin,
    PublishingMixin,
    ResumableGenerationMixin,
    DynamicSamplingMixin,
    TelemetryMixin,
    MarkedCompletionsMixin,
    GRPOTrainer,
):
    """
    [`~trl.GRPOTrainer`] whose policy gradient sees the forking tokens only.

    The loss is TRL's own, for any `loss_type`. Its policy term is multiplied by weights: zero at tokens that are not
    selected, `N / K` at the `K` of `N` valid tokens that are, so that TRL's division by `N` becomes one by `K` (paper
    section 5.1, Eq. 6 of v2). The KL term, the entropy bonus and the auxiliary loss keep TRL's scale. Which tokens are
    selected, and over which pool, is set by [`ForkingGRPOConfig`].

    With `top_entropy_quantile=1.0`, `epsilon_high=None` and `skip_inert_compute=False` this is `GRPOTrainer`, bit for
    bit.

    Takes every argument of [`~trl.GRPOTrainer`], in its order. Differences:

    Args:
        args ([`ForkingGRPOConfig`], *optional*):
            Configuration of this trainer. Defaults to the paper's selection.
        rollout_func (`RolloutFunc`, *optional*):
            As in TRL; rows and tokens that do not match are refused by name, see [`~trainer.checks.check_rollouts`].

    Raises:
        `TypeError`: if `args` is not a [`ForkingGRPOConfig`].
        `ValueError`: for a data set, tokenizer or model that cannot be trained with, see
            [`~trainer.checks.check_training_data`], [`~trainer.checks.check_tokenizer`] and
            [`~trainer.checks.refuse_frozen_model`].
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

    def __init__(self, model, reward_funcs=None, args: ForkingGRPOConfig | None = None, *positional, **keywords):
        check_hooks()
        refuse_unsloth(type(self), model)
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = ForkingGRPOConfig(f"{name.split('/')[-1]}-ForkingGRPO")
        elif not isinstance(args, ForkingGRPOConfig):
            raise TypeError(
                f"args must be a ForkingGRPOConfig, got {type(args).__name__}, which does not say which tokens to "
                "train on. Build a ForkingGRPOConfig with the same arguments."
            )
        call = inspect.signature(GRPOTrainer.__init__).bind(self, model, reward_funcs, args, *positional, **keywords)
        if call.arguments.get("rollout_func") is not None:
            call.arguments["rollout_func"] = check_rollouts(call.arguments["rollout_func"])
        given = call.arguments
        check_training_data(
            given.get("train_dataset"),
            reward_funcs or [],
            args,
            prompt_is_optional=given.get("environment_factory") is not None,
            extra_fields=given.get("rollout_func") is not None,
            eval_dataset=given.get("eval_dataset"),
        )
        check_dynamic_sampling(
            args,
            given.get("train_dataset"),
            given.get("processing_class"),
            given.get("tools"),
            given.get("environment_factory"),
        )
        if given.get("processing_class") is not None:  # before a large model is loaded
            self._check_processing_class(given["processing_class"], given.get("train_dataset"), args)
        if args.selects_tokens and args.importance_sampling_level == "sequence":
            logger.warning(
                "importance_sampling_level='sequence': the ratio of a completion averages over all of its tokens, so "
                "that the gradient reaches them all. The selection only weights each completion by its number of "
                "selected tokens. Set importance_sampling_level='token' to train on the selected tokens alone."
            )
        if isinstance(model, torch.nn.Module) and given.get("peft_config") is None:  # nothing will be added to it
            refuse_frozen_model(model)
        super().__init__(*call.args[1:], **call.kwargs)
        refuse_frozen_model(self.model)
        self._check_processing_class(self.processing_class, self.train_dataset, args)
        warn_of_cast_weights(self)
        warn_of_truncated_sampling(self)
        self._init_dynamic_sampling()
        self._init_telemetry()
        self._init_marked_completions()
        self._ranks = Ranks(self.accelerator)
        self._savings = self._plan_savings(rescales_with_length(self.model.config))
        reasons = [f"{name}: {reason}" for name, reason in self._savings.reasons.items() if reason != ALL_TOKENS]
        if reasons and self.accelerator.is_main_process:
            logger.warning(f"skip_inert_compute: not everything can be left out of this run ({'; '.join(reasons)}).")
        self._checked_width = 0  # of the widest batch in which padding was seen to have no effect
        # Entropies that TRL's old-log-probability pass has left, with the ids they are of; `None` while nobody asks.
        self._old_policy_scores: list | None = None
        self._loss_inputs = None  # batch inside `compute_loss`, where `get_high_entropy_mask` needs it
        self._generation_index = {"train": (-1, 0), "eval": (-1, 0)}  # (global step, generations made at that step)

    def _plan_savings(self, length_shows: bool):
        return plan_savings(
            self.args,
            length_shows=length_shows,
            image_inputs=isinstance(self.processing_class, ProcessorMixin),
            auxiliary_loss=self.aux_loss_enabled,
        )

    @staticmethod
    def _check_processing_class(processing_class, dataset, args):
        if args.selects_tokens and isinstance(processing_class, ProcessorMixin):
            raise NotImplementedError(
                "Image-text models are not supported with top_entropy_quantile < 1.0 yet: the selection has not been "
                "tested with image inputs. To train on text alone pass a tokenizer, processing_class="
                "AutoTokenizer.from_pretrained(...), or set text_only (--text_only true of trl-fork train); or set "
                "top_entropy_quantile=1.0."
            )
        check_tokenizer(processing_class, dataset)

    # ------------------------------------------------------------------ selection at generation time

    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        # In evaluation the entropies of the evaluation pass itself are those of the policy that is evaluated.
        scores_needed = mode == "train" and self.args.scores_generation_batch
        self._old_policy_scores = [] if scores_needed and old_logps_are_computed(self) else None
        try:
            output = super()._generate_and_score_completions(inputs)
            scores = self._old_policy_scores
        finally:
            self._old_policy_scores = None
        if truncates_sampling(self.args) and output.get("sampling_per_token_logps") is not None:
            self._report_kept_mass(mode, output)
        entropies = None
        if self.args.selects_tokens:
            priorities = None
            if self.args.token_selection == "random":
                shape = output["completion_ids"].shape
                priorities = random_priorities(
                    self.args.seed,
                    self._next_generation(mode),
                    self.accelerator.process_index * shape[0],
                    shape,
                    device=output["completion_ids"].device,
                )
            if mode == "train" and self.args.entropy_threshold_scope in ("batch", "sequence"):
                entropies = self.starting_policy_entropies(output, scores) if scores_needed else None
                output[_WEIGHTS] = self._batch_weights(output, entropies, priorities)
            elif priorities is not None:
                output[_PRIORITIES] = priorities
        self._mark_completions(output, output.get(_WEIGHTS))
        if mode == "train":
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, GenerationCallback):
                    callback.on_generation(self, output, loss_mask(output), entropies)
        return output

    def _report_kept_mass(self, mode, output):
        """The mean probability mass that truncated sampling has kept: the engine's probabilities are divided by it."""
        if output.get("old_per_token_logps") is None:
            return
        share = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).exp()
        known = (loss_mask(output) != 0) & ~share.isnan()
        total, count = self._ranks.sum(torch.stack([share[known].sum(), known.sum()])).tolist()
        if count:
            self._metrics[mode]["sampling/kept_mass"].append(total / count)

    def _next_generation(self, mode):
        """Name of a generation batch: the same in a resumed run, where a count from the start would not be."""
        step, made = self._generation_index[mode]
        made = made + 1 if step == self.state.global_step else 0
        self._generation_index[mode] = (self.state.global_step, made)
        return (int(mode == "eval"), self.state.global_step, made)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        arguments = (input_ids, attention_mask, logits_to_keep, batch_size)
        if torch.is_grad_enabled():
            model = self._right_padded(model, kwargs)
            return super()._get_per_token_logps_and_entropies(model, *arguments, compute_entropy, **kwargs)
        # Dropout would change entropies and ratios from one scoring of the same tokens to the next.
        own = model is self.model and self._differs_from_trl
        reuse = self._old_policy_scores == [] and model is self.model and training_adapter_is_active(model)
        with evaluation_mode(model) if own else nullcontext():
            logps, entropies, aux_loss = self._score(model, *arguments, compute_entropy or reuse, **kwargs)
        if reuse:
            self._old_policy_scores.append((input_ids, entropies))
        return logps, entropies if compute_entropy else None, aux_loss

    def _score(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs):
        """TRL's pass without gradient; in chunks of similar length where padding can be cut."""
        model, score = self._right_padded(model, kwargs), super()._get_per_token_logps_and_entropies
        if not self._savings.padding or kwargs.get("compute_aux_loss"):
            return score(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs)

        def score_chunk(ids, mask, length):
            completion_mask = mask[:, -length:]
            with row_sparse_head(completion_mask, completion_mask):
                return score(model, ids, mask, length, compute_entropy=compute_entropy, **kwargs)[:2]

        batch_size = batch_size or len(input_ids)
        return *score_by_length(score_chunk, input_ids, attention_mask, logits_to_keep, batch_size), None

    @property
    def _differs_from_trl(self) -> bool:
        return self.args.selects_tokens or self.args.skip_inert_compute

    def _right_padded(self, model, arguments):
        """What TRL is to call in place of `model`. With images, whose tensors are placed by column, the model."""
        images = any(value is not None for name, value in arguments.items() if name != "compute_aux_loss")
        if images or not self._differs_from_trl:
            return model
        return RightPadded(model, cut=self._savings.padding)

    def _generate(self, prompts):
        generated = super()._generate(prompts)
        if self._savings.padding:
            self._check_padding(*generated[:2])
        return generated

    def _check_padding(self, prompt_ids, completion_ids):
        """
        Ask the model itself whether padding changes what it makes of a row, whenever a batch is wider than all before.

        Half of the shortest row alone and at the full width, without gradient: two passes of one row, on all ranks
        together. Half, because a batch may have no padding yet, as where every completion is cut off.
        """
        width = torch.tensor(max(map(len, prompt_ids)) + max(map(len, completion_ids)), device=self.accelerator.device)
        width = int(self._ranks.gather(width).max())
        if width <= self._checked_width:
            return
        self._checked_width = width
        # Beyond its learned positions a model cannot be run at all; virtual tokens of an adapter take some of them.
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or width
        limit -= getattr(getattr(self.model, "active_peft_config", None), "num_virtual_tokens", None) or 0
        row = min((list(p) + list(c) for p, c in zip(prompt_ids, completion_ids, strict=True)), key=len)
        row = row[: max(len(row) // 2, 2)]
        score = super()._get_per_token_logps_and_entropies
        with torch.no_grad(), evaluation_mode(self.model):
            effect = padding_effect(
                lambda *batch: score(self.model, *batch)[0],
                row[: len(row) // 2],
                row[len(row) // 2 :],
                min(width, limit),
                self._tokenizer.pad_token_id,
                self.accelerator.device,
            )
        effect = float(self._ranks.gather(torch.tensor(effect, device=self.accelerator.device)).max())
        if effect > rounding(self.model, *([torch.bfloat16] * self.args.bf16), *([torch.float16] * self.args.fp16)):
            self._savings = self._plan_savings(length_shows=True)
            if self.accelerator.is_main_process:
                name = type(self.accelerator.unwrap_model(self.model)).__name__
                logger.warning(
                    f"skip_inert_compute: padding a row to {width} tokens changes its log-probabilities by "
                    f"{effect:.2g} nats on average: {name} reads the padded length. From here on padding stays as TRL "
                    "makes it, and rows keep their micro-batches."
                )

    def starting_policy_entropies(self, output, scores=None):
        """
        Token entropies of a generation batch, `(batch, seq)` in nats, by the policy that starts it.

        Args:
            output (`dict`):
                The rows of this process as TRL made them.
            scores (`list`, *optional*):
                What TRL's own pass has left; without it the rows are scored, which all processes must do together.
        """
        input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        # Not whatever was scored first: a rollout function may score sequences of its own.
        if scores and torch.equal(scores[0][0], input_ids):
            return scores[0][1]
        with torch.no_grad():
            _, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                input_ids,
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
            )
        return entropies

    def _batch_weights(self, output, entropies, priorities):
        mask = loss_mask(output)
        selected = self._select(entropies, mask, priorities)
        self._record("train", count_metrics(mask, selected, output["advantages"], ranks=self._ranks))
        if entropies is not None:
            self._record("train", self._entropy_metrics(entropies, mask, selected))
            if self._savings.partial_forward:  # in place of the average over what the training pass sees
                sums = self._ranks.sum(torch.stack([(entropies * mask).sum(), mask.sum()]))
                self._metrics["train"]["entropy"].append((sums[0] / sums[1].clamp(min=1)).item())
        return selected.float() * self._count_scale(mask, selected)

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        micro_batches = self.args.entropy_threshold_scope in ("micro_batch", "local")
        if self.model.training and self.args.selects_tokens and micro_batches and _SCALE not in inputs:
            scale = self._micro_batch_scale(self._buffered_inputs)
            for batch in self._buffered_inputs:
                batch[_SCALE] = scale
        if self.model.training and self._savings.padding and not self._checked_width:
            # The batch is a checkpoint's, and nothing has been generated since.
            self._check_padding(*map(self._buffered_tokens, ("prompt", "completion")))
        if self.model.training and self._savings.padding and _ARRANGED not in inputs:
            steps = self.args.steps_per_generation
            window = min(self.args.gradient_accumulation_steps, steps)
            self._buffered_inputs = arrange(self._buffered_inputs, window, self._savings, _WEIGHTS, self._ranks)
            for batch in self._buffered_inputs:
                batch[_ARRANGED] = True
            inputs = self._buffered_inputs[self._step % steps]
        return inputs

    def _buffered_tokens(self, part):
        """Token ids of the prompts or completions of the generation batch in hand, one list per row."""
        return [
            row[mask.bool()].tolist()
            for batch in self._buffered_inputs
            for row, mask in zip(batch[f"{part}_ids"], batch[f"{part}_mask"], strict=True)
        ]

    # ------------------------------------------------------------------ denominators

    @property
    def _divides_by_batch_count(self):
        # bnpo divides by the tokens of its own micro-batch, which `get_high_entropy_mask` sees for itself.
        return self.args.loss_denominator == "selected" and self.loss_type != "bnpo"

    def _count_scale(self, mask, selected):
        """`N / K` over all ranks. Times the selection, it turns TRL's division by `N` into one by `K`."""
        if not self._divides_by_batch_count:
            return 1.0
        num_valid, num_selected = self._ranks.sum(torch.stack([mask.sum(), selected.sum()])).tolist()
        return num_valid / max(num_selected, 1)

    def _micro_batch_scale(self, batches):
        """`N / K` of a generation batch whose pools are its micro-batches: a count of masks, no entropy needed."""
        sizes = torch.stack([loss_mask(batch).sum() for batch in batches])
        if not self._divides_by_batch_count:
            return torch.ones((), device=sizes.device)
        rho, rule = self.args.top_entropy_quantile, self.args.token_selection
        if self.args.entropy_threshold_scope == "micro_batch":
            pool_sizes = self._ranks.sum(sizes).tolist()
            num_valid, num_selected = sum(pool_sizes), selected_count(pool_sizes, rho, rule)
        else:
            counts = torch.stack([sizes.sum(), sizes.new_tensor(selected_count(sizes.tolist(), rho, rule))])
            num_valid, num_selected = self._ranks.sum(counts).tolist()
        return torch.tensor(num_valid / max(num_selected, 1), device=sizes.device)

    # ------------------------------------------------------------------ loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # A new dictionary: TRL keeps the batch for further iterations over it.
        batch = {key: value for key, value in inputs.items() if key not in _ADDED}
        self._loss_inputs = inputs
        try:
            if not (self._savings.head_backward and self.model.training):
                return super().compute_loss(model, batch, return_outputs, num_items_in_batch)
            wanted = batch["completion_mask"]
            if self._savings.head_forward:
                # Where nothing is scored the log-probability is 0; an old one of -100 would make a ratio of infinity,
                # and infinity times a weight of 0 is NaN.
                wanted = (inputs[_WEIGHTS] != 0) & ~without_advantage(inputs["advantages"]).unsqueeze(1)
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
        finally:
            self._loss_inputs = None

    @contextmanager
    def _metrics_of_this_pass(self):
        """Metrics that are logged inside, apart from those logged before."""
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
            `torch.Tensor` of shape `(batch, seq)`: float weights inside [`compute_loss`]; outside of it, where there
            is no batch to select from, TRL's boolean mask.
        """
        inputs = self._loss_inputs
        if inputs is None:
            return super().get_high_entropy_mask(entropies, mask, threshold)
        entropies = entropies.detach()
        mode = "train" if self.model.training else "eval"
        weights = inputs.get(_WEIGHTS)
        if weights is None:
            selected = self._select(entropies, mask, inputs.get(_PRIORITIES))
            scale = inputs[_SCALE] if mode == "train" else self._count_scale(mask, selected)
            weights = selected.float() * scale
            self._record(mode, count_metrics(mask, selected, inputs["advantages"], ranks=self._ranks))
            self._record(mode, self._entropy_metrics(entropies, mask, selected))
        else:
            with self._naming_the_step():
                check_entropies(entropies, mask, self._ranks)
            if self.args.token_selection == "random":  # nobody has looked at entropies yet
                self._record(mode, self._entropy_metrics(entropies, mask, weights))
        if self.loss_type == "bnpo" and self.args.loss_denominator == "selected":
            weights = weights * (mask.sum() / weights.sum().clamp(min=1.0))
        return weights

    # ------------------------------------------------------------------ calls into selection.py

    def _select(self, entropies, mask, priorities):
        with self._naming_the_step():
            return select_in_scope(
                entropies,
                mask,
                self.args.top_entropy_quantile,
                rule=self.args.token_selection,
                scope=self.args.entropy_threshold_scope,
                priorities=priorities,
                ranks=self._ranks,
            )

    @contextmanager
    def _naming_the_step(self):
        try:
            yield
        except NaNEntropyError as error:
            raise NaNEntropyError(
                f"Step {self.state.global_step}: {error} The model has diverged or was loaded broken: resume from an "
                "earlier checkpoint with a lower learning_rate or max_grad_norm, and train in bf16 or fp32 rather "
                "than fp16."
            ) from error

    def _entropy_metrics(self, entropies, mask, selected):
        rule, scope = self.args.token_selection, self.args.entropy_threshold_scope
        return entropy_metrics(entropies, mask, selected, rule=rule, scope=scope, ranks=self._ranks)

    def _record(self, mode, metrics):
        for name, value in metrics.items():
            self._metrics[mode][f"forking/{name}"].append(value)
