"""
Write docs/smollm2.md and its figures from the numbers that are there: every number of a table is of them.

    python -m studies.smollm2.report
"""

import argparse
import json
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from docs import build_forks
from trl_fork.analysis import figures
from trl_fork.commands.options import OptionParser

from . import plan, tables


LATER = {"words": "fine-tuned", "reinforced": "reinforced"}  # parts that need training, and their names on the page
TEMPLATE = Path(__file__).with_name("page.md.jinja")


def page(numbers: dict) -> str:
    """The page, in Markdown."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    base = json.loads(build_forks.NUMBERS.read_text())
    columns = {"free text": base, "sums": numbers["sums"]}
    columns |= {name: numbers[key] for key, name in LATER.items() if key in numbers}
    text = environment.from_string(TEMPLATE.read_text()).render(
        **{name: numbers.get(name) for name in ("sft", "words", "sums", "rl", "reinforced")},
        plan=numbers["plan"],
        base=base,
        columns=columns,
        word_columns={name: part for name, part in columns.items() if part is not base},
        tables=tables,
        accuracy=lambda forking, other: tables.accuracy(numbers["sums"], forking, other),
        sft_names=["before", f"step {plan.SFT_SAVE_STEPS}", f"step {plan.SFT_STEPS}"],
    )
    return text.rstrip() + "\n"


def save_figures(numbers: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"temperatures": figures.plot_decoding_temperature(numbers["sums"]["decoding_temperature"]["cells"])}
    for name in ("words", "reinforced"):
        if part := numbers.get(name):
            last = part["change"]["models"][-1]
            drawn[f"{name}_overlap"] = figures.plot_overlap(part["overlap"])
            drawn[f"{name}_change"] = figures.plot_change(last["bins"], part["change"]["reference"], last["model"])
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=100)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=plan.RESULTS, help="file of the numbers")
    parser.add_argument("--output", type=Path, default=plan.DOCS, help="folder of the page")
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    numbers = json.loads(options.results.read_text())
    (options.output / "smollm2.md").write_text(page(numbers))
    save_figures(numbers, options.output / "smollm2")
    print(f"{options.output / 'smollm2.md'} is written.")


if __name__ == "__main__":
    main()
