"""`trl-fork recipes --from FILE`: another tool's file as a recipe, and a table of what becomes of each of its keys."""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterable

from .._files import write_text
from ..evaluation.tables import print_table
from .coming_from.fates import OPEN, Conversion, shown
from .coming_from.formats import convert
from .coming_from.recipe_file import as_yaml
from .program import program


def run(options: argparse.Namespace) -> None:
    """
    Write the recipe to `--output`, or print it; the table goes to the standard error then.

    Raises:
        `ValueError`: if the file is of no known kind, or has a value that cannot be taken.
    """
    from .train import make_parser  # takes seconds to import, and nothing else here needs it

    parser = make_parser()
    actions = parser.options_of_a_file()
    conversion = convert(
        options.from_file,
        [*actions],
        {name: action.default for name, action in actions.items()},
        kind=options.from_format,
        processes=options.num_processes,
    )
    settings = {name: value for name, value in conversion.settings.items() if name != "env"}
    _, problems = parser.checked(settings)
    if problems:
        raise ValueError(
            f"{options.from_file!r}: {'; '.join(text.removeprefix('the YAML file: ') for text in problems)}"
        )
    recipe = as_yaml(conversion, options.from_file)
    where = sys.stdout if options.output else sys.stderr
    print_conversion(conversion, options.from_file, where)
    if options.output:
        write_text(options.output, recipe)
        print(f"The recipe is in {options.output}.\nNext:\n  {launch_command(conversion, options.output)}")
    else:
        print(recipe, end="")
        print("Next: --output FILE writes it; then\n  " + launch_command(conversion, "FILE"), file=sys.stderr)


def print_conversion(conversion: Conversion, path: str, file) -> None:
    """Print the table, those keys last that somebody must decide about, and a count of the verdicts."""
    fates = sorted(conversion.fates, key=lambda fate: fate.verdict in OPEN)
    rows = [
        [fate.key, shown(fate.value) if fate.given else f"{shown(fate.value)} (not in the file)", fate.in_words]
        for fate in fates
    ]
    title = f"{path}, for {conversion.tool}, as a recipe of trl-fork train"
    # Values may have brackets, which rich would read as markup.
    print_table(title, ["key", "value", "what becomes of it"], escaped(rows), justify="left", file=file)
    counts = Counter(fate.verdict for fate in fates)
    print(", ".join(f"{number} {verdict}" for verdict, number in counts.items()) + ".", file=file)
    if questions := conversion.open_questions:
        rows_of = "row" if len(questions) == 1 else f"{len(questions)} rows"
        print(f"Read the last {rows_of}: there the recipe may not do what the file says.", file=file)


def escaped(rows: Iterable[list[str]]) -> list[list[str]]:
    from rich.markup import escape

    return [[escape(text) for text in row] for row in rows]


def launch_command(conversion: Conversion, recipe: str) -> str:
    """The command that trains by the recipe."""
    launch = dict(conversion.launch)
    machines = launch.get("num_machines")
    words = [*program(), "train"]
    words += [word for name, value in launch.items() for word in (f"--{name}", str(value))]
    if machines:
        words += ["--machine_rank", "RANK", "--main_process_ip", "ADDRESS", "--main_process_port", "29500"]
    return shlex.join([*words, "--config", recipe])
