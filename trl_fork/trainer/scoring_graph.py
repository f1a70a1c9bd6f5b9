"""
An update from the graph of the scoring pass, where both see the same weights.

With one update per generation batch and no dropout, the pass that scores the batch and the forward pass of the update
compute the same. Keeping the graph of the first saves the second: of five passes over a completion (scoring, forward,
recomputation, and a backward pass worth two) one is left out, or one of four without gradient checkpointing. The price
is memory. The graph of all completions with an advantage is there at once, not that of one micro-batch at a time.
"""

from dataclasses import dataclass

import torch

from .._logging import logger
from ._trl import old_logps_are_computed
from .batch_credit import WEIGHTS
from .batching import with_gradient, without_advantage
from .context import PolicyScores, context_of
from .scoring import ScoringMixin


SCORED_ROW = "scored_row"  # (batch,) long: number of a row when the batch was scored, in what this adds to batches


@dataclass(frozen=True)
class ScoringGraph:
    """
    Scores with their graph.

    Args:
        scores ([`PolicyScores`]): Scores of the batch, in the order in which it was scored.
        has_graph (`torch.BoolTensor` of shape `(batch,)`): Rows whose log-probabilities have a graph.
    """

    scores: PolicyScores
    has_graph: torch.Tensor


class ScoringGraphMixin(ScoringMixin):
    """Scores the rows that have an advantage with their graph, and takes the update's log-probabilities from it."""

    _graph: ScoringGraph | None = None
    _needs_scores: bool  # whether the generation batch is scored by the policy that starts it

    def _scores_for_update(self, output: dict) -> PolicyScores:
        """Scores of a generation batch as [`_starting_policy_scores`] gives them; the graph is kept beside them."""
        self._refuse_dropout()  # it may have been set since the trainer was built
        live = ~without_advantage(output["advantages"])
        if not self._savings.inert_rows:  # every row has a gradient, of the KL term or of trajectory balance
            live = torch.ones_like(live)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        length, size = output["completion_ids"].shape[1], self.args.per_device_train_batch_size
        log_probs = entropies = torch.zeros(ids.shape[0], length, device=ids.device)
        for rows in (live.nonzero().squeeze(1), (~live).nonzero().squeeze(1)):
            if len(rows):
                with torch.set_grad_enabled(bool(live[rows[0]])), self._packed_attention(self.model):
                    found = self._score(self.model, ids[rows], mask[rows], length, size, True)
                log_probs = log_probs.index_copy(0, rows, found[0].float())
                entropies = entropies.index_copy(0, rows, found[1].detach().float())
        output[SCORED_ROW] = torch.arange(len(ids), device=ids.device)
        self._graph = ScoringGraph(PolicyScores(ids, log_probs, entropies), live) if live.any() else None
        return PolicyScores(ids, log_probs.detach(), entropies)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        inputs = context_of(self).loss_inputs
        if self._graph is not None and torch.is_grad_enabled() and inputs is not None and SCORED_ROW in inputs:
            graph, self._graph = self._graph, None  # the backward pass frees what it has passed
            rows = inputs[SCORED_ROW]
            if bool(graph.has_graph[rows].all()):
                log_probs, entropies = (
                    values[rows, :logits_to_keep] for values in (graph.scores.log_probs, graph.scores.entropies)
                )
                if self._savings.head_forward:  # as after a pass that scores these tokens alone
                    log_probs = log_probs.where(with_gradient(inputs[WEIGHTS], inputs["advantages"]), 0)
                return log_probs, entropies, None
            del graph
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    @property
    def _keeps_graph(self) -> bool:
        """Whether the option is on, and rows may be put into one pass."""
        savings = self._savings
        return self.args.reuse_scoring_graph and savings.packing and savings.ordering

    def _check_scoring_graph(self) -> None:
        """
        Refuse `reuse_scoring_graph` where the update would not see what the scoring pass saw.

        Raises:
            `ValueError`: naming the obstacle and the remedy.
        """
        if not self.args.reuse_scoring_graph:
            return
        savings = self._savings
        off = [name for name in ("skip_inert_compute", "padding_free") if not getattr(self.args, name)]
        reason = f"{off[0]}=False" if off else savings.reasons.get("packing") or savings.reasons.get("ordering")
        obstacles = {
            "several processes synchronise gradients in a forward pass of their own. Train on one": (
                self.accelerator.num_processes > 1
            ),
            "TRL scores the old log-probabilities of this run by itself, for several updates per batch or vLLM's "
            "correction. Set num_iterations=1, steps_per_generation at most gradient_accumulation_steps and "
            "vllm_importance_sampling_correction=False": old_logps_are_computed(self),
            f"neftune_noise_alpha={self.args.neftune_noise_alpha} adds noise to the embeddings in the update, and "
            "the scoring pass has to be without. Leave it out": self.args.neftune_noise_alpha is not None,
            f"rows must stand in one packed pass, and here they do not ({reason})": not self._keeps_graph,
        }
        for obstacle, holds in obstacles.items():
            if holds:
                raise ValueError(f"reuse_scoring_graph=True: {obstacle}.")
        self._refuse_dropout()
        if not self._needs_scores:
            logger.warning(
                "reuse_scoring_graph=True has no effect: neither a credit rule of this run nor its objective needs a "
                "scoring pass, so there is none."
            )

    def _refuse_dropout(self) -> None:
        if dropout := dropout_of(self.model):
            raise ValueError(
                f"reuse_scoring_graph=True: the model has dropout ({dropout}), which the update applies and the "
                "scoring pass does not. Set it to 0, such as lora_dropout: 0.0."
            )


_DROPOUT = (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.AlphaDropout)


def dropout_of(model: torch.nn.Module) -> str | None:
    """Name of a module or of its setting that makes a forward pass in training random; `None` if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, _DROPOUT) and module.p > 0:
            return name
        # Layers of transformers hand their share to a function, skip themselves, or shake the input of a router.
        for attribute, share in vars(module).items():
            if isinstance(share, float) and share > 0 and ("drop" in attribute or "jitter" in attribute):
                return f"{name}.{attribute}" if name else attribute
    return None
