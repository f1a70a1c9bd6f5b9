"""The page on SmolLM2's forks: its stages with a tiny model, its tables, and that it is of its results."""

import json
import re
from pathlib import Path

import pytest

from docs import build_forks
from studies.smollm2 import numbers, plan, report, run, sft, tables
from studies.which_tokens import real_model, real_tasks
from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer


ROOT = Path(__file__).parents[2]


def test_a_row_becomes_a_demonstration_with_a_box():
    row = {"question": "Two and three?", "answer": "2+3=<<2+3=5>>5 apples.\nSo $5.\n#### 5"}
    made = sft.demonstration(row)
    (message,), (answer,) = made["prompt"], made["completion"]
    assert message["content"].startswith("Two and three?\n") and message["role"] == "user"
    assert answer == {"role": "assistant", "content": "2+3=5 apples.\nSo $5.\nThe answer is \\boxed{5}."}


def test_demonstrations_are_of_the_training_file_and_questions_of_the_test_file():
    asked, shown = (
        {json.loads(line)["question"] for line in path.read_text().splitlines()}
        for path in (plan.WORDS_DATA, plan.SFT_DATA)
    )
    assert len(shown) == plan.SFT_STEPS * plan.SFT_BATCH_SIZE and not asked & shown


@pytest.mark.slow
def test_the_stages_leave_the_numbers_of_a_page(tmp_path, monkeypatch):
    """With a tiny model, on fewer and shorter responses; `rl` needs reasoning-gym."""
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    small = {"SFT_STEPS": 2, "SFT_SAVE_STEPS": 1, "SFT_BATCH_SIZE": 1, "WORDS_PROBLEMS": 2, "WORDS_LENGTH": 8}
    small |= {"WORDS_MIN_COUNT": 0, "SUMS_MIN_COUNT": 0, "SUMS_SAMPLES": 2, "TEMPERATURES": (0.0, 1.0, 2.0)}
    for name, value in small.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(real_model, "MAX_COMPLETION_LENGTH", {"chain_sum": 6})
    monkeypatch.chdir(ROOT)  # a repository, whose commit is written down
    output = tmp_path / "out"
    output.mkdir()
    rows = [real_tasks.Problem(f"{number} + 2 =", str(number + 2)) for number in range(3)]
    real_tasks.write_dataset(output / "sums.jsonl", "chain_sum", rows)
    command = ["--model", str(tmp_path / "model"), "--output", str(output), "--results", str(tmp_path / "found.json")]
    run.main([*command, "--stages", "sft", "words"])
    assert not (tmp_path / "found.json").exists()
    run.main([*command, "--stages", "sums"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [entry["step"] for entry in found["sft"]["losses"]] == [1, 2]
    names = [entry["model"] for entry in found["words"]["overlap"]["models"]]
    assert [Path(name).name for name in names] == ["model", "checkpoint-1", "sft"]
    assert found["words"]["responses"]["num_responses"] == 2
    assert found["sums"]["responses"] == {"num_responses": 6, "num_problems": 3, "num_correct": 0}
    assert len(found["sums"]["decoding_temperature"]["cells"]) == 5
    assert len(found["commits"]) == 1 and found["plan"]["WORDS_LENGTH"] == 8


def test_numbers_are_rounded_to_four_digits():
    assert numbers.rounded({"a": [1.23456, 7, None], "b": (0.000123456, "1.23456", True)}) == {
        "a": [1.235, 7, None],
        "b": [0.0001235, "1.23456", True],
    }


def test_tables():
    shares = {"whole_set": 0.91234, "per_response": 0.8765}
    others = {"whole_set": 0.5, "per_response": 0.25}
    part = {
        "overlap": {"models": [{"model": "x", "with_reference": shares, "with_model": others}]},
        "change": {
            "models": [
                {"bins": [{"percentiles": [0, 5], "mean_change": -0.25}, {"percentiles": [5, 10], "mean_change": 0.5}]}
            ]
        },
        "percentiles": {"levels": [0.0, 0.8], "models": [{"values": [0.125, 1.5]}]},
        "distribution": {"num_tokens": 1234, "mean": 1.5, "p50": 0.5, "p80": 2.25, "fraction_below_0.01": 0.125},
        "responses": {"num_responses": 7, "num_problems": 3, "num_correct": 2},
        "tokens": {
            "num_types": 4,
            "top": [{"token": " so", "mean_entropy": 3.25}],
            "bottom": [{"token": "`", "mean_entropy": 0.5}, {"token": "|", "mean_entropy": 0.75}],
        },
    }
    assert tables.overlap_table(part, ["the start"]).endswith("| the start | 91.23 | 50.00 | 87.65 | 25.00 |")
    changes = tables.change_table({"a": part, "b": part}, bins=(1,))
    assert changes.endswith("| 5 to 10 | +0.500 | +0.500 |")
    assert tables.percentiles_table(part, ["it"]).splitlines() == [
        "| | 0th | 80th |",
        "| --- | ---: | ---: |",
        "| it | 0.125 | 1.500 |",
    ]
    assert "| 80th percentile | 2.250 | 0.672 |" in tables.distribution_table({"a": part})
    assert "| Right answers | 2 of 7 |  |" in tables.distribution_table({"a": part})
    assert tables.words_table({"a": part}).endswith("| highest | `so` 3.25 |\n| lowest | `` ` `` 0.50, `\\|` 0.75 |")
    cells = [
        {"forking_temperature": forking, "other_temperature": other, "accuracy": share, "standard_error": 0.04}
        for forking, other, share in ((0.0, 1.0, 0.25), (1.0, 0.0, 0.5), (1.0, 1.0, 0.375))
    ]
    assert tables.temperature_table(cells).splitlines()[2:] == [
        "| of forking tokens, others at 1 | 25 ± 4 | 38 ± 4 |",
        "| of the others, forking tokens at 1 | 50 ± 4 | 38 ± 4 |",
    ]


# ---------------------------------------------------------------------- the page


@pytest.fixture
def found():
    return json.loads(plan.RESULTS.read_text())


def test_the_page_is_of_the_results(found):
    page = (ROOT / "docs" / "smollm2.md").read_text()
    assert page == report.page(found), "run `python -m studies.smollm2.report`"
    for name in re.findall(r"\]\((smollm2/\w+\.png)\)", page):
        assert (ROOT / "docs" / name).stat().st_size < 200_000
    assert ("has not been run" in page) == ("reinforced" not in found)


def test_what_the_text_says_of_its_numbers(found):
    sums, base = found["sums"], json.loads(build_forks.NUMBERS.read_text())
    distribution = sums["distribution"]
    assert base["distribution"]["fraction_below_0.01"] < 0.02 < 0.2 < distribution["fraction_below_0.01"]
    assert distribution["p50"] < 0.05 and distribution["p80"] < tables.PAPER["p80"] < base["distribution"]["p80"]
    assert distribution["mean"] > 4 * distribution["p50"]  # few tokens have much of it
    types = sums["tokens"]["num_types"] // 2
    assert 0.4 < distribution["fraction_below_0.01"] / tables.PAPER["fraction_below_0.01"] < 0.6  # "half as many"
    highest, lowest = ({row["token"] for row in sums["tokens"][end][:types]} for end in ("top", "bottom"))
    assert sum(token.isdigit() for token in highest) >= 8 and sum(token.isdigit() for token in lowest) <= 1
    assert all(row["token"].isdigit() for row in sums["tokens"]["top"][:5])
    assert {row["token"] for row in base["tokens"]["bottom"][:7]} >= set("123650")

    cells = {
        (cell["forking_temperature"], cell["other_temperature"]): (cell["accuracy"], cell["standard_error"])
        for cell in sums["decoding_temperature"]["cells"]
    }
    assert sums["decoding_temperature"]["threshold"] == distribution["p80"]
    at_one = cells[1, 1][0]
    assert cells[1, 2][0] == 0 < cells[2, 1][0] < at_one / 3
    assert at_one < cells[0, 1][0] < at_one + 2 * cells[0, 1][1]  # a gain that is not resolved
    assert abs(at_one - cells[1, 0][0]) < cells[1, 0][1]


def test_what_the_text_says_of_training(found):
    words = found["words"]
    overlap = words["overlap"]["models"][-1]["with_reference"]["whole_set"]
    assert 100 * overlap < tables.PAPER_OVERLAP[1360][0]
    changes = [row["mean_change"] for row in words["change"]["models"][-1]["bins"]]
    assert min(changes[:3]) > 0 and sum(change < 0 for change in changes[3:]) >= 14
    first, last = (words["percentiles"]["models"][place]["values"] for place in (0, -1))
    assert words["percentiles"]["levels"][1] == 0.2 and words["percentiles"]["levels"][5] == 0.8
    assert first[1] - last[1] > 0.15 > 0.1 > abs(first[5] - last[5])
    assert plan.SFT_LEARNING_RATE == 1000 * 1e-6
