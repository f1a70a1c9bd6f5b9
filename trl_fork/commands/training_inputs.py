"""Data, tokenizer and rewards of a run from its arguments, checked before a model is loaded."""

from typing import Any

from datasets import Dataset
from transformers import AutoProcessor, AutoTokenizer, IntervalStrategy
from trl import ModelConfig

from .. import ForkingGRPOConfig
from ..data.benchmarks import load_benchmark
from ..data.columns import column_names, place
from ..data.math_datasets import BENCHMARKS
from ..data.splits import naming, source_of
from ..data.training_sets import load_training_set, training_prompt
from ..rewards.functions import get_reward_function
from ..teams import TeamRollout, joint_reward, load_team
from ..trainer.checks import check_tokenizer, required_columns
from ..trainer.contrast import is_contrasted
from .training_arguments import ForkingScriptArguments


def load_data(
    arguments: ForkingScriptArguments,
    args: ForkingGRPOConfig,
    name: str,
    split: str,
    *,
    evaluation: bool = False,
    solution_required: bool = True,
):
    contrast = is_contrasted(args.credit)
    contrast_instruction = args.contrast_instruction if contrast else None
    with naming("eval_dataset_name" if evaluation and arguments.eval_dataset_name else "dataset_name"):
        if evaluation and name in BENCHMARKS:
            return load_benchmark(name, **(prompt_of(arguments) or {}), contrast_instruction=contrast_instruction)
        return load_training_set(
            name,
            split,
            config=arguments.dataset_config if name == arguments.dataset_name else None,
            streaming=arguments.dataset_streaming,
            deduplicate=False if evaluation else arguments.deduplicate,
            prompt_column=arguments.prompt_column,
            solution_column=arguments.solution_column,
            solution_required=solution_required,
            instruction=arguments.instruction,
            prompt_template=arguments.prompt_template,
            contrast=contrast,
            contrast_instruction=contrast_instruction,
        )


def load_evaluation_data(arguments: ForkingScriptArguments, args: ForkingGRPOConfig, *, solution_required: bool):
    """
    Load problems that are not trained on.

    Raises:
        `ValueError`: if there are none, before anything is trained, naming the options that choose them.
    """
    assert arguments.dataset_name  # `run` has looked
    name, split = arguments.eval_dataset_name or arguments.dataset_name, arguments.dataset_test_split
    config = arguments.dataset_config if name == arguments.dataset_name else None
    strategy = IntervalStrategy(args.eval_strategy).value
    why = f"eval_strategy is {strategy!r}" if strategy != "no" else "eval_on_start is set"
    remedy = (
        "Name other problems in eval_dataset_name (a data set, a file, or a benchmark such as 'math500') or their "
        "split in dataset_test_split, or set eval_strategy to 'no'."
    )
    trained = source_of(arguments.dataset_name, arguments.dataset_train_split, arguments.dataset_config)
    if source_of(name, split, config, benchmark=name in BENCHMARKS) == trained:
        raise ValueError(f"{why}, but {name!r} (split {split!r}) is what the model is trained on. {remedy}")
    try:
        return load_data(arguments, args, name, split, evaluation=True, solution_required=solution_required)
    except ValueError as error:
        raise ValueError(f"{why}, but there is no evaluation set: {error} {remedy}") from error


def load_processing_class(arguments: ForkingScriptArguments, args: ForkingGRPOConfig, model_config: ModelConfig):
    """The processor or tokenizer that the trainer would load; with `text_only`, an image-text model's tokenizer."""
    auto_class = AutoTokenizer if arguments.text_only else AutoProcessor
    try:
        return auto_class.from_pretrained(
            model_config.model_name_or_path,
            revision=model_config.model_revision,
            truncation_side="left",
            padding_side="left",
            trust_remote_code=args.trust_remote_code,
        )
    except ImportError as error:  # the package that reads images is missing
        if arguments.text_only:
            raise
        raise ImportError(
            f"The processor of {model_config.model_name_or_path!r} cannot be loaded: {error} To train an image-text "
            "model on text alone, set text_only to true (--text_only true)."
        ) from error


def check_prompts(arguments: ForkingScriptArguments, processing_class, dataset) -> None:
    """Check prompts before a large model is loaded, with errors in terms of the options of this script."""
    if arguments.text_only:
        refuse_images(dataset)
    first = dataset.select([0]) if isinstance(dataset, Dataset) else Dataset.from_list(list(dataset.take(1)))
    check_tokenizer(
        processing_class,
        first,
        plain_prompts='set prompt_template, a plain text (--prompt_template "Question: {question} Answer:", or paper)',
    )


def refuse_images(dataset) -> None:
    """Refuse columns and parts of messages that a tokenizer cannot read; the run would fail at the first one."""
    remedy = "and text alone is trained on and evaluated. Leave them out of the data, or set text_only to false."
    if images := [name for name in ("image", "images") if name in column_names(dataset)]:
        raise ValueError(f"text_only: the data set has the columns {images}, {remedy}")
    for number, prompt in enumerate(dataset["prompt"] if isinstance(dataset, Dataset) else ()):
        if isinstance(prompt, str) or isinstance(prompt[0]["content"], str):  # true of all rows if of one
            return
        kinds = {part.get("type") for message in prompt for part in message["content"] or ()} - {"text"}
        if kinds:
            raise ValueError(
                f"text_only: {place('prompt', number)}: the prompt has parts of type {sorted(kinds)}, {remedy}"
            )


def prompt_of(arguments: ForkingScriptArguments) -> dict[str, Any] | None:
    """Prompt of the training, which is also that of the evaluation."""
    assert arguments.dataset_name  # `run` has looked
    return training_prompt(
        arguments.dataset_name,
        arguments.dataset_train_split,
        config=arguments.dataset_config,
        streaming=arguments.dataset_streaming,
        prompt_column=arguments.prompt_column,
        instruction=arguments.instruction,
        prompt_template=arguments.prompt_template,
    )


def load_team_of(arguments: ForkingScriptArguments) -> TeamRollout | None:
    """The team of a run; `None` where the model answers alone."""
    if arguments.team_rounds < 1:
        raise ValueError(f"team_rounds must be at least 1, got {arguments.team_rounds}: every role speaks in each.")
    if arguments.team is not None:
        return load_team(arguments.team, arguments.team_rounds)
    if arguments.team_rounds != 1:
        raise ValueError(
            f"team_rounds={arguments.team_rounds} has no effect without a team: it is how often each role speaks. "
            "Leave it out, or name a team."
        )
    return None


def needs_solution(rewards: list) -> bool:
    """Whether a reward takes the column `solution`; of a joint one, the function that it asks."""
    asked = [reward.__wrapped__ if getattr(reward, "is_joint", False) else reward for reward in rewards]
    return any("solution" in required_columns(reward) for reward in asked)


def of_episodes(rewards: list) -> list:
    """The rewards, each made one of a team's episodes if it is not."""
    return [reward if getattr(reward, "is_joint", False) else joint_reward(reward) for reward in rewards]


def load_rewards(arguments: ForkingScriptArguments, args: ForkingGRPOConfig) -> list:
    return [
        get_reward_function(
            name,
            max_completion_len=arguments.soft_overlong_max_completion_len or args.max_completion_length,
            soft_punish_cache=arguments.soft_overlong_punish_cache,
        )
        for name in arguments.reward_funcs
    ]
