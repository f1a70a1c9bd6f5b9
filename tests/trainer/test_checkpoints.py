"""A run that is cut off and resumed is the run that was not: same weights, metrics and rollouts, bit for bit."""

import copy
import json
import logging

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import trl_fork.trainer.checkpoints as checkpoints
from tests.conftest import SpyTrainer, build_model
from trl_fork import ForkingGRPOConfig


def count_letters(completions, **kwargs):
    return [len(set(text)) / 10 for text in completions]


def run(
    tokenizer,
    directory,
    trainer_class=SpyTrainer,
    config_class=ForkingGRPOConfig,
    resume=None,
    reward=count_letters,
    **settings,
):
    """Train with real generation on six prompts, three generation batches per epoch."""
    trainer = trainer_class(
        model=build_model(tokenizer),
        reward_funcs=reward,
        args=config_class(
            str(directory),
            **{
                "use_cpu": True,
                "bf16": False,
                "per_device_train_batch_size": 4,
                "num_generations": 4,
                "steps_per_generation": 2,
                "max_steps": 12,
                "max_completion_length": 8,
                "learning_rate": 0.01,
                "save_strategy": "steps",
                "save_steps": 1,
                "logging_steps": 1,
                "report_to": "none",
                "disable_tqdm": True,
                **settings,
            },
        ),
        train_dataset=Dataset.from_dict({"prompt": ["ab", "cde", "fghi", "jk", "lmn", "opqr"]}),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def logs(trainer):
    timings = ("time", "runtime", "per_second")
    return [{k: v for k, v in e.items() if not any(t in k for t in timings)} for e in trainer.state.log_history[:-1]]


SETTINGS = [
    {},
    {"token_selection": "random"},
    {
        "token_credit": {
            "top_fraction": {"fraction": {"linear": [0.2, 1.0, 0.8]}, "score": "position", "pool": "sequence"}
        }
    },
    {
        "token_credit": {
            "rollouts": {"negatives": "high_entropy_sum"},
            "proportional": {"window": 3},
            "entropy_advantage": {"strength": {"sigmoid": [0.9, 0.0, 0.9]}},
        }
    },
    {"token_credit": {"random": {"fraction": 0.7}, "tests.credit.own_rules.surprisal": {}}},
    {"entropy_threshold_scope": "micro_batch", "num_iterations": 2},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "steps_per_generation": 4},
    {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 5.0},
    {"dynamic_sampling": True, "dynamic_sampling_max_rounds": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_resumed_run_is_the_uninterrupted_one(settings, tokenizer, tmp_path):
    whole = run(tokenizer, tmp_path, **settings)
    # 3: inside a generation batch of the first epoch. 10: in the second epoch, at the start of one.
    for step in (3, 10):
        resumed = run(tokenizer, tmp_path, resume=str(tmp_path / f"checkpoint-{step}"), **settings)
        assert torch.equal(weights(resumed), weights(whole))
        assert logs(resumed) == logs(whole)


def test_stream_of_refills_goes_on_after_a_resume(tokenizer, tmp_path):
    """Else a resumed run would train on the first refills again. Few groups have spread in this reward."""

    def rare(completions, **kwargs):
        return [float("z" in text) for text in completions]

    drawn = []

    class Draws(SpyTrainer):
        def _refill(self, num_groups):
            examples = super()._refill(num_groups)
            drawn.append((self.state.global_step, [example["prompt"] for example in examples]))
            return examples

    settings = {"dynamic_sampling": True, "max_steps": 8}
    whole = run(tokenizer, tmp_path, Draws, reward=rare, **settings)
    assert whole.state.log_history[0]["dynamic_sampling/rounds"] > 1
    assert len({tuple(prompts) for _, prompts in drawn}) > 3, "the stream goes on"
    first, drawn[:] = list(drawn), []
    resumed = run(tokenizer, tmp_path, Draws, reward=rare, resume=str(tmp_path / "checkpoint-4"), **settings)
    assert drawn == [entry for entry in first if entry[0] >= 4]
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("step", [3, 10])
def test_stock_trl_does_not_resume(step, tokenizer, tmp_path):
    """The reason for all this. When it fails, TRL has learned to resume: see whether `checkpoints.py` can go."""
    whole = run(tokenizer, tmp_path, GRPOTrainer, GRPOConfig)
    resumed = run(tokenizer, tmp_path, GRPOTrainer, GRPOConfig, resume=str(tmp_path / f"checkpoint-{step}"))
    assert not torch.equal(weights(resumed), weights(whole))


def test_metrics_between_two_logs_are_kept(tokenizer, tmp_path):
    whole = run(tokenizer, tmp_path, logging_steps=4, max_steps=4)
    resumed = run(tokenizer, tmp_path, logging_steps=4, max_steps=4, resume=str(tmp_path / "checkpoint-3"))
    names = [name for name in whole.state.log_history[0] if name.startswith(("forking/", "reward", "entropy"))]
    assert len(names) > 8
    for name in names:
        assert resumed.state.log_history[0][name] == whole.state.log_history[0][name]


# ---------------------------------------------------------------------- half-written checkpoints


@pytest.fixture
def run_directory(tokenizer, tmp_path):
    run(tokenizer, tmp_path, max_steps=3)
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("broken", ["trainer_state.json", "rng_state.pth", "forking_state_0.pt", "missing"])
def test_newest_complete_checkpoint_is_taken(broken, run_directory, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    newest = run_directory / "checkpoint-3"
    if broken == "missing":
        (newest / "trainer_state.json").unlink()
    else:
        cut(newest / broken)
    (run_directory / "checkpoint-backup").mkdir()  # a user's own folder
    with caplog.at_level(logging.WARNING):
        resumed = run(tokenizer, run_directory, resume=True, max_steps=4)
    assert resumed._initial_global_step == 2
    assert f"Half-written checkpoints are skipped ({newest}: " in caplog.text
    assert f"Resuming from {run_directory / 'checkpoint-2'} instead" in caplog.text
    assert not checkpoints._what_is_missing(newest, 0, 1), "saved anew"


def test_file_of_another_process_is_missed(run_directory):
    """Else that process would train on the first one's rollouts."""
    checkpoint = run_directory / "checkpoint-3"
    state = torch.load(checkpoint / "forking_state_0.pt")
    state["settings"]["processes"] = 2
    torch.save(state, checkpoint / "forking_state_0.pt")
    assert checkpoints._what_is_missing(checkpoint, 0, 2) is None
    assert checkpoints._what_is_missing(checkpoint, 1, 2) == "forking_state_1.pt is missing"
    assert checkpoints._what_is_missing(checkpoint, 1, 3) is None, "saved by fewer processes: its rollouts are dropped"


def test_named_half_written_checkpoint_is_refused(run_directory, tokenizer):
    cut(run_directory / "checkpoint-3" / "trainer_state.json")
    with pytest.raises(ValueError, match=r"no complete checkpoint at .*trainer_state\.json is cut off"):
        run(tokenizer, run_directory, resume=str(run_directory / "checkpoint-3"))
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*empty"):
        run(tokenizer, run_directory / "empty", resume=True)


def test_other_settings_start_a_new_generation_batch(run_directory, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        run(tokenizer, run_directory, resume=True, max_steps=4, entropy_threshold_scope="micro_batch", beta=0.0)
    assert "saved within a generation batch by other settings (entropy_threshold_scope was batch, is micro_batch)" in (
        caplog.text
    )
    caplog.clear()
    run(tokenizer, run_directory / "stock", GRPOTrainer, GRPOConfig, max_steps=3)
    with caplog.at_level(logging.WARNING):
        run(tokenizer, run_directory / "stock", resume=True, max_steps=4)
    assert "was not saved by trl_fork" in caplog.text


def test_rollouts_are_saved_only_while_they_are_of_use(run_directory):
    def state(step):
        return torch.load(run_directory / f"checkpoint-{step}" / "forking_state_0.pt", weights_only=True)

    assert state(2)["buffered_inputs"] is None
    assert len(state(3)["buffered_inputs"]) == 2
    assert json.loads((run_directory / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3


def test_no_checkpoint_state_without_an_optimizer(tokenizer, tmp_path):
    run(tokenizer, tmp_path, max_steps=1, save_only_model=True)
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()
    assert not (tmp_path / "checkpoint-1" / "forking_state_0.pt").exists()


# ---------------------------------------------------------------------- launches that leave no model


class FakeAccelerator:
    def __init__(self, distributed_type, **state):
        self.distributed_type = distributed_type
        self.state = type("State", (), state)


def plugin(**attributes):
    return type("Plugin", (), attributes)


def test_launch_without_a_consolidated_model_is_refused():
    zero = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}}
    with pytest.raises(ValueError, match="zero3_save_16bit_model: true"):
        checkpoints.check_model_will_be_saved(
            FakeAccelerator("DEEPSPEED", deepspeed_plugin=plugin(deepspeed_config=zero))
        )
    good = copy.deepcopy(zero)
    good["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    checkpoints.check_model_will_be_saved(FakeAccelerator("DEEPSPEED", deepspeed_plugin=plugin(deepspeed_config=good)))
    sharded = FakeAccelerator("FSDP", fsdp_plugin=plugin(state_dict_type="StateDictType.SHARDED_STATE_DICT"))
    with pytest.raises(ValueError, match="fsdp_state_dict_type: FULL_STATE_DICT"):
        checkpoints.check_model_will_be_saved(sharded)
    full = FakeAccelerator("FSDP", fsdp_plugin=plugin(state_dict_type="StateDictType.FULL_STATE_DICT"))
    checkpoints.check_model_will_be_saved(full)
