"""
A training whose processes have different work at every step: one process of

    accelerate launch ... -m benchmarks.reliability.uneven DIRECTORY STEPS SEED

Of each generation batch a kind is drawn, and the process that it concerns. Rank 0 writes DIRECTORY/result.json.
"""

import json
import random
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback

from tests.conftest import LETTERS, build_model, build_tokenizer, fixed_reward
from tests.processes import leave
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer


GENERATIONS, ROWS, LONGEST = 4, 8, 16
KINDS = ("ordinary", "empty", "unequal", "inert", "all empty", "all inert")


class UnevenRollouts:
    """A `rollout_func` that draws what the processes get."""

    def __init__(self, tokenizer, seed: int):
        self.tokenizer, self.seed, self.batches = tokenizer, seed, 0
        self.kinds: Counter = Counter()

    def __call__(self, prompts, trainer):
        of_batch = random.Random(f"{self.seed} {self.batches}")
        kind, victim = of_batch.choice(KINDS), of_batch.randrange(2)
        here = kind.startswith("all") or trainer.accelerator.process_index == victim
        self.kinds[kind] += 1
        output = {"prompt_ids": [], "completion_ids": [], "logprobs": None, "fixed_reward": []}
        for row, text in enumerate(prompts):
            draw = random.Random(f"{self.seed} {self.batches} {trainer.accelerator.process_index} {row}")
            length = draw.randint(2, LONGEST - 1)
            if kind == "unequal":
                length = 1 if here else LONGEST
            ids = [draw.randrange(4, 4 + len(LETTERS)) for _ in range(length)]
            if not (here and kind.endswith("empty")):  # cut off: the mask of truncated completions leaves no token
                ids[-1] = self.tokenizer.eos_token_id
            output["prompt_ids"].append(self.tokenizer(text)["input_ids"])
            output["completion_ids"].append(ids)
            output["fixed_reward"].append(0.5 if here and kind.endswith("inert") else draw.random())
        self.batches += 1
        return output


class Clock(TrainerCallback):
    def __init__(self):
        self.times = [time.monotonic()]

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.monotonic())


def main(directory: str, steps: str, seed: str) -> None:
    tokenizer = build_tokenizer()
    rollouts, clock = UnevenRollouts(tokenizer, int(seed)), Clock()
    trainer = ForkingGRPOTrainer(
        model=build_model(tokenizer),
        reward_funcs=fixed_reward,
        args=ForkingGRPOConfig(
            directory, max_steps=int(steps), per_device_train_batch_size=ROWS, num_generations=GENERATIONS,
            max_completion_length=LONGEST, mask_truncated_completions=True, learning_rate=0.01, use_cpu=True,
            bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["ab", "cde", "fghi", "jk", "lmn", "opqr"]}),
        processing_class=tokenizer,
        rollout_func=rollouts,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    weights = sha256()
    for parameter in trainer.model.parameters():
        weights.update(parameter.detach().numpy().tobytes())
    digests = gather_object([weights.hexdigest()])
    if trainer.accelerator.is_main_process:
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
        result = {
            "steps": trainer.state.global_step,
            "processes": trainer.accelerator.num_processes,
            "kinds": dict(rollouts.kinds),
            "equal_weights": len(set(digests)) == 1,
            "finite": all(torch.isfinite(torch.tensor(entry["loss"])) for entry in logs)
            and all(parameter.isfinite().all().item() for parameter in trainer.model.parameters()),
            "slowest_step": round(max(seconds), 2),
            "median_step": round(sorted(seconds)[len(seconds) // 2], 3),
        }
        (Path(directory) / "result.json").write_text(json.dumps(result))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
