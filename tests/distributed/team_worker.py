"""
Teams on several processes: `accelerate launch … team_worker.py OUTPUT_DIR`. A test trains the same by `train` in its
own process. Everything is written by the model: a completion is a function of its prompt and its row number.
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file

from tests.conftest import LETTERS, build_model, build_tokenizer, one_step
from tests.processes import leave
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.teams import Role, TeamRollout, joint_reward


ROLES = [Role("left", "l{prompt}{left}"), Role("right", "r{prompt}{right}{messages[left]}")]
INERT = "bcdfghijk"  # prompts whose episodes all have one return
# Twelve rows per process of two: the second of three groups is half on one, half on the other.
SCENARIOS = {
    "batch": {},
    "dynamic_sampling": {"dynamic_sampling": True, "dynamic_sampling_max_rounds": 20},
}


class Team(TeamRollout):
    """Keeps what each rollout of this process has returned."""

    def __call__(self, prompts, trainer):
        output = super().__call__(prompts, trainer)
        vars(self).setdefault("played", []).append([output[name] for name in ("role", "turn", "transcript")])
        return output


class Keeps(ForkingGRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.batch = {name: output[name].tolist() for name in ("prompt_ids", "completion_ids", "advantages")}
        return output


def reward(prompts, completions, **kwargs):
    return [
        1.0 if prompt[1] in INERT else float(len(set(text))) for prompt, text in zip(prompts, completions, strict=True)
    ]


def train(name: str, directory: Path, num_processes: int) -> tuple[Keeps, Team]:
    tokenizer, team, rows = build_tokenizer(), Team(ROLES), 24 // num_processes
    letters = LETTERS[:12] if name == "dynamic_sampling" else "ael"
    trainer = Keeps(
        model=build_model(tokenizer),
        reward_funcs=joint_reward(reward),
        args=ForkingGRPOConfig(
            **one_step(
                directory,
                per_device_train_batch_size=rows,
                max_completion_length=8,
                shuffle_dataset=False,
                **SCENARIOS[name],
            )
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": [f"p{one}" for one in letters], "left": list(letters.upper()), "right": list(letters)}
        ),
        processing_class=tokenizer,
        rollout_func=team,
    )
    trainer.train()
    return trainer, team


def main(directory: str) -> None:
    for name in SCENARIOS:
        trainer, team = train(name, Path(directory) / name, int(os.environ["WORLD_SIZE"]))
        records = [None] * torch.distributed.get_world_size()
        record = {"batch": trainer.batch, "played": team.played, "log": trainer.state.log_history[0]}
        torch.distributed.all_gather_object(records, record)
        if trainer.accelerator.is_main_process:
            weights = {
                key: value.detach().clone()
                for key, value in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
            }
            save_file(weights, Path(directory) / f"{name}.safetensors")
            (Path(directory) / f"{name}.json").write_text(json.dumps(records))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
