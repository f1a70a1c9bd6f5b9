"""
A task of forecasting, small enough for a laptop: who wins a game, from the score, the clock and the teams' strength.

The question ` lead +3 minutes 12 rating -1` asks for the probability that the team that leads by 3 with 12 minutes to
play, and is the weaker one, wins. The truth is known: the margin moves like a random walk whose drift is the rating.
What a data set holds is one game per row, won or lost.

A demonstration reasons in a word and states a probability, as an overconfident commentator does:

    up by 3 and 12 to play. likely. Probability: 81%
"""

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..data.rates import HierarchicalRates
from .digit_sums import build_tokenizer


MARGINS, MINUTES, RATINGS = range(-12, 13), range(1, 25), range(-2, 3)
DRIFT = 0.15  # of the margin: points a minute for each point of the rating
SPREAD = 2.0  # of the margin: points per square root of a minute

# Bins of the empirical rates, in the order of their levels: an edge belongs to the bin above it.
FEATURES = {"margin": (-7, -3, -1, 1, 2, 4, 8), "minutes": (4, 9, 16), "rating": None}
HELD_OUT = 0.25  # share of the cells

OVERCONFIDENCE, NOISE = 2.5, 0.7  # of the commentator, in log-odds: the slope, and the standard deviation
WORDS = ((0.1, "lost"), (0.4, "unlikely"), (0.6, "open"), (0.9, "likely"), (1.0, "safe"))


@dataclass(frozen=True)
class Game:
    """
    The state of a game.

    Args:
        margin (`int`): Points ahead.
        minutes (`int`): Minutes to play.
        rating (`int`): Strength of the team, less that of the other one.
    """

    margin: int
    minutes: int
    rating: int

    @property
    def features(self) -> dict[str, int]:
        return {"margin": self.margin, "minutes": self.minutes, "rating": self.rating}


def all_games() -> list[Game]:
    return [Game(margin, minutes, rating) for margin in MARGINS for minutes in MINUTES for rating in RATINGS]


def true_probability(game: Game) -> float:
    """Of a win: that the margin ends above 0."""
    z = (game.margin + DRIFT * game.rating * game.minutes) / (SPREAD * math.sqrt(game.minutes))
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def cell(game: Game) -> tuple:
    """The deepest cell of a game in the table of empirical rates."""
    return HierarchicalRates(FEATURES).cell(game.features)


def is_held_out(game: Game) -> bool:
    """Whether a game is in one of the cells that are never trained on, neither in the warm-up nor in RL."""
    digest = hashlib.md5(bytes(cell_index % 256 for cell_index in cell(game))).digest()
    return digest[0] < 256 * HELD_OUT


def play(games: list[Game], number: int, rng: random.Random) -> list[tuple[Game, int]]:
    """Draw games with repetition, and whether each was won."""
    drawn = rng.choices(games, k=number)
    return [(game, int(rng.random() < true_probability(game))) for game in drawn]


def question(game: Game) -> str:
    return f" lead {game.margin:+d} minutes {game.minutes} rating {game.rating:+d}"


def demonstration(game: Game, rng: random.Random) -> str:
    """What the commentator says: too sure of it, and never the same twice."""
    p = min(max(true_probability(game), 1e-3), 1 - 1e-3)
    felt = 1 / (1 + math.exp(-(OVERCONFIDENCE * math.log(p / (1 - p)) + rng.gauss(0, NOISE))))
    word = next(word for limit, word in WORDS if felt <= limit)
    state = "level" if game.margin == 0 else f"{'up' if game.margin > 0 else 'down'} by {abs(game.margin)}"
    percent = min(max(round(100 * felt), 1), 99)
    return f"{state} and {game.minutes} to play. {word}. Probability: {percent:02d}%"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign. Decoding returns the text exactly."""
    words = [f" {word}" for _, word in WORDS]
    phrases = (" lead +- minutes rating", "level and to play", "up by", "down by", *words, " Probability: %")
    return build_tokenizer(phrases)


def rows(played: list[tuple[Game, int]], target_rates: list[float]) -> list[dict[str, Any]]:
    """Rows of a data set: the question, the state and the outcome of each game, and the rate of games like it."""
    return [
        {
            "prompt": question(game),
            **game.features,
            "outcome": outcome,
            "target_rate": rate,
            "cell": list(cell(game)),
        }
        for (game, outcome), rate in zip(played, target_rates, strict=True)
    ]
