"""
Estimate the GPU memory of a run, by model, completion length and method. Nothing is measured here.

    python -m benchmarks.memory [--lengths 512 2048 8192] [--rows 1] [--generated 16] [--prompt 300]

`benchmarks/step.py --shape qwen3-0.6b [--lora]` measures the peak of a training step on a GPU.
"""

from dataclasses import dataclass

from trl_fork.commands.options import OptionParser


GIB = 2**30


@dataclass(frozen=True)
class Model:
    """A Qwen3, by its published configuration."""

    hidden: int
    intermediate: int
    layers: int
    key_value_heads: int
    parameters: float
    embedding: float  # parameters of the embedding and of an LM head that is not tied to it
    head_dim: int = 128


MODELS = {
    "0.6B": Model(1024, 3072, 28, 8, 0.596e9, 0.156e9),
    "1.7B": Model(2048, 6144, 28, 8, 1.721e9, 0.311e9),
    "4B": Model(2560, 9728, 36, 8, 4.022e9, 0.389e9),
    "8B": Model(4096, 12288, 36, 8, 8.191e9, 1.245e9),
}
METHODS = ("QLoRA", "LoRA", "all weights")
RANK = 16
OVERHEAD = 0.8 * GIB  # CUDA itself, and what the allocator cannot use


def states(model: Model, method: str) -> float:
    """Weights, gradients and optimizer, in bytes."""
    if method == "all weights":
        return 16 * model.parameters  # float32 with AdamW, bf16 autocast
    # An adapter of rank 16 on every linear layer of the decoder, in float32 with AdamW
    inner = model.layers * (4 * model.hidden + 3 * (model.hidden + model.intermediate))
    adapter = 16 * RANK * inner
    if method == "LoRA":
        return 2 * model.parameters + adapter
    # 4 bits and a quantization constant per 64 weights; the embedding stays in bf16
    return (0.5 + 1 / 64) * (model.parameters - model.embedding) + 2 * model.embedding + adapter


def training(model: Model, tokens: int) -> float:
    """Activations of one pass over this many tokens, with gradient checkpointing, in bytes."""
    kept = 2 * model.hidden * model.layers * tokens
    layer = 2 * (10 * model.hidden + 4 * model.intermediate) * tokens  # what one layer holds while it is recomputed
    return kept + layer


def generating(model: Model, tokens: int) -> float:
    """Keys and values of this many tokens in bf16."""
    return 2 * 2 * model.layers * model.key_value_heads * model.head_dim * tokens


def peak(model: Model, method: str, length: int, *, prompt: int, rows: int, generated: int) -> float:
    """Estimated peak in bytes: generation and training alternate, so that the larger of them counts."""
    tokens = prompt + length
    return (
        states(model, method) + OVERHEAD + max(training(model, rows * tokens), generating(model, generated * tokens))
    )


def main() -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192], help="tokens of a completion")
    parser.add_argument("--prompt", type=int, default=300, help="tokens of a prompt")
    parser.add_argument("--rows", type=int, default=1, help="per_device_train_batch_size")
    parser.add_argument("--generated", type=int, default=16, help="completions generated at a time")
    options = parser.parse_args()
    print("| Estimate, GiB | " + " | ".join(f"{length} tokens" for length in options.lengths) + " |")
    print("|---" + "|---:" * len(options.lengths) + "|")
    for name, model in MODELS.items():
        for method in METHODS:
            cells = [
                peak(model, method, length, prompt=options.prompt, rows=options.rows, generated=options.generated)
                for length in options.lengths
            ]
            print(f"| Qwen3-{name}, {method} | " + " | ".join(f"{cell / GIB:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
