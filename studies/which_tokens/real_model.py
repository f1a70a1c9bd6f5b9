"""
The arms of the study on a real model: SmolLM2-135M-Instruct, on sums of two or three digits, on a GPU.

    make smollm2
    python -m studies.which_tokens.real_model --model outputs/SmolLM2-135M-Instruct --together

A right answer is a completion whose last number is the result. Problems that are held out are trained on by no arm.
Every arm leaves `ARM-SEED.json` in the folder of the output, rewritten after every step. Arms that are done are left
out when the command is given again, so that it goes on where it was cut off; an arm that was cut off begins anew.
`--together` runs all arms at the same time: one of them does not keep a GPU busy, as decoding is bound by launches.
"""

import argparse
import json
import operator
import os
import random
import re
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


ARMS = {
    "all": {"top_entropy_quantile": 1.0},
    "forking": {},
    "random": {"token_selection": "random"},
    "bottom": {"token_selection": "low_entropy"},
    "pepo": {"token_credit": "pepo"},
}
NUM_TEST, SAMPLES = 512, 4  # held-out problems, and completions of each
NUM_TRAINING = 20_000
NUM_GENERATIONS = 8
MAX_COMPLETION_LENGTH = 64
QUESTION = 'Calculate {} step by step. End with "Answer:" and the number.'
SIGNS = {"+": operator.add, "-": operator.sub}
_NUMBER = re.compile(r"-?\d+")


def draw(rng: random.Random) -> tuple[str, int]:
    """A sum of two or three digits, and its result."""
    result = rng.randint(1, 9)
    text = str(result)
    for _ in range(rng.choice((1, 2))):
        sign, digit = rng.choice("+-"), rng.randint(1, 9)
        result, text = SIGNS[sign](result, digit), f"{text} {sign} {digit}"
    return text, result


def problems() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Problems to train on, with repetition, and others."""
    rng, test = random.Random(0), {}
    while len(test) < NUM_TEST:
        test.update([draw(rng)])
    drawn = (draw(rng) for _ in range(2 * NUM_TRAINING))
    return [problem for problem in drawn if problem[0] not in test][:NUM_TRAINING], list(test.items())


def is_right(text: str, result: int) -> bool:
    numbers = _NUMBER.findall(text)
    return bool(numbers) and int(numbers[-1]) == result


def conversation(sum_: str) -> list[dict]:
    return [{"role": "user", "content": QUESTION.format(sum_)}]


def reward(completions, result, **kwargs) -> list[float]:
    texts = [completion[0]["content"] for completion in completions]
    return [float(is_right(text, expected)) for text, expected in zip(texts, result, strict=True)]


def accuracy(model, tokenizer, test, device) -> float:
    """Share of right completions at temperature 1, the same random numbers every time."""
    import torch
    from transformers import GenerationConfig

    from trl_fork.generation.completions import complete

    config = GenerationConfig(
        max_new_tokens=MAX_COMPLETION_LENGTH,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = [problem for problem in test for _ in range(SAMPLES)]
    prompts = [
        tokenizer.apply_chat_template(conversation(text), add_generation_prompt=True, return_dict=False)
        for text, _ in rows
    ]
    training = model.training
    model.eval()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        completions = complete(model, prompts, [*range(len(rows))], config)
    model.train(training)
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return sum(is_right(text, result) for text, (_, result) in zip(texts, rows, strict=True)) / len(rows)


def run(arm: str, options: argparse.Namespace) -> None:
    """One arm: accuracy before, steps, accuracy after."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer

    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = options.output / f"{arm}-{options.seed}.json"
    record = {"arm": arm, "seed": options.seed, "steps": [], "device": device, "done": False}
    record |= {name: getattr(options, name) for name in ("max_steps", "prompts_per_step", "learning_rate")}
    if device == "cuda":
        record["device"] = torch.cuda.get_device_name()
    training, test = problems()
    test = test[: options.num_test]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device)
    record["accuracy_before"] = accuracy(model, tokenizer, test, device)

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "reward" in logs:
                names = ("reward", "entropy", "grad_norm", "completions/mean_length", "forking/selected_fraction")
                found = {name: round(logs[name], 5) for name in names if name in logs}
                record["steps"].append(found | {"seconds": round(time.perf_counter() - begin, 2)})
                write_json(path, record)

        def on_step_end(self, args, state, control, **kwargs):
            if options.time_limit and time.perf_counter() - begin > options.time_limit:
                control.should_training_stop = True

    rows = options.prompts_per_step * NUM_GENERATIONS
    trainer = ForkingGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=ForkingGRPOConfig(
            str(options.output / f"{arm}-{options.seed}"),
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=min(rows, 64),
            gradient_accumulation_steps=max(rows // 64, 1),
            num_generations=NUM_GENERATIONS,
            max_completion_length=MAX_COMPLETION_LENGTH,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=options.seed,
            **ARMS[arm],
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": conversation(text), "result": result} for text, result in training]
        ).shuffle(seed=options.seed),
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()
    record["accuracy_after"] = accuracy(model, tokenizer, test, device)
    record["seconds"] = round(time.perf_counter() - begin, 1)
    record["done"] = len(record["steps"]) == options.max_steps
    write_json(path, record)


def is_done(path: Path) -> bool:
    return path.exists() and json.loads(path.read_text())["done"]


def table(folder: Path) -> str:
    """What the arms have reached, in Markdown."""
    lines = ["| Arm | Steps | Accuracy before | after | Seconds |", "|---|---:|---:|---:|---:|"]
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        after = found.get("accuracy_after")
        lines.append(
            f"| {found['arm']}, seed {found['seed']} | {len(found['steps'])} | {found['accuracy_before']:.3f} | "
            f"{'' if after is None else format(after, '.3f')} | {found.get('seconds', '')} |"
        )
    return "\n".join(lines)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--model", default="outputs/SmolLM2-135M-Instruct", help="folder of `make smollm2`")
    parser.add_argument("--output", type=Path, default=Path("outputs/real_model"), help="folder of the results")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="all of them by default")
    parser.add_argument("--seed", type=int, default=0, help="of samples and of the order of the problems")
    parser.add_argument("--max_steps", type=int, default=40, help="optimizer steps of an arm")
    parser.add_argument("--prompts_per_step", type=int, default=64, help="with 8 completions each")
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--num_test", type=int, default=NUM_TEST, help="held-out problems, four completions of each")
    parser.add_argument("--time_limit", type=float, help="seconds after which an arm takes no further step")
    parser.add_argument("--together", action="store_true", help="all arms at the same time")
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
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
