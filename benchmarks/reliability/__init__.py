"""What a run survives, counted: `python -m benchmarks.reliability` writes the numbers of docs/reliability.md."""

from .options import parse_arguments


__all__ = ["parse_arguments"]
