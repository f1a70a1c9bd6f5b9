"""Tokens of a completion whose text a pattern matches."""

import re
from bisect import bisect_left
from collections.abc import Callable


def tokens_matching(ids: list[int], decode: Callable[[list[int]], str], pattern: str | re.Pattern) -> list[bool]:
    """
    Mark the tokens that hold any character of a match.

    Boundaries are found by decoding beginnings of the completion, about fifteen for each end of a match. Tokenizing
    the text again could give other tokens.

    Args:
        ids (`list[int]`):
            Token ids of one completion.
        decode (`Callable`):
            Function from token ids to text, such as a tokenizer's `decode`.
        pattern (`str` or `re.Pattern`):
            Pattern to look for; every match counts.

    Returns:
        `list[bool]`: one per token.
    """
    marked, text = [False] * len(ids), decode(ids)
    counts = range(len(ids) + 1)
    for match in re.finditer(pattern, text):
        start, end = match.span()
        if end > start:
            # From the first token that adds to the text before the match, to the one that completes the match. If some
            # bytes of a character are missing, a decoder already writes one character in its place.
            first = bisect_left(counts, True, key=lambda k: len(decode(ids[:k])) > start) - 1
            last = bisect_left(counts, True, key=lambda k: decode(ids[:k])[:end] == text[:end])
            marked[first:last] = [True] * (last - first)
    return marked
