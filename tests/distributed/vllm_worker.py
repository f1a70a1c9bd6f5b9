"""
`examples/train.py` with a vLLM engine in each process, on a machine without GPU.

What is added: weights that can be replaced (`vllm_on_cpu`), and a record of how far the engine of each process was
from the policy at each generation.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.vllm_engine.on_cpu import leave_weights_unpacked
from trl_fork import ForkingGRPOTrainer
from trl_fork.commands import train


class Recorder(ForkingGRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        differences = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).abs()
        mask = output["completion_mask"].bool()
        path = Path(self.args.output_dir) / f"rank{self.accelerator.process_index}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            record = {"difference": differences[mask].mean().item(), "ids": output["completion_ids"].tolist()}
            file.write(json.dumps(record) + "\n")
        return output


if __name__ == "__main__":
    leave_weights_unpacked(pytest.MonkeyPatch())
    train.ForkingGRPOTrainer = Recorder
    train.run(*train.make_parser().parse_args_and_config())
    sys.stdout.flush()
    os._exit(0)  # vLLM's and gloo's threads race at the end of an interpreter
