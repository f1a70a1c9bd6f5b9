"""A run that is continued with other settings: the warning, what its folder keeps of it, and which settings count."""

import json
import logging
from fnmatch import filter as filter_names

import pytest

from tests.commands.test_train_script import own_rewards, parse, recipe, write  # noqa: F401
from trl_fork.commands import train as script
from trl_fork.report.runs import _UNLEARNED, learned_differences, read_run


def test_a_run_that_is_continued_with_other_settings(recipe, own_rewards, tmp_path, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    recipe |= {"max_steps": 1, "learning_rate": 1e-3, "reward_funcs": [f"{own_rewards}.letters"]}

    def run(**changes) -> list[str]:
        caplog.clear()
        recipe.update(changes)
        script.run(*parse("--config", write(recipe, tmp_path)))
        return [text for text in caplog.messages if "other settings" in text]

    assert not run()
    # What is normal in a continuation, and an option left out that was at its default
    assert not run(resume_from_checkpoint=True, max_steps=2, logging_steps=1, save_steps=1, save_total_limit=3)

    rewards = [f"{own_rewards}.letters", "accuracy_reward"]
    (warning,) = run(max_steps=3, reward_funcs=rewards, learning_rate=0.02, temperature=0.7, token_credit="pepo")
    text = (
        f"reward_funcs was {rewards[:1]!r}, is {rewards!r}; learning_rate was 0.001, is 0.02; temperature was 1.0, is "
        "0.7; token_credit was None, is 'pepo' (the optimizer of the checkpoint keeps its own learning_rate)"
    )
    told = warning.partition(" than it had: ")[2]
    assert sorted(told.partition(" (the")[0].split("; ")) == sorted(text.partition(" (the")[0].split("; "))
    assert "keeps its own learning_rate). What it has learned at the end, and its report, will be of both." in told

    assert not run(max_steps=4)  # the same settings again, and the file still knows
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["learning_rate"] for entry in history if "loss" in entry] == [0.001] * 4
    assert any("rewards/accuracy_reward/mean" in entry for entry in history)
    notes = read_run(tmp_path / "run").notes
    assert len(notes) == 1 and "was continued with other settings: " in notes[0]
    assert "temperature was 1.0, is 0.7" in notes[0] and notes[0].endswith("Its curves are of both.")


def options() -> set[str]:
    return {action.dest for action in script.make_parser()._actions}


def test_settings_that_change_what_is_learned():
    learned = {
        *(
            "dataset_name",
            "prompt_column",
            "instruction",
            "deduplicate",
            "reward_funcs",
            "reward_weights",
            "team",
            "seed",
        ),
        *("objective", "token_credit", "token_selection", "top_entropy_quantile", "loss_denominator", "loss_type"),
        *(
            "entropy_threshold_scope",
            "beta",
            "epsilon",
            "epsilon_high",
            "scale_rewards",
            "dynamic_sampling",
            "loop_credit",
        ),
        *(
            "learning_rate",
            "lr_scheduler_type",
            "lr_scheduler_kwargs",
            "warmup_steps",
            "weight_decay",
            "optim",
            "bf16",
        ),
        *("max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"),
        *("steps_per_generation", "num_iterations", "temperature", "top_p", "top_k", "min_p", "max_completion_length"),
        *("use_vllm", "vllm_importance_sampling_correction", "lora_r", "lora_target_modules"),
        *(
            "compact_generation",
            "mask_truncated_completions",
            "chat_template_kwargs",
            "generation_kwargs",
            "model_name_or_path",
        ),
    }
    assert learned <= options()
    before = dict.fromkeys([*options(), "num_processes", "an option of a later version"], 1)
    found = {name for name, _ in learned_differences(before, dict.fromkeys(before, 2))}
    assert learned | {"num_processes", "an option of a later version"} <= found
    assert not found & {
        *("max_steps", "num_train_epochs", "save_steps", "save_total_limit", "logging_steps", "log_completions"),
        *("report_to", "eval_strategy", "eval_steps", "push_to_hub", "hub_strategy", "output_dir", "run_name"),
        *("resume_from_checkpoint", "fork_report_steps", "disable_tqdm", "vllm_gpu_memory_utilization"),
        *("gradient_checkpointing", "max_tokens_per_forward", "dataloader_num_workers", "ddp_timeout"),
    }


def test_no_pattern_of_the_settings_that_do_not_count_is_stale():
    assert [pattern for pattern in _UNLEARNED if not filter_names(options(), pattern)] == []


@pytest.mark.parametrize(("old", "new"), [(20, 20.0), (0.1, 0.1), ([1], [1]), (None, None), ("a", "a")])
def test_equal_values_of_two_spellings(old, new):
    assert learned_differences({"beta": old}, {"beta": new, "epsilon": 3}) == []
