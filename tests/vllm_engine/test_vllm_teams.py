"""A team on rollouts of a real vLLM engine: roles with temperatures of their own, two updates of the weights."""

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.conftest import SpyTrainer, gradient, one_step, relative_difference, weight_change
from tests.oracles import Rollout, advantages, log_probs_and_entropies, select
from tests.vllm_engine.on_cpu import one_engine_at_a_time, weights_can_be_replaced  # noqa: F401
from tests.vllm_engine.test_vllm_training import ENGINE, model_folder  # noqa: F401
from trl_fork import ForkingGRPOConfig
from trl_fork.teams import Role, TeamRollout, joint_reward


pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("weights_can_be_replaced", "one_engine_at_a_time")]

PROMPTS = ["abc", "defghij"]
SECRETS = ["000", "111"]
ROLES = [
    Role("cold", "{prompt}s{secret}", temperature=0.01),
    Role("plain", "{prompt}t{messages[cold]}"),
    Role("hot", "{prompt}u{messages[plain]}", temperature=2.0),
]
TURNS = len(ROLES)


class Spy(SpyTrainer):
    """Records the policy and what each of its turns has returned, with the temperature that vLLM was asked for."""

    def __init__(self, model, *args, **kwargs):
        self.folder, self.policies, self.turns = model, [], []
        super().__init__(model, *args, **kwargs)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        policy = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        policy.load_state_dict(self.model.state_dict())
        self.policies.append(policy.eval())
        completion_ids, logprobs = generated = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.turns.append(([list(ids) for ids in prompt_ids], completion_ids, logprobs))
        return generated


def distinct_tokens(completion_ids, **kwargs):
    return [len(set(ids)) / 7 + len(ids) / 31 for ids in completion_ids]


def train(model_folder, tokenizer, tmp_path):  # noqa: F811
    trainer = Spy(
        model=str(model_folder),
        reward_funcs=joint_reward(distinct_tokens),
        args=ForkingGRPOConfig(
            **one_step(
                tmp_path, **ENGINE, max_steps=2, learning_rate=1.0, num_generations=4 * TURNS,
                per_device_train_batch_size=8 * TURNS, max_completion_length=8,
            )
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "secret": SECRETS}),
        processing_class=tokenizer,
        rollout_func=TeamRollout(ROLES),
    )  # fmt: skip
    trainer.train()
    return trainer


def check_turns_are_asked_one_after_another(trainer, tokenizer):
    assert len(trainer.turns) == 2 * TURNS
    for first in (0, TURNS):
        turns = trainer.turns[first : first + TURNS]
        for turn, (prompt_ids, completion_ids, _) in enumerate(turns):
            assert len(prompt_ids) == len(completion_ids) == 8
            for episode, ids in enumerate(prompt_ids):
                problem, secret = PROMPTS[episode // 4], SECRETS[episode // 4]
                if turn == 0:
                    text = f"{problem}s{secret}"
                else:
                    message = tokenizer.decode(turns[turn - 1][1][episode], skip_special_tokens=True)
                    text = f"{problem}{' tu'[turn]}{message}"
                assert ids == tokenizer(text)["input_ids"]


def check_temperatures(trainer):
    """Nearly greedy at 0.01, and in sum over all tokens as likely as it should be at 2."""
    (policy, *_), temperature = trainer.policies, {0: 0.01, 1: 1.0, 2: 2.0}
    for turn in range(TURNS):
        prompts, completions, _ = trainer.turns[turn]
        surprise, entropy = 0.0, 0.0
        for prompt, completion in zip(prompts, completions, strict=True):
            with torch.no_grad():
                rollout = Rollout(prompt, list(completion), 0.0, 0, 0)
                rows, entropies = log_probs_and_entropies(policy, rollout, temperature[turn])
            surprise, entropy = surprise - rows.sum().item(), entropy + entropies.sum().item()
        assert surprise == pytest.approx(entropy, rel=0.25, abs=3.0)
        if turn == 0:
            assert len({tuple(c) for c in completions}) <= 4
    assert trainer.temperature == 1.0  # as it was


def check_first_step_is_the_naive_objective(trainer):
    """The policy gradient at `args.temperature` on the top 20 % of all roles' tokens, with advantages of episodes."""
    start, end, turns = trainer.policies[0], trainer.policies[TURNS], trainer.turns[:TURNS]
    rewards = distinct_tokens(turns[-1][1])
    batch = [
        Rollout(turns[turn][0][episode], list(turns[turn][1][episode]), rewards[episode], episode // 4, row)
        for row, (episode, turn) in enumerate(itertools.product(range(8), range(TURNS)))
    ]
    entropies = {r.row: log_probs_and_entropies(start, r)[1].tolist() for r in batch}
    chosen = select(batch, entropies, 0.2, "high_entropy", [[r.row for r in batch]])
    total = 0.0
    for rollout, advantage in zip(batch, advantages(batch), strict=True):
        log_probs, _ = log_probs_and_entropies(start, rollout)
        for token in range(len(rollout.completion)):
            if (rollout.row, token) in chosen:
                total = total - advantage * log_probs[token] / len(chosen)
    assert relative_difference(weight_change(start, end), gradient(start, total)) < 1e-5


def check_metrics_of_roles(trainer):
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        for role in ("cold", "plain", "hot"):
            assert 0 < log[f"team/{role}/mean_length"] <= 8


def test_team(model_folder, tokenizer, tmp_path):  # noqa: F811
    trainer = train(model_folder, tokenizer, tmp_path)
    check_turns_are_asked_one_after_another(trainer, tokenizer)
    check_temperatures(trainer)
    check_first_step_is_the_naive_objective(trainer)
    check_metrics_of_roles(trainer)
