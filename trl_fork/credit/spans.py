"""Tokens of a completion whose text a pattern matches."""

import re
from bisect import bisect_left
from collections.abc import Callable
from functools import cache


Decode = Callable[[list[int]], str]
REPLACEMENT = "\ufffd"  # stands for bytes that make no character


class Boundaries:
    """
    Characters of a completion by its tokens, found by decoding beginnings of it, about fifteen for each character.

    Tokenizing the text again could give other tokens. While some bytes of a character are missing, a decoder writes
    one replacement character or several, so lengths of decoded beginnings say little; where such a beginning departs
    from the text does not depend on it.

    Args:
        ids (`list[int]`): Token ids.
        decode (`Callable`): Function from token ids to text, such as a tokenizer's `decode`.
    """

    def __init__(self, ids: list[int], decode: Decode):
        self.ids, self.text = ids, decode(ids)
        self._decoded = cache(lambda count: decode(ids[:count]))
        self._counts = range(len(ids) + 1)

    def _settled(self, count: int) -> int:
        """Characters of the text that the first `count` tokens give as they stay."""
        decoded = self._decoded(count)
        settled = len(decoded.rstrip(REPLACEMENT)) if not self.text.startswith(decoded) else len(decoded)
        while settled and not self.text.startswith(decoded[:settled]):
            settled -= 1
        while decoded[settled : settled + 1] == self.text[settled : settled + 1] != "":
            settled += 1
        return settled

    def before(self, character: int) -> int:
        """Number of tokens before the first one that holds a part of a character of the text."""
        count = bisect_left(self._counts, True, key=lambda k: self._settled(k) > character) - 1
        # That token completes the character; others before it may hold the first bytes.
        while count and self._settled(count) == character < len(self._decoded(count)):
            count -= 1
        return count

    def through(self, character: int) -> int:
        """Number of tokens up to the one that completes the text before a character."""
        return bisect_left(self._counts, True, key=lambda k: self._settled(k) >= character)


def tokens_matching(ids: list[int], decode: Decode, pattern: str | re.Pattern) -> list[bool]:
    """
    Mark the tokens that hold any character of a match.

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
    marked, boundaries = [False] * len(ids), Boundaries(ids, decode)
    for match in re.finditer(pattern, boundaries.text):
        if match[0]:
            first, last = boundaries.before(match.start()), boundaries.through(match.end())
            marked[first:last] = [True] * (last - first)
    return marked


def last_match(ids: list[int], valid: list[bool], decode: Decode, pattern: str | re.Pattern) -> int | None:
    """
    Place of the first token of the last match that begins in a valid token; `None` without one.

    Args:
        ids (`list[int]`): Token ids of one completion.
        valid (`list[bool]`): Which of them the model has written.
        decode (`Callable`): Function from token ids to text, such as a tokenizer's `decode`.
        pattern (`str` or `re.Pattern`): Pattern to look for. Empty matches do not count.
    """
    boundaries = Boundaries(ids, decode)
    for match in reversed(list(re.finditer(pattern, boundaries.text))):
        if match[0]:
            first = boundaries.before(match.start())
            if valid[first]:
                return first
    return None
