"""Schedules against the published curves of Temporal Scheduling (arXiv 2605.25381), evaluated from its code."""

import json
from math import exp

import pytest

from trl_fork.credit import as_schedule


PLACES = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]  # shares of the horizon
# `1 - s` of its code for linear and sigmoid. `power` starts at 0.01 like the others, where the code squares 0.99, too.
VECTORS = {
    "linear": [0.010, 0.109, 0.2575, 0.505, 0.7525, 0.901, 1],
    "sigmoid": [0.010, 0.0318, 0.1139, 0.505, 0.8961, 0.9782, 1],
    "power": [0.010, 0.1981, 0.4431, 0.7525, 0.9381, 0.9901, 1],
}


def fraction(value):
    return as_schedule(value, name="fraction", low=0, high=1)


@pytest.mark.parametrize("shape", VECTORS)
@pytest.mark.parametrize("horizon", [0.8, 1.0, 0.25])
def test_published_curves(shape, horizon):
    schedule = fraction({shape: [0.01, 1.0, horizon]})
    values = [schedule(place * horizon) for place in PLACES]
    assert values == pytest.approx(VECTORS[shape], abs=5.1e-5)
    assert values[0] == 0.01 and values[-1] == 1.0
    assert schedule(1.0) == 1.0 and schedule(-0.1) == 0.01
    assert not schedule.is_constant


@pytest.mark.parametrize("shape", VECTORS)
def test_values_are_decimals_that_print_the_same_everywhere(shape):
    schedule = fraction({shape: [0.01, 1.0, 0.8]})
    values = [schedule(step / 997) for step in range(998)]
    assert values == sorted(values)
    assert all(len(f"{value!r}".split(".")[1]) <= 6 for value in values)


def test_sigmoid_by_its_formula():
    def f(q):
        return 1 / (1 + exp(8 * (q - 0.5)))

    schedule = as_schedule({"sigmoid": [0.99, 0.0, 1.0]}, name="strength", low=0, high=1, low_included=True)
    for q in (0.03, 0.2, 0.41, 0.77):
        assert schedule(q) == pytest.approx(0.99 * (f(q) - f(1)) / (f(0) - f(1)), abs=6e-7)


def test_numbers_stay_as_they_are_written():
    for value in (0.2, 1, 1e-07):
        constant = fraction(value)
        assert constant.is_constant and constant(0.0) == constant(0.7) == value
        assert repr(constant.describe()) == repr(value)
    assert fraction({"linear": [0.3, 0.3, 0.5]}).is_constant


def test_descriptions_come_back():
    for value in (0.2, {"linear": [0.01, 1.0, 0.8]}, {"power": [0.5, 0.1, 1]}):
        schedule = fraction(value)
        assert json.loads(json.dumps(schedule.describe())) == value
        assert fraction(schedule.describe()) == schedule == fraction(schedule)
        assert repr(fraction(value)) == repr(schedule)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, r"fraction must be in \(0, 1\], got 0"),
        (1.01, r"fraction must be in \(0, 1\], got 1.01"),
        (float("nan"), "got nan"),
        (float("inf"), "got inf"),
        (True, "fraction must be a number or a schedule.*got True"),
        (None, "got None"),
        ("1e-2", "got '1e-2'"),
        ([0.1, 1.0, 0.8], "must be a number or a schedule"),
        ({}, "one shape of .*'linear', 'sigmoid', 'power'"),
        ({"cosine": [0.1, 1.0, 0.8]}, "'cosine'"),
        ({"linear": [0.1, 1.0]}, r"start, end, horizon"),
        ({"linear": 0.1}, r"start, end, horizon"),
        ({"linear": [0.1, 1.0, 0.8], "power": [0.1, 1.0, 0.8]}, "with one shape"),
        ({"linear": [0.1, "1.0", 0.8]}, "must be numbers"),
        ({"linear": [0.0, 1.0, 0.8]}, r"fraction must be in \(0, 1\], got 0.0 in {'linear'"),
        ({"linear": [1e-7, 1.0, 0.8]}, r"fraction must be in \(0, 1\], got 0.0 in"),
        ({"linear": [0.1, 1.5, 0.8]}, "got 1.5 in"),
        ({"linear": [0.1, float("nan"), 0.8]}, "got nan in"),
        ({"linear": [0.1, 1.0, 0]}, r"horizon of a schedule must be in \(0, 1\], got 0"),
        ({"linear": [0.1, 1.0, 1.1]}, r"horizon of a schedule must be in \(0, 1\], got 1.1"),
    ],
)
def test_bad_values(value, message):
    with pytest.raises(ValueError, match=message) as error:
        fraction(value)
    assert "fraction" in str(error.value)


def test_included_bound():
    assert as_schedule(0, name="strength", low=0, high=2, low_included=True)(0.5) == 0
    with pytest.raises(ValueError, match=r"strength must be in \[0, 2\], got -0.1"):
        as_schedule(-0.1, name="strength", low=0, high=2, low_included=True)
