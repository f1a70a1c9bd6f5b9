"""`examples/select_data.py`: what is selected, against full logits of one row at a time."""

import json
import math
import random
from fractions import Fraction

import pytest
import torch

from tests.conftest import LETTERS, build_model, build_tokenizer
from trl_fork.commands import select as script


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    rng = random.Random(1)
    rows = [
        {
            "prompt": "<user>" + "abc"[number % 3] + "<assistant>",
            "completion": "".join(rng.choices(LETTERS, k=rng.randint(2, 30))),
            "correct": number % 4 > 0,
            "note": f"é {number}",
        }
        for number in range(20)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def naive(files):
    """(row, HES with the top 5 % of tokens, HES with 0.5 %) of every line."""
    model = build_model(build_tokenizer()).eval()
    ids = {letter: 4 + i for i, letter in enumerate(LETTERS)}
    result = []
    for line in (files / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = [2, ids[row["prompt"][6]], 3]
        completion = [ids[letter] for letter in row["completion"]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.double().log_softmax(-1)
        entropies = sorted((-(log_probs.exp() * log_probs).sum(-1)).tolist(), reverse=True)
        result.append((row, sum(entropies[: math.ceil(0.2 * len(entropies))]), entropies[0]))
    return result


def run(files, tmp_path, *more, rows="rows.jsonl"):
    output = tmp_path / "selected.jsonl"
    arguments = ["--model", str(files / "model"), "--completions", str(files / rows), "--output", str(output)]
    script.run(script.parse_arguments([*arguments, *more]))
    selected = [json.loads(line) for line in output.read_text().splitlines()]
    return selected, json.loads((tmp_path / "selected.jsonl.json").read_text())


def best(naive, indices, count, column):
    return sorted(indices, key=lambda i: -naive[i][column])[:count]


def test_top_share_of_the_correct_ones(files, naive, tmp_path, capsys):
    selected, numbers = run(files, tmp_path, "--fraction", "0.3")
    correct = [i for i in range(20) if naive[i][0]["correct"]]
    wanted = sorted(best(naive, correct, math.ceil(Fraction("0.3") * len(correct)), 2))
    assert [row["note"] for row in selected] == [f"é {i}" for i in wanted]  # in their order, with all their fields
    for row, i in zip(selected, wanted, strict=True):
        assert row["high_entropy_sum"] == pytest.approx(naive[i][2], abs=1e-5)
    assert (numbers["num_responses"], numbers["num_candidates"], numbers["num_selected"]) == (20, 15, 5)
    wrong = [naive[i][2] for i in range(20) if not naive[i][0]["correct"]]
    assert numbers["mean_high_entropy_sum_incorrect"] == pytest.approx(sum(wrong) / 5, abs=1e-5)
    assert "pearson_with_length" in capsys.readouterr().out


def test_numbers(files, naive, tmp_path):
    selected, numbers = run(
        files, tmp_path, "--fraction", "0.5", "--top_tokens", "0.2", "--include_incorrect", "--temperature", "1"
    )
    wanted = best(naive, range(20), 10, 1)
    assert {row["note"] for row in selected} == {f"é {i}" for i in wanted}
    lengths = [len(row["completion"]) for row, *_ in naive]
    sums = [value for _, value, _ in naive]
    mean_x, mean_y = sum(sums) / 20, sum(lengths) / 20
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(sums, lengths, strict=True))
    spread = math.prod(math.sqrt(sum((v - m) ** 2 for v in vs)) for vs, m in ((sums, mean_x), (lengths, mean_y)))
    assert numbers["pearson_with_length"] == pytest.approx(covariance / spread, abs=1e-5)
    assert numbers["pearson_with_length"] > 0.8  # HES is a sum
    assert numbers["mean_length_selected"] == pytest.approx(sum(lengths[i] for i in wanted) / 10)
    longest = sorted(range(20), key=lambda i: -lengths[i])[:10]
    assert numbers["also_among_the_longest"] == pytest.approx(len(set(longest) & set(wanted)) / 10)
    assert set(numbers["definitions"]) == set(numbers) - {"settings", "definitions"}


def test_per_problem(files, naive, tmp_path):
    selected, _ = run(files, tmp_path, "--num_selected", "2", "--pool", "problem")
    wanted = set()
    for problem in range(3):
        wanted.update(best(naive, [i for i in range(problem, 20, 3) if naive[i][0]["correct"]], 2, 2))
    assert {row["note"] for row in selected} == {f"é {i}" for i in wanted}
    assert len(selected) == 6


def test_without_grades_it_asks(files, naive, tmp_path):
    (files / "ungraded.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "correct"}) + "\n" for row, *_ in naive)
    )
    with pytest.raises(ValueError, match="does not say which responses are right"):
        run(files, tmp_path, "--fraction", "0.1", rows="ungraded.jsonl")
    selected, numbers = run(files, tmp_path, "--fraction", "0.1", "--include_incorrect", rows="ungraded.jsonl")
    assert len(selected) == 2
    assert numbers["mean_high_entropy_sum_correct"] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give one of --fraction and --num_selected"),
        (["--fraction", "0.1", "--num_selected", "2"], "give one of --fraction and --num_selected"),
        (["--fraction", "20"], r"--fraction must be in (0, 1], got 20.0"),
        (["--num_selected", "0"], "--num_selected must be at least 1, got 0"),
        (["--fraction", "0.1", "--top_tokens", "0"], "--top_tokens must be in (0, 1], got 0.0"),
    ],
)
def test_bad_arguments(files, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        run(files, tmp_path, *more)
    assert message in capsys.readouterr().err


def test_the_file_itself_is_not_overwritten(files):
    path = str(files / "rows.jsonl")
    arguments = ["--model", str(files / "model"), "--completions", path, "--output", path, "--fraction", "1"]
    with pytest.raises(ValueError, match="are the same file"):
        script.run(script.parse_arguments(arguments))
