"""
Training on rollouts of a real vLLM engine in the trainer's own process.

vLLM serves float32 checkpoints in bfloat16, so that its log-probabilities are the policy's up to about 0.02 each. What
is compared exactly is the step on what the engine has returned, which has to be the naive objective's.
"""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.conftest import (
    NUM_GENERATIONS,
    SpyTrainer,
    build_model,
    gradient,
    naive_view,
    one_step,
    relative_difference,
    weight_change,
)
from tests.oracles import Rollout, log_probs_and_entropies, select
from tests.vllm_engine.on_cpu import one_engine_at_a_time, weights_can_be_replaced  # noqa: F401
from trl_fork import ForkingGRPOConfig


pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("weights_can_be_replaced", "one_engine_at_a_time")]

PROMPTS = ["abc", "defghij", "kl", "mnopqrstu"]
ENGINE = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.05,
    "vllm_max_model_length": 64,
    "vllm_importance_sampling_correction": False,
    "shuffle_dataset": False,
}


@pytest.fixture(scope="module")
def model_folder(tokenizer, tmp_path_factory):
    """A model whose heads vLLM's attention for CPUs takes: at least 32 wide."""
    folder = tmp_path_factory.mktemp("model")
    build_model(
        tokenizer, hidden_size=64, intermediate_size=96, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        initializer_range=0.2,
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def distinct_tokens(completion_ids, **kwargs):
    return [len(set(ids)) / 7 + len(ids) / 31 for ids in completion_ids]


def spread_for_some(prompts, completion_ids, **kwargs):
    """The rewards of every second prompt are all equal."""
    rewards = distinct_tokens(completion_ids)
    return [0.5 if PROMPTS.index(p) % 2 == 0 else reward for p, reward in zip(prompts, rewards, strict=True)]


def policy_of(trainer):
    """A copy of the policy as it is. Not a copy of the module: TRL has bound a forward of its own to that one."""
    policy = AutoModelForCausalLM.from_pretrained(trainer.folder, dtype=torch.float32)
    if trainer.peft_config is not None:
        policy = get_peft_model(policy, trainer.peft_config)
    policy.load_state_dict(trainer.model.state_dict())
    return policy.eval()


class EngineSpy(SpyTrainer):
    """Records what the engine has returned and the policy that it should have used."""

    def __init__(self, model, *args, peft_config=None, **kwargs):
        self.policies, self.generated = [], []
        self.folder, self.peft_config = model, peft_config
        super().__init__(model, *args, peft_config=copy.deepcopy(peft_config), **kwargs)

    def _generate_single_turn(self, *args, **kwargs):
        prompt_ids = args[0]
        self.policies.append(policy_of(self))
        completion_ids, logprobs = generated = super()._generate_single_turn(*args, **kwargs)
        self.generated.append(
            [
                (Rollout(list(prompt), list(ids), distinct_tokens([ids])[0], row // NUM_GENERATIONS, row), values)
                for row, (prompt, ids, values) in enumerate(zip(prompt_ids, completion_ids, logprobs, strict=True))
            ]
        )
        return generated


def train(model_folder, tokenizer, tmp_path, reward=distinct_tokens, peft_config=None, **settings):
    trainer = EngineSpy(
        model=str(model_folder),
        reward_funcs=reward,
        args=ForkingGRPOConfig(**one_step(tmp_path, **{**ENGINE, **settings})),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


def distance_to(policy, generated) -> float:
    """Mean absolute difference of the engine's log-probabilities to those of a policy, in nats."""
    with torch.no_grad():
        differences = [
            (log_probs_and_entropies(policy, rollout)[0] - torch.tensor(values)).abs() for rollout, values in generated
        ]
    return torch.cat(differences).mean().item()


def forking_gradient(policy, batch, sampling_log_probs=None, clip_max=None) -> torch.Tensor:
    """
    The naive gradient of one on-policy step on the batch's top 20 % tokens.

    With `sampling_log_probs` every token is weighted by its ratio of policy to engine, at most `clip_max`.
    """
    entropies, advantages = naive_view(policy, batch)
    selected = select(batch, entropies, 0.2, "high_entropy", [[rollout.row for rollout in batch]])
    total = 0.0
    for rollout in batch:
        log_probs, _ = log_probs_and_entropies(policy, rollout)
        ratios = torch.ones(len(log_probs))
        if sampling_log_probs is not None:
            ratios = (log_probs.detach() - torch.tensor(sampling_log_probs[rollout.row])).exp().clamp(max=clip_max)
        for token in range(len(rollout.completion)):
            if (rollout.row, token) in selected:
                total = total - ratios[token] * advantages[rollout.row] * log_probs[token] / len(selected)
    return gradient(policy, total)


def test_step_is_the_naive_objective(model_folder, tokenizer, tmp_path):
    trainer = train(model_folder, tokenizer, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    (generated,), (start,) = trainer.generated, trainer.policies
    assert trainer.vllm_generation.llm is not None
    assert len(generated) == 32
    assert len({tuple(rollout.completion) for rollout, _ in generated}) > 16  # the engine samples
    expected = forking_gradient(start, [rollout for rollout, _ in generated])
    assert relative_difference(weight_change(start, policy_of(trainer)), expected) < 1e-5


@pytest.mark.parametrize("dynamic_sampling", [False, True])
def test_importance_correction(dynamic_sampling, model_folder, tokenizer, tmp_path):
    """The ratio of policy to engine weights the selected tokens, also of groups out of several rounds."""
    trainer = train(
        model_folder, tokenizer, tmp_path, reward=spread_for_some if dynamic_sampling else distinct_tokens,
        vllm_importance_sampling_correction=True, vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=1.005, dynamic_sampling=dynamic_sampling,
    )  # fmt: skip
    rounds, start = trainer.generated, trainer.policies[0]
    assert (len(rounds) > 1) == dynamic_sampling
    kept = [
        (rollout, values)
        for generated in rounds
        for rollout, values in generated
        if not dynamic_sampling or PROMPTS.index(tokenizer.decode(rollout.prompt).replace(" ", "")) % 2
    ][:32]
    assert len(kept) == 32
    batch = [
        Rollout(rollout.prompt, rollout.completion, rollout.reward, row // NUM_GENERATIONS, row)
        for row, (rollout, _) in enumerate(kept)
    ]
    sampling = [values for _, values in kept]
    expected = forking_gradient(start, batch, sampling, clip_max=1.005)
    change = weight_change(start, policy_of(trainer))
    assert relative_difference(change, expected) < 1e-5
    assert relative_difference(change, forking_gradient(start, batch)) > 1e-4  # the ratios are not all 1
    (log,) = [log for log in trainer.state.log_history if "sampling/sampling_logp_difference/mean" in log]
    assert 0 < log["sampling/sampling_logp_difference/mean"] < 0.05


@pytest.mark.parametrize("adapter", [False, True])
def test_weights_reach_the_engine(adapter, model_folder, tokenizer, tmp_path):
    """After a large step the engine samples from the new policy: of an adapter, too, which TRL merges for it."""
    trainer = train(
        model_folder, tokenizer, tmp_path, max_steps=2, learning_rate=3.0 if not adapter else 30.0,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if adapter else None,
    )  # fmt: skip
    (old, new), (_, generated) = trainer.policies, trainer.generated
    assert distance_to(old, generated) > 0.5
    assert distance_to(new, generated) < 0.05
    if adapter:
        assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == {
            name for name, _ in trainer.model.named_parameters() if "lora_" in name
        }


def test_several_updates_per_batch(model_folder, tokenizer, tmp_path):
    """One batch of the engine serves four updates; the first is on policy, and one pass scores it."""
    trainer = train(
        model_folder, tokenizer, tmp_path, per_device_train_batch_size=16, steps_per_generation=2, num_iterations=2,
        max_steps=8, learning_rate=0.5,
    )  # fmt: skip
    assert len(trainer.generated) == 2
    assert trainer.scoring_passes == 2
    assert distance_to(trainer.policies[1], trainer.generated[1]) < 0.05
    ratios = [log["forking/clip_ratio/region_mean"] for log in trainer.state.log_history if "loss" in log]
    assert ratios[0] == ratios[4] == 0  # each batch begins on policy, and is left behind by its further updates
    assert max(ratios[1:4]) > 0 and max(ratios[5:]) > 0


def test_sleep_mode_is_for_gpus(model_folder, tokenizer, tmp_path):
    """vLLM's CPU build refuses it, before anything is trained."""
    with pytest.raises(ValueError, match="Sleep mode is not supported"):
        train(model_folder, tokenizer, tmp_path, vllm_enable_sleep_mode=True)
