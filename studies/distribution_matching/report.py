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

from .outcomes import CONFIGURATIONS, OTHERS, Comparison, Study
from .plan import (
    COMMON,
    COMMON_RATE,
    COUNTERPARTS,
    EVALUATIONS,
    MEASURES,
    NUM_SAMPLES,
    NUM_TEST,
    PARTITION_SAMPLES,
    SEEDS,
    TASK,
    TUNING_SEEDS,
    UPDATES,
)
from .run import RESULTS
from .runs import SIZE, test_problems
from .strategies import num_strategies
from .tables import (
    MEASURE_LABELS,
    common_tables,
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
        raise ValueError("A page needs every run of the plan: run --stage tune, arms and common first.")

    def mean(arm: str, beta: float, measure: str) -> str:
        return f"{study.values(arm, beta, measure).mean:{form_of(measure)}}"

    def families(compare: Callable[[str], list[Comparison]]) -> str:
        return resolved({measure: compare(measure) for measure in MEASURES})

    def means(measure: str) -> list[float]:
        return [study.values(*each, measure).mean for each in CONFIGURATIONS]

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        study=study,
        mean=mean,
        interval=lambda *each: f"{study.values(*each):{form_of(each[-1])}}",
        common_interval=lambda *each: f"{study.common_values(*each):{form_of(each[-1])}}",
        width=lambda *each: f"{study.values(*each, 'accuracy').half_width:.3f}",
        lowest=lambda measure: f"{min(means(measure)):.2f}",
        highest=lambda measure: f"{max(means(measure)):.2f}",
        num_comparisons=len(MEASURES) * (2 * len(OTHERS) + len(COUNTERPARTS) + len(COMMON) - 1),
        resolved=families(study.comparisons),
        common_resolved=families(study.common_comparisons),
        against_common_resolved=families(study.against_common),
        counterparts_resolved=families(study.counterparts),
        common_mean=lambda *each: f"{study.common_values(*each).mean:{form_of(each[-1])}}",
        label=label,
        results_table=results_table(study),
        differences_table=differences_table(study),
        common_tables=common_tables(study),
        counterparts_table=counterparts_table(study),
        common_rate=COMMON_RATE,
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
