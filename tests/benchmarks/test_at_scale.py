"""`at_scale.py`: the arithmetic of the model, against counts made here and a published step; the plans of rows."""

import random
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import at_scale, memory, scale_check, scale_model, scale_plans, workload


TINY = scale_model.Shape("tiny", 128, 384, 4, 4, 2, 4096, head_dim=32)


@pytest.mark.parametrize(("shape", "parameters"), [
    (scale_model.QWEN3_8B, memory.MODELS["8B"].parameters),
    (scale_model.QWEN3_32B, 32.76e9),  # its model card
    (scale_model.LLAMA_8B, 8.03e9),  # its model card
])  # fmt: skip
def test_parameters(shape, parameters):
    assert shape.parameters == pytest.approx(parameters, rel=2e-3)


def test_operations_are_those_that_pytorch_counts():
    model = workload.build_model("tiny", "cpu")
    ids = torch.randint(3, 4096, (1, 48))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    counted = Counter()
    for operation, number in counter.get_flop_counts()["Global"].items():
        counted["attention" in str(operation)] += number
    attention = 2 * TINY.layers * TINY.heads * TINY.head_dim * 48**2
    matrices = scale_model.training_operations(TINY, 48, recompute=False) - 3 * attention
    assert counted[False] == matrices
    recomputed = scale_model.training_operations(TINY, 48, recompute=True)
    assert recomputed == matrices + 3 * attention + 2 * TINY.decoder * 48 + attention
    half = scale_model.forward_operations(TINY, 48) - scale_model.forward_operations(TINY, 48, 0.5)
    assert half == TINY.head * 48


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_decoding_against_a_loop_over_its_steps(tensor_parallel, monkeypatch):
    monkeypatch.setattr(scale_model, "CARD_MEMORY", 4e7)  # bytes, for the weights and some rows of a tiny model
    completions = [random.Random(0).randint(1, 60) for _ in range(40)]
    prompt, share = 10, 0.5
    free = 0.6 * 4e7 * tensor_parallel - 2 * TINY.parameters
    slots = int(free / (TINY.cache_bytes * (prompt + sum(completions) / 40)))
    assert tensor_parallel == 2 or slots > 1
    waiting, running, expected = list(completions), [], 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append([waiting.pop(0), prompt])
        read = 2 * (TINY.decoder + TINY.head) + TINY.cache_bytes * sum(cached for _, cached in running)
        work = 2 * (TINY.decoder + TINY.head) * len(running)
        bandwidth = share * scale_model.PEAK_BANDWIDTH * tensor_parallel
        operations = scale_model.UTILISATION * scale_model.PEAK_OPERATIONS * tensor_parallel
        expected += max(read / bandwidth, work / operations)
        expected += 2 * TINY.layers * scale_model.ALL_REDUCE * (tensor_parallel > 1)
        running = [[left - 1, cached + 1] for left, cached in running if left > 1]
    found = scale_model.decode_seconds(TINY, prompt, completions, tensor_parallel=tensor_parallel, share=share)
    assert found == pytest.approx(expected)


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Qwen3-32B does not fit into 1 card"):
        scale_model.decode_seconds(scale_model.QWEN3_32B, 10, [5])


def test_the_model_against_the_published_step():
    """What is assumed gives the published log-probabilities and training; only decoding was slower."""
    assumed = scale_check.published_model(scale_model.DECODE_SHARE)
    for part in ("log-probabilities", "training"):
        assert assumed[part] == pytest.approx(scale_check.PUBLISHED[part], rel=0.1)
    assert 0.6 < assumed["generation"] / scale_check.PUBLISHED["generation"] < 1
    fitted = scale_check.published_model(scale_check.fitted_share())
    assert fitted["generation"] == pytest.approx(scale_check.PUBLISHED["generation"], rel=1e-3)
    lengths = scale_check.published_completions()
    assert len(lengths) == 2048 and sum(lengths) / 2048 == pytest.approx(795, abs=1)


# ---------------------------------------------------------------------- plans


def batch_of(**changes):
    settings = {"prompt": 20, "groups": 8, "generations": 4, "steps": 2, "longest": 200, "inert": 0.5, "cards": 4}
    return scale_plans.Batch(0, **{**settings, "micro_batch": 2, **changes})


def tokens(plan):
    return sum(sum(map(sum, cards)) for cards in plan)


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("balance", [False, True])
def test_packed_rows_are_all_there_and_fit(leave_out, balance):
    batch = batch_of()
    plan = scale_plans.packed(batch, leave_out=leave_out, balance=balance)
    rows = [row for pair in zip(batch.lengths, batch.live, strict=True) for row in zip(*pair, strict=True)]
    expected = [length for length, is_live in rows if is_live or not leave_out]
    assert sorted(n for cards in plan for rows in cards for n in rows) == sorted(expected)
    assert all(len(cards) == 4 for cards in plan)
    if not balance and not leave_out:
        for card, rows in enumerate(batch.lengths):
            assert sorted(n for cards in plan for n in cards[card]) == sorted(rows)
    shares = [sum(sum(cards[card]) for cards in plan) for card in range(4)]
    if balance:
        assert max(shares) - min(shares) <= max(expected)


def test_padding():
    batch = batch_of()
    whole = scale_plans.as_drawn(batch, cut=False)
    for card, rows in enumerate(batch.generated):
        assert {width for cards in whole for width in cards[card]} == {20 + max(rows)}
    assert [len(cards[0]) for cards in whole] == [2] * 4
    found = [
        tokens(plan)
        for plan in (
            whole,
            scale_plans.as_drawn(batch, cut=True),
            scale_plans.ordered(batch, leave_out=False),
            scale_plans.packed(batch, leave_out=False, balance=False),
        )
    ]
    assert found == sorted(found, reverse=True) and found[-1] == sum(map(sum, batch.lengths))
    assert tokens(scale_plans.ordered(batch, leave_out=True)) < found[2]


def test_a_phase_waits_for_the_slowest_card_and_the_exchange():
    unit = scale_model.UTILISATION * scale_model.PEAK_OPERATIONS  # operations of a second
    plan = [[[1, 2], [5]], [[1], [1]], [[], []]]
    assert at_scale.phase_seconds(plan, lambda n: n * unit, 2.0) == pytest.approx(5 + 2 + 2)


def test_parts_save_in_turn(capsys):
    at_scale.main(["--draws", "1", "--inert", "0.4", "--steps", "1"])
    printed = capsys.readouterr().out
    assert printed.count("| 1 | 40% |") == 4 and "| generation | 58 |" in printed
    arms = at_scale.simulate(scale_model.QWEN3_8B, 8, 1, inert=0.4, steps=1, share=scale_model.DECODE_SHARE, draws=1)
    wholes = [parts["whole"] for parts in arms.values()]
    assert wholes == sorted(wholes, reverse=True) and wholes[0] > 1.5 * wholes[-1]
    assert list(arms) == [*at_scale.ARMS, "floor"]
