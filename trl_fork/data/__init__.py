"""Data sets of problems and answers: loading, checks and prompts."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "loading": ["load_benchmark", "load_training_set", "to_prompt_and_solution"],
        "rates": ["HierarchicalRates"],
    },
)
