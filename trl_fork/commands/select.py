r"""
Select training responses by their High-Entropy Sum (HES): the sum of the entropies of the top 0.5 % tokens of each.

    trl-fork select --model Qwen/Qwen3-0.6B --completions completions.jsonl --output selected.jsonl \
        --fraction 0.2
    trl-fork select --model Qwen/Qwen3-0.6B --completions completions.jsonl --output selected.jsonl \
        --num_selected 2 --pool problem
    trl-fork select --model Qwen/Qwen3-0.6B --completions completions.jsonl --output random.jsonl \
        --fraction 0.2 --order random

"Unified Data Selection for LLM Reasoning" (arXiv 2605.22389): among correct responses, those of high HES train better.
Wrong responses have a higher HES than correct ones and are left out unless you ask for them. HES grows with length;
the output says how much of it is length. Its controls are --order random, --order longest and --match_length.

OUTPUT receives the lines of the file that were selected, as they are, in their order. Each gets its score, in a field
of the score's name, whatever the order; one of that name is replaced. OUTPUT.json holds the numbers that are printed.
Scores are kept beside COMPLETIONS: a run that was killed continues, and a further selection of that file scores
nothing.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from .._files import replacing, write_json
from ..analysis import data_selection
from ..analysis.responses import Response, read_lines, read_responses
from ..analysis.score_store import ScoreStore
from ..analysis.selection_summary import definitions, summarize
from ..data.prompt_file import find_prompt
from ..generation.engines import load_tokenizer
from .select_options import parse_select


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    return parse_select(arguments, __doc__)


def score(options: argparse.Namespace) -> tuple[list[float], list[int], list[str], list[bool | None]]:
    """Score, length, problem and correctness of every response."""
    tokenizer = load_tokenizer(options.model)
    found = find_prompt(options.model)
    kwargs = found[0].get("chat_template_kwargs") if found else None

    def read():
        return read_responses(options.completions, tokenizer, chat_template_kwargs=kwargs)

    scores, lengths, problems, correct = [], [], [], []
    how = {"top_tokens": options.top_tokens, "entropy_threshold": options.entropy_threshold}
    for response, entropies in with_entropies(read, options):
        scores.append(data_selection.response_score(entropies, options.score, **how))
        lengths.append(len(entropies))
        problems.append(response.problem)
        correct.append(response.correct)
    return scores, lengths, problems, correct


def with_entropies(read, options: argparse.Namespace) -> Iterator[tuple[Response, np.ndarray]]:
    """The responses of `read()` with the entropies of their tokens, or zeros where only their number is asked for."""
    if options.score == "length":
        yield from ((response, np.zeros(len(response.completion_ids))) for response in read())
        return
    folder = Path(options.scores_dir or f"{options.completions}.scores")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder of the scores, {folder}, cannot be made ({error.strerror}): give another as --scores_dir."
        ) from error
    store = ScoreStore(folder, options.model, temperature=options.temperature, dtype=options.dtype)

    def load_model() -> torch.nn.Module:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype, device_map=options.device_map)
        return (model if options.device_map else model.to(PartialState().device)).eval()

    with tqdm(desc="scores", unit=" tokens", unit_scale=True) as progress:
        store.score(read(), load_model, max_batch_tokens=options.max_batch_tokens, progress=progress)
    yield from ((response, scores.entropies) for response, scores in store.read(read()))


def run(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if output.resolve() == Path(options.completions).resolve():
        raise ValueError(f"--output and --completions are the same file, {output}: it would be overwritten.")
    if not options.include_incorrect and all(row.get("correct") is None for row in read_lines(options.completions)):
        raise ValueError(
            f"{options.completions} does not say which responses are right (no field 'correct'), and only right ones "
            "are selected: wrong ones have more entropy. Grade them with trl-fork evaluate, or pass "
            "--include_incorrect if all are right."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    scores, lengths, problems, correct = score(options)
    candidates = [row for row, value in enumerate(correct) if options.include_incorrect or value]
    keys = data_selection.sort_keys(options.order, scores, lengths, seed=options.seed)
    sizes = {"fraction": options.fraction, "num_selected": options.num_selected}
    names = problems if options.pool == "problem" else [""] * len(problems)
    pools = data_selection.make_strata(names, lengths, candidates, **sizes)
    strata = pools
    if options.match_length:
        check_matching(pools)
        strata = data_selection.make_strata(names, lengths, candidates, match_length=True, **sizes)

    numbers = summarize(
        options.score, scores, lengths, correct, strata, pools, keys, match_length=options.match_length
    )
    meanings = definitions(
        options.score,
        top_tokens=options.top_tokens,
        entropy_threshold=options.entropy_threshold,
        match_length=options.match_length,
    )
    write(output, options, scores, data_selection.select_responses(strata, keys))
    write_json(
        output.with_name(output.name + ".json"), {"settings": vars(options), **numbers, "definitions": meanings}
    )
    for name, value in numbers.items():
        print(f"{name:35} {'-' if value is None else f'{value:.4g}' if isinstance(value, float) else value}")
    print(f"The responses are in {output}.")


def check_matching(pools: list[data_selection.Stratum]) -> None:
    """Lengths can be matched if any pool gives several responses, or all that it has."""
    unmatched = data_selection.num_unmatched(pools)
    if unmatched and unmatched == sum(pool.count < len(pool.rows) for pool in pools):
        raise ValueError(
            f"--match_length: none of the {len(pools)} pools gives more than a single response, which has no "
            "distribution of lengths. Raise --fraction or --num_selected, or pass --pool global."
        )


def write(output: Path, options: argparse.Namespace, scores: list[float], selected: set[int]) -> None:
    with replacing(output) as unfinished, open(unfinished, "w") as file:
        for number, row in enumerate(read_lines(options.completions)):
            if number in selected:
                file.write(json.dumps({**row, options.score: scores[number]}) + "\n")


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))


if __name__ == "__main__":
    main()
