"""Trajectory balance in real training: gradients against the naive objective, what is refused, and resuming."""

import copy
import logging
import math
import re
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import TrlParser

from tests.conftest import (
    FixedRollouts,
    SpyTrainer,
    build_model,
    build_trainer,
    gradient,
    naive_view,
    relative_difference,
    tiny_sizes,
    train,
    weight_change,
)
from tests.credit.own_rules import surprisal
from tests.oracles import (
    Rollout,
    balance,
    balance_gap,
    credit,
    gap_at_threshold,
    group_constants,
    informative_batch,
    log_probs_and_entropies,
    select,
)
from tests.trainer.test_trainer import plain_copy
from trl_fork import ForkingGRPOConfig
from trl_fork.trainer.objective_checks import BALANCE_FIELDS


BETA = 0.31
CUTS = {"32x1": (32, 1), "8x4": (8, 4), "2x16": (2, 16)}
BALANCE = {"objective": "trajectory_balance", "beta": BETA, "loss_denominator": "all"}
OFFLINE = {"partition": "offline", "balance_reward": "reward"}
MIRROR = {"mirror_step_size": 0.5, "length_normalized": False}


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

    def __init__(self, tokenizer, tmp_path, rollouts=None, lora=None, trainer_class=Balanced, **settings):
        self.settings = BALANCE | settings
        self.model = build_model(tokenizer)
        self.reference = build_model(tokenizer, seed=5)
        adapter = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        if lora == "trained":  # its reference is what it was
            self.model = get_peft_model(self.model, adapter)
        elif lora:
            settings = settings | {"peft_config": adapter}
        else:
            self.model.save_pretrained(tmp_path / "model")
            self.model.config._name_or_path = str(tmp_path / "model")
        self.lora, self.start = lora, copy.deepcopy(self.model)
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
        if lora == "new":
            self.model = self.trainer.model
            self.start = plain_copy(self.model)

    @property
    def batch(self):
        return self.rollouts.generated[0]

    def row_rewards(self, batch):
        if self.settings.get("balance_reward") == "reward":
            return {r.row: r.reward for r in batch}
        return naive_view(self.start, batch)[1]

    def ref_log_probs(self, batch):
        with torch.no_grad(), self.start.disable_adapter() if self.lora == "new" else nullcontext():
            return {r.row: log_probs_and_entropies(self.start if self.lora else self.reference, r)[0] for r in batch}

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


def forking(model, batch, rho, pools=None):
    """Weights of 1 on the forking set; `None` for all tokens."""
    if rho == 1.0:
        return None
    with torch.no_grad():
        entropies = {r.row: log_probs_and_entropies(model, r)[1].tolist() for r in batch}
    pools = pools or [[r.row for r in batch]]
    assert gap_at_threshold(batch, entropies, rho, pools) > 1e-5
    return dict.fromkeys(select(batch, entropies, rho, "high_entropy", pools), 1.0)


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


def surprisals(model, batch, rho):
    """Another weight at every token, as of `tests.credit.own_rules.surprisal`."""
    scores = {row: (-values).tolist() for row, values in old_log_probs(model, batch).items()}
    return credit(batch, [{"weight": "surprisal"}], {"surprisal": scores}, [[r.row for r in batch]])


# ---------------------------------------------------------------------- one step


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("rho", [1.0, 0.2])
def test_gradient_equals_naive_objective(rho, cut, tokenizer, tmp_path):
    size, accumulation = CUTS[cut]
    case = Case(
        tokenizer, tmp_path, top_entropy_quantile=rho, per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    log = check_step(case, rho)
    savings = case.trainer._savings
    assert savings.packing and savings.ordering and savings.head_backward
    assert not (savings.inert_rows or savings.head_forward)
    assert case.trainer.scoring_passes == 2, "the reference's, and one for log Z and the selection"
    assert log["balance/importance_ratio_max"] == 1.0 and log["balance/clipped_fraction"] == 0.0


SETTINGS = [
    {"padding_free": False},
    {"skip_inert_compute": False},
    {"length_normalized": False},
    {"length_normalized": False, "balance_reward": "reward"},
    {"balance_reward": "reward"},
    OFFLINE,
    {**OFFLINE, "length_normalized": False, "padding_free": False},
    {"loss_type": "grpo"},
    {"loss_type": "bnpo", "padding_free": False},
    {"entropy_threshold_scope": "sequence"},
    {"max_tokens_per_forward": 60},
    {"gradient_checkpointing": True},
    {"reuse_scoring_graph": True},
    {"reuse_scoring_graph": True, "top_entropy_quantile": 1.0},
    {"lora": "new"},
    {"lora": "trained"},
    {"lora": "new", "reuse_scoring_graph": True, **OFFLINE},
    {"pad_to_multiple_of": 8},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings(settings, tokenizer, tmp_path):
    rho = settings.get("top_entropy_quantile", 0.2)
    pooled_by_row = settings.get("entropy_threshold_scope") == "sequence"
    case = Case(tokenizer, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4, **settings)

    def selected(model, batch, rho):
        return forking(model, batch, rho, [[r.row] for r in batch] if pooled_by_row else None)

    check_step(case, rho, selected)
    if case.trainer.args.skip_inert_compute and "pad_to_multiple_of" not in settings:
        assert case.trainer._savings.ordering


@pytest.mark.parametrize("scope", ["micro_batch", "local"])
def test_weights_of_a_micro_batch(scope, tokenizer, tmp_path):
    case = Case(
        tokenizer, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4,
        entropy_threshold_scope=scope,
    )  # fmt: skip

    def selected(model, batch, rho):
        pools = case.trainer.rows_of_micro_batches(batch)
        assert len(pools) == 4
        return forking(model, batch, rho, pools)

    check_step(case, 0.2, selected)
    assert not case.trainer._savings.ordering


def test_soft_credit(tokenizer, tmp_path):
    case = Case(
        tokenizer, tmp_path, token_credit="tests.credit.own_rules.surprisal", per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    log = check_step(case, weights_of=surprisals)
    assert "forking/inert_row_fraction" not in log and log["credit/weight_max"] > 1


def test_a_residual_has_all_tokens_whatever_their_weights(tokenizer, tmp_path):
    logs = []
    for name, rho in (("all", 1.0), ("some", 0.3)):
        case = Case(tokenizer, tmp_path / name, top_entropy_quantile=rho)
        logs.append(check_step(case, rho))
    for name in ("loss", "balance/residual_mean", "balance/residual_abs", "balance/log_partition", "kl", "entropy"):
        assert logs[0][name] == pytest.approx(logs[1][name], abs=1e-6)


@pytest.mark.parametrize("part", ["truncate", "env_mask"])
def test_masked_tokens_and_completions(part, tokenizer, tmp_path):
    """Completions that are cut off do not count, and of the others the tokens that the model has written."""
    rollouts = OwnRewards(tokenizer, **{part: True})
    case = Case(
        tokenizer, tmp_path, rollouts, per_device_train_batch_size=8, gradient_accumulation_steps=4,
        mask_truncated_completions=True,
    )  # fmt: skip
    check_step(case, 0.2)
    masked = [sum(r.valid) < len(r.completion) for r in case.batch]
    assert sum(masked) > 8 and (part == "env_mask" or not all(masked))


def test_metrics_of_the_whole_batch(tokenizer, tmp_path):
    """Means over completions and tokens of all passes, not means of the means of passes."""
    case = Case(
        tokenizer, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=16,
        max_tokens_per_forward=75, top_entropy_quantile=1.0,
    )  # fmt: skip
    log = check_step(case)
    sizes = [len(rows) for rows in case.trainer.micro_batches if rows]
    assert len(set(sizes)) > 1 < len(sizes) and sum(sizes) == 32
    old, ref = old_log_probs(case.start, case.batch), case.ref_log_probs(case.batch)
    kls, entropies = [], []
    for r in case.batch:
        difference = ref[r.row] - old[r.row]
        kls += (difference.exp() - difference - 1).tolist()
        entropies += log_probs_and_entropies(case.start, r)[1].tolist()
    constants = case.constants(case.batch, old).values()
    assert log["kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-4)
    assert log["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    assert log["balance/log_partition"] == pytest.approx(sum(constants) / 32, rel=1e-4)
    assert not [name for name in log if "clip_ratio" in name]


# ---------------------------------------------------------------------- rewards that are missing


class WithoutSomeRewards(OwnRewards):
    """Of each prompt one completion could not be scored, and one has an infinite reward where `infinite` says so."""

    def __init__(self, *args, infinite=(), **kwargs):
        super().__init__(*args, **kwargs)
        for text, i in self.rewards:
            if i == 3:
                self.rewards[text, i] = None
            if i == 5 and self.texts.index(text) in infinite:
                self.rewards[text, i] = math.inf


@pytest.mark.filterwarnings("ignore:All reward functions returned None")
@pytest.mark.parametrize("infinite", [(), (1,)], ids=["none", "infinite"])
@pytest.mark.parametrize("reward", ["advantage", "reward"])
def test_completions_that_cannot_be_scored_are_left_out(reward, infinite, tokenizer, tmp_path):
    rollouts = WithoutSomeRewards(tokenizer, infinite=infinite)
    case = Case(
        tokenizer, tmp_path, rollouts, balance_reward=reward, per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
    )  # fmt: skip

    def rewards_of(batch):
        scored = [r for r in batch if r.reward is not None and r.group not in infinite]
        found = {r.row: r.reward for r in scored}
        if reward == "advantage":
            found = naive_view(case.start, scored)[1]
        return {r.row: found.get(r.row) for r in batch}

    case.row_rewards = rewards_of
    check_step(case, 0.2)
    counted = [value for value in rewards_of(case.batch).values() if value is not None]
    assert len(counted) == 28 - 7 * len(infinite)


@pytest.mark.parametrize(
    "credit_rule", [{"top_entropy_quantile": 0.2}, {"token_credit": "tests.credit.own_rules.surprisal"}], ids=str
)
def test_the_target_is_a_stationary_point_whatever_tokens_are_selected(credit_rule, tokenizer, tmp_path):
    """Rewards for which the model is the target; and others, for which it is not."""
    changes = []
    for name, extra in (("at", 0.0), ("beside", 0.01)):
        rollouts = OwnRewards(tokenizer)
        case = Case(tokenizer, tmp_path / name, rollouts, **OFFLINE, **credit_rule)
        for n, text in enumerate(rollouts.texts):
            for i in range(8):
                r = Rollout(tokenizer(text)["input_ids"], rollouts.completions[text, i], 0.0, n, 8 * n + i)
                own, ref = old_log_probs(case.start, [r])[r.row], case.ref_log_probs([r])[r.row]
                ratio = -balance_gap(r, own, ref, 0.0, BETA)
                rollouts.rewards[text, i] = BETA * (case.constants_of_prompts[n] + ratio) + extra * (i - 3)
        case.trainer.train()
        changes.append(weight_change(case.start, case.model).norm().item())
    assert changes[0] < 1e-4 * changes[1] and changes[1] > 1e-3


class Warmer(torch.nn.Module):
    """A model whose logits are divided by a temperature."""

    def __init__(self, model, temperature):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, **inputs):
        outputs = self.model(**inputs)
        outputs.logits = outputs.logits / self.temperature
        return outputs


def test_temperature(tokenizer, tmp_path):
    """That of the samples: policy and reference are the distributions that they come from."""
    case = Case(tokenizer, tmp_path, temperature=1.7, top_entropy_quantile=1.0)
    case.trainer.train()
    policy, case.reference = Warmer(case.start, 1.7), Warmer(case.reference, 1.7)
    _, surrogate, _, _ = case.expected(policy, case.batch, old_log_probs(policy, case.batch))
    assert relative_difference(weight_change(case.start, case.model), gradient(case.start, surrogate)) < 1e-5


def test_weights_of_reward_functions(tokenizer, tmp_path):
    case = Case(tokenizer, tmp_path, balance_reward="reward", reward_weights=[0.4])
    case.row_rewards = lambda batch: {r.row: 0.4 * r.reward for r in batch}
    check_step(case, 0.2)


@pytest.mark.parametrize("partition", [{}, OFFLINE], ids=["group", "offline"])
def test_a_batch_of_which_nothing_counts_changes_nothing(partition, tokenizer, tmp_path):
    rollouts = OwnRewards(tokenizer)
    for ids in rollouts.completions.values():
        ids[-1] = 7
    case = Case(tokenizer, tmp_path, rollouts, mask_truncated_completions=True, **partition)
    case.trainer.train()
    assert not any(any(r.valid) for r in case.batch)
    assert not weight_change(case.start, case.model).any()
    log = case.trainer.state.log_history[0]
    assert log["loss"] == 0 == log["grad_norm"] and "balance/residual_mean" not in log


# ---------------------------------------------------------------------- several updates


@pytest.mark.parametrize(("iterations", "steps", "accumulation"), [(2, 1, 1), (1, 4, 1), (1, 4, 2), (1, 2, 4)])
def test_several_updates_per_generation_batch(iterations, steps, accumulation, tokenizer, tmp_path):
    """The estimates of log Z stay those of the first policy; ratios leave 1, and some are clipped."""
    rollouts = OwnRewards(tokenizer, prompts=8)
    updates = max(2, steps * iterations // accumulation)
    case = Case(
        tokenizer, tmp_path, rollouts, per_device_train_batch_size=32 // steps, steps_per_generation=steps,
        gradient_accumulation_steps=accumulation, num_iterations=iterations, max_steps=updates, learning_rate=0.05,
        max_importance_ratio=1.05,
    )  # fmt: skip
    clipped = check_updates(case, updates)
    assert bool(clipped) == (steps * iterations > accumulation)


def check_updates(case, updates, tolerance=1e-5) -> int:
    """Check each update of a run with learning rate 0.05 and largest ratio 1.05. How many ratios were clipped."""
    args, rollouts = case.trainer.args, case.rollouts
    iterations, steps, accumulation = args.num_iterations, args.steps_per_generation, args.gradient_accumulation_steps
    case.trainer.train()
    oracle = copy.deepcopy(case.start)
    micro_steps, batches = iter(case.trainer.micro_batches), iter(rollouts.generated)
    remaining, clipped = 0, 0
    for update in range(updates):
        total, ratios, value = 0, [], 0.0
        for _ in range(accumulation):
            if remaining == 0:
                batch, remaining = next(batches), steps * iterations
                old, weights = old_log_probs(oracle, batch), forking(oracle, batch, 0.2)
            remaining -= 1
            rows = {batch[row].row for row in next(micro_steps)}
            if rows:
                # A window of `accumulation` micro-batches is `accumulation / steps` of the generation batch.
                found = case.expected(
                    oracle, batch, old, weights, rows, accumulation / steps, old_log_probs=old, largest_ratio=1.05
                )
                value, total, ratios = value + found[0], total + gradient(oracle, found[1]), ratios + found[3]
        log = case.trainer.state.log_history[update]
        assert log["loss"] == pytest.approx(value, rel=1e-3)
        assert log["balance/importance_ratio_max"] == pytest.approx(max(ratios), rel=1e-4)
        assert log["balance/clipped_fraction"] == pytest.approx(sum(r > 1.05 for r in ratios) / len(ratios))
        clipped += sum(r > 1.05 for r in ratios)
        offset = 0
        for parameter in oracle.parameters():
            parameter.data -= 0.05 * total[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
    moved = weight_change(case.start, oracle)
    assert relative_difference(weight_change(case.start, case.model), moved) < tolerance
    # TRL's pass for old log-probabilities is the only one of the policy
    assert case.trainer.scoring_passes == 2 * len(rollouts.generated)
    return clipped


def test_offline_needs_no_pass_of_the_policy(tokenizer, tmp_path):
    case = Case(tokenizer, tmp_path, top_entropy_quantile=1.0, **OFFLINE)
    check_step(case)
    assert case.trainer.scoring_passes == 1, "the reference's"


class Corrected(Balanced):
    """A ratio as of vLLM, of tokens or of completions, in a batch that a rollout function has made."""

    shape = "token"

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.use_vllm = True
        rows, columns = output["completion_ids"].shape
        ratio = 0.5 + torch.arange(rows)[:, None] / 31 + (torch.arange(columns) / 17 if self.shape == "token" else 0)
        output["importance_sampling_ratio"] = ratio
        return output


@pytest.mark.parametrize("shape", ["token", "sequence"])
def test_sampling_ratio_of_vllm_weighs_gradients(shape, tokenizer, tmp_path):
    case = Case(
        tokenizer, tmp_path, trainer_class=Corrected, per_device_train_batch_size=8, gradient_accumulation_steps=4,
    )  # fmt: skip
    case.trainer.shape = shape

    def corrected(model, batch, rho):
        extra = 17 if shape == "token" else math.inf
        return {
            (row, t): weight * (0.5 + row / 31 + t / extra) for (row, t), weight in forking(model, batch, rho).items()
        }

    check_step(case, 0.2, corrected)


# ---------------------------------------------------------------------- rows that move, evaluation, resuming


def test_estimates_stay_with_their_rows_in_dynamic_sampling(tokenizer, tmp_path):
    """Half of the first round is replaced by refills, which have estimates of their own."""
    rewards = [[0.5] * 8 if n % 2 else [0.1 * i + 0.01 * n for i in range(8)] for n in range(8)]
    rollouts = FixedRollouts(tokenizer, rewards=rewards, prompts=8)
    case = Case(
        tokenizer, tmp_path, rollouts, dynamic_sampling=True, dynamic_sampling_max_rounds=30, top_entropy_quantile=1.0,
        per_device_train_batch_size=8, gradient_accumulation_steps=4, **OFFLINE,
    )  # fmt: skip
    case.trainer.train()
    assert len(rollouts.generated) > 1
    batch = informative_batch(rollouts.generated, 8, 4)
    of_prompt = dict(zip(rollouts.texts, case.constants_of_prompts, strict=True))
    texts = ["".join(tokenizer.convert_ids_to_tokens(r.prompt)) for r in batch]
    case.constants = lambda *_: {r.row: of_prompt[text] for r, text in zip(batch, texts, strict=True)}
    _, surrogate, _, _ = case.expected(case.start, batch, old_log_probs(case.start, batch))
    assert relative_difference(weight_change(case.start, case.model), gradient(case.start, surrogate)) < 1e-5


@pytest.mark.parametrize("generations", [8, 1])
@pytest.mark.parametrize("partition", [{}, OFFLINE, {"balance_reward": "reward"}], ids=["group", "offline", "reward"])
def test_evaluation(partition, generations, tokenizer, tmp_path):
    """On a batch of its own, without a pass of the policy beside that of its loss."""
    rollouts = OwnRewards(tokenizer)
    evaluated = {"prompt": rollouts.texts, "log_partition": [0.37 * n - 0.23 for n in range(4)]}
    case = Case(
        tokenizer, tmp_path, rollouts, eval_dataset=Dataset.from_dict(evaluated), eval_strategy="steps", eval_steps=1,
        eval_on_start=True, per_device_eval_batch_size=4 * generations, num_generations_eval=generations, **partition,
    )  # fmt: skip
    case.trainer.train()
    batch = rollouts.generated[0]
    assert len(batch) == 4 * generations
    if generations == 1 and "balance_reward" not in partition:  # the only advantage of a group is 0
        case.row_rewards = lambda batch: {r.row: 0.0 for r in batch}
    value, _, residuals, _ = case.expected(case.start, batch, old_log_probs(case.start, batch))
    log = case.trainer.state.log_history[0]
    assert log["eval_loss"] == pytest.approx(value, rel=1e-4, abs=1e-9)
    assert log["eval_balance/residual_abs"] == pytest.approx(sum(map(abs, residuals)) / len(batch), abs=1e-5)
    assert (value == pytest.approx(0, abs=1e-9)) == (generations == 1 and partition != OFFLINE)
    assert {"eval_kl", "eval_entropy", "eval_balance/log_partition"} <= log.keys()
    # Of the reference and of the policy, for the step, and in each evaluation, where that of the policy is the loss's
    assert case.trainer.scoring_passes == 6


def resumed(tokenizer, tmp_path, changed=None, **settings):
    """Models of a run of four steps on one generation batch, and of the same one resumed after the second."""
    settings = {
        "per_device_train_batch_size": 8, "steps_per_generation": 4, "gradient_accumulation_steps": 1,
        "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1, "max_steps": 4, **settings,
    }  # fmt: skip
    whole = Case(tokenizer, tmp_path, **settings)
    whole.trainer.train()
    case = Case(tokenizer, tmp_path, **settings | (changed or {}))
    case.trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    return whole, case


@pytest.mark.parametrize("partition", [{}, OFFLINE], ids=["group", "offline"])
def test_resumed_within_a_generation_batch(partition, tokenizer, tmp_path):
    whole, case = resumed(tokenizer, tmp_path, **partition)
    assert case.trainer.scoring_passes == 0 == len(case.rollouts.generated)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), case.model.parameters(), strict=True))
    names = [name for name in whole.trainer.state.log_history[3] if name.startswith(("balance/", "kl", "loss"))]
    logs = [[c.trainer.state.log_history[3][name] for name in names] for c in (whole, case)]
    assert logs[0] == logs[1] and len(names) == 7


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length_normalized": False}, "length_normalized was True, is False"),
        ({"balance_reward": "reward"}, "balance_reward was advantage, is reward"),
        ({"max_importance_ratio": 5.0}, "max_importance_ratio was 10.0, is 5.0"),
        (MIRROR, "length_normalized was True, is False; mirror_step_size was None, is 0.5"),
        ({"objective": "policy_gradient"}, "objective was trajectory_balance, is policy_gradient"),
    ],
    ids=str,
)
def test_resumed_with_another_objective(changed, message, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        _, case = resumed(tokenizer, tmp_path, changed)
    assert f"by other settings ({message})" in caplog.text and len(case.rollouts.generated) == 1


def test_a_checkpoint_from_before_there_were_objectives(tokenizer, tmp_path):
    """Its settings are the defaults: the batch that it holds is gone on with."""
    settings = {
        "per_device_train_batch_size": 8, "steps_per_generation": 4, "gradient_accumulation_steps": 1,
        "save_strategy": "steps", "save_steps": 1, "max_steps": 2,
    }  # fmt: skip
    train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
    path = tmp_path / "run" / "checkpoint-2" / "forking_state_0.pt"
    state = torch.load(path, weights_only=True)
    for name in ("objective", *BALANCE_FIELDS):
        del state["settings"][name]
    torch.save(state, path)
    rollouts = FixedRollouts(tokenizer)
    trainer = build_trainer(build_model(tokenizer), tokenizer, rollouts, tmp_path, **settings | {"max_steps": 3})
    trainer.train(resume_from_checkpoint=str(path.parent))
    assert not rollouts.generated


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "flowrl"},
            r"objective must be one of \['policy_gradient', 'trajectory_balance'\], got 'flowrl'",
        ),
        ({"partition": "learned"}, r"partition must be one of \['group', 'offline'\], got 'learned'"),
        ({"balance_reward": "rewards"}, r"balance_reward must be one of \['advantage', 'reward'\], got 'rewards'"),
        ({"length_normalized": "no"}, "length_normalized must be True or False, got 'no'"),
        ({"max_importance_ratio": 0.2}, "max_importance_ratio must be a number of at least 1, got 0.2"),
        ({"max_importance_ratio": float("nan")}, "at least 1, got nan"),
        ({"max_importance_ratio": "10"}, "at least 1, got '10'"),
        ({"max_importance_ratio": True}, "at least 1, got True"),
        ({"beta": 0.0}, r"beta must be above 0 with objective='trajectory_balance', got 0.0.*beta=0.0667"),
        ({"beta": -0.1}, "beta must be at least 0, got -0.1"),
        ({"loss_denominator": "selected"}, r"loss_denominator='selected' is not defined for.*loss_denominator='all'"),
        (
            {"loss_denominator": "selected", "top_entropy_quantile": 1.0, "token_credit": "random"},
            "loss_denominator='selected' is not defined for objective='trajectory_balance'",
        ),
        ({"delta": 4.0}, "delta=4.0 does not go with .*max_importance_ratio.*default, None"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold=0.5 does not go with"),
        ({"entropy_coef": 0.01}, "entropy_coef=0.01 does not go with .*beta sets"),
        ({"use_adaptive_entropy": True}, "use_adaptive_entropy=True does not go with"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence' .* completion already"),
        ({"top_p": 0.95}, r"Truncated sampling \(top_p=0.95, .*Set top_p=1.0, top_k=0"),
        ({"top_k": 20}, r"Truncated sampling .*top_k=20"),
        ({"min_p": 0.05}, "min_p=0.05"),
        ({"generation_kwargs": {"top_p": 0.8}}, "top_p=0.8"),
        ({"generation_kwargs": {"top_k": 5}}, "top_k=5"),
        ({"generation_kwargs": {"min_p": 0.1}}, "min_p=0.1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1 does not go with"),
        ({"generation_kwargs": {"repetition_penalty": 1.2}}, "generation_kwargs: repetition_penalty=1.2 does not go"),
        ({"generation_kwargs": {"typical_p": 0.9}}, "generation_kwargs: typical_p=0.9 does not go with"),
        ({"generation_kwargs": {"do_sample": False}}, "generation_kwargs: do_sample=False does not go with"),
        ({"generation_kwargs": {"min_tokens": 3}}, "generation_kwargs: min_tokens=3 does not go with"),
        ({"generation_kwargs": {"logit_bias": {7: -100.0}}}, "generation_kwargs: logit_bias={7: -100.0} does not go"),
        ({"generation_kwargs": {"forced_eos_token_id": 1}}, "generation_kwargs: forced_eos_token_id=1 does not go"),
        ({"generation_kwargs": {"encoder_repetition_penalty": 1.1}}, "encoder_repetition_penalty=1.1 does not go"),
        ({"generation_kwargs": {"exponential_decay_length_penalty": (5, 1.1)}}, "exponential_decay_length_penalty="),
        ({"generation_kwargs": {"watermarking_config": {"bias": 2.5}}}, "watermarking_config={'bias': 2.5} does not"),
        ({"generation_kwargs": {"ignore_eos": True}}, "generation_kwargs: ignore_eos=True does not go with"),
        ({"generation_kwargs": {"temperature": 0.6}}, r"generation_kwargs: temperature=0.6 .*at temperature=1.0"),
        ({"vllm_structured_outputs_regex": "[0-9]+"}, r"vllm_structured_outputs_regex='\[0-9\]\+' does not go with"),
        ({"partition": "offline"}, "balance_reward='advantage' does not go with partition='offline'"),
        ({**OFFLINE, "sync_ref_model": True}, "sync_ref_model=True does not go with partition='offline'"),
        *(
            ({**MIRROR, "mirror_step_size": value}, f"mirror_step_size must be a positive number, got {value!r}")
            for value in (0, -0.5, math.inf, math.nan, "0.5", True)
        ),
        ({"mirror_step_size": 0.5}, "length_normalized=True does not go with mirror_step_size=0.5.*=False"),
        ({**MIRROR, **OFFLINE}, "partition='offline' does not go with mirror_step_size=0.5.*partition='group'"),
        ({**MIRROR, "sync_ref_model": True}, "sync_ref_model=True does not go with mirror_step_size=0.5"),
        (
            {"balance_reward": "reward", "multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation='normalize_then_sum' has no effect with balance_reward='reward'",
        ),
    ],
    ids=str,
)
def test_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **BALANCE | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"partition": "offline"},
        {"length_normalized": False},
        {"balance_reward": "reward"},
        {"max_importance_ratio": 3.0},
        {"mirror_step_size": 0.5},
    ],
    ids=str,
)
def test_what_the_policy_gradient_does_not_read_is_refused(settings, tmp_path):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} has no effect with objective='policy_gradient'"):
        ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_denominator": "selected", "top_entropy_quantile": 1.0},  # there is nothing that it could count
        {"loss_type": "cispo"},
        {"max_importance_ratio": float("inf")},
        {"max_importance_ratio": 1},
        {"sync_ref_model": True},
        {"length_normalized": False, "mirror_step_size": 1},
        {"dynamic_sampling": True},
        {"generation_kwargs": {"temperature": 1.0, "top_p": 1.0, "do_sample": True, "stop_strings": ["x"]}},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ],
    ids=str,
)
def test_accepted(settings, tmp_path):
    ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **BALANCE | settings)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("min_p", 0.1, r"or set generation_kwargs=\{'min_p': 0.0\}"),
        ("typical_p", 0.9, r"or set generation_kwargs=\{'typical_p': 1.0\}"),
        ("no_repeat_ngram_size", 3, r"or set generation_kwargs=\{'no_repeat_ngram_size': 0\}"),
        ("suppress_tokens", [5], "Take it out of that file"),
        ("forced_eos_token_id", 1, "Take it out of that file"),
    ],
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_what_generate_would_read_of_the_model_is_refused(name, value, remedy, lora, tokenizer, tmp_path):
    rollouts, model = OwnRewards(tokenizer), build_model(tokenizer)
    model.generation_config.do_sample = True  # otherwise it could not be written
    setattr(model.generation_config, name, value)
    settings = {**BALANCE, "own_prompts": False}
    if lora:
        settings["peft_config"] = LoraConfig(r=2, target_modules="all-linear")
    else:
        model.save_pretrained(tmp_path / "model")
        model = type(model).from_pretrained(tmp_path / "model")
    message = re.escape(f"generation_config.json of the model: {name}={value!r} does not go with objective=")
    with pytest.raises(ValueError, match=f"{message}.*{remedy}"):
        build_trainer(model, tokenizer, rollouts, tmp_path, **settings)


def test_what_the_run_sets_is_not_read_of_the_model(tokenizer, tmp_path):
    rollouts, model = OwnRewards(tokenizer), build_model(tokenizer)
    own = {"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "temperature": 0.6, "min_p": 0.1, "do_sample": False}
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    settings = {**BALANCE, "own_prompts": False, "peft_config": LoraConfig(r=2, target_modules="all-linear")}
    build_trainer(model, tokenizer, rollouts, tmp_path, **settings, generation_kwargs={"min_p": 0.0})


def test_a_rule_of_the_user_is_refused_beside_the_selected_denominator(tokenizer, tmp_path):
    settings = {"top_entropy_quantile": 1.0, "loss_denominator": "selected", "token_credit_func": surprisal}
    with pytest.raises(ValueError, match="loss_denominator='selected' is not defined for objective='trajectory_bal"):
        Case(tokenizer, tmp_path, **settings)


COLUMN_FAULTS = {
    "missing": (None, r"DATA \(columns \['prompt'\]\): partition='offline' needs a column 'log_partition'"),
    "none": ([0.1, None, 0.3, 0.4], "DATA: row 1, column 'log_partition': log_partition is None"),
    "not finite": ([0.1, 0.2, math.nan, 0.4], "DATA: row 2, .* log_partition is nan"),
    "infinite": ([0.1, 0.2, 0.3, -math.inf], "DATA: row 3, .* log_partition is -inf"),
    "too large": ([0.1, 1e300, 0.3, 0.4], r"DATA: row 1, .* log_partition is 1e\+300, .* of at most 1e\+15 in size"),
    "text": (["0.1", "0.2", "0.3", "0.4"], "DATA: row 0, .* log_partition is '0.1'"),
    "truth": ([True, False, True, False], "DATA: row 0, .* log_partition is True"),
    "list": ([[0.1], [0.2], [0.3], [0.4]], r"DATA: row 0, .* log_partition is \[0.1\]"),
}


def with_column(rollouts, values):
    return rollouts.dataset if values is None else rollouts.dataset.add_column("log_partition", values)


@pytest.mark.parametrize("fault", COLUMN_FAULTS)
def test_a_faulty_column_is_refused_before_a_model_is_loaded(fault, tokenizer, tmp_path):
    values, message = COLUMN_FAULTS[fault]
    rollouts = OwnRewards(tokenizer)
    good, bad = with_column(rollouts, [0.1, 0.2, 0.3, 0.4]), with_column(rollouts, values)
    for name, data in (
        ("train_dataset", {"train_dataset": bad}),
        ("eval_dataset", {"train_dataset": good, "eval_dataset": bad}),
        ("own", {"train_dataset": good, "eval_dataset": {"other": good, "own": bad}}),
    ):
        with pytest.raises(ValueError, match=message.replace("DATA", name)) as error:
            build_trainer("no/model", tokenizer, rollouts, tmp_path, **BALANCE, **OFFLINE, **data)
        assert "`trl-fork partition` writes the column" in str(error.value)


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [("beta", 0.5, BETA), ("length_normalized", False, "True"), ("temperature", 0.8, "1.0")],
)
def test_a_column_for_other_settings_is_refused(name, then, now, tokenizer, tmp_path):
    rollouts = OwnRewards(tokenizer)
    settings = {"beta": BETA, "length_normalized": True, "temperature": 1.0, "max_completion_length": 16}
    good = with_column(rollouts, [0.1, 0.2, 0.3, 0.4])
    right, wrong = (
        good.add_column("log_partition_settings", [settings, settings, third, settings])
        for third in (settings, {**settings, name: then})
    )
    Case(tokenizer, tmp_path, **OFFLINE, train_dataset=right)
    message = rf"row 2, .* log_partition was estimated for {name}={then}, and {name} is {now}\. Set {name}={then}, or"
    with pytest.raises(ValueError, match=f"train_dataset: {message}"):
        build_trainer("no/model", tokenizer, rollouts, tmp_path, **BALANCE, **OFFLINE, train_dataset=wrong)
    with pytest.raises(ValueError, match=f"eval_dataset: {message}"):
        Case(tokenizer, tmp_path, **OFFLINE, train_dataset=right, eval_dataset=wrong)
    stream = Case(tokenizer, tmp_path, **OFFLINE, train_dataset=wrong.to_iterable_dataset())
    with pytest.raises(ValueError, match=rf"of the batch, .* log_partition was estimated for {name}={then}"):
        stream.trainer.train()


def test_streams_and_columns_that_would_be_removed(tokenizer, tmp_path):
    rollouts = OwnRewards(tokenizer)
    good, bad = (with_column(rollouts, [0.1, 0.2, value, 0.4]) for value in (0.3, None))
    with pytest.raises(ValueError, match="remove_unused_columns is set, and would take 'log_partition' out of train_"):
        Case(tokenizer, tmp_path, **OFFLINE, train_dataset=good, remove_unused_columns=True)
    with pytest.raises(
        ValueError, match=r"train_dataset \(columns \['prompt'\]\): partition='offline' needs a column"
    ):
        Case(tokenizer, tmp_path, **OFFLINE, train_dataset=rollouts.dataset.to_iterable_dataset())
    Case(tokenizer, tmp_path, **OFFLINE, train_dataset=good.to_iterable_dataset()).trainer.train()
    case = Case(tokenizer, tmp_path, **OFFLINE, train_dataset=bad.to_iterable_dataset())
    with pytest.raises(
        ValueError, match=r"Step 0, process 0, row \d+ of the batch, prompt '.*': log_partition is None"
    ):
        case.trainer.train()
    # Tensors, as of a data set in another format
    case = Case(tokenizer, tmp_path, **OFFLINE, train_dataset=good.with_format("torch"))
    case.constants_of_prompts = [0.1, 0.2, 0.3, 0.4]
    check_step(case, 0.2)


def test_images_are_refused(tokenizer, tmp_path):
    rollouts = OwnRewards(tokenizer)
    data = rollouts.dataset.add_column("image", [None] * 4)
    with pytest.raises(NotImplementedError, match="objective='trajectory_balance' has not been tested with image"):
        build_trainer("no/model", tokenizer, rollouts, tmp_path, **BALANCE, train_dataset=data)


# ---------------------------------------------------------------------- other models, the card, the command line


def test_auxiliary_loss_has_the_scale_that_it_has_beside_the_policy_gradient(tokenizer, tmp_path):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "gate"], init_lora_weights=False)
    torch.manual_seed(0)
    sizes = {"moe_intermediate_size": 16, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    start = Qwen3MoeForCausalLM(Qwen3MoeConfig(**tiny_sizes(tokenizer), **sizes, initializer_range=0.3))

    def change(coefficient, **settings):
        torch.manual_seed(1)
        trainer = train(
            copy.deepcopy(start), tokenizer, OwnRewards(tokenizer), tmp_path, router_aux_loss_coef=coefficient,
            peft_config=adapter, per_device_train_batch_size=16, gradient_accumulation_steps=2, **settings,
        )  # fmt: skip
        assert ("aux_loss" in trainer.state.log_history[0]) == (coefficient > 0)
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])

    added = [change(0.5, **settings) - change(0.0, **settings) for settings in (BALANCE, {})]
    assert relative_difference(*added) < 1e-3


def test_the_card_names_the_objective(tokenizer, tmp_path):
    case = Case(tokenizer, tmp_path, top_entropy_quantile=0.2)
    case.trainer.create_model_card()
    text = (tmp_path / "run" / "README.md").read_text()
    for words in (
        "The objective is trajectory balance ([FlowRL](https://huggingface.co/papers/2509.15207)) with an estimate of "
        "the partition function from each group",
        "The gradient sees ", "| `objective` | `trajectory_balance` |", "| `beta` | `0.31` |", "zhu2025flowrl",
        "| `partition` | `group` |",
    ):  # fmt: skip
        assert words in text
    assert "epsilon" not in text and "loss_type" not in text
    plain = build_trainer(build_model(tokenizer), tokenizer, OwnRewards(tokenizer), tmp_path)
    plain.create_model_card()
    text = (tmp_path / "run" / "README.md").read_text()
    assert "objective" not in text and "flowrl" not in text.lower() and "epsilon" in text


def test_command_line(tmp_path):
    command = (
        f"--output_dir {tmp_path} --use_cpu true --bf16 false --objective trajectory_balance --beta 0.0667 "
        "--loss_denominator all --length_normalized false --balance_reward reward --partition offline "
        "--max_importance_ratio 5"
    )
    (args,) = TrlParser(ForkingGRPOConfig).parse_args_and_config(command.split())
    assert (args.objective, args.length_normalized, args.max_importance_ratio) == ("trajectory_balance", False, 5.0)
    assert (args.partition, args.balance_reward, args.beta) == ("offline", "reward", 0.0667)
