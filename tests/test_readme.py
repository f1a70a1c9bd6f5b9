"""The two commands of the README. Its other blocks run in `test_docs.py`."""

import pytest

from tests.commands.test_quickstart import check_quickstart
from tests.snippets import ROOT, blocks


def test_the_two_commands_come_first():
    shown = [block.code.strip() for block in blocks(ROOT / "README.md") if block.language == "bash"]
    assert shown[:2] == ["make quickstart", "make test"]


@pytest.mark.slow
def test_what_the_first_command_left():
    """`make test-slow` makes the quickstart first; the continuous integration does both in a fresh clone."""
    run = ROOT / "outputs" / "quickstart"
    assert (run / "summary.json").exists(), "run `make quickstart` first"
    check_quickstart(run, seed=42)
