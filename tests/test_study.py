"""The study: its tasks, that its arms differ in nothing else, its arithmetic, and that its page is of its results."""

import json
import random
import re
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

import digit_sums
import grid
import outcomes
import pytest
import reach_target
import report
import run as study
import runs
import torch
from conftest import build_model, build_tokenizer
from gradients import gradient_shares
from oracles import Rollout, log_probs_and_entropies


ROOT = Path(__file__).parent.parent


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


def cells():
    rates = {(task, updates): 1e-3 for task in grid.TASKS for updates in grid.UPDATES_PER_BATCH}
    return [cell for stage in grid.STAGES.values() for cell in stage("tiny", rates)]


def test_every_cell_is_run_once():
    assert len(cells()) == len(set(cells()))
    assert {cell.arm for cell in cells()} == set(grid.ARMS)
    assert not set(grid.TUNING_SEEDS) & set(grid.SEEDS)


def test_arms_are_confirmed_at_the_learning_rate_that_was_best_for_each():
    chosen = {("digit_sums", 1): 1e-3, ("digit_sums", 16): 1e-3}
    best = {"all": 1e-3, "top20": 5e-4, "random20": 4e-3}  # in the middle; at the edge, no better beyond; beyond it

    def rows_of(cells):
        return [{**asdict(cell), "accuracy": 1 - abs(cell.learning_rate - best.get(cell.arm, 0))} for cell in cells]

    rows = rows_of(grid.main_cells("tiny", chosen))
    with pytest.raises(ValueError, match="stage sweep"):
        grid.edge_cells("tiny", chosen, rows)
    rows += rows_of(grid.sweep_cells("tiny", chosen))
    edges = grid.edge_cells("tiny", chosen, rows)
    assert {(cell.arm, cell.learning_rate) for cell in edges} == {("top20", 2.5e-4), ("random20", 4e-3)}
    with pytest.raises(ValueError, match="stage edges"):
        grid.confirmation_cells("tiny", chosen, rows)
    rows += rows_of(edges)
    confirmed = grid.confirmation_cells("tiny", chosen, rows)
    assert {(cell.arm, cell.learning_rate) for cell in confirmed} == set(best.items())
    assert len(confirmed) == 2 * 3 * len(grid.CONFIRMATION_SEEDS)
    assert not set(grid.CONFIRMATION_SEEDS) & {*grid.SEEDS, *grid.SWEEP_SEEDS, *grid.TUNING_SEEDS}
    long = grid.long_cells("tiny", chosen, rows)
    assert {replace(cell, size="tiny") for cell in long} == {c for c in confirmed if c.updates_per_batch == 16}
    assert runs.start_path(ROOT, long[0].size, "digit_sums") == runs.start_path(ROOT, "tiny", "digit_sums")


def test_arms_differ_in_what_they_are_named_for_and_in_nothing_else():
    for cell in {replace(cell, arm="all") for cell in cells()}:
        full = runs.configuration(cell).to_dict()
        for arm, settings in grid.ARMS.items():
            other = runs.configuration(replace(cell, arm=arm)).to_dict()
            assert {name for name in full if full[name] != other[name]} - set(settings) == set()


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
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *_, **__: Inline(made))
    wanted = [grid.Cell("tiny", "digit_sums", "all", 1, 1e-3, seed) for seed in range(3)]
    path = small / "results.jsonl"
    path.write_text(json.dumps({**asdict(wanted[1]), "accuracy": 0.5}) + "\n" + '{"size": "ti')
    study.run_cells(wanted, study.read_rows(path), path, small, workers=1)
    assert made == [wanted[0], wanted[2]]
    assert "1 of 3 runs" in capsys.readouterr().out
    assert sorted(grid.cell_of(row).seed for row in study.read_rows(path)) == [0, 1, 2]


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
    row = {"evaluations": [{"step": 0, "accuracy": 0.0}, {"step": 10, "accuracy": 1.0}, {"step": 30, "accuracy": 1.0}]}
    assert outcomes.area_under_curve(row) == pytest.approx((5 + 20) / 30)


@pytest.mark.parametrize("size", runs.SIZES)
def test_models_are_as_large_as_they_are_called(size):
    with torch.device("meta"):
        model = digit_sums.make_model(reach_target.make_tokenizer(), 0, runs.SIZES[size].shape)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    low, high = {"tiny": (0.1, 1), "30m": (20, 40), "100m": (70, 130)}[size.removesuffix("-long")]
    assert low < millions < high


def test_the_page_is_of_the_results():
    results = report.load_study(study.RESULTS / "tiny.jsonl")
    rows = results.rows
    page = (ROOT / "docs" / "study.md").read_text()
    assert page == report.page(results), "run `python examples/study/report.py`"
    assert report.conclusion(results) in (ROOT / "README.md").read_text()
    for name in re.findall(r"\]\((study/\w+\.png)\)", page):
        assert (ROOT / "docs" / name).is_file()
    assert len({grid.cell_of(row) for row in rows}) == len(rows)
