"""
Generation without vLLM: transformers' `generate` against its continuous batching, in TRL's trainer.

    python -m benchmarks.generation                         # a tiny model on the CPU, minutes
    python -m benchmarks.generation --shape qwen3-0.6b      # random weights on a GPU, bf16

Plain `generate` runs every row until the longest one has ended. Continuous batching
(`use_transformers_continuous_batching`) drops rows as they end and reads a paged cache. Both go through
`GRPOTrainer._generate_single_turn`, and write completions of the same lengths: a hook on the model puts all
probability on "the same word again" until the length that belongs to this word is reached, then on the end token. That
costs next to nothing beside the model's own forward pass. Lengths are lognormal (sigma 0.8, a median of an eighth of
the longest, one row of full length), or equal.

The two take turns; times are medians, on the CPU in processor seconds, which other work on the machine hardly changes.
`useful` is the share of the positions decoded by plain `generate` that are tokens: its inverse bounds the gain.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer


SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, head dimension, vocabulary
    "tiny": (128, 384, 4, 4, 2, 32, 4096),
    "small": (512, 1536, 8, 8, 4, 64, 32768),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151936),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128, 151936),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151936),
}
PROMPT, END = 24, 1  # tokens of a prompt; the end token
COLUMNS = "{:>6} {:>14} {:>9} {:>9}  {:>17} {:>17}  {:>24}"


class ForcedLengths:
    """
    A forward hook with which every word has a length of completion: word `2 + i` is repeated `lengths[i]` times.

    What comes next depends on a token and its position alone, so that it is the same in any arrangement of the rows.
    Only after the `any` word one of the others is drawn, from a generator of its own: two trainers get the same ones,
    whatever else they draw.
    """

    def __init__(self, lengths, vocabulary, device):
        self.any = 2 + len(lengths)
        self.ends = torch.zeros(
            vocabulary, dtype=torch.long, device=device
        )  # position of the last word before the end
        self.ends[2 : self.any] = torch.tensor(lengths, device=device) + PROMPT - 2
        self.ends[self.any] = PROMPT
        self.prompts = [[2 + row] * PROMPT for row in range(len(lengths))]
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, module, args, kwargs, output):
        if getattr(output, "logits", None) is None:  # TRL's fused head gives log-probabilities: that is training
            return
        keep = kwargs.get("logits_to_keep", 0)
        keep = keep if isinstance(keep, torch.Tensor) else slice(-keep, None)
        words, positions = kwargs["input_ids"][:, keep], kwargs["position_ids"][:, keep]
        following = torch.where(positions >= self.ends[words], END, words)
        drawn = torch.randint(2, self.any, words.shape, device=words.device, generator=self.generator)
        following = torch.where(words == self.any, drawn, following)
        output.logits.scatter_(-1, following.unsqueeze(-1), 1e4)


def build_model(shape, device):
    hidden, intermediate, layers, heads, key_values, head_dim, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        head_dim=head_dim,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    return model.to(torch.float32 if device == "cpu" else torch.bfloat16)


def build_tokenizer(vocabulary):
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": END, **{f"w{i}": i for i in range(2, vocabulary)}}, "w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def build_trainer(options, device, continuous):
    settings = {"transformers_continuous_batching_config": cache_config(options, device)} if continuous else {}
    return GRPOTrainer(
        model=build_model(options.shape, device),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(
            tempfile.mkdtemp(),
            max_completion_length=options.max_length,
            use_transformers_continuous_batching=continuous,
            use_cpu=device == "cpu",
            bf16=device != "cpu",
            gradient_checkpointing=True,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w2"]}),
        processing_class=build_tokenizer(SHAPES[options.shape][6]),
    )


def cache_config(options, device):
    """Settings of the paged cache: given, or TRL's; on the CPU just enough pages for all rows at full length."""
    if options.cb_config or device != "cpu":
        return json.loads(options.cb_config or "{}")
    # TRL's default is half of the free memory: without a GPU the whole of it is filled with zeros at every call.
    pages = -(-(PROMPT + options.max_length) // 256)
    return {"num_blocks": max(options.rows) * pages + 8, "max_batch_tokens": max(512, 2 * max(options.rows))}


def sample_lengths(rows, longest, kind):
    """Completion lengths in tokens, the end token included."""
    if kind == "equal":
        return [longest // 3] * rows
    normal = torch.randn(rows, generator=torch.Generator().manual_seed(0))
    lengths = [min(max(int(longest / 8 * (0.8 * z).exp()), 4), longest) for z in normal]
    lengths[0] = longest
    return lengths


def seconds_of(trainer, prompts, lengths, device):
    """Seconds of one call: of the wall clock on a GPU, of the processor on the CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    completions, _ = trainer._generate_single_turn(prompts, None, {}, 1)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - start
    if [len(completion) for completion in completions] != lengths:
        raise RuntimeError("The completions do not have the lengths they were given: there is nothing to compare.")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 128], help="completions per call")
    parser.add_argument("--lengths", choices=["lognormal", "equal"], nargs="+", default=["lognormal", "equal"])
    parser.add_argument("--max_length", type=int, default=256, help="tokens of the longest completion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cb_config", help="JSON, TRL's transformers_continuous_batching_config")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    trainers = {kind: build_trainer(options, device, kind == "continuous") for kind in ("generate", "continuous")}
    print(f"{options.shape} on {name}, up to {options.max_length} tokens, medians of {options.repeats}")
    print(COLUMNS.format("rows", "lengths", "tokens", "useful", "generate", "continuous", "generate / continuous"))
    for kind in options.lengths:
        for rows in options.rows:
            lengths = sample_lengths(rows, options.max_length, kind)
            seconds = {name: [] for name in trainers}
            for number in range(options.repeats + 1):  # the first warms up
                for name, trainer in trainers.items():
                    forced = ForcedLengths(lengths, SHAPES[options.shape][6], device)
                    hook = trainer.model.register_forward_hook(forced, with_kwargs=True)
                    elapsed = seconds_of(trainer, forced.prompts, lengths, device)
                    hook.remove()
                    if number:
                        seconds[name].append(elapsed)
            ratios = [a / b for a, b in zip(seconds["generate"], seconds["continuous"], strict=True)]
            total = sum(lengths)
            print(
                COLUMNS.format(
                    rows,
                    kind,
                    f"{total:,}",
                    f"{total / (rows * max(lengths)):.0%}",
                    *(f"{statistics.median(s):.2f} s {total / statistics.median(s):,.0f}/s" for s in seconds.values()),
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
