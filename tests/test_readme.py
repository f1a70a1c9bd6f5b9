"""The two commands of the README, in a fresh clone. Its other blocks run in `test_docs.py`."""

import re
import shutil
import subprocess

import pytest
from snippets import ROOT, blocks
from test_quickstart import check_quickstart


def test_the_two_commands_come_first():
    shown = [block.code.strip() for block in blocks(ROOT / "README.md") if block.language == "bash"]
    assert shown[:2] == ["make quickstart", "make test"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_two_commands_in_a_fresh_clone(tmp_path):
    """`make quickstart` and `make test`, each as a newcomer types it; of the suite, a part that needs everything."""
    clone = tmp_path / "clone"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    first = subprocess.run(["make", "quickstart"], capture_output=True, text=True, cwd=clone)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-3000:]
    check_quickstart(clone / "outputs" / "quickstart", seed=42)
    second = subprocess.run(
        ["make", "test", "ARGS=tests/test_config.py tests/test_objective.py -k 'not 2x16'"],
        capture_output=True,
        text=True,
        cwd=clone,
    )
    assert second.returncode == 0, second.stdout[-3000:]
    assert re.search(r"\d+ passed", second.stdout)
