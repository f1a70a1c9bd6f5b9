"""Folders of runs as trainings leave them, the curves of several, their page with hostile text, and a browser."""

import base64
import io
import json
import math
import pickle
import random
import re
import xml.etree.ElementTree
import zipfile

import pytest

from tests.report.test_report_page import HOSTILE, Scripts, browser, open_page  # noqa: F401
from trl_fork.report.run_curves import COLOURS, overlays, panels_of, smoothed
from trl_fork.report.run_page import write_run_page
from trl_fork.report.runs import Run, differences, read_arguments, read_run
from trl_fork.report.values import changes_of, shown


def state(steps, max_steps, every=5, **more):
    """A `trainer_state.json` with an entry each `every` steps and evaluations at every second of them."""
    rng, log = random.Random(steps), []
    for step in range(every, steps + 1, every):
        times = {f"time/{name}": rng.random() for name in ("generation", "training", "other")}
        log.append(
            {
                "step": step,
                "loss": 0.1,
                "reward": rng.random(),
                "entropy": rng.random(),
                "grad_norm": rng.random(),
                "tokens_per_second": 100 + step,
                **times,
                **more,
            }
        )
        if step % (2 * every) == 0:
            log.append({"step": step, "eval_reward": 0.5, "eval_rewards/accuracy_reward/mean": rng.random()})
    return {"global_step": steps, "max_steps": max_steps, "log_history": log}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# ---------------------------------------------------------------------- the folder of a run


def test_a_finished_run(tmp_path):
    write(tmp_path / "trainer_state.json", state(60, 60))
    write(tmp_path / "checkpoint-60" / "trainer_state.json", state(60, 60, reward=9.0))
    run = read_run(tmp_path)
    assert (run.step, run.max_steps, run.progress) == (60, 60, "finished, 60 steps")
    assert run.curve("reward")[0] == list(range(5, 61, 5)) and 9.0 not in run.curve("reward")[1]


def test_a_run_that_goes_on_is_read_from_its_newest_checkpoint(tmp_path):
    """`checkpoint-100` comes before `checkpoint-20` by name, and the last one is half-written."""
    write(tmp_path / "trainer_state.json", state(15, 15))  # of an earlier end, which was trained on
    for step in (20, 100):
        write(tmp_path / f"checkpoint-{step}" / "trainer_state.json", state(step, 200))
    write(tmp_path / "checkpoint-120" / "trainer_state.json", '{"global_step": 120, "log_hist')
    run = read_run(tmp_path)
    assert run.progress == "step 100 of 200: cut off, or still running"
    assert len(run.notes) == 1 and "checkpoint-120" in run.notes[0] and "left out" in run.notes[0]


def test_a_checkpoint_is_a_run_with_the_settings_beside_it(tmp_path):
    write(tmp_path / "checkpoint-20" / "trainer_state.json", state(20, 40))
    write(
        tmp_path / "training_settings.json", {"settings": {"seed": 3}, "changed": ["seed"], "versions": {"trl": "1"}}
    )
    run = read_run(tmp_path / "checkpoint-20")
    assert (run.step, run.settings, run.changed, run.versions) == (20, {"seed": 3}, ["seed"], {"trl": "1"})


def test_what_is_no_number_is_left_out(tmp_path):
    entries = [
        {"step": 1, "reward": "<script>", "flag": True, "list": [1], "loss": 0.5},
        {"step": 2, "reward": math.nan, "loss": math.inf},
        {"reward": 1.0},
        "text",
        {"step": math.nan, "reward": 2.0},
    ]
    write(tmp_path / "trainer_state.json", {"global_step": 2, "log_history": entries})
    run = read_run(tmp_path)
    assert run.log[0] == {"step": 1, "loss": 0.5} and len(run.log) == 2
    assert run.max_steps is None and run.progress == "2 steps"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder '.*/nothing' \(looked from .*\)"):
        read_run(tmp_path / "nothing")


def test_the_speed_is_a_mean_over_steps(tmp_path):
    """Weighted by the steps that each entry is a mean of: 4, then 1."""
    log = [
        {"step": 4, "time/generation": 1.0, "time/training": 2.0, "tokens_per_second": 10.0},
        {"step": 5, "time/generation": 6.0, "time/training": 3.0, "tokens_per_second": 40.0},
    ]
    write(tmp_path / "trainer_state.json", {"global_step": 5, "max_steps": 5, "log_history": log})
    speed = read_run(tmp_path).speed
    assert speed["time/generation"] == pytest.approx((4 * 1 + 6) / 5)
    assert speed["time/step"] == pytest.approx((4 * 3 + 9) / 5)
    tokens = 4 * 3 * 10 + 9 * 40
    assert speed["tokens_per_second"] == pytest.approx(tokens / (4 * 3 + 9))
    assert speed["tokens_per_step"] == pytest.approx(tokens / 5)
    assert Run(tmp_path).speed == {}


class Bomb:
    """An object whose pickle would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (__import__("os").system, (f"touch {self.path}",))


class Arguments:
    pass


def test_reading_arguments_runs_nothing(tmp_path):
    arguments = Arguments()
    vars(arguments).update(seed=7, betas=(0.9, 0.95), hub_token="hf_secret", _private=1, bomb=Bomb(tmp_path / "mark"))
    content = io.BytesIO()
    pickle.dump(arguments, content)
    with zipfile.ZipFile(tmp_path / "training_args.bin", "w") as archive:
        archive.writestr("training_args/data.pkl", content.getvalue())
    read = read_arguments(tmp_path / "training_args.bin")
    assert read.pop("bomb") == f"touch {tmp_path / 'mark'}"  # as of an enumeration with this value
    assert read == {"seed": 7, "betas": [0.9, 0.95]}
    assert not (tmp_path / "mark").exists()


def test_arguments_that_cannot_be_read_are_said(tmp_path):
    write(tmp_path / "trainer_state.json", state(5, 5))
    write(tmp_path / "training_args.bin", "no archive")
    run = read_run(tmp_path)
    assert run.settings is None and "training_args.bin cannot be read (BadZipFile" in run.notes[0]


def test_differences_leave_out_what_is_equal_or_a_place(tmp_path):
    first = Run(tmp_path, settings={"seed": 1, "beta": 0, "output_dir": "a", "only": 4}, versions={"trl": "1"})
    other = Run(tmp_path, settings={"seed": 2, "beta": 0.0, "output_dir": "b"}, versions={"trl": "2"})
    unknown = Run(tmp_path)
    assert differences([first, other, unknown]) == [("seed", [1, 2, None]), ("version of trl", ["1", "2", None])]


# ---------------------------------------------------------------------- curves


def test_curves_are_drawn_for_what_is_logged(tmp_path):
    runs = []
    for number, steps in enumerate((60, 400)):
        write(tmp_path / str(number) / "trainer_state.json", state(steps, steps))
        runs.append(read_run(tmp_path / str(number)))
    drawn = {overlay.panel.key: overlay for overlay in overlays(runs)}
    assert list(drawn) == ["reward", "eval_rewards/accuracy_reward/mean", "entropy", "grad_norm", "time/step",
                           "tokens_per_second"]  # fmt: skip
    assert [len(steps) for steps, _ in drawn["reward"].curves] == [12, 80]
    assert drawn["reward"].window == 3 and drawn["eval_rewards/accuracy_reward/mean"].window == 1
    for overlay in drawn.values():
        text = overlay.svg.lower()
        assert all(colour.lower() in text for colour in COLOURS[:2]) and COLOURS[2].lower() not in text
        xml.etree.ElementTree.fromstring(overlay.svg)


def test_a_run_without_a_curve_keeps_its_colour(tmp_path):
    """The second run is the second colour, where the first has logged nothing of the kind."""
    runs = [Run(tmp_path), Run(tmp_path, log=[{"step": 1, "reward": 0.5}, {"step": 2, "reward": math.nan}])]
    (overlay,) = overlays(runs)
    assert overlay.curves[0] == ([], []) and COLOURS[1].lower() in overlay.svg.lower()
    assert COLOURS[0].lower() not in overlay.svg.lower()


def test_accuracies_of_several_rewards_are_named():
    entry = {"step": 1, "reward": 0.4, "rewards/accuracy_reward/mean": 0.1, "rewards/format/mean": 0.3}
    entry |= {"eval_rewards/accuracy_reward/mean": 0.2, "eval_rewards/my_accuracy/mean": 0.25}
    titles = [panel.title for panel in panels_of([Run(None, log=[entry])])]
    assert titles == [
        "Training reward",
        "Training accuracy, accuracy_reward",
        "Held-out accuracy",
        "Held-out accuracy, my_accuracy",
    ]
    alone = {"step": 1, "reward": 0.4, "rewards/accuracy_reward/mean": 0.4}
    assert [panel.title for panel in panels_of([Run(None, log=[alone])])] == ["Training reward"]


def test_running_means():
    assert smoothed([1.0, 2.0, 6.0, math.nan, 8.0], 3) == [1.5, 3.0, 4.0, 7.0, 8.0]
    assert math.isnan(smoothed([math.nan], 3)[0])


# ---------------------------------------------------------------------- the page


def token(text, mean, width, count=60):
    return {
        "token": text,
        "token_id": len(text),
        "count": count,
        "num_problems": 9,
        "mean_before": 1.0,
        "mean_after": 1.0 + mean,
        "mean_change": mean,
        "low": mean - width,
        "high": mean + width,
        "resolved": abs(mean) > width,
    }


def numbers_of(text="plain", count=2):
    """What the command collects, with one text in every place that people or models write."""
    runs = [
        {
            "label": label,
            "name": f"{text}{label}",
            "path": f"/x/{text}{label}",
            "progress": "finished, 9 steps",
            "step": 9,
            "max_steps": 9,
            "speed": {"time/step": 1.25 + number, "tokens_per_second": 1234.5},
        }
        for number, label in enumerate("ABCDEFGHI"[:count])
    ]
    result = {
        "evaluation": "e",
        "dataset": text,
        "label": text,
        "num_problems": 30,
        "num_samples": 4,
        "accuracy": 0.625,
        "standard_error": 0.0325,
        "pass_at_k": 0.75,
        "mean_length": 40.0,
        "truncated_fraction": 0.0,
    }
    difference = {
        "baseline": "A",
        "run": "B",
        "datasets": [text, text],
        "labels": [text, text],
        "num_problems": 30,
        "mean": -0.0525,
        "low": -0.11,
        "high": 0.005,
        "refused": None,
        "other_settings": {},
        "other_prompts": 0,
    }
    types = [token(text, 0.5, 0.1), token(" b\n", 0.25, 0.125), token("c", 0.05, 0.2), token("d", -0.75, 0.5)]
    change = {"completions": text, "num_tokens": 12345, "num_problems": 30, "all": types[0], "types": types}
    return {
        "runs": runs,
        "settings": [{"name": text, "values": [text, {text: [text]}]}],
        "metrics": [{"title": "Training reward", "unit": "mean reward", "key": "reward", "step": 9,
                     "values": [0.5, 0.75], "last": [None, None]}],
        "results": [{**result, "run": "A"}, {**result, "run": "B", "standard_error": None}],
        "differences": [difference, {**difference, "mean": None, "low": None, "high": None, "refused": text}],
        "tokens": [{**change, "baseline": "A", "run": "B"}],
        "notes": [text],
        "curves": {},
    }  # fmt: skip


def drawn_of(count=2):
    rng = random.Random(0)
    log = [[{"step": step, "reward": rng.random(), "entropy": rng.random()} for step in range(1, 9)]] * count
    return overlays([Run(None, log=entries) for entries in log])


def test_hostile_text_opens_no_tag(tmp_path):
    pages = []
    for name, text in (("tame", "plain"), ("wild", "".join(HOSTILE))):
        write_run_page(tmp_path / f"{name}.html", numbers_of(text), drawn_of(), [text])
        pages.append(Scripts((tmp_path / f"{name}.html").read_text("utf-8")))
    assert pages[0].tags == pages[1].tags
    assert [a[:2] for a in pages[0].attributes] == [a[:2] for a in pages[1].attributes]
    assert pages[0].scripts == pages[1].scripts and len(pages[0].scripts) == 1


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text])
def test_hostile_text_is_shown_as_it_is(text, tmp_path):
    write_run_page(tmp_path / "page.html", numbers_of(text), drawn_of(), [text])
    found = Scripts((tmp_path / "page.html").read_text("utf-8"))
    assert found.texts["title"] == found.texts["h1"] == [f"{text}A and {text}B"]
    assert found.texts["code"][0] == text and text in found.texts["td"]
    shown = text.replace(" ", "␣").replace("\u2028", "↵").replace("\u2029", "¶")
    assert found.texts["bdi"][0] == shown and "␣b↵" in found.texts["bdi"]
    assert found.texts["p"].count(text) == 2  # the note and the sentence


def test_policy_allows_the_page_alone(tmp_path):
    write_run_page(tmp_path / "page.html", numbers_of(), drawn_of())
    content = (tmp_path / "page.html").read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"\sstyle=", content), "the policy would drop it"
    assert not re.search(r'(src|href)="(?!data:)', content)
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', content)
    assert [base64.b64decode(picture)[:5] for picture in pictures] == [b"<?xml"] * 2


def test_one_run_has_no_comparison(tmp_path):
    numbers = numbers_of(count=1) | {"differences": [], "tokens": [], "results": [], "notes": []}
    numbers["settings"][0]["values"] = numbers["settings"][0]["values"][:1]
    write_run_page(tmp_path / "page.html", numbers, drawn_of(1))
    content = (tmp_path / "page.html").read_text("utf-8")
    assert "Options that are not at their default" in content and "Difference" not in content
    assert Scripts(content).texts["h1"] == ["plainA"]


def test_token_types_are_listed_by_sign():
    types = [token("a", 0.5, 0.1), token("b", 0.75, 1.0), token("c", -0.25, 0.5), token("d", -0.125, 0.5)]
    lists = dict(changes_of({"types": types}))
    assert [row["token"] for row in lists["gained"]] == ["a"]  # told from 0, where the larger change is not
    assert [row["token"] for row in lists["lost, not told from 0"]] == ["c", "d"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "true"), (0.2, "0.2"), (5e-6, "5e-06"), (12345.6, "12,346"), (42, "42"), (123456, "123,456"),
     ("a", "a"), (["a", None], '["a", null]'), ({"b": 1}, '{"b": 1}')],
)  # fmt: skip
def test_values_in_cells(value, text):
    assert shown(value) == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(scheme, tmp_path, open_page):  # noqa: F811
    text = "".join(HOSTILE[:7])
    write_run_page(tmp_path / "page.html", numbers_of(text), drawn_of(), [text])
    tab = open_page(tmp_path / "page.html", color_scheme=scheme)
    assert tab.title() == f"{text}A and {text}B"
    assert all(tab.locator("figure img").evaluate_all("images => images.map(i => i.complete && i.naturalWidth > 0)"))
    colour = "document.body && getComputedStyle(document.body).backgroundColor"
    assert tab.locator("#theme").inner_text() == {"light": "Dark", "dark": "Light"}[scheme]
    before = tab.evaluate(colour)
    tab.locator("#theme").click()
    assert tab.evaluate(colour) != before
    tab.set_viewport_size({"width": 380, "height": 700})
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= 380, "tables scroll by themselves on a phone"
    low, high, mean = (
        float(tab.locator("#accuracy .bar-of").first.locator(f"{part}").get_attribute(name))
        for part, name in ((".range", "x1"), (".range", "x2"), ("circle", "cx"))
    )
    assert low < mean < 0 < high and mean == pytest.approx(-24)  # half of the scale's half
    assert (tab.dialogs, tab.errors) == ([], [])
    assert all(url.startswith(("file:", "data:")) for url in tab.requests)
