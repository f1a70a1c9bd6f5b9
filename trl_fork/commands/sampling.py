"""What commands that sample from a model share: the processes, the engine, and a folder in which samples are kept."""

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version

import torch
from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from tqdm import tqdm

from .._files import weights_fingerprint
from ..data.prompt_file import PROMPT_ARGUMENTS
from ..evaluation.metrics import Problem, evaluate, todo_of
from ..evaluation.store import CompletionStore, key, read_completions
from ..evaluation.tables import dataset_label
from ..generation.engines import TransformersEngine, VLLMEngine, load_model
from ..rewards.grading import GradingPool


SETTINGS = (
    *("model", "base_model", "dataset", "num_samples", "temperature", "top_p", "max_new_tokens"),
    *("seed", "limit", "engine", "dtype", "attn_implementation"),
)


def start(options: argparse.Namespace) -> PartialState:
    """The processes of a run that samples."""
    # Without being told that there is no GPU, every process would think that it is alone. Those that finish early
    # wait for the last one.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    if options.engine == "vllm" and state.num_processes > 1:
        raise ValueError("--engine vllm runs in one process: use --tensor_parallel_size for several GPUs.")
    disable_progress_bar()
    return state


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of [`build_engine`] and [`sample_problems`] that say how samples are made, and not of what."""
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=int, help="samples at a time (default: 32; with vLLM 1024)")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, such as bfloat16 (default: the checkpoint's)"
    )
    parser.add_argument("--attn_implementation", help="of transformers, such as flash_attention_2")
    parser.add_argument("--tensor_parallel_size", type=int, default=1, help="GPUs of vLLM (default: %(default)s)")


def rows_with_solution(dataset: str, solutions: Sequence[str | None], pool: GradingPool) -> list[int]:
    """Numbers of the rows whose solution the grader can read; how many are left out is printed."""
    verdicts = pool.grade([""] * len(solutions), [str(solution) for solution in solutions])
    readable = [
        isinstance(solution, str) and verdict.reward is not None
        for solution, verdict in zip(solutions, verdicts, strict=True)
    ]
    if not all(readable):
        PartialState().print(
            f"{dataset}: {readable.count(False)} of {len(readable)} problems are left out, because math-verify cannot "
            f"read their solution (the first: {solutions[readable.index(False)]!r})."
        )
    return [number for number, keep in enumerate(readable) if keep]


def report_unread_arguments(options: argparse.Namespace, template: str) -> None:
    """Print which `chat_template_kwargs` the template does not read: a misspelled one has no effect."""
    if unread := [name for name in options.chat_template_kwargs or () if not re.search(rf"\b{name}\b", template)]:
        reason = "the model's chat template does not read it" if template else "the prompts are plain text"
        PartialState().print(f"chat_template_kwargs: {', '.join(unread)} has no effect, because {reason}.")


def build_engine(
    options: argparse.Namespace,
    tokenizer,
    problems: list[Problem],
    state: PartialState,
    *,
    end_ids: list[int] | None = None,
):
    max_length = max(len(problem.prompt_ids) for problem in problems) + options.max_new_tokens
    sampling = {name: getattr(options, name) for name in ("temperature", "top_p", "max_new_tokens")}
    sampling |= {"stop": options.stop or (), "end_ids": end_ids}
    if options.engine == "vllm":
        return VLLMEngine(
            options.model,
            tokenizer,
            base_model=options.base_model,
            dtype=options.dtype,
            max_length=max_length,
            tensor_parallel_size=options.tensor_parallel_size,
            **sampling,
        )
    model = load_model(
        options.model,
        base_model=options.base_model,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        device=state.device,
    )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and max_length > limit:
        raise ValueError(
            f"The longest prompt and max_new_tokens {options.max_new_tokens} make {max_length} tokens, but the model "
            f"has {limit} positions. Set --max_new_tokens to at most {limit - max_length + options.max_new_tokens}."
        )
    return TransformersEngine(model, tokenizer, **sampling)


def settings_of(
    options: argparse.Namespace, problems: list[Problem], names: Sequence[str] = (*SETTINGS, *PROMPT_ARGUMENTS)
) -> dict:
    """Settings on which the samples depend. A run that continues another must have the same."""
    digest = hashlib.sha256(json.dumps([[p.dataset, p.problem_id, p.prompt, p.solution] for p in problems]).encode())
    models = {name: vars(options).get(name) for name in ("model", "base_model", "proposal_model")}
    return {
        **{name: getattr(options, name) for name in names},
        "weights": {name: found for name, model in models.items() if model and (found := weights_fingerprint(model))},
        "problems": f"{len(problems)}, sha256 {digest.hexdigest()[:16]}",
    }


class Progress:
    """A bar with the accuracy so far, on the main process."""

    def __init__(self, total: int, state: PartialState):
        self.bar = tqdm(total=total, unit="sample", disable=not state.is_main_process)
        self.correct = self.graded = 0

    def __call__(self, samples: list[dict]) -> None:
        self.correct += sum(sample["correct"] for sample in samples)
        self.graded += len(samples)
        self.bar.set_description(dataset_label(samples[-1]["dataset"]))
        self.bar.update(len(samples))
        self.bar.set_postfix(accuracy=f"{self.correct / self.graded:.3f}")


def sample_problems(
    options: argparse.Namespace,
    problems: list[Problem],
    settings: dict,
    store: CompletionStore,
    pool: GradingPool,
    tokenizer,
    state: PartialState,
    *,
    end_ids: list[int] | None = None,
    keep_ids: bool = False,
) -> None:
    """
    Sample and grade what the store lacks; the main process may merge it then.

    Args:
        options (`argparse.Namespace`): Options, of which those named in `SETTINGS` and of the engine are read.
        problems (`list[Problem]`): All problems.
        settings (`dict`): Result of [`settings_of`].
        store, pool, tokenizer, state: Of this process.
        end_ids (`list[int]`, *optional*): Argument of the engine.
        keep_ids (`bool`, *optional*, defaults to `False`): Argument of [`~evaluation.metrics.evaluate`].

    Raises:
        `ValueError`: if the store holds samples of other settings.
    """
    store.check_settings(settings)
    state.wait_for_everyone()
    if state.is_main_process:
        store.save_settings(settings, {name: version(name) for name in ("transformers", "torch", "math-verify")})
        store.merge()
    state.wait_for_everyone()
    done = {key(sample) for sample in read_completions(store.path)}
    left = todo_of(problems, options.num_samples, done)
    # An instruction that the model was not trained with costs accuracy, and nothing else reports it.
    state.print(f"The first prompt: {problems[0].prompt!r}")
    if left:
        if done:
            state.print(f"{len(done)} samples are in {store.path} already; {len(left)} are left.")
        engine = build_engine(options, tokenizer, problems, state, end_ids=end_ids)
        progress = Progress(len(left[:: state.num_processes]), state)
        evaluate(
            problems,
            engine,
            pool,
            store,
            done=done,
            num_samples=options.num_samples,
            batch_size=options.batch_size or (1024 if options.engine == "vllm" else 32),
            seed=options.seed,
            rank=state.process_index,
            num_processes=state.num_processes,
            progress=progress,
            keep_ids=keep_ids,
        )
        progress.bar.close()
    state.wait_for_everyone()
