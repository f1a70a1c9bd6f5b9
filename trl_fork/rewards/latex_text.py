r"""
Spellings that math-verify cannot read, written as LaTeX that it can: `√2`, `\frac12`, `4.5e33`, `1 000 000`, `3 1/2`.

Golds and answers pass through here before math-verify parses them. Text is only rewritten to what it means already;
nothing is dropped. Every step takes time linear in the text, and long texts are left alone. Nothing is imported but
`re`: the grading worker uses this module.
"""

import re


# ruff: noqa: RUF001 (this module is about signs that look alike)

# A final answer is short. A longer one is a text, or hostile.
LONGEST = 4000

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n")
_FRACTIONS = {
    "½": "12",
    "⅓": "13",
    "⅔": "23",
    "¼": "14",
    "¾": "34",
    "⅕": "15",
    "⅖": "25",
    "⅗": "35",
    "⅘": "45",
    "⅙": "16",
    "⅚": "56",
    "⅐": "17",
    "⅛": "18",
    "⅜": "38",
    "⅝": "58",
    "⅞": "78",
    "⅑": "19",
}
_COMMANDS = {
    "×": "times",
    "✕": "times",
    "⨯": "times",
    "·": "cdot",
    "⋅": "cdot",
    "∙": "cdot",
    "÷": "div",
    "±": "pm",
    "∓": "mp",
    "≤": "le",
    "⩽": "le",
    "≦": "le",
    "≥": "ge",
    "⩾": "ge",
    "≧": "ge",
    "≠": "neq",
    "≈": "approx",
    "∞": "infty",
    "∅": "emptyset",
    "⌀": "emptyset",
    "∪": "cup",
    "∩": "cap",
    "∈": "in",
    "∉": "notin",
    "∖": "setminus",
    "⊂": "subset",
    "⊆": "subseteq",
    "…": "ldots",
    "⋯": "ldots",
    "⟨": "langle",
    "⟩": "rangle",
    "⌊": "lfloor",
    "⌋": "rfloor",
    "⌈": "lceil",
    "⌉": "rceil",
    "∠": "angle",
    "△": "triangle",
    "∑": "sum",
    "∫": "int",
    "∏": "prod",
    "ℝ": "mathbb{R}",
    "ℤ": "mathbb{Z}",
    "ℕ": "mathbb{N}",
    "ℚ": "mathbb{Q}",
    "ℂ": "mathbb{C}",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "ϵ": "epsilon",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
    "π": "pi",
    "𝜋": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
    "φ": "phi",
    "ϕ": "phi",
    "ψ": "psi",
    "ω": "omega",
    "Δ": "Delta",
    "Ω": "Omega",
    "Σ": "Sigma",
    "Φ": "Phi",
}
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−﹣‐‑‒⁻", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **dict.fromkeys("⁄∕", "/"),
        **dict.fromkeys("’′‘", "'"),
        **dict.fromkeys("∗⁎", "*"),
        **dict.fromkeys("∶", ":"),
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
        "、": ", ",
        "°": r"^\circ ",
        "º": r"^\circ ",
        **{sign: rf"\{command} " for sign, command in _COMMANDS.items()},
        **{sign: rf"\frac{{{digits[0]}}}{{{digits[1]}}}" for sign, digits in _FRACTIONS.items()},
        "⅒": r"\frac{1}{10}",
    }
)
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ]+")
# A minus that is not a range. The text before it is matched from its start, so a long run of spaces takes linear time.
_DASH = re.compile(r"([\w)}\]]\s*+)?–(?=\s*[\w\\(.])")
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]|\\(?:pi|alpha|theta)\b))")
_DEGREE_OF_ROOT = {"√": "", "∛": "[3]", "∜": "[4]"}


def unicode_to_latex(text: str) -> str:
    """Mathematical signs beyond ASCII as LaTeX. A sign that is not known stays."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = _DASH.sub(lambda match: match[0] if match[1] else "-", text.translate(_CHARACTERS))
    for _ in range(3):  # a root in a root
        text = _ROOT.sub(lambda m: rf"\sqrt{_DEGREE_OF_ROOT[m[1]]}{{{m[2] or m[3] or m[4]}}}", text)
    return text


# `1 000 000`, also with the spaces of LaTeX, `{,}` and apostrophes; not `1,000`, which may be a pair.
_THIN = r"(?: |~|\\ |\\,|\\;|\\:|\\!|\{,\}|\{ \}|')"
_THOUSANDS = re.compile(rf"(?<![\d.,^_/])\d{{1,3}}(?:{_THIN}\d{{3}})+(?![\d/])")
_NOT_A_DIGIT = re.compile(r"\D")
# `x = 1,234`, `1,234 < x`, `1,234 and 2,345` and `1,234\%`, of which math-verify makes pairs, unlike `1,234`
_RELATION = r"(?:[=<>]|\\(?:leq?|geq?|approx)(?![A-Za-z])|\b(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\})"
_GROUPED = re.compile(rf"(?:{_RELATION}|^)\s*[-+]?\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?\s*(?:\\?%\s*)?(?={_RELATION}|$)")
_NUMBER_ALONE = re.compile(r"[-\d,.]+")  # which math-verify reads rightly
# math-verify reads only decimals in percent rightly: it takes `1/2\%` for 50.
_PERCENT = re.compile(
    r"([-+]?)\s*((?:\d{1,9}\s*)?\\[dtc]?frac\s*\{\d{1,30}\}\s*\{\d{1,30}\}|\d{1,30}/\d{1,30}|"
    r"\d{1,30}(?:\.\d{1,30})?\s*\\(?:times|cdot)\s*10\s*\^\s*(?:\{-?\d{1,9}\}|\d))"
    r"\s*(?:\\?%|(?:\\(?:text|mathrm)\s*\{\s*)?(?:percent|per cent|pct)\s*\}?)\s*"
)
_MIXED = re.compile(r"(?<![\d.,/^_{])(\d{1,9})(?: |~|\\ |\\,)+([1-9]\d{0,8})/([1-9]\d{0,8})(?![\d/])")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,9})(?!\w|\.\d)")
_TIMES_X = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))")
_POWER = re.compile(r"(\^|\*\*)\s*(?:\(([^(){}]*)\)|([+-]\d+)|(?<=\*\*)\s*(?=[\w{]))")
# `0.1\overline{6}`, `0.\dot{1}2\dot{3}`, `0.(3)`; `1.5(3)` may be a product.
_REPEATING = re.compile(
    r"(?<![\d.])(\d{0,30})\.(?:(\d{0,30})\\(?:overline|bar|dot)\s*(?:\{(\d{1,30})\}|(\d))"
    r"(?:(\d{0,30})\\dot\s*(?:\{(\d)\}|(\d)))?|\((\d{1,30})\))(?!\d)"
)
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")


def _mixed(match: re.Match) -> str:
    whole, numerator, denominator = match.groups()
    if int(numerator) >= int(denominator):
        return match[0]
    return rf"{whole}\frac{{{numerator}}}{{{denominator}}}"


def _repeating(match: re.Match) -> str:
    whole, fixed = match[1] or "", match[2] or ""
    first = match[3] or match[4] or match[8]
    period = first + (match[5] or "") + (match[6] or match[7]) if match[6] or match[7] else first
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"\frac{{{numerator}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


def _power(match: re.Match) -> str:
    exponent = match[2] or match[3]
    return f"^{{{exponent.lstrip('+')}}}" if exponent else "^"


def _scientific(match: re.Match) -> str:
    mantissa = "0" + match[1] if match[1].startswith(".") else match[1].rstrip(".")
    return rf"{mantissa} \times 10^{{{int(match[2])}}}"


_TAKES_ARGUMENTS = re.compile(r"\\([dtc]?frac|binom|sqrt)(?![A-Za-z])")
_TOKEN = re.compile(r"\\[A-Za-z]+|[A-Za-z0-9]")
_NEEDS_ARGUMENTS = re.compile(r"\\(?:[dtc]?frac|binom|sqrt|text|math|over|under|left|right|begin|end|bar|hat|vec)")


def _brace_arguments(text: str) -> str:
    r"""`\frac12` as `\frac{1}{2}`: an argument without braces is one token, as in TeX."""
    if "\\" not in text or not _TAKES_ARGUMENTS.search(text):
        return text
    closing, opened = {}, []
    for position, character in enumerate(text):
        if character == "{":
            opened.append(position)
        elif character == "}" and opened:
            closing[opened.pop()] = position
    inserted: dict[int, str] = {}
    for command in _TAKES_ARGUMENTS.finditer(text):
        position = command.end()
        if command[1] == "sqrt" and text[position : position + 1] == "[":
            end = text.find("]", position)
            if end < 0:
                continue
            position = end + 1
        for _ in range(1 if command[1] == "sqrt" else 2):
            while text[position : position + 1] == " ":
                position += 1
            if position in closing:
                position = closing[position] + 1
                continue
            token = _TOKEN.match(text, position)
            if token is None or _NEEDS_ARGUMENTS.match(token[0]):
                break
            inserted[position] = inserted.get(position, "") + "{"
            position = token.end()
            inserted[position] = "}" + inserted.get(position, "")
    if not inserted:
        return text
    cuts = sorted(inserted)
    pieces = [text[: cuts[0]]]
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        pieces += [inserted[start], text[start:end]]
    return "".join(pieces)


def _both_signs(text: str) -> str:
    r"""`\frac{-1\pm\sqrt{5}}{2}`, which math-verify cannot read, as the two values that it is."""
    signs = _PLUS_MINUS.findall(text)
    match = _PLUS_MINUS.search(text)
    if len(signs) != 1 or match is None or "," in text or "=" in text[match.start() :]:
        return text
    before = text[: match.start()]
    if before.count("{") <= before.count("}"):
        return text  # outside braces math-verify can read it
    return f"{before}+{text[match.end() :]}, {before}-{text[match.end() :]}"


_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp|pi|sqrt|infty)(?![A-Za-z])"
)
_ROOT_OF = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_WITH_WORDS = re.compile(r"\\(?:text|math|operatorname|mbox)")
_REWRITTEN = [
    # Choices: math-verify takes `\text{A, C}` for one name.
    (re.compile(r"\\text(?:bf|rm|it)?\s*\{\s*([A-Z](?:\s*(?:,|and|&)\s*[A-Z])+)\s*\}"), r"\1"),
    (re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*(?:percent|per cent|pct)\s*\}"), r"\\%"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*[CF]\s*$"), r"^\\circ"),  # degrees Celsius
    (re.compile(r"~"), " "),
    (re.compile(r"[£€¥₹₩₽]|\\(?:pounds|euro)(?![A-Za-z])"), r"\\$"),  # math-verify leaves out dollars
    (re.compile(r"(?<=[\w})\]])\.\s*$"), ""),
    (re.compile(r"^\s*\\approx(?![A-Za-z])"), ""),
]


def readable_latex(formula: str) -> str:
    """
    Rewrite a formula so that math-verify reads it rightly.

    Args:
        formula (`str`): Text between dollars, or in a box.

    Returns:
        `str`: the same, in other words where needed.
    """
    if len(formula) > LONGEST:
        return formula
    formula = unicode_to_latex(formula)
    formula = _MIXED.sub(_mixed, formula)
    formula = _THOUSANDS.sub(lambda match: _NOT_A_DIGIT.sub("", match[0]), formula)
    ungrouped = _GROUPED.sub(lambda match: match[0].replace(",", ""), formula)
    if "," not in ungrouped and not _NUMBER_ALONE.fullmatch(formula):  # `x, y = 1,234` has two values
        formula = ungrouped
    formula = _SCIENTIFIC.sub(_scientific, formula)
    formula = _TIMES_X.sub(r" \\times ", formula)
    formula = _POWER.sub(_power, formula)
    formula = _REPEATING.sub(_repeating, formula)
    for pattern, replacement in _REWRITTEN:
        formula = pattern.sub(replacement, formula)
    if not _WITH_WORDS.search(formula):
        formula = _FUNCTION.sub(r"\\\1", formula)
    return _both_signs(_brace_arguments(_ROOT_OF.sub(r"\\sqrt{\1}", formula)))


def percentage(formula: str) -> tuple[str, str] | None:
    """Sign and size of a formula that [`readable_latex`] wrote, if it is a fraction or a power of ten in percent."""
    match = _PERCENT.fullmatch(formula)
    return (match[1].replace("+", ""), match[2]) if match else None


_DELIMITER = re.compile(r"((?<!\\)\$\$?)")
_MOST_DELIMITERS = 200


def readable_parts(text: str) -> str:
    """A text with the formulas between its dollars as [`readable_latex`] writes them, unless there are very many."""
    if not 2 <= text.count("$") <= _MOST_DELIMITERS:
        return text
    parts = _DELIMITER.split(text)
    return "".join(readable_latex(part) if index % 4 == 2 else part for index, part in enumerate(parts))
