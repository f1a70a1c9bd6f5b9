"""
Random numbers that are a hash of their place: the same on any number of processes, and after a resume.

A generator's stream would depend on how many processes draw from it and on how often it was used before.
"""

import torch


def row_hashes(seed: int, name: tuple[int, ...], rows: torch.Tensor) -> torch.Tensor:
    """
    Hashes of rows, from which [`token_hashes`] makes those of their tokens.

    Args:
        seed (`int`): Seed of the run.
        name (`tuple[int, ...]`): Name of the draw within the run, such as the number of a generation batch.
        rows (`torch.LongTensor` of shape `(batch,)`): Numbers of the rows, over all processes.

    Returns:
        `torch.LongTensor` of shape `(batch,)`.
    """
    state = torch.tensor(seed, dtype=torch.int64, device=rows.device)
    for part in name:
        state = splitmix64(state ^ part)
    return splitmix64(state ^ rows)


def token_hashes(rows: torch.Tensor, tokens: torch.Tensor | int) -> torch.Tensor:
    """Hashes of tokens, uniform over the 64-bit integers: of the hashes of their rows and their numbers there."""
    return splitmix64(rows ^ tokens)


def uniforms(hashes: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), float64, from hashes of any shape."""
    return _shifted(hashes, 11).double() * 2.0**-53


def splitmix64(x: torch.Tensor) -> torch.Tensor:
    """The finalizer of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014)."""
    # In wrapping int64
    x = x - 0x61C8864680B583EB  # + 0x9E3779B97F4A7C15 modulo 2**64
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ _shifted(x, 31)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift; torch's >> is arithmetic
