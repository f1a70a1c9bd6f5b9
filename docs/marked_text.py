"""Parts of a page that a script writes, between two comments."""

import re
from pathlib import Path


END = "<!-- The end of what it writes. -->"


def with_marked_text(page: Path, script: str, text: str) -> str:
    """
    The text of a page with another one between its comments.

    Args:
        page (`Path`): The page.
        script (`str`): The script that the first comment names.
        text (`str`): What it writes.
    """
    begin = f"<!-- Written by {script}: do not edit. -->"
    whole = page.read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(begin)}\n.*?{re.escape(END)}", whole, flags=re.DOTALL)
    assert found, f"{page} has no place for what {script} writes: {begin!r} and {END!r}"
    return whole.replace(found[0], f"{begin}\n\n{text}\n\n{END}")
