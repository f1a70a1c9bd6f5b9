"""
Watch a tiny language model learn by training on 20 % of its tokens: a few minutes on a CPU, no download.

    trl-fork quickstart [--seed 42] [--output_dir outputs/quickstart] [--max_steps N]

1. Build a Qwen3 of 0.45 million parameters and let it imitate careless arithmetic (`SFTTrainer`).
2. Train it by reinforcement on its forking tokens: `trl-fork train --recipe quickstart`.
3. Compare its accuracy, on problems that neither phase has seen.
"""

import os


# Set before the Hub client is imported. Nothing is downloaded, so there is no bar to show.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Warnings of libraries to their callers (deprecations, changed defaults). Errors are still shown.
os.environ["PYTHONWARNINGS"] = "ignore"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

# A precaution for busy computers: threads that spin while they wait have made steps several times slower there.
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import random
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig, Qwen3ForCausalLM
from trl.rewards import accuracy_reward

from .. import select_tokens
from ..entropy import completion_entropies
from ..generation.completions import complete
from ..report.marks import highlight_tokens
from ..report.page_responses import score_response
from ..tasks import digit_sums as task
from ..tasks.imitation import imitate
from .options import OptionParser
from .quickstart_output import (
    FORKING_FRACTION,
    Evaluation,
    console,
    show_completion,
    show_summary,
    write_report,
    write_summary,
)


MARKER = ".quickstart"  # in every directory that a quickstart has made, and may therefore empty
DEFAULT_OUTPUT_DIR = Path("outputs/quickstart")  # the recipe's

WARM_UP_STEPS, WARM_UP_BATCH = 275, 64
NUM_TRAIN, NUM_TEST = 1024, 1024  # problems for RL, and held out
MAX_COMPLETION_LENGTH = 56  # tokens, as in the recipe
NUM_SHOWN = 12  # problems on report.html


def main(arguments: list[str] | None = None) -> None:
    warnings.simplefilter("ignore")  # PYTHONWARNINGS is for the subprocess: this process has read it already
    options = parse_arguments(arguments)
    started = time.perf_counter()
    output_dir = prepare_directory(Path(options.output_dir))
    # One stream for all problems, so that another seed is another run from the first problem on.
    rng = random.Random(options.seed)
    test = task.held_out_problems(NUM_TEST, rng)

    console.rule("[bold]1. Warm-up: imitate careless arithmetic")
    warm_up(output_dir / "start", options.seed, rng)
    warmed_up = time.perf_counter()
    write_problems(output_dir / "train.jsonl", task.training_problems(NUM_TRAIN, rng))
    write_problems(output_dir / "test.jsonl", test)
    before = evaluate(output_dir / "start", test, options.seed)
    show_completion("before", before, test)

    console.rule("[bold]2. Reinforcement learning on forking tokens")
    console.print(
        "In each step the model answers 16 problems 8 times each. A right last digit earns 1. It learns to write what "
        "earned more than its other answers did, but only from the 20 % of the tokens at which it was least certain. "
        "The bar counts the steps; reward, length and entropy go to train.log.\n"
    )
    evaluated = time.perf_counter()
    reinforce(output_dir, options.seed, options.max_steps)
    trained = time.perf_counter()

    console.rule("[bold]3. Held-out problems, before and after")
    after = evaluate(output_dir, test, options.seed)
    show_completion("after", after, test)
    finished = time.perf_counter()
    seconds = {
        "warm_up": warmed_up - started,
        "rl": trained - evaluated,
        "evaluation": evaluated - warmed_up + finished - trained,
        "total": finished - started,
    }
    write_summary(output_dir / "summary.json", options.seed, before, after, seconds)
    write_report(output_dir / "report.html", before, after)
    paths = [] if output_dir == DEFAULT_OUTPUT_DIR else run_paths(output_dir)
    show_summary(output_dir, before, after, seconds, paths)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__, command="quickstart")
    parser.add_argument("--seed", type=int, default=42, help="seed of the problems, the weights and the sampling")
    parser.add_argument(
        "--output_dir", default=str(DEFAULT_OUTPUT_DIR), help="emptied if an earlier quickstart made it"
    )
    parser.add_argument("--max_steps", type=int, help="optimizer steps of RL; the recipe's if not given")
    return parser.parse_args(arguments)


def prepare_directory(path: Path) -> Path:
    """An empty directory, in place of an earlier quickstart's."""
    if path.exists() and not path.is_dir():
        sys.exit(f"{path} is a file. Choose another --output_dir.")
    if path.is_dir() and any(path.iterdir()):
        if not (path / MARKER).is_file():
            sys.exit(
                f"{path} is not empty, and no quickstart made it: nothing was touched. Choose another --output_dir."
            )
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / MARKER).write_text("Made by the quickstart, which may empty this directory.\n")
    return path


def warm_up(path: Path, seed: int, rng: random.Random) -> None:
    """Supervised fine-tuning of random weights on demonstrations, of which a third happen to be right."""
    tokenizer = task.make_tokenizer()
    model = task.make_model(tokenizer, seed)
    problems = task.training_problems(WARM_UP_STEPS * WARM_UP_BATCH, rng)
    demonstrations = [(task.question(problem), task.demonstration(problem, rng)) for problem in problems]
    console.print(
        f"A Qwen3 of {model.num_parameters():,} parameters reads {len(problems):,} demonstrations like this:"
    )
    prompt, answer = demonstrations[0]
    console.print(Text(f"  prompt  {prompt}\n  answer  {answer}\n"))
    imitate(model, tokenizer, demonstrations, path, batch_size=WARM_UP_BATCH, seed=seed)


def reinforce(output_dir: Path, seed: int, max_steps: int | None, recipe: str = "quickstart") -> None:
    """`trl-fork train` in a process of its own, with the paths and the seed of this run."""
    command = [
        *(sys.executable, "-m", "trl_fork", "train", "--recipe", recipe, *run_paths(output_dir)),
        *("--output_dir", str(output_dir), "--seed", str(seed)),
    ]
    if max_steps is not None:
        command += ["--max_steps", str(max_steps)]
    log = output_dir / "train.log"
    # As in the warm-up: the bar and errors stay in the terminal, the metrics of each step go to the log.
    with log.open("w") as stdout:
        code = subprocess.run(command, stdout=stdout, env=os.environ).returncode
    if code != 0:
        console.print(log.read_text()[-5000:], markup=False, highlight=False)
        sys.exit(
            f"Reinforcement learning failed with exit status {code}; its output is above. The command was:\n"
            f"{shlex.join(command)}"
        )


def run_paths(output_dir: Path) -> list[str]:
    """Options of `trl-fork train`: the model and the problems of this run, in place of the recipe's."""
    return [
        *("--model_name_or_path", str(output_dir / "start")),
        *("--dataset_name", str(output_dir / "train.jsonl")),
        *("--eval_dataset_name", str(output_dir / "test.jsonl")),
    ]


def evaluate(path: Path, problems: list[tuple[int, ...]], seed: int) -> Evaluation:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = Qwen3ForCausalLM.from_pretrained(path).eval()
    prompts = prompt_ids_of(tokenizer, problems)
    _, greedy_correct = answer(model, tokenizer, problems, seed, greedy=True)
    completions, correct = answer(model, tokenizer, problems, seed)

    prompt_ids, prompt_mask = _padded(prompts, tokenizer.pad_token_id, "left")
    completion_ids, completion_mask = _padded(completions, tokenizer.pad_token_id, "right")
    output = torch.cat([prompt_ids, completion_ids], dim=1)
    attention_mask, mask = torch.cat([prompt_mask, completion_mask], dim=1), completion_mask.bool()
    entropies = completion_entropies(model, output, attention_mask, completion_ids.shape[1])
    forking = select_tokens(entropies, mask, FORKING_FRACTION)  # one pool, like a batch in training
    return Evaluation(
        accuracy=sum(correct) / len(correct),
        greedy_accuracy=sum(greedy_correct) / len(correct),
        mean_length=mask.sum(1).float().mean().item(),
        correct=correct,
        completions=[
            highlight_tokens(tokenizer, ids.tolist(), selected.tolist())
            for ids, selected in zip(completion_ids, forking, strict=True)
        ],
        responses=[
            score_response(
                model,
                tokenizer,
                prompts[i],
                completions[i],
                correct=correct[i],
                label=task.question(problems[i]).strip(),
            )
            for i in range(NUM_SHOWN)
        ],
    )


def prompt_ids_of(tokenizer, problems: list[tuple[int, ...]]) -> list[Any]:
    return [
        tokenizer.apply_chat_template(conversation(problem), add_generation_prompt=True, return_dict=False)
        for problem in problems
    ]


def answer(model, tokenizer, problems: list[tuple[int, ...]], seed: int, greedy: bool = False):
    """Token ids of a completion of each problem, sampled at temperature 1 or greedy, and whether each is right."""
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=MAX_COMPLETION_LENGTH,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    seeds = [seed + number for number in range(len(problems))]
    completions = complete(model, prompt_ids_of(tokenizer, problems), seeds, config)
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    rewards = accuracy_reward([[message("assistant", text)] for text in texts], [*map(task.solution, problems)])
    return completions, [reward == 1.0 for reward in rewards]


def _padded(rows: list[list[int]], pad_token_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of rows, shape `(rows, longest row)`."""
    ids, mask = (
        pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=fill, padding_side=side)
        for values, fill in ((rows, pad_token_id), ([[1] * len(row) for row in rows], 0))
    )
    return ids, mask


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(problem: tuple[int, ...]) -> list[dict[str, str]]:
    return [message("user", task.question(problem))]


def write_problems(path: Path, problems: list[tuple[int, ...]]) -> None:
    rows = [{"prompt": task.question(problem), "solution": task.solution(problem)} for problem in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
