"""Publishing over real HTTP, to a local stand-in for the Hub: what arrives, what failures do, and no token."""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.conftest import build_model, build_tokenizer
from tests.distributed.test_distributed import free_port, kill_family
from tests.hub_stand_in import TOKEN, HubStandIn


ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub():
    with HubStandIn() as server:
        yield server
        server.shutdown()


def environment(hub, tmp_path, token=TOKEN):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


def publish(hub, tmp_path, settings="{}", launcher=(), token=TOKEN):
    """Run `hub_worker.py`; returns its exit status, standard output and standard error."""
    build_model(build_tokenizer()).save_pretrained(tmp_path / "base")
    command = [sys.executable, *launcher, str(ROOT / "tests" / "hub_worker.py"), str(tmp_path), settings]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(hub, tmp_path, token),
        cwd=ROOT,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=500)
    finally:
        kill_family(process)
    return process.returncode, output, errors


def load_back(hub, tmp_path, code):
    """Run `code` in a process that downloads from the stand-in."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(hub, tmp_path, token="") | {"HF_TOKEN": ""},
        capture_output=True, text=True, timeout=500, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def contains(content: bytes, needle: bytes, path="") -> bool:
    """Also inside the archives that `torch.save` writes."""
    if needle in content:
        return True
    import io

    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(needle in archive.read(name) for name in archive.namelist())


def metadata(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)[1])


def launcher(config, processes=2):
    arguments = ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    if not config.startswith("tests/"):
        arguments += ["--mixed_precision", "no"]
    return ["-m", "accelerate.commands.launch", "--config_file", config, *arguments]


LAUNCHERS = [
    pytest.param((), id="one process"),
    pytest.param("configs/accelerate/ddp.yaml", id="ddp", marks=pytest.mark.distributed),
    pytest.param(
        "tests/distributed/zero3_strict.yaml",
        id="zero3",
        marks=[
            pytest.mark.distributed,
            pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
        ],
    ),
]
RESULTS = '{"gsm8k": {"avg@4": 0.512, "avg@4_stderr": 0.01, "pass@4": 0.75, "mean_length": 231.4, "num_problems": 100, "truncated_fraction": 0.02}}'  # noqa: E501


@pytest.mark.parametrize("config", LAUNCHERS)
@pytest.mark.parametrize("lora", [False, True])
def test_model_arrives_and_loads_back(lora, config, hub, tmp_path):
    settings = f'{{"lora": {str(lora).lower()}, "results": {RESULTS}, "hub_token": "{TOKEN}"}}'
    status, output, errors = publish(hub, tmp_path, settings, launcher(config) if config else ())
    assert status == 0, errors[-3000:]
    assert "pushed: True" in output
    repository = hub.repositories["tester/forks"]
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert repository.files[weights] == (tmp_path / "run" / weights).read_bytes()

    card = repository.files["README.md"].decode()
    data = metadata(card)
    assert {"trl", "grpo", "forking-tokens"} <= set(data["tags"])
    assert data["datasets"] == ["openai/gsm8k"]
    assert data["library_name"] == ("peft" if lora else "transformers")
    assert card in hub.cards, "the Hub was asked whether its metadata are valid"
    assert ModelCard(card).data.model_name == "forks"
    for text in ("2506.01939", "2402.03300", "2503.14476", "| gsm8k | 100 | 51.2 % | 75.0 % | 231 | 2.0 % |"):
        assert text in card
    assert (
        '| `token_credit` | `[{"top_fraction": {"fraction": 0.2, ' in card
        and "![Curves of the run](training.png)" in card
    )

    # The snippet of the card, as a reader runs it
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(load_back(hub, tmp_path, snippet.replace("512", "4"))) > 0
    code = (
        "import torch\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('tester/forks', dtype=torch.float32)\n"
        "torch.save({n: p.detach() for n, p in model.named_parameters()}, 'loaded.pt')"
    )
    load_back(hub, tmp_path, code)
    loaded = torch.load(tmp_path / "loaded.pt")
    for name, tensor in load_file(tmp_path / "run" / weights).items():
        name = name.removeprefix("base_model.model.").replace("lora_A.", "lora_A.default.")
        assert torch.equal(loaded[name.replace("lora_B.", "lora_B.default.")], tensor)

    for path, content in repository.files.items():
        assert not contains(content, TOKEN.encode()), path
    saved = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in saved)
    for path in saved:
        assert not contains(path.read_bytes(), TOKEN.encode()), path
    assert TOKEN not in output + errors


@pytest.mark.parametrize(
    ("failures", "pushed"),
    [
        ({("POST", "/commit/"): [503] * 2}, True),
        ({("PUT", "/_lfs/"): ["cut"] * 2}, True),
        ({("POST", "/commit/"): [503] * 50}, False),
        ({("POST", "/preupload/"): [401] * 50}, False),
    ],
    ids=["503 twice", "cut in an upload", "503 for good", "token revoked"],
)
def test_failure_costs_a_message_not_the_run(failures, pushed, hub, tmp_path):
    hub.failures.update(failures)
    status, output, errors = publish(hub, tmp_path, '{"save_strategy": "no"}')
    assert status == 0, errors[-3000:]
    assert f"pushed: {pushed}" in output
    assert (tmp_path / "run" / "model.safetensors").exists()
    if pushed:
        assert "model.safetensors" in hub.repositories["tester/forks"].files
        return
    # A server that may recover is asked again twice; a refusal is final. `upload_folder` asks once more by itself.
    attempts = 50 - len(next(iter(failures.values())))
    assert attempts == (1 if "preupload" in str(failures) else 3), attempts
    assert "Published: nothing. Not published:" in errors and "model.safetensors" in errors
    (command,) = re.findall(r"^  (HF_ENDPOINT=.* hf upload .*)$", errors, flags=re.MULTILINE)
    assert command.count("--exclude") == 2, "the client appends to the list of patterns that it is given"
    hub.failures.clear()
    shell = environment(hub, tmp_path)
    del shell["HF_ENDPOINT"]  # the command says it
    shell["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, shell=True, env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    files = hub.repositories["tester/forks"].files
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert not any("checkpoint-" in path for path in files)


def test_failed_push_of_a_checkpoint_is_reported(hub, tmp_path):
    hub.failures["POST", "/commit/"] = [503]
    status, output, errors = publish(hub, tmp_path)
    assert status == 0, errors[-3000:]
    assert "An upload to the Hub failed (HfHubHTTPError: " in errors
    assert "pushed: True" in output


def test_wrong_token_is_refused_before_training(hub, tmp_path):
    status, _, errors = publish(hub, tmp_path, token="hf_wrong")
    assert status != 0
    assert f"push_to_hub: the Hub at {hub.url} did not create the repository 'tester/forks'" in errors
    assert "hf auth login" in errors and "HF_ENDPOINT," not in errors
    assert f"  HF_ENDPOINT={hub.url} hf upload tester/forks" in errors
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_hub_that_does_not_answer_is_named_before_training(hub, tmp_path):
    hub.url = "http://127.0.0.1:9"
    status, _, errors = publish(hub, tmp_path)
    assert status != 0
    assert "the Hub at http://127.0.0.1:9 did not create the repository" in errors
    assert "Check the connection and HF_ENDPOINT, or" in errors and "hf auth login" not in errors
