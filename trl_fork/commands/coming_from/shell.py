"""
The overrides in a shell script that starts a training: read, never run.

Understood are assignments, `${NAME:-default}`, sums and products in `$((...))`, arrays, quotes, comments and lines
that go on. What only a shell could know (a variable of the environment, the output of a command) stays as it is
written.
"""

import ast
import operator
import re
from collections.abc import Callable


_ASSIGNMENT = re.compile(r"(?:export\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_OVERRIDE = re.compile(r"(?:\+{1,2}|~)?([A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)
_ARITHMETIC: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

Variables = dict[str, str | list[str]]


def read_overrides(text: str) -> dict[str, str]:
    """
    Find the settings that a script gives to a program as `key=value`.

    Args:
        text (`str`):
            The script.

    Returns:
        `dict[str, str]`: values by key, the last one where a key stands twice. Variables of the script are none.
    """
    variables: Variables = {}
    found: dict[str, str] = {}
    for line in _logical_lines(text):
        words = _words(line)
        if not words:
            continue
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match and (match[2].startswith("(") or len(_words(match[2])) <= 1):
            name, value = match[1], match[2].strip()
            if value.startswith("(") and value.endswith(")"):
                variables[name] = _expand_all(_words(value[1:-1]), variables)
            else:
                variables[name] = _expand(value, variables)
            continue
        of_a_program = False  # before the program's name, `NAME=value` is a variable of the environment
        for word in _expand_all(words, variables):
            of_a_program = of_a_program or bool(re.fullmatch(r"[\w./]*\bmain_\w+(\.py)?", word))
            override = _OVERRIDE.fullmatch(word)
            if override and ("." in override[1] or of_a_program):
                found[override[1]] = override[2]
    return found


def _logical_lines(text: str) -> list[str]:
    """Lines with those that go on joined, and without comments; an array is one line."""
    lines, pending, depth = [], "", 0
    for line in text.splitlines():
        bare = _without_comment(line).rstrip()
        goes_on = bare.endswith("\\")
        pending += bare.removesuffix("\\") + " "
        if not depth and re.match(r"\s*[A-Za-z_]\w*=\($|\s*[A-Za-z_]\w*=\([^(]", bare):
            depth = 1
        if depth and re.search(r"(?<!\))\)\s*$", bare):
            depth = 0
        if not goes_on and not depth:
            lines.append(pending.strip())
            pending = ""
    return [*lines, pending.strip()] if pending.strip() else lines


def _without_comment(line: str) -> str:
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


def _words(line: str) -> list[str]:
    """Words with their quotes, which say what is expanded; white space in quotes, braces and sums parts nothing."""
    words, word, quote, depth = [], "", "", 0
    for letter in line:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "({[":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter.isspace() and depth <= 0:
            if word:
                words.append(word)
            word = ""
            continue
        word += letter
    return [*words, word] if word else words


def _expand_all(words: list[str], variables: Variables) -> list[str]:
    expanded: list[str] = []
    for word in words:
        array = re.fullmatch(r"\"?\$\{(\w+)\[@\]\}\"?", word)
        value = variables.get(array[1]) if array else None
        expanded += value if isinstance(value, list) else [_expand(word, variables)]
    return expanded


def _expand(text: str, variables: Variables, *, quoted: bool = False) -> str:
    """A text without its quotes, and with what is known in the place of its variables."""
    expanded, rest = "", text
    while rest:
        if rest[0] == "\\" and len(rest) > 1:
            expanded, rest = expanded + rest[1], rest[2:]
        elif rest[0] == "'" and not quoted:
            literal, _, rest = rest[1:].partition("'")
            expanded += literal
        elif rest[0] == '"':
            quoted, rest = not quoted, rest[1:]
        elif rest.startswith("$(("):
            inside, rest = _until(rest[3:], "))")
            expanded += _number(_expand(inside, variables), variables)
        elif rest.startswith("$("):  # the output of a command, which nothing here runs
            inside, rest = _until(rest[2:], ")")
            expanded += f"$({inside})"
        elif rest.startswith("${"):
            inside, rest = _until(rest[2:], "}")
            expanded += _variable(inside, variables)
        elif match := re.match(r"\$([A-Za-z_]\w*)", rest):
            expanded, rest = expanded + _variable(match[1], variables), rest[match.end() :]
        else:
            expanded, rest = expanded + rest[0], rest[1:]
    return expanded


def _until(text: str, end: str) -> tuple[str, str]:
    """The text up to the bracket that closes it, and what comes after it."""
    depth, quote = 0, ""
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter == '"':
            quote = letter
        elif not depth and text.startswith(end, index):
            return text[:index], text[index + len(end) :]
        elif letter in "({":
            depth += 1
        elif letter in ")}":
            depth -= 1
    return text, ""


def _variable(inside: str, variables: Variables) -> str:
    """The value of `${NAME}` or `${NAME:-default}`; as it is written where nothing here knows it."""
    match = re.fullmatch(r"(\w+)(?::?[-=](.*))?", inside, re.DOTALL)
    known = variables.get(match[1]) if match else None
    if match and isinstance(known, str):
        return known
    if match and match[2] is not None:
        return _expand(match[2], variables)
    return f"${{{inside}}}"


def _number(text: str, variables: Variables) -> str:
    """The value of `$((...))`; as it is written where it is not one of whole numbers."""
    words = re.sub(r"[A-Za-z_]\w*", lambda name: str(variables.get(name[0], name[0])), text)
    try:
        return str(_evaluate(ast.parse(words.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return f"$(({text}))"


def _evaluate(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    raise ValueError("no sum of whole numbers")
