"""A configuration of verl as a recipe: a nested file, or the overrides of a script."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from .fates import (
    CHANGED,
    DECIDE,
    KEPT,
    NO_COUNTERPART,
    NOT_NEEDED,
    RENAMED,
    Conversion,
    Fate,
    Source,
    by_table,
    merged,
    unknown,
)
from .verl_batches import Batches, batches_and_steps, has_warmup_steps, read_batches
from .verl_keys import (
    ACTOR,
    ALIASES,
    BRANCHES,
    DEFAULTS,
    EVALUATION_FILES,
    KEYS,
    MODEL,
    OVERLONG,
    ROLLOUT,
    TRAINING_FILES,
)
from .verl_objective import objective, rewards


_DTYPES = {"fp32": "float32", "float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16"}

_NUMBERS = (  # beside those whose default is one
    *("trainer.total_training_steps", "reward.reward_kwargs.max_resp_len", f"{OVERLONG}.len"),
    *(f"{ACTOR}.{name}" for name in ("entropy_top_ratio", "ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu")),
)


def convert_verl(given: Mapping[str, Any], processes: int | None = None) -> Conversion:
    """
    Make a recipe of a configuration of verl.

    Args:
        given (`Mapping`):
            Values by dotted key, as the file or the command line has them.
        processes (`int`, *optional*):
            Number of processes of the training; by default the GPUs of the file.

    Raises:
        `ValueError`: if batches do not divide, with the numbers.
    """
    source = Source(given, DEFAULTS, ALIASES)
    machines, gpus = source["trainer.nnodes"], source["trainer.n_gpus_per_node"]
    for key, value in (("trainer.nnodes", machines), ("trainer.n_gpus_per_node", gpus)):
        if not isinstance(value, int) and processes is None:
            raise ValueError(f"{key} is {value!r}, which is no number: give --num_processes, the GPUs of the training")
    if processes is None:
        processes = machines * gpus
    _check_numbers(source)
    batches = read_batches(source, processes)
    decided: list[Fate] = []
    for part in (
        _model_and_data(source),
        objective(source),
        rewards(source),
        batches_and_steps(source, batches),
        _evaluation(source, batches),
        _generation(source),
        _optimizer(source),
        _output(source),
        _launch_keys(source, processes),
    ):
        decided += part
    answered = {fate.key for fate in decided}
    for key in source:
        if source.written[key] not in answered:
            decided.append(_single(source, key))
    launch: dict[str, Any] = {"accelerate_config": _launch_file(source), "num_processes": processes}
    if isinstance(machines, int) and machines > 1:
        launch["num_machines"] = machines
    return Conversion("verl", merged(decided), launch)


def _check_numbers(source: Source) -> None:
    """Refuse a text where a number is needed, such as a variable that a script takes from its environment."""
    for key in source:
        is_number = isinstance(DEFAULTS.get(key), (int, float)) or key in _NUMBERS
        elsewhere = key.startswith("trainer.n") or key.endswith("rollout_is_threshold")  # read where they are used
        if is_number and isinstance(source[key], str) and not elsewhere:
            raise ValueError(
                f"{source.written[key]} is {source[key]!r}, which is no number. Write one into a copy of it"
            )


def _single(source: Source, key: str) -> Fate:
    """What becomes of a key that decides alone, or with its whole branch."""
    if key in KEYS:
        return by_table(source, key, KEYS[key])
    branches = [name for name in BRANCHES if key == name or key.startswith(f"{name}.")]
    if branches:
        return by_table(source, key, BRANCHES[max(branches, key=len)])
    return unknown(source, key, [*KEYS, *BRANCHES])


def _model_and_data(source: Source) -> Iterator[Fate]:
    model, data = f"{MODEL}.path", "data.train_files"
    yield _path(source, model, "model_name_or_path", source.get(model))
    files = source.get(data)
    files = files if isinstance(files, list) else [files]
    yield _path(source, data, "dataset_name", _known(files[0], TRAINING_FILES), more=files[1:])
    own = source.get(data) is not None and _known(files[0], TRAINING_FILES) == files[0]
    key = "data.prompt_key"
    if own:
        why = "verl's files have the answer in a nested column."
        yield source.fate(
            key, RENAMED, why, prompt_column=source.get(key), solution_column="reward_model.ground_truth"
        )
    elif source.has(key):
        yield source.fate(key, NOT_NEEDED, "The columns of this data set are known.")
    yield from _lora(source)


def _lora(source: Source) -> Iterator[Fate]:
    rank, *others = (f"{MODEL}.{name}" for name in ("lora_rank", "lora_alpha", "target_modules"))
    if source.get(rank):
        yield source.fate(rank, CHANGED, use_peft=True, lora_r=source.get(rank))
        yield source.fate(others[0], RENAMED, lora_alpha=source.get(others[0]))
        modules = source.get(others[1])
        modules = modules if isinstance(modules, list) else [modules]
        yield source.fate(others[1], RENAMED, lora_target_modules=modules)
    else:
        yield from (source.fate(key, NOT_NEEDED, "There is no LoRA.") for key in [rank, *others] if source.has(key))


def _known(path: Any, table: Mapping[str, str]) -> Any:
    """The short name of a data set for the file that holds it."""
    text = str(path)
    return next((name for file, name in table.items() if text == file or text.endswith(f"/{file}")), path)


def _path(source: Source, key: str, option: str, value: Any, more: list | None = None) -> Fate:
    settings = {} if value is None else {option: value}
    if value is None:
        return source.fate(key, DECIDE, f"The file does not say it: set {option}.")
    if more:
        return source.fate(key, DECIDE, f"{option} takes one: join the files, or leave out {more}.", **settings)
    if "$" in str(value) or str(value).startswith("~"):
        why = f"Only a shell knows $NAME and ~: write the whole path, or a name on the Hub, in {option}."
        return source.fate(key, DECIDE, why, **settings)
    return source.fate(key, RENAMED if value == source.get(key) else CHANGED, "", **settings)


def _evaluation(source: Source, batches: Batches) -> Iterator[Fate]:
    files, every = "data.val_files", "trainer.test_freq"
    before, samples = "trainer.val_before_train", f"{ROLLOUT}.val_kwargs.n"
    steps = source.get(every)
    if steps is None or steps <= 0:
        if source.has(every):
            yield source.fate(every, NOT_NEEDED, "verl does not evaluate while it trains, nor does this by default.")
        keys = [key for key in (files, before, samples) if source.has(key)]
        yield from (
            source.fate(key, NOT_NEEDED, "Nothing is evaluated while it trains: trl-fork evaluate.") for key in keys
        )
        return
    names = source.get(files)
    names = names if isinstance(names, list) else [names]
    yield _path(source, files, "eval_dataset_name", _known(names[0], EVALUATION_FILES), more=names[1:])
    each = f"verl counts generation batches, of {batches.updates} optimizer steps each."
    yield source.fate(every, CHANGED, each, eval_strategy="steps", eval_steps=steps * batches.updates)
    yield source.fate(before, RENAMED, eval_on_start=bool(source.get(before)))
    n = source.get(samples)
    settings = {"num_generations_eval": n}
    if 8 * batches.processes % n:  # of TRL's default for per_device_eval_batch_size
        settings["per_device_eval_batch_size"] = n
    yield source.fate(samples, RENAMED, "At the training's temperature and top_p.", **settings)


def _generation(source: Source) -> Iterator[Fate]:
    engine, place = source.get(f"{ROLLOUT}.name"), f"{ROLLOUT}.name"
    vllm = engine != "hf"
    why = {"vllm": "", "hf": "transformers generates."}.get(engine, f"There is vLLM in the place of {engine}.")
    yield source.fate(place, CHANGED, why, use_vllm=vllm)
    keys = {
        "gpu_memory_utilization": ("vllm_gpu_memory_utilization", KEYS[f"{ROLLOUT}.gpu_memory_utilization"].why),
        "tensor_model_parallel_size": ("vllm_tensor_parallel_size", ""),
        "free_cache_engine": ("vllm_enable_sleep_mode", ""),
    }
    for name, (option, why) in keys.items():
        key = f"{ROLLOUT}.{name}"
        if vllm:
            yield source.fate(key, RENAMED, why, **{option: source.get(key)})
        elif source.has(key):
            yield source.fate(key, NOT_NEEDED, "Of vLLM.")
    length, prompts = f"{ROLLOUT}.max_model_len", "data.max_prompt_length"
    longest = source.get(prompts) + source.get("data.max_response_length")
    if vllm and source.get(length) is not None:
        yield source.fate(length, RENAMED, vllm_max_model_length=source.get(length))
        yield source.fate(prompts, NO_COUNTERPART, "TRL does not cut prompts: leave longer ones out of the data.")
    elif vllm:
        yield source.fate(prompts, CHANGED, KEYS[prompts].why, vllm_max_model_length=longest)
    else:
        yield source.fate(prompts, NO_COUNTERPART, "TRL does not cut prompts: leave longer ones out of the data.")
    yield by_table(source, "data.max_response_length", KEYS["data.max_response_length"])
    yield from _correction(source, vllm)


def _correction(source: Source, vllm: bool) -> Iterator[Fate]:
    level, limit = (f"algorithm.rollout_correction.{name}" for name in ("rollout_is", "rollout_is_threshold"))
    kind = source.get(level)
    if not vllm or not kind:
        if vllm:
            why = "TRL's default is true; verl's is none."
            yield source.fate(level, CHANGED, why, vllm_importance_sampling_correction=False)
        if source.has(limit):
            yield source.fate(limit, NOT_NEEDED, "There is no correction.")
        return
    kind = "sequence" if kind == "sequence" else "token"
    low, _, high = str(source.get(limit)).rpartition("_")  # "0.5_2.0" leaves out what is outside, 2.0 cuts
    mode = f"{kind}_{'mask' if low else 'truncate'}"
    yield source.fate(level, CHANGED, "", vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=mode)
    settings = {"vllm_importance_sampling_clip_max": float(high)}
    if low:
        settings["vllm_importance_sampling_clip_min"] = float(low)
    yield source.fate(limit, RENAMED, **settings)


def _optimizer(source: Source) -> Iterator[Fate]:
    betas, kind, least = (f"{ACTOR}.optim.{name}" for name in ("betas", "lr_scheduler_type", "min_lr_ratio"))
    first, second = source.get(betas)
    yield source.fate(betas, CHANGED, adam_beta1=float(first), adam_beta2=float(second))
    for name in ("lr", "weight_decay"):
        yield by_table(source, f"{ACTOR}.optim.{name}", KEYS[f"{ACTOR}.optim.{name}"])
    yield by_table(source, f"{ACTOR}.grad_clip", KEYS[f"{ACTOR}.grad_clip"])
    name = source.get(kind) or "constant"
    warmup = has_warmup_steps(source) or source.get(f"{ACTOR}.optim.lr_warmup_steps_ratio")
    if name == "constant":
        why = "transformers' constant has no warmup." if warmup else ""
        schedule = "constant_with_warmup" if warmup else "constant"
        yield source.fate(kind, CHANGED if warmup else KEPT, why, lr_scheduler_type=schedule)
    elif name == "cosine":
        schedule = "cosine_with_min_lr" if source.get(least) else "cosine"
        yield source.fate(kind, CHANGED if source.get(least) else KEPT, "", lr_scheduler_type=schedule)
    else:
        yield source.fate(kind, DECIDE, "lr_scheduler_type has transformers' names.")
    if name == "cosine" and source.get(least):
        yield source.fate(least, CHANGED, lr_scheduler_kwargs={"min_lr_rate": float(source.get(least))})
    elif source.has(least):
        yield source.fate(least, NOT_NEEDED, "It is 0, or the schedule does not fall.")
    for key, option in ((f"{ACTOR}.fsdp_config.model_dtype", "dtype"), (f"{ACTOR}.fsdp_config.dtype", "bf16")):
        value = _DTYPES.get(str(source.get(key)))
        if value is None:
            yield source.fate(key, DECIDE, f"{option} is not set.")
        else:
            yield source.fate(key, CHANGED, **{option: value if option == "dtype" else value == "bfloat16"})


def _output(source: Source) -> Iterator[Fate]:
    logger, project, run, place = (
        f"trainer.{name}" for name in ("logger", "project_name", "experiment_name", "default_local_dir")
    )
    names = source.get(logger)
    trackers = [name for name in (names if isinstance(names, list) else [names]) if name not in ("console", None)]
    known = [name for name in trackers if name in ("wandb", "tensorboard", "mlflow", "swanlab", "trackio", "clearml")]
    why = f"{', '.join(set(trackers) - set(known))} is no tracker of transformers." if trackers != known else ""
    yield source.fate(logger, DECIDE if why else CHANGED, why, report_to=known or ["none"])
    if "wandb" in known:
        yield source.fate(project, CHANGED, "", env={"WANDB_PROJECT": str(source.get(project))})
    elif source.has(project):
        yield source.fate(project, NOT_NEEDED, "Of a tracker.")
    if source.get(place) is not None:
        yield _path(source, place, "output_dir", source.get(place))
    else:
        folder = str(PurePosixPath("outputs", str(source.get(run)).replace("/", "_")))
        yield source.fate(place, CHANGED, "By the name of the run.", output_dir=folder)


def _launch_keys(source: Source, processes: int) -> Iterator[Fate]:
    for key in ("trainer.nnodes", "trainer.n_gpus_per_node"):
        if source.has(key):
            yield source.fate(key, CHANGED, f"The launch has --num_processes {processes}.")
    for key in (f"{ACTOR}.strategy", *(f"{ACTOR}.fsdp_config.{name}_offload" for name in ("param", "optimizer"))):
        if source.has(key):
            yield source.fate(key, CHANGED, f"The launch has --accelerate_config {_launch_file(source)}.")


def _launch_file(source: Source) -> str:
    """The launch file of this package that shards as the configuration does."""
    if source.get(f"{MODEL}.lora_rank"):
        return "ddp"
    if source.get(f"{ACTOR}.fsdp_config.optimizer_offload") or source.get(f"{ACTOR}.fsdp_config.param_offload"):
        return "zero3_offload"
    return "fsdp2" if source.get(f"{ACTOR}.strategy") == "fsdp2" else "zero3"
