"""`whole_step.py`: what is generated and timed, the floor, and the rows of a small run. Its times are not tested."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from benchmarks import growth_figure, processes, whole_step, whole_step_arms, workload
from benchmarks.forced_lengths import END, ForcedLengths
from benchmarks.generation_floor import decode
from benchmarks.phases import Phases
from benchmarks.whole_step_table import markdown_table


SMALL = ["--groups", "2", "--max_length", "20", "--repeats", "1"]


def options(**values):
    return SimpleNamespace(**{"shape": "tiny", "groups": 4, "max_length": 24, "lora": False, **values})


# ---------------------------------------------------------------------- lengths


def written(forced, rows, rng, *, shared_prompt, packed):
    """
    Tokens that a loop of decoding writes with the hook, for rows of given groups.

    Args:
        shared_prompt: Each prompt is read once, for all of its rows; otherwise with every row.
        packed: All rows of a pass stand in one.
    """

    def following(tokens, positions):
        output = SimpleNamespace(logits=torch.zeros(*tokens.shape, 200))
        forced(None, (), {"input_ids": tokens, "position_ids": positions}, output)
        return output.logits.argmax(-1)

    prompts = torch.tensor([forced.prompts[group] for group in (sorted(set(rows)) if shared_prompt else rows)])
    first = following(prompts, torch.arange(prompts.shape[1]).expand_as(prompts))[:, -1].tolist()
    by_group = dict(zip(sorted(set(rows)), first, strict=True)) if shared_prompt else None
    texts = [[by_group[group] if shared_prompt else first[i]] for i, group in enumerate(rows)]
    alive = list(range(len(rows)))
    while alive:
        rng.shuffle(alive)
        tokens = torch.tensor([[texts[row][-1]] for row in alive])
        positions = torch.tensor([[prompts.shape[1] + len(texts[row]) - 1] for row in alive])
        if packed:
            tokens, positions = tokens.T, positions.T
        for row, token in zip(alive, following(tokens, positions).flatten().tolist(), strict=True):
            texts[row].append(token)
        alive = [row for row in alive if texts[row][-1] != END]
    return texts


@pytest.mark.parametrize("shared_prompt", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_every_group_has_its_lengths_in_any_arrangement(shared_prompt, packed):
    rng = random.Random(0)
    lengths = [4, 9, 30, 5, 5, 12, 3, 8, 2, 2, 40, 7]
    forced = ForcedLengths(lengths, 4, 200, "cpu")
    for _ in range(2):  # generation batches
        forced.restart()
        for groups in ([0, 2], [1]):  # in two chunks
            rows = [group for group in groups for _ in range(4)]
            rng.shuffle(rows)
            texts = written(forced, rows, rng, shared_prompt=shared_prompt, packed=packed)
            for group in groups:
                found = sorted(len(text) for text, of in zip(texts, rows, strict=True) if of == group)
                assert found == sorted(lengths[4 * group : 4 * group + 4])
            assert all(END not in text[:-1] for text in texts)


def test_other_lengths_are_an_error():
    batch = whole_step_arms.GenerationBatch("long tail", options(), "cpu")
    prompts = [prompt for prompt in batch.dataset["prompt"] for _ in range(8)]
    ids = [[7] * length for group in batch.forced.lengths for length in group]
    assert batch.reward(prompts, ids) == [0.0, 1.0] * 16
    ids[9].append(7)
    with pytest.raises(RuntimeError, match=r"group 1 have .* nothing to compare"):
        batch.reward(prompts, ids)


def test_inert_groups_have_one_reward():
    batch = whole_step_arms.GenerationBatch("geometric, 40 % inert", options(groups=10), "cpu")
    prompts = [prompt for prompt in batch.dataset["prompt"] for _ in range(8)]
    ids = [[7] * length for group in batch.forced.lengths for length in group]
    rewards = batch.reward(prompts, ids)
    inert = [group for group in range(10) if len(set(rewards[8 * group : 8 * group + 8])) == 1]
    assert sorted(batch.inert) == inert and len(inert) == 4
    assert inert not in (list(range(4)), list(range(6, 10))), "not all on one of two processes"


def test_geometric_lengths():
    lengths = workload.sample_lengths(20000, 384, "geometric")
    assert min(lengths) == workload.SHORTEST and max(lengths) == 384
    assert sum(lengths) / len(lengths) == pytest.approx(59, rel=0.03)


# ---------------------------------------------------------------------- times


def test_a_phase_inside_another_is_counted_once():
    phases, time = Phases("cpu"), 0.0

    def now():
        return time, 10 * time

    phases.now = now
    for _ in range(2):
        phases.on_step_begin()
        time += 1  # nobody's
        with phases("training"):
            time += 2
            with phases("other"):
                time += 4
                with phases("generation"):
                    time += 8
                with phases("scoring"):
                    time += 16
            time += 32
        phases.on_step_end()
    expected = {"generation": 8, "rewards": 0, "scoring": 16, "training": 34, "other": 5, "whole": 63}
    assert phases.medians(1)["seconds"] == expected
    assert phases.medians(1)["processor_seconds"] == {name: 10 * value for name, value in expected.items()}


def test_the_floor_decodes_rows_that_are_alive():
    batch = whole_step_arms.GenerationBatch("long tail", options(groups=2, max_length=12), "cpu")
    share = batch.share(0, 1)
    model, passes = workload.build_model("tiny", "cpu").eval(), []
    hook = model.register_forward_hook(lambda module, args, output: passes.append(output.logits.shape[:2]))
    tokens = decode(model, share, "cpu")
    hook.remove()
    sizes = sorted((length for group in batch.forced.lengths for length in group), reverse=True)
    alive = [sum(size > step for size in sizes) for step in range(sizes[0])]
    assert passes == [(2, 1), *((n, 1) for n in alive[1:])] and sum(map(len, tokens)) == sum(sizes)
    # The tokens are those of the whole sequence, read without a cache.
    for row in (0, len(sizes) - 1):
        text = list(share.prompts[share.groups[row]])
        for step in range(sizes[row]):
            with torch.no_grad():
                text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
            assert text[-1] == tokens[step][row]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_processes_share_the_rows_of_the_floor(number):
    batch = whole_step_arms.GenerationBatch("long tail, 40 % inert", options(groups=6), "cpu")
    shares = [batch.share(index, number) for index in range(number)]
    found = [
        (len(completion), group, is_live)
        for share in shares
        for completion, group, is_live in zip(share.completions, share.groups, share.is_live, strict=True)
    ]
    expected = [(n, g, g not in batch.inert) for g, group in enumerate(batch.forced.lengths) for n in group]
    assert sorted(found) == sorted(expected)
    sums = [sum(map(len, share.completions)) for share in shares]
    assert max(sums) - min(sums) <= 24


# ---------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a small run writes and prints."""
    output = tmp_path_factory.mktemp("whole_step") / "rows.json"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **how: printed.append(" ".join(map(str, words))))
        arms = ["TRL, continuous batching", "ours", "without skip_inert_compute"]
        words = [*SMALL, "--workload", "long tail, 40 % inert", "--arm", *arms, "--output", str(output)]
        whole_step.main(words)
    return json.loads(output.read_text()), printed


def test_rows(measured):
    result, printed = measured
    rows = {row["arm"]: row for row in result["rows"]}
    assert list(rows) == ["TRL", "TRL, continuous batching", "ours", "without skip_inert_compute", "floor"]
    for row in rows.values():
        for clock in ("seconds", "processor_seconds"):
            seconds = dict(row[clock])
            assert list(seconds) == ["generation", "rewards", "scoring", "training", "other", "whole"]
            assert seconds["training"] > 0 and min(seconds.values()) >= -1e-9
            assert seconds.pop("whole") == pytest.approx(sum(seconds.values()))
        assert row["clock"] == "processor_seconds" and row["rounds"] == 1
        theirs = rows["TRL"]["processor_seconds"]["whole"]
        assert row["ratio"] == pytest.approx(theirs / row["processor_seconds"]["whole"])
    assert rows["TRL"]["seconds"]["scoring"] == 0 < rows["ours"]["seconds"]["scoring"]
    assert rows["TRL"]["memory"] > rows["ours"]["memory"] > 0 and rows["floor"]["memory"] is None
    assert markdown_table(result["rows"], result["options"], result["device"]) in printed[-1]
    assert printed[-1].count("\n| ") == 6 and "| ours, without skip_inert_compute |" in printed[-1]


def test_the_share_of_memory_is_of_trl(measured):
    rows = measured[0]["rows"]
    ours = next(row for row in rows if row["arm"] == "ours")
    assert f"{ours['memory'] / 2**20:,.0f}, {ours['memory'] / rows[0]['memory']:.0%} |" in measured[1][-1]


def test_an_arm_that_cannot_run_is_left_out():
    reason = whole_step_arms.reason_to_leave_out
    assert reason(whole_step_arms.WHOLE_STEP_ARMS["ours"], "cuda", 1) is None
    assert reason(whole_step_arms.WHOLE_STEP_ARMS["TRL, vLLM"], "cpu", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "3", "--processes", "2"], "--processes must divide the 3 --groups"),
        (["--micro_batch", "3"], "--micro_batch and --processes must divide the 16 completions"),
        (["--warm_up", "0"], "pass --skip memory"),
    ],
)
def test_options_that_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        whole_step.main([*SMALL, *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.distributed
def test_two_processes(tmp_path):
    output = tmp_path / "rows.json"
    words = [*SMALL, "--workload", "long tail", "--arm", "ours", "--processes", "2", "--output", str(output)]
    processes.launch("benchmarks.whole_step", 2, words)
    rows = json.loads(output.read_text())["rows"]
    assert [row["arm"] for row in rows] == ["TRL", "ours", "floor"]
    for row in rows:
        assert row["clock"] == "seconds" and len(row["processes"][0]) == 2
        slowest = max(found["seconds"]["whole"] for found in row["processes"][0])
        assert row["seconds"]["whole"] == slowest


# ---------------------------------------------------------------------- growth


def test_growth(tmp_path):
    """Exponents of made-up seconds, in the table of `growth.py`, and a figure of them."""
    assert growth_figure.exponents([1, 2, 8], [3.0, 6.0, 96.0]) == pytest.approx([1.0, 2.0])
    points = []
    for axis, values, power in (("length", (512, 1024, 2048), 2), ("rows", (16, 32), 1), ("processes", (1, 2), -1)):
        for value in values:
            arms = {"TRL": {"whole": 4.0 * value**power, "training": 2.0 * value**power}}
            if value != 2048:
                arms["ours"] = {"whole": 1.0 * value**power, "training": 0.5 * value**power}
            points.append({"axis": axis, "value": value, "tokens": 100 * value, "arms": arms})
    growth_figure.draw(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10000
    table = growth_figure.markdown_table(points).splitlines()
    assert "| 1,024 longest completion | 102,400 | 4194304.00 (^2.00) | 2097152.00 (^2.00) |" in table[3]
    assert table[4].endswith("(^2.00) |  |  |")
    assert table[8].endswith("| 2.00 (^-1.00) | 1.00 (^-1.00) | 0.50 (^-1.00) | 0.25 (^-1.00) |")
