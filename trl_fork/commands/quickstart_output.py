"""Terminal output and files of the quickstart's two evaluations."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .._files import write_json
from ..report.page import ReportResponse, write_report_page
from ..tasks import digit_sums as task
from .program import program


FORKING_FRACTION = 0.2  # as in the recipe

console = Console()


@dataclass
class Evaluation:
    """Answers to the test problems: sampled at temperature 1, and greedy."""

    accuracy: float
    greedy_accuracy: float
    mean_length: float  # tokens, of the sampled completions, with the end token
    correct: list[bool]
    completions: list[Text]  # the sampled ones, forking tokens highlighted
    responses: list[ReportResponse]  # the first of them, with the model's alternatives


def show_completion(when: str, evaluation: Evaluation, problems: list[tuple[int, ...]]) -> None:
    verdict = "right" if evaluation.correct[0] else "wrong"
    answer = f"  ({verdict}: the last digit of {' + '.join(map(str, problems[0]))} is {task.solution(problems[0])})"
    body = Text.assemble(f"{task.question(problems[0])}  ->  ", evaluation.completions[0], answer)
    title = f"One sample {when}; the 20 % of tokens with most entropy are highlighted"
    console.print(Panel(body, title=title, title_align="left"))
    console.print(f"Right on {evaluation.accuracy:.1%} of {len(problems):,} held-out problems {when} RL.\n")


def write_summary(path: Path, seed: int, before: Evaluation, after: Evaluation, seconds: dict[str, float]) -> None:
    summary = {
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "greedy_accuracy_before": before.greedy_accuracy,
        "greedy_accuracy_after": after.greedy_accuracy,
        "mean_length_before": before.mean_length,
        "mean_length_after": after.mean_length,
        "num_test_problems": len(before.correct),
        "seed": seed,
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
    }
    write_json(path, summary)


def write_report(path: Path, before: Evaluation, after: Evaluation) -> None:
    """The same problems before and after, next to each other."""
    responses = []
    for pair in zip(before.responses, after.responses, strict=True):
        for when, response in zip(("before", "after"), pair, strict=True):
            responses.append(replace(response, label=f"{when}: {response.label}"))
    write_report_page(
        path,
        responses,
        title="Quickstart: held-out problems before and after training",
        summary={"Right before": f"{before.accuracy:.1%}", "Right after": f"{after.accuracy:.1%}"},
        fraction=FORKING_FRACTION,
    )


def show_summary(
    output_dir: Path, before: Evaluation, after: Evaluation, seconds: dict[str, float], paths: list[str]
) -> None:
    """The table, the times, and what to do next; `paths` are the options that name this run's model and data."""
    table = Table(title=f"{len(before.correct):,} held-out problems", title_style="bold")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, old, new, form in (
        ("accuracy, sampled at temperature 1", before.accuracy, after.accuracy, ".3f"),
        ("accuracy, greedy", before.greedy_accuracy, after.greedy_accuracy, ".3f"),
        ("mean length, tokens", before.mean_length, after.mean_length, ".1f"),
    ):
        table.add_row(name, f"{old:{form}}", f"{new:{form}}", f"{new - old:+{form}}")
    console.print(table)
    times = ", ".join(f"{phase.replace('_', '-')} {value:.0f} s" for phase, value in seconds.items())
    console.print(f"Time: {times}. The model, summary.json and train.log are in {output_dir}.\n")
    console.print(f"[bold]Next[/]\n  Look at the curves: {output_dir / 'training.png'}")
    console.print(f"  See the forks, in a browser: {(output_dir / 'report.html').resolve().as_uri()}", soft_wrap=True)
    train = [*program(), "train", "--recipe", "quickstart", *paths]
    for aim, options in (
        ("Train on all tokens", "--top_entropy_quantile 1.0 --output_dir outputs/all_tokens"),
        ("Train on the other 80 %", "--token_selection low_entropy --output_dir outputs/low_entropy"),
    ):
        console.print(f"  {aim}:", highlight=False)
        console.print(f"    {shlex.join(train)} {options}", highlight=False, soft_wrap=True)
    compare = shlex.join([*program(), "report", str(output_dir), "outputs/all_tokens"])
    console.print("  Compare with the run on all tokens:", highlight=False)
    console.print(f"    {compare}", highlight=False, soft_wrap=True)
