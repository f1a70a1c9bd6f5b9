"""Adapters from training to the merged model, with PEFT and bitsandbytes themselves."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer
from trl_fork.commands import merge as merge_adapter
from trl_fork.commands import train as script


ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny base model, and a reward that even it can get more or less of."""
    tokenizer = byte_tokenizer()
    # 64 wide: bitsandbytes shares a constant among 64 weights
    settings = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.02}
    build_model(tokenizer, max_position_embeddings=2048, **settings).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "letters_for_adapters.py").write_text(
        "def letters(completions, **kwargs):\n    return [float(len(set(c[0]['content']))) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def train(folder, monkeypatch, *more):
    words = [
        *("--model_name_or_path", folder / "base", "--output_dir", folder / "run"),
        *(
            "--dataset_name",
            ROOT / "tests" / "files" / "gsm8k.jsonl",
            "--reward_funcs",
            "letters_for_adapters.letters",
        ),
        *("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_dropout", "0.0"),
        *("--num_generations", 4, "--per_device_train_batch_size", 8, "--max_completion_length", 8),
        *("--learning_rate", 0.01, "--use_cpu", "true", "--bf16", "false", "--dataloader_pin_memory", "false"),
        *("--save_steps", 1, "--logging_steps", 1, "--report_to", "none", "--disable_tqdm", "true", *more),
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    script.run(*script.make_parser().parse_args_and_config())
    history = json.loads((folder / "run" / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def merge(folder, monkeypatch):
    words = ["merge_adapter.py", "--model", str(folder / "run"), "--output", str(folder / "merged")]
    monkeypatch.setattr(sys, "argv", words)
    merge_adapter.main()
    return AutoModelForCausalLM.from_pretrained(folder / "merged")


def logits_of(model):
    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def adapted(folder, **settings):
    base = AutoModelForCausalLM.from_pretrained(folder / "base", **settings)
    return PeftModel.from_pretrained(base, folder / "run")


def test_lora_trains_resumes_and_merges(folder, monkeypatch):
    train(folder, monkeypatch, "--max_steps", 1)
    steps = train(folder, monkeypatch, "--max_steps", 2, "--resume_from_checkpoint", "true")
    assert [entry["step"] for entry in steps] == [1, 2] and all(entry["grad_norm"] > 0 for entry in steps)
    base = logits_of(AutoModelForCausalLM.from_pretrained(folder / "base"))
    with_adapter, merged = logits_of(adapted(folder)), logits_of(merge(folder, monkeypatch))
    assert (with_adapter - base).abs().max() > 1e-3  # else the comparison below says nothing
    assert torch.allclose(merged, with_adapter, atol=1e-5)
    assert (folder / "merged" / "tokenizer.json").exists()
    assert not (folder / "merged" / "adapter_config.json").exists()


def test_lora_on_weights_in_bfloat16(folder, monkeypatch):
    made, original = [], script.ForkingGRPOTrainer

    def spy(*args, **kwargs):
        made.append(original(*args, **kwargs))
        return made[0]

    monkeypatch.setattr(script, "ForkingGRPOTrainer", spy)
    (step,) = train(folder, monkeypatch, "--max_steps", 1, "--dtype", "bfloat16")
    weights = dict(made[0].model.named_parameters())
    assert {weight.dtype for name, weight in weights.items() if "lora_" not in name} == {torch.bfloat16}
    adapter = {name: weight for name, weight in weights.items() if "lora_" in name}
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert all(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)  # B starts at zero
    assert step["grad_norm"] > 0 and step["forking/selected_fraction"] == pytest.approx(0.2, abs=0.02)


def test_qlora_trains_four_bit_weights_and_merges_into_whole_ones(folder, monkeypatch):
    pytest.importorskip("bitsandbytes")  # `make test-extras` installs it: importing it says things on every start
    options = ("--load_in_4bit", "true", "--use_bnb_nested_quant", "true")
    quantized, original = [], script.ForkingGRPOTrainer

    def spy(*args, **kwargs):
        trainer = original(*args, **kwargs)
        quantized.extend(type(module).__name__ for module in trainer.model.modules())
        return trainer

    monkeypatch.setattr(script, "ForkingGRPOTrainer", spy)
    train(folder, monkeypatch, "--max_steps", 1, *options)
    steps = train(folder, monkeypatch, "--max_steps", 2, "--resume_from_checkpoint", "true", *options)
    assert "Linear4bit" in quantized  # not an adapter on whole weights
    assert [entry["step"] for entry in steps] == [1, 2] and all(entry["grad_norm"] > 0 for entry in steps)
    assert all(entry["forking/selected_fraction"] == pytest.approx(0.2, abs=0.02) for entry in steps)
    whole, merged = logits_of(adapted(folder)), logits_of(merge(folder, monkeypatch))
    assert torch.allclose(merged, whole, atol=1e-2)  # the adapter is saved in bf16
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    rounded = logits_of(adapted(folder, quantization_config=four_bits))
    assert (rounded - merged).abs().max() > (whole - merged).abs().max()


@pytest.mark.parametrize(("model", "message"), [("base", "it is no adapter"), ("nowhere", "There is no folder")])
def test_what_is_no_adapter_is_refused(model, message, folder, monkeypatch, capsys):
    words = ["merge_adapter.py", "--model", str(folder / model), "--output", str(folder / "merged")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises((SystemExit, ValueError)) as raised:
        merge_adapter.main()
    assert message in capsys.readouterr().err + str(raised.value)
    assert not (folder / "merged").exists()


def test_a_folder_with_something_in_it_is_left_alone(folder, monkeypatch, capsys):
    words = ["merge_adapter.py", "--model", str(folder / "run"), "--output", str(folder / "base")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        merge_adapter.main()
    assert "is not empty" in capsys.readouterr().err
