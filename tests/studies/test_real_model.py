"""The study's arms on a real model: the problems, what counts as right, and the numbers of the page."""

import json
import random
import re
from pathlib import Path

import pytest

from studies.which_tokens import real_model


ROOT = Path(__file__).parents[2]


def test_no_problem_is_on_both_sides():
    training, test = real_model.problems()
    assert len({text for text, _ in test}) == real_model.NUM_TEST
    assert not {text for text, _ in training} & {text for text, _ in test}
    assert all(eval(text) == result for text, result in [*training[:500], *test])
    assert {len(text.split()) for text, _ in training} == {3, 5}
    assert real_model.draw(random.Random(1)) == real_model.draw(random.Random(1))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 - 7 is -4. Answer: -4", True),
        ("Answer: **-4**.", True),
        ("-4 is 4 below 0", False),
        ("4", False),
        ("none", False),
        ("", False),
    ],
)
def test_the_last_number_counts(text, right):
    assert real_model.is_right(text, -4) == right
    assert real_model.reward([[{"role": "assistant", "content": text}]], [-4]) == [float(right)]


def test_arms_that_are_done_are_left_out(tmp_path, monkeypatch, capsys):
    record = {"arm": "all", "seed": 0, "steps": [{}] * 3, "accuracy_before": 0.1, "accuracy_after": 0.25, "done": True}
    (tmp_path / "all-0.json").write_text(json.dumps(record))
    ran = []
    monkeypatch.setattr(real_model, "run", lambda arm, options: ran.append(arm))
    real_model.main(["--output", str(tmp_path), "--arms", "all", "pepo"])
    assert ran == ["pepo"]
    assert "| all, seed 0 | 3 | 0.100 | 0.250 |  |" in capsys.readouterr().out


def test_the_page_has_the_numbers_of_the_results():
    runs = json.loads((ROOT / "studies" / "which_tokens" / "results" / "smollm2.json").read_text())["runs"]
    page = (ROOT / "docs" / "study.md").read_text()
    assert {run["arm"] for run in runs} == set(real_model.ARMS)
    for run in runs:
        cells = [run["arm"], len(run["steps"]), f"{run['accuracy_before']:.3f}", f"{run['accuracy_after']:.3f}"]
        assert "| " + " | ".join(map(str, cells)) + " |" in page
    error = (runs[0]["accuracy_before"] * (1 - runs[0]["accuracy_before"]) / 2048) ** 0.5
    assert re.search(rf"standard error of {error:.3f}", page)
