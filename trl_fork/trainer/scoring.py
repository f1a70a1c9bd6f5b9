"""Passes of the model over a batch: rows from their first token on, without padding and without dropout."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from .._logging import logger
from ..ranks import Ranks
from ._trl import evaluation_mode, training_adapter_is_active
from .balancing import chunks_needed, default_tokens, spread
from .batch import GenerationBatch
from .context import PolicyScores, context_of
from .lm_head import row_sparse_head
from .looping import LoopingMixin
from .packed_attention import find_other_layers, packed_attention
from .packing import Packed, fill_pass, packing_effect
from .right_padding import RightPadded
from .savings import Savings, padding_effect, rounding, score_by_length


class ScoringMixin(LoopingMixin):
    """Makes the scores of a row independent of the other rows of its batch."""

    _ranks: Ranks
    _plan_savings: Callable[..., Savings]
    _savings = Savings()
    _differs_from_trl = False
    _planned_chunks: tuple[int, int | None] = (0, None)  # rows of the batch in hand, and passes that score them
    _checked_tokens = 0  # tokens of the largest pass for which packing was found to have no effect
    _checked_width = 0  # columns of the widest batch for which padding was found to have no effect

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        arguments = (input_ids, attention_mask, logits_to_keep, batch_size)
        context = context_of(self)
        if torch.is_grad_enabled():
            model = self._without_padding(model, kwargs)
            found = super()._get_per_token_logps_and_entropies(model, *arguments, compute_entropy, **kwargs)
        else:
            # Dropout would change entropies and ratios from one scoring of the same tokens to the next.
            own = model is self.model and self._differs_from_trl
            wanted = context.old_policy_scores
            reuse = wanted == [] and model is self.model and training_adapter_is_active(model)
            with evaluation_mode(model) if own else nullcontext(), self._packed_attention(model):
                found = self._score(model, *arguments, compute_entropy or reuse, **kwargs)
            if reuse:
                wanted.append(PolicyScores(input_ids, *found[:2]))
        log_probs, entropies, aux_loss = found
        if context.loss_log_probs is not None:
            context.loss_log_probs.append(log_probs.detach())
        return log_probs, entropies if compute_entropy else None, aux_loss

    def _score(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs):
        """TRL's pass without gradient, in chunks of similar length if padding can be cut."""
        model, score = self._without_padding(model, kwargs), super()._get_per_token_logps_and_entropies
        if not self._savings.padding or kwargs.get("compute_aux_loss"):
            return score(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs)

        def score_chunk(ids, mask, length):
            completion_mask = mask[:, -length:]
            with row_sparse_head(completion_mask, completion_mask):
                return score(model, ids, mask, length, compute_entropy=compute_entropy, **kwargs)[:2]

        chunks = self._chunks(attention_mask, batch_size or len(input_ids))
        return *score_by_length(score_chunk, input_ids, attention_mask, logits_to_keep, chunks), None

    def _chunks(self, attention_mask, batch_size: int) -> list[torch.Tensor]:
        """Rows that are scored together. Every process has as many chunks as if rows were not moved."""
        lengths = attention_mask.sum(1)
        if self._savings.packing:
            number = -(-len(lengths) // batch_size)
            rows_planned, planned = self._planned_chunks
            if planned is not None and rows_planned == len(lengths):
                number = min(number, planned)
            rows = spread(lengths.tolist(), number)
            return [torch.tensor(chunk, device=lengths.device) for chunk in rows]
        return list(lengths.argsort(descending=True, stable=True).split(batch_size))

    def _without_padding(self, model, arguments):
        """Replacement of `model` for TRL's calls; the model itself with images, whose tensors are placed by column."""
        images = any(value is not None for name, value in arguments.items() if name != "compute_aux_loss")
        if images or not self._differs_from_trl:
            return model
        own, model = self._own(model), self._of_all_loops(model)
        if self._savings.packing:
            return Packed(model, own)
        return RightPadded(model, cut=self._savings.padding)

    def _own(self, model):
        """A model without what wraps it: the policy, or the reference model."""
        return self.accelerator.unwrap_model(model)

    def _packed_attention(self, model):
        return packed_attention(self._own(model)) if self._savings.packing else nullcontext()

    def _generate(self, prompts):
        generated = super()._generate(prompts)
        self._check_rows(*generated[:2])
        return generated

    def _check_rows(self, prompt_ids, completion_ids):
        """Test what the model makes of padding and of packed rows, whenever there is more of it than before."""
        if self._savings.padding:
            self._check_padding(prompt_ids, completion_ids)
        if self._savings.packing:
            self._check_packing(prompt_ids, completion_ids)

    def _check_padding(self, prompt_ids, completion_ids):
        """
        Test whether padding changes the model's scores of a row, whenever a batch is wider than all before.

        All ranks score half of the shortest row twice without gradient, alone and padded to the full width. Half of a
        row always has padding, even in a batch in which every completion is cut off.
        """
        width_here = max(map(len, prompt_ids)) + max(map(len, completion_ids))
        width = int(self._ranks.gather(torch.tensor(width_here, device=self.accelerator.device)).max())
        if width <= self._checked_width:
            return
        self._checked_width = width
        # A model cannot run beyond its learned positions; the virtual tokens of an adapter take some of them.
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or width
        limit -= getattr(getattr(self.model, "active_peft_config", None), "num_virtual_tokens", None) or 0
        rows = (list(p) + list(c) for p, c in zip(prompt_ids, completion_ids, strict=True))
        # After a resume there may be rows without tokens, which make the number of rows equal on all processes.
        row = min(filter(None, rows), key=len)
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
        if effect > self._rounding():
            self._savings = self._plan_savings(length_shows=True)
            if self.accelerator.is_main_process:
                name = type(self.accelerator.unwrap_model(self.model)).__name__
                logger.warning(
                    f"skip_inert_compute: padding a row to {width} tokens changes its log-probabilities by "
                    f"{effect:.2g} nats on average: {name} reads the padded length. From here on padding stays as TRL "
                    "makes it, and rows keep their micro-batches."
                )

    def _check_packing(self, prompt_ids, completion_ids):
        """
        Test whether packed rows have the scores that they have alone, in a pass of as many tokens as the largest one.

        All ranks pack rows of theirs and look at the two shortest, which come last. The number of passes that score
        the batch, the same on all ranks, is found from the same facts.
        """
        mode, device = "train" if self.model.training else "eval", self.accelerator.device
        rows = [(list(prompt), list(ids)) for prompt, ids in zip(prompt_ids, completion_ids, strict=True)]
        # After a resume the completions that were cut off may be masked: then the end of the prompt is compared.
        rows = [(prompt, ids) if ids else (prompt[:-1], prompt[-1:]) for prompt, ids in rows]
        rows = sorted((row for row in rows if row[1]), key=lambda row: -len(row[0]) - len(row[1]))
        lengths = [len(prompt) + len(ids) for prompt, ids in rows]
        facts_here = [*(max(len(row[part]) for row in rows) for part in (0, 1)), sum(lengths), max(lengths)]
        facts = self._ranks.gather_vectors(torch.tensor(facts_here, device=device))
        prompt_length, completion_length, tokens, longest = facts.amax(0).tolist()
        padded = getattr(self.args, f"per_device_{mode}_batch_size") * (prompt_length + completion_length)
        room = self.args.max_tokens_per_forward or default_tokens(padded, device)
        self._planned_chunks = (len(prompt_ids), chunks_needed(tokens, longest, room))
        room = max(min(room, int(facts[:, 2].sum())), longest)
        if room <= self._checked_tokens:
            return
        self._checked_tokens = room
        score = super()._get_per_token_logps_and_entropies
        packed = Packed(self.model, self._own(self.model))
        with torch.no_grad(), evaluation_mode(self.model), self._packed_attention(self.model):
            try:
                effect = packing_effect(
                    lambda model, *batch: score(model, *batch)[0],
                    self.model,
                    packed,
                    fill_pass(rows, room),
                    self._tokenizer.pad_token_id,
                    device,
                )
                reason = f"its log-probabilities change by {effect:.2g} nats on average"
                # In 16 bits, rounding would hide what a model with small weights makes of its neighbours.
                if others := find_other_layers(self._own(self.model), packed.layers_within_rows):
                    effect, reason = float("inf"), others
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a model may fail in any way on rows that it was not made for
                effect, reason = (
                    float("inf"),
                    f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}",
                )
        here, effect = effect, float(self._ranks.gather(torch.tensor(effect, device=device)).max())
        if effect > self._rounding():
            name = type(self._own(self.model)).__name__
            if here <= self._rounding():
                reason = "on another process"
            self._savings = self._plan_savings(length_shows=False, obstacle_to_packing=f"{name} mixes packed rows")
            if self.accelerator.is_main_process:
                logger.warning(
                    f"padding_free: {name} does not keep packed rows apart ({reason}). From here on rows are padded."
                )

    def _rounding(self) -> float:
        return rounding(self.model, *([torch.bfloat16] * self.args.bf16), *([torch.float16] * self.args.fp16))

    def score(self, batch: GenerationBatch) -> PolicyScores:
        """Score a batch with the current policy, without gradient. All processes must call this together."""
        return self._starting_policy_scores(vars(batch))

    def _starting_policy_scores(self, output, reused=None) -> PolicyScores:
        """
        Scores of a generation batch by the policy that starts it.

        Args:
            output (`dict`):
                The rows of this process as TRL made them.
            reused (`list[PolicyScores]`, *optional*):
                Scores of TRL's own pass; without them the rows are scored, which all processes must do together.
        """
        input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        # The first scores may belong to another batch: a rollout function may score sequences of its own.
        if reused and torch.equal(reused[0].input_ids, input_ids):
            return reused[0]
        with torch.no_grad():
            log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                input_ids,
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
            )
        return PolicyScores(input_ids, log_probs, entropies)

    def _buffered_tokens(self, part):
        """Token ids of the prompts or completions of the current generation batch, one list per row."""
        return [
            row[mask.bool()].tolist()
            for batch in self._buffered_inputs
            for row, mask in zip(batch[f"{part}_ids"], batch[f"{part}_mask"], strict=True)
        ]
