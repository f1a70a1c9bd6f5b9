"""Data sets of problems and answers: loading, checks and prompts."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "benchmarks": ["load_benchmark"],
        "prompt_and_solution": ["to_prompt_and_solution"],
        "rates": ["HierarchicalRates"],
        "training_sets": ["load_training_set"],
    },
)
