"""Checks of model, data, tokenizer and rollouts that fail before hours are spent."""

import inspect
from collections.abc import Mapping
from functools import wraps

from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import ProcessorMixin
from trl import is_conversational


# What the trainer itself passes to a reward function (`GRPOTrainer._calculate_rewards`).
_TRAINER_ARGUMENTS = {
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
}


def check_training_data(dataset, reward_funcs, args, *, prompt_is_optional: bool, extra_fields: bool) -> None:
    """
    Check that a map-style data set can be trained on. Streams are not looked at: reading one may cost.

    Args:
        dataset: What was passed as `train_dataset`.
        reward_funcs: What was passed as `reward_funcs`.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        prompt_is_optional (`bool`): Whether an environment supplies the prompts.
        extra_fields (`bool`): Whether a rollout function may supply what rewards need beside the columns.

    Raises:
        `ValueError`: if the data set is empty, smaller than one generation batch, or lacks a column that a reward
            function needs.
    """
    if not isinstance(dataset, Dataset):
        return
    columns = dataset.column_names
    if len(dataset) == 0:
        raise ValueError(f"train_dataset is empty (columns: {columns}). Check the split, and any filter on it.")
    if "prompt" not in columns and not prompt_is_optional:
        raise ValueError(
            f"train_dataset needs a column 'prompt'; it has {columns}. Rename one, or use "
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
    if extra_fields:
        return
    for function in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        needed = [name for name in _required_arguments(function) if name not in {*columns, *_TRAINER_ARGUMENTS}]
        if needed:
            raise ValueError(
                f"The reward function '{getattr(function, '__name__', function)}' needs the columns {needed} that "
                f"train_dataset lacks; it has {columns}. Rename or add them."
            )


def check_tokenizer(processing_class, dataset) -> None:
    """
    Check that prompts of `dataset` can be tokenized and padded.

    Raises:
        `ValueError`: for a tokenizer with neither a padding nor an end-of-sequence token, or without a chat template
            where the prompts are conversations.
    """
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            "The tokenizer has neither a pad_token nor an eos_token to pad with. Set one, for example "
            "tokenizer.pad_token = '<pad>', on a token of its vocabulary."
        )
    conversational = isinstance(dataset, Dataset) and is_conversational(dataset[0])
    if conversational and getattr(processing_class, "chat_template", None) is None:
        raise ValueError(
            "The prompts are conversations, but the tokenizer has no chat_template to turn them into text. Load the "
            "tokenizer of the instruction-tuned model, set tokenizer.chat_template, or give prompts as plain strings."
        )


def refuse_frozen_model(model) -> None:
    """
    Check that something of a model is trained.

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


_ROWS = ("prompt_ids", "completion_ids", "logprobs", "env_mask")  # of a rollout, beside what rewards may ask for


def check_rollouts(rollout_func):
    """
    Wrap a rollout function so that rows and tokens that do not match are refused by name. TRL trains on them silently,
    or fails far from here.

    Raises:
        `TypeError`: where it does not return a dictionary.
        `ValueError`: where it returns more or fewer rows than there are prompts, in any of its lists; an empty prompt
            or completion; or log-probabilities or an `env_mask` that are not one per token of their completion.
    """

    @wraps(rollout_func)
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


def _required_arguments(function) -> list[str]:
    if not callable(function) or not hasattr(function, "__name__"):  # a reward model, or its name
        return []
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]
