"""The prompt that a model was trained with, kept beside it: what it is evaluated with, and what its card shows."""

import json
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import cached_file


FILE_NAME = "forking_prompt.json"


def save_prompt(directory: str | Path, prompt: dict[str, str] | None) -> None:
    """
    Write the prompt of a training run into its output directory, for its checkpoints as well.

    Args:
        directory (`str` or `Path`): The output directory.
        prompt (`dict`, *optional*): As [`~data.training_prompt`] gives it. `None` removes an earlier run's.
    """
    path = Path(directory) / FILE_NAME
    if prompt is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(prompt, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_prompt(model: str | Path) -> tuple[dict[str, str], str] | None:
    """
    The prompt that a model was trained with, `{"instruction": ...}` or `{"prompt_template": ...}`, and its file.

    Args:
        model (`str` or `Path`): Output directory, checkpoint in it, or name on the Hub.

    Returns:
        `tuple`, or `None` where nothing is known.
    """
    folder = Path(model)
    is_checkpoint = folder.is_dir() and folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
    for place in (model, folder.parent) if is_checkpoint else (model,):
        try:
            path = cached_file(str(place), FILE_NAME)
        except OSError:  # transformers' for a file that is not there, and for a Hub that cannot be reached
            continue
        if path is not None:
            return json.loads(Path(path).read_text(encoding="utf-8")), path
    return None
