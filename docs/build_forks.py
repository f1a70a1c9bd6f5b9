"""
Write what README and docs/analyze.md show of a real language model, from an analysis of its responses.

    python -m docs.build_forks outputs/smollm2_gsm8k  # the numbers, the tables, and the picture
    python -m docs.build_forks                        # the tables again, from docs/forks_smollm2.json

The folder is what `examples/analyze_entropy.py` has written. The picture is a response on its `report.html`, taken by
Chromium: it needs `trl_fork[browser]`.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from docs.marked_text import with_marked_text
from trl_fork.analysis.figures import visible


DOCS = Path(__file__).parent
NUMBERS = DOCS / "forks_smollm2.json"
PICTURE = DOCS / "forks_smollm2.png"
PAGES = (DOCS.parent / "README.md", DOCS / "analyze.md")
NUM_TYPES = 20  # at either end
PAPER = {"fraction_below_0.01": 0.5064, "p80": 0.672}  # Qwen3-8B on AIME24 and AIME25, Fig. 2a


def numbers_of(summary: dict) -> dict:
    """What the pages show of a summary: small enough to be kept."""
    distribution, tokens = summary["distribution"], summary["tokens"]
    return {
        "responses": {name: summary["responses"][name] for name in ("num_responses", "num_problems", "num_correct")},
        "distribution": {
            name: distribution[name] for name in ("num_tokens", "mean", "p50", "p80", "fraction_below_0.01")
        },
        "tokens": {
            "min_count": tokens["min_count"],
            "num_types": tokens["num_types"],
            **{
                end: [{name: entry[name] for name in ("token", "mean_entropy", "count")} for entry in tokens[end]]
                for end in ("top", "bottom")
            },
        },
    }


def render(numbers: dict) -> str:
    """The tables, as Markdown."""
    distribution, responses, tokens = (numbers[name] for name in ("distribution", "responses", "tokens"))
    lines = [
        "| | SmolLM2-135M-Instruct, 4-bit weights | the paper's Qwen3-8B |",
        "| --- | ---: | ---: |",
        f"| Tokens | {distribution['num_tokens']:,} in {responses['num_responses']:,} responses | over 1,000,000 |",
        f"| Tokens below 0.01 nats | {distribution['fraction_below_0.01']:.1%} | {PAPER['fraction_below_0.01']:.1%} |",
        f"| 80th percentile of entropy | {distribution['p80']:.3f} nats | {PAPER['p80']:.3f} nats |",
        f"| Right answers | {responses['num_correct']} of {responses['num_responses']} | |",
        "",
        f"| Mean entropy | of the {tokens['num_types']} token types sampled more than {tokens['min_count']} times |",
        "| --- | --- |",
    ]
    for end, words in (("top", "highest"), ("bottom", "lowest")):
        shown = tokens[end][:NUM_TYPES]
        cells = ", ".join(f"{code(entry['token'])} {entry['mean_entropy']:.2f}" for entry in shown)
        lines.append(f"| {words} | {cells} |")
    return "\n".join(lines)


def code(token: str) -> str:
    text = visible(token).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def with_tables(page: Path, numbers: dict) -> str:
    """The text of a page with its tables as they should be."""
    return with_marked_text(page, "docs/build_forks.py", render(numbers))


def take_picture(report: Path, response: int, path: Path) -> None:
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        # Chromium's sandbox does not work for root, as which containers run.
        browser = driver.chromium.launch(executable_path=executable, chromium_sandbox=os.getuid() != 0)
        # Narrow, so that letters are large where a page shows the picture; the device's pixels make them sharp.
        tab = browser.new_page(viewport={"width": 980, "height": 620}, device_scale_factor=1.6, bypass_csp=True)
        tab.goto(report.resolve().as_uri())
        tab.wait_for_selector("html[data-ready]")
        tab.locator("#list > div").nth(response).click()
        tab.locator("#prompt summary").click()  # closes it: the question is known, and the response is long
        hidden = "header, #summary, nav, .hint { display: none !important } main { display: block !important }"
        tab.add_style_tag(content=hidden)
        tab.locator(".token.fork").last.hover()  # what else could have stood there is shown below the text
        tab.screenshot(path=path)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("analysis", nargs="?", type=Path, help="folder of an analysis")
    parser.add_argument("--response", type=int, default=0, help="the one in the picture, from 0")
    options = parser.parse_args()
    if options.analysis:
        summary = json.loads((options.analysis / "summary.json").read_text())
        NUMBERS.write_text(json.dumps(numbers_of(summary), indent=1, ensure_ascii=False) + "\n")
        take_picture(options.analysis / "report.html", options.response, PICTURE)
    for page in PAGES:
        page.write_text(with_tables(page, json.loads(NUMBERS.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
