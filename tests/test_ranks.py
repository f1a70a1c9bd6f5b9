"""Order statistics over processes, against sorting."""

import pytest
import torch

from tests.credit.simulated_ranks import on_ranks
from tests.oracles import top as naive_top
from trl_fork.ranks import Ranks, percentiles, sort_keys, top_k, values_of_keys


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_top_k_of_any_dtype(dtype):
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(500, generator=generator) * 10).to(dtype)
    values = torch.cat([values, values[:100], -values[:100]])
    expected = naive_top({(0, i): v for i, v in enumerate(values.tolist())}, 0.3)
    assert {(0, i) for i in top_k(values, 210, Ranks()).nonzero()[:, 0].tolist()} == expected
    if dtype.is_floating_point:
        assert torch.equal(
            values_of_keys(sort_keys(values)), values.double() if dtype == torch.float64 else values.float()
        )


def test_percentiles():
    values = torch.tensor([4.0, 1.0, 3.0, 2.0, 5.0])
    assert percentiles(values, [0.2, 0.5, 0.8, 1.0], Ranks()) == [1.0, 3.0, 4.0, 5.0]
    parts = [(values[:1],), (values[1:1],), (values[1:],)]
    results, _ = on_ranks(lambda v, ranks: percentiles(v, [0.2, 0.5, 0.8], ranks), parts)
    assert results == [[1.0, 3.0, 4.0]] * 3
    assert percentiles(torch.arange(1.0, 101.0), [0.55, 0.07, 1.0], Ranks()) == [55.0, 7.0, 100.0]
    assert all(p != p for p in percentiles(torch.empty(0), [0.5], Ranks()))
