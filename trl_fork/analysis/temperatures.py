"""Analysis C: accuracy when forking tokens have one decoding temperature and the others another (paper, Fig. 3)."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from .._files import write_text
from ..generation.completions import complete
from ..generation.fork_temperature import ForkTemperatureLogitsProcessor
from ..generation.stopping import StopAtText, cut_at_stop, split_stop, stop_token_ids
from ..rewards.functions import get_reward_function
from .responses import Response, read_lines


TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)  # the paper's


@dataclass
class PromptWithSolution:
    """A prompt in tokens, and the text of its solution."""

    name: str
    prompt_ids: list[int]
    solution: str


def problems_of(responses: Iterable[Response]) -> list[PromptWithSolution]:
    """
    Collect the different problems of a file of responses.

    Raises:
        `ValueError`: if a line has no `solution`, without which it cannot be graded.
    """
    problems: dict[str, PromptWithSolution] = {}
    for response in responses:
        if response.problem not in problems:
            if response.row.get("solution") is None:
                raise ValueError(
                    f"The temperature analysis grades answers, but problem {response.problem!r} has no field "
                    "'solution' in the file of completions."
                )
            problems[response.problem] = PromptWithSolution(
                response.problem, response.prompt_ids, str(response.row["solution"])
            )
    return list(problems.values())


def grid(temperatures: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs (forking, other): each varied with the other at 1."""
    return sorted({(t, 1.0) for t in temperatures} | {(1.0, t) for t in temperatures})


def decode_with_temperatures(
    load_model: Callable[[], torch.nn.Module],
    tokenizer,
    problems: list[PromptWithSolution],
    path: str | Path,
    *,
    threshold: float,
    temperatures: Sequence[float] = TEMPERATURES,
    num_samples: int = 16,
    max_new_tokens: int = 28672,
    batch_size: int = 32,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> dict:
    """
    Sample and grade every pair of temperatures. Responses are appended to a file, from which a killed run continues.

    Args:
        load_model (`Callable`): Returns the model in evaluation mode. It is not called if there is nothing to do.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        problems (`list[PromptWithSolution]`): The problems.
        path (`str` or `Path`): JSONL file for exactly this model, threshold, lengths, seed and stop.
        threshold (`float`): Entropy in nats above which a token is a forking token.
        temperatures (`Sequence[float]`, *optional*): Temperatures of either kind of token, with the other at
            1; the paper's by default.
        num_samples (`int`, *optional*, defaults to `16`): Responses per problem and pair.
        max_new_tokens (`int`, *optional*, defaults to `28672`): Limit of a response in tokens; the paper's.
        batch_size (`int`, *optional*, defaults to `32`): Responses at a time.
        seed (`int`, *optional*, defaults to `0`): Seed of the sampling.
        stop (`Sequence[str]`, *optional*): Texts that end a response, and are cut off.

    Returns:
        `dict`: see `definitions.DEFINITIONS["decoding_temperature"]`.
    """
    path = Path(path)
    rows = list(read_lines(path)) if path.exists() else []
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))  # without a half-written last line
    done = {_key(row) for row in rows}
    model = None
    pairs = grid(temperatures)
    tasks = [(problem, sample) for problem in problems for sample in range(num_samples)]
    with tqdm(total=len(pairs) * len(tasks), desc="decoding temperatures", unit=" responses") as progress:
        for pair in pairs:
            for start in range(0, len(tasks), batch_size):
                batch = tasks[start : start + batch_size]
                keys = [(*pair, problem.name, sample) for problem, sample in batch]
                if not all(key in done for key in keys):
                    model = model or load_model()
                    asked = [problem for problem, _ in batch]
                    seeds = [_seed(seed, key) for key in keys]  # so that a continued run gives the same responses
                    new = _sample_batch(model, tokenizer, asked, seeds, pair, threshold, max_new_tokens, stop)
                    new = [dict(zip(_KEYS, key, strict=True)) | row for key, row in zip(keys, new, strict=True)]
                    new = [row for row in new if _key(row) not in done]
                    with open(path, "a") as file:
                        file.writelines(json.dumps(row) + "\n" for row in new)
                    rows += new
                progress.update(len(batch))
    wanted = {(problem.name, sample) for problem, sample in tasks}
    rows = [row for row in rows if (row["problem"], row["sample"]) in wanted]
    return {
        "threshold": threshold,
        "num_samples": num_samples,
        "num_problems": len(problems),
        "cells": [_cell(pair, [row for row in rows if _key(row)[:2] == pair]) for pair in pairs],
    }


def _sample_batch(model, tokenizer, problems, seeds, pair, threshold, max_new_tokens, stop) -> list[dict]:
    stop, special_ids = split_stop(stop, tokenizer)
    ends = sorted({*stop_token_ids(model.generation_config, tokenizer), *special_ids})
    completions = complete(
        model,
        [problem.prompt_ids for problem in problems],
        seeds,
        GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
            eos_token_id=ends,
        ),
        logits_processor=[ForkTemperatureLogitsProcessor(threshold, *pair)],
        stopping_criteria=lambda prompt_length: [StopAtText(tokenizer, stop, prompt_length)] if stop else [],
    )
    texts = [cut_at_stop(text, stop) for text in tokenizer.batch_decode(completions, skip_special_tokens=True)]
    rewards = get_reward_function("accuracy_reward")(
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        solution=[problem.solution for problem in problems],
    )
    return [
        {"completion": text, "length": len(tokens), "correct": reward == 1.0}
        for text, tokens, reward in zip(texts, completions, rewards, strict=True)
    ]


_KEYS = ("forking_temperature", "other_temperature", "problem", "sample")


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in _KEYS)


def _seed(seed: int, key: tuple) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps([seed, key]).encode(), digest_size=4).digest())


def _cell(pair: tuple[float, float], rows: list[dict]) -> dict:
    by_problem: dict[str, list[bool]] = {}
    for row in rows:
        by_problem.setdefault(row["problem"], []).append(row["correct"])
    accuracies = [np.mean(values) for values in by_problem.values()]
    error = np.std(accuracies, ddof=1) / np.sqrt(len(accuracies)) if len(accuracies) > 1 else None
    return {
        "forking_temperature": pair[0],
        "other_temperature": pair[1],
        "accuracy": float(np.mean(accuracies)),
        "standard_error": None if error is None else float(error),
        "mean_length": float(np.mean([row["length"] for row in rows])),
    }
