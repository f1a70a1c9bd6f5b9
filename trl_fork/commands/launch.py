"""Options of `accelerate launch` on the line of a command, which is then run by accelerate on every process."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .._shipped import find_shipped
from .options import NearestOption


_PACKAGE = __package__.partition(".")[0]
# Options of what to run, which the command sets itself.
_OF_THE_SCRIPT = {"--module", "--no_python", "--no-python"}
# Groups of its options that do nothing without another one.
_ENGINES = {
    "DeepSpeed Arguments": "--use_deepspeed",
    "FSDP Arguments": "--use_fsdp",
    "Megatron-LM Arguments": "--use_megatron_lm",
    "ParallelismConfig Arguments": "--use_parallelism_config",
}


def split_launch(words: list[str], parser: NearestOption) -> tuple[list[str], list[str]]:
    """
    Take the options of `accelerate launch` out of a command line.

    An option that both have (`--gradient_accumulation_steps`, `--debug`) is the command's own.

    Args:
        words (`list[str]`):
            Words of the command line.
        parser ([`NearestOption`]):
            The command's own options.

    Returns:
        `tuple[list[str], list[str]]`: words for `accelerate launch`, with `--accelerate_config` as the `--config_file`
        that it stands for, and the other words.
    """
    of_accelerate = launch_options()
    for_launch, others, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        is_config = name == "--accelerate_config"
        if not is_config and (name not in of_accelerate or name in parser._option_string_actions):
            others.append(word)
            continue
        taken = [name]
        if has_value:
            taken.append(value)
        elif is_config or of_accelerate[name]:
            if not rest or rest[0].startswith("--"):
                parser.error(f"{name} needs a value")
            taken.append(rest.pop(0))
        if is_config:
            taken = ["--config_file", _configuration(taken[1], parser)]
        if "--config_file" in taken and "--config_file" in for_launch:
            parser.error("the configuration of accelerate is given twice; a launch has one")
        for_launch += taken
    if for_launch and "LOCAL_RANK" in os.environ:
        parser.error(
            f"{for_launch[0]} is for the launch, and accelerate has launched this process already: give it to "
            "`accelerate launch`, before the script or module"
        )
    _check_engines(for_launch, parser)
    return for_launch, others


def _check_engines(for_launch: list[str], parser: NearestOption) -> None:
    """Refuse options of an engine that nothing turns on: accelerate would leave them out without a word."""
    if "--config_file" in for_launch or Path(default_config_file).is_file():
        return  # the file may turn it on
    given = {word.replace("-", "_").replace("__", "--", 1) for word in for_launch if word.startswith("--")}
    for group in launch_command_parser()._action_groups:
        engine = _ENGINES.get(group.title or "")
        names = {name for action in group._group_actions for name in action.option_strings}
        if engine is not None and engine not in given and (idle := sorted(given & names)):
            name = idle[0].removeprefix("--")
            news, own = parser.news_of(name), parser.meant_by(name)
            own_way = f" For the run itself {news}." if news else f" The run's own option is --{own}." if own else ""
            parser.error(
                f"{idle[0]} is an option of `accelerate launch` that does nothing without {engine} or "
                f"--accelerate_config.{own_way}"
            )


def launch_options() -> dict[str, bool]:
    """Names of the options of `accelerate launch`, and whether each takes a value."""
    actions = launch_command_parser()._option_string_actions
    return {
        name: action.nargs != 0
        for name, action in actions.items()
        if name.startswith("--") and name not in _OF_THE_SCRIPT and name != "--help"
    }


def launch(command: str, words: list[str], parser: NearestOption) -> bool:
    """
    Run a command by accelerate, if its line has options of `accelerate launch`.

    Args:
        command (`str`):
            The command of `trl-fork`.
        words (`list[str]`):
            Words of the command line.
        parser ([`NearestOption`]):
            The command's own options. Words that it cannot take are refused once, rather than by every process.

    Returns:
        `bool`: whether it has been launched and has ended. If not, this process must run it.

    Raises:
        `SystemExit`: where a process has failed, whose own message is there already.
    """
    for_launch, others = split_launch(words, parser)
    if not for_launch or {"-h", "--help"} & set(others):
        return False
    parser.parse_known_args(others)
    try:
        launch_command(launch_command_parser().parse_args([*for_launch, "--module", _PACKAGE, command, *others]))
    except (subprocess.CalledProcessError, ChildFailedError) as error:
        print(f"{parser.prog}: error: {_failures(error)}; what it has printed is above.", file=sys.stderr)
        raise SystemExit(1) from None
    return True


def _failures(error: subprocess.CalledProcessError | ChildFailedError) -> str:
    """Which process has ended first, and how: one that was killed has printed nothing."""
    if isinstance(error, ChildFailedError):
        rank, failure = error.get_first_failure()
        status = failure.exitcode
    else:
        rank, status = 0, error.returncode
    how = (
        f"was ended by the signal {signal.Signals(-status).name}" if status < 0 else f"ended with the status {status}"
    )
    return f"process {rank} of the launch {how}"


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """The option of a command that [`launch`] takes from its line, for its help."""
    parser.add_argument(
        "--accelerate_config",
        metavar="NAME|FILE",
        default=argparse.SUPPRESS,
        help="launch by accelerate with this file: a name (trl-fork recipes lists them) or a file of your own",
    )


def _configuration(name: str, parser: NearestOption) -> str:
    if Path(name).is_file():
        return name
    try:
        return str(find_shipped("accelerate", name))
    except ValueError as error:
        parser.error(f"--accelerate_config: there is no file {name!r} (looked from {Path.cwd()}). {error}")
