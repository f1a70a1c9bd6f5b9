"""
The folder of a run as its training left it: log, progress and settings.

`trl-fork train` writes `trainer_state.json` at its end, and the Trainer writes one into every checkpoint; the one of
the most steps is read, so that a run that was cut off, or is still running, has its curves up to its last checkpoint.
Settings are those of `training_settings.json`, or else of `training_args.bin`, of which nothing is run.
"""

import io
import json
import math
import pickle
import zipfile
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


STATE, SETTINGS, ARGUMENTS = "trainer_state.json", "training_settings.json", "training_args.bin"
CHECKPOINTS = "checkpoint-*"
ACTIVITIES = ("generation", "waiting", "rewards", "scoring", "training", "other")
STEP_TIME = "time/step"  # seconds of a step, which no log has: the sum of its activities
# Where a run writes, and what a process found around it: other in any two runs.
_PLACES = ("output_dir", "run_name", "logging_dir", "hub_model_id", "local_rank", "resume_from_checkpoint")

# Options on which no step depends: how far a run goes, what it logs, shows, evaluates, saves and publishes, how it is
# shared out, and ways to compute the same. All others change what is learned, those of later versions too.
_UNLEARNED = (
    *("max_steps", "num_train_epochs", "log_*", "logging_*", "report_*", "fork_report_steps", "disable_tqdm"),
    *("num_completions_to_print", "project", "trackio_*", "include_*", "skip_memory_metrics", "debug", "do_*"),
    *("eval_*", "*_full_eval", "per_device_eval_batch_size", "num_generations_eval", "dataset_test_split"),
    *("prediction_loss_only", "batch_eval_metrics", "load_best_model_at_end", "metric_for_best_model"),
    *("greater_is_better", "save_*", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
    *("hub_*", "push_to_hub", "use_cpu", "dataloader_*", "ddp_*", "average_tokens_across_devices"),
    *("torch_compile*", "torch_empty_cache_steps", "gradient_checkpointing*", "activation_checkpointing*"),
    *("skip_inert_compute", "padding_free", "max_tokens_per_forward", "reuse_scoring_graph"),
    *("vllm_mode", "vllm_server_*", "vllm_group_port", "vllm_max_model_length"),
    *("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode", "vllm_tensor_parallel_size"),
)


@dataclass
class Run:
    """
    One run.

    Args:
        path (`Path`): Its folder.
        log (`list[dict]`): Entries of its log that name a step, with numbers alone.
        step (`int`, *optional*): Optimizer steps that the log covers; `None` for a folder without a training.
        max_steps (`int`, *optional*): Steps of the whole run.
        settings (`dict`, *optional*): Options of the training by name; `None` if the folder does not hold them.
        changed (`list[str]`, *optional*): Options whose value is not the default; `None` if that is not known.
        versions (`dict`): Versions of packages by name.
        notes (`list[str]`): Sentences about files that were left out.
    """

    path: Path
    log: list[dict[str, float]] = field(default_factory=list)
    step: int | None = None
    max_steps: int | None = None
    settings: dict[str, Any] | None = None
    changed: list[str] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def progress(self) -> str:
        """How far it got, in words."""
        if self.step is None:
            return "no training in this folder"
        if not self.max_steps:
            return f"{self.step:,} steps"
        if self.step >= self.max_steps:
            return f"finished, {self.step:,} steps"
        return f"step {self.step:,} of {self.max_steps:,}: cut off, or still running"

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one key of the log."""
        points = [(int(entry["step"]), entry[key]) for entry in self.log if key in entry]
        return [step for step, _ in points], [value for _, value in points]

    @property
    def speed(self) -> dict[str, float]:
        """Means over all steps that were timed: seconds per step, by activity too, tokens per step and per second."""
        rows, before = [], 0.0
        for entry in (entry for entry in self.log if STEP_TIME in entry):
            rows.append((max(entry["step"] - before, 1.0), entry))
            before = entry["step"]
        total = sum(steps for steps, _ in rows)
        if not total:
            return {}
        names = [STEP_TIME, *(f"time/{name}" for name in ACTIVITIES)]
        means = {name: sum(steps * entry.get(name, 0.0) for steps, entry in rows) / total for name in names}
        timed = [(steps, entry) for steps, entry in rows if "tokens_per_second" in entry]
        seconds = sum(steps * entry[STEP_TIME] for steps, entry in timed)
        if seconds:
            tokens = sum(steps * entry[STEP_TIME] * entry["tokens_per_second"] for steps, entry in timed)
            means["tokens_per_second"] = tokens / seconds
            means["tokens_per_step"] = tokens / sum(steps for steps, _ in timed)
        return means


def read_run(path: str | Path) -> Run:
    """
    Read the folder of a run. It may hold no training, such as one of an evaluation alone.

    Args:
        path (`str` or `Path`): Output folder of a training, or one of its checkpoints.

    Raises:
        `ValueError`: if there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"There is no folder {str(path)!r} (looked from {Path.cwd()}). A run is an output_dir.")
    run = Run(path)
    states = []
    for file in (path / STATE, *sorted(path.glob(f"{CHECKPOINTS}/{STATE}"))):
        state = _read_json(file, run.notes)
        if isinstance(state, dict) and isinstance(state.get("log_history"), list):
            states.append(state)
    if states:
        state = max(states, key=lambda found: _number(found.get("global_step")) or 0)  # the first of equal ones
        run.log = [entry for entry in map(_numbers, state["log_history"]) if "step" in entry]
        run.step = int(_number(state.get("global_step")) or 0)
        run.max_steps = int(_number(state.get("max_steps")) or 0) or None
    if saved := read_settings(path, run.notes):
        run.settings = saved["settings"]
        run.changed = [str(name) for name in saved.get("changed") or ()]
        run.versions = {str(name): str(number) for name, number in (saved.get("versions") or {}).items()}
        for sentence in saved.get("resumed") or ():
            run.notes.append(f"{path} was continued with other settings: {sentence}. Its curves are of both.")
        return run
    for file in (path / ARGUMENTS, *sorted(path.glob(f"{CHECKPOINTS}/{ARGUMENTS}"))):
        if file.is_file():
            try:
                run.settings = read_arguments(file)
                break
            except Exception as error:  # of a damaged pickle, any
                run.notes.append(f"{file} cannot be read ({type(error).__name__}: {error}).")
    return run


def read_settings(path: Path, notes: list[str] | None = None) -> dict[str, Any] | None:
    """The content of the `training_settings.json` of a run, or of the run of a checkpoint; `None` without one."""
    for home in (path, path.parent) if path.match(CHECKPOINTS) else (path,):
        saved = _read_json(home / SETTINGS, [] if notes is None else notes)
        if isinstance(saved, dict) and isinstance(saved.get("settings"), dict):
            return saved
    return None


def learned_differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """The [`differences`] of the settings of a run and of its continuation that change what it learns."""
    rows = differences([Run(Path(), settings=settings) for settings in (before, after)])
    return [(name, values) for name, values in rows if not any(fnmatchcase(name, p) for p in _UNLEARNED)]


def differences(runs: list[Run]) -> list[tuple[str, list[Any]]]:
    """
    Options and versions that are not the same in all runs whose settings are known: names and values, in the order of
    the runs, with `None` where a run does not have them. An option that only some of the files have is left out if its
    value is the same in all that do: files of other versions, and of Python, have fewer.
    """
    rows = []
    for read in (lambda run: run.settings or {}, lambda run: {f"version of {k}": v for k, v in run.versions.items()}):
        for name in dict.fromkeys(name for run in runs for name in read(run)):
            known = {_comparable(read(run)[name]) for run in runs if name in read(run)}
            if len(known) > 1 and name not in _PLACES:
                rows.append((name, [read(run).get(name) for run in runs]))
    return rows


def _comparable(value) -> str:
    if isinstance(value, float) and value.is_integer():  # 20.0 of a YAML file, and 20 of a command line
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


class _Inert:
    """What stands for every class and function of a pickle, so that none of them is imported or called."""

    values: tuple = ()  # the pickle may make an object without calling its class

    def __init__(self, *values, **settings):
        self.values = values

    def _ignore(self, *items):
        """In the place of what fills a list, a set or a dictionary of another class."""

    append = extend = add = __setitem__ = _ignore


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        return _Inert

    def persistent_load(self, pid):
        return None


def read_arguments(path: str | Path) -> dict[str, Any]:
    """
    Read the fields of a `training_args.bin` without running anything that it names.

    Args:
        path (`str` or `Path`): The file, as `torch.save` writes it.

    Returns:
        `dict`: numbers, texts, lists and dictionaries; members of an enumeration by their value. Other objects, tokens
        of the Hub, and fields whose name begins with `_`, are left out.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        arguments = _Reader(io.BytesIO(archive.read(name))).load()
    fields = {name: _plain(value) for name, value in vars(arguments).items() if name != "values"}
    return {
        name: value
        for name, value in fields.items()
        if not name.startswith("_") and not name.endswith("_token") and not isinstance(value, _Inert)
    }


def _plain(value):
    if isinstance(value, _Inert) and len(value.values) == 1:  # a member of an enumeration
        return _plain(value.values[0])
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _read_json(path: Path, notes: list[str]):
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error}), and is left out.")
        return None


def _number(value) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numbers(entry) -> dict[str, float]:
    """The numbers of a log's entry, and the sum of its times."""
    items = entry.items() if isinstance(entry, dict) else ()
    found = {str(key): number for key, value in items if (number := _number(value)) is not None}
    if not math.isfinite(found.get("step", 0.0)):
        del found["step"]
    times = [found[f"time/{name}"] for name in ACTIVITIES if f"time/{name}" in found]
    return {**found, STEP_TIME: sum(times)} if times else found
