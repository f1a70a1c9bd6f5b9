"""
Runs what a page shows, from its first block to its last: Python in one scope, YAML through the parser of
`trl-fork train`, commands in this process or in a shell.

Names on the Hub are folders here: `lay_out` writes tiny models and data sets under the names that the pages use, and
links `examples`, `configs` and `tests`, so that a block runs as it stands. `SMALL` is appended to a command, where the
last word wins. What nothing runs is an error, but for `EXEMPT`.
"""

import contextlib
import doctest
import glob
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import ModelConfig, TrlParser

from tests.conftest import build_looped_model, build_model
from tests.hub_stand_in import TOKEN, HubStandIn
from tests.trainer.test_features import byte_tokenizer
from trl_fork import ForkingGRPOConfig
from trl_fork.commands import dispatch
from trl_fork.commands import train as train_script
from trl_fork.commands.launch import split_launch


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))

# Commands that a test of documentation does not run, with the reason.
EXEMPT = {
    "pip install": "changes the environment; what is installed by it is tested with the package",
    "make": "each target must exist; `make test-slow` runs the quickstart",
}
# Where these settings are on, in the command or in its file, it is parsed only; and where it asks for more processes.
PARSED_ONLY = {
    "push_to_hub": "needs a Hub; in a shell it gets a local stand-in",
    "use_vllm": "needs vLLM and a GPU",
    "load_in_4bit": "needs bitsandbytes",
}
# Commands that take minutes or hours; what they call has tests of its own.
LONG = {
    "benchmarks/growth.py",
    "benchmarks/reliability.py",
    "examples/forecasting.py",
    "examples/prompt_control.py",
    "examples/train_looped.py",
    "examples/train_team.py",
    "studies/credit_rules/report.py",
    "studies/credit_rules/run.py",
    "studies/distribution_matching/report.py",
    "studies/distribution_matching/run.py",
    "studies/smollm2/report.py",
    "studies/smollm2/run.py",
    "studies/which_tokens/real_model.py",
    "studies/which_tokens/run.py",
    "studies/which_tokens/report.py",
}
TINY_RUN = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 1,
    "max_completion_length": 8,
    "report_to": "none",
    "disable_tqdm": True,
}
SMALL = {
    "train.py": "--use_cpu true --bf16 false --max_steps 1 --max_completion_length 8 --save_steps 1 --report_to none",
    "evaluate.py": "--num_samples 2 --max_new_tokens 8 --limit 2",
    "partition.py": "--num_samples 2 --max_new_tokens 8 --limit 8",
    "analyze.py": "--min_token_count 5 --num_samples 2 --max_new_tokens 8 --limit 2",
    "benchmark_step.py": "--groups 2 --max_length 24 --repeats 1",
    "whole_step.py": "--groups 2 --max_length 24 --repeats 1 --workload 'equal lengths' --arm ours --skip memory",
    "step.py": "--groups 2 --max_length 24 --repeats 1 --workload 'equal lengths' --variant ours",
}


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    code: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^``` *(\S*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in found]


def commands(code: str) -> list[str]:
    """One command a line, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [text for line in lines if (text := re.sub(r"(^|\s+)# .*", "", line).strip())]


# ---------------------------------------------------------------------- replacements of the Hub and of earlier runs


def lay_out(directory: Path) -> None:
    """Make a folder in which the names of the pages mean something."""
    for name in ("examples", "configs", "benchmarks", "tests", "studies"):
        (directory / name).symlink_to(ROOT / name)
    save_model(directory / "Qwen/Qwen3-0.6B")
    for name in ("Qwen3-0.6B-Base", "Qwen3-1.7B", "Qwen3-1.7B-Base"):
        (directory / "Qwen" / name).symlink_to(directory / "Qwen/Qwen3-0.6B")
    rows = [json.loads(line) for line in (ROOT / "tests" / "files" / "gsm8k.jsonl").read_text().splitlines()]
    write_dataset(directory / "openai/gsm8k", rows, config="main", splits=["train", "test"])
    conversations = [{"prompt": [{"role": "user", "content": f"{n} + 1?"}], "solution": str(n + 1)} for n in range(8)]
    write_dataset(directory / "trl-lib/DeepMath-103K", conversations, splits=["train"])
    problems = [{"problem": f"{n} + 1?", "answer": str(n + 1), "unique_id": str(n)} for n in range(4)]
    write_dataset(directory / "HuggingFaceH4/MATH-500", problems, splits=["test"])


def save_model(path: Path) -> None:
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=4096, initializer_range=0.02).save_pretrained(path)
    tokenizer.save_pretrained(path)


def write_dataset(path: Path, rows: list[dict], *, splits: list[str], config: str = "default") -> None:
    path.mkdir(parents=True)
    for split in splits:
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [{"split": split, "path": f"{split}.jsonl"} for split in splits]
    header = {"configs": [{"config_name": config, "data_files": files}]}
    (path / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n")


def trained_model(directory: Path) -> None:
    save_model(directory / "outputs/gsm8k")


def evaluated_model(directory: Path) -> None:
    """A run with checkpoints, and an evaluation of it."""
    trained_model(directory)
    for step in (50, 100):
        save_model(directory / f"outputs/gsm8k/checkpoint-{step}")
    rows = [
        {
            "dataset": "gsm8k",
            "problem_id": str(number // 4),
            "sample": number % 4,
            "prompt": f"<|im_start|>user\n{number // 4} + 1?<|im_end|>\n<|im_start|>assistant\n",
            "completion": f"It is {number}, I think.",
            "truncated": False,
            "correct": number % 2 == 0,
        }
        for number in range(12)
    ]
    save_model(directory / "outputs/SmolLM2-135M-Instruct")
    (directory / "outputs/gsm8k/evaluation").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "outputs/gsm8k/evaluation/completions.jsonl").write_text(text)


def published_adapter(directory: Path) -> None:
    base = directory / "Qwen/Qwen3-0.6B-Base"
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules="all-linear"))
    for part in (adapted, byte_tokenizer()):
        part.save_pretrained(directory / "my-name/Qwen3-0.6B-forks")


def looped_model(directory: Path) -> None:
    path, tokenizer = directory / "ByteDance/Ouro-1.4B-Thinking", byte_tokenizer()
    build_looped_model(tokenizer, max_position_embeddings=4096, initializer_range=0.02).save_pretrained(path)
    tokenizer.save_pretrained(path)


# What was done before the page is read.
BEFORE = {
    "looped.md": looped_model,
    "evaluate.md": trained_model,
    "analyze.md": evaluated_model,
    "hub.md": published_adapter,
}


# ---------------------------------------------------------------------- running


def run_page(page: Path, directory: Path, *, shell: bool = False) -> int:
    """Run all blocks of a page in a new `directory`; returns how many there were."""
    lay_out(directory)
    BEFORE.get(page.name, lambda path: None)(directory)
    return run_blocks(blocks(page), directory, shell=shell)


def run_blocks(blocks: list[Block], directory: Path, *, shell: bool = False) -> int:
    runners = {"python": run_python, "yaml": run_yaml, "bash": run_in_shell if shell else run_here, "": check_output}
    scope: dict = {"__name__": "page"}  # of all blocks of Python
    with contextlib.chdir(directory):
        for block in blocks:
            try:
                if block.language not in runners:
                    raise AssertionError(f"nothing runs blocks of {block.language!r}")
                if named := re.match(r"# (\w+\.(?:py|yaml))\n", block.code):  # the file that a later command reads
                    Path(named[1]).write_text(block.code)
                runners[block.language](block, scope)
            except BaseException as error:
                error.add_note(f"in {block}")
                raise
    return len(blocks)


def check_output(block: Block, scope: dict) -> None:
    """A block without a language is a formula or what a command prints."""
    code = re.search(
        r"^(\$ |>>> |import |from \w+ import|(python|accelerate|make|pip|hf|trl|trl-fork) )", block.code, re.M
    )
    assert not code, f"{code[0]!r} looks like code: say which language it is, so that it is run"


def run_python(block: Block, scope: dict) -> None:
    with tiny_runs():
        if not block.code.startswith(">>> "):
            exec(compile(block.code, str(block), "exec"), scope)
            return
        test = doctest.DocTestParser().get_doctest(block.code, scope, str(block), str(block.page), block.line)
        output: list[str] = []
        failed, attempted = doctest.DocTestRunner().run(test, out=output.append, clear_globs=False)
        assert attempted and not failed, "".join(output)
        scope.update(test.globs)


@contextlib.contextmanager
def tiny_runs():
    """The smallest possible run, on a machine without a GPU, for any configuration."""
    original = ForkingGRPOConfig.__init__
    with patch.object(
        ForkingGRPOConfig, "__init__", lambda self, *args, **kwargs: original(self, *args, **{**kwargs, **TINY_RUN})
    ):
        yield


def run_yaml(block: Block, scope: dict) -> None:
    """Read it like `trl-fork train --config`: every key must arrive."""
    path = Path("block.yaml")
    path.write_text(block.code)
    settings = yaml.safe_load(block.code)
    parsed = parse_training(["--config", str(path), "--output_dir", settings.get("output_dir", "run")])
    for name, value in settings.items():
        (found,) = {str(getattr(part, name)) for part in parsed if hasattr(part, name)}
        assert found in (str(value), str([value])), f"{name}: {value!r} became {found!r}"


def parse_training(arguments: list[str], processes: int = 1) -> tuple:
    parser = TrlParser((train_script.ForkingScriptArguments, ForkingGRPOConfig, ModelConfig))
    words = train_script.make_parser().with_config(arguments)
    with patch.object(TrainingArguments, "world_size", property(lambda args: processes)):
        return parser.parse_args_and_config([*words, "--use_cpu", "true", "--bf16", "false"])


class Command:
    """
    `trl-fork COMMAND …`, `python SCRIPT …` or `accelerate launch … SCRIPT …`, where SCRIPT may be `-m MODULE`; or
    another one, without a script.
    """

    def __init__(self, text: str):
        self.text, self.words = text, shlex.split(text)
        scripts = [
            number
            for number, (word, before) in enumerate(zip(self.words, ["", *self.words], strict=False))
            if word.endswith(".py") or before == "-m"
        ]
        self.script = None
        self.is_ours = self.words[0] == "trl-fork"
        if self.is_ours:
            self.script, self.launcher = Path(f"trl_fork/commands/{self.words[1]}.py"), []
            self.arguments = expand(self.words[2:])
            if self.words[1] in ("train", "evaluate"):
                parser = importlib.import_module(f"trl_fork.commands.{self.words[1]}").make_parser()
                self.launcher, self.arguments = split_launch(self.arguments, parser)
        elif scripts:
            assert self.words[0] == "python" or self.words[:2] == ["accelerate", "launch"], text
            first = scripts[0]
            self.is_module = self.words[first - 1] == "-m"
            self.script = Path(self.words[first].replace(".", "/") + ".py" if self.is_module else self.words[first])
            self.launcher = self.words[2:first] if self.words[0] == "accelerate" else []
            self.arguments = expand(self.words[first + 1 :])
        if self.script:
            self.small = shlex.split(SMALL.get(self.script.name, ""))
            if "--resume_from_checkpoint" in self.arguments:
                self.small += ["--max_steps", "2"]
            if "--compare" in self.arguments:
                self.small = []

    @property
    def processes(self) -> int:
        """As many as the launcher's options say, which accelerate's own parser reads."""
        options = launch_command_parser().parse_args([*self.launcher, str(self.script), *self.arguments])
        config = load_config_from_file(options.config_file) if options.config_file else None
        return options.num_processes or (config.num_processes if config else 1)

    @property
    def obstacles(self) -> set[str]:
        """Why it cannot run here."""
        if str(self.script) in LONG:
            return {"time"}
        found = {"processes"} if self.processes > 1 else set()
        if self.script.name == "train.py":
            parsed = parse_training(self.arguments, self.processes)
            return found | {name for name in PARSED_ONLY if any(getattr(part, name, False) for part in parsed)}
        return found | ({"use_vllm"} if "vllm" in self.arguments else set())


def expand(words: list[str]) -> list[str]:
    return [path for word in words for path in (sorted(glob.glob(word)) if "*" in word else [word])]


def check_exempt(command: Command) -> None:
    """A command without a script of ours: one of `EXEMPT`, and a target of the Makefile if it is `make`."""
    (reason,) = [key for key in EXEMPT if command.text.startswith(f"{key} ")] or [None]
    assert reason, f"nothing runs {command.text!r}"
    if reason == "make":
        assert re.search(rf"^{command.words[1]}:", (ROOT / "Makefile").read_text(), re.M), f"no {command.text!r}"


def check_words(command: Command) -> None:
    """A shell must read the words that the command is given here."""
    read = subprocess.run(
        [shutil.which("bash"), "-euc", f"printf '%s\\0' {command.text}"], capture_output=True, text=True, check=True
    )
    assert read.stdout.split("\0")[:-1] == expand(command.words), f"bash reads other words in {command.text!r}"


def parse_only(command: Command) -> None:
    if command.script.name == "train.py":
        parse_training(command.arguments, command.processes)
    else:
        importlib.import_module(".".join(command.script.with_suffix("").parts)).parse_arguments(command.arguments)


def run_here(block: Block, scope: dict) -> None:
    """The script of each command in this process, without its launcher."""
    for command in map(Command, commands(block.code)):
        if not command.script:
            check_exempt(command)
            continue
        check_words(command)
        if command.obstacles:
            parse_only(command)
        else:
            if command.is_ours:
                with patch.dict(os.environ):
                    assert dispatch.main([command.script.stem, *command.arguments, *command.small]) == 0
                continue
            words = [str(command.script), *command.arguments, *command.small]
            # A script sets variables, reads its arguments, and finds modules beside itself
            with patch.dict(os.environ), patch.object(sys, "argv", words), patch.object(sys, "path", sys.path[:]):
                if command.is_module:
                    name = ".".join(command.script.with_suffix("").parts)
                    sys.modules.pop(name, None)  # as in a process of its own
                    runpy.run_module(name, run_name="__main__")
                else:
                    runpy.run_path(str(command.script), run_name="__main__")


def run_in_shell(block: Block, scope: dict) -> None:
    """Each command by bash and its own launcher, as a reader would run it; a push to the Hub goes to a stand-in."""
    for command in map(Command, commands(block.code)):
        if not command.script:
            check_exempt(command)
        elif command.obstacles - {"push_to_hub"}:
            parse_only(command)
        else:
            pushes = bool(command.obstacles)
            text = command.text.replace("accelerate launch", "accelerate launch --cpu --mixed_precision no")
            with HubStandIn() as hub:
                done = subprocess.run(
                    [shutil.which("bash"), "-euc", f"{text} {shlex.join(command.small)}"],
                    env=shell_environment(hub if pushes else None),
                    capture_output=True,
                    text=True,
                )
                hub.shutdown()
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
            if pushes:
                (repository,) = hub.repositories.values()
                assert {"README.md", "tokenizer.json"} <= set(repository.files)


def shell_environment(hub: HubStandIn | None) -> dict[str, str]:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    if hub is not None:
        environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": "hf", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return environment
