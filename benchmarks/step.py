"""
What a training step costs, against TRL's own `top_entropy_quantile` on the same rollouts, in one run.

    python -m benchmarks.step                          # a tiny model on the CPU, minutes
    python -m benchmarks.step --shape qwen3-0.6b       # random weights on a GPU, bf16
    python -m benchmarks.step --shape qwen3-4b --lora --max_length 8192 --groups 4 --output 4b.json

A step is everything but the rollout: scoring, reference and training passes. The variants take turns, one measured
step each per round, so that a machine that slows down slows all of them. Each row prints

- the median of its seconds, and of how many times faster than TRL it was in the same round, with the extremes; the
  same in processor time, which other work on the machine hardly changes (of no meaning on a GPU);
- peak memory: what PyTorch holds at most during a step, beyond what it held before it (the weights). On a GPU that is
  the allocator's own figure, and `--output` has the peak with the weights too; on the CPU it is summed from the
  allocations that the profiler sees in one more step;
- valid completion tokens per second;
- fill: the part of the positions in all forward passes that were tokens;
- the rows that the LM head projected in forward and backward passes. A saving that did not run shows here and in fill;
- how far the gradient is from the naive objective in float32: one completion at a time, full logits, no padding. TRL's
  has another objective (one threshold per micro-batch, all tokens in the denominator), so that its distance is large
  and no error. In bf16 tokens near the threshold are selected differently, whatever is left out: compare with the row
  that leaves nothing out.

On a GPU each turn begins with a step that is not measured: kernels are compiled in it. `--steps` measures more steps
per turn, and `--time_limit` begins no further round where it would not end in time. `--output` is rewritten after
every turn, so that a run that is cut off keeps what it has measured.

The floor is the same work on rows of equal length: a forward pass over the valid tokens, a forward and backward pass
over those of rows with a gradient, the LM head of the training pass on the selected tokens.
"""

import argparse
import dataclasses
import gc
import os
import statistics
import tempfile
import time
import warnings


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler's remarks
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer, select_tokens, token_entropy
from trl_fork._files import write_json
from trl_fork.trainer.lm_head import row_sparse_head

from .instruments import Clock, GradientError, PeakMemory, count_head_rows


BEGIN = time.perf_counter()
RHO, GENERATIONS = 0.2, 8
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, head dimension, vocabulary, tied
    "tiny": (128, 384, 4, 4, 2, 32, 4096, True),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151936, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128, 151936, True),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151936, True),
}
WORKLOADS = {  # lengths, share of inert groups
    "long tail, 40 % inert": ("lognormal", 0.4),
    "long tail": ("lognormal", 0.0),
    "equal lengths": ("equal", 0.0),
}
BASELINE = "TRL"
VARIANTS = {  # savings that are taken away
    "ours, nothing left out": ("padding", "ordering", "inert_rows", "head_backward", "head_forward"),
    "ours": (),
    "without cut padding": ("padding",),
    "without ordering": ("ordering", "inert_rows"),
    "without inert rows": ("inert_rows",),
    "without sparse head": ("head_backward", "head_forward"),
}


def build_model(options, device):
    hidden, intermediate, layers, heads, key_values, head_dim, vocabulary, tied = SHAPES[options.shape]
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
        initializer_range=0.1 if options.shape == "tiny" else 0.02,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
        if options.shape != "tiny":
            # Entropies of freshly initialised large models are all alike; this spreads them
            torch.nn.init.normal_(model.get_input_embeddings().weight, std=4 / hidden**0.5)
    model = model.to(torch.float32 if device == "cpu" else torch.bfloat16)
    if options.lora:
        # Random in both factors: a zero in the second would make the first one's gradient zero
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, config)
        model.enable_input_require_grads()
    return model


def build_tokenizer(vocabulary):
    # Only ids are used; the words have to exist.
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}, "w2"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


class Rollouts:
    """The same completions and rewards for every variant."""

    def __init__(self, options, lengths, inert):
        generator = torch.Generator().manual_seed(0)
        vocabulary, max_length = SHAPES[options.shape][6], options.max_length
        rows = options.groups * GENERATIONS
        if lengths == "equal":
            sizes = [max_length // 3] * rows
        else:  # a median of an eighth of the longest, sigma 0.8: most are short, a few are cut off
            normal = torch.randn(rows, generator=generator)
            sizes = [min(max(int(max_length / 8 * (0.8 * z).exp()), 4), max_length) for z in normal]
            sizes[0] = max_length
        self.prompts = [
            torch.randint(2, vocabulary, (24,), generator=generator).tolist() for _ in range(options.groups)
        ]
        self.completions = [[*torch.randint(2, vocabulary, (n - 1,), generator=generator).tolist(), 1] for n in sizes]
        live = options.groups - round(options.groups * inert)
        self.rewards = [float(row % 2) if row // GENERATIONS < live else 0.0 for row in range(rows)]
        self.is_live = [row // GENERATIONS < live for row in range(rows)]
        self.num_tokens = sum(sizes)

    def __call__(self, prompts, trainer):
        return {
            "prompt_ids": [self.prompts[row // GENERATIONS] for row in range(len(prompts))],
            "completion_ids": self.completions,
            "logprobs": None,
        }

    def reward(self, completions, **kwargs):
        return self.rewards


# ---------------------------------------------------------------------- what is measured


def run(variant, rollouts, exact, options, device, *, measure_memory):
    """Steps with a learning rate of zero, after one in which memory is measured, or a GPU warms up."""
    warm_up = int(measure_memory or device == "cuda")
    steps = warm_up + options.steps
    ours = variant != BASELINE
    trainer = (ForkingGRPOTrainer if ours else GRPOTrainer)(
        model=build_model(options, device),
        reward_funcs=rollouts.reward,
        args=(ForkingGRPOConfig if ours else GRPOConfig)(
            tempfile.mkdtemp(),
            top_entropy_quantile=RHO,
            epsilon_high=0.28,
            max_steps=steps,
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
        processing_class=build_tokenizer(SHAPES[options.shape][6]),
        rollout_func=rollouts,
    )
    if ours:
        trainer._savings = dataclasses.replace(trainer._savings, **dict.fromkeys(VARIANTS[variant], False))
    seen = {"tokens": 0, "positions": 0}

    def count(module, args, kwargs):
        seen["positions"] += kwargs["attention_mask"].numel()
        seen["tokens"] += kwargs["attention_mask"].sum()  # read after the steps: the GPU is not waited for

    trainer.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    trainer.remove_callback(PrinterCallback)
    clock, memory, error = Clock(device), PeakMemory(device, SHAPES[options.shape][6]), GradientError(exact)
    for callback in (clock, memory, error) if measure_memory else (clock,):
        trainer.add_callback(callback)
    with count_head_rows() as rows:
        trainer.train()
    return {
        **clock.medians(warm_up),
        "memory": memory.peak,
        "memory_with_weights": memory.total,
        "fill": int(seen["tokens"]) / seen["positions"],
        "head_forward": rows["forward"] // steps,
        "head_backward": rows["backward"] // steps,
        "error": error.relative,
    }


def naive_gradient(rollouts, options, device):
    """The objective as it is defined, in float32, one completion at a time."""
    model = build_model(options, device).float()
    model.gradient_checkpointing_enable()
    model.train()  # or nothing would be checkpointed; there is no dropout

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
    trained = [p for p in model.parameters() if p.requires_grad]
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]


def floor(rollouts, options, device):
    """Forward over the valid tokens, forward and backward over those of rows with a gradient, without any padding."""
    prompt, vocabulary = len(rollouts.prompts[0]), SHAPES[options.shape][6]
    model = build_model(options, device)
    model.gradient_checkpointing_enable()
    model.train()
    add_fused_lm_head(model.get_base_model() if options.lora else model, outputs=("log_probs", "entropy"))
    lengths = [prompt + len(completion) for completion in rollouts.completions]
    live = [n for n, is_live in zip(lengths, rollouts.is_live, strict=True) if is_live]

    def rectangles(sizes):
        rows = torch.randint(2, vocabulary, (len(sizes), sum(sizes) // len(sizes)), device=device)
        return rows.split(options.micro_batch)

    def step():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            with torch.no_grad():
                for ids in rectangles(lengths):
                    everything = torch.ones_like(ids[:, prompt:])
                    with row_sparse_head(everything, everything):
                        model(input_ids=ids, labels=ids, fused_lm_head=True)
            for ids in rectangles(live):
                everything = torch.ones_like(ids[:, prompt:])
                wanted = torch.rand(everything.shape, device=device) < RHO
                # As in the trainer: no label for the prompt
                labels = ids.masked_fill(torch.arange(ids.shape[1], device=device) < prompt, -100)
                with row_sparse_head(wanted, everything):
                    model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs.sum().backward()

    clock = Clock(device)
    for _ in range(1 + options.steps):
        model.zero_grad()
        clock.on_step_begin(None, None, None)
        step()
        clock.on_pre_optimizer_step(None, None, None)
    return clock.medians(1)


# ---------------------------------------------------------------------- the table


def measure(workload, options, device, keep=lambda rows: None):
    """Rows of one workload: every variant once per round, and the floor. `keep` gets them after every turn."""
    rollouts = Rollouts(options, *WORKLOADS[workload])
    exact = None if options.skip_gradient_error else naive_gradient(rollouts, options, device)
    variants = [BASELINE, *options.variant, "floor"]
    results = {variant: [] for variant in variants}
    for number in range(options.repeats):
        start = time.perf_counter()
        for variant in variants:
            release(device)
            if variant == "floor":
                result = floor(rollouts, options, device)
            else:
                result = run(variant, rollouts, exact, options, device, measure_memory=number == 0)
            results[variant].append(result)
            keep(summarize(results, workload, rollouts))
        now = time.perf_counter()
        if options.time_limit and now - BEGIN + (now - start) > options.time_limit:
            break
    return summarize(results, workload, rollouts)


def summarize(results, workload, rollouts):
    """Rows of the variants that have had a turn. TRL's is the first of each round: every turn has one beside it."""
    rows = []
    for variant, rounds in results.items():
        if not rounds:
            continue
        seconds = statistics.median(result["seconds"] for result in rounds)

        def ratios(clock, rounds=rounds):
            return [trl[clock] / own[clock] for trl, own in zip(results[BASELINE], rounds, strict=False)]

        rows.append(
            {
                **rounds[0],
                "workload": workload,
                "variant": variant,
                "seconds": seconds,
                "ratio": statistics.median(ratios("seconds")),
                "ratio_range": [min(ratios("seconds")), max(ratios("seconds"))],
                "processor_ratio": statistics.median(ratios("processor_seconds")),
                "tokens_per_second": rollouts.num_tokens / seconds,
                "num_tokens": rollouts.num_tokens,
                "rounds": len(rounds),
            }
        )
    return rows


def release(device):
    gc.collect()  # a trainer is a cycle: until it is collected its model stays
    if device == "cuda":
        torch.cuda.empty_cache()


def print_table(rows, options, device):
    kind = "LoRA, " if options.lora else ""
    title = f"{options.shape} on {device}, {kind}{rows[0]['workload']}: {rows[0]['num_tokens']:,} completion tokens"
    table = Table(title=title)
    measures = (
        "seconds",
        "x TRL",
        "CPU time",
        "peak MiB",
        "tokens/s",
        "fill",
        "head rows fwd / bwd",
        "gradient error",
    )
    for column in ("", *measures):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        measured = "memory" in row  # not of the floor
        table.add_row(
            "  " * row["variant"].startswith("without") + row["variant"],
            f"{row['seconds']:.3f}",
            "{:.2f} ({:.2f} to {:.2f})".format(row["ratio"], *row["ratio_range"]),
            f"{row['processor_ratio']:.2f}",
            f"{row['memory'] / 2**20:,.0f}" if measured else "",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['fill']:.0%}" if measured else "100%",
            f"{row['head_forward']:,} / {row['head_backward']:,}" if measured else "",
            f"{row['error']:.1e}" if row.get("error") is not None else "",
        )
    Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--lora", action="store_true", help="train LoRA adapters of rank 16 on all linear layers")
    parser.add_argument("--workload", choices=list(WORKLOADS), nargs="+", default=list(WORKLOADS))
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="+", default=list(VARIANTS), help="beside TRL")
    parser.add_argument("--groups", type=int, default=10, help="prompts of a step, with 8 completions each")
    parser.add_argument("--micro_batch", type=int, default=8, help="completions of a micro-batch")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of the longest completion")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all variants; medians are reported")
    parser.add_argument("--steps", type=int, default=1, help="measured steps per turn; their median counts")
    parser.add_argument("--time_limit", type=float, help="seconds since the start after which no round should end")
    parser.add_argument(
        "--skip_gradient_error", action="store_true", help="no naive gradient, which takes minutes where rows are long"
    )
    parser.add_argument("--output", help="write the rows to this JSON file, as far as they are measured")
    options = parser.parse_args()
    if options.groups * GENERATIONS % options.micro_batch:
        parser.error(f"--micro_batch must divide the {options.groups * GENERATIONS} completions of a step")
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []

    def keep(latest):
        if options.output:
            result = {
                "options": vars(options),
                "device": device_name(device),
                "torch": torch.__version__,
                "rows": [*rows, *latest],
            }
            write_json(options.output, result)

    for workload in options.workload:
        found = measure(workload, options, device, keep)
        print_table(found, options, device)
        rows += found


def device_name(device):
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
