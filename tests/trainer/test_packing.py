"""Rows one after the other: what the model sees of them, how they are packed and spread, and that this happens."""

import copy
import logging
import random

import pytest
import torch
import transformers
from peft import LoraConfig
from torch.nn.functional import scaled_dot_product_attention
from trl.trainer.utils import add_fused_lm_head

import trl_fork.trainer.packing as packing
from tests.conftest import (
    FixedRollouts,
    SpyTrainer,
    build_model,
    build_trainer,
    gradient,
    naive_view,
    relative_difference,
    tiny_sizes,
    train,
    weight_change,
)
from tests.oracles import log_probs_and_entropies, loss, select
from trl_fork import ForkingGRPOConfig
from trl_fork.trainer.balancing import (
    blank,
    chunks_needed,
    join_rows,
    plan_passes,
    split_rows,
    spread,
    spread_to_size,
)
from trl_fork.trainer.batching import read_lengths
from trl_fork.trainer.lm_head import row_sparse_head
from trl_fork.trainer.packed_attention import attend_within_rows, find_obstacle, packed_attention
from trl_fork.trainer.packing import Packed
from trl_fork.trainer.right_padding import RightPadded


CUT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}


class Passes(SpyTrainer):
    """Records the tokens of the model's passes with gradient, one list per optimizer step."""

    def __init__(self, *args, **kwargs):
        self.passes = []
        super().__init__(*args, **kwargs)
        self.model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        if torch.is_grad_enabled():
            positions = kwargs.get("position_ids")
            steps = self.state.global_step
            self.passes.append((steps, None if positions is None else positions[0].tolist()))

    def tokens(self, step=0) -> list[int]:
        return [len(positions) for number, positions in self.passes if number == step]


def naive_difference(start, model, batch, selected):
    _, row_advantages = naive_view(start, batch)
    expected = gradient(start, loss(start, batch, row_advantages, selected, len(selected)))
    return relative_difference(weight_change(start, model), expected)


# ---------------------------------------------------------------------- steps of a run


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 32},
        CUT,
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16},
        {**CUT, "max_tokens_per_forward": 70},
        {**CUT, "gradient_checkpointing": True},
        {**CUT, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {**CUT, "entropy_threshold_scope": "sequence"},
    ],
    ids=str,
)
def test_a_step_is_that_of_the_naive_objective(settings, tokenizer, tmp_path):
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer)
    before = packing.tokens_packed
    trainer = train(model, tokenizer, rollouts, tmp_path, Passes, **settings)
    assert trainer._savings.packing and packing.tokens_packed > before
    assert all(positions is not None for _, positions in trainer.passes), "no pass was padded"
    (batch,) = rollouts.generated
    entropies, _ = naive_view(start, batch)
    by_row = settings.get("entropy_threshold_scope") == "sequence"
    pools = [[r.row] for r in batch] if by_row else [[r.row for r in batch]]
    assert naive_difference(start, model, batch, select(batch, entropies, 0.2, "high_entropy", pools)) < 1e-5
    assert model.config._attn_implementation == "sdpa", "the model is left as it was given"


@pytest.mark.parametrize("checkpointing", [True, False])
def test_an_adapter(checkpointing, tokenizer, tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    changes = []
    for padding_free in (True, False):
        trainer = train(
            build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Passes, peft_config=lora,
            padding_free=padding_free, gradient_checkpointing=checkpointing, **CUT,
        )  # fmt: skip
        assert trainer._savings.packing == padding_free
        assert all((positions is not None) == padding_free for _, positions in trainer.passes)
        changes.append(torch.cat([p.detach().flatten() for n, p in trainer.model.named_parameters() if "lora" in n]))
    assert relative_difference(*changes) < 1e-5


@pytest.mark.parametrize("limit", [30, 70, 150, 1000])
def test_passes_hold_the_tokens_they_may(limit, tokenizer, tmp_path, caplog, monkeypatch):
    """Fewer passes than micro-batches, the longest row in the first. It is said once where that is not enough."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Passes, max_tokens_per_forward=limit,
        per_device_train_batch_size=4, gradient_accumulation_steps=8, max_steps=2,
    )  # fmt: skip
    tokens = trainer.tokens()
    rows = [positions.count(0) for step, positions in trainer.passes if step == 0]
    assert sum(map(len, trainer.micro_batches[:8])) >= sum(rows) and len(trainer.micro_batches) == 16
    empty = [not rows for rows in trainer.micro_batches[:8]]
    assert empty == sorted(empty, reverse=True), "the last micro-batch, which synchronises, has rows"
    longest = [max(positions) for step, positions in trainer.passes if step == 0]
    assert longest[0] == max(longest)
    assert max(tokens) - min(tokens) <= max(longest) + 1, "passes are of similar size"
    if limit == 30:
        assert len(tokens) == 8 and max(tokens) > limit
        assert caplog.text.count("max_tokens_per_forward=30: step 0 has a pass of") == 1
        assert "gradient_accumulation_steps" in caplog.text
    else:
        assert max(tokens) <= limit and len(tokens) <= -(-sum(tokens) // limit) + 1
        assert "max_tokens_per_forward" not in caplog.text


def test_by_default_no_pass_is_larger_than_a_padded_one(tokenizer, tmp_path):
    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Passes,
        per_device_train_batch_size=4, gradient_accumulation_steps=8, top_entropy_quantile=1.0,
    )  # fmt: skip
    batch = trainer.rollout_func.__wrapped__.generated[0]
    widest = max(len(r.prompt) for r in batch) + max(len(r.completion) for r in batch)
    tokens = trainer.tokens()
    assert sum(tokens) == sum(len(r.prompt) + len(r.completion) for r in batch)
    assert max(tokens) <= 4 * widest and len(tokens) < 8


def test_scoring_is_packed(tokenizer, tmp_path):
    """Old log-probabilities and entropies of every row are those of the row alone."""
    model = build_model(tokenizer)
    rollouts = FixedRollouts(tokenizer)
    seen = {}

    class Keeping(Passes):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            seen.update(output)
            return output

    before = packing.tokens_packed
    train(model, tokenizer, rollouts, tmp_path, Keeping, learning_rate=0.0, num_iterations=2, **CUT)
    assert packing.tokens_packed - before >= sum(len(r.prompt) + len(r.completion) for r in rollouts.generated[0])
    for row, rollout in enumerate(rollouts.generated[0]):
        expected, _ = log_probs_and_entropies(model, rollout)
        found = seen["old_per_token_logps"][row, : len(rollout.completion)]
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        *(
            ({"max_tokens_per_forward": value}, f"forward must be a whole number of at least 1, got {value!r}")
            for value in (0, -1, 1.5, True, "2048", float("nan"))
        ),
        ({"max_tokens_per_forward": 9, "padding_free": False}, "max_tokens_per_forward=9 has no effect with padding"),
        ({"max_tokens_per_forward": 9, "skip_inert_compute": False}, "skip_inert_compute=False"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, field, tmp_path):
    with pytest.raises(ValueError, match=field):
        ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


# ---------------------------------------------------------------------- models that do not keep rows apart


class MixesRows(transformers.Qwen3ForCausalLM):
    """Says nothing of it: every embedding has a part of the one before it, in whatever row that is."""

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(
            lambda module, args, output: output + 0.3 * torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]
        )


class FailsOnPositions(transformers.Qwen3ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module, args, kwargs):
        if kwargs.get("position_ids") is not None:
            raise RuntimeError("the size of tensor a must match")


class ReadsPackedLength(transformers.Qwen3ForCausalLM):
    """Attention is scaled by the columns there are beyond 30: a row of at most 21 never shows it."""

    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self._scale, with_kwargs=True)

    def _scale(self, module, args, kwargs):
        columns = (args[0] if args else kwargs["input_ids"]).shape[1]
        for layer in self.model.layers:
            layer.self_attn.scaling = 8**-0.5 * (1.0 + max(columns - 30, 0) / 50)


@pytest.mark.parametrize("kind", [MixesRows, FailsOnPositions, ReadsPackedLength])
def test_rows_are_padded_where_the_model_mixes_them(kind, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    config, changes = build_model(tokenizer).config, []
    for skip_inert_compute in (True, False):
        torch.manual_seed(0)
        model = kind(config)
        start = model.state_dict()
        start = {name: value.clone() for name, value in start.items()}
        trainer = train(
            model, tokenizer, FixedRollouts(tokenizer), tmp_path, skip_inert_compute=skip_inert_compute, max_steps=2,
            learning_rate=0.1, **CUT,
        )  # fmt: skip
        changes.append(torch.cat([(start[name] - value).flatten() for name, value in model.state_dict().items()]))
        assert trainer._savings.padding == trainer._savings.ordering == skip_inert_compute
        assert not trainer._savings.packing
    assert relative_difference(*changes) < 1e-4
    assert caplog.text.count(f"padding_free: {kind.__name__} does not keep packed rows apart") == 1


@pytest.mark.parametrize("padding_free", [True, False])
def test_what_the_model_says_is_looked_at(padding_free, tokenizer, tmp_path, caplog, monkeypatch):
    """Eager attention would compare all packed tokens with each other. Nothing is said to those who do not pack."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    model = build_model(tokenizer)
    model.set_attn_implementation("eager")
    trainer = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, padding_free=padding_free, **CUT)
    assert trainer._savings.ordering and not trainer._savings.packing
    assert ("packing: attn_implementation='eager'" in caplog.text) == padding_free
    assert find_obstacle(build_model(tokenizer)) is None


MOE = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 2, "num_experts_per_tok": 1}
NO_NOISE = {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0}
WINDOW = 10


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        (
            "Qwen2Moe",
            {**MOE, "use_sliding_window": True, "max_window_layers": 2},
            "sliding window that is in the mask",
        ),
        ("Phimoe", {"num_local_experts": 2, **NO_NOISE}, "sliding window that is in the mask"),
        ("Doge", {"keep_window_size": WINDOW, "hidden_dropout": 0.0}, "a mask that the model changes"),
    ],
)
def test_rows_are_padded_where_only_the_mask_says_what_a_token_reads(
    name, settings, reason, tokenizer, tmp_path, caplog, monkeypatch
):
    """The shortest rows, which are looked at, are shorter than the window, and others are longer."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    sizes = {**tiny_sizes(tokenizer), "initializer_range": 0.3, "max_position_embeddings": 128}
    config = getattr(transformers, f"{name}Config")(**{**sizes, "sliding_window": WINDOW, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    start, rollouts = copy.deepcopy(model), FixedRollouts(tokenizer)
    trainer = train(model, tokenizer, rollouts, tmp_path, router_aux_loss_coef=0.0, **CUT)
    lengths = [len(r.prompt) + len(r.completion) for r in rollouts.latest]
    assert sorted(lengths)[1] < WINDOW < max(lengths)
    assert not trainer._savings.packing and reason in caplog.text
    batch = rollouts.latest
    entropies, _ = naive_view(start, batch)
    selected = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    assert naive_difference(start, model, batch, selected) < 1e-5


def test_attention_of_a_models_own_is_found_where_rounding_hides_it(tokenizer, tmp_path, caplog, monkeypatch):
    """With small weights the rows of Falcon change each other by less than bfloat16 rounds."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    config = transformers.FalconConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = transformers.FalconForCausalLM(config)
    trainer = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, bf16=True, **CUT)
    assert not trainer._savings.packing
    assert "FalconForCausalLM does not keep packed rows apart (0 of its 2 layers attend within rows" in caplog.text


def test_rows_without_tokens_are_not_looked_at(tokenizer, tmp_path, caplog, monkeypatch):
    """After a resume on several processes a batch has some, and completions that are masked."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    trainer = build_trainer(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, **CUT)
    trainer._check_rows([[4, 5, 6], [], [7], [8, 9]], [[4, 5], [], [], []])
    trainer._check_rows([[4] * 20, [], [7]], [[], [], []])
    assert trainer._savings.padding and trainer._savings.packing and not caplog.text


# ---------------------------------------------------------------------- attention


@pytest.mark.parametrize("window", [None, 3, 50])
def test_attention_within_rows(window):
    torch.manual_seed(0)
    lengths, heads, groups = [5, 1, 9, 4, 4, 4, 9], 4, 2
    inputs = [torch.randn(1, n, sum(lengths), 8, requires_grad=True) for n in (heads, groups, groups)]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(len(row))
    mask = (row[:, None] == row) & (place[:, None] >= place)
    if window:
        mask &= place[:, None] - place < window
    expected = scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    found, _ = attend_within_rows(None, *inputs, None, sliding_window=window, cu_seq_lens_q=starts)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in (found, expected)]
    assert torch.allclose(found, expected, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_without_rows_it_is_sdpa(tokenizer):
    model = build_model(tokenizer).eval()
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = model(input_ids=ids, attention_mask=mask).logits
    with packed_attention(model):
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)
        # Without the keywords transformers finds the rows by their positions.
        packed = model(
            input_ids=torch.tensor([[4, 5, 6, 7, 8, 9]]),
            position_ids=torch.tensor([[0, 1, 2, 3, 0, 1]]),
            use_cache=False,
        )
    assert torch.allclose(packed.logits[0, 4:], expected[1, :2], atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_what_it_would_leave_out_is_refused():
    inputs = [torch.randn(1, 2, 3, 8) for _ in range(3)]
    for name in ("position_bias", "softcap", "s_aux"):
        with pytest.raises(NotImplementedError, match=name):
            attend_within_rows(None, *inputs, None, cu_seq_lens_q=torch.tensor([0, 3]), **{name: 1.0})


# ---------------------------------------------------------------------- plans


@pytest.mark.parametrize("equal_counts", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_plan(seed, num_ranks, equal_counts):
    draw = random.Random(seed)
    rows, max_passes, limit = 24, 6, 300
    lengths = [[int(draw.lognormvariate(3.5, 0.8)) for _ in range(rows)] for _ in range(num_ranks)]
    inert = [[draw.random() < 0.4 for _ in range(rows)] for _ in range(num_ranks)]
    plan = plan_passes(lengths, inert, max_passes, limit, equal_counts=equal_counts)
    placed = [row for bins in plan.passes for rows in bins for row in rows]
    active = {(rank, row) for rank in range(num_ranks) for row in range(rows) if not inert[rank][row]}
    assert len(placed) == len(set(placed)) and active <= set(placed)
    assert len(placed) - len(active) < max(num_ranks, 1), "inert rows fill up, no more"
    assert len(plan.passes) <= max_passes and all(len(bins) == num_ranks for bins in plan.passes)
    assert all(rows for bins in plan.passes for rows in bins)

    def size(rows):
        return sum(lengths[rank][row] for rank, row in rows)

    sizes = [[size(rows) for rows in bins] for bins in plan.passes]
    assert plan.largest == max(map(max, sizes))
    longest = max(lengths[rank][row] for rank, row in placed)
    assert longest in [lengths[rank][row] for rows in plan.passes[0] for rank, row in rows]
    if len(plan.passes) < max_passes:
        assert plan.largest <= max(limit, longest)
    totals = [sum(size[rank] for size in sizes) for rank in range(num_ranks)]
    if equal_counts and num_ranks > 1:
        assert all(len(set(map(len, bins))) == 1 for bins in plan.passes)
    else:
        assert max(totals) - min(totals) <= longest
        assert max(totals) <= 1.1 * min(totals), "processes have the same to do"


def test_one_long_row_is_weighed_up_by_many_short_ones():
    lengths = [[1000] + [10] * 49, [10] * 50]
    plan = plan_passes(lengths, [[False] * 50] * 2, 10, 2000)
    (bins,) = plan.passes
    assert sorted(sum(lengths[rank][row] for rank, row in rows) for rows in bins) == [990, 1000]
    assert (0, 0) in bins[0], "rows stay where they are if that is as good"


def test_rows_without_any_gradient_leave_one_each():
    plan = plan_passes([[4, 3], [5, 6]], [[True] * 2] * 2, 2, 100)
    assert plan.passes == [[[(0, 1)], [(0, 0)]]] or plan.passes == [[[(0, 0)], [(0, 1)]]]


def test_spreading():
    bins = spread([5, 1, 1, 1, 4, 2], 2)
    assert bins == [[0, 1, 3], [4, 5, 2]] or sorted(map(len, bins)) == [3, 3]
    assert spread([0, 0, 7], 3) == [[2], [0], [1]]
    assert len(spread_to_size([9, 9, 9, 9], 18, 4)) == 2
    assert len(spread_to_size([9, 9, 9, 9], 17, 4)) == 4
    assert len(spread_to_size([9, 9, 9, 9], 5, 3)) == 3, "a row may be longer than a bin"
    assert spread_to_size([0, 0], 5, 3) == [[0, 1]]
    assert chunks_needed(1000, 100, 300) == 5 and chunks_needed(1000, 300, 300) is None
    for seed in range(20):
        draw = random.Random(seed)
        lengths = [draw.randint(1, 100) for _ in range(40)]
        number = chunks_needed(sum(lengths), max(lengths), 350)
        assert max(sum(lengths[row] for row in rows) for rows in spread(lengths, number)) <= 350


def some_batch():
    return {
        "prompt_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[4, 1, 0], [5, 6, 1]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "tool_mask": torch.tensor([[0, 1, 1], [1, 0, 1]]),
        "importance_sampling_ratio": torch.tensor([[0.5], [2.0]]),
        "advantages": torch.tensor([0.5, -0.5]),
        "credit_weights": torch.tensor([[0.0, 5.0, 0.0], [0.0, 5.0, 0.0]]),
        "names": ["a", "b"],
        "num_items_in_batch": torch.tensor(5),
    }


def test_rows_are_split_and_joined():
    batch = some_batch()
    first, second = split_rows(batch)
    assert first["prompt_ids"].tolist() == [5, 6] and first["completion_ids"].tolist() == [4, 1]
    joined = join_rows([first, second], batch)
    assert joined.keys() == batch.keys() and joined["num_items_in_batch"] == 5 and joined["names"] == ["a", "b"]
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(joined[key], value), key
    empty = join_rows([second, blank(second)], batch)
    assert not empty["prompt_mask"][1].any() and not empty["completion_mask"][1].any()
    assert empty["advantages"].tolist() == [-0.5, 0.0] and empty["credit_weights"][1].tolist() == [0.0, 0.0, 0.0]
    assert empty["tool_mask"][1].tolist() == [1, 1, 1], "as TRL pads it"


def test_a_tensor_whose_padding_is_not_known_is_named():
    batch = some_batch()
    first, second = ({**row, "mine": torch.zeros(n)} for row, n in zip(split_rows(batch), (3, 5), strict=False))
    with pytest.raises(ValueError, match=r"'mine'.*\(3,\) and \(5,\).*batch_layout"):
        join_rows([first, second], batch)


def test_a_row_is_read_up_to_its_last_token_with_a_gradient():
    batch = some_batch()
    assert read_lengths(batch, None).tolist() == [4, 6]
    assert read_lengths(batch, batch["credit_weights"]).tolist() == [4, 5]
    batch["advantages"][0] = 0.0
    assert read_lengths(batch, batch["credit_weights"]).tolist() == [0, 5]


# ---------------------------------------------------------------------- the call of the model


ROWS = torch.tensor([[0, 5, 6, 7, 8, 0], [9, 10, 11, 12, 13, 14], [0, 0, 15, 16, 17, 18], [0, 0, 0, 0, 0, 0]])
MASKS = {
    "rows": [[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
    "a row without a prompt": [[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
    "a token masked between others": [[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("wanted", [None, [[0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]], ids=["all", "some"])
@pytest.mark.parametrize("name", MASKS)
def test_the_call_is_that_of_padded_rows(name, wanted, tokenizer):
    """Prompts have three columns. The first token of a row has no prediction, whatever stands before it."""
    model = build_model(tokenizer)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    mask = torch.tensor(MASKS[name])
    labels = ROWS.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    tokens = () if wanted is None else (torch.tensor(wanted) * mask[:, 3:], mask[:, 3:])
    results, before = [], packing.tokens_packed
    with packed_attention(model), row_sparse_head(*tokens):
        for call in (Packed(model, model), RightPadded(model, cut=True)):
            outputs = call(ROWS, mask, labels, fused_lm_head=True)
            value = (outputs.log_probs * torch.arange(24).view(4, 6)).sum() + outputs.entropy.square().sum()
            results.append((outputs.log_probs, outputs.entropy, gradient(model, value)))
    assert (packing.tokens_packed > before) == ("between" not in name)
    for found, expected in zip(*results, strict=True):
        assert relative_difference(found, expected) < 1e-5


def test_a_pass_without_anything_wanted_is_made_all_the_same(tokenizer):
    """Another process may have something: the collectives of a sharded model need as many passes on each."""
    model = build_model(tokenizer)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    mask = torch.tensor(MASKS["rows"])
    nothing = torch.zeros_like(mask[:, 3:])
    with packed_attention(model), row_sparse_head(nothing, mask[:, 3:]):
        outputs = Packed(model, model)(ROWS, mask, torch.full_like(ROWS, -100), fused_lm_head=True)
    assert outputs.log_probs.shape == (4, 6) and not outputs.log_probs.any()
    assert not gradient(model, outputs.log_probs.sum()).any()


@pytest.mark.parametrize("equal_counts", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_every_process_has_a_row_in_every_pass(num_ranks, equal_counts):
    """Whatever the lengths, however many rows are inert, within the number of passes and the size of a padded one."""
    generator = random.Random(num_ranks)
    for _ in range(300):
        window, size = generator.choice([1, 2, 4]), generator.choice([1, 2, 4])
        lengths = [[generator.choice([3, 50, 100]) for _ in range(window * size)] for _ in range(num_ranks)]
        inert = [[generator.random() < 0.4 for _ in own] for own in lengths]
        room = size * max(map(max, lengths))
        plan = plan_passes(lengths, inert, window, room, equal_counts=equal_counts)
        assert len(plan.passes) <= window and all(rows for bins in plan.passes for rows in bins)
        sizes = [max(sum(lengths[rank][row] for rank, row in rows) for rows in bins) for bins in plan.passes]
        assert max(sizes) == plan.largest
        assert equal_counts or plan.largest <= room
        placed = [row for bins in plan.passes for rows in bins for row in rows]
        assert len(placed) == len(set(placed))
        live = {(rank, row) for rank, own in enumerate(inert) for row, is_inert in enumerate(own) if not is_inert}
        assert live <= set(placed)
