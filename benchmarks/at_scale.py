"""
What a step costs on 8 and 64 H100s with vLLM, and what leaving work out saves there: on paper, and by simulation.

    python -m benchmarks.at_scale          # seconds; nothing is measured

`scale_model.py` says how long a part takes, with its assumptions; `scale_plans.py` which rows the cards compute
together. The model is first held against a step whose times are published (`scale_check.py`). Decoding was slower
there than assumed: what follows uses the share of the bandwidth that gives the published time, which makes our savings
smaller.

A step is that of the paper's recipe: 32 prompts with 16 completions each, of at most 20,480 tokens with a median of
2,560; 16 steps from a generation batch, or one; ZeRO-3, gradient checkpointing, one row of a card at a time (packed:
as many tokens as the longest row may have). Rows stay on the card that has generated them, unless they are balanced.
All cards exchange weights in every layer, so that each pass takes as long as on the card with the most to do, or as
the exchange. TRL and ours both score every row once. Means of draws. 32B on 8 cards is arithmetic: 61 GiB of states on
each leave no room for vLLM, and what would move to host memory and back is not counted.
"""

import argparse
import statistics
from functools import partial
from itertools import product

from trl_fork._files import write_json

from .scale_check import PROMPT, PUBLISHED, PUBLISHED_STEP, fitted_share, published_model
from .scale_model import (
    DECODE_SHARE,
    LLAMA_8B,
    QWEN3_8B,
    QWEN3_32B,
    UTILISATION,
    compute_seconds,
    decode_seconds,
    forward_operations,
    gather_seconds,
    prefill_seconds,
    state_bytes,
    training_operations,
)
from .scale_plans import Batch, as_drawn, ordered, packed


RECIPE = {"prompt": PROMPT, "groups": 32, "generations": 16, "longest": 20480, "micro_batch": 1}
SETTINGS = [(QWEN3_8B, 8, 1), (QWEN3_8B, 64, 1), (QWEN3_32B, 8, 4), (QWEN3_32B, 64, 4)]  # cards, those of an engine
FLOOR = "floor"
SELECTED = 0.2  # of the tokens, which the LM head sees in training
# Weights are as long on their way to vLLM as in the published step: 16 GB in 5 s.
REFIT_BYTES_PER_SECOND = 2 * LLAMA_8B.parameters / PUBLISHED["weights to vLLM"]
ARMS = {  # plans of scoring and training, and the head's share in training
    "TRL": (lambda b: as_drawn(b, cut=False), lambda b: as_drawn(b, cut=False), 1.0),
    "padding cut": (lambda b: as_drawn(b, cut=True), lambda b: as_drawn(b, cut=True), 1.0),
    "and ordered by length": (
        lambda b: ordered(b, leave_out=False),
        lambda b: ordered(b, leave_out=False),
        1.0,
    ),
    "and sparse head, inert rows": (
        lambda b: ordered(b, leave_out=False),
        lambda b: ordered(b, leave_out=True),
        SELECTED,
    ),
    "and packed": (
        lambda b: packed(b, leave_out=False, balance=False),
        lambda b: packed(b, leave_out=True, balance=False),
        SELECTED,
    ),
    "and balanced": (
        lambda b: packed(b, leave_out=False, balance=True),
        lambda b: packed(b, leave_out=True, balance=True),
        SELECTED,
    ),
}


def phase_seconds(plan, operations, exchange):
    """A phase in which all cards wait for each other in every micro-batch, and for the exchange of weights."""
    return sum(max(max(compute_seconds(sum(map(operations, rows))) for rows in cards), exchange) for cards in plan)


def least(shape, batch, cards):
    """Scoring and training spread evenly over the cards, without padding or waiting."""
    rows = [row for pair in zip(batch.lengths, batch.live, strict=True) for row in zip(*pair, strict=True)]
    score = sum(forward_operations(shape, n) for n, _ in rows)
    train = sum(training_operations(shape, n, recompute=True, head_share=SELECTED) for n, live in rows if live)
    return {"scoring": compute_seconds(score) / cards, "training": compute_seconds(train) / cards}


def generation_seconds(shape, batch, engine_cards, share):
    """Of the slowest engine, for the whole generation batch."""
    cards = len(batch.generated)
    engines = [batch.generated[i : i + engine_cards] for i in range(0, cards, engine_cards)]
    rows = [[length for card in engine for length in card] for engine in engines]
    prompts = len(rows[0]) / RECIPE["generations"] / engine_cards
    decoding = (decode_seconds(shape, PROMPT, own, tensor_parallel=engine_cards, share=share) for own in rows)
    return max(decoding) + prefill_seconds(shape, PROMPT, prompts)


def simulate(shape, cards, engine_cards, *, inert, steps, share, draws):
    """
    Seconds of a step by arm, means over `draws` batches.

    Args:
        steps (`int`): Optimizer steps that share a generation batch, and its time.

    Returns:
        `dict`: by arm `generation`, `weights`, `scoring`, `training` and `whole`; and `floor`, the work spread evenly
        over the cards without any padding or waiting.
    """
    found = {name: [] for name in (*ARMS, FLOOR)}
    exchange = gather_seconds(shape, cards)
    for seed in range(draws):
        batch = Batch(seed, inert=inert, cards=cards, steps=steps, **RECIPE)
        common = {
            "generation": generation_seconds(shape, batch, engine_cards, share) / steps,
            "weights": 2 * shape.parameters / REFIT_BYTES_PER_SECOND / steps,
        }
        for name, (scoring, training, head) in ARMS.items():
            score = phase_seconds(scoring(batch), partial(forward_operations, shape), exchange)
            operations = partial(training_operations, shape, recompute=True, head_share=head)
            train = phase_seconds(training(batch), operations, 3 * exchange)
            found[name].append({**common, "scoring": score, "training": train})
        found[FLOOR].append({**common, **least(shape, batch, cards)})
    result = {}
    for name, draws_of_arm in found.items():
        means = {part: statistics.mean(draw[part] for draw in draws_of_arm) for part in draws_of_arm[0]}
        result[name] = {**means, "whole": sum(means.values())}
    return result


def check_table(share):
    """The published step beside the model, as assumed and with the fitted share, in Markdown."""
    columns = (PUBLISHED, published_model(DECODE_SHARE), published_model(share))
    lines = [
        f"| Llama-3.1-8B, 8 H100s, s | Published | Model, decoding at {DECODE_SHARE:.0%} | Model, at {share:.0%} |",
        "|---|---:|---:|---:|",
    ]
    for part in PUBLISHED:
        lines.append(f"| {part} | " + " | ".join(f"{column[part]:.0f}" for column in columns) + " |")
    totals = (PUBLISHED_STEP, *(sum(column.values()) for column in columns[1:]))
    lines.append("| step | " + " | ".join(f"{total:.0f}" for total in totals) + " |")
    return "\n".join(lines)


def part_table(results):
    """What each part saves, by setting and arm, in Markdown."""
    lines = ["| | Scoring | Training | Whole step | x TRL |", "|---|---:|---:|---:|---:|"]
    for result in results:
        whole = result["arms"]["TRL"]["whole"]
        for name, parts in result["arms"].items():
            first = f"**{result['model']}, {result['cards']} cards**: {name}" if name == "TRL" else name
            cells = " | ".join(f"{parts[part]:.1f}" for part in ("scoring", "training", "whole"))
            lines.append(f"| {first} | {cells} | {whole / parts['whole']:.2f} |")
    return "\n".join(lines)


def step_table(results):
    """Where the time of a step goes, by setting, in Markdown."""
    lines = [
        "| | Steps per generation | Groups inert | Generation | Weights to vLLM | Scoring + training: TRL | ours | "
        "floor | Step: TRL | ours | x TRL | Generation's share of ours |",
        "|---|" + "---:|" * 11,
    ]
    for result in results:
        theirs, ours, floor = (result["arms"][name] for name in ("TRL", list(ARMS)[-1], FLOOR))
        seconds = [theirs["generation"], theirs["weights"]]
        seconds += [parts["scoring"] + parts["training"] for parts in (theirs, ours, floor)]
        seconds += [theirs["whole"], ours["whole"]]
        cells = [
            f"{result['model']}, {result['cards']} cards",
            f"{result['steps']}",
            f"{result['inert']:.0%}",
            *(f"{value:.0f}" for value in seconds),
            f"{theirs['whole'] / ours['whole']:.2f}",
            f"{ours['generation'] / ours['whole']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inert", type=float, nargs="+", default=[0.4, 0.0], help="shares of groups without gradient")
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 1], help="optimizer steps per generation batch")
    parser.add_argument("--draws", type=int, default=5, help="batches that are simulated")
    parser.add_argument("--decode_share", type=float, help="of the bandwidth, in decoding; by default as published")
    parser.add_argument("--output", help="write the seconds to this JSON file")
    options = parser.parse_args(arguments)
    fitted = fitted_share()
    share = options.decode_share or fitted
    print(f"Assumed: {UTILISATION:.0%} of the peak operations, {DECODE_SHARE:.0%} of the peak bandwidth in decoding.")
    print(f"The published time of generation takes {fitted:.0%}. What follows uses {share:.0%}.\n")
    print(f"{check_table(fitted)}\n")
    results = []
    for shape, cards, engine_cards in SETTINGS:
        print(f"{shape.name}, {cards} cards: {state_bytes(shape, cards) / 2**30:.0f} GiB of states on each.")
        for steps, inert in product(options.steps, options.inert):
            arms = simulate(shape, cards, engine_cards, inert=inert, steps=steps, share=share, draws=options.draws)
            results.append({"model": shape.name, "cards": cards, "steps": steps, "inert": inert, "arms": arms})
    print(f"\n{step_table(results)}\n")
    chosen = [found for found in results if (found["steps"], found["inert"]) == (options.steps[0], options.inert[0])]
    print(part_table(chosen))
    if options.output:
        write_json(options.output, {"options": vars(options), "decode_share": share, "results": results})


if __name__ == "__main__":
    main()
