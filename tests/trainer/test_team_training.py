"""Teams in real trainers: advantages, engines, metrics, dynamic sampling, evaluation, resume, refusals."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from transformers import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from tests.conftest import LETTERS, build_model, one_step, relative_difference, weight_change
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.generation.decoding import DecodingLoop
from trl_fork.teams import Role, TeamRollout, joint_reward
from trl_fork.teams.sampling import sampling_temperature


ROLES = [Role("left", "l{prompt}{left}"), Role("right", "r{prompt}{right}t{messages[left]}")]


def data(rows=4):
    return Dataset.from_dict(
        {
            "prompt": [f"p{LETTERS[n]}" for n in range(rows)],
            "left": [LETTERS[n + 26] for n in range(rows)],
            "right": [LETTERS[n + 10] for n in range(rows)],
        }
    )


class Keeps(ForkingGRPOTrainer):
    """Keeps the tensors of the batches that it makes."""

    def __init__(self, *args, **kwargs):
        self.made = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.made.append({key: value.clone() for key, value in output.items() if isinstance(value, torch.Tensor)})
        return output


class Watched(TeamRollout):
    """Keeps the prompts that it is given beside the rows of the data set that the trainer shows it."""

    def __call__(self, prompts, trainer):
        vars(self).setdefault("seen", []).append((list(prompts), copy.deepcopy(trainer.rollout_examples)))
        return super().__call__(prompts, trainer)


class Scripted:
    """
    A `generate` for which episode `e` of prompt `p` ends with `returns[p][e % len(returns[p])]` letters; other turns
    are one letter long.
    """

    def __init__(self, tokenizer, returns, last):
        self.tokenizer, self.returns, self.last, self.turns = tokenizer, returns, last, 0

    def __call__(self, prompt_ids, role, trainer):
        completions, counts = [], {}
        for ids in prompt_ids:
            text = "".join(self.tokenizer.convert_ids_to_tokens(ids))
            prompt = text[text.index("p") + 1]  # every prompt is a p and its letter
            episode = counts[prompt] = counts.get(prompt, -1) + 1
            returns = self.returns[prompt]
            letters = returns[episode % len(returns)] if role.name == self.last else 1
            completions.append(self.tokenizer(["z" * letters])["input_ids"][0] + [self.tokenizer.eos_token_id])
        return completions, None


def length_reward(completion_ids, **kwargs):
    """Tokens of the last turn without the end."""
    return [float(len(ids) - 1) for ids in completion_ids]


def build(
    model, tokenizer, tmp_path, team=None, rewards=None, trainer_class=Keeps, config=ForkingGRPOConfig, **settings
):
    names = ("train_dataset", "eval_dataset", "peft_config", "tools", "environment_factory", "processing_class")
    arguments = {name: settings.pop(name) for name in names if name in settings}
    settings = {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 6} | settings
    return trainer_class(
        model=model,
        reward_funcs=joint_reward(length_reward) if rewards is None else rewards,
        args=config(**one_step(tmp_path, **settings)),
        rollout_func=TeamRollout(ROLES) if team is None else team,
        **{"train_dataset": data(), "processing_class": tokenizer} | arguments,
    )


def magrpo(returns: list[float], turns: int, scale: bool) -> list[float]:
    """
    Advantages of one prompt by the definition of MAGRPO: return minus mean over the episodes, over their unbiased
    standard deviation; with the factor and the epsilon by which TRL's standard deviation over the rows differs.
    """
    episodes = len(returns)
    mean = sum(returns) / episodes
    deviation = math.sqrt(sum((value - mean) ** 2 for value in returns) / (episodes - 1))
    factor = math.sqrt(turns * (episodes - 1) / (turns * episodes - 1))
    divisor = deviation * factor + 1e-4 if scale else 1.0
    return [(value - mean) / divisor for value in returns for _ in range(turns)]


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize(("names", "rounds", "size"), [("ab", 1, 8), ("abc", 1, 12), ("ab", 2, 8), ("a", 1, 4)])
def test_advantages_are_magrpos(names, rounds, size, scale, model, tokenizer, tmp_path):
    roles = [Role(name, f"{name}{{prompt}}", reply="z") for name in names]
    turns, returns = len(names) * rounds, {"a": [0, 1, 3, 3], "b": [2, 2, 0, 1], "c": [4, 0, 0, 1], "d": [1, 2, 3, 5]}
    script = Scripted(tokenizer, returns, names[-1])
    team = TeamRollout(roles, rounds, generate=script)
    rows = 2 * size
    trainer = build(
        model,
        tokenizer,
        tmp_path,
        team,
        num_generations=size,
        per_device_train_batch_size=rows,
        scale_rewards=scale,
        shuffle_dataset=False,
        top_entropy_quantile=1.0,
    )
    trainer.train()
    found = trainer.made[0]["advantages"].tolist()
    expected = []
    for prompt in "ab":
        episodes = [returns[prompt][e % 4] for e in range(size // turns)]
        expected += magrpo([float(value) for value in episodes], turns, scale == "group")
    assert len(found) == len(expected) == rows
    assert found == pytest.approx(expected, abs=1e-5 if scale == "group" else 1e-7)
    assert any(expected)


def test_rows_are_the_turns_of_episodes(model, tokenizer, tmp_path):
    trainer = build(model, tokenizer, tmp_path, max_steps=2)
    trainer.train()
    prompts = tokenizer.batch_decode(trainer.made[0]["prompt_ids"], skip_special_tokens=True)
    assert [prompt[0] for prompt in prompts] == ["l", "r"] * 8
    for pair in trainer.made[0]["advantages"].view(-1, 2):
        assert pair[0] == pair[1]


def texts_of(tokenizer, rows):
    return ["".join(tokenizer.convert_ids_to_tokens(ids)).replace("<pad>", "") for ids in rows.tolist()]


def test_only_the_roles_that_name_a_column_see_it(model, tokenizer, tmp_path):
    """A role writes nothing but z here, and others read what its message says."""
    roles = [Role("left", "l{prompt}{left}", message="z(z)"), Role("right", "r{prompt}{right}{messages[left]}")]
    script = Scripted(tokenizer, {letter: [2] for letter in "abcd"}, "left")
    trainer = build(model, tokenizer, tmp_path, TeamRollout(roles, generate=script), shuffle_dataset=False)
    trainer.train()
    prompts = texts_of(tokenizer, trainer.made[0]["prompt_ids"])
    expected = [
        text
        for row in data().select(range(2))
        for text in [f"l{row['prompt']}{row['left']}", f"r{row['prompt']}{row['right']}"] * 4
    ]
    assert prompts == expected


@pytest.mark.parametrize("engine", ["loop", "generate"])
def test_each_role_samples_at_its_temperature(engine, model, tokenizer, tmp_path, monkeypatch):
    """At a low temperature all completions of a prompt are the likeliest; at the trainer's own they differ."""
    loops, decode = [], DecodingLoop.__call__
    monkeypatch.setattr(DecodingLoop, "__call__", lambda self, *a, **k: loops.append(1) or decode(self, *a, **k))
    roles = [
        Role("cold", "l{prompt}", temperature=1e-3),
        Role("warm", "r{prompt}"),
        Role("cool", "c{prompt}", temperature=1e-3),
    ]
    trainer = build(
        model,
        tokenizer,
        tmp_path,
        TeamRollout(roles),
        num_generations=12,
        per_device_train_batch_size=12,
        compact_generation=engine != "generate",
        max_completion_length=8,
    )
    trainer.train()
    completions = [tuple(row) for row in trainer.made[0]["completion_ids"].tolist()]
    assert [len(set(completions[turn::3])) for turn in range(3)] == [1, 4, 1]
    assert len(loops) == (3 if engine == "loop" else 0)
    assert trainer.generation_config.temperature == 1.0


def test_the_temperature_is_restored_after_an_error(model, tokenizer, tmp_path):
    trainer = build(model, tokenizer, tmp_path, temperature=0.7)

    class Engine:
        temperature, generation_kwargs = 0.7, None

    trainer.vllm_generation = Engine()
    trainer.vllm_generation.temperature = 0.7
    trainer.vllm_generation.generation_kwargs = {"temperature": 0.8}
    engine, config = trainer.vllm_generation, trainer.generation_config
    with pytest.raises(RuntimeError), sampling_temperature(trainer, 0.2):
        assert engine.temperature == config.temperature == engine.generation_kwargs["temperature"] == 0.2
        raise RuntimeError
    assert (engine.temperature, config.temperature, engine.generation_kwargs) == (0.7, 0.7, {"temperature": 0.8})
    with sampling_temperature(trainer, None):
        assert config.temperature == 0.7


def test_rows_of_the_data_set_are_shown_in_order(model, tokenizer, tmp_path):
    """In training, in evaluation and in every round of dynamic sampling."""
    returns = {letter: [1] for letter in "abcdefgh"} | {"c": [0, 3], "f": [1, 2, 2, 4]}
    team = Watched(ROLES, generate=Scripted(tokenizer, returns, "right"))
    trainer = build(
        model,
        tokenizer,
        tmp_path,
        team,
        train_dataset=data(8),
        eval_dataset=data(8).select([6, 7]),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        num_generations_eval=2,
        dynamic_sampling=True,
        dynamic_sampling_max_rounds=30,
    )
    assert trainer.rollout_examples is None
    trainer.train()
    assert trainer.rollout_examples is None
    rounds, rows = [len(prompts) for prompts, _ in team.seen], {row["prompt"]: row for row in data(8)}
    assert len(rounds) >= 3 and rounds[-1] == 4, rounds
    for prompts, examples in team.seen:
        assert [example["prompt"] for example in examples] == prompts
        assert all(
            {name: example[name] for name in row} == row for example in examples for row in [rows[example["prompt"]]]
        )

    # The batch holds the two groups with an advantage, whole and in order.
    prompts = texts_of(tokenizer, trainer.made[0]["prompt_ids"])
    assert [prompt[0] for prompt in prompts] == ["l", "r"] * 8
    assert {prompt[:3] for prompt in prompts[::2]} <= {"lpc", "lpf"}
    advantages = trainer.made[0]["advantages"].view(-1, 2)
    assert (advantages[:, 0] == advantages[:, 1]).all() and (advantages != 0).any(1).view(2, 4).any(1).all()
    log = trainer.state.log_history
    assert log[0]["dynamic_sampling/rounds"] > 1
    assert log[0]["team/left/mean_length"] == 2.0 and log[0]["team/left/clipped_ratio"] == 0.0
    (evaluated,) = [entry for entry in log if "eval_reward" in entry]
    assert evaluated["eval_team/right/mean_length"] == 2.0


def test_metrics_and_the_table_tell_roles_apart(model, tokenizer, tmp_path):
    trainer = build(model, tokenizer, tmp_path, log_completions=True, max_steps=2)
    trainer.train()
    for batch, entry in zip(trainer.made, trainer.state.log_history, strict=False):
        for turn, name in enumerate(("left", "right")):
            mask, ids = batch["completion_mask"][turn::2], batch["completion_ids"][turn::2]
            last = ids.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
            ended = (last == tokenizer.eos_token_id) | (last == tokenizer.pad_token_id)  # by TRL's count
            assert entry[f"team/{name}/mean_length"] == pytest.approx(mask.sum(1).float().mean().item())
            assert entry[f"team/{name}/clipped_ratio"] == pytest.approx((~ended).float().mean().item())
    assert list(trainer._logs["extra"]["role"]) == ["left", "right"] * 8, "of the last batch"
    assert "team/left/mean_length" in trainer.state.log_history[1]


def test_micro_batches_and_iterations(model, tokenizer, tmp_path):
    """Rows keep their prompt and advantage where TRL shuffles them into micro-batches."""
    models = [copy.deepcopy(model) for _ in range(2)]
    for made, rows in zip(models, (16, 4), strict=True):
        build(
            made,
            tokenizer,
            tmp_path,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=16 // rows,
            learning_rate=0.1,
        ).train()
    whole, parts = (weight_change(model, made) for made in models)
    assert relative_difference(parts, whole) < 1e-4
    trainer = build(
        model,
        tokenizer,
        tmp_path,
        steps_per_generation=2,
        num_iterations=2,
        max_steps=8,
        learning_rate=0.01,
        per_device_train_batch_size=8,
    )
    trainer.train()
    assert len(trainer.made) == 2


def test_a_resumed_run_is_the_run_that_was_not_cut(tokenizer, tmp_path):
    team = [Role("left", "l{prompt}{left}", temperature=0.8), ROLES[1]]
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
    }
    whole = build(build_model(tokenizer), tokenizer, tmp_path / "whole", TeamRollout(team, 2), **settings)
    whole.train()
    again = build(build_model(tokenizer), tokenizer, tmp_path / "again", TeamRollout(team, 2), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-2"))
    assert len(again.made) == 2
    for expected, found in zip(whole.made[2:], again.made, strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    for (name, expected), found in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(expected, found), name


def test_trls_own_trainer(model, tokenizer, tmp_path):
    settings = {"trainer_class": GRPOTrainer, "config": GRPOConfig}
    with pytest.raises(
        ValueError, match=r"Role 'left': prompt has the field \{left\}, .* Train with ForkingGRPOTrainer"
    ):
        build(model, tokenizer, tmp_path, **settings).train()
    team = TeamRollout([Role("a", "a{prompt}"), Role("b", "b{messages[a]}")])
    trainer = build(model, tokenizer, tmp_path, team, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


TWO = {"num_generations": 8, "per_device_train_batch_size": 8}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"num_generations": 5, "per_device_train_batch_size": 10},
            ValueError,
            "num_generations must be a multiple of 2, .* got 5: .* Make it 4 or 6",
        ),
        (
            {"num_generations": 2, "per_device_train_batch_size": 2},
            ValueError,
            "num_generations=2 is one episode of 2 rows .* at least 4",
        ),
        (
            {
                "num_generations": 4,
                "per_device_train_batch_size": 4,
                "team": TeamRollout([*ROLES, Role("c", "c"), Role("d", "d")]),
            },
            ValueError,
            "num_generations=4 is one episode of 4 rows",
        ),
        (
            {"eval_dataset": data(), "num_generations_eval": 3, "per_device_eval_batch_size": 6},
            ValueError,
            "num_generations_eval must be a multiple of 2, .* got 3",
        ),
        (
            {"eval_dataset": {"x": data()}, "num_generations_eval": 1, "per_device_eval_batch_size": 5},
            ValueError,
            "num_generations_eval must .* got 1: .* Make it 2",
        ),
        ({"rewards": length_reward}, ValueError, "'length_reward' is not joint"),
        ({"tools": [len]}, NotImplementedError, "tools does not go with a rollout function that plays episodes"),
        ({"environment_factory": object}, NotImplementedError, "environment_factory does not go with"),
        (
            {"train_dataset": data().add_column("image", ["x"] * 4)},
            NotImplementedError,
            r"train_dataset has the columns \['image'\]",
        ),
        ({"processing_class": ProcessorMixin()}, NotImplementedError, "image-text models"),
        ({"token_credit": "gcpo"}, NotImplementedError, "contrast_log_probs do not go with"),
        ({"train_dataset": data().remove_columns("left")}, ValueError, "train_dataset has no such column"),
        ({"eval_dataset": data().remove_columns("left")}, ValueError, "eval_dataset has no such column"),
        ({"remove_unused_columns": True}, ValueError, "remove_unused_columns would take this column"),
    ],
)
def test_refused_before_a_model_is_loaded(settings, error, message, tokenizer, tmp_path):
    """The model does not exist, and nothing asks for it."""
    with pytest.raises(error, match=message):
        build("no/such-model", tokenizer, tmp_path, **TWO | settings)


def test_refuses_numbers_that_are_none(model, tokenizer, tmp_path):
    for size in (0, True, 2.0):
        team = TeamRollout(ROLES)
        team.rows_per_episode = size
        with pytest.raises(ValueError, match=f"rows_per_episode .* got {size!r}"):
            build(model, tokenizer, tmp_path, team)
