"""Mirror steps and KL coefficients of roles in real training, against the naive objective."""

import copy
import functools
import logging
import math

import pytest
import torch

from tests.conftest import build_model, build_trainer, gradient, relative_difference, weight_change
from tests.oracles import balance, group_constants, informative_batch, mirror_target
from tests.trainer.test_balance import (
    BALANCE,
    BETA,
    MIRROR,
    OFFLINE,
    Case,
    OwnRewards,
    check_step,
    check_updates,
    forking,
    old_log_probs,
)
from trl_fork.trainer.checks import check_rollouts
from trl_fork.trainer.episodes import attribute_of
from trl_fork.trainer.telemetry import timed_rollouts


ETA = MIRROR["mirror_step_size"]
ROLES = (0.12, None)  # KL coefficients of two roles; the second has the run's


class Episodes(OwnRewards):
    """Two roles, whose prompts end differently, speak in turn. Both rows of an episode have its reward."""

    rows_per_episode = 2
    role_betas = ROLES

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rewards = {(text, i): self.rewards[text, i - i % 2] for text, i in self.rewards}

    def __call__(self, prompts, trainer):
        output = super().__call__(prompts, trainer)
        for row, rollout in enumerate(self.latest):
            rollout.prompt = output["prompt_ids"][row] = [*rollout.prompt, *self.tokenizer("no"[row % 2])["input_ids"]]
        return output | {"role_beta": [self.role_betas[row % 2] for row in range(len(prompts))]}


class MirrorCase(Case):
    """What the naive objective says of mirror steps, of coefficients by role, and of estimates by turn."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**MIRROR, "balance_reward": "reward", **settings})
        self.settings = {**MIRROR, "balance_reward": "reward", **self.settings}

    @property
    def turns(self):
        return getattr(self.rollouts, "rows_per_episode", 1)

    def target(self, batch, old):
        roles = getattr(self.rollouts, "role_betas", None) or (None,)
        taus = {r.row: roles[r.row % len(roles)] or BETA for r in batch}
        ref = self.ref_log_probs(batch)
        if self.settings["mirror_step_size"] is None:
            return ref, taus
        return mirror_target(old, ref, taus, self.settings["mirror_step_size"])

    def constants(self, batch, old, rewards=None):
        reference, betas = self.target(batch, old)
        rewards = rewards or self.row_rewards(batch)
        return group_constants(batch, old, reference, rewards, betas, self.normalized, self.turns)

    def expected(self, model, batch, old, weights=None, rows=None, share=1.0, rewards=None, **arguments):
        reference, betas = self.target(batch, old)
        rewards = rewards or self.row_rewards(batch)
        counted = [r for r in batch if any(r.valid) and rewards[r.row] is not None]
        return balance(
            model,
            [r for r in batch if rows is None or r.row in rows],
            rewards,
            self.constants(batch, old, rewards),
            reference,
            len(counted) * share,
            beta=betas,
            length_normalized=self.normalized,
            weights=weights,
            **arguments,
        )


# ---------------------------------------------------------------------- one step


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (OwnRewards, {}),
        (OwnRewards, {"lora": "trained"}),
        (Episodes, {}),
        (Episodes, {"balance_reward": "advantage"}),
        (Episodes, {"skip_inert_compute": False}),
        (Episodes, {"padding_free": False}),
        (Episodes, {"max_tokens_per_forward": 60}),
        (Episodes, {"reuse_scoring_graph": True}),
        (Episodes, {"lora": "new"}),
    ],
    ids=str,
)
def test_gradient_equals_naive_objective(kind, settings, tokenizer, tmp_path):
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, **settings}
    case = MirrorCase(tokenizer, tmp_path, kind(tokenizer), **settings)
    log = check_step(case, 0.2)
    assert log["balance/step_kl"] == pytest.approx(0, abs=1e-6), "the policy is still the one that starts the batch"
    old, ref = old_log_probs(case.start, case.batch), case.ref_log_probs(case.batch)
    differences = torch.cat([ref[r.row] - old[r.row] for r in case.batch])
    assert log["kl"] == pytest.approx((differences.exp() - differences - 1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("normalized", [True, False])
def test_roles_without_mirror_steps(normalized, tokenizer, tmp_path):
    case = MirrorCase(
        tokenizer, tmp_path, Episodes(tokenizer), mirror_step_size=None, length_normalized=normalized,
        per_device_train_batch_size=8, gradient_accumulation_steps=4,
    )  # fmt: skip
    log = check_step(case, 0.2)
    assert "balance/step_kl" not in log


@pytest.mark.parametrize("nothing", [None, math.nan, float("nan") * torch.ones(())], ids=["None", "NaN", "tensor"])
def test_a_role_without_a_coefficient_has_that_of_the_run(nothing, tokenizer, tmp_path):
    rollouts = Episodes(tokenizer)
    case = MirrorCase(tokenizer, tmp_path, rollouts)
    rollouts.role_betas = (nothing, nothing)
    case.trainer.train()
    case.rollouts.role_betas = None
    weights = forking(case.start, case.batch, 0.2)
    _, surrogate, _, _ = case.expected(case.start, case.batch, old_log_probs(case.start, case.batch), weights)
    assert relative_difference(weight_change(case.start, case.model), gradient(case.start, surrogate)) < 1e-5


def test_with_one_update_a_mirror_step_is_a_share_of_the_gradient(tokenizer, tmp_path, caplog, monkeypatch):
    """`eta beta / (1 + eta beta)` of it, and a warning says so."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    changes = []
    for name, settings in (("with", {}), ("without", {"mirror_step_size": None})):
        caplog.clear()
        case = MirrorCase(tokenizer, tmp_path / name, **settings)
        assert ("by eta beta / (1 + eta beta), 0.134 for beta=0.31, and does" in caplog.text) == (name == "with")
        case.trainer.train()
        changes.append(weight_change(case.start, case.model))
    assert relative_difference(changes[0], changes[1] * ETA * BETA / (1 + ETA * BETA)) < 1e-4
    caplog.clear()
    MirrorCase(tokenizer, tmp_path / "several", num_iterations=2)
    assert "mirror_step_size" not in caplog.text


# ---------------------------------------------------------------------- several updates


@pytest.mark.parametrize(("iterations", "steps", "accumulation"), [(2, 1, 1), (1, 4, 2)])
@pytest.mark.parametrize("kind", [OwnRewards, Episodes])
def test_several_updates_per_generation_batch(kind, iterations, steps, accumulation, tokenizer, tmp_path):
    """The reference stays that of the policy that starts the batch, and moves on with the next batch."""
    updates = 2 * steps * iterations // accumulation
    case = MirrorCase(
        tokenizer, tmp_path, kind(tokenizer, prompts=8), per_device_train_batch_size=32 // steps,
        steps_per_generation=steps, gradient_accumulation_steps=accumulation, num_iterations=iterations,
        max_steps=updates, learning_rate=0.05, max_importance_ratio=1.05,
    )  # fmt: skip
    # Residuals are differences of sums over tokens that are nearly equal.
    check_updates(case, updates, tolerance=1e-4)
    assert len(case.rollouts.generated) == 2
    moved = [log["balance/step_kl"] for log in case.trainer.state.log_history[:updates]]
    assert moved[0] < 1e-6 < 1e-5 < moved[1] and moved[updates // 2] < 1e-6


def test_step_kl_is_of_the_tokens_that_the_first_policy_wrote(tokenizer, tmp_path):
    """An estimate of `KL(start, policy)`, over all tokens of the batch."""
    case = MirrorCase(tokenizer, tmp_path, num_iterations=2, max_steps=2, learning_rate=0.05, top_entropy_quantile=1.0)
    case.trainer.train()
    (batch,) = case.rollouts.generated
    first = copy.deepcopy(case.start)
    old = old_log_probs(case.start, batch)
    _, surrogate, _, _ = case.expected(first, batch, old)
    change = gradient(first, surrogate)
    offset = 0
    for parameter in first.parameters():
        parameter.data -= 0.05 * change[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    moved = torch.cat([values - old[row] for row, values in old_log_probs(first, batch).items()])
    expected = (moved.exp() - 1 - moved).mean().item()
    assert case.trainer.state.log_history[1]["balance/step_kl"] == pytest.approx(expected, rel=1e-3)


def test_rows_of_dynamic_sampling_keep_their_roles(tokenizer, tmp_path):
    """Groups of refills take the places of others; an episode stays in its group, and in its order."""
    rewards = [[0.5] * 8 if n % 2 else [0.1 * (i - i % 2) + 0.01 * n for i in range(8)] for n in range(8)]
    rollouts = Episodes(tokenizer, prompts=8)
    rollouts.rewards = {(text, i): rewards[rollouts.texts.index(text)][i] for text, i in rollouts.rewards}
    case = MirrorCase(
        tokenizer, tmp_path, rollouts, dynamic_sampling=True, dynamic_sampling_max_rounds=30, top_entropy_quantile=1.0,
        per_device_train_batch_size=8, gradient_accumulation_steps=4,
    )  # fmt: skip
    case.trainer.train()
    assert len(rollouts.generated) > 1
    batch = informative_batch(rollouts.generated, 8, 4)
    _, surrogate, _, _ = case.expected(case.start, batch, old_log_probs(case.start, batch))
    assert relative_difference(weight_change(case.start, case.model), gradient(case.start, surrogate)) < 1e-5


# ---------------------------------------------------------------------- evaluation, resuming


def test_evaluation(tokenizer, tmp_path):
    """The policy that is evaluated is the one from which a step would start."""
    rollouts = Episodes(tokenizer)
    case = MirrorCase(
        tokenizer, tmp_path, rollouts, eval_dataset=rollouts.dataset, eval_strategy="steps", eval_steps=1,
        eval_on_start=True, per_device_eval_batch_size=32,
    )  # fmt: skip
    case.trainer.train()
    batch = rollouts.generated[0]
    value, _, residuals, _ = case.expected(case.start, batch, old_log_probs(case.start, batch))
    log = case.trainer.state.log_history[0]
    assert value > 1e-3 and log["eval_loss"] == pytest.approx(value, rel=1e-4)
    assert log["eval_balance/residual_abs"] == pytest.approx(sum(map(abs, residuals)) / len(batch), abs=1e-5)
    assert "eval_balance/step_kl" not in log
    case.settings["mirror_step_size"] = None
    _, _, plain, _ = case.expected(case.start, batch, old_log_probs(case.start, batch))
    taus = [ROLES[r.row % 2] or BETA for r in batch]
    shares = [ETA * tau / (1 + ETA * tau) for tau in taus]
    assert residuals == pytest.approx([share * r for share, r in zip(shares, plain, strict=True)], abs=1e-5)


def test_resumed_within_a_generation_batch(tokenizer, tmp_path):
    settings = {
        "per_device_train_batch_size": 8, "steps_per_generation": 4, "gradient_accumulation_steps": 1,
        "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1, "max_steps": 4,
    }  # fmt: skip
    whole = MirrorCase(tokenizer, tmp_path, Episodes(tokenizer), **settings)
    whole.trainer.train()
    case = MirrorCase(tokenizer, tmp_path, Episodes(tokenizer), **settings)
    case.trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert case.trainer.scoring_passes == 0 == len(case.rollouts.generated)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), case.model.parameters(), strict=True))
    names = [name for name in whole.trainer.state.log_history[3] if name.startswith(("balance/", "kl", "loss"))]
    logs = [[c.trainer.state.log_history[3][name] for name in names] for c in (whole, case)]
    assert logs[0] == logs[1] and "balance/step_kl" in names


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, "0.1", True, [0.1], torch.tensor(-0.2)], ids=str)
def test_a_coefficient_that_cannot_be_used_names_its_row(value, tokenizer, tmp_path):
    rollouts = Episodes(tokenizer)
    rollouts.role_betas = (0.3, value)
    case = MirrorCase(tokenizer, tmp_path, rollouts)
    with pytest.raises(ValueError, match=r"Step 0, process 0, row 1 of the batch, prompt '.*': role_beta is .*None"):
        case.trainer.train()


def test_a_column_of_coefficients(tokenizer, tmp_path):
    """It is read like what a rollout function returns, and looked at before a model is loaded."""
    rollouts = OwnRewards(tokenizer)
    data = rollouts.dataset.add_column("role_beta", [0.1, 0.2, 0.3, None])
    case = MirrorCase(tokenizer, tmp_path, rollouts, train_dataset=data)
    case.trainer.train()
    of_text = dict(zip(rollouts.texts, (0.1, 0.2, 0.3, BETA), strict=True))
    texts = {r.row: "".join(tokenizer.convert_ids_to_tokens(r.prompt)) for r in case.batch}
    taus = {row: of_text[text] for row, text in texts.items()}
    case.target = lambda batch, old: mirror_target(old, case.ref_log_probs(batch), taus, ETA)
    weights = forking(case.start, case.batch, 0.2)
    _, surrogate, _, _ = case.expected(case.start, case.batch, old_log_probs(case.start, case.batch), weights)
    assert relative_difference(weight_change(case.start, case.model), gradient(case.start, surrogate)) < 1e-5
    bad = rollouts.dataset.add_column("role_beta", [0.1, 0.2, 0.0, None])
    for name, datasets in (
        ("train_dataset", {"train_dataset": bad}),
        ("eval_dataset", {"train_dataset": data, "eval_dataset": bad}),
    ):
        with pytest.raises(ValueError, match=f"{name}: row 2, column 'role_beta': role_beta is 0.0, and has to be"):
            build_trainer("no/model", tokenizer, rollouts, tmp_path, **BALANCE, **datasets)


def test_coefficients_beside_the_policy_gradient(tokenizer, tmp_path):
    rollouts = Episodes(tokenizer)
    trainer = build_trainer(build_model(tokenizer), tokenizer, rollouts, tmp_path)
    assert trainer._rows_per_episode == 2
    with pytest.raises(
        ValueError, match=r"process 0, row 0 of the batch: role_beta=0.12 has no effect with objective"
    ):
        trainer.train()
    rollouts.role_betas = (None, math.nan)
    trainer.train()


def test_coefficients_beside_estimates_for_another_one(tokenizer, tmp_path):
    case = Case(tokenizer, tmp_path, Episodes(tokenizer), **OFFLINE)
    with pytest.raises(ValueError, match=r"row 0 of the batch.* role_beta is 0.12 and beta 0.31, for which"):
        case.trainer.train()
    rollouts = Episodes(tokenizer)
    rollouts.role_betas = (BETA, None)
    check_step(Case(tokenizer, tmp_path, rollouts, **OFFLINE), 0.2)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (3, {}, r"num_generations must be a multiple of 3, the rows \(turns\) of an episode .*, got 8"),
        (4, {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4, "num_generations": 12}, None),
        (
            8,
            {"per_device_train_batch_size": 4, "steps_per_generation": 3, "num_generations": 12},
            "num_generations must be a multiple of 8.*, got 12",
        ),
        (
            2,
            {"num_generations_eval": 3, "per_device_eval_batch_size": 6},
            "num_generations_eval must be a multiple of 2.*, got 3",
        ),
        (
            2,
            {"num_generations_eval": 1, "per_device_eval_batch_size": 8},
            "num_generations_eval must be a multiple of 2.*, got 1",
        ),
        (0, {}, "rows_per_episode of the rollout function must be a whole number of at least 1, got 0"),
        (True, {}, "at least 1, got True"),
        (2.0, {}, "at least 1, got 2.0"),
    ],
    ids=str,
)
def test_episodes_that_do_not_fit(rows, settings, message, tokenizer, tmp_path):
    rollouts = OwnRewards(tokenizer)
    rollouts.rows_per_episode = rows
    model = "no/model"
    if message is None:
        build_model(tokenizer).save_pretrained(tmp_path / "model")
        model = str(tmp_path / "model")
    arguments = {**BALANCE, "eval_dataset": rollouts.dataset, "per_device_eval_batch_size": 24} | settings

    def build():
        return build_trainer(model, tokenizer, rollouts, tmp_path, **arguments)

    if message is None:
        assert build()._rows_per_episode == rows
        return
    with pytest.raises(ValueError, match=message):
        build()


def test_rows_of_an_episode_are_seen_through_wrappers():
    """Of the instance, of its class, and of a property; `functools.wraps` copies the first alone."""

    class Made:
        def __call__(self, prompts, trainer): ...

    class OfClass(Made):
        rows_per_episode = 3

    class Computed(Made):
        @property
        def rows_per_episode(self):
            return 4

    of_instance = Made()
    of_instance.rows_per_episode = 2

    def function(prompts, trainer): ...

    function.rows_per_episode = 5
    for rollouts, expected in ((of_instance, 2), (OfClass(), 3), (Computed(), 4), (function, 5), (Made(), None)):
        wrapped = timed_rollouts(check_rollouts(rollouts))
        assert attribute_of(wrapped, "rows_per_episode") == expected
    assert attribute_of(functools.partial(Made()), "rows_per_episode") is None
    assert attribute_of(None, "rows_per_episode") is None
    assert attribute_of(functools.partial(function), "rows_per_episode") == 5


# ---------------------------------------------------------------------- a small task


def test_steps_lead_to_the_target(tokenizer, tmp_path):
    """
    One token, four of which have a reward: with several updates per batch, the shares of the answers come near those
    of the reference tilted by `exp(reward / beta)`.
    """
    model = build_model(tokenizer, initializer_range=0.05)
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")  # of the reference
    rewards = torch.zeros(len(tokenizer)).index_copy(0, torch.arange(4, 8), torch.tensor([1.0, 0.8, 0.5, 0.3]))
    prompt = tokenizer("a")["input_ids"]

    def distribution(model):
        with torch.no_grad():
            return model(input_ids=torch.tensor([prompt])).logits[0, -1].float().softmax(-1)

    reference = distribution(model)
    target = reference * (rewards / 0.3).exp()
    target /= target.sum()

    def answer(prompts, trainer):
        draw = torch.Generator().manual_seed(trainer.state.global_step)
        tokens = distribution(trainer.model).multinomial(len(prompts), replacement=True, generator=draw)
        return {
            "prompt_ids": [prompt] * len(prompts),
            "completion_ids": [[token] for token in tokens.tolist()],
            "logprobs": None,
            "fixed_reward": rewards[tokens].tolist(),
        }

    rollouts = OwnRewards(tokenizer)
    rollouts.texts = ["a"] * 4
    settings = BALANCE | {"beta": 0.3, "balance_reward": "reward", "top_entropy_quantile": 1.0, **MIRROR}
    trainer = build_trainer(
        model, tokenizer, rollouts, tmp_path, **settings | {
            "mirror_step_size": 3.0, "per_device_train_batch_size": 64, "num_generations": 64, "num_iterations": 8,
            "max_steps": 160, "learning_rate": 0.02, "optim": "adamw_torch", "max_completion_length": 1,
        },
    )  # fmt: skip
    trainer.rollout_func = answer
    trainer.train()
    found = distribution(model)
    distances = [(p - target).abs().sum().item() / 2 for p in (reference, found)]
    assert distances[0] > 0.4 and distances[1] < 0.25 * distances[0]
