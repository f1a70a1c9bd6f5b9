r"""
Merge a LoRA adapter into its base model: one folder that loads without PEFT, and that vLLM serves as it is.

    trl-fork merge --model outputs/qwen3_0.6b_lora --output outputs/qwen3_0.6b_merged

The base model is loaded in `--dtype`, never in 4 bits: an adapter that was trained on a quantized base (QLoRA) is
merged into the weights before rounding, which differ slightly from those it was trained on. Evaluate the merged model,
not only the adapter.
"""

import shlex
import shutil
from pathlib import Path

from ..data.prompt_file import FILE_NAME, find_prompt
from ..generation.engines import base_of_adapter, load_model, load_tokenizer
from .options import OptionParser
from .program import program


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(description=__doc__, command="merge")
    parser.add_argument("--model", required=True, help="folder, checkpoint or Hub name of the adapter")
    parser.add_argument("--output", required=True, help="folder of the merged model; it must be new or empty")
    parser.add_argument("--base_model", help="base model, if not the one the adapter's configuration names")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights; that of the base model's checkpoint if auto"
    )
    options = parser.parse_args(arguments)
    output = Path(options.output)
    if output.is_dir() and any(output.iterdir()):
        parser.error(f"--output {options.output!r} is not empty: nothing was written")
    base = base_of_adapter(options.model, options.base_model)
    if base is None:
        parser.error(f"--model {options.model!r} has no adapter_config.json: it is no adapter")
    model = load_model(options.model, base_model=options.base_model, dtype=options.dtype)
    model.merge_and_unload(safe_merge=True).save_pretrained(output)  # type: ignore[operator]  # PEFT's, as it has a base
    load_tokenizer(options.model, base_model=options.base_model).save_pretrained(output)
    if found := find_prompt(options.model):
        shutil.copyfile(found[1], output / FILE_NAME)
    print(f"{options.model}, merged into {base}, is in {output}.")
    evaluate = [*program(), "evaluate", "--model", str(output), "--dataset", "math500"]
    print(f"Next:\n  {shlex.join([*evaluate, '--output', str(output / 'evaluation')])}")


if __name__ == "__main__":
    main()
