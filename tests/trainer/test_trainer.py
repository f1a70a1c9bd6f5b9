"""What the objective keeps in the company of TRL's other features: gradients against the naive objective."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from peft import LoraConfig
from transformers import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from tests.conftest import (
    FixedRollouts,
    SpyTrainer,
    build_model,
    build_tokenizer,
    fixed_reward,
    gradient,
    naive_view,
    relative_difference,
    train,
    weight_change,
)
from tests.oracles import gap_at_threshold, log_probs_and_entropies, loss, select
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.rewards.returned import RewardError


RHO = 0.2


def batch_selection(model, batch, rule="high_entropy"):
    """Entropies of `model`, advantages, the selection over the whole batch, and the number of valid tokens."""
    entropies, advantages = naive_view(model, batch)
    pools = [[r.row for r in batch]]
    assert gap_at_threshold(batch, entropies, RHO, pools) > 1e-5
    return advantages, select(batch, entropies, RHO, rule, pools), sum(sum(r.valid) for r in batch)


def plain_copy(model):
    """A copy in evaluation mode without TRL's fused LM head, whose closure would still run the original."""
    model = copy.deepcopy(model).eval()
    del model.get_base_model().__dict__["forward"]
    return model


def parameters_of(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


class _Recorder:
    """Keeps the advantages of the generation batch."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.seen = output["advantages"]
        return output


# ---------------------------------------------------------------------- TRL's other arguments


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
@pytest.mark.parametrize("denominator", ["selected", "all"])
def test_every_loss_type(loss_type, denominator, model, start, tokenizer, tmp_path):
    settings = {"loss_type": loss_type, "loss_denominator": denominator}
    if loss_type == "cispo":
        settings["epsilon_high"] = 5.0
    if denominator == "selected" and loss_type not in ("bnpo", "cispo", "dapo", "vespo"):
        with pytest.raises(ValueError, match=f"not defined for loss_type='{loss_type}'.*loss_denominator='all'"):
            ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)
        return
    rollouts = FixedRollouts(tokenizer)
    trainer = train(
        model,
        tokenizer,
        rollouts,
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        **settings,
    )
    batch = rollouts.generated[0]
    advantages, selected, num_valid = batch_selection(start, batch)
    by_row = {r.row: r for r in batch}
    expected = 0.0
    for rows in trainer.rows_of_micro_batches(batch):
        micro_batch = [by_row[row] for row in rows]
        chosen = {key for key in selected if key[0] in rows}
        # On policy, with a ratio of 1, the per-token gradients of all these losses are those of -A log p.
        divisors = {
            "grpo": (4 * 8, lambda r: len(r.completion)),
            "sapo": (4 * 8, lambda r: len(r.completion)),
            "dr_grpo": (4 * 8 * 16, lambda r: 1.0),
            "luspo": (4 * 8, lambda r: 1.0),
            "bnpo": (4 * (len(chosen) if denominator == "selected" else sum(len(r.completion) for r in micro_batch)),
                     lambda r: 1.0),
        }  # fmt: skip
        count = len(selected) if denominator == "selected" else num_valid
        divisor, row_divisor = divisors.get(loss_type, (count, lambda r: 1.0))
        kind = "cispo" if loss_type in ("cispo", "vespo") else loss_type
        expected = expected + loss(
            start, micro_batch, advantages, chosen, divisor, row_divisor=row_divisor, loss_type=kind, high=5.0
        )
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5


def test_truncated_completions_are_outside_every_pool(model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer, truncate=True)
    trainer = train(model, tokenizer, rollouts, tmp_path, mask_truncated_completions=True)
    batch = rollouts.generated[0]
    assert sum(not any(r.valid) for r in batch) == 11
    advantages, selected, _ = batch_selection(start, batch)
    expected = loss(start, batch, advantages, selected, len(selected))
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5
    assert trainer.state.log_history[0]["forking/selected_fraction"] == pytest.approx(
        len(selected) / sum(sum(r.valid) for r in batch)
    )


@pytest.mark.parametrize("scope", ["batch", "micro_batch", "sequence"])
def test_environment_tokens_are_outside_every_pool(scope, model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer, env_mask=True)
    train(model, tokenizer, rollouts, tmp_path, entropy_threshold_scope=scope)
    batch = rollouts.generated[0]
    entropies, advantages = naive_view(start, batch)
    pools = [[r.row] for r in batch] if scope == "sequence" else [[r.row for r in batch]]  # one micro-batch
    selected = select(batch, entropies, RHO, "high_entropy", pools)
    expected = loss(start, batch, advantages, selected, len(selected))
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_micro_batch_without_a_valid_token(scope, model, start, tokenizer, tmp_path):
    """All completions truncated and masked: a differentiable zero, step after step."""
    rollouts = FixedRollouts(tokenizer)
    for key, ids in rollouts.completions.items():
        rollouts.completions[key] = [i if i != tokenizer.eos_token_id else 7 for i in ids]
    trainer = train(
        model,
        tokenizer,
        rollouts,
        tmp_path,
        mask_truncated_completions=True,
        entropy_threshold_scope=scope,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        max_steps=2,
    )
    assert trainer.state.log_history[0]["grad_norm"] == 0.0
    assert torch.equal(parameters_of(start), parameters_of(model))


@pytest.mark.parametrize(("iterations", "steps", "accumulation"), [(2, 1, 1), (1, 4, 1), (1, 4, 2), (1, 2, 4)])
def test_several_updates_per_generation_batch(iterations, steps, accumulation, model, start, tokenizer, tmp_path):
    """Windows smaller or larger than a generation batch: ratios leave 1, the selection stays the first one."""
    # Eight prompts are two generation batches per epoch: a window may not span epochs.
    rollouts = FixedRollouts(tokenizer, prompts=8)
    size = 32 // steps
    updates = max(2, steps * iterations // accumulation)
    generations = updates * accumulation // (steps * iterations)
    trainer = train(
        model,
        tokenizer,
        rollouts,
        tmp_path,
        per_device_train_batch_size=size,
        steps_per_generation=steps,
        gradient_accumulation_steps=accumulation,
        num_iterations=iterations,
        max_steps=updates,
        learning_rate=0.05,
    )
    assert len(rollouts.generated) == generations
    oracle = copy.deepcopy(start)
    micro_steps = iter(trainer.micro_batches)
    batches = iter(rollouts.generated)
    remaining = 0  # micro-steps until the next generation batch
    for _ in range(updates):
        total = torch.zeros_like(parameters_of(oracle))
        for _micro_step in range(accumulation):
            if remaining == 0:
                batch, remaining = next(batches), steps * iterations
                advantages, selected, _ = batch_selection(oracle, batch)
                with torch.no_grad():
                    old = {r.row: log_probs_and_entropies(oracle, r)[0] for r in batch}
            remaining -= 1
            trainer.micro_batches = [next(micro_steps)]
            rows = trainer.rows_of_micro_batches(batch)[0]
            micro_batch = [r for r in batch if r.row in rows]
            if not micro_batch:  # its rows were packed into others of the window
                continue
            # A window of `accumulation` micro-batches is `accumulation / steps` of the generation batch.
            value = loss(
                oracle, micro_batch, advantages, selected, len(selected) * accumulation / steps, old_log_probs=old
            )
            total = total + gradient(oracle, value)
        offset = 0
        for parameter in oracle.parameters():
            parameter.data -= 0.05 * total[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
    assert relative_difference(weight_change(start, model), parameters_of(start) - parameters_of(oracle)) < 1e-5


def test_kl_stays_on_all_tokens_and_keeps_its_scale(model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    reference = build_model(tokenizer, seed=5)

    class OtherReference(SpyTrainer):
        def train(self):
            self.ref_model.load_state_dict(reference.state_dict())
            return super().train()

    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    trainer = train(model, tokenizer, rollouts, tmp_path, trainer_class=OtherReference, beta=0.1)
    batch = rollouts.generated[0]
    advantages, selected, num_valid = batch_selection(start, batch)
    expected = loss(
        start, batch, advantages, selected, len(selected), reference=reference, beta=0.1, kl_divisor=num_valid
    )
    without = gradient(start, loss(start, batch, advantages, selected, len(selected)))
    expected = gradient(start, expected)
    assert relative_difference(without, expected) > 0.01, "the KL must matter here"
    assert relative_difference(weight_change(start, model), expected) < 1e-5
    assert trainer.state.log_history[0]["kl"] > 0


def test_sequence_level_ratio(model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    train(model, tokenizer, rollouts, tmp_path, importance_sampling_level="sequence")
    batch = rollouts.generated[0]
    advantages, selected, _ = batch_selection(start, batch)
    expected = loss(start, batch, advantages, selected, len(selected), sequence_level=True)
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5


def test_entropy_bonus_acts_on_selected_tokens_at_its_own_scale(model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    train(model, tokenizer, rollouts, tmp_path, entropy_coef=0.5)
    batch = rollouts.generated[0]
    advantages, selected, _ = batch_selection(start, batch)
    policy = loss(start, batch, advantages, selected, len(selected))
    entropies = {r.row: log_probs_and_entropies(start, r)[1] for r in batch}
    bonus = sum(entropies[row][t] for row, t in selected) / len(selected)
    assert relative_difference(weight_change(start, model), gradient(start, policy - 0.5 * bonus)) < 1e-5


def test_off_policy_mask_and_several_rewards(model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)

    def second_reward(completions, completion_ids, **kwargs):
        return [len(ids) / 10 for ids in completion_ids]

    class TwoRewards(SpyTrainer):
        def __init__(self, *args, reward_funcs, **kwargs):
            super().__init__(*args, reward_funcs=[reward_funcs, second_reward], **kwargs)

    trainer = train(
        model,
        tokenizer,
        rollouts,
        tmp_path,
        trainer_class=TwoRewards,
        reward_weights=[1.0, 0.5],
        # On policy the divergence is exactly 0: a negative threshold drops every completion of negative advantage.
        off_policy_mask_threshold=-1.0,
    )
    batch = rollouts.generated[0]
    for rollout in batch:
        rollout.reward += 0.5 * len(rollout.completion) / 10
    advantages, selected, _ = batch_selection(start, batch)
    kept = {key for key in selected if advantages[key[0]] >= 0}
    assert len(kept) < len(selected)
    expected = loss(start, batch, advantages, kept, len(selected))
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5
    assert "rewards/second_reward/mean" in trainer.state.log_history[0]


def test_lora(model, start, tokenizer, tmp_path):
    """Adapters are trained, and the selection is the policy's: dropout is off while tokens are scored."""
    rollouts = FixedRollouts(tokenizer, seed=2)
    settings = {"peft_config": LoraConfig(r=4, lora_alpha=64, lora_dropout=0.5, target_modules="all-linear")}
    trainer = train(
        model, tokenizer, rollouts, tmp_path, per_device_train_batch_size=8, steps_per_generation=4, max_steps=4,
        learning_rate=0.02, **settings,
    )  # fmt: skip
    # After the first batch the adapter is no longer zero, so dropout would show in the second batch's entropies.
    before = plain_copy(trainer.model)
    batch_inputs = next(iter(trainer.get_train_dataloader()))
    output = trainer._generate_and_score_completions(batch_inputs)
    batch = rollouts.generated[-1]
    _, selected, num_valid = batch_selection(before, batch)
    weights = output["credit_weights"]
    chosen = {(int(row), int(token)) for row, token in weights.nonzero()}
    assert chosen == selected
    assert torch.allclose(weights[weights > 0], torch.tensor(num_valid / len(selected)))
    assert all(module.training for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout))
    frozen = [p for name, p in trainer.model.named_parameters() if "lora" not in name]
    assert all(torch.equal(p, q) for p, q in zip(frozen, start.parameters(), strict=True))


def test_lora_with_kl_never_selects_by_the_reference(model, tokenizer, tmp_path):
    """With PEFT and `beta`, the reference pass is the same module with adapters off; its entropies are not ours."""
    for accumulation, steps, passes in ((1, 2, 2), (2, 2, 2)):
        policy = copy.deepcopy(model)
        rollouts = FixedRollouts(tokenizer)
        trainer = train(
            policy, tokenizer, rollouts, tmp_path, per_device_train_batch_size=16, beta=0.04,
            steps_per_generation=steps, gradient_accumulation_steps=accumulation, max_steps=2 // accumulation,
            learning_rate=0.5, peft_config=LoraConfig(r=4, lora_alpha=64, target_modules="all-linear"),
        )  # fmt: skip
        before = plain_copy(trainer.model)
        trainer.scoring_passes = 0
        output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
        assert trainer.scoring_passes == passes  # reference, and old log-probabilities or our own scoring
        chosen = {(int(row), int(token)) for row, token in output["credit_weights"].nonzero()}
        assert chosen == batch_selection(before, rollouts.generated[-1])[1]
        with before.disable_adapter():
            assert chosen != batch_selection(before, rollouts.generated[-1])[1], "the reference must select otherwise"


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 1),  # our own scoring pass
        ({"steps_per_generation": 2, "per_device_train_batch_size": 16}, 1),  # TRL's old log-probabilities, reused
        ({"num_iterations": 2}, 1),
        ({"token_selection": "random"}, 0),
        ({"entropy_threshold_scope": "micro_batch"}, 0),
        ({"entropy_threshold_scope": "sequence"}, 1),
        ({"top_entropy_quantile": 1.0}, 0),
    ],
)
def test_never_a_second_scoring_pass(settings, passes, model, tokenizer, tmp_path):
    trainer = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
    assert trainer.scoring_passes == passes


def test_equal_rewards_have_exactly_zero_advantage(model, tokenizer, tmp_path):
    rewards = [[0.7] * 8, [0.1] * 8, [0.0, 1.0] * 4, [1.0] * 8]

    trainer = train(
        model,
        tokenizer,
        FixedRollouts(tokenizer, rewards=rewards),
        tmp_path,
        trainer_class=type("Recorded", (_Recorder, SpyTrainer), {}),
    )
    assert (trainer.seen == 0).sum() == 24
    assert trainer.state.log_history[0]["forking/inert_row_fraction"] >= 0.75

    plain = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer, rewards=rewards), tmp_path,
        trainer_class=type("Plain", (_Recorder, GRPOTrainer), {}), config_class=GRPOConfig,
    )  # fmt: skip
    leftovers = plain.seen[(plain.seen != 0) & (plain.seen.abs() < 1e-2)]
    assert len(leftovers) == 16 and leftovers.abs().max() > 1e-4, "TRL itself leaves a rounding error here"


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_zero_advantages_under_every_normalisation(aggregation, scaling, model, tokenizer, tmp_path):
    rewards = [[0.7] * 8, [0.0, 1.0] * 4, [0.0, 0.5] * 4, [None] * 3 + [0.3] * 5]
    trainer = train(
        model, tokenizer, FixedRollouts(tokenizer, rewards=rewards), tmp_path,
        trainer_class=type("Recorded", (_Recorder, SpyTrainer), {}),
        multi_objective_aggregation=aggregation, scale_rewards=scaling,
    )  # fmt: skip
    assert (trainer.seen == 0).sum() == 16


# ---------------------------------------------------------------------- GRPOTrainer, bit for bit


# With these settings the trainer is TRL's.
PLAIN_GRPO = {
    "top_entropy_quantile": 1.0,
    "epsilon_high": None,
    "skip_inert_compute": False,
    "compact_generation": False,
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "grpo", "beta": 0.1},
        {"loss_type": "cispo"},
        {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 16, "max_steps": 4},
        {"gradient_accumulation_steps": 3, "steps_per_generation": 2, "per_device_train_batch_size": 16},
        {"mask_truncated_completions": True, "entropy_coef": 0.1, "use_adaptive_entropy": True},
    ],
    ids=str,
)
def test_all_tokens_is_grpo_bit_for_bit(settings, tokenizer, tmp_path):
    logs, weights = [], []
    for trainer_class, config_class, extra in (
        (GRPOTrainer, GRPOConfig, {}),
        (
            ForkingGRPOTrainer,
            ForkingGRPOConfig,
            PLAIN_GRPO,
        ),
    ):
        model = build_model(tokenizer)
        model.save_pretrained(tmp_path / "model")
        model.config._name_or_path = str(tmp_path / "model")
        trainer = train(
            model, tokenizer, FixedRollouts(tokenizer, truncate=True), tmp_path, trainer_class, config_class,
            **{"max_steps": 2, "learning_rate": 0.1, "optim": "adamw_torch", **settings, **extra},
        )  # fmt: skip
        timings = ("time", "runtime", "per_second", "profiling")
        logs.append(
            [{k: v for k, v in e.items() if not any(t in k for t in timings)} for e in trainer.state.log_history]
        )
        weights.append(parameters_of(model))
    assert torch.equal(*weights)
    assert logs[0] == logs[1]


def test_real_generation_is_grpo_bit_for_bit(tokenizer, tmp_path):
    """Our hooks draw no random number: the sampled completions are TRL's too."""
    weights = []
    for trainer_class, config_class, extra in (
        (GRPOTrainer, GRPOConfig, {}),
        (
            ForkingGRPOTrainer,
            ForkingGRPOConfig,
            PLAIN_GRPO,
        ),
    ):
        model = build_model(tokenizer)
        trainer = trainer_class(
            model=model,
            reward_funcs=lambda completions, **kwargs: [len(set(c)) / 10 for c in completions],
            args=config_class(
                str(tmp_path), use_cpu=True, bf16=False, max_steps=2, per_device_train_batch_size=16,
                learning_rate=0.01, report_to="none", save_strategy="no", disable_tqdm=True, max_completion_length=8,
                **extra,
            ),
            train_dataset=FixedRollouts(tokenizer).dataset,
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        weights.append(parameters_of(model))
    assert torch.equal(*weights)


# ---------------------------------------------------------------------- evaluation, metrics, resume


@pytest.mark.parametrize("scope", ["batch", "micro_batch", "local", "sequence"])
@pytest.mark.parametrize("rule", ["high_entropy", "random"])
def test_evaluation_during_training(scope, rule, model, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    trainer = train(
        model, tokenizer, rollouts, tmp_path, entropy_threshold_scope=scope, token_selection=rule, max_steps=2,
        eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=16, eval_dataset=rollouts.dataset,
        learning_rate=0.01,
    )  # fmt: skip
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2
    for entry in evaluations:
        assert math.isfinite(entry["eval_loss"])
        assert 0.2 <= entry["eval_forking/selected_fraction"] < 0.35
    # No scoring pass of its own: the evaluation forward has the entropies.
    evaluation_passes = 2 * 32 // 16
    assert trainer.scoring_passes == evaluation_passes + 2 * (rule != "random" and scope in ("batch", "sequence"))


def test_metrics_describe_the_selection(model, start, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)
    entry = train(model, tokenizer, rollouts, tmp_path).state.log_history[0]
    batch = rollouts.generated[0]
    entropies, _ = naive_view(start, batch)
    _, selected, num_valid = batch_selection(start, batch)
    values = sorted(h for row in entropies.values() for h in row)
    inside = [entropies[row][t] for row, t in selected]
    outside = [h for row, hs in entropies.items() for t, h in enumerate(hs) if (row, t) not in selected]
    expected = {
        "forking/entropy_threshold": min(inside),
        "forking/selected_fraction": len(selected) / num_valid,
        "forking/selected_entropy_mean": sum(inside) / len(inside),
        "forking/unselected_entropy_mean": sum(outside) / len(outside),
        "forking/entropy_p50": values[math.ceil(0.5 * len(values)) - 1],
        "forking/entropy_p80": values[math.ceil(0.8 * len(values)) - 1],
        "forking/entropy_p95": values[math.ceil(0.95 * len(values)) - 1],
        "entropy": sum(values) / len(values),
    }
    assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_random_selection_survives_a_resume(model, tokenizer, tmp_path):
    settings = {
        "token_selection": "random",
        "shuffle_dataset": False,
        "max_steps": 4,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = train(copy.deepcopy(model), tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)

    class Resumed(SpyTrainer):
        def train(self):
            return super().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))

    resumed = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, trainer_class=Resumed, **settings)
    assert len(resumed.weights) == 2
    for first, second in zip(whole.weights[2:], resumed.weights, strict=True):
        # Rows are shuffled within a rank by a global stream; the choice belongs to the rows.
        assert sorted(first.tolist()) == sorted(second.tolist())
    assert sorted(whole.weights[0].tolist()) != sorted(whole.weights[1].tolist())


# ---------------------------------------------------------------------- outside a loss, and bad input


def test_public_mask_method_outside_a_loss_is_trls(model, tokenizer, tmp_path):
    trainer = train(model, tokenizer, FixedRollouts(tokenizer), tmp_path)
    entropies, mask = torch.rand(4, 9), torch.ones(4, 9)
    ours = ForkingGRPOTrainer.get_high_entropy_mask(trainer, entropies, mask, 0.8)
    assert torch.equal(ours, GRPOTrainer.get_high_entropy_mask(trainer, entropies, mask, 0.8))


@pytest.mark.parametrize("scope", ["batch", "micro_batch", "local", "sequence"])
@pytest.mark.parametrize("rule", ["high_entropy", "random"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_stop_the_run(value, rule, scope, model, tokenizer, tmp_path):
    model.lm_head.weight.data[5] = value
    with pytest.raises(ValueError, match=r"Step 0: \d+ of \d+ valid tokens have a NaN entropy.*learning_rate"):
        train(
            model,
            tokenizer,
            FixedRollouts(tokenizer),
            tmp_path,
            entropy_threshold_scope=scope,
            token_selection=rule,
        )


def test_empty_completion_names_its_row(model, tokenizer, tmp_path):
    class Rollouts(FixedRollouts):
        def __call__(self, prompts, trainer):
            batch = super().__call__(prompts, trainer)
            self.row = [i for i, text in enumerate(prompts) if text == self.texts[0]][3]
            batch["completion_ids"][self.row] = []
            return batch

    rollouts = Rollouts(tokenizer)
    with pytest.raises(ValueError, match="empty completion in row") as raised:
        train(model, tokenizer, rollouts, tmp_path)
    assert f"row {rollouts.row} of 32" in str(raised.value)


def arguments(tmp_path, **settings):
    return ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)


def test_plain_config_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(TypeError, match="must be a ForkingGRPOConfig, got GRPOConfig"):
        ForkingGRPOTrainer(
            model,
            fixed_reward,
            GRPOConfig(str(tmp_path), use_cpu=True, bf16=False),
            FixedRollouts(tokenizer).dataset,
        )


def test_default_config_and_positional_arguments(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @dataclass
    class CpuConfig(ForkingGRPOConfig):
        use_cpu: bool = True
        bf16: bool | None = False

    monkeypatch.setattr("trl_fork.trainer.arguments.ForkingGRPOConfig", CpuConfig)
    model.config._name_or_path = "somewhere/tiny"
    dataset = FixedRollouts(tokenizer).dataset
    trainer = ForkingGRPOTrainer(
        model, lambda completions, **kwargs: [0.0] * len(completions), None, dataset, None, tokenizer
    )
    assert isinstance(trainer.args, ForkingGRPOConfig)
    assert trainer.args.output_dir == "tiny-ForkingGRPO"
    assert trainer.args.top_entropy_quantile == 0.2
    assert trainer.train_dataset is not None and trainer.processing_class is tokenizer


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (0, ["prompt", "solution"], r"train_dataset is empty \(columns: \['prompt', 'solution'\]\)"),
        (3, ["prompt", "solution"], "has 3 rows, but one generation batch takes 4 prompts"),
        (8, ["question", "solution"], r"needs a column 'prompt'; it has \['question', 'solution'\]"),
        (8, ["prompt", "answer"], r"reward function 'accuracy_reward' needs the columns \['solution'\]"),
    ],
)
def test_bad_dataset(rows, columns, message, model, tokenizer, tmp_path):
    from datasets import Dataset
    from trl.rewards import accuracy_reward

    dataset = Dataset.from_dict({name: ["ab"] * rows for name in columns})
    with pytest.raises(ValueError, match=message):
        ForkingGRPOTrainer(
            model,
            accuracy_reward,
            arguments(tmp_path, per_device_train_batch_size=32),
            dataset,
            processing_class=tokenizer,
        )


def test_bad_tokenizer(model, tmp_path):
    from datasets import Dataset

    def build(tokenizer, prompt):
        return ForkingGRPOTrainer(
            model,
            lambda completions, **kwargs: [0.0] * len(completions),
            arguments(tmp_path, per_device_train_batch_size=8),
            Dataset.from_dict({"prompt": [prompt] * 8}),
            processing_class=tokenizer,
        )

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat_template"):
        build(tokenizer, [{"role": "user", "content": "ab"}])
    build(tokenizer, "ab")
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad_token nor an eos_token"):
        build(tokenizer, "ab")


def test_image_text_models_are_refused(model, tokenizer, tmp_path):
    class Processor(ProcessorMixin):
        def __init__(self):
            self.tokenizer = tokenizer

    with pytest.raises(NotImplementedError, match="Image-text models are not supported with top_entropy_quantile < 1"):
        ForkingGRPOTrainer(
            model,
            lambda completions, **kwargs: [0.0] * len(completions),
            arguments(tmp_path, per_device_train_batch_size=8),
            FixedRollouts(tokenizer).dataset,
            processing_class=Processor(),
        )


@pytest.mark.parametrize(
    ("rewards", "error"),
    [
        (lambda n: [1.0] * (n - 1), r"'faulty' must return a list of 32, .*, and returned a list of 31\."),
        (lambda n: 1 / 0, r"'faulty' failed \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_faulty_reward_keeps_what_was_saved(rewards, error, model, tokenizer, tmp_path):
    class Faulty(SpyTrainer):
        def __init__(self, *args, reward_funcs, **kwargs):
            def faulty(completions, **kwargs):
                return [0.0, 1.0] * 16 if self.state.global_step < 2 else rewards(len(completions))

            super().__init__(*args, reward_funcs=faulty, **kwargs)

    with pytest.raises(RewardError, match=error):
        train(
            model, tokenizer, FixedRollouts(tokenizer), tmp_path, Faulty,
            max_steps=4, save_strategy="steps", save_steps=1,
        )  # fmt: skip
    resumed = train(
        model, tokenizer, FixedRollouts(tokenizer), tmp_path,
        type("Resumed", (SpyTrainer,), {"train": lambda self: SpyTrainer.train(self, resume_from_checkpoint=True)}),
        max_steps=3,
    )  # fmt: skip
    assert resumed._initial_global_step == 2 and resumed.state.global_step == 3


@pytest.mark.parametrize("how", ["plain", "adapter", "saved adapter"])
def test_a_model_without_a_trainable_parameter_is_refused(how, tokenizer, tmp_path):
    """TRL trains it, to no effect, and logs a gradient norm of the checkpointed inputs."""
    from peft import PeftModel, get_peft_model

    model = build_model(tokenizer)
    if how == "plain":
        model.requires_grad_(False)
        message = r"No parameter of the Qwen3ForCausalLM is trainable .*requires_grad_\(True\), or pass a peft_config"
    else:
        get_peft_model(model, LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
        model = PeftModel.from_pretrained(build_model(tokenizer), tmp_path / "adapter", is_trainable=False)
        message = r"adapter 'default' is loaded for inference.*is_trainable=True"
    settings = {"gradient_checkpointing": True}
    if how == "saved adapter":
        model = PeftModel.from_pretrained(build_model(tokenizer), tmp_path / "adapter", is_trainable=True)
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
        return
    with pytest.raises(ValueError, match=message):
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)


def test_a_frozen_model_with_a_new_adapter_is_trained(tokenizer, tmp_path):
    model = build_model(tokenizer).requires_grad_(False)
    train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, peft_config=LoraConfig(target_modules="all-linear"))


class Tampered(FixedRollouts):
    """A rollout function that makes one mistake."""

    mistake = None

    def __call__(self, prompts, trainer):
        output = super().__call__(prompts, trainer)
        output["logprobs"] = [[-1.0] * len(ids) for ids in output["completion_ids"]]
        output["env_mask"] = [[1] * len(ids) for ids in output["completion_ids"]]
        return self.mistake(output)


def more(output):
    return {name: values + values[:8] for name, values in output.items()}


def fewer(output):
    return {name: values[:-1] for name, values in output.items()}


def changed(name, change):
    def mistake(output):
        return {**output, name: change(output[name])}

    return mistake


MISTAKES = {
    "more rows": (more, r"returned 40 rows of 'prompt_ids' for 32 prompts on process 0.*num_generations"),
    "fewer rows": (fewer, r"returned 31 rows of 'prompt_ids' for 32 prompts"),
    "more prompts": (changed("prompt_ids", lambda rows: rows * 2), "returned 64 rows of 'prompt_ids' for 32 prompts"),
    "fewer completions": (
        changed("completion_ids", lambda rows: rows[1:]),
        "returned 31 rows of 'completion_ids' for 32 prompts",
    ),
    "a tuple of too many": (
        changed("completion_ids", lambda rows: (*rows, rows[0])),
        "returned 33 rows of 'completion_ids' for 32 prompts",
    ),
    "fewer log-probabilities": (
        changed("logprobs", lambda rows: rows[:-2]),
        "returned 30 rows of 'logprobs' for 32 prompts",
    ),
    "a short extra field": (
        changed("fixed_reward", lambda rows: rows[:5]),
        "returned 5 rows of 'fixed_reward' for 32 prompts",
    ),
    "a long extra field": (
        changed("fixed_reward", lambda rows: [*rows, 1.0]),
        "returned 33 rows of 'fixed_reward' for 32 prompts",
    ),
    "short log-probabilities": (
        changed("logprobs", lambda rows: [rows[0][:-1], *rows[1:]]),
        r"returned \d+ values of 'logprobs' for the \d+ completion tokens of row 0",
    ),
    "a long env_mask": (
        changed("env_mask", lambda rows: [*rows[:3], [*rows[3], 1], *rows[4:]]),
        r"returned \d+ values of 'env_mask' for the \d+ completion tokens of row 3",
    ),
    "an empty prompt": (
        changed("prompt_ids", lambda rows: [*rows[:-1], []]),
        "empty prompt in row 31 of 32 on process 0",
    ),
}


@pytest.mark.parametrize("dynamic_sampling", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_rollouts_that_do_not_match_are_refused(mistake, dynamic_sampling, model, tokenizer, tmp_path):
    rollouts = Tampered(tokenizer)
    rollouts.mistake, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        train(model, tokenizer, rollouts, tmp_path, dynamic_sampling=dynamic_sampling)


def test_rollouts_that_are_no_dictionary_are_refused(model, tokenizer, tmp_path):
    rollouts = Tampered(tokenizer)
    rollouts.mistake = lambda output: (output["prompt_ids"], output["completion_ids"])
    with pytest.raises(TypeError, match=r"must return a dictionary .*, got tuple on process 0"):
        train(model, tokenizer, rollouts, tmp_path)


def test_rollouts_that_match_are_trained_on(model, tokenizer, tmp_path):
    rollouts = Tampered(tokenizer)
    rollouts.mistake = lambda output: {**output, "same_for_all": "a text", "nothing": None}
    assert train(model, tokenizer, rollouts, tmp_path).state.log_history[0]["grad_norm"] > 0


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_unscorable_completions_have_no_gradient(missing, model, start, tokenizer, tmp_path):
    rewards = [[0.0, 1.0] * 4, [missing] * 2 + [0.0, 1.0] * 3, [0.5, 0.25] * 4, [missing] * 8]
    rollouts = FixedRollouts(tokenizer, rewards=rewards)
    train(model, tokenizer, rollouts, tmp_path)
    batch = rollouts.generated[0]
    scored = [r for r in batch if r.reward is not None and r.reward == r.reward]
    _, selected, _ = batch_selection(start, [replace(r, reward=0.0) for r in batch])
    advantages = dict.fromkeys(range(32), 0.0) | naive_view(start, scored)[1]
    expected = loss(start, batch, advantages, selected, len(selected))
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5
