"""
The keys of verl's configuration, with their values by default: those of verl 0.9.1 (`ppo_trainer.yaml`), and those
that older versions and the authors' code of the paper have beside them.
"""

from typing import Any

from .fates import CHANGED, DECIDE, KEPT, NO_COUNTERPART, NOT_NEEDED, RENAMED, Key


ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg"

# Beginnings of keys in other versions, and what they are in 0.9.1.
ALIASES = {
    "reward_model.overlong_buffer": OVERLONG,
    "reward_model.reward_kwargs": "reward.reward_kwargs",
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_manager": "reward.reward_manager",
    "custom_reward_function": "reward.custom_reward_function",
    "reward_model": "reward.reward_model",
    f"{ACTOR}.optim.warmup_style": f"{ACTOR}.optim.lr_scheduler_type",
    f"{MODEL}.lora.rank": f"{MODEL}.lora_rank",
    f"{MODEL}.lora.alpha": f"{MODEL}.lora_alpha",
    f"{MODEL}.lora.target_modules": f"{MODEL}.target_modules",
    "algorithm.rollout_is": "algorithm.rollout_correction.rollout_is",
    "algorithm.rollout_is_threshold": "algorithm.rollout_correction.rollout_is_threshold",
}

# Those by which a run of verl differs from one of TRL that says nothing.
DEFAULTS: dict[str, Any] = {
    "algorithm.adv_estimator": "gae",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "algorithm.kl_ctrl.kl_coef": 0.001,
    "algorithm.filter_groups.enable": False,
    "algorithm.filter_groups.metric": None,
    "algorithm.filter_groups.max_num_gen_batches": 0,
    "algorithm.rollout_correction.rollout_is": None,
    "algorithm.rollout_correction.rollout_is_threshold": 2.0,
    "data.prompt_key": "prompt",
    "data.train_batch_size": 1024,
    "data.max_prompt_length": 512,
    "data.max_response_length": 512,
    f"{ACTOR}.strategy": "fsdp",
    f"{ACTOR}.ppo_mini_batch_size": 256,
    f"{ACTOR}.ppo_epochs": 1,
    f"{ACTOR}.use_dynamic_bsz": False,
    f"{ACTOR}.ppo_max_token_len_per_gpu": 16384,
    f"{ACTOR}.clip_ratio_low": 0.2,
    f"{ACTOR}.clip_ratio_high": 0.2,
    f"{ACTOR}.clip_ratio_c": 3.0,
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ACTOR}.policy_loss.loss_mode": "vanilla",
    f"{ACTOR}.entropy_top_ratio": None,
    f"{ACTOR}.use_kl_loss": False,
    f"{ACTOR}.kl_loss_coef": 0.001,
    f"{ACTOR}.kl_loss_type": "low_var_kl",
    f"{ACTOR}.tau_pos": 1.0,
    f"{ACTOR}.tau_neg": 1.05,
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ACTOR}.optim.weight_decay": 0.01,
    f"{ACTOR}.optim.betas": [0.9, 0.999],
    f"{ACTOR}.optim.lr_scheduler_type": "constant",
    f"{ACTOR}.optim.lr_warmup_steps": -1,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": 0.0,
    f"{ACTOR}.optim.min_lr_ratio": 0.0,
    f"{ACTOR}.grad_clip": 1.0,
    f"{ACTOR}.fsdp_config.param_offload": False,
    f"{ACTOR}.fsdp_config.optimizer_offload": False,
    f"{ACTOR}.fsdp_config.model_dtype": "fp32",
    f"{ACTOR}.fsdp_config.dtype": "bfloat16",
    f"{MODEL}.lora_rank": 0,
    f"{MODEL}.lora_alpha": 16,
    f"{MODEL}.target_modules": "all-linear",
    f"{ROLLOUT}.name": "vllm",
    f"{ROLLOUT}.n": 1,
    f"{ROLLOUT}.gpu_memory_utilization": 0.5,
    f"{ROLLOUT}.tensor_model_parallel_size": 2,
    f"{ROLLOUT}.free_cache_engine": True,
    f"{ROLLOUT}.max_model_len": None,
    f"{ROLLOUT}.val_kwargs.n": 1,
    f"{OVERLONG}.enable": False,
    f"{OVERLONG}.penalty_factor": 1.0,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 8,
    "trainer.total_epochs": 30,
    "trainer.total_training_steps": None,
    "trainer.save_freq": -1,
    "trainer.test_freq": -1,
    "trainer.val_before_train": True,
    "trainer.logger": ["console", "wandb"],
    "trainer.project_name": "verl_examples",
    "trainer.experiment_name": "gsm8k",
    "trainer.default_local_dir": None,
}

_STEPS = "verl counts generation batches; here steps are the optimizer's."
_PROMPTS = "verl counts prompts; here it is completions."
KEYS: dict[str, Key] = {
    # Batches: verl_batches.py
    "data.train_batch_size": Key(CHANGED, "generation_batch_size", f"{_PROMPTS} Times n.", computed=True),
    f"{ROLLOUT}.n": Key(RENAMED, "num_generations", computed=True),
    f"{ACTOR}.ppo_mini_batch_size": Key(
        CHANGED, "gradient_accumulation_steps", "verl counts prompts of all GPUs: times n, over the rows of a forward "
        "pass of all processes.", computed=True
    ),
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": Key(
        RENAMED, "per_device_train_batch_size", "Samples of one GPU on both sides. Not read by verl with "
        "use_dynamic_bsz.", computed=True
    ),
    f"{ACTOR}.ppo_micro_batch_size": Key(
        CHANGED, "per_device_train_batch_size", "verl counts samples of all GPUs.", computed=True
    ),
    f"{ACTOR}.use_dynamic_bsz": Key(
        CHANGED, "per_device_train_batch_size", "Passes by tokens: rows are packed one by one.", computed=True
    ),
    f"{ACTOR}.ppo_max_token_len_per_gpu": Key(
        RENAMED, "max_tokens_per_forward", "With use_dynamic_bsz; without it, neither is read.", computed=True
    ),
    f"{ACTOR}.ppo_epochs": Key(RENAMED, "num_iterations", computed=True),
    "trainer.total_training_steps": Key(CHANGED, "max_steps", _STEPS, computed=True),
    "trainer.total_epochs": Key(RENAMED, "num_train_epochs", "Without total_training_steps.", computed=True),
    "trainer.save_freq": Key(CHANGED, "save_steps", f"{_STEPS} -1 is a save_strategy of no.", computed=True),
    "trainer.test_freq": Key(CHANGED, "eval_steps", f"{_STEPS} -1 is an eval_strategy of no.", computed=True),
    f"{ACTOR}.optim.lr_warmup_steps": Key(
        CHANGED, "warmup_steps", f"{_STEPS} verl's schedule moves once per generation batch.", computed=True
    ),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": Key(
        RENAMED, "warmup_steps", "A number below 1 is a fraction of the steps. Where lr_warmup_steps is negative.",
        computed=True,
    ),
    "trainer.nnodes": Key(CHANGED, "", "--num_machines of the launch.", computed=True),
    "trainer.n_gpus_per_node": Key(CHANGED, "", "--num_processes of the launch, over all machines.", computed=True),
    # Objective and rewards: verl_objective.py
    "algorithm.adv_estimator": Key(KEPT, "", "grpo is what TRL computes; others have no counterpart.", computed=True),
    "algorithm.norm_adv_by_std_in_grpo": Key(CHANGED, "scale_rewards", "true is group, false is none.", computed=True),
    "algorithm.use_kl_in_reward": Key(NO_COUNTERPART, "", "TRL has the KL term in the loss.", computed=True),
    "algorithm.kl_ctrl.kl_coef": Key(NOT_NEEDED, "", "Read with use_kl_in_reward only.", computed=True),
    f"{ACTOR}.policy_loss.loss_mode": Key(
        CHANGED, "loss_type, importance_sampling_level", "vanilla, gspo, sapo and cispo have one.", computed=True
    ),
    f"{ACTOR}.loss_agg_mode": Key(
        CHANGED, "loss_type", "token-mean is dapo, seq-mean-token-mean grpo, seq-mean-token-sum and "
        "seq-mean-token-sum-norm dr_grpo.", computed=True
    ),
    f"{ACTOR}.loss_scale_factor": Key(
        NO_COUNTERPART, "", "dr_grpo divides by max_completion_length.", harmless=(None,)
    ),
    f"{ACTOR}.clip_ratio": Key(NOT_NEEDED, "", "verl reads clip_ratio_low and clip_ratio_high.", computed=True),
    f"{ACTOR}.clip_ratio_low": Key(RENAMED, "epsilon", computed=True),
    f"{ACTOR}.clip_ratio_high": Key(RENAMED, "epsilon_high", computed=True),
    f"{ACTOR}.clip_ratio_c": Key(RENAMED, "delta", "The dual clip; TRL's default is none, verl's 3.", computed=True),
    f"{ACTOR}.tau_pos": Key(RENAMED, "sapo_temperature_pos", computed=True),
    f"{ACTOR}.tau_neg": Key(RENAMED, "sapo_temperature_neg", computed=True),
    f"{ACTOR}.entropy_top_ratio": Key(
        RENAMED, "top_entropy_quantile", "Of the authors' code of the paper. It takes the top of one micro-batch of "
        "one GPU, which is `local` in entropy_threshold_scope; the paper's text and the default here take that of "
        "the whole batch.", computed=True
    ),
    f"{ACTOR}.entropy_coeff": Key(RENAMED, "entropy_coef"),
    f"{ACTOR}.use_kl_loss": Key(CHANGED, "beta", "false is 0, true is kl_loss_coef.", computed=True),
    f"{ACTOR}.kl_loss_coef": Key(RENAMED, "beta", "With use_kl_loss.", computed=True),
    f"{ACTOR}.kl_loss_type": Key(KEPT, "", "low_var_kl (or k3) is TRL's; others have no counterpart.", computed=True),
    "algorithm.filter_groups.enable": Key(RENAMED, "dynamic_sampling", computed=True),
    "algorithm.filter_groups.metric": Key(
        CHANGED, "dynamic_sampling_reward", "acc is accuracy_reward; reward, seq_reward and seq_final_reward are the "
        "weighted sum, the default here.", computed=True
    ),
    "algorithm.filter_groups.max_num_gen_batches": Key(
        RENAMED, "dynamic_sampling_max_rounds", "verl ends the run after so many, and 0 is no limit; here the batch "
        "is then topped up with other groups.", computed=True
    ),
    "algorithm.filter_groups.max_inflight_gen_batches": Key(NOT_NEEDED, "", "A refill is one round here."),
    "data.gen_batch_size": Key(NOT_NEEDED, "", "The first round has the whole batch, later ones what is missing."),
    "reward.reward_manager.name": Key(
        CHANGED, "reward_funcs", "accuracy_reward grades by math-verify, 1 or 0. verl chooses a function by "
        "data_source; on DAPO-Math-17k it gives +1 or -1, so that a penalty weighs half as much.", computed=True
    ),
    "reward.custom_reward_function.path": Key(
        DECIDE, "", "Write a function of completions and columns, and name its dotted path in reward_funcs.",
        harmless=(None,),
    ),
    "reward.custom_reward_function.name": Key(DECIDE, "", "See path.", harmless=(None, "compute_score")),
    "reward.reward_model.enable": Key(
        DECIDE, "", "A function of your own in reward_funcs can call a reward model.", harmless=(False, None)
    ),
    f"{OVERLONG}.enable": Key(
        CHANGED, "reward_funcs", "soft_overlong_punishment is a reward beside the others.", computed=True
    ),
    f"{OVERLONG}.len": Key(RENAMED, "soft_overlong_punish_cache", computed=True),
    f"{OVERLONG}.penalty_factor": Key(CHANGED, "reward_weights", "The penalty's weight.", computed=True),
    f"{OVERLONG}.log": Key(NOT_NEEDED, "", "Every reward is logged."),
    "reward.reward_kwargs.max_resp_len": Key(RENAMED, "soft_overlong_max_completion_len", computed=True),
    # Data
    "data.train_files": Key(CHANGED, "dataset_name", "Known files by their short name.", computed=True),
    "data.val_files": Key(CHANGED, "eval_dataset_name", "Known files by their short name.", computed=True),
    "data.prompt_key": Key(RENAMED, "prompt_column", "A conversation or a text.", computed=True),
    "data.max_prompt_length": Key(
        CHANGED, "vllm_max_model_length", "The sum with max_response_length. TRL does not cut prompts: leave longer "
        "ones out of the data.", computed=True
    ),
    "data.max_response_length": Key(RENAMED, "max_completion_length"),
    "data.truncation": Key(NOT_NEEDED, "", "TRL does not cut prompts: leave longer ones out of the data."),
    "data.filter_overlong_prompts": Key(
        DECIDE, "", "Longer prompts are neither cut nor left out here: leave them out of the data.", harmless=(False,)
    ),
    "data.shuffle": Key(RENAMED, "shuffle_dataset"),
    "data.seed": Key(RENAMED, "seed", "null is the default, 42.", lambda seed: 42 if seed is None else seed),
    "data.apply_chat_template_kwargs": Key(RENAMED, "chat_template_kwargs", "", lambda value: value or None),
    "data.train_max_samples": Key(
        DECIDE, "", "Name a split such as train[:1000] in dataset_train_split.", harmless=(-1,)
    ),
    # Model
    f"{MODEL}.path": Key(RENAMED, "model_name_or_path", computed=True),
    f"{MODEL}.trust_remote_code": Key(RENAMED, "trust_remote_code"),
    "data.trust_remote_code": Key(NOT_NEEDED, "", "trust_remote_code is one option here."),
    f"{MODEL}.enable_gradient_checkpointing": Key(RENAMED, "gradient_checkpointing"),
    f"{MODEL}.use_remove_padding": Key(RENAMED, "padding_free", "Only where it is exact, as everywhere here."),
    f"{MODEL}.lora_rank": Key(CHANGED, "use_peft, lora_r", "0 is no LoRA.", computed=True),
    f"{MODEL}.lora_alpha": Key(RENAMED, "lora_alpha", "With LoRA.", computed=True),
    f"{MODEL}.target_modules": Key(RENAMED, "lora_target_modules", "With LoRA; always a list.", computed=True),
    f"{MODEL}.use_liger": Key(NOT_NEEDED, "", "use_liger_kernel is the same, if you want it.", harmless=(False,)),
    f"{MODEL}.custom_chat_template": Key(
        DECIDE, "", "Save the tokenizer with this template, and name its folder in model_name_or_path.",
        harmless=(None,),
    ),
    f"{MODEL}.tokenizer_path": Key(
        DECIDE, "", "The tokenizer is that of model_name_or_path.", harmless=(None,)
    ),
    f"{MODEL}.override_config.attn_implementation": Key(RENAMED, "attn_implementation"),
    f"{MODEL}.lora_adapter_path": Key(
        DECIDE, "", "Merge the adapter into its base model first, and name the folder of that.", harmless=(None,)
    ),
    # Generation
    f"{ROLLOUT}.name": Key(CHANGED, "use_vllm", "vllm, or transformers for hf; sglang becomes vllm.", computed=True),
    f"{ROLLOUT}.temperature": Key(KEPT, "temperature"),
    f"{ROLLOUT}.top_p": Key(KEPT, "top_p"),
    f"{ROLLOUT}.top_k": Key(
        CHANGED, "top_k", "-1 is 0 here: both are off.", lambda value: 0 if value in (-1, None) else value
    ),
    f"{ROLLOUT}.gpu_memory_utilization": Key(
        RENAMED, "vllm_gpu_memory_utilization", "Weights and optimizer of the training stay on the GPU meanwhile: it "
        "may have to be smaller.", computed=True
    ),
    f"{ROLLOUT}.tensor_model_parallel_size": Key(RENAMED, "vllm_tensor_parallel_size", computed=True),
    f"{ROLLOUT}.free_cache_engine": Key(RENAMED, "vllm_enable_sleep_mode", computed=True),
    f"{ROLLOUT}.max_model_len": Key(RENAMED, "vllm_max_model_length", computed=True),
    f"{ROLLOUT}.multi_turn.enable": Key(
        DECIDE, "", "From Python, ForkingGRPOTrainer takes tools and a rollout_func.", harmless=(False,)
    ),
    f"{ROLLOUT}.val_kwargs.n": Key(
        RENAMED, "num_generations_eval", "While it trains, with the training's temperature and top_p; trl-fork "
        "evaluate has its own.", computed=True
    ),
    "algorithm.rollout_correction.rollout_is": Key(
        CHANGED, "vllm_importance_sampling_correction, vllm_importance_sampling_mode", "null is false; TRL's default "
        "is true.", computed=True
    ),
    "algorithm.rollout_correction.rollout_is_threshold": Key(
        CHANGED, "vllm_importance_sampling_clip_max", "With rollout_is.", computed=True
    ),
    "algorithm.rollout_correction.rollout_rs": Key(
        NO_COUNTERPART, "", "Nearest is a mode that masks, such as sequence_mask in vllm_importance_sampling_mode.",
        harmless=(None,),
    ),
    "algorithm.rollout_correction.bypass_mode": Key(
        NO_COUNTERPART, "", "The ratio is to log-probabilities of the trainer.", harmless=(False,)
    ),
    f"{ACTOR}.tis_imp_ratio_cap": Key(
        DECIDE, "", "It is vllm_importance_sampling_clip_max, with token_truncate as the mode.", harmless=(-1, None)
    ),
    # Optimizer
    f"{ACTOR}.optim.lr": Key(RENAMED, "learning_rate"),
    f"{ACTOR}.optim.weight_decay": Key(KEPT, "weight_decay"),
    f"{ACTOR}.optim.betas": Key(CHANGED, "adam_beta1, adam_beta2", "A list there.", computed=True),
    f"{ACTOR}.optim.lr_scheduler_type": Key(
        KEPT, "lr_scheduler_type", "With a warmup, constant is constant_with_warmup here.", computed=True
    ),
    f"{ACTOR}.optim.min_lr_ratio": Key(CHANGED, "lr_scheduler_kwargs", "min_lr_rate, with cosine.", computed=True),
    f"{ACTOR}.optim.num_cycles": Key(NO_COUNTERPART, "", "Half a cycle.", harmless=(0.5,)),
    f"{ACTOR}.optim.optimizer": Key(DECIDE, "", "`optim` has transformers' names.", harmless=("AdamW",)),
    f"{ACTOR}.grad_clip": Key(RENAMED, "max_grad_norm"),
    f"{ACTOR}.fsdp_config.model_dtype": Key(CHANGED, "dtype", "fp32 is float32.", computed=True),
    f"{ACTOR}.fsdp_config.dtype": Key(CHANGED, "bf16", "bfloat16 is true.", computed=True),
    f"{ACTOR}.fsdp_config.seed": Key(NOT_NEEDED, "", "`seed` is one option here."),
    f"{ACTOR}.data_loader_seed": Key(NOT_NEEDED, "", "`seed` is one option here."),
    f"{ACTOR}.shuffle": Key(NOT_NEEDED, "", "TRL shuffles a generation batch between its updates."),
    f"{ACTOR}.strategy": Key(CHANGED, "", "--accelerate_config of the launch: fsdp2 or zero3.", computed=True),
    f"{ACTOR}.fsdp_config.param_offload": Key(CHANGED, "", "--accelerate_config zero3_offload.", computed=True),
    f"{ACTOR}.fsdp_config.optimizer_offload": Key(CHANGED, "", "--accelerate_config zero3_offload.", computed=True),
    f"{ACTOR}.fsdp_config.fsdp_size": Key(NOT_NEEDED, "", "The launch file shards over all processes."),
    f"{ACTOR}.ulysses_sequence_parallel_size": Key(
        NO_COUNTERPART, "", "TRL does not split a completion over GPUs: each holds whole ones, and needs the memory.",
        harmless=(1,),
    ),
    # Log and checkpoints
    "trainer.logger": Key(CHANGED, "report_to", "The console needs no name.", computed=True),
    "trainer.project_name": Key(CHANGED, "env", "WANDB_PROJECT, with wandb.", computed=True),
    "trainer.experiment_name": Key(RENAMED, "run_name"),
    "trainer.default_local_dir": Key(RENAMED, "output_dir", computed=True),
    "trainer.max_actor_ckpt_to_keep": Key(RENAMED, "save_total_limit"),
    "trainer.val_before_train": Key(RENAMED, "eval_on_start", "Where there is an evaluation.", computed=True),
    "trainer.resume_mode": Key(NOT_NEEDED, "", "--resume_from_checkpoint true goes on with a run."),
    "trainer.resume_from_path": Key(
        DECIDE, "", "--resume_from_checkpoint takes checkpoints of this package only.", harmless=(None,)
    ),
    "trainer.val_only": Key(NOT_NEEDED, "", "trl-fork evaluate evaluates."),
    "trainer.rollout_data_dir": Key(NOT_NEEDED, "", "log_completions: true keeps completions and rewards."),
    "trainer.log_val_generations": Key(NOT_NEEDED, "", "trl-fork evaluate keeps every completion."),
}  # fmt: skip

# Whole branches of the file, by their beginning; a longer one wins.
BRANCHES: dict[str, Key] = {
    "critic": Key(NOT_NEEDED, "", "GRPO has no critic."),
    "actor_rollout_ref.ref": Key(NOT_NEEDED, "", "TRL makes the reference itself, where beta is not 0."),
    "actor_rollout_ref.hybrid_engine": Key(NOT_NEEDED, "", "vllm_mode: colocate is the default."),
    "actor_rollout_ref.nccl_timeout": Key(NOT_NEEDED, "", "ddp_timeout, if you need another."),
    f"{ROLLOUT}.val_kwargs": Key(NOT_NEEDED, "", "trl-fork evaluate has temperature, top_p and top_k of its own."),
    f"{ROLLOUT}.engine_kwargs": Key(NO_COUNTERPART, "", "TRL chooses vLLM's other settings.", harmless=({}, None)),
    f"{ROLLOUT}.multi_turn": Key(NOT_NEEDED, "", "Of several turns."),
    f"{ROLLOUT}.agent": Key(NOT_NEEDED, "", "verl's loop of generation."),
    f"{MODEL}.override_config": Key(
        DECIDE, "", "A change of the model's configuration: save the model with it, and name its folder."
    ),
    f"{MODEL}.use_fused_kernels": Key(NOT_NEEDED, "", "The LM head is always computed in tiles."),
    f"{ACTOR}.use_fused_kernels": Key(NOT_NEEDED, "", "The LM head is always computed in tiles."),
    f"{ACTOR}.checkpoint": Key(NOT_NEEDED, "", "A checkpoint has all that a resume needs; save_only_model has less."),
    f"{ACTOR}.megatron": Key(NO_COUNTERPART, "", "Training is sharded by DeepSpeed or FSDP, not Megatron."),
    f"{ACTOR}.policy_loss": Key(NOT_NEEDED, "", "Of another loss_mode."),
    "algorithm.rollout_correction": Key(NOT_NEEDED, "", "Details of a correction."),
    "algorithm.pf_ppo": Key(NO_COUNTERPART, "", "Reweighting of samples by their reward."),
    "reward.reward_model": Key(NOT_NEEDED, "", "Of a reward model."),
    "reward.sandbox_fusion": Key(NO_COUNTERPART, "", "Code is not run here: reward_funcs takes a function that does."),
    **dict.fromkeys(
        ("global_profiler", "transfer_queue", "ray_kwargs", "ray_init", "trainer.v1", "skip", f"{ACTOR}.profiler"),
        Key(NOT_NEEDED, "", "Of verl's machinery."),
    ),
    "rollout": Key(NO_COUNTERPART, "", "GPUs that generate alone: here a server of vLLM does, vllm_mode: server."),
    "async_training": Key(NO_COUNTERPART, "", "Training is synchronous here."),
    "data.apply_chat_template_kwargs": Key(DECIDE, "", "Write it into chat_template_kwargs."),
    **dict.fromkeys(
        (f"{ACTOR}.clip_cov_ratio", f"{ACTOR}.clip_cov_lb", f"{ACTOR}.clip_cov_ub", f"{ACTOR}.kl_cov_ratio"),
        Key(NOT_NEEDED, "", "Of another loss_mode."),
    ),
    f"{ROLLOUT}.quantization": Key(NO_COUNTERPART, "", "vLLM computes in the type of dtype.", harmless=(None,)),
    "distillation": Key(NO_COUNTERPART, "", "This package does not distill."),
}

# Single keys that say how verl works inside.
BRANCHES |= dict.fromkeys(
    (
        *(f"{ACTOR}.{name}" for name in ("use_torch_compile", "rollout_n", "calculate_entropy", "use_remove_padding")),
        *(f"{ACTOR}.{name}" for name in ("use_prefix_grouper", "entropy_checkpointing", "freeze_vision_tower")),
        *(f"{ACTOR}.{name}" for name in ("entropy_from_logits_with_chunking", "entropy_from_logits_chunk_size")),
        *(f"{ACTOR}.{name}" for name in ("calculate_sum_pi_squared", "sum_pi_squared_checkpointing", "pad_to_length")),
        *(f"{ACTOR}.{name}" for name in ("router_replay", "qat", "load_weight")),
        f"{ACTOR}.fsdp_config",
        *(f"{ACTOR}.optim.{name}" for name in ("total_training_steps", "clip_grad", "optimizer_impl")),
        *(f"{ACTOR}.optim.{name}" for name in ("override_optimizer_config", "zero_indexed_step")),
        *(f"{ROLLOUT}.{name}" for name in ("mode", "prompt_length", "response_length", "dtype", "ignore_eos")),
        *(f"{ROLLOUT}.{name}" for name in ("enforce_eager", "cudagraph_capture_sizes", "data_parallel_size")),
        *(f"{ROLLOUT}.{name}" for name in ("expert_parallel_size", "pipeline_model_parallel_size", "max_num_seqs")),
        *(f"{ROLLOUT}.{name}" for name in ("max_num_batched_tokens", "enable_chunked_prefill", "load_format")),
        *(f"{ROLLOUT}.{name}" for name in ("enable_prefix_caching", "logprobs_mode", "scheduling_policy")),
        *(f"{ROLLOUT}.{name}" for name in ("disable_log_stats", "do_sample", "over_sample_rate", "layered_summon")),
        *(f"{ROLLOUT}.{name}" for name in ("multi_stage_wake_up", "calculate_log_probs", "checkpoint_engine")),
        *(f"{ROLLOUT}.{name}" for name in ("trace", "skip_rollout", "skip_dump_dir", "skip_tokenizer_init")),
        *(f"{ROLLOUT}.{name}" for name in ("enable_rollout_routing_replay", "profiler", "prometheus", "mtp")),
        *(f"{ROLLOUT}.{name}" for name in ("quantization_config_file", "limit_images", "seed")),
        *(f"{ROLLOUT}.{name}" for name in ("log_prob_micro_batch_size", "log_prob_micro_batch_size_per_gpu")),
        *(f"{ROLLOUT}.{name}" for name in ("log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu")),
        *(f"{ROLLOUT}.{name}" for name in ("nnodes", "n_gpus_per_node", "full_determinism", "disaggregation", "qat")),
        *(f"{ROLLOUT}.{name}" for name in ("router_config_path", "moe_load_balance_metrics_interval")),
        *(f"{MODEL}.{name}" for name in ("hf_config_path", "use_shm", "external_lib", "enable_activation_offload")),
        *(f"{MODEL}.{name}" for name in ("exclude_modules", "fused_kernel_options", "tiled_mlp", "mtp", "lora")),
        *(f"data.{name}" for name in ("tokenizer", "use_shm", "val_max_samples", "reward_fn_key", "val_batch_size")),
        *(f"data.{name}" for name in ("tool_config_path", "return_raw_input_ids", "return_raw_chat")),
        *(f"data.{name}" for name in ("return_full_prompt", "dataloader_num_workers", "image_patch_size")),
        *(f"data.{name}" for name in ("validation_shuffle", "filter_overlong_prompts_workers", "image_key")),
        *(f"data.{name}" for name in ("video_key", "audio_key", "custom_cls", "return_multi_modal_inputs")),
        *(f"data.{name}" for name in ("sampler", "datagen", "function_tool_path", "mm_processor_kwargs")),
        *("reward.num_workers", "reward.reward_manager", "sandbox_fusion"),
        *(f"algorithm.{name}" for name in ("gamma", "lam", "kl_penalty", "kl_ctrl", "use_pf_ppo")),
        *(f"trainer.{name}" for name in ("balance_batch", "validation_data_dir", "esi_redundant_time", "device")),
        *(f"trainer.{name}" for name in ("critic_warmup", "default_hdfs_dir", "del_local_ckpt_after_load")),
        *(f"trainer.{name}" for name in ("max_critic_ckpt_to_keep", "ray_wait_register_center_timeout", "use_v1")),
        *(f"trainer.{name}" for name in ("use_legacy_worker_impl", "checkpoint_callback_class")),
    ),
    Key(NOT_NEEDED, "", "How verl works inside, or a detail of it."),
)  # fmt: skip

# Files of verl's examples and of the paper's code, by the data set that they hold.
TRAINING_FILES = {
    "dapo-math-17k.parquet": "dapo-math-17k",
    "math__combined_54.4k.parquet": "guru-math",
    "gsm8k/train.parquet": "gsm8k",
}
EVALUATION_FILES = {
    "aime-2024.parquet": "aime24",
    "math__aime_repeated_32x_960.parquet": "aime24",
    "math__math_500.parquet": "math500",
    "gsm8k/test.parquet": "gsm8k",
}
