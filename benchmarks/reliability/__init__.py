"""What a run survives, counted: `python -m benchmarks.reliability` writes the numbers of docs/reliability.md."""
