"""The check of a tag before it is published (`.ci/release.py`)."""

import subprocess
import sys

import pytest

from tests.snippets import ROOT


CHANGELOG = """# Changelog

## Unreleased

- Later.

## 1.20.3, 1 May 2026

- A line
  of two.

## 1.20

- Earlier.
"""


@pytest.fixture
def check(tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / "trl_fork").mkdir()
    (tmp_path / ".ci" / "release.py").write_bytes((ROOT / ".ci" / "release.py").read_bytes())

    def check(tag, version, changelog=CHANGELOG):
        (tmp_path / "trl_fork" / "__init__.py").write_text(f'"""A package."""\n\n__version__ = "{version}"\n')
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        return subprocess.run(
            [sys.executable, str(tmp_path / ".ci" / "release.py"), tag], capture_output=True, text=True
        )

    return check


def test_the_notes_are_the_section_of_the_tag(check):
    done = check("v1.20.3", "1.20.3")
    assert (done.returncode, done.stdout) == (0, "- A line\n  of two.\n")
    assert check("v1.20", "1.20").stdout == "- Earlier.\n"


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "message"),
    [
        ("v1.20.4", "1.20.3", CHANGELOG, "The tag v1.20.4 is not v1.20.3"),
        ("1.20.3", "1.20.3", CHANGELOG, "The tag 1.20.3 is not v1.20.3"),
        ("v1.20.4", "1.20.4", CHANGELOG, "needs one section `## 1.20.4` with text in it, and has 0"),
        ("v1.20", "1.20", "## 1.20\n\n## 1.19\n\n- Earlier.\n", "needs one section `## 1.20`"),
        (
            "v1.20",
            "1.20",
            CHANGELOG + "\n## 1.20\n\n- Twice.\n",
            "needs one section `## 1.20` with text in it, and has 2",
        ),
    ],
)
def test_a_tag_that_does_not_fit_is_refused(tag, version, changelog, message, check):
    done = check(tag, version, changelog)
    assert done.returncode == 1 and message in done.stderr and not done.stdout
