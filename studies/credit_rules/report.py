"""
Write docs/rules_study.md and its figures from the results that are there, and its advice into README.md: every number
in a table is computed here.

    python -m studies.credit_rules.report

While runs of the plan are missing, the page says so, and which.
"""

import argparse
import json
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from docs.marked_text import with_marked_text
from studies.cells import read_rows
from studies.which_tokens.settings import NUM_GENERATIONS, SIZES, num_parameters
from trl_fork.commands.options import OptionParser

from . import plan, tables
from .advice import advice, listed, scope
from .outcomes import Setting, Study
from .run import RESULTS


README = Path(__file__).resolve().parents[2] / "README.md"
DOCS = README.parent / "docs"
TEMPLATE = Path(__file__).with_name("page.md.jinja")


def load_study(path: Path = RESULTS / "tiny.jsonl") -> Study:
    """The runs of a file of results, and the starts beside it."""
    start = path.with_name(f"{path.stem}-start.json")
    return Study(read_rows(path), json.loads(start.read_text()) if start.exists() else {})


def page(study: Study) -> str:
    """
    The page, in Markdown.

    Raises:
        `ValueError`: if there are no runs, or a task of one has no start.
    """
    tasks = {row["task"] for row in study.rows}
    if not tasks:
        raise ValueError("A page needs runs: run --stage shared first.")
    if without := sorted(tasks - set(study.starts)):
        raise ValueError(
            f"What the model can do before training is not known for {', '.join(without)}: --stage start."
        )
    settings = shown_settings(study)
    tuned = [each for each in plan.TUNED_SETTINGS if any(study.own(each, arm) for arm in plan.TUNED_ARMS)]
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        study=study,
        plan=plan,
        tables=tables,
        advice=advice(study),
        missing=missing(study),
        shared_family=study.over_settings(study.shared, settings=settings),
        own_family=study.over_settings(study.own, settings=plan.TUNED_SETTINGS),
        scopes=study.scopes(),
        scope=scope,
        settings=settings,
        tuned=tuned,
        has_batches=any(len(study.batch_factors(task)) > 1 for task in plan.BATCH_TASKS),
        parameters=num_parameters(plan.SIZE) / 1e6,
        prompts=SIZES[plan.SIZE].prompts_per_update,
        num_generations=NUM_GENERATIONS,
        hours=sum(row["processor_seconds"] for row in study.rows) / 3600,
        commits=sorted({row["commit"] for row in study.rows}),
    )
    return text.rstrip() + "\n"


def shown_settings(study: Study) -> list[Setting]:
    """
    Settings in which all arms have all seeds, or else those that are begun: half of a setting may be only the quick
    arms, or few seeds.
    """
    begun = [each for each in plan.SETTINGS if any(study.shared(each, arm) for arm in plan.MAIN_ARMS)]
    return study.complete_settings(study.shared) or begun


def missing(study: Study) -> str:
    """What is not there yet, in a sentence; nothing if all runs are."""
    stages = study.missing()
    if not stages:
        return ""
    names = listed([f"`{stage}`" for stage in stages])
    return f"**This page is not complete**: runs of {names} are missing, and what it says may change with them."


def readme(study: Study) -> str:
    """README.md with what the study says today."""
    where = "By [runs of tiny models](docs/rules_study.md), every rule beside its control"
    text = f"**Which rule?** {where}: {advice(study)}"
    if missing(study):
        text += " The study is not complete, and this may change with it."
    return with_marked_text(README, "studies/credit_rules/report.py", text)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "tiny.jsonl", help="file of the runs")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of the page")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    from .plots import save_plots

    study = load_study(options.results)
    text = page(study)
    (options.output / "study").mkdir(parents=True, exist_ok=True)
    (options.output / "rules_study.md").write_text(text)
    save_plots(study, options.output / "study")
    if options.output == DOCS:
        README.write_text(readme(study))
    print(f"{options.output / 'rules_study.md'} is of {len(study.rows)} runs. {missing(study)}")


if __name__ == "__main__":
    main(parse_arguments())
