"""
What became of options that recipes for older releases have: Open-R1's, TRL's before 1.16, transformers' before 5.23.

`tests/commands/test_command_line.py` holds this table to the real parser: no old name is an option, every new one is.
"""

# Old name to new name, same meaning.
RENAMED = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "hub_model_revision": "hub_revision",
    "include_tokens_per_second": "include_num_input_tokens_seen",
    "torchdynamo": "torch_compile_backend",
    "use_liger_loss": "use_liger_kernel",
    "wandb_log_unique_prompts": "log_unique_prompts",
    "vllm_max_model_len": "vllm_max_model_length",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "dataset_prompt_column": "prompt_column",
    "dataset_answer_column": "solution_column",
    "dataset_solution_column": "solution_column",
    "dataset_configs": "dataset_config",
    "max_completion_len": "soft_overlong_max_completion_len",
    "soft_punish_cache": "soft_overlong_punish_cache",
}

# Old name to what to do instead, with the options concerned in backquotes.
REMOVED = {
    # transformers
    "adafactor": "set `optim` to adafactor",
    "dispatch_batches": "set it in `accelerator_config`",
    "split_batches": "set it in `accelerator_config`",
    "fp16_backend": "remove it; `fp16` and `bf16` are all there is",
    "half_precision_backend": "remove it; `fp16` and `bf16` are all there is",
    "fp16_opt_level": "remove it; it was an option of NVIDIA Apex",
    "fsdp_min_num_params": "set min_num_params in `fsdp_config`",
    "fsdp_transformer_layer_cls_to_wrap": "set transformer_layer_cls_to_wrap in `fsdp_config`",
    "group_by_length": "set `train_sampling_strategy`",
    "include_inputs_for_metrics": "add inputs to `include_for_metrics`",
    "jit_mode_eval": "remove it; `torch_compile` is what transformers has now",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR (a YAML file may do so under env)",
    "mp_parameters": "remove it; it was an option of SageMaker",
    "overwrite_output_dir": "remove it; choose another `output_dir`, or go on with `resume_from_checkpoint`",
    "past_index": "remove it",
    "push_to_hub_organization": "write the organization into `hub_model_id`, organization/name",
    "ray_scope": "remove it; it was an option of hyperparameter search",
    "save_safetensors": "remove it; models are always saved so",
    "sharded_ddp": "set `fsdp`",
    "tp_size": "set `parallelism_config`",
    "tpu_metrics_debug": "set `debug` to tpu_metrics_debug",
    "tpu_num_cores": "remove it; accelerate's launcher decides",
    "use_ipex": "remove it",
    "use_legacy_prediction_loop": "remove it",
    "use_mps_device": "remove it; the device is used where there is one",
    "warmup_ratio": "set `warmup_steps`, which below 1 is a fraction of the steps",
    "xpu_backend": "set `ddp_backend`",
    # TRL
    "gradient_checkpointing_use_reentrant": "set use_reentrant in `gradient_checkpointing_kwargs`",
    "max_prompt_length": "remove it; TRL does not cut prompts any more: leave long ones out of the data, and give "
    "vLLM room with `vllm_max_model_length`",
    "token_entropy_percentile_threshold": "set `top_entropy_quantile` to its complement: 0.8 is 0.2 now",
    "use_flash_attention_2": "set `attn_implementation` to flash_attention_2",
    "vllm_device": "remove it; `vllm_mode` colocate shares the GPUs of the training, server has its own",
    "vllm_dtype": "remove it; vLLM computes in the type of `dtype`",
    "vllm_enable_prefix_caching": "remove it; vLLM does so by itself",
    # Open-R1
    "benchmarks": "remove it; trl-fork evaluate evaluates the model, and `eval_dataset_name` does while it trains",
    "callbacks": "remove it; from Python, ForkingGRPOTrainer takes callbacks",
    "chat_template": "save the tokenizer with this template, and name its folder in `model_name_or_path`; or give "
    "prompts as plain text with `prompt_template`",
    "dataset_mixture": "remove it; save the mixed data as a file, and name that in `dataset_name`",
    "overwrite_hub_revision": "remove it; a push goes on top of `hub_revision`",
    "push_to_hub_revision": "set `push_to_hub` and `hub_revision`",
    "system_prompt": "write the text into `instruction` before {question}, or give prompts as conversations that "
    "begin with a system message",
    "wandb_entity": "set the environment variable WANDB_ENTITY (a YAML file may do so under env)",
    "wandb_project": "set the environment variable WANDB_PROJECT (a YAML file may do so under env)",
    "wandb_run_group": "set the environment variable WANDB_RUN_GROUP (a YAML file may do so under env)",
    **dict.fromkeys(
        (
            *("code_language", "code_provider", "code_eval_test_batch_size", "code_eval_scoring_mode"),
            *("parallel_code_exec_per_proc", "e2b_router_url", "morph_router_url", "ioi_provider"),
            *("cosine_max_len", "cosine_min_value_wrong", "cosine_max_value_wrong", "cosine_min_value_correct"),
            *("cosine_max_value_correct", "repetition_n_grams", "repetition_max_penalty"),
        ),
        "remove it; it belongs to a reward of Open-R1: `reward_funcs` takes the dotted path of such a function",
    ),
}

# Names that other trainers and papers use for an option, if they do not resemble its name.
OTHER_NAMES = {
    **dict.fromkeys(("lr", "actor_lr"), "learning_rate"),
    **dict.fromkeys(("lora_rank", "lora_dim", "rank"), "lora_r"),
    **dict.fromkeys(("target_modules", "lora_modules", "lora_targets"), "lora_target_modules"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "total_epochs"), "num_train_epochs"),
    **dict.fromkeys(("steps", "num_steps", "total_steps", "max_train_steps", "num_train_steps"), "max_steps"),
    **dict.fromkeys(("batch_size", "micro_batch_size", "train_batch_size"), "per_device_train_batch_size"),
    "eval_batch_size": "per_device_eval_batch_size",
    "rollout_batch_size": "generation_batch_size",
    **dict.fromkeys(("grad_accum", "accumulation_steps", "grad_acc_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("group_size", "rollout_n", "num_rollouts", "num_samples"), "num_generations"),
    **dict.fromkeys(("kl_coef", "kl_beta", "kl_loss_coef", "init_kl_coef"), "beta"),
    **dict.fromkeys(("clip_ratio_high", "clip_high", "clip_higher"), "epsilon_high"),
    **dict.fromkeys(("clip_ratio", "clip_range", "cliprange", "clip_ratio_low", "clip_low"), "epsilon"),
    "clip_ratio_c": "delta",
    **dict.fromkeys(
        ("max_new_tokens", "max_tokens", "max_response_length", "response_length"), "max_completion_length"
    ),
    **dict.fromkeys(("model", "model_name", "model_path", "model_id"), "model_name_or_path"),
    **dict.fromkeys(("dataset", "data", "dataset_path", "train_data", "train_files"), "dataset_name"),
    **dict.fromkeys(("eval_dataset", "eval_data", "val_files", "test_files"), "eval_dataset_name"),
    **dict.fromkeys(("reward", "rewards", "reward_fn", "reward_function", "reward_model"), "reward_funcs"),
    **dict.fromkeys(("rho", "entropy_top_ratio", "top_entropy_fraction", "token_fraction"), "top_entropy_quantile"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "lr_scheduler_type"),
    "optimizer": "optim",
    "wd": "weight_decay",
    **dict.fromkeys(("gradient_clipping", "clip_grad", "max_norm", "grad_clip"), "max_grad_norm"),
    **dict.fromkeys(("output", "output_path", "save_path"), "output_dir"),
    **dict.fromkeys(("resume", "resume_from"), "resume_from_checkpoint"),
    **dict.fromkeys(("log_every", "log_freq", "log_interval"), "logging_steps"),
    **dict.fromkeys(("save_every", "save_freq", "save_interval"), "save_steps"),
    **dict.fromkeys(("eval_every", "eval_freq", "test_freq", "eval_interval"), "eval_steps"),
    **dict.fromkeys(("wandb", "logger", "tracker"), "report_to"),
    **dict.fromkeys(("tp", "vllm_tp"), "vllm_tensor_parallel_size"),
    **dict.fromkeys(("load_4bit", "qlora", "quantize"), "load_in_4bit"),
}


def what_became_of(name: str) -> str | None:
    """The end of a sentence about an option of an older release; `None` for any other name."""
    if name in RENAMED:
        return f"it is called {RENAMED[name]} now"
    return REMOVED.get(name)
