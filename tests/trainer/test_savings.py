"""Work that is left out: the gradient stays, and the work is really gone."""

import copy
import dataclasses
import logging
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from transformers import Gemma3TextConfig, GPT2Config, Qwen3Config
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

import trl_fork.trainer.lm_head as lm_head
from tests.conftest import FixedRollouts, SpyTrainer, build_model, relative_difference, train, weight_change
from tests.oracles import naive_head
from trl_fork import ForkingGRPOConfig
from trl_fork.generation.rotary import rescales_with_length
from trl_fork.ranks import Ranks
from trl_fork.trainer.batch import LAYOUT, Padding
from trl_fork.trainer.batching import cut_padding, inert_rows, plan_window, take_rows
from trl_fork.trainer.metrics import partial_metrics
from trl_fork.trainer.savings import plan_savings
from trl_fork.trainer.token_credit import TokenCredit


class Spy(SpyTrainer):
    """Counts what the training passes see."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.positions = self.rows = self.useful = self.head_rows = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        before = lm_head.rows_projected["forward"]
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training:
            self.rows += len(inputs["prompt_ids"])
            self.positions += inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
            weights = self.weights[-1] if self.args.credit is not None else inputs["completion_mask"]
            self.useful += int(((weights != 0) & (inputs["advantages"] != 0).unsqueeze(1)).sum())
            self.head_rows += lm_head.rows_projected["forward"] - before
        return loss


def compare(tokenizer, tmp_path, build=build_model, rewards=None, **settings):
    """Relative difference of the weight change with and without savings, and the two trainers."""
    if rewards is None:  # two of four groups inert
        rewards = [[0.5] * 8, [0.0, 1.0] * 4, [0.25] * 8, [1.0, 0.0, 0.0, 0.0] * 2]
    changes, trainers = [], []
    for skip in (True, False):
        model = build(tokenizer)
        start = copy.deepcopy(model)
        rollouts = FixedRollouts(
            tokenizer, rewards=rewards, truncate=settings.get("mask_truncated_completions", False)
        )
        for counts in lm_head.rows_projected:
            lm_head.rows_projected[counts] = 0
        trainer = train(model, tokenizer, rollouts, tmp_path, Spy, skip_inert_compute=skip, **settings)
        trainer.projected = dict(lm_head.rows_projected)
        changes.append(weight_change(start, model) if "peft_config" not in settings else lora_weights(trainer.model))
        trainers.append(trainer)
    return relative_difference(*changes), *trainers


def lora_weights(model):
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_B" in name])


ON_POLICY = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
OFF_POLICY = {
    "per_device_train_batch_size": 8,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 8,
    "learning_rate": 0.01,
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"entropy_threshold_scope": "sequence"},
        {"token_selection": "low_entropy"},
        {"token_selection": "random"},
        {"loss_denominator": "all"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"mask_truncated_completions": True},
        {"gradient_checkpointing": True},
        {"delta": 10.0},
        {"temperature": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("updates", [ON_POLICY, OFF_POLICY], ids=["on_policy", "off_policy"])
def test_all_savings_keep_the_gradient(settings, updates, tokenizer, tmp_path):
    difference, lean, full = compare(tokenizer, tmp_path, **{**updates, **settings})
    # At a learning rate of 0.01 the weights, in float32, have lost two digits of their change.
    assert difference < (1e-5 if updates is ON_POLICY else 2e-5)
    assert lean._savings.inert_rows and lean._savings.head_forward and not lean._savings.reasons
    # It ran: half of the rows, less padding, and of the head only what carries a gradient.
    steps = updates.get("num_iterations", 1)
    assert full.rows == 32 * steps and lean.rows <= 24 * steps
    assert lean.positions < 0.7 * full.positions
    assert 0 < lean.projected["backward"] <= lean.useful == lean.head_rows
    assert full.projected == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("updates", [ON_POLICY, OFF_POLICY], ids=["on_policy", "off_policy"])
def test_rows_that_fill_up_a_batch_cost_no_head_row(updates, tokenizer, tmp_path):
    """Two of 32 rows have an advantage, and no padded micro-batch may be empty: those beside them have no head."""
    rewards = [[0.5] * 8, [0.0, 1.0] + [0.5] * 6, [0.25] * 8, [0.75] * 8]
    difference, lean, full = compare(tokenizer, tmp_path, rewards=rewards, padding_free=False, **updates)
    assert difference < 1e-5
    steps = updates.get("num_iterations", 1)
    assert full.rows == 32 * steps and 2 * steps < lean.rows <= 5 * steps
    assert 0 < lean.useful == lean.head_rows < sum(int((w != 0).sum()) for w in lean.weights)


@pytest.mark.parametrize(
    ("settings", "off"),
    [
        ({"beta": 0.1}, {"inert_rows", "head_forward"}),
        ({"entropy_threshold_scope": "micro_batch"}, {"ordering", "inert_rows", "head_forward"}),
        ({"entropy_threshold_scope": "local"}, {"ordering", "inert_rows", "head_forward"}),
        ({"loss_type": "bnpo"}, {"ordering", "inert_rows"}),
        ({"loss_type": "grpo", "loss_denominator": "all"}, {"ordering", "inert_rows"}),
        ({"loss_type": "vespo"}, {"head_forward"}),
        ({"entropy_coef": 0.1}, {"ordering", "inert_rows", "head_forward"}),
        ({"importance_sampling_level": "sequence"}, {"head_forward"}),
        ({"off_policy_mask_threshold": 0.01}, {"head_forward"}),
        ({"top_entropy_quantile": 1.0}, {"inert_rows", "head_forward"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_not_exact_is_off(settings, off, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)

    def build(tokenizer):
        model = build_model(tokenizer)
        model.save_pretrained(tmp_path / "model")
        model.config._name_or_path = str(tmp_path / "model")
        return model

    # One generation batch and several updates: micro-batches are the same with and without savings only where rows
    # are not reordered, and that is what is tested.
    torch.manual_seed(0)
    difference, lean, _ = compare(tokenizer, tmp_path, build, **{**ON_POLICY, **settings})
    assert set(lean._savings.reasons) == off
    # A run on all tokens has nothing to be told: its user did not ask for a selection.
    warned = "skip_inert_compute: not everything can be left out" in caplog.text
    assert warned == (settings != {"top_entropy_quantile": 1.0})
    assert difference < 1e-5
    for name in ("padding", "head_backward"):
        assert getattr(lean._savings, name)
    # Rows without advantage are in these batches where `inert_rows` is off: the head leaves them out all the same.
    assert (lean.rows == 32) == ("inert_rows" in off)
    if lean._savings.head_forward:
        assert 0 < lean.useful == lean.head_rows


def test_reordering_would_change_the_pool_of_a_micro_batch(tokenizer, tmp_path, monkeypatch):
    """Why the scopes of a micro-batch keep their rows: otherwise another selection, and another gradient."""
    import trl_fork.trainer.forking_grpo_trainer as module

    def careless(*args, **facts):
        return dataclasses.replace(plan_savings(*args, **facts), ordering=True)

    monkeypatch.setattr(module, "plan_savings", careless)
    difference, _, _ = compare(tokenizer, tmp_path, entropy_threshold_scope="micro_batch", **ON_POLICY)
    assert difference > 0.01


@pytest.mark.parametrize("padding_free", [True, False])
def test_without_any_gradient(padding_free, tokenizer, tmp_path):
    """Every group has one reward: the smallest batch that keeps the loop going, and no change of weights."""
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer, rewards=[[0.5] * 8] * 4)
    trainer = train(model, tokenizer, rollouts, tmp_path, Spy, padding_free=padding_free, **ON_POLICY)
    assert weight_change(start, model).norm() == 0
    assert trainer.rows == (1 if padding_free else 4) and trainer.state.log_history[0]["grad_norm"] == 0
    assert trainer.state.log_history[0]["forking/inert_row_fraction"] == 1.0


def test_lora(tokenizer, tmp_path):
    difference, lean, _ = compare(
        tokenizer, tmp_path, **ON_POLICY, peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    )
    assert difference < 1e-5
    assert lean._savings.head_forward and lean.projected["backward"] > 0


@pytest.mark.parametrize("tied", [True, False])
def test_cast_head_and_tied_embeddings(tied, tokenizer, tmp_path):
    def build(tokenizer):
        return build_model(tokenizer, tie_word_embeddings=tied)

    difference, _, _ = compare(tokenizer, tmp_path, build, cast_lm_head_to_fp32=not tied, **ON_POLICY)
    assert difference < 1e-5


def test_metrics_keep_their_meaning(tokenizer, tmp_path):
    _, lean, full = compare(tokenizer, tmp_path)
    for name in ("entropy", "forking/selected_fraction", "forking/inert_row_fraction", "forking/entropy_threshold"):
        assert lean.state.log_history[0][name] == pytest.approx(full.state.log_history[0][name], rel=1e-4)
    _, lean, full = compare(tokenizer, tmp_path, **{**OFF_POLICY, "learning_rate": 0.05})
    ours, theirs = lean.state.log_history, full.state.log_history
    assert not any(name.startswith("clip_ratio/") for entry in ours for name in entry)
    names = {"forking/clip_ratio/low_mean", "forking/clip_ratio/high_mean", "forking/clip_ratio/region_mean"}
    assert names <= set(ours[0])
    assert any(entry["forking/clip_ratio/region_mean"] > 0 for entry in ours[:-1])
    # Over the tokens trained on. TRL counts those that are not as well: of its clipped tokens a part is not selected.
    for name in names:
        assert any(entry[name] > theirs[i][name.removeprefix("forking/")] for i, entry in enumerate(ours[:-1]))
    # Eight steps on one batch, which is scored once: then no entropy, rather than an empty one
    assert ["entropy" in entry for entry in ours[:8]] == [True] + [False] * 7
    assert {name for name in theirs[0] if "clip_ratio" in name} >= {"clip_ratio/low_mean", "clip_ratio/high_max"}


def test_ratios_over_valid_tokens_become_ratios_over_those_seen():
    # 10 of 50 tokens were scored; 4, 3 and 1 of them were clipped.
    logged = {"clip_ratio/region_mean": [0.08, 0.06], "cispo_clip_ratio": [0.02], "kl": [0.5], "entropy": [0.7]}
    assert partial_metrics(logged, 50, 10) == {
        "forking/clip_ratio/region_mean": pytest.approx([0.4, 0.3]),
        "forking/cispo_clip_ratio": pytest.approx([0.1]),
        "kl": [0.5],
    }


@pytest.mark.parametrize(("loss_type", "name"), [("cispo", "cispo_clip_ratio"), ("vespo", "vespo/phi_seq_mean")])
def test_metrics_of_other_losses_are_renamed_or_absent(loss_type, name, tokenizer, tmp_path):
    settings = {**OFF_POLICY, "learning_rate": 0.05, "loss_type": loss_type, "epsilon_high": 1.0}
    _, lean, full = compare(tokenizer, tmp_path, **settings)
    assert lean._savings.inert_rows
    assert name in full.state.log_history[0] and name not in lean.state.log_history[0]
    assert ("forking/" + name in lean.state.log_history[0]) == (loss_type == "cispo")


# ---------------------------------------------------------------------- the head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bias", "softcap", "scale"), [(False, None, 1.0), (True, 5.0, 0.5), (True, None, 2.0)])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_row_sparse_backward(dtype, bias, softcap, scale, frozen, share):
    """Against the naive head in float64, within the error that TRL's own head makes in this precision."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    rows, width, vocabulary = 37, 19, 101
    hidden, weight = draw(rows, width), draw(vocabulary, width) / 4
    bias = draw(vocabulary) if bias else None
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    upstream = draw(2, rows).float() * (torch.rand(rows, generator=generator) < share)

    def gradients(function):
        inputs = [x if x is None else x.clone() for x in (hidden, weight, bias)]
        for tensor in inputs if not frozen else inputs[:1]:
            if tensor is not None:
                tensor.requires_grad_()
        log_probs, entropy = function(*inputs)
        ((log_probs * upstream[0]).sum() + (entropy * upstream[1]).sum()).backward()
        return [x.grad for x in inputs if x is not None]

    def kernel(function):
        # A chunk of 17 tokens of the vocabulary: every gradient crosses chunk borders.
        return lambda h, w, b: function.apply(h, w, b, targets, 0.7, 17, softcap, scale, ("log_probs", "entropy"))[:2]

    lm_head.rows_projected["backward"] = 0
    ours = gradients(kernel(lm_head.RowSparseLogProbFunction))
    assert lm_head.rows_projected["backward"] == int((upstream != 0).any(0).sum())
    theirs = gradients(kernel(ChunkedLogProbFunction))
    exact = gradients(lambda h, w, b: naive_head(h, w, b, targets, 0.7, softcap, scale))
    for found, baseline, truth in zip(ours, theirs, exact, strict=True):
        assert (found is None) == (baseline is None)
        if found is not None:
            budget = (baseline.float() - truth.float()).abs() + 1e-5 * max(truth.float().abs().max(), 1e-30)
            assert ((found.float() - truth.float()).abs() <= budget).all()


def test_a_nan_gradient_is_not_lost():
    hidden = torch.randn(4, 3, requires_grad=True)
    targets = torch.zeros(4, dtype=torch.long)
    log_probs, *_ = lm_head.RowSparseLogProbFunction.apply(
        hidden, torch.randn(5, 3), None, targets, 1.0, 8, None, 1.0, ("log_probs", "entropy")
    )
    (log_probs * torch.tensor([0.0, float("nan"), 0.0, 1.0])).sum().backward()
    assert hidden.grad[1].isnan().all() and (hidden.grad[0] == 0).all()


def test_only_wanted_tokens_are_scored(model):
    ids = torch.randint(4, 40, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = 0
    wanted = torch.zeros(3, 5)
    wanted[0, 1] = wanted[1, 0] = wanted[2, 4] = 1
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    whole = model(input_ids=ids, labels=ids, fused_lm_head=True)
    lm_head.rows_projected["forward"] = 0
    with lm_head.row_sparse_head(wanted, mask):
        part = model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert lm_head.rows_projected["forward"] == 3
    for name in ("log_probs", "entropy"):
        found, expected = getattr(part, name)[:, -5:], getattr(whole, name)[:, -5:]
        assert torch.allclose(found, expected * wanted, atol=1e-6)
    again = model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert torch.equal(again.log_probs, whole.log_probs) and lm_head.rows_projected["forward"] == 3, "TRL's is back"


def test_no_wanted_token_is_a_differentiable_zero(model):
    ids = torch.randint(4, 40, (2, 7))
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    with lm_head.row_sparse_head(torch.zeros(2, 3), torch.ones(2, 3)):
        output = model(input_ids=ids, labels=ids, fused_lm_head=True)
    output.log_probs.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_rows_of_a_compacted_head():
    """On Triton devices TRL hands over the valid completion tokens alone, in order."""
    wanted = torch.tensor([[0, 1, 0], [1, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert lm_head._rows_of(wanted, mask, 4).tolist() == [1, 3]
    assert lm_head._rows_of(wanted, mask, 2 * 6).tolist() == [4, 9]
    assert lm_head._rows_of(wanted, mask, 7) is None


# ---------------------------------------------------------------------- batches


def some_batch():
    return {
        "prompt_ids": torch.tensor([[0, 0, 5], [0, 6, 7]]),
        "prompt_mask": torch.tensor([[0, 0, 1], [0, 1, 1]]),
        "completion_ids": torch.tensor([[8, 9, 0, 0], [8, 9, 9, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]),
        "advantages": torch.tensor([0.0, 1.0]),
        "importance_sampling_ratio": torch.ones(2, 1),
        "num_items_in_batch": torch.tensor(5),
        "num_images": [1, 2],
    }


def test_cut_padding():
    cut = cut_padding(some_batch())
    shapes = {key: tuple(value.shape) for key, value in cut.items() if isinstance(value, torch.Tensor)}
    assert shapes["prompt_ids"] == shapes["prompt_mask"] == (2, 2)
    assert shapes["completion_ids"] == shapes["completion_mask"] == shapes["tool_mask"] == (2, 3)
    assert shapes["importance_sampling_ratio"] == (2, 1) and shapes["num_items_in_batch"] == ()
    assert cut["prompt_ids"].tolist() == [[0, 5], [6, 7]]
    empty = {**some_batch(), "completion_mask": torch.zeros(2, 4, dtype=torch.long)}
    assert cut_padding(empty)["completion_ids"].shape == (2, 1)


def test_a_tensor_is_cut_by_its_declared_padding_alone():
    """A prompt padded on the left may be as wide as the completions: `[0, 0, 11, 12]` once became `[0, 0, 11]`."""
    other = torch.tensor([[0, 0, 11, 12], [0, 13, 14, 15]])
    batch = {**some_batch(), "other_ids": other, "other_mask": (other > 0).long(), "unknown": other}
    assert torch.equal(cut_padding(batch)["other_ids"], other)
    layout = {**LAYOUT, **dict.fromkeys(["other_ids", "other_mask"], Padding("left", "other_mask"))}
    cut = cut_padding(batch, layout)
    assert cut["other_ids"].tolist() == [[0, 11, 12], [13, 14, 15]] and torch.equal(cut["unknown"], other)
    assert cut["completion_ids"].shape == (2, 3)


def test_inert_rows():
    batch = some_batch()
    assert inert_rows(batch, None).tolist() == [True, False]
    assert inert_rows(batch, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])).tolist() == [True, True]
    batch["advantages"] = torch.tensor([1.0, 1.0])
    assert inert_rows(batch, torch.tensor([[0, 1.0, 0, 0], [1.0, 0, 0, 0]])).tolist() == [True, False]


@pytest.mark.parametrize("num_rows", [3, 5, 6, 8])
def test_plan_window(num_rows):
    lengths = torch.tensor([4, 9, 2, 7, 5, 3, 8, 6])
    inert = torch.tensor([0, 1, 0, 0, 1, 1, 1, 1]).bool()
    plan = plan_window(lengths, inert, 3, num_rows)
    rows = [row for batch in plan for row in batch]
    assert len(set(rows)) == len(rows) == num_rows
    assert {0, 2, 3} <= set(rows), "every row with a gradient stays"
    assert all(batch for batch in plan) and max(map(len, plan)) - min(map(len, plan)) <= 1
    assert [int(lengths[row]) for row in rows] == sorted((int(lengths[row]) for row in rows), reverse=True)
    fillers = [int(lengths[row]) for row in rows if inert[row]]
    assert sorted(fillers) == sorted(lengths[inert].tolist())[: len(fillers)], "the shortest fill up"


def test_take_rows():
    first, second = some_batch(), some_batch()
    second["num_images"] = [3, 4]
    second["advantages"] = torch.tensor([2.0, 3.0])
    taken = take_rows([first, second], [3, 0])
    assert taken["advantages"].tolist() == [3.0, 0.0] and taken["num_images"] == [4, 1]
    assert taken["prompt_ids"].tolist() == [[0, 6, 7], [0, 0, 5]] and taken["num_items_in_batch"] == 5


def test_steps_over_two_generation_batches_keep_their_rows(tokenizer, tmp_path):
    """Three micro-batches per generation, two per step: allowed where all tokens are trained on."""
    settings = {
        "top_entropy_quantile": 1.0, "steps_per_generation": 3, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 0.01, "shuffle_dataset": False,
    }  # fmt: skip
    changes = []
    for skip_inert_compute in (True, False):
        model = build_model(tokenizer)
        start = copy.deepcopy(model)
        rollouts = FixedRollouts(tokenizer, prompts=12, rewards=[[0.0, 1.0] * 4] * 12)
        train(model, tokenizer, rollouts, tmp_path, skip_inert_compute=skip_inert_compute, **settings)
        changes.append(weight_change(start, model))
    assert relative_difference(*changes) < 1e-5


def test_plan_of_savings(tmp_path):
    args = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    facts = {"length_shows": False, "image_inputs": False, "auxiliary_loss": False}
    credit = TokenCredit(args.credit, scope="batch", denominator="selected", loss_type="dapo", ranks=Ranks())
    savings = plan_savings(args, credit, **facts)
    assert savings.padding and savings.ordering and savings.inert_rows
    by_length = plan_savings(args, credit, **{**facts, "length_shows": True})
    assert not by_length.padding and not by_length.ordering and not by_length.inert_rows and by_length.head_forward
    images = plan_savings(args, credit, **{**facts, "image_inputs": True})
    assert not images.padding and not images.inert_rows and images.head_backward
    off = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, skip_inert_compute=False)
    assert not any(vars(plan_savings(off, credit, **facts)).values())


def test_models_that_say_that_their_length_shows():
    def says(**rope_parameters):
        return rescales_with_length(Qwen3Config(rope_parameters=rope_parameters))

    factors = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "original_max_position_embeddings": 8}
    assert says(rope_type="longrope", rope_theta=1e4, factor=2.0, **factors)
    assert says(rope_type="dynamic", rope_theta=1e4, factor=2.0)
    assert not says(rope_type="default", rope_theta=1e4)
    assert not says(rope_type="yarn", rope_theta=1e4, factor=2.0, original_max_position_embeddings=8)
    by_layer = {"full_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    assert rescales_with_length(SimpleNamespace(get_text_config=lambda: SimpleNamespace(rope_parameters=by_layer)))
    assert not rescales_with_length(Gemma3TextConfig()) and not rescales_with_length(GPT2Config())
