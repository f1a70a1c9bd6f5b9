"""A supervised fine-tuning of minutes: LoRA on worked solutions of GSM8K, with TRL's `SFTTrainer`."""

import json
import re
from pathlib import Path

from trl_fork.data.math_datasets import BOXED_INSTRUCTION

from . import plan


def demonstration(row: dict) -> dict:
    """A row of GSM8K as prompt and completion: without its calculator, and with the answer in a box."""
    solution, _, answer = row["answer"].partition("\n#### ")
    text = f"{re.sub(r'<<.*?>>', '', solution)}\nThe answer is \\boxed{{{answer}}}."
    return {
        "prompt": [{"role": "user", "content": BOXED_INSTRUCTION.replace("{question}", row["question"])}],
        "completion": [{"role": "assistant", "content": text}],
    }


def train(model: str, output: Path) -> list[dict]:
    """
    Train, and leave the adapter in `output` with a checkpoint of each quarter before it.

    Args:
        model (`str`): Folder of the model.
        output (`Path`): Folder of the adapter.

    Returns:
        `list[dict]`: step and loss, every `plan.SFT_SAVE_STEPS` steps.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in plan.SFT_DATA.read_text().splitlines()]
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            str(output),
            max_steps=plan.SFT_STEPS,
            per_device_train_batch_size=plan.SFT_BATCH_SIZE,
            learning_rate=plan.SFT_LEARNING_RATE,
            lr_scheduler_type="constant",
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            logging_steps=plan.SFT_SAVE_STEPS,
            save_steps=plan.SFT_SAVE_STEPS,
            save_only_model=True,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            seed=plan.SEED,
        ),
        train_dataset=Dataset.from_list(list(map(demonstration, rows))),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()
    trainer.save_model()
    return [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]
