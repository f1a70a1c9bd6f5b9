r"""
The reward of a forecast: one minus the squared distance of the stated probability from its target.

The score is proper: a model that is paid 1 - (p - y)^2 for outcomes y earns most, on average, with p = P(y = 1). With
an empirical rate in the place of y the best p is the same and the reward has less noise (arXiv 2607.00164).
"""

import re
from collections.abc import Callable
from numbers import Real
from typing import Any


LOWEST, HIGHEST = 0.01, 0.99  # a stated probability is clipped to these before it is scored

# ASCII digits only. Every alternative starts with another character, so that a search takes linear time.
_NUMBER = re.compile(r"(?:[0-9]+(?:[.,][0-9]+)*|\.[0-9]+(?:[.,][0-9]+)*)(?:[eE][+-]?[0-9]+)?")
_PERCENT = re.compile(r"[ \t\xa0\u202f]{0,3}\\?(?:[%\uff05]|per ?cent\b)", re.IGNORECASE)
_CUE = re.compile(r"\b(?:probability|forecast|answer)\b[^\n:=0-9]{0,60}?(?:[:=]|\bis\b)", re.IGNORECASE)
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_ODDS = re.compile(r" (?:in|out of|to) [0-9]")
_MINUS, _DASHES = "-\N{MINUS SIGN}", "-\N{MINUS SIGN}\N{EN DASH}"


def read_probability(text: str) -> float | None:
    r"""
    The probability that a completion states. `None` if it states none.

    Only what follows the last `</think>` is read, if there is one. There the first of these that occurs decides, and
    no other is tried when it is not a probability:

    1. the last percentage (`73%`, `73 %`, `73\%`, `73 percent`), which must be in [0, 100];
    2. the first number after the last cue (`probability`, `forecast` or `answer`, with `:`, `=` or `is` behind it),
       which must be in [0, 1]: 73 without a percent sign is no probability;
    3. the last number in [0, 1].

    `150%` and `-5%` are no probabilities, nor are `nan`, `1e999` and digits of other scripts. The upper end of a
    range of percentages counts, as it is the last one (`60-70%`). Without a percent sign, numbers that belong to a
    fraction, odds, a score, a range, a clock time or a word (`1/2`, `1 in 4`, `3-1`, `0:45`, `Q1`) are left out.
    `1,000` is a thousand, and `0,7` has a decimal comma.

    Args:
        text (`str`): A completion.

    Returns:
        `float` or `None`: in [0, 1].

    Example:
        ```python
        >>> from trl_fork.rewards import read_probability
        >>> read_probability("<think>It was 40% before.</think> Probability: 73%"), read_probability("150%")
        (0.73, None)
        ```
    """
    text = text.rsplit("</think>", 1)[-1]
    numbers = list(_NUMBER.finditer(text))
    for match in reversed(numbers):
        if _PERCENT.match(text, match.end()):
            value = None if _is_joined(text, match, "/:") else _value(text, match)
            return value / 100 if value is not None and 0 <= value <= 100 else None
    cues = list(_CUE.finditer(text))
    candidates = [m for m in numbers if m.start() >= cues[-1].end()][:1] if cues else reversed(numbers)
    for match in candidates:
        joined = _is_joined(text, match, "/:" + _DASHES) or _ODDS.match(text, match.end())
        value = None if joined or text[match.end() : match.end() + 1].isalnum() else _value(text, match)
        if value is not None and 0 <= value <= 1:
            return value
    return None


def _value(text: str, match: re.Match) -> float | None:
    """The number with its sign; `None` for the end of a word, or several points or commas."""
    start = match.start()
    before, earlier = text[max(start - 1, 0) : start], text[max(start - 2, 0) : max(start - 1, 0)]
    if before.isalnum() or (before and before in "_."):
        return None
    digits = match[0]
    if _THOUSANDS.fullmatch(digits):
        digits = digits.replace(",", "")
    elif digits.count(",") == 1 and "." not in digits:
        digits = digits.replace(",", ".")
    try:
        value = float(digits)
    except ValueError:
        return None
    # A dash after a letter, a digit, a bracket, a percent sign or another dash joins or separates.
    joins = earlier.isalnum() or (earlier and earlier in ")%" + _DASHES)
    is_sign = before and before in _MINUS and not joins
    return -value if is_sign else value


def _is_joined(text: str, match: re.Match, marks: str) -> bool:
    """Whether one of the marks stands between this number and another digit."""
    before, after = text[max(match.start() - 2, 0) : match.start()], text[match.end() : match.end() + 2]
    return (len(before) == 2 and before[0].isdigit() and before[1] in marks) or (
        len(after) == 2 and after[0] in marks and after[1].isdigit()
    )


def target_fault(value: Any) -> str | None:
    """What is wrong with a target of [`brier_reward`]; `None` if nothing is."""
    if isinstance(value, Real) and 0 <= value <= 1:  # type: ignore[operator]  # NaN fails the comparison
        return None
    return (
        f"{value!r} is no target of brier_reward, which is a number in [0, 1]: an outcome (0 or 1), a rate, or a "
        "mixture of the two. Leave rows without one out, and divide percentages by 100."
    )


def brier_reward(
    completions: list,
    target: list[float],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float]:
    """
    One minus the squared distance between the probability that a completion states and its target.

    The probability is read by [`~rewards.read_probability`] and clipped to [0.01, 0.99], so that a stated one earns
    between 0.0199 and 1. A completion without a probability earns 0.

    The target is the column `target` of the data: the realised outcome (0 or 1), an empirical rate such as that of
    [`~data.HierarchicalRates`], or `lambda * rate + (1 - lambda) * outcome`.

    Args:
        completions (`list[list[dict[str, str]]]` or `list[str]`):
            Completions, as messages or as plain text. Of several messages the last is read, if it is the model's.
        target (`list[float]`):
            Targets in [0, 1], one per completion.
        log_extra (`callable`, *optional*):
            Given by the trainer: logs the stated probability to the table of completions.
        log_metric (`callable`, *optional*):
            Given by the trainer: logs `forecast/stated`, the fraction of completions that state a probability.

    Returns:
        `list[float]`: one reward per completion, in [0, 1].

    Raises:
        `ValueError`: for a target that is not a number in [0, 1].

    Example:
        ```python
        >>> from trl_fork.rewards import brier_reward
        >>> brier_reward(["Probability: 80%", "Probability: 80%", "I cannot say."], target=[1, 0.3, 1])
        [0.96, 0.75, 0.0]
        ```
    """
    for number, value in enumerate(target):
        if fault := target_fault(value):
            raise ValueError(f"column 'target' (completion {number} of the batch): {fault}")
    stated = [read_probability(_last_text(completion)) for completion in completions]
    if log_extra is not None:
        log_extra("target", list(target))
        log_extra("probability", stated)
    if log_metric is not None and stated:
        log_metric("forecast/stated", sum(p is not None for p in stated) / len(stated))
    return [
        0.0 if p is None else 1.0 - (min(max(p, LOWEST), HIGHEST) - float(goal)) ** 2
        for p, goal in zip(stated, target, strict=True)
    ]


# The trainer asks these of the whole data set before the first step.
brier_reward.column_checks = {"target": target_fault}  # type: ignore[attr-defined]


def _last_text(completion) -> str:
    """What the model said last; empty if it ends with something else, such as the answer of a tool."""
    if isinstance(completion, str):
        return completion
    last = completion[-1] if completion else {}
    content = last.get("content") if last.get("role", "assistant") == "assistant" else None
    if isinstance(content, list):  # of parts: texts and images
        content = "".join(part.get("text") or "" for part in content)
    return content or ""
