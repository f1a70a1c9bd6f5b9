"""What the page shows of the stages: small enough to be kept, and rounded to what four digits say."""

from . import plan


NUM_TYPES = 15  # token types at either end


def numbers_of(stages: dict[str, dict]) -> dict:
    """
    Args:
        stages (`dict[str, dict]`): The file of each stage, by its name.

    Returns:
        `dict`: numbers of the page, by stage; and the cost of each.
    """
    found = {name: stage["summary"] for name, stage in stages.items()}
    return rounded(
        {
            "sft": found["sft"],
            "words": {**corpus(found["words"]), **comparison(found["words"])},
            "sums": {**corpus(found["sums"]), "decoding_temperature": found["sums"]["decoding_temperature"]},
            "rl": {
                name: found["rl"][name]
                for name in ("max_steps", "prompts_per_step", "learning_rate", "accuracy_before", "accuracy_after")
            }
            | {"rewards": [step["reward"] for step in found["rl"]["steps"]]},
            "reinforced": {**corpus(found["reinforced"]), **comparison(found["reinforced"])},
            "costs": {
                name: {key: stage[key] for key in ("seconds", "processor_seconds")} for name, stage in stages.items()
            },
            "commit": stages["reinforced"]["commit"],
            "plan": {name: value for name, value in vars(plan).items() if isinstance(value, (int, float, tuple))},
        }
    )


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


def rounded(value):
    """Four significant digits of every number that is not whole."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
