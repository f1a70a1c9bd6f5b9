"""Errors name the field, the value, the rule and the remedy, before anything is loaded."""

import copy
import pickle

import pytest
from trl import GRPOConfig, TrlParser

from trl_fork import ForkingGRPOConfig
from trl_fork.trainer.reward_checks import check_rewards


def config(tmp_path, **settings):
    return ForkingGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_defaults_are_the_papers(tmp_path):
    args = config(tmp_path)
    assert (args.top_entropy_quantile, args.epsilon, args.epsilon_high) == (0.2, 0.2, 0.28)
    assert (args.token_selection, args.entropy_threshold_scope, args.loss_denominator) == (
        "high_entropy",
        "batch",
        "selected",
    )
    assert (args.beta, args.loss_type) == (0.0, "dapo")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_entropy_quantile": 20}, r"top_entropy_quantile must be in \(0, 1\], got 20: .*Pass 0.2"),
        ({"top_entropy_quantile": 0}, r"top_entropy_quantile must be in \(0, 1\], got 0: "),
        ({"top_entropy_quantile": -0.3}, "got -0.3"),
        ({"top_entropy_quantile": float("nan")}, "got nan"),
        ({"top_entropy_quantile": "0.2"}, "got '0.2'"),
        ({"token_selection": "top"}, r"token_selection must be one of \['high_entropy', .*\], got 'top'"),
        ({"entropy_threshold_scope": "global"}, "entropy_threshold_scope must be one of .* got 'global'"),
        ({"loss_denominator": "selected_tokens"}, r"loss_denominator must be one of \['selected', 'all'\]"),
        ({"token_selection": "low_entropy", "top_entropy_quantile": 1.0}, "selects no token"),
        ({"loss_type": "grpo"}, r"not defined for loss_type='grpo'.*loss_denominator='all'"),
        (
            {"loss_type": "cispo"},
            r"epsilon_high must be at least 1 with loss_type='cispo', got 0.28.*epsilon_high=5.0",
        ),
        ({"loss_type": "cispo", "epsilon_high": None}, "got 0.2:"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
            r"steps_per_generation \(3\) must be a multiple or a divisor of gradient_accumulation_steps \(2\)",
        ),
        ({"dynamic_sampling_max_rounds": 0}, "dynamic_sampling_max_rounds must be at least 1, got 0"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0.0. Its default is 1.0"),
        ({"num_generations": 1}, "num_generations must be at least 2, got 1. Its default is 8"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"beta": -0.5}, "beta must be at least 0, got -0.5"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1 for num_train_epochs, got 0"),
        ({"vllm_mode": "cluster"}, r"vllm_mode must be one of \['server', 'colocate'\], got 'cluster'"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level must be one of .* got 'word'"),
        (
            {"reuse_scoring_graph": True, "steps_per_generation": 2},
            "reuse_scoring_graph=True: num_iterations=1 and steps_per_generation=2",
        ),
    ],
    ids=str,
)
def test_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **{"num_generations": 4, "per_device_train_batch_size": 4, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"top_entropy_quantile": 1},
        {"top_entropy_quantile": 1.0, "loss_type": "grpo"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "sapo", "loss_denominator": "all"},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 32},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "top_entropy_quantile": 1.0},
    ],
    ids=str,
)
def test_accepted(settings, tmp_path):
    config(tmp_path, **{"num_generations": 2, "per_device_train_batch_size": 4, **settings})


@pytest.mark.parametrize(
    ("settings", "rewards", "message"),
    [
        (
            {"reward_weights": [1.0, 2.0]},
            [len],
            r"reward_weights must be one for each of reward_funcs, got 2 .* for 1",
        ),
        ({}, [], "reward_funcs must name at least one reward"),
        ({"dynamic_sampling": True, "dynamic_sampling_reward": "sum"}, len, r"got 'sum', there are \['len'\]"),
    ],
)
def test_rewards_are_refused_before_a_model_is_loaded(settings, rewards, message, tmp_path):
    args = config(tmp_path, num_generations=4, per_device_train_batch_size=4, **settings)
    with pytest.raises(ValueError, match=message):
        check_rewards(args, rewards, environment=False)
    check_rewards(args, rewards, environment=True)


def test_without_a_selection_every_grpo_config_is_accepted(tmp_path):
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"):
        GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, loss_type=loss_type)
        config(tmp_path, loss_type=loss_type, top_entropy_quantile=1.0, epsilon_high=None)


def test_help_and_command_line(tmp_path, capsys):
    parser = TrlParser(ForkingGRPOConfig)
    with pytest.raises(SystemExit):
        parser.parse_args_and_config(["--help"])
    assert "--entropy_threshold_scope" in capsys.readouterr().out
    command = (
        f"--output_dir {tmp_path} --use_cpu true --bf16 false --top_entropy_quantile 0.1 --token_selection random"
    )
    (args,) = parser.parse_args_and_config(command.split())
    assert (args.top_entropy_quantile, args.token_selection) == (0.1, "random")


def test_token_is_not_pickled_but_copied(tmp_path):
    """`training_args.bin` is the pickled configuration, and is pushed to the Hub."""
    args = config(tmp_path, hub_token="hf_secret")
    assert b"hf_secret" not in pickle.dumps(args) and pickle.loads(pickle.dumps(args)).hub_token is None
    assert copy.deepcopy(args).hub_token == args.hub_token == "hf_secret"
