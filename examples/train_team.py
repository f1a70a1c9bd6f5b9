"""
Train a team: two roles of one model that share a sum, and must agree on a code for it.

    python examples/train_team.py [--output_dir outputs/team] [--seeds 1] [--study]

Minutes on a CPU, no download. `left` and `right` see some of the numbers each. `left` may say one digit, plain or
mirrored; `right` reads it in one way or the other, and answers for both. It is right if they use the same code.

1. A tiny model imitates both roles. Each is plain six times in ten, whatever the other one does: about half of the
   answers are right, though the arithmetic is.
2. It is trained from there in several ways: by a policy gradient, by trajectory balance, whose `beta` is the
   temperature of the game, and by mirror steps of it.
3. Accuracy and convention are measured on problems that no phase has seen, beside the equilibrium of the game.

`--study` is all arms over five seeds; what an output folder holds already is not made again. docs/teams.md has the
numbers.
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

from datasets import Dataset
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3ForCausalLM, TrainerCallback
from trl.rewards import accuracy_reward

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork._files import write_json, write_text
from trl_fork.commands.options import OptionParser
from trl_fork.report.conventions import plot_conventions
from trl_fork.tasks import digit_sums, team_play
from trl_fork.tasks import split_sums as task
from trl_fork.tasks.imitation import imitate
from trl_fork.teams import Role, TeamRollout, joint_reward, solve_hqre


SHAPE = digit_sums.TINY | {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2}  # 0.19 million
WARM_UP_BATCH = 64  # demonstrations of a step, of both roles
NUM_TRAIN = 1024  # problems for RL
NUM_PROBLEMS, EPISODES = 8, 8  # of a generation batch: problems, and episodes of each
UPDATES = 4  # of a generation batch: with one, a mirror step would be a gradient of another size, and nothing else
EVERY = 16  # steps between measurements of the accuracy; the convention is read after each generation batch
STUDY_SEEDS = [1, 2, 3, 4, 5]

ROLES = [Role(task.LEFT, task.LEFT_PROMPT, message=task.MESSAGE), Role(task.RIGHT, task.RIGHT_PROMPT)]

BALANCE = {  # as the theory has it: the log-ratio of a whole completion, and the reward itself
    "objective": "trajectory_balance",
    "length_normalized": False,
    "balance_reward": "reward",
    "loss_denominator": "all",
}
ALL_TOKENS, FORKING_TOKENS = {"top_entropy_quantile": 1.0}, {"top_entropy_quantile": 0.2}
ARMS = {  # settings; `beta` and `mirror_step_size` are options of the script
    "policy_gradient": ALL_TOKENS,
    "policy_gradient_forking": FORKING_TOKENS,
    "balance": BALANCE | ALL_TOKENS,
    "mirror": BALANCE | ALL_TOKENS,
    "mirror_forking": BALANCE | FORKING_TOKENS,
}
DEFAULT_ARMS = ["policy_gradient_forking", "balance", "mirror"]

console = Console()


def parse_arguments(arguments=None):
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/team"), help="(%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of all arms for each (1)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=DEFAULT_ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--study", action="store_true", help=f"all arms, seeds {STUDY_SEEDS}")
    parser.add_argument("--warm_up_steps", type=int, default=400, help="steps of imitation (%(default)s)")
    parser.add_argument("--max_steps", type=int, default=128, help="RL steps of each arm (%(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of RL (%(default)s)")
    parser.add_argument("--beta", type=float, default=0.4, help="temperature of balance and mirror (%(default)s)")
    parser.add_argument("--mirror_step_size", type=float, default=1.0, help="of mirror (%(default)s)")
    options = parser.parse_args(arguments)
    for name in ("warm_up_steps", "max_steps", "learning_rate", "beta", "mirror_step_size"):
        if not (value := getattr(options, name)) > 0:
            parser.error(f"--{name} must be above 0, got {value}")
    if options.study:
        options.seeds, options.arms = STUDY_SEEDS, list(ARMS)
    return options


def main(arguments=None) -> None:
    warnings.simplefilter("ignore")
    options = parse_arguments(arguments)
    held_out = task.held_out_problems()
    runs = []
    for seed in dict.fromkeys(options.seeds):
        folder = options.output_dir / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        start = once(folder / "start.json", warm_up, options, seed, folder, held_out)
        arms = {
            arm: once(folder / arm / "measured.json", reinforce, options, seed, folder, held_out, arm)
            for arm in options.arms
        }
        runs.append({"seed": seed, "start": start, "equilibrium": equilibrium(start, options.beta), "arms": arms})
    summary = {"settings": settings_of(options), "num_test_problems": len(held_out), "runs": runs}
    write_json(options.output_dir / "summary.json", summary, indent=None)
    write_text(options.output_dir / "table.md", markdown(summary) + "\n")
    plot_conventions(runs, options.output_dir / "teams.png", len(held_out))
    show(summary, options)


def settings_of(options, kind: str = "") -> dict:
    """What a measurement depends on, beside its seed and arm: before RL it is the warm-up alone."""
    names = ["warm_up_steps"]
    if kind != "start":
        names += ["max_steps", "learning_rate", "beta", "mirror_step_size"]
    return {name: getattr(options, name) for name in names}


def once(path: Path, make, options, *arguments) -> dict:
    """What a file holds, if it was made with these options; else what `make` returns, which is then in the file."""
    settings = settings_of(options, path.stem)
    if path.is_file() and (found := json.loads(path.read_text()))["settings"] == settings:
        console.print(f"{path}: made before", markup=False, highlight=False, soft_wrap=True)
        return found["measured"]
    measured = make(options, *arguments)
    write_json(path, {"settings": settings, "measured": measured})
    return measured


# ---------------------------------------------------------------------- the phases


def warm_up(options, seed: int, folder: Path, held_out: list[task.Problem]) -> dict:
    console.rule(f"[bold]Seed {seed}: two roles imitate, each with a code of its own")
    started, rng = time.process_time(), random.Random(seed)
    tokenizer = task.make_tokenizer()
    model = digit_sums.make_model(tokenizer, seed, SHAPE)
    problems = task.training_problems(options.warm_up_steps * WARM_UP_BATCH // 2, rng)
    demonstrations = [pair for problem in problems for pair in task.demonstrations(problem, rng)]
    for pair in demonstrations[:2]:
        console.print("  ->  ".join(pair), markup=False, highlight=False)
    imitate(model, tokenizer, demonstrations, folder / "start", batch_size=WARM_UP_BATCH, seed=seed)
    measured = measure(model.eval(), tokenizer, held_out, seed, with_accuracy=True)
    show_episode("before", model, tokenizer, held_out, seed)
    return measured | {"seconds": round(time.process_time() - started, 1)}


def reinforce(options, seed: int, folder: Path, held_out: list[task.Problem], arm: str) -> dict:
    """One arm, from the warmed-up model; what was measured on the way."""
    console.rule(f"[bold]Seed {seed}: {title(arm)}")
    started, rng = time.process_time(), random.Random(seed)
    rows = [task.row(problem) for problem in task.training_problems(NUM_TRAIN, rng)]
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    settings = dict(ARMS[arm])
    if "objective" in settings:
        settings["beta"] = options.beta
    if arm.startswith("mirror"):
        settings["mirror_step_size"] = options.mirror_step_size
    trainer = ForkingGRPOTrainer(
        model=str(folder / "start"),
        reward_funcs=joint_reward(accuracy_reward),
        rollout_func=TeamRollout(ROLES),
        args=ForkingGRPOConfig(
            output_dir=str(folder / arm),
            num_generations=len(ROLES) * EPISODES,
            per_device_train_batch_size=NUM_PROBLEMS * EPISODES * len(ROLES),
            num_iterations=UPDATES,
            max_completion_length=team_play.MAX_COMPLETION_LENGTH,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=min(8, options.max_steps // 4),
            adam_beta2=0.95,
            remove_unused_columns=False,  # the numbers of each role are columns
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=UPDATES,
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,
            seed=seed,
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "start"),
    )
    meter = Meter(trainer.processing_class, held_out, seed)
    trainer.add_callback(meter)
    (folder / arm).mkdir(exist_ok=True)
    with (folder / arm / "train.log").open("w") as log, contextlib.redirect_stdout(log):  # the metrics of each step
        trainer.train()
    trainer.save_model()
    model = Qwen3ForCausalLM.from_pretrained(folder / arm).eval()
    show_episode("after", model, trainer.processing_class, held_out, seed)
    return {"history": meter.history, "seconds": round(time.process_time() - started, 1)}


class Meter(TrainerCallback):
    """Measures during training: the convention after each generation batch, the accuracy at some of them."""

    def __init__(self, tokenizer, problems, seed: int):
        self.tokenizer, self.problems, self.seed = tokenizer, problems, seed
        self.history: list[dict] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step, last = state.global_step, state.global_step == args.max_steps
        if step % UPDATES and not last:
            return
        training = model.training
        model.eval()
        values = measure(model, self.tokenizer, self.problems, self.seed, with_accuracy=last or step % EVERY == 0)
        self.history.append({"step": step, **values})
        model.train(training)


def measure(model, tokenizer, problems, seed: int, *, with_accuracy: bool) -> dict:
    values = team_play.conventions(model, tokenizer, problems)
    if with_accuracy:
        values |= team_play.success(team_play.play(model, tokenizer, problems, seed))
    return {name: round(value, 4) for name, value in values.items()}


def equilibrium(start: dict, beta: float) -> dict:
    """
    Probability of the plain code in the game's equilibrium at the temperature `beta`, with what was measured before.

    Its payoffs are the shares of right answers where the codes agree and where they differ; the magnet is the start.
    """
    agree, differ = start["agree"], start["differ"]
    magnets = [[start[role], 1 - start[role]] for role in (task.LEFT, task.RIGHT)]
    found = solve_hqre([[agree, differ], [differ, agree]], beta, magnets=magnets)
    return {
        role: round(float(policy[0]), 4) for role, policy in zip((task.LEFT, task.RIGHT), found.policies, strict=True)
    }


# ---------------------------------------------------------------------- what is shown


def show_episode(when: str, model, tokenizer, problems, seed: int) -> None:
    (episode,) = team_play.play(model, tokenizer, [problems[len(problems) // 2]], seed)
    seen, heard = task.row(episode.problem), episode.message or "nothing"
    lines = [
        f"{when}: left saw {seen['left']}, wrote: {episode.left}",
        f"{' ' * len(when)}  right saw {seen['right']}, heard {heard}, wrote: {episode.right} "
        f"({'right' if episode.is_right else 'wrong'})",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def title(arm: str) -> str:
    name, _, forking = arm.partition("_forking")
    forking = ", forking" if arm.endswith("_forking") else ""
    return name.replace("_", " ") + forking


def outcome(run: dict, arm: str) -> dict[str, float]:
    """
    Numbers of an arm in a run. Distances of conventions are total variations, means over both roles.

    `drift` is the mean distance between successive generation batches, in the second half of them.
    """
    history, roles = run["arms"][arm]["history"], (task.LEFT, task.RIGHT)

    def distance(one: dict, other: dict) -> float:
        return statistics.mean(abs(one[role] - other[role]) for role in roles)

    half = history[len(history) // 2 - 1 :] if len(history) > 1 else [run["start"], *history]
    return {
        "accuracy": history[-1]["all"],
        "agree": history[-1]["agree"],
        "left": history[-1]["left"],
        "right": history[-1]["right"],
        "from start": distance(history[-1], run["start"]),
        "from equilibrium": distance(history[-1], run["equilibrium"]),
        "drift": statistics.mean(map(distance, half, half[1:])),
    }


COLUMNS = {
    "accuracy": "joint accuracy",
    "agree": "where codes agree",
    "left": "left plain",
    "right": "right plain",
    "from start": "from start",
    "from equilibrium": "from HQRE",
    "drift": "drift",
}


def cells_of(summary: dict, *, spread: bool = True) -> list[list[str]]:
    """The rows of the table: mean over the seeds, and their standard deviation where there are several."""

    def cells(values: list[dict[str, float]], names) -> list[str]:
        found = []
        for name in names:
            numbers, digits = [value[name] for value in values if name in value], 4 if name == "drift" else 3
            deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if spread and len(numbers) > 1 else ""
            found.append(f"{statistics.mean(numbers):.{digits}f}{deviation}" if numbers else "")
        return found

    runs = summary["runs"]
    starts = [run["start"] | {"accuracy": run["start"]["all"]} for run in runs]
    rows = [["before", *cells(starts, COLUMNS)]]
    rows += [[title(arm), *cells([outcome(run, arm) for run in runs], COLUMNS)] for arm in runs[0]["arms"]]
    return [*rows, ["equilibrium (HQRE)", *cells([run["equilibrium"] for run in runs], COLUMNS)]]


def markdown(summary: dict) -> str:
    """The table of docs/teams.md."""
    head = [["", *COLUMNS.values()], ["---", *["---:"] * len(COLUMNS)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *cells_of(summary)])


def show(summary: dict, options) -> None:
    runs = summary["runs"]
    seeds = "1 seed" if len(runs) == 1 else f"mean of {len(runs)} seeds"
    title_of_all = f"{summary['num_test_problems']} held-out problems, {options.max_steps} steps, {seeds}"
    table = Table(title=title_of_all, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for number, column in enumerate(["", *COLUMNS.values()]):
        table.add_column(column, justify="right" if number else "left", min_width=None if number else 12)
    for row in cells_of(summary, spread=False):
        table.add_row(*row)
    console.print(table)
    console.print(
        "plain: probability of that code. from, drift: distances of conventions (total variation); drift is from one "
        "generation batch to the next, in the second half. HQRE: the equilibrium at the temperature beta."
    )
    console.print(f"summary.json, table.md and teams.png are in {options.output_dir}.", soft_wrap=True)
    if not options.study:
        console.print("Next: python examples/train_team.py --study", markup=False, highlight=False)


if __name__ == "__main__":
    main()
