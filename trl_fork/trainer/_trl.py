"""
The only place that relies on names TRL makes no promise about.

TRL documents subclassing as the way to change an objective, but its `_`-methods may change with any release, about one
every two to three weeks. `check_hooks` refuses a TRL whose hooks have moved before hours are spent on it, and
`tests/trainer/test_trl_contract.py` calls the real ones.
"""

import inspect
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import trl.trainer.grpo_trainer as trl_grpo_trainer
import trl.trainer.utils as trl_utils
from accelerate.utils import is_peft_model
from transformers.utils import is_peft_available
from trl import GRPOTrainer
from trl.kernels import ChunkedLogProbFunction  # noqa: F401
from trl.trainer.utils import get_config_model_id, nanstd, pad  # noqa: F401

from .._logging import logger
from .._versions import LAST_TESTED


if is_peft_available():
    from peft.tuners.tuners_utils import BaseTunerLayer

# Base of the trainer's mixins. It is empty at run time; a type checker sees the attributes.
if TYPE_CHECKING:

    class TrainerMixin(GRPOTrainer):
        args: Any  # ForkingGRPOConfig
        model: Any
        num_generations: int
        num_generations_eval: int
        pad_to_multiple_of: int | None
        push_in_progress: Any
        token_credit: Any  # TokenCredit | None
        _buffered_inputs: Any
        _logs: Any
else:
    TrainerMixin = object

# Methods that `ForkingGRPOTrainer` overrides or calls, with the leading parameters it relies on and no others: a
# parameter that is only handed through (`private` of the Hub's methods) is missing from older transformers.
HOOKS = {
    "_get_output_dir": ("self", "trial"),
    "_remove_unused_columns": ("self", "dataset", "description"),
    "_get_train_sampler": ("self", "dataset"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_generate": ("self", "prompts"),
    "_tokenize_prompts": ("self", "prompts"),
    "_generate_single_turn": ("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_tool_call_loop": ("self", "prompts", "prompt_ids", "completion_ids", "completions", "logprobs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_log_completion_extra": ("self", "column", "values"),
    "training_step": ("self", "model", "inputs", "num_items_in_batch"),
    "log": ("self", "logs", "start_time"),
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "_compute_loss": ("self", "model", "inputs"),
    "get_high_entropy_mask": ("self", "entropies", "mask", "threshold"),
    "create_model_card": ("self", "model_name", "dataset_name", "tags"),
    "init_hf_repo": ("self", "token"),
    "push_to_hub": ("self", "commit_message", "blocking", "token", "revision"),
    "_push_from_checkpoint": ("self", "checkpoint_folder"),
}

# Private attributes of TRL's trainer that this package reads or writes.
ATTRIBUTES = (
    "_buffered_inputs",  # micro-batches of the generation batch in hand, of this process
    "_step",  # micro-batches so far, hence the place within the generation batch
    "_metrics",  # values since the last log, by mode and name
    "_logs",  # columns of the table of completions
    "_pending_extra_logs",  # columns that reward functions have added to it since the last generation
    "_tokenizer",
    "aux_loss_enabled",
    "eos_token_ids",
    "log_completions",
    "loss_type",
    "multi_objective_aggregation",
    "num_generations_eval",
    "num_iterations",
    "pad_to_multiple_of",
    "reward_func_names",
    "reward_weights",
    "rollout_func",
    "router_aux_loss_coef",
    "scale_rewards",
    "top_entropy_quantile",
    "tools",
    "use_transformers_continuous_batching",
    "use_vllm",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
)

_warned_untested = False


def check_hooks(trainer_class: type = GRPOTrainer, trl_version: str | None = None) -> None:
    """
    Refuse a TRL or transformers whose hooks have moved; warn once about an untested minor release of TRL.

    Args:
        trainer_class (`type`, *optional*): The class to look at.
        trl_version (`str`, *optional*): Its version; the installed one by default.

    Raises:
        `ImportError`: naming the hook, the package that defines it, what was expected and what was found.
    """
    global _warned_untested
    trl_version = trl_version or version("trl")
    for name, expected in HOOKS.items():
        method = getattr(trainer_class, name, None)
        found = tuple(inspect.signature(method).parameters) if method is not None else ()
        if found[: len(expected)] != expected:
            owner, package = _definition(trainer_class, name)
            installed = trl_version if package == "trl" else version(package)
            tested = LAST_TESTED[package]
            raise ImportError(
                f"trl_fork cannot work with {package} {installed}: {owner}.{name} should take {expected}, found "
                f"{found or 'no such method'}. The last {package} tested is {tested}: `pip install "
                f"{package}=={tested}`, or a newer trl_fork."
            )
    tested = LAST_TESTED["trl"]
    if trl_version.split(".")[:2] != tested.split(".")[:2] and not _warned_untested:
        _warned_untested = True
        logger.warning(
            f"trl_fork was last tested with TRL {tested}; you have {trl_version}. Its hooks are in place, so "
            "the run continues. Compare a short run before you start a long one."
        )


def check_attributes(trainer: GRPOTrainer) -> None:
    """
    Refuse a TRL whose trainer lacks an attribute that this package reads.

    Raises:
        `ImportError`: naming the attributes that are missing.
    """
    missing = [name for name in ATTRIBUTES if not hasattr(trainer, name)]
    if missing:
        tested = LAST_TESTED["trl"]
        raise ImportError(
            f"trl_fork cannot work with trl {version('trl')}: its GRPOTrainer has no {', '.join(missing)}. The last "
            f"trl tested is {tested}: `pip install trl=={tested}`, or a newer trl_fork."
        )


def _definition(trainer_class: type, name: str) -> tuple[str, str]:
    """Class that defines a hook, and the package that defines its signature: `trl` or `transformers`."""
    owner = next((base for base in trainer_class.__mro__ if name in vars(base)), None)
    if owner is None:  # the method is gone: name the class that had it in the tested releases
        owner = next((base for base in GRPOTrainer.__mro__ if name in vars(base)), GRPOTrainer)
    return owner.__name__, "transformers" if owner.__module__.startswith("transformers.") else "trl"


def refuse_unsloth(trainer_class: type, model) -> None:
    """
    Refuse to run on a TRL or a model that unsloth has patched.

    Its compiled loss (2026.10) does honour `top_entropy_quantile`, as TRL does: by the quantile of a micro-batch,
    divided by all tokens. It computes log-probabilities by itself, so that this package's hooks see neither the
    generation batch nor, reliably, the loss. It also pins `trl<=1.15`.

    Raises:
        `NotImplementedError`: naming what was patched.
    """
    suspects = [f"{cls.__module__}.{cls.__qualname__}" for cls in trainer_class.__mro__]
    for name in HOOKS:
        code = getattr(inspect.unwrap(getattr(trainer_class, name)), "__code__", None)
        suspects.append(Path(getattr(code, "co_filename", "")).name)
    if not isinstance(model, str):
        suspects += [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]
    for suspect in suspects:
        if "unsloth" in suspect.lower():
            raise NotImplementedError(
                f"unsloth has replaced part of TRL or of the model ({suspect}). Its compiled loss takes "
                "top_entropy_quantile as TRL does, per micro-batch and divided by all tokens, and calls the methods "
                "that trl_fork extends in its own way or not at all: entropy_threshold_scope, loss_denominator, "
                "token_selection and skip_inert_compute would not mean what they say. Start a process that does not "
                "import unsloth, or train with unsloth's own GRPOTrainer."
            )


def old_logps_are_computed(trainer: TrainerMixin) -> bool:
    """
    Whether TRL runs an old-log-probability pass over each generation batch it trains on.

    The condition of `GRPOTrainer._generate_and_score_completions`: the completions outlive the policy that made them,
    or come from vLLM and are corrected for it.
    """
    generate_every = trainer.args.steps_per_generation * trainer.num_iterations
    return trainer.args.gradient_accumulation_steps % generate_every != 0 or (
        trainer.use_vllm and trainer.vllm_importance_sampling_correction
    )


def updates_per_batch(trainer: TrainerMixin) -> float:
    """Optimizer steps on each generation batch; below 1 where a step takes several batches."""
    return trainer.args.steps_per_generation * trainer.num_iterations / trainer.args.gradient_accumulation_steps


def warn_of_cast_weights(trainer: TrainerMixin) -> None:
    """
    Warn where TRL will round the weights that are trained, in place and for good.

    Before each generation by `use_transformers_continuous_batching`, TRL 1.16 converts the model to bf16 or fp16 where
    the run computes in it. Float32 weights would lose small steps: 16 bits cannot hold a change of 1e-6.
    """
    halved = trainer.args.bf16 or trainer.args.fp16
    trained = (parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad)
    if trainer.args.use_transformers_continuous_batching and halved and torch.float32 in trained:
        logger.warning(
            "use_transformers_continuous_batching=True: TRL converts the float32 weights that are trained to "
            f"{'bf16' if trainer.args.bf16 else 'fp16'} before each generation and does not convert them back, so "
            "small steps are rounded away. Set it to False, or bf16 and fp16 to False, or use vLLM."
        )


def truncates_sampling(args) -> bool:
    """Whether tokens are sampled from only a part of the vocabulary. `generation_kwargs` override the fields."""
    settings = {"top_p": args.top_p, "top_k": args.top_k, "min_p": args.min_p, **(args.generation_kwargs or {})}
    top_p, top_k, min_p = (settings[name] for name in ("top_p", "top_k", "min_p"))
    return (top_p is not None and top_p < 1.0) or (top_k or 0) > 0 or (min_p or 0.0) > 0.0


def warn_of_truncated_sampling(trainer: TrainerMixin) -> None:
    """
    Warn where the importance ratio compares a truncated distribution with a whole one (TRL #6789).

    vLLM gives the log-probability under what truncation has left, renormalised: `log p - log S`, where `S` is the
    probability mass that is kept. TRL scores `log p` over the whole vocabulary. The ratio of the two is `S` for every
    token even if the policy has not changed. All other ratios compare two whole distributions: new against old
    log-probabilities in any run, and every ratio of a run without vLLM.
    """
    corrected = trainer.use_vllm and trainer.vllm_importance_sampling_correction
    masked = trainer.use_vllm and trainer.args.off_policy_mask_threshold is not None
    if not (truncates_sampling(trainer.args) and (corrected or masked)) or not trainer.accelerator.is_main_process:
        return
    what = []
    mode = trainer.vllm_importance_sampling_mode
    if corrected and mode.startswith("sequence"):
        what.append(
            f"vllm_importance_sampling_mode={mode!r} multiplies it over a completion: at a kept mass of 0.9, 100 "
            "tokens are weighted by 3e-5, and nearly nothing is learned"
        )
    elif corrected:
        what.append("each token's loss is multiplied by it, most where the model is least certain, at forking tokens")
    if masked:
        what.append("off_policy_mask_threshold takes its logarithm for drift of the policy")
    logger.warning(
        "top_p, top_k or min_p leaves out part of the vocabulary: vLLM's log-probabilities are of what is left, "
        "renormalised, and TRL's of the whole vocabulary, so that their ratio is the probability mass that was kept, "
        f"not 1, for one and the same policy (TRL #6789). Here {'; and '.join(what)}. On Qwen2.5-1.5B-Instruct the "
        "mean kept mass was measured as 0.895 at top_p=0.8 and 0.965 at top_k=20; sampling/kept_mass logs this run's. "
        "Set top_p=1.0, top_k=0 and min_p=None, or vllm_importance_sampling_correction=False."
    )


def training_adapter_is_active(model) -> bool:
    """`False` inside TRL's reference pass over a PEFT model, which is the same module with another adapter or none."""
    if not is_peft_model(model):
        return True
    if model.active_adapter == "ref":
        return False
    return not any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in model.modules())


def let_weights_apply(trainer) -> None:
    """
    Make TRL call `get_high_entropy_mask` in every loss.

    `_compute_loss` calls it only if the attribute `top_entropy_quantile` is below 1. At 1.0, which a rule or the end
    of a schedule may set, weights would silently have no effect. Any value below 1 will do, as the override does not
    read it.
    """
    trainer.top_entropy_quantile = min(trainer.top_entropy_quantile, 0.5)


@contextmanager
def evaluation_mode(model: torch.nn.Module):
    """
    Put a model into evaluation mode and restore the mode of each module afterwards.

    Every module is switched, as attention dropout is a function that reads `module.training`.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    for module in training:
        # On a CPU, the first pass in evaluation mode packs 4-bit weights for good into a layout without a backward.
        if type(module).__module__.startswith("bitsandbytes."):
            module.training = True
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def generate_replaced(model: torch.nn.Module, function):
    """Let `model.generate(**arguments)` call `function(model, generate, **arguments)`, with its own `generate`."""
    own = vars(model).get("generate")
    original = model.generate
    model.generate = lambda **arguments: function(model, original, **arguments)  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.generate
        if own is not None:  # a model from the Hub may have a loop of its own
            model.generate = own


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any):
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def completions_printer(function):
    """Let `log_completions` call `function` in place of TRL's `print_prompt_completions_sample`, same arguments."""
    return _replaced(trl_grpo_trainer, "print_prompt_completions_sample", function)


@contextmanager
def peft_model_function(function):
    """Let TRL's trainer call `function(get_peft_model, model, peft_config, **arguments)` to add an adapter."""
    original = getattr(trl_grpo_trainer, "get_peft_model", None)
    if original is None:  # PEFT is not installed
        yield
        return
    with _replaced(trl_grpo_trainer, "get_peft_model", partial(function, original)):
        yield


def fused_head_function(function):
    """
    Let the fused LM head call `function.apply` in place of `ChunkedLogProbFunction.apply`.

    The replacement lasts for one forward pass, so other trainers of the process keep TRL's. The backward belongs to
    the graph that the forward has made.
    """
    return _replaced(trl_utils, "_ChunkedLogProbFunction", function)
