"""`trl-fork COMMAND`: only the module of that command is imported, so that help and errors come at once."""

import argparse
import sys
import sysconfig
import traceback
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from .. import __version__
from .._errors import StatedError
from .program import PROGRAM


COMMANDS = {
    "train": "train a model by reinforcement learning on the tokens that matter",
    "evaluate": "sample and grade answers to benchmarks: avg@K, pass@K, lengths",
    "analyze": "show where a model's responses fork, with the analyses of the paper",
    "report": "show a run on one page, or compare runs: curves, settings, accuracy, tokens",
    "partition": "estimate the partition functions of prompts, for the trajectory-balance objective",
    "select": "select training responses by their High-Entropy Sum",
    "merge": "merge a LoRA adapter into its base model",
    "recipes": "list the recipes and launch files that come with the package, print or copy one",
    "env": "print versions and GPUs, ready to be pasted into an issue",
    "smollm2": "make a folder of a small real model from a package on PyPI, without the Hub",
    "quickstart": "watch a tiny model learn on a CPU: a few minutes, no download",
}


def main(arguments: list[str] | None = None) -> int:
    """
    Run the command that the first word names.

    Args:
        arguments (`list[str]`, *optional*):
            Words of the command line after `trl-fork`; those of this process if not given.

    Returns:
        `int`: the exit status.
    """
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "--version"):
        _make_parser().parse_args([name])
    if name not in COMMANDS:
        print(_describe_unknown(name), file=sys.stderr)
        return 2
    try:
        import_module(f"{__package__}.{name}").main(words)
    except Exception as error:
        if not _is_refusal(error):
            raise
        lines = _lines_of_user(error) if isinstance(error, StatedError) else []
        print(f"{PROGRAM} {name}: error: {error}", *lines, sep="\n", file=sys.stderr)
        return 1
    return 0


def run_script(name: str) -> None:
    """
    Run a command with the words of this process, for a script of the checkout: `accelerate launch` takes scripts.

    Args:
        name (`str`):
            The command.

    Raises:
        `SystemExit`: if it has failed, with its exit status.
    """
    if status := main([name, *sys.argv[1:]]):
        raise SystemExit(status)


def _is_refusal(error: Exception) -> bool:
    """
    Whether an error is this package's word on its input, or TRL's, which a traceback would only bury.

    An error of another package keeps its traceback, and so does an error of a training that has begun unless it says
    by its class that it is stated in full.
    """
    if isinstance(error, StatedError):
        return True
    if not isinstance(error, (ValueError, TypeError, ImportError, NotImplementedError)):
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = __package__.partition(".")[0]
    # TRL's trainer states its own refusals in the same way.
    return modules[-1].startswith((f"{package}.", "trl.")) and f"{__package__}.finishing" not in modules


def _lines_of_user(error: BaseException) -> list[str]:
    """The lines of a user's function that have led to an error: those of files that belong to no library."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    package = str(Path(__file__).parents[1])
    frames = [] if cause is error else traceback.extract_tb(cause.__traceback__)
    called = [frame for frame in frames if not frame.filename.startswith(package)]
    libraries = ("site-packages", "dist-packages", sysconfig.get_path("stdlib"))
    # A function of a package that is installed has none of its own.
    own = [frame for frame in called if not any(place in frame.filename for place in libraries)] or called
    return [line.rstrip("\n") for line in traceback.format_list(own)]


def _make_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s COMMAND [--OPTION VALUE ...]",
        description=f"Reinforcement learning of language models on the tokens that matter.\n\ncommands:\n{listed}",
        epilog="trl-fork COMMAND --help shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trl_fork {__version__}")
    return parser


def _describe_unknown(word: str) -> str:
    """The error for a first word that names neither a command nor an option, with the nearest name."""
    kind, known = ("option", ["--help", "--version"]) if word.startswith("-") else ("command", list(COMMANDS))
    begins = [name for name in known if word and (name.startswith(word) or word.startswith(name))]
    near = (begins or get_close_matches(word, known, 1))[:1]
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{PROGRAM}: error: there is no {kind} {word!r}{meant}\nAll commands: {PROGRAM} --help"
