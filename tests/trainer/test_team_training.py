"""Teams in real trainers: advantages, what is generated, metrics, dynamic sampling, evaluation, refusals."""

import torch
from datasets import Dataset

from tests.conftest import LETTERS, one_step
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.teams import Role, TeamRollout, joint_reward


ROLES = [Role("left", "l{prompt}{left}"), Role("right", "r{prompt}{right}t{messages[left]}")]


def data(rows=4):
    return Dataset.from_dict(
        {
            "prompt": [f"p{LETTERS[n]}" for n in range(rows)],
            "left": [LETTERS[n + 4] for n in range(rows)],
            "right": [LETTERS[n + 10] for n in range(rows)],
        }
    )


class Keeps(ForkingGRPOTrainer):
    """Keeps the batches that it makes, and the rows of the data set that a rollout function has been shown."""

    def __init__(self, *args, **kwargs):
        self.made = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.made.append({key: value.clone() for key, value in output.items() if isinstance(value, torch.Tensor)})
        return output


def length_reward(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def build(model, tokenizer, tmp_path, team=None, rewards=None, trainer_class=Keeps, **settings):
    arguments = {
        name: settings.pop(name) for name in ("train_dataset", "eval_dataset", "peft_config") if name in settings
    }
    settings = {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 6} | settings
    return trainer_class(
        model=model,
        reward_funcs=joint_reward(length_reward) if rewards is None else rewards,
        args=ForkingGRPOConfig(**one_step(tmp_path, **settings)),
        processing_class=tokenizer,
        rollout_func=TeamRollout(ROLES) if team is None else team,
        **{"train_dataset": data()} | arguments,
    )


def test_rows_are_the_turns_of_episodes(model, tokenizer, tmp_path):
    trainer = build(model, tokenizer, tmp_path, max_steps=2)
    trainer.train()
    prompts = tokenizer.batch_decode(trainer.made[0]["prompt_ids"], skip_special_tokens=True)
    assert [prompt[0] for prompt in prompts] == ["l", "r"] * 8
    for pair in trainer.made[0]["advantages"].view(-1, 2):
        assert pair[0] == pair[1]
