"""The reward of forecasts: what counts as a stated probability, against a table by hand; the score; its data."""

import functools
import math
import random
import time

import pytest
from datasets import Dataset

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.rewards import brier_reward, read_probability
from trl_fork.rewards.functions import get_reward_function


# ---------------------------------------------------------------------- the parser

STATED = [
    # The last percentage
    ("Probability: 73%", 0.73),
    ("Probability: 07%", 0.07),
    ("73 % or so", 0.73),
    (r"It is $73\%$.", 0.73),
    (r"It is $73\,$ or 61 \%.", 0.61),
    ("**73%**", 0.73),
    ("73\N{NO-BREAK SPACE}%", 0.73),
    ("73\N{FULLWIDTH PERCENT SIGN}", 0.73),
    ("73 percent", 0.73),
    ("73 per cent", 0.73),
    ("73.5%", 0.735),
    ("73,5%", 0.735),
    (".5%", 0.005),
    ("0.5%", 0.005),
    ("100%", 1.0),
    ("0%", 0.0),
    ("1e1%", 0.1),
    ("from 20% to 30%", 0.3),
    ("60-70%", 0.7),
    ("60%-70%", 0.7),
    ("60 \N{EN DASH} 70%", 0.7),
    ("win-70%", 0.7),
    ("- 70%", 0.7),
    ("--70%", 0.7),
    ("30% at first, answer: 0.8", 0.3),
    ("Probability: 73%. That is 3 of 4, or 0.75.", 0.73),
    # After the reasoning
    ("<think>20%</think>Probability: 73%", 0.73),
    ("20%</think>30%</think> 73%", 0.73),
    ("<think>20%</think> 0.4", 0.4),
    ("<think>I think 20%", 0.2),
    # The number after the last cue
    ("Probability: 0.73", 0.73),
    ("**Probability:** 0.73", 0.73),
    ("PROBABILITY = .73", 0.73),
    ("The probability of a win is 0.73.", 0.73),
    ("Answer: The probability of winning is 0.7", 0.7),
    ("Forecast: 1", 1.0),
    ("Probability: 1.", 1.0),
    ("Probability: 0,73", 0.73),
    ("Probability: 0,125", 0.125),
    ("The probability is 0.73, and not 0.4", 0.73),
    ("Probability: 0.2. Probability: 0.9, not 0.1", 0.9),
    ("Probability: 7.3e-1", 0.73),
    ("They lead 1-0 in Q1. Probability: 0.73", 0.73),
    # The last number in [0, 1]
    ("0.73", 0.73),
    ("I would say .73", 0.73),
    (r"\boxed{0.73}", 0.73),
    ("0.2, or rather 0.4, as they lead by 12", 0.4),
    ("0.4 with 0:45 to play and a score of 1-0", 0.4),
    ("0.4 in Q1, the 1st quarter, or 1/2 of it", 0.4),
    ("p=0.4", 0.4),
]

NOT_STATED = [
    "",
    "I cannot say.",
    "150%",
    "-5%",
    "(-5%)",
    "\N{MINUS SIGN}5%",
    "1,000%",
    "1/2%",
    "1e999%",
    "1e999",
    "nan",
    "nan%",
    "inf%",
    "%",
    "100.0001%",
    "30%, no: 150%",
    "0.5, or 150%",
    "Probability:",
    "0.4. Probability:",
    "Probability: 73",
    "Probability: -0.5",
    "Probability: 1.5, or 0.5",
    "Probability: 1/2",
    "Probability: 1 in 4",
    "Probability: 3 to 1",
    "Probability: 0.6-0.7",
    "Probability: 1,000",
    "Probability: 1.2.3",
    "Probability: 0.5x",
    "0.3</think>",
    "30%</think>40%</think>",
    "1,000,000%",
    "Probability: 0.6\N{EN DASH}0.7",
    "x_0",
    "12 points, 45 seconds",
    "1 out of 4",
    "\N{ARABIC-INDIC DIGIT SEVEN}\N{ARABIC-INDIC DIGIT ZERO}%",
    "\N{FULLWIDTH DIGIT SEVEN}0%",
    "\N{SUPERSCRIPT TWO}0%",
    "x0%",
    "so...7",
    "\ud800",
    "\x00",
]


@pytest.mark.parametrize(("text", "probability"), STATED)
def test_stated(text, probability):
    assert read_probability(text) == pytest.approx(probability, abs=1e-12)


@pytest.mark.parametrize("text", NOT_STATED)
def test_not_stated(text):
    assert read_probability(text) is None
    assert brier_reward([text], target=[0.5]) == [0.0]


SIZE = 3 * 10**5
LONG = {
    "digits": "7" * SIZE,
    "digits and a percent sign": "7" * SIZE + "%",
    "decimals": "0." + "3" * SIZE,
    "points": "1." * (SIZE // 2),
    "points alone": "." * SIZE,
    "commas": "1,000" + ",000" * (SIZE // 4) + "x%",
    "exponents": "1e" * (SIZE // 2),
    "numbers": "0 " * (SIZE // 2),
    "numbers too large": "9 " * (SIZE // 2),
    "spaces": "1" + " " * SIZE + "%",
    "many spaces": "1   " * (SIZE // 4),
    "backslashes": "1" + "\\" * SIZE,
    "percent signs": "%" * SIZE,
    "cues": "probability " * (SIZE // 12),
    "cues that end": "probability is " * (SIZE // 15),
    "words": "probability" * (SIZE // 11),
    "dashes": "1-" * (SIZE // 2),
    "ends of reasoning": "</think>" * (SIZE // 8),
    "letters": "a" * SIZE,
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_text_takes_linear_time(name):
    def seconds(text):
        started = time.process_time()
        read_probability(text)
        return time.process_time() - started

    assert seconds(LONG[name]) < 5  # of the processor; a quadratic search would take minutes


def test_no_text_raises():
    rng = random.Random(0)
    pieces = [
        "1",
        "0.5",
        "%",
        "-",
        "/",
        ".",
        ",",
        "e",
        " ",
        "\n",
        "probability",
        ":",
        "is",
        "</think>",
        "\N{ARABIC-INDIC DIGIT SEVEN}",
        "\ud800",
    ]
    pieces += ["9" * 400, "e999", "e-999", "\\", "(", "percent", "x", "\N{EN DASH}", "1,000"]
    found = set()
    for _ in range(20_000):
        p = read_probability("".join(rng.choices(pieces, k=rng.randint(1, 12))))
        assert p is None or (type(p) is float and 0 <= p <= 1)
        found.add(p)
    assert {None, 0.5, 0.005} < found


# ---------------------------------------------------------------------- the score


def oracle(p, target):
    """Equation of arXiv 2607.00164 for lambda = 1."""
    return 0.0 if p is None else 1 - (min(0.99, max(0.01, p)) - target) ** 2


def test_score():
    texts = ["Probability: 80%"] * 4 + ["0%", "0%", "100%", "100%", "none", "1%"]
    stated = [0.8] * 4 + [0, 0, 1, 1, None, 0.01]
    targets = [1, 0, 0.8, 0.25, 0, 1, 1, 0, 0.5, 1]
    expected = [oracle(p, target) for p, target in zip(stated, targets, strict=True)]
    assert brier_reward(texts, target=targets) == pytest.approx(expected, abs=1e-12)
    assert expected[:4] == pytest.approx([0.96, 0.36, 1, 0.6975])
    # Even the worst forecast earns more than none.
    assert min(value for value in expected if value) == pytest.approx(0.0199) and expected[8] == 0


def test_it_is_proper():
    """The mean reward over outcomes is highest where the forecast is their probability."""

    def mean(percent, p):
        won, lost = brier_reward([f"{percent}%"] * 2, target=[1, 0])
        return p * won + (1 - p) * lost

    for p in (0.05, 0.3, 0.5, 0.92):
        assert max(range(1, 100), key=lambda percent: mean(percent, p)) == round(100 * p)


def test_text_and_messages():
    text = "<think>20%</think>Probability: 80%"
    says = {"role": "assistant", "content": text}
    calls = {"role": "assistant", "content": None, "tool_calls": []}
    tool = {"role": "tool", "name": "odds", "content": "30%"}
    parts = {
        "role": "assistant",
        "content": [{"type": "text", "text": "Probability: "}, {"type": "text", "text": "80%"}],
    }
    completions = [text, [says], [calls, tool, says], [parts], [calls, tool], [calls], [], ""]
    assert brier_reward(completions, target=[1.0] * 8) == pytest.approx([0.96] * 4 + [0] * 4)


def test_what_it_logs():
    logged, metrics = {}, {}
    brier_reward(["80%", "none"], [1, 0.5], log_extra=logged.__setitem__, log_metric=metrics.__setitem__, prompts=[])
    assert logged == {"target": [1, 0.5], "probability": [0.8, None]}
    assert metrics == {"forecast/stated": 0.5}


BAD = [None, math.nan, -0.1, 1.1, 73, math.inf, "0.5", [0.5]]


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_a_bad_target_is_refused(value):
    with pytest.raises(ValueError) as raised:
        brier_reward(["50%"] * 3, target=[0, True, value])
    message = str(raised.value)
    assert message.startswith("column 'target' (completion 2 of the batch): ") and repr(value) in message
    assert "a number in [0, 1]" in message and "Leave rows without one out" in message


# ---------------------------------------------------------------------- in training


def test_by_name():
    assert get_reward_function("brier_reward") is brier_reward
    with pytest.raises(ValueError, match=r"Did you mean 'brier_reward'\?"):
        get_reward_function("brier")


def data(targets):
    return Dataset.from_dict({"prompt": ["a"] * 16, **({} if targets is None else {"target": targets})})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, r"'brier_reward' needs the columns \['target'\] that train_dataset lacks"),
        ([0.5] * 3 + [None] + [0.5] * 12, r"train_dataset: row 3, column 'target': None is no target"),
        ([0.5] * 15 + [math.nan], r"train_dataset: row 15, column 'target': nan is no target"),
        ([73.0] * 16, r"train_dataset: row 0, column 'target': 73.0 is no target .* divide percentages by 100"),
        (["0.5"] * 16, r"train_dataset: row 0, column 'target': '0.5' is no target"),
    ],
    ids=["missing", "None", "NaN", "percent", "text"],
)
@pytest.mark.parametrize("reward", [brier_reward, functools.partial(brier_reward)], ids=["itself", "partial"])
def test_data_is_checked_before_the_first_step(reward, targets, message, model, tokenizer, tmp_path):
    args = ForkingGRPOConfig(tmp_path, use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match=message):
        ForkingGRPOTrainer(model, reward, args=args, train_dataset=data(targets), processing_class=tokenizer)


def test_evaluation_data_is_checked_too(model, tokenizer, tmp_path):
    args = ForkingGRPOConfig(tmp_path, use_cpu=True, bf16=False, report_to="none", eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match=r"eval_dataset: row 1, column 'target': 2.0 is no target"):
        ForkingGRPOTrainer(
            model, brier_reward, args=args, train_dataset=data([1] * 16), eval_dataset=data([1.0, 2.0] * 8),
            processing_class=tokenizer,
        )  # fmt: skip
