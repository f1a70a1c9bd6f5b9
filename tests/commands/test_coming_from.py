"""
`trl-fork recipes --from`: each tool's file becomes a recipe that the parser of `trl-fork train` takes.

The fixtures in `tests/files/coming_from` are ours, with the key names of the tools.
"""

import re
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from docs import build_keys
from trl_fork.commands import recipes
from trl_fork.commands import train as script
from trl_fork.commands.coming_from import trl_keys, verl_keys
from trl_fork.commands.coming_from.fates import OPEN
from trl_fork.commands.coming_from.formats import convert, read
from trl_fork.commands.coming_from.hydra import flatten
from trl_fork.commands.coming_from.shell import read_overrides
from trl_fork.commands.coming_from.verl import convert_verl


FILES = Path(__file__).parents[1] / "files" / "coming_from"
RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
PARSER = script.make_parser()
OPTIONS = PARSER.options_of_a_file()
DEFAULTS = {name: action.default for name, action in OPTIONS.items()}
KINDS = {"verl_top20.sh": "verl", "verl.yaml": "verl", "open_r1.yaml": "open_r1", "trl.yaml": "trl"}
PROCESSES = {"verl_top20.sh": 8, "verl.yaml": 2, "open_r1.yaml": 7, "trl.yaml": 1}
# The least that verl needs to train by GRPO.
SMALL = {
    "algorithm.adv_estimator": "grpo",
    "data.train_batch_size": 12,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 6,
    "actor_rollout_ref.rollout.n": 4,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 3,
    "trainer.n_gpus_per_node": 2,
}


def parse(path, processes, monkeypatch):
    """With the real parser, as a process of `trl-fork train` does."""
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda args: processes))
    return script.make_parser().parse_args_and_config(["--config", str(path), "--use_cpu", "true"])


def verl(**changes):
    return convert_verl({**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}})


def fate_of(conversion, ending):
    (fate,) = [fate for fate in conversion.fates if fate.key.endswith(ending)]
    return fate


@pytest.mark.parametrize("name", KINDS)
def test_recipe_is_one_of_trl_fork_train(name, tmp_path, monkeypatch, capsys):
    output = tmp_path / "recipe.yaml"
    monkeypatch.setenv("WANDB_PROJECT", "before")  # the recipe sets it; undone after the test
    recipes.main(["--from", str(FILES / name), "--output", str(output)])
    printed = capsys.readouterr().out
    arguments, args, model_config = parse(output, PROCESSES[name], monkeypatch)
    assert model_config.model_name_or_path and arguments.dataset_name and args.output_dir
    for key in read(str(FILES / name))[0]:
        assert f"│ {key} " in printed
    assert f"--num_processes {PROCESSES[name]}" in printed or PROCESSES[name] == 1
    assert str(output) in printed.splitlines()[-1]


@pytest.mark.parametrize("name", KINDS)
def test_kind_is_recognised_and_no_key_is_lost(name):
    values, kind = read(str(FILES / name))
    assert kind == KINDS[name]
    conversion = convert(str(FILES / name), [*OPTIONS], DEFAULTS, kind=None, processes=None)
    given = [fate.key for fate in conversion.fates if fate.given]
    assert sorted(given) == sorted(values)
    assert {*conversion.settings} - {"env"} <= {*OPTIONS}


def test_verls_script_gives_the_numbers_of_the_papers_recipe(tmp_path, monkeypatch):
    recipes.main(["--from", str(FILES / "verl_top20.sh"), "--output", str(tmp_path / "made.yaml")])
    made = parse(tmp_path / "made.yaml", 8, monkeypatch)
    ours = parse(RECIPES / "qwen3_8b_forking.yaml", 8, monkeypatch)
    written = yaml.safe_load((RECIPES / "qwen3_8b_forking.yaml").read_text())
    chosen_here = {"prompt_template", "save_total_limit", "disable_dropout", "logging_steps"}
    compared = 0
    for name in {*written, *yaml.safe_load((tmp_path / "made.yaml").read_text())} - chosen_here:
        if name in ("max_tokens_per_forward", "run_name"):  # the script's own
            continue
        values = [next(getattr(part, name) for part in parts if hasattr(part, name)) for parts in (made, ours)]
        assert values[0] == values[1], name
        compared += 1
    assert compared > 40
    assert made[1].steps_per_generation == 16 * 64


def test_shell_is_read_and_not_run(tmp_path):
    text = f"""
    A=3; touch {tmp_path / "run"}
    N=$((2 * 3 + 4))          # a comment
    M=${{M:-$((N / 5))}}
    NAME=${{NAME:-"${{ROOT:-/data}}/x y"}}
    LIST=( a.one=${{N}} 'a.two=$N' )
    $(touch {tmp_path / "run"})
    python -m tool.main_ppo --flag b.three="${{NAME}}" \\
        +b.four='["p", "q"]' \\
        # a.commented=1
        "${{LIST[@]}}" ++c=5 d.unknown=$ELSEWHERE/y e.sum=$(((N + M) * 2)) f.run="$(touch {tmp_path / "run"})"
    """
    found = read_overrides(text.replace("        # a.commented=1\n", ""))
    assert found == {
        "b.three": "/data/x y",
        "b.four": '["p", "q"]',
        "a.one": "10",
        "a.two": "$N",
        "c": "5",
        "d.unknown": "${ELSEWHERE}/y",
        "e.sum": "24",
        "f.run": f"$(touch {tmp_path / 'run'})",
    }
    assert not (tmp_path / "run").exists()


def test_references_of_a_nested_file():
    nested = {"a": {"b": 3, "c": "${a.b}", "d": "${.c}", "e": "${oc.select:x.y,7}", "f": "1e-3"}, "defaults": [1]}
    assert flatten(nested) == {"a.b": 3, "a.c": 3, "a.d": 3, "a.e": 7, "a.f": 0.001}


@pytest.mark.parametrize(
    ("prompts", "mini", "n", "epochs", "processes", "micro", "expected"),
    [
        # rows of a pass, accumulation, generation batch, updates: counted by hand
        (512, 32, 16, 1, 8, 1, (1, 64, 8192, 16)),
        (48, 12, 6, 2, 2, 5, (4, 9, 288, 8)),
        (1024, 256, 5, 1, 8, 32, (32, 5, 5120, 4)),
        (16, 16, 5, 3, 2, 40, (40, 1, 80, 3)),
    ],
)
def test_batches(prompts, mini, n, epochs, processes, micro, expected):
    conversion = convert_verl(
        {
            **SMALL,
            "data.train_batch_size": prompts,
            "actor_rollout_ref.actor.ppo_mini_batch_size": mini,
            "actor_rollout_ref.rollout.n": n,
            "actor_rollout_ref.actor.ppo_epochs": epochs,
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": micro,
            "trainer.total_training_steps": 7,
            "trainer.save_freq": 3,
            "actor_rollout_ref.actor.optim.lr_warmup_steps": 2,
        },
        processes,
    )
    settings = conversion.settings
    rows, accumulation, generated, updates = expected
    assert settings["per_device_train_batch_size"] == rows
    assert settings["gradient_accumulation_steps"] == accumulation
    assert settings["generation_batch_size"] == generated
    assert settings["num_iterations"] == epochs
    assert (settings["max_steps"], settings["save_steps"]) == (7 * updates, 3 * updates)
    assert (settings["warmup_steps"], settings["lr_scheduler_type"]) == (2 * updates, "constant_with_warmup")
    assert rows * accumulation * processes == mini * n


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.train_batch_size": 13}, "13 is no multiple of ppo_mini_batch_size=6"),
        ({"trainer.n_gpus_per_node": 5}, "6 x 4 = 24 completions, which 5 processes cannot share.*4 or 6"),
        ({"actor_rollout_ref.rollout.n": 1}, "a group of one completion has no advantage"),
        ({"data.train_batch_size": 0}, "fully asynchronous"),
        (
            {"actor_rollout_ref.actor.ppo_mini_batch_size": "${X}"},
            "ppo_mini_batch_size is .*, which is no number",
        ),
        ({"trainer.nnodes": "${NODES}"}, "trainer.nnodes is .*--num_processes"),
        ({"reward_model.overlong_buffer.enable": True}, "reward_model.overlong_buffer.enable is true.*no len"),
    ],
)
def test_batches_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        convert_verl({**SMALL, **changes})


ACTOR = "actor_rollout_ref__actor__"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({f"{ACTOR}loss_agg_mode": "seq-mean-token-mean"}, {"loss_type": "grpo"}),
        ({f"{ACTOR}loss_agg_mode": "seq-mean-token-sum"}, {"loss_type": "dr_grpo"}),
        ({f"{ACTOR}policy_loss__loss_mode": "gspo"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
        (
            {f"{ACTOR}policy_loss__loss_mode": "sapo", f"{ACTOR}tau_neg": 1.2},
            {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.2},
        ),
        ({f"{ACTOR}policy_loss__loss_mode": "cispo", f"{ACTOR}clip_ratio_high": 4.0}, {"epsilon_high": 5.0}),
        ({f"{ACTOR}clip_ratio_low": 0.1, f"{ACTOR}clip_ratio_high": 0.3}, {"epsilon": 0.1, "epsilon_high": 0.3}),
        ({}, {"delta": 3.0, "beta": 0.0, "weight_decay": 0.01, "epsilon_high": 0.2, "top_entropy_quantile": 1.0}),
        ({f"{ACTOR}kl_loss_coef": 0.3}, {"beta": 0.0}),
        ({f"{ACTOR}use_kl_loss": True, f"{ACTOR}kl_loss_coef": 0.3}, {"beta": 0.3}),
        (
            {f"{ACTOR}entropy_top_ratio": 0.25, f"{ACTOR}loss_agg_mode": "seq-mean-token-mean"},
            {"top_entropy_quantile": 0.25, "loss_denominator": "all"},
        ),
        ({"algorithm__norm_adv_by_std_in_grpo": False}, {"scale_rewards": "none"}),
        (
            {
                "reward_model__reward_kwargs__overlong_buffer_cfg__enable": True,
                "reward_model__reward_kwargs__overlong_buffer_cfg__len": 64,
                "reward_model__reward_kwargs__overlong_buffer_cfg__penalty_factor": 0.5,
                "reward_model__reward_kwargs__max_resp_len": 400,
            },
            {
                "reward_funcs": ["accuracy_reward", "soft_overlong_punishment"],
                "reward_weights": [1.0, 0.5],
                "soft_overlong_punish_cache": 64,
                "soft_overlong_max_completion_len": 400,
                "max_completion_length": 512,
            },
        ),
        (
            {
                "algorithm__rollout_correction__rollout_is": "token",
                "algorithm__rollout_correction__rollout_is_threshold": 2.5,
            },
            {
                "vllm_importance_sampling_correction": True,
                "vllm_importance_sampling_mode": "token_truncate",
                "vllm_importance_sampling_clip_max": 2.5,
            },
        ),
        (
            {
                "algorithm__rollout_correction__rollout_is": "sequence",
                "algorithm__rollout_correction__rollout_is_threshold": "0.5_5.0",
            },
            {
                "vllm_importance_sampling_mode": "sequence_mask",
                "vllm_importance_sampling_clip_min": 0.5,
                "vllm_importance_sampling_clip_max": 5.0,
            },
        ),
        (
            {f"{ACTOR}use_dynamic_bsz": True, f"{ACTOR}ppo_max_token_len_per_gpu": 9000},
            {"max_tokens_per_forward": 9000, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 12},
        ),
        ({"actor_rollout_ref__rollout__name": "hf"}, {"use_vllm": False}),
        ({"actor_rollout_ref__rollout__top_k": -1}, {"top_k": 0}),
        ({f"{ACTOR}optim__lr_warmup_steps_ratio": 0.05}, {"warmup_steps": 0.05}),
        ({"trainer__save_freq": -1}, {"save_strategy": "no"}),
        ({"data__train_files": "/d/gsm8k/train.parquet"}, {"dataset_name": "gsm8k"}),
        (
            {"data__train_files": "/d/own.parquet"},
            {"dataset_name": "/d/own.parquet", "solution_column": "reward_model.ground_truth"},
        ),
        (
            {"actor_rollout_ref__model__lora_rank": 24, "actor_rollout_ref__model__lora_alpha": 40},
            {"use_peft": True, "lora_r": 24, "lora_alpha": 40, "lora_target_modules": ["all-linear"]},
        ),
    ],
)
def test_meaning_of_verls_keys(changes, expected):
    settings = verl(**changes).settings
    assert {name: settings.get(name) for name in expected} == expected


def test_launch_follows_the_sharding():
    assert verl().launch == {"accelerate_config": "zero3", "num_processes": 2}
    assert verl(**{f"{ACTOR}strategy": "fsdp2"}).launch["accelerate_config"] == "fsdp2"
    offloaded = verl(**{f"{ACTOR}fsdp_config__optimizer_offload": True, "trainer__nnodes": 3})
    assert offloaded.launch == {"accelerate_config": "zero3_offload", "num_processes": 6, "num_machines": 3}


@pytest.mark.parametrize(
    ("key", "value", "verdict", "words"),
    [
        ("actor_rollout_ref.actor.gradient_clip", 0.9, "not known", "actor_rollout_ref.actor.grad_clip"),
        ("actor_rollout_ref.actor.clip_ratio", 0.4, "decide", "epsilon and epsilon_high"),
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size", 4, "no counterpart", "does not split a completion"),
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size", 1, "not needed", ""),
        ("algorithm.use_kl_in_reward", True, "no counterpart", "KL term in the loss"),
        ("algorithm.adv_estimator", "gae", "no counterpart", "another method"),
        ("actor_rollout_ref.model.override_config.rope_theta", 3, "decide", "save the model with it"),
        ("critic.optim.lr", 3, "not needed", "no critic"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "geo_mean", "no counterpart", "another loss"),
        ("actor_rollout_ref.model.path", "~/models/m", "decide", "the whole path"),
    ],
)
def test_what_becomes_of_a_key(key, value, verdict, words):
    fate = fate_of(convert_verl({**SMALL, key: value}), key)
    assert fate.verdict == verdict and words in fate.in_words


def made_of(text, tmp_path, kind=None, processes=None):
    (tmp_path / "file.yaml").write_text(text)
    return convert(str(tmp_path / "file.yaml"), [*OPTIONS], DEFAULTS, kind=kind, processes=processes)


def test_trls_file_keeps_trls_objective(tmp_path):
    settings = made_of("model_name_or_path: m\nreward_funcs: [accuracy_reward]", tmp_path).settings
    assert (settings["top_entropy_quantile"], settings["epsilon_high"]) == (1.0, None)
    settings = made_of("model_name_or_path: m\ntop_entropy_quantile: 0.3\nepsilon_high: 0.25", tmp_path).settings
    assert (settings["entropy_threshold_scope"], settings["loss_denominator"]) == ("micro_batch", "all")
    assert settings["epsilon_high"] == 0.25
    settings = made_of("model_name_or_path: m\ntoken_entropy_percentile_threshold: 0.7", tmp_path).settings
    assert settings["top_entropy_quantile"] == 0.3


def test_open_r1s_rewards_and_defaults(tmp_path):
    conversion = made_of("reward_funcs: [tag_count, soft_overlong_punishment, accuracy]\nuse_vllm: true", tmp_path)
    assert conversion.tool == "Open-R1"
    settings = conversion.settings
    assert settings["reward_funcs"] == ["my_rewards.tag_count", "soft_overlong_punishment", "accuracy_reward"]
    assert (settings["soft_overlong_max_completion_len"], settings["soft_overlong_punish_cache"]) == (16384, 4096)
    assert (settings["beta"], settings["loss_type"], settings["max_completion_length"]) == (0.04, "bnpo", 256)
    assert settings["vllm_importance_sampling_correction"] is False
    settings = made_of("system_prompt: Think.\nbeta: 0.1", tmp_path).settings
    assert settings["instruction"] == "Think.\n\n{question}" and settings["beta"] == 0.1
    assert settings["reward_funcs"] == ["accuracy_reward", "my_rewards.format", "my_rewards.tag_count"]


def test_groups_need_the_right_number_of_processes(tmp_path):
    text = "model_name_or_path: m\nnum_generations: 14\nper_device_train_batch_size: 16\n"
    assert made_of(text, tmp_path).launch == {"num_processes": 7}
    assert made_of(text, tmp_path, processes=14).launch == {"num_processes": 14}
    with pytest.raises(ValueError, match=r"8 processes generate 128 completions.*num_generations=14.*multiple of 7"):
        made_of(text, tmp_path, processes=8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1", "not recognised"),
        ("- 1", "no keys with values"),
        ("a: [", "is no YAML"),
        ("model_name_or_path: m\nlearning_rate: fast", "learning_rate must be a number"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused_in_one_line(text, words, tmp_path):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        recipes.main(["--from", str(tmp_path / "file.yaml")])
    assert words in str(ended.value) and str(ended.value).startswith("trl-fork recipes: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "a.yaml", "name"], "neither NAME nor --credit"),
        (["--num_processes", "2"], "belong to --from"),
        (["--from", "a.yaml", "--num_processes", "0"], "at least 1"),
        (["--from", "a.yaml", "--from_format", "slime"], "--from_format must be one of"),
    ],
)
def test_options_that_do_not_go_together(words, message, capsys):
    with pytest.raises(SystemExit):
        recipes.main(words)
    assert message in capsys.readouterr().err


def test_recipe_on_the_standard_output_is_yaml_alone(capsys):
    recipes.main(["--from", str(FILES / "trl.yaml")])
    printed = capsys.readouterr()
    recipe = yaml.safe_load(printed.out)
    assert recipe["top_entropy_quantile"] == 0.25 and recipe["learning_rate"] == 1e-5
    assert "what becomes of it" in printed.err


def test_tables_name_options_that_exist():
    for keys in (verl_keys.KEYS, trl_keys.KEYS):
        for key, line in keys.items():
            for option in filter(None, line.option.split(", ")):
                assert option in OPTIONS or option == "env", key
            assert not line.convert or line.option, key
    assert not {*verl_keys.KEYS} & {*verl_keys.BRANCHES} - {"data.apply_chat_template_kwargs"}
    assert {*trl_keys.KEYS} & {*OPTIONS} == {"reward_funcs"}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_open_is_in_the_head_of_the_recipe(name, capsys):
    recipes.main(["--from", str(FILES / name)])
    recipe = capsys.readouterr().out
    head = re.sub(r"\n#\s*", " ", "".join(line for line in recipe.splitlines(keepends=True) if line[:1] == "#"))
    conversion = convert(str(FILES / name), [*OPTIONS], DEFAULTS, kind=None, processes=None)
    for fate in conversion.fates:
        assert (f"- {fate.key}: " in head) == (fate.verdict in OPEN)


@pytest.mark.parametrize("name", build_keys.PAGES)
def test_tables_of_the_pages_are_the_converters(name):
    page = Path(build_keys.__file__).with_name(name)
    assert page.read_text() == build_keys.render(page), "run `python -m docs.build_keys`"
    assert page.read_text().count("\n| `") >= len(build_keys.PAGES[name])
