"""The reliability report: its page is that of its results, and each of its searches finds what is there."""

import io
import json
import random
import zipfile

import pytest
import torch

from benchmarks.reliability import __main__ as command
from benchmarks.reliability import configurations, kills, page, pages, secrets
from benchmarks.reliability.bad_configurations import Bad, written
from benchmarks.reliability.drawn_configurations import KINDS, Drawing
from benchmarks.reliability.parts import PARTS
from benchmarks.reliability.record import Record, load
from trl_fork._visible import show_controls
from trl_fork.report import marks
from trl_fork.trainer import model_card


def test_page_is_that_of_the_results():
    assert page.PAGE.read_text() == page.render(load())


def test_numbers_of_the_results():
    results = load()
    assert set(results) <= set(PARTS)
    if "answers" in results:
        found = results["answers"]["found"]
        assert (found["right"], found["honest_wrong"]) == (0, 0)
    if "kills" in results:
        lives = results["kills"]["found"]["lives"]
        assert lives and all(life["equal"] for life in lives)
        assert not any(record["hung"] for life in lives for record in life["kills"])
    if "configurations" in results:
        found = results["configurations"]["found"]
        assert sum(kind["number"] for kind in found["kinds"].values()) >= 200
    if "pages" in results:
        assert results["pages"]["found"]["the_browser_would_tell"]


# A run with a set-up of 3 s, steps at 13, 15 and 18 s, and an end at 20 s.
DIARY = [
    (10.0, 0, "import"),
    (12.0, 0, "set-up"),
    (13.0, 0, "scoring"),
    (14.0, 0, "update"),
    (15.0, 1, "between steps"),
    (18.0, 2, "after the last step"),
    (20.0, 2, "done"),
]


def test_moments_are_drawn_from_the_time_line(monkeypatch):
    monkeypatch.setattr(kills, "STEPS", 2)
    line = kills.moments(DIARY, begin=9.0)
    assert line == [(-1, 9.0, 13.0), (0, 13.0, 15.0), (1, 15.0, 18.0), (2, 18.0, 20.0)]
    generator = random.Random(0)
    drawn = [kills.draw(generator, line) for _ in range(700)]
    lengths = {0: 2.0, 1: 3.0, 2: 2.0}
    assert all(0 <= seconds <= lengths[part] for part, seconds in drawn)
    counts = [sum(part == wanted for part, _ in drawn) for wanted in lengths]
    assert counts == pytest.approx([200, 300, 200], abs=60)
    assert kills.shares(DIARY)["between steps"] == 3.0


def test_differences_are_seen_to_the_bit():
    def state():
        return {"a": [torch.tensor([1.0, float("nan")])], "log": [{"loss": 0.5, "step_time": random.random()}]}

    expected = kills.comparable(state())
    assert kills.differences(kills.comparable(state()), expected) == []
    other = kills.comparable(state())
    other["a"][0][0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert kills.differences(other, expected) == ["/a/0"]
    assert kills.differences({**expected, "log": [{"loss": 0.25}]}, expected) == ["/log/0/loss"]
    assert kills.differences({"a": expected["a"]}, expected) == ["/log"]


def test_what_counts_as_refused():
    bad = Bad("range", ("beta",), settings={"beta": -1})
    assert configurations.judge(bad, 2, "trl-fork train: error: beta must be at least 0") == "refused"
    assert configurations.judge(bad, 0, "trained") == "not refused"
    assert configurations.judge(bad, 1, "error: beta\nTraceback (most recent call last)") == "a traceback"
    assert configurations.judge(bad, 1, "error: adam_beta1 is wrong") == "does not name beta"


def test_mistakes_are_of_many_kinds():
    assert len(written()) >= 200 and len({bad.kind for bad in written()}) > 12
    drawing = Drawing(3)
    for kind in KINDS:
        bad = drawing.draw(kind)
        assert bad.kind == kind and (bad.words or bad.settings)
    drawn = [Drawing(3).draw("misspelt in a file") for _ in range(2)]
    assert drawn[0] == drawn[1]
    wrong, name = drawn[0].names
    assert wrong != name


def test_search_for_tokens_finds_them():
    secret = secrets.SECRETS["OPENAI_API_KEY"].encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b"a" + secret)
    for content in (b"x" + secret, secret.hex().encode(), packed.getvalue(), secret[::-1]):
        assert secrets.leaks(content) == ["OPENAI_API_KEY"]
    assert secrets.leaks(b"nothing") == []


def test_console_shows_control_characters_instead_of_obeying(monkeypatch):
    texts = ["\x1b[2J\x1b]0;owned\x07", "[red]a[/red]", "\x9b31m\r\x08"]
    assert pages.look_at_console(texts) == []
    assert show_controls("a\x1b[2J\tb\n\x7f\x9b") == "a␛[2J\tb\n␡\ufffd"
    monkeypatch.setattr(marks, "show_controls", lambda text: text)
    assert pages.look_at_console(texts) == ["control characters ['0x1b', '0x9b']"]


@pytest.mark.parametrize(
    "text", ["a|b", "`<script>`", "``x`", "a\n# b", "<img src=x>", "[a](javascript:1)", "&lt;b&gt;"]
)
def test_card_shows_text_as_it_is(text):
    from markdown_it import MarkdownIt

    class Text(__import__("html.parser").parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.text = [], ""

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.text += data

    for made, tags in ((model_card._text(text), []), (model_card._code(text), ["code"])):
        found = Text()
        found.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(f"| a |\n|---|\n| {made} |\n"))
        assert found.tags == ["table", "thead", "tr", "th", "tbody", "tr", "td", *tags]
        assert found.text.split("\n\n")[-1].split() == ["a", *text.split()] or " ".join(text.split()) in found.text


def test_record_keeps_other_parts_and_what_was_found_so_far(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"answers": {"found": 3}}))
    record = Record(path, "steps", 7, seed=2)
    record.write({"steps": 1})
    assert load(path)["steps"]["complete"] is False and load(path)["answers"] == {"found": 3}
    record.write({"steps": 7}, "all")
    steps = load(path)["steps"]
    assert (steps["found"], steps["summary"], steps["number"], steps["seed"]) == ({"steps": 7}, "all", 7, 2)


@pytest.mark.slow
# huggingface_hub leaves the file of an upload open whose connection was cut.
@pytest.mark.filterwarnings("ignore:.*_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", PARTS)
def test_a_few_of_each(name, tmp_path, capfd):
    words = [
        "--quick",
        "--part",
        name,
        "--results",
        str(tmp_path / "results.json"),
        "--folder",
        str(tmp_path / "runs"),
    ]
    status = command.main(words)
    printed = capfd.readouterr().out
    if status and "this part needs" in printed:
        pytest.skip(printed)
    assert status == 0
    assert load(tmp_path / "results.json")[name]["complete"]
