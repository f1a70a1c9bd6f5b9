"""What a real vLLM engine needs on a CPU: settings made before the first engine, and fixtures."""

import gc
import os


os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",  # GiB
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
)

import pytest


def leave_weights_unpacked(patch: pytest.MonkeyPatch) -> None:
    """
    Keep vLLM's linear layers in plain PyTorch.

    Its CPU build packs their weights for oneDNN or AMX while it loads a model and drops the originals, so that the
    weights of a later step have nowhere to go. Its CUDA build does neither.
    """
    import vllm._custom_ops
    import vllm.model_executor.layers.utils

    patch.setattr(vllm._custom_ops, "_supports_onednn", False)
    patch.setattr(vllm.model_executor.layers.utils, "check_cpu_sgl_kernel", lambda *shape_and_dtype: False)


@pytest.fixture(scope="module")
def weights_can_be_replaced():
    with pytest.MonkeyPatch.context() as patch:
        leave_weights_unpacked(patch)
        yield


@pytest.fixture
def one_engine_at_a_time(monkeypatch):
    """End the engine of a test, and take back the variables of a launcher that TRL sets for it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    engines = []
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    make = LLM.__init__

    def recorded(engine, *args, **kwargs):
        engines.append(engine)
        make(engine, *args, **kwargs)

    monkeypatch.setattr(LLM, "__init__", recorded)
    yield
    # Now, and not whenever the garbage collector finds it: that would end the process group of the next engine.
    for engine in engines:
        if hasattr(engine, "llm_engine"):
            engine.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()
