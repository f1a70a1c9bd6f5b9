"""Completions of given lengths from any generator of a causal model, by a hook on its forward pass."""

import torch

from .workload import FIRST_WORD, PROMPT_LENGTH


END = 1  # the end token of `workload.build_tokenizer`


class ForcedLengths:
    """
    A forward hook that puts all probability on one next token, so that each row of a group has a length of its own.

    The prompt of a group is one word, repeated. The first token of its completions is that word again: all rows of a
    group have the same, so that their prompt may be read once for all. Then the hook hands out rows, each with a
    length and some words of its own, to whichever rows of the group come along. Which of its words comes next follows
    from the position, until the length is reached. So it does not matter which rows a forward pass has, in which
    order, or whether they are packed into one: the lengths of every group are the same. Words change from token to
    token, so that entropies do, and the tokens with the highest are in all rows. The hook costs next to nothing beside
    the model's own forward pass.

    Args:
        lengths (`list[int]`): Tokens of each completion, the end token included; the rows of a group stand together.
        generations (`int`): Rows of a group.
        vocabulary (`int`): Words that there are.
        device: Device of the model.
    """

    def __init__(self, lengths, generations, vocabulary, device):
        rows, groups = len(lengths), len(lengths) // generations
        self.generations, self.own = generations, (vocabulary - FIRST_WORD - groups) // rows  # words of a row
        if self.own < 1:
            raise ValueError(f"{rows} completions need more than {vocabulary} words: pass fewer --groups.")
        self.lengths = [lengths[i : i + generations] for i in range(0, rows, generations)]
        self.first_prompt = FIRST_WORD + rows * self.own
        self.ends = torch.tensor(lengths, device=device) + PROMPT_LENGTH - 2  # position of a row's last word
        self.numbers = torch.arange(groups, device=device)
        self.handed = torch.zeros(groups, dtype=torch.long, device=device)
        self.prompts = [[self.first_prompt + group] * PROMPT_LENGTH for group in range(groups)]

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
        handed = ((self.numbers * self.generations + rank) * new).sum(1).view_as(words)
        self.handed += new.sum(0)
        is_new = new.any(1).view_as(words)
        row = torch.where(is_new, handed, (words - FIRST_WORD) // self.own).clamp(0, len(self.ends) - 1)
        is_text = is_new | ((words >= FIRST_WORD) & (words < self.first_prompt))
        text = FIRST_WORD + row * self.own + (row + (positions + 1) ** 2) % self.own
        following = torch.where(is_text, torch.where(positions >= self.ends[row], END, text), words)
        output.logits.scatter_(-1, following.unsqueeze(-1), 1e4)
