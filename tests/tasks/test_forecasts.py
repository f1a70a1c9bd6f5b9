"""The made-up world of forecasts: its truth, its held-out cells, what its commentator says."""

import json
import math
import random

import pytest
from scipy.stats import norm

from trl_fork.rewards import read_probability
from trl_fork.tasks import forecasts as task
from trl_fork.tasks.forecasts import Game


@pytest.mark.parametrize("game", [Game(3, 12, -1), Game(0, 24, 0), Game(-12, 1, 2), Game(5, 4, 2)])
def test_the_true_probability_is_that_of_a_random_walk_with_drift(game):
    end = norm(game.margin + task.DRIFT * game.rating * game.minutes, task.SPREAD * math.sqrt(game.minutes))
    assert task.true_probability(game) == pytest.approx(end.sf(0), abs=1e-12)


def test_outcomes_follow_the_truth():
    played = task.play([Game(3, 12, -1)], 4000, random.Random(0))
    wins = sum(outcome for _, outcome in played)
    assert abs(wins / 4000 - task.true_probability(Game(3, 12, -1))) < 4 * math.sqrt(0.25 / 4000)


def test_no_held_out_cell_is_trained_on():
    games = task.all_games()
    held_out = {task.cell(game) for game in games if task.is_held_out(game)}
    trained = {task.cell(game) for game in games if not task.is_held_out(game)}
    assert not held_out & trained
    assert 0.15 < len(held_out) / len(held_out | trained) < 0.35
    # Every margin and every time of a held-out cell is known from other cells.
    assert {margin for margin, _, _ in held_out} <= {margin for margin, _, _ in trained}
    assert {minutes for _, minutes, _ in held_out} <= {minutes for _, minutes, _ in trained}


def test_the_commentator_is_too_sure_and_states_it():
    rng = random.Random(0)
    games = rng.choices(task.all_games(), k=3000)
    stated = [read_probability(task.demonstration(game, rng)) for game in games]
    surer = [
        abs(p - 0.5) > abs(task.true_probability(game) - 0.5)
        for p, game in zip(stated, games, strict=True)
        if 0.02 < task.true_probability(game) < 0.98
    ]
    assert len(surer) > 1000 and sum(surer) / len(surer) > 0.7
    assert min(stated) == 0.01 and max(stated) == 0.99


def test_texts_survive_the_tokenizer_and_fit():
    tokenizer, rng = task.make_tokenizer(), random.Random(0)
    longest = 0
    for game in task.all_games():
        for text in (task.question(game), task.demonstration(game, rng)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
        longest = max(longest, len(ids) + 1)  # with the end token

    from examples.forecasting import MAX_COMPLETION_LENGTH

    assert longest <= MAX_COMPLETION_LENGTH


def test_rows_are_json():
    (row,) = task.rows([(Game(3, 12, -1), 1)], [0.6])
    assert json.loads(json.dumps(row)) == row
    assert (row["prompt"], row["outcome"], row["target_rate"]) == (" lead +3 minutes 12 rating -1", 1, 0.6)
