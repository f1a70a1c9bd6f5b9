"""`torch_compile`: the model is compiled as often as by TRL's own trainer, and the step stays what it was."""

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import trl_fork.trainer.lm_head as lm_head
from tests.conftest import FixedRollouts, SpyTrainer, build_model, train
from trl_fork import ForkingGRPOConfig


SETTINGS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}


class Compilations(TrainerCallback):
    """Graphs that have been compiled by the end of each step."""

    def on_train_begin(self, args, state, control, **kwargs):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        self.graphs = []

    def on_step_end(self, args, state, control, **kwargs):
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def graphs(tokenizer, tmp_path, trainer_class, config_class):
    """Over four steps whose batches differ in their longest row and in how many rows have a gradient."""
    counter = Compilations()
    spread = [[0.0, 1.0] * 4 if n % 3 else [0.5] * 8 for n in range(12)]
    train(
        build_model(tokenizer, num_hidden_layers=1), tokenizer, FixedRollouts(tokenizer, prompts=12, rewards=spread),
        tmp_path, trainer_class, config_class, callbacks=[counter], max_steps=5, learning_rate=0.01,
        torch_compile=True, torch_compile_backend="eager", top_entropy_quantile=0.2, **SETTINGS,
    )  # fmt: skip
    return counter.graphs


# PyTorch's own, while it traces TRL's head
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_compiled_for_each_batch(tokenizer, tmp_path):
    lm_head.rows_projected.update(forward=0, backward=0)
    ours = graphs(tokenizer, tmp_path, SpyTrainer, ForkingGRPOConfig)
    assert lm_head.rows_projected["backward"] > 0, "the sparse head ran"
    # The backbone and what follows the head, for the first shape and then for all shapes
    assert 0 < ours[-1] <= 6
    assert ours[-1] == ours[-2] == ours[-3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_as_often_as_by_trl(tokenizer, tmp_path):
    ours = graphs(tokenizer, tmp_path, SpyTrainer, ForkingGRPOConfig)
    theirs = graphs(tokenizer, tmp_path, GRPOTrainer, GRPOConfig)
    assert 0 < ours[-1] <= theirs[-1]
