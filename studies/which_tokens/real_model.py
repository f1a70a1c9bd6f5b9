"""
The arms of the study on a real model, SmolLM2-135M-Instruct, on tasks from reasoning-gym, on a GPU.

    make smollm2
    pip install '.[study]'
    python -m studies.which_tokens.real_model --model smollm2 --together

Every arm leaves `ARM-SEED.json` in the folder of the output, rewritten after every step, and a checkpoint every
`--save_steps` steps, deleted when the arm is done. When the command is given again, arms that are done are left out,
and an arm that was cut off goes on from its last checkpoint, as if it had not been. `--together` runs all arms at the
same time: one of them does not keep a GPU busy, as decoding is bound by launches.

`real_tasks.py` has the problems, their prompts and what counts as right. Problems that are held out are trained on by
no arm.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from trl_fork._files import write_json
from trl_fork.commands.options import OptionParser

from . import real_tasks
from .real_tasks import TASKS, Problem


ARMS = {
    "all": {"top_entropy_quantile": 1.0},
    "forking": {},
    "random": {"token_selection": "random"},
    "bottom": {"token_selection": "low_entropy"},
    "pepo": {"token_credit": "pepo"},
}
SAMPLES = 4  # completions of each held-out problem
NUM_GENERATIONS = 8
MAX_COMPLETION_LENGTH = {"chain_sum": 24, "gcd": 32}
LEARNING_RATE = 5e-5
MODELS = {"smollm2": "outputs/SmolLM2-135M-Instruct"}  # short names


def load_problems(options: argparse.Namespace) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on, and held-out ones: of a file, or of reasoning-gym."""
    if options.problems is not None:
        return real_tasks.read_problems(options.problems, options.task)
    return real_tasks.problems(options.task)


def reward_of(task: str):
    """The reward function: 1 for a right answer, 0 for another."""

    def reward(completions, answer, **kwargs) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [float(real_tasks.is_right(task, *each)) for each in zip(texts, answer, strict=True)]

    return reward


def accuracy(model, tokenizer, task: str, test: list[Problem], device: str) -> float:
    """Share of right completions at temperature 1, the same random numbers every time."""
    import torch
    from transformers import GenerationConfig

    from trl_fork.generation.completions import complete

    config = GenerationConfig(
        max_new_tokens=MAX_COMPLETION_LENGTH[task],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = [problem for problem in test for _ in range(SAMPLES)]
    prompts = [
        tokenizer.apply_chat_template(
            real_tasks.conversation(task, row.question), add_generation_prompt=True, return_dict=False
        )
        for row in rows
    ]
    training = model.training
    model.eval()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        completions = complete(model, prompts, [*range(len(rows))], config)
    model.train(training)
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    right = [real_tasks.is_right(task, text, row.answer) for text, row in zip(texts, rows, strict=True)]
    return sum(right) / len(right)


def load_model(options: argparse.Namespace):
    """The model in float32, its tokenizer, and its device."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device), tokenizer, device


def measure_start(options: argparse.Namespace) -> None:
    """Print how often the model is right before any training."""
    _, test = load_problems(options)
    test = test[: options.num_test]
    model, tokenizer, device = load_model(options)
    right = accuracy(model, tokenizer, options.task, test, device)
    print(f"{options.task}: {right:.3f} of {len(test) * SAMPLES:,} completions are right, {SAMPLES} of each problem")


def begin_record(path: Path, arm: str, options: argparse.Namespace) -> dict:
    """The record of an arm: a new one, or that of a run that was cut off."""
    names = ("task", "seed", "max_steps", "prompts_per_step", "learning_rate")
    new = {"arm": arm, **{name: getattr(options, name) for name in names}, "steps": [], "done": False}
    if not path.exists():
        return new
    found = json.loads(path.read_text())
    if changed := [name for name in names if found.get(name) != new[name]]:
        sys.exit(
            f"--output: {path} is of a run with "
            + ", ".join(f"{name} {found.get(name)}, not {new[name]}" for name in changed)
            + ". Choose another folder, or remove it."
        )
    return found


def run(arm: str, options: argparse.Namespace) -> None:
    """One arm: accuracy before, steps, accuracy after."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from transformers.trainer_utils import get_last_checkpoint

    from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer

    begin = time.perf_counter()
    path, folder = options.output / f"{arm}-{options.seed}.json", options.output / f"{arm}-{options.seed}"
    record = begin_record(path, arm, options)
    training, test = load_problems(options)
    test = test[: options.num_test]
    model, tokenizer, device = load_model(options)
    record["device"] = torch.cuda.get_device_name() if device == "cuda" else device
    if "accuracy_before" not in record:
        record["accuracy_before"] = accuracy(model, tokenizer, options.task, test, device)
        write_json(path, record)
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    record["steps"] = record["steps"][: int(checkpoint.rpartition("-")[2]) if checkpoint else 0]
    earlier = record["steps"][-1]["seconds"] if record["steps"] else 0.0

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "reward" in logs:
                names = ("reward", "entropy", "grad_norm", "completions/mean_length", "forking/selected_fraction")
                found = {name: round(logs[name], 5) for name in names if name in logs}
                record["steps"].append(found | {"seconds": round(earlier + time.perf_counter() - begin, 2)})
                write_json(path, record)

        def on_step_end(self, args, state, control, **kwargs):
            if options.time_limit and time.perf_counter() - begin > options.time_limit:
                control.should_training_stop = control.should_save = True

    rows = options.prompts_per_step * NUM_GENERATIONS
    trainer = ForkingGRPOTrainer(
        model=model,
        reward_funcs=reward_of(options.task),
        args=ForkingGRPOConfig(
            str(folder),
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=min(rows, 64),
            gradient_accumulation_steps=max(rows // 64, 1),
            num_generations=NUM_GENERATIONS,
            max_completion_length=MAX_COMPLETION_LENGTH[options.task],
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            logging_steps=1,
            save_steps=options.save_steps,
            save_total_limit=1,
            report_to="none",
            seed=options.seed,
            **ARMS[arm],
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": real_tasks.conversation(options.task, problem.question), "answer": problem.answer}
                for problem in training
            ]
        ).shuffle(seed=options.seed),
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train(resume_from_checkpoint=checkpoint)
    record["accuracy_after"] = accuracy(model, tokenizer, options.task, test, device)
    record["seconds"] = round(earlier + time.perf_counter() - begin, 1)
    record["done"] = len(record["steps"]) == options.max_steps
    if record["done"]:
        shutil.rmtree(folder)
        if options.save_models:
            trainer.save_model(str(folder))
    write_json(path, record)


def is_done(path: Path) -> bool:
    return path.exists() and json.loads(path.read_text())["done"]


def table(folder: Path) -> str:
    """What the arms have reached, in Markdown."""
    lines = ["| Arm | Steps | Accuracy before | after | Seconds |", "|---|---:|---:|---:|---:|"]
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        before, after = (found.get(name) for name in ("accuracy_before", "accuracy_after"))
        lines.append(
            f"| {found['arm']}, seed {found['seed']} | {len(found['steps'])} | "
            f"{'' if before is None else format(before, '.3f')} | {'' if after is None else format(after, '.3f')} | "
            f"{found.get('seconds', '')} |"
        )
    return "\n".join(lines)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a folder, or `smollm2` for that of `make smollm2`")
    parser.add_argument("--task", default="chain_sum", choices=list(TASKS), help="of reasoning-gym")
    parser.add_argument("--output", type=Path, help="folder of the results (default: outputs/real_model/TASK)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="all of them by default")
    parser.add_argument("--seed", type=int, default=0, help="of samples and of the order of the problems")
    parser.add_argument("--max_steps", type=int, default=40, help="optimizer steps of an arm")
    parser.add_argument("--prompts_per_step", type=int, default=64, help="with 8 completions each")
    parser.add_argument("--learning_rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--num_test", type=int, default=real_tasks.NUM_TEST, help="held-out problems, each four times")
    parser.add_argument("--save_steps", type=int, default=20, help="steps from a checkpoint to the next: 1.6 GB each")
    parser.add_argument("--save_models", action="store_true", help="keep the trained models, 0.5 GB each")
    parser.add_argument("--time_limit", type=float, help="seconds after which an arm saves and takes no further step")
    parser.add_argument("--together", action="store_true", help="all arms at the same time")
    parser.add_argument("--problems", type=Path, help="file of problems, on a machine without reasoning-gym")
    parser.add_argument("--measure_start", action="store_true", help="print the accuracy before training, and stop")
    parser.add_argument("--write_problems", type=Path, help="write that file, and stop")
    options = parser.parse_args(arguments)
    options.model = MODELS.get(options.model, options.model)
    options.output = options.output or Path("outputs/real_model") / options.task
    return options


def refuse_what_is_missing(options: argparse.Namespace) -> None:
    """End with one line if the model or the problems are not there."""
    for name, remedy in (("model", "`make smollm2` makes it"), ("problems", "--write_problems makes it")):
        path = getattr(options, name)
        if path is not None and not Path(path).exists() and options.write_problems is None:
            sys.exit(f"--{name}: there is no {path}; {remedy}.")
    if options.problems is None and not real_tasks.has_gym():
        sys.exit(
            "reasoning-gym makes the problems and is not installed here: `pip install '.[study]'`, or give --problems "
            "the file that --write_problems has written elsewhere."
        )


def main(arguments=None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    refuse_what_is_missing(options)
    if options.write_problems is not None:
        real_tasks.write_problems(options.write_problems, options.task, *real_tasks.problems(options.task))
        print(f"{options.write_problems} has the problems of {options.task}.")
        return
    if options.measure_start:
        measure_start(options)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in options.arms if not is_done(options.output / f"{arm}-{options.seed}.json")]
    if options.together and len(arms) > 1:
        command = [sys.executable, "-m", "studies.which_tokens.real_model", *arguments, "--arms"]
        running = [subprocess.Popen([*command, arm]) for arm in arms]
        codes = [process.wait() for process in running]
    else:
        codes = [0 for arm in arms if run(arm, options) is None]
    print(table(options.output))
    if any(codes):
        sys.exit("An arm has failed; its error is above.")


if __name__ == "__main__":
    main()
