"""What is measured of a model while it trains."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import TrainerCallback

from trl_fork.analysis.statistics import change_by_percentile, overlap, percentile_trace
from trl_fork.entropy import completion_entropies

from .gradients import gradient_shares
from .grid import Cell
from .settings import MAX_COMPLETION_LENGTH, NUM_GENERATIONS, SAMPLES_PER_PROBLEM, conversation, short


class Probe(TrainerCallback):
    """
    Measures the model on held-out problems while it trains, from random numbers of its own.

    Args:
        cell ([`Cell`]): The run.
        task (module): Its task.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        problems (`list[tuple]`): Held-out problems.
        reference ([`~transformers.PreTrainedModel`]): The model before training.
        every (`int`): Updates between two evaluations.
        takes_gradient_apart (`bool`): Whether to call [`gradients.gradient_shares`] with each.
    """

    def __init__(self, cell: Cell, task, tokenizer, problems, reference, *, every: int, takes_gradient_apart: bool):
        self.cell, self.task, self.tokenizer, self.problems, self.reference = (
            cell,
            task,
            tokenizer,
            problems,
            reference,
        )
        self.every, self.takes_gradient_apart = every, takes_gradient_apart
        self.evaluations: list[dict] = []
        self.gradients: list[dict] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.reference.to(model.device)
        self.measure(0, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            self.measure(state.global_step, model)

    def measure(self, step: int, model) -> None:
        rollouts = self.sample(model, samples=1, seed=1000 * self.cell.seed + step)
        self.evaluations.append(
            {
                "step": step,
                "accuracy": short(rollouts.correct.mean()),
                "length": short(rollouts.lengths.mean()),
                "entropy": short(rollouts.entropies.mean()),
                "entropy_percentiles": [short(value) for value in percentile_trace(rollouts.entropies)],
            }
        )
        if self.takes_gradient_apart:
            # Two batches: how far the gradient of one agrees with that of the other is the measure of its noise.
            batches = [
                self.sample(model, NUM_GENERATIONS, seed=1000 * self.cell.seed + step + 1 + half, part=half)
                for half in (0, 1)
            ]
            shares = gradient_shares(model, [batch.as_group_batch(NUM_GENERATIONS) for batch in batches], step)
            self.gradients.append({"step": step, **{name: short(value) for name, value in shares.items()}})

    def final(self, model) -> dict:
        """The last evaluation, with several samples per problem, and what became of the entropies."""
        rollouts = self.sample(model, SAMPLES_PER_PROBLEM, seed=self.cell.seed)
        before = rollouts.scored_by(self.reference)
        by_problem = rollouts.correct.reshape(-1, SAMPLES_PER_PROBLEM)
        greedy = self.sample(model, samples=1, seed=0, do_sample=False)
        return {
            "accuracy": short(by_problem.mean()),
            f"pass@{SAMPLES_PER_PROBLEM}": short(by_problem.any(1).mean()),
            "greedy_accuracy": short(greedy.correct.mean()),
            "length": short(rollouts.lengths.mean()),
            "entropy": short(rollouts.entropies.mean()),
            "overlap": {k: short(v) for k, v in overlap(before, rollouts.entropies, rollouts.lengths).items()},
            "entropy_change": [short(b["mean_change"]) for b in change_by_percentile(before, rollouts.entropies)],
        }

    @torch.no_grad()
    def sample(self, model, samples: int, seed: int, part: int | None = None, do_sample: bool = True) -> "Rollouts":
        """Answers to the held-out problems, or to one eighth of them; `samples` to each, one after the other."""
        eighth = len(self.problems) // 8
        problems = self.problems if part is None else self.problems[part * eighth : (part + 1) * eighth]
        problems = [problem for problem in problems for _ in range(samples)]
        inputs = self.tokenizer.apply_chat_template(
            [conversation(self.task, problem) for problem in problems],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        was_training = model.training
        model.eval()
        with torch.random.fork_rng():  # the run's own sampling is not to depend on what is measured
            torch.manual_seed(seed)
            output = model.generate(
                **inputs,
                max_new_tokens=MAX_COMPLETION_LENGTH[self.cell.task],
                **(sampling if do_sample else {"do_sample": False}),
            )
        length = inputs["input_ids"].shape[1]
        completion_ids = output[:, length:]
        mask = completion_ids != self.tokenizer.pad_token_id
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        correct = [self.task.is_correct(problem, text) for problem, text in zip(problems, texts, strict=True)]
        rollouts = Rollouts(output, torch.cat([inputs["attention_mask"], mask.long()], 1), mask, np.array(correct))
        rollouts.entropies = rollouts.scored_by(model)
        model.train(was_training)
        return rollouts


@dataclass
class Rollouts:
    """
    Completions of one model.

    Args:
        input_ids, attention_mask (`torch.Tensor` of shape `(batch, prompt + completion)`): What was read and written.
        mask (`torch.Tensor` of shape `(batch, completion)`): True at completion tokens.
        correct (`np.ndarray` of shape `(batch,)`): Whether the answer is right.
        entropies (`np.ndarray` of shape `(num_tokens,)`): In nats, one completion after the other.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    correct: np.ndarray
    entropies: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        return self.mask.sum(1).cpu().numpy()

    def scored_by(self, model) -> np.ndarray:
        chunks = zip(self.input_ids.split(512), self.attention_mask.split(512), self.mask.split(512), strict=True)
        scored = [completion_entropies(model, ids, attention, mask.shape[1])[mask] for ids, attention, mask in chunks]
        return torch.cat(scored).cpu().numpy()

    def as_group_batch(self, num_generations: int) -> dict[str, torch.Tensor]:
        """For [`gradients.gradient_shares`]: the advantages of GRPO, and the entropies on their tokens."""
        rewards = torch.tensor(self.correct, dtype=torch.float32, device=self.mask.device).view(-1, num_generations)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        entropies = torch.zeros(self.mask.shape, device=self.mask.device)
        entropies[self.mask] = torch.from_numpy(self.entropies).to(entropies)
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "mask": self.mask,
            "advantages": advantages.flatten(),
            "entropies": entropies,
        }
