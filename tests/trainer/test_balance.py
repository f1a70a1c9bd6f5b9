"""Trajectory balance in real training: gradients against the naive objective, what is refused, and resuming."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

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
from tests.oracles import balance, credit, gap_at_threshold, group_constants, log_probs_and_entropies, select
from tests.trainer.test_trainer import plain_copy


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
    {"balance_reward": "reward", "scale_rewards": "none"},
    OFFLINE,
    {**OFFLINE, "length_normalized": False, "padding_free": False},
    {"loss_type": "grpo"},
    {"loss_type": "bnpo", "padding_free": False},
    {"loss_type": "cispo"},
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
    assert bool(clipped) == (steps * iterations > accumulation)
    moved = weight_change(case.start, oracle)
    assert relative_difference(weight_change(case.start, case.model), moved) < 1e-5
    # TRL's pass for old log-probabilities is the only one of the policy
    assert case.trainer.scoring_passes == 2 * len(rollouts.generated)


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
