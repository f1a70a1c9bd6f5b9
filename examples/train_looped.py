"""
Train a looped language model from nothing: two layers that run three times, and every loop learns to answer.

    python examples/train_looped.py [--seed 42] [--output_dir outputs/looped_tiny]

Minutes on a CPU, no download. The task is that of the quickstart, the last digit of a sum.

1. Build an Ouro of random weights and let it imitate careless arithmetic with the paper's Stage I: the loss expected
   over the exits, with a bonus on their entropy.
2. Train it by reinforcement on its forking tokens: `trl-fork train --recipe looped_tiny`. The gate is frozen there.
3. Compare the accuracy with one, two and three loops, on problems that neither phase has seen.

docs/looped.md has the numbers.
"""

from trl_fork.commands import quickstart  # before the Hub client is imported, which it tells to stay offline


# isort: split
import random
import time
import warnings
from pathlib import Path

import torch
from rich.table import Table
from transformers import AutoTokenizer, set_seed

from trl_fork._files import write_json
from trl_fork.commands.options import OptionParser
from trl_fork.looped import OuroConfig, OuroForCausalLM
from trl_fork.report.loop_accuracy import plot_loop_accuracy
from trl_fork.tasks import digit_sums as task
from trl_fork.tasks.imitation import imitate
from trl_fork.trainer.looped_sft_trainer import LoopedSFTTrainer


SHAPE = {  # 0.34 million parameters
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "total_ut_steps": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
BATCH = 64  # demonstrations of a step
NUM_TRAIN, NUM_TEST = 1024, 1024  # problems for RL, and held out

console = quickstart.console


def parse_arguments(arguments=None):
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/looped_tiny"), help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="of problems, weights and sampling (%(default)s)")
    parser.add_argument("--warm_up_steps", type=int, default=275, help="steps of Stage I (%(default)s)")
    parser.add_argument("--max_steps", type=int, help="optimizer steps of RL; the recipe's if not given")
    options = parser.parse_args(arguments)
    for name in ("warm_up_steps", "max_steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return options


def main(arguments=None) -> None:
    warnings.simplefilter("ignore")
    options = parse_arguments(arguments)
    started = time.perf_counter()
    folder = quickstart.prepare_directory(options.output_dir)
    rng = random.Random(options.seed)
    test = task.held_out_problems(NUM_TEST, rng)

    console.rule("[bold]1. Stage I: every loop imitates careless arithmetic")
    tokenizer = task.make_tokenizer()
    model = make_model(tokenizer, options.seed)
    problems = task.training_problems(options.warm_up_steps * BATCH, rng)
    demonstrations = [(task.question(problem), task.demonstration(problem, rng)) for problem in problems]
    console.print(f"{model.num_parameters():,} parameters, {model.config.total_ut_steps} loops")
    console.print("  ->  ".join(demonstrations[0]), markup=False, highlight=False)
    imitate(
        model,
        tokenizer,
        demonstrations,
        folder / "start",
        batch_size=BATCH,
        seed=options.seed,
        trainer_class=LoopedSFTTrainer,
    )
    warmed_up = time.perf_counter()
    quickstart.write_problems(folder / "train.jsonl", task.training_problems(NUM_TRAIN, rng))
    quickstart.write_problems(folder / "test.jsonl", test)
    before = accuracy_by_loops(folder / "start", test, options.seed)

    console.rule("[bold]2. Reinforcement learning on the forking tokens of the last loop")
    evaluated = time.perf_counter()
    quickstart.reinforce(folder, options.seed, options.max_steps, recipe="looped_tiny")
    trained = time.perf_counter()
    after = accuracy_by_loops(folder, test, options.seed)
    finished = time.perf_counter()

    seconds = {
        "warm_up": warmed_up - started,
        "rl": trained - evaluated,
        "evaluation": evaluated - warmed_up + finished - trained,
        "total": finished - started,
    }
    summary = {
        "accuracy_before": before[-1],
        "accuracy_after": after[-1],
        "accuracy_by_loops_before": before,
        "accuracy_by_loops_after": after,
        "num_test_problems": len(test),
        "seed": options.seed,
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
    }
    write_json(folder / "summary.json", summary)
    plot_loop_accuracy(before, after, folder / "accuracy_by_loops.png", len(test))
    show(summary, folder)


def make_model(tokenizer, seed: int) -> OuroForCausalLM:
    """An Ouro with random weights."""
    set_seed(seed)
    config = OuroConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = OuroForCausalLM(config)
    # Every layer adds normed vectors, of size 1 in each number: beside them an embedding of 0.02 would not be seen.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    return model


def accuracy_by_loops(path: Path, problems: list[tuple[int, ...]], seed: int) -> list[float]:
    """Accuracy, sampled at temperature 1, of a model that runs 1, 2, ... of its loops."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), OuroForCausalLM.from_pretrained(path).eval()
    accuracy = []
    for num_loops in range(1, model.config.total_ut_steps + 1):
        model.config.total_ut_steps = num_loops  # read at every forward
        _, correct = quickstart.answer(model, tokenizer, problems, seed)
        accuracy.append(sum(correct) / len(correct))
    return accuracy


def show(summary: dict, folder: Path) -> None:
    table = Table(title=f"Accuracy on {summary['num_test_problems']:,} held-out problems", title_style="bold")
    for column in ("loops", "before", "after"):
        table.add_column(column, justify="right")
    columns = (summary["accuracy_by_loops_before"], summary["accuracy_by_loops_after"])
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        table.add_row(str(number), *(f"{value:.3f}" for value in values))
    console.print(table)
    times = ", ".join(f"{phase.replace('_', '-')} {value:.0f} s" for phase, value in summary["seconds"].items())
    console.print(f"Time: {times}. summary.json, accuracy_by_loops.png and training.png are in {folder}.")


if __name__ == "__main__":
    main()
