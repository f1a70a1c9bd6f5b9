"""
A task small enough for a laptop: the last digit of a sum, worked out in words.

The question ` a4 b1 c3 d2` asks for (4 + 1 + 3 + 2) mod 10. A demonstration adds one number at a time, or
guesses the rest:

    first a4. then 4 b1=5. now 5 c3=8. next 8 d2=0. done \\boxed{0}
    start with a4. then 4 b1=5. so 5 rest=3. the answer is \\boxed{3}

A model that imitates such demonstrations is right about a quarter of the time, though it can add: it must learn to go
on at each step. The word that decides (`then`, `next`, `now` or `so`) is a forking token; the running
total, `=` or the end of the box follow from what stands before them.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed


LABELS = "abcdef"
NUM_OPERANDS = (4, 6)  # fewest and most
OPERANDS = (1, 4)  # smallest and largest. Sums with digits up to 9 are not learned within minutes.

STARTS = ("first", "start with")
CAREFUL = ("then", "next", "now")  # each less likely than HASTY, so that greedy decoding guesses too
HASTY = "so"
ENDS = ("done", "the answer is")
P_HASTY = 0.3  # at each step; it determines the accuracy of the warmed-up model
P_LEFT_TO_RIGHT = 0.8  # share of the demonstrations; the others take the numbers in any order

_TOKEN = r"\\boxed\{| ?[a-z]+|[0-9]|[^a-z0-9]"
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
_CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def training_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw problems outside the held-out part, with repetition; each is the tuple of its operands."""
    drawn = (_draw(rng) for _ in itertools.count())
    return list(itertools.islice((operands for operands in drawn if not is_held_out(operands)), num_problems))


def held_out_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw different problems from the held-out part, of which there are about 2,100."""
    drawn: dict[tuple[int, ...], None] = {}  # a dictionary keeps the order, which a set of tuples need not
    while len(drawn) < num_problems:
        operands = _draw(rng)
        if is_held_out(operands):
            drawn[operands] = None
    return list(drawn)


def _draw(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(*OPERANDS) for _ in range(rng.randint(*NUM_OPERANDS)))


def is_held_out(operands: tuple[int, ...]) -> bool:
    """
    Whether a problem belongs to the two fifths that are never trained on, neither in the warm-up nor in RL.

    The hash is cryptographic: `(31 * h + x) % 5` is the sum of the operands modulo 5, which would put some answers on
    one side only.
    """
    return hashlib.md5(bytes(operands)).digest()[0] % 5 < 2


def question(operands: tuple[int, ...]) -> str:
    return "".join(f" {label}{operand}" for label, operand in zip(LABELS, operands, strict=False))


def solution(operands: tuple[int, ...]) -> str:
    return str(sum(operands) % 10)


def is_correct(operands: tuple[int, ...], text: str) -> bool:
    """Whether a completion ends in the right digit, in a box."""
    return text.endswith(f"\\boxed{{{solution(operands)}}}")


def demonstration(operands: tuple[int, ...], rng: random.Random) -> str:
    """A chain of thought in the manner of the warm-up data. Its guesses are right one time in ten."""
    remaining = list(zip(LABELS, operands, strict=False))
    if rng.random() > P_LEFT_TO_RIGHT:
        rng.shuffle(remaining)
    label, total = remaining.pop(0)
    text = f"{rng.choice(STARTS)} {label}{total}."
    while remaining:
        before = total
        if rng.random() < P_HASTY:
            remaining, total = [], rng.randrange(10)
            text += f" {HASTY} {before} rest={total}."
        else:
            label, operand = remaining.pop(0)
            total = (total + operand) % 10
            text += f" {rng.choice(CAREFUL)} {before} {label}{operand}={total}."
    return f"{text} {rng.choice(ENDS)} \\boxed{{{total}}}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign. Decoding returns the text exactly."""
    # A word is another token after a space; only the start words stand without one.
    return build_tokenizer([*STARTS, *(f" {phrase}" for phrase in (*CAREFUL, HASTY, *ENDS, "rest", *LABELS))])


def build_tokenizer(phrases: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer for a task whose words are these, besides digits and signs."""
    words = {token for phrase in phrases for token in re.findall(_TOKEN, phrase)}
    words |= {"\\boxed{", "}", "=", ".", " ", *"0123456789"}
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), "isolated")
    tokenizer.decoder = decoders.Fuse()  # the default would put spaces between tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )


TINY = {  # 0.45 million parameters
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, shape: dict[str, int] = TINY) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights."""
    set_seed(seed)
    settings: dict[str, Any] = dict(shape)
    config = Qwen3Config(
        **settings,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)
