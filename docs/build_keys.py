"""
Writes the tables of keys in `docs/coming_from_verl.md` and `docs/coming_from_open_r1.md` from the converter's own.

    python -m docs.build_keys
"""

import re
from collections.abc import Mapping
from pathlib import Path

from trl_fork.commands.coming_from import trl_keys, verl_keys
from trl_fork.commands.coming_from.fates import Key


PAGES = {"coming_from_verl.md": verl_keys.KEYS, "coming_from_open_r1.md": trl_keys.KEYS}
BEGIN, END = "<!-- Written by docs/build_keys.py: do not edit. -->", "<!-- The end of what it writes. -->"


def table(keys: Mapping[str, Key]) -> str:
    """The table of a page."""
    lines = ["| Key | Becomes | What differs |", "|---|---|---|"]
    for name, key in keys.items():
        options = ", ".join(f"`{option}`" for option in key.option.split(", ") if option)
        lines.append(f"| `{name}` | {options or key.verdict} | {key.why} |")
    return "\n".join(lines)


def render(page: Path) -> str:
    """The page with its table as it should be."""
    pattern = rf"{re.escape(BEGIN)}.*?{re.escape(END)}"
    written = f"{BEGIN}\n\n{table(PAGES[page.name])}\n\n{END}"
    return re.sub(pattern, lambda match: written, page.read_text(encoding="utf-8"), flags=re.DOTALL)


if __name__ == "__main__":
    for name in PAGES:
        path = Path(__file__).with_name(name)
        path.write_text(render(path), encoding="utf-8")
