"""
What a test of publishing runs, as a child process that finds the stand-in for the Hub by `HF_ENDPOINT`:

    [accelerate launch …] tests/hub_worker.py OUTPUT_DIR '{"setting": value}'

Two steps on fixed rollouts, then `push_to_hub`. Prints `pushed: True` or `pushed: False` on the main process.
"""

import json
import os
import sys
from pathlib import Path

from peft import LoraConfig

import trl_fork.trainer.publishing
from tests.conftest import FixedRollouts, build_tokenizer, fixed_reward
from tests.distributed.worker import LORA, prepare_for_cpu
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer


def main(directory: str, settings: str) -> None:
    prepare_for_cpu()
    trl_fork.trainer.publishing._RETRY_AFTER = (0.1, 0.1)
    settings = json.loads(settings)
    lora, reward_file = settings.pop("lora", False), settings.pop("results", None)
    tokenizer = build_tokenizer()
    rollouts = FixedRollouts(tokenizer)
    output = Path(directory) / "run"
    base = Path(directory) / "base"
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = ForkingGRPOTrainer(
        model=str(base),
        reward_funcs=fixed_reward,
        args=ForkingGRPOConfig(
            str(output), max_steps=2, per_device_train_batch_size=32 // processes, num_generations=8,
            max_completion_length=16, learning_rate=0.01, use_cpu=True, bf16=False, gradient_checkpointing=False,
            report_to="none", logging_steps=1, disable_tqdm=True, save_steps=1, push_to_hub=True,
            hub_model_id="tester/forks", model_init_kwargs={"dtype": "float32"}, **settings,
        ),
        train_dataset=rollouts.dataset,
        processing_class=tokenizer,
        rollout_func=rollouts,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM") if lora else None,
    )  # fmt: skip
    trainer.train()
    if reward_file and trainer.accelerator.is_main_process:
        (output / "results.json").write_text(json.dumps(reward_file))
        (output / "training.png").write_bytes(b"a picture")
    result = trainer.push_to_hub(dataset_name="openai/gsm8k")
    trainer.accelerator.print(f"pushed: {result is not None}")
    trainer.accelerator.wait_for_everyone()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as worker.py of the distributed tests


if __name__ == "__main__":
    main(*sys.argv[1:])
