"""Scores of given text, and their store, against full logits of one row at a time."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import trl_fork.analysis.score_store
from tests.conftest import build_model
from trl_fork.analysis import scoring
from trl_fork.analysis.responses import Response
from trl_fork.analysis.score_store import ScoreStore
from trl_fork.analysis.scoring import score_completions
from trl_fork.looped import OuroConfig, OuroForCausalLM


ROWS = [
    ([3, 4, 5], [6, 7, 8, 9, 10]),
    ([5] * 7, [11, 12]),
    ([9], []),
    ([9, 8], list(range(12, 32))),
    ([7], [4]),
]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def naive(model, prompt, completion, temperature):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    log_probs = (logits.double() / temperature).log_softmax(-1)
    sampled = log_probs.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return -(log_probs.exp() * log_probs).sum(-1), sampled, log_probs.exp()


def assert_equal_to_naive(model, temperature=1.0, top_k=3, **settings):
    scores = score_completions(model, ROWS, temperature=temperature, top_k=top_k, **settings)
    for (prompt, completion), row in zip(ROWS, scores, strict=True):
        assert row.entropies.shape == row.log_probs.shape == (len(completion),)
        assert row.top_ids.shape == row.top_probs.shape == (len(completion), top_k)
        if completion:
            entropies, log_probs, probs = naive(model, prompt, completion, temperature)
            np.testing.assert_allclose(row.entropies, entropies, atol=5e-6)
            np.testing.assert_allclose(row.log_probs, log_probs, atol=5e-6)
            if top_k:
                best = probs.topk(top_k)
                np.testing.assert_allclose(row.top_probs, best.values, atol=5e-6)
                assert (row.top_ids == best.indices.numpy()).all()


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
@pytest.mark.parametrize("max_batch_tokens", [1, 30, 10**6])
def test_batches_and_slices_do_not_show(model, monkeypatch, chunk, max_batch_tokens):
    monkeypatch.setattr(scoring, "_LOGITS_PER_SLICE", chunk * SIZES["vocab_size"])
    assert_equal_to_naive(model.eval(), max_batch_tokens=max_batch_tokens)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.7, 3), (2.0, 0)])
def test_temperature_and_alternatives(model, temperature, top_k):
    assert_equal_to_naive(model.eval(), temperature, top_k)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_what_an_architecture_does_around_its_head(architecture, settings, monkeypatch):
    monkeypatch.setattr(scoring, "_LOGITS_PER_SLICE", 7 * SIZES["vocab_size"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SIZES, **settings)).eval()
    assert_equal_to_naive(model, max_batch_tokens=30)


def test_lora(model):
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    assert_equal_to_naive(peft_model)
    changed, base = score_completions(peft_model, ROWS), score_completions(peft_model.unload(), ROWS)
    assert np.abs(changed[0].entropies - base[0].entropies).max() > 1e-3, "the adapter would not have been tested"


def test_the_model_is_left_as_it_was(model, monkeypatch):
    monkeypatch.setattr(scoring, "_LOGITS_PER_SLICE", 40)
    ids = torch.tensor([[4, 5, 6]])
    model.eval()
    before = model(input_ids=ids).logits
    score_completions(model, ROWS)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in vars(model.model)

    own = model.model.forward  # as accelerate's hooks set it
    model.model.forward = own
    score_completions(model, ROWS)
    assert vars(model.model)["forward"] is own


def test_logits_are_never_held_for_a_whole_batch(model, monkeypatch):
    monkeypatch.setattr(scoring, "_LOGITS_PER_SLICE", 5 * SIZES["vocab_size"])
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    score_completions(model.eval(), ROWS, max_batch_tokens=10**6)
    assert max(seen) == 5 and sum(seen) == sum(len(completion) for _, completion in ROWS)


def test_bad_input_is_refused(model):
    with pytest.raises(ValueError, match="row 1 has an empty prompt"):
        score_completions(model, [([4], [5]), ([], [5])])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        score_completions(model, ROWS, temperature=0)
    assert score_completions(model, []) == []
    assert score_completions(model, [([4], [])], top_k=2)[0].top_ids.shape == (0, 2)


# ---------------------------------------------------------------------- the store


@pytest.fixture
def responses():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(10):
        ids = torch.randint(4, 40, (2 + number % 4 + number,), generator=generator).tolist()
        rows.append(Response(ids[:2], ids[2:], "", str(number), None, {}))
    return rows


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(trl_fork.analysis.score_store, "SHARD_SIZE", 3)


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return model.eval()


def test_store_gives_back_what_was_scored(saved, responses, tmp_path):
    store = ScoreStore(tmp_path / "scores", str(tmp_path / "model"))
    store.score(responses, lambda: saved, num_alternatives=4)
    read = list(store.read(responses))
    assert [response for response, _ in read] == responses
    for number, (response, row) in enumerate(read):
        assert row.top_ids.shape == (len(response.completion_ids), 5 if number < 6 else 0)  # 4, rounded up to shards
        if response.completion_ids:
            entropies, log_probs, _ = naive(saved, response.prompt_ids, response.completion_ids, 1.0)
            np.testing.assert_allclose(row.entropies, entropies, atol=5e-6)
            np.testing.assert_allclose(row.log_probs, log_probs, atol=5e-6)
    assert np.array_equal(store.entropies(responses), np.concatenate([row.entropies for _, row in read]))


def test_nothing_is_scored_twice(saved, responses, tmp_path):
    class Killed(Exception):
        pass

    def num_loads(rows, **settings):
        loads = []

        def load_model():
            loads.append(1)
            return saved

        store.score(rows, load_model, **settings)
        return len(loads)

    def killed_after_two():
        for number, response in enumerate(responses):
            if number == 7:
                raise Killed
            yield response

    store = ScoreStore(tmp_path / "scores", str(tmp_path / "model"))
    with pytest.raises(Killed):
        store.score(killed_after_two(), lambda: saved)
    kept = {path: path.stat().st_mtime_ns for path in store.directory.iterdir()}
    assert len(kept) == 2
    assert num_loads(responses) == 1
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert len(list(store.directory.iterdir())) == 4
    assert num_loads(responses) == 0
    assert num_loads(responses, num_alternatives=1) == 1  # they had not been kept
    assert num_loads(responses, num_alternatives=3) == 0
    assert num_loads(responses) == 0  # more is kept than is asked for

    changed = [*responses[:-1], Response([4], [5, 6], "", "", None, {})]
    with pytest.raises(ValueError, match=r"scores-000003\.npz is missing, or holds other responses"):
        list(store.read(changed))
    assert num_loads(changed) == 1
    assert [response for response, _ in store.read(changed)] == changed


def test_processes_share_the_scoring(saved, responses, tmp_path):
    store, alone = (ScoreStore(tmp_path / name, str(tmp_path / "model")) for name in ("shared", "alone"))
    alone.score(responses, lambda: saved)
    for rank, numbers in ((1, (1, 3)), (0, (0, 1, 2, 3))):
        store.score(responses, lambda: saved, rank=rank, num_processes=2)
        assert sorted(path.name for path in store.directory.iterdir()) == [f"scores-{n:06d}.npz" for n in numbers]
    assert np.array_equal(store.entropies(responses), alone.entropies(responses))


def test_other_weights_and_settings_have_other_scores(saved, tokenizer, tmp_path):
    name = str(tmp_path / "model")
    stores = [ScoreStore(tmp_path, name), ScoreStore(tmp_path, name, temperature=0.5)]
    stores.append(ScoreStore(tmp_path, name, dtype="bfloat16"))
    build_model(tokenizer, seed=1).save_pretrained(name)
    stores.append(ScoreStore(tmp_path, name))
    assert len({store.directory for store in stores}) == 4
    assert ScoreStore(tmp_path, name).directory == stores[-1].directory


# ---------------------------------------------------------------------- loops of a looped model


@pytest.fixture
def looped():
    torch.manual_seed(0)
    config = OuroConfig(**{**SIZES, "num_key_value_heads": 4}, total_ut_steps=3)
    model = OuroForCausalLM(config).eval()
    torch.nn.init.normal_(model.model.early_exit_gate.weight, std=0.2)  # exits differ by token
    return model


def naive_loops(model, prompt, completion, temperature):
    """Entropy after each loop from the logits of a model that has no more loops, and the exits from gates in words."""
    ids, places = torch.tensor([prompt + completion]), slice(len(prompt) - 1, -1)
    entropies, gates = [], []
    with torch.no_grad():
        for num_loops in (1, 2, 3):
            logits = model(input_ids=ids, num_loops=num_loops).logits[0, places].double() / temperature
            log_probs = logits.log_softmax(-1)
            entropies.append(-(log_probs.exp() * log_probs).sum(-1))
            states = model.model(input_ids=ids, num_loops=num_loops).last_hidden_state[0, places]
            gates.append(model.model.early_exit_gate(states)[:, 0].double().sigmoid())
    first, second, _ = gates
    exits = [first, (1 - first) * second, (1 - first) * (1 - second)]
    return torch.stack(entropies, -1), torch.stack(exits, -1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_batch_tokens", [30, 10**6])
def test_loops_are_scored_from_one_forward(looped, monkeypatch, temperature, max_batch_tokens):
    monkeypatch.setattr(scoring, "_LOGITS_PER_SLICE", 7 * SIZES["vocab_size"])
    expected = [naive_loops(looped, *row, temperature) if row[1] else None for row in ROWS]
    calls = []
    looped.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    settings = {"temperature": temperature, "max_batch_tokens": max_batch_tokens, "top_k": 2}
    scores = score_completions(looped, ROWS, loops=True, **settings)
    num_batches = len([*scoring.token_batches([len(p) + len(c) for p, c in ROWS], max_batch_tokens)])
    assert len(calls) == 3 * num_batches, "no loop is run again"
    plain = score_completions(looped, ROWS, **settings)
    for (_, completion), row, same, naive_row in zip(ROWS, scores, plain, expected, strict=True):
        assert row.loop_entropies.shape == row.exit_probs.shape == (len(completion), 3)
        assert same.loop_entropies is None and same.exit_probs is None
        for name in ("entropies", "log_probs", "top_ids", "top_probs"):
            np.testing.assert_allclose(getattr(row, name), getattr(same, name), atol=1e-6)
        if naive_row is None:
            continue
        entropies, exits = naive_row
        np.testing.assert_allclose(row.loop_entropies, entropies, atol=5e-6)
        np.testing.assert_allclose(row.exit_probs, exits, atol=5e-6)
        np.testing.assert_array_equal(row.loop_entropies[:, -1], row.entropies)
        if len(completion) > 1:
            assert exits.std(0).min() > 0.01 and (entropies[:, 0] - entropies[:, 2]).abs().max() > 0.01


def test_loops_through_an_adapter(looped):
    peft_model = get_peft_model(looped, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    found = score_completions(peft_model, ROWS, loops=True)
    merged = score_completions(peft_model.merge_and_unload(), ROWS, loops=True)
    for row, other in zip(found, merged, strict=True):
        np.testing.assert_allclose(row.loop_entropies, other.loop_entropies, atol=1e-5)
        np.testing.assert_allclose(row.exit_probs, other.exit_probs, atol=1e-5)


def test_the_store_keeps_the_loops(looped, tmp_path, monkeypatch):
    monkeypatch.setattr(trl_fork.analysis.score_store, "SHARD_SIZE", 2)
    responses = [Response(prompt, completion, "", "", None, {}) for prompt, completion in ROWS]
    store, loads = ScoreStore(tmp_path, "looped"), []

    def load():
        loads.append(1)
        return looped

    store.score(responses, load)
    assert [scores.loop_entropies for _, scores in store.read(responses)] == [None] * len(ROWS)
    for expected in (2, 2):  # scores without loops are not enough; those with loops are
        store.score(responses, load, loops=True)
        assert len(loads) == expected
    store.score(responses, load)
    assert len(loads) == 2, "scores with loops are scores"
    fresh = score_completions(looped, ROWS, loops=True)
    for (_, kept), row in zip(store.read(responses), fresh, strict=True):
        np.testing.assert_allclose(kept.loop_entropies, row.loop_entropies, atol=1e-5)
        np.testing.assert_allclose(kept.exit_probs, row.exit_probs, atol=1e-5)
