"""The warm-up of a generated task: supervised fine-tuning of random weights on demonstrations."""

import contextlib
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: list[tuple[str, str]],
    path: Path,
    *,
    batch_size: int,
    seed: int,
    trainer_class: type[SFTTrainer] = SFTTrainer,
) -> None:
    """
    Train a model once on every demonstration, and save it with its tokenizer.

    The progress bar and errors come on stderr; the metrics go to `warm_up.log` beside the folder.

    Args:
        model ([`~transformers.PreTrainedModel`]): Trained in place, on the CPU.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, with a chat template.
        demonstrations (`list[tuple[str, str]]`): Questions and answers, a multiple of `batch_size` of them.
        path (`Path`): Folder of the model.
        batch_size (`int`): Demonstrations a step.
        seed (`int`): Seed of their order.
        trainer_class (`type`, *optional*, defaults to [`~trl.SFTTrainer`]): A subclass has a loss of its own.
    """
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in demonstrations
    ]
    steps = len(rows) // batch_size
    trainer = trainer_class(
        model=model,
        args=SFTConfig(
            output_dir=str(path),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=min(20, steps // 4),
            adam_beta2=0.98,
            completion_only_loss=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,  # the default follows TRANSFORMERS_VERBOSITY
            seed=seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    # stdout would get the metrics as a dictionary.
    with (path.parent / "warm_up.log").open("w") as log, contextlib.redirect_stdout(log):
        trainer.train()
    trainer.save_model(str(path))  # with the tokenizer
