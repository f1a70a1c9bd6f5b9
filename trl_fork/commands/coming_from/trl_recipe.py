"""A recipe of Open-R1, or a file of `trl grpo`, as a recipe of `trl-fork train`."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..renamed_options import OTHER_NAMES, REMOVED, RENAMED
from .fates import CHANGED, DECIDE, DEFAULT, KEPT, NOT_NEEDED, Conversion, Fate, Source, by_table, unknown
from .fates import RENAMED as NEW_NAME
from .trl_keys import KEYS, OPEN_R1_DEFAULTS, REWARD_FUNCTIONS, REWARDS, TRL_DEFAULTS


def convert_trl(
    given: Mapping[str, Any], options: Collection[str], processes: int | None = None, *, open_r1: bool = False
) -> Conversion:
    """
    Make a recipe of a file for `trl grpo` or for Open-R1's `grpo.py`.

    Args:
        given (`Mapping`):
            The file.
        options (`Collection`):
            Names of the options of `trl-fork train`.
        processes (`int`, *optional*):
            Number of processes of the training.
        open_r1 (`bool`, *optional*, defaults to `False`):
            Whether names of rewards and defaults are Open-R1's.

    Raises:
        `ValueError`: if the generation batch does not hold whole groups, with the numbers.
    """
    source = Source(given, OPEN_R1_DEFAULTS if open_r1 else TRL_DEFAULTS)
    fates = [fate for part in (_rewards(source, open_r1), _selection(source)) for fate in part]
    answered = {fate.key for fate in fates}
    fates += [_single(source, key, options) for key in source if key not in answered]
    if open_r1:
        fates += _old_defaults(source)
    elif source.get("reward_funcs") is None:
        why = "trl grpo has no reward by default; accuracy_reward is the default here."
        fates.append(source.fate("reward_funcs", DECIDE, why))
    launch = {"num_processes": check_groups(source, processes)} if processes or _needs_processes(source) else {}
    return Conversion("Open-R1" if open_r1 else "TRL", fates, launch)


def _single(source: Source, key: str, options: Collection[str]) -> Fate:
    if key in KEYS:
        if key == "push_to_hub_revision":
            return source.fate(key, CHANGED, KEYS[key].why, **({"push_to_hub": True} if source[key] else {}))
        return by_table(source, key, KEYS[key])
    if key in options or key == "env":
        return source.fate(key, KEPT, **{key: source[key]})
    if key in RENAMED:
        return source.fate(key, NEW_NAME, **{RENAMED[key]: source[key]})
    if key in REMOVED:
        what = REMOVED[key].replace("`", "")
        verdict = NOT_NEEDED if what.startswith("remove it") else DECIDE
        return source.fate(key, verdict, f"{what[0].upper()}{what[1:]}.")
    if key in OTHER_NAMES:
        return source.fate(key, DECIDE, f"No option of TRL. If it is {OTHER_NAMES[key]}, set that.")
    return unknown(source, key, [*options, *KEYS, *RENAMED])


def _rewards(source: Source, open_r1: bool) -> Iterator[Fate]:
    names = source.get("reward_funcs")
    if names is None:
        return
    names = names if isinstance(names, list) else [names]
    if not open_r1:
        if "get_soft_overlong_punishment" in names:
            here = ["soft_overlong_punishment" if "get_soft" in name else name for name in names]
            why = "trl grpo calls it with TRL's lengths; set soft_overlong_max_completion_len and _punish_cache."
            settings = {"soft_overlong_max_completion_len": 1280, "soft_overlong_punish_cache": 256}
            yield source.fate("reward_funcs", CHANGED, why, reward_funcs=here, **settings)
        else:
            yield source.fate("reward_funcs", KEPT, reward_funcs=names)
        return
    own = [name for name in names if name in REWARD_FUNCTIONS]
    strange = [name for name in names if name not in REWARDS and name not in REWARD_FUNCTIONS]
    here = [REWARDS.get(name) or (f"my_rewards.{name}" if name in own else name) for name in names]
    why = ""
    if own:
        functions = ", ".join(f"{name} = {REWARD_FUNCTIONS[name]}" for name in own)
        why = f"In a file my_rewards.py, copy from Open-R1's rewards.py: {functions}."
    if strange:
        why += f" {', '.join(map(str, strange))}: no reward of Open-R1."
    yield source.fate("reward_funcs", DECIDE if why else CHANGED, why.strip(), reward_funcs=here)
    lengths = {"max_completion_len": 16384, "soft_punish_cache": 4096}
    for key, default in lengths.items():
        option = RENAMED[key]
        if "soft_overlong_punishment" in names:
            value = source.get(key, default)
            yield Fate(key, value, NEW_NAME, "", {option: value}, given=source.has(key))
        elif source.has(key):
            yield source.fate(key, NOT_NEEDED, "Of soft_overlong_punishment, which is no reward here.")


def _selection(source: Source) -> Iterator[Fate]:
    """TRL's option of the same name takes another pool and another denominator."""
    key, old = "top_entropy_quantile", "token_entropy_percentile_threshold"
    if source.has(old):
        quantile, key = round(1 - source[old], 10), old
    else:
        quantile = source.get(key)
    settings: dict[str, Any] = {"top_entropy_quantile": quantile}
    if quantile == 1.0:
        yield source.fate(
            key, KEPT if source.has(key) else DEFAULT, "All tokens. 0.2 trains on forking tokens.", **settings
        )
    else:
        ours = {"entropy_threshold_scope": "micro_batch", "loss_denominator": "all"}
        settings |= {name: value for name, value in ours.items() if not source.has(name)}
        why = "So it is TRL's; without the two, the pool is the batch and the divisor the selected tokens."
        yield source.fate(key, CHANGED if len(settings) > 1 else KEPT, why, **settings)
    if not source.has("epsilon_high"):
        why = "Clipped as below; 0.28 is the default here."
        if source.get("loss_type") == "cispo":
            why = "TRL's limit is epsilon, which is far too low for cispo: set 5.0."
            yield source.fate("epsilon_high", DECIDE, why, epsilon_high=5.0)
        else:
            yield source.fate("epsilon_high", KEPT, why, epsilon_high=None)


def _old_defaults(source: Source) -> Iterator[Fate]:
    """What a recipe for TRL 0.18 leaves unsaid."""
    for key in ("beta", "loss_type", "max_completion_length"):
        if not source.has(key):
            yield source.fate(key, KEPT, "The default of TRL 0.18, which Open-R1 installs.", **{key: source.get(key)})
    if not source.has("dataset_prompt_column"):
        yield source.fate("dataset_prompt_column", NEW_NAME, prompt_column="prompt")
    if source.get("use_vllm"):
        why = "TRL 0.18 did not correct for vLLM; the default is true now."
        yield Fate(
            "vllm_importance_sampling_correction",
            None,
            KEPT,
            why,
            {"vllm_importance_sampling_correction": False},
            False,
        )
        if not source.has("vllm_mode"):
            why = "The default was a server, trl vllm-serve; it is colocate now."
            yield Fate("vllm_mode", "server", DECIDE, f"{why} Set vllm_mode: server to keep one.", {}, False)


def _numbers(source: Source) -> tuple[int, int]:
    """Completions of a generation batch for one process, and completions to a prompt."""
    rows = source.get("per_device_train_batch_size", 8)
    steps = source.get("steps_per_generation") or source.get("gradient_accumulation_steps", 1)
    return rows * steps, source.get("num_generations", 8)


def _needs_processes(source: Source) -> bool:
    rows, group = _numbers(source)
    return not source.has("generation_batch_size") and bool(rows % group)


def check_groups(source: Source, processes: int | None) -> int:
    """
    The number of processes with which a generation batch holds whole groups: the given one, or the least.

    Raises:
        `ValueError`: if the given number is none of them.
    """
    rows, group = _numbers(source)
    fits = [n for n in range(1, group + 1) if rows * n % group == 0]
    if processes is None:
        return fits[0]
    total = source.get("generation_batch_size") or rows * processes
    if total % group:
        raise ValueError(
            f"{processes} processes generate {total} completions at a time, no multiple of num_generations={group}. "
            f"Give --num_processes a multiple of {fits[0]}"
        )
    return processes
