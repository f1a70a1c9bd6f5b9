"""
The groups of pages on the site, in their order, by path without `.md` from the root of the checkout.

`Title <path>` shows another title than the page's. A pattern with `*` may match no page.
"""

ROOT_PAGE = "README"  # the start page, whose entry is `self`

NAVIGATION = {
    "Start": [
        "Quickstart and results <self>",
        "All pages <docs/README>",
        "Concepts <docs/concepts>",
        "docs/which_tool*",
        "docs/coming_from_*",
    ],
    "Token credit": ["Overview <docs/credit>", "docs/which_tokens", "docs/how_much", "docs/when"],
    "Objectives": ["Trajectory balance <docs/trajectory_balance>", "Partition functions <docs/partition>"],
    "Looped models": ["docs/looped"],
    "Teams": ["docs/teams", "Equilibria <docs/equilibria>"],
    "How to": [
        "docs/train",
        "Recipes and launch files <configs/README>",
        "docs/evaluate",
        "Compare runs <docs/compare>",
        "Analyze <docs/analyze>",
        "docs/adapters",
        "Resume <docs/resume>",
        "docs/hub",
        "Distributed <docs/distributed>",
        "docs/dynamic_sampling",
        "docs/grading",
        "docs/forecasting",
        "Metrics <docs/metrics>",
    ],
    "Engines": ["docs/generation", "docs/vllm", "docs/gpu"],
    "Cost": ["docs/cost", "docs/reliability*"],
    "Studies": [
        "Which 20 %? <docs/study>",
        "Distribution matching <docs/distribution_matching>",
        "docs/*smollm2*",
        "docs/*rules*",
    ],
    "Reference": ["docs/api", "Changelog <CHANGELOG>"],
    "Carry on": ["CONTRIBUTING", "SECURITY*", "CODE_OF_CONDUCT*"],
}
