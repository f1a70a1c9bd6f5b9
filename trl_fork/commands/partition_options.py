"""Options of `trl-fork partition`, and which values they take."""

import argparse
from math import isfinite
from pathlib import Path

from transformers.hf_argparser import string_to_bool

from ..data.prompt_file import add_chat_template_argument
from .launch import add_launch_arguments
from .options import OptionParser


# Data and prompts by the names of `trl-fork train`, all of which the samples depend on.
DATA_ARGUMENTS = (
    *("dataset_config", "dataset_train_split", "deduplicate", "prompt_column", "solution_column", "prompt_template"),
    *("instruction", "chat_template_kwargs", "stop"),
)


def make_partition_parser(description: str | None) -> OptionParser:
    parser = OptionParser(description=description, command="partition")
    parser.add_argument("--model", required=True, help="Hub name or folder of the reference: the model to be trained")
    parser.add_argument("--proposal_model", help="model or LoRA adapter that samples (default: the reference)")
    parser.add_argument("--base_model", help="base of an adapter as proposal, if not the one its configuration names")
    parser.add_argument("--dataset", required=True, help="training set: short name, file, or name on the Hub")
    parser.add_argument("--output", required=True, help="folder of data.jsonl, summary.json and completions.jsonl")
    parser.add_argument("--num_samples", type=int, default=8, help="samples of a prompt, K (default: %(default)s)")
    parser.add_argument(
        "--beta", type=float, required=True, help="KL coefficient, as in the training: 1 / FlowRL's beta"
    )
    parser.add_argument(
        "--length_normalized",
        type=string_to_bool,
        default=True,
        metavar="true|false",
        help="as in the training (default: true)",
    )
    parser.add_argument(
        "--ridge",
        type=float,
        metavar="PENALTY",
        help="write predictions of a ridge regression on mean states of the prompts in place of the estimates",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="that of the training (default: %(default)s)")
    parser.add_argument("--top_p", type=float, default=1.0, help="1 alone: weights are of the whole distribution")
    parser.add_argument("--top_k", type=int, default=0, help="0 alone, likewise")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=20480,
        help="limit of a sample: max_completion_length of the training (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first rows of the data")
    parser.add_argument("--batch_size", type=int, help="samples at a time (default: 32; with vLLM 1024)")
    parser.add_argument("--max_batch_tokens", type=int, default=16384, help="tokens of a scoring batch")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, such as bfloat16 (default: the checkpoint's)"
    )
    parser.add_argument("--attn_implementation", help="of transformers, such as flash_attention_2")
    parser.add_argument("--tensor_parallel_size", type=int, default=1, help="GPUs of vLLM (default: %(default)s)")
    group = parser.add_argument_group("data and prompts, as in the training, by the names of trl-fork train")
    group.add_argument("--dataset_config", help="configuration of a Hub data set")
    group.add_argument("--dataset_train_split", default="train", help="split (default: %(default)s)")
    group.add_argument("--prompt_column", help="column of the question (default: prompt, question or problem)")
    group.add_argument("--solution_column", help="column of the answer (default: ground_truth, answer or solution)")
    group.add_argument("--instruction", help="text of the user's message, with {question} in it")
    group.add_argument("--prompt_template", help="'paper', or text in which {question} stands for the question")
    group.add_argument(
        "--deduplicate",
        type=string_to_bool,
        metavar="true|false",
        help="keep each problem once (default: only where a known data set repeats them)",
    )
    add_chat_template_argument(group, "none")
    group.add_argument("--stop", nargs="+", metavar="TEXT", help="texts that end a sample (stop_strings in training)")
    add_launch_arguments(parser)
    return parser


def parse_partition(arguments: list[str] | None, description: str | None) -> argparse.Namespace:
    parser = make_partition_parser(description)
    options = parser.parse_args(arguments)
    parser.refuse(problems_of(options))
    if options.proposal_model is not None and _same_place(options.proposal_model, options.model):
        options.proposal_model = None  # its weights are exactly 1 without scoring
    options.stop, options.chat_template_kwargs = options.stop or None, options.chat_template_kwargs or None
    return options


def problems_of(options: argparse.Namespace) -> list[str]:
    """A sentence about each option that cannot be taken."""
    problems = []
    for name, unit in (
        ("num_samples", "samples of a prompt, of which a standard error needs 2"),
        ("max_new_tokens", "tokens"),
        ("max_batch_tokens", "tokens"),
        ("tensor_parallel_size", "GPUs"),
        ("limit", "rows"),
        ("batch_size", "samples"),
    ):
        value = getattr(options, name)
        if value is not None and value < 1:
            problems.append(f"--{name} must be at least 1, got {value}: it counts {unit}")
    if not (isfinite(options.beta) and options.beta > 0):
        problems.append(
            f"--beta must be a positive number, got {options.beta}: rewards are divided by it. It is TRL's KL "
            "coefficient, so that FlowRL's 15 is 0.0667"
        )
    if options.ridge is not None and not (isfinite(options.ridge) and options.ridge > 0):
        problems.append(
            f"--ridge must be a positive number, got {options.ridge}: it is the penalty on the squared slope. Leave "
            "it out to write the estimates themselves"
        )
    if not (isfinite(options.temperature) and options.temperature > 0):
        problems.append(
            f"--temperature must be positive, got {options.temperature}: the policy has the distribution of that "
            "temperature, and at 0 it has none. Give that of the training"
        )
    for name, neutral in (("top_p", 1), ("top_k", 0)):
        if getattr(options, name) != neutral:
            problems.append(
                f"--{name} must be {neutral}, got {getattr(options, name)}: of a distribution that is cut off, the "
                "samples say nothing of the rest of the answers. Leave it out"
            )
    if not 0 <= options.seed < 2**63:
        problems.append(f"--seed must be at least 0 and below 2**63, got {options.seed}: choose another")
    if Path(options.output).is_file():
        problems.append(f"--output {options.output} is a file, and must be a folder: name another")
    if Path(options.dataset).resolve() == (Path(options.output) / "data.jsonl").resolve():
        problems.append(
            f"--dataset {options.dataset} is the file that would be written: give the data that it was made of, with "
            "which its samples are used again, or another --output"
        )
    if options.stop and not all(options.stop):
        problems.append("--stop: an empty text would end every sample before it has begun. Leave it out")
    if options.base_model and not options.proposal_model:
        problems.append(
            "--base_model is that of an adapter given as --proposal_model. The reference is the model that is "
            "trained: merge an adapter into its base model (trl-fork merge) and name its folder"
        )
    return problems


def _same_place(first: str, second: str) -> bool:
    return first == second or (Path(first).is_dir() and Path(first).resolve() == Path(second).resolve())
