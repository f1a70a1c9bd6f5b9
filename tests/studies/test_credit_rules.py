"""The study of rules of token credit: its tasks, its plan, and a run of it."""

import json
import random
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from studies.credit_rules import plan, plots, report, run, runs, tables
from studies.credit_rules.advice import advice, scope
from studies.credit_rules.outcomes import Study, mean_over_settings
from studies.which_tokens import chain_sum, countdown
from studies.which_tokens import run as which_tokens
from studies.which_tokens.gym import is_held_out
from trl_fork.credit import load_preset


ROOT = Path(__file__).parents[2]
GYM_TASKS = {"chain_sum": chain_sum, "countdown": countdown}


# ---------------------------------------------------------------------- tasks from reasoning-gym


@pytest.fixture(params=GYM_TASKS)
def task(request, monkeypatch):
    pytest.importorskip("reasoning_gym")
    module = GYM_TASKS[request.param]
    monkeypatch.setattr(module, "NUM_ITEMS", {"chain_sum": 20_000, "countdown": 300}[request.param])
    caches = [value for value in vars(module).values() if hasattr(value, "cache_clear")]
    for each in caches:
        each.cache_clear()
    yield module
    for each in caches:
        each.cache_clear()


def test_problems_and_demonstrations_are_in_the_words_of_the_tokenizer(task):
    rng = random.Random(0)
    training, held_out = task.training_problems(200, rng), task.held_out_problems(30, rng)
    assert len(set(held_out)) == 30 and all(map(is_held_out, held_out)) and not any(map(is_held_out, training))
    tokenizer = task.make_tokenizer()
    for problem in (*training, *held_out):
        text = task.question(problem) + task.demonstration(problem, rng)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
        assert len(tokenizer(task.demonstration(problem, rng))["input_ids"]) < runs.MAX_COMPLETION_LENGTH["countdown"]


def test_what_the_verifier_of_reasoning_gym_accepts_is_correct(task):
    """The answer by arithmetic of our own, of right and of wrong demonstrations."""
    rng, found = random.Random(0), []
    for problem in task.training_problems(400, rng):
        text = task.demonstration(problem, rng)
        answer = text.split("\\boxed{")[1].removesuffix("}")
        if task is chain_sum:
            right = int(answer) == sum(problem)
        else:
            target, *numbers = problem
            used = [int(number) for number in answer.replace("-", "+").split("+")]
            right = used == numbers and eval(answer) == target
        assert task.is_correct(problem, text) == right
        found.append(right)
    assert 0.1 < sum(found) / len(found) < 0.5


def test_an_answer_has_to_stand_in_a_box_at_the_end(task):
    rng = random.Random(0)
    problem, text = next(
        (problem, text)
        for problem in task.training_problems(400, rng)
        if task.is_correct(problem, text := task.demonstration(problem, rng))
    )
    assert not any(task.is_correct(problem, wrong) for wrong in ("", text[:-1], text + " done", text.split(" \\")[0]))


@pytest.mark.parametrize(
    ("answer", "right"), [("3+1-4+2", True), ("3-4+1+2", True), ("2", False), ("3+1-4+2+0", False), ("3+1+4+2", False)]
)
@pytest.mark.parametrize("task", ["countdown"], indirect=True)
def test_a_countdown_uses_every_number_once(task, answer, right):
    problem = (2, 3, 1, 4, 2)
    entry = {"metadata": {"numbers": list(problem[1:]), "target": problem[0]}}
    countdown._entries()[problem] = entry
    assert countdown.is_correct(problem, f" done \\boxed{{{answer}}}") == right


# ---------------------------------------------------------------------- the plan


def test_arms_differ_in_their_rule_only():
    cell = plan.Cell("digit_sums", "all", 16, plan.SHARED_RATE, 0)
    baseline = runs.configuration(cell)
    for arm in plan.ARMS:
        settings = runs.configuration(replace(cell, arm=arm))
        different = {f.name for f in fields(settings) if getattr(settings, f.name) != getattr(baseline, f.name)}
        own = {"all": set(), "forking_at_update": {"token_credit", "entropy_threshold_scope"}}
        assert different - {"top_entropy_quantile"} == own.get(arm, {"token_credit"}), arm
        # With rules there is no threshold beside them.
        assert (settings.token_credit is None) == (arm == "all")
    assert baseline.top_entropy_quantile == 1.0


def test_arms_are_the_presets():
    for arm in plan.MAIN_ARMS:
        if arm not in ("all", "pepo", "stapo"):
            assert plan.ARMS[arm] == {"token_credit": arm} and load_preset(arm)
    assert plan.ARMS["pepo"]["token_credit"]["proportional"] == {
        name: value
        for name, value in (load_preset("pepo")["proportional"] | {"window": 11}).items()
        if name != "temperature"
    }

    ((name, settings),) = plan.ARMS["stapo"]["token_credit"].items()
    assert settings.keys() == load_preset("stapo")[name].keys()


def test_twins_take_as_many_tokens_by_chance():
    for arm, twin in plan.TWINS.items():
        rule, control = load_preset(arm), load_preset(twin)
        (name, settings), (control_name, control_settings) = *rule.items(), *control.items()
        if name == "rollouts":
            assert control_name == "rollouts" and settings["keep"] == control_settings["keep"]
            assert control_settings["positives"] == control_settings["negatives"] == "random"
        else:
            assert control_name == "random" and settings["fraction"] == control_settings["fraction"]
            assert settings.get("pool") == control_settings.get("pool")


def test_batches_grow_by_parts_of_one_size():
    small = runs.configuration(plan.Cell("digit_sums", "all", 1, plan.SHARED_RATE, 0))
    large = runs.configuration(plan.Cell("digit_sums", "all", 1, plan.SHARED_RATE, 0, 4))
    assert large.per_device_train_batch_size == small.per_device_train_batch_size == 64
    assert (small.generation_batch_size, large.generation_batch_size) == (64, 256)
    assert large.steps_per_generation == large.gradient_accumulation_steps == 4  # one update per batch
    assert small.max_steps == large.max_steps == plan.UPDATES


def test_no_seed_of_the_results_chooses_a_learning_rate():
    tuning = {seed for pair in plan.TUNING_SEEDS for seed in pair}
    assert len(tuning) == 4 and not tuning & {*plan.SEEDS, *plan.NEW_SEEDS} and not {*plan.SEEDS} & {*plan.NEW_SEEDS}
    assert len(plan.SEEDS) == len(plan.NEW_SEEDS) == 5 and plan.SHARED_RATE in plan.LEARNING_RATES


def row_of(cell: plan.Cell, accuracy: float) -> dict:
    return {name: getattr(cell, name) for name in plan.Cell.__dataclass_fields__} | {"accuracy": accuracy}


def test_learning_rates_are_chosen_by_halves():
    setting, arm = plan.TUNED_SETTINGS[0], "forking"
    by_rate = dict(zip(plan.LEARNING_RATES, (0.5, 0.6, 0.4), strict=True))
    rows = [row_of(cell, by_rate[cell.learning_rate]) for cell in plan.tuning_cells() if cell.arm == arm]
    second = [cell for cell in plan.finalist_cells(rows) if (cell.task, cell.updates_per_batch) == setting]
    assert {cell.learning_rate for cell in second} == {1.25e-4, 2.5e-4}
    assert {cell.seed for cell in second} == set(plan.TUNING_SEEDS[1]) and {cell.arm for cell in second} == {arm}
    assert plan.own_cells(rows) == []  # nothing is chosen yet
    # On the other two seeds the order is another one, by more.
    rows += [row_of(cell, {1.25e-4: 0.7, 2.5e-4: 0.5}[cell.learning_rate]) for cell in plan.finalist_cells(rows)]
    own = plan.own_cells(rows)
    assert {cell.learning_rate for cell in own} == {1.25e-4} and len(own) == 5 * len(plan.TUNED_SETTINGS)
    assert plan.chosen_rate(plan.accuracies_of(rows), setting, "random") is None


def test_the_plan_fits_into_the_budget():
    """If every arm had a rate of its own that is not the shared one."""
    fixed = [cell for stage in ("shared", "batch", "scope", "tune") for cell in plan.STAGES[stage]()]
    assert len(fixed) == len(set(fixed)) == 1012
    num_tuned = len(plan.TUNED_SETTINGS) * len(plan.TUNED_ARMS)
    at_most = num_tuned * (4 + 5) * plan.SECONDS_PER_RUN[1]
    assert plan.cost(fixed) + at_most < plan.BUDGET


def test_the_first_half_of_the_settings_has_every_task_and_regime():
    assert set(plan.SETTINGS) == {(task, updates) for task in plan.TASKS for updates in plan.UPDATES_PER_BATCH}
    assert {task for task, _ in plan.SETTINGS[:4]} == set(plan.TASKS)
    assert sorted(updates for _, updates in plan.SETTINGS[:4]) == [1, 1, 16, 16]


def test_the_order_has_every_stage_of_every_setting():
    whole = [stage for stage, setting in plan.ORDER if setting is None]
    assert whole == ["shared", "batch", "scope"]
    others = [each for each in plan.ORDER if each[1] is not None]
    assert others[:3] == [(stage, plan.SETTINGS[0]) for stage in ("tune", "finalists", "own")]
    assert len(others) == 3 * len(plan.TUNED_SETTINGS) and {*whole, *(stage for stage, _ in others)} == set(
        plan.STAGES
    )


def test_all_stages_are_run_in_order(monkeypatch, tmp_path):
    """The command, with runs of which only the accuracy is made up."""
    made = []

    def run_cells(cells, rows, path, workers, **_):
        there = {plan.cell_of(row) for row in rows}
        new = [cell for cell in cells if cell not in there]
        made.append(new)
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in made_up(new))

    monkeypatch.setattr(run, "run_cells", run_cells)
    monkeypatch.setattr(which_tokens, "make_starts", lambda *_: None)
    monkeypatch.setattr(run, "measure_starts", lambda _: None)
    run.main(run.parse_arguments(["--stage", "all", "--results", str(tmp_path)]))
    assert len(made) == len(plan.ORDER) and all(made)
    for cells, (_, setting) in zip(made, plan.ORDER, strict=True):
        assert setting is None or {(cell.task, cell.updates_per_batch) for cell in cells} == {setting}
    assert Study(run.read_rows(tmp_path / "tiny.jsonl"), STARTS).missing() == []


# ---------------------------------------------------------------------- a run


def test_one_cell_is_of_one_stage(capsys):
    with pytest.raises(SystemExit):
        run.parse_arguments(["--stage", "all", "--only", "digit_sums all u1 lr0.00025 seed0"])
    assert "--only is for one of the stages shared, batch" in capsys.readouterr().err
    assert run.parse_arguments(["--stage", "all"]).tasks == list(plan.TASKS)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Runs of seconds, from weights that are hardly warmed up."""
    from studies.which_tokens import runs as warm_ups

    monkeypatch.setitem(runs.SIZES, "tiny", replace(runs.SIZES["tiny"], prompts_per_update=2))
    monkeypatch.setattr(warm_ups, "WARM_UP_STEPS", {"digit_sums": 1})
    values = {"UPDATES": 4, "EVALUATIONS": (2,), "CURVE_PROBLEMS": 2, "NUM_TEST": 4, "NUM_SAMPLES": 2, "NUM_POINTS": 2}
    for name, value in values.items():
        monkeypatch.setattr(runs, name, value)
    runs.test_problems.cache_clear()
    which_tokens.make_starts(tmp_path, "tiny", ["digit_sums"])
    yield tmp_path
    runs.test_problems.cache_clear()


def test_a_cell_runs_and_can_be_made_again(small):
    threads = torch.get_num_threads()
    cell = plan.Cell("digit_sums", "forking", 1, 1e-3, 0, batch_factor=2)
    first, second = runs.run(cell, small, "0"), runs.run(cell, small, "0")
    for row in (first, second):
        assert row.pop("processor_seconds") >= row.pop("training_seconds") > 0 and row.pop("seconds") > 0
    assert json.dumps(first) == json.dumps(second)
    assert plan.cell_of(first) == cell and [each["step"] for each in first["evaluations"]] == [2]
    assert all(len(curve) == 2 for curve in first["training"].values())
    # 4 updates of 4 prompts with 8 rollouts, a fifth of whose tokens have a weight
    assert first["tokens"] > 4 * 32 and 0.19 < first["tokens_with_gradient"] / first["tokens"] < 0.22
    torch.set_num_threads(threads)


def test_entropy_is_that_of_the_tokens_of_samples(small):
    model, tokenizer = runs.load_start(small, "digit_sums")
    sampler, problems = runs.Sampler("digit_sums", tokenizer), runs.test_problems("digit_sums")
    samples = [row[0] for row in sampler(model, problems, 1, seed=0)]
    expected = []
    for prompt, sample in zip(sampler.prompts(problems), samples, strict=True):  # one by one, without padding
        with torch.no_grad():
            logits = model.eval()(torch.tensor([[*prompt, *sample.ids]])).logits[0, len(prompt) - 1 : -1]
        expected += torch.distributions.Categorical(logits=logits).entropy().tolist()
    assert len({sample.length for sample in samples} | {len(each) for each in sampler.prompts(problems)}) > 2
    assert sampler.entropy(model, problems, samples) == pytest.approx(sum(expected) / len(expected), rel=1e-4)


# ---------------------------------------------------------------------- the page


LEADS = {"forking": 0.05, "random": -0.05, "temporal_forking": 0.04, "high_entropy_rollouts": 0.0}
BY_BATCH = {("forking", 4): 0.8, ("forking", 16): 0.85, ("random", 4): 0.78, ("random", 16): 0.85}


def made_up(cells, leads=LEADS) -> list[dict]:
    """Lines of results: accuracy by arm, and a little by seed; half the shared rate is a little better."""
    rng, rows = random.Random(0), []
    for cell in cells:
        accuracy = BY_BATCH.get((cell.arm, cell.batch_factor), 0.6 + leads.get(cell.arm, 0.0))
        accuracy += 0.001 * cell.seed + rng.uniform(-0.01, 0.01) + 0.02 * (cell.learning_rate < plan.SHARED_RATE)
        share = {"forking": 0.2, "random": 0.2, "temporal_forking": 0.4}.get(cell.arm, 1.0)
        curves = {name: [0.3] * runs.NUM_POINTS for name in runs.CURVES}
        if cell.arm == "all":
            curves |= dict.fromkeys(("selected_fraction", "effective_fraction"), [None] * runs.NUM_POINTS)
        rows.append(
            row_of(cell, accuracy)
            | {f"pass@{plan.NUM_SAMPLES}": 0.9, "length": 40.0, "entropy": 0.2, "training": curves}
            | {"evaluations": [{"step": step, "accuracy": 0.5, "entropy": 0.25} for step in plan.EVALUATIONS]}
            | {"tokens": 1000, "tokens_with_gradient": round(1000 * share), "gradient_norm_max": 2.0}
            | {"commit": "abc1234", "seconds": 20.0, "processor_seconds": 18.0, "training_seconds": 15.0}
        )
    return rows


STARTS = {
    task: {"accuracy": 0.2, f"pass@{plan.NUM_SAMPLES}": 0.7, "length": 40.0, "entropy": 0.3} for task in plan.TASKS
}


def study_of(*stages, leads=LEADS) -> Study:
    rows: list[dict] = []
    for stage in stages:
        there = {plan.cell_of(row) for row in rows}
        rows += made_up([cell for cell in plan.STAGES[stage](rows) if cell not in there], leads)
    return Study(rows, STARTS)


@pytest.fixture(scope="module")
def complete():
    return study_of(*plan.STAGES)


def test_a_complete_study_misses_nothing(complete):
    assert complete.missing() == [] and report.missing(complete) == ""
    assert complete.own_rate(plan.TUNED_SETTINGS[0], "forking") == 1.25e-4
    page = report.page(complete)
    assert "not complete" not in page and "nan" not in page
    for setting in plan.SETTINGS:
        assert tables.setting_label(setting)[1:] in page
    assert "each arm at its own learning rate" in advice(complete)


def test_what_is_missing_is_said():
    study = study_of("shared")
    assert study.missing() == ["batch", "scope", "tune", "finalists", "own"]
    page = report.page(study)
    assert "**This page is not complete**: runs of `batch`, `scope`, `tune`, `finalists` and `own` are missing" in page
    assert "Does the deficit" not in page and "What the threshold" not in page and "Each at its own" not in page
    # A first half of a setting
    rows = [row for row in study.rows if (row["task"], row["updates_per_batch"]) == plan.SETTINGS[0]][:30]
    part = Study(rows, STARTS)
    assert "shared" in part.missing() and "in one setting" in advice(part)
    assert report.page(part).count("\n### ") == 2  # the setting, twins
    # A setting that is begun beside one that is whole
    first, second = (
        [row for row in study.rows if (row["task"], row["updates_per_batch"]) == each] for each in plan.SETTINGS[:2]
    )
    more = Study([*first, *second[:20]], STARTS)
    assert report.shown_settings(more) == [plan.SETTINGS[0]] and "in one setting" in advice(more)
    assert tables.setting_label(plan.SETTINGS[1])[1:] not in report.page(more)
    with pytest.raises(ValueError, match="--stage shared"):
        report.page(Study([], {}))
    with pytest.raises(ValueError, match="digit_sums: --stage start"):
        report.page(Study(rows, {}))


def test_sizes_and_tasks_without_all_seeds_are_left_out(complete):
    def without(stage, **of):
        left = {
            cell for cell in plan.STAGES[stage]() if all(getattr(cell, name) == value for name, value in of.items())
        }
        assert len(left) > 2
        gone = max(left, key=lambda cell: cell.seed)
        return Study([row for row in complete.rows if plan.cell_of(row) != gone], STARTS)

    study = without("batch", task="reach_target", batch_factor=16)
    assert study.batch_factors("reach_target") == [1, 4] and study.batch_factors("digit_sums") == [1, 4, 16]
    assert tables.batch_table(study).count("reach the target") == 2
    assert re.search(r"With 4 times .* on reach the target goes .*; runs with 16 times are missing\.", advice(study))
    assert "are missing" not in advice(complete)
    whole, part = complete.change_by_batch(16), study.change_by_batch(16)
    assert set(whole) == {"digit_sums", "reach_target"} and set(part) == {"digit_sums"}
    assert part["digit_sums"][1] == pytest.approx(min(1.0, 2 * part["digit_sums"][0].p))  # for two tasks all the same
    study = without("scope", task="countdown")
    assert {len(each.settings) for each in study.scopes()} == {3}
    assert {len(each.settings) for each in complete.scopes()} == {4}


def test_what_is_said_of_scopes(complete):
    leads = {"forking": 0.05, "forking_at_update": 0.05, "local_forking": 0.05}
    found = scope(study_of("scope", leads=leads).scopes())
    assert found.startswith("Resolved over 4 tasks: forking tokens, scope `local` minus all tokens (+0.0")
    assert (
        found.endswith(").") and "minus forking" not in found and " and forking tokens minus all tokens (+0." in found
    )
    assert scope(study_of("scope", leads={}).scopes()) == "None of the 5 differences is resolved (over 4 tasks)."
    assert found in report.page(study_of("shared", "scope", leads=leads))


def test_the_advice_is_that_of_the_numbers(complete):
    found = advice(complete)
    assert found.startswith("**Try forking tokens first**: +0.0")
    assert "Resolvably better than all tokens are also temporal forking (+0.0" in found
    pattern = r"by chance: forking tokens \((\S+?)\), .* against random 20 %; (.*?) against temporal random\."
    better = re.search(pattern, found)
    assert float(better[1]) == pytest.approx(0.1, abs=0.02)
    assert re.fullmatch(r"temporal forking \(\+0\.0\d+\)", better[2])
    assert "Not told apart from as many by chance: " in found
    assert "high-entropy rollouts" in found.split("Not told apart")[1]
    assert "Resolvably worse than all tokens: random 20 % (-0.0" in found
    assert "has forking tokens: 20 % of those of all tokens" in found
    assert "goes from +0.1" in found and "shrinks with the batch, as noise does" in found
    worse = advice(study_of("shared", leads={arm: -0.1 for arm in plan.MAIN_ARMS if arm != "all"}))
    assert worse.startswith("**Train on all tokens unless you have a reason of your own**: none of 13 rules")
    assert "Try" not in worse and "rollouts per update" not in worse
    little = advice(study_of("shared", leads={"stapo": 0.008}))
    assert "none of 13 rules is resolvably better by 0.01 or more (over 8" in little
    assert "By less is STAPO (+0.0" in little and "Try" not in little


def test_an_average_over_settings_by_hand():
    from scipy import stats

    first, second = [0.1, 0.2, 0.15], [0.4, -0.2, 0.1, 0.3]
    found = mean_over_settings([first, second, [0.9]])  # one value has no spread: not a sample
    variances = [stats.sem(first) ** 2 / 4, stats.sem(second) ** 2 / 4]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    assert found.mean == pytest.approx((0.15 + 0.15) / 2) and found.n == 7
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5)
    # Of two samples of one size with opposite signs it is Welch's test
    welch = stats.ttest_ind(first, [-x for x in second], equal_var=False)
    assert found.p == pytest.approx(welch.pvalue)


def test_differences_are_paired_by_seed(complete):
    setting = plan.SETTINGS[0]
    rows = {
        (row["arm"], row["seed"]): row["accuracy"]
        for row in complete.rows
        if (row["task"], row["updates_per_batch"], row["learning_rate"], row["batch_factor"])
        == (*setting, plan.SHARED_RATE, 1)
    }
    expected = [rows["gmts", seed] - rows["random", seed] for seed in plan.SEEDS]
    assert complete.differences(complete.shared, setting, "gmts", "random") == pytest.approx(expected)
    family = complete.over_settings(complete.shared)
    assert len(family) == len(plan.PAIRS) == 19
    assert all(len(each.settings) == 8 and each.difference.n == 40 for each in family)


def test_figures_are_drawn(complete, tmp_path):
    plots.save_plots(complete, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rules_entropy.png", "rules_batch.png"}
    assert plots.batch_sizes(study_of("shared")) is None


def test_a_page_of_the_repository_is_of_its_results():
    study, command = report.load_study(), "run `python -m studies.credit_rules.report`"
    assert (ROOT / "docs" / "rules_study.md").read_text() == report.page(study), command
    readme = report.README.read_text()
    assert readme == report.readme(study) and advice(study) in readme, command
    assert ("The study is not complete" in readme) == bool(study.missing())


def test_results_are_runs_of_the_plan():
    study = report.load_study()
    assert len(study.by_cell) == len(study.rows)
    assert set(study.by_cell) <= {cell for stage in plan.STAGES.values() for cell in stage(study.rows)}
