"""
Rows on a CUDA device: attention within packed rows by its kernel, and the decoding loop. Run with `pytest -m gpu`.

As in `test_gpu.py`, `GPU_TESTS_DEVICE=cpu` tries the tests themselves on a CPU.
"""

import os

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import GenerationConfig

from tests.conftest import build_model, build_tokenizer
from trl_fork.generation.decoding import DecodingLoop
from trl_fork.generation.sampling import draw_tokens
from trl_fork.trainer import packed_attention


DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),
]
END, VOCABULARY = 1, 40


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "autocast"])
def test_attention_within_rows(precision, window):
    """Against attention with a mask in float64, within the error that a mask makes in the same precision."""
    torch.manual_seed(0)
    lengths, heads, groups = [5, 1, 129, 64, 64, 300], 4, 2
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    inputs = [torch.randn(1, n, sum(lengths), 64, dtype=torch.float64) for n in (heads, groups, groups)]
    weights = torch.randn(1, sum(lengths), heads, 64, dtype=torch.float64)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(len(row))
    mask = (row[:, None] == row) & (place[:, None] >= place)
    if window:
        mask &= place[:, None] - place < window

    def run(function, device, dtype):
        tensors = [x.to(device, dtype).requires_grad_() for x in inputs]
        output = function(*tensors)
        return [output, *torch.autograd.grad((output * weights.to(output)).sum(), tensors)]

    def masked(*tensors):
        # Rounded to the precision of the kernel first, as autocast does
        tensors = [x.to(torch.bfloat16).to(x) if precision == "autocast" else x for x in tensors]
        return scaled_dot_product_attention(*tensors, attn_mask=mask.to(tensors[0].device), enable_gqa=True).transpose(
            1, 2
        )

    def within_rows(*tensors):
        keywords = {"cu_seq_lens_q": starts.to(DEVICE), "max_length_q": max(lengths)}
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=precision == "autocast"):
            return packed_attention.attend_within_rows(None, *tensors, None, sliding_window=window, **keywords)[0]

    calls = packed_attention.calls_of_kernel
    ours = run(within_rows, DEVICE, dtype)
    assert packed_attention.calls_of_kernel - calls == (DEVICE == "cuda" and precision != "fp32")
    exact = run(masked, "cpu", torch.float64)
    eps = torch.finfo(torch.bfloat16 if precision == "autocast" else dtype).eps
    for found, truth in zip(ours, exact, strict=True):
        difference = (found.detach().double().cpu() - truth.detach()).norm() / truth.detach().norm()
        assert difference < (1e-5 if precision == "fp32" else 2 * eps)


def test_tokens_drawn_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(500, 5003, generator=generator)
    scores[:, ::7] = -torch.inf
    numbers = torch.rand(500, generator=generator, dtype=torch.float64)
    assert torch.equal(draw_tokens(scores.to(DEVICE), numbers.to(DEVICE)).cpu(), draw_tokens(scores, numbers))


def prompts(rows=24):
    """Prompts of different lengths, each of them for several rows, padded on the left."""
    generator, width = torch.Generator().manual_seed(0), 17
    ids, mask = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    for number, size in enumerate([5, 17, 9, 12, 17, 3]):
        rows_of_it = slice(4 * number, 4 * number + 4)
        ids[rows_of_it, width - size :] = torch.randint(4, VOCABULARY, (size,), generator=generator)
        mask[rows_of_it, width - size :] = 1
    return ids.to(DEVICE), mask.to(DEVICE)


def decode(model, ids, mask, *, do_sample, loop):
    config = GenerationConfig(
        max_new_tokens=60, eos_token_id=[END, 7, 9], pad_token_id=0, do_sample=do_sample, top_k=0, top_p=1.0
    )
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=loop)


def numbers_of_rows(rows, place):
    table = torch.rand(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return table[rows.cpu(), place].to(rows.device)


def share_equal(rows, others):
    """Share of the rows whose tokens are those of the others; the rest of the longer ones is padding."""
    width = max(rows.shape[1], others.shape[1])
    rows, others = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (rows, others))
    return (rows == others).all(1).double().mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_decoding_is_that_of_generate(dtype, record_property):
    """To the token in float32. In bf16 another number of rows takes another kernel, and rounding decides near ties."""
    model = build_model(build_tokenizer(), hidden_size=128, num_hidden_layers=4).to(DEVICE, dtype).eval()
    ids, mask = prompts()
    found = decode(model, ids, mask, do_sample=False, loop=DecodingLoop(numbers_of_rows)).sequences
    expected = decode(model, ids, mask, do_sample=False, loop=None)
    share = share_equal(found, expected)
    record_property("share of completions equal to generate's", round(share, 3))
    assert share == 1.0 if dtype == torch.float32 else share > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_completion_hardly_depends_on_the_others(dtype, record_property):
    """A row's random numbers are its own. Its scores change by rounding with the number of rows, as kernels do."""
    model = build_model(build_tokenizer(), hidden_size=128, num_hidden_layers=4).to(DEVICE, dtype).eval()
    ids, mask = prompts()
    together = decode(model, ids, mask, do_sample=True, loop=DecodingLoop(numbers_of_rows)).sequences
    again = decode(model, ids, mask, do_sample=True, loop=DecodingLoop(numbers_of_rows)).sequences
    few = decode(model, ids, mask, do_sample=True, loop=DecodingLoop(numbers_of_rows, max_rows=3)).sequences
    share = share_equal(together, few)
    record_property("share of completions equal in batches of 24 and of 3", round(share, 3))
    assert torch.equal(together, again)
    assert share > (0.9 if dtype == torch.float32 else 0.5)
