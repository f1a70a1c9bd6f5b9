"""The end of a run: the model is saved before anything that can fail."""

import traceback
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from .._logging import logger


class SaveFirstCallback(TrainerCallback):
    """
    Save the model when training is done, before trackers finish and other callbacks run.

    Args:
        save (`callable`): Function that saves it; called on every process.
    """

    def __init__(self, save: Callable[[], None]):
        self.save = save
        self.has_saved = False

    def on_train_end(self, args, state, control, **kwargs):
        self.save()
        self.has_saved = True


def train_and_save(trainer, resume_from_checkpoint: str | bool = False) -> str | None:
    """
    Train, and save the model to `output_dir`, even if something fails between the last step and the end.

    Trackers that cannot finish, a last evaluation or a last log that fails are reported as errors of the log, as the
    model is complete without them. An error before that is raised as always.

    Args:
        trainer ([`ForkingGRPOTrainer`]): The trainer. It needs no preparation.
        resume_from_checkpoint (`str` or `bool`, *optional*, defaults to `False`): Argument of `trainer.train`.

    Returns:
        `str`: the failure after the last step, or `None`.
    """

    def save():
        # No push of the model, which `save_model` would do by itself
        trainer.save_model(trainer.args.output_dir, _internal_call=True)

    saving = SaveFirstCallback(save)
    trainer.callback_handler.callbacks.insert(0, saving)  # `add_callback` appends: trackers would finish before
    failure: BaseException | None = None
    try:
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    except BaseException as error:  # an interruption of a tracker that hangs, too
        if not _last_step_is_done(trainer):
            raise
        failure = error
    finally:
        trainer.remove_callback(saving)
    if not saving.has_saved:
        save()
    if isinstance(failure, Exception):
        logger.error(
            f"The training is done and its model saved in {trainer.args.output_dir}, but what came after the last "
            f"step failed:\n{''.join(traceback.format_exception(failure))}"
        )
        return f"finishing the training ({_short(failure)})"
    if failure is not None:
        raise failure
    return None


def attempt(what: str, function: Callable[[], object], failures: list[str] | None = None) -> object | None:
    """
    Call a function that a finished run does not need. Its failure is a warning.

    Args:
        what (`str`): Description of the function for the warning: `"writing training.png"`.
        function (`callable`): Takes nothing.
        failures (`list[str]`, *optional*): List to which a failure is added.

    Returns:
        The result of the function, or `None` if it failed.
    """
    try:
        return function()
    except Exception as error:
        logger.warning(f"The model is saved, but {what} failed ({_short(error)}).", exc_info=True)
        if failures is not None:
            failures.append(f"{what} ({_short(error)})")
        return None


def files_of(directory: str | Path, *names: str) -> str:
    """A sentence that lists those of the named files that exist."""
    there = ["model", *(name for name in names if (Path(directory) / name).is_file())]
    listed = " and ".join(filter(None, (", ".join(there[:-1]), there[-1])))
    return f"{listed[0].upper()}{listed[1:]} {'are' if len(there) > 1 else 'is'} in {directory}."


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _last_step_is_done(trainer) -> bool:
    return trainer.control.should_training_stop or 0 < trainer.state.max_steps <= trainer.state.global_step
