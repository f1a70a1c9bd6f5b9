"""What follows from the results for someone who trains a model today, in sentences that depend on the numbers."""

from collections.abc import Sequence

from .outcomes import Comparison, Study
from .plan import BATCH_FACTORS, BATCH_TASKS, SETTINGS, SHARED_RATE, TUNED_ARMS, TUNED_SETTINGS, TWINS
from .tables import LABELS, TASK_LABELS


# In accuracy. A rule that changes few tokens runs beside all tokens, and a smaller lead of it is resolved too.
WORTH_TRYING = 0.01


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def advice(study: Study) -> str:
    """One paragraph."""
    runs, rates, settings = _best_known(study)
    family = study.over_settings(runs, settings=settings)
    against_all = [each for each in family if each.second == "all"]
    if not against_all:
        return "There are no runs yet to say anything by."
    sentences = [
        _headline(against_all, rates),
        *_twins(family),
        _worse(against_all),
        _cheaper(study, against_all, runs),
    ]
    sentences += [_batch(study, task) for task in BATCH_TASKS]
    return " ".join(sentence for sentence in sentences if sentence)


def _best_known(study: Study):
    """Runs at own learning rates if all of them are there, else at the shared one; what to call them, and where."""
    if study.complete_settings(study.own, TUNED_ARMS, TUNED_SETTINGS) == list(TUNED_SETTINGS):
        return study.own, "each arm at its own learning rate", TUNED_SETTINGS
    settings = study.complete_settings(study.shared) or SETTINGS
    return study.shared, f"all arms at the learning rate {SHARED_RATE:g}", settings


def _headline(found: Sequence[Comparison], rates: str) -> str:
    num_settings = max(len(each.settings) for each in found)
    where = f"over {num_settings} tasks and regimes, {rates}" if num_settings > 1 else f"in one setting, {rates}"
    better = sorted((each for each in found if each.is_resolved and each.difference.mean > 0), key=_lead, reverse=True)
    if not better or _lead(better[0]) < WORTH_TRYING:
        so_little = f" by {WORTH_TRYING} or more" if better else ""
        text = (
            f"**Train on all tokens unless you have a reason of your own**: none of {len(found)} rules is resolvably "
            f"better{so_little} ({where})."
        )
        return f"{text} By less is {listed([_with_lead(each) for each in better])}." if better else text
    first = better[0]
    text = (
        f"**Try {LABELS[first.first]} first**: {first.difference.mean:+.3f} in accuracy against all tokens ({where})."
    )
    if len(better) > 1:
        text += f" Resolvably better than all tokens are also {listed([_with_lead(each) for each in better[1:]])}."
    return text


def _twins(family: Sequence[Comparison]) -> list[str]:
    """What each rule that has a twin gains over chance."""
    found = sorted((each for each in family if each.second == TWINS.get(each.first)), key=_lead, reverse=True)
    groups: dict[str, dict[str, list[str]]] = {"better": {}, "worse": {}, "unresolved": {}}
    for each in found:
        direction = "unresolved" if not each.is_resolved else "better" if _lead(each) > 0 else "worse"
        groups[direction].setdefault(LABELS[each.second], []).append(_with_lead(each))
    texts = {
        "better": "Which tokens or rollouts are taken matters. Better than as many by chance: {}.",
        "worse": "Resolvably worse than as many by chance: {}.",
        "unresolved": "Not told apart from as many by chance: {}.",
    }
    return [
        texts[name].format("; ".join(f"{listed(rules)} against {twin}" for twin, rules in by_twin.items()))
        for name, by_twin in groups.items()
        if by_twin
    ]


def _worse(found: Sequence[Comparison]) -> str:
    worse = sorted((each for each in found if each.is_resolved and each.difference.mean < 0), key=_lead)
    return f"Resolvably worse than all tokens: {listed([_with_lead(each) for each in worse])}." if worse else ""


def _cheaper(study: Study, found: Sequence[Comparison], runs) -> str:
    """The fewest tokens with a gradient among the rules that are not resolvably worse."""

    def tokens(arm: str, settings) -> float:
        return sum(study.mean(runs(each, arm), lambda row: row["tokens_with_gradient"]) for each in settings)

    shares = {
        each.first: tokens(each.first, each.settings) / tokens("all", each.settings)
        for each in found
        if not (each.is_resolved and each.difference.mean < 0)
    }
    if not shares:
        return ""
    arm = min(shares, key=lambda name: shares[name])
    return (
        f"The fewest tokens with a gradient among the rules that are not resolvably worse has {LABELS[arm]}: "
        f"{100 * shares[arm]:.0f} % of those of all tokens."
    )


def _batch(study: Study, task: str) -> str:
    """What becomes of the lead of forking over random tokens in larger batches."""
    factors = study.batch_factors(task)
    if len(factors) < 2 or factors[0] != 1:
        return ""
    leads = [study.lead_by_batch(task, factor) for factor in (1, factors[-1])]
    small, large = (sum(each.values()) / len(each) for each in leads)
    text = (
        f"With {factors[-1]} times the rollouts per update the lead of forking over random tokens on "
        f"{TASK_LABELS[task]} goes from {small:+.3f} to {large:+.3f}"
    )
    largest = max(BATCH_FACTORS)
    if factors[-1] != largest:
        return f"{text}; runs with {largest} times are missing."
    interval, p = study.change_by_batch(largest)[task]
    if not p < 0.05:
        return f"{text}; that it changes is not resolved."
    if interval.mean < 0:
        return f"{text}: a deficit of random tokens that shrinks with the batch, as noise does."
    return f"{text}: it grows, so that noise does not explain it."


def scope(found: Sequence[Comparison]) -> str:
    """What the stage `scope` says."""
    tasks = max(len(each.settings) for each in found)
    where = f"over {tasks} tasks" if tasks > 1 else "on one task"
    resolved = [
        f"{LABELS[each.first]} minus {LABELS[each.second]} ({_lead(each):+.3f})" for each in found if each.is_resolved
    ]
    if not resolved:
        return f"None of the {len(found)} differences is resolved ({where})."
    return f"Resolved {where}: {listed(resolved)}."


def _lead(each: Comparison) -> float:
    return each.difference.mean


def _with_lead(each: Comparison) -> str:
    return f"{LABELS[each.first]} ({each.difference.mean:+.3f})"
