"""One step with a real tool that only the first process calls: `accelerate launch … tool_worker.py OUTPUT_DIR`."""

import os
import sys

from datasets import Dataset

from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer, multiply
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer


CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>'


def main(directory: str) -> None:
    tokenizer = byte_tokenizer()

    def rollout(prompts, trainer):
        first = trainer.accelerator.is_main_process
        texts = [CALL if first and i % 2 == 0 else f"no{'o' * i}<|im_end|>" for i in range(len(prompts))]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}

    trainer = ForkingGRPOTrainer(
        model=build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02),
        reward_funcs=lambda completions, **kwargs: [float(i % 3) for i in range(len(completions))],
        args=ForkingGRPOConfig(
            directory, use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=8, report_to="none",
            max_completion_length=160, save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "3*4?"}]] * 4}),
        processing_class=tokenizer,
        tools=[multiply],
        rollout_func=rollout,
    )  # fmt: skip
    trainer.train()
    trainer.accelerator.print(f"calls: {trainer.state.log_history[0]['tools/call_frequency']}")
    sys.stdout.flush()
    os._exit(0)  # as worker.py


if __name__ == "__main__":
    main(*sys.argv[1:])
