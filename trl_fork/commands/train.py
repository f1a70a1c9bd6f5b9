r"""
Train a language model by reinforcement learning on its forking tokens.

    trl-fork train --recipe gsm8k_single_gpu --output_dir outputs/gsm8k
    trl-fork train --model_name_or_path Qwen/Qwen3-0.6B \
        --dataset_name openai/gsm8k --dataset_config main --output_dir outputs/gsm8k
    trl-fork train --accelerate_config zero3 --recipe qwen3_8b_forking

Any field of ForkingGRPOConfig (TRL's GRPOConfig and more), of TRL's ModelConfig (LoRA and quantization among them) and
of the script arguments below can be set in the YAML file or on the command line; the command line wins.

Options of `accelerate launch` (--num_processes 2) on the command line make it launch the training; without any
of them, the training runs in this process. `accelerate launch -m trl_fork train` does the same.
"""

import shlex
import sys
import warnings
from dataclasses import fields
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, TrainingArguments
from trl import GRPOConfig, ModelConfig, get_quantization_config

from .. import ForkingGRPOConfig, ForkingGRPOTrainer
from ..data.columns import column_names
from ..data.math_datasets import BENCHMARKS, TRAINING_SETS, find_dataset
from ..data.prompt_file import save_prompt
from ..report.curves import plot_training, require_matplotlib
from ..trainer.callbacks import ForkReportCallback
from ..trainer.checkpoints import check_model_will_be_saved
from ..trainer.checks import warn_of_overlap
from ..trainer.credit_checks import check_contrast_instruction
from ..trainer.telemetry import LastLogCallback, SummaryCallback
from .finishing import attempt, files_of, train_and_save
from .launch import launch
from .model_checks import adapter_of, check_model
from .output_directory import checkpoint_choice, refuse_missing_checkpoint, refuse_other_run
from .program import program
from .training_arguments import COMMON_OPTIONS, ForkingScriptArguments
from .training_inputs import (
    check_prompts,
    load_data,
    load_evaluation_data,
    load_processing_class,
    load_rewards,
    load_team_of,
    needs_solution,
    of_episodes,
    prompt_of,
    refuse_images,
)
from .training_options import GroupedTrlParser
from .training_settings import save_settings


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


def run(arguments: ForkingScriptArguments, args: ForkingGRPOConfig, model_config: ModelConfig) -> list[str]:
    """
    Train, save the model, and then write, draw and publish.

    Returns:
        `list[str]`: failures after the last step. The model is saved in any case.
    """
    if not arguments.dataset_name:
        raise ValueError("dataset_name is not set: name a data set of the Hub, or a local file.")
    if not model_config.model_name_or_path:
        raise ValueError("model_name_or_path is not set: name a model of the Hub, or a local folder.")
    check_contrast_instruction(args, args.credit)
    check_model(model_config, args)
    if arguments.fork_report_steps < 0:
        raise ValueError(
            f"fork_report_steps must be at least 0, got {arguments.fork_report_steps}: it is the number of steps "
            "between two pages, and 0 for none."
        )
    checkpoint = checkpoint_choice(args.resume_from_checkpoint)
    assert args.output_dir and not isinstance(args.model_init_kwargs, str)  # transformers has set both
    refuse_other_run(args.output_dir, checkpoint)
    refuse_missing_checkpoint(args.output_dir, checkpoint)
    refuse_several_gpus(args)
    require_matplotlib()
    args.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **(args.model_init_kwargs or {}),
    }
    team, rewards = load_team_of(arguments), load_rewards(arguments, args)
    solution_required = needs_solution(rewards)
    train_dataset = load_data(
        arguments, args, arguments.dataset_name, arguments.dataset_train_split, solution_required=solution_required
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
        reward_funcs=rewards if team is None else of_episodes(rewards),
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processing_class,
        quantization_config=get_quantization_config(model_config),
        peft_config=adapter_of(model_config),
        callbacks=[ForkReportCallback(arguments.fork_report_steps)] if arguments.fork_report_steps else None,
        rollout_func=team,
    )
    # One line per log, where the Trainer's own callbacks print a dictionary of fifty numbers
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    trainer.add_callback(SummaryCallback)
    trainer.add_callback(LastLogCallback)
    check_model_will_be_saved(trainer.accelerator)
    if trainer.accelerator.is_main_process:
        save_prompt(
            args.output_dir,
            prompt_of(arguments),
            **{name: getattr(args, name) for name in ("chat_template_kwargs", "generation_kwargs")},
        )
        num_processes = trainer.accelerator.num_processes
        save_settings(args, arguments, model_config, num_processes=num_processes, resume_from_checkpoint=checkpoint)
    failure = train_and_save(trainer, resume_from_checkpoint=checkpoint)
    return [*([failure] if failure else ()), *after_training(trainer, arguments, model_config.model_name_or_path)]


def refuse_several_gpus(args: ForkingGRPOConfig) -> None:
    """Refuse one process with several GPUs before the model is loaded, with the options of this command."""
    if args.n_gpu > 1 and "device_map" not in (args.model_init_kwargs or {}):
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to this one process, which would have to spread every batch over them. "
            f"Start one process for each of them with --num_processes {args.n_gpu} or an --accelerate_config, or "
            "choose a GPU with the environment variable CUDA_VISIBLE_DEVICES."
        )


def after_training(trainer: ForkingGRPOTrainer, arguments: ForkingScriptArguments, base: str) -> list[str]:
    """Write, draw and publish the results of a finished run, and print the next steps; returns the failures."""
    args = trainer.args
    failures: list[str] = []
    attempt("writing trainer_state.json", trainer.save_state, failures)
    if trainer.accelerator.is_main_process:
        picture = Path(args.output_dir) / "training.png"
        attempt("drawing training.png", lambda: plot_training(trainer.state.log_history, picture), failures)
    if args.push_to_hub:
        before = len(failures)
        pushed = attempt("publishing it", lambda: trainer.push_to_hub(dataset_name=arguments.dataset_name), failures)
        if pushed:
            trainer.accelerator.print(f"Pushed to https://huggingface.co/{trainer.hub_model_id}.")
        elif trainer.accelerator.is_main_process and len(failures) == before:
            failures.append("publishing it (what remains to be done is said above)")
    trainer.accelerator.print(files_of(args.output_dir, "trainer_state.json", "training.png"))
    steps, graded = trainer.state.global_step, "solution" in column_names(trainer.train_dataset)
    attempt(
        "printing what comes next",
        lambda: trainer.accelerator.print(next_steps(arguments, args, base, steps, has_answers=graded)),
    )
    return failures


def next_steps(
    arguments: ForkingScriptArguments, args: ForkingGRPOConfig, base: str, steps: int, *, has_answers: bool = True
) -> str:
    """Commands to run after a training; `has_answers` says whether its data can be graded."""

    def command(name: str, **options) -> str:
        words = [*program(), name]
        given = {name: value for name, value in options.items() if value is not None}
        return shlex.join([*words, *(str(word) for name, value in given.items() for word in (f"--{name}", value))])

    assert arguments.dataset_name and args.output_dir  # `run` has looked
    data, output = arguments.eval_dataset_name or arguments.dataset_name, Path(args.output_dir)
    if find_dataset(TRAINING_SETS, data) and not find_dataset(BENCHMARKS, data):  # has no problems to test on
        data = "math500"
    prompt = "with the prompt of the training"
    if data == arguments.dataset_name and not has_answers:  # `evaluate` grades: rewards without `solution` do not
        data, prompt = "DATA", f"{prompt}, on data with answers or a benchmark such as math500"
    if data == arguments.dataset_name and Path(data).is_file():
        prompt = f"{prompt} (on the rows it was trained on: others show what it has learned)"
    # The columns are those of the training data; another data set has its own.
    names = ("dataset_config", "prompt_column", "solution_column") if data == arguments.dataset_name else ()
    columns = {name: getattr(arguments, name) for name in names if data not in BENCHMARKS}
    if names and arguments.dataset_test_split != "test":
        columns["dataset_test_split"] = arguments.dataset_test_split
    lines = [
        "Next:",
        f"  Evaluate, {prompt}:",
        "    "
        + command(
            "evaluate",
            model=output,
            dataset=data,
            **columns,
            max_new_tokens=args.max_completion_length,
            output=output / "evaluation",
        ),
        "  See where its responses fork:",
        "    "
        + command(
            "analyze",
            model=output,
            reference_model=base,
            completions=output / "evaluation" / "completions.jsonl",
            output=output / "entropy",
        ),
    ]
    lines += [
        "  See its page, and compare it with other runs, named after it:",
        f"    {shlex.join([*program(), 'report', str(output)])}",
    ]
    if any(output.glob("checkpoint-*")):
        more = f"--resume_from_checkpoint true --max_steps {2 * steps}"
        lines += ["  Train on, from the last checkpoint:", f"    the same command with {more}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    # TRL 1.16 uses names that transformers 5.23 has replaced, which a user of this command cannot change.
    warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6", category=FutureWarning)
    parser = make_parser()
    words = parser.with_config(sys.argv[1:] if arguments is None else list(arguments))
    if launch("train", words, parser):
        return
    arguments_of_the_run = parser.parse_args_and_config(words)
    failures = run(*arguments_of_the_run)
    if failures:  # a script that checks the exit status must not take the rest for done
        raise SystemExit(
            f"The training is done and its model saved in {arguments_of_the_run[1].output_dir}. The exit status is 1, "
            f"because what comes after the last step has failed in part: {'; '.join(failures)}."
        )


if __name__ == "__main__":
    main()
