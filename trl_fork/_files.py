"""Files that are written whole or not at all, however a run ends."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    A path to write to. When the block ends, its file replaces `path` in one step.

    No reader gets half of a file. If the block raises, `path` stays as it was and no other file is left. Missing
    folders are made.

    Args:
        path (`str` or `Path`): The file to be written.

    Yields:
        `Path`: a name in the same folder, which no other process uses.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")  # its suffix may tell a library the format
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, **settings) -> None:
    """Write a whole text file, in UTF-8 unless `settings` of `Path.write_text` say otherwise."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, **{"encoding": "utf-8", **settings})


def write_json(path: str | Path, content, **settings) -> None:
    """Write a whole JSON file; `settings` are those of `json.dumps`."""
    write_text(path, json.dumps(content, **{"indent": 2, **settings}) + "\n")
