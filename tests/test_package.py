"""What a wheel holds, and what the package says of itself."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import trl_fork
from tests.conftest import build_wheel


ROOT = Path(__file__).parent.parent


def names_in(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_wheel_holds_every_file_of_the_package(wheel):
    command = ["git", "ls-files", "trl_fork", "configs"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    expected = {f"trl_fork/{name}" if name.startswith("configs/") else name for name in tracked}
    assert {
        "trl_fork/py.typed",
        "trl_fork/trainer/model_card.md",
        "trl_fork/configs/recipes/quickstart.yaml",
    } <= expected
    assert names_in(wheel) == expected


def test_an_archive_of_the_sources_builds_the_same_wheel(sources, wheel, tmp_path):
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=sources, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names_in(build_wheel(unpacked, tmp_path)) == names_in(wheel)


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = archive.read(name).decode()
    assert f"\nVersion: {trl_fork.__version__}\n" in metadata
    assert "\nLicense: Apache-2.0\n" in metadata and "\nRequires-Dist: trl<2,>=1.16\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata


def test_public_names_are_there_and_no_others():
    assert set(dir(trl_fork)) == set(trl_fork.__all__)
    assert all(getattr(trl_fork, name).__doc__ for name in trl_fork.__all__)


def test_what_it_says_is_true_of_a_wheel():
    """It has neither examples nor documentation: texts name commands, and titles of pages."""
    files = [path for path in (ROOT / "trl_fork").rglob("*") if path.suffix in (".py", ".md", ".html", ".js")]
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        for match in re.finditer(
            r"\b(examples|docs|configs|studies|benchmarks)/[\w.]+|\b(train|evaluate|analyze_entropy|select_data|"
            r"merge_adapter|estimate_partition|digit_sums)\.py\b",
            path.read_text(),
        )
    }
    assert len(files) > 70 and not found
