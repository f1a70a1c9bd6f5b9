"""What a reward function may return: one number or `None` per completion, in any kind of list."""

from decimal import Decimal

import numpy as np
import pytest
import torch

from trl_fork.rewards.returned import RewardError, returned_rewards


async def later():
    return [1.0, 2.0]


@pytest.mark.parametrize(
    "returned",
    [
        [0.5, None],
        (0.5, None),
        lambda: iter([0.5, None]),
        [torch.tensor(0.5), None],
        [torch.tensor([0.5]), None],
        [np.float32(0.5), None],
        [Decimal("0.5"), None],
        np.array([0.5, None]),
    ],
)
def test_numbers_of_all_kinds(returned):
    returned = returned() if callable(returned) else returned
    rewards = returned_rewards("mine", returned, 2)
    assert rewards == [0.5, None] and type(rewards[0]) is float


@pytest.mark.parametrize(
    ("returned", "wanted"),
    [
        (torch.tensor([0.5, 2.0]), [0.5, 2.0]),
        (torch.tensor([[0.5], [2.0]]), [0.5, 2.0]),
        (np.array([3, 2]), [3.0, 2.0]),
        ([True, False], [1.0, 0.0]),
        ([], []),
    ],
)
def test_whole_arrays_and_truth_values(returned, wanted):
    assert returned_rewards("mine", returned, len(wanted)) == wanted


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned nothing"),
        ("ab", "returned 'ab', of type str,"),
        (1.5, "returned 1.5, of type float,"),
        (torch.tensor(1.5), "of type Tensor,"),
        ({"a": 1.0, "b": 2.0}, "of type dict,"),
        ({1.0, 2.0}, "of type set,"),
        (later, "of type coroutine,"),
        ([1.0], "returned a list of 1."),
        ([1.0, 2.0, 3.0], "returned a list of 3."),
        ([1.0, "good"], "returned 'good', of type str, for completion 1 (counted from 0)."),
        ([1.0, "2.0"], "returned '2.0', of type str, for completion 1"),
        ([[1.0], 2.0], "returned [1.0], of type list, for completion 0"),
        ([1.0, {"score": 2.0}], "of type dict, for completion 1"),
        ([1.0, 1j], "of type complex, for completion 1"),
        (torch.ones(2, 3), "of type Tensor, for completion 0"),
        ([1.0, "x" * 250], "xxx..., of type str, for completion 1"),
    ],
)
def test_what_is_no_reward(returned, message):
    returned = returned() if callable(returned) else returned
    with pytest.raises(RewardError) as raised:
        returned_rewards("mine", returned, 2)
    text = str(raised.value)
    assert text.startswith("The reward function 'mine' must return a list of 2, one float or None per completion, and")
    assert message in text and len(text) < 250
