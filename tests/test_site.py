"""The site: its navigation, its pages of the API, and a strict build where its tools are installed."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType

import griffe
import pytest

from docs import build_api
from docs.navigation import NAVIGATION, ROOT_PAGE
from tests.snippets import PAGES, ROOT


ENTRIES = [re.sub(r".*<(.+)>", r"\1", entry) for entries in NAVIGATION.values() for entry in entries]
NAMES = {str(page.relative_to(ROOT).with_suffix("")) for page in [*PAGES, *ROOT.glob("*.md")]}


def test_navigation_names_every_page_once():
    entries = [ROOT_PAGE if entry == "self" else entry for entry in ENTRIES]
    times = {name: sum(fnmatch(name, entry) for entry in entries) for name in NAMES}
    assert set(times.values()) == {1}, times
    assert {entry for entry in entries if "*" not in entry} <= NAMES


@pytest.fixture(scope="module")
def api():
    return build_api.Api()


def public_things(room):
    module = import_module(room)
    return {name: getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}


def test_api_has_the_names_that_are_public_when_imported(api):
    assert len(api.rooms) == len(build_api.ROOMS)
    for room, things in api.rooms.items():
        assert list(things) == sorted(public_things(room)), room


def test_api_has_every_line_of_the_docstrings(api):
    text = re.sub(r"\{py:obj\}`([\w.]+) <[^>]+>`", r"`\1`", "".join(api.pages().values())).replace("**", "")
    count = 0
    for thing in (thing for room in api.rooms for thing in public_things(room).values()):
        own = [value for name, value in vars(thing).items() if not name.startswith("_")]
        methods = [value for value in own if isinstance(value, (FunctionType, property)) and value.__doc__]
        for docstring in map(inspect.getdoc, [thing, *(methods if inspect.isclass(thing) else [])]):
            for line in docstring.splitlines():
                line = re.sub(r"\[`~?(?:[a-z_]\w*\.)*([\w.]+)`\]", r"`\1`", line.strip().removeprefix("> "))
                assert line.replace("**", "") in text or re.fullmatch(r"\w+:", line), (thing, line)
                count += 1
    assert count > 500


def package(tmp_path, docstring):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text('"""O."""\nfrom .parts import f\n\n__all__ = ["f"]\n')
    (tmp_path / "own" / "parts.py").write_text(f'class Hidden:\n    """H."""\n\n\ndef f():\n    """{docstring}"""\n')
    return griffe.load("own", search_paths=[tmp_path], docstring_parser="google")


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("[`f`]", "{py:obj}`f <own.f>`"),
        ("[`~parts.f`]", "{py:obj}`f <own.f>`"),
        ("[`Hidden`]", "`Hidden`"),
        ("[`~transformers.Trainer.train`]", "`Trainer.train`"),
    ],
)
def test_references_lead_to_public_objects(reference, shown, tmp_path):
    pages = build_api.Api(package(tmp_path, f"As {reference} does."), ("",)).pages()
    assert f"As {shown} does." in pages["own"]


@pytest.mark.parametrize("reference", ["[`g`]", "[`~parts.g`]", "[`Hidden.g`]"])
def test_a_reference_to_nothing_is_an_error(reference, tmp_path):
    name = reference.strip("[`~]")
    with pytest.raises(ValueError, match=f"docstring of own.parts.f refers to '{re.escape(name)}'"):
        build_api.Api(package(tmp_path, f"As {reference} does."), ("",)).pages()


def test_a_docstring_that_would_lose_text_is_an_error(tmp_path):
    docstring = "F.\n\n    Raises:\n        `ValueError`: if it\n        is so.\n    "
    with pytest.raises(RuntimeError, match="'exception: description' pair from 'is so"):
        build_api.Api(package(tmp_path, docstring), ("",)).pages()


def test_api_page_names_every_room(api):
    assert re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE) == list(api.rooms)


def command():
    """The command that builds the site, of the environment of `make docs` or of this one."""
    if (ROOT / ".docs" / "bin" / "sphinx-build").exists():
        return [ROOT / ".docs" / "bin" / "sphinx-build"]
    if find_spec("sphinx") and find_spec("myst_parser"):
        return [sys.executable, "-m", "sphinx"]
    return pytest.skip("the tools of the site are not installed: make docs")


def build(folder):
    (options,) = re.findall(r"sphinx-build (.+) \. build/site$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    options = [option for option in options.split() if option != "--write-all"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*command(), *options, ".", "build/site"], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_site_builds_strictly(tmp_path):
    for name in ("docs", "configs", "trl_fork", "examples"):
        ignored = shutil.ignore_patterns("__pycache__", "api")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for page in ROOT.glob("*.md"):
        shutil.copy(page, tmp_path)
    done = build(tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr

    site = tmp_path / "build" / "site"
    assert 'url=README.html"' in (site / "index.html").read_text()
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML">' in (site / "docs/api/trl_fork.html").read_text()
    assert 'href="api/trl_fork.credit.html#trl_fork.credit.Signals"' in (site / "docs/credit.html").read_text()
    assert "top_entropy_quantil" in (site / "searchindex.js").read_text()  # a stem
    for page in site.rglob("*.html"):  # scripts, styles and pictures are the site's own
        assert not re.findall(r'(?:src=|<link rel="stylesheet" href=)"https?:', page.read_text()), page

    with (tmp_path / "docs" / "hub.md").open("a") as page:
        page.write("\n[gone](gone.md), [no such part](train.md#no-such-part)\n")
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    done = build(tmp_path)
    assert done.returncode == 1
    for part in ("'gone.md'", "no-such-part", "lost.md: WARNING: document isn't included in any toctree"):
        assert part in done.stderr
    assert done.stderr.count("WARNING") == 3, done.stderr
