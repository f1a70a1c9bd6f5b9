"""What a reward function has returned, checked: one number or `None` per completion."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from .._errors import StatedError


class RewardError(StatedError):
    """A reward function has failed, or has returned what cannot be trained with."""


def returned_rewards(name: str, returned: Any, count: int, what: str = "completion") -> list[float | None]:
    """
    The rewards that a function has returned, as numbers.

    Args:
        name (`str`): Name of the function, for errors.
        returned (`Any`): What it has returned.
        count (`int`): How many rewards there must be.
        what (`str`, *optional*, defaults to `"completion"`): What each is of.

    Returns:
        `list[float | None]`: of length `count`.

    Raises:
        [`RewardError`]: for anything but one number or `None` each.
    """
    rule = f"The reward function {name!r} must return a list of {count}, one float or None per {what}, and returned"
    if returned is None:
        raise RewardError(f"{rule} nothing. Does it end without a return?")
    # A text is a sequence of texts, a mapping one of its keys, and a set has no order.
    ordered = isinstance(returned, Iterable) and not isinstance(returned, (str, bytes, Mapping, Set))
    try:
        values = list(returned) if ordered else None
    except TypeError:  # a tensor that is a single number
        values = None
    if values is None:
        if hasattr(returned, "close") and hasattr(returned, "send"):  # a coroutine, which Python warns of otherwise
            returned.close()
        raise RewardError(f"{rule} {_described(returned)}.")
    if len(values) != count:
        raise RewardError(f"{rule} a list of {len(values)}.")
    rewards = []
    for number, value in enumerate(values):
        try:
            if isinstance(value, (str, bytes)):  # text that is a number is a mistake as well
                raise TypeError
            rewards.append(None if value is None else float(value))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise RewardError(f"{rule} {_described(value)} for {what} {number} (counted from 0).") from None
    return rewards


def _described(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else f'{text[:57]}...'}, of type {type(value).__name__},"
