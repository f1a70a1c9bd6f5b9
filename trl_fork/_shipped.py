"""The YAML files of the package by name, in a wheel and in a checkout."""

from difflib import get_close_matches
from pathlib import Path


# In a wheel `configs` is a package of data; setup.py takes it from the top of the checkout.
_PLACES = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
_WORDS = {"recipes": "recipe", "accelerate": "launch file", "credit": "preset of token credit", "teams": "team"}


def shipped_files(kind: str) -> dict[str, Path]:
    """
    Find the files of a kind.

    Args:
        kind (`str`):
            Folder of `configs`: `"recipes"`, `"accelerate"`, `"credit"` or `"teams"`.

    Returns:
        `dict[str, Path]`: paths by name, which is the file's name without `.yaml`, in alphabetical order.
    """
    (folder, *_) = [place / kind for place in _PLACES if place.is_dir()] or [_PLACES[0] / kind]
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_shipped(kind: str | tuple[str, ...], name: str) -> Path:
    """
    Find a file by its name, with or without `.yaml`.

    Args:
        kind (`str` or `tuple[str, ...]`): One kind of [`shipped_files`], or several to look through.
        name (`str`): One of its names.

    Raises:
        `ValueError`: if there is no such file, with the names that exist.
    """
    kinds = (kind,) if isinstance(kind, str) else kind
    files = {file: path for part in kinds for file, path in shipped_files(part).items()}
    wanted = name.removesuffix(".yaml")
    if wanted in files:
        return files[wanted]
    wanted = Path(wanted).name
    near = [other for other in files if wanted and other.startswith(wanted)][:3] or get_close_matches(wanted, files, 1)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    words = " or ".join(_WORDS[part] for part in kinds)
    raise ValueError(f"There is no {words} {name!r}.{meant} There are: {', '.join(files) or 'none'}.")
