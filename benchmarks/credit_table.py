"""
What `step.py --token_credit` compares and prints: a training step under credit rules.

Each row prints, after an unmeasured step in each turn,

- the median of its seconds, and of how many times faster it was than TRL's `top_entropy_quantile` and than the preset
  `forking` in the same round; the same in processor time, which other work on the machine hardly changes (of no
  meaning on a GPU). `--output` has the extremes, too;
- scorings: tokens in passes without gradient, by those of the batch. `forking` takes one such pass, for entropies;
- with gradient: the share of the completion tokens with a weight and an advantage;
- effective: the effective fraction of the weights, `credit/effective_fraction` of a training log;
- the savings that are on, of those of [`~trainer.savings.Savings`]. The others would not be exact under these rules.

All arms have the same rollouts, in which each completion ends in an answer. Rules that the trainer refuses have a row
without numbers, and the reason below the table.
"""

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from trl_fork.credit import build_credit, preset_names

from .arms import Arm


REFERENCE = "forking"
COLUMNS = (
    "seconds",
    "x TRL",
    f"x {REFERENCE}",
    "CPU x TRL",
    f"CPU x {REFERENCE}",
    "scorings",
    "with gradient",
    "effective",
    "savings",
)


def arms_of(names, progress):
    """
    The arms of credit rules, `forking` first.

    Args:
        names (`list[str]`): Presets or dotted paths of rules; `all` stands for every preset.
        progress (`float`): Place in their schedules, in [0, 1].

    Raises:
        `ValueError`: if there are no such rules.
    """
    wanted = [REFERENCE]
    for name in names:
        wanted += preset_names() if name == "all" else [name]
    for name in wanted:
        build_credit(name)
    return [Arm(name, token_credit=name, progress=progress) for name in dict.fromkeys(wanted)]


def print_credit_table(rows, title):
    """Print the rows of `step.py` of one workload, as a table of Markdown."""
    table = Table(title=title, box=MARKDOWN)
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[-1] else "right", no_wrap=True)
    for row in rows:
        table.add_row(row["variant"], *(["refused"] if "refused" in row else cells(row)))
    console = Console(width=160)
    console.print(table)
    for row in rows:
        if "refused" in row:
            console.print(f"{row['variant']} is refused: {row['refused']}", markup=False, highlight=False)


def cells(row):
    """The cells of a row that was measured; those of TRL's own row say nothing about weights and savings."""
    times = ("ratio", f"{REFERENCE}_ratio", "processor_ratio", f"{REFERENCE}_processor_ratio")
    shares = ("tokens_trained", "effective_fraction")
    return (
        f"{row['seconds']:.3f}",
        *(f"{row[name]:.2f}" if name in row else "" for name in times),
        f"{row['scoring_passes']:.1f}",
        *("" if row[name] is None else f"{row[name]:.1%}" for name in shares),
        "" if row["savings"] is None else in_words(row["savings"]),
    )


def in_words(savings):
    """The savings that are on: `all`, or all but some."""
    missing = [name for name, on in savings.items() if not on]
    return f"all but {', '.join(missing)}" if missing else "all"
