"""The forecasting example in a tiny configuration: its files, and its numbers against those of its data."""

import json
import re
from fractions import Fraction

import pytest
import torch

from examples import forecasting
from tests.evaluation.test_calibration import naive_brier, naive_ece
from trl_fork.report.reliability import plot_reliability


NUM_TEST = 200  # games, a quarter of those that there are


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("forecasting") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecasting, "NUM_TEST", NUM_TEST)
        forecasting.main(["--output_dir", str(path), "--warm_up_steps", "4", "--max_steps", "2"])
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_data(folder):
    train, test = rows(folder / "seed-1" / "train.jsonl"), rows(folder / "seed-1" / "test.jsonl")
    assert (len(train), len(test)) == (forecasting.NUM_TRAIN, NUM_TEST)
    assert not {tuple(row["cell"]) for row in train} & {tuple(row["cell"]) for row in test}

    # The rate of a cell: its own rows, and 25 of the cell around it. Three levels, from the training rows alone.
    def rate(cell):
        own = [row["outcome"] for row in train if row["cell"][: len(cell)] == list(cell)]
        return sum(own) / len(own) if not cell else (sum(own) + 25 * rate(cell[:-1])) / (len(own) + 25)

    for row in train[::400]:
        assert row["target_rate"] == pytest.approx(rate(row["cell"]), abs=1e-12)
    for row in test[::40]:  # unseen as a whole
        assert row["target_rate"] == pytest.approx(rate(row["cell"][:-1]), abs=1e-12)


def test_summary(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["settings"]["max_steps"] == 2 and summary["seconds"] > 0
    (run,) = summary["runs"]
    assert list(run) == ["before", "rate", "outcome", "empirical rates", "base rate", "true probability"]
    test = rows(folder / "seed-1" / "test.jsonl")
    rates, outcomes = [row["target_rate"] for row in test], [row["outcome"] for row in test]
    found = run["empirical rates"]
    assert found["brier"] == pytest.approx(naive_brier(rates, outcomes), abs=1e-9)
    assert found["ece"] == pytest.approx(naive_ece([*map(Fraction, rates)], outcomes, 10), abs=1e-9)
    assert run["true probability"]["distance"] == 0 < found["distance"] < run["base rate"]["distance"]
    assert run["true probability"]["brier"] < found["brier"] < run["base rate"]["brier"]


def test_the_arms_differ_in_their_target_alone(folder):
    logs = {arm: (folder / "seed-1" / f"{arm}.log").read_text() for arm in forecasting.ARMS}
    assert all("rewards/brier_reward/mean" in log for log in logs.values())
    weights = {arm: (folder / "seed-1" / arm / "model.safetensors").read_bytes() for arm in forecasting.ARMS}
    assert weights["rate"] != weights["outcome"]


def test_picture(folder, tmp_path):
    assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
    bins = [forecasting.reliability_bins([0.1, 0.6], [0, 1])] * 7  # more forecasters than marks
    plot_reliability({f"forecaster {n}": b for n, b in enumerate(bins)}, tmp_path / "diagram.svg")
    assert len(re.findall("forecaster", (tmp_path / "diagram.svg").read_text())) >= 7


def test_a_forecast_that_is_not_stated_counts_as_a_half():
    test = [(forecasting.task.Game(3, 12, -1), outcome) for outcome in (0, 1)]
    assert forecasting.score(test, [0.5, 0.5], stated=0.0)["scores"]["brier"] == 0.25


def test_a_narrowed_mask_hides_the_reasoning(model):
    """What the page says of the published code: TRL attends by the completion mask, which that code narrows."""
    generator = torch.Generator().manual_seed(0)
    prompt, one, other, answer = torch.randint(4, 40, (4, 6), generator=generator)

    def answer_log_probs(reasoning, narrowed):
        ids = torch.cat([prompt, reasoning, answer])
        mask = torch.ones_like(ids)
        mask[6:12] = not narrowed
        with torch.no_grad():
            logits = model(ids[None], attention_mask=mask[None]).logits[0]
        return logits.log_softmax(-1)[11:17].gather(1, answer[:, None]).squeeze(1)  # each by the position before it

    first, *hidden = (answer_log_probs(one, True) - answer_log_probs(other, True)).abs().tolist()
    *_, seen = (answer_log_probs(one, False) - answer_log_probs(other, False)).abs().tolist()
    assert max(hidden) < 1e-5 < 1e-3 < seen
    assert first > 1e-3  # it is predicted from the position of the last token of the reasoning


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--max_steps", "-1"], "--max_steps must be at least 1, got -1"),
        (["--token_credit", "answer_spam"], "--token_credit: there is no preset 'answer_spam'. Did you mean"),
        (["--token_credit", "{span}"], "--token_credit: Expecting property name"),
    ],
)
def test_bad_options_are_refused_before_the_warm_up(words, message, capsys):
    with pytest.raises(SystemExit):
        forecasting.parse_arguments(words)
    assert message in capsys.readouterr().err
    assert forecasting.parse_arguments(["--token_credit", '{"random": {}}']).token_credit == '{"random": {}}'
