"""Pictures and pages: training curves, and completions with their forking tokens marked."""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "curves": ["plot_training"],
        "marks": ["highlight_tokens"],
        "page": ["ReportResponse", "write_report_page"],
        "page_responses": ["score_response"],
    },
)
