"""What a wheel holds, and what the package says of itself."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trl_fork


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    # A copy: a build leaves folders beside the sources.
    source = directory / "source"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not files:
        pytest.skip("not a checkout")
    for name in files:
        if (ROOT / name).is_file() and name.split("/")[0] in (
            "trl_fork",
            "README.md",
            "LICENSE",
            "setup.cfg",
            "pyproject.toml",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(directory), str(source)], check=True
    )
    (path,) = directory.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_every_file_of_the_package(wheel):
    tracked = subprocess.run(["git", "ls-files", "trl_fork"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {"trl_fork/py.typed", "trl_fork/trainer/model_card.md"} <= set(tracked)
    assert set(tracked) == {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    metadata = wheel.read(name).decode()
    assert f"\nVersion: {trl_fork.__version__}\n" in metadata
    assert "\nLicense: Apache-2.0\n" in metadata and "\nRequires-Dist: trl<2,>=1.16\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata


def test_public_names_are_there_and_no_others():
    assert set(dir(trl_fork)) == set(trl_fork.__all__)
    assert all(getattr(trl_fork, name).__doc__ for name in trl_fork.__all__)
