"""
verl's batches and steps in TRL's terms.

verl counts prompts: `train_batch_size` are generated for, `ppo_mini_batch_size` are in an optimizer step, each with
`n` responses, over all GPUs together. TRL counts completions: `per_device_train_batch_size` in a pass of one process,
`gradient_accumulation_steps` passes in a step, `generation_batch_size` in a generation batch. A step of verl's trainer
is a generation batch, with `train_batch_size / ppo_mini_batch_size` optimizer steps for each of the `ppo_epochs`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .fates import CHANGED, DECIDE, NOT_NEEDED, RENAMED, Fate, Source
from .verl_keys import ACTOR, KEYS, ROLLOUT


@dataclass(frozen=True)
class Batches:
    """
    The numbers of both sides.

    Args:
        prompts (`int`): Prompts of a generation batch.
        mini (`int`): Prompts of an optimizer step.
        responses (`int`): Responses to a prompt.
        epochs (`int`): Updates with each completion.
        processes (`int`): Processes of the training, one per GPU.
        wanted_rows (`int`): Completions in a pass of one process, as the file has it.
    """

    prompts: int
    mini: int
    responses: int
    epochs: int
    processes: int
    wanted_rows: int

    def __post_init__(self):
        if self.prompts % self.mini:
            raise ValueError(
                f"data.train_batch_size={self.prompts} is no multiple of ppo_mini_batch_size={self.mini}: verl makes "
                "a smaller last optimizer step, and TRL's all have the same size. Change one of them"
            )
        if self.rows_of_a_step % self.processes:
            fits = [n for n in range(1, self.rows_of_a_step + 1) if self.rows_of_a_step % n == 0]
            near = [n for n in fits if n <= self.processes][-1:] + [n for n in fits if n > self.processes][:1]
            raise ValueError(
                f"an optimizer step has ppo_mini_batch_size x n = {self.mini} x {self.responses} = "
                f"{self.rows_of_a_step} completions, which {self.processes} processes cannot share evenly. "
                f"Give --num_processes {' or '.join(map(str, near))}"
            )

    @property
    def rows_of_a_step(self) -> int:
        return self.mini * self.responses

    @property
    def rows_of_a_pass(self) -> int:
        """The largest number up to the wanted one that divides a process's rows of a step."""
        rows = self.rows_of_a_step // self.processes
        return max(n for n in range(1, min(self.wanted_rows, rows) + 1) if rows % n == 0)

    @property
    def accumulation(self) -> int:
        return self.rows_of_a_step // self.processes // self.rows_of_a_pass

    @property
    def updates(self) -> int:
        """Optimizer steps for each generation batch."""
        return self.prompts // self.mini * self.epochs


def read_batches(source: Source, processes: int) -> Batches:
    """The numbers of a file; a `ValueError` names the key whose value is none."""

    def number(key: str) -> int:
        value = source.get(key)
        if key == "data.train_batch_size" and value == 0:
            raise ValueError(f"{key} is 0, as in verl's fully asynchronous trainer, which has no counterpart here")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{source.written.get(key, key)} must be a whole number of at least 1, got {value!r}")
        return value

    per_gpu, of_all = f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ACTOR}.ppo_micro_batch_size"
    wanted = 1
    if not source.get(f"{ACTOR}.use_dynamic_bsz"):
        if source.get(per_gpu) is not None:
            wanted = number(per_gpu)
        elif source.get(of_all) is not None:
            wanted = max(1, number(of_all) // processes)
    keys = ("data.train_batch_size", f"{ACTOR}.ppo_mini_batch_size", f"{ROLLOUT}.n", f"{ACTOR}.ppo_epochs")
    prompts, mini_batch, responses, epochs = map(number, keys)
    batches = Batches(prompts, mini_batch, responses, epochs, processes, wanted)
    if batches.responses < 2:
        raise ValueError(
            f"{ROLLOUT}.n={batches.responses}: a group of one completion has no advantage. Is this a run of GRPO?"
        )
    return batches


def batches_and_steps(source: Source, batches: Batches) -> Iterator[Fate]:
    """What becomes of the keys about batches and steps."""
    yield from _sizes(source, batches)
    yield from _lengths_of_the_run(source, batches)


def _sizes(source: Source, batches: Batches) -> Iterator[Fate]:
    rows, accumulation = batches.rows_of_a_pass, batches.accumulation
    yield source.fate(f"{ROLLOUT}.n", RENAMED, num_generations=batches.responses)
    yield source.fate(
        "data.train_batch_size",
        CHANGED,
        f"{batches.prompts} prompts with {batches.responses} completions each.",
        generation_batch_size=batches.prompts * batches.responses,
    )
    yield source.fate(
        f"{ACTOR}.ppo_mini_batch_size",
        CHANGED,
        f"{batches.mini} prompts x {batches.responses} = {batches.rows_of_a_step} completions in an optimizer step, "
        f"over {batches.processes} processes x {rows} in a pass.",
        gradient_accumulation_steps=accumulation,
    )
    per_gpu, of_all = f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ACTOR}.ppo_micro_batch_size"
    dynamic, tokens = f"{ACTOR}.use_dynamic_bsz", f"{ACTOR}.ppo_max_token_len_per_gpu"
    if source.get(dynamic):
        yield source.fate(dynamic, CHANGED, KEYS[dynamic].why, per_device_train_batch_size=1)
        if source.get("actor_rollout_ref.model.use_remove_padding", True):
            yield source.fate(tokens, RENAMED, max_tokens_per_forward=source.get(tokens))
        else:
            yield source.fate(tokens, NOT_NEEDED, "Rows are packed without padding only.")
        ignored, why = [per_gpu, of_all], "verl does not read it with use_dynamic_bsz."
    else:
        decisive = per_gpu if source.get(per_gpu) is not None or source.get(of_all) is None else of_all
        if decisive == per_gpu and not source.has(per_gpu):
            why = "The file does not say how many completions a pass has: try more if memory allows."
            yield source.fate(per_gpu, DECIDE, why, per_device_train_batch_size=rows)
        elif rows != batches.wanted_rows:
            share = batches.rows_of_a_step // batches.processes
            why = f"{batches.wanted_rows} is no divisor of the {share} completions of a process and step."
            yield source.fate(decisive, CHANGED, why, per_device_train_batch_size=rows)
        else:
            verdict = RENAMED if decisive == per_gpu else CHANGED
            yield source.fate(decisive, verdict, per_device_train_batch_size=rows)
        ignored, why = [of_all if decisive == per_gpu else per_gpu, dynamic, tokens], "Not read by verl here."
    yield from (source.fate(key, NOT_NEEDED, why) for key in ignored if source.has(key))
    yield source.fate(f"{ACTOR}.ppo_epochs", RENAMED, num_iterations=batches.epochs)


def _lengths_of_the_run(source: Source, batches: Batches) -> Iterator[Fate]:
    updates = batches.updates
    each = f"verl counts generation batches, of {updates} optimizer steps each." if updates > 1 else ""
    total, epochs = "trainer.total_training_steps", "trainer.total_epochs"
    if source.get(total) is not None:
        yield source.fate(total, CHANGED if updates > 1 else RENAMED, each, max_steps=source.get(total) * updates)
        if source.has(epochs):
            yield source.fate(epochs, NOT_NEEDED, "total_training_steps decides.")
    else:
        if source.has(total):
            yield source.fate(total, NOT_NEEDED, "total_epochs decides.")
        yield source.fate(epochs, RENAMED, num_train_epochs=float(source.get(epochs)))

    save = source.get("trainer.save_freq")
    if save is None or save <= 0:
        why = "The model is saved at the end in any case."
        yield source.fate("trainer.save_freq", CHANGED, why, save_strategy="no")
    else:
        verdict = CHANGED if updates > 1 else RENAMED
        yield source.fate("trainer.save_freq", verdict, each, save_strategy="steps", save_steps=save * updates)

    steps, ratio = f"{ACTOR}.optim.lr_warmup_steps", f"{ACTOR}.optim.lr_warmup_steps_ratio"
    if has_warmup_steps(source):
        warmup = source.get(steps)
        yield source.fate(steps, CHANGED if updates > 1 else RENAMED, each, warmup_steps=warmup * updates)
        if source.has(ratio):
            yield source.fate(ratio, NOT_NEEDED, "lr_warmup_steps decides.")
    else:
        if source.has(steps):
            yield source.fate(steps, NOT_NEEDED, "lr_warmup_steps_ratio decides.")
        yield source.fate(ratio, RENAMED, warmup_steps=source.get(ratio) or 0)


def has_warmup_steps(source: Source) -> bool:
    """Whether the number of warmup steps decides, not their share."""
    steps = source.get(f"{ACTOR}.optim.lr_warmup_steps")
    return steps is not None and steps > 0
