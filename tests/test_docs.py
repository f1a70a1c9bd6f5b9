"""What the pages in `docs/` show is run: the Python blocks of a page, in order, in one scope."""

import re
from pathlib import Path

import pytest


DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_snippets_run(page):
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL):
        exec(block, scope)


def test_worked_example_has_snippets():
    assert (DOCS / "concepts.md").read_text().count("```python") >= 4
