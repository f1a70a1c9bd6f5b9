"""
Write docs/study.md and its figures from the results: every number on the page is computed here.

    python examples/study/report.py [--results examples/study/results/tiny.jsonl] [--output docs]
"""

import argparse
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tasks

import numpy as np
from grid import (
    MAIN_ARMS,
    SWEEP_FACTORS,
    TASKS,
    TUNING_SEEDS,
    UPDATES_PER_BATCH,
    VARIANTS,
    VARIANTS_TASK,
    tuning_cells,
)
from jinja2 import Environment, StrictUndefined
from outcomes import (
    Interval,
    Study,
    area_under_curve,
    gradient_points,
    holm,
    interval,
    lead_at_best_rates,
    selected_tokens,
    swept,
)
from run import RESULTS, read_rows
from settings import NUM_GENERATIONS, NUM_TEST, SAMPLES_PER_PROBLEM, SIZES

from trl_fork.command_line import OptionParser


DOCS = Path(__file__).resolve().parents[2] / "docs"
TEMPLATE = Path(__file__).with_name("page.md.jinja")
LABELS = {
    "all": "all tokens",
    "top20": "top 20 %",
    "random20": "random 20 %",
    "bottom80": "bottom 80 %",
    "top10": "top 10 %",
    "top50": "top 50 %",
    "top20-local": "top 20 %, scope `local`",
    "top20-sequence": "top 20 %, scope `sequence`",
    "top20-denominator-all": "top 20 %, divided by all tokens",
    "random20-denominator-all": "random 20 %, divided by all tokens",
}
TASK_LABELS = {"digit_sums": "digit sums", "reach_target": "reach the target"}
# Decided before the runs were made; p-values are corrected for their number (Holm).
COMPARISONS = (("top20", "all"), ("top20", "random20"), ("bottom80", "all"))


# ---------------------------------------------------------------------- tables


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tuning_table(study: Study) -> str:
    rates = sorted({cell.learning_rate for cell in tuning_cells(study.size)})
    rows = []
    for (task, updates), chosen in study.learning_rates.items():
        values = [
            np.mean(
                [
                    study.by_cell[cell]["accuracy"]
                    for cell in tuning_cells(study.size)
                    if (cell.task, cell.updates_per_batch, cell.learning_rate) == (task, updates, rate)
                ]
            )
            for rate in rates
        ]
        rows.append(
            [
                f"{TASK_LABELS[task]}, {regime(updates)}",
                *(f"**{v:.3f}**" if r == chosen else f"{v:.3f}" for v, r in zip(values, rates, strict=True)),
            ]
        )
    return markdown(["", *(f"{rate:g}" for rate in rates)], rows)


def regime(updates: int) -> str:
    return f"{updates} update{'s' if updates > 1 else ''} per batch"


def arms_table(study: Study, task: str, updates: int, arms=MAIN_ARMS) -> str:
    start = study.starts[task]
    rows = [
        ["before training", "-"]
        + [f"{start[name]:.3f}" for name in ("accuracy", f"pass@{SAMPLES_PER_PROBLEM}", "greedy_accuracy")]
        + ["-", f"{start['entropy']:.3f}", f"{start['length']:.1f}", "-", "-", "-", "-"]
    ]
    for arm in arms:
        runs = list(study.runs(task, updates, arm).values())
        if not runs:
            continue

        def mean(values, spec):
            return f"{np.mean(values):{spec}}"

        rows.append(
            [
                LABELS[arm],
                str(len(runs)),
                f"{interval([row['accuracy'] for row in runs]):.3f}",
                f"{interval([row[f'pass@{SAMPLES_PER_PROBLEM}'] for row in runs]):.3f}",
                mean([row["greedy_accuracy"] for row in runs], ".3f"),
                f"{interval([area_under_curve(row) for row in runs]):.3f}",
                mean([row["entropy"] for row in runs], ".3f"),
                mean([row["length"] for row in runs], ".1f"),
                mean([np.median(row["training"]["grad_norm"]) for row in runs], ".2f"),
                f"{max(max(row['training']['grad_norm']) for row in runs):.0f}",
                f"{selected_tokens(runs):,.0f}",
                mean([row["processor_seconds"] for row in runs], ".0f"),
            ]
        )
    header = [
        *("Arm", "seeds", "accuracy", f"pass@{SAMPLES_PER_PROBLEM}", "greedy", "area under curve"),
        *("entropy", "length", "gradient norm", "largest", "tokens selected", "processor s"),
    ]
    return markdown(header, rows)


def comparisons(study: Study) -> list[tuple[str, int, str, str, Interval, float]]:
    found = [
        (task, updates, first, second, study.difference(task, updates, first, second))
        for task in TASKS
        for updates in UPDATES_PER_BATCH
        for first, second in COMPARISONS
    ]
    return [(*row, p) for row, p in zip(found, holm([row[-1].p for row in found]), strict=True)]


def comparison_table(study: Study) -> str:
    rows = [
        [
            f"{LABELS[first]} minus {LABELS[second]}",
            TASK_LABELS[task],
            str(updates),
            f"{difference:+.3f}",
            p_value(difference.p),
            p_value(adjusted),
            str(difference.n),
        ]
        for task, updates, first, second, difference, adjusted in comparisons(study)
    ]
    return markdown(["Held-out accuracy", "task", "updates per batch", "difference", "p", "p (Holm)", "seeds"], rows)


def p_value(p: float) -> str:
    if np.isnan(p):  # no spread, or one run
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def sweep_table(study: Study) -> str:
    rows = []
    for task in TASKS:
        for updates in UPDATES_PER_BATCH:
            for arm in MAIN_ARMS:
                found = swept(study, task, updates, arm)
                if found.count(None) == len(SWEEP_FACTORS):  # the chosen one only
                    continue
                best = max(value for value in found if value is not None)
                cells = ["-" if v is None else f"**{v:.3f}**" if v == best else f"{v:.3f}" for v in found]
                rows.append([f"{TASK_LABELS[task]}, {regime(updates)}: {LABELS[arm]}", *cells])
    return markdown(["Held-out accuracy", *(f"{factor:g} x" for factor in sorted([1.0, *SWEEP_FACTORS]))], rows)


def variants_table(study: Study) -> str:
    rows = []
    for updates in UPDATES_PER_BATCH:
        for arm in VARIANTS:
            base = arm.split("-")[0]
            runs = study.runs(VARIANTS_TASK, updates, arm)
            if not runs:
                continue
            difference = study.difference(VARIANTS_TASK, updates, arm, base)
            rows.append(
                [
                    f"{LABELS[arm]}, {regime(updates)}",
                    str(len(runs)),
                    f"{interval([row['accuracy'] for row in runs.values()]):.3f}",
                    f"{difference:+.3f}",
                    p_value(difference.p),
                    f"{np.mean([np.median(row['training']['grad_norm']) for row in runs.values()]):.2f}",
                ]
            )
    return markdown(["Variant", "seeds", "accuracy", "minus the main arm", "p", "gradient norm"], rows)


def gradient_table(study: Study) -> str:
    """Averages over training, tasks apart, of the arm on all tokens."""
    rows = []
    for task in TASKS:
        for updates in UPDATES_PER_BATCH:
            points = gradient_points(study, task, updates)
            if not points:
                continue
            for name in ("top20", "random20", "bottom80"):
                rows.append(
                    [
                        f"{TASK_LABELS[task]}, {regime(updates)}: {LABELS[name]}",
                        *(
                            f"{np.mean([point[f'{measure}/{name}'] for point in points]):.2f}"
                            for measure in ("norm", "cosine", "agreement")
                        ),
                        f"{np.mean([point['agreement/all'] for point in points]):.2f}",
                    ]
                )
    return markdown(["Part of the gradient", "norm", "cosine", "cosine, other batch", "all tokens, other batch"], rows)


# ---------------------------------------------------------------------- the page


def load_study(path: Path) -> Study:
    """The runs of a file of results, and the starts beside it."""
    return Study(read_rows(path), json.loads(path.with_name(f"{path.stem}-start.json").read_text()))


def page(study: Study) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    settings = SIZES[study.size]
    counts = [
        len(study.runs(task, updates, arm)) for task in TASKS for updates in UPDATES_PER_BATCH for arm in MAIN_ARMS
    ]
    text = environment.from_string(TEMPLATE.read_text()).render(
        study=study,
        settings=settings,
        rollouts=settings.prompts_per_update * NUM_GENERATIONS,
        num_generations=NUM_GENERATIONS,
        num_test=NUM_TEST,
        samples=SAMPLES_PER_PROBLEM,
        seeds=(min(counts), max(counts)),
        tuning_seeds=TUNING_SEEDS,
        num_rows=len(study.rows),
        hours=sum(row["processor_seconds"] for row in study.rows) / 3600,
        tasks=TASKS,
        regimes=UPDATES_PER_BATCH,
        task_labels=TASK_LABELS,
        regime=regime,
        arms_table=lambda task, updates: arms_table(study, task, updates),
        tuning_table=tuning_table(study),
        comparison_table=comparison_table(study),
        sweep_table=sweep_table(study),
        variants_table=variants_table(study),
        gradient_table=gradient_table(study),
        claims=claims(study),
        conclusion=conclusion(study),
        start={task: study.starts[task]["accuracy"] for task in TASKS},
    )
    return text.rstrip() + "\n"


def conclusion(study: Study) -> str:
    """Two sentences, which the README quotes; their numbers and verdicts are computed."""

    def mean(arm: str) -> str:
        means = [
            np.mean([row["accuracy"] for row in study.runs(task, updates, arm).values()])
            for task in TASKS
            for updates in UPDATES_PER_BATCH
        ]
        return f"{np.mean(means):.2f}"

    def count(first: str, second: str) -> str:
        signs = [
            np.sign(difference.mean) * (adjusted < 0.05)
            for _, _, a, b, difference, adjusted in comparisons(study)
            if (a, b) == (first, second)
        ]
        return f"better than {LABELS[second]} in {signs.count(1)} and worse in {signs.count(-1)}"

    settings = len(TASKS) * len(UPDATES_PER_BATCH)
    seeds = min(len(study.runs(task, updates, "top20")) for task in TASKS for updates in UPDATES_PER_BATCH)
    start = np.mean([study.starts[task]["accuracy"] for task in TASKS])
    return (
        f"At this scale, averaged over {settings} settings with {seeds} seeds each, training on the 20 % of tokens "
        f"with the highest entropy ends at a held-out accuracy of {mean('top20')}, on all tokens at {mean('all')}, on "
        f"a random 20 % at {mean('random20')} and on the other 80 % at {mean('bottom80')}, from {start:.2f} before. "
        f"By paired t-tests over seeds, corrected for their number, the top 20 % is {count('top20', 'all')} of the "
        f"{settings} settings, and {count('top20', 'random20')}{step_size(study)}."
    )


def step_size(study: Study) -> str:
    """The end of the sentence about random tokens: what remains when both arms may choose their learning rate."""
    leads = [
        f"{best:+.2f} instead of {chosen:+.2f} on {TASK_LABELS[task]} with {regime(updates)}"
        for task, updates, chosen, best in lead_at_best_rates(study, "top20", "random20")
    ]
    if not leads:
        return ""
    return f"; with the best of three learning rates for both (two seeds) its lead there is {', '.join(leads)}"


def claims(study: Study) -> str:
    """The paper's claims, with what is seen of them in each task and regime."""

    def seen(verdict) -> list[str]:
        return [verdict(task, updates) for task in TASKS for updates in UPDATES_PER_BATCH]

    def sign(difference: Interval, more: str = "better", less: str = "worse", form: str = "+.3f", unit="") -> str:
        if difference.n < 2:
            return "not run"
        word = "no difference" if not difference.excludes_zero else more if difference.mean > 0 else less
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
    header = [
        "Claim",
        *(f"{TASK_LABELS[task]}, {updates}" for task in TASKS for updates in UPDATES_PER_BATCH),
    ]
    return markdown(header, rows)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "tiny.jsonl", help="file of the runs")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of the page")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    from plots import save_plots

    study = load_study(options.results)
    (options.output / "study").mkdir(parents=True, exist_ok=True)
    (options.output / "study.md").write_text(page(study))
    save_plots(study, options.output / "study")
    print(f"{options.output / 'study.md'} is of {len(study.rows)} runs.")


if __name__ == "__main__":
    main(parse_arguments())
