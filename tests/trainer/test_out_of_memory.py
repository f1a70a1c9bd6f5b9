"""A device without memory, for real: an allocation that no machine has room for."""

import pytest
import torch

from tests.conftest import FixedRollouts, SpyTrainer, build_model, train


def allocate(*_, **__):
    """The allocator's own error."""
    return torch.empty(2**60)


class FullRollouts(FixedRollouts):
    def __call__(self, prompts, trainer):
        return allocate()


def generating(trainer_class):
    return trainer_class  # the rollout function is what fails


def training(trainer_class):
    class Broken(trainer_class):
        def compute_loss(self, *args, **kwargs):
            return allocate()

    return Broken


def scoring(trainer_class):
    class Broken(trainer_class):
        def _score(self, *args, **kwargs):
            return allocate()

    return Broken


def rewarding(trainer_class):
    class Broken(trainer_class):
        def _calculate_rewards(self, *args, **kwargs):
            with self._stopwatch.measure("rewards"):  # where a reward model would run
                return allocate()

    return Broken


def evaluating(trainer_class):
    class Broken(trainer_class):
        def prediction_step(self, *args, **kwargs):
            return allocate()

    return Broken


def stepping(trainer_class):
    class Broken(trainer_class):
        def create_optimizer(self, *args, **kwargs):
            optimizer = super().create_optimizer(*args, **kwargs)
            optimizer.register_step_pre_hook(allocate)
            return optimizer

    return Broken


@pytest.mark.parametrize(
    ("broken", "what", "first"),
    [
        (generating, "completions were generated", "generation_batch_size (32 over all processes"),
        (training, "in a pass over packed completions", "max_tokens_per_forward (what a padded micro-batch holds)"),
        (scoring, "in a pass over packed completions", "max_tokens_per_forward (what a padded micro-batch holds)"),
        (rewarding, "while rewards were computed", "the device of a reward model"),
        (stepping, "in the optimizer", "use_peft: true"),
        (evaluating, "in evaluation", "per_device_eval_batch_size"),
    ],
)
def test_three_settings_are_named(broken, what, first, tokenizer, tmp_path):
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    rollouts = (FullRollouts if broken is generating else FixedRollouts)(tokenizer)
    if broken is evaluating:
        settings |= {"eval_strategy": "steps", "eval_on_start": True, "eval_dataset": rollouts.dataset}
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(build_model(tokenizer), tokenizer, rollouts, tmp_path, broken(SpyTrainer), **settings)
    message = str(caught.value)
    assert message.startswith("Step 0: out of memory") and what in message
    assert f"\n  1. {first}" in message and message.count("\n  ") == 3
    assert "can't allocate memory" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("settings", "what", "first"),
    [
        ({"padding_free": False}, "8 completions", "per_device_train_batch_size (8)"),
        ({"entropy_threshold_scope": "local"}, "packed completions", "per_device_train_batch_size (8)"),
        ({"max_tokens_per_forward": 99}, "packed completions", "max_tokens_per_forward (99)"),
    ],
)
def test_tokens_are_named_where_rows_are_packed_to_them(settings, what, first, tokenizer, tmp_path):
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, **settings}
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, training(SpyTrainer), **settings)
    assert f"in a pass over {what}" in str(caught.value) and f"\n  1. {first}" in str(caught.value)


def test_other_errors_are_left_alone(tokenizer, tmp_path):
    class Broken(SpyTrainer):
        def compute_loss(self, *args, **kwargs):
            raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match=r"^another error$") as caught:
        train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Broken)
    assert not isinstance(caught.value, torch.OutOfMemoryError)


def test_a_second_run_is_told_of_its_own_error(tokenizer, tmp_path):
    made = []

    class Broken(SpyTrainer):
        """Its first run fails in the loss, of something else; the second is out of memory in the rewards."""

        def _calculate_rewards(self, *args, **kwargs):
            made.append(self)
            if len(made) == 1:
                return super()._calculate_rewards(*args, **kwargs)
            with self._stopwatch.measure("rewards"):
                return allocate()

        def compute_loss(self, *args, **kwargs):
            raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        train(build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Broken)
    assert made[0]._stopwatch.interrupted == "training"
    with pytest.raises(torch.OutOfMemoryError, match="while rewards were computed"):
        made[0].train()
