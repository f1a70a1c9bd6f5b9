"""
What a model makes of positions and padding: the step is that of completions that stand alone, however they are cut.

Every architecture that reads more than the relative place of its tokens, as real tiny models.
"""

import copy
import logging

import pytest
import torch
import transformers
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from trl import GRPOConfig, GRPOTrainer

import trl_fork.trainer.packing as packing
from tests.conftest import (
    FixedRollouts,
    SpyTrainer,
    gradient,
    naive_view,
    relative_difference,
    train,
    weight_change,
)
from tests.oracles import loss, select
from trl_fork import ForkingGRPOConfig
from trl_fork.trainer.right_padding import RightPadded


SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
}  # fmt: skip
# In 14 of 21 columns: rows are on both sides of it
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 14, "factor": 4.0,
}  # fmt: skip
GPT2 = {
    "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
OPT = {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
    "max_position_embeddings": 64, "init_std": 0.3, "dropout": 0.0,
}  # fmt: skip
BLOOM = {
    "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip
QWEN3_NEXT = {
    **SMALL, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
FALCON_H1 = {
    **SMALL, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4,
}  # fmt: skip
ARCHITECTURES = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SMALL),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SMALL),
    "gemma3: windows": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**SMALL, "sliding_window": 4, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    ),
    "ministral3: scaled by position": (
        "Ministral3ForCausalLM",
        "Ministral3Config",
        {**SMALL, "rope_parameters": YARN},
    ),
    "gpt2: learned positions": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "opt: learned positions": ("OPTForCausalLM", "OPTConfig", OPT),
    "bloom: alibi": ("BloomForCausalLM", "BloomConfig", BLOOM),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3},
    ),
    "lfm2: convolutions": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {**SMALL, "full_attn_idxs": [1], "block_ff_dim": 48, "block_auto_adjust_ff_dim": False},
    ),
    "falcon h1: hybrid": ("FalconH1ForCausalLM", "FalconH1Config", FALCON_H1),
    "qwen3 next: hybrid, experts": ("Qwen3NextForCausalLM", "Qwen3NextConfig", QWEN3_NEXT),
}
# Those whose rows keep to themselves one after the other. Bloom's attention is eager; the others carry a state.
KEPT_APART = ("qwen3", "llama", "gemma3", "ministral3", "gpt2", "opt")
PACKED = [name for name in ARCHITECTURES if name.split(":")[0] in KEPT_APART]
ADAPTERS = {
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}
WHOLE = {}  # one micro-batch of 32 rows
CUT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}


def build(name, tokenizer, **overrides):
    torch.manual_seed(0)
    model_class, config_class, settings = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(
        **{
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **settings,
            **overrides,
        }
    )
    return getattr(transformers, model_class)(config)


def compare(start, tokenizer, tmp_path, rollouts=None, **settings):
    """The trainer, and how far its step is from that of the naive objective."""
    model = copy.deepcopy(start)
    rollouts = rollouts or FixedRollouts(tokenizer)
    trainer = train(model, tokenizer, rollouts, tmp_path, router_aux_loss_coef=0.0, **settings)
    batch = rollouts.generated[0]
    entropies, advantages = naive_view(start, batch)
    selected = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    expected = gradient(start, loss(start, batch, advantages, selected, len(selected)))
    return trainer, relative_difference(weight_change(start, model), expected)


@pytest.mark.parametrize("cut", [WHOLE, CUT], ids=["1 x 32", "4 x 8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_is_that_of_completions_alone(name, cut, tokenizer, tmp_path):
    before = packing.tokens_packed
    trainer, difference = compare(build(name, tokenizer), tokenizer, tmp_path, **cut)
    assert difference < 1e-4
    assert trainer._savings.padding and trainer._savings.inert_rows and trainer._savings.head_forward
    assert trainer._savings.packing == (packing.tokens_packed > before) == (name in PACKED)


@pytest.mark.parametrize("name", ["gpt2: learned positions", "ministral3: scaled by position", "mamba"])
@pytest.mark.parametrize(
    "settings", [{"skip_inert_compute": False}, {"entropy_threshold_scope": "sequence"}, {"beta": 0.1}], ids=str
)
def test_whatever_is_left_out(name, settings, tokenizer, tmp_path):
    """Without savings, and where a reference model is scored as well: two cuts of one step agree."""
    start = build(name, tokenizer)
    start.save_pretrained(tmp_path / "model")
    start.config._name_or_path = str(tmp_path / "model")
    changes = []
    for cut in (WHOLE, CUT):
        model = copy.deepcopy(start)
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, **cut, **settings)
        changes.append(weight_change(start, model))
    assert relative_difference(*changes) < 1e-4
    if settings == {"skip_inert_compute": False}:
        assert compare(start, tokenizer, tmp_path, **CUT, **settings)[1] < 1e-4


@pytest.mark.parametrize("cut", [WHOLE, CUT], ids=["1 x 32", "4 x 8"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_virtual_tokens_stand_before_the_prompt(adapter, cut, tokenizer, tmp_path):
    """Not before its padding, which would move them away from the shorter prompts."""
    torch.manual_seed(0)
    start = get_peft_model(build("qwen3", tokenizer), ADAPTERS[adapter])
    trainer, difference = compare(start, tokenizer, tmp_path, **cut)
    assert difference < 1e-4
    assert trainer._savings.padding and not trainer._savings.packing


def test_virtual_tokens_take_positions(tokenizer, tmp_path):
    """A model with as many positions as its longest row needs; padded to the whole width, a row would need more."""
    rollouts = next(r for seed in range(99) if longest_row(r := FixedRollouts(tokenizer, seed)) < 9 + 12)
    positions = longest_row(rollouts) + ADAPTERS["prompt tuning"].num_virtual_tokens
    torch.manual_seed(0)
    model = build("gpt2: learned positions", tokenizer, n_positions=positions)
    start = get_peft_model(model, ADAPTERS["prompt tuning"])
    trainer, difference = compare(start, tokenizer, tmp_path, rollouts)
    widest = rollouts.generated[0]
    assert max(len(r.prompt) for r in widest) + max(len(r.completion) for r in widest) > longest_row(rollouts)
    assert difference < 1e-4
    assert trainer._savings.padding


def longest_row(rollouts) -> int:
    return max(len(prompt) + len(completion) for (prompt, _), completion in rollouts.completions.items())


def test_with_all_of_trls_settings_it_is_trls_step(tokenizer, tmp_path):
    """Where the documents promise TRL bit for bit, that includes its padding."""
    start = build("gpt2: learned positions", tokenizer)
    changes = []
    for trainer_class, config_class, settings in (
        (GRPOTrainer, GRPOConfig, {}),
        (SpyTrainer, ForkingGRPOConfig, {"epsilon_high": None, "skip_inert_compute": False}),
    ):
        model = copy.deepcopy(start)
        rollouts = FixedRollouts(tokenizer)
        train(model, tokenizer, rollouts, tmp_path, trainer_class, config_class, top_entropy_quantile=1.0, **settings)
        changes.append(weight_change(start, model))
    assert torch.equal(*changes)


# ---------------------------------------------------------------------- models that read the padded length


OFF_POLICY = {
    "per_device_train_batch_size": 8, "steps_per_generation": 4, "num_iterations": 2, "max_steps": 8,
    "learning_rate": 0.01,
}  # fmt: skip


class ReadsLength(transformers.Qwen3ForCausalLM):
    """Says nothing about it in its configuration: attention is scaled by the columns there are, as Qwen 1's was."""

    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self._scale, with_kwargs=True)

    def _scale(self, module, args, kwargs):
        columns = (args[0] if args else kwargs["input_ids"]).shape[1]
        for layer in self.model.layers:
            layer.self_attn.scaling = 8**-0.5 * (1.0 + max(columns - 14, 0) / 4)


def reads_length(tokenizer):
    config = build("qwen3", tokenizer).config
    torch.manual_seed(0)
    return ReadsLength(config)


@pytest.mark.parametrize("updates", [CUT, OFF_POLICY], ids=["on policy", "off policy"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_model_that_reads_the_padded_length_keeps_it(declared, updates, tokenizer, tmp_path, caplog, monkeypatch):
    """LongRoPE, as in Phi-3 and Phi-4: a row in a shorter batch would be scored by another model."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    start = build("qwen3", tokenizer, rope_parameters=LONGROPE) if declared else reads_length(tokenizer)
    changes = []
    for skip_inert_compute in (True, False):
        model = copy.deepcopy(start)
        if not declared:  # a hook keeps the model that it was made for
            model = reads_length(tokenizer)
        trainer = train(
            model, tokenizer, FixedRollouts(tokenizer), tmp_path, skip_inert_compute=skip_inert_compute, **updates
        )
        assert not trainer._savings.padding and not trainer._savings.ordering
        if skip_inert_compute:
            assert "padded length" in trainer._savings.reasons["padding"]
            assert caplog.text.count("reads the padded length") == (not declared)
        changes.append(weight_change(start, model))
    assert relative_difference(*changes) < 1e-5


class FirstWithoutPadding(FixedRollouts):
    """All rows of the first generation batch are as long as the longest of the later ones."""

    def __call__(self, prompts, trainer):
        output = super().__call__(prompts, trainer)
        if len(self.generated) == 1:
            output["prompt_ids"] = [list(range(4, 13)) for _ in prompts]
            output["completion_ids"] = [[*range(8, 19), self.tokenizer.eos_token_id] for _ in prompts]
        return output


def test_a_batch_without_padding_hides_nothing(tokenizer, tmp_path):
    """If every completion is cut off at first, there is no padding yet that could have an effect."""
    rollouts = FirstWithoutPadding(tokenizer)
    trainer = train(reads_length(tokenizer), tokenizer, rollouts, tmp_path, max_steps=2, learning_rate=0.0, **CUT)
    assert len(rollouts.generated) == 2
    assert not trainer._savings.padding


def test_what_the_model_reads_is_known_after_resuming(tokenizer, tmp_path):
    """Within a generation batch, whose rollouts come from the checkpoint: as if the run had gone on."""
    changes = []
    for resume in (False, True):
        start, model = reads_length(tokenizer), reads_length(tokenizer)
        settings = {**OFF_POLICY, "save_strategy": "steps", "save_steps": 3}
        trainer = train(
            model, tokenizer, FixedRollouts(tokenizer), tmp_path, Resuming if resume else SpyTrainer, **settings
        )
        assert not trainer._savings.padding
        changes.append(weight_change(start, model))
    assert torch.equal(*changes)


class Resuming(SpyTrainer):
    def train(self):
        return super().train(resume_from_checkpoint=f"{self.args.output_dir}/checkpoint-3")


def test_phi3_with_longrope(tokenizer, tmp_path):
    """The architecture itself; all micro-batches have one padded length, so that they agree."""
    torch.manual_seed(0)
    settings = {key: value for key, value in SMALL.items() if key != "head_dim"}
    rope = {**LONGROPE, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    start = transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            vocab_size=len(tokenizer), rope_parameters=rope, original_max_position_embeddings=14,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
            **{**settings, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        )
    )  # fmt: skip
    changes = []
    for cut in (WHOLE, CUT):
        model = copy.deepcopy(start)
        trainer = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, **cut)
        assert not trainer._savings.padding
        changes.append(weight_change(start, model))
    assert relative_difference(*changes) < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rounding_is_no_effect_of_padding(name, tokenizer, tmp_path):
    """In bfloat16 a row and the same row padded differ by more than in float32, and by nothing that counts."""
    model = build(name, tokenizer).bfloat16()
    trainer = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, learning_rate=0.0)
    assert trainer._savings.padding and trainer._checked_width == 21


# ---------------------------------------------------------------------- pure


class Echo:
    """Stands for a model: gives back what it was given, one number per token, after `virtual` more."""

    def __init__(self, virtual=0):
        self.virtual = virtual

    def __call__(self, input_ids, attention_mask, labels, **settings):
        self.input_ids, self.attention_mask, self.labels = input_ids, attention_mask, labels
        values = torch.nn.functional.pad(input_ids[:, 1:].float(), (self.virtual, 0), value=-1.0)
        return transformers.utils.ModelOutput(log_probs=values, entropy=None)


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("cut", [True, False])
def test_right_padding_and_back(cut, virtual):
    ids = torch.tensor([[0, 0, 5, 6, 7, 0], [2, 3, 4, 8, 0, 0], [0, 9, 1, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]])
    model = Echo(virtual)
    outputs = RightPadded(model, cut=cut)(ids, mask, ids.masked_fill(mask == 0, -100))
    width = 4 if cut else 6
    expected = torch.tensor([[5, 6, 7, 0, 0, 0], [2, 3, 4, 8, 0, 0], [9, 1, 0, 0, 0, 0]])[:, :width]
    assert model.input_ids.tolist() == expected.tolist()
    assert model.attention_mask.tolist() == (expected != 0).int().tolist()
    assert model.labels.tolist() == expected.masked_fill(expected == 0, -100).tolist()
    # Every token but a row's first, where it was
    assert outputs.log_probs.tolist() == [[0, 0, 0, 6, 7, 0], [0, 3, 4, 8, 0, 0], [0, 0, 1, 0, 0, 0]]
    assert outputs.entropy is None


@pytest.mark.parametrize("cut", [True, False])
def test_right_padding_of_masked_completions(cut):
    """A completion that is masked altogether, as truncated ones may be, and masks with holes."""
    ids = torch.tensor([[0, 5, 6, 7, 8, 9], [1, 2, 3, 7, 8, 9], [0, 0, 4, 7, 8, 9]])
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1]])
    model = Echo()
    outputs = RightPadded(model, cut=cut)(ids, mask, ids.masked_fill(mask == 0, -100))
    width = 5 if cut else 6
    expected = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 0, 1, 0, 0]])[:, :width]
    assert model.attention_mask.tolist() == expected.tolist()
    assert outputs.log_probs.tolist() == [[0, 0, 6, 0, 0, 0], [0, 2, 3, 0, 8, 0], [0, 0, 0, 7, 0, 9]]


def test_right_padding_of_a_single_token():
    ids = torch.tensor([[0, 0, 5]])
    outputs = RightPadded(Echo(), cut=True)(ids, torch.tensor([[0, 0, 1]]), torch.full_like(ids, -100))
    assert outputs.log_probs.tolist() == [[0, 0, 0]]
