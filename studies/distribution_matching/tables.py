"""The tables of the study, in Markdown."""

from studies.which_tokens.tables import markdown

from .outcomes import CONFIGURATIONS, OTHERS, Comparison, Study
from .plan import (
    BASELINE,
    COMMON,
    COMMON_RATE,
    COUNTERPARTS,
    LEARNING_RATES,
    MEASURES,
    TUNING_BETAS,
    TUNING_SEEDS,
    Cell,
)


LABELS = {
    "grpo": "GRPO",
    "forking": "forking GRPO, top 20 %",
    "grpo_kl": "GRPO with KL",
    "balance_group": "balance, group partition",
    "balance_offline": "balance, offline partition",
    "balance_group_forking": "balance, group, gradient on top 20 %",
}
MEASURE_LABELS = {
    "accuracy": "accuracy (avg@1)",
    "pass@4": "pass@4",
    "pass@16": "pass@16",
    "distinct": "distinct of 16",
    "agreement": "agreement of two",
}


def shown(beta: float) -> str:
    return {0.0667: "1/15", 0.333: "1/3"}.get(beta, f"{beta:g}")


def label(arm: str, beta: float) -> str:
    return LABELS[arm] if beta == 0 else f"{LABELS[arm]}, beta {shown(beta)}"


def form_of(measure: str) -> str:
    return ".2f" if measure == "distinct" else ".3f"


def results_table(study: Study) -> str:
    """Means at the end, with 95 % intervals over seeds."""
    rows = [["before training", *(f"{study.start[measure]:{form_of(measure)}}" for measure in MEASURES)]]
    for arm, beta in CONFIGURATIONS:
        cells = [f"{study.values(arm, beta, measure):{form_of(measure)}}" for measure in MEASURES]
        rows.append([label(arm, beta), *cells])
    return markdown(["", *MEASURE_LABELS.values()], rows)


def differences_table(study: Study) -> str:
    """Paired differences to GRPO."""
    found = {measure: study.comparisons(measure) for measure in MEASURES}
    return _comparison_table("Minus GRPO", [label(*each) for each in OTHERS], found)


def common_tables(study: Study) -> str:
    """Arms at one learning rate: means, and paired differences to GRPO."""
    rows = []
    for each in COMMON:
        cells = [f"{study.common_values(*each, measure):{form_of(measure)}}" for measure in MEASURES]
        rows.append([label(*each), *cells])
    found = {measure: study.common_comparisons(measure) for measure in MEASURES}
    labels = [label(*each) for each in COMMON if each != BASELINE]
    means = markdown([f"Learning rate {COMMON_RATE:g}", *MEASURE_LABELS.values()], rows)
    return f"{means}\n\n{_comparison_table('Minus GRPO', labels, found)}"


def counterparts_table(study: Study) -> str:
    """Paired differences of balance to GRPO with a KL term that pulls as hard."""
    pairs = [f"{label(*first)}, minus {label(*other)}" for first, other in COUNTERPARTS.items()]
    return _comparison_table("Difference", pairs, {measure: study.counterparts(measure) for measure in MEASURES})


def _comparison_table(title: str, labels: list[str], found: dict[str, list[Comparison]]) -> str:
    """Bold where the corrected p is below 0.05."""
    rows = []
    for number, text in enumerate(labels):
        cells = []
        for measure in MEASURES:
            each = found[measure][number]
            shown = f"{each.difference:+{form_of(measure)}}"
            cells.append(f"**{shown}** ({each.p:.3f})" if each.is_resolved else f"{shown} ({each.p:.3f})")
        rows.append([text, *cells])
    return markdown([f"{title} (corrected p)", *MEASURE_LABELS.values()], rows)


def tuning_table(study: Study) -> str:
    rows = []
    for arm, beta in TUNING_BETAS.items():
        cells = []
        for rate in LEARNING_RATES:
            runs = [study.by_cell[Cell(arm, beta, rate, seed)] for seed in TUNING_SEEDS]
            text = f"{sum(run['accuracy'] for run in runs) / len(runs):.3f}"
            cells.append(f"**{text}**" if rate == study.learning_rates[arm] else text)
        rows.append([label(arm, beta), *cells])
    return markdown(["Accuracy at learning rate", *(f"{rate:g}" for rate in LEARNING_RATES)], rows)


def training_table(study: Study) -> str:
    """Length and entropy: the last evaluation and the last quarter of the training."""
    rows = []
    for arm, beta in CONFIGURATIONS:
        runs = study.runs(arm, beta).values()

        def mean(values) -> float:
            values = [*values]
            return sum(values) / len(values)

        rows.append(
            [
                label(arm, beta),
                f"{mean(row['length'] for row in runs):.1f}",
                f"{mean(row['training']['entropy'][-1] for row in runs):.3f}",
                f"{mean(row['distinct_ordered'] for row in runs):.2f}",
                f"{mean(row['processor_seconds'] for row in runs):.0f}",
            ]
        )
    header = [
        "",
        "tokens of an answer",
        "entropy (nats)",
        "distinct of 16, order counted",
        "processor seconds of a run",
    ]
    return markdown(header, rows)
