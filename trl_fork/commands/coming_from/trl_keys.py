"""
The keys of Open-R1's recipes and of `trl grpo` that are no options here, and the defaults by which these tools differ.

Renamed and removed names of all releases are in `renamed_options.py`, which the parser of `trl-fork train` reads as
well: this has what their values become.
"""

from typing import Any

from .fates import CHANGED, DECIDE, NO_COUNTERPART, NOT_NEEDED, Key


# TRL 1.16's defaults that are others here.
TRL_DEFAULTS: dict[str, Any] = {"top_entropy_quantile": 1.0, "epsilon_high": None}

# Open-R1 installs TRL 0.18.0, whose defaults these are, and has its own.
OPEN_R1_DEFAULTS: dict[str, Any] = {
    **TRL_DEFAULTS,
    "beta": 0.04,
    "loss_type": "bnpo",
    "max_completion_length": 256,
    "reward_funcs": ["accuracy", "format", "tag_count"],
    "dataset_prompt_column": "prompt",
}

# Of Open-R1's own classes: no release of TRL has these.
OPEN_R1_KEYS = (
    *("system_prompt", "dataset_prompt_column", "dataset_mixture", "benchmarks", "callbacks", "chat_template"),
    *("hub_model_revision", "overwrite_hub_revision", "push_to_hub_revision", "wandb_entity", "wandb_project"),
    *("wandb_run_group", "code_language", "code_provider", "code_eval_test_batch_size", "code_eval_scoring_mode"),
    *("parallel_code_exec_per_proc", "e2b_router_url", "morph_router_url", "ioi_provider", "max_completion_len"),
    *("soft_punish_cache", "cosine_max_len", "cosine_min_value_wrong", "cosine_max_value_wrong"),
    *("cosine_min_value_correct", "cosine_max_value_correct", "repetition_n_grams", "repetition_max_penalty"),
)

# Open-R1's rewards that are here; the others are functions to be copied.
REWARDS = {"accuracy": "accuracy_reward", "soft_overlong_punishment": "soft_overlong_punishment"}
REWARD_FUNCTIONS = {
    "format": "format_reward",
    "tag_count": "tag_count_reward",
    "reasoning_steps": "reasoning_steps_reward",
    "length": "len_reward",
    "cosine": "get_cosine_scaled_reward(...)",
    "repetition_penalty": "get_repetition_penalty_reward(...)",
    "code": "code_reward",
    "binary_code": "binary_code_reward",
    "ioi_code": "ioi_code_reward",
    "cf_code": "cf_code_reward",
    "code_format": "get_code_format_reward(...)",
}

_OF_A_REWARD = Key(DECIDE, "", "An argument of a reward of Open-R1: give it to that function in my_rewards.py.")
_ENVIRONMENT = Key(CHANGED, "env", "A variable of the environment, which the recipe sets.")
KEYS: dict[str, Key] = {
    "reward_funcs": Key(CHANGED, "reward_funcs", "Names here are TRL's.", computed=True),
    "max_completion_len": Key(CHANGED, "soft_overlong_max_completion_len", computed=True),
    "soft_punish_cache": Key(CHANGED, "soft_overlong_punish_cache", computed=True),
    "system_prompt": Key(
        CHANGED, "instruction", "The text stands before the question in the user's message. For a system message, "
        "give prompts as conversations.", lambda text: f"{text}\n\n{{question}}"
    ),
    "dataset_prompt_column": Key(CHANGED, "prompt_column"),
    "dataset_mixture": Key(DECIDE, "", "Save the mixed data as a file, and name that in dataset_name."),
    "datasets": Key(DECIDE, "", "Save the mixed data as a file, and name that in dataset_name."),
    "reward_model_name_or_path": Key(DECIDE, "", "A function of your own in reward_funcs can call a reward model."),
    "chat_template": Key(
        DECIDE, "", "Save the tokenizer with this template, and name its folder in model_name_or_path."
    ),
    "callbacks": Key(NOT_NEEDED, "", "From Python, ForkingGRPOTrainer takes callbacks."),
    "benchmarks": Key(NOT_NEEDED, "", "trl-fork evaluate, or eval_dataset_name while it trains."),
    "push_to_hub_revision": Key(CHANGED, "push_to_hub", "hub_revision is the branch."),
    "overwrite_hub_revision": Key(NOT_NEEDED, "", "A push goes on top of hub_revision."),
    "warmup_ratio": Key(CHANGED, "warmup_steps", "A number below 1 is a fraction of the steps."),
    "max_prompt_length": Key(
        NO_COUNTERPART, "", "TRL does not cut prompts any more: leave long ones out of the data."
    ),
    "token_entropy_percentile_threshold": Key(
        CHANGED, "top_entropy_quantile", "The fraction that is kept.", lambda value: round(1 - value, 10)
    ),
    "use_flash_attention_2": Key(CHANGED, "attn_implementation", "", lambda on: "flash_attention_2" if on else None),
    "overwrite_output_dir": Key(NOT_NEEDED, "", "An output_dir with another run in it is refused."),
    "vllm_device": Key(NOT_NEEDED, "", "vLLM shares the GPUs of the training: vllm_mode colocate."),
    "vllm_dtype": Key(NOT_NEEDED, "", "vLLM computes in the type of dtype."),
    "vllm_enable_prefix_caching": Key(NOT_NEEDED, "", "vLLM does so by itself."),
    "save_safetensors": Key(NOT_NEEDED, "", "Models are always saved so."),
    "logging_dir": Key(
        CHANGED, "env", "A variable of the environment, which the recipe sets.",
        lambda value: {"TENSORBOARD_LOGGING_DIR": str(value)},
    ),
    "wandb_entity": Key(CHANGED, "env", _ENVIRONMENT.why, lambda value: {"WANDB_ENTITY": str(value)}),
    "wandb_project": Key(CHANGED, "env", _ENVIRONMENT.why, lambda value: {"WANDB_PROJECT": str(value)}),
    "wandb_run_group": Key(CHANGED, "env", _ENVIRONMENT.why, lambda value: {"WANDB_RUN_GROUP": str(value)}),
    **{name: _OF_A_REWARD for name in OPEN_R1_KEYS if name.startswith(("cosine_", "repetition_", "code_", "ioi_"))},
    **dict.fromkeys(("parallel_code_exec_per_proc", "e2b_router_url", "morph_router_url"), _OF_A_REWARD),
}  # fmt: skip
