r"""
Select training responses by their High-Entropy Sum (HES): the sum of the entropies of the top 0.5 % tokens of each.

    trl-fork select --model Qwen/Qwen3-0.6B --completions completions.jsonl --output selected.jsonl \
        --fraction 0.2
    trl-fork select --model Qwen/Qwen3-0.6B --completions completions.jsonl --output selected.jsonl \
        --num_selected 2 --pool problem

"Unified Data Selection for LLM Reasoning" (arXiv 2605.22389): among correct responses, those of high HES train better.
Wrong responses have a higher HES than correct ones and are left out unless you ask for them. HES grows with length;
the output says how much of it is length.

OUTPUT receives the lines of the file that were selected, as they are, with `high_entropy_sum` (nats), in their order.
OUTPUT.json holds the numbers that are printed. Scores are kept beside it: a run that was killed continues.
"""

import argparse
import json
from fractions import Fraction
from math import ceil, isnan
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from .._files import replacing, write_json
from ..analysis.responses import read_lines, read_responses
from ..analysis.score_store import ScoreStore
from ..analysis.statistics import high_entropy_sum, pearson, spearman
from ..data.prompt_file import find_prompt
from ..generation.engines import load_tokenizer
from .options import OptionParser


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__, command="select")
    parser.add_argument("--model", required=True, help="Hub name or folder of the model that scores")
    parser.add_argument(
        "--completions",
        required=True,
        help="JSONL file, such as evaluate's completions.jsonl",
    )
    parser.add_argument("--output", required=True, help="JSONL file of the responses that are selected")
    parser.add_argument("--fraction", type=float, help="fraction of the responses of each pool, in (0, 1]; rounded up")
    parser.add_argument("--num_selected", type=int, help="responses of each pool, instead of --fraction")
    parser.add_argument("--pool", choices=["global", "problem"], default="global", help="(default: %(default)s)")
    parser.add_argument(
        "--top_tokens", type=float, default=0.005, help="share of tokens summed (default: %(default)s)"
    )
    parser.add_argument("--include_incorrect", action="store_true", help="rank wrong and ungraded responses too")
    parser.add_argument("--temperature", type=float, default=1.0, help="inside the softmax (default: %(default)s)")
    parser.add_argument("--max_batch_tokens", type=int, default=16384, help="tokens of a scoring batch")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, such as bfloat16 (default: the checkpoint's)"
    )
    parser.add_argument("--device_map", help="'auto' spreads a large model over all GPUs")
    options = parser.parse_args(arguments)
    if (options.fraction is None) == (options.num_selected is None):
        parser.error("give one of --fraction and --num_selected")
    for name, value in (("fraction", options.fraction), ("top_tokens", options.top_tokens)):
        if value is not None and not 0 < value <= 1:
            parser.error(f"--{name} must be in (0, 1], got {value}")
    if options.num_selected is not None and options.num_selected < 1:
        parser.error(f"--num_selected must be at least 1, got {options.num_selected}")
    if not options.temperature > 0:
        parser.error(f"--temperature must be positive, got {options.temperature}: at 0 every entropy is 0")
    if not Path(options.completions).is_file():
        parser.error(f"--completions: there is no file {options.completions!r}")
    return options


def score(options: argparse.Namespace, output: Path) -> tuple[list[float], list[int], list[str], list[bool | None]]:
    """HES, length, problem and correctness of every response."""
    tokenizer = load_tokenizer(options.model)
    found = find_prompt(options.model)
    kwargs = found[0].get("chat_template_kwargs") if found else None

    def read():
        return read_responses(options.completions, tokenizer, chat_template_kwargs=kwargs)

    store = ScoreStore(
        output.with_name(output.name + ".scores"), options.model, temperature=options.temperature, dtype=options.dtype
    )

    def load_model() -> torch.nn.Module:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype, device_map=options.device_map)
        return (model if options.device_map else model.to(PartialState().device)).eval()

    with tqdm(desc="scores", unit=" tokens", unit_scale=True) as progress:
        store.score(
            read(),
            load_model,
            max_batch_tokens=options.max_batch_tokens,
            progress=progress,
        )
    sums, lengths, problems, correct = [], [], [], []
    for response, scores in store.read(read()):
        sums.append(high_entropy_sum(scores.entropies, options.top_tokens))
        lengths.append(len(scores.entropies))
        problems.append(response.problem)
        correct.append(response.correct)
    return sums, lengths, problems, correct


def select(sums: list[float], problems: list[str], candidates: list[int], options: argparse.Namespace) -> set[int]:
    """The candidates of largest HES in each pool; ties to the earlier response."""
    pools: dict[str, list[int]] = {}
    for row in candidates:
        pools.setdefault(problems[row] if options.pool == "problem" else "", []).append(row)
    selected = set()
    for rows in pools.values():
        count = options.num_selected or ceil(Fraction(str(options.fraction)) * len(rows))
        selected.update(sorted(rows, key=lambda row: (-sums[row], row))[:count])
    return selected


def run(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if output.resolve() == Path(options.completions).resolve():
        raise ValueError(f"--output and --completions are the same file, {output}: it would be overwritten.")
    output.parent.mkdir(parents=True, exist_ok=True)
    sums, lengths, problems, correct = score(options, output)
    if not options.include_incorrect and all(value is None for value in correct):
        raise ValueError(
            f"{options.completions} does not say which responses are right (no field 'correct'), and wrong ones have "
            "the higher sums. Grade them with trl-fork evaluate, or pass --include_incorrect if all are right."
        )
    candidates = [row for row, value in enumerate(correct) if options.include_incorrect or value]
    selected = select(sums, problems, candidates, options)

    numbers = {
        "num_responses": len(sums),
        "num_candidates": len(candidates),
        "num_selected": len(selected),
        "mean_high_entropy_sum_correct": mean_of(sums, [row for row, value in enumerate(correct) if value]),
        "mean_high_entropy_sum_incorrect": mean_of(sums, [r for r, value in enumerate(correct) if value is False]),
        "mean_high_entropy_sum_selected": mean_of(sums, selected),
        "mean_length_candidates": mean_of(lengths, candidates),
        "mean_length_selected": mean_of(lengths, selected),
        "pearson_with_length": or_none(pearson(np.array(sums)[candidates], np.array(lengths)[candidates])),
        "spearman_with_length": or_none(spearman(np.array(sums)[candidates], np.array(lengths)[candidates])),
        "also_among_the_longest": overlap_with_longest(lengths, problems, candidates, selected, options),
    }
    write(output, options.completions, sums, selected)
    definitions = {key: text for key, text in DEFINITIONS.items() if key in numbers}
    content = {"settings": vars(options), **numbers, "definitions": definitions}
    write_json(output.with_name(output.name + ".json"), content)
    for name, value in numbers.items():
        print(f"{name:35} {'-' if value is None else f'{value:.4g}' if isinstance(value, float) else value}")
    print(f"The responses are in {output}.")


DEFINITIONS = {
    "num_responses": "Responses in the file.",
    "num_candidates": "Correct responses, or all with --include_incorrect.",
    "num_selected": "Responses written.",
    "mean_high_entropy_sum_correct": "Mean sum of the entropies of the top tokens of correct responses, in nats.",
    "mean_high_entropy_sum_incorrect": "The same of incorrect responses.",
    "mean_high_entropy_sum_selected": "The same of the responses written.",
    "mean_length_candidates": "Mean number of tokens of the candidates.",
    "mean_length_selected": "Mean number of tokens of the responses written.",
    "pearson_with_length": "Pearson's correlation, over candidates, of the sum and the number of tokens.",
    "spearman_with_length": "The same of their ranks.",
    "also_among_the_longest": "Fraction of the responses written that choosing the longest would have written too.",
}


def overlap_with_longest(lengths, problems, candidates, selected, options) -> float | None:
    longest = select(lengths, problems, candidates, options)
    return len(selected & longest) / len(selected) if selected else None


def mean_of(values: list, rows) -> float | None:
    return float(np.mean([values[row] for row in rows])) if rows else None


def or_none(value: float) -> float | None:
    return None if isnan(value) else value


def write(output: Path, completions: str, sums: list[float], selected: set[int]) -> None:
    with replacing(output) as unfinished, open(unfinished, "w") as file:
        for number, row in enumerate(read_lines(completions)):
            if number in selected:
                file.write(json.dumps({**row, "high_entropy_sum": sums[number]}) + "\n")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))


if __name__ == "__main__":
    main()
