"""Tokens that gained or lost entropy from one run to another: from scores that are there, or made now."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from ..analysis.responses import read_responses
from ..analysis.score_store import ScoreStore
from ..analysis.token_change import read_change
from ..data.prompt_file import find_prompt
from ..generation.engines import auto_model_class, load_tokenizer
from ..report.runs import Run
from .corpus import check_same_tokens


def has_model(run: Run) -> bool:
    """Whether the folder holds a model or an adapter."""
    return any((run.path / name).is_file() for name in ("config.json", "adapter_config.json"))


def token_changes(runs: list[Run], output: Path, options: argparse.Namespace) -> list[dict]:
    """
    The change of entropy by token type from the first run to each other one, on the same text.

    The text is `options.completions`, which the models read now unless an analysis of theirs holds their scores.
    Without it, an analysis that has both models is looked for, and nothing is read anew.

    Raises:
        `ValueError`: if `options.completions` is given, and a run has no model or one of another vocabulary.
    """
    first, others = runs[0], runs[1:]
    if options.completions:
        for run in runs:
            if not has_model(run):
                raise ValueError(
                    f"--completions is read by the models of all runs, and {str(run.path)!r} holds none (no "
                    "config.json and no adapter_config.json): leave it out, or give runs that have saved their model."
                )
        text = _Text(Path(options.completions), first, options.max_responses)
        for run in others:
            check_same_tokens(str(run.path), text.tokenizer)
        roots = [output / "scores", *(folder / "scores" for run in runs for folder, _ in _analyses(run))]
        stores = [_scored(run, text.read, roots, options) for run in runs]
        return [
            {**_row(text, read_change(stores[0], store, text.read, options.min_token_count)), "run": number}
            for number, store in enumerate(stores[1:], start=1)
        ]
    rows = []
    for number, run in enumerate(others, start=1):
        found = _stored(first, run, options)
        if found is not None:
            rows.append({**found, "run": number})
    return rows


class _Text:
    """Responses that both models read, as the first one's tokens."""

    def __init__(self, path: Path, first: Run, limit: int | None):
        self.path = path
        self.tokenizer = load_tokenizer(str(first.path))
        trained = find_prompt(first.path)
        kwargs = trained[0].get("chat_template_kwargs") if trained else None
        self.read: Callable = lambda: read_responses(path, self.tokenizer, limit=limit, chat_template_kwargs=kwargs)


def _row(text: _Text, change: dict) -> dict:
    if not change["num_tokens"]:
        raise ValueError(f"{text.path} has no completion tokens to compare: give a file of responses.")
    for entry in change["types"]:
        entry["token"] = text.tokenizer.decode([entry["token_id"]])
    return {"completions": str(text.path), **change}


def _scored(run: Run, read: Callable, roots: list[Path], options: argparse.Namespace) -> ScoreStore:
    """Scores of a run's model, in the first of the folders that has some of it, or else in the first."""
    name = str(run.path)
    how = {"temperature": options.temperature, "dtype": options.dtype}
    stores = [ScoreStore(root, name, **how) for root in roots]
    store = next((store for store in stores if store.directory.is_dir()), stores[0])

    def load_model() -> torch.nn.Module:
        model = auto_model_class(name).from_pretrained(name, dtype=options.dtype, device_map=options.device_map)
        return (model if options.device_map else model.to(PartialState().device)).eval()

    with tqdm(desc=f"scores of {name}", unit=" tokens", unit_scale=True) as progress:
        store.score(read(), load_model, max_batch_tokens=options.max_batch_tokens, progress=progress)
    return store


def _stored(first: Run, other: Run, options: argparse.Namespace) -> dict | None:
    """The change from the scores of an analysis in one of the two folders that has read the text with both models."""
    for folder, summary in (*_analyses(first), *_analyses(other)):
        path = Path(str(summary["completions"]))
        temperature = summary["responses"].get("temperature", 1.0)
        stores = [
            ScoreStore(folder / "scores", str(run.path), temperature=temperature, dtype=options.dtype)
            for run in (first, other)
        ]
        if path.is_file() and all(store.directory.is_dir() for store in stores):
            try:
                text = _Text(path, first, summary["responses"]["num_responses"])
                return _row(text, read_change(stores[0], stores[1], text.read, options.min_token_count))
            except ValueError as error:  # the file has changed since, or the analysis was cut off
                other.notes.append(f"The scores in {folder} are not used: {error}")
    return None


def _analyses(run: Run) -> list[tuple[Path, dict]]:
    """Folders of `trl-fork analyze` in the folder of a run, with their summaries."""
    found = []
    for path in sorted(run.path.glob("*/summary.json")):
        try:
            summary = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(summary, dict) and isinstance(summary.get("responses"), dict) and "completions" in summary:
            found.append((path.parent, summary))
    return found
