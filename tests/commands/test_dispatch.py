"""`trl-fork COMMAND`: the words that reach each command, and those for accelerate."""

import contextlib
import re
import runpy
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trl_fork import __version__, _shipped
from trl_fork._errors import StatedError
from trl_fork._shipped import find_shipped, shipped_files
from trl_fork.commands import dispatch, launch, program, recipes, train
from trl_fork.commands.finishing import train_and_save
from trl_fork.credit import build_credit


ROOT = Path(__file__).parents[2]


def output_of(words, capsys) -> tuple[int, str, str]:
    try:
        status = dispatch.main(words)
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(words, capsys):
    status, out, _ = output_of(words, capsys)
    assert status == 0 and out.startswith("usage: trl-fork COMMAND")
    for name, text in dispatch.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("begun", "by_user", "kind", "is_one_line"),
    [
        (False, False, ValueError, True),
        (False, False, NotImplementedError, True),
        (True, False, ValueError, False),  # of a training that runs
        (False, True, ValueError, False),  # of other code
        (False, False, RuntimeError, False),
    ],
)
def test_refused_input_is_one_line(begun, by_user, kind, is_one_line, capsys, monkeypatch):
    """An error of another package, or of a training that has begun, keeps its traceback."""

    def refuse():
        raise kind("x must be y, got z. Set y.")

    if not by_user:
        refuse = types.FunctionType(
            refuse.__code__, {**globals(), "__name__": "trl_fork.data"}, closure=refuse.__closure__
        )

    class Failing:
        control = types.SimpleNamespace(should_training_stop=False)
        callback_handler = types.SimpleNamespace(callbacks=[])
        state = types.SimpleNamespace(global_step=1, max_steps=5)

        def train(self, resume_from_checkpoint):
            refuse()

        def remove_callback(self, callback):
            pass

    monkeypatch.setattr(train, "main", lambda words: train_and_save(Failing()) if begun else refuse())
    if is_one_line:
        assert output_of(["train"], capsys) == (1, "", "trl-fork train: error: x must be y, got z. Set y.\n")
    else:
        with pytest.raises(kind, match="x must be y"):
            output_of(["train"], capsys)


def test_help_and_errors_import_no_libraries():
    code = (
        "import sys; from trl_fork.commands.dispatch import main; assert main(['trian']) == 2\n"
        "assert not {'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules)\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "did you mean train?" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "there is no command 'trian'; did you mean train?"),
        ("analyse", "there is no command 'analyse'; did you mean analyze?"),
        ("eval", "there is no command 'eval'; did you mean evaluate?"),
        ("analyze_entropy", "there is no command 'analyze_entropy'; did you mean analyze?"),
        ("xyzzy", "there is no command 'xyzzy'\n"),
        ("", "there is no command ''\n"),
        ("--verison", "there is no option '--verison'; did you mean --version?"),
        ("--recipe", "there is no option '--recipe'\n"),
    ],
)
def test_words_that_are_no_command(word, message, capsys):
    status, out, err = output_of([word, "--config", "a.yaml"], capsys)
    assert (status, out) == (2, "") and message in err and "trl-fork --help" in err


def test_the_version(capsys):
    assert output_of(["--version"], capsys)[:2] == (0, f"trl_fork {__version__}\n")


# The help of the quickstart is tested in a process of its own, as it sets variables of the environment.
@pytest.mark.parametrize("name", sorted({*dispatch.COMMANDS} - {"quickstart"}))
def test_help_of_each_command(name, capsys):
    status, out, _ = output_of([name, "--help"], capsys)
    assert status == 0 and out.startswith(f"usage: trl-fork {name} ")
    assert re.search(rf"^    trl-fork {name} ?", out, re.MULTILINE), "its docstring shows how it is called"
    status, _, err = output_of([name, "--outputt", "x"], capsys)
    meant = "; did you mean --output" if "--output" in out else ""
    assert status == 2 and err.startswith(f"trl-fork {name}: error: there is no option --outputt{meant}")
    assert import_module(f"trl_fork.commands.{name}").main


SHIMS = {
    "train": "train",
    "evaluate": "evaluate",
    "analyze_entropy": "analyze",
    "select_data": "select",
    "merge_adapter": "merge",
    "estimate_partition": "partition",
    "smollm2": "smollm2",
}


@pytest.mark.parametrize(("script", "command"), SHIMS.items())
def test_scripts_of_the_checkout_are_the_commands(script, command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"examples/{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: trl-fork {command} ")


@pytest.mark.parametrize(("status", "refusal"), [(1, StatedError("x must be y.")), (0, None)])
def test_a_refusal_in_such_a_script_is_one_line_too(status, refusal, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["examples/train.py", "--seed", "7"])
    given = []

    def run(words):
        given.extend(words)
        if refusal:
            raise refusal

    monkeypatch.setattr(train, "main", run)
    with pytest.raises(SystemExit) if status else contextlib.nullcontext() as ended:
        runpy.run_path(str(ROOT / "examples" / "train.py"), run_name="__main__")
    assert given == ["--seed", "7"]
    assert capsys.readouterr().err == ("trl-fork train: error: x must be y.\n" if status else "")
    assert not status or ended.value.code == status


# ---------------------------------------------------------------------- words for accelerate


ZERO3 = str(find_shipped("accelerate", "zero3"))


@pytest.mark.parametrize(
    ("words", "for_launch", "others"),
    [
        (["--recipe", "a", "--max_steps", "2"], [], ["--recipe", "a", "--max_steps", "2"]),
        (["--accelerate_config", "zero3", "--bf16", "true"], ["--config_file", ZERO3], ["--bf16", "true"]),
        (["--accelerate_config=zero3.yaml"], ["--config_file", ZERO3], []),
        (["--accelerate_config", ZERO3], ["--config_file", ZERO3], []),
        (["--num_processes", "2", "--cpu", "--seed", "1"], ["--num_processes", "2", "--cpu"], ["--seed", "1"]),
        (["--num-processes=2", "--seed=1"], ["--num-processes", "2"], ["--seed=1"]),
        (["--use_fsdp", "--fsdp_version", "2"], ["--use_fsdp", "--fsdp_version", "2"], []),
        (["--accelerate_config", ZERO3, "--zero_stage", "2"], ["--config_file", ZERO3, "--zero_stage", "2"], []),
        # Both have it
        (["--gradient_accumulation_steps", "4", "--debug", "x"], [], None),
        # A value that looks like an option of the launcher's
        (["--instruction", "-m"], [], None),
        (["--module", "x", "--no_python"], [], None),  # which the parser then refuses
    ],
    ids=str,
)
def test_options_of_accelerate_on_the_line(words, for_launch, others):
    assert launch.split_launch(words, train.make_parser()) == (for_launch, words if others is None else others)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerate_config", "zero"], "there is no file 'zero' .* Did you mean zero2 or zero3 or zero3_offload"),
        (["--accelerate_config"], "--accelerate_config needs a value"),
        (["--num_processes", "--cpu"], "--num_processes needs a value"),
        (["--accelerate_config", "ddp", "--config_file", "x"], "configuration of accelerate is given twice"),
        (["--num_processes", "2", "--learing_rate", "1"], "there is no option --learing_rate; did you mean"),
        (
            ["--num_processes", "2", "--seed", "one", "--optim", "adamw"],
            "2 settings cannot be taken:\n.*--seed: invalid",
        ),
        (["--num_processes", "2", "--recipe", "gsm8k"], "no recipe 'gsm8k'. Did you mean gsm8k_single_gpu"),
        (["--gradient_clipping", "1"], "does nothing without --use_deepspeed or .* own option is --max_grad_norm"),
        (["--fsdp-min-num-params", "1"], "--fsdp_min_num_params is .* without --use_fsdp .* set min_num_params in"),
        (["--num_processes", "2", "--zero_stage=3"], r"--zero_stage is .* --use_deepspeed or --accelerate_config\.$"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_launches_that_are_refused(words, message, capsys, monkeypatch):
    monkeypatch.setattr(launch, "default_config_file", "nowhere.yaml")
    with pytest.raises(SystemExit):
        train.main(words)
    assert re.search(message, capsys.readouterr().err, re.MULTILINE)


def test_the_default_file_of_accelerate_may_turn_an_engine_on(tmp_path, monkeypatch):
    (tmp_path / "default_config.yaml").write_text("distributed_type: DEEPSPEED\n")
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "default_config.yaml"))
    words = ["--zero_stage", "2"]
    assert launch.split_launch(words, train.make_parser()) == (words, [])


def test_the_engines_are_groups_of_accelerates_help():
    groups = {group.title for group in launch.launch_command_parser()._action_groups}
    assert set(launch._ENGINES) <= groups and set(launch._ENGINES.values()) <= set(launch.launch_options())


LAUNCHED = """
import os, signal, sys
if os.environ.get("RANK", "1") == "1":
    {ending}
import time
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("processes", "ending", "how"),
    [
        (1, "sys.exit(3)", "ended with the status 3"),
        (1, "os.kill(os.getpid(), 9)", "was ended by the signal SIGKILL"),
        (2, "os.kill(os.getpid(), 9)", "was ended by the signal SIGKILL"),
    ],
)
def test_a_process_of_a_launch_that_fails(processes, ending, how, capfd, monkeypatch, tmp_path):
    """By accelerate's two launchers, with the end that the processes themselves may not have said a word of."""
    (tmp_path / "launched.py").write_text(LAUNCHED.format(ending=ending))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def by_torch(options):
        settings = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", monitor_interval=0.1)
        elastic_launch(settings, sys.executable)(str(tmp_path / "launched.py"))

    monkeypatch.setattr(launch, "_PACKAGE", "launched")
    if processes == 2:  # accelerate itself needs two GPUs, or MPI, for this
        monkeypatch.setattr(launch, "launch_command", by_torch)
    with pytest.raises(SystemExit) as ended:
        launch.launch("train", ["--num_processes", str(processes), "--cpu"], train.make_parser())
    assert ended.value.code == 1
    last = f"trl-fork train: error: process {processes - 1} of the launch {how}; what it has printed is above."
    assert capfd.readouterr().err.splitlines()[-1] == last


def test_a_process_that_was_launched_launches_nothing(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit):
        train.main(["--accelerate_config", "zero3"])
    assert "give it to `accelerate launch`, before the script or module" in capsys.readouterr().err


def test_no_recipe_and_file_at_once(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("max_steps: 1")
    for words in (["--recipe", "quickstart", f"--config={tmp_path / 'a.yaml'}"], ["--recipe=a", "--recipe", "b"]):
        with pytest.raises(SystemExit):
            train.make_parser().parse_args_and_config(words)
    err = capsys.readouterr().err
    assert "--recipe and --config are both given" in err and "--recipe is given twice" in err
    with pytest.raises(SystemExit):
        train.make_parser().parse_args_and_config(["--recipe", str(tmp_path / "a.yaml")])
    assert "A file of your own goes into --config." in capsys.readouterr().err


# ---------------------------------------------------------------------- files that come with the package


def test_every_kind_is_found():
    for kind, name in (("recipes", "quickstart"), ("accelerate", "zero3")):
        assert find_shipped(kind, name) == find_shipped(kind, f"{name}.yaml") == shipped_files(kind)[name]
    assert list(shipped_files("recipes")) == sorted(shipped_files("recipes"))
    assert load_config_from_file(ZERO3).num_machines == 1


def test_a_package_without_files(monkeypatch, tmp_path):
    monkeypatch.setattr(_shipped, "_PLACES", (tmp_path / "configs",))
    with pytest.raises(ValueError, match=r"There is no recipe 'a'\. There are: none\."):
        find_shipped("recipes", "a")


def test_recipes_are_listed_printed_and_copied(capsys, tmp_path):
    recipes.main([])
    listed = capsys.readouterr().out
    for kind in ("recipes", "accelerate", "credit", "teams"):
        for name, path in shipped_files(kind).items():
            assert name in listed
            recipes.main([name])
            assert capsys.readouterr().out == path.read_text()
    for name, words in (
        ("qwen3_0.6b_lora_8gb", ["r = 16", "one GPU of 8 GB", "Qwen/Qwen3-0.6B-Base", "gsm8k"]),
        ("zero3_offload", ["zero3.yaml with weights and optimizer state in host memory"]),
    ):
        (line,) = [line for line in listed.splitlines() if name in line]
        assert all(word in line for word in words), line

    copy = tmp_path / "new" / "my_run.yaml"
    for name, option in (("quickstart", "--config"), ("zero3", "--accelerate_config")):
        recipes.main([name, "--output", str(copy)])
        assert f"train {option} {copy}" in capsys.readouterr().out
        assert copy.read_text() == find_shipped("recipes" if option == "--config" else "accelerate", name).read_text()
        with pytest.raises(SystemExit):
            recipes.main([name, "--output", str(copy)])
        assert "is there already: nothing was written" in capsys.readouterr().err
        copy.unlink()


def test_credit_presets_are_listed_with_their_source_and_certainty(capsys, tmp_path, monkeypatch):
    recipes.main(["--credit"])
    listed = capsys.readouterr().out
    cells: list[list[str]] = []
    for line in listed.splitlines():
        row = [cell.strip() for cell in line.split("│")[1:-1]]
        if row and row[0]:
            cells.append(row)
        elif row:  # folded
            cells[-1] = [f"{cell} {more}".strip() for cell, more in zip(cells[-1], row, strict=True)]
    assert [row[0] for row in cells] == list(shipped_files("credit"))
    for name, trains_on, source, certainty in cells:
        assert trains_on == build_credit(name).in_words
        header = find_shipped("credit", name).read_text().partition("token_credit:")[0]
        assert source == "-" or f"arXiv {source.removeprefix('arXiv ')}" in header
        assert certainty in ("code", "full text", "second-hand", "ours"), name
    words = {row[0]: row[1] for row in cells}
    assert words["temporal_advantage"] == (
        "all tokens, with an advantage that grows with the entropy, at a strength falling from 0.99 to 0"
    )
    assert words["temporal_position"] == "the last 1 % (rising to 100 %) of tokens"
    assert words["random_rollouts"] == "50 % of the completions of each group (at random)"
    assert words["high_entropy_rollouts"].endswith("(positive ones by high entropy sum, others at random)")
    half = {"proportional": {"strength": 0.5}, "rank": {"strength": {"linear": [0.1, 1, 0.5]}}}
    assert [rule.in_words.rpartition(", at ")[2] for rule in build_credit(half).rules] == [
        "strength 0.5",
        "a strength rising from 0.1 to 1",
    ]
    assert ["temporal_random", build_credit("temporal_random").in_words, "arXiv 2605.25381", "ours"] in cells
    assert "qwen3_8b_forking" not in listed and "zero3" not in listed

    # What a file does not say is a dash, and an entry may go on in the next line.
    (tmp_path / "credit").mkdir()
    body = "token_credit:\n  random: {}\n"
    (tmp_path / "credit" / "bare.yaml").write_text(f"# A sentence.\n{body}")
    (tmp_path / "credit" / "long.yaml").write_text(
        "# A sentence.\n#\n# Source     a thread, and\n#            arXiv 2609.39402\n# Certainty  code; all of it\n"
        + body
    )
    monkeypatch.setattr(_shipped, "_PLACES", (tmp_path,))
    recipes.main(["--credit"])
    bare, long = [line.split("│")[3:5] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [cell.strip() for cell in bare] == ["-", "-"]
    assert [cell.strip() for cell in long] == ["arXiv 2609.39402", "code"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["forking", "--credit"], "--credit lists all credit presets, and NAME prints one file: give one of them"),
        (["gsm8k"], r"preset of token credit or team 'gsm8k'\. Did you mean gsm8k_single_gpu or gsm8k_team\?"),
        (["zero4"], r"no recipe or launch file or preset of token credit or team 'zero4'. Did you mean zero3\?"),
        (["--output", "x.yaml"], "--output copies one file: say which"),
    ],
)
def test_recipes_that_there_are_not(words, message, capsys):
    status, _, err = output_of(["recipes", *words], capsys)
    assert status and re.search(message, f"{status}{err}")


def test_how_the_command_is_called(monkeypatch, tmp_path):
    """From the path, from the environment of this Python, or by `-m`: whichever works in the shell at hand."""
    monkeypatch.setattr(program.shutil, "which", lambda name: f"/bin/{name}")
    assert program.program() == ["trl-fork"]
    monkeypatch.setattr(program.shutil, "which", lambda name: None)
    monkeypatch.setattr(program.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert program.program() == ["bin/python", "-m", "trl_fork"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "trl-fork").touch()
    assert program.program() == ["bin/trl-fork"]
