"""
The analyses of the paper on responses of SmolLM2-135M-Instruct, before and after training: what docs/smollm2.md shows.

    make smollm2
    pip install '.[study]'
    python -m studies.smollm2.run && python -m studies.smollm2.report

Each stage leaves a file in the output's folder, and is left out when the command is given again: `sft` fine-tunes;
`words` lets the fine-tuned model answer questions, and reads the answers with every checkpoint; `sums` does sums, and
does them at other temperatures; `rl` trains on forking tokens; `reinforced` reads what the trained model says. The
numbers of the page are written when `sums` is there, and the page shows what is.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from studies.which_tokens import real_model, real_tasks
from trl_fork._files import write_json
from trl_fork.commands import analyze
from trl_fork.commands.options import OptionParser

from . import plan
from .numbers import numbers_of


def sft(model: str, output: Path) -> dict:
    from .sft import train

    return {"losses": train(model, output / "sft")}


def words(model: str, output: Path) -> dict:
    return analysis(
        output / "words",
        *("--model", str(output / "sft"), "--reference_model", model),
        *("--checkpoints", *checkpoints(output / "sft", last=plan.SFT_STEPS)),
        *("--dataset", str(plan.WORDS_DATA), "--limit", str(plan.WORDS_PROBLEMS), "--num_samples", "1"),
        *("--max_new_tokens", str(plan.WORDS_LENGTH), "--min_token_count", str(plan.WORDS_MIN_COUNT)),
    )


def sums(model: str, output: Path) -> dict:
    sampled = ("--num_samples", str(plan.SUMS_SAMPLES), *sums_of(output))
    summary = analysis(output / "sums", "--model", model, *sampled)
    responses = output / "sums" / "completions.jsonl"
    temperatures = ("--temperatures", *map(str, plan.TEMPERATURES), "--num_samples", str(plan.TEMPERATURE_SAMPLES))
    heated = analysis(
        output / "sums",  # where the model's scores of them are
        *("--model", model, "--completions", str(responses), "--analyses", "temperature", *temperatures),
        *("--max_new_tokens", str(length()), "--batch_size", "48"),
    )
    return summary | {"decoding_temperature": heated["decoding_temperature"]}


def rl(model: str, output: Path) -> dict:
    real_model.main(
        [
            *("--model", model, "--task", plan.RL_TASK, "--output", str(output / "rl"), "--arms", "forking"),
            *("--max_steps", str(plan.RL_STEPS), "--save_steps", str(plan.RL_SAVE_STEPS), "--save_models"),
            *("--prompts_per_step", str(plan.RL_PROMPTS), "--learning_rate", str(plan.RL_LEARNING_RATE)),
            *("--num_test", str(plan.RL_TEST), "--seed", str(plan.SEED)),
        ]
    )
    return json.loads((output / "rl" / f"forking-{plan.SEED}.json").read_text())


def reinforced(model: str, output: Path) -> dict:
    trained = str(output / "rl" / f"forking-{plan.SEED}")
    return analysis(
        output / "reinforced",
        *("--model", trained, "--reference_model", model),
        *("--num_samples", str(plan.SUMS_SAMPLES), *sums_of(output)),
    )


STAGES: dict[str, Callable[[str, Path], dict]] = {
    stage.__name__: stage for stage in (sft, words, sums, rl, reinforced)
}


def analysis(folder: Path, *arguments: str) -> dict:
    """The summary of `trl-fork analyze`."""
    words = [*arguments, "--output", str(folder), "--seed", str(plan.SEED), "--page_responses", "16"]
    analyze.main([*words, "--dtype", "float32"])
    return json.loads((folder / "summary.json").read_text())


def length() -> int:
    return real_model.MAX_COMPLETION_LENGTH[plan.RL_TASK]


def sums_of(output: Path) -> tuple[str, ...]:
    """Options of `trl-fork analyze` for held-out problems of the task that is trained on."""
    path = output / "sums.jsonl"
    if not path.exists():
        _, test = real_tasks.problems(plan.RL_TASK)
        real_tasks.write_dataset(path, plan.RL_TASK, test[: plan.SUMS_PROBLEMS])
    sampling = ("--max_new_tokens", str(length()), "--batch_size", "48")
    return ("--dataset", str(path), *sampling, "--min_token_count", str(plan.SUMS_MIN_COUNT))


def checkpoints(folder: Path, last: int) -> list[str]:
    """Those before the last step, in the order of their steps."""
    steps = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    return [str(folder / f"checkpoint-{step}") for step in steps if step < last]


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--model", default=real_model.MODELS["smollm2"], help="folder of `make smollm2`")
    parser.add_argument("--output", type=Path, default=Path("outputs/smollm2_study"), help="folder of the stages")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="all by default")
    parser.add_argument("--results", type=Path, default=plan.RESULTS, help="file of the numbers")
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    if not Path(options.model).is_dir():
        sys.exit(f"--model: there is no folder {options.model}; `make smollm2` makes it.")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.stages:
        path = options.output / f"{name}.json"
        if path.exists():
            continue
        write_json(path, {"summary": STAGES[name](options.model, options.output), "commit": commit()})
    files = {name: options.output / f"{name}.json" for name in STAGES}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    if "sums" not in found:
        print("The numbers of the page need the stage sums, too.")
        return
    write_json(options.results, numbers_of(found), indent=1, ensure_ascii=False)
    print(f"{options.results} has the numbers: python -m studies.smollm2.report")


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


if __name__ == "__main__":
    main()
