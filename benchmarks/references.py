"""What `step.py` holds a training step against: the exact gradient, and the least work."""

from contextlib import nullcontext

import torch
from trl.trainer.utils import add_fused_lm_head

from trl_fork import select_tokens, token_entropy
from trl_fork.trainer.lm_head import row_sparse_head

from .instruments import Clock
from .workload import GENERATIONS, RHO, SHAPES, build_model


def naive_gradient(rollouts, options, device):
    """The objective as it is defined, in float32, one completion at a time."""
    model = build_model(options.shape, device, lora=options.lora).float()
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


def floor_step(rollouts, options, device, phase=lambda name: nullcontext()):
    """
    The least work of a step, to be called: forward over the valid tokens, forward and backward over those of rows with
    a gradient, without any padding.

    Args:
        phase (`Callable`): `phase("scoring")` and `phase("training")` are entered around the two.
    """
    prompt, vocabulary = len(rollouts.prompts[0]), SHAPES[options.shape][6]
    model = build_model(options.shape, device, lora=options.lora)
    model.gradient_checkpointing_enable()
    model.train()
    add_fused_lm_head(model.get_base_model() if options.lora else model, outputs=("log_probs", "entropy"))
    lengths = [prompt + len(completion) for completion in rollouts.completions]
    live = [n for n, is_live in zip(lengths, rollouts.is_live, strict=True) if is_live]

    def rectangles(sizes):
        rows = torch.randint(2, vocabulary, (len(sizes), sum(sizes) // len(sizes)), device=device)
        return rows.split(options.micro_batch)

    def score():
        with torch.no_grad():
            for ids in rectangles(lengths):
                everything = torch.ones_like(ids[:, prompt:])
                with row_sparse_head(everything, everything):
                    model(input_ids=ids, labels=ids, fused_lm_head=True)

    def train():
        for ids in rectangles(live):
            everything = torch.ones_like(ids[:, prompt:])
            wanted = torch.rand(everything.shape, device=device) < RHO
            # As in the trainer: no label for the prompt
            labels = ids.masked_fill(torch.arange(ids.shape[1], device=device) < prompt, -100)
            with row_sparse_head(wanted, everything):
                model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs.sum().backward()

    def step():
        model.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            with phase("scoring"):
                score()
            with phase("training"):
                train()

    return step


def floor(rollouts, options, device):
    """Seconds of [`floor_step`]."""
    step, clock = floor_step(rollouts, options, device), Clock(device)
    for _ in range(1 + options.steps):
        clock.on_step_begin(None, None, None)
        step()
        clock.on_pre_optimizer_step(None, None, None)
    return clock.medians(1)
