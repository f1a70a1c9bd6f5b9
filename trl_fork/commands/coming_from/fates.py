"""What becomes of a key of another tool's file, and the recipe that the keys together make."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What becomes of a key, in a few words."""

    KEPT = "kept"
    RENAMED = "renamed"
    CHANGED = "changed"
    DEFAULT = "default here"
    NOT_NEEDED = "not needed"
    NO_COUNTERPART = "no counterpart"
    DECIDE = "decide"
    NOT_KNOWN = "not known"


KEPT, RENAMED, CHANGED, DEFAULT = Verdict.KEPT, Verdict.RENAMED, Verdict.CHANGED, Verdict.DEFAULT
NOT_NEEDED, NO_COUNTERPART = Verdict.NOT_NEEDED, Verdict.NO_COUNTERPART
DECIDE, NOT_KNOWN = Verdict.DECIDE, Verdict.NOT_KNOWN
# Verdicts after which the run differs from what the file says, unless somebody decides otherwise.
OPEN = (NO_COUNTERPART, DECIDE, NOT_KNOWN)


@dataclass(frozen=True)
class Fate:
    """
    What becomes of one key.

    Args:
        key (`str`): The key, as the file has it.
        value: Its value; where the file does not have the key, the default of its tool.
        verdict ([`Verdict`]): In a word.
        why (`str`): What differs and why, as one or more sentences; empty where nothing does.
        settings (`dict`): Options of `trl-fork train` that it decides.
        given (`bool`): Whether the file has the key.
    """

    key: str
    value: Any
    verdict: Verdict
    why: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    given: bool = True

    @property
    def in_words(self) -> str:
        """The last column of the table."""
        parts = [f"{name}: {shown(value, 200)}" for name, value in self.settings.items()]
        words = f"{self.verdict}: {', '.join(parts)}" if parts else self.verdict
        return f"{words}. {self.why}" if self.why else words


@dataclass(frozen=True)
class Key:
    """
    One line of a table of keys.

    Args:
        verdict ([`Verdict`]): What becomes of the key.
        option (`str`): The option that it decides; several with commas; empty for none.
        why (`str`): What differs and why.
        convert (`Callable`, *optional*): The option's value from the key's; by default the same.
        harmless (`tuple`): Values with which a key without counterpart has no effect.
        computed (`bool`): Whether a function decides, together with other keys. The line is then for the reader.
    """

    verdict: Verdict
    option: str = ""
    why: str = ""
    convert: Callable[[Any], Any] | None = None
    harmless: tuple = ()
    computed: bool = False


@dataclass
class Conversion:
    """
    A recipe made of another tool's file.

    Args:
        tool (`str`): The tool, as it is written.
        fates (`list[Fate]`): What becomes of each key, in the order of the file.
        launch (`dict`): Options of the launch, `accelerate_config` and `num_processes` among them.
    """

    tool: str
    fates: list[Fate]
    launch: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for fate in self.fates:
            for name, value in fate.settings.items():
                if name == "env":
                    value = {**merged.get("env", {}), **value}
                merged[name] = value
        return merged

    @property
    def open_questions(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.verdict in OPEN]


class Source(Mapping):
    """
    The keys of a file, with the defaults of its tool for those that it does not have.

    Args:
        given (`Mapping`): Values by key, as the file has them.
        defaults (`Mapping`): The tool's defaults by canonical key.
        aliases (`Mapping`): Canonical beginnings of keys, by those of other versions.
    """

    def __init__(
        self, given: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Mapping[str, str] | None = None
    ):
        self.written: dict[str, str] = {}  # as the file writes a canonical key
        self._values: dict[str, Any] = {}
        self._defaults = defaults
        for key, value in given.items():
            (beginning, canonical) = next(
                (pair for pair in (aliases or {}).items() if key == pair[0] or key.startswith(f"{pair[0]}.")), ("", "")
            )
            name = canonical + key.removeprefix(beginning)
            self.written[name] = key
            self._values[name] = value

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._defaults[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, self._defaults.get(key, default))

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return key in self._values

    def fate(self, key: str, verdict: Verdict, why: str = "", /, **settings) -> Fate:
        """What becomes of a key by its canonical name."""
        name = self.written.get(key, key)
        return Fate(name, self.get(key), verdict, why, settings, given=self.has(key))


def by_table(source: Source, key: str, line: Key) -> Fate:
    """What becomes of a key that is alone decisive."""
    value = source.get(key)
    if line.verdict in OPEN and value in line.harmless:
        return source.fate(key, NOT_NEEDED, "With this value it has no effect.")
    if not line.option:
        return source.fate(key, line.verdict, line.why)
    converted = line.convert(value) if line.convert else value
    return source.fate(key, line.verdict, line.why, **{line.option: converted})


def unknown(source: Source, key: str, known: Collection[str]) -> Fate:
    """A key that no table has, with those that are spelled most like it."""
    parent, _, last = key.rpartition(".")
    lasts = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    elsewhere = [name for name in known if "." in name and name.rpartition(".")[2] == last]
    found = [lasts[name] for name in get_close_matches(last, lasts, 2, cutoff=0.6)] or elsewhere[:2]
    meant = f"Did you mean {' or '.join(found)}? " if found else ""
    return source.fate(key, NOT_KNOWN, f"{meant}It is not in the recipe.")


def merged(fates: Iterable[Fate]) -> list[Fate]:
    """Put what becomes of a key for one option beside what becomes of it for another."""
    by_key: dict[str, Fate] = {}
    for fate in fates:
        before = by_key.get(fate.key)
        by_key[fate.key] = fate if before is None else replace(before, settings={**before.settings, **fate.settings})
    return list(by_key.values())


def with_defaults(fates: Iterable[Fate], defaults: Mapping[str, Any]) -> list[Fate]:
    """
    Say where a value is the default here as well.

    A key that the file does not have stays in the list where its tool's default is another one than ours.

    Args:
        fates (`Iterable[Fate]`): What becomes of each key.
        defaults (`Mapping`): Defaults of the options of `trl-fork train`.
    """
    shown_fates = []
    for fate in fates:
        same = all(name in defaults and defaults[name] == value for name, value in fate.settings.items())
        if not fate.given and (same or not fate.settings) and fate.verdict not in OPEN:
            continue
        if fate.settings and same and fate.verdict in (KEPT, RENAMED):
            fate = replace(fate, verdict=DEFAULT)
        shown_fates.append(fate)
    return shown_fates


def shown(value: Any, longest: int = 60) -> str:
    """A value in a table or a sentence: as YAML would have it, and cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = f"[{', '.join(shown(item, longest) for item in value)}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{name}: {shown(item, longest)}' for name, item in value.items())}}}"
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
