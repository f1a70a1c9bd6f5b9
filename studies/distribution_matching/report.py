"""
Write docs/distribution_matching.md and its figure from the results: every number in a table is computed here.

    python -m studies.distribution_matching.report
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from studies.cells import read_rows
from studies.which_tokens.settings import NUM_GENERATIONS, SIZES, WARM_UP_STEPS, num_parameters
from trl_fork.commands.options import OptionParser

from .outcomes import CONFIGURATIONS, Comparison, Study
from .plan import (
    COUNTERPARTS,
    EVALUATIONS,
    LEARNING_RATES,
    MEASURES,
    NUM_SAMPLES,
    NUM_TEST,
    PARTITION_SAMPLES,
    SECOND_RATE,
    SEEDS,
    TASK,
    TUNING_BETAS,
    TUNING_SEEDS,
    UPDATES,
    Cell,
)
from .run import RESULTS
from .runs import SIZE, test_problems
from .strategies import num_strategies
from .tables import (
    MEASURE_LABELS,
    counterparts_table,
    differences_table,
    form_of,
    label,
    results_table,
    training_table,
    tuning_table,
)


DOCS = Path(__file__).resolve().parents[2] / "docs"
TEMPLATE = Path(__file__).with_name("page.md.jinja")


def load_study(path: Path = RESULTS / "tiny.jsonl") -> Study:
    """The runs of a file of results, and the start beside it."""
    return Study(read_rows(path), json.loads(path.with_name(f"{path.stem}-start.json").read_text()))


def page(study: Study) -> str:
    """
    The page, in Markdown.

    Raises:
        `ValueError`: if runs of the plan are missing.
    """
    if not study.is_complete():
        raise ValueError("A page needs every run of the plan: run --stage tune, arms and second first.")

    def mean(arm: str, beta: float, measure: str) -> str:
        return f"{study.values(arm, beta, measure).mean:{form_of(measure)}}"

    def families(compare: Callable[[str], list[Comparison]]) -> str:
        return resolved({measure: compare(measure) for measure in MEASURES})

    def means(measure: str) -> list[float]:
        return [study.values(*each, measure).mean for each in CONFIGURATIONS]

    grpo = sorted(row["accuracy"] for row in study.baseline().values())
    tuned = sorted(
        study.by_cell[Cell("balance_offline", TUNING_BETAS["balance_offline"], rate, TUNING_SEEDS[0])]["accuracy"]
        for rate in LEARNING_RATES
    )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        study=study,
        mean=mean,
        lowest=lambda measure: f"{min(means(measure)):.2f}",
        highest=lambda measure: f"{max(means(measure)):.2f}",
        grpo_range=f"{grpo[0]:.2f} to {grpo[-1]:.2f}",
        rate_margin=f"{tuned[-1] - tuned[-2]:.3f}",
        num_comparisons=len(MEASURES) * (2 * (len(CONFIGURATIONS) - 1) + len(COUNTERPARTS)),
        resolved=families(study.comparisons),
        second_resolved=families(lambda measure: study.comparisons(measure, second=True)),
        counterparts_resolved=families(study.counterparts),
        second_mean=lambda measure: f"{study.second(measure).mean:{form_of(measure)}}",
        label=label,
        results_table=results_table(study),
        differences_table=differences_table(study),
        second_differences_table=differences_table(study, second=True),
        counterparts_table=counterparts_table(study),
        second_rate=SECOND_RATE,
        tuning_table=tuning_table(study),
        training_table=training_table(study),
        parameters=num_parameters(SIZE) / 1e6,
        warm_up_steps=WARM_UP_STEPS[TASK],
        prompts=SIZES[SIZE].prompts_per_update,
        num_generations=NUM_GENERATIONS,
        updates=UPDATES,
        evaluations=EVALUATIONS,
        num_test=NUM_TEST,
        num_samples=NUM_SAMPLES,
        partition_samples=PARTITION_SAMPLES,
        num_strategies=sum(map(num_strategies, test_problems())) / NUM_TEST,
        seeds=SEEDS,
        tuning_seeds=TUNING_SEEDS,
        num_rows=len(study.rows),
        minutes=sum(row["processor_seconds"] for row in study.rows) / 60,
    )
    return text.rstrip() + "\n"


def resolved(found: dict[str, list[Comparison]]) -> str:
    """The differences of families that are resolved after correction, in words; measure by measure."""
    parts = []
    for measure, comparisons in found.items():
        names = [
            f"{label(each.arm, each.beta)} ({each.difference.mean:+{form_of(measure)}})"
            for each in comparisons
            if each.is_resolved
        ]
        parts.append(f"{MEASURE_LABELS[measure]}: {'; '.join(names) or 'none'}")
    return ". ".join(parts) + "."


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "tiny.jsonl", help="file of the runs")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of the page")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    from .plots import trade_off

    study = load_study(options.results)
    (options.output / "study").mkdir(parents=True, exist_ok=True)
    (options.output / "distribution_matching.md").write_text(page(study))
    trade_off(study).savefig(options.output / "study" / "distribution_matching.png", dpi=90)
    print(f"{options.output / 'distribution_matching.md'} is of {len(study.rows)} runs.")


if __name__ == "__main__":
    main(parse_arguments())
