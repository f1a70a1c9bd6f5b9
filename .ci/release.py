"""
What a tag needs before it is published: `python .ci/release.py v1.2.3` prints the section `## 1.2.3` of CHANGELOG.md.
It is an error if the package has another version, or if there is no such section.
"""

import re
import sys
from pathlib import Path


def notes(tag: str, root: Path) -> str:
    """The lines of the tag's section, without its heading."""
    source = (root / "trl_fork" / "__init__.py").read_text()
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]
    if tag != f"v{version}":
        raise SystemExit(f"The tag {tag} is not v{version}: trl_fork/__init__.py has the version {version}.")
    sections = re.split(r"^## (.+)\n", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    # A date may follow the version.
    found = [
        text.strip()
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
        if heading.strip("[] ").split()[0].strip("[],") == version
    ]
    if len(found) != 1 or not found[0]:
        raise SystemExit(f"CHANGELOG.md needs one section `## {version}` with text in it, and has {len(found)}.")
    return found[0]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(notes(sys.argv[1], Path(__file__).resolve().parents[1]))
