"""What a reward must be given, and data that cannot be trained on, before hours are spent."""

import asyncio
import functools
import inspect
import logging

import pytest
from datasets import Dataset

from tests.conftest import LETTERS, build_tokenizer
from trl_fork import ForkingGRPOConfig
from trl_fork.data.columns import REWARD_ARGUMENTS
from trl_fork.rewards.grading import accuracy_reward
from trl_fork.trainer.checks import check_tokenizer, check_training_data, required_columns, warn_of_overlap


def plain(completions, answer, **kwargs):
    return [0.0] * len(completions)


async def asynchronous(completions, answer, **kwargs):
    return [0.0] * len(completions)


class Reward:
    def __call__(self, completions, answer, **kwargs):
        return [0.0] * len(completions)

    def method(self, completions, answer, **kwargs):
        return [0.0] * len(completions)

    @classmethod
    def of_the_class(cls, completions, answer, **kwargs):
        return [0.0] * len(completions)


class Wrapping:
    """A decorator that is a class, as `functools.update_wrapper` is used with."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, completions, **kwargs):
        return self.function(completions, answer=["1"] * len(completions))


@functools.wraps(plain)
def supplies(completions, **kwargs):
    return plain(completions, answer=["1"] * len(completions))


@functools.wraps(plain)
def renames(completions, gold, **kwargs):
    return plain(completions, answer=gold)


@functools.wraps(plain)
def forwards(*args, **kwargs):
    return plain(*args, **kwargs)


bound = functools.partial(plain, answer=["1"] * 4)
REWARDS = {
    "plain": (plain, ["answer"]),
    "async": (asynchronous, ["answer"]),
    "object": (Reward(), ["answer"]),
    "method": (Reward().method, ["answer"]),
    "class method": (Reward.of_the_class, ["answer"]),
    "partial of another argument": (functools.partial(plain, weight=2), ["answer"]),
    "partial": (bound, []),
    "partial of a partial": (functools.partial(bound, weight=2), []),
    "partial of an async function": (functools.partial(asynchronous, answer=["1"] * 4), []),
    "partial of an object": (functools.partial(Reward(), answer=["1"] * 4), []),
    "update_wrapper of a partial": (functools.update_wrapper(functools.partial(plain, answer=["1"] * 4), plain), []),
    "update_wrapper of a partial of another argument": (
        functools.update_wrapper(functools.partial(plain, weight=2), plain),
        ["answer"],
    ),
    "wrapper that supplies": (supplies, []),
    "wrapper that renames": (renames, ["gold"]),
    "wrapper that forwards": (forwards, []),
    "partial of a wrapper": (functools.partial(renames, gold=["1"] * 4), []),
    "wrapping object": (Wrapping(plain), []),
    "partial of a method": (functools.partial(Reward().method, answer=["1"] * 4), []),
    "wrapped as a partial": (functools.wraps(bound)(lambda completions, **kwargs: [0.0]), []),
    "any": (lambda **kwargs: [0.0], []),
    "with a default": (lambda completions, answer=None, **kwargs: [0.0], []),
    "trainer's own": (lambda prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **kw: [], []),
    "ours": (accuracy_reward, ["solution"]),
    "reward model": ("some/model", []),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_needs_what_its_call_does_not_bind(name, tmp_path):
    function, needed = REWARDS[name]
    assert required_columns(function) == needed
    given = {name: [name] for name in ("prompts", "completions", "completion_ids")}
    given |= dict.fromkeys(("trainer_state", "log_extra", "log_metric"))

    def call(**columns):
        result = function(**given, **columns)
        if inspect.isawaitable(result):
            asyncio.run(result)

    # As the trainer calls it: with these columns it can be called, and without one of them it cannot.
    if name not in ("wrapper that forwards", "reward model"):
        call(**{column: ["1"] for column in needed})
    for column in needed:
        with pytest.raises(TypeError, match=column):
            call(**{other: ["1"] for other in needed if other != column})

    args = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8)
    data = Dataset.from_dict({"prompt": ["p"] * 8})
    settings = {"prompt_is_optional": False, "extra_fields": False}
    if not needed:
        check_training_data(data, [function], args, **settings)
        return
    with pytest.raises(ValueError, match=rf"needs the columns \['{needed[0]}'\] that train_dataset lacks"):
        check_training_data(data, [function], args, **settings)
    data = data.add_column(needed[0], ["1"] * 8)
    check_training_data(data, [function], args, **settings)
    for evaluated in (data.remove_columns(needed), {"easy": data, "eval_dataset": data.remove_columns(needed)}):
        with pytest.raises(ValueError, match=rf"needs the columns \['{needed[0]}'\] that eval_dataset lacks"):
            check_training_data(data, [function], args, eval_dataset=evaluated, **settings)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda completions: [],
            r"does not take \['prompts', 'completion_ids', .*\], which the trainer passes to every",
        ),
        (lambda completions, prompt, **kwargs: [], r"takes \['prompt'\], which the trainer does not pass: it passes"),
        (functools.partial(lambda completion, **kwargs: []), r"takes \['completion'\], which the trainer does not"),
    ],
)
def test_rewards_that_could_not_be_called(function, message, tmp_path):
    args = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8)
    data = Dataset.from_dict({"prompt": ["p"] * 8, "completion": ["c"] * 8})
    with pytest.raises(TypeError):  # as the trainer calls it, with every column but these two
        function(**dict.fromkeys(REWARD_ARGUMENTS, ()))
    with pytest.raises(ValueError, match=message):
        check_training_data(data, [function], args, prompt_is_optional=False, extra_fields=False)


def test_columns_that_would_be_removed(tmp_path):
    args = ForkingGRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8, remove_unused_columns=True
    )
    data = Dataset.from_dict({"prompt": ["p"] * 8, "answer": ["1"] * 8})
    check_training_data(data, [bound], args, prompt_is_optional=False, extra_fields=False)
    function = functools.partial(plain, weight=2)
    with pytest.raises(ValueError, match=r"remove_unused_columns is set, .*\['answer'\] .* function 'plain' needs"):
        check_training_data(data, [function], args, prompt_is_optional=False, extra_fields=False)


def test_a_wrapper_that_may_need_more_is_warned_of(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    args = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8)
    data = Dataset.from_dict({"prompt": ["p"] * 8})
    for function, warned in (
        (forwards, True),
        (supplies, True),
        (Wrapping(plain), True),
        (bound, False),
        (plain, False),
    ):
        caplog.clear()
        columns = data if warned or function is bound else data.add_column("answer", ["1"] * 8)
        check_training_data(columns, [function], args, prompt_is_optional=False, extra_fields=False)
        assert ("'plain' wraps one that needs ['answer'], which train_dataset lacks" in caplog.text) == warned


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["p", None] * 4}, "train_dataset: row 1, column 'prompt': the prompt is None"),
        ({"completions": ["c"] * 8}, r"train_dataset has the columns \['completions'\], which are arguments"),
        ({"log_extra": ["c"] * 8}, r"train_dataset has the columns \['log_extra'\], which are arguments"),
        (
            {"messages": [[{"role": "user", "content": "p"}]] * 8},
            r"train_dataset has the columns \['messages'\], one of",
        ),
    ],
    ids=str,
)
def test_data_that_trl_would_stumble_over(columns, message, tmp_path):
    args = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8)
    data = Dataset.from_dict({"prompt": ["p"] * 8} | columns)
    with pytest.raises(ValueError, match=message):
        check_training_data(data, [], args, prompt_is_optional=False, extra_fields=False)


def test_a_missing_prompt_in_rows_that_were_left_out_is_none(tmp_path):
    args = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8)
    data = Dataset.from_dict({"prompt": ["p"] * 8 + [None]}).select(range(8))
    check_training_data(data, [], args, prompt_is_optional=False, extra_fields=False)


def test_conversations_without_a_template():
    tokenizer = build_tokenizer()
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "ab"}]}])
    check_tokenizer(tokenizer, data)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat_template .* For a base model, give prompts as plain strings"):
        check_tokenizer(tokenizer, data)
    with pytest.raises(ValueError, match="For a base model, set --prompt_template"):
        check_tokenizer(tokenizer, data, plain_prompts="set --prompt_template")
    check_tokenizer(tokenizer, Dataset.from_list([{"prompt": "ab"}]))


def test_messages_in_the_format_of_this_template():
    """A template that is in no list of formats is found too."""
    tokenizer = build_tokenizer()
    wrapped = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert wrapped == "<user>ab"
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": wrapped}]}])
    with pytest.raises(
        ValueError, match=r"row 0, column 'prompt': the message holds \['<user>'\], so that it is in chat"
    ):
        check_tokenizer(tokenizer, data)
    check_tokenizer(tokenizer, Dataset.from_list([{"prompt": wrapped}]))
    check_tokenizer(tokenizer, Dataset.from_list([{"prompt": [{"role": "user", "content": LETTERS}]}]))


def test_problems_in_both_sets_are_counted(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    train, held_out = (Dataset.from_dict({"prompt": texts}) for texts in (["a", "b", "c"], ["c", "d"]))
    warn_of_overlap(train, held_out)
    assert "eval_dataset: 1 of its 2 prompts are in the training data too" in caplog.text
    caplog.clear()
    warn_of_overlap(train, held_out.select([1]))
    warn_of_overlap(train.to_iterable_dataset(), held_out)
    assert not caplog.text
