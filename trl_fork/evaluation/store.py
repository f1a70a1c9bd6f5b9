"""
The folder of an evaluation: `completions.jsonl`, with one line per finished sample, and `settings.json`. A killed run
continues from there.
"""

import json
from pathlib import Path

from .._files import replacing, write_json


FIELDS = (
    *("dataset", "problem_id", "sample", "prompt", "completion", "length", "truncated", "solution", "correct"),
    *("answer", "grading_failure"),
)
OPTIONAL_FIELDS = ("completion_ids",)


class CompletionStore:
    """
    Samples in a folder. The main process appends to `completions.jsonl`, the others to files beside it, which
    [`CompletionStore.merge`] adds to it on the main process. Two processes never write to one file.

    Args:
        directory (`str` or `Path`): The folder.
        rank (`int`, *optional*, defaults to `0`): Number of this process; 0 is the main one.
        what (`str`, *optional*, defaults to `"an evaluation"`): What the folder holds, for errors.
    """

    def __init__(self, directory: str | Path, rank: int = 0, what: str = "an evaluation"):
        self.what = what
        self.directory = Path(directory)
        self.path = self.directory / "completions.jsonl"
        self._own = self.path if rank == 0 else self.directory / f"completions-rank{rank}.jsonl"

    def check_settings(self, settings: dict) -> None:
        """
        Check that the samples in the folder were made with the same settings.

        Args:
            settings (`dict`): Settings on which the samples depend.

        Raises:
            `ValueError`: naming each setting that differs, with both values and the remedy.
        """
        path = self.directory / "settings.json"
        if not path.exists():
            if self.path.exists():
                raise ValueError(f"{self.path} has no settings.json beside it. Choose another --output.")
            return
        settings = json.loads(json.dumps(settings))
        earlier = json.loads(path.read_text())["settings"]
        changed = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
        if "weights" in changed and "weights" not in earlier:  # an earlier version did not write it
            changed.remove("weights")
        if changed:
            differences = "; ".join(f"{n} was {earlier.get(n)!r}, is now {settings.get(n)!r}" for n in changed)
            raise ValueError(
                f"{self.directory} holds {self.what} with other settings: {differences}. Repeat the earlier "
                "settings to continue it, or choose another --output."
            )

    def save_settings(self, settings: dict, versions: dict[str, str]) -> None:
        """Write `settings.json` unless it exists: `{"settings": …, "versions": …}`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "settings.json"
        if not path.exists():
            write_json(path, {"settings": settings, "versions": versions})

    def append(self, samples: list[dict]) -> None:
        """
        Append samples (`FIELDS`, and those of `OPTIONAL_FIELDS` that they have) and hand them to the operating system:
        they survive this process.
        """

        def fields_of(sample: dict) -> dict:
            names = [*FIELDS, *(name for name in OPTIONAL_FIELDS if name in sample)]
            return {name: sample[name] for name in names}

        lines = "".join(json.dumps(fields_of(sample)) + "\n" for sample in samples)
        with open(self._own, "ab") as file:
            file.write(lines.encode())

    def merge(self) -> list[dict]:
        """
        Add the files of the other processes to `completions.jsonl`, without half-written last lines.

        Call it on the main process, while no other is writing.

        Returns:
            `list[dict]`: all samples.
        """
        parts = sorted(self.directory.glob("completions-rank*.jsonl"))
        # Merged by key: a run killed here has left both the merged file and the parts.
        samples = {key(s): s for path in (self.path, *parts) for s in read_completions(path)}
        with replacing(self.path) as unfinished, open(unfinished, "w") as file:
            file.writelines(json.dumps(sample) + "\n" for sample in samples.values())
        for part in parts:
            part.unlink()
        return list(samples.values())


def key(sample: dict) -> tuple[str, str, int]:
    """Key of a sample: data set, problem and sample number."""
    return sample["dataset"], sample["problem_id"], sample["sample"]


def read_completions(path: str | Path) -> list[dict]:
    """
    Read a file of completions, without a last line that a killed process has left half-written.

    Raises:
        `ValueError`: if any other line is damaged, naming it.
    """
    path = Path(path)
    if not path.exists():
        return []
    samples = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            samples.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is damaged: {error}. Remove that line and run again.") from error
    return samples
