"""Checks of model, data, tokenizer and rollouts that fail before hours are spent."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import ProcessorMixin
from trl import is_conversational

from .._logging import logger
from ..credit import Chain
from ..data.columns import REWARD_ARGUMENTS, misleading_columns, place


# Columns that `GRPOTrainer._calculate_rewards` does not pass on. For `completion_ids` it passes the completions' own.
_KEPT_FROM_REWARDS = ("prompt", "completion")
# Rewards are called by keyword.
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_training_data(
    dataset, reward_funcs, args, *, prompt_is_optional: bool, extra_fields: bool, eval_dataset=None
) -> None:
    """
    Check that a map-style data set can be trained on. Streams are not read, because reading one may be slow.

    Args:
        dataset: The argument `train_dataset`.
        reward_funcs: The argument `reward_funcs`.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        prompt_is_optional (`bool`): Whether an environment supplies the prompts.
        extra_fields (`bool`): Whether a rollout function may supply what rewards need beside the columns.
        eval_dataset (*optional*): The argument `eval_dataset`, which the rewards must be able to score too.

    Raises:
        `ValueError`: if the data set is empty, smaller than one generation batch, has a prompt that is missing or a
            column that TRL would take for something else, or lacks a column that a reward function needs.
    """
    if isinstance(dataset, Dataset):
        if len(dataset) == 0:
            raise ValueError(
                f"train_dataset is empty (columns: {dataset.column_names}). Check the split, and any filter on it."
            )
        if "prompt" not in dataset.column_names and not prompt_is_optional:
            raise ValueError(
                f"train_dataset needs a column 'prompt'; it has {dataset.column_names}. Rename one, or use "
                "trl_fork.data.to_prompt_and_solution."
            )
        prompts = args.generation_batch_size // args.num_generations
        if len(dataset) < prompts:
            raise ValueError(
                f"train_dataset has {len(dataset)} rows, but one generation batch takes {prompts} prompts "
                f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}), and "
                "incomplete batches are dropped: there would be no step at all. Lower per_device_train_batch_size, "
                "gradient_accumulation_steps or steps_per_generation, raise num_generations, or add data."
            )
    for name, data in named_datasets(dataset, eval_dataset):
        if not isinstance(data, Dataset) or len(data) == 0:
            continue
        _check_prompts(name, data)
        _check_columns(name, data)
        for function in [] if extra_fields else reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
            _check_reward(name, data, function)
            if args.remove_unused_columns and (needed := required_columns(function)):
                raise ValueError(
                    f"remove_unused_columns is set, and would take {needed} out of {name}, which the reward function "
                    f"'{_title(function)}' needs. Set remove_unused_columns to false."
                )


def named_datasets(train_dataset, eval_dataset) -> list[tuple[str, Any]]:
    """The data sets of a trainer, of which there may be several for evaluation, with their names in errors."""
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    return [(name, data) for name, data in {"train_dataset": train_dataset, **evaluated}.items() if data is not None]


def _check_prompts(name: str, dataset: Dataset) -> None:
    if "prompt" not in dataset.column_names or dataset.data.column("prompt").null_count == 0:
        return
    for number, prompt in enumerate(dataset["prompt"]):  # reads only this selection of the rows
        if prompt is None:
            raise ValueError(
                f"{name}: {place('prompt', number)}: the prompt is {prompt}. Leave such rows out: "
                "dataset.filter(lambda row: row['prompt'] is not None)."
            )


def _check_columns(name: str, dataset: Dataset) -> None:
    # `completion_ids` of the data is not passed to rewards; the other columns collide or are lost.
    if taken := [column for column in dataset.column_names if column in {*REWARD_ARGUMENTS} - {"completion_ids"}]:
        raise ValueError(
            f"{name} has the columns {taken}, which are arguments that the trainer passes to rewards itself. Rename "
            "or remove them."
        )
    if "prompt" in dataset.column_names and (taken := misleading_columns(dataset[0], dataset[0]["prompt"])):
        raise ValueError(
            f"{name} has the columns {taken}, one of which TRL may look at to tell whether prompts are conversations, "
            "and would misread 'prompt'. Rename or remove them."
        )


def _title(function) -> str:
    function = _unbound(function)
    return getattr(function, "__name__", type(function).__name__)


def _unbound(function):
    """The function of a partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _check_reward(name: str, dataset: Dataset, function) -> None:
    columns = [column for column in dataset.column_names if column not in _KEPT_FROM_REWARDS]
    title = _title(function)
    if lost := [argument for argument in required_columns(function) if argument in _KEPT_FROM_REWARDS]:
        raise ValueError(
            f"The reward function '{title}' takes {lost}, which the trainer does not pass: it passes 'prompts' and "
            "'completions', one of each per completion. Take these, or give the column another name."
        )
    if refused := _refused_arguments(function):
        raise ValueError(
            f"The reward function '{title}' does not take {refused}, which the trainer passes to every reward. Add "
            "**kwargs to its arguments."
        )
    needed = [argument for argument in required_columns(function) if argument not in columns]
    if needed:
        raise ValueError(
            f"The reward function '{title}' needs the columns {needed} that {name} lacks; it has "
            f"{dataset.column_names}. Rename or add them."
        )
    # What a reward says of the values that it takes: `column_checks` of the function.
    for column, fault_of in getattr(_unbound(function), "column_checks", {}).items():
        for number, value in enumerate(dataset[column] if column in columns else ()):
            if fault := fault_of(value):
                raise ValueError(f"{name}: {place(column, number)}: {fault}")
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None and not isinstance(function, functools.partial):
        # The arguments that a wrapper fills in itself are not visible here.
        maybe = [argument for argument in required_columns(wrapped) if argument not in columns]
        if maybe and _takes_any(_parameters(function) or []):
            logger.warning(
                f"The reward function '{title}' wraps one that needs {maybe}, which {name} lacks; it has "
                f"{dataset.column_names}. Unless the wrapper passes these itself, the first step will fail."
            )


def required_columns(reward_func) -> list[str]:
    """
    Arguments that a reward function requires beyond those that the trainer always passes.

    Args:
        reward_func: A function, synchronous or not, a method, a partial, an object to call; or a reward model, which
            needs no columns.

    Returns:
        `list[str]`: Names of arguments. Those that a partial or a wrapper has bound are not among them: a wrapper
        that takes any argument needs none.
    """
    parameters = _parameters(reward_func) or []
    needed = [p.name for p in parameters if p.kind in _BY_NAME and p.default is inspect.Parameter.empty]
    return [name for name in needed if name not in {*REWARD_ARGUMENTS, "environments"}]


def _parameters(reward_func) -> list[inspect.Parameter] | None:
    """Parameters of a call; `None` if they are not known."""
    if isinstance(reward_func, (str, torch.nn.Module)) or not callable(reward_func):
        return None
    try:
        # `__wrapped__` is not followed, because the wrapper is what is called.
        return list(inspect.signature(reward_func, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        return None


def _takes_any(parameters: list[inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _refused_arguments(reward_func) -> list[str]:
    """Arguments that the trainer passes to every reward and that this one does not take."""
    parameters = _parameters(reward_func)
    if parameters is None or _takes_any(parameters):
        return []
    taken = {parameter.name for parameter in parameters if parameter.kind in _BY_NAME}
    return [name for name in REWARD_ARGUMENTS if name not in taken]


def check_tokenizer(processing_class, dataset, plain_prompts: str = "give prompts as plain strings") -> None:
    """
    Check that prompts of `dataset` can be tokenized and padded.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor of the run.
        dataset: The argument `train_dataset`; streams are not read.
        plain_prompts (`str`, *optional*):
            Advice for the error message: how to get prompts that need no chat template.

    Raises:
        `ValueError`: for a tokenizer with neither a padding nor an end-of-sequence token, or without a chat template
            where the prompts are conversations; or for conversations that hold a text in chat format.
    """
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            "The tokenizer has neither a pad_token nor an eos_token to pad with. Set one, for example "
            "tokenizer.pad_token = '<pad>', on a token of its vocabulary."
        )
    prompt = dataset[0].get("prompt") if isinstance(dataset, Dataset) and len(dataset) else None
    if not prompt or not is_conversational({"prompt": prompt}):
        return
    if getattr(processing_class, "chat_template", None) is None:
        raise ValueError(
            "The prompts are conversations, but the tokenizer has no chat_template to turn them into text, as those "
            f"of base models. For a base model, {plain_prompts}; otherwise load the tokenizer of the "
            "instruction-tuned model, or set tokenizer.chat_template."
        )
    content = prompt[-1].get("content")
    openings = _openings(processing_class, tokenizer) if isinstance(content, str) else []
    if found := [token for token in openings if token in content]:
        raise ValueError(
            f"train_dataset: {place('prompt', 0)}: the message holds {found}, so that it is in chat format already "
            f"and would be wrapped a second time: {content[:60]!r}. Write it as a message without them, or "
            f"{plain_prompts}."
        )


def check_processing_class(processing_class, dataset, chain: Chain | None) -> None:
    """[`check_tokenizer`], and the refusal of a processor of images beside credit rules."""
    if chain is not None and isinstance(processing_class, ProcessorMixin):
        raise NotImplementedError(
            "Image-text models are not supported with top_entropy_quantile < 1.0 yet: the selection has not been "
            "tested with image inputs. To train on text alone pass a tokenizer, processing_class="
            "AutoTokenizer.from_pretrained(...), or set text_only (--text_only true of `trl-fork train`); or set "
            "top_entropy_quantile=1.0."
        )
    check_tokenizer(processing_class, dataset)


def _openings(processing_class, tokenizer) -> list[str]:
    """Special tokens that the chat template writes before a user's message."""
    marker = "\x00"
    try:
        text = processing_class.apply_chat_template(
            [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # templates raise any type: this one does not accept a single user message
        return []
    before, found, _ = text.partition(marker)
    special = set(tokenizer.all_special_tokens) - {tokenizer.bos_token}
    return sorted(token for token in special if token in before) if found else []


def warn_of_overlap(train_dataset, eval_dataset) -> None:
    """Warn of evaluation problems that are also trained on."""
    if not (isinstance(train_dataset, Dataset) and isinstance(eval_dataset, Dataset)):
        return
    evaluated = [str(prompt) for prompt in eval_dataset["prompt"]]
    trained = {str(prompt) for prompt in train_dataset["prompt"]}
    both = sum(prompt in trained for prompt in evaluated)
    if both:
        logger.warning(
            f"eval_dataset: {both} of its {len(evaluated)} prompts are in the training data too. A result on "
            "them is not a held-out result: leave them out of one of the two."
        )


def refuse_frozen_model(model) -> None:
    """
    Check that a model has trainable parameters.

    Raises:
        `ValueError`: if no parameter is trainable. TRL would run every step, and log a gradient norm, for nothing.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        return
    if is_peft_model(model):
        remedy = (
            f"its adapter {model.active_adapter!r} is loaded for inference. Load it with "
            "PeftModel.from_pretrained(model, path, is_trainable=True)"
        )
    else:
        remedy = "call model.requires_grad_(True), or pass a peft_config to train an adapter on it"
    raise ValueError(
        f"No parameter of the {type(model).__name__} is trainable (requires_grad is False for all "
        f"{sum(1 for _ in model.parameters())}), so that no step would change it: {remedy}."
    )


_ROWS = ("prompt_ids", "completion_ids", "logprobs", "env_mask")  # lists of a rollout, beside those for rewards


def check_rollouts(rollout_func):
    """
    Wrap a rollout function so that rows and tokens that do not match are refused by name. TRL would train on them
    silently, or fail later with another error.

    Raises:
        `TypeError`: where it does not return a dictionary.
        `ValueError`: where it returns more or fewer rows than there are prompts, in any of its lists; an empty prompt
            or completion; or log-probabilities or an `env_mask` that are not one per token of their completion.
    """

    @functools.wraps(rollout_func)
    def checked(prompts, trainer):
        output = rollout_func(prompts, trainer)
        here = f"on process {trainer.accelerator.process_index}"
        if not isinstance(output, Mapping):
            raise TypeError(
                f"rollout_func must return a dictionary with prompt_ids, completion_ids and logprobs, got "
                f"{type(output).__name__} {here}."
            )
        for name, values in output.items():
            per_row = isinstance(values, list) or (name in _ROWS and values is not None)
            if per_row and len(values) != len(prompts):
                raise ValueError(
                    f"rollout_func returned {len(values)} rows of {name!r} for {len(prompts)} prompts {here}. Return "
                    "one row per prompt, in the order of the prompts: each prompt already comes as many times as it "
                    "is to be answered (num_generations). What is the same for all rows must not be a list."
                )
        for name, remedy in (
            ("completion", "return the end-of-sequence token where the model says nothing"),
            ("prompt", "return the beginning-of-sequence token at least: something has to predict the first token"),
        ):
            for row, ids in enumerate(output.get(f"{name}_ids", ())):
                if len(ids) == 0:
                    raise ValueError(
                        f"rollout_func returned an empty {name} in row {row} of {len(prompts)} {here}. Every {name} "
                        f"needs at least one token: {remedy}."
                    )
        for name in ("logprobs", "env_mask"):
            if output.get(name) is None or "completion_ids" not in output:
                continue
            for row, (ids, values) in enumerate(zip(output["completion_ids"], output[name], strict=True)):
                if len(values) != len(ids):
                    raise ValueError(
                        f"rollout_func returned {len(values)} values of {name!r} for the {len(ids)} completion tokens "
                        f"of row {row} {here}. Return one value per token."
                    )
        return output

    return checked
