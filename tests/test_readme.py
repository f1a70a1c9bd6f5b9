"""The two commands of the README. Its other blocks run in `test_docs.py`."""

import re

from tests.snippets import ROOT, blocks


def test_the_two_commands_come_first():
    shown = [block.code.strip() for block in blocks(ROOT / "README.md") if block.language == "bash"]
    assert shown[:2] == ["make quickstart", "make test"]


def test_what_the_first_command_runs():
    """`test_quickstart_learns` runs it."""
    recipe = re.search(r"^quickstart:.*\n\t(.*)\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe[1] == "$(BIN)/python examples/quickstart.py"
