"""Rewards by name, and the penalty for overlong completions against the authors' formula."""

import pytest
import trl.rewards

from trl_fork.rewards.functions import get_reward_function
from trl_fork.rewards.grading import accuracy_reward


def test_by_name_and_path(tmp_path, monkeypatch):
    assert get_reward_function("accuracy_reward") is accuracy_reward
    (tmp_path / "own_rewards_for_test.py").write_text(
        "import math\nclass Exact:\n    pass\ndef exact(completions, **kwargs):\n    return [1.0]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    assert get_reward_function("own_rewards_for_test.exact")(None) == [1.0]
    for name, message in (
        ("acuracy_reward", r"unknown reward function 'acuracy_reward'. Pass one of \['accuracy_reward'"),
        ("no_such_module_here.f", "cannot import 'no_such_module_here.f'"),
        ("own_rewards_for_test.missing", "cannot import"),
        ("own_rewards_for_test.math", "reward_funcs: 'own_rewards_for_test.math' is not callable"),
        ("own_rewards_for_test.Exact", "is a class: name an instance of it"),
    ):
        with pytest.raises(ValueError, match=message):
            get_reward_function(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("accuracy", "accuracy_reward"), ("format", "think_format_reward"), ("acuracy_reward", "accuracy_reward")],
)
def test_the_name_that_was_meant(name, meant):
    with pytest.raises(ValueError, match=rf"Did you mean '{meant}'\?"):
        get_reward_function(name)


@pytest.mark.parametrize("name", ["accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"])
def test_plain_text_is_scored_as_a_message_is(name):
    reward = get_reward_function(name)
    texts = ["<think>\na\n</think>\n\\boxed{2}", "<think>\na\n</think>\n\\boxed{3}", "none"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    scores = reward(completions=texts, solution=["2"] * 3)
    assert scores == reward(completions=messages, solution=["2"] * 3)
    assert scores == getattr(trl.rewards, name)(messages, solution=["2"] * 3)
    assert len(set(scores)) > 1, "one score for all would hide a difference"


def test_overlong_penalty_is_the_authors():
    penalty = get_reward_function("soft_overlong_punishment", max_completion_len=20480, soft_punish_cache=4096)
    lengths = [1, 16383, 16384, 16385, 17408, 18432, 20479, 20480]
    # recipe/dapo of the authors' code: min(-exceed_len / overlong_buffer_len * overlong_penalty_factor, 0)
    expected = [min(-(length - 16384) / 4096 * 1.0, 0) for length in lengths]
    assert penalty(completion_ids=[[0] * length for length in lengths]) == pytest.approx(expected, abs=1e-12)
    assert [expected[2], expected[5], expected[7]] == [0, -0.5, -1]
    # No completion is longer than max_completion_length. Were one, the formula would fall on; TRL stays at -1.
    assert penalty(completion_ids=[[0] * 20481, [0] * 30000]) == [-1.0, -1.0]


@pytest.mark.parametrize("lengths", [(None, 4096), (20480, None), (20480, 0), (1024, 4096)])
def test_overlong_penalty_without_a_slope_is_refused(lengths):
    longest, cache = lengths
    with pytest.raises(ValueError, match=rf"soft_overlong_punishment falls from 0 to -1.* got {cache} and {longest}"):
        get_reward_function("soft_overlong_punishment", max_completion_len=longest, soft_punish_cache=cache)
