"""
Could the forking tokens be found while generating? Entropies of generation against those of the scoring pass.

    python -m benchmarks.generation_entropies                      # random weights
    python -m benchmarks.generation_entropies --warmed_up DIR      # the quickstart's model, made in DIR if missing

Plain `generate` has every logit in hand when it samples. A logits processor that writes down the entropy of
`logits / temperature`, before top-k and top-p, costs one float per token, and would save the scoring pass where TRL
needs no old log-probabilities either. But the numbers differ: generation reads a cache, one position at a time, among
other rows, so that sums are rounded otherwise. Printed per precision: how far the entropies are apart, and how many of
the top 20 % are other tokens than those of the scoring pass. For comparison, the same between two scoring passes that
only differ in their number of rows, and in nothing that a user would think of.

The last column is what the scoring pass costs and what the recorder does; `whole_step.py` has the share of a step.
"""

import argparse
import os
import random
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from datasets import Dataset
from transformers import LogitsProcessor, Qwen3Config, Qwen3ForCausalLM

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer, select_tokens, token_entropy

from .workload import build_tokenizer


RHO, ROWS, LENGTH = 0.2, 64, 96
PRECISIONS = {  # weights, and whether TRL trains in bf16: it scores under autocast, and generates without
    "fp32": (torch.float32, False),
    "bf16 weights": (torch.bfloat16, True),
    "fp32 weights, bf16 training": (torch.float32, True),
}
COLUMNS = "{:<28} {:>7} {:>18} {:>17} {:>21} {:>17}"


class EntropyRecorder(LogitsProcessor):
    """Entropies of the distributions that tokens are drawn from: one float32 per row and step."""

    def __init__(self, temperature):
        self.temperature, self.columns, self.seconds = temperature, [], 0.0

    def __call__(self, input_ids, scores):
        start = now()
        self.columns.append(token_entropy(scores, self.temperature))
        self.seconds += now() - start
        return scores


def now():
    """Processor seconds, which other work on the machine hardly changes; on a GPU the wall clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def random_model(dtype):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        tie_word_embeddings=False,
        initializer_range=0.35,  # spreads the entropies
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).to(dtype), build_tokenizer(config.vocab_size)


def random_prompts(tokenizer):
    """4 to 40 tokens, so that most rows are padded on the left."""
    rng = random.Random(0)
    return [[rng.randrange(2, len(tokenizer)) for _ in range(rng.randint(4, 40))] for _ in range(ROWS)]


def warmed_up_model(path, dtype):
    from transformers import AutoTokenizer

    from trl_fork.commands import quickstart

    if not path.exists():
        quickstart.warm_up(path, 42, random.Random(42))
    return Qwen3ForCausalLM.from_pretrained(path, dtype=dtype), AutoTokenizer.from_pretrained(path)


def sum_prompts(tokenizer):
    from trl_fork.commands import quickstart
    from trl_fork.tasks import digit_sums

    problems = digit_sums.training_problems(ROWS, random.Random(0))
    template = partial(tokenizer.apply_chat_template, add_generation_prompt=True, return_dict=True)
    return [template(quickstart.conversation(problem))["input_ids"] for problem in problems]


def measure(model, tokenizer, prompts, bf16):
    trainer = ForkingGRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=ForkingGRPOConfig(
            tempfile.mkdtemp(),
            max_completion_length=LENGTH,
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w2"]}),
        processing_class=tokenizer,
    )
    device = trainer.accelerator.device
    recorder = EntropyRecorder(trainer.temperature)
    plain_generate = trainer.model.generate
    trainer.model.generate = partial(plain_generate, logits_processor=[recorder])
    completions, _ = trainer._generate_single_turn(prompts, None, {}, 1)

    def pad(sequences, left):
        width = max(map(len, sequences))
        rows = [[0] * (width - len(s)) * left + list(s) + [0] * (width - len(s)) * (not left) for s in sequences]
        masks = [[0] * (width - len(s)) * left + [1] * len(s) + [0] * (width - len(s)) * (not left) for s in sequences]
        return torch.tensor(rows, device=device), torch.tensor(masks, device=device)

    (prompt_ids, prompt_mask), (ids, mask) = pad(prompts, True), pad(completions, False)
    generated = torch.stack(recorder.columns, dim=1)[:, : ids.shape[1]]

    def score(batch_size):
        with torch.no_grad():
            _, entropies, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([prompt_ids, ids], 1),
                torch.cat([prompt_mask, mask], 1),
                ids.shape[1],
                batch_size=batch_size,
                compute_entropy=True,
            )
        return entropies

    start = now()
    scored = score(8)
    seconds = f"{now() - start:.2f} s, {recorder.seconds:.2f} s"
    reference = select_tokens(scored, mask, RHO)

    def compare(entropies):
        selected = select_tokens(entropies, mask, RHO)
        changed = (reference & ~selected).sum() / reference.sum()
        return f"{(entropies - scored)[mask.bool()].abs().mean():.1e}, {changed:.2%}"

    return int(mask.sum()), scored[mask.bool()], compare(generated), compare(score(2)), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmed_up", type=Path, help="directory of the quickstart's model before RL")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    titles = ("tokens", "p5 / p80 / p95", "generation", "scored 2 rows, not 8", "scoring, recorder")
    print(COLUMNS.format("mean difference, changed", *titles))
    for name, (dtype, bf16) in PRECISIONS.items():
        if options.warmed_up:
            model, tokenizer = warmed_up_model(options.warmed_up, dtype)
            prompts = sum_prompts(tokenizer)
        else:
            model, tokenizer = random_model(dtype)
            prompts = random_prompts(tokenizer)
        torch.manual_seed(0)
        tokens, entropies, *results = measure(model, tokenizer, prompts, bf16)
        quantiles = " / ".join(f"{q:.2f}" for q in entropies.quantile(torch.tensor([0.05, 0.8, 0.95])).tolist())
        print(COLUMNS.format(name, tokens, quantiles, *results), flush=True)


if __name__ == "__main__":
    main()
