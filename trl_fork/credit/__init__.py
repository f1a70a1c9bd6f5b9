"""Which tokens, with what weight, and when: pure functions of tensors."""

from .selection import select_tokens


__all__ = ["select_tokens"]
