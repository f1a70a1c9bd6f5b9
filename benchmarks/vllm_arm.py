"""
vLLM's engine on the CPU, in the process of the trainer, for completions of given lengths.

No hook on a model reaches the engine: each request asks for the number of tokens that the row has, and ignores the end
token. So lengths are those of the other arms, and tokens are random words. Weights are not sent to the engine: with a
learning rate of zero they stay what they are, and vLLM's CPU build has packed them so that they could not be replaced.
What that would cost is not in the numbers. Everything else is TRL's default, the correction for the difference between
the two engines among it, which scores every completion.
"""

import gc
import os
import tempfile
from contextlib import contextmanager

from .workload import PROMPT_LENGTH, SHAPES, build_model, build_tokenizer


os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",  # GiB
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # in this process, whose time is measured
    VLLM_LOGGING_LEVEL="WARNING",
)


def settings(options):
    """Fields of the configuration."""
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.05,
        "vllm_max_model_length": PROMPT_LENGTH + options.max_length,
        "model_init_kwargs": {"dtype": "float32"},
    }


def model_folder(options):
    """A folder with the model and its tokenizer, from which the engine loads its own."""
    folder = tempfile.mkdtemp()
    build_model(options.shape, "cpu").save_pretrained(folder)
    build_tokenizer(SHAPES[options.shape][6]).save_pretrained(folder)
    return folder


@contextmanager
def forced_engine(trainer, batch):
    """The engine of a trainer writes completions of the batch's lengths; it ends with the context."""
    generation = trainer.vllm_generation
    generate = generation.llm.generate

    def forced_generate(prompts, sampling_params, **kwargs):
        handed, parameters = {}, []
        for prompt in prompts:
            group = prompt["prompt_token_ids"][0] - batch.forced.first_prompt
            row = handed[group] = handed.get(group, -1) + 1
            own = sampling_params.clone()
            own.ignore_eos, own.max_tokens = True, batch.forced.lengths[group][row]
            parameters.append(own)
        return generate(prompts, sampling_params=parameters, **kwargs)

    generation.llm.generate = forced_generate
    generation.sync_weights = lambda: None
    try:
        yield
    finally:
        from vllm.distributed import cleanup_dist_env_and_memory

        # Now, and not whenever the garbage collector finds it: that would end the process group of the next engine.
        generation.llm.llm_engine.engine_core.shutdown()
        gc.collect()
        cleanup_dist_env_and_memory()
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # TRL sets them for the engine
            os.environ.pop(name, None)
