"""The tables of the study, in Markdown."""

from collections.abc import Sequence

import numpy as np

from studies.which_tokens.outcomes import interval
from studies.which_tokens.tables import markdown, p_value, regime

from .outcomes import Comparison, Setting, Study, effective_fraction
from .plan import (
    BATCH_ARMS,
    BATCH_TASKS,
    MAIN_ARMS,
    NUM_SAMPLES,
    SETTINGS,
    TUNED_ARMS,
    TUNED_SETTINGS,
)


LABELS = {
    "all": "all tokens",
    "forking": "forking tokens",
    "random": "random 20 %",
    "pepo": "PEPO",
    "temporal_forking": "temporal forking",
    "temporal_random": "temporal random",
    "temporal_position": "temporal position",
    "high_entropy_rollouts": "high-entropy rollouts",
    "random_rollouts": "random rollouts",
    "entropy_advantage": "entropy advantage",
    "gmts": "GMTS",
    "nat": "NAT, random 50 %",
    "local_forking": "local forking",
    "stapo": "STAPO",
    "forking_at_update": "forking tokens, scope `local`",
}
TASK_LABELS = {
    "digit_sums": "digit sums",
    "reach_target": "reach the target",
    "chain_sum": "chain sum (reasoning-gym)",
    "countdown": "countdown (reasoning-gym)",
}


def setting_label(setting: Setting) -> str:
    task, updates = setting
    return f"{TASK_LABELS[task]}, {regime(updates)}"


def family_table(found: Sequence[Comparison]) -> str:
    """One comparison a row, over settings; bold where it is resolved."""
    rows = []
    for each in found:
        difference = f"{each.difference:+.3f}"
        rows.append(
            [
                f"{LABELS[each.first]} minus {LABELS[each.second]}",
                f"**{difference}**" if each.is_resolved else difference,
                p_value(each.difference.p),
                p_value(each.p),
                str(len(each.settings)),
                str(each.difference.n),
            ]
        )
    return markdown(["Held-out accuracy", "difference", "p", "p (Holm)", "settings", "pairs of runs"], rows)


def ranking_table(study: Study, runs, setting: Setting, arms: Sequence[str] = MAIN_ARMS) -> str:
    """Arms of a setting, the best first, with what each costs."""
    found = {arm: runs(setting, arm) for arm in arms}
    found = {arm: each for arm, each in found.items() if each}
    against = {each.first: each for each in study.in_setting(runs, setting) if each.second == "all"}
    order = sorted(found, key=lambda arm: -study.mean(found[arm], lambda row: row["accuracy"]))
    start = study.starts[setting[0]]
    rows = [
        [
            *("", "before training", "", "", f"{start['accuracy']:.3f}", "", "", ""),
            *(f"{start[f'pass@{NUM_SAMPLES}']:.3f}", f"{start['entropy']:.3f}", "", "", "", ""),
        ]
    ]
    for place, arm in enumerate(order, 1):
        each = found[arm]

        def mean(measure, spec, each=each):
            value = study.mean(each, measure)
            return "-" if np.isnan(value) else f"{value:{spec}}"

        difference = against.get(arm)
        rows.append(
            [
                str(place),
                LABELS[arm],
                str(len(each)),
                f"{next(iter(each.values()))['learning_rate']:g}",
                f"{interval([row['accuracy'] for row in each.values()]):.3f}",
                "" if difference is None else f"{difference.difference:+.3f}",
                "" if difference is None else p_value(difference.p),
                mean(study.area_under_curve, ".3f"),
                mean(lambda row: row[f"pass@{NUM_SAMPLES}"], ".3f"),
                mean(lambda row: row["entropy"], ".3f"),
                mean(effective_fraction, ".2f"),
                mean(lambda row: row["tokens_with_gradient"], ",.0f"),
                mean(lambda row: row["gradient_norm_max"], ".0f"),
                mean(lambda row: row["processor_seconds"], ".0f"),
            ]
        )
    header = [
        *("", "Arm", "seeds", "learning rate", "accuracy", "minus all tokens", "p (Holm)", "area under curve"),
        *(f"pass@{NUM_SAMPLES}", "entropy", "effective fraction", "tokens with gradient"),
        *("largest gradient norm", "processor s"),
    ]
    return markdown(header, rows)


def twins_table(study: Study, runs, settings: Sequence[Setting] = SETTINGS) -> str:
    """By setting each rule minus its twin; bold where it is resolved within the setting."""
    rows = []
    for setting in settings:
        for each in study.in_setting(runs, setting):
            if each.second != "all":
                difference = f"{each.difference:+.3f}"
                rows.append(
                    [
                        setting_label(setting),
                        f"{LABELS[each.first]} minus {LABELS[each.second]}",
                        f"**{difference}**" if each.is_resolved else difference,
                        p_value(each.p),
                        str(each.difference.n),
                    ]
                )
    return markdown(["Task and regime", "Held-out accuracy", "difference", "p (Holm)", "seeds"], rows)


def rates_table(study: Study) -> str:
    """The learning rates that were chosen, arm by arm."""
    rows = [
        [
            LABELS[arm],
            *("-" if (rate := study.own_rate(each, arm)) is None else f"{rate:g}" for each in TUNED_SETTINGS),
        ]
        for arm in TUNED_ARMS
    ]
    return markdown(["Arm", *map(setting_label, TUNED_SETTINGS)], rows)


def batch_table(study: Study) -> str:
    """Accuracy by size of the batch, and the lead of forking over random tokens and over all."""
    rows = []
    for task in BATCH_TASKS:
        for factor in study.batch_factors(task):
            runs = [study.shared((task, 1), arm, factor) for arm in BATCH_ARMS]
            leads = [interval(list(study.lead_by_batch(task, factor, over).values())) for over in ("random", "all")]
            rows.append(
                [
                    TASK_LABELS[task],
                    str(64 * factor),
                    *(f"{interval([row['accuracy'] for row in each.values()]):.3f}" for each in runs),
                    *(f"{lead:+.3f}" for lead in leads),
                ]
            )
    header = ["Task", "rollouts per update", *(LABELS[arm] for arm in BATCH_ARMS)]
    header += ["forking minus random", "forking minus all"]
    return markdown(header, rows)


def progress_table(study: Study) -> str:
    """What is there of the plan."""
    rows = [[f"`{stage}`", str(there), str(wanted)] for stage, (there, wanted) in study.progress().items()]
    return markdown(["Stage", "runs there", "runs in the plan, as far as known"], rows)
