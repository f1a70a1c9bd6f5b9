"""Trajectory balance in real training: gradients against the naive objective, what is refused, and resuming."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from tests.conftest import (
    FixedRollouts,
    SpyTrainer,
    build_model,
    build_trainer,
    gradient,
    naive_view,
    relative_difference,
    weight_change,
)
from tests.oracles import balance, credit, group_constants, log_probs_and_entropies, select
from trl_fork import ForkingGRPOConfig


BETA = 0.31
CUTS = {"32x1": (32, 1), "8x4": (8, 4), "2x16": (2, 16)}
BALANCE = {"objective": "trajectory_balance", "beta": BETA, "loss_denominator": "all"}
OFFLINE = {"partition": "offline", "balance_reward": "reward"}


class Balanced(SpyTrainer):
    """Its reference is another model than the one that is trained, so that a log-ratio is not 0 at the start."""

    reference = None

    def train(self, *args, **kwargs):
        if self.reference is not None and self.ref_model is not None:
            self.ref_model.load_state_dict(self.reference.state_dict())
        return super().train(*args, **kwargs)


class OwnRewards(FixedRollouts):
    """All 32 rewards differ."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        draw = torch.Generator().manual_seed(11)
        self.rewards = {key: torch.rand(1, generator=draw).item() for key in self.rewards}


class Case:
    """A run on fixed rollouts, and what the naive objective says of it."""

    def __init__(self, tokenizer, tmp_path, rollouts=None, lora=False, trainer_class=Balanced, **settings):
        self.settings = BALANCE | settings
        self.model = build_model(tokenizer)
        self.reference = build_model(tokenizer, seed=5)
        if lora:
            adapter = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
            self.model = get_peft_model(self.model, adapter)
        else:
            self.model.save_pretrained(tmp_path / "model")
            self.model.config._name_or_path = str(tmp_path / "model")
        self.start = copy.deepcopy(self.model)
        self.rollouts = rollouts or OwnRewards(tokenizer)
        texts = self.rollouts.texts
        self.constants_of_prompts = [0.37 * n - 0.23 for n in range(len(texts))]
        if settings.get("partition") == "offline" and "train_dataset" not in settings:
            data = {"prompt": texts, "log_partition": self.constants_of_prompts}
            settings = settings | {"train_dataset": Dataset.from_dict(data)}
        self.trainer = build_trainer(
            self.model, tokenizer, self.rollouts, tmp_path, trainer_class, **BALANCE | settings
        )
        self.trainer.reference = self.reference

    @property
    def batch(self):
        return self.rollouts.generated[0]

    def row_rewards(self, batch):
        if self.settings.get("balance_reward") == "reward":
            return {r.row: r.reward for r in batch}
        return naive_view(self.start, batch)[1]

    def ref_log_probs(self, batch):
        with torch.no_grad():
            if hasattr(self.start, "disable_adapter"):
                with self.start.disable_adapter():
                    return {r.row: log_probs_and_entropies(self.start, r)[0] for r in batch}
            return {r.row: log_probs_and_entropies(self.reference, r)[0] for r in batch}

    def constants(self, batch, old, rewards=None):
        if self.settings.get("partition") == "offline":
            return {r.row: self.constants_of_prompts[r.group] for r in batch}
        return group_constants(
            batch, old, self.ref_log_probs(batch), rewards or self.row_rewards(batch), BETA, self.normalized
        )

    @property
    def normalized(self):
        return self.settings.get("length_normalized", True)

    def expected(self, model, batch, old, weights=None, rows=None, share=1.0, rewards=None, **arguments):
        """The naive objective of `rows` of a batch, which are `share` of it."""
        rewards = rewards or self.row_rewards(batch)
        counted = [r for r in batch if any(r.valid) and rewards[r.row] is not None]
        return balance(
            model,
            [r for r in batch if rows is None or r.row in rows],
            rewards,
            self.constants(batch, old, rewards),
            self.ref_log_probs(batch),
            len(counted) * share,
            beta=BETA,
            length_normalized=self.normalized,
            weights=weights,
            **arguments,
        )


def old_log_probs(model, batch):
    with torch.no_grad():
        return {r.row: log_probs_and_entropies(model, r)[0] for r in batch}


def forking(model, batch, rho):
    if rho == 1.0:
        return None
    entropies, _ = naive_view(model, batch)
    return dict.fromkeys(select(batch, entropies, rho, "high_entropy", [[r.row for r in batch]]), 1.0)


def check_step(case, rho=1.0, weights_of=forking, **arguments):
    """One step of the whole batch: its gradient, loss and metrics."""
    case.trainer.train()
    (batch,) = case.rollouts.generated
    weights = weights_of(case.start, batch, rho)
    old = old_log_probs(case.start, batch)
    value, surrogate, residuals, _ = case.expected(case.start, batch, old, weights, **arguments)
    assert relative_difference(weight_change(case.start, case.model), gradient(case.start, surrogate)) < 1e-5
    log = case.trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(value, rel=1e-4)
    assert log["balance/residual_mean"] == pytest.approx(sum(residuals) / len(residuals), abs=1e-5)
    assert log["balance/residual_abs"] == pytest.approx(sum(map(abs, residuals)) / len(residuals), rel=1e-4)
    return log


# ---------------------------------------------------------------------- one step


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("rho", [1.0, 0.2])
def test_gradient_equals_naive_objective(rho, cut, tokenizer, tmp_path):
    size, accumulation = CUTS[cut]
    case = Case(
        tokenizer, tmp_path, top_entropy_quantile=rho, per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    check_step(case, rho)
