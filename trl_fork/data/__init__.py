"""Data sets of problems and answers: read, checked and turned into prompts."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "loading": ["load_benchmark", "load_training_set", "to_prompt_and_solution"],
    },
)
