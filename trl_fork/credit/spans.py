"""Tokens of a completion whose text a pattern matches."""

import re
from bisect import bisect_left
from collections.abc import Callable
from functools import cache


Decode = Callable[[list[int]], str]
REPLACEMENT = "\ufffd"  # stands for bytes that make no character


class Boundaries:
    """
    Characters of a completion by its tokens, found by decoding beginnings of it.

    For a character near the end, where answers are, these are about three: the few tokens that follow are decoded for
    an estimate, which is then checked. Tokenizing the text again could give other tokens. While some bytes of a
    character are missing, a decoder writes one replacement character or several, even for whole characters before it,
    so lengths of decoded beginnings say little; where such a beginning departs from the text does not depend on it.

    Args:
        ids (`list[int]`): Token ids.
        decode (`Callable`): Function from token ids to text, such as a tokenizer's `decode`.
    """

    def __init__(self, ids: list[int], decode: Decode):
        self.ids, self.text = ids, decode(ids)
        self._decoded = cache(lambda count: decode(ids[:count]))
        self._end_length = cache(lambda count: len(decode(ids[len(ids) - count :])))

    def _settled(self, count: int) -> int:
        """Characters of the text that the first `count` tokens give; it does not fall with `count`."""
        if self.text.startswith(self._decoded(count)):
            return len(self._decoded(count))
        # To a decoder of single bytes the first ones of a character make those before them unreadable: at most three.
        return max(map(self._agreed, range(max(count - 3, 0), count + 1)))

    def _agreed(self, count: int) -> int:
        """Characters with which both the text and what the first `count` tokens decode to begin."""
        decoded = self._decoded(count)
        agreed = len(decoded.rstrip(REPLACEMENT))
        while agreed and not self.text.startswith(decoded[:agreed]):
            agreed -= 1
        while decoded[agreed : agreed + 1] == self.text[agreed : agreed + 1] != "":
            agreed += 1
        return agreed

    def before(self, character: int) -> int:
        """Number of tokens before the first one that holds a part of a character of the text."""
        count = self._first(character, lambda k: self._settled(k) > character) - 1
        # That token completes the character; others before it may hold the first bytes.
        while count and self._settled(count) == character < len(self._decoded(count)):
            count -= 1
        return count

    def through(self, character: int) -> int:
        """Number of tokens up to the one that completes the text before a character."""
        return self._first(character, lambda k: self._settled(k) >= character)

    def _first(self, character: int, holds: Callable[[int], bool]) -> int:
        """The smallest number of tokens for which `holds`. It then holds for every larger one, all tokens included."""
        low, high, step = 0, len(self.ids), 1
        if character > len(self.text) / 2:  # for one in the first half, bisection takes few tokens
            low = high = self._estimate(character)
            if holds(high):
                while high and holds(low := max(high - step, 0)):
                    high, step = low, 2 * step
            else:
                while not holds(high := min(low + step, len(self.ids))):
                    low, step = high, 2 * step
        return bisect_left(range(high), True, lo=low, key=holds)

    def _estimate(self, character: int) -> int:
        """Number of tokens before a character if those from it on decoded to the same text alone."""
        following = len(self.text) - character
        bound = 1
        while bound < len(self.ids) and self._end_length(bound) < following:
            bound = min(2 * bound, len(self.ids))
        return len(self.ids) - bisect_left(
            range(bound), True, lo=bound // 2, key=lambda k: self._end_length(k) >= following
        )


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
