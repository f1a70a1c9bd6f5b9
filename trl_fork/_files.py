"""Files that are written whole or not at all, however a run ends."""

import hashlib
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


_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
_NUM_PARTS, _PART_SIZE = 64, 4096


def weights_fingerprint(model: str | Path) -> str | None:
    """
    What tells the weights in a folder from those after further training; a copy has the same.

    It is of the size of each file and of 64 parts of 4 kB, so that it takes no time for a large model. An update of
    Adam changes nearly every weight.

    Args:
        model (`str` or `Path`): Folder of a model or an adapter.

    Returns:
        `str`: 16 hexadecimal digits; `None` if it is no folder or holds no weights, as for a name on the Hub.
    """
    folder = Path(model)
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)}) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            for part in range(_NUM_PARTS):
                file.seek(part * max(size - _PART_SIZE, 0) // (_NUM_PARTS - 1))
                digest.update(file.read(_PART_SIZE))
    return digest.hexdigest()[:16]
