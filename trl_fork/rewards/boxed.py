r"""
The boxes of a completion that are its answer, and their contents as math-verify reads them.

math-verify takes boxes that are close together as one answer of several values: right for `\boxed{2} and \boxed{3}`,
wrong for `\boxed{5}? No, \boxed{3}`, where the last one counts. Nothing is imported but `re`: the grading worker uses
this module.
"""

import re
from collections import deque

from .latex_text import percentage, readable_latex, readable_parts, unicode_to_latex


# One answer has no more boxes than this. Longer lists are left to math-verify, within its limits.
MOST_BOXES = 20
# Boxes with as many characters between them are one answer to math-verify: any, and with a separator between them.
_NEAR, _FAR = 10, 70

_SEPARATOR = re.compile(r"\b(?:and|or)\b|,|;")
_CORRECTION = re.compile(
    r"\?|\b(?:no|not|nope|wait|actually|sorry|rather|instead|correct(?:ion|ed|ly)?|wrong|incorrect|mistake|error|hm+|"
    r"oops|hold on|but|however|revised?|fix(?:ed)?|(?:re)?check(?:ing|ed)?|redo|should|was)\b",
    re.IGNORECASE,
)
_NEW_SENTENCE = re.compile(r"(?:[.!]\s|\n\s*\n)[^A-Za-z]*[A-Za-z]{2,}")
_ANOTHER = re.compile(r"\b(?:and|or|also|other|another|second|third|both)\b", re.IGNORECASE)
_COMMAND = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"[{}]")


def readable_answer(completion: str) -> tuple[str, list[str]]:
    """
    Rewrite a completion so that math-verify reads its answer.

    Args:
        completion (`str`): The text.

    Returns:
        `str`: the text, with its last boxes in readable LaTeX, and without the boxes that it takes back.
        `list[str]`: contents of the last boxes, as they were. Empty if there are none, or they cannot be told apart.
    """
    text = unicode_to_latex(completion)
    boxes, corrected = _last_boxes(text)
    if not boxes:
        return readable_parts(text), []
    start = boxes[0][0]
    pieces = [_COMMAND.sub("", text[:start]) if corrected else text[:start]]
    contents = []
    for _, first, last in boxes:
        contents.append(text[first:last])
        pieces += [text[start:first], _readable(contents[-1])]
        start = last
    return "".join([*pieces, text[start:]]), contents


def _readable(content: str) -> str:
    """Content of a box for math-verify, which does not read percentages of fractions."""
    readable = readable_latex(content)
    percent = percentage(readable.strip())
    return rf"{percent[0]}\frac{{{percent[1]}}}{{100}}" if percent else readable


def _last_boxes(text: str) -> tuple[list[tuple[int, int, int]], bool]:
    """
    Places of the last box and those that belong to it (start, start and end of the content), and whether there are
    earlier boxes, which it takes back.
    """
    boxes: deque[tuple[int, int, int]] = deque()
    limit = len(text)
    while True:
        command = max(text.rfind("\\boxed", 0, limit), text.rfind("\\fbox", 0, limit))
        content = _content(text, command, limit)
        if content is None:
            return list(boxes), False
        if boxes:
            between = text[content[2] + 1 : limit]
            joined = len(between) < _NEAR or (len(between) < _FAR and _SEPARATOR.search(between))
            if not joined or len(boxes) == MOST_BOXES:
                return (list(boxes), False) if not joined else ([], False)
            if _is_correction(between):
                return list(boxes), True
        boxes.appendleft(content)
        limit = command


def _content(text: str, command: int, limit: int) -> tuple[int, int, int] | None:
    """Start of a box, start and end of its content; `None` if its braces do not close."""
    match = _COMMAND.match(text, command) if command >= 0 else None
    if match is None:
        return None
    opening = match.end()
    while text[opening : opening + 1].isspace():
        opening += 1
    if text[opening : opening + 1] != "{":
        return None
    depth = 0
    for brace in _BRACE.finditer(text, opening, limit):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return command, opening + 1, brace.start()
    return None


def _is_correction(between: str) -> bool:
    if _CORRECTION.search(between):
        return True
    return bool(_NEW_SENTENCE.search(between)) and not _ANOTHER.search(between)
