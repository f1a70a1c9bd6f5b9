"""Image-text models on text alone: real ones, tiny, as `examples/train.py` and what comes after it load them."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from tests.commands.test_train_script import GSM8K
from tests.conftest import tiny_sizes
from tests.trainer.test_features import byte_tokenizer
from trl_fork.commands import analyze as analyze_entropy
from trl_fork.commands import evaluate
from trl_fork.commands import train as script


def image_tokenizer():
    plain = byte_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token=plain.pad_token,
        eos_token=plain.eos_token,
        padding_side="left",
        extra_special_tokens={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"},
    )
    tokenizer.chat_template = plain.chat_template
    return tokenizer


def text_sizes(tokenizer) -> dict:
    return {**tiny_sizes(tokenizer), "max_position_embeddings": 2048}


def gemma3(folder):
    from transformers import Gemma3ImageProcessorPil  # where Pillow is installed

    tokenizer = image_tokenizer()
    config = Gemma3Config(
        text_config={**text_sizes(tokenizer), "head_dim": 8, "sliding_window": 64},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4).save_pretrained(
        folder
    )


def qwen2_5_vl(folder):
    """No causal language model to transformers; its processor needs torchvision, which text alone does not."""
    tokenizer = image_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**text_sizes(tokenizer), "rope_parameters": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 8,
            "fullatt_block_indexes": [0],
            "window_size": 32,
        },
        image_token_id=tokenizer.image_token_id,
        vision_start_token_id=tokenizer.boi_token_id,
        vision_end_token_id=tokenizer.eoi_token_id,
        tie_word_embeddings=False,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


PARTS = ("text", "image", "text", "text")


@pytest.fixture(params=[gemma3, qwen2_5_vl], ids=lambda build: build.__name__)
def recipe(request, tmp_path):
    torch.manual_seed(0)
    request.param(tmp_path / "model")
    return {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(GSM8K),
        "output_dir": str(tmp_path / "run"),
        "reward_funcs": ["lengths_of_text_only.letters"],
        "use_cpu": True,
        "bf16": False,
        "max_steps": 1,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "fork_report_steps": 1,
        "text_only": True,
    }


def parse(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return script.make_parser().parse_args_and_config(["--config", str(path)])


def test_trains_evaluates_and_analyses(recipe, tmp_path, monkeypatch):
    (tmp_path / "lengths_of_text_only.py").write_text(
        "def letters(completions, **kwargs):\n    return [float(len(set(c[0]['content']))) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    script.run(*parse(recipe, tmp_path))
    run = tmp_path / "run"
    before, after = load_file(tmp_path / "model" / "model.safetensors"), load_file(run / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("vision" in name or "visual" in name for name in moved)
    (entry,) = [e for e in json.loads((run / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert entry["forking/selected_fraction"] == pytest.approx(0.2, abs=0.05)
    assert (run / "fork_report" / "latest.html").exists()

    words = ["--model", str(run), "--dataset", str(GSM8K), "--limit", "2", "--num_samples", "1"]
    evaluate.run(evaluate.parse_arguments([*words, "--max_new_tokens", "8", "--output", str(run / "evaluation")]))
    completions = run / "evaluation" / "completions.jsonl"
    assert len(completions.read_text().splitlines()) == 2
    words = ["--model", str(run), "--completions", str(completions), "--output", str(run / "entropy")]
    analyze_entropy.run(analyze_entropy.parse_arguments(words))
    assert (run / "entropy" / "report.html").exists()


@pytest.mark.parametrize("recipe", [gemma3], indirect=True, ids=["gemma3"])
def test_without_it_the_error_names_it(recipe, tmp_path):
    assert isinstance(AutoProcessor.from_pretrained(recipe["model_name_or_path"]), ProcessorMixin)
    settings = recipe | {"text_only": False, "reward_funcs": ["accuracy_reward"]}
    with pytest.raises(NotImplementedError, match=r"To train on text alone .*set text_only \(--text_only true"):
        script.run(*parse(settings, tmp_path))


@pytest.mark.parametrize("recipe", [gemma3], indirect=True, ids=["gemma3"])
@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("dataset_name", [{"question": "1?", "answer": "1", "images": []}] * 4, r"has the columns \['images'\]"),
        ("eval_dataset_name", [{"question": "1?", "answer": "1", "image": None}] * 4, r"has the columns \['image'\]"),
        (
            "dataset_name",
            [
                {"prompt": [{"role": "user", "content": [{"type": kind, "text": "1?"}]}], "answer": "1"}
                for kind in PARTS
            ],
            r"row 1, column 'prompt': the prompt has parts of type \['image'\]",
        ),
    ],
    ids=["columns", "evaluation", "parts"],
)
def test_images_are_refused(name, rows, message, recipe, tmp_path):
    (tmp_path / "images.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = recipe | {name: str(tmp_path / "images.jsonl"), "reward_funcs": ["accuracy_reward"]}
    settings |= {"eval_strategy": "steps"} if name == "eval_dataset_name" else {}
    with pytest.raises(ValueError, match=f"text_only: .*{message}, and text alone is trained on and evaluated"):
        script.run(*parse(settings, tmp_path))
