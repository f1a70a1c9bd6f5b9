"""Statistics of sampled completions against brute force, and the store that a killed run continues."""

import itertools
import json
import math
import re
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from math_verify import LatexExtractionConfig, parse, verify
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from tests.conftest import LETTERS, build_model
from tests.trainer.test_features import byte_tokenizer
from trl_fork.evaluation import tables
from trl_fork.evaluation.metrics import (
    Problem,
    compare,
    evaluate,
    majority,
    pass_at_k,
    sample_seed,
    summarize,
    todo_of,
)
from trl_fork.evaluation.store import FIELDS, CompletionStore, read_completions
from trl_fork.generation.engines import Sample, TransformersEngine
from trl_fork.generation.stopping import cut_at_stop
from trl_fork.rewards import grading
from trl_fork.rewards.grading import SHOWN, GradingPool


def sample(dataset="d", problem_id="0", number=0, correct=False, length=1, truncated=False, failure=None):
    return dict.fromkeys(FIELDS, "") | {
        "dataset": dataset,
        "problem_id": problem_id,
        "sample": number,
        "length": length,
        "truncated": truncated,
        "correct": correct,
        "grading_failure": failure,
    }


def samples_of(right: dict[str, list[int]], dataset="d"):
    return [sample(dataset, name, i, bool(c)) for name, row in right.items() for i, c in enumerate(row)]


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    assert pass_at_k(10_000, 3, 1) == pytest.approx(3e-4)
    assert pass_at_k(2_000, 1_000, 1_000) == 1.0
    for case in ((4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)):
        with pytest.raises(ValueError, match=r"pass@k needs"):
            pass_at_k(*case)


def test_summary():
    rows = samples_of({"a": [1, 1, 0], "b": [0, 0, 0], "c": [1, 0, 0], "e": [0, 1, 1]})
    for row, length in zip(rows, [*range(10, 20), 30, 40], strict=True):
        row["length"], row["truncated"] = length, length > 17
    rows[3]["grading_failure"] = "timeout"
    result = summarize([*rows[::-1], *samples_of({"a": [1]}, "single")])
    assert list(result) == ["d", "single"]
    accuracies = [2 / 3, 0.0, 1 / 3, 2 / 3]
    assert result["d"] == pytest.approx(
        {
            "avg@3": 5 / 12,
            "avg@3_stderr": statistics.stdev(accuracies) / math.sqrt(4),
            "pass@1": 5 / 12,
            "pass@2": (1 + 0 + 2 / 3 + 1) / 4,
            "pass@3": 3 / 4,
            "mean_length": 215 / 12,
            "truncated_fraction": 4 / 12,
            "num_problems": 4,
            "num_samples": 3,
            "grading_failures": 1,
        }
    )
    assert result["single"]["avg@1"] == 1.0 and result["single"]["avg@1_stderr"] is None
    with pytest.raises(ValueError, match="problems of 'd' have between 2 and 3 samples"):
        summarize(rows[:-1])


def test_sizes_of_pass_at_k():
    names = {k: [n for n in summarize(samples_of({"a": [1] * k}))["d"] if n.startswith("pass")] for k in (1, 8, 12)}
    assert names == {
        1: ["pass@1"],
        8: ["pass@1", "pass@2", "pass@4", "pass@8"],
        12: ["pass@1", "pass@2", "pass@4", "pass@8", "pass@12"],
    }


def test_comparison_is_paired_by_problem():
    # B solves one more sample of every problem than A: no doubt, however much the problems differ.
    right = {str(i): [1] * (i % 4) + [0] * (4 - i % 4) for i in range(40)}
    better = {name: [1, *row][:4] if sum(row) < 4 else row for name, row in right.items()}
    difference = compare(samples_of(right), samples_of(dict(reversed(better.items()))))["d"]
    assert (difference.num_problems, difference.mean) == (40, 0.25)
    assert (difference.low, difference.high) == (0.25, 0.25)
    # A mean, and not the most common difference
    difference = compare(samples_of({"1": [0], "2": [1], "3": [0]}), samples_of({"1": [0], "2": [1], "3": [1]}))["d"]
    assert difference.mean == pytest.approx(1 / 3)
    # Only common problems and data sets count
    difference = compare(samples_of({"1": [1], "2": [0]}), samples_of({"2": [1], "3": [1]}))["d"]
    assert (difference.num_problems, difference.mean, difference.low) == (1, 1.0, None)
    assert compare(samples_of(right), samples_of(right, "other")) == {}


def test_interval_is_that_of_all_resamples():
    """Four problems can be drawn in 256 ways: the quantiles of their means, to which random resamples must come."""
    a = {"0": [0, 0, 0, 0, 1], "1": [1, 0, 1, 0, 0], "2": [1, 0, 0, 0, 0], "3": [1, 1, 1, 1, 1]}
    b = {"0": [0, 0, 1, 0, 0], "1": [0, 1, 1, 0, 1], "2": [1, 1, 0, 1, 0], "3": [0, 0, 0, 0, 0]}
    differences = [0.0, 0.2, 0.4, -1.0]  # askew: an interval that is mirrored at the mean is another one
    means = sorted(sum(draw) / 4 for draw in itertools.product(differences, repeat=4))
    difference = compare(samples_of(a), samples_of(b))["d"]
    assert difference.mean == pytest.approx(-0.1)
    assert difference.low == pytest.approx(means[math.ceil(0.025 * 256) - 1])
    assert difference.high == pytest.approx(means[math.ceil(0.975 * 256) - 1])


def test_interval_has_its_coverage():
    """For independent pairs of equally good models, the interval misses zero in about one case of 20."""
    generator = np.random.default_rng(1)
    missed = 0
    for _ in range(100):
        chance = generator.random(60)
        a, b = ({str(i): (generator.random(8) < p).tolist() for i, p in enumerate(chance)} for _ in range(2))
        difference = compare(samples_of(a), samples_of(b), resamples=200)["d"]
        missed += not difference.low <= 0 <= difference.high
    assert 1 <= missed <= 16  # about 5 expected


def test_tables_show_what_a_terminal_would_obey(capsys):
    """Names of data sets and tokens are text of others."""
    tables.print_table("Words", ["token"], [["\x1b[2Jhello"]])
    printed = capsys.readouterr().out
    assert "\u241b[2Jhello" in printed and "\x1b" not in printed


@pytest.mark.parametrize("width", [60, 80, 200])
def test_numbers_are_whole_on_a_narrow_terminal(width, capsys, monkeypatch):
    """rich takes the room from the one column that may be folded: at 80 columns no data set had a name."""
    for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    (result,) = summarize(samples_of({"0": [1, 1], "1": [1, 1]})).values()
    tables.print_results({"mine.jsonl": result | {"mean_length": 12034.0}, "a_long_name.jsonl": result})
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["mine", "2", "2", "100.00%", "0.00%", "100.00%", "12,034", "0.0%"] in lines
    assert "a_long_name" in printed and "truncated" in printed
    longest = max(map(len, printed.splitlines()))
    assert longest <= width or width == 60  # the least that holds the numbers


def test_tables(tmp_path, capsys):
    for name, right in (("a", {"0": [1, 0], "1": [0, 0]}), ("b", {"0": [1, 1], "1": [0, 1]})):
        (tmp_path / name).mkdir()
        rows = samples_of(right) + samples_of(right, f"only {name}")
        (tmp_path / name / "results.json").write_text(json.dumps(summarize(rows)))
        CompletionStore(tmp_path / name).append(rows)
    paths = [str(tmp_path / name / "results.json") for name in "ab"]
    tables.print_results(summarize(rows))
    tables.print_comparison(*paths)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["d", "2", "2", "75.00%", "25.00%", "100.00%", "1", "0.0%"] in lines
    assert ["d", "25.00%", "1", "75.00%", "1", "+50.00", "[+50.00,", "+50.00]", "2"] in lines
    assert ["only", "a", "25.00%", "1", "-", "-", "-", "-", "0"] in lines
    (tmp_path / "a" / "completions.jsonl").unlink()
    with pytest.raises(ValueError, match=r"There is no .*completions\.jsonl\. --compare needs"):
        tables.print_comparison(*paths)


def test_store_merges_parts_and_drops_a_half_written_line(tmp_path):
    stores = [CompletionStore(tmp_path, rank) for rank in range(3)]
    rows = [sample(problem_id=str(i)) | {"completion": "\ud800 \u2028 ü\n"} for i in range(6)]
    for rank, store in enumerate(stores):
        store.append(rows[rank::3])
    with open(tmp_path / "completions-rank1.jsonl", "ab") as file:
        file.write(b'{"dataset": "d", "problem_id": "7", "sam')
    with open(stores[0].path, "ab") as file:
        file.write(json.dumps(rows[1]).encode() + b"\n" + json.dumps(rows[5]).encode()[:-1])  # killed while merging
    merged = stores[0].merge()
    assert merged == [rows[i] for i in (0, 3, 1, 4, 2, 5)], "by rank, for any order of the file system"
    assert read_completions(stores[0].path) == merged == stores[0].merge()
    assert [path.name for path in tmp_path.iterdir()] == ["completions.jsonl"]
    stores[0].path.write_text("{}\nbroken\n{}\n")
    with pytest.raises(ValueError, match=r"completions\.jsonl, line 2, is damaged"):
        stores[0].merge()


def test_other_settings_are_refused(tmp_path):
    store = CompletionStore(tmp_path / "new")
    store.check_settings({"seed": 1})
    store.save_settings({"seed": 1, "names": ("a",), "limit": None}, {"torch": "2"})
    store.check_settings({"seed": 1, "names": ["a"], "limit": None})
    with pytest.raises(ValueError, match=r"seed was 1, is now 2; limit was None, is now 5.*choose another --output"):
        store.check_settings({"seed": 2, "names": ("a",), "limit": 5})
    store.append([sample()])
    (tmp_path / "new" / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"no settings\.json beside it"):
        store.check_settings({"seed": 1})


def test_what_is_left_to_do():
    problems = [Problem(d, i, "", [0] * n, "") for d, i, n in (("x", "0", 2), ("x", "1", 5), ("a", "0", 9))]
    todo = [(p.dataset, p.problem_id, n) for p, n in todo_of(problems, 2, {("x", "1", 0), ("a", "1", 0)})]
    assert todo == [("x", "1", 1), ("x", "0", 0), ("x", "0", 1), ("a", "0", 0), ("a", "0", 1)]
    seeds = {sample_seed(seed, p, n) for seed in (0, 1) for p in problems for n in range(50)}
    assert len(seeds) == 300


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


def test_samples_do_not_depend_on_the_batch(tokenizer):
    engine = TransformersEngine(build_model(tokenizer), tokenizer, temperature=1.2, top_p=0.9, max_new_tokens=12)
    together = engine.generate(PROMPTS, [1, 2, 3, 4])
    assert together == [
        engine.generate([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, [1, 2, 3, 4], strict=True)
    ]
    assert together == engine.generate(PROMPTS[::-1], [4, 3, 2, 1])[::-1]
    assert together != engine.generate(PROMPTS, [5, 6, 7, 8])


def test_samples_of_a_problem_differ(tokenizer, tmp_path):
    """With one seed for all samples of a problem avg@K would still be plausible, but its K samples one sample."""
    problems = [Problem("d", str(i), "", prompt, "7") for i, prompt in enumerate(PROMPTS)]
    engine = TransformersEngine(build_model(tokenizer), tokenizer, max_new_tokens=8)
    store = CompletionStore(tmp_path)
    with GradingPool(num_workers=1) as pool:
        evaluate(problems, engine, pool, store, done=set(), num_samples=5, batch_size=7)
    rows = read_completions(store.path)
    assert len(rows) == 20
    for problem in problems:
        texts = {row["sample"]: row["completion"] for row in rows if row["problem_id"] == problem.problem_id}
        assert len(texts) == len(set(texts.values())) == 5
        for number, text in texts.items():
            (sample,) = engine.generate([problem.prompt_ids], [sample_seed(0, problem, number)])
            assert sample.text == text


def test_greedy_is_transformers_greedy(tokenizer):
    model = build_model(tokenizer)
    expected = model.generate(torch.tensor([PROMPTS[0]]), do_sample=False, max_new_tokens=10)[0, 3:].tolist()
    model.generation_config = GenerationConfig(eos_token_id=1, do_sample=True, repetition_penalty=5.0, top_k=1)
    engine = TransformersEngine(model, tokenizer, temperature=0, max_new_tokens=10)
    (found,) = engine.generate(PROMPTS[:1], [0])
    ends = expected.index(1) + 1 if 1 in expected else None
    assert found.text == tokenizer.decode(expected[:ends], skip_special_tokens=True)
    assert (found.length, found.truncated) == (len(expected[:ends]), ends is None)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_samples_have_the_models_distribution(tokenizer, temperature, top_p):
    model = build_model(tokenizer)
    with torch.no_grad():
        probabilities = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature).double().softmax(-1)
    order = probabilities.argsort(descending=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    probabilities /= probabilities.sum()
    engine = TransformersEngine(model, tokenizer, temperature=temperature, top_p=top_p, max_new_tokens=1)
    n = 4000
    found = engine.generate([PROMPTS[0]] * n, list(range(n)))
    letters = [s.text for s in found if s.text]
    assert all(s.truncated for s in found if s.text)
    for i, letter in enumerate(LETTERS, start=4):
        p = probabilities[i].item()
        count = letters.count(letter)
        assert count == 0 if p == 0 else abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1


# ---------------------------------------------------------------------- stop strings


def naive_stop(tokenizer, ids, stop, end_ids, limit):
    """What remains of sampled ids, token by token: (text, length, truncated)."""
    for length in range(1, min(len(ids), limit) + 1):
        text = tokenizer.decode(ids[:length], skip_special_tokens=True)
        places = [text.index(s) for s in stop if s in text]
        if places:
            return text[: min(places)], length, False
        if ids[length - 1] in end_ids:
            return text, length, False
    return text, length, True


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [["a"], ["ab", "b"], ["cd", "e", "fgh"], ["abcabcabc"]], ids=str)
def test_stop_strings_cut_where_they_occur(tokenizer, temperature, stop):
    settings = {"temperature": temperature, "max_new_tokens": 24}
    prompts, seeds = PROMPTS * 4, list(range(16))
    # A model that says few letters, so that they meet.
    model = build_model(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[12:] *= 0.02
        model.lm_head.weight[2:4] = 0
    free = TransformersEngine(model, tokenizer, **settings)
    rows = []
    sample = free._sample
    free._sample = lambda ids, stopped: rows.append(ids) or sample(ids, stopped)
    unstopped = free.generate(prompts, seeds)
    engine = TransformersEngine(model, tokenizer, stop=stop, **settings)
    found = engine.generate(prompts, seeds)
    assert [s[:3] for s in found] == [naive_stop(tokenizer, ids, stop, [1], 24) for ids in rows]
    if temperature and stop != ["abcabcabc"]:
        assert any(a.text != b.text for a, b in zip(found, unstopped, strict=True))
        assert any(a.truncated and not b.truncated for a, b in zip(unstopped, found, strict=True))


def test_a_stop_string_does_not_begin_in_the_prompt():
    """transformers' own `stop_strings` would end this completion at once."""
    tokenizer = byte_tokenizer()
    model = build_model(tokenizer)
    with torch.no_grad():  # says b for ever
        for parameter in model.parameters():
            parameter.zero_()
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("b")] = 1
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.fill_(1)
    prompt = tokenizer("zza")["input_ids"]

    def sampled(stop):
        engine = TransformersEngine(model, tokenizer, temperature=0, max_new_tokens=6, stop=stop)
        return engine.generate([prompt], [0])[0]

    assert sampled(["ab"])[:3] == ("bbbbbb", 6, True)
    assert sampled(["bbb"]) == ("", 3, False, tuple(tokenizer("bbb")["input_ids"]))
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False, stop_strings=["ab"], tokenizer=tokenizer
    )
    assert ids.shape[1] == len(prompt) + 1


def test_a_special_token_can_be_a_stop_string(tokenizer):
    """It is not part of the text, but it is sampled."""
    engine = TransformersEngine(build_model(tokenizer), tokenizer, max_new_tokens=40, stop=["<user>", "zz"])
    found = engine.generate(PROMPTS * 8, list(range(32)))
    free = TransformersEngine(build_model(tokenizer), tokenizer, max_new_tokens=40).generate(
        PROMPTS * 8, list(range(32))
    )
    assert engine.stop == ["zz"] and engine.stop_ids == [1, 2]
    assert sum(sample.truncated for sample in found) < sum(sample.truncated for sample in free)


def test_stop_strings_end_a_completion_of_a_model_that_generate_decodes(tokenizer):
    """One at a time, each prompt with its own length."""
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, eos_token_id=1, pad_token_id=0,
            bos_token_id=None, initializer_range=0.5,
        )
    )  # fmt: skip
    prompts = [[5] * 20, [6, 7]]
    free = TransformersEngine(model, tokenizer, max_new_tokens=12).generate(prompts, [0, 1])
    letter = free[1].text[0]
    found = TransformersEngine(model, tokenizer, max_new_tokens=12, stop=[letter]).generate(prompts, [0, 1])
    assert found[1] == ("", 1, False, free[1].ids[:1])
    assert found[0].text == free[0].text.split(letter)[0]


@pytest.mark.parametrize("stop", [[""], ["a", ""], [3]], ids=str)
def test_bad_stop_strings(tokenizer, stop):
    with pytest.raises(ValueError, match="stop must hold texts that are not empty"):
        TransformersEngine(build_model(tokenizer), tokenizer, stop=stop)


def test_a_right_answer_survives_what_a_base_model_says_after_it(tokenizer, tmp_path):
    """Graded whole, the last box counts; cut at the next question, the first one is the answer."""

    class RunsOn:
        """Says what a base model says that does not stop, through the engines' own cutting."""

        def __init__(self, stop):
            self.stop = stop

        def generate(self, prompts, seeds):
            text = "It is \\boxed{7}.\n\nUser:\nWhat is 2 + 2?\n\nAssistant:\n\\boxed{4}"
            return [Sample(cut_at_stop(text, self.stop), 9, False) for _ in prompts]

    results = {}
    with GradingPool(num_workers=1) as pool:
        for name, stop in (("with", ["\nUser:"]), ("without", [])):
            store = CompletionStore(tmp_path / name)
            store.save_settings({}, {})
            problems = [Problem("d", "0", "", [1], "7")]
            evaluate(problems, RunsOn(stop), pool, store, done=set(), num_samples=2, batch_size=2)
            results[name] = summarize(read_completions(store.path), pool.same_answer)["d"]
    assert results["with"]["avg@2"] == results["with"]["maj@2"] == 1.0
    assert results["without"]["avg@2"] == results["without"]["maj@2"] == 0.0


# ---------------------------------------------------------------------- maj@k


def graded(answers, gold, dataset="d", problem="0"):
    """Samples as `evaluate` stores them, read and graded by math-verify itself; `None` is a text without an answer."""
    rows = []
    for number, answer in enumerate(answers):
        text = "I do not know." if answer is None else rf"So it is \boxed{{{answer}}}."
        parsed = parse(text, [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)])
        right = verify(parse(gold), parsed)
        read = {"completion": text, "answer": str(parsed) if parsed else None}
        rows.append(sample(dataset, problem, number, right) | read)
    return rows


@pytest.fixture(scope="module")
def pool():
    with GradingPool(num_workers=2) as pool:
        yield pool


def naive_majority(answers, gold):
    """Every pair is compared; expected value over which of the largest groups is drawn."""
    parsed = [None if a is None else parse(rf"$\boxed{{{a}}}$") for a in answers]
    groups = []
    for number, value in enumerate(parsed):
        if value is None:
            continue
        for group in groups:
            if verify(parsed[group[0]], value):
                group.append(number)
                break
        else:
            groups.append([number])
    most = max(map(len, groups), default=0)
    winners = [group for group in groups if len(group) == most]
    return statistics.mean(float(verify(parse(gold), parsed[group[0]])) for group in winners) if winners else 0.0


@pytest.mark.parametrize(
    ("answers", "gold", "expected"),
    [
        (["7", "7", "3"], "7", 1.0),
        (["3", "7", "3"], "7", 0.0),
        # Equal in value, not in writing
        ([r"\frac{1}{2}", "0.5", "3", "3", r"\frac{2}{4}"], r"$\frac{1}{2}$", 1.0),
        (["x+1", "1+x", "2x", "2x", r"x + \frac{2}{2}"], "$x+1$", 1.0),
        (["3", "4", "5", r"\frac{8}{2}", r"2^2"], "3", 0.0),
        # Ties count by their share
        (["7", "3"], "7", 0.5),
        (["3", "7"], "7", 0.5),
        (["3", "4", "7"], "7", 1 / 3),
        (["7", "3", "3", "7", "1"], "7", 0.5),
        # What gives no answer does not vote
        ([None, None, None, "7"], "7", 1.0),
        ([None, "3", None], "7", 0.0),
        ([None, None], "7", 0.0),
        (["7"], "7", 1.0),
    ],
    ids=str,
)
def test_majority(pool, answers, gold, expected):
    rows = graded(answers, gold)
    assert majority(rows, pool.same_answer) == pytest.approx(expected)
    assert naive_majority(answers, gold) == pytest.approx(expected)
    # However the samples are ordered
    assert majority(rows[::-1], pool.same_answer) == pytest.approx(expected)


def test_majority_of_random_votes(pool):
    generator = np.random.default_rng(0)
    forms = [["7", "7.0", r"\frac{14}{2}"], ["3", r"\sqrt{9}"], ["x+1", "1+x"], [None]]
    problems = []
    for _ in range(12):
        drawn = generator.choice(4, size=5, p=[0.35, 0.3, 0.2, 0.15])
        problems.append([forms[kind][generator.integers(len(forms[kind]))] for kind in drawn])
    rows = [row for number, answers in enumerate(problems) for row in graded(answers, "7", problem=f"{number:02}")]
    result = summarize(rows[::-1], pool.same_answer, num_threads=2)["d"]
    assert result["maj@5"] == pytest.approx(statistics.mean(naive_majority(answers, "7") for answers in problems))
    assert 0 < result["maj@5"] < 1 and result["maj@5"] != result["avg@5"]
    assert "maj@5" not in summarize(rows)["d"]


def test_hostile_answers_do_not_stall_the_vote():
    """Each is read at once, but comparing it has no end: it stands alone, and the honest answers find each other."""
    texts = [rf"So \boxed{{9^{{9^{{9^{{{n}}}}}}} + 9^{{8^{{7^{{{n + 1}}}}}}}}}." for n in range(40, 52)]
    rows = [sample("d", "0", n) | {"completion": text, "answer": f"[hostile {n}]"} for n, text in enumerate(texts)]
    rows += [row | {"sample": 20 + row["sample"]} for row in graded(["7", "7.0"], "7")]
    start = time.monotonic()
    with GradingPool(num_workers=1, time_limit=0.2) as pool:
        assert majority(rows, pool.same_answer) == 1.0
        assert not pool.failures  # those are of answers, and not of their comparison
    assert time.monotonic() - start < 60


def test_long_expressions_are_not_taken_for_equal_by_their_beginning(pool):
    long = "+".join(f"x^{{{n}}}" for n in range(1000, 1110))
    with GradingPool(num_workers=1) as grader:
        texts = [rf"\boxed{{{long}+1}}", rf"\boxed{{{long}+2}}"]
        answers = [verdict.answer for verdict in grader.grade(texts, ["7", "7"])]
    assert len(answers[0]) == len(answers[1]) == SHOWN == _grading_worker_constant("SHOWN")
    rows = [
        sample("d", "0", n) | {"completion": t, "answer": a}
        for n, (t, a) in enumerate(zip(texts, answers, strict=True))
    ]
    assert answers[0] == answers[1]
    asked = []
    majority(rows, lambda first, second: asked.append((first, second)) or False)
    assert asked == [tuple(texts)]


def _grading_worker_constant(name):
    text = (Path(grading.__file__).parent / "_grading_worker.py").read_text()
    return int(re.search(rf"^{name} = (\d+)", text, re.MULTILINE)[1])
