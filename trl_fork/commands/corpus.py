"""The analyses of the paper over a corpus of responses, from the models' scores of every token."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..analysis import statistics
from ..analysis.responses import Response, prompt_of, read_responses
from ..analysis.score_store import ScoreStore
from ..analysis.tokens import Example, TokenContexts, TokenStatistics
from ..generation.engines import has_tokenizer, load_tokenizer


FRACTION = 0.2  # rho
NUM_LISTED = 100  # token types at either end, as in the paper


@dataclass
class Corpus:
    """All responses, without their tokens, which are read again when they are needed."""

    read: Callable[[], Iterator[Response]]
    lengths: np.ndarray
    correct: list[bool | None]
    rewards: Sequence[float | None]  # `reward` if every response has a number there, or else 1 for a correct one
    problems: list[int]  # number of each response's problem
    num_problems: int
    num_other_length: int | None  # responses whose text gives another number of tokens than the file states
    vocab_size: int

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


def load_corpus(
    path: str | Path, tokenizer, max_responses: int | None, chat_template_kwargs: dict | None = None
) -> Corpus:
    def read():
        return read_responses(path, tokenizer, limit=max_responses, chat_template_kwargs=chat_template_kwargs)

    lengths, correct, rewards, stated, largest_id = [], [], [], [], len(tokenizer) - 1
    numbers: dict[str, int] = {}
    problems = []
    has_conversations = False
    for response in tqdm(read(), desc="responses", unit=" responses"):
        lengths.append(len(response.completion_ids))
        correct.append(response.correct)
        rewards.append(_reward_of(response.row))
        problems.append(numbers.setdefault(response.problem, len(numbers)))
        has_conversations |= isinstance(prompt_of(response.row), list)
        if "length" in response.row:
            stated.append(response.row["length"] == lengths[-1])
        largest_id = max(largest_id, *response.completion_ids, 0)
    if not sum(lengths):
        raise ValueError(f"{path} has no completion tokens to analyse ({len(lengths)} responses).")
    if has_conversations and chat_template_kwargs:
        print(f"Prompts that are conversations are read with chat_template_kwargs {chat_template_kwargs}.")
    num_other_length = stated.count(False) if stated else None
    if None in rewards:
        rewards = correct
    return Corpus(read, np.array(lengths), correct, rewards, problems, len(numbers), num_other_length, largest_id + 1)


def _reward_of(row: dict) -> float | None:
    reward = row.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not math.isfinite(reward):
        return None
    return float(reward)


def check_same_tokens(name: str, tokenizer) -> None:
    """Refuse a model with another vocabulary: entropies can be compared only over the same tokens."""
    # A checkpoint without a tokenizer has its model's.
    if has_tokenizer(name) and load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{name!r} has another vocabulary than the model: its tokens cannot be compared.")


def short_names(models: list[str]) -> dict[str, str]:
    """The shortest ends of the names that tell the models apart."""
    for length in range(1, max(len(Path(model).parts) for model in models)):
        names = {model: "/".join(Path(model).parts[-length:]) for model in models}
        if len(set(names.values())) == len(models):
            return names
    return {model: model for model in models}


def analyse_tokens(store: ScoreStore, corpus: Corpus, tokenizer, min_count: int) -> dict:
    """Analysis B, in two passes: the second looks only for the types that are listed."""
    statistics = TokenStatistics(corpus.vocab_size)
    for response, scores in store.read(corpus.read()):
        statistics.add(response.completion_ids, scores.entropies)
    ranked = statistics.ranked(min_count)
    listed = {"top": ranked[:NUM_LISTED], "bottom": ranked[::-1][:NUM_LISTED]}
    contexts = TokenContexts({token_id for ids in listed.values() for token_id in ids})
    for response, scores in store.read(corpus.read()):
        contexts.add(response.completion_ids, scores.entropies, scores.top_ids, scores.top_probs)

    def text_of(ids: list[int]) -> str:
        return tokenizer.decode(ids)

    def example_of(example: Example) -> dict:
        return {**vars(example), "before": text_of(example.before), "after": text_of(example.after)}

    def entry(token_id: int) -> dict:
        return {
            "token": text_of([token_id]),
            "mean_entropy": statistics.mean(token_id),
            "count": int(statistics.counts[token_id]),
            "token_id": token_id,
            "followed_by": [
                {"token": text_of([other]), "count": count}
                for other, count in contexts.followers[token_id].most_common(5)
            ],
            "alternatives": [
                {"token": text_of([other]), "mean_probability": probability}
                for other, probability in contexts.alternatives(token_id)
            ],
            "examples": [example_of(example) for example in contexts.examples[token_id]],
        }

    return {
        "min_count": min_count,
        "num_types": len(ranked),
        **{name: [entry(token_id) for token_id in ids] for name, ids in listed.items()},
    }


def compare_models(models: list[str], stores: dict[str, ScoreStore], corpus: Corpus, wanted: list[str]) -> dict:
    """Analyses D, E and F; no more than three models' entropies at a time. `models` from reference to model."""
    names = short_names(models)
    first, last = (stores[model].entropies(corpus.read()) for model in (models[0], models[-1]))
    overlaps, changes, traces = [], [], []
    chance = 0.0
    for model in models:
        entropies = {models[0]: first, models[-1]: last}.get(model)
        if entropies is None:
            entropies = stores[model].entropies(corpus.read())
        if "overlap" in wanted:
            shares = {
                key: statistics.overlap(other, entropies, corpus.lengths, FRACTION)
                for key, other in (("with_reference", first), ("with_model", last))
            }
            chance = shares["with_model"].pop("expected_by_chance")
            shares["with_reference"].pop("expected_by_chance")
            overlaps.append({"model": names[model], **shares})
        if "change" in wanted:
            traces.append({"model": names[model], "values": statistics.percentile_trace(entropies)})
            if model != models[0]:
                changes.append({"model": names[model], "bins": statistics.change_by_percentile(first, entropies)})
    summary = {}
    if overlaps:
        summary["overlap"] = {"fraction": FRACTION, "expected_by_chance": chance, "models": overlaps}
    if traces:
        summary["change"] = {"reference": names[models[0]], "models": changes}
        summary["percentiles"] = {"levels": list(statistics.TRACE_LEVELS), "models": traces}
    return summary


def analyse_positions(entropies: np.ndarray, corpus: Corpus) -> dict:
    selected = statistics.select_of_set(entropies, FRACTION)
    lengths = corpus.lengths
    position = {"all": statistics.position_profile(entropies, lengths, selected)}
    summary = {
        "position": position,
        "length": statistics.length_summary(entropies, lengths),
        "scope": statistics.scope_summary(entropies, lengths, FRACTION),
    }
    if any(value is not None for value in corpus.correct):
        summary["correctness"] = statistics.correctness_summary(entropies, lengths, selected, corpus.correct)
        for name, wanted in (("correct", True), ("incorrect", False)):
            rows = np.array([value is wanted for value in corpus.correct])
            tokens = np.repeat(rows, lengths)
            position[name] = statistics.position_profile(entropies[tokens], lengths[rows], selected[tokens])
    return summary


def without_nan(value):
    """Replace NaN by null, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
