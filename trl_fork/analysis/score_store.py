"""Scores on disk, shard by shard: a killed run continues, and no checkpoint is scored twice."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .._files import replacing
from .responses import Response
from .scoring import TokenScores, score_completions


# Responses of one file: the most that a killed run loses, and the number sorted by length at a time.
SHARD_SIZE = 64
_LOOP_COLUMNS = ("loop_entropies", "exit_probs")
_COLUMNS = ("entropies", "log_probs", "top_ids", "top_probs", *_LOOP_COLUMNS)


class ScoreStore:
    """
    Scores of one model under one directory, in files of `SHARD_SIZE` responses.

    Other weights or settings have another directory. A shard whose responses have changed is scored again.

    Args:
        root (`str` or `Path`): Directory of the scores of all models.
        model (`str`): Hub name or local directory of a model.
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of the distributions.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the weights.
    """

    def __init__(self, root: str | Path, model: str, *, temperature: float = 1.0, dtype: str = "auto"):
        self.temperature = temperature
        settings = json.dumps([model_identity(model), float(temperature), dtype])
        name = re.sub(r"[^A-Za-z0-9.]+", "-", "/".join(Path(model).parts[-2:])).strip("-")
        self.directory = Path(root) / f"{name}-{hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()}"

    def score(
        self,
        responses: Iterable[Response],
        load_model: Callable[[], torch.nn.Module],
        *,
        num_alternatives: int = 0,
        top_k: int = 5,
        max_batch_tokens: int = 16384,
        progress: tqdm | None = None,
        rank: int = 0,
        num_processes: int = 1,
        loops: bool = False,
    ) -> None:
        """
        Score all responses that are not scored yet.

        Args:
            responses (`Iterable[Response]`):
                Responses, in the same order at every call.
            load_model (`Callable`):
                Returns the model in evaluation mode. It is not called if there is nothing to do.
            num_alternatives (`int`, *optional*, defaults to `0`):
                Number of responses, from the first on, whose most likely tokens are kept; rounded up to shards.
            top_k (`int`, *optional*, defaults to `5`):
                Number of most likely tokens.
            max_batch_tokens (`int`, *optional*, defaults to `16384`):
                Argument of [`~analysis.scoring.score_completions`].
            progress (`tqdm`, *optional*):
                Bar over completion tokens.
            rank, num_processes (`int`, *optional*):
                Number of this process, and of all of them, which share the shards. They must wait for each other
                before one reads.
            loops (`bool`, *optional*, defaults to `False`):
                Argument of [`~analysis.scoring.score_completions`]: score every loop of a looped model.
        """
        model = None
        for index, shard in enumerate(_shards(responses)):
            if index % num_processes != rank:
                continue
            k = top_k if index * SHARD_SIZE < num_alternatives else 0
            digest = _digest(shard)
            if self._holds(index, digest, k, loops):
                if progress is not None:
                    progress.update(sum(len(response.completion_ids) for response in shard))
                continue
            model = model or load_model()
            scores = score_completions(
                model,
                [(response.prompt_ids, response.completion_ids) for response in shard],
                temperature=self.temperature,
                top_k=k,
                max_batch_tokens=max_batch_tokens,
                progress=progress,
                loops=loops,
            )
            self._save(index, digest, scores)

    def read(self, responses: Iterable[Response]) -> Iterator[tuple[Response, TokenScores]]:
        """
        Read the scores back, one response at a time.

        Raises:
            `ValueError`: if a response has not been scored, or another was scored in its place.
        """
        for index, shard in enumerate(_shards(responses)):
            if not self._holds(index, _digest(shard), 0):
                raise ValueError(f"{self._path(index)} is missing, or holds other responses: score them first.")
            with np.load(self._path(index)) as data:
                cuts = np.cumsum(data["lengths"])[:-1]
                columns = {name: np.split(data[name], cuts) for name in _COLUMNS if name in data}
            for response, *columns_of_row in zip(shard, *columns.values(), strict=True):
                yield response, TokenScores(**dict(zip(columns, columns_of_row, strict=True)))

    def entropies(self, responses: Iterable[Response]) -> np.ndarray:
        """Entropies of all tokens, one response after the other: float32, 4 MB per million tokens."""
        parts = [scores.entropies for _, scores in self.read(responses)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def _path(self, index: int) -> Path:
        return self.directory / f"scores-{index:06d}.npz"

    def _holds(self, index: int, digest: str, top_k: int, loops: bool = False) -> bool:
        if not self._path(index).exists():
            return False
        with np.load(self._path(index)) as data:
            if loops and not all(name in data for name in _LOOP_COLUMNS):
                return False
            return str(data["digest"]) == digest and data["top_ids"].shape[1] >= top_k

    def _save(self, index: int, digest: str, scores: list[TokenScores]) -> None:
        with replacing(self._path(index)) as unfinished, open(unfinished, "wb") as file:
            arrays: dict = {
                name: np.concatenate([getattr(row, name) for row in scores])
                for name in _COLUMNS
                if getattr(scores[0], name) is not None
            }
            lengths = np.array([len(row.entropies) for row in scores])
            np.savez(file, digest=digest, lengths=lengths, **arrays)


def model_identity(model: str) -> list:
    """Identity of a model without reading its weights: a Hub name, or sizes and times of local files."""
    path = Path(model)
    if not path.is_dir():
        return [model]
    files = sorted(file for pattern in ("*.safetensors", "*.bin", "*config.json") for file in path.glob(pattern))
    return [str(path.resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]


def _shards(responses: Iterable[Response]) -> Iterator[list[Response]]:
    responses = iter(responses)
    while shard := list(islice(responses, SHARD_SIZE)):
        yield shard


def _digest(shard: list[Response]) -> str:
    ids = json.dumps([[response.prompt_ids, response.completion_ids] for response in shard])
    return hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()
