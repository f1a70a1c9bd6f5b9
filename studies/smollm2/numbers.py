"""What the page shows of the stages: small enough to be kept, and rounded to what four digits say."""

from collections.abc import Callable

from . import plan


NUM_TYPES = 15  # token types at either end


def numbers_of(stages: dict[str, dict]) -> dict:
    """
    Args:
        stages (`dict[str, dict]`): The file of each stage that has been run, by its name.

    Returns:
        `dict`: numbers of the page, by stage; the commits at which they ended; and the plan.
    """
    found = {name: stage["summary"] for name, stage in stages.items()}
    numbers = {name: READERS[name](summary) for name, summary in found.items()}
    numbers["commits"] = sorted({stage["commit"] for stage in stages.values()})
    numbers["plan"] = {name: value for name, value in vars(plan).items() if isinstance(value, (int, float, tuple))}
    return rounded(numbers)


def corpus(summary: dict) -> dict:
    """Analyses A and B."""
    tokens = summary["tokens"]
    kept = ("token", "mean_entropy", "count")
    return {
        "responses": {name: summary["responses"][name] for name in ("num_responses", "num_problems", "num_correct")},
        "distribution": summary["distribution"],
        "tokens": {
            "min_count": tokens["min_count"],
            "num_types": tokens["num_types"],
            **{end: [{key: row[key] for key in kept} for row in tokens[end][:NUM_TYPES]] for end in ("top", "bottom")},
        },
    }


def comparison(summary: dict) -> dict:
    """Analyses D, E and F; of E the last model's, which is what the page shows."""
    change = summary["change"]
    last = {"reference": change["reference"], "models": change["models"][-1:]}
    return {"overlap": summary["overlap"], "change": last, "percentiles": summary["percentiles"]}


def temperatures(summary: dict) -> dict:
    """Analysis C, beside A and B."""
    return {**corpus(summary), "decoding_temperature": summary["decoding_temperature"]}


def reinforcement(summary: dict) -> dict:
    names = ("max_steps", "prompts_per_step", "learning_rate", "accuracy_before", "accuracy_after")
    return {name: summary[name] for name in names} | {"rewards": [step["reward"] for step in summary["steps"]]}


READERS: dict[str, Callable[[dict], dict]] = {
    "sft": dict,
    "words": lambda summary: {**corpus(summary), **comparison(summary)},
    "sums": temperatures,
    "rl": reinforcement,
    "reinforced": lambda summary: {**corpus(summary), **comparison(summary)},
}


def rounded(value):
    """Four significant digits of every number that is not whole."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
