"""Token entropy against closed forms and against TRL's fused head."""

import math

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from trl_fork import token_entropy


def test_closed_forms():
    inf = float("inf")
    logits = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -inf, -inf], [50.0, -inf, -inf, -inf], [0.0, 200.0, 0.0, 0.0]]
    )
    assert token_entropy(logits).tolist() == pytest.approx([math.log(4), math.log(2), 0.0, 0.0], abs=1e-6)
    # Two tokens with probabilities p and 1 - p
    p = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    expected = -(p * p.log() + (1 - p) * (1 - p).log())
    assert torch.allclose(token_entropy(torch.stack([p.log(), (1 - p).log()], -1)).double(), expected, atol=1e-6)


def test_temperature_is_inside():
    logits = torch.randn(3, 5, 11)
    assert torch.allclose(token_entropy(logits, 0.5), token_entropy(2 * logits), atol=1e-6)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        token_entropy(logits, 0)


def test_shape_dtype_and_no_gradient():
    for shape in [(7,), (2, 7), (2, 3, 7), (0, 7)]:
        entropies = token_entropy(torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True))
        assert entropies.shape == shape[:-1] and entropies.dtype == torch.float32 and not entropies.requires_grad


def test_chunks_do_not_show(monkeypatch):
    logits = torch.randn(13, 17)
    whole = token_entropy(logits)
    monkeypatch.setattr("trl_fork.entropy._CHUNK_LOGITS", 40)  # two rows at a time, and one left over
    assert torch.equal(token_entropy(logits), whole)


@pytest.mark.parametrize("row", [[float("nan"), 0.0], [float("inf"), 0.0], [-float("inf"), -float("inf")]])
def test_no_distribution_no_entropy(row):
    assert token_entropy(torch.tensor(row)).isnan()


def test_is_what_trl_computes(model):
    ids = torch.randint(4, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = token_entropy(model(input_ids=ids).logits[:, :-1], 0.7)
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
        theirs = model(input_ids=ids, labels=ids, fused_lm_head=True).entropy
    assert torch.allclose(ours, theirs, atol=1e-5)
