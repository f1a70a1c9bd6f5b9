"""The warning of weights that a processor is slow with."""

import argparse

import pytest
import torch

from tests.conftest import build_model, build_tokenizer
from trl_fork._logging import logger
from trl_fork.commands import analyze
from trl_fork.generation.engines import TransformersEngine, load_model


@pytest.fixture(autouse=True)
def nothing_warned_of():
    type(logger).warning_once.cache_clear()
    yield
    type(logger).warning_once.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "capability", "warned"),
    [
        ("bfloat16", "AVX2", True),
        ("bfloat16", "AVX512", False),
        ("float32", "AVX2", False),
        ("float16", "AVX2", False),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "analyze"])
def test_bfloat16_without_instructions_for_it(command, dtype, capability, warned, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    tokenizer = build_tokenizer()
    build_model(tokenizer).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    if command == "evaluate":
        model = load_model(str(tmp_path))
        TransformersEngine(model, tokenizer)
    else:
        options = argparse.Namespace(dtype="auto", attn_implementation=None, device_map=None)
        model = analyze.load_model(str(tmp_path), options)
    assert model.dtype == getattr(torch, dtype)
    assert ("--dtype float32" in caplog.text) == warned
