"""Two decoding temperatures, against a naive loop and against transformers' own sampling."""

import math

import pytest
import torch
from transformers import LogitsProcessorList

from trl_fork import ForkTemperatureLogitsProcessor


THRESHOLD = 2.7  # nats, between the entropies of the tiny model
SAMPLING = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": 12, "min_new_tokens": 12}


def inputs_of(tokenizer, texts=("abc", "hello9", "q")):
    return tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)


def sample(model, inputs, seed=0, **settings):
    torch.manual_seed(seed)
    return model.generate(**inputs, **{**SAMPLING, "temperature": 1.0, **settings})


def entropy_of(row) -> float:
    log_probs = torch.log_softmax(row.double(), -1)
    return -(log_probs.exp() * log_probs).sum().item()


def naive_sample(model, inputs, steps, threshold, high, low, seed):
    """One token at a time without cache, temperatures row by row."""
    torch.manual_seed(seed)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    is_fork = []
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1].float()
        logits[:, model.generation_config.eos_token_id] = -math.inf  # min_new_tokens
        forks = [entropy_of_possible(row) > threshold for row in logits]
        is_fork.append(forks)
        probabilities = []
        for row, fork in zip(logits, forks, strict=True):
            temperature = high if fork else low
            if temperature == 0:
                probabilities.append(torch.nn.functional.one_hot(row.argmax(), len(row)).float())
            else:
                probabilities.append(torch.softmax(row / temperature, -1))
        drawn = torch.multinomial(torch.stack(probabilities), 1)
        ids, mask = torch.cat([ids, drawn], 1), torch.cat([mask, torch.ones_like(drawn)], 1)
    return ids, is_fork


def entropy_of_possible(row) -> float:
    return entropy_of(row[row > -math.inf])


@pytest.mark.parametrize(("high", "low"), [(2.0, 0.3), (0.3, 2.0), (0.0, 1.0), (1.0, 0.0), (5.0, 0.05)])
def test_equals_a_naive_loop(model, tokenizer, high, low):
    inputs = inputs_of(tokenizer)
    expected, is_fork = naive_sample(model.eval(), inputs, 12, THRESHOLD, high, low, seed=3)
    share = sum(map(sum, is_fork)) / 36
    assert 0.1 < share < 0.9, "one branch would not be tested"
    processor = ForkTemperatureLogitsProcessor(THRESHOLD, high, low)
    assert torch.equal(sample(model, inputs, seed=3, logits_processor=[processor]), expected)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 3.0])
def test_equal_temperatures_are_plain_sampling(model, tokenizer, temperature):
    inputs = inputs_of(tokenizer)
    processor = ForkTemperatureLogitsProcessor(THRESHOLD, temperature, temperature)
    plain = sample(model.eval(), inputs, seed=5, temperature=temperature)
    assert torch.equal(sample(model, inputs, seed=5, logits_processor=[processor]), plain)


def test_zero_everywhere_is_greedy(model, tokenizer):
    inputs = inputs_of(tokenizer)
    processors = LogitsProcessorList([ForkTemperatureLogitsProcessor(THRESHOLD, 0.0, 0.0)])
    greedy = model.eval().generate(**inputs, do_sample=False, max_new_tokens=12, min_new_tokens=12)
    assert torch.equal(sample(model, inputs, logits_processor=processors), greedy)


def test_the_threshold_is_strict_and_rows_are_their_own():
    # ln 2, and just above; -inf logits cannot occur
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -5.0], [9.0, 0.0, 0.0]])
    threshold = torch.tensor(math.log(2)).item()  # in float32, as entropies are
    scaled = ForkTemperatureLogitsProcessor(threshold, 2.0, 0.5)(None, logits)
    expected = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -2.5], [18.0, 0.0, 0.0]])
    assert torch.equal(scaled, expected)
    assert torch.equal(ForkTemperatureLogitsProcessor(threshold, 2.0, 0.5)(None, logits[1:2]), expected[1:2])
    certain = torch.tensor([[5.0, -math.inf, -math.inf]])  # entropy 0, exactly: not above a threshold of 0
    assert ForkTemperatureLogitsProcessor(0.0, 2.0, 0.5)(None, certain)[0, 0] == 10.0


def test_ties_at_temperature_zero_go_to_the_first():
    scaled = ForkTemperatureLogitsProcessor(0.0, 0.0, 1.0)(None, torch.tensor([[1.0, 3.0, 3.0]]))
    assert scaled.softmax(-1).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.672, -1.0), "forking_temperature must be at least 0 and finite, got -1.0"),
        ((0.672, 1.0, math.inf), "other_temperature must be at least 0 and finite, got inf"),
        ((math.nan,), "threshold must be an entropy in nats, got NaN"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForkTemperatureLogitsProcessor(*arguments)
