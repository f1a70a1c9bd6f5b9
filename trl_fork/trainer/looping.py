"""
RLTT in a trainer: the policy gradient of every loop of a looped language model, from one call of the fused LM head.

The log-probability of a token becomes `sum_t omega_t log P_t`, where `P_t` is read after loop `t`. Completions are
sampled from the last loop. For an earlier one this is supervision weighted by the advantage, and no policy gradient of
`P_t`: nothing was sampled from it.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from accelerate.utils import DistributedType

from .._logging import logger
from ..looped import OuroForCausalLM, exit_gate_of, find_looped
from ..looped.credit import EXIT, loop_weights
from ._trl import TrainerMixin
from .context import WithContext
from .lm_head import wanted_tokens_moved


class LoopWeighted:
    """
    A looped model with TRL's fused LM head, whose log-probabilities are weighted sums over its loops.

    The states after all loops stand one below the other as rows of one batch, so that the head is called once and
    keeps no logits. Entropies are those of the last loop, the policy that samples.

    Args:
        model (`Callable`): The model that TRL would call, wrapped or not.
        looped ([`~looped.OuroForCausalLM`]): The looped model inside it.
        credit (`str`), power (`float`): As in [`~looped.credit.loop_weights`].
    """

    def __init__(self, model, looped: OuroForCausalLM, credit: str, power: float):
        self.model, self.looped, self.credit, self.power = model, looped, credit, power

    def __call__(self, input_ids, labels, **settings):
        num_loops, (batch, width) = self.looped.config.total_ut_steps, labels.shape

        def in_all_loops(values):
            return values.repeat(num_loops, 1)

        with wanted_tokens_moved(in_all_loops, width), _gate_logits(self.looped) as gate_logits:
            outputs = self.model(
                input_ids=input_ids,
                labels=in_all_loops(labels),
                stack_loop_states=True,
                output_loop_states=self.credit == EXIT,
                **settings,
            )
        log_probs = outputs.log_probs.unflatten(0, (num_loops, batch)).movedim(0, -1)
        gate = None if self.credit != EXIT else gate_logits[-1][:, :-1].to(log_probs.device)
        weights = loop_weights(self.credit, num_loops, power=self.power, gate_logits=gate)
        return SimpleNamespace(
            log_probs=(log_probs * weights.to(log_probs.device)).sum(-1),
            entropy=None if outputs.entropy is None else outputs.entropy[-batch:],
            aux_loss=None,
        )


@contextmanager
def _gate_logits(looped: OuroForCausalLM):
    """The logits of the gate in the passes inside: TRL's fused head hands only the states on."""
    found: list[torch.Tensor] = []
    handle = looped.model.register_forward_hook(lambda module, inputs, outputs: found.append(outputs.gate_logits))
    try:
        yield found
    finally:
        handle.remove()


class LoopingMixin(WithContext, TrainerMixin):
    """Looped language models in a trainer: what is not trained is frozen, and `loop_credit` weights their loops."""

    _looped: OuroForCausalLM | None = None

    def _init_loops(self) -> None:
        """
        Look at the model, and freeze a gate that no loss reads.

        Raises:
            `ValueError`: for `loop_credit` with a model without loops; for a model with loops and continuous batching,
                or reentrant checkpointing in several processes.
        """
        self._looped, args = find_looped(self.model), self.args
        if self._looped is None:
            refuse_model_without_loops(args, self.model)
            return
        if args.use_transformers_continuous_batching:
            raise ValueError(
                "use_transformers_continuous_batching=True does not go with a looped model: it keeps the keys and "
                "values of a layer once, and a loop has its own. Set it to False."
            )
        if self._checkpoints_reentrantly and self.accelerator.distributed_type != DistributedType.NO:
            raise ValueError(
                "Reentrant gradient checkpointing does not go with a looped model in several processes: the backward "
                "pass of each loop would report the gradients of the layers as complete. Leave use_reentrant out of "
                "gradient_checkpointing_kwargs. With an adapter under ZeRO-3, where TRL sets it, set "
                "gradient_checkpointing=False, or take DDP or ZeRO-2."
            )
        gate = exit_gate_of(self.model)
        if args.loop_credit == EXIT and self._looped.config.total_ut_steps > 1:
            if not any(parameter.requires_grad for parameter in gate) and self.accelerator.is_main_process:
                logger.warning(
                    "loop_credit='exit': the gate is frozen, so that the weights of the loops stay as they are. RLTT "
                    "trains it: with an adapter set lora_modules_to_save to [early_exit_gate]."
                )
            return
        # A parameter that no loss reads is an error in DDP, which waits for its gradient.
        for parameter in gate:
            parameter.requires_grad_(False)

    @property
    def _checkpoints_reentrantly(self) -> bool:
        kwargs = self.args.gradient_checkpointing_kwargs or {}
        return bool(self.args.gradient_checkpointing and kwargs.get("use_reentrant"))

    def _of_all_loops(self, model):
        """Replacement of `model` for TRL's calls in the update with `loop_credit`; otherwise the model itself."""
        if self._looped is None or self.args.loop_credit is None or not torch.is_grad_enabled():
            return model
        return LoopWeighted(model, self._looped, self.args.loop_credit, self.args.loop_credit_power)


def refuse_model_without_loops(args, model) -> None:
    """Refuse `loop_credit` for a model that is not looped, or not of this package's class."""
    if args.loop_credit is not None:
        raise ValueError(
            f"loop_credit={args.loop_credit!r} needs a looped language model, and {type(model).__name__} is none: it "
            "reads the states after each loop of trl_fork.looped.OuroForCausalLM. Leave it out, or load a model of "
            "the type 'ouro' (by its name, or after `import trl_fork.looped`)."
        )
