"""
`trl-fork train`, which says all the time what it is doing, so that whoever kills it knows where it was.

    accelerate launch ... -m benchmarks.reliability.mortal DIRECTORY [options of trl-fork train]

Every process appends a line `seconds step activity` to `DIRECTORY/activity.RANK.txt` whenever its activity changes.
All that it does otherwise is what the command does.
"""

import os
import sys
import time
from pathlib import Path


IMPORT, SET_UP, STEP, GENERATION, SCORING, UPDATE, SAVING, EVALUATION, END = ACTIVITIES = (
    *("import", "set-up", "between steps", "generation", "scoring", "update"),
    *("saving a checkpoint", "evaluation", "after the last step"),
)
DONE = "done"


class Diary:
    """The file of one process. A line is one `write`: after SIGKILL the last one is whole, and in the file."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"activity.{os.environ.get('RANK', '0')}.txt"
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.stack: list[str] = []
        self.step = 0

    def now(self, activity: str) -> None:
        os.write(self.file, f"{time.time():.6f} {self.step} {activity}\n".encode())

    def during(self, activity: str, method):
        """The method of a trainer, with its activity written down before, and the one around it after."""

        def wrapped(trainer, *args, **kwargs):
            self.step = trainer.state.global_step
            if EVALUATION in self.stack:  # an evaluation generates and scores as well
                return method(trainer, *args, **kwargs)
            self.stack.append(activity)
            self.now(activity)
            try:
                return method(trainer, *args, **kwargs)
            finally:
                self.stack.pop()
                self.step = trainer.state.global_step
                self.now(self.stack[-1] if self.stack else STEP)

        return wrapped


def reward(completions, **kwargs):
    """A reward that a tiny model gets now and then, a third of the groups never: dynamic sampling has to go on."""
    return [float(len(set(completion[0]["content"])) % 4 == 0) for completion in completions]


def main(directory: str, *words: str) -> None:
    diary = Diary(Path(directory))
    diary.now(IMPORT)
    from tests.distributed.worker import prepare_for_cpu
    from trl_fork import ForkingGRPOTrainer
    from trl_fork.commands import finishing, train

    prepare_for_cpu()
    diary.now(SET_UP)
    for name, activity in {
        "_generate": GENERATION,
        "_generate_and_score_completions": SCORING,
        "training_step": UPDATE,
        "_save_checkpoint": SAVING,
        "evaluate": EVALUATION,
    }.items():
        setattr(ForkingGRPOTrainer, name, diary.during(activity, getattr(ForkingGRPOTrainer, name)))
    save = finishing.SaveFirstCallback.on_train_end

    def on_train_end(callback, args, state, control, **kwargs):
        diary.step = state.global_step
        diary.now(END)
        return save(callback, args, state, control, **kwargs)

    finishing.SaveFirstCallback.on_train_end = on_train_end
    train.main(list(words))
    diary.now(DONE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as the workers of the distributed tests: the interpreter's tear-down aborts one launch in seventy


if __name__ == "__main__":
    main(*sys.argv[1:])
