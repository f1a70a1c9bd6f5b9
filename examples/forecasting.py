"""
Calibrated forecasts by reinforcement learning: reward the win rate of similar games, or the game's outcome?

    python examples/forecasting.py [--output_dir outputs/forecasting] [--seeds 1]

A few minutes on two CPU cores, no download. A tiny model answers who wins a game with a word of reasoning and a
probability. It first imitates an overconfident commentator and is then trained twice from there, with `brier_reward`
on two targets: the empirical rate of similar games (arXiv 2607.00164), and what happened in this one game. Both are
scored on games of cells that no training has seen. docs/forecasting.md has the numbers.
"""

import os


# Before the Hub client is imported: everything is made here.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import contextlib
import json
import random
import statistics
import time
import warnings
from pathlib import Path

import torch
from datasets import load_dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3ForCausalLM

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.commands.options import OptionParser
from trl_fork.credit import build_credit
from trl_fork.data import HierarchicalRates
from trl_fork.evaluation import brier_score, expected_calibration_error, reliability_bins
from trl_fork.report.reliability import plot_reliability
from trl_fork.rewards import brier_reward, read_probability
from trl_fork.tasks import digit_sums
from trl_fork.tasks import forecasts as task
from trl_fork.tasks.imitation import imitate


ARMS = {"rate": 1.0, "outcome": 0.0}  # weight of the rate in the target: lambda of the paper
NUM_TRAIN, NUM_TEST = 2000, 5000  # games played: to train on, and in cells held out
WARM_UP_BATCH = 64
MAX_COMPLETION_LENGTH = 24  # tokens; the longest demonstration has 22 with the end token
SCORES = ("brier", "ece", "distance")

console = Console()


def parse_arguments(arguments=None):
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/forecasting"), help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of all arms: seeds 1, 2, ... (%(default)s)")
    parser.add_argument("--warm_up_steps", type=int, default=300, help="steps of imitation (%(default)s)")
    parser.add_argument("--max_steps", type=int, default=120, help="RL steps of each arm (%(default)s)")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of RL (%(default)s)")
    parser.add_argument(
        "--token_credit",
        default="answer_span",
        help="tokens to train on: a preset, a chain as JSON, or all of them (%(default)s)",
    )
    parser.add_argument(
        "--scale_rewards",
        default="group",
        choices=["group", "batch", "none"],
        help="TRL's: what advantages are divided by the standard deviation of (%(default)s)",
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "max_steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.token_credit != "all":  # before the warm-up, not after it
        try:
            text = options.token_credit
            build_credit(json.loads(text) if text[:1] in ("{", "[") else text)
        except ValueError as error:
            parser.error(f"--token_credit: {str(error).removeprefix('token_credit: ')}")
    return options


def main(arguments=None) -> None:
    warnings.simplefilter("ignore")
    options = parse_arguments(arguments)
    started = time.perf_counter()
    runs = [run(options, seed) for seed in range(1, options.seeds + 1)]
    scores = [{name: result["scores"] for name, result in each.items()} for each in runs]
    show(scores, options)
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    summary = {"settings": settings, "seconds": round(time.perf_counter() - started, 1), "runs": scores}
    (options.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    drawn = ("before", *ARMS, "empirical rates")
    plot_reliability({name: runs[0][name]["bins"] for name in drawn}, options.output_dir / "calibration.png")
    console.print(f"{summary['seconds']:.0f} s. summary.json and calibration.png are in {options.output_dir}.")


def run(options, seed: int) -> dict[str, dict]:
    """Data, warm-up and both arms of a seed; the scores of every forecaster on the games of held-out cells."""
    rng = random.Random(seed)
    folder = options.output_dir / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    known = [game for game in task.all_games() if not task.is_held_out(game)]
    unseen = [game for game in task.all_games() if task.is_held_out(game)]
    train, test = task.play(known, NUM_TRAIN, rng), task.play(unseen, NUM_TEST, rng)
    rates = HierarchicalRates(task.FEATURES)
    rates.fit([game.features for game, _ in train], [outcome for _, outcome in train])  # of the training games only
    for name, played in (("train", train), ("test", test)):
        rows = task.rows(played, rates.predict(game.features for game, _ in played))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    console.rule(f"[bold]Seed {seed}: warm-up")
    tokenizer = task.make_tokenizer()
    model = digit_sums.make_model(tokenizer, seed)
    games = rng.choices(known, k=options.warm_up_steps * WARM_UP_BATCH)
    demonstrations = [(task.question(game), task.demonstration(game, rng)) for game in games]
    console.print("  ->  ".join(demonstrations[0]), markup=False, highlight=False)
    imitate(model, tokenizer, demonstrations, folder / "start", batch_size=WARM_UP_BATCH, seed=seed)

    results = {"before": evaluate(folder / "start", test)}
    for arm, weight in ARMS.items():
        console.rule(f"[bold]Seed {seed}: reinforcement learning, target {arm}")
        reinforce(options, seed, folder, arm, weight)
        results[arm] = evaluate(folder / arm, test)
    base_rate = statistics.mean(outcome for _, outcome in train)
    results |= {
        "empirical rates": score(test, rates.predict(game.features for game, _ in test)),
        "base rate": score(test, [base_rate] * len(test)),
        "true probability": score(test, [task.true_probability(game) for game, _ in test]),
    }
    return results


def reinforce(options, seed: int, folder: Path, arm: str, rate_weight: float) -> None:
    """One arm, from the warmed-up model. The arms differ in nothing but the target."""

    def row(example):
        target = rate_weight * example["target_rate"] + (1 - rate_weight) * example["outcome"]
        return {"prompt": [{"role": "user", "content": example["prompt"]}], "target": target}

    dataset = load_dataset("json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=folder / "cache")
    credit = {"top_entropy_quantile": 1.0} if options.token_credit == "all" else {"token_credit": options.token_credit}
    trainer = ForkingGRPOTrainer(
        model=str(folder / "start"),
        reward_funcs=brier_reward,
        args=ForkingGRPOConfig(
            output_dir=str(folder / arm),
            **credit,
            mask_truncated_completions=True,
            scale_rewards=options.scale_rewards,
            num_generations=8,
            per_device_train_batch_size=128,  # completions of one step: 16 games with 8 each
            max_completion_length=MAX_COMPLETION_LENGTH,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="linear",
            adam_beta2=0.95,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,
            seed=seed,
        ),
        train_dataset=dataset.map(row, remove_columns=["outcome", "target_rate"]),
        processing_class=AutoTokenizer.from_pretrained(folder / "start"),
    )
    with (folder / f"{arm}.log").open("w") as log, contextlib.redirect_stdout(log):  # the metrics of each step
        trainer.train()
    trainer.save_model()


def evaluate(path: Path, test: list[tuple[task.Game, int]]) -> dict:
    """Scores of a model's greedy forecasts. One that states none counts as 0.5."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), Qwen3ForCausalLM.from_pretrained(path).eval()
    games = sorted({game for game, _ in test}, key=task.question)
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": task.question(game)}] for game in games],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=MAX_COMPLETION_LENGTH, do_sample=False)
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    console.print(f"{task.question(games[0])}  ->  {texts[0]}", markup=False, highlight=False)
    stated = {game: read_probability(text) for game, text in zip(games, texts, strict=True)}
    forecasts = [0.5 if (p := stated[game]) is None else p for game, _ in test]
    return score(test, forecasts, sum(p is not None for p in stated.values()) / len(stated))


def score(test: list[tuple[task.Game, int]], forecasts: list[float], stated: float = 1.0) -> dict:
    """`distance` is the mean squared distance from the true probability, which only a made-up world knows."""
    outcomes = [outcome for _, outcome in test]
    scores = {
        "brier": brier_score(forecasts, outcomes),
        "ece": expected_calibration_error(forecasts, outcomes),
        "distance": brier_score(forecasts, [task.true_probability(game) for game, _ in test]),
        "stated": stated,
    }
    return {"scores": scores, "bins": reliability_bins(forecasts, outcomes)}


def show(scores: list[dict], options) -> None:
    """The table: means over the seeds, and the standard deviation where there are several."""
    seeds = "1 seed" if len(scores) == 1 else f"{len(scores)} seeds, mean and standard deviation"
    table = Table(title=f"{NUM_TEST:,} games of held-out cells, {options.max_steps} steps, {seeds}")
    table.add_column("forecaster")
    for column in ("Brier", "ECE", "distance²", "stated"):
        table.add_column(column, justify="right")
    for name in scores[0]:
        cells = []
        for key in SCORES:
            values = [each[name][key] for each in scores]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        table.add_row(name, *cells, f"{statistics.mean(each[name]['stated'] for each in scores):.1%}")
    console.print(table)
    console.print("distance²: mean squared distance from the true probability. stated: forecasts that could be read.")


if __name__ == "__main__":
    main()
