#!/usr/bin/env bash
# The values of "Beyond the 80/20 Rule" for Qwen3-8B, in the manner of verl's scripts for DAPO. Written for the tests:
# nothing here has been run.
set -euo pipefail

PROMPTS=512        # for which a batch is generated
RESPONSES=16
MAX_PROMPT=$((1024 * 2))
MAX_RESPONSE=$((1024 * 20))
MODEL_PATH=${MODEL_PATH:-"Qwen/Qwen3-8B-Base"}
DATA=${DATA:-"$HOME/data"}
OFFLOAD=False

REWARD=(
    reward_model.reward_manager=dapo
    reward_model.overlong_buffer.enable=True
    reward_model.overlong_buffer.len=$((1024 * 4))
    reward_model.overlong_buffer.penalty_factor=1.0
)

python3 -m recipe.dapo.main_dapo \
    algorithm.adv_estimator=grpo \
    data.train_files="${DATA}/dapo-math-17k.parquet" \
    data.val_files="['${DATA}/aime-2024.parquet']" \
    data.prompt_key=prompt \
    data.truncation='left' \
    data.max_prompt_length=${MAX_PROMPT} \
    data.max_response_length=${MAX_RESPONSE} \
    data.gen_batch_size=$((PROMPTS * 3)) \
    data.train_batch_size=${PROMPTS} \
    actor_rollout_ref.model.path="${MODEL_PATH}" \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.actor.entropy_top_ratio=0.2 \
    actor_rollout_ref.actor.loss_agg_mode="token-mean" \
    actor_rollout_ref.actor.clip_ratio_low=0.2 \
    actor_rollout_ref.actor.clip_ratio_high=0.28 \
    actor_rollout_ref.actor.clip_ratio_c=10.0 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$((MAX_PROMPT + MAX_RESPONSE)) \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=0 \
    actor_rollout_ref.actor.optim.weight_decay=0.1 \
    actor_rollout_ref.actor.grad_clip=1.0 \
    actor_rollout_ref.actor.fsdp_config.param_offload=${OFFLOAD} \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=${OFFLOAD} \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=${RESPONSES} \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.top_p=1.0 \
    actor_rollout_ref.rollout.top_k="-1" \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.55 \
    actor_rollout_ref.rollout.enable_chunked_prefill=True \
    algorithm.filter_groups.enable=True \
    algorithm.filter_groups.metric=acc \
    algorithm.filter_groups.max_num_gen_batches=10 \
    "${REWARD[@]}" \
    trainer.logger='["console"]' \
    trainer.experiment_name=qwen3_8b_forking \
    trainer.nnodes=1 \
    trainer.n_gpus_per_node=8 \
    trainer.test_freq=-1 \
    trainer.save_freq=5 \
    trainer.total_training_steps=85 \
    trainer.default_local_dir=outputs/qwen3_8b_forking "$@"
