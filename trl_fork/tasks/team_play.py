"""What a model does as the team of `split_sums`: episodes, and its convention."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..generation.completions import complete
from . import split_sums as task


MAX_COMPLETION_LENGTH = 20  # tokens; demonstrations have up to 17 with the end token


@dataclass(frozen=True)
class Episode:
    """
    One turn of `left` and one of `right`.

    Args:
        problem (`tuple`): The numbers of both roles.
        left (`str`): What `left` wrote.
        message (`str`): What `right` read of it.
        right (`str`): What `right` wrote.
    """

    problem: task.Problem
    left: str
    message: str
    right: str

    @property
    def codes(self) -> tuple[str | None, str | None]:
        """Codes of left and of right, see [`~tasks.split_sums.code_of_left`]."""
        return task.code_of_left(self.left), task.code_of_right(self.right)

    @property
    def is_right(self) -> bool:
        return self.right.endswith(f"\\boxed{{{task.solution(self.problem)}}}")


def play(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: list[task.Problem], seed: int
) -> list[Episode]:
    """An episode of each problem, sampled at temperature 1."""

    def turns(questions: list[str], first_seed: int) -> list[str]:
        config = GenerationConfig(
            max_new_tokens=MAX_COMPLETION_LENGTH,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        seeds = [first_seed + number for number in range(len(questions))]
        completions = complete(model, prompt_ids(tokenizer, questions), seeds, config)
        return tokenizer.batch_decode(completions, skip_special_tokens=True)

    lefts = turns([task.left_question(problem) for problem in problems], seed)
    messages = [found[1] if (found := re.search(task.MESSAGE, text)) else "" for text in lefts]
    questions = [task.right_question(problem, message) for problem, message in zip(problems, messages, strict=True)]
    rights = turns(questions, seed + len(problems))
    return [Episode(*parts) for parts in zip(problems, lefts, messages, rights, strict=True)]


def success(episodes: list[Episode]) -> dict[str, float]:
    """
    Share of right answers: of all episodes, of those in which the codes agree, and of those in which they differ.

    An episode with a code that cannot be told is of neither kind. Of no episode the share is 0.
    """
    kinds: dict[str, list[bool]] = {"all": [], "agree": [], "differ": []}
    for episode in episodes:
        kinds["all"].append(episode.is_right)
        if None not in episode.codes:
            kinds["agree" if len({*episode.codes}) == 1 else "differ"].append(episode.is_right)
    return {kind: sum(values) / len(values) if values else 0.0 for kind, values in kinds.items()}


@torch.no_grad()
def conventions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: list[task.Problem]
) -> dict[str, float]:
    """
    Probability with which either role uses the plain code, where it uses one of the two: a mean over problems.

    It is read from next-token distributions, and has no sampling error. Of `left` it is that of the digit which it
    says, after a sum without an error. Of `right` it is that of the digit with which it begins to add, after either
    word with the probability of that word.
    """

    def choice(questions: list[str], texts: list[str], choices: list[list[str]]) -> torch.Tensor:
        """Probabilities of the next token, `(problems, choices)`. Contexts have one length: a token is a word."""
        contexts = [
            ids + tokenizer(text, add_special_tokens=False)["input_ids"]
            for ids, text in zip(prompt_ids(tokenizer, questions), texts, strict=True)
        ]
        logits = model(input_ids=torch.tensor(contexts, device=model.device)).logits[:, -1].float()
        options = torch.tensor([tokenizer.convert_tokens_to_ids(words) for words in choices], device=model.device)
        return logits.softmax(1).gather(1, options)

    digits = [sum(left) % 10 for left, _ in problems]
    coded = [[str(task.encode(digit, code)) for code in task.CODES] for digit in digits]
    said = [task.left_turn(problem, task.PLAIN)[:-1] for problem in problems]
    left = choice([task.left_question(problem) for problem in problems], said, coded)
    asked = [task.right_question(problem, str(digit)) for problem, digit in zip(problems, digits, strict=True)]
    words = [f" {code}" for code in task.CODES]
    chosen = choice(asked, [str(digit) for digit in digits], [words for _ in digits])
    right = torch.stack(
        [
            chosen[:, [n]] * choice(asked, [f"{digit}{word}=" for digit in digits], coded)
            for n, word in enumerate(words)
        ]
    ).sum(0)
    return {role: (both[:, 0] / both.sum(1)).mean().item() for role, both in ((task.LEFT, left), (task.RIGHT, right))}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, questions: list[str]) -> list[list[int]]:
    conversations = [[{"role": "user", "content": question}] for question in questions]
    found: Any = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=False)
    return found
