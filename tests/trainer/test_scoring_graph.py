"""The update from the graph of the scoring pass: the gradient without it, and one forward pass less."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.conftest import FixedRollouts, build_model, build_trainer, tiny_sizes, train
from trl_fork import ForkingGRPOTrainer
from trl_fork.trainer.scoring_graph import dropout_of


LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}


def run(tokenizer, tmp_path, *, lora=False, rollouts=None, **settings):
    """Changes of the weights in a step, tokens passed with and without gradient, and the trainer."""
    model = build_model(tokenizer)
    if lora:
        model = get_peft_model(model, LoraConfig(**LORA))
        model.enable_input_require_grads()
    start = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    tokens = {True: 0, False: 0}

    def count(module, args, kwargs):
        tokens[torch.is_grad_enabled()] += kwargs["input_ids"].numel()

    (model.get_base_model() if lora else model).get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    trainer = train(model, tokenizer, rollouts or FixedRollouts(tokenizer), tmp_path, **settings)
    trained = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
    return torch.cat([(a - b).flatten() for a, b in zip(trained, start, strict=True)]), tokens, trainer


CASES = {
    "forking": {},
    "micro-batches": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
    "two generation batches in a step": {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8, "steps_per_generation": 4,
    },
    "three steps": {"max_steps": 3, "learning_rate": 0.05},
    "soft weights": {"token_credit": "pepo"},
    "a second scoring pass": {"token_credit": "gcpo"},
    "all tokens in the denominator": {"loss_denominator": "all"},
    "sequence scope": {"entropy_threshold_scope": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "sequence-level ratio": {"importance_sampling_level": "sequence"},
    "checkpointing": {"gradient_checkpointing": True},
    "lora with checkpointing": {"lora": True, "gradient_checkpointing": True},
    "lora with a reference": {"lora": True, "beta": 0.1},
    "trajectory balance": {
        "lora": True, "beta": 0.1, "objective": "trajectory_balance", "loss_denominator": "all",
    },
    "trajectory balance on all tokens": {
        "lora": True, "beta": 0.1, "objective": "trajectory_balance", "top_entropy_quantile": 1.0,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_same_for_one_forward_pass_less(tokenizer, tmp_path, case):
    (expected, before, plain), (found, after, trainer) = (
        run(tokenizer, tmp_path / str(reuse), reuse_scoring_graph=reuse, **CASES[case]) for reuse in (False, True)
    )
    assert (found - expected).norm() / expected.norm() < 2e-6
    assert sum(after.values()) == sum(before.values()) - before[True]
    assert after[True] > 0 and before[True] > 0 and after[False] < before[False]
    assert trainer._graph is None, "nothing is kept between steps"
    logs = [trainer.state.log_history[0], plain.state.log_history[0]]
    names = [name for name, value in logs[1].items() if value is not None and "time" not in name and "sec" not in name]
    assert [logs[0][name] for name in names] == pytest.approx(
        [logs[1][name] for name in names], rel=1e-4, abs=1e-6, nan_ok=True
    )


def test_a_batch_without_advantage_has_no_graph(tokenizer, tmp_path):
    rollouts = FixedRollouts(tokenizer, rewards=[[0.7] * 8] * 4)
    change, tokens, trainer = run(tokenizer, tmp_path, rollouts=rollouts, reuse_scoring_graph=True)
    assert not change.any() and trainer._graph is None
    # Rows without an advantage are scored without a graph.
    rollouts = FixedRollouts(tokenizer, rewards=[[0, 1] * 4, *[[0.7] * 8] * 3])
    _, tokens, _ = run(tokenizer, tmp_path, rollouts=rollouts, reuse_scoring_graph=True)
    assert tokens[True] == sum(len(r.prompt) + len(r.completion) for r in rollouts.generated[0] if r.group == 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_iterations": 2}, "Set num_iterations=1"),
        ({"steps_per_generation": 2, "per_device_train_batch_size": 16}, "steps_per_generation at most"),
        ({"padding_free": False}, "one packed pass.*padding_free=False"),
        ({"skip_inert_compute": False}, "one packed pass.*skip_inert_compute=False"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0"),
        ({"entropy_threshold_scope": "micro_batch"}, "one packed pass.*micro_batch"),
        ({"loss_type": "bnpo"}, "one packed pass.*bnpo"),
    ],
    ids=str,
)
def test_where_the_update_is_not_of_the_scored_policy(tokenizer, tmp_path, settings, match):
    with pytest.raises(ValueError, match=f"reuse_scoring_graph=True: .*{match}"):
        run(tokenizer, tmp_path, reuse_scoring_graph=True, **settings)


def test_dropout_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"attention_dropout.*lora_dropout: 0\.0"):
        train(
            build_model(tokenizer, attention_dropout=0.1), tokenizer, FixedRollouts(tokenizer), tmp_path,
            reuse_scoring_graph=True,
        )  # fmt: skip
    assert dropout_of(build_model(tokenizer)) is None
    assert dropout_of(get_peft_model(build_model(tokenizer), LoraConfig(**LORA))) is None
    assert "lora_dropout" in dropout_of(get_peft_model(build_model(tokenizer), LoraConfig(**LORA, lora_dropout=0.05)))


def test_a_chain_without_scores_has_nothing_to_keep(tokenizer, tmp_path, caplog):
    _, tokens, _ = run(tokenizer, tmp_path, reuse_scoring_graph=True, token_credit="random")
    assert tokens[True] > 0 and "reuse_scoring_graph=True has no effect" in caplog.text
    assert ForkingGRPOTrainer._graph is None


@pytest.mark.parametrize(
    ("name", "settings", "attribute"),
    [
        ("Starcoder2", {"residual_dropout": 0.1, "embedding_dropout": 0.0}, "residual_dropout"),
        ("OPT", {"layerdrop": 0.5, "dropout": 0.0, "word_embed_proj_dim": 32}, "layerdrop"),
        ("Mixtral", {"router_jitter_noise": 0.3, "num_local_experts": 2}, "jitter_noise"),
    ],
)
def test_other_kinds_of_noise_are_found(tokenizer, name, settings, attribute):
    for share in (0.3, 0.0):
        noise = {key: share for key in settings if key in ("residual_dropout", "layerdrop", "router_jitter_noise")}
        config = getattr(transformers, f"{name}Config")(**{**tiny_sizes(tokenizer), **settings, **noise})
        found = dropout_of(getattr(transformers, f"{name}ForCausalLM")(config))
        assert found.endswith(attribute) if share else found is None


def test_dropout_that_is_set_later_is_refused(tokenizer, tmp_path):
    trainer = build_trainer(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, reuse_scoring_graph=True
    )
    trainer.model.model.layers[1].self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"dropout \(model\.layers\.1\.self_attn\.attention_dropout\)"):
        trainer.train()


def test_with_a_reference_rows_without_advantage_have_a_graph_too(tokenizer, tmp_path):
    """The KL term reaches them."""
    found = []
    for reuse in (False, True):
        rollouts = FixedRollouts(tokenizer, rewards=[[0, 1] * 4, *[[0.7] * 8] * 3])
        change, tokens, _ = run(
            tokenizer, tmp_path, rollouts=rollouts, reuse_scoring_graph=reuse, lora=True, beta=0.1, max_steps=2,
            learning_rate=0.1,
        )  # fmt: skip
        found.append((change, tokens))
    (expected, before), (change, after) = found
    assert (change - expected).norm() / expected.norm() < 2e-6
    assert sum(after.values()) == sum(before.values()) - before[True]
