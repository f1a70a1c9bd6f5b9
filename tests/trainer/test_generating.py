"""Generation inside the trainer: by the decoding loop of this package where TRL calls `generate`."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig

from tests.conftest import FixedRollouts, build_model
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer


def reward(completion_ids, **kwargs):
    return [len(set(ids)) / 10 for ids in completion_ids]


def build_trainer(model, tokenizer, tmp_path, trainer_class=ForkingGRPOTrainer, **settings):
    return trainer_class(
        model=model,
        reward_funcs=reward,
        args=ForkingGRPOConfig(
            str(tmp_path),
            **{
                "use_cpu": True, "bf16": False, "max_steps": 2, "per_device_train_batch_size": 16,
                "learning_rate": 0.01, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
                "max_completion_length": 12, **settings,
            },
        ),
        train_dataset=FixedRollouts(tokenizer).dataset,
        processing_class=tokenizer,
    )  # fmt: skip


def parameters_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


PROMPTS = [[5, 6, 7], [5, 6, 7], [9, 10, 11, 12, 13], [9, 10, 11, 12, 13], [8], [8]]


def generated(trainer, prompts=PROMPTS, **kwargs):
    return trainer._generate_single_turn(prompts, None, {}, 2, **kwargs)[0]


def rows_forwarded(model):
    rows = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return rows, hook


@pytest.mark.parametrize("lora", [False, True])
def test_the_loop_generates_and_leaves_the_model_as_it_was(tokenizer, tmp_path, lora):
    model = build_model(tokenizer)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    trainer = build_trainer(model, tokenizer, tmp_path)
    trainer.model.train()
    rows, _ = rows_forwarded(trainer.model.get_base_model() if lora else trainer.model)
    state = torch.get_rng_state()
    completions = generated(trainer)
    assert rows[0] == 3 and rows[1] <= 6 and sum(rows[1:]) == sum(len(ids) - 1 for ids in completions)
    assert torch.equal(state, torch.get_rng_state()), "nothing is drawn from the generator of the process"
    assert "generate" not in vars(trainer.model) and trainer.model.training
    assert all(1 not in ids[:-1] and (len(ids) == 12 or ids[-1] == 1) for ids in completions)


def test_a_completion_is_a_function_of_step_and_place(tokenizer, tmp_path):
    trainer, again = (build_trainer(build_model(tokenizer), tokenizer, tmp_path) for _ in range(2))
    first, second = generated(trainer), generated(trainer)
    assert first == generated(again) and first != second
    # Two other prompts in the batch
    mixed = generated(
        build_trainer(build_model(tokenizer), tokenizer, tmp_path), [*PROMPTS[:2], [20] * 9, [21], *PROMPTS[4:]]
    )
    assert mixed[:2] == first[:2] and mixed[4:] == first[4:] and mixed[2:4] != first[2:4]
    other_seed = build_trainer(build_model(tokenizer), tokenizer, tmp_path, seed=7)
    assert generated(other_seed) != first
    again.state.global_step = 3
    assert generated(again) not in (first, second)
    again.state.global_step = 0
    again.model.eval()
    assert generated(again) not in (first, second)


def test_dropout_does_not_reach_generation(tokenizer, tmp_path):
    plain, dropping = (
        build_trainer(build_model(tokenizer, attention_dropout=p), tokenizer, tmp_path) for p in (0.0, 0.9)
    )
    dropping.model.train()
    assert generated(plain) == generated(dropping)


def test_a_run_resumes_bit_for_bit(tokenizer, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "steps_per_generation": 2}
    settings |= {"gradient_accumulation_steps": 1, "num_iterations": 1, "seed": 5}
    whole = build_trainer(build_model(tokenizer), tokenizer, tmp_path / "a", **settings)
    whole.train()
    resumed = build_trainer(build_model(tokenizer), tokenizer, tmp_path / "a", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert torch.equal(parameters_of(whole.model), parameters_of(resumed.model))
    other = build_trainer(build_model(tokenizer), tokenizer, tmp_path / "b", **{**settings, "seed": 6})
    other.train()
    assert not torch.equal(parameters_of(whole.model), parameters_of(other.model))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"generation_kwargs": {"num_beams": 2, "do_sample": False}}, "beam_search"),
        ({"generation_kwargs": {"max_time": 100.0}}, "max_time=100.0"),
    ],
)
def test_what_the_loop_does_not_do_is_left_to_generate(tokenizer, tmp_path, caplog, settings, reason):
    found = []
    for compact in (True, False):
        trainer = build_trainer(build_model(tokenizer), tokenizer, tmp_path, compact_generation=compact, **settings)
        torch.manual_seed(0)
        caplog.clear()
        found.append([generated(trainer), generated(trainer)])
        warnings = [record.message for record in caplog.records if "compact_generation" in record.message]
        assert len(warnings) == compact and all(reason in warning for warning in warnings)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_beams": 2}, "beam_sample"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"encoder_repetition_penalty": 2.0}, "encoder_repetition_penalty=2.0"),
    ],
)
def test_settings_of_the_models_own_configuration_count(tokenizer, tmp_path, caplog, settings, reason):
    """`generate` takes what TRL leaves open from there."""
    found = []
    for compact in (True, False):
        model = build_model(tokenizer)
        model.generation_config.update(**settings)
        trainer = build_trainer(model, tokenizer, tmp_path, compact_generation=compact)
        torch.manual_seed(0)
        caplog.clear()
        found.append(generated(trainer))
        assert (reason in caplog.text) == compact
    assert found[0] == found[1]


def test_end_tokens_of_the_settings_end_a_completion(tokenizer, tmp_path):
    """A completion that ends in one of them is not truncated, as one that ends in the model's own is not."""
    ends = [tokenizer.eos_token_id, *range(8, 16)]
    trainer = build_trainer(
        build_model(tokenizer),
        tokenizer,
        tmp_path,
        generation_kwargs={"eos_token_id": ends},
        max_steps=1,
        max_completion_length=5,
    )
    seen = []
    trainer.reward_funcs[0] = lambda completion_ids, **kwargs: seen.extend(completion_ids) or reward(completion_ids)
    trainer.train()
    ended = [ids[-1] in ends for ids in seen]
    assert any(ended) and not all(ended)
    assert not any(token in ends for ids in seen for token in ids[:-1])
    (logs, *_) = trainer.state.log_history
    assert logs["completions/clipped_ratio"] == pytest.approx(1 - sum(ended) / len(ended))


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_virtual_tokens_are_left_to_generate(tokenizer, tmp_path, caplog):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = build_trainer(get_peft_model(build_model(tokenizer), config), tokenizer, tmp_path)
    assert all(generated(trainer))
    assert "virtual tokens" in caplog.text


def test_a_loop_of_the_models_own_is_left_alone(tokenizer, tmp_path, caplog):
    model = build_model(tokenizer)
    trainer = build_trainer(model, tokenizer, tmp_path)

    def own(input_ids, **kwargs):
        return torch.cat([input_ids, torch.full_like(input_ids[:, :1], 1)], dim=1)

    model.generate = own
    assert generated(trainer) == [[1]] * 6
    assert model.generate is own and "a loop of its own" in caplog.text


def test_stop_strings_end_a_completion(tokenizer, tmp_path):
    """TRL gives `generate` no tokenizer, which it needs for them, and would take the padding after them for tokens."""
    free = generated(build_trainer(build_model(tokenizer), tokenizer, tmp_path))
    letter = tokenizer.decode(free[0][1])
    stopped = generated(
        build_trainer(build_model(tokenizer), tokenizer, tmp_path, generation_kwargs={"stop_strings": [letter]})
    )
    ends = [next((n for n, token in enumerate(ids, 1) if token == free[0][1]), len(ids)) for ids in free]
    assert stopped == [ids[:end] for ids, end in zip(free, ends, strict=True)] and len(stopped[0]) <= 2


def test_memory_that_has_run_out_is_remembered(tokenizer, tmp_path, caplog):
    trainer = build_trainer(build_model(tokenizer), tokenizer, tmp_path)
    expected = [generated(trainer), generated(trainer)]
    trainer = build_trainer(build_model(tokenizer), tokenizer, tmp_path)

    def limited(module, args, kwargs):
        if len(kwargs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")

    trainer.model.register_forward_pre_hook(limited, with_kwargs=True)
    assert [generated(trainer), generated(trainer)] == expected
    assert caplog.text.count("Out of memory while") == 1


@pytest.mark.parametrize("top_k", [0, 1])
def test_the_settings_of_the_run_reach_the_loop(tokenizer, tmp_path, top_k):
    trainer = build_trainer(build_model(tokenizer), tokenizer, tmp_path, top_k=top_k, min_p=0.0 if top_k else None)
    greedy = trainer.model.generate(
        input_ids=torch.tensor([PROMPTS[2]]),
        attention_mask=torch.ones(1, 5, dtype=torch.long),
        generation_config=GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0),
    )[0, 5:].tolist()
    assert (generated(trainer)[2:4] == [greedy] * 2) == (top_k == 1)
