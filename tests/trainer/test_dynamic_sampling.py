"""Dynamic sampling: which groups make the batch, and that the step is the one of those groups alone."""

import itertools
import logging
import math
from fractions import Fraction

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.conftest import (
    NUM_GENERATIONS,
    FixedRollouts,
    SpyTrainer,
    build_model,
    gradient,
    naive_view,
    relative_difference,
    train,
    weight_change,
)
from tests.oracles import Rollout, credit, informative_batch, loss, select
from tests.oracles import advantages as naive_advantages
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.trainer import groups
from trl_fork.trainer.groups import draw_prompts
from trl_fork.trainer.metrics import LENGTH_METRICS, combine_rounds


SPREAD = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
WANTED = 4  # groups of a batch


def rollouts_with(tokenizer, informative: list[bool], **kwargs) -> FixedRollouts:
    """One prompt per entry; the groups of the others are right or wrong throughout."""
    rewards = [SPREAD if spread else [float(n % 2)] * NUM_GENERATIONS for n, spread in enumerate(informative)]
    return FixedRollouts(tokenizer, prompts=len(informative), rewards=rewards, **kwargs)


def groups_of(rounds: list[list[Rollout]]) -> list[list[Rollout]]:
    rows = [rollout for generated in rounds for rollout in generated]
    return [rows[i : i + NUM_GENERATIONS] for i in range(0, len(rows), NUM_GENERATIONS)]


def final_batch(rounds: list[list[Rollout]]) -> list[Rollout]:
    return informative_batch(rounds, NUM_GENERATIONS, WANTED)


def naive_gradient(start, batch):
    entropies, advantages = naive_view(start, batch)
    selected = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    return gradient(start, loss(start, batch, advantages, selected, len(selected)))


# ---------------------------------------------------------------------- one process


@pytest.mark.parametrize("micro_batch", [32, 4])
@pytest.mark.parametrize("skip_inert_compute", [True, False])
def test_step_is_that_of_the_informative_groups(
    micro_batch, skip_inert_compute, model, start, tokenizer, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    informative = [False, True, False, False, True, False, True, True, False, True, True, False]
    rollouts = rollouts_with(tokenizer, informative)
    steps = 32 // micro_batch
    with caplog.at_level(logging.WARNING):
        trainer = train(
            model, tokenizer, rollouts, tmp_path, dynamic_sampling=True, skip_inert_compute=skip_inert_compute,
            per_device_train_batch_size=micro_batch, gradient_accumulation_steps=steps, steps_per_generation=steps,
            shuffle_dataset=False,
        )  # fmt: skip
    assert len(rollouts.generated) > 1, "one round must not have been enough"
    batch = final_batch(rollouts.generated)
    assert all(len({r.reward for r in batch if r.group == group}) > 1 for group in range(WANTED))
    assert relative_difference(weight_change(start, model), naive_gradient(start, batch)) < 1e-5
    rows = sorted(row for rows in trainer.micro_batches for row in rows)
    assert set(rows) <= set(range(32))
    assert skip_inert_compute or rows == list(range(32)), "the configured shape"
    assert trainer.scoring_passes == 1, "only the final batch is scored"
    assert "topped up" not in caplog.text

    log = trainer.state.log_history[0]
    groups = groups_of(rollouts.generated)
    spread = [len({rollout.reward for rollout in group}) > 1 for group in groups]
    rewards = torch.tensor([rollout.reward for group in groups for rollout in group])
    assert log["dynamic_sampling/rounds"] == len(rollouts.generated)
    assert log["dynamic_sampling/informative_group_fraction"] == pytest.approx(sum(spread) / len(spread))
    assert log["dynamic_sampling/surplus_groups"] == sum(spread) - WANTED
    # Everything that was generated, not what was kept
    assert log["reward"] == pytest.approx(rewards.mean().item())
    assert log["rewards/fixed_reward/std"] == pytest.approx(rewards.std().item())
    assert log["frac_reward_zero_std"] == pytest.approx(1 - sum(spread) / len(spread))
    assert log["num_tokens"] == sum(len(r.prompt) + len(r.completion) for group in groups for r in group)


def test_rollouts_are_chosen_within_the_groups_of_the_final_batch(model, start, tokenizer, tmp_path):
    """Half of each group that was kept, by entropies and advantages of the final batch."""
    rollouts = rollouts_with(tokenizer, [False, True, False, False, True, False, True, True])
    trainer = train(
        model, tokenizer, rollouts, tmp_path, dynamic_sampling=True, shuffle_dataset=False,
        per_device_train_batch_size=8, gradient_accumulation_steps=4, steps_per_generation=4,
        token_credit={"rollouts": {"negatives": "low_entropy_sum", "top_tokens": 0.3}},
    )  # fmt: skip
    assert len(rollouts.generated) > 1
    batch = final_batch(rollouts.generated)
    entropies, advantages = naive_view(start, batch)
    rule = {"kind": "rollouts", "negatives": "low_entropy_sum", "top_tokens": 0.3}
    weights = credit(batch, [rule], {"entropy": entropies}, [], advantages.values())
    assert len({row for row, _ in weights}) == 16 == sum(map(len, trainer.micro_batches))
    expected = gradient(start, loss(start, batch, advantages, weights, len(weights)))
    assert relative_difference(weight_change(start, model), expected) < 1e-5


def test_padding_is_that_of_the_final_batch(model, start, tokenizer, tmp_path):
    """Rounds differ in their longest prompt and completion; groups of several are padded together."""

    class Unequal(FixedRollouts):
        def __call__(self, prompts, trainer):
            output = super().__call__(prompts, trainer)
            lengths.append(max(map(len, output["completion_ids"])))
            return output

    lengths = []
    informative = [True, False, False, False, True, True, True, True]
    rollouts = Unequal(
        tokenizer, prompts=8, rewards=[SPREAD if x else [0.0] * NUM_GENERATIONS for x in informative], env_mask=True
    )
    for (text, _), ids in rollouts.completions.items():
        if rollouts.texts.index(text) < 4:
            del ids[5:]
    rollouts.masks = {key: mask[: len(rollouts.completions[key])] for key, mask in rollouts.masks.items()}
    train(model, tokenizer, rollouts, tmp_path, dynamic_sampling=True, shuffle_dataset=False)
    assert len(set(lengths)) > 1
    batch = final_batch(rollouts.generated)
    assert {len(r.prompt) for r in batch} != {len(batch[0].prompt)}
    assert relative_difference(weight_change(start, model), naive_gradient(start, batch)) < 1e-5


def test_batch_is_topped_up_after_the_last_round(model, start, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    rollouts = rollouts_with(tokenizer, [False, True, False, False, False, False])
    with caplog.at_level(logging.WARNING):
        trainer = train(
            model, tokenizer, rollouts, tmp_path, dynamic_sampling=True, dynamic_sampling_max_rounds=2, max_steps=3,
            learning_rate=0.0, shuffle_dataset=False, top_entropy_quantile=0.9,
        )  # fmt: skip
    assert len(rollouts.generated) == 6, "two rounds for each of three batches"
    assert caplog.text.count("The batch is topped up") == 1
    assert "step 0 found" in caplog.text
    found = sum(len({r.reward for r in group}) > 1 for group in groups_of(rollouts.generated[:2]))
    assert 0 < found < WANTED
    assert trainer.state.log_history[0]["forking/inert_row_fraction"] == 1 - found / WANTED


def test_nothing_to_learn_from_changes_nothing(model, start, tokenizer, tmp_path):
    rollouts = rollouts_with(tokenizer, [False] * 6)
    train(model, tokenizer, rollouts, tmp_path, dynamic_sampling=True, dynamic_sampling_max_rounds=3)
    assert len(rollouts.generated) == 3
    assert weight_change(start, model).abs().max() == 0


class Refills(SpyTrainer):
    """Records the rows of the data set that refills have taken."""

    def __init__(self, *args, **kwargs):
        self.refilled = []
        super().__init__(*args, **kwargs)

    def _refill(self, num_groups):
        examples = super()._refill(num_groups)
        prompts = self.train_dataset["prompt"]
        self.refilled += [prompts.index(example["prompt"]) for example in examples[::NUM_GENERATIONS]]
        return examples


def test_number_of_steps_stays(tokenizer, tmp_path):
    """Refills come from a stream of their own: an epoch is as long as without them."""
    refilled = []

    def run(**settings):
        rollouts = rollouts_with(tokenizer, [n % 3 == 0 for n in range(12)])
        trainer = train(
            build_model(tokenizer), tokenizer, rollouts, tmp_path, Refills, max_steps=-1, num_train_epochs=2,
            learning_rate=0.0, **settings,
        )  # fmt: skip
        first_rounds = [r for r in rollouts.generated if len(r) == 32]
        refilled[:] = trainer.refilled
        return trainer.state.global_step, [[x.prompt for x in r] for r in first_rounds], len(rollouts.generated)

    steps, prompts, rounds = run()
    sampled_steps, sampled_prompts, sampled_rounds = run(dynamic_sampling=True)
    assert steps == sampled_steps == 6
    assert sampled_rounds > rounds
    assert len(refilled) > 3 and refilled == draw_prompts(12, 42, 0, len(refilled))
    assert all(batch in sampled_prompts for batch in prompts), "first rounds take the dataloader's prompts"


# ---------------------------------------------------------------------- what decides


class Scorer:
    """Rewards that do not come from the rollouts, so that several can disagree."""

    def __init__(self, name, function):
        self.__name__, self.function = name, function

    def __call__(self, completions, prompts, **kwargs):
        return [self.function(prompt, i % NUM_GENERATIONS) for i, prompt in enumerate(prompts)]


def run_with_rewards(tokenizer, tmp_path, rewards, **settings):
    rollouts = FixedRollouts(tokenizer, prompts=8)
    trainer = SpyTrainer(
        model=build_model(tokenizer),
        reward_funcs=rewards(rollouts),
        args=ForkingGRPOConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=32, num_generations=NUM_GENERATIONS,
            max_completion_length=16, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            logging_steps=1, disable_tqdm=True, shuffle_dataset=False, dynamic_sampling=True,
            dynamic_sampling_max_rounds=2, **settings,
        ),
        train_dataset=rollouts.dataset,
        processing_class=tokenizer,
        rollout_func=rollouts,
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history[0], rollouts


def accuracy_and_length(rollouts):
    """Accuracy differs within the groups of every other prompt, the penalty within all."""
    return [
        Scorer("accuracy", lambda prompt, i: float(rollouts.texts.index(prompt) % 2 == 0 and i == 0)),
        Scorer("penalty", lambda prompt, i: -i / 10),
    ]


def test_named_reward_decides(tokenizer, tmp_path):
    log, rollouts = run_with_rewards(tokenizer, tmp_path, accuracy_and_length, dynamic_sampling_reward="accuracy")
    assert log["dynamic_sampling/informative_group_fraction"] == 0.5
    assert log["dynamic_sampling/rounds"] == len(rollouts.generated) == 2
    log, rollouts = run_with_rewards(tokenizer, tmp_path, accuracy_and_length)
    assert log["dynamic_sampling/informative_group_fraction"] == 1.0
    assert len(rollouts.generated) == 1
    # The sum that decides is the weighted one.
    log, _ = run_with_rewards(tokenizer, tmp_path, accuracy_and_length, reward_weights=[3.0, 0.0])
    assert log["dynamic_sampling/informative_group_fraction"] == 0.5
    assert log["reward"] == pytest.approx(3 * 0.5 / NUM_GENERATIONS)


def test_unscorable_groups_are_uninformative(tokenizer, tmp_path, recwarn):
    def rewards(rollouts):
        return [Scorer("maybe", lambda prompt, i: None if rollouts.texts.index(prompt) % 2 else float(i == 0))]

    log, _ = run_with_rewards(tokenizer, tmp_path, rewards)
    assert log["dynamic_sampling/informative_group_fraction"] == 0.5
    assert log["reward"] == pytest.approx(1 / NUM_GENERATIONS)


HOPELESS = {
    "one huge": [1e30] + [0.0] * 7,  # its square, and with it the standard deviation, is beyond float32
    "huge and negative": [0.0, 1.0, -1e25] + [0.5] * 5,
    "infinite": [math.inf] + [0.0] * 7,
    "negative infinity": [-math.inf, 1.0] * 4,
    "both infinities": [math.inf, -math.inf] * 4,
    "all infinite": [math.inf] * 8,
    "infinite beside nothing": [math.inf, None, 1.0, 0.0] * 2,
    "a sum beyond float32": [3e38] * 7 + [0.0],
    "nothing": [None] * 8,
    "one number": [math.nan] * 7 + [1.0],
}


# Without a division by the spread, the advantages of huge rewards are finite, and what was asked for.
@pytest.mark.parametrize(
    ("kind", "scale_rewards"),
    [(kind, "group") for kind in HOPELESS] + [(kind, "none") for kind in HOPELESS if "huge" not in kind],
)
def test_informative_groups_have_an_advantage(kind, scale_rewards, model, start, tokenizer, tmp_path, recwarn):
    """Rewards that differ are not enough: every group that is kept moves the model, by a finite amount."""
    rewards = [HOPELESS[kind] if n % 2 == 0 else SPREAD for n in range(8)]
    rollouts = FixedRollouts(tokenizer, prompts=8, rewards=rewards)
    trainer = train(
        model, tokenizer, rollouts, tmp_path, dynamic_sampling=True, shuffle_dataset=False,
        scale_rewards=scale_rewards,
    )  # fmt: skip
    assert len(rollouts.generated) > 1
    groups = groups_of(rollouts.generated)
    good = [rollout for group in groups if group[0].group % 2 for rollout in group][:32]
    batch = [Rollout(r.prompt, r.completion, r.reward, row // 8, row, r.valid) for row, r in enumerate(good)]
    found = sum(group[0].group % 2 for group in groups) / len(groups)
    assert trainer.state.log_history[0]["dynamic_sampling/informative_group_fraction"] == pytest.approx(found)
    entropies, _ = naive_view(start, batch)
    advantages = dict(enumerate(naive_advantages(batch, scale=scale_rewards == "group")))
    selected = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    expected = gradient(start, loss(start, batch, advantages, selected, len(selected)))
    assert relative_difference(weight_change(start, model), expected) < 1e-5


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
@pytest.mark.parametrize("kind", ["infinite", "a sum beyond float32", "both infinities"])
def test_groups_without_a_finite_advantage_change_nothing(
    kind, scale_rewards, model, start, tokenizer, tmp_path, caplog, monkeypatch, recwarn
):
    """Without dynamic sampling, too. TRL writes 3.4e38 for an advantage of infinity."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    rollouts = FixedRollouts(tokenizer, rewards=[HOPELESS[kind]] * 4)
    train(model, tokenizer, rollouts, tmp_path, scale_rewards=scale_rewards, max_steps=2)
    assert weight_change(start, model).abs().max() == 0
    assert caplog.text.count("an infinite reward of ['fixed_reward']") == (kind != "a sum beyond float32")


def test_a_reward_that_decides_is_not_enough(tokenizer, tmp_path):
    """Accuracy differs in every group, and in half of them something else takes the difference away again."""

    def rewards(rollouts):
        return [
            Scorer("accuracy", lambda prompt, i: float(i == 0)),
            Scorer("against", lambda prompt, i: -float(i == 0) * (rollouts.texts.index(prompt) % 2)),
        ]

    log, _ = run_with_rewards(tokenizer, tmp_path, rewards, dynamic_sampling_reward="accuracy")
    assert log["dynamic_sampling/informative_group_fraction"] == 0.5


class Keeps(SpyTrainer):
    """Copies of the table of completions, as it is at each log."""

    def __init__(self, *args, **kwargs):
        self.tables = []
        super().__init__(*args, **kwargs)

    def log(self, logs, start_time=None):
        self.tables.append((list(self._logs["prompt"]), {k: list(v) for k, v in self._logs["extra"].items()}))
        super().log(logs, start_time)


def run_with_logging(tokenizer, tmp_path, reward, **settings):
    rollouts = FixedRollouts(tokenizer, prompts=8)
    trainer = Keeps(
        model=build_model(tokenizer),
        reward_funcs=reward,
        args=ForkingGRPOConfig(
            str(tmp_path), per_device_train_batch_size=32, num_generations=NUM_GENERATIONS, use_cpu=True,
            bf16=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, learning_rate=0.0,
            **settings,
        ),
        train_dataset=rollouts.dataset,
        processing_class=tokenizer,
        rollout_func=rollouts,
    )  # fmt: skip
    trainer.train()
    return trainer.tables


@pytest.mark.parametrize("dynamic", [False, True])
def test_columns_logged_in_some_generations_only(dynamic, tokenizer, tmp_path):
    """A generation that logs nothing has nothing in the table; one that logs late does not move the others."""
    calls = []

    def reward(completions, prompts, log_extra, **kwargs):
        calls.append(len(prompts))
        if len(calls) % 2 == 0:
            log_extra("text", list(prompts))
        return [float(i % NUM_GENERATIONS == 0) for i in range(len(prompts))]

    tables = run_with_logging(tokenizer, tmp_path, reward, max_steps=5, dynamic_sampling=dynamic)
    assert "text" not in tables[0][1]
    for step, (prompts, extra) in enumerate(tables[1:5], start=1):
        assert len(prompts) == len(extra["text"]) == 32
        assert extra["text"] == (prompts if step % 2 else [None] * 32)


def test_columns_that_begin_between_two_logs(tokenizer, tmp_path):
    """Where the table holds several generations: one for training, smaller ones for evaluation."""

    def reward(completions, prompts, log_extra, **kwargs):
        reward.calls += 1
        if reward.calls == 2:
            log_extra("text", list(prompts))
        return [0.0] * len(prompts)

    reward.calls = 0
    rollouts = FixedRollouts(tokenizer, prompts=8)
    trainer = Keeps(
        model=build_model(tokenizer), reward_funcs=reward, processing_class=tokenizer, rollout_func=rollouts,
        args=ForkingGRPOConfig(
            str(tmp_path), per_device_train_batch_size=32, per_device_eval_batch_size=8,
            num_generations=NUM_GENERATIONS, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
        ),
        train_dataset=rollouts.dataset, eval_dataset=rollouts.dataset.select(range(3)),
    )  # fmt: skip
    trainer.evaluate()
    prompts, extra = list(trainer._logs["prompt"]), list(trainer._logs["extra"]["text"])
    assert len(prompts) == 24
    assert extra == [None] * 8 + prompts[8:16] + [None] * 8


@pytest.mark.parametrize("dynamic", [False, True])
def test_columns_of_the_wrong_length_stay_empty(dynamic, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)

    def reward(completions, prompts, log_extra, **kwargs):
        log_extra("text", list(prompts)[:5])
        log_extra("whole", list(prompts))
        return [float(i % NUM_GENERATIONS == 0) for i in range(len(prompts))]

    tables = run_with_logging(tokenizer, tmp_path, reward, max_steps=2, dynamic_sampling=dynamic)
    prompts, extra = tables[1]
    assert "text" not in extra and extra["whole"] == prompts
    assert caplog.text.count("log_extra('text', ...) got 5 values for 32 completions on process 0") == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_columns_that_no_table_can_hold_are_texts(dynamic, tokenizer, tmp_path):
    """The table is a Parquet file, whose columns are of one type."""

    def reward(completions, prompts, log_extra, **kwargs):
        log_extra("mixed", ["a", 1, None, 2.5] * (len(prompts) // 4))
        log_extra("fractions", [Fraction(1, 2)] * len(prompts))
        log_extra("numbers", [1, None] * (len(prompts) // 2))
        return [float(i % NUM_GENERATIONS == 0) for i in range(len(prompts))]

    run_with_logging(tokenizer, tmp_path, reward, max_steps=1, dynamic_sampling=dynamic, log_completions=True)
    (file,) = tmp_path.glob("**/completions/*.parquet")
    table = Dataset.from_parquet(str(file))
    assert table["mixed"][:] == ["a", "1", None, "2.5"] * 8
    assert table["fractions"][:] == ["1/2"] * 32 and table["numbers"][:] == [1, None] * 16


def test_columns_logged_by_rewards_stay_with_their_rows(tokenizer, tmp_path):
    class Logging(Scorer):
        def __call__(self, completions, prompts, log_extra, **kwargs):
            log_extra("text", list(prompts))
            return super().__call__(completions, prompts)

    tables = []

    class Keeps(SpyTrainer):
        def log(self, logs, start_time=None):
            tables.append((list(self._logs["prompt"]), list(self._logs["extra"]["text"])))
            super().log(logs, start_time)

    rollouts = FixedRollouts(tokenizer, prompts=8)
    trainer = Keeps(
        model=build_model(tokenizer),
        reward_funcs=Logging("logging", lambda prompt, i: float(rollouts.texts.index(prompt) % 2 == 0 and i == 0)),
        args=ForkingGRPOConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=32, num_generations=NUM_GENERATIONS, use_cpu=True,
            bf16=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
            dynamic_sampling=True,
        ),
        train_dataset=rollouts.dataset,
        processing_class=tokenizer,
        rollout_func=rollouts,
    )  # fmt: skip
    trainer.train()
    prompts, extra = tables[0]
    assert len(rollouts.generated) > 1
    assert prompts == extra
    assert len(prompts) == 32


# ---------------------------------------------------------------------- pure functions


def test_refills_have_an_order_of_their_own():
    stream = groups.draw_prompts(10, 42, 0, 35)
    for epoch in range(3):
        assert sorted(stream[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert len({tuple(stream[i : i + 10]) for i in (0, 10, 20)}) == 3
    assert stream[7:24] == groups.draw_prompts(10, 42, 7, 17), "the position is all of its state"
    assert stream != groups.draw_prompts(10, 43, 0, 35)
    first_epoch = torch.randperm(10, generator=torch.Generator().manual_seed(42)).tolist()
    assert stream[:10] != first_epoch, "not TRL's order: the first refills would be the first batch"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("multiple", [1, 4])
def test_refill_is_sized_to_what_is_missing(share, multiple):
    wanted = 64
    for informative in range(wanted):
        generated = max(int(informative / share), 64)
        size = groups.refill_size(informative, generated, wanted, multiple)
        assert size % multiple == 0
        assert 0 < size <= wanted
        expected = (wanted - informative) * generated / max(informative, 1)
        assert size == wanted or size >= expected
    assert groups.refill_size(60, 80, wanted, 1) <= 8


def test_refill_has_a_reserve_of_one_standard_deviation():
    # 9 missing at a share of 1/4: 36 groups hold 9 on average; (9 + sqrt(9 * 3 / 4)) * 4 = 46.4
    assert groups.refill_size(16, 64, 25, 1) == 25, "never more than a batch"
    assert groups.refill_size(55, 220, 64, 1) == 47
    assert groups.refill_size(55, 220, 64, 8) == 48


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_refills_cut_no_episode(ranks):
    """The smallest number that gives every rank as many rows, whole episodes, and whole groups if it has them."""
    found = set()
    for episode, episodes, groups_of_batch in itertools.product((1, 2, 3, 4), (2, 3, 6), range(1, 13)):
        size = episode * episodes
        rows, rest = divmod(groups_of_batch * size, ranks)
        if rest or rows % episode:
            continue  # refused
        unit = size if rows % size == 0 else episode
        multiple = groups.refill_multiple(ranks, rows, size, episode)
        assert multiple == next(n for n in range(1, 99) if n * size % (ranks * unit) == 0)
        assert groups_of_batch % multiple == 0, "a round may be a whole batch"
        found.add(multiple)
    assert len(found) > 1 or ranks == 1


def test_batch_is_made_in_the_order_of_generation():
    flags = [False, True, False, True, True, False, True]
    assert groups.choose_groups(flags, 3) == [1, 3, 4]
    assert groups.choose_groups(flags, 6) == [0, 1, 2, 3, 4, 6]
    assert groups.choose_groups(flags, 7) == [*range(7)]


def test_rows_without_signal():
    inf, nan = math.inf, math.nan
    rewards = torch.tensor([[0.0, 1.0], [0.7, 0.7], [1e30, 0.0], [inf, 0.0], [nan, 1.0], [nan, nan], [-3e38, 3e38]])
    flat = rewards.flatten()
    scaled = groups.rows_without_signal(flat, 2, scale=True)
    plain = groups.rows_without_signal(flat, 2, scale=False)
    assert scaled.tolist() == [row for group in (0, 1, 1, 1, 1, 1, 1) for row in (bool(group),) * 2]
    # Undivided, what is finite is an advantage.
    assert plain.tolist() == [row for group in (0, 1, 0, 1, 1, 1, 0) for row in (bool(group),) * 2]


def test_lengths_of_several_rounds_are_those_of_one():
    # Another mean, another size and another share of truncated ones in each round; in the last nothing has terminated.
    lengths = [[3, 9, 8, 5], [2, 7, 6], [1, 11]]
    truncated = [[0, 1, 1, 0], [0, 0, 0], [1, 1]]
    rounds = {name: [] for name in LENGTH_METRICS}
    for values, cut in zip(lengths, truncated, strict=True):
        ended = [n for n, c in zip(values, cut, strict=True) if not c]
        for prefix, sample in (("", values), ("terminated_", ended)):
            rounds[f"completions/mean_{prefix}length"].append(sum(sample) / max(len(sample), 1))
            rounds[f"completions/min_{prefix}length"].append(min(sample, default=0))  # 0 is TRL's value
            rounds[f"completions/max_{prefix}length"].append(max(sample, default=0))
        rounds["completions/clipped_ratio"].append(sum(cut) / len(cut))
    assert combine_rounds(rounds, [4, 3, 2]) == pytest.approx({
        "completions/mean_length": 52 / 9, "completions/min_length": 1, "completions/max_length": 11,
        "completions/clipped_ratio": 4 / 9, "completions/mean_terminated_length": 23 / 5,
        "completions/min_terminated_length": 2, "completions/max_terminated_length": 7,
    })  # fmt: skip


# ---------------------------------------------------------------------- overrides of a subclass


class Shaped(SpyTrainer):
    """Gives every completion a bonus of its own, on top of what the reward functions say."""

    def _calculate_rewards(self, *args):
        rewards = super()._calculate_rewards(*args)
        rewards = rewards + torch.arange(len(rewards)).view(-1, 1).float()
        self.final_rewards = rewards[:, 0].tolist()
        return rewards


class Own(SpyTrainer):
    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        return torch.arange(len(prompts)).view(-1, 1).float()


@pytest.mark.parametrize("trainer_class", [Shaped, Own])
def test_rewards_of_a_subclass_are_what_counts(trainer_class, tokenizer, tmp_path):
    rollouts = rollouts_with(tokenizer, [False] * 4)
    trainer = train(build_model(tokenizer), tokenizer, rollouts, tmp_path, trainer_class)
    assert trainer.state.log_history[0]["grad_norm"] > 0.1


def test_bonus_of_a_subclass_is_given_once(tokenizer, tmp_path):
    rollouts = rollouts_with(tokenizer, [n % 2 == 0 for n in range(8)])
    trainer = train(build_model(tokenizer), tokenizer, rollouts, tmp_path, Shaped, dynamic_sampling=True)
    expected = [r.reward + row for row, r in enumerate(final_batch(rollouts.generated))]
    assert sorted(trainer.final_rewards) == sorted(expected)


# ---------------------------------------------------------------------- refused


def config(tmp_path, **settings):
    return ForkingGRPOConfig(
        str(tmp_path), num_generations=4, per_device_train_batch_size=4, use_cpu=True, bf16=False,
        dynamic_sampling=True, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_rewards": "batch"}, r"scale_rewards='batch'.*Set scale_rewards to 'group'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "Set 'sum_then_normalize'"),
    ],
    ids=str,
)
def test_advantages_that_depend_on_dropped_groups_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def build(tokenizer, tmp_path, dataset, trainer_class=ForkingGRPOTrainer, **arguments):
    settings = arguments.pop("settings", {})
    return trainer_class(
        model=build_model(tokenizer),
        reward_funcs=Scorer("accuracy", lambda prompt, i: 0.0),
        args=config(tmp_path, max_steps=1, report_to="none", **settings),
        train_dataset=dataset,
        processing_class=tokenizer,
        **arguments,
    )


def test_refused_before_the_first_step(tokenizer, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["ab", "cd", "ef", "gh"]})
    with pytest.raises(ValueError, match="needs a map-style train_dataset, got IterableDataset"):
        build(tokenizer, tmp_path, dataset.to_iterable_dataset())
    with pytest.raises(NotImplementedError, match="does not work with tools yet"):
        build(tokenizer, tmp_path, dataset, tools=[len])
    with pytest.raises(NotImplementedError, match="image-text"):
        build(tokenizer, tmp_path, dataset.add_column("image", [None] * 4))
    with pytest.raises(ValueError, match=r"dynamic_sampling_reward.*got 'acc', there are \['accuracy'\]"):
        build(tokenizer, tmp_path, dataset, settings={"dynamic_sampling_reward": "acc"})


def test_override_that_hides_the_final_batch_is_refused(tokenizer, tmp_path):
    class Own(ForkingGRPOTrainer):
        def _generate(self, prompts):
            return GRPOTrainer._generate(self, prompts)

    dataset = Dataset.from_dict({"prompt": ["ab", "cd", "ef", "gh"]})
    trainer = build(
        tokenizer, tmp_path, dataset, Own, settings={"dynamic_sampling_max_rounds": 1, "max_completion_length": 4}
    )
    with pytest.raises(NotImplementedError, match="Own overrides _generate"):
        trainer.train()


def test_names_of_reward_metrics_are_trls(tokenizer, tmp_path):
    """`reward_metrics` replaces what TRL has logged; with no group dropped both must agree."""
    logs = []
    for trainer_class, config_class, settings in (
        (GRPOTrainer, GRPOConfig, {}),
        (SpyTrainer, ForkingGRPOConfig, {"dynamic_sampling": True}),
    ):
        rollouts = rollouts_with(tokenizer, [True] * 4)
        trainer = train(build_model(tokenizer), tokenizer, rollouts, tmp_path, trainer_class, config_class, **settings)
        logs.append(trainer.state.log_history[0])
    names = [name for name in logs[0] if "reward" in name]
    assert len(names) == 5
    for name in names:
        assert logs[1][name] == logs[0][name], name
