"""
What a training step costs, against TRL's own `top_entropy_quantile` on the same rollouts, in one run.

    python examples/benchmark_step.py                          # a tiny model on the CPU, minutes
    python examples/benchmark_step.py --shape qwen3-0.6b       # random weights on a GPU, bf16

A step is everything but the rollout: scoring, reference and training passes. Each row prints its time, how many times
faster than TRL it is, the peak memory above the model's (GPU only), valid tokens per second, the part of the computed
positions that were tokens, the rows that the LM head projected, and how far its gradient is from the naive objective
in float32: one completion at a time, full logits, no padding. TRL's has another objective (one threshold per
micro-batch, all tokens in the denominator), so that its distance is large and no error. The floor is the same work on
rows of equal length: a forward pass over the valid tokens, a forward and backward pass over those of rows with a
gradient, the LM head of the training pass on the selected tokens.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer, lm_head, select_tokens, token_entropy


RHO, GENERATIONS = 0.2, 8
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, head dimension, vocabulary, tied
    "tiny": (128, 384, 4, 4, 2, 32, 4096, True),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151936, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128, 151936, True),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151936, True),
}
WORKLOADS = {  # lengths, share of inert groups
    "long tail, half inert": ("lognormal", 0.5),
    "long tail": ("lognormal", 0.0),
    "equal lengths": ("equal", 0.0),
}
VARIANTS = {
    "TRL": None,
    "ours, nothing left out": ("padding", "left_padding", "ordering", "inert_rows", "head_backward", "head_forward"),
    "ours": (),
    "  without cut padding": ("padding", "left_padding"),
    "  without ordering": ("ordering", "inert_rows"),
    "  without inert rows": ("inert_rows",),
    "  without sparse head": ("head_backward", "head_forward"),
}


def build_model(shape, device):
    hidden, intermediate, layers, heads, key_values, head_dim, vocabulary, tied = SHAPES[shape]
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
        tie_word_embeddings=tied,
        initializer_range=0.1 if shape == "tiny" else 0.02,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return Qwen3ForCausalLM(config).to(device=device, dtype=dtype)


def build_tokenizer(vocabulary):
    # Only ids are used; the words have to exist.
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}, "w2"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


class Rollouts:
    """The same completions and rewards for every variant."""

    def __init__(self, groups, max_length, lengths, inert, vocabulary):
        generator = torch.Generator().manual_seed(0)
        rows = groups * GENERATIONS
        if lengths == "equal":
            sizes = [max_length // 3] * rows
        else:  # a median of an eighth of the longest, sigma 0.8: most are short, a few are cut off
            normal = torch.randn(rows, generator=generator)
            sizes = [min(max(int(max_length / 8 * (0.8 * z).exp()), 4), max_length) for z in normal]
            sizes[0] = max_length
        self.prompts = [torch.randint(2, vocabulary, (24,), generator=generator).tolist() for _ in range(groups)]
        self.completions = [[*torch.randint(2, vocabulary, (n - 1,), generator=generator).tolist(), 1] for n in sizes]
        live = groups - round(groups * inert)
        self.rewards = [float(row % 2) if row // GENERATIONS < live else 0.0 for row in range(rows)]
        self.num_tokens = sum(sizes)

    def __call__(self, prompts, trainer):
        return {
            "prompt_ids": [self.prompts[row // GENERATIONS] for row in range(len(prompts))],
            "completion_ids": self.completions,
            "logprobs": None,
        }

    def reward(self, completions, **kwargs):
        return self.rewards


def timed(base):
    """A trainer that measures its steps, the rollout left out, and what its forward passes see."""

    class Timed(base):
        removed = ()

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if self.removed:
                self._savings = dataclasses.replace(self._savings, **dict.fromkeys(self.removed, False))
            self.seconds, self.positions, self.tokens = [], 0, 0
            self.model.get_decoder().register_forward_pre_hook(self.count, with_kwargs=True)

        def count(self, module, args, kwargs):
            self.positions += kwargs["attention_mask"].numel()
            self.tokens += int(kwargs["attention_mask"].sum())

        def training_step(self, *args, **kwargs):
            synchronize(self.accelerator.device.type)
            start = time.perf_counter()
            loss = super().training_step(*args, **kwargs)
            synchronize(self.accelerator.device.type)
            self.seconds[-1] += time.perf_counter() - start
            return loss

        def get_batch_samples(self, *args, **kwargs):
            self.seconds.append(0.0)  # a new optimizer step
            return super().get_batch_samples(*args, **kwargs)

    return Timed


class KeepGradient(TrainerCallback):
    def __init__(self, gradients):
        self.gradients = gradients

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients["all"] = torch.cat([p.grad.float().flatten().cpu() for p in model.parameters()])


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def run(variant, rollouts, shape, options, device):
    """Train for a few steps with a learning rate of zero; the gradients of the last one stay."""
    removed = VARIANTS[variant]
    ours = removed is not None
    trainer_class = timed(ForkingGRPOTrainer if ours else GRPOTrainer)
    if ours:
        trainer_class.removed = removed
    model = build_model(shape, device)
    gradients = {}
    trainer = trainer_class(
        model=model,
        reward_funcs=rollouts.reward,
        args=(ForkingGRPOConfig if ours else GRPOConfig)(
            tempfile.mkdtemp(),
            top_entropy_quantile=RHO,
            epsilon_high=0.28,
            max_steps=options.repeats + 1,  # the first warms up
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.groups * GENERATIONS // options.micro_batch,
            num_generations=GENERATIONS,
            max_completion_length=options.max_length,
            learning_rate=0.0,
            max_grad_norm=0.0,
            optim="sgd",
            gradient_checkpointing=True,
            use_cpu=device == "cpu",
            bf16=device != "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w2"] * options.groups}),
        processing_class=build_tokenizer(model.config.vocab_size),
        rollout_func=rollouts,
    )
    trainer.add_callback(KeepGradient(gradients))
    trainer.remove_callback(PrinterCallback)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for count in lm_head.rows_projected:
        lm_head.rows_projected[count] = 0
    trainer.train()
    steps = options.repeats + 1
    return {
        "seconds": statistics.median(trainer.seconds[1:]),
        "memory": (torch.cuda.max_memory_allocated() - before) / 2**30 if device == "cuda" else None,
        "fill": trainer.tokens / trainer.positions,
        "rows": tuple(count // steps for count in lm_head.rows_projected.values()) if ours else None,
        "gradient": gradients["all"],
    }


def naive_gradient(rollouts, shape, device):
    """The objective as it is defined, in float32, one completion at a time."""
    model = build_model(shape, device).float()

    def logits_of(row):
        prompt, completion = rollouts.prompts[row // GENERATIONS], rollouts.completions[row]
        ids = torch.tensor([prompt + completion], device=device)
        return model(input_ids=ids).logits[0, len(prompt) - 1 : -1], ids[0, len(prompt) :]

    rewards = torch.tensor(rollouts.rewards).view(-1, GENERATIONS)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten().tolist()
    with torch.no_grad():
        entropies = [token_entropy(logits_of(row)[0]) for row in range(len(rollouts.completions))]
    everything = torch.cat(entropies)
    selected = select_tokens(everything[None], torch.ones_like(everything)[None], RHO)[0]
    masks = selected.split([len(e) for e in entropies])
    for row, (advantage, mask) in enumerate(zip(advantages, masks, strict=True)):
        if advantage and mask.any():
            logits, ids = logits_of(row)
            log_probs = logits[mask].log_softmax(-1).gather(1, ids[mask][:, None])
            (-advantage * log_probs.sum() / selected.sum()).backward()
    zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten().cpu() for gradient in zero])


def floor_seconds(rollouts, shape, options, device):
    """Forward over the valid tokens, forward and backward over those of rows with a gradient, without any padding."""
    model = build_model(shape, device)
    model.gradient_checkpointing_enable()
    model.train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    lengths = [len(rollouts.prompts[0]) + len(c) for c in rollouts.completions]
    live = [n for n, reward in zip(lengths, _spread(rollouts.rewards), strict=True) if reward]

    def rectangle(sizes):
        return torch.randint(2, model.config.vocab_size, (len(sizes), sum(sizes) // len(sizes)), device=device)

    def step():
        prompt = len(rollouts.prompts[0])
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            with torch.no_grad():
                for ids in rectangle(lengths).split(options.micro_batch):
                    done = torch.ones_like(ids[:, prompt:])
                    with lm_head.row_sparse_head(done, done):
                        model(input_ids=ids, labels=ids, fused_lm_head=True)
            for ids in rectangle(live).split(options.micro_batch):
                done = torch.ones_like(ids[:, prompt:])
                wanted = torch.rand(done.shape, device=device) < RHO
                with lm_head.row_sparse_head(wanted, done):
                    model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.sum().backward()

    seconds = []
    for _ in range(options.repeats + 1):
        model.zero_grad()
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _spread(rewards):
    groups = [rewards[i : i + GENERATIONS] for i in range(0, len(rewards), GENERATIONS)]
    return [len(set(group)) > 1 for group in groups for _ in group]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--workload", choices=list(WORKLOADS), nargs="+", default=list(WORKLOADS))
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="+", default=list(VARIANTS))
    parser.add_argument("--groups", type=int, default=8, help="prompts of a step, with 8 completions each")
    parser.add_argument("--micro_batch", type=int, default=8, help="completions of a micro-batch")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of the longest completion")
    parser.add_argument("--repeats", type=int, default=3, help="steps; their median is reported")
    parser.add_argument("--output", help="write the rows to this JSON file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console(width=140)
    rows = []
    for workload in options.workload:
        lengths, inert = WORKLOADS[workload]
        rollouts = Rollouts(options.groups, options.max_length, lengths, inert, SHAPES[options.shape][6])
        exact = naive_gradient(rollouts, options.shape, device)
        table = Table(title=f"{options.shape} on {device}, {workload}: {rollouts.num_tokens:,} completion tokens")
        for column in (
            "",
            "seconds",
            "x TRL",
            "peak GiB",
            "tokens/s",
            "fill",
            "head rows fwd / bwd",
            "gradient error",
        ):
            table.add_column(column, justify="right" if column else "left")
        reference = None
        for variant in options.variant:
            result = run(variant, rollouts, options.shape, options, device)
            reference = reference or result["seconds"]
            error = ((result.pop("gradient") - exact).norm() / exact.norm()).item()
            ratio = reference / result["seconds"]
            rows.append({"workload": workload, "variant": variant.strip(), "ratio": ratio, "error": error, **result})
            table.add_row(
                variant,
                f"{result['seconds']:.3f}",
                f"{ratio:.2f}",
                "-" if result["memory"] is None else f"{result['memory']:.2f}",
                f"{rollouts.num_tokens / result['seconds']:,.0f}",
                f"{result['fill']:.0%}",
                "-" if result["rows"] is None else "{:,} / {:,}".format(*result["rows"]),
                f"{error:.1e}",
            )
        seconds = floor_seconds(rollouts, options.shape, options, device)
        rows.append({"workload": workload, "variant": "floor", "ratio": reference / seconds, "seconds": seconds})
        table.add_row("floor", f"{seconds:.3f}", f"{reference / seconds:.2f}", "", "", "100%", "", "")
        console.print(table)
    if options.output:
        Path(options.output).write_text(
            json.dumps({"options": vars(options), "device": device, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
