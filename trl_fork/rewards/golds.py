r"""
Gold answers: the text that math-verify reads as the answer that a data set means.

math-verify reads text between dollars as a formula. Without dollars it takes a number out of the text: 9 out of
`9 (apples)`, which is right, and 11 out of `11\sqrt{2}`, which is wrong. So a formula gets dollars, and nothing else.
Nothing is imported but `re`: the grading worker uses this module.
"""

import re

from .latex_text import LONGEST, percentage, readable_latex, readable_parts, unicode_to_latex
from .quantities import COMMAND, DOLLARS, LETTERS, NAMES, PLAIN_VALUE, TEXT_COMMAND, mark_unit, split_quantity


# Version of the reading below: cached data sets do not notice that this module has changed.
READING = 3

_NUMBER = re.compile(r"-?(\d+|\d{1,3}( \d{3})+)(\.\d+)?")  # "1 000" too, which is not a formula
_TWO_WORDS = re.compile(r"[A-Za-z]{2,} +[A-Za-z]{2,}")
_ONE_WORD = re.compile(r"[A-Za-z]{2,}")

# Texts of data sets for a missing answer, by their letters.
_PLACEHOLDERS = re.compile(
    "none|null|nil|na|nan|unknown|unspecified|unavailable|missing|omitted|pending|todo|tb[dac]|idk|qed|see|blank|"
    "skip(?:ped)?|(?:parse)?error|undetermined|unpars[e]?able|placeholder|unanswer(?:ed|able)|(?:final)?answer|"
    "not(?:applicable|available|provided|given|found|answered|known|specified)|none(?:provided|given|found)|"
    "(?:answer|solution)not(?:found|available|provided|given|known)|solution|proofs?|prove[dn]?|proof(?:problem|question)|"
    "no(?:t|final)?(?:answer|response|result)(?:found|given|provided|available)?|nosolution(?:found|given|provided)|"
    "see(?:the)?(?:proof|solution|above|below|explanation)"
)
_WORDS = re.compile(r"[\s\"'`*#<>\[\](){}|.,:;!?_/\\A-Za-z-]{1,80}")
_ONLY_SIGNS = re.compile(r"[\s?.\-\u2010-\u2015\u2026_*~#/|!:;,\"'`()\[\]]*")
_WRAPPERS = re.compile(r"\$|\\(?:text(?:bf|it|rm)?|mathrm|boxed|fbox|mbox)\s*(?=\{)|\\ldots\b|\\[()\[\]]")
_PRODUCT = re.compile(r"\$[a-z ]{2,3}\$")  # `$na$`, unlike `na`

_JOINED = re.compile(
    r"\s*(?:,?\s*and|,?\s*or|,)\s*"
)  # separators by which math-verify joins up to six pairs of dollars
_BETWEEN = re.compile(r"(?:\s|,|;|\band\b|\bor\b|&|(?:[A-Za-z](?:_\{?\w\}?)?|\([a-z\d]\))\s*[=:])*")


def is_placeholder(answer: str) -> bool:
    """Whether a text marks a missing answer: `proof`, `N/A`, `?`, or an empty text."""
    if len(answer) > 120:
        return False
    text = _bare(answer)
    if not text or _ONLY_SIGNS.fullmatch(text):
        return "\\{" not in answer  # `\{\}` is the empty set
    if not _WORDS.fullmatch(text) or _PRODUCT.fullmatch(answer.strip()):
        return False
    return _PLACEHOLDERS.fullmatch("".join(LETTERS.findall(text)).lower()) is not None


def as_gold(answer) -> str:
    r"""
    Write a final answer as a text that math-verify reads as this answer.

    A formula gets dollars, without which math-verify reads the first number in it: `11\sqrt{2}` as 11, `2n+1` as 2,
    `2,3` as 2.3. Spellings that it cannot read are written out (`√2`, `4.5e33`, `3 1/2`). Numbers, numbers with a unit
    or a remark (`9 (apples)`), and worked texts stay as they are, to be read as TRL's reward reads them. A mark
    of a missing answer (`proof`, `N/A`, `?`) loses its dollars: such a gold is unreadable, and its reward `None`.

    Args:
        answer: Text, number, or list of these.

    Returns:
        `str`: the text. Given again, it stays as it is.
    """
    if isinstance(answer, (list, tuple)):
        parts = [str(part).strip().removeprefix("$").removesuffix("$").strip() for part in answer]
        return as_gold(", ".join(parts)) if not any("$" in part for part in parts) else ", ".join(map(str, answer))
    text = str(answer).strip()
    if _NUMBER.fullmatch(text):
        return text
    if is_placeholder(text):
        return _bare(text)
    if len(text) > LONGEST or "\\boxed" in text or "\n" in text:
        return text
    dollars = len(DOLLARS.findall(text))
    if dollars % 2:  # a currency
        return text
    inner = _without_outer_dollars(text)
    if inner is not None:
        return _in_dollars(inner)
    formula = _merged(text) if dollars else text
    if formula is None:
        return readable_parts(text)
    formula = unicode_to_latex(formula).strip()
    if (quantity := split_quantity(formula)) is not None:
        value, unit = quantity
        if PLAIN_VALUE.fullmatch(value):
            return formula
        return _in_dollars(rf"{readable_latex(value)}\text{{ {unit}}}")
    return _in_dollars(mark_unit(formula)) if _is_formula(formula) else formula


def _in_dollars(formula: str) -> str:
    """A formula between dollars. The sign of a percentage goes behind them, where math-verify reads it."""
    readable = readable_latex(formula).strip()
    percent = percentage(readable)
    return rf"${''.join(percent)}$\%" if percent else f"${readable}$"


def _bare(text: str) -> str:
    """A text without dollars, boxes and fonts."""
    return _WRAPPERS.sub("", unicode_to_latex(text)).replace("{", "").replace("}", "").strip()


def _without_outer_dollars(text: str) -> str | None:
    """The text inside one pair of dollars around everything; `None` without one."""
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
            inner = text[len(left) : -len(right)]
            if not DOLLARS.search(inner) and "\\)" not in inner and "\\]" not in inner:
                return inner.strip()
    return None


def _merged(text: str) -> str | None:
    """
    A gold of several dollars as one formula, or `None` if math-verify reads it as it is, or words are between them.
    """
    outside = DOLLARS.split(text)[::2]
    joined = all(_JOINED.fullmatch(part) for part in outside[1:-1]) and not outside[0] and not outside[-1]
    if joined and len(outside) <= 7:
        return None
    formula = DOLLARS.sub("", text)
    if split_quantity(formula) or all(_BETWEEN.fullmatch(part) for part in outside):
        return formula
    return None


def _is_formula(text: str) -> bool:
    """Whether a text without dollars is mathematics: no words but names of functions, or one word alone."""
    bare = TEXT_COMMAND.sub("", text)
    if _ONE_WORD.fullmatch(bare):
        return True
    bare = COMMAND.sub(" ", bare)
    if not bare.isascii() or not text:
        return False
    words = [run for run in LETTERS.findall(bare) if len(run) > 1 and not NAMES.fullmatch(run)]
    return not words or (max(map(len, words)) <= 3 and not _TWO_WORDS.search(bare))
