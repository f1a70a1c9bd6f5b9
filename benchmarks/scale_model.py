"""
How long the parts of an RL step take on H100s, on paper: pure functions of shapes, lengths and assumptions.

All times are seconds, all lengths tokens of one row, its prompt included. Nothing is measured.
"""

import heapq
from dataclasses import dataclass


# An H100 SXM, from NVIDIA's data sheet: dense bf16, HBM3, NVLink in one direction; and, as in a DGX H100, one adapter
# of 400 Gbit/s per card.
PEAK_OPERATIONS = 989.4e12
PEAK_BANDWIDTH = 3.35e12
NVLINK = 450e9
NETWORK = 50e9
CARDS_OF_A_NODE = 8
CARD_MEMORY = 80e9

# Assumptions. `scale_check.py` holds the first two against a step of another trainer, whose times are published.
UTILISATION = 0.4  # of the peak operations, in prefill, scoring and training
DECODE_SHARE = 0.6  # of the peak bandwidth, in decoding: launches, scheduling and sampling included
LINK_SHARE = 0.8  # of a link, in collectives of large messages
ALL_REDUCE = 15e-6  # seconds of a small all-reduce over NVLink: two per layer and decode step with tensor parallelism
ENGINE_MEMORY = 0.6  # of a card, for vLLM's weights and cache: `gpu_memory_utilization` of the published step


@dataclass(frozen=True)
class Shape:
    """A dense decoder, by its published configuration."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    head_dim: int = 128

    @property
    def decoder(self) -> int:
        """Parameters of the matrices of all layers."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.key_value_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """With the embedding, which is not tied to the head in these sizes."""
        return self.decoder + 2 * self.head

    @property
    def cache_bytes(self) -> int:
        """Keys and values of a token in bf16."""
        return 2 * 2 * self.layers * self.key_value_heads * self.head_dim


QWEN3_8B = Shape("Qwen3-8B", 4096, 12288, 36, 32, 8, 151936)
QWEN3_32B = Shape("Qwen3-32B", 5120, 25600, 64, 64, 8, 151936)
LLAMA_8B = Shape("Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128256)


def forward_operations(shape: Shape, length: float, head_share: float = 1.0) -> float:
    """Operations of a causal forward pass over a row, with the head on this share of its tokens."""
    matrices = 2 * (shape.decoder + head_share * shape.head) * length
    attention = 2 * shape.layers * shape.heads * shape.head_dim * length**2  # half of the square
    return matrices + attention


def training_operations(shape: Shape, length: float, *, recompute: bool, head_share: float = 1.0) -> float:
    """Forward and a backward pass of twice the work; with checkpointing the layers' forward once more."""
    forward = forward_operations(shape, length, head_share)
    return 3 * forward + recompute * forward_operations(shape, length, 0.0)


def compute_seconds(operations: float) -> float:
    """On one card."""
    return operations / (UTILISATION * PEAK_OPERATIONS)


def link(cards: int) -> float:
    """Bytes a second that one card exchanges with the others."""
    return LINK_SHARE * (NVLINK if cards <= CARDS_OF_A_NODE else NETWORK)


def gather_seconds(shape: Shape, cards: int) -> float:
    """ZeRO-3: the weights in bf16 from all cards to each, or gradients of this size back. Once a pass."""
    return 2 * shape.parameters * (cards - 1) / cards / link(cards)


def decode_seconds(
    shape: Shape, prompt: int, completions: list[int], *, tensor_parallel: int = 1, share: float = DECODE_SHARE
) -> float:
    """
    Decoding rows on one engine, as many at a time as it has memory for: TRL asks vLLM for no other limit.

    A step reads the weights once and the cache of all rows that are there; or it is bound by its operations. Between
    two ends of rows nothing changes but the lengths, so that the steps in between are summed in one go.

    Args:
        prompt (`int`): Tokens of every prompt, which is in the cache.
        completions (`list[int]`): Tokens of each completion.
        tensor_parallel (`int`): Cards of the engine.
        share (`float`): Share of the bandwidth that decoding reaches.
    """
    bandwidth = share * PEAK_BANDWIDTH * tensor_parallel
    operations = UTILISATION * PEAK_OPERATIONS * tensor_parallel
    weights = 2 * (shape.decoder + shape.head)
    free = ENGINE_MEMORY * CARD_MEMORY * tensor_parallel - 2 * shape.parameters
    if free <= 0:
        raise ValueError(f"{shape.name} does not fit into {tensor_parallel} card(s): pass more tensor_parallel")
    row = shape.cache_bytes * (prompt + sum(completions) / len(completions))
    slots = max(1, int(free / row))
    waiting = list(reversed(completions))
    running: list[tuple[int, int]] = []  # the step at which a row ends, and that at which it began
    seconds, now = 0.0, 0
    while waiting or running:
        while waiting and len(running) < slots:
            heapq.heappush(running, (now + waiting.pop(), now))
        steps = running[0][0] - now
        cached = sum(prompt + now - begun for _, begun in running)
        read = steps * weights + shape.cache_bytes * (steps * cached + len(running) * steps * (steps - 1) / 2)
        work = steps * len(running) * 2 * (shape.decoder + shape.head)
        exchange = steps * 2 * shape.layers * ALL_REDUCE * (tensor_parallel > 1)
        seconds += max(read / bandwidth, work / operations) + exchange
        now += steps
        while running and running[0][0] == now:
            heapq.heappop(running)
    return seconds


def prefill_seconds(shape: Shape, prompt: int, prompts: float) -> float:
    """Reading so many different prompts on one card; completions of a group share theirs."""
    return compute_seconds(prompts * forward_operations(shape, prompt, 0.0))


def state_bytes(shape: Shape, cards: int) -> float:
    """Weights, gradients and AdamW under ZeRO-3 on each card: 16 bytes a parameter in all."""
    return 16 * shape.parameters / cards
