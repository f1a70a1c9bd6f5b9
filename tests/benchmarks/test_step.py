"""`step.py` with credit rules: what it counts, against counts made here; what it refuses. Its times are not tested."""

import inspect
import json
import math
import runpy
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import arms, credit_table, step, workload
from tests.snippets import ROOT
from trl_fork.credit import preset_names


SHAPE = ["--shape", "tiny", "--groups", "3", "--micro_batch", "8", "--max_length", "40", "--repeats", "1"]
AT_THE_LOSS = "tests.benchmarks.test_step.at_the_loss"


def at_the_loss(signals):
    """A rule that no run of the benchmark can take: its pool is another than that of the run."""
    return signals.mask.float()


at_the_loss.pool = "micro_batch"
at_the_loss.mass = "from_masks"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Rows by name, and what was printed, of one run."""
    output = tmp_path_factory.mktemp("step") / "rows.json"
    rules = ["temporal_position", "answer_span", AT_THE_LOSS]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(credit_table.Console, "print", lambda self, what, **how: printed.append(what))
        step.main([*SHAPE, "--token_credit", *rules, "--progress", "0.4", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    return {row["variant"]: row for row in rows}, printed


def test_every_rule_has_a_row_beside_trl_and_forking(measured):
    rows, (table, reason) = measured
    assert list(rows) == ["TRL", "forking", "temporal_position", "answer_span", AT_THE_LOSS]
    assert list(table.columns[0].cells) == list(rows)
    for row in list(rows.values())[:-1]:
        assert row["ratio"] == pytest.approx(rows["TRL"]["seconds"] / row["seconds"])
        assert row["forking_ratio"] == pytest.approx(rows["forking"]["seconds"] / row["seconds"])
    # A rule that is refused does not end the run, and says why.
    assert list(table.columns[1].cells)[-1] == "refused"
    assert reason.startswith(f"{AT_THE_LOSS} is refused: token_credit: ") and "'micro_batch'" in reason


def test_what_is_left_out(measured):
    """The reasons why both are faster than `forking`: no scoring pass, and so fewer rows of the head."""
    rows, _ = measured
    found = {name: round(row["scoring_passes"], 1) for name, row in rows.items() if "refused" not in row}
    assert found == {"TRL": 0.0, "forking": 1.0, "temporal_position": 0.0, "answer_span": 0.0}
    for name in ("temporal_position", "answer_span"):
        assert rows[name]["head_forward"] < rows["forking"]["head_forward"] < rows["TRL"]["head_forward"]
        assert all(rows[name]["savings"].values())


def test_tokens_with_gradient(measured):
    rows, _ = measured
    rollouts = workload.Rollouts(options(groups=3, max_length=40), *next(iter(workload.WORKLOADS.values())))
    sizes = list(map(len, rollouts.completions))
    groups = [rollouts.rewards[i : i + 8] for i in range(0, 24, 8)]
    live = [size for i, size in enumerate(sizes) if len(set(groups[i // 8])) > 1]
    assert 0 < len(live) < len(sizes)
    fraction = Fraction("0.01") + Fraction("0.99") / 2  # half of the way of the preset's 80 %
    last = [math.ceil(fraction * size) for size in live]
    answers = [min(20, size // 2) for size in live]
    assert rows["temporal_position"]["tokens_trained"] == pytest.approx(sum(last) / sum(sizes))
    assert rows["answer_span"]["tokens_trained"] == pytest.approx(sum(answers) / sum(sizes))
    whole = sum(min(20, size // 2) for size in sizes)
    assert rows["answer_span"]["effective_fraction"] == pytest.approx(whole / sum(sizes))


def options(**values):
    return SimpleNamespace(shape="tiny", **values)


@pytest.mark.parametrize("size", [4, 5, 40, 41, 200])
def test_completions_keep_their_length_and_end_in_an_answer(size):
    tokenizer = workload.build_tokenizer(100)
    ids = workload.completion([7] * (size - 2), size)
    words = tokenizer.decode(ids).split()
    assert len(words) == size and words.count("Answer:") == 1 and words[-1] == "<eos>"
    assert size - words.index("Answer:") == min(20, size // 2)


def test_all_are_the_presets():
    found = [arm.name for arm in credit_table.arms_of(["all", "pepo"], 0.0)]
    assert found[0] == "forking" and sorted(found) == preset_names()


def test_a_fault_of_another_kind_ends_the_run():
    uneven = options(groups=2, max_length=8, micro_batch=5, lora=False)
    rollouts = workload.Rollouts(uneven, "equal", 0.0)
    with pytest.raises(ValueError, match="divisible"):
        arms.build_trainer(arms.VARIANTS["ours"], rollouts, uneven, "cpu", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--token_credit", "temporal_positon"], "there is no preset 'temporal_positon'. Did you mean"),
        (["--token_credit", "pepo", "--variant", "ours"], "--variant and --token_credit are two tables"),
        (["--progress", "0.5"], "pass --token_credit too"),
        (["--token_credit", "pepo", "--progress", "1.5"], "--progress must be in [0, 1], got 1.5"),
    ],
)
def test_options_that_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        step.main([*SHAPE, *arguments])
    assert message in capsys.readouterr().err


def test_the_script(tmp_path, monkeypatch):
    """It finds the benchmarks from any folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place).resolve() not in (ROOT, tmp_path)])
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    main = runpy.run_path(str(ROOT / "examples" / "benchmark_step.py"))["main"]
    assert Path(inspect.getfile(main)) == ROOT / "benchmarks" / "step.py"
