"""Trainers that `step.py` and `whole_step.py` compare, and a few steps of one of them without a rollout."""

import dataclasses
import tempfile

from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer

from .instruments import Clock, CreditOfBatch, GradientError, PassedTokens, PeakMemory, count_head_rows, run_settings
from .workload import FIRST_WORD, GENERATIONS, RHO, SHAPES, build_model, build_tokenizer


@dataclasses.dataclass(frozen=True)
class Arm:
    """
    A trainer, and what is special about it.

    Args:
        name (`str`): Its row in the table.
        is_trl (`bool`): Whether it is TRL's own.
        without (`tuple[str, ...]`): Savings that are taken away.
        token_credit (`str`, *optional*): The credit rules; by default those of `top_entropy_quantile`.
        progress (`float`): Share of the training that is done, for schedules.
        settings (`dict`): Fields of its configuration that are special.
    """

    name: str
    is_trl: bool = False
    without: tuple[str, ...] = ()
    token_credit: str | None = None
    progress: float = 0.0
    settings: dict = dataclasses.field(default_factory=dict)


class RefusedError(Exception):
    """The trainer does not take the credit rules of an arm."""


BASELINE = Arm("TRL", is_trl=True)
VARIANTS = {
    name: Arm(name, without=without)
    for name, without in {
        "ours, nothing left out": (
            *("padding", "packing", "ordering", "inert_rows"),
            *("head_backward", "head_forward"),
        ),
        "ours": (),
        "without packing": ("packing",),
        "without cut padding": ("padding", "packing"),
        "without ordering": ("ordering", "inert_rows"),
        "without sparse head": ("head_backward", "head_forward"),
    }.items()
}


def build_trainer(arm, rollouts, options, device, steps):
    """
    The trainer of an arm for a number of steps with a learning rate of zero.

    Raises:
        `RefusedError`: if there are credit rules that it does not take, with the reason.
    """
    try:
        return assemble(
            arm,
            options,
            device,
            steps,
            reward_funcs=rollouts.reward,
            train_dataset=Dataset.from_dict({"prompt": [f"w{FIRST_WORD}"] * options.groups}),
            rollout_func=rollouts,
        )
    except (ValueError, NotImplementedError) as error:
        if arm.token_credit is None:
            raise
        raise RefusedError(str(error)) from error


def assemble(arm, options, device, steps, *, processes=1, wrap=lambda trainer_class: trainer_class, **arguments):
    """
    The trainer of an arm, with a learning rate of zero.

    Args:
        wrap (`Callable`): Makes another class of the arm's.
        **arguments: Arguments of the trainer: what it is rewarded for, trained on and, unless it generates, given.
    """
    settings = dict(arm.settings) if arm.token_credit is None else {"token_credit": arm.token_credit, **arm.settings}
    trainer_class, config_class = (
        (GRPOTrainer, GRPOConfig) if arm.is_trl else (_at_progress(arm.progress), ForkingGRPOConfig)
    )
    model = arguments.pop("model", None) or build_model(options.shape, device, lora=options.lora)
    trainer = wrap(trainer_class)(
        model=model,
        args=config_class(
            tempfile.mkdtemp(),
            top_entropy_quantile=RHO,
            epsilon_high=0.28,
            max_steps=steps,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.groups * GENERATIONS // (options.micro_batch * processes),
            num_generations=GENERATIONS,
            max_completion_length=options.max_length,
            **run_settings(device),
            **settings,
        ),
        processing_class=build_tokenizer(SHAPES[options.shape][6]),
        **arguments,
    )
    if not arm.is_trl:
        trainer._savings = dataclasses.replace(trainer._savings, **dict.fromkeys(arm.without, False))
    trainer.remove_callback(PrinterCallback)
    return trainer


def _at_progress(progress):
    """The trainer as at one place of its schedules, at every step."""
    return type("ForkingGRPOTrainer", (ForkingGRPOTrainer,), {"_training_progress": progress})


def run(arm, rollouts, exact, options, device, *, measure_memory=False, warm_up=0):
    """
    Measured steps of an arm after `warm_up` others: at least one on a GPU, or in which memory is measured.

    Returns:
        `dict`: the row of the arm in the table, without what follows from other rows.
    """
    warm_up = max(warm_up, int(measure_memory or device == "cuda"))
    steps = warm_up + options.steps
    trainer = build_trainer(arm, rollouts, options, device, steps)
    passed, credit, clock = PassedTokens(trainer.model, warm_up), CreditOfBatch(), Clock(device)
    memory, error = PeakMemory(device, SHAPES[options.shape][6]), GradientError(exact)
    for callback in (clock, passed, credit, *((memory, error) if measure_memory else ())):
        trainer.add_callback(callback)
    with count_head_rows() as rows:
        trainer.train()
    return {
        **clock.medians(warm_up),
        "memory": memory.peak,
        "memory_with_weights": memory.total,
        "fill": int(passed.tokens) / passed.positions,
        "head_forward": rows["forward"] // steps,
        "head_backward": rows["backward"] // steps,
        "error": error.relative,
        "scoring_passes": int(passed.scored) / options.steps / rollouts.num_all_tokens,
        "tokens_trained": credit.tokens_trained,
        "effective_fraction": credit.effective_fraction,
        "savings": None if arm.is_trl else savings_of(trainer),
    }


def savings_of(trainer):
    """Which of the savings of a trainer are on."""
    return {name: value for name, value in vars(trainer._savings).items() if isinstance(value, bool)}
