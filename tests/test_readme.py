"""What the README shows is run: snippets with local stand-ins for names on the Hub, commands in a fresh clone."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import build_model
from datasets import Dataset
from test_features import byte_tokenizer
from test_quickstart import check_quickstart


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def stand_ins(tmp_path):
    """Local files under the names the README uses."""
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=4096, initializer_range=0.02).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompts = [[{"role": "user", "content": f"{n} + 1?"}] for n in range(8)]
    Dataset.from_dict({"prompt": prompts, "solution": ["1"] * 8}).save_to_disk(tmp_path / "deepmath")
    return tmp_path


def test_python_snippet(stand_ins, monkeypatch):
    (snippet,) = blocks("python")
    for name, replacement in (
        ("from datasets import load_dataset", "from datasets import load_from_disk"),
        ('"Qwen/Qwen3-0.6B"', repr(str(stand_ins / "model"))),
        ('load_dataset("trl-lib/DeepMath-103K", split="train")', f"load_from_disk({str(stand_ins / 'deepmath')!r})"),
        # The smallest run there is, on a machine without a GPU
        (
            "top_entropy_quantile=0.2",
            "top_entropy_quantile=0.2, use_cpu=True, bf16=False, max_steps=1, max_completion_length=8, "
            "report_to='none', disable_tqdm=True",
        ),
    ):
        assert name in snippet
        snippet = snippet.replace(name, replacement)
    monkeypatch.chdir(stand_ins)
    scope = {}
    exec(snippet, scope)
    assert scope["trainer"].state.global_step == 1


def test_lora_command(stand_ins):
    (command,) = [block for block in blocks("bash") if "--use_peft" in block]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["accelerate", "launch", "examples/train.py"]
    gsm8k = str(ROOT / "tests" / "data" / "gsm8k.jsonl")
    for name, replacement in (
        ("Qwen/Qwen3-0.6B", str(stand_ins / "model")),
        ("openai/gsm8k", gsm8k),
        ("outputs/gsm8k", str(stand_ins / "run")),
        ("1024", "8"),
    ):
        words[words.index(name)] = replacement
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(ROOT / words[2])]
    small = ["--use_cpu", "true", "--bf16", "false", "--max_steps", "1", "--report_to", "none"]
    done = subprocess.run([*launcher, *words[3:], *small], capture_output=True, text=True, cwd=stand_ins, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (stand_ins / "run" / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_two_commands_in_a_fresh_clone(tmp_path):
    """`make quickstart` and `make test`, each as a newcomer types it; of the suite, a part that needs everything."""
    assert [block.strip() for block in blocks("bash")[:2]] == ["make quickstart", "make test"]
    clone = tmp_path / "clone"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    first = subprocess.run(["make", "quickstart"], capture_output=True, text=True, cwd=clone)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-3000:]
    check_quickstart(clone / "outputs" / "quickstart", seed=42)
    second = subprocess.run(
        ["make", "test", "ARGS=tests/test_config.py tests/test_objective.py -k 'not 2x16'"],
        capture_output=True,
        text=True,
        cwd=clone,
    )
    assert second.returncode == 0, second.stdout[-3000:]
    assert re.search(r"\d+ passed", second.stdout)
