"""
Ouro, a looped language model, on the blocks of Llama.

`F = head o (norm o layers)^R o embed`: the layers are run R times with the same weights, and the final norm after
every loop. Names of parameters are those of the published files.
"""

import copy
import inspect
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils import can_return_tuple

from .._transformers import CACHE
from .config import OuroConfig, check_num_loops, with_end_of_turn


# transformers 5.0 names the embeddings otherwise, and asks for the places of the tokens.
_MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters


@dataclass
class OuroModelOutput(BaseModelOutputWithPast):
    """
    Output of [`OuroModel`].

    Args:
        loop_states (`tuple[torch.Tensor]`, *optional*):
            Normed states after each loop, R tensors of shape `(batch, seq, hidden)`; the last one is
            `last_hidden_state`. Only with `output_loop_states=True`.
        gate_logits (`torch.Tensor` of shape `(batch, seq, R)`, *optional*):
            Logit of leaving after each loop, given that no earlier one was the last. Only with
            `output_loop_states=True`.
    """

    loop_states: tuple[torch.Tensor, ...] | None = None
    gate_logits: torch.Tensor | None = None


@dataclass
class OuroCausalLMOutput(CausalLMOutputWithPast):
    """
    Output of [`OuroForCausalLM`]: the logits of the last loop.

    Args:
        loop_states (`tuple[torch.Tensor]`, *optional*): As in [`OuroModelOutput`].
        gate_logits (`torch.Tensor` of shape `(batch, seq, R)`, *optional*): As in [`OuroModelOutput`].
    """

    loop_states: tuple[torch.Tensor, ...] | None = None
    gate_logits: torch.Tensor | None = None


class OuroDecoderLayer(LlamaDecoderLayer):
    """A layer of Llama with a norm before and after its attention and its MLP."""

    def __init__(self, config: OuroConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.input_layernorm_2 = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm_2 = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:  # type: ignore[override]
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.input_layernorm_2(attended)
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.post_attention_layernorm_2(transformed)


class OuroPreTrainedModel(LlamaPreTrainedModel):
    config: OuroConfig
    config_class = OuroConfig
    _no_split_modules = ["OuroDecoderLayer"]
    _can_record_outputs: dict = {}


class _LoopOfCache:
    """The entries of one loop in a cache: that of layer `l` in loop `r` of `L` layers is number `r * L + l`."""

    def __init__(self, cache: Cache, first: int):
        self.cache, self.first = cache, first

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        return self.cache.update(key_states, value_states, self.first + layer_idx, *args, **kwargs)


class OuroModel(OuroPreTrainedModel):
    """Embeddings, layers that run several times, and the gate that says after which loop to leave."""

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(OuroDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_loops: int | None = None,
        output_loop_states: bool = False,
        stack_loop_states: bool = False,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> OuroModelOutput:
        """
        Run the layers `num_loops` times.

        Args:
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache (*optional*):
                As in [`~transformers.LlamaModel`]. `past_key_values` is the name of `cache` before transformers 5.24.
            num_loops (`int`, *optional*):
                Number of loops; `config.total_ut_steps` by default. A cache goes on with as many as it began with.
            output_loop_states (`bool`, *optional*, defaults to `False`):
                Return the normed states of every loop and the logits of the gate, which runs for this alone.
            stack_loop_states (`bool`, *optional*, defaults to `False`):
                Return as `last_hidden_state` the states of all loops, those of the first loop's rows first: shape
                `(R * batch, seq, hidden)`, for an LM head that scores all loops in one call.
            output_hidden_states (`bool`, *optional*):
                Return the input of every layer in every loop, and the last normed states: `R * L + 1` tensors.
            kwargs:
                Arguments of the attention, such as those that keep packed rows apart.

        Raises:
            `ValueError`: for neither or both of `input_ids` and `inputs_embeds`, a number of loops below 1, or a cache
                that began with another number of loops.
            `NotImplementedError`: for attention weights, or a cache of pages (continuous batching).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if kwargs.pop("output_attentions", None):
            raise NotImplementedError("output_attentions=True: Ouro does not return attention weights.")
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(cache, Cache):
            raise NotImplementedError(
                "Continuous batching keeps the keys and values of a layer once, and Ouro has others in every loop. "
                "Use generate, or vLLM."
            )
        num_loops = self.config.total_ut_steps if num_loops is None else num_loops
        check_num_loops("num_loops", num_loops)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        recomputes = self.gradient_checkpointing and self.training  # the layers drop the cache then
        if use_cache and cache is None and not recomputes:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            _make_room(cache, len(self.layers), num_loops)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            places = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = places.unsqueeze(0)  # type: ignore[assignment]
        mask = self._causal_mask(inputs_embeds, attention_mask, cache, position_ids)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)

        hidden_states, inputs_of_layers, loop_states = inputs_embeds, [], []
        for loop in range(num_loops):
            of_loop = None if cache is None else _LoopOfCache(cache, loop * len(self.layers))
            for layer in self.layers:
                if output_hidden_states:
                    inputs_of_layers.append(hidden_states)
                hidden_states = layer(
                    hidden_states,
                    attention_mask=mask,
                    position_embeddings=position_embeddings,
                    position_ids=position_ids,
                    use_cache=use_cache,
                    **{CACHE: of_loop},
                    **kwargs,
                )
            hidden_states = self.norm(hidden_states)
            if output_loop_states or stack_loop_states:
                loop_states.append(hidden_states)
        return OuroModelOutput(
            last_hidden_state=torch.cat(loop_states) if stack_loop_states else hidden_states,
            hidden_states=(*inputs_of_layers, hidden_states) if output_hidden_states else None,
            loop_states=tuple(loop_states) if output_loop_states else None,
            gate_logits=self._gate_logits(loop_states) if output_loop_states else None,
            **{CACHE: cache if use_cache else None},  # type: ignore[arg-type]
        )

    def _gate_logits(self, loop_states: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([self.early_exit_gate(states) for states in loop_states], dim=-1)

    def _causal_mask(self, inputs_embeds, attention_mask, cache, position_ids):
        arguments = {
            "config": self.config,
            "attention_mask": attention_mask,
            CACHE: cache,
            "position_ids": position_ids,
            "inputs_embeds" if "inputs_embeds" in _MASK_ARGUMENTS else "input_embeds": inputs_embeds,
        }
        if "cache_position" in _MASK_ARGUMENTS:
            seen = 0 if cache is None else cache.get_seq_length()
            arguments["cache_position"] = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
        return create_causal_mask(**arguments)


class OuroForCausalLM(OuroPreTrainedModel, GenerationMixin):
    """
    Ouro with its LM head (https://huggingface.co/papers/2510.25741).

    Logits, generation and the loss are those of the last loop. The published code differs in one thing: with `labels`
    its logits and loss are those of the logits' expectation over the exits.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.model = OuroModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def adjust_generation_fn(self, *args, **kwargs):
        # transformers annotates `self` with a protocol that its own models do not fulfil.
        super().adjust_generation_fn(*args, **kwargs)  # type: ignore[misc]
        ends = self.generation_config
        ends.eos_token_id = with_end_of_turn(ends.bos_token_id, ends.eos_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_loops: int | None = None,
        output_loop_states: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> OuroCausalLMOutput:
        """
        Logits of the last loop.

        Args:
            labels (`torch.LongTensor` of shape `(batch, seq)`, *optional*):
                Tokens for the cross-entropy of the last loop, -100 where there is none.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to `0`):
                Number of positions at the end, or their numbers, whose logits are computed; all by default.
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, kwargs (*optional*):
                As in [`~transformers.LlamaForCausalLM`]. `past_key_values` is the name of `cache` before transformers
                5.24.
            num_loops, output_loop_states (*optional*):
                As in [`OuroModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            num_loops=num_loops,
            output_loop_states=output_loop_states,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return OuroCausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            loop_states=outputs.loop_states,
            gate_logits=outputs.gate_logits,
            **{CACHE: outputs.get(CACHE)},
        )


def _make_room(cache: Cache, num_layers: int, num_loops: int) -> None:
    """Give a cache that was made for the layers an entry for each of them in each loop."""
    wanted, layers = num_layers * num_loops, cache.layers
    if not cache.get_seq_length() and getattr(cache, "layer_class_to_replicate", None) is None:
        layers.extend([copy.deepcopy(layers[number % num_layers]) for number in range(len(layers), wanted)])
    if cache.get_seq_length() != cache.get_seq_length(wanted - 1):
        raise ValueError(
            f"num_loops={num_loops} does not go with a cache that began with another number of loops: the keys and "
            "values of some are missing. Begin with a new cache."
        )


def find_looped(model: nn.Module) -> OuroForCausalLM | None:
    """The looped language model inside a model, which PEFT or a trainer may have wrapped; `None` if there is none."""
    return next((module for module in model.modules() if isinstance(module, OuroForCausalLM)), None)


def exit_gate_of(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the exit gate, those of an adapter on it among them."""
    return [parameter for name, parameter in model.named_parameters() if "early_exit_gate" in name.split(".")]
