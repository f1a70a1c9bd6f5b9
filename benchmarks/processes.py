"""A benchmark on several processes of this machine, which torch's launcher starts."""

import os
import socket
import subprocess
import sys

import torch.distributed


def index() -> int:
    return int(os.environ.get("RANK", 0))


def are_running() -> bool:
    """Whether this is one of the processes that [`launch`] has started."""
    return "RANK" in os.environ


def launch(module: str, number: int, arguments: list[str]) -> None:
    """
    Run `python -m module` with these arguments on as many processes, over loopback.

    Raises:
        `SystemExit`: if one of them fails.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(number)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), "-m", module, *arguments]
    # One thread each: more would fight over the same cores.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    code = subprocess.run(command, env=environment).returncode
    if code:
        sys.exit(code)


def slowest(result: dict) -> dict:
    """
    Of all processes' results of one turn, that whose step took longest by the clock on the wall.

    With `processes`, the results of all, if there are several.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return result
    results = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(results, result)
    return {**max(results, key=lambda found: found["seconds"]["whole"]), "processes": results}
