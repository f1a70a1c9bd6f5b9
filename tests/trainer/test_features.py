"""TRL features that come with their own data or model: the mask applies, and their own terms keep TRL's scale."""

import copy
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from tests.conftest import (
    FixedRollouts,
    SpyTrainer,
    build_model,
    gradient,
    naive_view,
    relative_difference,
    train,
    weight_change,
)
from tests.oracles import Rollout, forking_count_of, log_probs_and_entropies, loss, select
from trl_fork import ForkingGRPOConfig


def test_streaming_dataset(model, start, tokenizer, tmp_path):
    class Streamed(FixedRollouts):
        @property
        def dataset(self):
            return super().dataset.to_iterable_dataset()

    rollouts = Streamed(tokenizer)
    train(model, tokenizer, rollouts, tmp_path)
    batch = rollouts.generated[0]
    entropies, advantages = naive_view(start, batch)
    selected = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    expected = gradient(start, loss(start, batch, advantages, selected, len(selected)))
    assert relative_difference(weight_change(start, model), expected) < 1e-5


def test_reference_model_is_synchronised(model, start, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    trainer = train(
        model,
        tokenizer,
        FixedRollouts(tokenizer),
        tmp_path,
        beta=0.1,
        sync_ref_model=True,
        ref_model_sync_steps=1,
        ref_model_mixup_alpha=0.5,
        learning_rate=0.1,
    )
    mixed = [(a + b) / 2 for a, b in zip(start.parameters(), model.parameters(), strict=True)]
    for found, expected in zip(trainer.ref_model.parameters(), mixed, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_auxiliary_loss_keeps_its_scale(tokenizer, tmp_path):
    """The mixture-of-experts loss adds the same gradient under a selection as under none."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    start = Qwen3MoeForCausalLM(config)

    def change(trainer_class, config_class, coefficient):
        model = copy.deepcopy(start)
        trainer = train(
            model,
            tokenizer,
            FixedRollouts(tokenizer),
            tmp_path,
            trainer_class,
            config_class,
            router_aux_loss_coef=coefficient,
        )
        assert ("aux_loss" in trainer.state.log_history[0]) == (coefficient > 0)
        return weight_change(start, model)

    ours = change(SpyTrainer, ForkingGRPOConfig, 0.5) - change(SpyTrainer, ForkingGRPOConfig, 0.0)
    theirs = change(GRPOTrainer, GRPOConfig, 0.5) - change(GRPOTrainer, GRPOConfig, 0.0)
    assert relative_difference(ours, theirs) < 1e-4


# ---------------------------------------------------------------------- tools and environments


def byte_tokenizer():
    """Every byte is a token, so that it can write JSON; Qwen3's chat template, which TRL can parse tool calls of."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(specials[:3])
    tokenizer.add_tokens(specials[3:])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left"
    )
    tokenizer.chat_template = qwen3_chat_template
    return tokenizer


def multiply(a: int, b: int) -> int:
    """
    Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their product.
    """
    return a * b


def call_multiply(tokenizer):
    """A rollout function whose even completions call the tool; after its answer the model goes on by itself."""
    call = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>'

    def rollout(prompts, trainer):
        texts = [call if i % 2 == 0 else "no" + "o" * i + "<|im_end|>" for i in range(len(prompts))]
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": [tokenizer(text)["input_ids"] for text in texts],
            "logprobs": None,
        }

    return rollout


class Spy(SpyTrainer):
    def _generate_and_score_completions(self, inputs):
        self.output = super()._generate_and_score_completions(inputs)
        return self.output


def settings(tmp_path, **overrides):
    return ForkingGRPOConfig(
        str(tmp_path),
        **{
            "use_cpu": True,
            "bf16": False,
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "max_completion_length": 160,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            **overrides,
        },
    )


@pytest.mark.parametrize("scope", ["batch", "micro_batch", "sequence"])
def test_tool_results_are_never_selected(scope, tmp_path):
    tokenizer = byte_tokenizer()
    trainer = Spy(
        build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02),
        lambda completions, **kwargs: [float(i % 3) for i in range(len(completions))],
        settings(tmp_path, entropy_threshold_scope=scope),
        Dataset.from_dict({"prompt": [[{"role": "user", "content": "3*4?"}]] * 4}),
        processing_class=tokenizer,
        tools=[multiply],
        rollout_func=call_multiply(tokenizer),
    )
    trainer.train()
    output = trainer.output
    results = (output["tool_mask"] == 0) & (output["completion_mask"] == 1)
    assert results.sum() > 0 and trainer.state.log_history[0]["tools/call_frequency"] == 0.5
    assert "12" in tokenizer.decode(output["completion_ids"][results])
    # Rows come shuffled into the loss; what counts there is every row's number of selected tokens.
    mask = output["completion_mask"] * output["tool_mask"]
    selected = trainer.weights[0] > 0
    sizes = mask.sum(1).tolist()
    if scope == "sequence":
        assert sorted(selected.sum(1).tolist()) == sorted(forking_count_of(n, 0.2) for n in sizes)
    assert selected.sum() == sum(forking_count_of(n, 0.2) for n in (sizes if scope == "sequence" else [sum(sizes)]))
    if scope != "micro_batch":
        assert not ((output["credit_weights"] > 0) & (mask == 0)).any()


class Counter:
    """An environment that owns its prompt and its reward."""

    def reset(self, **kwargs):
        self.count = 0
        return "Count."

    def increment(self) -> int:
        """
        Count one further.

        Returns:
            The count.
        """
        self.count += 1
        return self.count

    def get_reward(self) -> float:
        Counter.rewarded = getattr(Counter, "rewarded", 0) + 1
        return Counter.rewarded % 3 / 2


def test_environment(tmp_path):
    tokenizer = byte_tokenizer()
    call = '<tool_call>\n{"name": "increment", "arguments": {}}\n</tool_call><|im_end|>'
    assert json.loads(call.split("\n")[1])["name"] == "increment"

    def rollout(prompts, trainer):
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": [tokenizer(call)["input_ids"] for _ in prompts],
            "logprobs": None,
        }

    trainer = Spy(
        build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02),
        args=settings(tmp_path),
        processing_class=tokenizer,
        environment_factory=Counter,
        rollout_func=rollout,
    )
    trainer.train()
    mask = trainer.output["completion_mask"] * trainer.output["tool_mask"]
    weights = trainer.output["credit_weights"]
    assert (trainer.output["tool_mask"] == 0).any()
    assert (weights > 0).sum() == forking_count_of(int(mask.sum()), 0.2)
    assert not ((weights > 0) & (mask == 0)).any()
    assert trainer.state.log_history[0]["rewards/Counter/std"] > 0


# ---------------------------------------------------------------------- sampling log-probabilities, as vLLM gives them


class Sampler(SpyTrainer):
    """The vLLM branch of the loss, without its engine: log-probabilities come with the rollouts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.use_vllm = True
        self._last_loaded_step = 0  # the weights are the engine's already


@pytest.mark.parametrize("dynamic_sampling", [False, True])
@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
def test_importance_correction_multiplies_the_selected_loss(mode, dynamic_sampling, model, start, tokenizer, tmp_path):
    """
    As with vLLM: old log-probabilities are always computed, and their pass is the one that is scored.

    Dynamic sampling takes the sampling log-probabilities of four groups out of two or more rounds.
    """

    def log_probs(model, rollout):
        return log_probs_and_entropies(model, rollout)[0]

    class WithLogProbs(FixedRollouts):
        def __call__(self, prompts, trainer):
            output = super().__call__(prompts, trainer)
            with torch.no_grad():
                naive = [log_probs(start, r) for r in self.generated[-1]]
            shifts = [0.1 * torch.randn(len(lp), generator=generator) for lp in naive]
            output["logprobs"] = [(lp - shift).tolist() for lp, shift in zip(naive, shifts, strict=True)]
            self.shift += [
                shift
                for shift, rollout in zip(shifts, self.generated[-1], strict=True)
                if not dynamic_sampling or rollout.group % 2
            ]
            return output

    generator = torch.Generator().manual_seed(3)
    rollouts = WithLogProbs(tokenizer, prompts=4 + 4 * dynamic_sampling)
    rollouts.shift = []
    for text, i in rollouts.rewards if dynamic_sampling else ():
        if rollouts.texts.index(text) % 2 == 0:
            rollouts.rewards[text, i] = 0.5
    trainer = train(
        model, tokenizer, rollouts, tmp_path, trainer_class=Sampler, vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=1.2, dynamic_sampling=dynamic_sampling, shuffle_dataset=False,
    )  # fmt: skip
    assert trainer.scoring_passes == 1
    assert (len(rollouts.generated) > 1) == dynamic_sampling
    kept = [r for generated in rollouts.generated for r in generated if not dynamic_sampling or r.group % 2][:32]
    batch = [Rollout(r.prompt, r.completion, r.reward, row // 8, row, r.valid) for row, r in enumerate(kept)]
    entropies, advantages = naive_view(start, batch)
    selected = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    total = 0.0
    for row, token in selected:
        ratio = rollouts.shift[row].exp()[token] if mode.startswith("token") else rollouts.shift[row].sum().exp()
        ratio = min(ratio.item(), 1.2) if mode == "token_truncate" else ratio.item() * (ratio.item() <= 1.2)
        total = total - ratio * advantages[row] * log_probs(start, batch[row])[token] / len(selected)
    assert relative_difference(weight_change(start, model), gradient(start, total)) < 1e-5


@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_kept_mass_is_logged_where_sampling_is_truncated(top_p, model, start, tokenizer, tmp_path):
    """An engine that keeps part of the vocabulary divides by the mass of that part; TRL's ratio is that mass."""
    kept = [0.7, 0.9]

    class Truncated(FixedRollouts):
        def __call__(self, prompts, trainer):
            output = super().__call__(prompts, trainer)
            with torch.no_grad():
                naive = [log_probs_and_entropies(start, r)[0] for r in self.generated[-1]]
            output["logprobs"] = [
                [value - math.log(kept[t % 2]) for t, value in enumerate(values.tolist())] for values in naive
            ]
            output["logprobs"][0][0] = None  # as where vLLM could not say
            return output

    rollouts = Truncated(tokenizer)
    log = train(
        model, tokenizer, rollouts, tmp_path, trainer_class=Sampler, vllm_importance_sampling_mode="token_truncate",
        top_p=top_p,
    ).state.log_history[0]  # fmt: skip
    masses = [kept[t % 2] for r in rollouts.generated[0] for t in range(len(r.completion))][1:]
    if top_p == 1.0:
        assert "sampling/kept_mass" not in log
    else:
        assert log["sampling/kept_mass"] == pytest.approx(sum(masses) / len(masses), rel=1e-5)


# ---------------------------------------------------------------------- dropout and advantages per token


def test_dropout_never_scores(tokenizer, tmp_path):
    """Nor where the selection asks for no entropies: old log-probabilities of one batch are the same twice."""
    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, token_selection="random",
        per_device_train_batch_size=8, steps_per_generation=4, learning_rate=0.02, max_steps=4,
        peft_config=LoraConfig(r=4, lora_alpha=64, lora_dropout=0.5, target_modules="all-linear"),
    )  # fmt: skip
    trainer.model.train()
    rows = next(iter(trainer.get_train_dataloader()))
    first, second = (
        trainer._generate_and_score_completions([dict(row) for row in rows])["old_per_token_logps"] for _ in range(2)
    )
    assert torch.equal(first, second)
    assert trainer.model.training


def test_advantages_per_token(start, tokenizer, tmp_path, monkeypatch):
    """TRL takes one advantage per token as well; equal ones are one per completion."""
    changes = []
    make_batch = GRPOTrainer._generate_and_score_completions

    def per_token(self, inputs):
        output = make_batch(self, inputs)
        output["advantages"] = output["advantages"][:, None].repeat(1, output["completion_ids"].shape[1])
        return output

    for method in (make_batch, per_token):
        monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", method)
        model = copy.deepcopy(start)
        train(model, tokenizer, FixedRollouts(tokenizer), tmp_path)
        changes.append(weight_change(start, model))
    assert relative_difference(*changes) < 1e-5
