"""The decoding loop against `generate` of transformers, and against distributions that can be enumerated."""

import io
import math
import sys

import pytest
import torch
import transformers
from transformers import GenerationConfig

from tests.conftest import build_model
from trl_fork.generation.completions import complete
from trl_fork.generation.decodable import CannotDecodeError, reason_against
from trl_fork.generation.decoding import DecodingLoop
from trl_fork.generation.sampling import draw_tokens


END = 1
_SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0,
}  # fmt: skip
_OLD_SIZES = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "qwen3": ("Qwen3Config", {**_SIZES, "head_dim": 8}),
    "qwen2": ("Qwen2Config", _SIZES),
    "llama": ("LlamaConfig", _SIZES),
    "mistral, sliding window": ("MistralConfig", {**_SIZES, "sliding_window": 12}),
    "gemma2, sliding window in every other layer": ("Gemma2Config", {**_SIZES, "head_dim": 8, "sliding_window": 12}),
    "gemma3, sliding window": ("Gemma3TextConfig", {**_SIZES, "head_dim": 8, "sliding_window": 12}),
    "phi3": ("Phi3Config", _SIZES),
    "gpt2, learned positions": (
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3},
    ),
    "opt, learned positions": (
        "OPTConfig",
        {**_SIZES, "ffn_dim": 48, "init_std": 0.3, "word_embed_proj_dim": 32},
    ),
    "bloom, alibi": ("BloomConfig", _OLD_SIZES),
    "mixtral, experts": ("MixtralConfig", {**_SIZES, "num_local_experts": 4}),
    "qwen3_moe, experts": ("Qwen3MoeConfig", {**_SIZES, **_EXPERTS, "head_dim": 8, "num_experts": 4}),
    "lfm2, convolutions": ("Lfm2Config", {**_SIZES, "layer_types": ["conv", "full_attention"]}),
}


def family(name):
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    config.eos_token_id, config.pad_token_id, config.bos_token_id = END, 0, None
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def ragged_prompts(lengths=(5, 14, 9), copies=3):
    """Prompts of different lengths, each of them several times, padded on the left."""
    generator, width = torch.Generator().manual_seed(0), max(lengths)
    prompts = [torch.randint(2, 64, (n,), generator=generator) for n in lengths]
    rows = [torch.nn.functional.pad(p, (width - len(p), 0)) for p in prompts for _ in range(copies)]
    masks = [torch.nn.functional.pad(torch.ones_like(p), (width - len(p), 0)) for p in prompts for _ in range(copies)]
    return torch.stack(rows), torch.stack(masks)


def numbers_of_rows(seed=0, rows=64):
    table = torch.rand(rows, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda numbers, place: table[numbers, place]


def decode(model, ids, mask, loop=None, **settings):
    config = GenerationConfig(**{"max_new_tokens": 30, "eos_token_id": END, "pad_token_id": 0, **settings})
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        custom_generate=loop or DecodingLoop(numbers_of_rows()),
    )


def completions_of(decoded, width):
    return [
        row[width : width + n].tolist() for row, n in zip(decoded.sequences, decoded.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_decoding_is_that_of_generate(name):
    model = family(name)
    ids, mask = ragged_prompts()
    ends = [END, 7, 9, 20, 31]
    forwarded = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: forwarded.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    decoded = decode(model, ids, mask, eos_token_id=ends, do_sample=False)
    # Each prompt once, padded to the longest, and then one token of each row that goes on.
    assert sum(forwarded) == 3 * ids.shape[1] + int((decoded.lengths - 1).sum())
    config = GenerationConfig(max_new_tokens=30, eos_token_id=ends, pad_token_id=0, do_sample=False)
    expected = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert torch.equal(decoded.sequences, expected)
    assert int(decoded.lengths.max()) == expected.shape[1] - ids.shape[1]


LONG = {"rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 8.0}


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("Phi3Config", {"original_max_position_embeddings": 16, "rope_parameters": LONG}, "rotary factors change"),
        ("Phi3Config", {"original_max_position_embeddings": 16}, "begins its cache anew after 16 tokens"),
        ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, "rotary"),
    ],
)
def test_models_that_do_not_go_on_with_their_cache_are_left_to_generate(kind, settings, reason):
    """Phi-3 switches to long factors within a completion, and reads all of it again."""
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**_SIZES, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids, mask = ragged_prompts()
    with pytest.raises(CannotDecodeError, match=reason):
        decode(model, ids, mask, do_sample=False)
    prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    settings = GenerationConfig(max_new_tokens=30, eos_token_id=END, pad_token_id=0, do_sample=False)
    for prompt, completion in zip(prompts, complete(model, prompts, [0] * len(prompts), settings), strict=True):
        expected = model.generate(input_ids=torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :]
        assert completion == expected.tolist()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_left_to_generate_has_a_bar_on_a_terminal(tokenizer, is_terminal, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", screen)
    config = GenerationConfig(max_new_tokens=2, pad_token_id=0, do_sample=False, use_cache=False)
    assert len(complete(build_model(tokenizer), [[5], [6, 7], [8]], [0, 1, 2], config)) == 3
    shown = screen.getvalue()
    assert ("one at a time" in shown and "/3" in shown) if is_terminal else not shown


@pytest.mark.parametrize("enabled", [True, False])
def test_attention_that_prepares_every_shape_is_not_taken(enabled):
    """On an H100, cuDNN's made a decoding step of a new shape several times as long. What was set is set again."""
    model, found = family("qwen3"), []
    model.register_forward_pre_hook(lambda *_: found.append(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        decode(model, *ragged_prompts())
        assert len(found) > 2 and not any(found)
        assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("name", ["qwen3", "gemma3, sliding window", "gpt2, learned positions", "lfm2, convolutions"])
def test_a_completion_does_not_depend_on_the_others(name):
    model = family(name)
    ids, mask = ragged_prompts()
    width, numbers = ids.shape[1], numbers_of_rows()
    settings = {"do_sample": True, "top_k": 0, "temperature": 2.0, "eos_token_id": [END, 7, 9, 20, 31]}
    together = completions_of(decode(model, ids, mask, **settings), width)
    assert len({tuple(row) for row in together}) == 9 and len({len(row) for row in together}) > 3
    # Alone, without padding
    for row, completion in enumerate(together):
        n = int(mask[row].sum())
        loop = DecodingLoop(lambda rows, place, row=row: numbers(rows + row, place))
        alone = decode(model, ids[row : row + 1, -n:], mask[row : row + 1, -n:], loop, **settings)
        assert completions_of(alone, n) == [completion]
    # In another order, and a few at a time
    order = torch.tensor([4, 8, 0, 2, 6, 1, 3, 7, 5])
    loop = DecodingLoop(lambda rows, place: numbers(order[rows], place), max_rows=2)
    moved = completions_of(decode(model, ids[order], mask[order], loop, **settings), width)
    assert moved == [together[row] for row in order.tolist()]


SETTINGS = [
    {"min_new_tokens": 6, "eos_token_id": [END, 19, 57]},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [12, 13]]},
    {"suppress_tokens": [16, 19, 2]},
    {"begin_suppress_tokens": [28, 51]},
    {"sequence_bias": {(8,): 4.0, (9, 10): 5.0}},
    {"forced_eos_token_id": 11},
    {"exponential_decay_length_penalty": (4, 1.3)},
    {"renormalize_logits": True, "remove_invalid_values": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_settings_mean_what_they_mean_in_generate(settings):
    model = family("llama")
    ids, mask = ragged_prompts()
    settings = {"max_new_tokens": 20, "eos_token_id": [END, 30, 40], "do_sample": False, **settings}
    config = GenerationConfig(pad_token_id=0, **settings)
    assert reason_against(model, config) is None
    plain = {name: settings[name] for name in ("max_new_tokens", "eos_token_id", "do_sample")}
    free, found = decode(model, ids, mask, **plain), decode(model, ids, mask, **settings)
    assert torch.equal(found.sequences, model.generate(input_ids=ids, attention_mask=mask, generation_config=config))
    if "renormalize_logits" not in settings:
        assert completions_of(found, 14) != completions_of(free, 14), "the setting changes something here"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"num_beams": 2, "do_sample": True},
        {"num_return_sequences": 2, "do_sample": True},
        {"guidance_scale": 1.5},
        {"max_time": 10.0},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"penalty_alpha": 0.5, "top_k": 4},
        {"prompt_lookup_num_tokens": 3},
        {"return_dict_in_generate": True},
        {"token_healing": True},
        {"encoder_no_repeat_ngram_size": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_are_left_to_generate(tokenizer, settings):
    reason = reason_against(build_model(tokenizer), GenerationConfig(max_new_tokens=4, pad_token_id=0, **settings))
    assert reason is not None and (next(iter(settings)).split("_")[0] in reason or "mode" in reason), reason


def test_a_repetition_penalty_leaves_padding_out():
    """With a pad token that is the end token, as many tokenizers have, `generate` penalises the end of short rows."""
    model = family("llama")
    ids, mask = ragged_prompts((3, 12), copies=4)
    settings = {"pad_token_id": END, "do_sample": True, "top_k": 0, "repetition_penalty": 4.0}
    ids = ids.masked_fill(mask == 0, END)
    together = completions_of(decode(model, ids, mask, **settings), 12)[:4]
    assert together == completions_of(decode(model, ids[:4, -3:], mask[:4, -3:], **settings), 3)


# ---------------------------------------------------------------------- distributions


def enumerable_model():
    """Four words and an end; what follows depends on all that was before."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        **{**_SIZES, "vocab_size": 6, "num_hidden_layers": 1, "initializer_range": 0.6, "pad_token_id": 0}
    )
    return transformers.LlamaForCausalLM(config).eval()


def probabilities(model, prompt, max_new_tokens, warp):
    """Probability of every completion, by walking through all of them one token at a time."""
    found, open_ = {}, {(): 1.0}
    for _ in range(max_new_tokens):
        longer = {}
        for tokens, mass in open_.items():
            with torch.no_grad():
                p = warp(model(torch.tensor([prompt + list(tokens)])).logits[0, -1].double())
            for token in range(len(p)):
                target = found if token == END or len(tokens) + 1 == max_new_tokens else longer
                if mass * p[token] > 0:
                    target[*tokens, token] = mass * p[token].item()
        open_ = longer
    return found


def naive_warp(temperature=1.0, top_k=0, top_p=1.0, min_p=None):
    def warp(logits):
        p = (logits / temperature).softmax(0)
        order = p.argsort(descending=True)
        keep = torch.ones(len(p), dtype=torch.bool)
        if top_k:
            keep[order[top_k:]] = False
        p = p * keep / (p * keep).sum()
        keep[order[p[order].cumsum(0) - p[order] >= top_p]] = False
        p = p * keep / (p * keep).sum()
        if min_p:
            p = p * (p >= min_p * p.max())
        return p / p.sum()

    return warp


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}, {"temperature": 1.5, "top_p": 0.8}],
    ids=str,
)
def test_samples_have_the_models_distribution(settings):
    model, n = enumerable_model(), 12_000
    prompts = [[2, 3, 4], [5, 2]]
    config = GenerationConfig(
        max_new_tokens=3, do_sample=True, eos_token_id=END, pad_token_id=0, **{"top_k": 0, **settings}
    )
    found = complete(model, prompts * n, list(range(2 * n)), config)
    for which, prompt in enumerate(prompts):
        expected = probabilities(model, prompt, 3, naive_warp(**settings))
        assert math.isclose(sum(expected.values()), 1)
        counts = dict.fromkeys(expected, 0)
        for completion in found[which::2]:
            counts[tuple(completion)] += 1  # one that is impossible is a KeyError
        common = {c: p for c, p in expected.items() if n * p >= 5}
        statistic = sum((counts[c] - n * p) ** 2 / (n * p) for c, p in common.items())
        degrees = len(common)
        assert statistic < degrees + 5 * math.sqrt(2 * degrees), (statistic, degrees)


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 3000])
def test_a_token_is_where_the_distribution_function_reaches_the_number(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    scores = torch.randn(200, vocabulary, generator=generator) * 3
    scores[:100][torch.rand(100, vocabulary, generator=generator) < 0.5] = -math.inf
    scores[:, 0] = scores[:, 0].clamp(min=-50)
    numbers = torch.rand(200, generator=generator, dtype=torch.float64)
    numbers[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    masses = (scores - scores.amax(1, keepdim=True)).exp().double()
    edges = masses.cumsum(1) / masses.sum(1, keepdim=True)
    tokens = draw_tokens(scores, numbers)
    assert (scores.gather(1, tokens[:, None]) > -math.inf).all()
    upper = edges.gather(1, tokens[:, None])[:, 0]
    lower = torch.nn.functional.pad(edges, (1, 0)).gather(1, tokens[:, None])[:, 0]
    assert (lower - 1e-9 <= numbers).all() and (numbers <= upper + 1e-9).all()


def test_a_token_of_probability_zero_is_never_drawn():
    scores = torch.full((3, 1000), -math.inf)
    scores[:, 300] = 0.0
    scores[1:, 700] = -800.0  # underflows
    assert draw_tokens(scores, torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [300] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_without_a_distribution_are_refused(bad):
    scores = torch.zeros(3, 300)
    scores[1] = bad
    with pytest.raises(ValueError, match=r"NaN or infinite.*max_grad_norm"):
        draw_tokens(scores, torch.full((3,), 0.5, dtype=torch.float64))


# ---------------------------------------------------------------------- memory


def test_a_device_out_of_memory_gets_fewer_rows_at_a_time(caplog):
    model = family("qwen3")
    ids, mask = ragged_prompts()
    whole = decode(model, ids, mask, do_sample=True, top_k=0)
    batches = []

    def limited(module, args, kwargs):
        batches.append(len(kwargs["input_ids"]))
        if len(kwargs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")

    model.register_forward_pre_hook(limited, with_kwargs=True)
    loop = DecodingLoop(numbers_of_rows())
    found = decode(model, ids, mask, loop, do_sample=True, top_k=0)
    assert torch.equal(found.sequences, whole.sequences) and torch.equal(found.lengths, whole.lengths)
    assert loop.max_rows == 3 and max(batches) > 3
    assert "out of memory" in caplog.text.lower() and "at most 3" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        model.register_forward_pre_hook(
            lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no")), prepend=True
        )
        decode(model, ids[:1], mask[:1], do_sample=True, top_k=0)


def test_the_cache_has_little_room_to_spare():
    """Beyond what is held, an eighth; never more than the longest row may take; and none of a row that has left."""
    model = family("qwen3")
    ids, mask = ragged_prompts()
    sizes = []

    def look(module, args, kwargs, output):
        for layer in output.past_key_values.layers:
            if hasattr(layer, "_store"):
                sizes.append((len(layer.keys), layer.keys.shape[2], *layer._store[0].shape[:3:2]))

    model.register_forward_hook(look, with_kwargs=True)
    decoded = decode(model, ids, mask, do_sample=True, top_k=0)
    assert all(length <= room <= min(length + max(length // 8, 16), 14 + 30) for _, length, _, room in sizes)
    assert sizes[-1][0] < 9 and sizes[-1][2] <= 9
    assert max(length for _, length, _, _ in sizes) == 14 + int(decoded.lengths.max()) - 1
