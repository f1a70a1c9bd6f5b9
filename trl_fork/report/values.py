"""Values and lists of a report as its page and the console show them."""

import json


NUM_LISTED = 12  # token types of either sign


def shown(value) -> str:
    """A value in a cell: numbers of any size in few characters, texts as they are, the rest as JSON."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return value


def changes_of(change: dict) -> list[tuple[str, list[dict]]]:
    """
    The token types to list: those that gained and those that lost entropy, largest changes first. Where none of a sign
    is told from 0, a few that may have are listed as such.
    """
    lists = []
    for word, sign in (("gained", 1), ("lost", -1)):
        types = [row for row in change["types"] if sign * row["mean_change"] > 0]
        types.sort(key=lambda row: -abs(row["mean_change"]))
        told = [row for row in types if row["resolved"]]
        if told:
            lists.append((word, told[:NUM_LISTED]))
        elif types:
            lists.append((f"{word}, not told from 0", types[:3]))
    return lists
