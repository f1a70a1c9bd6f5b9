"""
What only a CUDA device shows: TRL's kernels are Triton's there, and precision is bf16. Run with `pytest -m gpu`.

Drivers, devices and versions of GPU machines differ: their warnings are not turned into errors. With
`GPU_TESTS_DEVICE=cpu` the tests themselves can be tried on a CPU; that shows nothing about a GPU.
"""

import copy
import os
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

import trl_fork.trainer.lm_head as lm_head
from benchmarks import arms, workload
from benchmarks import step as benchmark_step
from tests.conftest import (
    FixedRollouts,
    SpyTrainer,
    build_model,
    build_tokenizer,
    gradient,
    naive_view,
    relative_difference,
    train,
    weight_change,
)
from tests.oracles import gap_at_threshold, loss, naive_head, select


DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
RHO = 0.2
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),
]

# More than one block of the kernels (1024 columns) and one chunk of the vocabulary; nothing divides anything.
ROWS, WIDTH, VOCABULARY, CHUNK = 255, 96, 5003, 2100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bias", "softcap", "scale"), [(False, None, 1.0), (True, 5.0, 0.5), (True, None, 2.0)])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_row_sparse_backward(dtype, bias, softcap, scale, frozen, share):
    """Against the naive head in float64, within the error that TRL's own head makes in this precision."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    hidden, weight = draw(ROWS, WIDTH), draw(VOCABULARY, WIDTH) / 8
    bias = draw(VOCABULARY) if bias else None
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator).to(DEVICE)
    used = (torch.rand(ROWS, generator=generator) < share).to(DEVICE)
    upstream = draw(2, ROWS).float() * used

    def run(function, dtype=dtype):
        inputs = [x if x is None else x.to(dtype, copy=True) for x in (hidden, weight, bias)]
        for tensor in inputs if not frozen else inputs[:1]:
            if tensor is not None:
                tensor.requires_grad_()
        outputs = function(*inputs)
        sum((x * u).sum() for x, u in zip(outputs, upstream, strict=True)).backward()
        return [*outputs, *(x.grad for x in inputs if x is not None)]

    def kernel(function):
        settings = (targets, 0.7, CHUNK, softcap, scale, ("log_probs", "entropy"))
        return lambda *inputs: function.apply(*inputs, *settings)[:2]

    lm_head.rows_projected["backward"] = 0
    ours = run(kernel(lm_head.RowSparseLogProbFunction))
    assert lm_head.rows_projected["backward"] == int(used.sum())
    theirs = run(kernel(ChunkedLogProbFunction))
    exact = run(lambda h, w, b: naive_head(h, w, b, targets, 0.7, softcap, scale), dtype=torch.float64)
    for found, baseline, truth in zip(ours, theirs, exact, strict=True):
        assert (found is None) == (baseline is None)
        if found is None:
            continue
        assert found.dtype == baseline.dtype
        found, baseline, truth = (x.detach().double() for x in (found, baseline, truth))
        # As a whole no worse than TRL's; and nowhere by more than the rounding of another order of summation.
        assert (found - truth).norm() <= 1.1 * (baseline - truth).norm() + 1e-6 * truth.norm()
        tolerance = 4 * torch.finfo(dtype).eps * truth.abs().max()
        assert ((found - truth).abs() <= (baseline - truth).abs() + tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_wanted_tokens_are_scored(dtype):
    """On a Triton device TRL hands over the valid completion tokens alone; of these the wanted ones are scored."""
    model = build_model(build_tokenizer()).to(DEVICE, dtype)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids = torch.randint(4, 40, (3, 11), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    mask = torch.ones(3, 5, dtype=torch.long, device=DEVICE)
    mask[1, 3:] = 0
    labels = torch.full_like(ids, -100)
    labels[:, -5:] = ids[:, -5:].masked_fill(mask == 0, -100)
    wanted = torch.zeros(3, 5, device=DEVICE)
    wanted[0, 1] = wanted[1, 0] = wanted[2, 4] = 1
    whole = model(input_ids=ids, labels=labels, fused_lm_head=True)
    lm_head.rows_projected["forward"] = 0
    with lm_head.row_sparse_head(wanted, mask):
        part = model(input_ids=ids, labels=labels, fused_lm_head=True)
    assert lm_head.rows_projected["forward"] == 3
    for name in ("log_probs", "entropy"):
        found, expected = getattr(part, name)[:, -5:], getattr(whole, name)[:, -5:]
        assert torch.allclose(found, expected * wanted, atol=1e-5 if dtype == torch.float32 else 0.05)
    with lm_head.row_sparse_head(torch.zeros_like(wanted), mask):
        nothing = model(input_ids=ids, labels=labels, fused_lm_head=True)
    nothing.log_probs.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("lora", [False, True])
def test_a_step_keeps_its_gradient(lora, tokenizer, tmp_path):
    """A real step in float32 with and without savings; half of the groups are inert."""
    changes = []
    for skip in (True, False):
        model = build_model(tokenizer)
        rollouts = FixedRollouts(tokenizer, rewards=[[0.5] * 8, [0.0, 1.0] * 4, [0.25] * 8, [1.0, 0.0, 0.0, 0.0] * 2])
        settings = {"use_cpu": DEVICE == "cpu", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
        if lora:
            settings["peft_config"] = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        start = copy.deepcopy(model)
        lm_head.rows_projected.update(forward=0, backward=0)
        trainer = train(model, tokenizer, rollouts, tmp_path, skip_inert_compute=skip, **settings)
        assert trainer.accelerator.device.type == DEVICE
        assert (lm_head.rows_projected["backward"] > 0) == skip
        if lora:
            weights = {name: p for name, p in trainer.model.named_parameters() if "lora_B" in name}
            changes.append(torch.cat([p.detach().flatten() for p in weights.values()]))
        else:
            changes.append(weight_change(start.to(DEVICE), trainer.model))
    assert relative_difference(*changes) < 1e-5


class ChosenTokens(SpyTrainer):
    """Keeps which tokens of the generation batch were selected, by `(row, token)`."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.chosen = {(int(row), int(token)) for row, token in output["credit_weights"].nonzero()}
        return output


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_equals_the_naive_objective(precision, skip, tokenizer, tmp_path):
    """
    A real step against the objective written naively in float32 on the CPU, with and without savings.

    In bf16 entropies are rounded, so that tokens near the threshold may be selected otherwise: the gradient is that
    of the tokens that were selected, and these differ by no more than the rounding.
    """
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer, rewards=[[0.5] * 8, [0.0, 1.0] * 4, [0.25] * 8, [1.0, 0.0, 0.0, 0.0] * 2])
    lm_head.rows_projected.update(forward=0, backward=0)
    trainer = train(
        model,
        tokenizer,
        rollouts,
        tmp_path,
        ChosenTokens,
        skip_inert_compute=skip,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        bf16=precision == "bf16",
        use_cpu=DEVICE == "cpu",
    )
    assert trainer.accelerator.device.type == DEVICE
    assert (lm_head.rows_projected["backward"] > 0) == skip
    assert trainer._savings.packing == skip  # its own test of packed rows has found no difference
    (batch,) = rollouts.generated
    entropies, advantages = naive_view(start, batch)
    exact = select(batch, entropies, RHO, "high_entropy", [[r.row for r in batch]])
    assert len(trainer.chosen) == len(exact)
    if precision == "fp32":
        assert gap_at_threshold(batch, entropies, RHO, [[r.row for r in batch]]) > 1e-5
        assert trainer.chosen == exact
    else:
        threshold = min(entropies[row][token] for row, token in exact)
        assert all(abs(entropies[row][token] - threshold) < 0.05 for row, token in trainer.chosen ^ exact)
    expected = gradient(start, loss(start, batch, advantages, trainer.chosen, len(exact)))
    # Rounded to 8 bits in every layer, a gradient is off by about a hundredth.
    difference = relative_difference(weight_change(start, model.cpu()), expected)
    assert difference < (1e-4 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("inert", [False, True])
def test_peak_memory_is_not_above_trl(inert, tmp_path, record_property):
    """
    Peak memory of a step on long-tailed rows, as `step.py` measures it.

    The longest rows set the peak of both, so that it need not be lower; a twentieth is left to how allocations fall.
    Rows are long enough for TRL's head to fill its tiles of 4096 tokens in either.
    """
    longest = 4096 if DEVICE == "cuda" else 32
    options = SimpleNamespace(shape="tiny", lora=False, groups=4, micro_batch=8, max_length=longest, steps=1)
    rollouts = workload.Rollouts(options, "lognormal", 0.5 if inert else 0.0)
    peaks = {}
    for arm in (arms.BASELINE, arms.VARIANTS["ours"]):
        benchmark_step.release(DEVICE)
        result = arms.run(arm, rollouts, None, options, DEVICE, measure_memory=True)
        peaks[arm.name] = result["memory"]
        record_property(f"peak bytes of {arm.name}", result["memory"])
    assert 0 < peaks["ours"] <= 1.05 * peaks["TRL"]
