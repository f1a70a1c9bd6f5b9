"""
The shipped recipes: parsed as `examples/train.py` does, on the number of processes each is for, and compared with the
paper. `use_cpu` stands in for their GPUs: without one, transformers takes `bf16: true` for the CPU only.
"""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from tests.conftest import build_looped_model, build_model
from tests.trainer.test_features import byte_tokenizer
from trl_fork._shipped import shipped_files
from trl_fork.commands import train as script
from trl_fork.data.math_datasets import PAPER_PROMPT, TRAINING_SETS


ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "configs" / "recipes"
RECIPES = sorted(path.stem for path in DIRECTORY.glob("*.yaml"))
LARGE = {"qwen3_8b_forking": 8, "qwen3_14b_forking": 16, "qwen3_32b_forking": 64}
PROCESSES = {**LARGE, "qwen2.5_7b_flowrl": 8}
MADE_HERE = {"quickstart", "balance_tiny", "looped_tiny"}  # whose model and data a command makes
BALANCE = {"qwen2.5_7b_flowrl", "balance_tiny"}
TEAM = "gsm8k_team"

# arXiv 2506.01939, sections 2 and 5.2. Values of the authors' script where the paper states none.
PAPER = {
    "top_entropy_quantile": 0.2,
    "token_selection": "high_entropy",
    "loss_denominator": "selected",
    "loss_type": "dapo",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "delta": 10.0,
    "beta": 0.0,
    "entropy_coef": 0.0,
    "num_iterations": 1,
    "dynamic_sampling": True,
    "scale_rewards": "group",
    "importance_sampling_level": "token",
    "multi_objective_aggregation": "sum_then_normalize",
    "mask_truncated_completions": False,
    "reward_weights": [1.0, 1.0],
    "num_generations": 16,
    "generation_batch_size": 512 * 16,
    "max_completion_length": 20480,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "vllm_importance_sampling_correction": False,
    "off_policy_mask_threshold": None,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "bf16": True,
    "dynamic_sampling_max_rounds": 10,
    "dynamic_sampling_reward": "accuracy_reward",
}
# arXiv 2509.15207: flowrl_7B_math.sh of the authors' code, with the defaults of verl. 10 is verl's own recipe's.
FLOWRL = {
    "objective": "trajectory_balance",
    "beta": 0.0667,
    "length_normalized": True,
    "balance_reward": "advantage",
    "max_importance_ratio": 10.0,
    "scale_rewards": "group",
    "num_iterations": 1,
    "entropy_coef": 0.0,
    "mask_truncated_completions": False,
    "dynamic_sampling": False,
    "num_generations": 8,
    "generation_batch_size": 512 * 8,
    "max_completion_length": 8192,
    "vllm_max_model_length": 2048 + 8192,
    "vllm_tensor_parallel_size": 1,
    "vllm_gpu_memory_utilization": 0.6,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant_with_warmup",
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "bf16": True,
}
# run_rltt.slurm of the authors' code, and Eq. 6 of its README.
RLTT_RECIPE = "ouro_1.4b_thinking_lora"
RLTT = {
    "loop_credit": "exit",
    "loop_credit_power": 1.0,
    "top_entropy_quantile": 1.0,
    "loss_type": "grpo",
    "loss_denominator": "all",
    "num_iterations": 1,
    "num_generations": 8,
    "generation_batch_size": 32 * 8,
    "max_completion_length": 2048,
    "temperature": 1.0,
    "max_grad_norm": 0.1,
    "seed": 42,
    "logging_steps": 1,
    "save_steps": 10,
}
# Those of these settings that the recipes for small GPUs keep.
METHOD = [
    *("top_entropy_quantile", "token_selection", "loss_denominator", "loss_type", "epsilon", "epsilon_high", "delta"),
    *("beta", "entropy_coef", "num_iterations", "scale_rewards", "mask_truncated_completions", "temperature", "top_p"),
    *("top_k", "vllm_importance_sampling_correction", "lr_scheduler_type", "warmup_steps", "adam_beta2", "bf16"),
]


def parse(name, monkeypatch, *overrides):
    """A recipe with the parser of the script, as each of its processes does."""
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda args: PROCESSES.get(name, 1)))
    arguments = ["--config", str(DIRECTORY / f"{name}.yaml"), "--use_cpu", "true", *overrides]
    return script.make_parser().parse_args_and_config(arguments)


def test_all_recipes_are_there():
    small = {RLTT_RECIPE, TEAM, "qwen3_1.7b_lora_24gb", "qwen3_0.6b_lora_8gb", "gsm8k_single_gpu"}
    assert set(RECIPES) == {*PROCESSES, *small, *MADE_HERE}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_complete(name, monkeypatch):
    arguments, args, model_config = parse(name, monkeypatch)
    assert model_config.model_name_or_path and args.output_dir
    assert arguments.dataset_name in TRAINING_SETS or name in MADE_HERE
    rewards = script.load_rewards(arguments, args)
    assert rewards[0].__name__ == "accuracy_reward"
    assert len(args.reward_weights or arguments.reward_funcs) == len(arguments.reward_funcs)
    if name not in MADE_HERE:
        assert (arguments.prompt_template == PAPER_PROMPT) == (name not in (RLTT_RECIPE, TEAM))
        assert args.max_steps > 0 and args.report_to in ("none", [], ["none"])


@pytest.mark.parametrize("name", LARGE)
def test_large_recipes_are_the_papers(name, monkeypatch):
    arguments, args, model_config = parse(name, monkeypatch)
    assert {key: getattr(args, key) for key in PAPER} == PAPER
    assert arguments.dataset_name == "dapo-math-17k"
    assert model_config.model_name_or_path == f"Qwen/Qwen3-{name.split('_')[1].upper()}-Base"
    assert not model_config.use_peft

    # 16 optimizer steps of 32 prompts for each generation batch of 512
    rows_of_a_step = args.per_device_train_batch_size * PROCESSES[name] * args.gradient_accumulation_steps
    assert rows_of_a_step == 32 * 16
    assert args.steps_per_generation == 16 * args.gradient_accumulation_steps
    assert args.generation_batch_size // args.num_generations == 512

    _, overlong = script.load_rewards(arguments, args)
    assert overlong(completion_ids=[[0] * n for n in (16384, 18432, 20480)]) == [0.0, -0.5, -1.0]

    # vLLM holds a prompt of 2,048 tokens and the longest completion, on groups of GPUs of one machine
    assert args.use_vllm and args.vllm_max_model_length == 2048 + 20480
    assert 8 % args.vllm_tensor_parallel_size == 0


def test_large_recipes_differ_in_what_the_model_size_asks_for():
    first, *others = (yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text()) for name in LARGE)
    for other in others:
        assert set(other) == set(first)
        assert {key for key in first if first[key] != other[key]} <= {
            *("model_name_or_path", "output_dir", "gradient_accumulation_steps"),
            *("vllm_tensor_parallel_size", "vllm_gpu_memory_utilization"),
        }


@pytest.mark.parametrize("name", LARGE)
def test_full_token_twin(name, monkeypatch):
    _, args, _ = parse(name, monkeypatch, "--top_entropy_quantile", "1.0")
    assert args.credit is None
    assert {key: getattr(args, key) for key in PAPER} == {**PAPER, "top_entropy_quantile": 1.0}


def test_flowrl_is_the_authors_but_for_the_partition(monkeypatch):
    _, args, model_config = parse("qwen2.5_7b_flowrl", monkeypatch)
    assert {key: getattr(args, key) for key in FLOWRL} == FLOWRL
    assert model_config.model_name_or_path == "Qwen/Qwen2.5-7B" and not model_config.use_peft
    assert args.partition == "group" and args.credit is None

    # 16 optimizer steps of 32 prompts for each generation batch of 512, one epoch of whole batches
    rows_of_a_step = args.per_device_train_batch_size * 8 * args.gradient_accumulation_steps
    assert rows_of_a_step == 32 * 8 and args.steps_per_generation == 16 * args.gradient_accumulation_steps
    assert args.warmup_steps == 10 * 16 and args.max_steps == 17_398 // 512 * 16


@pytest.mark.parametrize("name", sorted(BALANCE))
def test_balance_on_forking_tokens(name, monkeypatch):
    """The variant in the header: the gradient of some tokens, the residual of all."""
    _, args, _ = parse(name, monkeypatch, "--top_entropy_quantile", "0.2")
    assert args.credit is not None and args.loss_denominator == "all"


def test_looped_recipe_is_rltts(monkeypatch):
    arguments, args, model_config = parse(RLTT_RECIPE, monkeypatch)
    assert {key: getattr(args, key) for key in RLTT} == RLTT
    assert model_config.model_name_or_path == "ByteDance/Ouro-1.4B-Thinking"
    assert (model_config.lora_r, model_config.lora_alpha) == (32, 64)
    assert args.credit is None and args.steps_per_generation == args.gradient_accumulation_steps
    assert args.warmup_steps == 0.1 * args.max_steps
    assert arguments.instruction.startswith("{question}\n")
    assert not args.trust_remote_code


@pytest.mark.parametrize("name", sorted({*RECIPES} - {*PROCESSES, *MADE_HERE, RLTT_RECIPE}))
def test_small_recipes_keep_the_method(name, monkeypatch):
    _, args, model_config = parse(name, monkeypatch)
    assert {key: getattr(args, key) for key in METHOD} == {key: PAPER[key] for key in METHOD}
    assert model_config.lora_dropout == 0.0 or not model_config.use_peft
    # TRL casts what is trained to bf16 for it.
    assert not args.use_transformers_continuous_batching


def test_qlora_variant(monkeypatch):
    header = (DIRECTORY / "qwen3_0.6b_lora_8gb.yaml").read_text()
    (command,) = re.findall(r"#     \.\.\. (--model_name_or_path.*?)\n#\n", header, flags=re.DOTALL)
    _, _, model_config = parse("qwen3_0.6b_lora_8gb", monkeypatch, *re.sub(r"\\\n#", "", command).split())
    assert model_config.load_in_4bit and model_config.use_bnb_nested_quant and model_config.use_peft


@pytest.mark.parametrize("name", RECIPES)
def test_header_names_what_exists(name):
    header = "".join(re.findall(r"^#.*\n", (DIRECTORY / f"{name}.yaml").read_text(), flags=re.MULTILINE))
    paths = re.findall(r"(?:configs|examples)/[\w./-]+\.(?:yaml|py)", header)
    assert f"configs/recipes/{name}.yaml" in paths and "examples/train.py" in paths
    assert f"--recipe {name}" in header
    for launch_file in re.findall(r"--accelerate_config (\w+)", header):
        assert launch_file in shipped_files("accelerate")
    assert all((ROOT / path).is_file() for path in paths)
    if name not in MADE_HERE:
        assert all(f"# {entry}" in header for entry in ("Hardware", "Memory", "Tokens per step", "Time", "Launch"))


@pytest.mark.parametrize(
    "name", ["gsm8k_single_gpu", "qwen3_0.6b_lora_8gb", "qwen3_8b_forking", "qwen2.5_7b_flowrl", RLTT_RECIPE, TEAM]
)
def test_recipe_runs(name, tmp_path, monkeypatch):
    """With a tiny model in place of the real one, a file in place of the Hub, no vLLM, and small numbers."""
    recipe = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text())
    tokenizer = byte_tokenizer()
    if "prompt_template" in recipe:
        tokenizer.chat_template = None  # as far as a base model is concerned
    build = build_looped_model if name == RLTT_RECIPE else build_model
    build(tokenizer, max_position_embeddings=2048, initializer_range=0.02).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    # One more reward: the accuracy of a model that cannot count has no gradient.
    (tmp_path / "letters_for_recipes.py").write_text(
        "def letters(completions, **kwargs):\n    return [float(len(set(str(text)))) for text in completions]\n"
    )
    rewards = [*recipe["reward_funcs"], "letters_for_recipes.letters"]
    overrides = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": ROOT / "tests" / "files" / "gsm8k.jsonl",
        "output_dir": tmp_path / "run",
        "bf16": "false",
        "use_vllm": "false",
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "generation_batch_size": 8,
        "max_completion_length": 8,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "dataloader_pin_memory": "false",
    }
    if "soft_overlong_punish_cache" in recipe:
        overrides |= {"soft_overlong_max_completion_len": 16, "soft_overlong_punish_cache": 16}
    words = [str(word) for key, value in overrides.items() for word in (f"--{key}", value)]
    words += ["--reward_funcs", *rewards, "--reward_weights", *["1.0"] * len(rewards)]
    monkeypatch.setitem(PROCESSES, name, 1)
    arguments = parse(name, monkeypatch, *words)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    script.run(*arguments)

    run = tmp_path / "run"
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    for entry in steps:
        assert entry["rewards/accuracy_reward/mean"] == 0.0  # not NaN: answers were parsed
        assert entry["grad_norm"] > 0
        if name in BALANCE:
            assert entry["balance/residual_abs"] > 0
        elif recipe["top_entropy_quantile"] != 1.0:
            assert entry["forking/selected_fraction"] == pytest.approx(0.2, abs=0.02)
        if "soft_overlong_punishment" in rewards:  # 16 tokens before the limit of 16: a sixteenth for each
            penalty = -entry["completions/mean_length"] / 16
            assert entry["rewards/soft_overlong_punishment_reward/mean"] == pytest.approx(penalty)
        assert ("team/checker/mean_length" in entry) == (name == TEAM)
    if not recipe.get("use_peft"):
        assert (run / "model.safetensors").exists()
        return
    adapter = json.loads((run / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (recipe["lora_r"], recipe["lora_alpha"])
    targets = recipe["lora_target_modules"]
    if targets == ["all-linear"]:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert {module.split(".")[-1] for module in adapter["target_modules"]} == set(targets)
