"""
Bad configurations of `trl-fork train`, by kind. Each is one mistake in a run that would otherwise train.

`{folder}` stands for the folder of the files that `write_files` makes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bad:
    """
    One mistake.

    Args:
        kind (`str`): What kind of mistake it is.
        names (`tuple[str, ...]`): What the message must name: the option, and the nearest one where it is misspelt.
        words (`tuple[str, ...]`): Words of the command line.
        settings (`dict`): Keys of the YAML file.
        without (`tuple[str, ...]`): Keys of the run that are left out.
    """

    kind: str
    names: tuple[str, ...]
    words: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()


def run_of(folder: Path) -> dict[str, Any]:
    """A run that trains, if the folder of the model had weights."""
    return {
        "model_name_or_path": f"{folder}/model",
        "dataset_name": f"{folder}/data.jsonl",
        "output_dir": f"{folder}/run",
        "use_cpu": True,
        "bf16": False,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "report_to": "none",
    }


def write_files(folder: Path) -> None:
    """A model without weights, so that a run that gets as far as loading it is found out, and data of all kinds."""
    from datasets import Dataset, DatasetDict

    from tests.conftest import build_model
    from tests.trainer.test_features import byte_tokenizer

    tokenizer = byte_tokenizer()
    model = build_model(tokenizer, max_position_embeddings=2048)
    for name in ("model", "base"):
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder / name)
        if name == "base":
            tokenizer.chat_template = None
        tokenizer.save_pretrained(folder / name)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "nothing").mkdir(exist_ok=True)
    (folder / "other_run" / "checkpoint-2").mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(16)]
    null = [{**row, "question": None} if n == 5 else row for n, row in enumerate(rows)]
    forecasts = [{"question": f"Will it rain on day {n}?", "answer": "perhaps"} for n in range(16)]
    roles = [{**row, "transcript": "none"} for row in rows]
    for name, content in {
        "data": rows, "null": null, "forecasts": forecasts, "roles": roles,
        "one_row": rows[:0],
        "images": [{**row, "images": ["a.png"]} for row in rows],
        "no_answer": [{"question": row["question"]} for row in rows],
        "no_question": [{"text": "a"}] * 16, "two_cases": [{"Question": "a", "QUESTION": "b", "answer": "1"}] * 16,
        "nested": [{"question": {"text": "a"}, "answer": "1"}] * 16,
    }.items():  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(folder / "splits")
    (folder / "broken.jsonl").write_text('{"question": "a", "answer": \n')
    (folder / "list.yaml").write_text("- max_steps: 3\n")
    (folder / "broken.yaml").write_text("max_steps: [3\n")
    (folder / "number_key.yaml").write_text("3: max_steps\n")
    (folder / "team_without_key.yaml").write_text("roles: []\n")
    (folder / "launch.yaml").write_text("distributed_type: MULTI_GPU\n")


def credit(*names: str, **chain) -> Bad:
    return Bad("credit chain", ("token_credit", *names), settings={"token_credit": chain})


def schedule(value, *names: str, rule: str = "top_fraction", **more) -> Bad:
    settings = {"token_credit": {rule: {"fraction" if rule == "top_fraction" else "strength": value}}, **more}
    return Bad("credit schedule", ("token_credit", *names), settings=settings)


def balance(name: str, value, **more) -> Bad:
    settings = {"objective": "trajectory_balance", "beta": 0.1, "loss_denominator": "all", name: value, **more}
    return Bad("trajectory balance", (name,), settings=settings)


def looped(name: str, value, **more) -> Bad:
    return Bad("looped model", (name,), settings={"loop_credit": "uniform", name: value, **more})


def team(roles, *names: str, **more) -> Bad:
    return Bad("team", ("team", *names), settings={"team": roles, **more})


def role(name: str, given: dict, **more) -> Bad:
    """A mistake of one role, whose message names the role and its argument."""
    return Bad("team", ("solver", name), settings={"team": [given, CHECKER], **more})


SOLVER = {"name": "solver", "prompt": "Solve it: {prompt}"}
CHECKER = {"name": "checker", "prompt": "Check it: {prompt} {transcript}"}


def option(kind: str, name: str, value, *names: str, **more) -> Bad:
    return Bad(kind, names or (name,), settings={name: value, **more})


def written() -> list[Bad]:
    """The mistakes that were thought of, one after the other."""
    return [
        # --- what tokens are trained on
        *(option("range", "top_entropy_quantile", value) for value in (0, -0.2, 1.5, 20, float("nan"))),
        option("range", "token_selection", "highest"),
        option("range", "entropy_threshold_scope", "everything"),
        option("range", "loss_denominator", "tokens"),
        *(option("range", "dynamic_sampling_max_rounds", value) for value in (0, -3)),
        *(option("range", "max_tokens_per_forward", value) for value in (0, -5)),
        option("range", "scale_rewards", "sometimes"),
        option("range", "fork_report_steps", -1),
        option("range", "team_rounds", 0, team="solver_checker"),
        # --- of TRL and transformers
        *(
            option("range of TRL's options", name, value)
            for name, value in {
                "num_generations": 1,
                "per_device_train_batch_size": 0,
                "gradient_accumulation_steps": 0,
                "steps_per_generation": 0,
                "max_completion_length": 0,
                "temperature": 0.0,
                "top_p": 1.5,
                "top_k": -3,
                "min_p": 2.0,
                "epsilon": -0.1,
                "epsilon_high": -1.0,
                "delta": -1.0,
                "beta": -0.5,
                "num_iterations": 0,
                "learning_rate": -1e-6,
                "weight_decay": -0.1,
                "save_steps": -1,
                "logging_steps": 0,
                "warmup_steps": -4,
                "loss_type": "gpro",
                "lr_scheduler_type": "cosinus",
                "optim": "adamax_w",
                "repetition_penalty": 0.0,
                "importance_sampling_level": "word",
                "multi_objective_aggregation": "product",
                "max_steps": 0,
                "dataloader_num_workers": -1,
                "seed": -1,
                "adam_beta1": 1.5,
                "adam_epsilon": -1e-8,
                "save_strategy": "sometimes",
                "eval_strategy": "weekly",
            }.items()
        ),
        option("range of TRL's options", "generation_batch_size", 6),
        option("range of TRL's options", "reward_weights", [1.0, 2.0]),
        # --- combinations
        option(
            "combination",
            "token_selection",
            "low_entropy",
            "token_selection",
            "top_entropy_quantile",
            top_entropy_quantile=1.0,
        ),
        option(
            "combination", "token_credit", "random", "token_credit", "top_entropy_quantile", top_entropy_quantile=0.3
        ),
        option("combination", "token_credit", "random", "token_credit", "token_selection", token_selection="random"),
        option("combination", "loss_type", "grpo", "loss_denominator", "loss_type"),
        option("combination", "loss_type", "sapo", "loss_denominator", "loss_type"),
        option("combination", "loss_type", "cispo", "epsilon_high", "loss_type"),
        option(
            "combination",
            "steps_per_generation",
            3,
            "steps_per_generation",
            "gradient_accumulation_steps",
            gradient_accumulation_steps=2,
        ),
        option("combination", "contrast_instruction", "Be wrong."),
        option("combination", "contrast_instruction", " ", token_credit="gcpo"),
        option(
            "combination", "max_tokens_per_forward", 64, "max_tokens_per_forward", "padding_free", padding_free=False
        ),
        option(
            "combination",
            "max_tokens_per_forward",
            64,
            "max_tokens_per_forward",
            "skip_inert_compute",
            skip_inert_compute=False,
        ),
        option("combination", "dynamic_sampling", True, "scale_rewards", "dynamic_sampling", scale_rewards="batch"),
        option(
            "combination",
            "dynamic_sampling",
            True,
            "multi_objective_aggregation",
            "dynamic_sampling",
            multi_objective_aggregation="normalize_then_sum",
        ),
        option("combination", "dynamic_sampling_reward", "no_such_reward", dynamic_sampling=True),
        option("combination", "bf16", True, use_cpu=False),
        option("combination", "num_generations", 3, "num_generations"),
        option("combination", "eval_strategy", "steps", eval_steps=1),
        option(
            "combination",
            "eval_dataset_name",
            "{folder}/data.jsonl",
            eval_strategy="steps",
            dataset_test_split="train",
        ),
        option("combination", "entropy_coef", 0.1, token_credit="pepo"),
        option("combination", "importance_sampling_level", "sequence", token_credit="pepo"),
        option(
            "combination", "token_credit", "gcpo", "entropy_threshold_scope", entropy_threshold_scope="micro_batch"
        ),
        option("combination", "text_only", True, dataset_name="{folder}/images.jsonl"),
        option("combination", "remove_unused_columns", True),
        option("combination", "reuse_scoring_graph", True, steps_per_generation=2),
        option("combination", "load_in_4bit", True, "load_in_4bit", "load_in_8bit", load_in_8bit=True),
        option("combination", "load_best_model_at_end", True, eval_strategy="no"),
        # --- credit
        option("credit preset", "token_credit", "pebo", "token_credit", "pepo"),
        option("credit preset", "token_credit", "temporal_fork", "token_credit", "temporal_forking"),
        option("credit preset", "token_credit", "top_fraction"),
        option("credit preset", "token_credit", "pepo+random"),
        option("credit preset", "token_credit", "all"),
        option("credit preset", "token_credit", "no_module.rule"),
        option("credit preset", "token_credit", "benchmarks.reliability.mortal.missing"),
        Bad("credit preset", ("token_credit",), ("--token_credit", '{"top_fraction": ')),
        Bad("credit preset", ("token_credit",), ("--token_credit", '{"random": {}, "random": {}}')),
        Bad("credit preset", ("token_credit",), ("--token_credit", "[]")),
        credit("top_fracton", "top_fraction", top_fracton={"fraction": 0.2}),
        credit("fracton", "fraction", top_fraction={"fracton": 0.2}),
        credit("fraction", top_fraction={"fraction": 0}),
        credit("fraction", top_fraction={"fraction": "half"}),
        credit("score", top_fraction={"fraction": 0.2, "score": "entrpy"}),
        credit("pool", top_fraction={"fraction": 0.2, "pool": "epoch"}),
        credit("complement", top_fraction={"fraction": 0.2, "complement": "yes please"}),
        credit("pool", "entropy_threshold_scope", top_fraction={"fraction": 0.2, "pool": "micro_batch"}),
        credit("fraction", random={"fraction": 1.2}),
        credit("random", random={"strength": 0.3}),
        credit("strength", rank={"strength": -1}),
        credit("strength", entropy_advantage={"strength": "strong"}),
        credit("pattern", span={}),
        credit("pattern", span={"pattern": "(unclosed"}),
        credit("span", span={"pattern": "a", "patern": "b"}),
        credit("interval", interval={"low": 3.0, "high": 1.0}),
        credit("spurious", spurious={"entropie": 1}),
        credit("rollouts", rollouts={"fraction": 2.0}),
        credit("proportional", proportional={"score": "length"}),
        credit("pepo", pepo={}),
        credit("top_fraction", top_fraction=[0.2]),
        credit("benchmarks.reliability.nothing", **{"benchmarks.reliability.nothing.Rule": {}}),
        # --- schedules
        schedule({"linera": [0.1, 1.0, 0.8]}, "linear"),
        schedule({"linear": [0.1, 1.0]}, "fraction"),
        schedule({"linear": [0.1, 1.0, 0.0]}, "horizon"),
        schedule({"linear": [0.1, 1.0, 1.5]}, "horizon"),
        schedule({"sigmoid": [0.1, 3.0, 0.5]}, "fraction"),
        schedule({"power": ["a", 1.0, 0.5]}, "fraction"),
        schedule({"linear": [0.1, 1.0, 0.5], "power": [0.1, 1.0, 0.5]}, "fraction"),
        schedule({"linear": [-2, 1.0, 0.5]}, "strength", rule="entropy_advantage"),
        schedule({"linear": [0.1, 1.0, 0.8]}, "max_steps", max_steps=-1),
        schedule("growing", "fraction"),
        # --- data
        Bad("data", ("dataset_name",), without=("dataset_name",)),
        option("data", "dataset_name", "{folder}/missing.jsonl"),
        option("data", "dataset_name", "gsm9k", "dataset_name", "gsm8k"),
        option("data", "dataset_name", "{folder}/broken.jsonl"),
        option("data", "dataset_name", "{folder}/one_row.jsonl"),
        option("data", "dataset_name", "{folder}/no_answer.jsonl", "solution_column"),
        option("data", "dataset_name", "{folder}/no_question.jsonl", "prompt_column"),
        option("data", "dataset_name", "{folder}/two_cases.jsonl", "prompt_column"),
        option("data", "dataset_name", "{folder}/null.jsonl", "question"),
        option("data", "dataset_name", "{folder}/nested.jsonl", "question"),
        option("data", "dataset_train_split", "tran", dataset_name="{folder}/splits"),
        option("data", "prompt_column", "qestion", "prompt_column", "question"),
        option("data", "solution_column", "anser", "solution_column", "answer"),
        option("data", "instruction", "Think first."),
        option("data", "prompt_template", "No place for it."),
        option("data", "instruction", "{question}", "instruction", "prompt_template", prompt_template="{question}"),
        option("data", "per_device_train_batch_size", 128, "per_device_train_batch_size"),
        option("data", "model_name_or_path", "{folder}/base", "prompt_template"),
        # --- rewards
        option("reward", "reward_funcs", ["acuracy_reward"], "reward_funcs", "accuracy_reward"),
        option("reward", "reward_funcs", ["accuracy"], "reward_funcs", "accuracy_reward"),
        option("reward", "reward_funcs", ["no_module.reward"]),
        option("reward", "reward_funcs", ["benchmarks.reliability.mortal.rewards"]),
        option("reward", "reward_funcs", ["benchmarks.reliability.mortal.ACTIVITIES"]),
        option("reward", "reward_funcs", ["benchmarks.reliability.mortal.Diary"]),
        option("reward", "reward_funcs", ["benchmarks.reliability.mortal.main"], "main"),
        option("reward", "reward_funcs", []),
        option(
            "reward",
            "soft_overlong_punish_cache",
            64,
            "soft_overlong_punishment",
            reward_funcs=["soft_overlong_punishment"],
        ),
        option("reward", "reward_funcs", ["soft_overlong_punishment"]),
        option("reward", "reward_funcs", ["brier_reward"], "solution", dataset_name="{folder}/forecasts.jsonl"),
        option("reward", "reward_weights", [1.0, 1.0], reward_funcs=["accuracy_reward"]),
        # --- teams
        team("solver_cheker", "solver_checker"),
        team("{folder}/no_team.yaml"),
        team("{folder}/team_without_key.yaml"),
        team([]),
        team(["solver"]),
        team([{"name": "solver"}], "prompt"),
        team([{"prompt": "{prompt}"}], "name"),
        team([{**SOLVER, "temprature": 1.0}], "temperature"),
        team([{**SOLVER, "temperature": -1.0}, CHECKER], "temperature"),
        team([SOLVER, SOLVER], "solver"),
        role("qestion", {**SOLVER, "prompt": "{qestion}"}),
        role("beta", {**SOLVER, "beta": 0.1}),
        team([{**SOLVER, "name": 3}], "name"),
        Bad("team", ("transcript",), settings={"team": "solver_checker", "dataset_name": "{folder}/roles.jsonl"}),
        Bad("team", ("team_rounds",), settings={"team_rounds": 2}),
        role(
            "temperature",
            {**SOLVER, "temperature": 0.5},
            objective="trajectory_balance",
            beta=0.1,
            loss_denominator="all",
        ),
        # --- looped models
        looped("loop_credit", "first"),
        looped("loop_credit_power", -1.0),
        looped("loop_credit_power", 2.0),
        looped("beta", 0.1),
        looped("importance_sampling_level", "sequence"),
        looped("off_policy_mask_threshold", 0.5),
        looped("reuse_scoring_graph", True),
        looped("num_iterations", 2),
        looped("objective", "trajectory_balance", loss_denominator="all", beta=0.1),
        Bad("looped model", ("loop_credit",), settings={"loop_credit": "uniform"}),
        # --- trajectory balance
        balance("objective", "balance"),
        balance("beta", 0.0),
        balance("beta", float("inf")),
        balance("loss_denominator", "selected"),
        balance("partition", "online"),
        balance("partition", "offline", balance_reward="reward"),
        balance("balance_reward", "advantages"),
        balance("balance_reward", "advantage", partition="offline"),
        balance("max_importance_ratio", 0.5),
        balance("mirror_step_size", 0.0, length_normalized=False),
        balance("length_normalized", True, mirror_step_size=0.5),
        balance("delta", 2.0),
        balance("entropy_coef", 0.1),
        balance("use_adaptive_entropy", True),
        balance("top_p", 0.9),
        balance("repetition_penalty", 1.2),
        balance("generation_kwargs", {"num_beams": 4}),
        balance("generation_kwargs", {"temperature": 0.3}),
        balance("sync_ref_model", True, mirror_step_size=0.5, length_normalized=False),
        balance("vllm_structured_outputs_regex", "a+"),
        Bad("trajectory balance", ("mirror_step_size",), settings={"mirror_step_size": 0.5}),
        Bad("trajectory balance", ("partition",), settings={"partition": "offline"}),
        # --- files of options
        Bad("file of options", ("--config",), ("--config", "{folder}/missing.yaml")),
        Bad("file of options", ("--config", "--recipe"), ("--config", "qwen3_8b_forking")),
        Bad("file of options", ("--config",), ("--config", "{folder}/list.yaml")),
        Bad("file of options", ("--config",), ("--config", "{folder}/broken.yaml")),
        Bad("file of options", ("--config",), ("--config", "{folder}/number_key.yaml")),
        Bad("file of options", ("--recipe", "qwen3_8b_forking"), ("--recipe", "qwen3_8b_forkin")),
        Bad("file of options", ("--recipe", "--config"), ("--recipe", "quickstart", "--config", "a.yaml")),
        Bad("file of options", ("--config",), ("--config", "{folder}/launch.yaml", "--config", "b.yaml")),
        Bad("file of options", ("distributed_type",), ("--config", "{folder}/launch.yaml")),
        option("file of options", "num_processes", 2, "num_processes"),
        option("file of options", "accelerate_config", "zero3", "accelerate_config"),
        # --- launching
        Bad("launch", ("--accelerate_config", "zero3"), ("--accelerate_config", "zero_3")),
        Bad("launch", ("--accelerate_config",), ("--accelerate_config", "{folder}/missing.yaml")),
        Bad("launch", ("--accelerate_config",), ("--accelerate_config",)),
        Bad("launch", ("accelerate",), ("--accelerate_config", "ddp", "--config_file", "b.yaml")),
        Bad("launch", ("--num_processes",), ("--num_processes",)),
        Bad("launch", ("--max_stps", "--max_steps"), ("--num_processes", "2", "--max_stps", "3")),
        # --- model, adapters and vLLM
        Bad("model", ("model_name_or_path",), without=("model_name_or_path",)),
        option("model", "model_name_or_path", "{folder}/missing"),
        option("model", "model_name_or_path", "{folder}/adapter"),
        option("model", "model_name_or_path", "{folder}/nothing"),
        option("model", "dtype", "float17"),
        option("model", "attn_implementation", "flash"),
        option("model", "lora_r", 0, use_peft=True),
        option("model", "lora_dropout", 2.0, use_peft=True),
        option("model", "resume_from_checkpoint", "{folder}/no_checkpoint"),
        option("model", "resume_from_checkpoint", True),
        option("model", "output_dir", "{folder}/other_run"),
        option("vLLM", "use_vllm", True),
        option("vLLM", "vllm_mode", "cluster"),
        option("vLLM", "vllm_gpu_memory_utilization", 1.5, use_vllm=True),
        option("vLLM", "vllm_tensor_parallel_size", 0, use_vllm=True),
        option("vLLM", "vllm_importance_sampling_mode", "words"),
        option("vLLM", "vllm_importance_sampling_correction", True, loop_credit="uniform", use_vllm=True),
        option("vLLM", "vllm_server_port", 99999999, use_vllm=True, vllm_mode="server"),
        option("vLLM", "vllm_max_model_length", 0, use_vllm=True),
    ]
