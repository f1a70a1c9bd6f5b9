"""The page: what is in the file, and what a reader sees of it in a real browser, hostile text included."""

import base64
import json
import math
import os
import re
import zlib
from collections import defaultdict
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.browser import chromium, find_chromium, watched_tab
from trl_fork.report.page import ReportResponse, write_report_page


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "]]>",
    "<img src=x onerror=alert(3)>",
    "&lt;b&gt;",
    "\"'`${alert(4)}",
    "\u2028\u2029",
    "\u202e\ufffd\ud800",
    "{{ data }}{% for x in (1, 2) %}{# {{ 7 * 7 }} #}",
]
# Three tokens of which the browser's choice can be predicted at each threshold, and every whitespace.
PLAIN = ReportResponse(
    prompt="Why?",
    tokens=["So", " it", "\n", " is", "\t", "", " x" * 30],
    entropies=[1.5, 0.25, 0.5, 2.0, 0.125, 0.0, 0.75],
    probabilities=[0.5, 0.9, 0.75, 0.01, 1.0, 1e-9, 0.0],
    alternatives=[[("So", 0.5), ("But", 0.3)], [(" it", 0.9)], [], [(" was", 0.6), (" may", 0.2)], [], [], []],
    correct=True,
    label="problem 0",
)
EVIL = ReportResponse(
    prompt="".join(HOSTILE),
    tokens=HOSTILE,
    entropies=[0.1 * i for i in range(len(HOSTILE))],
    probabilities=[0.5] * len(HOSTILE),
    alternatives=[[(text, 0.5), (f"{text}!", 0.25)] for text in HOSTILE],
    correct=False,
    label=HOSTILE[1],
)
SVG = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 2 2'><rect width='2' height='2'/>"
    "<script>alert(5)</script></svg>"
)


# A token without weight, one of each quarter of the largest, and one that is nearly nothing.
WEIGHTS = [1.0, 0.0, 2.0, 3.0, 4.0, 2e-9, 0.5]


class Scripts(HTMLParser):
    """What a parser finds between script tags, every tag and attribute, and the text after each tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.tag, self.texts, self.attributes = None, defaultdict(list), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.tag = tag
        self.texts[tag].append("")
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag == "script":
            self.scripts.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"
        self.tag = None

    def handle_data(self, data):
        if self.tag is not None:
            self.texts[self.tag][-1] += data
        if self.inside:
            self.scripts[-1] += data


def read(path):
    """The data of a page, decoded without its script."""
    data = json.loads(Scripts(path.read_text("utf-8")).scripts[0])

    def unpack(text):
        return zlib.decompress(base64.b64decode(text))

    entropies = np.frombuffer(unpack(data["entropies"]), "<f4")
    responses, start = [], 0
    for entry in data["responses"]:
        length, columns = entry["length"], 1 + entry["alternatives"]
        content = unpack(entry["data"])
        tokens = np.frombuffer(content[: 4 * columns * length], "<u4").reshape(columns, length)
        codes = np.frombuffer(content[4 * columns * length :], "<u2").reshape(columns, length)
        names = [[data["vocabulary"][i] if i < 2**32 - 1 else None for i in column] for column in tokens]
        probabilities = np.exp(codes / -1000.0)
        responses.append((entry, names, probabilities, entropies[start : start + length]))
        start += length
    return data, responses


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "deep" / "page.html"
    write_report_page(
        path,
        iter([PLAIN, EVIL]),
        title=HOSTILE[0],
        figures=[(HOSTILE[1], SVG)],
        summary={"accuracy": 2 / 3, "tokens": {HOSTILE[0]: HOSTILE[1]}},
    )
    return path


def test_file_holds_what_was_given(page):
    data, responses = read(page)
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    for response, (entry, names, probabilities, entropies) in zip([PLAIN, EVIL], responses, strict=True):
        assert (entry["prompt"], entry["label"], entry["correct"]) == (
            response.prompt,
            response.label,
            response.correct,
        )
        assert names[0] == response.tokens
        np.testing.assert_array_equal(entropies, np.float32(response.entropies))
        np.testing.assert_allclose(probabilities[0], response.probabilities, rtol=5.1e-4, atol=1e-28)
        for position, alternatives in enumerate(response.alternatives):
            found = [
                (column[position], values[position])
                for column, values in zip(names[1:], probabilities[1:], strict=True)
            ]
            found = [(name, value) for name, value in found if name is not None]
            assert [name for name, _ in found] == [name for name, _ in alternatives]
            assert [value for _, value in found] == pytest.approx([value for _, value in alternatives], rel=5.1e-4)
    entropies = sorted(np.float32(PLAIN.entropies + EVIL.entropies), reverse=True)
    assert data["threshold"] == entropies[math.ceil(0.2 * len(entropies)) - 1]


def test_hostile_text_opens_no_tag(page, tmp_path):
    write_report_page(tmp_path / "tame.html", [PLAIN], title="t", figures=[("f", SVG)], summary={"a": 1, "b": 2})
    assert Scripts(page.read_text("utf-8")).tags == Scripts((tmp_path / "tame.html").read_text("utf-8")).tags


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text])
def test_hostile_text_is_shown_as_it_is(text, tmp_path):
    """In every place that is filled in: neither markup, nor a name of the template, nor escaped twice."""
    write_report_page(
        tmp_path / "page.html", [PLAIN], title=text, figures=[(text, SVG)], summary={text: {text: text}, "n": 3}
    )
    found = Scripts((tmp_path / "page.html").read_text("utf-8"))
    for tag in ("title", "h1", "figcaption"):
        assert found.texts[tag] == [text], tag
    assert found.texts["dt"] == [f"{text}, {text}", "n"] and found.texts["dd"] == [text, "3"]
    assert ("img", "alt", text) in found.attributes


def test_policy_allows_the_page_alone(page):
    content = page.read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content)[1]
    assert "default-src 'none'" in policy
    # A browser hashes what stands between the tags, to the byte.
    (style,) = re.findall(r"<style>(.*?)</style>", content, flags=re.DOTALL)
    script = Scripts(content).scripts[-1]
    for directive, inline in (("style", style), ("script", script)):
        digest = base64.b64encode(sha256(inline.encode()).digest()).decode()
        assert f"{directive}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entropies": [1.0]}, "entropies must be one per token: got 1 for 7"),
        ({"probabilities": [0.5] * 8}, "probabilities must be one per token: got 8 for 7"),
        ({"entropies": [float("nan")] * 7}, "finite"),
        ({"entropies": [-1.0] * 7}, "not negative"),
        ({"probabilities": [1.5] * 7}, r"in \[0, 1\]"),
        ({"alternatives": [[("a", float("nan"))]] * 7}, r"in \[0, 1\]"),
        ({"weights": [1.0] * 7}, "weights must be given for all responses or for none, and those before it have none"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_its_number(change, message, tmp_path):
    wrong = ReportResponse(**{**vars(PLAIN), **change})
    with pytest.raises(ValueError, match=rf"Response 2 \('problem 0'\): .*{message}"):
        write_report_page(tmp_path / "page.html", [PLAIN, wrong], title="t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 6, "weights must be one per token: got 6 for 7"),
        ([1.0] * 6 + [-0.5], "weights must be finite and not negative"),
        ([1.0] * 6 + [float("inf")], "weights must be finite and not negative"),
        (None, "weights must be given for all responses or for none, and those before it have weights"),
    ],
)
def test_weights_that_cannot_be_shown_are_refused(weights, message, tmp_path):
    responses = [replace(PLAIN, weights=[1.0] * 7), replace(PLAIN, weights=weights)]
    with pytest.raises(ValueError, match=rf"Response 2 \('problem 0'\): {message}"):
        write_report_page(tmp_path / "page.html", responses, title="t")


def test_file_holds_the_weights(tmp_path):
    evil = replace(EVIL, weights=[0.0] * len(HOSTILE))
    write_report_page(tmp_path / "page.html", [replace(PLAIN, weights=WEIGHTS), evil], title="t")
    data, _ = read(tmp_path / "page.html")
    weights = np.frombuffer(zlib.decompress(base64.b64decode(data["weights"])), "<f4")
    np.testing.assert_array_equal(weights, np.float32(WEIGHTS + evil.weights))


def test_fraction_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 20"):
        write_report_page(tmp_path / "page.html", [PLAIN], title="t", fraction=20)


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        assert not os.environ.get("REQUIRE_BROWSER"), "REQUIRE_BROWSER is set, and there is no Chromium on PATH"
        pytest.skip("no Chromium")
    with chromium(
        pytest.importorskip("playwright.sync_api", reason="needs trl_fork[browser]: make test-extras")
    ) as browser:
        yield browser


@pytest.fixture
def open_page(browser):
    contexts = []

    def open_page(path, **settings):
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 800}, **settings))
        tab = watched_tab(contexts[-1])
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield open_page
    for context in contexts:
        context.close()


def forks(tab):
    return tab.locator(".token.fork").evaluate_all("spans => spans.map(span => Number(span.dataset.position))")


def set_slider(tab, percent):
    tab.locator("#fraction").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", percent
    )


def test_hostile_text_is_text(page, open_page):
    tab = open_page(page)
    tab.locator("#list > div").nth(1).click()
    tab.locator(".token").nth(9).wait_for(state="attached")  # a function to wait for would need `eval`
    shown = [text.replace("\ufffd\ufffd", "\ufffd\ud800") for text in tab.locator(".token").all_text_contents()]
    assert shown == HOSTILE
    for number in range(len(HOSTILE)):
        tab.locator(".token").nth(number).focus()
        assert tab.locator("#card li").count() == 2
    assert tab.locator("h1").text_content() == HOSTILE[0] == tab.title()
    assert tab.locator("h2").text_content() == HOSTILE[1]
    assert tab.locator("figcaption").text_content() == HOSTILE[1]
    assert tab.locator("#prompt .text").text_content().startswith("".join(HOSTILE[:7]))
    assert tab.locator("#summary dt").all_text_contents() == ["accuracy", f"tokens, {HOSTILE[0]}"]
    assert tab.locator("#summary dd").all_text_contents() == ["0.6667", HOSTILE[1]]
    assert tab.locator("figure img").evaluate("image => image.complete && image.naturalWidth > 0")
    assert tab.locator("script").count() == 2
    assert (tab.dialogs, tab.errors) == ([], [])
    assert all(url.startswith(("file:", "data:")) for url in tab.requests)


def test_policy_stops_what_would_get_in(page, open_page):
    """The second line of defence: without it, this test's own markup would run."""
    tab = open_page(page)
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)>')")
    tab.wait_for_timeout(200)
    assert tab.dialogs == []
    assert any("Content Security Policy" in message for message in tab.errors)


def test_token_tells_of_itself(page, open_page):
    tab = open_page(page)
    card = tab.locator("#card")
    assert card.is_hidden()
    tab.locator(".token").nth(3).hover()
    text = card.inner_text()
    assert "·is" in text and "4 of 7" in text and "2.000 nats, forking" in text
    rows = [row.split() for row in card.locator("li").all_inner_texts()]
    assert rows == [["·was", "60.0", "%"], ["·may", "20.0", "%"], ["·is", "1.0", "%"]], "the drawn one is the last"
    assert card.locator("li.drawn").inner_text().startswith("·is")
    widths = card.locator(".bar").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.02)
    tab.locator(".token").nth(1).hover()
    assert "0.250 nats\n" in card.inner_text() and "90.0 %" in card.inner_text()
    tab.locator("h1").hover()
    assert card.is_hidden()


def test_whitespace_can_be_seen_and_copied(page, open_page):
    tab = open_page(page)
    marks = tab.locator(".mark").evaluate_all("marks => marks.map(mark => getComputedStyle(mark, '::before').content)")
    assert marks == ['"↵"', '"⇥"', '"∅"']
    assert tab.locator("#response").text_content() == "".join(PLAIN.tokens)
    first, after = (tab.locator(".token").nth(i).bounding_box() for i in (0, 3))
    assert after["y"] > first["y"] + 10, "a newline breaks the line"


def test_slider_selects_again(page, open_page):
    tab = open_page(page)
    values = sorted(PLAIN.entropies + EVIL.entropies, reverse=True)
    assert float(tab.locator("#fraction").input_value()) == pytest.approx(100 * 4 / 17, abs=0.5)
    for percent in (0, 10, 20, 50, 100):
        set_slider(tab, percent)
        count = math.ceil(percent / 100 * len(values))
        expected = [i for i, entropy in enumerate(PLAIN.entropies) if count and entropy >= values[count - 1]]
        assert forks(tab) == expected
        if count:
            shown = tab.locator("#selection").inner_text()
            assert f"{values[count - 1]:.3f} nats" in shown
            assert f"{100 * count / len(values):.1f} %" in shown
        assert f"{len(expected)} forking" in tab.locator("#statistics").inner_text()


def outlines(tab, tokens="#response .token"):
    """Width in pixels and opacity of the outline that the browser paints around each token, 0 without one."""
    shadows = tab.locator(tokens).evaluate_all("spans => spans.map(span => getComputedStyle(span).boxShadow)")
    found = []
    for shadow in shadows:
        if shadow == "none":
            found.append((0.0, 0.0))
            continue
        assert shadow.endswith(" inset"), shadow
        opacity = re.search(r"/ ([\d.e-]+)\)", shadow)
        found.append((float(re.findall(r"([\d.]+)px", shadow)[3]), float(opacity[1]) if opacity else 1.0))
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_outlines_are_as_strong_as_soft_weights(scheme, tmp_path, open_page):
    other = replace(PLAIN, weights=[5.0] + [0.0] * 6, label="the largest weight of the page")
    write_report_page(tmp_path / "page.html", [replace(PLAIN, weights=WEIGHTS), other], title="t")
    tab = open_page(tmp_path / "page.html", color_scheme=scheme)
    for weight, (width, opacity) in zip(WEIGHTS, outlines(tab), strict=True):
        assert opacity == pytest.approx(weight / 5, abs=1e-3)
        assert width == pytest.approx(1 + 1.5 * weight / 5 if weight else 0, abs=0.02), "not by shade alone"
    assert outlines(tab, "#shades .sample") == [
        (0, 0), *((pytest.approx(1 + 1.5 * share, abs=0.02), share) for share in (0.25, 0.5, 0.75, 1))
    ]  # fmt: skip
    assert tab.locator("#shades").inner_text().split() == ["0", "1.25", "2.5", "3.75", "5"]
    # 15.5 squared, by 14 tokens and the sum of squares
    effect = 15.5**2 / (14 * sum(w * w for w in [*WEIGHTS, 5.0]))
    said = tab.locator("#meaning").inner_text()
    assert "the stronger and wider its outline, the more a token counts in the loss" in said
    assert "50.0 % of tokens have weight" in said and f"effectively {100 * effect:.1f} %" in said
    assert "6 with weight (85.7 %)" in tab.locator("#statistics").inner_text()
    for position, text in ((3, "3"), (5, "2e-9"), (1, "0")):
        tab.locator("#response .token").nth(position).hover()
        assert re.search(rf"Weight\s+{text}$", tab.locator("#card dl").inner_text())

    # The keyboard goes to what counts most, and the switch leads to the page of entropies.
    tab.locator("#response .token").nth(0).focus()
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.dataset.position") == "3"
    assert "to the token of at least half the largest weight" in tab.locator(".hint").inner_text()
    assert tab.locator("#fraction").is_hidden() and tab.locator("#marker").is_hidden()
    tab.get_by_role("radio", name="forking tokens").check()
    assert tab.locator("#fraction").is_visible() and tab.locator("#weights").is_hidden()
    assert forks(tab) == [0, 3] and set(outlines(tab)) == {(0, 0), (1.5, 1)}
    tab.get_by_label("weight", exact=True).check()
    assert outlines(tab)[4] == (pytest.approx(2.2, abs=0.02), 0.8)
    tab.locator("#list > div").nth(1).click()
    tab.get_by_text("1 with weight (14.3 %)").wait_for()
    tab.locator("#response .token").nth(6).wait_for(state="attached")
    assert outlines(tab)[:2] == [(2.5, 1), (0, 0)]
    assert (tab.dialogs, tab.errors) == ([], [])


def test_weights_of_a_selection_look_as_forks_do(tmp_path, open_page):
    """Equal weights up to rounding; the tokens are those of the rule, and not those of highest entropy."""
    weights = [0.0, 5.0, 5.0, 0.0, 0.0, 5.0000005, 0.0]
    write_report_page(tmp_path / "page.html", [replace(PLAIN, weights=weights)], title="t")
    tab = open_page(tmp_path / "page.html")
    assert forks(tab) == [1, 2, 5]
    assert [shape for shape in outlines(tab) if shape != (0, 0)] == [(1.5, 1)] * 3
    assert tab.locator("#shades").inner_text().split() == ["0", "5"]
    assert "42.9 % of tokens have weight" in tab.locator("#meaning").inner_text()
    tab.locator("#response .token").nth(0).focus()
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.dataset.position") == "1"
    write_report_page(tmp_path / "none.html", [replace(PLAIN, weights=[0.0] * 7)], title="t")
    nothing = open_page(tmp_path / "none.html")
    assert forks(nothing) == [] and "0.0 % of tokens have weight" in nothing.locator("#meaning").inner_text()
    assert (tab.errors, nothing.errors) == ([], [])


def test_filter_and_list(page, open_page):
    tab = open_page(page)
    visible = lambda: [option.is_visible() for option in tab.locator("#list > div").all()]  # noqa: E731
    tab.get_by_label("incorrect (1)").check()
    assert visible() == [False, True]
    tab.locator(".token").nth(9).wait_for(state="attached")
    assert tab.locator("#verdict").inner_text() == "✗ incorrect"
    tab.get_by_label("correct (1)", exact=True).check()
    assert visible() == [True, False]
    tab.get_by_label("all (2)").check()
    assert visible() == [True, True]
    tab.locator("#list > div").first.focus()
    tab.keyboard.press("ArrowDown")
    tab.locator(".token").nth(9).wait_for(state="attached")
    assert tab.locator("#list > div").nth(1).get_attribute("aria-selected") == "true"


def test_keyboard_reaches_every_token_through_one_tab_stop(page, open_page):
    tab = open_page(page)
    focused = lambda: tab.evaluate("document.activeElement.dataset.position")  # noqa: E731
    assert tab.locator(".token[tabindex='0']").count() == 1
    tab.locator("#prompt summary").focus()
    tab.keyboard.press("Tab")
    assert focused() == "0"
    for key, expected in (
        ("ArrowRight", "1"),
        ("ArrowDown", "3"),
        ("ArrowUp", "0"),
        ("End", "6"),
        ("ArrowRight", "6"),
    ):
        tab.keyboard.press(key)
        assert focused() == expected
    assert (
        tab.locator("#card").is_visible() and tab.locator(".token").nth(6).get_attribute("aria-describedby") == "card"
    )
    # The card of a token that was moved to is shown once its scrolling is over, two frames later.
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
    tab.keyboard.press("Escape")
    assert tab.locator("#card").is_hidden()
    assert tab.locator(".token[tabindex='0']").count() == 1


def test_light_and_dark(page, open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = open_page(page, color_scheme="light"), open_page(page, color_scheme="dark")
    colours = light.evaluate(background), dark.evaluate(background)
    assert colours[0] != colours[1]
    light.locator("#theme").click()
    dark.locator("#theme").click()
    assert (dark.evaluate(background), light.evaluate(background)) == colours


def test_thousands_of_tokens_and_empty_pages(open_page, tmp_path):
    length = 9000
    entropies = np.random.default_rng(0).exponential(size=length).tolist()
    tokens = ["word\n" if i % 10 == 9 else f" {i}" for i in range(length)]
    long = ReportResponse("", tokens, entropies, [1.0] * length, label="long")
    write_report_page(tmp_path / "long.html", [long, ReportResponse("p", [], [], [])], title="t", threshold=1.0)
    tab = open_page(tmp_path / "long.html")
    assert tab.locator(".token").count() == length
    assert tab.locator(".block").count() == length // 200
    assert len(forks(tab)) == sum(entropy >= 1 for entropy in entropies)
    assert "from 1.000 nats on" in tab.locator("#selection").inner_text()
    assert tab.locator("#filter").is_hidden()
    tab.locator("#list > div").nth(1).click()
    assert tab.locator(".token").count() == 0
    write_report_page(tmp_path / "empty.html", [], title="t")
    empty = open_page(tmp_path / "empty.html")
    assert empty.locator("#label").inner_text() == "No response"
    assert (tab.errors, empty.errors) == ([], [])


# ---------------------------------------------------------------------- loops of a looped model

EARLIER = [
    [0.0, 2.5, 0.5, 0.25, 0.125, 0.75, 1.0],  # the forks of the first loop are not those of the last
    [1.5, 0.75, 0.5, 2.25, 0.125, 0.0, 0.25],
]
LOOPED = replace(PLAIN, earlier_entropies=EARLIER)


def test_file_holds_the_loops(tmp_path):
    evil = replace(EVIL, earlier_entropies=[[0.5] * len(HOSTILE), [0.25] * len(HOSTILE)])
    write_report_page(tmp_path / "page.html", [LOOPED, evil], title="t")
    data, _ = read(tmp_path / "page.html")
    found = [np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4") for text in data["earlier"]]
    expected = [first + second for first, second in zip(EARLIER, evil.earlier_entropies, strict=True)]
    np.testing.assert_array_equal(found, np.float32(expected))
    write_report_page(tmp_path / "page.html", [PLAIN, EVIL], title="t")
    assert read(tmp_path / "page.html")[0]["earlier"] == []


@pytest.mark.parametrize(
    ("loops", "message"),
    [
        ([EARLIER[0], [0.5] * 6], "earlier_entropies of each loop must be one per token: got 6 for 7"),
        ([EARLIER[0], [float("nan")] * 7], "earlier_entropies of each loop must be finite and not negative"),
        ([EARLIER[0], [-0.5] * 7], "earlier_entropies of each loop must be finite and not negative"),
        ([EARLIER[0]], "earlier_entropies must be of as many loops in all responses: got 1 after 2"),
        ([], "earlier_entropies must be of as many loops in all responses: got 0 after 2"),
    ],
)
def test_loops_that_cannot_be_shown_are_refused(loops, message, tmp_path):
    responses = [LOOPED, replace(PLAIN, earlier_entropies=loops)]
    with pytest.raises(ValueError, match=rf"Response 2 \('problem 0'\): {message}"):
        write_report_page(tmp_path / "page.html", responses, title="t")


def test_hostile_text_opens_no_tag_on_a_page_with_loops(tmp_path):
    evil = replace(EVIL, earlier_entropies=[[0.5] * len(HOSTILE)] * 2)
    write_report_page(tmp_path / "evil.html", [LOOPED, evil], title=HOSTILE[0])
    write_report_page(tmp_path / "tame.html", [LOOPED], title="t")
    evil_tags, tame_tags = (Scripts((tmp_path / f"{n}.html").read_text("utf-8")).tags for n in ("evil", "tame"))
    assert evil_tags == tame_tags


def set_loop(tab, number):
    tab.locator("#loop").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", number
    )


def heats(tab):
    """The step of the colour scale of each token."""
    classes = tab.locator("#response .token").evaluate_all("spans => spans.map(span => span.className)")
    return [[int(name[1:]) for name in text.split() if re.fullmatch(r"e\d+", name)] for text in classes]


def test_slider_leads_through_the_loops(tmp_path, open_page):
    evil = replace(EVIL, earlier_entropies=[[0.5] * len(HOSTILE), [0.25] * len(HOSTILE)])
    write_report_page(tmp_path / "page.html", [LOOPED, evil], title="t", fraction=0.2)
    tab = open_page(tmp_path / "page.html")
    assert tab.locator("#loop").is_visible() and tab.locator("#loop").input_value() == "3"
    rows = [
        first + second for first, second in zip([*EARLIER, PLAIN.entropies],
                                                [*evil.earlier_entropies, EVIL.entropies], strict=True)
    ]  # fmt: skip
    for fraction in (4, 2):  # four tokens of 17 at first, and two
        if fraction == 2:
            set_slider(tab, 11)
        for number in (1, 2, 3, 1):
            set_loop(tab, number)
            values = rows[number - 1]
            threshold = sorted(values, reverse=True)[fraction - 1]
            assert forks(tab) == [i for i, entropy in enumerate(values[:7]) if entropy >= threshold]
            mean = sum(values) / len(values)
            assert tab.locator("#reached").inner_text() == f"{number} of 3, mean {mean:.3f} nats"
            assert f"{threshold:.3f} nats" in tab.locator("#selection").inner_text()
            assert f"mean entropy {sum(values[:7]) / 7:.3f} nats" in tab.locator("#statistics").inner_text()
            assert f"mean {sum(values[:7]) / 7:.3f} nats" in tab.locator("#list > div").first.inner_text()
            levels = heats(tab)
            assert all(len(level) == 1 for level in levels)
            order = sorted(range(7), key=lambda i: values[i])
            assert [levels[i] for i in order] == sorted(levels)
    # One scale: the same entropy has the same colour after every loop.
    set_loop(tab, 1)
    first = heats(tab)[2]
    set_loop(tab, 3)
    assert heats(tab)[2] == first, "0.5 nats in both"
    tab.locator("#response .token").nth(1).hover()  # among the two largest of the first loop only
    terms = tab.locator("#card dl").inner_text().split("\n")
    assert [line.strip() for line in terms if line.strip()][:6] == [
        *("Entropy after loop 1", "2.500 nats, forking"),
        *("Entropy after loop 2", "0.750 nats"),
        *("Entropy after loop 3", "0.250 nats"),
    ]
    # The text is the model's, hostile or not, after every loop.
    set_loop(tab, 1)
    tab.locator("#list > div").nth(1).click()
    tab.locator(".token").nth(9).wait_for(state="attached")
    shown = [text.replace("\ufffd\ufffd", "\ufffd\ud800") for text in tab.locator(".token").all_text_contents()]
    assert shown == HOSTILE and {tuple(level) for level in heats(tab)} == {tuple(first)}
    set_loop(tab, 2)
    tab.locator(".token").nth(1).hover()
    assert "alert" in tab.locator("#card").inner_text()
    assert (tab.dialogs, tab.errors) == ([], [])
    assert all(url.startswith(("file:", "data:")) for url in tab.requests)


def test_a_page_without_loops_has_no_slider_of_loops(page, open_page):
    tab = open_page(page)
    assert tab.locator("#loops").is_hidden()
    tab.locator(".token").nth(3).hover()
    assert "loop" not in tab.locator("#card").inner_text()


def test_loops_of_a_page_without_responses(tmp_path, open_page):
    empty = ReportResponse("p", [], [], [], earlier_entropies=[[]])
    write_report_page(tmp_path / "empty.html", [empty], title="t")
    tab = open_page(tmp_path / "empty.html")
    set_loop(tab, 1)
    assert tab.locator("#reached").inner_text() == "1 of 2, mean 0.000 nats"
    assert (tab.dialogs, tab.errors) == ([], [])
