r"""
Estimate the partition function of each prompt, for the trajectory-balance objective with `--partition offline`.

    trl-fork partition --model Qwen/Qwen3-0.6B --dataset gsm8k --num_samples 8 --beta 0.0667 \
        --max_new_tokens 1024 --output outputs/partition
    trl-fork partition --model Qwen/Qwen3-0.6B --proposal_model outputs/gsm8k --dataset gsm8k --num_samples 16 \
        --beta 0.0667 --max_new_tokens 1024 --output outputs/proposals

K samples of the reference, or of a proposal model, are graded 0 or 1 as by accuracy_reward. OUTPUT/data.jsonl is the
data with the columns log_partition, pass_rate, effective_sample_size and log_partition_standard_error; train takes it
with the command that is printed at the end. OUTPUT/summary.json holds the settings and numbers. --beta,
--length_normalized, --temperature and --max_new_tokens must be those of the training.

Samples are kept in OUTPUT: a run that was killed continues when the same command is given again, and another --beta,
--length_normalized or --ridge in the same OUTPUT samples and scores nothing. Options of `accelerate launch`
(--num_processes 8) start several processes, which share the work.

The idea of a frozen partition function, estimated offline by importance sampling, is that of DISA (arXiv 2605.17295),
whose details are not public. The regression (--ridge) and all defaults are this package's own.
"""

import argparse
import gc
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoConfig

from .._files import write_json
from ..analysis.prompt_states import kept_prompt_states
from ..analysis.responses import Response
from ..analysis.score_store import ScoreStore
from ..data.columns import LOG_PARTITION, PARTITION_SETTINGS
from ..evaluation.metrics import Problem
from ..evaluation.partition import (
    DEFINITIONS,
    estimate_partition,
    ridge_predictions,
    summarize_partition,
    warnings_of,
)
from ..evaluation.store import CompletionStore, key, read_completions
from ..evaluation.tables import print_table
from ..generation.engines import base_of_adapter, check_model_path, end_token_ids, load_model, load_tokenizer
from ..rewards.grading import GradingPool
from .launch import launch
from .model_checks import refuse_adapter
from .partition_data import PartitionData, load_partition_data, next_command, write_data
from .partition_options import DATA_ARGUMENTS, make_partition_parser, parse_partition
from .sampling import SETTINGS, sample_problems, settings_of, start


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    return parse_partition(arguments, __doc__)


def run(options: argparse.Namespace) -> None:
    state = start(options)
    tokenizer = load_models_tokenizer(options)
    store = CompletionStore(options.output, state.process_index, "samples")
    with GradingPool() as pool:
        data = load_partition_data(options, tokenizer, pool)
        if options.ridge is not None and len(data.problems) < 3:
            raise ValueError(
                f"--ridge {options.ridge}: a regression needs 3 different problems at least, and --dataset has "
                f"{len(data.problems)}. Leave --ridge out."
            )
        check_positions(options, data.problems)
        settings = settings_of(options, data.problems, (*SETTINGS, "proposal_model", *DATA_ARGUMENTS))
        sampler = argparse.Namespace(**vars(options) | {"model": options.proposal_model or options.model})
        sample_problems(
            sampler,
            data.problems,
            settings,
            store,
            pool,
            tokenizer,
            state,
            # A completion ends where one of the reference would.
            end_ids=end_token_ids(options.model, tokenizer) if options.proposal_model else None,
            keep_ids=options.proposal_model is not None,
        )
    if state.is_main_process:
        store.merge()
    state.wait_for_everyone()
    found = {key(sample): sample for sample in read_completions(store.path)}
    samples = [found[p.dataset, p.problem_id, n] for p in data.problems for n in range(options.num_samples)]
    log_probs = log_probs_of(options, data.problems, samples, state)
    if state.is_main_process:
        finish(options, data, samples, *log_probs)
    state.wait_for_everyone()


def load_models_tokenizer(options: argparse.Namespace):
    """
    The tokenizer of the reference, which writes the prompts, and which the proposal model must share.

    Raises:
        `ValueError`: for a reference that is an adapter, or tokenizers that differ.
    """
    check_model_path(options.model)
    refuse_adapter(options.model)
    tokenizer = load_tokenizer(options.model)
    if options.proposal_model is not None:
        theirs = load_tokenizer(options.proposal_model, base_model=options.base_model).get_vocab()
        ours = tokenizer.get_vocab()
        different = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
        if different:
            first = different[0]
            raise ValueError(
                f"--proposal_model {options.proposal_model!r}: its tokenizer differs from that of --model "
                f"{options.model!r} in {len(different)} tokens, such as {first!r} with the ids {theirs.get(first)} "
                f"and {ours.get(first)}. Both models must give probabilities to the same tokens: choose a proposal "
                "model with the tokenizer of the reference."
            )
    return tokenizer


def check_positions(options: argparse.Namespace, problems: list[Problem]) -> None:
    """Refuse completions that one of the models has no positions for, before the first is sampled."""
    longest = max(len(problem.prompt_ids) for problem in problems)
    for option, base_model in (("model", None), ("proposal_model", options.base_model)):
        name = getattr(options, option)
        if name is None:
            continue
        config = AutoConfig.from_pretrained(base_of_adapter(name, base_model) or name).get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and longest + options.max_new_tokens > limit:
            raise ValueError(
                f"--max_new_tokens {options.max_new_tokens} and the longest prompt make "
                f"{longest + options.max_new_tokens} tokens, but --{option} {name!r} has {limit} positions. Set "
                f"--max_new_tokens to at most {limit - longest}, and max_completion_length of the training likewise."
            )


def log_probs_of(
    options: argparse.Namespace, problems: list[Problem], samples: list[dict], state: PartialState
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probabilities of whole completions by the reference and by the model that sampled them, of shape
    `(num_prompts, num_samples)`. Without a proposal model both are 0, as only their difference counts.

    A completion that was cut off counts with the tokens that it has: among completions of at most `max_new_tokens`
    tokens, ended or cut off, these are its probabilities, so that the weights have mean 1.
    """
    shape = (len(problems), options.num_samples)
    if options.proposal_model is None:
        return torch.zeros(shape).double(), torch.zeros(shape).double()
    rows = zip((p for p in problems for _ in range(options.num_samples)), samples, strict=True)
    responses = [
        Response(p.prompt_ids, sample["completion_ids"], p.prompt, p.problem_id, sample["correct"], sample)
        for p, sample in rows
    ]

    def total_log_probs(name: str, base_model: str | None) -> torch.Tensor:
        store = ScoreStore(Path(options.output) / "scores", name, temperature=options.temperature, dtype=options.dtype)
        with tqdm(desc=f"scores of {name}", unit=" tokens", unit_scale=True, disable=not state.is_main_process) as bar:
            store.score(
                responses,
                lambda: load_scorer(options, state, name, base_model),
                max_batch_tokens=options.max_batch_tokens,
                progress=bar,
                rank=state.process_index,
                num_processes=state.num_processes,
            )
        state.wait_for_everyone()
        totals = [float(scores.log_probs.astype("float64").sum()) for _, scores in store.read(responses)]
        return torch.tensor(totals).double().view(shape)

    return total_log_probs(options.model, None), total_log_probs(options.proposal_model, options.base_model)


def load_scorer(
    options: argparse.Namespace, state: PartialState, name: str, base_model: str | None = None
) -> torch.nn.Module:
    gc.collect()  # the model before it
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return load_model(
        name,
        base_model=base_model,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        device=state.device,
    ).eval()


def finish(
    options: argparse.Namespace,
    data: PartitionData,
    samples: list[dict],
    ref_log_probs: torch.Tensor,
    proposal_log_probs: torch.Tensor,
) -> None:
    """Write the data and the summary, and print the numbers and the command that trains on them."""
    output, shape = Path(options.output), ref_log_probs.shape
    rewards = torch.tensor([float(sample["correct"]) for sample in samples]).double().view(shape)
    lengths = torch.tensor([float(sample["length"]) for sample in samples]).double().view(shape)
    estimate = estimate_partition(
        ref_log_probs, proposal_log_probs, rewards, options.beta, lengths if options.length_normalized else None
    )
    numbers = summarize_partition(estimate, rewards, samples, num_rows=len(data.rows))
    columns = {
        LOG_PARTITION: estimate.log_partition,
        "pass_rate": estimate.pass_rate,
        "effective_sample_size": estimate.effective_sample_size,
        "log_partition_standard_error": estimate.standard_error,
    }
    if options.ridge is not None:
        states = kept_prompt_states(
            output / "prompt_states.npz",
            options.model,
            [problem.prompt_ids for problem in data.problems],
            lambda: load_scorer(options, PartialState(), options.model),
            dtype=options.dtype,
            max_batch_tokens=options.max_batch_tokens,
        )
        columns["log_partition_estimate"] = estimate.log_partition
        columns[LOG_PARTITION], numbers["leave_one_out_r2"] = ridge_predictions(
            states, estimate.log_partition, options.ridge
        )
    numbers["mean_log_partition"] = float(columns[LOG_PARTITION].mean())
    of_training = vars(options) | {"max_completion_length": options.max_new_tokens}
    settings = {name: of_training[name] for name in PARTITION_SETTINGS}
    write_data(output / "data.jsonl", data, {name: without_nan(values) for name, values in columns.items()}, settings)
    command = next_command(options, data)
    write_json(
        output / "summary.json",
        {
            "settings": vars(options),
            **numbers,
            "definitions": {name: text for name, text in DEFINITIONS.items() if name in numbers},
            "next": command,
        },
    )
    print_summary(options, numbers)
    print(f"The data is in {output / 'data.jsonl'}. Its column is for these settings:")
    print(
        f"  model {options.model}, proposal model {options.proposal_model or 'none'}, K {options.num_samples}, "
        f"beta {options.beta}, length_normalized {str(options.length_normalized).lower()}, temperature "
        f"{options.temperature}, at most {options.max_new_tokens} tokens, accuracy_reward alone."
    )
    print(f"Next:\n  {command}")


def without_nan(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def print_summary(options: argparse.Namespace, numbers: dict) -> None:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    table = {
        "prompts": str(numbers["num_prompts"]),
        "K": str(numbers["num_samples"]),
        "pass rate": shown(numbers["mean_pass_rate"], ".2%"),
        "none right": str(numbers["num_prompts_without_right_sample"]),
        "log_partition": shown(numbers["mean_log_partition"], ".3f"),
        "ESS": shown(numbers["median_effective_sample_size"], ".2f"),
        "s.e.": shown(numbers["median_standard_error"], ".3f"),
        "mean length": shown(numbers["mean_length"], ",.0f"),
        "truncated": shown(numbers["truncated_fraction"], ".1%"),
    }
    if options.ridge is not None:
        table["R² (leave one out)"] = shown(numbers["leave_one_out_r2"], ".3f")
    print_table("Partition functions", list(table), [list(table.values())])
    for text in warnings_of(numbers, has_proposal=options.proposal_model is not None):
        print(f"Warning: {text}")


def main(arguments: list[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not launch("partition", words, make_partition_parser(__doc__)):
        run(parse_arguments(words))


if __name__ == "__main__":
    main()
