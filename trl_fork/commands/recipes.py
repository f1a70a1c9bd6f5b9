"""
List the recipes, launch files, credit presets and teams that come with the package; print one, or copy it. Or make a
recipe of another tool's file.

    trl-fork recipes
    trl-fork recipes --credit
    trl-fork recipes gsm8k_single_gpu
    trl-fork recipes gsm8k_single_gpu --output my_run.yaml
    trl-fork recipes --from run_dapo.sh --output my_run.yaml

A recipe is a YAML file of options of `trl-fork train`, which takes it by name (`--recipe gsm8k_single_gpu`) or, as a
file of your own, by its path (`--config my_run.yaml`). A launch file configures accelerate
(`--accelerate_config zero3`). A credit preset says which tokens are trained on (`--token_credit temporal_position`).
A team is a list of roles that answer together (`--team solver_checker`).
The first lines of each file say what it is for. Those of a credit preset also name its source and how it is known:
`code` (the authors' code was read), `full text` (their paper was), `second-hand` (another text's account), or `ours`.

`--from` takes a YAML file of `trl grpo` or Open-R1, or a configuration of verl: its YAML file, or a script that starts
it, which is read and not run. A table says what becomes of each key.
"""

import argparse
import itertools
import re
import shlex
import sys
from pathlib import Path

import yaml

from .._files import write_text
from .._shipped import find_shipped, shipped_files
from ..credit import build_credit
from ..evaluation.tables import print_table
from ..teams import load_team
from . import convert
from .coming_from.formats import FORMATS
from .options import OptionParser
from .program import PROGRAM, program


CERTAINTIES = ("code", "full text", "second-hand", "ours")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__, command="recipes")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="recipe, launch file, credit preset or team that is printed"
    )
    parser.add_argument("--output", metavar="FILE", help="write it to this file, instead of printing it")
    parser.add_argument("--credit", action="store_true", help="list the credit presets alone")
    parser.add_argument(
        "--from", dest="from_file", metavar="FILE", help="make a recipe of this file of TRL, Open-R1 or verl"
    )
    parser.add_argument("--from_format", choices=FORMATS, help="whose file it is; recognised if not given")
    parser.add_argument(
        "--num_processes",
        type=int,
        metavar="N",
        help="processes of the training, over which a batch is spread; with a file of verl, its GPUs if not given",
    )
    options = parser.parse_args(arguments)
    if options.from_file and (options.name or options.credit):
        parser.error("--from makes a recipe of a file: give neither NAME nor --credit with it")
    if not options.from_file and (options.from_format or options.num_processes is not None):
        parser.error("--from_format and --num_processes belong to --from FILE")
    if options.num_processes is not None and options.num_processes < 1:
        parser.error(f"--num_processes must be at least 1, got {options.num_processes}")
    if options.credit and options.name:
        parser.error("--credit lists all credit presets, and NAME prints one file: give one of them")
    if options.output and not options.name and not options.from_file:
        parser.error("--output copies one file: say which, trl-fork recipes NAME --output FILE")
    if options.output and Path(options.output).exists():
        parser.error(f"--output: {options.output!r} is there already: nothing was written. Name another file")
    return options


def run(options: argparse.Namespace) -> None:
    if options.from_file:
        convert.run(options)
        return
    if not options.name:
        if not options.credit:
            list_files()
        list_credit()
        if not options.credit:
            list_teams()
        print("Next:\n  trl-fork recipes NAME                 prints one, with its sources and what it needs")
        print("  trl-fork recipes NAME --output FILE   copies it, for you to change")
        print("  trl-fork recipes --from FILE          makes a recipe of a file of TRL, Open-R1 or verl")
        return
    path = find_shipped(("recipes", "accelerate", "credit", "teams"), options.name)
    kind = path.parent.name
    if not options.output:
        print(path.read_text(encoding="utf-8"), end="")
        return
    write_text(options.output, path.read_text(encoding="utf-8"))
    print(f"{path.stem} is in {options.output}.")
    if kind == "credit":
        print("Next, when you have changed it: put its lines into the YAML file of your run, which --config takes.")
        return
    option = {"accelerate": "--accelerate_config", "teams": "--team"}.get(kind, "--config")
    train = [*program(), "train", option, options.output]
    if kind != "recipes":
        train += ["--recipe", "NAME"]
    print(f"Next, when you have changed it:\n  {shlex.join(train)}")


def list_files() -> None:
    """Print tables of the recipes and the launch files, with what they are for."""
    rows = []
    for name, path in shipped_files("recipes").items():
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        hardware = first_sentence(entry_of(path, "Hardware"))
        lora = f"r = {settings['lora_r']}" if settings.get("use_peft") else "-"
        model, data = (settings[key] for key in ("model_name_or_path", "dataset_name"))
        rows.append([name, model, data, hardware or "-", lora])
    header = ["name", "model", "data", "hardware", "LoRA"]
    print_table("Recipes: trl-fork train --recipe NAME", header, rows, justify="left")
    rows = [[name, first_sentence(comment_of(path))] for name, path in shipped_files("accelerate").items()]
    print_table(
        "Launch files: trl-fork train --accelerate_config NAME", ["name", "what it does"], rows, justify="left"
    )


def list_credit() -> None:
    """Print a table of the credit presets: what they train on, where that is from, and how certain it is."""
    rows = []
    for name, path in shipped_files("credit").items():
        source = re.search(r"arXiv \d{4}\.\d{4,5}", entry_of(path, "Source"))
        certainty = re.match("|".join(CERTAINTIES), entry_of(path, "Certainty"))
        found = [match[0] if match else "-" for match in (source, certainty)]
        rows.append([name, build_credit(name).in_words, *found])
    header = ["name", "trains on", "source", "certainty"]
    print_table("Credit: trl-fork train --token_credit NAME", header, rows, justify="left")


def list_teams() -> None:
    """Print a table of the teams: who speaks, and what for."""
    rows = []
    for name, path in shipped_files("teams").items():
        roles = ", ".join(role.name for role in load_team(name).roles)
        rows.append([name, roles, first_sentence(comment_of(path).split("\n#\n")[0])])
    print_table("Teams: trl-fork train --team NAME", ["name", "roles", "what it does"], rows, justify="left")


def comment_of(path: Path) -> str:
    """The comment that a file begins with."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def entry_of(path: Path, name: str) -> str:
    """The text after a name such as `# Source` in the comment that a file begins with, "" without one."""
    found = re.search(rf"^# {name} +(\S.*(?:\n#   +\S.*)*)", comment_of(path), flags=re.MULTILINE)
    return found[1] if found else ""


def first_sentence(text: str) -> str:
    """The part of a comment up to the first colon, semicolon or full stop."""
    words = " ".join(line.removeprefix("#").strip() for line in text.splitlines())
    return re.split(r"[.:;](?=\s|$)", words, maxsplit=1)[0].strip()


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        run(options)
    except ValueError as error:  # an unknown name
        sys.exit(f"{PROGRAM} recipes: error: {error}")


if __name__ == "__main__":
    main()
