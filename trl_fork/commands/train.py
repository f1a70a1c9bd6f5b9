r"""
Train a language model by reinforcement learning on its forking tokens.

    accelerate launch examples/train.py --config configs/recipes/quickstart.yaml
    accelerate launch examples/train.py --model_name_or_path Qwen/Qwen3-0.6B \
        --dataset_name openai/gsm8k --dataset_config main --output_dir outputs/gsm8k

Any field of ForkingGRPOConfig (TRL's GRPOConfig and more), of TRL's ModelConfig (LoRA and quantization among them) and
of the script arguments below can stand in the YAML file or on the command line; the command line wins.
"""

import os
import shlex
import sys
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path

from datasets import Dataset
from transformers import AutoProcessor, AutoTokenizer, ProgressCallback, TrainingArguments
from trl import GRPOConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from .. import ForkingGRPOConfig, ForkingGRPOTrainer
from ..data.columns import column_names, place
from ..data.loading import load_benchmark, load_training_set, source_of, training_prompt
from ..data.math_datasets import BENCHMARKS, TRAINING_SETS, find_dataset
from ..data.prompt_file import save_prompt
from ..generation.engines import check_model_path
from ..report.curves import plot_training, require_matplotlib
from ..rewards.functions import get_reward_function
from ..trainer.callbacks import ForkReportCallback
from ..trainer.checkpoints import check_model_will_be_saved
from ..trainer.checks import check_tokenizer, required_columns, warn_of_overlap
from ..trainer.telemetry import LastLogCallback, SummaryCallback
from .finishing import attempt, files_of, train_and_save
from .launch import launch, split_launch
from .output_directory import checkpoint_choice, refuse_other_run
from .training_options import GroupedTrlParser


MODULE = "trl_fork.commands.train"  # also where it runs as `__main__`


@dataclass
class ForkingScriptArguments(ScriptArguments):
    """
    Data, rewards, and what to see of the run.

    Args:
        dataset_name (`str`):
            `dapo-math-17k`, `dapo-math-17k-processed`, `guru-math` or `gsm8k` for these data sets as the paper uses
            them; or a Hub name, a folder of `save_to_disk`, or a JSON, JSONL, Parquet or CSV file.
        eval_dataset_name (`str`, *optional*):
            Where the evaluation problems are, or a benchmark by its short name (`aime24`, `math500`, `gsm8k`, ...); by
            default the split `dataset_test_split` of `dataset_name`. The rows that are trained on are refused.
        prompt_column, solution_column (`str`, *optional*):
            Columns of question and answer; found by their usual names if not given. Only rewards that take `solution`
            need answers. Other columns stay, for rewards of your own.
        instruction (`str`, *optional*):
            Text of the user message, for models with a chat template; `{question}` stands for the question. By default
            the question alone, and a request for `\\boxed{}` with the data sets above.
        prompt_template (`str`, *optional*):
            Prompt as plain text, for base models; `{question}` stands for the question. `paper` is the paper's.
        deduplicate (`bool`, *optional*):
            Whether to train on each problem once; by default only where a data set above repeats them.
        reward_funcs (`list[str]`, *optional*, defaults to `["accuracy_reward"]`):
            Names of TRL rewards, or dotted paths of your own.
        soft_overlong_max_completion_len (`int`, *optional*):
            Length in tokens at which the reward `soft_overlong_punishment` reaches -1; by default
            `max_completion_length`.
        soft_overlong_punish_cache (`int`, *optional*):
            Number of tokens before it over which that reward falls from 0.
        text_only (`bool`, *optional*, defaults to `False`):
            Train an image-text model on text alone, with its tokenizer in place of its processor.
        fork_report_steps (`int`, *optional*, defaults to `0`):
            Steps between two pages that show where responses fork, in `fork_report` of the output directory; 0 for
            none.
    """

    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Evaluation data or benchmark; the test split of dataset_name if not given."},
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the question; prompt, question or problem if not given."}
    )
    solution_column: str | None = field(
        default=None, metadata={"help": "Column of the answer; ground_truth, answer or solution if not given."}
    )
    instruction: str | None = field(
        default=None, metadata={"help": "Text of the user message; {question} stands for the question."}
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Prompt as plain text with {question} in it, for base models; or 'paper' for the paper's."},
    )
    deduplicate: bool | None = field(
        default=None,
        metadata={"help": "Train on each problem once; by default only where a known data set repeats them."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy_reward"],
        metadata={"help": "TRL rewards by name, or dotted paths of your own."},
    )
    soft_overlong_max_completion_len: int | None = field(
        default=None,
        metadata={"help": "Tokens at which soft_overlong_punishment reaches -1; max_completion_length if not given."},
    )
    soft_overlong_punish_cache: int | None = field(
        default=None,
        metadata={"help": "Tokens before that over which soft_overlong_punishment falls from 0."},
    )
    text_only: bool = field(
        default=False,
        metadata={"help": "Train an image-text model on text alone, with its tokenizer in place of its processor."},
    )
    fork_report_steps: int = field(
        default=0,
        metadata={
            "help": "Steps between two pages that show where responses fork (fork_report/latest.html); 0: none."
        },
    )


# The help has four hundred options: those that a run is likely to set come first.
COMMON_OPTIONS = (
    *("model_name_or_path", "output_dir", "max_steps", "num_train_epochs", "learning_rate", "num_generations"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "temperature"),
    *("use_vllm", "use_peft", "lora_r", "bf16", "use_cpu", "eval_strategy", "logging_steps", "save_steps"),
    *("report_to", "resume_from_checkpoint", "seed"),
)


def make_parser() -> GroupedTrlParser:
    def names(dataclass) -> list[str]:
        return [field.name for field in fields(dataclass)]

    return GroupedTrlParser(
        (ForkingScriptArguments, ForkingGRPOConfig, ModelConfig),
        groups={
            "data, prompts and rewards (this script)": names(ForkingScriptArguments),
            "forking tokens (trl_fork.ForkingGRPOConfig)": ForkingGRPOConfig.__annotations__,
            "what most runs set": COMMON_OPTIONS,
            "model, LoRA and quantization (trl.ModelConfig)": names(ModelConfig),
            "GRPO (trl.GRPOConfig)": set(names(GRPOConfig)) - set(names(TrainingArguments)),
            "training (transformers.TrainingArguments)": names(TrainingArguments),
        },
        description=__doc__,
        command="train",
    )


def load_data(
    arguments: ForkingScriptArguments,
    name: str,
    split: str,
    *,
    evaluation: bool = False,
    solution_required: bool = True,
):
    if evaluation and name in BENCHMARKS:
        return load_benchmark(name, **(prompt_of(arguments) or {}))
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
    )


def load_evaluation_data(arguments: ForkingScriptArguments, args: ForkingGRPOConfig, *, solution_required: bool):
    """
    Problems that are not trained on.

    Raises:
        `ValueError`: if there are none, before anything is trained, naming the options that choose them.
    """
    name, split = arguments.eval_dataset_name or arguments.dataset_name, arguments.dataset_test_split
    config = arguments.dataset_config if name == arguments.dataset_name else None
    why = (
        f"eval_strategy is {str(args.eval_strategy.value)!r}" if args.eval_strategy != "no" else "eval_on_start is set"
    )
    remedy = (
        "Name other problems in eval_dataset_name (a data set, a file, or a benchmark such as 'math500') or their "
        "split in dataset_test_split, or set eval_strategy to 'no'."
    )
    trained = source_of(arguments.dataset_name, arguments.dataset_train_split, arguments.dataset_config)
    if source_of(name, split, config, benchmark=name in BENCHMARKS) == trained:
        raise ValueError(f"{why}, but {name!r} (split {split!r}) is what the model is trained on. {remedy}")
    try:
        return load_data(arguments, name, split, evaluation=True, solution_required=solution_required)
    except ValueError as error:
        raise ValueError(f"{why}, but there is no evaluation set: {error} {remedy}") from error


def load_processing_class(arguments: ForkingScriptArguments, args: ForkingGRPOConfig, model_config: ModelConfig):
    """What the trainer would load by itself; with `text_only` the tokenizer of an image-text model."""
    auto_class = AutoTokenizer if arguments.text_only else AutoProcessor
    try:
        return auto_class.from_pretrained(
            model_config.model_name_or_path,
            revision=model_config.model_revision,
            truncation_side="left",
            padding_side="left",
            trust_remote_code=args.trust_remote_code,
        )
    except ImportError as error:  # what reads images is not installed
        if arguments.text_only:
            raise
        raise ImportError(
            f"The processor of {model_config.model_name_or_path!r} cannot be loaded: {error} To train an image-text "
            "model on text alone, set text_only to true (--text_only true)."
        ) from error


def check_prompts(arguments: ForkingScriptArguments, processing_class, dataset) -> None:
    """What a user of this script would otherwise read after a large model was loaded, in terms of its options."""
    if arguments.text_only:
        refuse_images(dataset)
    first = dataset.select([0]) if isinstance(dataset, Dataset) else Dataset.from_list(list(dataset.take(1)))
    check_tokenizer(
        processing_class,
        first,
        plain_prompts='set prompt_template, a plain text (--prompt_template "Question: {question} Answer:", or paper)',
    )


def refuse_images(dataset) -> None:
    """Refuse what a tokenizer cannot take, in columns or as parts of messages: the first that comes would fail."""
    remedy = "and text alone is trained on and evaluated. Leave them out of the data, or set text_only to false."
    if images := [name for name in ("image", "images") if name in column_names(dataset)]:
        raise ValueError(f"text_only: the data set has the columns {images}, {remedy}")
    for number, prompt in enumerate(dataset["prompt"] if isinstance(dataset, Dataset) else ()):
        if isinstance(prompt, str) or isinstance(prompt[0]["content"], str):  # and then in all rows
            return
        kinds = {part.get("type") for message in prompt for part in message["content"] or ()} - {"text"}
        if kinds:
            raise ValueError(
                f"text_only: {place('prompt', number)}: the prompt has parts of type {sorted(kinds)}, {remedy}"
            )


def prompt_of(arguments: ForkingScriptArguments) -> dict[str, str] | None:
    """What the model is asked in training, and then in evaluation."""
    return training_prompt(
        arguments.dataset_name,
        arguments.dataset_train_split,
        config=arguments.dataset_config,
        streaming=arguments.dataset_streaming,
        prompt_column=arguments.prompt_column,
        instruction=arguments.instruction,
        prompt_template=arguments.prompt_template,
    )


def refuse_adapter(model: str) -> None:
    """Of a folder that holds an adapter alone, transformers would say that its model is not recognized."""
    folder = Path(model)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"model_name_or_path: {model!r} holds an adapter, not a model. To train on, give its run's own command "
            "with --resume_from_checkpoint true; or merge it into its base model (merge_and_unload of PEFT) and name "
            "the folder of that."
        )


def load_rewards(arguments: ForkingScriptArguments, args: ForkingGRPOConfig) -> list:
    return [
        get_reward_function(
            name,
            max_completion_len=arguments.soft_overlong_max_completion_len or args.max_completion_length,
            soft_punish_cache=arguments.soft_overlong_punish_cache,
        )
        for name in arguments.reward_funcs
    ]


def run(arguments: ForkingScriptArguments, args: ForkingGRPOConfig, model_config: ModelConfig) -> None:
    if not arguments.dataset_name:
        raise ValueError("dataset_name is not set: name a data set of the Hub, or a local file.")
    if not model_config.model_name_or_path:
        raise ValueError("model_name_or_path is not set: name a model of the Hub, or a local folder.")
    check_model_path(model_config.model_name_or_path)
    refuse_adapter(model_config.model_name_or_path)
    checkpoint = checkpoint_choice(args.resume_from_checkpoint)
    refuse_other_run(args.output_dir, checkpoint)
    require_matplotlib()
    args.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **(args.model_init_kwargs or {}),
    }
    rewards = load_rewards(arguments, args)
    solution_required = any("solution" in required_columns(reward) for reward in rewards)
    train_dataset = load_data(
        arguments, arguments.dataset_name, arguments.dataset_train_split, solution_required=solution_required
    )
    eval_dataset = None
    if args.eval_strategy != "no" or args.eval_on_start:
        eval_dataset = load_evaluation_data(arguments, args, solution_required=solution_required)
        warn_of_overlap(train_dataset, eval_dataset)
        if arguments.text_only:
            refuse_images(eval_dataset)
    processing_class = load_processing_class(arguments, args, model_config)
    check_prompts(arguments, processing_class, train_dataset)

    trainer = ForkingGRPOTrainer(
        model=model_config.model_name_or_path,
        reward_funcs=rewards,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processing_class,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
        callbacks=[ForkReportCallback(arguments.fork_report_steps)] if arguments.fork_report_steps else None,
    )
    if not args.disable_tqdm:  # one line per log, where the Trainer prints a dictionary of fifty numbers
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(SummaryCallback)
    trainer.add_callback(LastLogCallback)
    check_model_will_be_saved(trainer.accelerator)
    if trainer.accelerator.is_main_process:
        save_prompt(
            args.output_dir,
            prompt_of(arguments),
            chat_template_kwargs=args.chat_template_kwargs,
            generation_kwargs=args.generation_kwargs,
        )
    train_and_save(trainer, resume_from_checkpoint=checkpoint)

    attempt("writing trainer_state.json", trainer.save_state)
    if trainer.accelerator.is_main_process:
        picture = Path(args.output_dir) / "training.png"
        attempt("drawing training.png", lambda: plot_training(trainer.state.log_history, picture))
    if args.push_to_hub:
        pushed = attempt("publishing it", lambda: trainer.push_to_hub(dataset_name=arguments.dataset_name))
        if pushed:
            trainer.accelerator.print(f"Pushed to https://huggingface.co/{trainer.hub_model_id}.")
    trainer.accelerator.print(files_of(args.output_dir, "trainer_state.json", "training.png"))
    base, steps = model_config.model_name_or_path, trainer.state.global_step
    attempt("printing what comes next", lambda: trainer.accelerator.print(next_steps(arguments, args, base, steps)))


def next_steps(arguments: ForkingScriptArguments, args: ForkingGRPOConfig, base: str, steps: int) -> str:
    """Commands for what comes after a run."""

    def command(script: str, **options) -> str:
        words = ["python", os.path.relpath(Path(__file__).with_name(script))]
        given = {name: value for name, value in options.items() if value is not None}
        return shlex.join([*words, *(str(word) for name, value in given.items() for word in (f"--{name}", value))])

    data, output = arguments.eval_dataset_name or arguments.dataset_name, Path(args.output_dir)
    if find_dataset(TRAINING_SETS, data) and not find_dataset(BENCHMARKS, data):  # has no problems to test on
        data = "math500"
    # Of the data set that was trained on; another one has columns of its own.
    names = ("dataset_config", "prompt_column", "solution_column") if data == arguments.dataset_name else ()
    columns = {name: getattr(arguments, name) for name in names if data not in BENCHMARKS}
    if names and arguments.dataset_test_split != "test":
        columns["dataset_test_split"] = arguments.dataset_test_split
    lines = [
        "Next:",
        "  Evaluate, with the prompt of the training:",
        "    "
        + command(
            "evaluate.py",
            model=output,
            dataset=data,
            **columns,
            max_new_tokens=args.max_completion_length,
            output=output / "evaluation",
        ),
        "  See where its responses fork:",
        "    "
        + command(
            "analyze_entropy.py",
            model=output,
            reference_model=base,
            completions=output / "evaluation" / "completions.jsonl",
            output=output / "entropy",
        ),
    ]
    if any(output.glob("checkpoint-*")):
        more = f"--resume_from_checkpoint true --max_steps {2 * steps}"
        lines += ["  Train on, from the last checkpoint:", f"    the same command with {more}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    # TRL 1.16 calls transformers by names that 5.23 has replaced: nothing that a user of this command could change.
    warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6", category=FutureWarning)
    parser = make_parser()
    for_launch, words = split_launch(sys.argv[1:] if arguments is None else arguments, parser)
    if for_launch and not {"-h", "--help"} & set(words):
        parser.refuse(parser.unknown_options(parser.with_config(words)))  # once, rather than by every process
        launch(MODULE, for_launch, words)
    else:
        run(*parser.parse_args_and_config(words))


if __name__ == "__main__":
    main()
