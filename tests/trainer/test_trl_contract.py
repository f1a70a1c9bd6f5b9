"""
What this package relies on in TRL beyond its promises, asked of the real TRL.

When a new release fails here, look at `trl_fork/trainer/_trl.py` and `trl_fork/trainer/forking_grpo_trainer.py`.
"""

import inspect
import logging
from unittest.mock import Mock

import pytest
import torch
import transformers
import trl.trainer.grpo_trainer as trl_grpo_trainer
from packaging.version import Version
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

import trl_fork.trainer._trl as contract
from tests.conftest import FixedRollouts, SpyTrainer, build_model, train
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.trainer.batch import Padding
from trl_fork.trainer.completions_table import CompletionMarks


def test_hooks_are_in_place():
    contract.check_hooks()


def test_moved_hook_is_refused_by_name():
    class Moved(GRPOTrainer):
        def get_high_entropy_mask(self, mask, entropies, threshold):
            raise NotImplementedError

    with pytest.raises(ImportError, match=r"trl 1\.99\.0: Moved\.get_high_entropy_mask should take .*1\.16\.0"):
        contract.check_hooks(Moved, "1.99.0")

    class Gone:
        pass

    with pytest.raises(ImportError, match="found no such method"):
        contract.check_hooks(Gone)


def test_moved_hook_names_the_package_that_has_it(monkeypatch):
    """Five of the hooks are the Trainer's of transformers: a newer TRL would not help."""
    monkeypatch.setitem(contract.HOOKS, "push_to_hub", ("self", "never_there"))
    with pytest.raises(ImportError, match=r"transformers \S+: Trainer\.push_to_hub .* `pip install transformers=="):
        contract.check_hooks()


def test_printer_of_completions_takes_what_ours_does():
    """The seam replaces it by name, and TRL calls it by position."""
    original = trl_grpo_trainer.print_prompt_completions_sample
    names = list(inspect.signature(original).parameters)
    assert names == list(inspect.signature(CompletionMarks.print_table).parameters)[2:]
    with contract.completions_printer(print):
        assert trl_grpo_trainer.print_prompt_completions_sample is print
    assert trl_grpo_trainer.print_prompt_completions_sample is original


def test_attributes_are_in_place(tokenizer, tmp_path, monkeypatch):
    trainer = GRPOTrainer(
        build_model(tokenizer),
        lambda completions, **kwargs: [0.0] * len(completions),
        GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        FixedRollouts(tokenizer).dataset,
        processing_class=tokenizer,
    )
    contract.check_attributes(trainer)
    monkeypatch.setattr(contract, "ATTRIBUTES", (*contract.ATTRIBUTES, "_gone"))
    with pytest.raises(ImportError, match=r"its GRPOTrainer has no _gone\."):
        contract.check_attributes(trainer)


class TestOutsideItsContext:
    """A trainer without `__init__`, and a mock of one, do what TRL's do: subclasses and tests build such."""

    @pytest.mark.parametrize("build", [object.__new__, lambda cls: Mock(spec=cls)], ids=["bare", "mock"])
    def test_mask(self, build):
        entropies = torch.tensor([[0.1, 0.7, 0.3, 0.9], [0.2, 0.8, 0.4, 0.6]])
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
        found = {}
        for cls in (GRPOTrainer, ForkingGRPOTrainer):
            trainer = build(cls)
            trainer.accelerator = Mock(num_processes=1, pad_across_processes=lambda x, **_: x, gather=lambda x: x)
            found[cls] = cls.get_high_entropy_mask(trainer, entropies, mask, 0.7)
        assert torch.equal(*found.values()) and found[GRPOTrainer].sum() == 2

    def test_generation_and_rewards(self, tokenizer):
        prompts = ["ab", "cde"]
        for cls in (GRPOTrainer, ForkingGRPOTrainer):
            with pytest.raises(AttributeError) as generating:
                cls._generate(object.__new__(cls), prompts)
            with pytest.raises(AttributeError) as rewarding:
                cls._calculate_rewards(object.__new__(cls), [{}], prompts, prompts, [[1]])
            if cls is GRPOTrainer:  # the first thing that TRL itself looks for
                expected = [str(generating.value), str(rewarding.value)]
        found = [str(error.value).replace("Forking", "") for error in (generating, rewarding)]
        assert found == expected

    def test_scores(self, tokenizer):
        model = build_model(tokenizer)
        ids = torch.tensor([[4, 5, 6, 7, 8], [0, 9, 10, 11, 12]])
        found = []
        for cls in (GRPOTrainer, ForkingGRPOTrainer):
            trainer = object.__new__(cls)
            trainer.model = model
            trainer.temperature, trainer.model_kwarg_keys = 1.0, set()
            with pytest.raises(AttributeError) as error:
                cls._get_per_token_logps_and_entropies(trainer, model, ids, (ids > 0).long(), 3)
            found.append(str(error.value).replace("ForkingGRPOTrainer", "GRPOTrainer"))
        assert found[0] == found[1]


def test_vllm_samples_at_the_temperature_that_teams_set():
    """[`~trl_fork.teams.sampling`] sets a field of the engine, and the key of its `generation_kwargs` over it."""
    code = inspect.getsource(VLLMGeneration.generate)
    assert "temperature = self.temperature" in code and code.count('"temperature": temperature') == 2
    assert "generation_kwargs.update(self.generation_kwargs)" in code


def test_untested_minor_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(contract, "_warned_untested", False)
    monkeypatch.setattr(contract.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        contract.check_hooks(trl_version="1.16.9")
        assert not caplog.records
        contract.check_hooks(trl_version="1.17.0")
        contract.check_hooks(trl_version="1.17.0")
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "1.17.0" in caplog.text


class Recorder(SpyTrainer):
    """Calls of TRL into the hooks, in order."""

    def __init__(self, *args, **kwargs):
        self.calls = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self.calls.append("generate")
        return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts):
        generated = super()._generate(prompts)
        self.calls.append(("rollouts", [None if values is None else len(values) for values in generated]))
        return generated

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.calls.append(("rewards", tuple(rewards.shape)))
        return rewards

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        what = (
            "loss" if torch.is_grad_enabled() else "old" if contract.training_adapter_is_active(model) else "reference"
        )
        self.calls.append((what, model.training))
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.calls.append("compute_loss")
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _compute_loss(self, model, inputs):
        self.calls.append("_compute_loss")
        return super()._compute_loss(model, inputs)

    def get_high_entropy_mask(self, entropies, mask, threshold):
        self.calls.append(("mask", round(threshold, 6)))
        return super().get_high_entropy_mask(entropies, mask, threshold)


def test_trl_calls_the_hooks_in_order(tokenizer, tmp_path):
    """With LoRA and a KL term: old log-probabilities first, then the reference, both without gradient."""
    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, trainer_class=Recorder, beta=0.1,
        per_device_train_batch_size=16, steps_per_generation=2, max_steps=2,
        peft_config=LoraConfig(target_modules="all-linear"),
    )  # fmt: skip
    update = ["compute_loss", "_compute_loss", ("loss", True), ("mask", 0.8)]
    # Ids of prompts and completions, tool mask, completions, sampling log-probabilities, extra fields, images (twice)
    rollouts = ("rollouts", [32, 32, None, 32, None, 1, None, 0])
    assert trainer.calls == [
        "generate",
        rollouts,
        ("old", True),
        ("reference", True),
        ("rewards", (32, 1)),
        *update,
        *update,
    ]


@pytest.mark.parametrize(
    ("accumulation", "steps", "iterations"),
    [(1, 1, 1), (2, 2, 1), (4, 2, 1), (2, 4, 1), (1, 1, 2), (4, 2, 2), (2, 2, 2)],
)
def test_condition_for_old_log_probabilities(accumulation, steps, iterations, tokenizer, tmp_path):
    class Plain(GRPOTrainer):
        passes = 0

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            Plain.passes += not torch.is_grad_enabled()
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    from trl import GRPOConfig

    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Plain, GRPOConfig,
        gradient_accumulation_steps=accumulation, steps_per_generation=steps, num_iterations=iterations,
        per_device_train_batch_size=32 // steps,
    )  # fmt: skip
    assert contract.old_logps_are_computed(trainer) == (Plain.passes > 0)


def test_batches_carry_added_tensors_and_keep_their_rows(tokenizer, tmp_path):
    """Shuffling and splitting a generation batch moves an added `(batch, seq)` tensor with its rows."""

    class Tagged(SpyTrainer):
        batch_layout = SpyTrainer.batch_layout | {"tag": Padding("right", "completion_mask")}

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            output["tag"] = output["completion_ids"].clone()
            return output

        def compute_loss(self, model, inputs, *args, **kwargs):
            assert torch.equal(inputs["tag"], inputs["completion_ids"])
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = train(
        build_model(tokenizer), tokenizer, FixedRollouts(tokenizer), tmp_path, Tagged,
        per_device_train_batch_size=8, gradient_accumulation_steps=4,
    )  # fmt: skip
    assert len(trainer.micro_batches) == 4


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.8"), reason="TRL asks for transformers 5.8 for continuous batching"
)
def test_weights_that_trl_would_round_are_told_of(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(contract.logger, "propagate", True)

    def warnings(**settings):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ForkingGRPOTrainer(
                model=build_model(tokenizer),
                reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
                args=ForkingGRPOConfig(
                    str(tmp_path), num_generations=4, per_device_train_batch_size=4, use_cpu=True, report_to="none",
                    **settings,
                ),
                train_dataset=FixedRollouts(tokenizer).dataset,
                processing_class=tokenizer,
            )  # fmt: skip
        return [r.message for r in caplog.records if "converts the float32 weights" in r.message]

    assert len(warnings(use_transformers_continuous_batching=True, bf16=True)) == 1
    assert not warnings(use_transformers_continuous_batching=True, bf16=False)
    assert not warnings(bf16=True)


def truncation_warnings(tokenizer, tmp_path, caplog, use_vllm=True, **settings):
    caplog.clear()
    trainer = ForkingGRPOTrainer(
        model=build_model(tokenizer),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=ForkingGRPOConfig(
            str(tmp_path), num_generations=4, per_device_train_batch_size=4, use_cpu=True, bf16=False,
            report_to="none", **settings,
        ),
        train_dataset=FixedRollouts(tokenizer).dataset,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.use_vllm = use_vllm  # without its engine
    with caplog.at_level(logging.WARNING):
        contract.warn_of_truncated_sampling(trainer)
    return [r.message for r in caplog.records if "probability mass that was kept" in r.message]


def test_truncated_sampling_and_the_importance_ratio(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(contract.logger, "propagate", True)

    def warnings(**settings):
        return truncation_warnings(tokenizer, tmp_path, caplog, **settings)

    for settings in ({"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.05}, {"generation_kwargs": {"top_p": 0.8}}):
        (message,) = warnings(**settings)
        assert "'sequence_mask' multiplies it over a completion" in message and "0.895 at top_p=0.8" in message
        assert "off_policy_mask_threshold" not in message
    (message,) = warnings(top_p=0.8, vllm_importance_sampling_mode="token_truncate")
    assert "each token's loss is multiplied by it" in message
    (message,) = warnings(
        top_p=0.8, vllm_importance_sampling_correction=False, off_policy_mask_threshold=0.5, loss_denominator="all"
    )
    assert "off_policy_mask_threshold takes its logarithm" in message and "Here off_policy" in message
    assert not warnings()
    assert not warnings(top_p=1.0, top_k=0, min_p=0.0)
    assert not warnings(top_p=0.8, generation_kwargs={"top_p": 1.0})
    assert not warnings(top_p=0.8, vllm_importance_sampling_correction=False)
    assert not warnings(top_p=0.8, use_vllm=False)


@pytest.mark.parametrize("where", ["module", "file", "model"])
def test_unsloth_is_refused(where, tokenizer):
    model = build_model(tokenizer)
    trainer_class = ForkingGRPOTrainer
    if where == "module":
        trainer_class = type("UnslothGRPOTrainer", (GRPOTrainer,), {"__module__": "unsloth_compiled_cache"})
    elif where == "file":
        scope = {}
        exec(compile("def compute_loss(self): pass", "unsloth_compiled_cache/UnslothGRPOTrainer.py", "exec"), scope)
        trainer_class = type("Patched", (GRPOTrainer,), {"compute_loss": scope["compute_loss"]})
    else:
        model.__class__ = type("Model", (type(model),), {"__module__": "unsloth.models.qwen3"})
    # What unsloth 2026.10 does: it honours TRL's mask, in TRL's way.
    reason = "takes top_entropy_quantile as TRL does, per micro-batch and divided by all tokens"
    with pytest.raises(NotImplementedError, match=f"unsloth has replaced part of TRL or of the model .*{reason}"):
        contract.refuse_unsloth(trainer_class, model)
    contract.refuse_unsloth(ForkingGRPOTrainer, build_model(tokenizer))
    contract.refuse_unsloth(ForkingGRPOTrainer, "some/model")
    # A folder may be named as it likes
    scope = {}
    exec(compile("def compute_loss(self): pass", "/home/me/unsloth-or-trl/trl/grpo_trainer.py", "exec"), scope)
    contract.refuse_unsloth(type("T", (ForkingGRPOTrainer,), scope), build_model(tokenizer))
