"""
A run that is killed, or that fails, where the command line says; and the same run resumed.

    survival_worker.py DIRECTORY [--resume] [--kill save:3 | step:5] [--fault oom:1:2 | reward:1:2]

`save:3` kills this process (SIGKILL) in the middle of writing checkpoint 3, `step:5` in the forward pass after five
micro-steps. `oom:1:2` raises out-of-memory on rank 1 after two micro-steps; `reward:1:2` fails in its reward function.
Rank 0 writes the completions it saw and the final log to DIRECTORY/result.json.
"""

import argparse
import json
import os
import signal
from pathlib import Path

from tests.distributed.worker import prepare_for_cpu


if __name__ == "__main__":
    prepare_for_cpu()

import torch
from datasets import Dataset

from tests.conftest import build_tokenizer
from tests.processes import leave
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill", default="never:0")
    parser.add_argument("--fault", default="none:0:0")
    return parser.parse_args()


class Mortal(ForkingGRPOTrainer):
    kill_where, kill_when = "never", 0
    fault, fault_rank, fault_when = "none", 0, 0

    def _save_optimizer_and_scheduler(self, output_dir):
        if self.kill_where == "save" and self.state.global_step == self.kill_when:
            os.kill(os.getpid(), signal.SIGKILL)  # the model is written, the rest is not
        return super()._save_optimizer_and_scheduler(output_dir)

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.kill_where == "step" and self._step == self.kill_when:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._faulty("oom"):
            raise torch.OutOfMemoryError("out of memory on purpose")
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _faulty(self, kind):
        here = self.accelerator.process_index == self.fault_rank
        return self.fault == kind and here and self._step >= self.fault_when


def main():
    options = parse()
    tokenizer = build_tokenizer()
    seen = []

    def reward(completions, **kwargs):
        if trainer._faulty("reward"):
            raise KeyError("a reward that fails on purpose")
        seen.extend(completions)
        return [len(set(text)) / 10 for text in completions]

    trainer = Mortal(
        model=str(options.directory / "start"),  # from disk: ZeRO-3 partitions it while it is loaded
        reward_funcs=reward,
        args=ForkingGRPOConfig(
            str(options.directory),
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", 1)),
            num_generations=4,
            steps_per_generation=2,
            max_steps=8,
            max_completion_length=8,
            learning_rate=0.01,
            save_steps=1,
            save_total_limit=2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["ab", "cde", "fghi", "jk", "lmn", "opqr"]}),
        processing_class=tokenizer,
    )
    trainer.kill_where, when = options.kill.split(":")
    trainer.kill_when = int(when)
    trainer.fault, rank, when = options.fault.split(":")
    trainer.fault_rank, trainer.fault_when = int(rank), int(when)
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model(str(options.directory / "final"))
    if trainer.accelerator.is_main_process:
        zero = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        result = {
            "engine": str(trainer.accelerator.distributed_type),
            "zero_stage": zero.zero_stage if zero is not None else 0,
            "processes": trainer.accelerator.num_processes,
            "partitioned": sum(p.numel() == 0 for p in trainer.model.parameters()),
            "log": trainer.state.log_history,
            "completions": seen,
        }
        (options.directory / "result.json").write_text(json.dumps(result))
    leave()


if __name__ == "__main__":
    main()
