"""`evaluate.py` and `train.py` with a real vLLM engine, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.commands.test_evaluate_script import GSM8K, ROWS, arguments_of, lines_of, teach
from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer
from tests.vllm_engine.on_cpu import one_engine_at_a_time, weights_can_be_replaced  # noqa: F401
from trl_fork.commands import analyze as analyze_entropy
from trl_fork.commands import evaluate


ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_engine_at_a_time")]


def build_model_for_vllm(tokenizer):
    """Its attention for CPUs takes heads from a width of 32 on."""
    return build_model(
        tokenizer, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        max_position_embeddings=1024, initializer_range=0.05,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with one answer to each question of the data, right for most of them, and one that never ends."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    model = build_model_for_vllm(tokenizer)
    answers = [row["answer"].rpartition("#### ")[2] for row in ROWS]
    answers[0] = "7" if answers[0] != "7" else "8"
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"][-40:]}], tokenize=False, add_generation_prompt=True
        )
        + (rf"\boxed{{{answer}}}<|im_end|>" if i != 1 else "and so on and so on and so on")
        for i, (row, answer) in enumerate(zip(ROWS, answers, strict=True))
    ]
    return teach(model, tokenizer, texts, folder, steps=200, learning_rate=5e-3)


def run(model, output, **options):
    options = {"num_samples": 1, "temperature": 0, "max_new_tokens": 24, "dtype": "float32", **options}
    evaluate.run(evaluate.parse_arguments(arguments_of(model, output, **options)))
    return lines_of(output)


def verdicts(lines):
    return {
        key: (line["completion"], line["correct"], line["length"], line["truncated"]) for key, line in lines.items()
    }


@pytest.mark.parametrize("adapter", [False, True])
def test_greedy_verdicts_are_those_of_transformers(adapter, model, tmp_path):
    if adapter:
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(model)
        config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(base, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(0.1)
        adapted.save_pretrained(tmp_path / "adapter")
        model = tmp_path / "adapter"
    with_vllm = run(model, tmp_path / "vllm", engine="vllm")
    with_transformers = run(model, tmp_path / "transformers")
    assert verdicts(with_vllm) == verdicts(with_transformers)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("vllm", "transformers")]
    assert results[0] == results[1]
    lines = with_vllm.values()
    assert any(line["truncated"] for line in lines) and not all(line["truncated"] for line in lines)
    if not adapter:
        assert 0 < sum(line["correct"] for line in lines) < len(lines)


def test_training_from_the_command_line(tmp_path):
    """Two processes, each with an engine of its own: after a large step both sample from the new policy."""
    model, tokenizer = tmp_path / "model", byte_tokenizer()
    build_model_for_vllm(tokenizer).save_pretrained(model)
    tokenizer.save_pretrained(model)
    (tmp_path / "own_rewards.py").write_text(
        "def letters(completions, **kwargs):\n    return [float(len(set(c[0]['content']))) for c in completions]\n"
    )
    recipe = {
        "model_name_or_path": str(model),
        "dataset_name": str(GSM8K),
        "output_dir": str(tmp_path / "run"),
        "reward_funcs": ["own_rewards.letters"],
        "use_cpu": True,
        "bf16": False,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.05,
        "vllm_max_model_length": 512,
        "max_steps": 2,
        "learning_rate": 1.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 16,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        *(sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "configs" / "accelerate" / "ddp.yaml"), "--num_processes", "2"),
        *("--mixed_precision", "no", "--main_process_port", "0"),
        *(str(ROOT / "tests" / "distributed" / "vllm_worker.py"), "--config", str(tmp_path / "recipe.yaml")),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, env=environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
    ranks = [
        [json.loads(line) for line in (tmp_path / "run" / f"rank{rank}.jsonl").read_text().splitlines()]
        for rank in range(2)
    ]
    for records in ranks:
        assert len(records) == 2
        assert all(0 < record["difference"] < 0.05 for record in records)
    assert ranks[0][0]["ids"] != ranks[1][0]["ids"]
    start, end = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "run"))
    assert max((end[name] - start[name]).abs().max() for name in start) > 0.01


def test_analysis_of_sampled_responses(model, tmp_path):
    """vLLM samples in a process of its own, transformers scores."""
    output = tmp_path / "analysis"
    words = ["--model", model, "--dataset", GSM8K, "--output", output, "--engine", "vllm", "--num_samples", 2]
    # Few prompts: where a prefill is cut in two, vLLM asks the generator of a seeded sample for an offset, which those
    # of CPUs do not have.
    words += ["--max_new_tokens", 16, "--min_token_count", 1, "--dtype", "float32", "--limit", 4]
    analyze_entropy.run(analyze_entropy.parse_arguments([str(word) for word in words]))
    lines = lines_of(output).values()
    assert len(lines) == 2 * 4
    summary = json.loads((output / "summary.json").read_text())
    assert summary["distribution"]["num_tokens"] == sum(line["length"] for line in lines)
    assert (output / "report.html").is_file()
