"""Killed with SIGKILL, resumed, compared with the run that was not; and faults on one process of two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import build_model, build_tokenizer
from tests.distributed.test_distributed import kill_family
from tests.trainer.test_features import byte_tokenizer


ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "distributed" / "survival_worker.py"
TIMEOUT = 400

_ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0")
LAUNCHERS = {
    "single": [sys.executable],
    "ddp": [*_ACCELERATE, "--mixed_precision", "no", "--config_file", "configs/accelerate/ddp.yaml"],
    "zero3": [*_ACCELERATE, "--config_file", "tests/distributed/zero3_strict.yaml"],
}


def launch(engine, directory, *arguments):
    """Run the worker to its end; if it hangs, end what was started and fail."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "start").exists():
        tokenizer = build_tokenizer()
        build_model(tokenizer).save_pretrained(directory / "start")
        tokenizer.save_pretrained(directory / "start")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    with open(directory / "output.txt", "w") as output:
        process = subprocess.Popen(
            [*LAUNCHERS[engine], str(WORKER), str(directory), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            kill_family(process)
            pytest.fail(f"still running after {TIMEOUT} s:\n{(directory / 'output.txt').read_text()[-3000:]}")
    return process.returncode, (directory / "output.txt").read_text()


def result_of(directory):
    result = json.loads((directory / "result.json").read_text())
    timings = ("time", "runtime", "per_second")
    result["log"] = [{k: v for k, v in e.items() if not any(t in k for t in timings)} for e in result["log"][:-1]]
    return result, load_file(directory / "final" / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cache = {}

    def get(engine):
        if engine not in cache:
            directory = tmp_path_factory.mktemp(engine)
            code, output = launch(engine, directory)
            assert code == 0, output[-3000:]
            cache[engine] = result_of(directory)
        return cache[engine]

    return get


def check_engine(engine, result):
    if engine == "single":
        assert result["engine"].endswith("NO") and result["processes"] == 1
    elif engine == "zero3":
        assert result["engine"].endswith("DEEPSPEED") and result["zero_stage"] == 3 and result["processes"] == 2
        assert result["partitioned"] == 25, "every parameter of the model"


@pytest.mark.distributed
@pytest.mark.parametrize("kill", ["save:3", "step:5"])
@pytest.mark.parametrize("engine", ["single", "zero3"])
def test_killed_and_resumed(engine, kill, uninterrupted, tmp_path):
    if engine == "zero3":
        pytest.importorskip("deepspeed")
    expected, expected_weights = uninterrupted(engine)
    code, output = launch(engine, tmp_path, "--kill", kill)
    assert code != 0
    half_written = tmp_path / "checkpoint-3"
    if kill == "save:3":
        assert half_written.exists() and not (half_written / "trainer_state.json").exists()
    code, output = launch(engine, tmp_path, "--resume")
    assert code == 0, output[-3000:]
    if kill == "save:3":
        assert f"Half-written checkpoints are skipped ({half_written}" in output
        assert f"Resuming from {tmp_path / 'checkpoint-2'} instead" in output
    found, weights = result_of(tmp_path)
    check_engine(engine, found)
    assert found["log"] == expected["log"]
    assert found["completions"] == expected["completions"][-len(found["completions"]) :]
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights.items())


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "cause"), [("oom:1:4", "out of memory on purpose"), ("reward:1:4", "a reward that fails on purpose")]
)
def test_a_fault_on_one_process_ends_all(fault, cause, tmp_path):
    """No hang, the cause on the screen, and what was saved before can be resumed from."""
    code, output = launch("ddp", tmp_path, "--fault", fault)
    assert code != 0
    assert cause in output
    code, output = launch("ddp", tmp_path, "--resume")
    assert code == 0, output[-3000:]
    assert json.loads((tmp_path / "result.json").read_text())["processes"] == 2


@pytest.mark.distributed
def test_launch_that_would_leave_no_model_is_refused(tmp_path):
    """`examples/train.py` says so before training; DeepSpeed itself would exit without an error."""
    pytest.importorskip("deepspeed")
    settings = json.loads((ROOT / "tests" / "distributed" / "zero3_strict.json").read_text())
    settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    config = (ROOT / "tests" / "distributed" / "zero3_strict.yaml").read_text()
    (tmp_path / "zero3.yaml").write_text(
        config.replace("tests/distributed/zero3_strict.json", str(tmp_path / "zero3.json"))
    )
    tokenizer = byte_tokenizer()
    build_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = [
        *(*_ACCELERATE, "--config_file", str(tmp_path / "zero3.yaml"), "tests/distributed/train_on_cpu.py"),
        *("--model_name_or_path", str(tmp_path / "model"), "--dataset_name", "tests/files/gsm8k.jsonl"),
        *("--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--bf16", "false", "--max_steps", "1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode != 0
    assert "would save no model at the end" in done.stderr and "zero3_save_16bit_model: true" in done.stderr
    assert not list((tmp_path / "run").glob("*.safetensors"))
