r"""
Numbers with a unit or a remark (`15 km/h`, `9 (apples)`, `20 cm^2`, `12 V`), and answers in the gold's own words.

Nothing is imported but `re`: the grading worker uses this module.
"""

import re

from .latex_text import LONGEST, unicode_to_latex


DOLLARS = re.compile(r"(?<!\\)\$\$?")
LETTERS = re.compile(r"[A-Za-z]+")
COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+")
TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
# Letters side by side in a formula that are not a product
NAMES = re.compile(
    "and|or|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|sqrt|pi|max|min|gcd|lcm|mod|inf|infinity|arcsin|arccos|arctan|sinh|"
    "cosh|tanh|det|dim|deg|alpha|beta|gamma|theta|lambda|percent"
)
_UNIT_NAMES = (
    "[cmkdn]m|[km]?g|[mcd][lL]|ft|in|yd|mi|lbs?|oz|hrs?|mins?|secs?|ms|k?Wh?|MW|[kMG]?Hz|[kMG]?Pa|atm|[kMG]?eV|[kM]J|"
    "k?cal|k?mol|rad|deg|[mkr]p[hm]|kmp?h|usd|USD|EUR|[GMK]B|dB|yrs?|erg|gal|pt|qt|[rR]s|cc|sq|cu|am|pm|AM|PM|bpm|psi|"
    "ppm|AU|[kM]?pc|percent"
)
_UNITS = re.compile(_UNIT_NAMES)
_UNIT_LETTERS = frozenset("msghlNVWJKACFLTH")

_VALUE = (
    r"[-+]?(?:(?:\d{1,9}\s*)?\\[dt]?frac\s*\{\d+\}\s*\{\d+\}|"
    r"\d{1,9} \d{1,9}/\d{1,9}|\d+/\d+|(?:\d{1,3}(?:[ ,]\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+-]?\d+|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{[+-]?\d+\}|[+-]?\d+))?"
)
PLAIN_VALUE = re.compile(r"-?(?:\d{1,3}(?:[ ,]\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
_UNIT = r"(?:\([^()$]{1,40}\)|[A-Za-z%'\"-]++\.?|\\(?:text|mathrm)\s*\{[^{}]{1,40}\}|\\[,; ]|\\cdot|\\circ)"
_EXPONENT = r"(?:\s*\^\s*(?:-?\d|\{-?\d\}|\{?\\circ\}?))?"
_QUANTITY = re.compile(rf"({_VALUE})(\s*)((?>(?:{_UNIT}{_EXPONENT}[\s/*]*)+))")

_ONE_UNIT = rf"(?:{_UNIT_NAMES}|units?)(?![A-Za-z]){_EXPONENT}"
_UNIT_OF_FORMULA = re.compile(rf"(?<=[\w}})\]])\s+({_ONE_UNIT}(?:\s*/\s*{_ONE_UNIT})*)\s*$")

_LAYOUT = re.compile(r"\\(?:text|mathrm)|[\s{}()~]|\\[,; ]")
_EXPONENT_IN_BRACES = re.compile(r"\^\{(\w)\}")
_LAYOUT_SPACES = re.compile(r"\\[,;: ]|~|\s+")
_SPACES = re.compile(r"(?<!\d) | (?!\d)")  # spaces that do not separate numbers
_WORD = re.compile("[A-Za-z]{4,}")
_CURRENCY = re.compile("[£€¥₹₩₽]")


def split_quantity(text: str) -> tuple[str, str] | None:
    """The number and the unit of a text that is a number with a unit or a remark, or `None`."""
    match = _QUANTITY.fullmatch(plain(text))
    if match is None or not _is_unit(match[3], bool(match[2])):
        return None
    unit = _LAYOUT.sub("", match[3])
    if "frac" in match[1] and "\\" not in match[3] and not _WORD.search(unit):
        return None  # `\frac{1}{2} ab` is a product
    return match[1], unit


def mark_unit(formula: str) -> str:
    r"""`2\pi cm^2` as `2\pi\text{ cm^2}`, in which math-verify finds a unit."""
    if TEXT_COMMAND.search(formula):
        return formula
    return _UNIT_OF_FORMULA.sub(lambda match: rf"\text{{ {_LAYOUT.sub('', match[1])}}}", formula)


def currencies(text: str) -> set[str]:
    """The currency signs of a text except dollars."""
    return set(_CURRENCY.findall(text[:LONGEST].replace("\\pounds", "£").replace("\\euro", "€")))


def same_text(answer: str, gold: str) -> bool:
    """Whether an answer is the gold's own text, whatever the spaces, dollars and fonts."""
    if max(len(answer), len(gold)) > LONGEST:
        return False
    first, second = (
        _SPACES.sub(
            "", _LAYOUT_SPACES.sub(" ", TEXT_COMMAND.sub(r" \1 ", _EXPONENT_IN_BRACES.sub(r"^\1", plain(text))))
        ).strip()
        for text in (answer, gold)
    )
    return first == second != ""


def as_word(text: str) -> str | None:
    """The word, in lower case, if the text is one of at least four letters."""
    word = TEXT_COMMAND.sub(r"\1", plain(text)).strip()
    return word.lower() if _WORD.fullmatch(word) else None


def plain(text: str) -> str:
    """A text without dollars and without signs beyond ASCII that LaTeX has."""
    text = DOLLARS.sub("", text[:LONGEST]).replace("\\{", "{").replace("\\}", "}")
    return unicode_to_latex(text).strip()


def _is_unit(unit: str, spaced: bool) -> bool:
    """Whether the letters after a number are a unit or a remark, and no factor."""
    bare = TEXT_COMMAND.sub("", unit)
    if bare != unit:
        return True
    runs = LETTERS.findall(COMMAND.sub("", bare))
    if not runs or any(NAMES.fullmatch(run) and not _UNITS.fullmatch(run) for run in runs):
        return False
    longest = max(map(len, runs))
    if longest > 1:
        return spaced or longest > 3 or any(_UNITS.fullmatch(run) and len(run) > 1 for run in runs)
    if len(runs) == 1 and "^" not in unit:
        return spaced and (runs[0].isupper() or runs[0] in _UNIT_LETTERS)
    return spaced and all(run in _UNIT_LETTERS for run in runs)
