"""The paper's analyses: which tokens have high entropy, where they stand, and what training changes."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "responses": ["Response", "read_responses"],
        "scoring": ["TokenScores", "score_completions"],
        "statistics": ["change_by_percentile", "distribution", "high_entropy_sum", "overlap"],
    },
)
