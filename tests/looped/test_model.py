"""Ouro: the published format, a naive loop as the oracle, and everything that runs a model here."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    StaticCache,
)
from trl.trainer.utils import add_fused_lm_head

from tests.conftest import build_looped_model
from tests.looped.naive_ouro import naive_loops
from trl_fork.generation.decoding import DecodingLoop
from trl_fork.generation.engines import TransformersEngine, end_token_ids, load_model
from trl_fork.looped import OuroConfig, OuroForCausalLM, exit_gate_of, find_looped


# As transformers 4 writes it, with the fields of the published files.
PUBLISHED = {
    "architectures": ["OuroForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_ouro.OuroConfig",
        "AutoModel": "modeling_ouro.OuroModel",
        "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM",
    },
    "bos_token_id": 0,
    "eos_token_id": 0,
    "early_exit_threshold": 1.0,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_types": ["full_attention"] * 2,
    "max_position_embeddings": 65536,
    "max_window_layers": 2,
    "model_type": "ouro",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "total_ut_steps": 3,
    "transformers_version": "4.55.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 40,
}
OTHER_SIZE = {
    **PUBLISHED,
    "hidden_size": 48,
    "head_dim": 12,
    "intermediate_size": 80,
    "layer_types": ["full_attention"] * 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "total_ut_steps": 2,
    "vocab_size": 61,
}


def published_weights(config: dict, seed=0) -> dict[str, torch.Tensor]:
    """Random weights under the published names, large enough that loops differ."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.3):
        return torch.randn(*shape, generator=generator) * scale

    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, pairs = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    weights = {
        "model.embed_tokens.weight": draw(config["vocab_size"], hidden),
        "model.norm.weight": 1 + draw(hidden),
        "model.early_exit_gate.weight": draw(1, hidden),
        "model.early_exit_gate.bias": draw(1),
        "lm_head.weight": draw(config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        weights |= {
            f"model.layers.{layer}.{name}.weight": value
            for name, value in {
                "self_attn.q_proj": draw(heads, hidden),
                "self_attn.k_proj": draw(pairs, hidden),
                "self_attn.v_proj": draw(pairs, hidden),
                "self_attn.o_proj": draw(hidden, heads),
                "mlp.gate_proj": draw(inner, hidden),
                "mlp.up_proj": draw(inner, hidden),
                "mlp.down_proj": draw(hidden, inner),
                "input_layernorm": 1 + draw(hidden),
                "input_layernorm_2": 1 + draw(hidden),
                "post_attention_layernorm": 1 + draw(hidden),
                "post_attention_layernorm_2": 1 + draw(hidden),
            }.items()
        }
    return weights


def published_folder(folder, config: dict):
    """A folder as on the Hub: its own modelling code, which transformers 5 cannot run."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0}))
    for name in ("configuration_ouro", "modeling_ouro"):
        (folder / f"{name}.py").write_text("raise RuntimeError('the remote code runs')\n")
    weights = published_weights(config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, weights


def rows(vocabulary=40, *shape, seed=1):
    return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def looped(tokenizer):
    return build_looped_model(tokenizer).eval()


@pytest.mark.parametrize("config", [PUBLISHED, OTHER_SIZE])
@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_a_published_folder_has_the_logits_of_a_naive_loop(tmp_path, config, trust_remote_code):
    folder, weights = published_folder(tmp_path / "Ouro", config)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code).eval()
    assert type(model) is OuroForCausalLM
    ids = rows(config["vocab_size"], 2, 9)
    outputs = model(ids, output_loop_states=True)
    for number, row in enumerate(ids):
        logits, gates = naive_loops(weights, config, row)
        torch.testing.assert_close(outputs.logits[number], logits[-1], rtol=1e-4, atol=1e-4)
        assert len(outputs.loop_states) == config["total_ut_steps"]
        for states, expected in zip(outputs.loop_states, logits, strict=True):
            torch.testing.assert_close(model.lm_head(states)[number], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.gate_logits[number], torch.stack(gates, -1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[0], logits[-1], atol=0.1), "the loops agree, so that nothing was compared"


def test_the_whole_package_takes_a_published_folder(tmp_path, tokenizer):
    folder, _ = published_folder(tmp_path / "Ouro", PUBLISHED)
    tokenizer.save_pretrained(folder)
    model = load_model(str(folder))
    assert type(model) is OuroForCausalLM and model.dtype == torch.float32
    # The files name 0 alone, and a turn of the chat ends with 2.
    ends = sorted({0, 2, tokenizer.eos_token_id})
    assert TransformersEngine(model, tokenizer, max_new_tokens=3).stop_ids == ends
    assert end_token_ids(str(folder), tokenizer) == ends
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [2, 0]


def test_other_end_tokens_stay_as_they_are():
    assert OuroConfig(bos_token_id=1, eos_token_id=2).eos_token_id == 2
    assert OuroConfig(bos_token_id=None, eos_token_id=0).eos_token_id == 0
    assert OuroConfig().eos_token_id is None and OuroConfig().pad_token_id is None


def test_names_and_sizes_of_the_published_models():
    sizes = {**PUBLISHED, "hidden_size": 2048, "head_dim": 128, "intermediate_size": 5632, "vocab_size": 49152}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 48, "total_ut_steps": 4}
    sizes["layer_types"] = ["full_attention"] * 48
    with torch.device("meta"):
        model = OuroForCausalLM(OuroConfig(**sizes))
    assert sum(p.numel() for p in model.parameters()) == 2_667_974_657  # that of Ouro-2.6B on the Hub
    small = {**sizes, "num_hidden_layers": 1, "layer_types": None}
    with torch.device("meta"):
        names = set(OuroForCausalLM(OuroConfig(**small)).state_dict())
    assert names == {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.early_exit_gate.weight",
        "model.early_exit_gate.bias",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.input_layernorm_2.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.post_attention_layernorm_2.weight",
    }


@pytest.mark.parametrize(
    "rope", [{"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}]
)
def test_rotary_base_of_old_and_new_files(rope, tmp_path):
    config = OuroConfig(**{**{k: v for k, v in PUBLISHED.items() if not k.startswith("rope")}, **rope})
    assert config.rope_parameters["rope_theta"] == 5e5
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


@pytest.mark.parametrize("cache", ["default", "of the layers", "lazy", "static"])
def test_a_cache_changes_nothing(looped, cache):
    ids = rows(40, 2, 11)
    expected = looped(ids, use_cache=False).logits
    cache = {
        "default": lambda: None,
        "of the layers": lambda: DynamicCache(config=looped.config),
        "lazy": DynamicCache,
        "static": lambda: StaticCache(config=looped.config, max_cache_len=16),
    }[cache]()
    found, place = [], 0
    for length in (5, 1, 3, 2):
        outputs = looped(ids[:, place : place + length], past_key_values=cache, use_cache=True)
        cache, place = outputs.past_key_values, place + length
        found.append(outputs.logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-4)
    assert len(cache.layers) == 3 * 2
    assert len({layer.keys.data_ptr() for layer in cache.layers}) == 6


def test_a_cache_belongs_to_a_number_of_loops(looped):
    ids = rows(40, 1, 4)
    for first, second in ((2, 3), (3, 4), (1, 2)):
        cache = looped(ids, num_loops=first, use_cache=True).past_key_values
        with pytest.raises(ValueError, match=f"num_loops={second} does not go with a cache"):
            looped(ids[:, :1], past_key_values=cache, num_loops=second)
    cache = DynamicCache()
    looped(ids, num_loops=1, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="num_loops=3 does not go with a cache"):
        looped(ids[:, :1], past_key_values=cache)


def padded_prompts(lengths=(3, 8, 5)):
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long), torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = rows(40, length, seed=row), 1
    return ids, mask.long()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_generation_with_and_without_cache_alone_and_padded_on_the_left(tokenizer, implementation):
    looped = build_looped_model(tokenizer, attn_implementation=implementation).eval()
    ids, mask = padded_prompts()
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [1, 7], "pad_token_id": 0}
    together = looped.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(together, looped.generate(ids, attention_mask=mask, use_cache=False, **settings))
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = looped.generate(ids[row : row + 1, -length:], attention_mask=mask[row : row + 1, -length:], **settings)
        found = together[row, ids.shape[1] - length :]
        assert torch.equal(found[: alone.shape[1]], alone[0])
        assert not found[alone.shape[1] :].any()


def test_the_decoding_loop_gives_what_generate_gives(looped):
    ids, mask = padded_prompts((3, 3, 8, 8, 5))
    ids[1], ids[3] = ids[0], ids[2]
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=[1, 7], pad_token_id=0)
    expected = looped.generate(ids, attention_mask=mask, generation_config=config)
    loop = DecodingLoop(lambda numbers, place: torch.zeros(len(numbers), dtype=torch.float64))
    decoded = looped.generate(ids, attention_mask=mask, generation_config=config, custom_generate=loop)
    assert torch.equal(decoded.sequences, expected)


def test_fewer_loops(looped):
    ids = rows(40, 2, 6)
    states = looped(ids, output_loop_states=True).loop_states
    for loops in (1, 2, 3):
        assert torch.equal(looped(ids, num_loops=loops).logits, looped.lm_head(states[loops - 1]))
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    shallow = looped.generate(ids, num_loops=1, **settings)
    looped.config.total_ut_steps = 1
    assert torch.equal(looped.generate(ids, **settings), shallow)


def test_states_of_loops_cost_nothing_where_they_are_not_asked_for(looped):
    calls = []
    looped.model.early_exit_gate.register_forward_hook(lambda *arguments: calls.append(1))
    outputs = looped(rows(40, 1, 4))
    assert not calls and outputs.loop_states is None and outputs.gate_logits is None
    outputs = looped(rows(40, 1, 4), output_loop_states=True)
    assert len(calls) == 3 and outputs.gate_logits.shape == (1, 4, 3)


def test_hidden_states_are_the_inputs_of_layers_and_the_last_normed_states(looped):
    outputs = looped(rows(40, 1, 4), output_hidden_states=True, output_loop_states=True)
    assert len(outputs.hidden_states) == 3 * 2 + 1
    assert torch.equal(outputs.hidden_states[-1], outputs.loop_states[-1])
    assert torch.equal(outputs.hidden_states[2], outputs.loop_states[0])


def test_logits_to_keep_and_the_loss_of_the_last_loop(looped):
    ids = rows(40, 2, 7)
    logits = looped(ids).logits
    torch.testing.assert_close(looped(ids, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(looped(ids, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]])
    labels = ids.masked_fill(torch.arange(7) < 3, -100)
    expected = torch.nn.functional.cross_entropy(logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten())
    torch.testing.assert_close(looped(ids, labels=labels).loss, expected)
    assert isinstance(looped(ids, return_dict=False), tuple)


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_reload(tokenizer, tmp_path, tied):
    model = build_looped_model(tokenizer, tie_word_embeddings=tied).eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(reloaded) is OuroForCausalLM
    assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) == tied
    ids = rows(40, 2, 5)
    assert torch.equal(reloaded(ids).logits, model(ids).logits)
    assert reloaded.config.to_diff_dict() == model.config.to_diff_dict()


def test_gradient_checkpointing_has_the_same_gradient(looped):
    ids, gradients = rows(40, 2, 6), []
    for checkpointing in (False, True):
        looped.train()
        if checkpointing:
            looped.gradient_checkpointing_enable()
        looped.zero_grad()
        looped(ids, labels=ids).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in looped.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)
    assert all(p.grad is None for p in exit_gate_of(looped))  # the loss of the last loop does not read the gate


def test_one_adapter_serves_all_loops(looped):
    model = get_peft_model(looped, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert find_looped(model) is looped
    assert len(exit_gate_of(model)) == 4  # weight and bias, and the two matrices of the adapter
    ids = rows(40, 2, 6)
    model(ids, labels=ids).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and "early_exit" not in name}
    assert len(gradients) == 2 * 7 * 2 and all(gradient is not None for gradient in gradients.values())


def test_the_fused_head_scores_as_the_logits_do(looped):
    ids = rows(40, 2, 7)
    expected = looped(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    add_fused_lm_head(looped, outputs=("log_probs", "entropy"))
    torch.testing.assert_close(looped(ids, labels=ids, fused_lm_head=True).log_probs, expected)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"total_ut_steps": 0}, "total_ut_steps must be a whole number of at least 1, got 0"),
        ({"total_ut_steps": 2.0}, "got 2.0"),
        ({"total_ut_steps": True}, "got True"),
        ({"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ],
)
def test_configurations_that_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        OuroConfig(**{**PUBLISHED, **settings})


def test_an_idle_window_is_none():
    config = OuroConfig(**{**PUBLISHED, "sliding_window": 4096, "layer_types": None})
    assert config.sliding_window is None
    assert not any(DynamicCache(config=config).is_sliding)


def test_calls_that_are_refused(looped):
    ids = rows(40, 1, 4)
    for value in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="num_loops must be a whole number of at least 1"):
            looped(ids, num_loops=value)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        looped.model(ids, inputs_embeds=looped.model.embed_tokens(ids))
    with pytest.raises(NotImplementedError, match="attention weights"):
        looped(ids, output_attentions=True)
    with pytest.raises(NotImplementedError, match="Continuous batching"):
        looped(ids, cache=object())


def test_an_early_exit_is_not_made_in_silence(caplog):
    OuroConfig(early_exit_threshold=1.0)
    assert not caplog.messages
    OuroConfig(early_exit_threshold=0.5)
    assert "early_exit_threshold=0.5" in caplog.text


def test_importing_the_package_loads_no_transformers():
    code = "import sys, trl_fork; print('transformers' in sys.modules, 'trl_fork.looped' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False"]
