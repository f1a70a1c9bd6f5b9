"""Completions of given lengths from any generator of a causal model, by a hook on its forward pass."""

import torch

from .workload import FIRST_WORD, PROMPT_LENGTH


END = 1  # the end token of `workload.build_tokenizer`


class ForcedLengths:
    """
    A forward hook that puts all probability on one next token, so that each row of a group has a length of its own.

    The prompt of a group is one word, repeated. The first token of its completions is that word again: all rows of a
    group have the same, so that their prompt may be read once for all. Then the hook hands out words that stand for
    lengths, to whichever rows of the group come along, and lets each be repeated until its length is reached. So it
    does not matter which rows a forward pass has, in which order, or whether they are packed into one: the lengths of
    every group are the same. The hook costs next to nothing beside the model's own forward pass.

    Args:
        lengths (`list[int]`): Tokens of each completion, the end token included; the rows of a group stand together.
        generations (`int`): Rows of a group.
        vocabulary (`int`): Words that there are.
        device: Device of the model.
    """

    def __init__(self, lengths, generations, vocabulary, device):
        self.generations, self.groups = generations, len(lengths) // generations
        self.lengths = [lengths[i : i + generations] for i in range(0, len(lengths), generations)]
        self.first_prompt = FIRST_WORD + len(lengths)
        if self.first_prompt + self.groups > vocabulary:
            raise ValueError(f"{len(lengths)} completions need more than {vocabulary} words: pass fewer --groups.")
        # The position of the last word before the end, by word.
        self.ends = torch.full((vocabulary,), torch.iinfo(torch.long).max, device=device)
        self.ends[FIRST_WORD : self.first_prompt] = torch.tensor(lengths, device=device) + PROMPT_LENGTH - 2
        self.numbers = torch.arange(self.groups, device=device)
        self.handed = torch.zeros(self.groups, dtype=torch.long, device=device)
        self.prompts = [[self.first_prompt + group] * PROMPT_LENGTH for group in range(self.groups)]

    def restart(self):
        """Hand out the lengths anew, for another generation batch."""
        self.handed.zero_()

    def __call__(self, module, args, kwargs, output):
        if getattr(output, "logits", None) is None:  # TRL's fused head gives log-probabilities: that is training
            return
        keep = kwargs.get("logits_to_keep", 0)
        keep = keep if isinstance(keep, torch.Tensor) else slice(-keep, None)
        words, positions = kwargs["input_ids"][:, keep], kwargs["position_ids"][:, keep]
        group = words - self.first_prompt
        # No branch on what is found: that would wait for a GPU, and could not be captured in a graph.
        new = (group.reshape(-1, 1) == self.numbers) & (positions.reshape(-1, 1) == PROMPT_LENGTH)
        rank = self.handed + new.cumsum(0) - 1
        row = ((self.numbers * self.generations + rank) * new).sum(1).view_as(words)
        self.handed += new.sum(0)
        following = torch.where(new.any(1).view_as(words), FIRST_WORD + row, words)
        following = torch.where(positions >= self.ends[following], END, following)
        output.logits.scatter_(-1, following.unsqueeze(-1), 1e4)
