"""Every preset trains, alone and with LoRA, and its savings leave the gradient as it is; what single presets promise."""

import copy

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from tests.conftest import FixedRollouts, SpyTrainer, build_model, gradient, relative_difference, train, weight_change
from tests.naive_rules import shaped_advantage
from tests.oracles import advantages, log_probs_and_entropies
from trl_fork import ForkingGRPOConfig
from trl_fork.credit import preset_names


@pytest.mark.parametrize("name", [name for name in preset_names() if name != "gcpo"])
def test_savings_leave_the_gradient_as_it_is(name, tokenizer, tmp_path):
    """Half of the groups have no spread; the schedule's second step trains on more than its first."""
    rewards = [[0.5] * 8, [0.0, 1.0] * 4, [0.25] * 8, [1.0, 0.0, 0.0, 0.0] * 2]
    changes, passes = [], []
    for saves in (True, False):
        model = build_model(tokenizer)
        start = copy.deepcopy(model)
        trainer = train(
            model, tokenizer, FixedRollouts(tokenizer, rewards=rewards), tmp_path, token_credit=name, max_steps=2,
            learning_rate=0.2, per_device_train_batch_size=8, gradient_accumulation_steps=4, skip_inert_compute=saves,
        )  # fmt: skip
        changes.append(weight_change(start, model))
        passes.append(trainer.scoring_passes)
        assert (sum(map(len, trainer.micro_batches)) < 64) == saves
    assert relative_difference(*changes) < 1e-5
    assert passes[0] <= passes[1]
    assert (passes[0] == 0) == (not trainer.token_credit.needs_scores)


@pytest.mark.parametrize("name", [name for name in preset_names() if name != "gcpo"])
def test_trains_an_adapter(name, tokenizer, tmp_path):
    model = build_model(tokenizer)
    lora = LoraConfig(r=4, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = train(
        model, tokenizer, FixedRollouts(tokenizer), tmp_path, token_credit=name, max_steps=2, learning_rate=0.1,
        per_device_train_batch_size=8, gradient_accumulation_steps=4, peft_config=lora,
    )  # fmt: skip
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora" in name and p.isfinite().all() for name, p in trained.items())
    assert all(p.abs().sum() > 0 for name, p in trained.items() if "lora_B" in name)
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 2


# ---------------------------------------------------------------------- entropy advantage


class ShapedAdvantages(GRPOTrainer):
    """TRL's trainer, given one advantage per token: those of the paper, from the same entropies."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        ids, mask = output["completion_ids"], output["completion_mask"]
        with torch.no_grad():
            _, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], ids], 1),
                torch.cat([output["prompt_mask"], mask], 1),
                ids.shape[1],
                compute_entropy=True,
            )
        strength = 0.6 if self.state.global_step == 0 else 0.15
        shaped = [
            [shaped_advantage(a, h, alpha=0.3, strength=strength) for h in row]
            for a, row in zip(output["advantages"].tolist(), entropies.tolist(), strict=True)
        ]
        output["advantages"] = torch.tensor(shaped)
        return output


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
def test_entropy_advantage_is_that_of_trl_with_an_advantage_per_token(loss_type, tokenizer, tmp_path):
    """Four updates on two batches, half of them off policy, and the strength falls from the first batch to the next."""
    settings = {
        "max_steps": 4, "learning_rate": 0.3, "per_device_train_batch_size": 32, "num_iterations": 2,
        "loss_type": loss_type, "epsilon_high": 5.0 if loss_type == "cispo" else 0.28,
    }  # fmt: skip
    credit = {"entropy_advantage": {"alpha": 0.3, "strength": {"linear": [0.6, -0.0, 0.6666667]}}}
    models = []
    for arguments in (
        (ShapedAdvantages, GRPOConfig, settings),
        (SpyTrainer, ForkingGRPOConfig, settings | {"token_credit": credit, "loss_denominator": "all"}),
        (GRPOTrainer, GRPOConfig, settings),
    ):
        models.append(build_model(tokenizer))
        start = copy.deepcopy(models[-1])
        train(models[-1], tokenizer, FixedRollouts(tokenizer), tmp_path, arguments[0], arguments[1], **arguments[2])
    shaped, ours, plain = (weight_change(start, model) for model in models)
    assert relative_difference(ours, shaped) < 1e-4
    assert relative_difference(plain, shaped) > 0.05
