"""One run per directory: starting a new one, or continuing the one in it."""

from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


_YES = {"true", "yes", "y", "t", "1", "on"}
_NO = {"false", "no", "n", "f", "0", "off", "none", "null", ""}


def checkpoint_choice(resume_from_checkpoint: str | bool | None) -> str | bool:
    """
    Convert `resume_from_checkpoint`, a field of type `str` in which the command line's `false` arrives as text.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            The parsed value.

    Returns:
        `str` or `bool`: `False` for a new run, `True` for the newest checkpoint, or the path of one.

    Raises:
        `ValueError`: for a path that does not exist.
    """
    text = "" if resume_from_checkpoint is None else str(resume_from_checkpoint).strip()
    if text.lower() in _YES | _NO:
        return text.lower() in _YES
    if not Path(text).is_dir():
        raise ValueError(
            f"resume_from_checkpoint: there is no folder {text!r} (looked from {Path.cwd()}). Set it to true for the "
            "newest checkpoint in output_dir, to the path of a checkpoint, or to false for a new run."
        )
    return text


def refuse_other_run(output_dir: str | Path, resume_from_checkpoint: str | bool) -> None:
    """
    Refuse a second run in the same directory, which would mix its checkpoints with those of the first.

    Args:
        output_dir (`str` or `Path`): Output directory of the new run.
        resume_from_checkpoint (`str` or `bool`): Result of [`checkpoint_choice`].

    Raises:
        `ValueError`: if another run is there, and is not the one to continue.
    """
    directory = Path(output_dir)
    earlier = sorted([*directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), *directory.glob("trainer_state.json")])
    if not earlier or resume_from_checkpoint is True:
        return
    if resume_from_checkpoint and directory.resolve() in Path(resume_from_checkpoint).resolve().parents:
        return
    can_go_on = any(path.is_dir() for path in earlier)
    remedy = "Continue it with --resume_from_checkpoint true, or choose" if can_go_on else "Choose"
    foreign = f", which the checkpoint {resume_from_checkpoint!r} is no part of" if resume_from_checkpoint else ""
    raise ValueError(
        f"output_dir {str(output_dir)!r} holds another run ({earlier[0].name}){foreign}. {remedy} another output_dir."
    )


def refuse_missing_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | bool) -> None:
    """
    Refuse to continue a run that has left no checkpoint, before a model is loaded. The trainer looks whether one of
    them is complete.

    Args:
        output_dir (`str` or `Path`): Output directory of the run.
        resume_from_checkpoint (`str` or `bool`): Result of [`checkpoint_choice`].

    Raises:
        `ValueError`: if there is none.
    """
    if resume_from_checkpoint is True and not any(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        raise ValueError(
            f"resume_from_checkpoint: there is no complete checkpoint in {output_dir}. Name another one, or start a "
            "new run without it."
        )
