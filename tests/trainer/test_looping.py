"""Looped models in real training: the gradient of RLTT against naive loops, the gate, and what is refused."""

import copy

import pytest
import torch
from accelerate.utils import DistributedType
from peft import LoraConfig
from trl import TrlParser

from tests.conftest import (
    FixedRollouts,
    build_looped_model,
    build_model,
    build_trainer,
    gradient,
    one_step,
    relative_difference,
    train,
    weight_change,
)
from tests.looped.naive_ouro import naive_loops
from tests.oracles import advantages, gap_at_threshold, log_probs_and_entropies, loss, select
from tests.trainer.test_trainer import plain_copy
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.trainer import packing


TOLERANCE = 1e-4  # relative; float32 and float64 differ by 3e-6, and by up to 3e-5 with an adapter
CREDITS = {"uniform": {}, "progressive": {"loop_credit_power": 2.0}, "exit": {}}
LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False}


def published_weights(model) -> dict:
    """Parameters by their published names, with their graph; an adapter is added to them."""
    weights = {}
    for name, module in model.named_modules():
        name = name.removeprefix("base_model.model.")
        if hasattr(module, "lora_A"):
            update = module.lora_B["default"].weight @ module.lora_A["default"].weight
            weights[f"{name}.weight"] = module.base_layer.weight + module.scaling["default"] * update
            if module.base_layer.bias is not None:
                weights[f"{name}.bias"] = module.base_layer.bias
        elif "lora_" not in name and "base_layer" not in name:
            weights |= {f"{name}.{key}": value for key, value in module.named_parameters(recurse=False)}
    return weights


def naive_scores(model, rollout, temperature=1.0):
    """Log-probabilities `(R, seq)` and last-loop entropies `(seq,)` of a completion, and exits `(R, seq)`."""
    config = model.config.to_dict()
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    ids = torch.tensor(rollout.prompt + rollout.completion)
    logits, gates = naive_loops(published_weights(model), config, ids)
    wanted = slice(len(rollout.prompt) - 1, -1)
    tokens = torch.tensor(rollout.completion)[:, None]
    log_p = [(each[wanted] / temperature).log_softmax(-1) for each in logits]
    entropies = -(log_p[-1].exp() * log_p[-1]).sum(-1)
    left, exits = torch.ones(len(tokens)), []
    for gate in gates[:-1]:
        leaves = torch.sigmoid(gate[wanted])
        exits.append(left * leaves)
        left = left * (1 - leaves)
    return torch.stack([each.gather(1, tokens)[:, 0] for each in log_p]), entropies, torch.stack([*exits, left])


def naive_gradient(model, batch, credit, power=1.0, fraction=0.2, denominator="selected", temperature=1.0):
    """Gradient of REINFORCE with the mixture of all loops in the place of the log-probability."""
    entropies = {r.row: naive_scores(model, r, temperature)[1].detach().tolist() for r in batch}
    rows = [[r.row for r in batch]]
    assert gap_at_threshold(batch, entropies, fraction, rows) > 1e-4
    selected = select(batch, entropies, fraction, "high_entropy", rows)
    total = 0.0
    for rollout, advantage in zip(batch, advantages(batch), strict=True):
        log_probs, _, exits = naive_scores(model, rollout, temperature)
        loops = len(log_probs)
        if credit == "exit":
            weights = exits
        else:
            raw = [float(t) ** (power if credit == "progressive" else 0.0) for t in range(1, loops + 1)]
            weights = torch.tensor(raw)[:, None] / sum(raw)
        mixture = (weights * log_probs).sum(0)
        own = sum(advantage * mixture[t] for row, t in selected if row == rollout.row)
        total = total - (own / len(rollout.completion) if denominator == "means" else own)
    if denominator == "means":  # Eq. 6 of RLTT: the mean over completions of means over tokens
        return gradient(model, total / len(batch))
    count = len(selected) if denominator == "selected" else sum(len(r.completion) for r in batch)
    return gradient(model, total / count)


@pytest.fixture
def looped(tokenizer):
    return build_looped_model(tokenizer)


PADDED = {"padding_free": False, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("credit", "settings"),
    [
        *((credit, {}) for credit in CREDITS),
        *((credit, PADDED) for credit in CREDITS),
        ("exit", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}),
        (
            "progressive",
            {"skip_inert_compute": False, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2},
        ),
        ("exit", {"temperature": 1.3, "loss_denominator": "all", "gradient_checkpointing": True}),
        ("uniform", {"loss_type": "cispo", "epsilon_high": 5.0, "max_tokens_per_forward": 90}),
        ("exit", {"loss_type": "grpo", "loss_denominator": "all"}),
        ("uniform", {"entropy_threshold_scope": "micro_batch"}),  # by the entropies of the update's own pass
    ],
)
def test_gradient_is_that_of_naive_loops(looped, tokenizer, tmp_path, credit, settings):
    start, rollouts = copy.deepcopy(looped), FixedRollouts(tokenizer)
    before = packing.tokens_packed
    trainer = train(looped, tokenizer, rollouts, tmp_path, loop_credit=credit, **CREDITS[credit], **settings)
    assert (packing.tokens_packed > before) == (
        settings.get("padding_free", True) and settings.get("skip_inert_compute", True)
    )
    expected = naive_gradient(
        start,
        rollouts.generated[0],
        credit,
        CREDITS[credit].get("loop_credit_power", 1.0),
        denominator="means" if "grpo" in settings.values() else settings.get("loss_denominator", "selected"),
        temperature=settings.get("temperature", 1.0),
    )
    assert relative_difference(weight_change(start, looped), expected) < TOLERANCE
    gate = start.model.early_exit_gate.weight - looped.model.early_exit_gate.weight
    assert bool(gate.any()) == (credit == "exit")
    assert looped.model.early_exit_gate.weight.requires_grad == (credit == "exit")
    metrics = trainer.state.log_history[0]
    assert metrics["forking/selected_fraction"] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("credit", CREDITS)
def test_gradient_of_an_adapter(looped, tokenizer, tmp_path, credit):
    rollouts = FixedRollouts(tokenizer)
    trainer = build_trainer(
        looped,
        tokenizer,
        rollouts,
        tmp_path,
        loop_credit=credit,
        peft_config=LoraConfig(**LORA),
        gradient_checkpointing=credit == "exit",
        **CREDITS[credit],
    )
    start = plain_copy(trainer.model)
    trainer.train()
    expected = naive_gradient(start, rollouts.generated[0], credit, CREDITS[credit].get("loop_credit_power", 1.0))
    assert relative_difference(weight_change(start, trainer.model), expected) < TOLERANCE


def test_all_tokens(looped, tokenizer, tmp_path):
    start, rollouts = copy.deepcopy(looped), FixedRollouts(tokenizer)
    train(looped, tokenizer, rollouts, tmp_path, loop_credit="uniform", top_entropy_quantile=1.0)
    batch, total = rollouts.generated[0], 0.0
    for rollout, advantage in zip(batch, advantages(batch), strict=True):
        total = total - advantage * naive_scores(start, rollout)[0].mean(0).sum()
    expected = gradient(start, total / sum(len(r.completion) for r in batch))
    assert relative_difference(weight_change(start, looped), expected) < TOLERANCE


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"padding_free": False}])
def test_without_loop_credit_it_is_the_policy_gradient_of_the_last_loop(looped, tokenizer, tmp_path, settings):
    start, rollouts = copy.deepcopy(looped), FixedRollouts(tokenizer)
    calls = []
    looped.model.early_exit_gate.register_forward_hook(lambda *arguments: calls.append(1))
    trainer = train(looped, tokenizer, rollouts, tmp_path, **settings)
    assert not calls and trainer._savings.packing == settings.get("padding_free", True)
    batch = rollouts.generated[0]
    with torch.no_grad():
        entropies = {r.row: log_probs_and_entropies(start, r)[1].tolist() for r in batch}
    selected = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    given = {r.row: a for r, a in zip(batch, advantages(batch), strict=True)}
    expected = gradient(start, loss(start, batch, given, selected, len(selected)))
    assert relative_difference(weight_change(start, looped), expected) < TOLERANCE
    assert not looped.model.early_exit_gate.weight.requires_grad


def test_one_loop_leaves_nothing_to_weight(tokenizer, tmp_path):
    changes = []
    for credit in (None, "uniform", "exit"):
        model = build_looped_model(tokenizer, total_ut_steps=1)
        start = copy.deepcopy(model)
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path, loop_credit=credit)
        changes.append(weight_change(start, model))
        assert not model.model.early_exit_gate.weight.requires_grad
    for change in changes[1:]:
        assert relative_difference(change, changes[0]) < 1e-5


def test_generating_and_training_with_real_completions(looped, tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer)

    def letters(completion_ids, **kwargs):
        return [float(sum(ids) % 3) for ids in completion_ids]

    trainer = ForkingGRPOTrainer(
        model=looped,
        reward_funcs=letters,
        args=ForkingGRPOConfig(
            **one_step(tmp_path, learning_rate=0.01, max_steps=2, eval_strategy="steps", eval_steps=1),
            loop_credit="exit",
        ),
        train_dataset=rollouts.dataset,
        eval_dataset=rollouts.dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    history = trainer.state.log_history
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in history if "loss" in row)
    assert any("eval_loss" in row for row in history)


def test_a_gate_under_an_adapter(looped, tokenizer, tmp_path, caplog):
    """`all-linear` reaches the gate too. What no loss reads must not wait for a gradient."""
    trainer = build_trainer(looped, tokenizer, FixedRollouts(tokenizer), tmp_path, peft_config=LoraConfig(**LORA))
    gate = {name: p for name, p in trainer.model.named_parameters() if "early_exit_gate" in name}
    assert len(gate) == 4 and not any(p.requires_grad for p in gate.values())

    only_attention = LoraConfig(**{**LORA, "target_modules": ["q_proj"]})
    settings = {"loop_credit": "exit", "peft_config": only_attention}
    build_trainer(build_looped_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
    assert "the gate is frozen" in caplog.text

    caplog.clear()
    saved = LoraConfig(**{**LORA, "target_modules": ["q_proj"], "modules_to_save": ["early_exit_gate"]})
    model = build_looped_model(tokenizer)
    trainer = train(
        model, tokenizer, FixedRollouts(tokenizer), tmp_path, loop_credit="exit", peft_config=saved, learning_rate=0.1
    )
    gate = model.model.early_exit_gate
    assert "the gate is frozen" not in caplog.text
    assert not torch.equal(gate.modules_to_save["default"].weight, gate.original_module.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loop_credit": "last"}, "loop_credit must be None or one of"),
        ({"loop_credit_power": 2.0}, "loop_credit_power=2.0 has no effect with loop_credit=None"),
        ({"loop_credit": "exit", "loop_credit_power": 2.0}, "no effect with loop_credit='exit'"),
        (
            {"loop_credit": "progressive", "loop_credit_power": -1.0},
            "loop_credit_power must be a number of at least 0",
        ),
        ({"loop_credit": "progressive", "loop_credit_power": float("nan")}, "got nan"),
        ({"loop_credit": "progressive", "loop_credit_power": True}, "got True"),
        ({"loop_credit": "exit", "beta": 0.001}, "beta=0.001 does not go with loop_credit='exit'"),
        (
            {"loop_credit": "exit", "objective": "trajectory_balance", "beta": 0.1, "loss_denominator": "all"},
            "objective='trajectory_balance' does not go with",
        ),
        ({"loop_credit": "exit", "importance_sampling_level": "sequence"}, "importance_sampling_level='sequence'"),
        ({"loop_credit": "uniform", "num_iterations": 2}, "num_iterations=2 and steps_per_generation=1 make several"),
        ({"loop_credit": "uniform", "steps_per_generation": 4}, "steps_per_generation=4 make several updates"),
        ({"loop_credit": "uniform", "use_vllm": True}, "vllm_importance_sampling_correction=True does not go with"),
        ({"loop_credit": "uniform", "off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold=0.5"),
        ({"loop_credit": "exit", "ddp_find_unused_parameters": True}, "ddp_find_unused_parameters=True does not go"),
        ({"loop_credit": "uniform", "reuse_scoring_graph": True}, "reuse_scoring_graph=True does not go with"),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ForkingGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_no_credit_on_a_command_line(tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--loop_credit"]
    for word, expected in (("none", None), ("exit", "exit")):
        (args,) = TrlParser(ForkingGRPOConfig).parse_args_and_config([*words, word])
        assert args.loop_credit == expected


def test_settings_that_go_together(tmp_path):
    for settings in (
        {"loop_credit": "progressive"},
        {"loop_credit": "progressive", "loop_credit_power": 0},
        {"loop_credit": "exit", "use_vllm": True, "vllm_importance_sampling_correction": False},
        {"loop_credit": "exit", "gradient_accumulation_steps": 4, "steps_per_generation": 2},
        {"loop_credit": "exit", "token_credit": {"top_fraction": {"score": "surprisal"}}},
    ):
        ForkingGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_models_that_are_refused(looped, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="needs a looped language model, and Qwen3ForCausalLM is none"):
        build_trainer(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, loop_credit="uniform")
    with pytest.raises(ValueError, match="use_transformers_continuous_batching=True does not go with a looped model"):
        build_trainer(looped, tokenizer, FixedRollouts(tokenizer), tmp_path, use_transformers_continuous_batching=True)


def test_reentrant_checkpointing_is_refused_in_several_processes(looped, tokenizer, tmp_path, monkeypatch):
    """With it DDP and ZeRO-3 end in an error about a gradient that is ready twice."""
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = build_trainer(looped, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
    trainer.train()  # one process may
    monkeypatch.setitem(vars(trainer.accelerator.state), "distributed_type", DistributedType.MULTI_CPU)
    with pytest.raises(ValueError, match="Reentrant gradient checkpointing does not go with a looped model"):
        trainer._init_loops()
    trainer.args.gradient_checkpointing = False
    trainer._init_loops()


def test_nothing_looks_for_unused_parameters(looped, tokenizer, tmp_path):
    """DDP would take the gate for one, and end in an error about a gradient that is ready twice."""
    settings = {"loop_credit": "exit", "peft_config": LoraConfig(**LORA)}
    trainer = build_trainer(looped, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
    assert trainer.accelerator.ddp_handler.find_unused_parameters is False


def test_a_rule_that_would_read_the_mixture_of_loops_is_refused(looped, tokenizer, tmp_path):
    def less_likely(signals):
        return (signals.log_probs < -1).float()

    less_likely.needs, less_likely.mass = {"log_probs"}, "from_masks"
    settings = {"entropy_threshold_scope": "micro_batch", "token_credit_func": less_likely}
    build_trainer(looped, tokenizer, FixedRollouts(tokenizer), tmp_path, **settings)
    message = r"entropy_threshold_scope='micro_batch' does not go with loop_credit='uniform': the credit rules \["
    with pytest.raises(ValueError, match=message):
        build_trainer(looped, tokenizer, FixedRollouts(tokenizer), tmp_path, loop_credit="uniform", **settings)
