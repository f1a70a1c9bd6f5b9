"""Analysis B: mean entropy per token type, and the places where a type was sampled (paper, Fig. 2b and 2c)."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


class TokenStatistics:
    """
    Mean entropy of each token type, in arrays of the size of the vocabulary.

    Args:
        vocab_size (`int`): Number of token ids.
    """

    def __init__(self, vocab_size: int):
        self.sums = np.zeros(vocab_size)
        self.counts = np.zeros(vocab_size, dtype=np.int64)

    def add(self, token_ids: list[int] | np.ndarray, entropies: np.ndarray) -> None:
        """Count tokens with the entropies of the distributions they were sampled from."""
        token_ids = np.asarray(token_ids, dtype=np.int64)
        np.add.at(self.sums, token_ids, entropies.astype(np.float64))
        np.add.at(self.counts, token_ids, 1)

    def ranked(self, min_count: int) -> list[int]:
        """Ids of the types seen more often than `min_count`, by falling mean entropy; ties to the smaller id."""
        ids = np.flatnonzero(self.counts > min_count)
        return ids[np.argsort(-self.sums[ids] / self.counts[ids], kind="stable")].tolist()

    def mean(self, token_id: int) -> float:
        """Mean entropy of a type, in nats."""
        return float(self.sums[token_id] / self.counts[token_id])


@dataclass
class Example:
    """
    One place where a token was sampled.

    Args:
        response (`int`): Number of the response, from 0.
        position (`int`): Number of the token in it, from 0.
        entropy (`float`): Entropy of the distribution it was sampled from, in nats.
        before (`list[int]`): Token ids before it, of the response only.
        after (`list[int]`): Token ids after it.
    """

    response: int
    position: int
    entropy: float
    before: list[int]
    after: list[int]


class TokenContexts:
    """
    Places where given token types were sampled: examples in context, next tokens and alternatives.

    Args:
        token_ids (`Iterable[int]`): The types.
        num_examples (`int`, *optional*, defaults to `3`): Examples of each, drawn uniformly.
        width (`int`, *optional*, defaults to `12`): Tokens of context on either side.
        seed (`int`, *optional*, defaults to `0`): Seed of the draw.
    """

    def __init__(self, token_ids: Iterable[int], num_examples: int = 3, width: int = 12, seed: int = 0):
        self.num_examples, self.width = num_examples, width
        self.examples: dict[int, list[Example]] = {token_id: [] for token_id in token_ids}
        self.followers: dict[int, Counter] = {token_id: Counter() for token_id in self.examples}
        self._mass: dict[int, Counter] = {token_id: Counter() for token_id in self.examples}
        self._num_scored: Counter = Counter()  # positions whose alternatives are known
        self._seen: Counter = Counter()
        self._random = random.Random(seed)
        self._wanted = np.array(sorted(self.examples), dtype=np.int64)
        self._num_responses = 0

    def add(self, token_ids: list[int], entropies: np.ndarray, top_ids: np.ndarray, top_probs: np.ndarray) -> None:
        """
        Add one response.

        Args:
            token_ids (`list[int]`): Its tokens.
            entropies (`np.ndarray` of shape `(length,)`): Their entropies.
            top_ids, top_probs (`np.ndarray` of shape `(length, k)`): Most likely tokens; `k` may be 0.
        """
        has_alternatives = top_ids.shape[1] > 0
        for position in np.flatnonzero(np.isin(np.asarray(token_ids, dtype=np.int64), self._wanted)).tolist():
            token_id = token_ids[position]
            if position + 1 < len(token_ids):
                self.followers[token_id][token_ids[position + 1]] += 1
            if has_alternatives:
                self._num_scored[token_id] += 1
                mass = self._mass[token_id]
                for other, probability in zip(top_ids[position].tolist(), top_probs[position].tolist(), strict=True):
                    mass[other] += probability
            place = self._place(token_id)
            if place is not None:
                self.examples[token_id][place : place + 1] = [
                    Example(
                        self._num_responses,
                        position,
                        float(entropies[position]),
                        token_ids[max(0, position - self.width) : position],
                        token_ids[position + 1 : position + 1 + self.width],
                    )
                ]
        self._num_responses += 1

    def alternatives(self, token_id: int, count: int = 5) -> list[tuple[int, float]]:
        """The most likely other tokens where this one was sampled, with their mean probability."""
        likely = self._mass[token_id].most_common(count + 1)
        scored = self._num_scored[token_id]
        return [(other, mass / scored) for other, mass in likely if other != token_id][:count]

    def _place(self, token_id: int) -> int | None:
        """Place of the next occurrence in the reservoir (Vitter, algorithm R)."""
        self._seen[token_id] += 1
        if self._seen[token_id] <= self.num_examples:
            return self._seen[token_id] - 1
        place = self._random.randrange(self._seen[token_id])
        return place if place < self.num_examples else None
