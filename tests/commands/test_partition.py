"""`trl-fork partition`: its columns against a computation by hand from the samples that it kept."""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.optimize import brentq
from transformers import AutoModelForCausalLM

from tests.commands.test_evaluate_script import ROOT, StandInLLM, teach
from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer
from trl_fork.commands import dispatch, sampling
from trl_fork.commands import partition as script
from trl_fork.data.prompt_file import encode_prompt
from trl_fork.data.training_sets import load_training_set
from trl_fork.generation.engines import TransformersEngine, end_token_ids
from trl_fork.rewards.grading import GradingPool


BETA, SAMPLES, LIMIT = 0.4, 6, 14
ROWS = [
    {
        "question": f"{n} + 1?",
        "answer": str(n + 1),
        "note": f"é {n}",
        "level": None if n == 3 else n,
        "log_partition": 9,
    }
    for n in (0, 1, 2, 3, 4, 50)  # prompts of two lengths
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data, a reference that is right now and then, and a proposal model that is so more often."""
    path = tmp_path_factory.mktemp("files")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = byte_tokenizer()

    def text(row, answer, end):
        message = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return prompt + rf"\boxed{{{answer}}}{end}"

    for name, right in (("model", 1), ("proposal", 3)):
        model = build_model(tokenizer, max_position_embeddings=256, initializer_range=0.05)
        answers = [(row, row["answer"], "<|im_end|>") for row in ROWS for _ in range(right)]
        answers += [(row, other, end) for row in ROWS for other, end in (("7", "<|im_end|>"), ("8", ", 8, 8, 8"))]
        teach(model, tokenizer, [text(*each) for each in answers], path / name, steps=60, learning_rate=1e-2)
    return path


@pytest.fixture(scope="module")
def pool():
    with GradingPool() as pool:
        yield pool


@pytest.fixture(autouse=True)
def one_pool(pool, monkeypatch):
    """One for all runs: its workers take longer to start than a run does."""
    monkeypatch.setattr(script, "GradingPool", lambda: contextlib.nullcontext(pool))


def words_of(files, output, **changes):
    options = {
        "model": files / "model",
        "dataset": "rows.jsonl",  # from that folder: seeds of samples depend on the name
        "output": output,
        "num_samples": SAMPLES,
        "beta": BETA,
        "max_new_tokens": LIMIT,
        "batch_size": 8,
        **changes,
    }
    return [str(word) for name, value in options.items() if value is not None for word in (f"--{name}", value)]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(files, output, **changes):
    with contextlib.chdir(files):
        script.run(script.parse_arguments(words_of(files, output, **changes)))
    rows, samples = read(output / "data.jsonl"), read(output / "completions.jsonl")
    by_prompt = {}
    for sample in sorted(samples, key=lambda sample: sample["sample"]):
        by_prompt.setdefault((sample["prompt"], sample["solution"]), []).append(sample)
    return rows, by_prompt, json.loads((output / "summary.json").read_text())


def samples_of(row, by_prompt):
    return by_prompt[encode_prompt(byte_tokenizer(), row["prompt"])[0], row["solution"]]


def naive_log_prob(name, prompt, completion, temperature):
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    log_probs = (logits.double() / temperature).log_softmax(-1)
    return log_probs[torch.arange(len(completion)), completion].sum().item()


def naive_constant(log_weights, rewards, lengths, beta, normalized):
    """`log Z`, or the root of the length-normalised loss, by a library's root finder; and its standard error."""
    log_weights, tilts = np.array(log_weights), np.array(rewards) / beta
    lengths = np.array(lengths) if normalized else np.ones(len(tilts))
    if normalized:
        places = tilts + log_weights / lengths
        constant = brentq(
            lambda c: np.exp(log_weights + lengths * (tilts - c)).mean() - 1,
            places.min() - 1e-9,
            places.max() + 1e-9,
            xtol=1e-14,
        )
    else:
        constant = math.log(np.exp(log_weights + tilts).mean())
    terms = np.exp(log_weights + lengths * (tilts - constant))
    return constant, terms.std(ddof=1) / math.sqrt(len(terms)) / (lengths * terms).mean()


def test_of_the_reference(files, tmp_path, capsys):
    rows, by_prompt, summary = run(files, tmp_path / "out")
    assert len(rows) == len(by_prompt) == 6
    rates = []
    for row, source in zip(rows, ROWS, strict=True):
        samples = samples_of(row, by_prompt)
        right = [sample["correct"] for sample in samples]
        assert len(samples) == SAMPLES and right == [
            rf"\boxed{{{source['answer']}}}" in sample["completion"] for sample in samples
        ]
        lengths = [sample["length"] for sample in samples]
        for sample in (each for each in samples if "\ufffd" not in each["completion"]):  # bytes that are no text
            # A byte is a token, and the end token counts.
            assert sample["length"] == len(sample["completion"].encode()) + (not sample["truncated"])
        constant, error = naive_constant([0.0] * SAMPLES, right, lengths, BETA, True)
        rates.append(sum(right) / SAMPLES)
        assert row["log_partition"] == pytest.approx(constant, abs=1e-9)
        assert row["log_partition_standard_error"] == pytest.approx(error, abs=1e-9)
        assert row["pass_rate"] == pytest.approx(rates[-1]) and row["effective_sample_size"] == SAMPLES
        settings = {"beta": BETA, "length_normalized": True, "temperature": 1.0, "max_completion_length": LIMIT}
        assert row["log_partition_settings"] == settings
        # Everything else stays.
        assert row.items() >= {name: source[name] for name in ("question", "answer", "note", "level")}.items()
        assert row["prompt"] == [{"role": "user", "content": source["question"]}]
    assert 0 < sum(rates) < 6, "the test would hold for a column of one value"
    assert summary["mean_pass_rate"] == pytest.approx(sum(rates) / 6)
    assert summary["num_prompts_without_right_sample"] == rates.count(0)
    assert summary["median_standard_error"] == pytest.approx(
        np.median([row["log_partition_standard_error"] for row in rows])
    )
    assert set(summary["definitions"]) == set(summary) - {"settings", "definitions", "next"}
    assert "completion_ids" not in next(iter(by_prompt.values()))[0]
    out = capsys.readouterr().out
    assert "Partition functions" in out and out.rstrip().endswith(summary["next"])
    assert f"beta {BETA}, length_normalized true, temperature 1.0, at most {LIMIT} tokens" in out


def test_without_length_normalisation_it_is_the_closed_form(files, tmp_path):
    rows, _, _ = run(files, tmp_path / "out", length_normalized="false")
    for row in rows:
        p = row["pass_rate"]
        assert row["log_partition"] == pytest.approx(math.log(1 - p + p * math.exp(1 / BETA)), abs=1e-12)


@pytest.mark.parametrize("normalized", [True, False])
def test_of_a_proposal_model(files, tmp_path, normalized):
    temperature = 0.8
    rows, by_prompt, summary = run(
        files,
        tmp_path / "out",
        proposal_model=files / "proposal",
        temperature=temperature,
        length_normalized=str(normalized).lower(),
    )
    truncated, sizes = 0, []
    for row in rows:
        samples = samples_of(row, by_prompt)
        _, prompt = encode_prompt(byte_tokenizer(), row["prompt"])
        log_weights = []
        for sample in samples:
            ids = sample["completion_ids"]
            assert len(ids) == sample["length"]
            assert sample["truncated"] == (ids[-1] != byte_tokenizer().eos_token_id)
            truncated += sample["truncated"]
            reference, proposal = (
                naive_log_prob(files / name, prompt, ids, temperature) for name in ("model", "proposal")
            )
            log_weights.append(reference - proposal)
        right, lengths = ([sample[name] for sample in samples] for name in ("correct", "length"))
        constant, error = naive_constant(log_weights, right, lengths, BETA, normalized)
        weights = np.exp(log_weights)
        sizes.append(weights.sum() ** 2 / (weights**2).sum())
        assert row["log_partition"] == pytest.approx(constant, abs=1e-4)
        assert row["log_partition_standard_error"] == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert row["effective_sample_size"] == pytest.approx(sizes[-1], rel=1e-3)
        assert row["pass_rate"] == pytest.approx((weights * right).sum() / weights.sum(), abs=1e-4)
    assert truncated and min(sizes) < SAMPLES - 0.5, "every weight would do"
    assert summary["median_effective_sample_size"] == pytest.approx(np.median(sizes), rel=1e-3)


@pytest.mark.parametrize("proposal", [False, True])
def test_against_the_sum_over_all_completions(tmp_path, proposal):
    """Of one token, ended or cut off, which are few enough to be listed."""
    tokenizer, rows = byte_tokenizer(), ROWS[:5]
    tokenizer.add_tokens([rf"\boxed{{{digit}}}" for digit in range(10)])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": row["question"]}])[0] for row in rows]
    for name, times in (("model", 1), ("proposal", 4)):
        model = build_model(tokenizer, max_position_embeddings=256, initializer_range=0.05)
        texts = [
            rf"{prompt}\boxed{{{answer}}}<|im_end|>"
            for prompt, row in zip(prompts, rows, strict=True)
            for answer in (*times * [row["answer"]], *"789")
        ]
        teach(model, tokenizer, texts, tmp_path / name, steps=40, learning_rate=1e-2)
    settings = {"proposal_model": tmp_path / "proposal"} if proposal else {}
    written, _, _ = run(tmp_path, tmp_path / "out", num_samples=800, max_new_tokens=1, batch_size=800, **settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    for row, prompt in zip(written, prompts, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].double()
        right = logits.softmax(-1)[tokenizer.convert_tokens_to_ids(rf"\boxed{{{row['answer']}}}")].item()
        exact = math.log(1 - right + right * math.exp(1 / BETA))
        assert 0.01 < right < 0.6 and row["log_partition_standard_error"] < 0.2
        assert abs(row["log_partition"] - exact) < 4 * row["log_partition_standard_error"]
        assert row["pass_rate"] == pytest.approx(right, abs=0.1)
        assert (row["effective_sample_size"] > 799) != proposal


def test_a_proposal_that_is_the_reference_weighs_all_samples_alike(files, tmp_path):
    plain = run(files, tmp_path / "plain")[0]
    shutil.copytree(files / "model", tmp_path / "copy")
    copied = run(files, tmp_path / "copied", proposal_model=tmp_path / "copy")[0]
    assert copied == plain and all(row["effective_sample_size"] == SAMPLES for row in copied)
    options = script.parse_arguments(words_of(files, tmp_path / "out", proposal_model=f"{files / 'model'}/"))
    assert options.proposal_model is None


def test_completions_end_where_those_of_the_reference_would(files, tmp_path):
    """Whatever ends those of the proposal model elsewhere; and the reference's own end tokens do."""
    before = run(files, tmp_path / "before", proposal_model=files / "proposal")[0]
    brace = byte_tokenizer().convert_tokens_to_ids("}")
    for name in ("model", "proposal"):
        shutil.copytree(files / name, tmp_path / name)
        path = tmp_path / name / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [brace]}))
    assert run(files, tmp_path / "theirs", proposal_model=tmp_path / "proposal")[0] == before
    _, samples, _ = run(files, tmp_path / "ours", model=tmp_path / "model", proposal_model=files / "proposal")
    completions = [sample["completion_ids"] for rows in samples.values() for sample in rows]
    assert any(ids[-1] == brace for ids in completions) and not any(brace in ids[:-1] for ids in completions)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_end_tokens_of_a_model_that_is_not_loaded(files, tmp_path, file):
    shutil.copytree(files / "model", tmp_path / "model")
    if file == "config.json":
        (tmp_path / "model" / "generation_config.json").unlink()
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [99, 50]}))
    tokenizer = byte_tokenizer()
    engine = TransformersEngine(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tokenizer)
    assert end_token_ids(str(tmp_path / "model"), tokenizer) == engine.stop_ids == [tokenizer.eos_token_id, 50, 99]


def test_a_lora_adapter_as_proposal(files, tmp_path):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(files / "model"), LoraConfig(target_modules="all-linear")
    )
    for part in (adapted, byte_tokenizer()):
        part.save_pretrained(tmp_path / "adapter")
    rows = run(files, tmp_path / "out", proposal_model=tmp_path / "adapter")[0]
    assert all(row["effective_sample_size"] == pytest.approx(SAMPLES) for row in rows)  # a new adapter changes nothing
    with pytest.raises(ValueError, match="holds an adapter, not a model"):
        run(files, tmp_path / "other", model=tmp_path / "adapter")


@pytest.mark.parametrize("proposal", [None, "proposal"])
def test_vllm_samples(files, tmp_path, monkeypatch, proposal):
    """With an engine that gives what transformers would, the column is the same."""
    vllm, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = StandInLLM, SimpleNamespace, lambda *fields: fields
    for name, module in {"vllm": vllm, "vllm.lora": ModuleType("vllm.lora"), request.__name__: request}.items():
        monkeypatch.setitem(sys.modules, name, module)
    settings = {"proposal_model": files / proposal} if proposal else {}
    rows = [run(files, tmp_path / engine, engine=engine, **settings)[0] for engine in ("vllm", "transformers")]
    assert rows[0] == rows[1]


@pytest.mark.distributed
def test_two_processes_write_what_one_does(files, tmp_path):
    settings = {"proposal_model": files / "proposal", "num_samples": 24, "ridge": 1}  # several files of scores
    run(files, tmp_path / "one", **settings)
    words = [*words_of(files, tmp_path / "two", **settings), "--num_processes", "2", "--cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "trl_fork", "partition", *words, "--main_process_port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        cwd=files,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("Partition functions") == 1
    one, two = (read(tmp_path / name / "data.jsonl") for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row["log_partition"] == pytest.approx(other["log_partition"], abs=1e-5)
        assert row["effective_sample_size"] == pytest.approx(other["effective_sample_size"], rel=1e-3)


class Stopped(Exception):
    pass


def test_a_killed_run_continues(files, tmp_path, monkeypatch):
    settings = {"proposal_model": files / "proposal", "ridge": 1}
    run(files, tmp_path / "whole", **settings)
    seen, original = [], sampling.TransformersEngine

    class Killed(original):
        def generate(self, prompts, seeds):
            if len(seen) == 2:
                raise Stopped
            seen.append(seeds)
            return super().generate(prompts, seeds)

    monkeypatch.setattr(sampling, "TransformersEngine", Killed)
    with pytest.raises(Stopped):
        run(files, tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "data.jsonl").exists()
    with open(tmp_path / "out" / "completions.jsonl", "ab") as file:
        file.write(b'{"dataset": "half a li')
    monkeypatch.setattr(sampling, "TransformersEngine", original)

    def interrupted(*_, **__):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(script, "ridge_predictions", interrupted)
        with pytest.raises(Stopped):
            run(files, tmp_path / "out", **settings)
    run(files, tmp_path / "out", **settings)
    for name in ("data.jsonl", "completions.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    numbers = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "whole")]
    assert {**numbers[0], "settings": 0, "next": 0} == {**numbers[1], "settings": 0, "next": 0}


def test_another_beta_samples_and_scores_nothing(files, tmp_path, monkeypatch):
    for name in ("model", "proposal"):
        shutil.copytree(files / name, tmp_path / name)
    shutil.copy(files / "rows.jsonl", tmp_path)
    settings = {"proposal_model": tmp_path / "proposal"}
    run(tmp_path, tmp_path / "out", **settings, ridge=1)
    first = (tmp_path / "out" / "data.jsonl").read_bytes()
    for module in (script, sampling):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("weights are read"))
    other = run(tmp_path, tmp_path / "out", **settings, beta=0.1)[0]
    assert "log_partition_estimate" not in other[0]
    run(tmp_path, tmp_path / "out", **settings, length_normalized="false")
    run(tmp_path, tmp_path / "out", **settings, ridge=20)
    run(tmp_path, tmp_path / "out", **settings, ridge=1)
    assert (tmp_path / "out" / "data.jsonl").read_bytes() == first
    with pytest.raises(ValueError, match=r"out holds samples with other settings: .*another --output") as raised:
        run(tmp_path, tmp_path / "out", temperature=0.5, num_samples=4, instruction="{question} Think.")
    for was in (
        *("temperature was 1.0, is now 0.5", f"num_samples was {SAMPLES}, is now 4", "instruction was None, is now"),
        f"proposal_model was '{tmp_path / 'proposal'}', is now None",
    ):
        assert was in str(raised.value)


@pytest.mark.parametrize("width", [32, 3])
def test_ridge(files, tmp_path, width, capsys):
    """Predictions and the leave-one-out R², by fits without the prompt; with fewer prompts than states, and more."""
    if width == 32:
        model = files / "model"
    else:
        model = tmp_path / "narrow"
        narrow = build_model(byte_tokenizer(), hidden_size=3, num_attention_heads=1, num_key_value_heads=1)
        narrow.save_pretrained(model)
        byte_tokenizer().save_pretrained(model)
    settings = {"proposal_model": files / "model"} if width == 3 else {}
    rows, _, summary = run(files, tmp_path / "out", ridge=0.5, model=model, **settings)
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    states = []
    for row in rows:
        _, ids = encode_prompt(byte_tokenizer(), row["prompt"])
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        states.append(output.hidden_states[-1][0].double().mean(0).numpy())
    states, values = np.array(states), np.array([row["log_partition_estimate"] for row in rows])
    assert states.shape == (6, width)

    def fitted(kept, place):
        mean, level = states[kept].mean(0), values[kept].mean()
        # A penalty is the same as further rows.
        design = np.vstack([states[kept] - mean, math.sqrt(0.5) * np.eye(width)])
        slope = np.linalg.lstsq(design, np.concatenate([values[kept] - level, np.zeros(width)]), rcond=None)[0]
        return level + (states[place] - mean) @ slope, level

    everything = list(range(6))
    assert [row["log_partition"] for row in rows] == pytest.approx(
        [fitted(everything, place)[0] for place in everything], abs=1e-4
    )
    left_out = [fitted([other for other in everything if other != place], place) for place in everything]
    errors = sum((values[place] - left_out[place][0]) ** 2 for place in everything)
    total = sum((values[place] - left_out[place][1]) ** 2 for place in everything)
    assert summary["leave_one_out_r2"] == pytest.approx(1 - errors / total, abs=1e-3)
    assert "leave one out" in capsys.readouterr().out


def test_warnings(files, tmp_path, capsys):
    other = build_model(byte_tokenizer(), seed=5, max_position_embeddings=256)
    other.save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    _, _, summary = run(files, tmp_path / "out", proposal_model=tmp_path / "other")
    out = capsys.readouterr().out
    assert summary["median_effective_sample_size"] < 2 and summary["fraction_small_effective_sample_size"] > 0.5
    assert summary["num_prompts_without_right_sample"] == 6 and summary["truncated_fraction"] > 0.5
    for text in ("The effective sample size is below 2 for", "6 of 6 prompts have no right sample"):
        assert f"Warning: {text}" in out
    assert re.search(r"Warning: \d+% of the samples reached --max_new_tokens", out)
    run(files, tmp_path / "reference", num_samples=1)
    assert "effective sample size is below" not in capsys.readouterr().out


def test_one_sample_has_no_standard_error(files, tmp_path):
    rows, _, summary = run(files, tmp_path / "out", num_samples=1)
    assert all(row["log_partition_standard_error"] is None for row in rows)
    assert summary["median_standard_error"] is None


# ---------------------------------------------------------------------- data


def prompts_of(name, **options):
    data = load_training_set(str(name), **options)
    return data["prompt"], data["solution"], data["note"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"instruction": "{question} Box it."},
        {"prompt_template": "Q:\n{question} ({question})\nA:\n"},
        {"prompt_template": "paper"},
        {"solution_column": "other", "prompt_column": "again"},
        {"prompt_column": "chat"},
    ],
    ids=lambda options: " ".join(options) or "none",
)
def test_the_training_reads_the_prompts_that_were_sampled(files, tmp_path, options):
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    more = [{"again": f" {row['question']}\n", "chat": chat.format(row["question"])} for row in ROWS]
    rows = [{**row, "other": r"11\sqrt{2}", **another} for row, another in zip(ROWS, more, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = prompts_of(tmp_path / "rows.jsonl", **options)
    _, by_prompt, summary = run(files, tmp_path / "out", dataset=tmp_path / "rows.jsonl", num_samples=1, **options)
    assert {prompt for prompt, _ in by_prompt} == {encode_prompt(byte_tokenizer(), each)[0] for each in before[0]}
    words = shlex.split(summary["next"])
    given = dict(zip(words[words.index("train") + 1 :: 2], words[words.index("train") + 2 :: 2], strict=True))
    assert given["--dataset_name"] == str(tmp_path / "out" / "data.jsonl")
    names = ("prompt_template", "solution_column", "instruction", "prompt_column")
    passed = {name: given[f"--{name}"] for name in names if f"--{name}" in given}
    assert set(passed) == {"prompt_template"} & set(options) | {"solution_column"} & set(options)
    assert prompts_of(given["--dataset_name"], **passed) == before
    data = load_training_set(given["--dataset_name"], **passed)
    assert all(isinstance(value, float) for value in data["log_partition"])
    assert {name: given[f"--{name}"] for name in ("objective", "partition", "balance_reward", "loss_denominator")} == {
        "objective": "trajectory_balance",
        "partition": "offline",
        "balance_reward": "reward",
        "loss_denominator": "all",
    }
    assert given["--beta"] == str(BETA) and given["--max_completion_length"] == str(LIMIT)
    assert given["--temperature"] == "1.0" and given["--length_normalized"] == "true"


def test_the_command_that_it_prints_trains(files, tmp_path):
    rows, _, summary = run(files, tmp_path / "out")
    words = shlex.split(summary["next"])
    small = "--max_steps 2 --use_cpu true --bf16 false --report_to none --save_strategy no --disable_tqdm true"
    small += f" --logging_steps 1 --per_device_train_batch_size {SAMPLES} --num_generations {SAMPLES}"
    small += " --gradient_accumulation_steps 1"
    assert dispatch.main([*words[words.index("train") :], *small.split()]) == 0
    history = json.loads((tmp_path / "out" / "model" / "trainer_state.json").read_text())["log_history"]
    logged = [entry["balance/log_partition"] for entry in history if "balance/log_partition" in entry]
    values = [row["log_partition"] for row in rows]  # a batch is one prompt
    assert len(logged) == 2 and all(min(abs(value - one) for one in values) < 1e-4 for value in logged)


def test_rows_that_are_equal_are_sampled_once_and_unreadable_ones_are_left_out(files, tmp_path, capsys):
    rows = [ROWS[0], ROWS[1], {**ROWS[0], "note": "again"}, {**ROWS[2], "answer": "see proof"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written, by_prompt, summary = run(files, tmp_path / "out", dataset=tmp_path / "rows.jsonl")
    assert [row["note"] for row in written] == ["é 0", "é 1", "again"] and len(by_prompt) == 2
    assert written[0]["log_partition"] == written[2]["log_partition"]
    assert (summary["num_rows"], summary["num_prompts"]) == (3, 2)
    assert "1 of 4 problems are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--ridge 1\.0: a regression needs 3 different problems"):
        run(files, tmp_path / "other", dataset=tmp_path / "rows.jsonl", ridge=1)
    (tmp_path / "bad.jsonl").write_text(json.dumps({**ROWS[2], "answer": "see proof"}) + "\n")
    with pytest.raises(ValueError, match="none has a solution that math-verify can read"):
        run(files, tmp_path / "other", dataset=tmp_path / "bad.jsonl")


def test_stop_texts_and_template_arguments_reach_the_training(files, tmp_path):
    words = words_of(files, tmp_path / "out", num_samples=2, chat_template_kwargs='{"enable_thinking": false}')
    with contextlib.chdir(files):
        script.run(script.parse_arguments([*words, "--stop", "}", "x y"]))
    command = shlex.split(json.loads((tmp_path / "out" / "summary.json").read_text())["next"])
    assert json.loads(command[command.index("--chat_template_kwargs") + 1]) == {"enable_thinking": False}
    assert json.loads(command[command.index("--generation_kwargs") + 1]) == {"stop_strings": ["}", "x y"]}
    for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines():
        assert "<think>\n\n</think>" in json.loads(line)["prompt"] and "}" not in json.loads(line)["completion"]


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0}, "--beta must be a positive number, got 0.0: rewards are divided by it"),
        ({"beta": "inf"}, "--beta must be a positive number, got inf"),
        ({"beta": None}, "the following arguments are required: --beta"),
        ({"num_samples": 0}, "--num_samples must be at least 1, got 0: it counts samples"),
        ({"max_new_tokens": 0}, "--max_new_tokens must be at least 1, got 0"),
        ({"limit": 0}, "--limit must be at least 1, got 0: it counts rows"),
        ({"batch_size": -1}, "--batch_size must be at least 1, got -1"),
        ({"temperature": 0}, "--temperature must be positive, got 0.0"),
        ({"top_p": 0.9}, "--top_p must be 1, got 0.9"),
        ({"top_k": 50}, "--top_k must be 0, got 50"),
        ({"ridge": 0}, "--ridge must be a positive number, got 0.0"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"length_normalized": "maybe"}, "argument --length_normalized: Truthy value expected: got maybe"),
        ({"base_model": "m"}, "--base_model is that of an adapter given as --proposal_model"),
        ({"dataset": "out/data.jsonl"}, "--dataset out/data.jsonl is the file that would be written"),
        ({"betta": 1}, "there is no option --betta; did you mean --beta?"),
        ({"beta": 0, "top_p": 0.5}, "2 settings cannot be taken:"),
    ],
)
def test_options_that_are_refused(changes, message, capsys):
    with pytest.raises(SystemExit):
        script.parse_arguments(words_of(Path("nowhere"), "out", **changes))
    assert message in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(capsys):
    with pytest.raises(SystemExit):
        script.parse_arguments(words_of(Path("nowhere"), __file__))
    assert "test_partition.py is a file, and must be a folder: name another" in capsys.readouterr().err


def test_models_that_are_refused_before_sampling(files, tmp_path):
    other = byte_tokenizer()
    other.add_tokens(["<more>"])
    shutil.copytree(files / "model", tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"tokenizer differs from that of --model .* in 1 tokens, such as '<more>'"):
        run(files, tmp_path / "out", proposal_model=tmp_path / "other")
    with pytest.raises(ValueError, match=r"--max_new_tokens 250 .* but --model .* has 256 positions. Set .* at most"):
        run(files, tmp_path / "out", max_new_tokens=250)
    build_model(byte_tokenizer(), max_position_embeddings=32).save_pretrained(tmp_path / "short")
    byte_tokenizer().save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match=r"but --proposal_model .*short' has 32 positions"):
        run(files, tmp_path / "out", proposal_model=tmp_path / "short")
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere"):
        run(files, tmp_path / "out", model=files / "nowhere")
    with pytest.raises(ValueError, match=r"^--dataset: The data set 'gone\.jsonl' is not there"):
        run(files, tmp_path / "out", dataset="gone.jsonl")
    base = byte_tokenizer()
    base.chat_template = None
    shutil.copytree(files / "model", tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"no chat_template .*--prompt_template"):
        run(files, tmp_path / "out", model=tmp_path / "base")
    assert not (tmp_path / "out").exists()
