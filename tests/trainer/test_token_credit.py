"""Every credit rule in real training: the gradient of the naive objective for any cut, and the refusals."""

import copy
import json
import logging

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from tests.conftest import (
    LETTERS,
    FixedRollouts,
    SpyTrainer,
    build_model,
    gradient,
    naive_view,
    relative_difference,
    train,
    weight_change,
)
from tests.oracles import credit, log_probs_and_entropies, loss, priority
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.credit import RULES, NaNSignalError, build_credit
from trl_fork.ranks import Ranks
from trl_fork.trainer.token_credit import TokenCredit


CUTS = {"32x1": (32, 1), "8x4": (8, 4), "2x16": (2, 16)}


def softened(signals):
    """A rule of a user's with another weight at every token: the more surprising, the larger."""
    return 0.25 - signals.log_probs


def ones(signals):
    return torch.ones_like(signals.mask, dtype=torch.float32)


ones.needs, ones.sparse = (), False


def shaping(signals):
    return 1 + signals.mask


shaping.counted, shaping.needs = False, ()


def nothing(signals):
    return torch.zeros_like(signals.entropies)


HERE = __name__
# What the tokens of the fixture's tokenizer decode to, with a space before all but the first
LETTERS_AND_MARKS = ["<pad>", "<eos>", "<user>", "<assistant>", *LETTERS]
# Configuration of a chain, and the same for the oracle.
CHAINS = {
    "top_fraction": ({"top_fraction": {"fraction": 0.3}}, [{"fraction": 0.3, "score": "entropy"}]),
    "complement": (
        {"top_fraction": {"fraction": 0.3, "complement": True}},
        [{"fraction": 0.3, "score": "entropy", "complement": True}],
    ),
    "random": ({"random": {"fraction": 0.3}}, [{"fraction": 0.3, "score": "priority"}]),
    "surprisal": (
        {"top_fraction": {"fraction": 0.3, "score": "surprisal"}},
        [{"fraction": 0.3, "score": "surprisal"}],
    ),
    "relative_surprisal": (
        {"top_fraction": {"fraction": 0.3, "score": "relative_surprisal"}},
        [{"fraction": 0.3, "score": "relative_surprisal"}],
    ),
    "gradient_magnitude": (
        {"top_fraction": {"fraction": 0.3, "score": "gradient_magnitude"}},
        [{"fraction": 0.3, "score": "gradient_magnitude"}],
    ),
    "position": (
        {"top_fraction": {"fraction": 0.4, "score": "position", "pool": "sequence"}},
        [{"fraction": 0.4, "score": "position", "per_row": True}],
    ),
    # At the first step of a schedule the fraction is its start.
    "scheduled": (
        {"top_fraction": {"fraction": {"linear": [0.15, 1.0, 0.8]}, "pool": "sequence"}},
        [{"fraction": 0.15, "score": "entropy", "per_row": True}],
    ),
    "local_entropy": (
        {"proportional": {"window": 5, "temperature": 0.5}},
        [{"kind": "proportional", "window": 5, "temperature": 0.5}],
    ),
    "all_rows": (
        {"proportional": {"rows": "all", "score": "surprisal", "strength": 0.6}},
        [{"kind": "proportional", "rows": "all", "score": "surprisal", "strength": 0.6}],
    ),
    "rank": ({"rank": {"score": "entropy"}}, [{"kind": "rank", "score": "entropy"}]),
    "interval": ({"interval": {"low": 0.8, "high": 1.05}}, [{"kind": "interval", "low": 0.8, "high": 1.05}]),
    "span": ({"span": {"pattern": "[a-h]"}}, [{"kind": "span", "pattern": "[a-h]"}]),
    "dropped": (
        {"span": {"pattern": "[a-d]", "missing": "drop"}},
        [{"kind": "span", "pattern": "[a-d]", "missing": "drop"}],
    ),
    "entropy_advantage": ({"entropy_advantage": {"alpha": 0.1}}, [{"kind": "entropy_advantage", "alpha": 0.1}]),
    "fading": (
        {"entropy_advantage": {"kappa": 1.5, "strength": {"linear": [0.7, 0.0, 0.8]}}},
        [{"kind": "entropy_advantage", "kappa": 1.5, "strength": 0.7}],
    ),
    "spurious": (
        {"spurious": {"entropy_quantile": 0.7, "probability": 0.03}},
        [{"kind": "spurious", "entropy_quantile": 0.7, "probability": 0.03}],
    ),
    "rollouts": ({"rollouts": {"top_tokens": 0.3}}, [{"kind": "rollouts", "top_tokens": 0.3}]),
    "span_then_pepo": (
        {"span": {"pattern": "[a-h]"}, "proportional": {"window": 3}, "entropy_advantage": {}},
        [{"kind": "span", "pattern": "[a-h]"}, {"kind": "proportional", "window": 3}, {"kind": "entropy_advantage"}],
    ),
    "weights": (f"{HERE}.softened", [{"weight": "softened"}]),
    "chain": (
        {"random": {"fraction": 0.6}, f"{HERE}.softened": {}, "top_fraction": {"fraction": 0.5}},
        [{"fraction": 0.6, "score": "priority"}, {"weight": "softened"}, {"fraction": 0.5, "score": "entropy"}],
    ),
}


# Chains whose rules read no score, or whose weights are nowhere 0.
UNSCORED = ("random", "position", "span", "dropped")
EVERYWHERE = ("local_entropy", "all_rows", "rank", "entropy_advantage", "fading")


def naive_scores(model, batch, row_advantages, generation=(0, 0, 0)):
    """All scores by name and row, of `model` as it is."""

    def first(rollout):
        return rollout.valid.index(1) if 1 in rollout.valid else 0

    with torch.no_grad():
        pairs = {r.row: [values.tolist() for values in log_probs_and_entropies(model, r)] for r in batch}
    entropies = {row: pair[1] for row, pair in pairs.items()}
    return {
        "entropy": entropies,
        "surprisal": {row: [-x for x in pair[0]] for row, pair in pairs.items()},
        "relative_surprisal": {row: [-x / h for x, h in zip(*pair, strict=True)] for row, pair in pairs.items()},
        "gradient_magnitude": {row: [abs(row_advantages[row]) * h for h in hs] for row, hs in entropies.items()},
        "priority": {r.row: [priority(42, generation, r.row, t) for t in range(len(r.completion))] for r in batch},
        "row_priority": {r.row: priority(42, (*generation, r.row), first(r), 0) for r in batch},
        "softened": {row: [0.25 - x for x in pair[0]] for row, pair in pairs.items()},
        "text": {r.row: [f" {LETTERS_AND_MARKS[i]}"[k == 0 :] for k, i in enumerate(r.completion)] for r in batch},
        "valid": {r.row: r.valid for r in batch},
    }


@pytest.mark.parametrize(("denominator", "cut"), [("selected", "32x1"), ("all", "8x4"), ("selected", "2x16")])
@pytest.mark.parametrize("name", CHAINS)
def test_gradient_equals_naive_objective(name, denominator, cut, tokenizer, tmp_path):
    chain, naive_chain = CHAINS[name]
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer)
    size, accumulation = CUTS[cut]
    trainer = train(
        model,
        tokenizer,
        rollouts,
        tmp_path,
        token_credit=chain,
        loss_denominator=denominator,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    assert trainer._savings.inert_rows and trainer._savings.head_forward == (name not in EVERYWHERE)
    batch = rollouts.generated[0]
    _, row_advantages = naive_view(start, batch)
    pools = [[r.row for r in batch]]
    scores = naive_scores(start, batch, row_advantages)
    weights = credit(batch, naive_chain, scores, pools, row_advantages.values())
    counted = [rule for rule in naive_chain if rule.get("kind") != "entropy_advantage"]
    mass = sum(credit(batch, counted, scores, pools, row_advantages.values()).values())
    divisor = mass if denominator == "selected" else sum(sum(r.valid) for r in batch)
    expected = loss(start, batch, row_advantages, weights, divisor)
    assert relative_difference(weight_change(start, model), gradient(start, expected)) < 1e-5
    everywhere = len(weights) == sum(sum(r.valid) for r in batch)
    assert len(set(weights.values())) > 1 if everywhere else weights, "the rule would be that of all tokens"
    logged = trainer.state.log_history[0]
    total, squares = sum(weights.values()), sum(w * w for w in weights.values())
    valid = sum(sum(r.valid) for r in batch)
    assert logged["credit/effective_fraction"] == pytest.approx(total**2 / valid / squares, rel=1e-4)
    assert ("credit/fraction" in logged) == (name == "scheduled")
    assert ("credit/strength" in logged) == (name == "fading")
    assert ("credit/span_found" in logged) == ("span" in chain)
    assert ("entropy" in logged) == trainer.token_credit.needs_scores == (name not in UNSCORED)


def test_every_rule_is_here():
    tested = {rule for chain, _ in CHAINS.values() if isinstance(chain, dict) for rule in chain}
    assert set(RULES) <= tested


def surprising_half(signals, pool):
    return pool.top(-signals.log_probs, signals.mask, 0.5).float()


surprising_half.needs, surprising_half.mass = {"log_probs"}, "from_masks"


def train_at_loss(scope, tokenizer, tmp_path, **rule):
    """A step whose pools are micro-batches: the trainer, the model before it, its change, and the batch."""
    model = build_model(tokenizer)
    start = copy.deepcopy(model)
    rollouts = FixedRollouts(tokenizer)
    trainer = train(
        model, tokenizer, rollouts, tmp_path, entropy_threshold_scope=scope, per_device_train_batch_size=8,
        gradient_accumulation_steps=4, **rule,
    )  # fmt: skip
    return trainer, start, weight_change(start, model), rollouts.generated[0]


@pytest.mark.parametrize("scope", ["micro_batch", "local"])
def test_entropy_advantage_of_the_current_policy(scope, tokenizer, tmp_path):
    token_credit, naive_chain = CHAINS["entropy_advantage"]
    trainer, start, change, batch = train_at_loss(scope, tokenizer, tmp_path, token_credit=token_credit)
    assert trainer.scoring_passes == 0
    _, row_advantages = naive_view(start, batch)
    scores = naive_scores(start, batch, row_advantages)
    weights = credit(batch, naive_chain, scores, [], row_advantages.values())
    expected = loss(start, batch, row_advantages, weights, sum(sum(r.valid) for r in batch))
    assert relative_difference(change, gradient(start, expected)) < 1e-5


@pytest.mark.parametrize("scope", ["micro_batch", "local"])
def test_pools_of_micro_batches(scope, tokenizer, tmp_path):
    """A rule of a user's at the loss: the log-probabilities are those of the pass itself."""
    trainer, start, change, batch = train_at_loss(scope, tokenizer, tmp_path, token_credit_func=surprising_half)
    _, row_advantages = naive_view(start, batch)
    half, pools = [{"fraction": 0.5, "score": "surprisal"}], trainer.rows_of_micro_batches(batch)
    weights = credit(batch, half, naive_scores(start, batch, row_advantages), pools)
    expected = loss(start, batch, row_advantages, weights, len(weights))
    assert relative_difference(change, gradient(start, expected)) < 1e-5


@pytest.mark.parametrize(("name", "passes"), [("position", 0), ("random", 0), ("top_fraction", 1), ("weights", 1)])
def test_rules_without_scores_save_the_scoring_pass(name, passes, tokenizer, tmp_path):
    rewards = [[0.5] * 8, [0.0, 1.0] * 4, [0.25] * 8, [1.0, 0.0, 0.0, 0.0] * 2]  # half of the rows are inert
    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer, rewards=rewards), tmp_path,
        token_credit=CHAINS[name][0],
    )  # fmt: skip
    logged = trainer.state.log_history[0]
    assert trainer.scoring_passes == passes and 8 < sum(map(len, trainer.micro_batches)) <= 16
    assert ("entropy" in logged) == bool(passes) and "forking/selected_fraction" in logged
    assert ("forking/entropy_threshold" in logged) == (name == "top_fraction")


# ---------------------------------------------------------------------- GRPO


PLAIN = {"epsilon_high": None, "skip_inert_compute": False, "max_steps": 3, "learning_rate": 0.05}


@pytest.mark.parametrize("denominator", ["selected", "all"])
@pytest.mark.parametrize(
    "token_credit",
    [{"top_fraction": {"fraction": 1.0}}, {"random": {"fraction": 1}}, f"{HERE}.ones"],
    ids=["top_fraction", "random", "own"],
)
def test_equal_weights_are_grpo_bit_for_bit(token_credit, denominator, tokenizer, tmp_path):
    models = []
    for trainer_class, config_class, settings in (
        (GRPOTrainer, GRPOConfig, {"max_steps": 3, "learning_rate": 0.05}),
        (
            ForkingGRPOTrainer,
            ForkingGRPOConfig,
            PLAIN | {"token_credit": token_credit, "loss_denominator": denominator},
        ),
    ):
        models.append(build_model(tokenizer))
        rollouts = FixedRollouts(tokenizer, rewards=[[0.0, 1.0, 0.5, 2.0, 0.25, 4.0, 3.0, 1.5]] * 4)
        train(models[-1], tokenizer, rollouts, tmp_path, trainer_class, config_class, **settings)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_weights_apply_where_trl_would_not_ask_for_them(tokenizer, tmp_path):
    """TRL calls the hook below `top_entropy_quantile=1.0` only: at 1.0 weights did nothing at all, without a word."""
    changes = []
    for settings in (
        {"top_entropy_quantile": 0.2},
        {"token_credit": "forking"},
        {"token_credit": "forking", "top_entropy_quantile": 1.0},
        {"token_credit": {"top_fraction": {"fraction": 0.2}}, "top_entropy_quantile": 1.0},
    ):
        model = build_model(tokenizer)
        start = copy.deepcopy(model)
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
        changes.append(weight_change(start, model))
    assert all(torch.equal(change, changes[0]) for change in changes)
    model = build_model(tokenizer)
    train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, top_entropy_quantile=1.0)
    assert not torch.equal(weight_change(start, model), changes[0])


def test_function_of_the_caller(tokenizer, tmp_path):
    """`token_credit_func` is the same as the dotted path of the function, and takes the place of the configuration."""
    weights = []
    for settings in ({"token_credit": f"{HERE}.softened"}, {"token_credit_func": softened}):
        model = build_model(tokenizer)
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match=r"token_credit_func and token_credit='random' both say"):
        train(
            build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, token_credit="random",
            token_credit_func=softened,
        )  # fmt: skip


def test_evaluation(tokenizer, tmp_path):
    """The selection of an evaluation is of its own batch, for a score of log-probabilities too."""
    rollouts = FixedRollouts(tokenizer)
    trainer = train(
        build_model(tokenizer), tokenizer, rollouts, tmp_path, token_credit=CHAINS["chain"][0],
        eval_strategy="steps", eval_steps=1, eval_dataset=rollouts.dataset,
    )  # fmt: skip
    logged = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    # Half of 60 % of the tokens, both rounded up
    assert logged["eval_forking/selected_fraction"] == pytest.approx(0.3, abs=0.02)
    assert 0 < logged["eval_credit/effective_fraction"] < logged["eval_forking/selected_fraction"]


# ---------------------------------------------------------------------- schedules


def test_a_schedule_is_a_function_of_the_step(tokenizer, tmp_path):
    chain = {"top_fraction": {"fraction": {"linear": [0.2, 1.0, 0.5]}, "pool": "sequence"}}
    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, token_credit=chain, max_steps=4,
        learning_rate=0.01,
    )  # fmt: skip
    logged = [entry["credit/fraction"] for entry in trainer.state.log_history if "credit/fraction" in entry]
    assert logged == [0.2, 0.6, 1.0, 1.0]
    assert trainer.top_entropy_quantile < 1
    selected = [entry["forking/selected_fraction"] for entry in trainer.state.log_history if "loss" in entry]
    assert selected == sorted(selected) and selected[0] < 0.35 and selected[-1] == 1


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_credit": "forkign"}, r"there is no preset 'forkign'.* Did you mean 'forking'"),
        ({"token_credit": {"top_fractoin": {}}}, r"there is no rule 'top_fractoin'.* Did you mean 'top_fraction'"),
        ({"token_credit": {"top_fraction": {"fracton": 0.2}}}, r"no parameter 'fracton'.* Did you mean 'fraction'"),
        ({"token_credit": {"top_fraction": {"fraction": 1.2}}}, r"fraction must be in \(0, 1\], got 1.2"),
        ({"token_credit": '{"top_fraction": '}, r"token_credit: .*is no JSON"),
        ({"token_credit": '{"random": {}, "random": {"fraction": 0.1}}'}, "the key 'random' stands twice"),
        ({"token_credit": f"{HERE}.shaping", "loss_type": "bnpo"}, "loss_type='bnpo' does not go with"),
        ({"token_credit": "temporal_forking"}, r"max_steps must be set with a schedule of token_credit, got -1"),
        ({"token_credit": "temporal_advantage", "num_train_epochs": 2}, "max_steps must be set with a schedule"),
        ({"token_credit": "pepo", "use_adaptive_entropy": True}, "use_adaptive_entropy=True does not go with credit"),
        ({"token_credit": "entropy_advantage", "entropy_coef": 0.1}, "entropy_coef=0.1 does not go with credit"),
        (
            {"token_credit": "entropy_advantage", "importance_sampling_level": "sequence"},
            "importance_sampling_level='sequence' does not go with credit",
        ),
        (
            {"token_credit": "local_forking", "entropy_threshold_scope": "micro_batch"},
            "those of the policy that starts",
        ),
        ({"token_credit": {"entropy_advantage": {"kappa": 0.5}}}, "kappa must be a number of at least 1, got 0.5"),
        ({"token_credit": f"{HERE}.shaping", "entropy_coef": 0.1}, r"entropy_coef=0\.1 does not go with credit"),
        ({"token_credit": "random", "token_selection": "low_entropy"}, "leave these two out"),
        ({"token_credit": "random", "top_entropy_quantile": 0.3}, "leave these two out"),
        ({"token_credit": f"{HERE}.softened", "entropy_threshold_scope": "local"}, "cannot be used with entropy_thr"),
        (
            {"token_credit": f"{HERE}.softened", "entropy_coef": 0.1},
            r"entropy_coef=0\.1 does not go with",
        ),
        ({"token_credit": f"{HERE}.softened", "loss_type": "grpo"}, "loss_denominator='selected' is not defined"),
        (
            {"token_credit": f"{HERE}.softened", "importance_sampling_level": "sequence"},
            "importance_sampling_level='sequence' does not go with credit",
        ),
    ],
    ids=str,
)
def test_refused_before_anything_is_loaded(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_json_of_a_command_line(tmp_path):
    chain = {"top_fraction": {"fraction": 0.4, "score": "position", "pool": "sequence"}}
    args = ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, token_credit=json.dumps(chain))
    assert args.token_credit == chain and args.credit.rules[0].score == "position"


def test_negative_weights_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"rule .*<lambda> gives \d+ negative weights"):
        train(
            build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path,
            token_credit_func=lambda signals: signals.log_probs,
        )  # fmt: skip


def test_nan_is_named_with_step_and_count(tokenizer, tmp_path):
    model = build_model(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NaNSignalError, match=r"Step 0: \d+ of 2\d\d valid tokens have a NaN"):
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, token_credit=CHAINS["surprisal"][0])


def test_another_rule_does_not_train_on_the_weights_of_the_old_one(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    settings = {"steps_per_generation": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01, "save_steps": 1}
    settings |= {"save_strategy": "steps", "token_credit": "random"}
    train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, max_steps=2, **settings)

    class Resumed(SpyTrainer):
        def train(self):
            return super().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))

    with caplog.at_level(logging.WARNING):
        train(
            build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Resumed, max_steps=4,
            **settings | {"token_credit": "forking"},
        )  # fmt: skip
    assert 'by other settings (token_credit was [{"random"' in caplog.text


def test_function_beside_flags_and_windows(tokenizer, tmp_path):
    for settings, message in (
        ({"top_entropy_quantile": 0.3}, "token_credit_func=.* leave these two out"),
        (
            {"top_entropy_quantile": 1.0, "steps_per_generation": 4, "gradient_accumulation_steps": 3},
            r"\(4\) must be a",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(
                build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, token_credit_func=softened,
                per_device_train_batch_size=8, **settings,
            )  # fmt: skip


def test_no_weight_at_all_is_warned_of(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, token_credit=f"{HERE}.nothing")
    assert "Step 0: token_credit gives no token of the generation batch a weight" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "missing", "warns"), [("Z", "completion", True), ("Z", "drop", False), ("[a-h]", "completion", False)]
)
def test_a_pattern_that_matches_nothing_is_warned_of(
    pattern, missing, warns, tokenizer, tmp_path, caplog, monkeypatch
):
    """The run is then GRPO on all tokens, which no loss would show."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    span = {"span": {"pattern": pattern, "missing": missing}}
    with caplog.at_level(logging.WARNING):
        train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, token_credit=span, max_steps=2)
    assert caplog.text.count("the pattern of token_credit matches in no completion") == warns


@pytest.mark.parametrize("factor", [0.01, 1.0, 50.0])
def test_bnpo_divides_by_the_weights_whatever_their_size(factor):
    chain = build_credit(softened)
    credit = TokenCredit(chain, scope="batch", denominator="selected", loss_type="bnpo", ranks=Ranks())
    mask = torch.ones(2, 4)
    weights = torch.tensor([[0.1, 0.4, 0.0, 0.2], [0.3, 0.0, 0.5, 0.7]])
    expected = weights * 8 / weights.sum()
    assert torch.allclose(credit.loss_weights(weights * factor, mask), expected)
    assert credit.loss_weights(torch.zeros(2, 4), mask).sum() == 0


def test_a_trainer_without_credit_has_trls_mask(tokenizer, tmp_path):
    """As where `top_entropy_quantile` was set on the trainer alone."""

    class Late(SpyTrainer):
        def train(self):
            self.top_entropy_quantile = 0.5
            return super().train()

    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Late, top_entropy_quantile=1.0,
        skip_inert_compute=False,
    )  # fmt: skip
    assert trainer.weights[0].dtype == torch.bool and 0 < trainer.weights[0].sum() < trainer.weights[0].numel()
