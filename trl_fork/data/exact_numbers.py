"""
Integers of JSON and CSV files that a column of numbers would round.

Arrow has no integers beyond 64 bits, and turns `12345678901234567890123` into a float, silently; so it does with any
integer that shares a column with a float. A gold answer must not be rounded: such columns are read as texts here.
"""

import csv
import json
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from datasets import Dataset


EXACT_IN_FLOAT = 2**53  # the first integer after it that a float rounds
_LONG = re.compile(rb"(?<![\d.])\d{16,}")  # numbers that may be beyond that
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_FLOAT = re.compile(r"\s*[+-]?(\d+\.\d*|\.\d+|\d+(?:\.\d*)?[eE][+-]?\d+)\s*")


def load_exact(path: Path) -> Dataset | None:
    """
    Read a JSON, JSONL or CSV file whose integers would be rounded, with texts in the columns that hold them.

    Args:
        path (`Path`): The file.

    Returns:
        [`~datasets.Dataset`], or `None` if nothing would be rounded: the usual reader is then right, and faster.
    """
    if path.suffix not in (".json", ".jsonl", ".csv") or not _has_long_number(path):
        return None
    return _load_csv(path) if path.suffix == ".csv" else _load_json(path)


def check_exact(answer, column: str, row: int) -> None:
    """
    Refuse an answer that is an integer rounded to a float when the data set was written or read.

    A float of 2^53 and more with sixteen or seventeen digits is taken for one; `6.02e23` is not.

    Raises:
        `ValueError`: naming row and column.
    """
    for value in answer if isinstance(answer, (list, tuple)) else [answer]:
        if isinstance(value, float) and EXACT_IN_FLOAT <= abs(value) < float("inf"):
            digits = re.sub(r"e.*|\D", "", repr(value)).rstrip("0")
            if len(digits) >= 16:
                raise ValueError(
                    f"row {row}, column {column!r}: {value!r} is a float with too few digits for the "
                    "number it stands for, such as an integer beyond 64 bits: the right answer would be graded wrong. "
                    "Write the answers of this column as text."
                )


def _has_long_number(path: Path) -> bool:
    if not path.stat().st_size:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _LONG.search(content) is not None


def _load_json(path: Path) -> Dataset | None:
    try:
        rows = list(_json_rows(path))
    except ValueError:  # the usual reader reports this
        return None
    if not all(isinstance(row, dict) for row in rows):
        return None
    columns = _Columns()
    for row in rows:
        _each_number(row, (), columns.see)
    if not columns.rounded:
        return None
    rows = [
        _map_numbers(row, (), lambda place, value: str(value) if place in columns.rounded else value) for row in rows
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_list([{name: row.get(name) for name in names} for row in rows])


def _load_csv(path: Path) -> Dataset | None:
    columns = _Columns()
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                # An empty cell makes a column of floats.
                if not text or (isinstance(text, str) and _FLOAT.fullmatch(text)):
                    columns.see((name,), 0.0)
                elif isinstance(text, str) and _INTEGER.fullmatch(text):
                    columns.see((name,), int(text))
    if not columns.rounded:
        return None
    table = pd.read_csv(path, dtype={name: str for (name,) in columns.rounded})
    return Dataset.from_pandas(table, preserve_index=False)


class _Columns:
    """The numbers of each column, nested ones included."""

    def __init__(self):
        self._largest: dict[tuple, int] = {}
        self._with_floats: set[tuple] = set()

    def see(self, place: tuple, value: int | float) -> None:
        if isinstance(value, float):
            self._with_floats.add(place)
        else:
            # -2^63 is an integer of 64 bits, and 2^63 is not.
            self._largest[place] = max(self._largest.get(place, 0), value if value >= 0 else -value - 1)

    @property
    def rounded(self) -> set[tuple]:
        return {
            place
            for place, largest in self._largest.items()
            if largest >= 2**63 or (place in self._with_floats and largest > EXACT_IN_FLOAT)
        }


def _json_rows(path: Path) -> Iterator:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        yield from json.loads(text)
    else:
        yield from (json.loads(line) for line in text.splitlines() if line.strip())


def _each_number(value, place: tuple, see: Callable[[tuple, int | float], None]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _each_number(item, (*place, name), see)
    elif isinstance(value, list):
        for item in value:
            _each_number(item, (*place, None), see)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        see(place, value)


def _map_numbers(value, place: tuple, change: Callable):
    if isinstance(value, dict):
        return {name: _map_numbers(item, (*place, name), change) for name, item in value.items()}
    if isinstance(value, list):
        return [_map_numbers(item, (*place, None), change) for item in value]
    return change(place, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
