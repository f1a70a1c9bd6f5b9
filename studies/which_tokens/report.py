"""
Write docs/study.md and its figures from the results: every number in a table is computed here.

    python -m studies.which_tokens.report
    python -m studies.which_tokens.report --results studies/which_tokens/results/30m.jsonl --output outputs/study-30m
"""

import argparse
import json
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from studies.cells import read_rows
from trl_fork.commands.options import OptionParser

from .grid import (
    CONFIRMATION_SEEDS,
    LONG_ARMS,
    LONG_SETTINGS,
    MAIN_ARMS,
    SEEDS,
    SETTINGS,
    TASKS,
    TUNING_SEEDS,
    UPDATES_PER_BATCH,
)
from .outcomes import Interval, Study, common_comparisons, comparisons, confirmation, long_comparisons
from .run import RESULTS
from .settings import NUM_GENERATIONS, NUM_TEST, SAMPLES_PER_PROBLEM, SIZES, num_parameters
from .tables import (
    LABELS,
    TASK_LABELS,
    arms_table,
    common_comparison_table,
    comparison_table,
    gradient_table,
    markdown,
    rates_table,
    regime,
    sweep_table,
    tuning_table,
    variants_table,
)


DOCS = Path(__file__).resolve().parents[2] / "docs"
TEMPLATE = Path(__file__).with_name("page.md.jinja")
CONCLUSION_ARMS = ("all", "top20", "random20", "bottom80")


def load_study(path: Path) -> Study:
    """The runs of a file of results, and the starts beside it."""
    return Study(read_rows(path), json.loads(path.with_name(f"{path.stem}-start.json").read_text()))


def page(study: Study) -> str:
    """
    The page, in Markdown.

    Raises:
        `ValueError`: if there is not one run at least of every arm in every setting.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    settings = SIZES[study.size]
    counts = [len(study.runs(*setting, arm)) for setting in SETTINGS for arm in MAIN_ARMS]
    if not min(counts):
        raise ValueError("A page needs one seed of every arm at least: run --stage arms first.")
    text = environment.from_string(TEMPLATE.read_text()).render(
        study=study,
        settings=settings,
        rollouts=settings.prompts_per_update * NUM_GENERATIONS,
        num_generations=NUM_GENERATIONS,
        num_test=NUM_TEST,
        samples=SAMPLES_PER_PROBLEM,
        seeds=(min(counts), max(counts)),
        tuning_seeds=TUNING_SEEDS,
        confirmation_seeds=CONFIRMATION_SEEDS,
        parameters=num_parameters(study.size) / 1e6,
        num_rows=len(study.rows),
        hours=sum(row["processor_seconds"] for row in study.rows) / 3600,
        tasks=TASKS,
        regimes=UPDATES_PER_BATCH,
        task_labels=TASK_LABELS,
        regime=regime,
        arms_table=lambda task, updates: arms_table(study, task, updates),
        tuning_table=tuning_table(study),
        comparison_table=comparison_table(comparisons(study)),
        confirmation_table=lambda: rates_table(study, Study.confirmation_runs),
        confirmation_comparison_table=lambda: comparison_table(confirmation(study)),
        common_table=lambda: rates_table(study, Study.common_runs),
        common_comparison_table=lambda: common_comparison_table(study),
        long_tables=lambda: long_tables(study, Study.long_runs),
        long_tables_with_own_rates=lambda: long_tables(study, Study.long_runs_with_own_rates),
        long_updates=SIZES[f"{study.size}-long"].updates,
        sweep_table=sweep_table(study),
        variants_table=variants_table(study),
        gradient_table=gradient_table(study),
        claims=claims(study),
        conclusion=conclusion(study),
        start={task: study.starts[task]["accuracy"] for task in TASKS},
    )
    return text.rstrip() + "\n"


def long_tables(study: Study, runs) -> str:
    accuracies = rates_table(study, runs, LONG_ARMS, LONG_SETTINGS)
    return f"{accuracies}\n\n{comparison_table(long_comparisons(study, runs))}"


def conclusion(study: Study) -> str:
    """The table that the README quotes: arms at one learning rate, and the lead of the top 20 % over two of them."""
    first, new = (f"seeds {seeds[0]} to {seeds[-1]}" for seeds in (SEEDS, CONFIRMATION_SEEDS))
    kinds = [(f"best for all tokens, {first}", Study.runs, comparisons(study))]
    if study.is_complete("common"):
        kinds.append((f"best for the top 20 %, {new}", Study.common_runs, common_comparisons(study)))
    if study.is_complete("long"):
        kinds.append((f"the same, four times as long, {new}", Study.long_runs, long_comparisons(study)))
    rows = []
    for task, updates in [(task, updates) for task in TASKS for updates in UPDATES_PER_BATCH]:
        for label, runs, found in kinds:
            found = [comparison for comparison in found if (comparison.task, comparison.updates) == (task, updates)]
            if not found:
                continue
            row = [TASK_LABELS[task], str(updates), label]
            for arm in CONCLUSION_ARMS:
                values = [run["accuracy"] for run in runs(study, task, updates, arm).values()]
                row.append(f"{np.mean(values):.2f}" if values else "")
            for other in ("all", "random20"):
                pair = [c for c in found if (c.first, c.second) == ("top20", other)]
                leads = [f"**{c.difference.mean:+.3f}**" if c.p < 0.05 else f"{c.difference.mean:+.3f}" for c in pair]
                row.append(", ".join(leads))
            rows.append(row)
    arms = [LABELS[arm] for arm in CONCLUSION_ARMS]
    headings = ["Task", "Updates per batch", "Learning rate", *arms, "top 20 % minus all", "top minus random 20 %"]
    return markdown(headings, rows)


def claims(study: Study) -> str:
    """The paper's claims, with what is seen of them in each task and regime."""

    def seen(verdict) -> list[str]:
        return [verdict(*setting) for setting in SETTINGS]

    def sign(difference: Interval, more: str = "better", less: str = "worse", form: str = "+.3f", unit="") -> str:
        if difference.n < 2:
            return "not run"
        word = "unresolved" if not difference.excludes_zero else more if difference.mean > 0 else less
        return f"{word} ({difference:{form}}{unit})"

    def accuracy(first, second, measure="accuracy"):
        return lambda t, u: sign(study.difference(t, u, first, second, lambda row: row[measure]))

    def entropy(task, updates):
        difference = study.difference(task, updates, "top20", "all", lambda row: row["entropy"])
        return sign(difference, "higher", "lower", unit=" nats")

    def length(task, updates):
        difference = study.difference(task, updates, "top20", "all", lambda row: row["length"])
        return sign(difference, "longer", "shorter", "+.1f", " tokens")

    def shared(task, updates):
        return f"{np.mean([row['overlap']['whole_set'] for row in study.runs(task, updates, 'all').values()]):.0%}"

    rows = [
        ["Top 20 % matches or beats all tokens: accuracy of top 20 % against all", *seen(accuracy("top20", "all"))],
        ["Training on the bottom 80 % fails: its accuracy against all", *seen(accuracy("bottom80", "all"))],
        [
            "(not in the paper) bottom 80 %, greedy decoding: against all",
            *seen(accuracy("bottom80", "all", "greedy_accuracy")),
        ],
        ["(not in the paper) top 20 % against random 20 %", *seen(accuracy("top20", "random20"))],
        ["10 to 50 % do about equally well: top 10 % against top 50 %", *seen(accuracy("top10", "top50"))],
        ["Overall entropy stays higher with the top 20 %: against all", *seen(entropy)],
        ["Answers get longer with the top 20 %: against all", *seen(length)],
        ["RL on all tokens keeps the forks: top-20 % positions shared with the start (paper: 86.67 %)", *seen(shared)],
    ]
    return markdown(["Claim", *(f"{TASK_LABELS[task]}, {updates}" for task, updates in SETTINGS)], rows)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "tiny.jsonl", help="file of the runs")
    parser.add_argument("--output", type=Path, help="folder of the page (default for the tiny models: docs)")
    options = parser.parse_args(arguments)
    if options.output is None:
        if options.results.stem != "tiny":
            parser.error(f"--output: where to? docs/study.md is of the tiny models, {options.results} is not")
        options.output = DOCS
    return options


def main(options: argparse.Namespace) -> None:
    from .plots import save_plots

    study = load_study(options.results)
    (options.output / "study").mkdir(parents=True, exist_ok=True)
    (options.output / "study.md").write_text(page(study))
    save_plots(study, options.output / "study")
    print(f"{options.output / 'study.md'} is of {len(study.rows)} runs.")


if __name__ == "__main__":
    main(parse_arguments())
