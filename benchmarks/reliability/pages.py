"""
Hostile text in all that a person looks at: pages of forks, model cards, tables of a console.

Texts are drawn from pieces that open tags, leave attributes, end scripts, fill templates, or command a terminal.
Pages and rendered cards are opened in a headless Chromium, where nothing may run and nothing may be asked for; a token
must show the text itself.
"""

import io
import json
import random
from pathlib import Path
from types import SimpleNamespace

from tests.browser import chromium, find_chromium, watched_tab
from tests.conftest import build_tokenizer
from tests.report.test_report_page import HOSTILE, SVG
from trl_fork import ForkingGRPOConfig
from trl_fork.credit import build_credit
from trl_fork.report.marks import completions_table
from trl_fork.report.page import ReportResponse, write_report_page
from trl_fork.trainer.model_card import build_model_card


PIECES = (
    *(text for text in HOSTILE if "\ud800" not in text),
    "<iframe src=http://127.0.0.1:9/a></iframe>",
    "<link rel=stylesheet href=http://127.0.0.1:9/b>",
    "<img src=http://127.0.0.1:9/c>",
    "![d](http://127.0.0.1:9/d)",
    "[e](javascript:alert(6))",
    "<svg onload=alert(7)>",
    "javascript:alert(8)",
    "' onmouseover='alert(9)",
    '" autofocus onfocus="alert(10)',
    "</style><style>@import 'http://127.0.0.1:9/f'</style>",
    "```\n<script>alert(11)</script>\n```",
    "| x | `<script>alert(12)</script>` |",
    "`` <img src=x onerror=alert(13)> ``",
    "\x1b[2J\x1b]0;owned\x07",
    "\x1b]8;;http://127.0.0.1:9/g\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m\r\x08\x00",
    "[red]rich[/red] [link=http://127.0.0.1:9/h]markup[/link]",
    "---\ntags: [owned]\n---",
    "\u202etxt.exe\u202c",
)


def draw(generator: random.Random) -> str:
    return "".join(generator.choice(PIECES) for _ in range(generator.randint(1, 4)))


def fork_page(texts: list[str], path: Path) -> None:
    """A page of forks whose every text is one of `texts`."""

    def response(number: int) -> ReportResponse:
        count = len(texts)
        return ReportResponse(
            prompt=texts[number],
            tokens=texts,
            entropies=[0.1 * i for i in range(count)],
            probabilities=[0.5] * count,
            alternatives=[[(text, 0.5), (f"{text}!", 0.25)] for text in texts],
            correct=False,
            label=texts[-1 - number],
        )

    figures, summary = [(texts[0], SVG)], {texts[1 % len(texts)]: {texts[0]: texts[-1]}, "n": 3}
    write_report_page(
        path, iter([response(0), response(len(texts) - 1)]), title=texts[0], figures=figures, summary=summary
    )


def look_at_page(browser, path: Path, texts: list[str]) -> list[str]:
    """What is wrong with a page in the browser."""
    context = browser.new_context()
    try:
        tab = watched_tab(context)
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        tab.locator("#list > div").nth(1).click()
        tab.locator(".token").nth(len(texts) - 1).wait_for(state="attached")
        tokens = tab.locator(".token")
        for number in range(min(3, len(texts))):
            tokens.nth(number).focus()
        shown = tokens.all_text_contents()
        wrong = [f"token {n} shows {s!r}" for n, (s, t) in enumerate(zip(shown, texts, strict=True)) if s != t]
        return wrong + what_ran(tab)
    finally:
        context.close()


def what_ran(tab) -> list[str]:
    wrong = [f"a dialog: {text}" for text in tab.dialogs] + [f"an error: {text}" for text in tab.errors]
    return wrong + [f"a request: {url}" for url in tab.requests if not url.startswith(("file:", "data:"))]


def card_of(texts: list[str], folder: Path) -> str:
    """A model card with hostile names, prompts, settings and results."""
    folder.mkdir(parents=True)
    from trl_fork.data.prompt_file import save_prompt

    save_prompt(folder, {"instruction": "{question} " + texts[0]}, chat_template_kwargs=None, generation_kwargs=None)
    (folder / "results.json").write_text(
        json.dumps({texts[1 % len(texts)]: {"num_problems": 3, f"avg@4 {texts[0]}": 0.5}})
    )
    args = ForkingGRPOConfig(
        str(folder), use_cpu=True, bf16=False, token_credit="gcpo", contrast_instruction=texts[-1], report_to="none"
    )
    chain = build_credit([{"span": {"pattern": r"(?s)<script>alert\(14\)</script>.*`|<img src=x onerror=alert(15)>"}}])
    card = build_model_card(
        args, chain, model_name=texts[0], repo_id="tester/forks", base_model=None, datasets=[], tags=["trl"],
        is_adapter=False, has_chat_template=True, steps=3,
    )  # fmt: skip
    return str(card)


def look_at_card(browser, card: str, path: Path) -> list[str]:
    """The card as a renderer of Markdown that lets all HTML through would show it: the Hub's lets less through."""
    import yaml
    from markdown_it import MarkdownIt

    _, head, body = card.split("---\n", 2)
    wrong = [] if yaml.safe_load(head)["tags"] == ["generated_from_trainer", "trl"] else ["other metadata"]
    path.write_text(
        f"<meta charset=utf-8>{MarkdownIt('commonmark', {'html': True}).enable('table').render(body)}", "utf-8"
    )
    context = browser.new_context()
    try:
        tab = watched_tab(context)
        tab.goto(path.as_uri())
        tab.wait_for_load_state("networkidle")
        return wrong + what_ran(tab)
    finally:
        context.close()


def look_at_console(texts: list[str]) -> list[str]:
    """A table of completions on a terminal: no control character but rich's own colours and the ends of lines."""
    from rich.console import Console

    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=240, color_system=None)
    columns = {texts[0]: [1.0] * len(texts), "name": texts}
    console.print(completions_table(build_tokenizer(), texts, texts, columns, title="Step 1"))
    printed = output.getvalue()
    # Without colours, bold and italic of the heading are what rich itself writes.
    for own in ("\x1b[1m", "\x1b[3m", "\x1b[0m"):
        printed = printed.replace(own, "")
    found = {f"{ord(c):#04x}" for c in printed if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160}
    wrong = [f"control characters {sorted(found)}"] if found else []
    if any("[red]" in text for text in texts) and "[red]" not in printed.replace("\n", ""):
        wrong.append("markup of rich was obeyed")
    return wrong


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """`number` pages, cards and tables, see [`parts`]."""
    if find_chromium() is None:
        raise RuntimeError("this part needs Chromium (`apt-get install chromium`)")
    try:
        import playwright.sync_api
    except ImportError:
        raise RuntimeError("this part needs the extra `browser`") from None
    found = {kind: {"number": 0, "texts": 0, "wrong": []} for kind in ("page", "card", "console")}
    generator = random.Random(seed)
    with chromium(playwright.sync_api) as browser:
        for index in range(number):
            texts = [draw(generator) for _ in range(8)]
            kind = tuple(found)[index % 3]
            if kind == "page":
                path = folder / f"{index}.html"
                fork_page(texts, path)
                wrong = look_at_page(browser, path, texts)
            elif kind == "card":
                wrong = look_at_card(browser, card_of(texts, folder / str(index)), folder / f"card-{index}.html")
            else:
                wrong = look_at_console(texts)
            found[kind]["number"] += 1
            found[kind]["texts"] += len(texts)
            found[kind]["wrong"] += [{"index": index, "what": text[:300]} for text in wrong[:3]]
            if (index + 1) % 12 == 0 or index + 1 == number:
                progress(f"{index + 1}/{number}, {sum(len(k['wrong']) for k in found.values())} found wrong", found)
        guard = browser.new_page()  # that the browser would have told
        told = SimpleNamespace(dialogs=[])
        guard.on("dialog", lambda dialog: (told.dialogs.append(dialog.message), dialog.dismiss()))
        guard.set_content("<script>alert(1)</script>")
    return found | {"the_browser_would_tell": told.dialogs == ["1"]}


def summary(found: dict) -> str:
    kinds = [kind for kind in found if isinstance(found[kind], dict)]
    wrong = sum(len(found[kind]["wrong"]) for kind in kinds)
    counts = ", ".join(f"{found[kind]['number']} of kind {kind}" for kind in kinds)
    return f"{counts}: {wrong} things ran, asked for something, or were not shown as the text that they are"
