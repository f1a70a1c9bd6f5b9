"""The study: its tasks, that its arms differ in nothing else, its arithmetic, and that its page is of its results."""

import json
import math
import random
import re
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from studies import cells
from studies.which_tokens import grid, outcomes, reach_target, report, runs, settings
from studies.which_tokens import run as study
from studies.which_tokens.gradients import gradient_shares
from tests.conftest import build_model, build_tokenizer
from tests.oracles import Rollout, log_probs_and_entropies


ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------------- the task


def test_no_problem_is_on_both_sides():
    held_out = reach_target.held_out_problems(512, random.Random(0))
    assert len(set(held_out)) == 512
    assert not set(held_out) & set(reach_target.training_problems(5000, random.Random(0)))


def test_demonstrations_are_right_when_they_end_at_zero():
    rng = random.Random(0)
    problems = reach_target.training_problems(2000, rng)
    texts = [reach_target.demonstration(problem, rng) for problem in problems]
    right = [reach_target.is_correct(problem, text) for problem, text in zip(problems, texts, strict=True)]
    assert right == [text.endswith("\\boxed{0}") for text in texts]
    assert 0.1 < sum(right) / len(right) < 0.4
    tokenizer = reach_target.make_tokenizer()
    assert all(tokenizer.decode(tokenizer(text)["input_ids"]) == text for text in texts[:50])
    longest = max(len(tokenizer(text)["input_ids"]) for text in texts)
    assert longest < runs.MAX_COMPLETION_LENGTH["reach_target"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("from 7. less 7 c2=5. minus 5 a3=2. less 2 b2=0. done \\boxed{0}", True),
        ("start at 7. plus 7 a3=0. stop at \\boxed{0}", True),
        ("from 7. less 7 c2=5. minus 5 a3=2. less 2 b2=0. done \\boxed{0} ", False),  # more text
        ("from 7. plus 7 a3=0. done \\boxed{1}", False),
        ("from 7. plus 7 a2=9. plus 9 d1=0. done \\boxed{0}", False),  # a is 3
        ("from 7. less 7 a3=0. done \\boxed{0}", False),  # 7 - 3 is 4
        ("from 7. plus 8 a3=0. done \\boxed{0}", False),  # what was left is 7
        ("from 0. done \\boxed{0}", False),
        ("from 3. less 3 a3=0. done \\boxed{0}", False),  # another start
        ("from 7. less 7 b2=5. less 5 b2=3. less 3 a3=0. done \\boxed{0}", False),  # b twice
        ("from 7. times 7 a3=0. done \\boxed{0}", False),
    ],
)
def test_every_step_is_checked(text, right):
    assert reach_target.is_correct((7, 3, 2, 2, 1), text) is right


# ---------------------------------------------------------------------- the arms


# Made-up results: accuracy, and the factor of the learning rate 2.5e-4 that is the best one.
LEVELS = {"all": (0.6, 1.0), "top20": (0.7, 0.5), "random20": (0.5, 4.0)}


def made_up(cell):
    level, best = LEVELS.get(cell.arm, (0.3, 1.0))
    factor = cell.learning_rate / 2.5e-4
    noise = random.Random(str(cell)).uniform(-0.002, 0.002)
    accuracy = level - 0.05 * abs(math.log2(factor / best)) + noise
    if (cell.arm, factor) == ("top20", 2.0):  # by the first seed alone this would be the best one
        accuracy += {0: 0.2, 1: -0.4}[cell.seed]
    return {**asdict(cell), "accuracy": accuracy + 0.1 * (cell.size == "tiny-long")}


def made_up_results(*stages):
    rows = []
    for stage in stages:
        rows += [made_up(cell) for cell in grid.STAGES[stage]("tiny", rows)]
    return rows


def test_every_cell_is_run_once():
    cells = [grid.cell_of(row) for row in made_up_results(*grid.STAGES)]
    assert len(cells) == len(set(cells))
    assert {cell.arm for cell in cells} == set(grid.ARMS)
    assert not set(grid.TUNING_SEEDS) & set(grid.SEEDS)
    assert not set(grid.CONFIRMATION_SEEDS) & {*grid.SEEDS, *grid.SWEEP_SEEDS, *grid.TUNING_SEEDS}


def test_arms_are_confirmed_at_the_learning_rate_that_was_best_for_each():
    """In the middle of the sweep; at its edge, and no better beyond it; beyond it."""
    rows = made_up_results("tune", "arms", "sweep")
    edges = grid.STAGES["edges"]("tiny", rows)
    assert {(cell.arm, cell.learning_rate) for cell in edges} == {("top20", 6.25e-5), ("random20", 1e-3)}
    with pytest.raises(ValueError, match="stage arms, sweep and edges"):
        grid.STAGES["confirm"]("tiny", rows)
    rows += map(made_up, edges)
    confirmed = grid.STAGES["confirm"]("tiny", rows)
    assert {(cell.arm, cell.learning_rate) for cell in confirmed} == {
        ("all", 2.5e-4),
        ("top20", 1.25e-4),
        ("random20", 1e-3),
    }
    assert len(confirmed) == 4 * 3 * len(grid.CONFIRMATION_SEEDS)
    common = grid.STAGES["common"]("tiny", rows)
    assert {(cell.arm, cell.learning_rate) for cell in common} == {("all", 1.25e-4), ("random20", 1.25e-4)}
    long = grid.STAGES["long"]("tiny", rows)
    assert {(cell.arm, cell.learning_rate, cell.updates_per_batch) for cell in long} == {
        ("all", 1.25e-4, 16),
        ("all", 2.5e-4, 16),
        ("top20", 1.25e-4, 16),
    }
    assert runs.start_path(ROOT, long[0].size, "digit_sums") == runs.start_path(ROOT, "tiny", "digit_sums")


def test_seeds_of_the_tuning_count_where_every_rate_has_them():
    rows = made_up_results("tune", "arms", "sweep")
    cell = grid.Cell("tiny", "digit_sums", "all", 1, 2.5e-4, 0)
    by_cell = {grid.cell_of(row): row["accuracy"] for row in rows}
    for factor, mean in grid.swept(rows, cell).items():
        at_rate = [by_cell[replace(cell, learning_rate=2.5e-4 * factor, seed=seed)] for seed in (0, 1, 100, 101)]
        assert mean == pytest.approx(sum(at_rate) / 4)
    top = replace(cell, arm="top20")
    assert grid.swept(rows, top)[1.0] == pytest.approx((by_cell[top] + by_cell[replace(top, seed=1)]) / 2)


def test_arms_differ_in_what_they_are_named_for_and_in_nothing_else():
    cells = [grid.cell_of(row) for row in made_up_results(*grid.STAGES)]
    for cell in {replace(cell, arm="all") for cell in cells}:
        full = runs.configuration(cell).to_dict()
        for arm, own in grid.ARMS.items():
            other = runs.configuration(replace(cell, arm=arm)).to_dict()
            assert {name for name in full if full[name] != other[name]} - set(own) == set()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A size of seconds, from weights that are not warmed up."""
    monkeypatch.setitem(runs.SIZES, "tiny", replace(runs.SIZES["tiny"], prompts_per_update=1, updates=16))
    monkeypatch.setattr(runs, "WARM_UP_STEPS", dict.fromkeys(grid.TASKS, 1))
    monkeypatch.setattr(runs, "NUM_TEST", 8)
    monkeypatch.setattr(runs, "EVALUATIONS", 2)
    study.make_starts(tmp_path, "tiny", ["digit_sums"])
    return tmp_path


@pytest.fixture
def prompts(monkeypatch):
    """Prompts of every run, in the order in which they were trained on."""
    seen = []

    class Spy(runs.ForkingGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            seen[-1].extend(str(row["problem"]) for row in inputs)
            return super()._generate_and_score_completions(inputs)

        def train(self, *args, **kwargs):
            seen.append([])
            return super().train(*args, **kwargs)

    monkeypatch.setattr(runs, "ForkingGRPOTrainer", Spy)
    return seen


def test_arms_and_regimes_see_the_same_prompts(small, prompts):
    cell = grid.Cell("tiny", "digit_sums", "all", 1, 1e-3, 3)
    rows = [
        runs.run(replace(cell, seed=0), small, take_gradient_apart=True),
        runs.run(cell, small),
        runs.run(replace(cell, arm="random20"), small),
        runs.run(replace(cell, updates_per_batch=16), small),
    ]
    assert prompts[1] == prompts[2] == prompts[3] and len(prompts[1]) == 16 * 8
    assert prompts[0] != prompts[1]  # another seed
    assert rows[0]["gradients"] and not rows[1]["gradients"]
    first = [row["evaluations"][0] for row in rows]
    assert first[1] == first[2] == first[3]
    for row in rows:
        assert [point["step"] for point in row["evaluations"]] == [0, 8, 16]
        assert len(row["training"]["grad_norm"]) == 16 and len(row["entropy_change"]) == 20
        assert json.loads(json.dumps(row)) == row


def test_a_cell_can_be_made_again(small):
    cell = grid.Cell("tiny", "digit_sums", "top20", 16, 1e-3, 0)
    first, second = runs.run(cell, small), runs.run(cell, small)
    times = {"seconds": 0, "processor_seconds": 0}
    assert {**first, **times} == {**second, **times}


def test_a_stage_goes_on_where_it_was(small, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(cells, "ProcessPoolExecutor", lambda *_, **__: Inline(made))
    wanted = [grid.Cell("tiny", "digit_sums", "all", 1, 1e-3, seed) for seed in range(3)]
    path = small / "results.jsonl"
    path.write_text(json.dumps({**asdict(wanted[1]), "accuracy": 0.5}) + "\n" + '{"size": "ti')
    rows = cells.read_rows(path)
    cells.run_cells(wanted, rows, path, 1, cell_of=grid.cell_of, run_cell=study.run_cell, arguments=(small, False))
    assert made == [wanted[0], wanted[2]]
    assert "1 of 3 runs" in capsys.readouterr().out
    assert sorted(grid.cell_of(row).seed for row in cells.read_rows(path)) == [0, 1, 2]


class Inline:
    """A pool that runs nothing: the row of a cell is the cell."""

    def __init__(self, made):
        self.made = made

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, cell, work_dir, take_gradient_apart):
        self.made.append(cell)
        future = Future()
        future.set_result({**asdict(cell), "accuracy": 0.5, "processor_seconds": 1.0})
        return future


# ---------------------------------------------------------------------- the gradient taken apart


def test_parts_of_the_gradient_against_one_sequence_at_a_time():
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    generator = torch.Generator().manual_seed(0)
    lengths, prompt = [3, 7, 5, 6], 4
    ids = torch.randint(4, 40, (4, prompt + 7), generator=generator)
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    rollouts = [
        Rollout(ids[i, :prompt].tolist(), ids[i, prompt : prompt + n].tolist(), 0.0, 0, i, [1] * n)
        for i, n in enumerate(lengths)
    ]
    entropies = torch.zeros(4, 7)
    for i, rollout in enumerate(rollouts):
        entropies[i, : lengths[i]] = log_probs_and_entropies(model, rollout)[1].detach()
    advantages = torch.tensor([1.0, -0.5, 0.0, 2.0])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(4, prompt, dtype=torch.long), mask.long()], 1),
        "mask": mask,
        "advantages": advantages,
        "entropies": entropies,
    }
    shares = gradient_shares(model, [batch, batch], seed=0)

    # The naive side: the 5 = ceil(0.2 * 21) tokens of largest entropy
    threshold = entropies[mask].sort(descending=True).values[4]

    def gradient(keep):
        model.zero_grad()
        loss = torch.zeros(())
        for i, rollout in enumerate(rollouts):
            logps, entropy = log_probs_and_entropies(model, rollout)
            loss = loss - (logps * advantages[i] * keep(entropy.detach())).sum() / 21
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    full = gradient(torch.ones_like)
    top = gradient(lambda entropy: (entropy >= threshold).float())
    assert shares["norm/all"] == pytest.approx(full.norm().item(), rel=1e-4)
    for name, part in (("top20", top), ("bottom80", full - top)):
        assert shares[f"norm/{name}"] == pytest.approx((part.norm() / full.norm()).item(), rel=1e-4)
        cosine = torch.nn.functional.cosine_similarity(part, full, dim=0).item()
        assert shares[f"cosine/{name}"] == pytest.approx(cosine, rel=1e-4)
        assert shares[f"agreement/{name}"] == pytest.approx(cosine, rel=1e-4)  # the other batch is the same one
    assert shares["norm/random20"] > 0 and shares["norm/random20"] != shares["norm/top20"]


def test_batches_without_a_gradient_have_no_parts():
    model = build_model(build_tokenizer())
    batch = {
        "input_ids": torch.full((2, 6), 5),
        "attention_mask": torch.ones(2, 6, dtype=torch.long),
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "advantages": torch.zeros(2),
        "entropies": torch.rand(2, 3),
    }
    assert gradient_shares(model, [batch, batch], seed=0) == {}


# ---------------------------------------------------------------------- the page


def test_statistics():
    """By hand: t(0.975, 2) = 4.302653; Holm's own example of step-down."""
    found = outcomes.interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert outcomes.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert outcomes.holm([0.01, math.nan, 0.03]) == pytest.approx([0.02, math.nan, 0.03], nan_ok=True)
    row = {"evaluations": [{"step": 0, "accuracy": 0.0}, {"step": 10, "accuracy": 1.0}, {"step": 30, "accuracy": 1.0}]}
    assert outcomes.area_under_curve(row) == pytest.approx((5 + 20) / 30)


@pytest.mark.parametrize(("size", "low", "high"), [("tiny", 0.1, 1), ("30m", 20, 40), ("100m", 70, 130)])
def test_models_are_as_large_as_they_are_called(size, low, high):
    assert low < settings.num_parameters(size) / 1e6 < high


@pytest.fixture(scope="module")
def results():
    return report.load_study(study.RESULTS / "tiny.jsonl")


def completed(results, rows):
    """Made-up rows, with what a page needs beside accuracy from real ones."""
    full, masked = (results.runs("digit_sums", 1, arm)[0] for arm in ("all", "top20"))
    real = {**full, "training": masked["training"]}  # gradients taken apart, and a selected fraction
    return outcomes.Study([{**real, **row} for row in rows], results.starts)


# By stage: lines of the table of conclusions, and in the last one accuracy of all tokens, the top and a random 20 %.
# At the learning rate of all tokens the top 20 % loses 0.05 and random tokens 0.10; at that of the top 20 % all tokens
# lose 0.05 and random ones 0.15.
CONCLUSIONS = {
    "arms": (4, ["0.60", "0.65", "0.40"]),
    "sweep": (4, None),
    "edges": (4, None),
    "confirm": (4, None),
    "common": (8, ["0.55", "0.70", "0.35"]),
    "long": (10, ["0.65", "0.80", ""]),
    "variants": (10, None),
}


@pytest.mark.parametrize("last", CONCLUSIONS)
def test_a_page_of_what_there_is(last, results):
    stages = list(CONCLUSIONS)[: list(CONCLUSIONS).index(last) + 1]
    made = completed(results, made_up_results("tune", *stages))
    page = report.page(made)
    for stage, title in {
        "confirm": "### Each arm",
        "common": "### At the learning rate",
        "long": "### Longer",
    }.items():
        assert (title in page) is (stage in stages)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in report.conclusion(made).splitlines()[2:]
    ]
    count, accuracies = CONCLUSIONS[last]
    assert len(lines) == count
    if accuracies:
        added = lines[-1]  # 16 updates per batch on the second task, where all stages have runs
        assert added[3:6] == accuracies
        leads = re.findall(r"\*\*([+-][\d.]+)\*\*", " ".join(added[-2:]))  # bold: significant, as so little noise is
        expected = [float(accuracies[1]) - float(other) for other in (accuracies[0], accuracies[2]) if other]
        assert [float(lead) for lead in leads] == pytest.approx(expected, abs=3e-3)


def test_a_page_of_one_seed(results):
    rows = made_up_results("tune", "arms")
    rows = [row for row in rows if row["seed"] in (0, *grid.TUNING_SEEDS)]
    page = report.page(completed(results, rows))
    assert "nan" not in page
    with pytest.raises(ValueError, match="--stage arms"):
        report.page(completed(results, made_up_results("tune")))


def test_longer_runs_without_the_shorter_ones(results):
    page = report.page(completed(results, made_up_results("tune", "arms", "sweep", "edges", "long")))
    assert "### Longer" in page and "### Each arm" not in page


def test_results_of_another_size_do_not_replace_the_page(capsys):
    with pytest.raises(SystemExit):
        report.parse_arguments(["--results", "results/30m.jsonl"])
    assert "--output" in capsys.readouterr().err


def test_the_page_is_of_the_results(results):
    page = (ROOT / "docs" / "study.md").read_text()
    assert page == report.page(results), "run `python -m studies.which_tokens.report`"
    assert report.conclusion(results) in (ROOT / "README.md").read_text()
    for name in re.findall(r"\]\((study/\w+\.png)\)", page):
        assert (ROOT / "docs" / name).is_file()


def test_the_results_are_all_runs_of_all_stages_and_no_others(results):
    cells = [grid.cell_of(row) for row in results.rows]
    assert len(set(cells)) == len(cells)
    assert set(cells) == {cell for stage in grid.STAGES.values() for cell in stage("tiny", results.rows)}


def test_numbers_in_the_reading(results):
    """Those that the page's text and README's have from its tables, or from single runs."""

    def accuracies(task, arm, factor, seeds, size="tiny", updates=1):
        rate = grid.times(factor, results.learning_rates[task, updates])
        found = [results.by_cell[grid.Cell(size, task, arm, updates, rate, seed)] for seed in seeds]
        return [row["accuracy"] for row in found]

    page, readme = (" ".join((ROOT / name).read_text().split()) for name in ("docs/study.md", "README.md"))
    chosen_by = accuracies("digit_sums", "random20", 2.0, grid.SWEEP_SEEDS)
    others = accuracies("digit_sums", "random20", 2.0, grid.CONFIRMATION_SEEDS)
    assert (
        f"had {sum(chosen_by) / 2:.2f} at twice the learning rate on the two seeds that chose it, and between "
        f"{min(others):.2f} and {max(others):.2f} on the five others"
    ) in page
    own, common = (
        {(c.task, c.updates, c.second): c.difference.mean for c in compare(results)}
        for compare in (outcomes.confirmation, outcomes.common_comparisons)
    )
    digits, target = ("digit_sums", 1, "random20"), ("reach_target", 16, "all")
    assert f"made a lead of {own[digits]:.2f} over random tokens and one of {own[target]:.2f} over all tokens" in page
    assert f"both arms share these are {common[digits]:.2f} and nothing" in page and abs(common[target]) < 0.005
    leads = [
        c.difference.mean
        for c in (*outcomes.comparisons(results), *outcomes.common_comparisons(results))
        if c.second == "random20"
    ]
    assert f"on the new seeds to {max(leads):.2f}." in page and f"by nothing to {max(leads):.2f};" in readme
    assert abs(min(leads)) < 0.005
    local, full = (
        outcomes.interval([*map(outcomes.accuracy, results.runs("digit_sums", 16, arm).values())]).mean
        for arm in ("top20-local", "all")
    )
    assert f"{local:.3f} and {full:.3f}: [pools]" in page
    assert f"is right in {results.starts['reach_target']['greedy_accuracy']:.2f} before" in page
    starts = " and ".join(f"{results.starts[task]['accuracy']:.2f}" for task in grid.TASKS)
    assert f"(before training {starts})" in readme
    norms = {
        arm: sorted(max(row["training"]["grad_norm"]) for row in results.long_runs("digit_sums", 16, arm).values())
        for arm in grid.LONG_ARMS
    }
    lowest = min(results.long_runs("digit_sums", 16, "top20").values(), key=outcomes.accuracy)
    *rest, largest = norms["top20"]
    assert max(lowest["training"]["grad_norm"]) == largest
    assert (
        f"({lowest['accuracy']:.2f}), had one gradient of norm {largest:.0f}, the others of this arm {rest[0]:.0f} to "
        f"{rest[-1]:.0f}, those on all tokens {norms['all'][0]:.0f} to {norms['all'][-1]:.0f}."
    ) in page
