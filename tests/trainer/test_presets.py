"""Every preset trains, alone and with LoRA, and its savings change nothing; what single presets promise."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from tests.conftest import FixedRollouts, SpyTrainer, build_model, gradient, relative_difference, train, weight_change
from tests.naive_rules import shaped_advantage
from tests.oracles import advantages, loss
from trl_fork import ForkingGRPOConfig
from trl_fork.credit import preset_names


@pytest.mark.parametrize("name", preset_names())
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
        assert trainer._savings.packing == saves
        assert (sum(map(len, trainer.micro_batches)) < 64) == saves
    assert relative_difference(*changes) < 1e-5
    assert passes[0] <= passes[1]
    assert (passes[0] == 0) == (not trainer.token_credit.needs_scores)


@pytest.mark.parametrize("name", preset_names())
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


# ---------------------------------------------------------------------- schedules


def test_a_reward_sees_the_whole_response(tokenizer, tmp_path):
    """The authors' code rewards the suffix that is trained on: an answer before it would count for nothing."""
    seen = []

    class Rewarded(SpyTrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            seen.extend(completion_ids_list)
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    rollouts = FixedRollouts(tokenizer)
    trainer = train(
        build_model(tokenizer), tokenizer, rollouts, tmp_path, Rewarded, token_credit="temporal_position", max_steps=2
    )
    assert seen == [r.completion for batch in rollouts.generated for r in batch]
    first = trainer.weights[0]
    assert ((first != 0).sum(1) == 1).all() and trainer.state.log_history[0]["credit/fraction"] == 0.01


# ---------------------------------------------------------------------- answer span


class NarrowedMask(GRPOTrainer):
    """The published way: tokens before the answer leave `completion_mask`, from which TRL makes the attention mask."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        output["completion_mask"] = answers(output["completion_ids"], self.processing_class)
        return output


def answers(ids, tokenizer):
    """1 from the only token `z` on, 0 before."""
    return (ids == tokenizer.convert_tokens_to_ids("z")).long().cumsum(1)


def change_with_reasoning(letter, tokenizer, tmp_path, trainer_class, config_class, **settings):
    """Gradient of completions `<letter> b c z d <eos>`: the answer begins at `z`."""
    rollouts = FixedRollouts(tokenizer)
    for i, key in enumerate(rollouts.completions):
        text = [letter, "b", "c", "z", "defghijk"[i % 8]]
        rollouts.completions[key] = [*tokenizer.convert_tokens_to_ids(text), tokenizer.eos_token_id]
        rollouts.masks[key] = [1] * 6
    model = build_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")  # of the reference model, with `beta`
    start = copy.deepcopy(model)
    train(model, tokenizer, rollouts, tmp_path, trainer_class, config_class, **settings)
    return start, weight_change(start, model), rollouts.generated[0]


def test_the_answer_sees_its_reasoning(tokenizer, tmp_path):
    """
    Credit for the answer alone still depends on the reasoning, its context. Narrowing `completion_mask` hides that:
    the gradient is then the same for another first token of the reasoning.
    """
    span = {"token_credit": {"span": {"pattern": "z"}}}
    changes = {}
    for letter in "ax":
        for name, arguments in (
            ("weights", (SpyTrainer, ForkingGRPOConfig, span)),
            ("mask", (NarrowedMask, GRPOConfig, {})),
        ):
            trainer_class, config_class, settings = arguments
            start, change, batch = change_with_reasoning(
                letter, tokenizer, tmp_path, trainer_class, config_class, **settings,
                per_device_train_batch_size=8, gradient_accumulation_steps=4,
            )  # fmt: skip
            embeddings = start.get_input_embeddings().weight.numel()
            changes[name, letter] = change[embeddings:]  # without the rows of the letters themselves
            if name == "weights":
                row_advantages = dict(enumerate(advantages(batch)))
                weights = {(r.row, t): 1.0 for r in batch for t in (3, 4, 5)}
                expected = gradient(start, loss(start, batch, row_advantages, weights, len(weights)))
                assert relative_difference(change, expected) < 1e-5
    assert relative_difference(changes["weights", "a"], changes["weights", "x"]) > 1e-2
    assert relative_difference(changes["mask", "a"], changes["mask", "x"]) < 1e-5


@pytest.mark.parametrize(("masked", "missing"), [(False, "completion"), (True, "completion"), (False, "drop")])
def test_answers_that_were_cut_off_are_warned_of(masked, missing, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        train(
            build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path,
            token_credit={"span": {"pattern": "a", "missing": missing}}, mask_truncated_completions=masked,
        )  # fmt: skip
    assert ("a completion that was cut off" in caplog.text) == (not masked and missing == "completion")


def test_a_span_with_a_reference_model(tokenizer, tmp_path):
    """With `beta` the KL term anchors every token, the reasoning included; the policy term is the answer's."""

    class OtherReference(SpyTrainer):
        def train(self):
            self.ref_model.load_state_dict(build_model(tokenizer, seed=5).state_dict())
            return super().train()

    span = {"span": {"pattern": "z", "missing": "drop"}}
    start, change, batch = change_with_reasoning(
        "a", tokenizer, tmp_path, OtherReference, ForkingGRPOConfig, token_credit=span, beta=0.1,
        per_device_train_batch_size=8, gradient_accumulation_steps=4,
    )  # fmt: skip
    weights = {(r.row, t): 1.0 for r in batch for t in (3, 4, 5)}
    reference, row_advantages = build_model(tokenizer, seed=5), dict(enumerate(advantages(batch)))
    expected = loss(
        start, batch, row_advantages, weights, len(weights), reference=reference, beta=0.1, kl_divisor=6 * len(batch)
    )
    assert relative_difference(change, gradient(start, expected)) < 1e-5
    without = loss(start, batch, row_advantages, weights, len(weights))
    assert relative_difference(change, gradient(start, without)) > 1e-2


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
    """Four updates on two batches, half of them off policy; the strength falls from one batch to the next."""
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
