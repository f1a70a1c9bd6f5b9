"""Files for those who report, contribute and release: what they name has to be there."""

import re
from pathlib import Path

import pytest
import yaml

from tests.test_versions import pins
from trl_fork.commands.dispatch import COMMANDS


ROOT = Path(__file__).parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
LABELS = yaml.safe_load((ROOT / ".github" / "labels.yml").read_text())
# What GitHub takes in a form: https://docs.github.com/communities/using-templates-to-encourage-useful-issues
ATTRIBUTES = {
    "markdown": {"value"},
    "input": {"label", "description", "placeholder"},
    "textarea": {"label", "description", "placeholder", "render"},
    "dropdown": {"label", "description", "options"},
    "checkboxes": {"label", "description", "options"},
}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms(path):
    """GitHub shows no form at all, and no error, if a part of it is not as it expects."""
    form = yaml.safe_load(path.read_text())
    assert set(form) == {"name", "description", "labels", "body"}
    assert set(form["labels"]) <= {label["name"] for label in LABELS}
    for part in form["body"]:
        assert set(part["attributes"]) <= ATTRIBUTES[part["type"]]
        if part["type"] == "markdown":
            assert set(part) == {"type", "attributes"}
            continue
        assert re.fullmatch(r"[a-z_]+", part["id"]) and part["attributes"]["label"]
        assert set(part) <= {"type", "id", "attributes", "validations"}
    ids = [part["id"] for part in form["body"] if "id" in part]
    labels = [part["attributes"]["label"] for part in form["body"] if "id" in part]
    assert len(set(ids)) == len(ids) and len(set(labels)) == len(labels)


def test_each_kind_has_a_form():
    assert [path.stem for path in FORMS] == ["1_bug", "2_credit_rule", "3_question"]
    for path in (FORMS[0], FORMS[2]):
        assert "Output of `trl-fork env`" in path.read_text() and "env" in COMMANDS


def test_labels():
    names = [label["name"] for label in LABELS]
    assert len(set(names)) == len(names) and len({label["color"] for label in LABELS}) == len(names)
    for label in LABELS:
        assert set(label) == {"name", "color", "description"}
        assert re.fullmatch(r"[0-9a-f]{6}", label["color"]), "a text: YAML reads 006b75 as one, and 5319e7 as a number"
        assert len(label["description"]) <= 100, "GitHub's limit"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"])
def test_links_and_paths(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r"^\[[^\]]+\]: (?!https?:)(\S+)$", text, re.M)
    named = re.findall(r"`((?:\.github|tests|trl_fork|benchmarks|docs|configs)/[\w./]+\.\w+)`", text)
    for path in [*links, *named]:
        assert (ROOT / path).exists(), path


def test_targets_that_contributing_names():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]+)", text, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_pre_commit_checks_what_lint_checks():
    """With tools from the environment of constraints.txt: a hook of a repository would have a version of its own."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local" and all(hook["language"] == "system" for hook in repository["hooks"])
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    # A hook is given the files that have changed
    lint = [re.sub(r" (\.|\S+\.(yml|cff))$", "", line.removeprefix("\t$(BIN)/")) for line in recipe.splitlines()]
    mends = {"ruff check": "ruff check --fix", "ruff format --check": "ruff format"}
    assert hooks == [mends.get(line, line) for line in lint]
    assert {"ruff", "mypy", "import-linter", "zizmor", "check-jsonschema"} <= set(pins("constraints.txt"))
