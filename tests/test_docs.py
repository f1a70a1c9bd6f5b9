"""README and `docs/` are true: blocks run, links lead somewhere."""

import re
import subprocess
import sys
from dataclasses import fields
from fnmatch import fnmatch
from importlib import import_module
from urllib.parse import unquote

import pytest
from accelerate.commands.launch import launch_command_parser
from trl import GRPOConfig, ModelConfig

from docs import build_api
from tests.conftest import FixedRollouts, build_model, build_tokenizer, train
from tests.snippets import PAGES, ROOT, Block, blocks, run_blocks, run_page
from trl_fork import ForkingGRPOConfig
from trl_fork.commands.train import ForkingScriptArguments


# Settings of accelerate's files that pages speak of
ACCELERATE = {"zero3_save_16bit_model", "fsdp_state_dict_type"}
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


# Some of the files that the blocks of a page write
LEAVES = {
    "docs/adapters.md": ["outputs/qwen3_0.6b_merged/model.safetensors"],
    "README.md": ["outputs/gsm8k/adapter_model.safetensors"],
    "docs/analyze.md": ["forks.html", "outputs/gsm8k/entropy/report.html", "hes.jsonl", "matched.jsonl"],
    "docs/compare.md": ["outputs/gsm8k/report-all_tokens/report.html", "outputs/comparison/report.json"],
    "docs/evaluate.md": ["outputs/gsm8k/evaluation/results.json", "outputs/base/results.json"],
    "docs/partition.md": ["outputs/proposals/data.jsonl", "outputs/balance/model.safetensors"],
    "docs/resume.md": ["outputs/gsm8k_forking/checkpoint-2"],
    "docs/train.md": ["outputs/my_run/fork_report/latest.html", "outputs/brief/training.png"],
}


def run(page, directory, **how):
    assert run_page(page, directory, **how) == page.read_text().count("```") / 2
    for path in LEAVES.get(str(page.relative_to(ROOT)), []):
        assert (directory / path).stat().st_size > 0


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_run(page, tmp_path):
    run(page, tmp_path)


# The README, and pages whose commands depend on the process: a push to a Hub, a resume, modules of the working folder.
# `test_blocks_run` runs the commands of all pages in this process, with the words that bash reads.
IN_A_SHELL = ("README.md", "docs/hub.md", "docs/resume.md", "docs/train.md")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", IN_A_SHELL)
def test_commands_run_in_a_shell(page, tmp_path):
    run(ROOT / page, tmp_path, shell=True)


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("sh", "ls", "nothing runs blocks of 'sh'"),
        ("bash", "hf upload name", "nothing runs 'hf upload name'"),
        ("bash", "make quickstat", "no 'make quickstat'"),
        ("bash", "trl-fork recipes {a,b}", "bash reads other words"),
        ("", "python examples/train.py", "looks like code"),
        ("", "trl-fork recipes", "looks like code"),
        ("yaml", "top_entropy_quantil: 0.2", "top_entropy_quantil"),
        ("python", ">>> 1 + 1\n3", "Expected:\n    3"),
    ],
)
def test_a_block_that_does_not_run_is_an_error(language, code, message, tmp_path):
    block = Block(ROOT / "README.md", 7, language, code + "\n")
    with pytest.raises((AssertionError, ValueError), match=message) as raised:
        run_blocks([block], tmp_path)
    assert raised.value.__notes__ == ["in README.md:7"]


def without_blocks(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    text = without_blocks(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = unquote(target).partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target
    # And so do paths that are code, but for patterns
    for path in re.findall(r"`((?:examples|configs|benchmarks|tests|docs|trl_fork)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_both_indexes():
    for index in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        linked = {
            (index.parent / target).resolve() for target in re.findall(r"\]\(([\w./]+\.md)\)", index.read_text())
        }
        assert {page for page in PAGES if page.parent.name == "docs"} - {ROOT / "docs" / "README.md"} <= linked


def test_memory_table_is_what_the_script_prints():
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout in (ROOT / "docs" / "adapters.md").read_text()


def test_what_pages_import_is_public():
    imported = set()
    for page in PAGES:
        for block in blocks(page):
            for module, names in re.findall(r"^(?:>>> )?from (trl_fork[\w.]*) import (.+)$", block.code, re.MULTILINE):
                imported |= {(module, name.strip()) for name in names.split(",")}
    assert len(imported) > 8
    public = {
        (f"trl_fork{room}", name) for room in build_api.ROOMS for name in import_module(f"trl_fork{room}").__all__
    }
    assert imported <= public


def test_metrics_page_names_what_is_logged(tmp_path):
    tokenizer = build_tokenizer()
    settings = {"dynamic_sampling": True, "max_steps": 2, "per_device_train_batch_size": 16}
    trainer = train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer, prompts=8), tmp_path, **settings)
    ours = ("forking/", "time/", "dynamic_sampling/", "tokens_per_second")
    logged = {key for entry in trainer.state.log_history for key in entry if key.startswith(ours)}
    text = "".join((ROOT / "docs" / name).read_text() for name in ("metrics.md", "dynamic_sampling.md"))
    named = {name for name in re.findall(r"`([\w/*]+)`", text) if name.startswith(ours)}
    named |= {f"dynamic_sampling{name}" for name in re.findall(r"`(/\w+)`", text)}
    named -= {"dynamic_sampling/*"}  # its names are on the other page
    missing = {key for key in logged if not any(fnmatch(key, name) for name in named)}
    assert len(logged) > 12 and not missing
    assert {name for name in named if "*" not in name} <= logged


def test_every_argument_of_the_package_is_in_its_table():
    own = {field.name: field.default for field in fields(ForkingGRPOConfig)}
    for name in {field.name for field in fields(GRPOConfig)}:
        own.pop(name, None)
    table = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", (ROOT / "docs" / "train.md").read_text(), re.MULTILINE)
    assert len(own) > 15 and {(name, str(default)) for name, default in own.items()} <= set(table)


def test_options_exist():
    """In full, where argparse takes a beginning; and `setting: value` in the text, which no block tries."""
    settings = {
        field.name for part in (ForkingScriptArguments, ForkingGRPOConfig, ModelConfig) for field in fields(part)
    }
    options = {
        name.removeprefix("--") for action in launch_command_parser()._actions for name in action.option_strings
    }
    folders = ("examples", "benchmarks", "docs", "studies", "trl_fork")
    for script in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        options |= set(re.findall(r'"--(\w+)"', script.read_text()))
    count = 0
    for page in PAGES:
        shown = [block.code for block in blocks(page) if block.language == "bash"]
        for code in [*re.findall(r"`([^`]+)`", without_blocks(page)), *shown]:
            found = set(re.findall(r"--([a-z]\w+)", code))
            assert found <= options | settings | {"config"}, f"{page.name}: {code}"
            count += len(found)
            if match := re.fullmatch(r"(\w+): [\w.]+", code):
                assert match[1] in settings | ACCELERATE, f"{page.name}: {code}"
    assert count > 40
