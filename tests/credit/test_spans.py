"""Which tokens hold a match: boundaries by decoding, where characters and tokens do not line up."""

import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from tests.trainer.test_features import byte_tokenizer
from trl_fork.credit import Signals
from trl_fork.credit.spans import last_match, tokens_matching


WORDS = ["", "The ", "answer", ": ", "4", "2", ".", " Or", " the answer: 7"]


def decode(ids):
    return "".join(WORDS[i] for i in ids)


def naive(ids, pattern):
    """Every token whose characters meet a match, token by token: right where each decodes to whole characters."""
    marked, start = [], 0
    spans = [match.span() for match in re.finditer(pattern, decode(ids))]
    for i in ids:
        end = start + len(WORDS[i])
        marked.append(any(start < b and a < end for a, b in spans))
        start = end
    return marked


@pytest.mark.parametrize(
    "pattern",
    [r"answer: \d+", r"nsw", r": ", r"\d", r"(?i)THE answer", r"Or the answer: 7", "nothing", r"^The", r"7$"],
)
@pytest.mark.parametrize("ids", [[1, 2, 3, 4, 5, 6, 7, 8], [2], [], [8, 8], [4, 0, 5]])
def test_any_character_of_a_match_counts(ids, pattern):
    assert tokens_matching(ids, decode, pattern) == naive(ids, pattern)


def test_characters_of_several_tokens():
    """One token per byte: two for ü, three for →. A token is marked if it holds a part of a matched character."""
    tokenizer = byte_tokenizer()
    text = "für → 42 →"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    for pattern in ("→ 4", "ü", "42", "→$"):
        found = tokens_matching(ids, tokenizer.decode, pattern)
        start, end = next(re.finditer(pattern, text)).span()
        first, last = len(text[:start].encode()), len(text[:end].encode())
        assert found == [first <= place < last for place in range(len(ids))]


def byte_fallback_tokenizer():
    """As Llama's: a character without a token is one token per byte, and an unfinished one decodes to one per byte."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocabulary |= {character: 257 + i for i, character in enumerate("answer:0123 ")}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.mark.parametrize("build", [byte_tokenizer, byte_fallback_tokenizer])
def test_unfinished_characters_take_no_place(build):
    """Three of the four bytes of an emoji are one replacement character to one decoder, three to another."""
    tokenizer, text = build(), "😀😀 answer: 1 😀 answer: 2 答😀"
    encoded = tokenizer(text, add_special_tokens=False)["input_ids"] if callable(tokenizer) else tokenizer.encode(text)
    ids = encoded if isinstance(encoded, list) else encoded.ids
    assert len(ids) == len(text.encode()) and len(tokenizer.decode(ids[:3])) in (1, 3)
    for pattern in ("answer", "😀 a", "答", " 答😀"):
        start = [match.start() for match in re.finditer(pattern, text)][-1]
        first = len(text[:start].encode())
        assert last_match(ids, [True] * len(ids), tokenizer.decode, pattern) == first
        marked = tokens_matching(ids, tokenizer.decode, pattern)
        assert [i for i, found in enumerate(marked) if found][-1] == first + len(pattern.encode()) - 1
        assert marked[first] and not marked[first - 1]


def test_last_match_that_begins_in_a_valid_token():
    ids = [1, 2, 3, 4, 1, 2, 3, 5]
    valid = [True] * 8
    assert last_match(ids, valid, decode, "answer") == 5 and last_match(ids, valid, decode, "nothing") is None
    assert last_match(ids, [True] * 5 + [False] * 3, decode, "answer") == 1
    assert last_match(ids, valid, decode, "x*") is None and last_match([], [], decode, "a") is None
    # A token that holds more than the beginning of the match counts as its first.
    assert last_match([1, 8], valid[:2], decode, "answer") == 1


def test_in_a_batch():
    tokenizer = byte_tokenizer()
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("no: 12 yes: 34", "yes: 5")]
    width = max(map(len, rows)) + 2
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    mask[0, 12] = 0  # not written by the model: part of the text, but nothing to train on
    found = Signals(mask, completion_ids=ids, tokenizer=tokenizer).matching(r"yes: \d+")
    assert found.nonzero().tolist() == [[0, t] for t in (7, 8, 9, 10, 11, 13)] + [[1, t] for t in range(6)]
    narrowed = Signals(mask, completion_ids=ids, tokenizer=tokenizer).narrowed(mask.bool() & (torch.arange(width) > 3))
    assert narrowed.matching(r"yes: \d+")[1].nonzero().flatten().tolist() == [4, 5]


def test_without_a_tokenizer_the_error_says_so():
    signals = Signals(torch.ones(1, 2), completion_ids=torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Signals\.tokenizer is needed"):
        signals.matching("a")
