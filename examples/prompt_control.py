"""
Two roles with a frozen model learn which prompts fit together.

    python examples/prompt_control.py [--seed 42] [--output_dir outputs/prompt_control]

A minute or two on a CPU, no download. The last digit of a sum is worked out by two roles: the first sees some of the
numbers and sends one digit, the second sees that digit and the other numbers. Each has three prompts, for three ways
to write a digit: plain, as its difference from nine, or shifted by three. The digit alone does not tell which way it
was written, so the roles must choose prompts that fit together.

1. Build a Qwen3 of random weights and let it imitate both roles. From here on it is frozen.
2. Play every pair of prompts, and solve the game that was measured for its quantal response equilibrium.
3. Prompt control: rounds of episodes, and a mirror step of each role after each.
4. Compare the accuracy of the team with its prompts before and after, on problems that were not played.

docs/equilibria.md has the numbers.
"""

from trl_fork.commands import quickstart  # before the Hub client is imported, which it tells to stay offline


# isort: split
import itertools
import random
import re
import time
import warnings
from pathlib import Path

import numpy as np
from rich.table import Table

from trl_fork._files import write_json
from trl_fork.commands.options import OptionParser
from trl_fork.generation.engines import TransformersEngine
from trl_fork.report.prompt_policies import plot_prompt_policies
from trl_fork.rewards import GradingPool
from trl_fork.tasks import digit_sums as task
from trl_fork.tasks.imitation import imitate
from trl_fork.teams import Equilibrium, PromptControl, solve_hqre


NOTATIONS = ("plain", "nines", "shifted")
P_WRONG = {"plain": 0.03, "nines": 0.15, "shifted": 0.3}  # of the digits in demonstrations: what the model is good at
PROMPTS = {
    "first": [f"write {notation}{{numbers}}" for notation in NOTATIONS],
    "second": [f"read {notation} {{message}}{{numbers}}" for notation in NOTATIONS],
}
WARM_UP_STEPS, BATCH = 300, 64
TEMPERATURES = {"first": 0.15, "second": 0.2}
STEP_SIZE, NUM_STEPS = 1.5, 36
EPISODES_PER_PROMPT = 32  # of a round
EPISODES_PER_PAIR = 256  # of the game that is measured
NUM_TEST = 1024
MAX_NEW_TOKENS = 24

console = quickstart.console


def parse_arguments(arguments=None):
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/prompt_control"), help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="of problems, weights and sampling (%(default)s)")
    return parser.parse_args(arguments)


# ---------------------------------------------------------------------- the two roles


def written(digit: int, notation: str) -> int:
    """How a notation writes a digit."""
    return {"plain": digit, "nines": 9 - digit, "shifted": (digit + 3) % 10}[notation]


def halves(operands: tuple[int, ...]) -> tuple[str, str]:
    """The numbers that each role sees."""
    numbers = [f" {label}{operand}" for label, operand in zip(task.LABELS, operands, strict=False)]
    return "".join(numbers[: len(numbers) // 2]), "".join(numbers[len(numbers) // 2 :])


def demonstration(operands: tuple[int, ...], notation: str, role: str, rng: random.Random) -> tuple[str, str]:
    """What a role reads, and what it writes: the running sum, and its last digit in a box."""
    first, second = halves(operands)
    slips = rng.random() < P_WRONG[notation]
    if role == "first":
        question, total, numbers = PROMPTS[role][NOTATIONS.index(notation)].format(numbers=first), 0, first
    else:
        total, numbers = rng.randrange(10), second
        message = written(total, notation)
        question = PROMPTS[role][NOTATIONS.index(notation)].format(message=message, numbers=second)
        total = rng.randrange(10) if slips else total
    steps = f"{total}."
    for label, operand in re.findall(r"([a-f])(\d)", numbers):
        total = (total + int(operand)) % 10
        steps += f" {label}{operand}={total}."
    answer = written(total, notation) if role == "first" else total
    answer = rng.randrange(10) if role == "first" and slips else answer
    return question, f"{steps} \\boxed{{{answer}}}"


def make_tokenizer():
    return task.build_tokenizer(["write", "read", *(f" {word}" for word in (*NOTATIONS, *task.LABELS))])


class Team:
    """The frozen model in both roles: it samples with this package's engine, and its grader counts."""

    def __init__(self, model, tokenizer, pool: GradingPool, seed: int):
        self.tokenizer, self.pool, self.rng = tokenizer, pool, random.Random(seed)
        self.engine = TransformersEngine(model, tokenizer, temperature=1.0, max_new_tokens=MAX_NEW_TOKENS)

    def play(self, problems: list[tuple[int, ...]], choices: dict[str, np.ndarray]) -> np.ndarray:
        """The joint return of each episode, 1 or 0: both roles earn it when the last answer is right."""
        parts = [halves(problem) for problem in problems]
        chosen = {role: [PROMPTS[role][number] for number in choices[role]] for role in PROMPTS}
        firsts = self._say([prompt.format(numbers=a) for prompt, (a, _) in zip(chosen["first"], parts, strict=True)])
        messages = [(re.findall(r"\\boxed\{(\d)\}", text) or [""])[-1] for text in firsts]
        rows = zip(chosen["second"], messages, parts, strict=True)
        answers = self._say([prompt.format(message=message, numbers=b) for prompt, message, (_, b) in rows])
        verdicts = self.pool.grade(answers, [task.solution(problem) for problem in problems])
        return np.array([float(verdict.reward == 1.0) for verdict in verdicts])

    def _say(self, texts: list[str], batch_size: int = 256) -> list[str]:
        prompts = [
            self.tokenizer.apply_chat_template(
                [quickstart.message("user", text)], add_generation_prompt=True, return_dict=False
            )
            for text in texts
        ]
        said = []
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            said += self.engine.generate(part, [self.rng.randrange(2**31) for _ in part])
        return [sample.text for sample in said]


# ---------------------------------------------------------------------- the game


def measure_game(team: Team, rng: random.Random) -> np.ndarray:
    """Mean joint return of every pair of prompts, shape `(prompts of the first, prompts of the second)`."""
    payoffs = np.zeros((len(NOTATIONS), len(NOTATIONS)))
    for pair in itertools.product(range(len(NOTATIONS)), repeat=2):
        problems = task.training_problems(EPISODES_PER_PAIR, rng)
        choices = {role: np.full(EPISODES_PER_PAIR, number) for role, number in zip(PROMPTS, pair, strict=True)}
        payoffs[pair] = team.play(problems, choices).mean()
    return payoffs


def control_prompts(team: Team, rng: random.Random, seed: int) -> PromptControl:
    control = PromptControl(PROMPTS, TEMPERATURES, STEP_SIZE, seed=seed)
    num_episodes = EPISODES_PER_PROMPT * control.num_blocks
    for _ in range(NUM_STEPS):
        choices = control.sample(num_episodes)
        control.update(choices, team.play(task.training_problems(num_episodes, rng), choices))
    return control


def accuracy(team: Team, policies: dict[str, np.ndarray], problems: list[tuple[int, ...]], seed: int) -> float:
    """Accuracy of the team when each role draws its prompts from its policy."""
    generator = np.random.default_rng(seed)
    choices = {role: generator.choice(len(policy), len(problems), p=policy) for role, policy in policies.items()}
    return float(team.play(problems, choices).mean())


def main(arguments=None) -> None:
    warnings.simplefilter("ignore")
    options = parse_arguments(arguments)
    started = time.perf_counter()
    folder = quickstart.prepare_directory(options.output_dir)
    rng = random.Random(options.seed)
    test = task.held_out_problems(NUM_TEST, rng)

    console.rule("[bold]1. A model that knows both roles, and is frozen then")
    tokenizer = make_tokenizer()
    model = task.make_model(tokenizer, options.seed)
    demonstrations = [
        demonstration(problem, rng.choice(NOTATIONS), rng.choice([*PROMPTS]), rng)
        for problem in task.training_problems(WARM_UP_STEPS * BATCH, rng)
    ]
    for question, answer in demonstrations[:2]:
        console.print(f"{question}  ->  {answer}", markup=False, highlight=False)
    imitate(model, tokenizer, demonstrations, folder / "model", batch_size=BATCH, seed=options.seed)

    with GradingPool() as pool:
        team = Team(model, tokenizer, pool, options.seed)
        console.rule("[bold]2. Every pair of prompts, and the equilibrium of the game that was measured")
        payoffs = measure_game(team, rng)
        show_game(payoffs)
        equilibrium = solve_hqre(payoffs, [*TEMPERATURES.values()])
        console.rule(f"[bold]3. Prompt control: {NUM_STEPS} mirror steps")
        control = control_prompts(team, rng, options.seed)
        before, after = (accuracy(team, control.history[step], test, options.seed) for step in (0, -1))

    at_equilibrium = dict(zip(PROMPTS, equilibrium.policies, strict=True))
    summary = {
        "accuracy_before": before,
        "accuracy_after": after,
        "accuracy_of_equilibrium": float(equilibrium.expected_payoffs[0]),
        "payoffs": payoffs.tolist(),
        "policies": {role: policy.tolist() for role, policy in control.policies.items()},
        "equilibrium": {role: policy.tolist() for role, policy in at_equilibrium.items()},
        "temperatures": TEMPERATURES,
        "step_size": STEP_SIZE,
        "num_test_problems": len(test),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(folder / "summary.json", summary)
    write_json(folder / "control.json", control.state_dict())
    plot_prompt_policies(
        control.history, at_equilibrium, dict.fromkeys(PROMPTS, NOTATIONS), folder / "prompt_control.png"
    )
    show(summary, control, equilibrium, folder)


def show_game(payoffs: np.ndarray) -> None:
    table = Table(title=f"Joint accuracy of each pair, {EPISODES_PER_PAIR} episodes", title_style="bold")
    for column in ("first \\ second", *(f"read {notation}" for notation in NOTATIONS)):
        table.add_column(column, justify="right")
    for notation, row in zip(NOTATIONS, payoffs, strict=True):
        table.add_row(f"write {notation}", *(f"{value:.3f}" for value in row))
    console.print(table)


def show(summary: dict, control: PromptControl, equilibrium: Equilibrium, folder: Path) -> None:
    table = Table(title="Policies over prompts", title_style="bold")
    for column in ("role", "prompt", "start", f"after {NUM_STEPS} steps", "equilibrium"):
        table.add_column(column, justify="left" if column in ("role", "prompt") else "right")
    for (role, prompts), policy in zip(PROMPTS.items(), equilibrium.policies, strict=True):
        columns = (control.history[0][role], control.policies[role], policy)
        for prompt, *values in zip(prompts, *columns, strict=True):
            table.add_row(role, prompt, *(f"{value:.3f}" for value in values))
    console.print(table)
    console.print(
        f"Right on {summary['accuracy_before']:.1%} of {summary['num_test_problems']:,} held-out problems before, "
        f"{summary['accuracy_after']:.1%} after; the equilibrium of the measured game earns "
        f"{summary['accuracy_of_equilibrium']:.1%}. {summary['seconds']:.0f} s. summary.json, control.json and "
        f"prompt_control.png are in {folder}.\n"
    )
    console.print(f"[bold]Next[/]\n  Look at the steps: {folder / 'prompt_control.png'}")
    console.print("  Another seed: python examples/prompt_control.py --seed 1 --output_dir outputs/prompt_control_1")
    console.print("  What temperature and magnet do, and how to steer a team of your own: docs/equilibria.md")


if __name__ == "__main__":
    main()
