"""`examples/evaluate.py` as a user runs it: a tiny model that is sometimes right, killed, continued, compared."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from math_verify import LatexExtractionConfig, parse, verify
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer
from trl_fork.commands import evaluate as script
from trl_fork.commands import sampling
from trl_fork.data.prompt_and_solution import final_answer
from trl_fork.data.prompt_file import find_prompt, save_prompt
from trl_fork.generation.engines import TransformersEngine, check_model_path, load_model, load_tokenizer


ROOT = Path(__file__).parents[2]
GSM8K = ROOT / "tests" / "files" / "gsm8k.jsonl"
ROWS = [json.loads(line) for line in GSM8K.read_text().splitlines()]
SAMPLES = len(ROWS) * 4


def teach(model, tokenizer, texts, directory, *, steps, learning_rate):
    """Have a model learn the last 14 tokens of each text, and save it."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :-14] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that has learned to answer any question with one of three numbers of the data, some of them cut off."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    model = build_model(tokenizer, max_position_embeddings=1024, initializer_range=0.05)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"][-40:]}], tokenize=False, add_generation_prompt=True
        )
        + rf"\boxed{{{answer}}}"
        + ("<|im_end|>" if answer != "48" else ", 48, 48")
        for row in ROWS
        for answer in ("10", "5", "48")
    ]
    return teach(model, tokenizer, texts, directory, steps=120, learning_rate=1e-2)


def arguments_of(model, output, **changes):
    options = {
        "model": model,
        "dataset": GSM8K,
        "output": output,
        "num_samples": 4,
        "max_new_tokens": 14,
        "batch_size": 8,
        **changes,
    }
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def run(model, output, **changes):
    script.run(script.parse_arguments(arguments_of(model, output, **changes)))
    return lines_of(output)


def lines_of(output):
    lines = [json.loads(line) for line in (Path(output) / "completions.jsonl").read_text().splitlines()]
    return {(line["dataset"], line["problem_id"], line["sample"]): line for line in lines}


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    """A run from beginning to end."""
    output = tmp_path_factory.mktemp("reference") / "evaluation"
    run(model, output)
    return output


def test_results_follow_from_the_completions(reference):
    """Recomputed by a reader of its own, grading included."""
    lines = [json.loads(line) for line in (reference / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == SAMPLES == len(lines_of(reference))
    tokenizer = byte_tokenizer()
    problems, groups, learned = {}, {}, 0
    for line in lines:
        (row,) = [row for row in ROWS if row["question"] in line["prompt"]]
        assert line["dataset"] == str(GSM8K)
        assert line["prompt"].startswith("<|im_start|>user") and line["prompt"].endswith("assistant\n")
        assert line["solution"] == final_answer(row["answer"])
        # An answer is in a box: "5}" is none, though math-verify would find a 5 in it.
        reading = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
        answer = parse(line["completion"], [reading])
        assert line["correct"] == verify(parse(line["solution"]), answer)
        assert line["length"] == 14 if line["truncated"] else 1 <= line["length"] <= 14
        if re.fullmatch(r"\\boxed\{\d+\}[, 48]*", line["completion"]):  # nothing that decoding has left out
            learned += 1
            assert line["length"] == len(tokenizer(line["completion"])["input_ids"]) + (not line["truncated"])
        problems.setdefault(line["problem_id"], []).append(line["correct"])
        assert (line["answer"] is None) == (not answer)
        if answer:
            groups.setdefault(line["problem_id"], []).append((answer, line["correct"]))
    assert learned > SAMPLES / 4
    assert 0 < sum(line["truncated"] for line in lines) < SAMPLES
    accuracies = [statistics.mean(map(float, row)) for row in problems.values()]
    assert 0.02 < statistics.mean(accuracies) < 0.5  # or the rest would show little
    (result,) = json.loads((reference / "results.json").read_text()).items()
    assert result[0] == str(GSM8K)
    assert result[1] == pytest.approx(
        {
            "avg@4": statistics.mean(accuracies),
            "avg@4_stderr": statistics.stdev(accuracies) / len(ROWS) ** 0.5,
            "maj@4": sum(map(majority, groups.values())) / len(problems),
            "pass@1": statistics.mean(accuracies),
            "pass@2": statistics.mean(1 - (4 - c) * (3 - c) / 12 for c in map(sum, problems.values())),
            "pass@4": statistics.mean(map(float, map(any, problems.values()))),
            "mean_length": statistics.mean(line["length"] for line in lines),
            "truncated_fraction": statistics.mean(float(line["truncated"]) for line in lines),
            "num_problems": len(ROWS),
            "num_samples": 4,
            "grading_failures": 0,
        }
    )
    assert set(json.loads((reference / "settings.json").read_text())) == {"settings", "versions"}


def majority(votes):
    """The share of right answers among the most frequent ones, from pairs (answer, whether it is right)."""
    sizes = [sum(verify(answer, other) for other, _ in votes) for answer, _ in votes]
    firsts = [n for n, (answer, _) in enumerate(votes) if not any(verify(other, answer) for other, _ in votes[:n])]
    winners = [votes[n][1] for n in firsts if sizes[n] == max(sizes)]
    return statistics.mean(map(float, winners)) if winners else 0.0


def launch(model, output, *launcher, **changes):
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "examples" / "evaluate.py"), *arguments_of(model, output, **changes)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_when_it_has_begun(process, output, *names):
    """SIGKILL to it and its processes as soon as each of the files has a few lines."""
    deadline = time.monotonic() + 240
    while not all((output / name).exists() and (output / name).read_text().count("\n") >= 4 for name in names):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_run_continues(model, reference, tmp_path, monkeypatch, capsys):
    output = tmp_path / "evaluation"
    process = launch(model, output, batch_size=2)
    kill_when_it_has_begun(process, output, "completions.jsonl")
    text = (output / "completions.jsonl").read_bytes()
    before = text[: text.rindex(b"\n") + 1].decode().splitlines()
    assert 4 <= len(before) < SAMPLES
    assert not (output / "results.json").exists()
    with open(output / "completions.jsonl", "ab") as file:
        file.write(before[-1].encode()[:50])

    generated = []

    class Spy(sampling.TransformersEngine):
        def generate(self, prompts, seeds):
            generated.extend(seeds)
            return super().generate(prompts, seeds)

    monkeypatch.setattr(sampling, "TransformersEngine", Spy)
    after = run(model, output)
    assert len(generated) == len(set(generated)) == SAMPLES - len(before)
    assert f"{len(before)} samples are in" in capsys.readouterr().out
    assert (output / "completions.jsonl").read_text().splitlines()[: len(before)] == before
    assert after == lines_of(reference)
    assert (output / "results.json").read_text() == (reference / "results.json").read_text()

    run(model, output)  # nothing left: prints the table again
    assert len(generated) == SAMPLES - len(before)
    assert "Evaluation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.5}, "temperature was 1.0, is now 0.5"),
        ({"num_samples": 8}, "num_samples was 4, is now 8"),
        ({"limit": 3}, r"limit was None, is now 3; problems was '16, sha256 \w+', is now '3, sha256 \w+'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_settings_are_refused(model, reference, changes, message):
    before = (reference / "completions.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message + r".*choose another --output"):
        run(model, reference, **changes)
    assert (reference / "completions.jsonl").read_bytes() == before


def test_samples_of_earlier_weights_are_refused(model, reference, tmp_path):
    """A training that went on leaves a model of the same name in the same folder."""
    shutil.copytree(model, tmp_path / "model")
    found = run(tmp_path / "model", tmp_path / "evaluation", limit=2)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for parameter in trained.parameters():
        parameter.data.add_(1e-4)
    trained.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"weights was {'model': '\w+'}, is now {'model': '\w+'}.*another --output"):
        run(tmp_path / "model", tmp_path / "evaluation", limit=2)
    for file in Path(model).glob("*.safetensors"):
        shutil.copyfile(file, tmp_path / "model" / file.name)
    assert run(tmp_path / "model", tmp_path / "evaluation", limit=2) == found
    # Earlier versions did not write what weights they were
    path = tmp_path / "evaluation" / "settings.json"
    written = json.loads(path.read_text())
    del written["settings"]["weights"]
    path.write_text(json.dumps(written))
    assert run(tmp_path / "model", tmp_path / "evaluation", limit=2) == found


def test_lora_adapter(model, reference, tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    adapted.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "merged")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    found = run(tmp_path / "adapter", tmp_path / "evaluation", limit=4)
    expected = run(tmp_path / "merged", tmp_path / "evaluation of merged", limit=4)
    assert found == expected
    assert found != {key: line for key, line in lines_of(reference).items() if key in found}

    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises((ValueError, OSError), match=r"gone"):
        run(tmp_path / "adapter", tmp_path / "other", limit=4)
    assert run(tmp_path / "adapter", tmp_path / "other", limit=4, base_model=model) == expected


def test_compare_loads_no_model(model, reference, tmp_path, capsys, monkeypatch):
    run(model, tmp_path / "b", seed=1)
    monkeypatch.setattr(sampling, "load_model", None)
    paths = [str(path / "results.json") for path in (reference, tmp_path / "b")]
    capsys.readouterr()
    script.run(script.parse_arguments(["--compare", *paths]))
    (row,) = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "gsm8k " in line]
    a, b = (json.loads(Path(path).read_text())[str(GSM8K)]["avg@4"] for path in paths)
    assert row[:2] == ["gsm8k", f"{a:.2%}"] and row[3] == f"{b:.2%}" and row[5] == f"{100 * (b - a):+.2f}"
    low, high = float(row[6].strip("[,")), float(row[7].strip("]"))
    assert low <= 100 * (b - a) <= high and low < high and row[8] == "16"


def test_prompt_template_and_unreadable_solutions(model, tmp_path, capsys):
    path = tmp_path / "problems.jsonl"
    rows = [{"prompt": f"{i} + 1?", "solution": str(i + 1)} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "?", "solution": "so be it"}]))
    template = "User:\n{question}\n\nAssistant:\n"
    lines = run(model, tmp_path / "evaluation", dataset=path, num_samples=2, prompt_template=template)
    assert "1 of 4 problems are left out, because math-verify cannot read their solution (the first: 'so be it')" in (
        capsys.readouterr().out
    )
    assert len({key[1] for key in lines}) == 3 and len(lines) == 6
    assert {line["solution"] for line in lines.values()} == {"1", "2", "3"}
    prompts = {line["prompt"] for line in lines.values()}
    assert all(any(f"{i} + 1?" in prompt and "\n\nAssistant:\n" in prompt for prompt in prompts) for i in range(3))


def test_instruction_is_recorded_shown_and_compared(model, reference, tmp_path, capsys):
    lines = run(model, tmp_path / "other", limit=2, instruction="Well: {question}")
    assert all("Well: " in line["prompt"] and "step by step" not in line["prompt"] for line in lines.values())
    printed = capsys.readouterr().out
    assert "The first prompt: '" in printed and "Well: " in printed
    script.run(script.parse_arguments(["--compare", str(reference), str(tmp_path / "other")]))  # folders
    printed = capsys.readouterr().out
    assert "Different instruction: None and 'Well: {question}'." in printed
    assert "Different limit: None and 2." in printed and "Different temperature" not in printed


def test_the_prompt_of_the_training_is_the_default(model, reference, tmp_path, capsys):
    trained, base = tmp_path / "run" / "checkpoint-5", tmp_path / "base"
    for directory in (trained, base):
        shutil.copytree(model, directory)
    save_prompt(tmp_path / "run", {"instruction": "Well: {question}"})

    def prompts(name, **options):
        return [
            line["prompt"] for line in run(name, tmp_path / "out" / str(len(options)), limit=2, **options).values()
        ]

    assert all("Well: " in prompt and "step by step" not in prompt for prompt in prompts(trained))
    assert f"that of the model's training ({tmp_path / 'run' / 'forking_prompt.json'})" in capsys.readouterr().out
    assert prompts(trained) and "samples are in" not in capsys.readouterr().out  # the same settings: nothing is left
    settings = json.loads((tmp_path / "out" / "0" / "settings.json").read_text())["settings"]
    assert (settings["instruction"], settings["prompt_template"]) == ("Well: {question}", None)
    # What is given wins
    found = prompts(trained, prompt_template="Q: {question}")
    assert all(prompt.startswith("Q: ") and "Well" not in prompt for prompt in found)
    assert "model's training" not in capsys.readouterr().out
    # and only checkpoints belong to the run around them
    save_prompt(tmp_path, {"instruction": "Well: {question}"})
    assert find_prompt(base) is None and find_prompt("user/name") is None
    save_prompt(tmp_path / "run", None)
    assert find_prompt(trained) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --model, --dataset, --output to evaluate, or --compare"),
        (["--temperature", "0"], "give --num_samples 1 or a temperature"),
        (["--top_p", "0"], "--top_p must be in"),
        (["--num_samples", "0"], "must be at least 1"),
        (["--num_sample", "8"], "there is no option --num_sample; did you mean --num_samples?"),
        (["--top_k", "20"], "there is no option --top_k; did you mean --top_p?"),
    ],
    ids=lambda value: value[0] if value and isinstance(value, list) else None,
)
def test_bad_options(words, message, capsys):
    needed = ["--model", "m", "--dataset", "d", "--output", "o"] if words else []
    with pytest.raises(SystemExit):
        script.parse_arguments([*needed, *words])
    assert message in capsys.readouterr().err


def test_bad_models(model, tmp_path):
    with pytest.raises(ValueError, match=r"the model has 1024 positions. Set --max_new_tokens to at most \d+"):
        run(model, tmp_path / "a", max_new_tokens=1020)
    with pytest.raises(ValueError, match=r"--base_model 'x' is for LoRA adapters"):
        run(model, tmp_path / "b", base_model="x")
    for options in ({}, {"engine": "vllm"}):
        with pytest.raises(ValueError, match=r"There is no folder './no_such_dir'"):
            run("./no_such_dir", tmp_path / "d", **options)
    with pytest.raises(ImportError, match=r"pip install trl_fork\[vllm\]`, or use --engine transformers"):
        run(model, tmp_path / "c", engine="vllm")


def test_data_that_are_not_there_are_named_with_the_option(model, tmp_path):
    with pytest.raises(ValueError, match=r"^--dataset: The data set 'gone\.jsonl' is not there"):
        run(model, tmp_path / "a", dataset="gone.jsonl")


def test_what_is_taken_for_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    (tmp_path / "outputs" / "file").touch()
    for name in ("outputs/run", "./outputs/run", str(tmp_path / "outputs/run"), "gpt2", "Qwen/Qwen3-0.6B"):
        check_model_path(name)
    for name in ("outputs/rum", "outputs/run/checkpoint-9", "../x", "/x", "~/x", "x/", str(tmp_path / "x")):
        with pytest.raises(ValueError, match=f"There is no folder {name!r}"):
            check_model_path(name)
    with pytest.raises(ValueError, match="'outputs/file' is a file"):
        check_model_path("outputs/file")


class StandInLLM:
    """What vLLM 0.22 promises of `LLM`, answered by transformers."""

    def __init__(self, *, model, dtype, max_model_len, tensor_parallel_size, enable_lora=False, max_lora_rank=16):
        assert max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        assert (dtype, tensor_parallel_size) == ("auto", 1)
        self.model, self.enable_lora, self.max_model_len = str(model), enable_lora, max_model_len
        self.max_lora_rank = max_lora_rank

    def generate(self, prompts, sampling_params, *, use_tqdm=True, lora_request=None):
        assert self.enable_lora or lora_request is None
        name = lora_request[2] if lora_request else self.model
        if lora_request:  # vLLM refuses ids below 1 and larger ranks, and sets memory aside for the largest
            rank = json.loads((Path(name) / "adapter_config.json").read_text())["r"]
            assert lora_request[1] >= 1 and self.max_lora_rank == {4: 8}[rank]
        for prompt, parameters in zip(prompts, sampling_params, strict=True):
            assert set(prompt) == {"prompt_token_ids"}
            assert len(prompt["prompt_token_ids"]) + parameters.max_tokens <= self.max_model_len
        p = sampling_params[0]
        engine = TransformersEngine(
            load_model(name),
            load_tokenizer(name),
            temperature=p.temperature,
            top_p=p.top_p,
            max_new_tokens=p.max_tokens,
            stop=p.stop or (),
        )
        assert p.stop_token_ids == engine.stop_ids
        samples = engine.generate(
            [prompt["prompt_token_ids"] for prompt in prompts], [p.seed for p in sampling_params]
        )
        for sample in samples:
            reason = "length" if sample.truncated else "stop"
            output = SimpleNamespace(text=sample.text, token_ids=list(sample.ids), finish_reason=reason)
            yield SimpleNamespace(outputs=[output])


@pytest.mark.parametrize("adapter", [False, True])
def test_vllm_engine_keeps_to_vllms_contract(model, reference, tmp_path, monkeypatch, adapter):
    vllm, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = StandInLLM, SimpleNamespace, lambda *fields: fields
    for name, module in {"vllm": vllm, "vllm.lora": ModuleType("vllm.lora"), request.__name__: request}.items():
        monkeypatch.setitem(sys.modules, name, module)
    expected = lines_of(reference)
    if adapter:
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(tmp_path / "adapter")
        expected, model = run(tmp_path / "adapter", tmp_path / "transformers"), tmp_path / "adapter"
    assert run(model, tmp_path / "vllm", engine="vllm") == expected


@pytest.mark.distributed
def test_two_processes_killed_and_continued_on_one_and_on_two(model, reference, tmp_path):
    launcher = (
        *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "accelerate" / "ddp.yaml")),
        *("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"),
    )
    output = tmp_path / "evaluation"
    process = launch(model, output, *launcher, batch_size=2)
    kill_when_it_has_begun(process, output, "completions.jsonl", "completions-rank1.jsonl")
    for again in (False, True):
        process = launch(model, output, *(launcher if again else ()))
        text, _ = process.communicate(timeout=500)
        assert process.returncode == 0, text[-3000:]
        assert lines_of(output) == lines_of(reference)
        assert (output / "results.json").read_text() == (reference / "results.json").read_text()
        assert not list(output.glob("completions-rank*"))
    whole = tmp_path / "whole"
    process = launch(model, whole, *launcher)
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text[-3000:]
    assert lines_of(whole) == lines_of(reference)
    assert text.count("Evaluation") == 1
