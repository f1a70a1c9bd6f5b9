"""What a model was asked in training it is asked in evaluation and analysis, token by token, and its card says so."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin
from trl import GRPOTrainer

from tests.conftest import build_model
from tests.snippets import write_dataset
from tests.trainer.test_features import byte_tokenizer
from trl_fork import ForkingGRPOTrainer
from trl_fork.analysis.responses import read_responses
from trl_fork.commands import analyze as analyze_entropy
from trl_fork.commands import evaluate, sampling, train
from trl_fork.commands import merge as merge_adapter
from trl_fork.data.benchmarks import load_benchmark
from trl_fork.data.prompt_and_solution import to_prompt_and_solution
from trl_fork.data.prompt_file import default_stop, find_prompt, save_prompt
from trl_fork.data.training_sets import load_training_set, training_prompt
from trl_fork.rewards.grading import GradingPool


NO_THINKING = {"enable_thinking": False}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_words(options):
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def run_training(model, data, output, monkeypatch, **settings):
    """One step of `examples/train.py`; returns the ids of the prompts that TRL made."""
    seen = []

    class Spy(ForkingGRPOTrainer):
        def _tokenize_prompts(self, prompts):
            result = super()._tokenize_prompts(prompts)
            seen.extend(map(tuple, result[0]))
            return result

    monkeypatch.setattr(train, "ForkingGRPOTrainer", Spy)
    path = output.with_suffix(".yaml")
    recipe = {
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "save_steps": 1,
        **settings,
    }
    path.write_text(yaml.safe_dump(recipe))
    train.run(*train.make_parser().parse_args_and_config(["--config", str(path)]))
    return set(seen)


def run_evaluation(model, data, output, monkeypatch, *words, **changes):
    """`examples/evaluate.py`; returns the ids of the prompts that the engine was given."""
    seen = []

    class Spy(sampling.TransformersEngine):
        def generate(self, prompts, seeds):
            seen.extend(map(tuple, prompts))
            return super().generate(prompts, seeds)

    monkeypatch.setattr(sampling, "TransformersEngine", Spy)
    options = {"model": model, "dataset": data, "output": output, "num_samples": 1, "max_new_tokens": 4, **changes}
    evaluate.run(evaluate.parse_arguments([*as_words(options), *words]))
    return set(seen)


def render(*messages, **options):
    """As transformers does, without the package."""
    return byte_tokenizer().apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)


THINKS_NOT = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
KINDS = {
    "question": (
        lambda n: {"question": f" {n} + 1?", "answer": str(n + 1)},
        {"instruction": "{question} Go."},
        lambda n: render(user(f"{n} + 1? Go."), **NO_THINKING),
    ),
    "question alone": (
        lambda n: {"question": f" {n} + 1?\n", "answer": str(n + 1)},
        {},
        lambda n: render(user(f" {n} + 1?\n"), **NO_THINKING),
    ),
    "columns in another case": (
        lambda n: {"Problem": f"{n} + 1?", "Answer": n + 1},
        {},
        lambda n: render(user(f"{n} + 1?"), **NO_THINKING),
    ),
    "columns by name": (
        lambda n: {"Task text": f"{n} + 1?", "Value": {"gold": n + 1}},
        {"prompt_column": "Task text", "solution_column": "Value.gold"},
        lambda n: render(user(f"{n} + 1?"), **NO_THINKING),
    ),
    "system and user": (
        lambda n: {"prompt": [SYSTEM, user(f"{n} + 1?")], "answer": str(n + 1)},
        {},
        lambda n: render(SYSTEM, user(f"{n} + 1?"), **NO_THINKING),
    ),
    "user": (
        lambda n: {"prompt": [user(f" {n} + 1? Use a box.")], "answer": str(n + 1)},
        {},
        lambda n: render(user(f" {n} + 1? Use a box."), **NO_THINKING),
    ),
    "several turns": (
        lambda n: {
            "prompt": [user("1 + 1?"), {"role": "assistant", "content": "2"}, user(f"{n} + 1?")],
            "answer": str(n + 1),
        },
        {},
        lambda n: render(user("1 + 1?"), {"role": "assistant", "content": "2"}, user(f"{n} + 1?"), **NO_THINKING),
    ),
    "text in chat format": (
        lambda n: {"prompt": f"<|im_start|>user\n{n} + 1?<|im_end|>\n<|im_start|>assistant\n", "answer": str(n + 1)},
        {},
        lambda n: f"<|im_start|>user\n{n} + 1?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "plain text": (
        lambda n: {"question": f"{n} + 1?", "answer": str(n + 1)},
        {"prompt_template": "Q: {question}\nA:"},
        lambda n: f"Q: {n} + 1?\nA:",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_ids_are_those_of_the_training(kind, model, tmp_path, monkeypatch, capsys):
    row, settings, expected = KINDS[kind]
    data = write_rows(tmp_path / "data.jsonl", [row(n) for n in range(2)])
    trained = run_training(
        model, data, tmp_path / "run", monkeypatch, chat_template_kwargs={"enable_thinking": False}, **settings
    )
    assert trained == {tuple(byte_tokenizer()(expected(n))["input_ids"]) for n in range(2)}
    capsys.readouterr()

    columns = {name: value for name, value in settings.items() if name.endswith("_column")}
    in_full = kind in ("question", "system and user")  # the others differ before anything is sampled
    for place in ("run", "run/checkpoint-1") if in_full else ("run",):
        output = tmp_path / "evaluation" / place
        assert run_evaluation(tmp_path / place, data, output, monkeypatch, **columns) == trained
        path = tmp_path / "run" / "forking_prompt.json"
        assert f"chat_template_kwargs: {NO_THINKING}, those of the model's training ({path})" in (
            capsys.readouterr().out
        )
    settings_file = json.loads((output / "settings.json").read_text())["settings"]
    assert settings_file["chat_template_kwargs"] == NO_THINKING

    # Analysis: of the evaluation's file, of conversations in a file, and of samples of its own.
    read = read_responses(output / "completions.jsonl", AutoTokenizer.from_pretrained(tmp_path / "run"))
    assert {tuple(response.prompt_ids) for response in read} == trained
    if not in_full:
        return
    own = ["--model", tmp_path / "run", "--dataset", data, "--output", tmp_path / "analysis", *as_words(columns)]
    own += ["--num_samples", "1", "--max_new_tokens", "4", "--min_token_count", "0", "--analyses", "distribution"]
    scored = []
    score = analyze_entropy.ScoreStore.score

    def spy(self, responses, *args, **kwargs):
        responses = list(responses)
        scored.extend(tuple(response.prompt_ids) for response in responses)
        return score(self, responses, *args, **kwargs)

    monkeypatch.setattr(analyze_entropy.ScoreStore, "score", spy)
    analyze_entropy.run(analyze_entropy.parse_arguments(list(map(str, own))))
    assert set(scored) == trained


def test_conversations_of_a_file_are_analysed_as_the_model_was_trained(model, tmp_path, monkeypatch, capsys):
    scored = []
    monkeypatch.setattr(
        analyze_entropy.ScoreStore,
        "score",
        lambda self, responses, *args, **kwargs: scored.extend(tuple(r.prompt_ids) for r in responses) or 1 / 0,
    )
    path = write_rows(tmp_path / "r.jsonl", [{"prompt": [user("1 + 1?")], "completion": "2"}])
    copy_of(model, tmp_path / "run")
    save_prompt(tmp_path / "run", None, chat_template_kwargs=NO_THINKING)
    words = ["--model", str(tmp_path / "run"), "--completions", str(path), "--output", str(tmp_path / "out")]
    for more, options in (([], NO_THINKING), (["--chat_template_kwargs", '{"enable_thinking": true}'], {})):
        scored.clear()
        with pytest.raises(ZeroDivisionError):
            analyze_entropy.run(analyze_entropy.parse_arguments([*words, *more]))
        assert scored == [tuple(byte_tokenizer()(render(user("1 + 1?"), **options))["input_ids"])]
    assert f"are read with chat_template_kwargs {NO_THINKING}." in capsys.readouterr().out


@pytest.fixture(scope="module")
def pool():
    with GradingPool(num_workers=1) as pool:
        yield pool


def copy_of(model, path):
    path.mkdir(parents=True)
    for file in Path(model).iterdir():
        (path / file.name).symlink_to(file)
    return path


def test_what_is_given_wins_and_is_printed(model, pool, tmp_path, capsys):
    run = copy_of(model, tmp_path / "run")
    save_prompt(run, {"instruction": "{question} Go.", "system_prompt": "Be brief."}, chat_template_kwargs=NO_THINKING)
    data = write_rows(tmp_path / "d.jsonl", [{"question": "1 + 1?", "answer": "2"}])

    def asked(*words):
        needed = as_words({"model": run, "dataset": data, "output": tmp_path / "out"})
        options = evaluate.parse_arguments([*needed, *words])
        trained = evaluate.use_training_prompt(options, PartialState(cpu=True))
        (problem,) = evaluate.load_problems(options, byte_tokenizer(), pool, trained)
        assert byte_tokenizer().decode(problem.prompt_ids) == problem.prompt
        return problem.prompt

    assert asked() == render(SYSTEM, user("1 + 1? Go."), **NO_THINKING)
    assert "--chat_template_kwargs changes them" in capsys.readouterr().out
    assert asked("--chat_template_kwargs", "{}") == render(SYSTEM, user("1 + 1? Go."))
    assert f"chat_template_kwargs: {{}}, in the training: {NO_THINKING}." in capsys.readouterr().out
    assert asked("--system_prompt", "") == render(user("1 + 1? Go."), **NO_THINKING)
    assert asked("--system_prompt", "Hm.") == render(
        {"role": "system", "content": "Hm."}, user("1 + 1? Go."), **NO_THINKING
    )
    assert asked("--instruction", "{question}!") == render(SYSTEM, user("1 + 1?!"), **NO_THINKING)
    capsys.readouterr()
    assert asked("--prompt_template", "{question}=") == "1 + 1?="
    assert "enable_thinking has no effect, because the prompts are plain text" in capsys.readouterr().out
    asked("--chat_template_kwargs", '{"enable_thinkin": false}')
    assert "enable_thinkin has no effect, because the model's chat template does not read it" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chat_template_kwargs", "enable_thinking=false"], "is no JSON"),
        (["--chat_template_kwargs", "[1]"], "is no JSON object, such as"),
        (["--chat_template_kwargs", '{"tokenize": true}'], "['tokenize'] are not for the template"),
        (["--stop", ""], "--stop: an empty text would end every sample"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_options(words, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_arguments(["--model", "m", "--dataset", "d", "--output", "o", *words])
    assert message in capsys.readouterr().err


def test_a_file_that_holds_something_else(tmp_path):
    for text, message in (
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object"),
        ('{"instruction": 3}', "instruction must be of type str, got 3"),
        ('{"chat_template_kwargs": "x"}', "chat_template_kwargs must be of type dict"),
    ):
        (tmp_path / "forking_prompt.json").write_text(text)
        with pytest.raises(ValueError, match=rf"forking_prompt\.json.*{message}"):
            find_prompt(tmp_path)
    # What a folder from elsewhere says must not reach other options of a script.
    (tmp_path / "forking_prompt.json").write_text('{"output": "/etc", "instruction": "{question}"}')
    assert find_prompt(tmp_path)[0] == {"instruction": "{question}"}


def test_grpo_reads_no_arguments_of_the_template_from_the_data(model, tmp_path):
    """TRL's supervised trainers do. Should GRPO begin to, evaluation has to follow."""
    seen = []

    class Spy(GRPOTrainer):
        def _tokenize_prompts(self, prompts):
            seen.extend(super()._tokenize_prompts(prompts)[0])
            raise KeyboardInterrupt

    rows = [{"prompt": [user("1?")], "chat_template_kwargs": NO_THINKING, "solution": "1"}] * 2
    args = train.ForkingGRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", num_generations=2,
        per_device_train_batch_size=2, max_steps=1,
    )  # fmt: skip
    trainer = Spy(str(model), lambda completions, **_: [0.0] * len(completions), args, Dataset.from_list(rows))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert seen[0] == byte_tokenizer()(render(user("1?")))["input_ids"]


# ---------------------------------------------------------------------- what remains of a training


@pytest.mark.parametrize("prompt", [{"instruction": "{question} Go."}, None, {"prompt_template": "Q: {question}\nA:"}])
def test_the_card_asks_with_the_arguments_of_the_template(prompt, model, tmp_path, monkeypatch, capsys):
    data = write_rows(tmp_path / "d.jsonl", [{"question": f"{n}?", "answer": "2"} for n in range(2)])
    run_training(model, data, tmp_path / "run", monkeypatch, chat_template_kwargs=NO_THINKING, **(prompt or {}))
    card = (tmp_path / "run" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    asked = []
    generate = GenerationMixin.generate

    def spy(self, *args, **kwargs):
        asked.append(byte_tokenizer().decode(kwargs["input_ids"][0]))
        return generate(self, *args, **{**kwargs, "max_new_tokens": 2})

    monkeypatch.setattr(GenerationMixin, "generate", spy)
    exec(snippet, {})
    question = "What is 12 * 34?"
    if prompt and "prompt_template" in prompt:
        assert asked == [f"Q: {question}\nA:"]
    else:
        text = f"{question} Go." if prompt else question
        assert asked == [render(user(text), **NO_THINKING)]


def test_a_merged_adapter_is_asked_as_the_adapter(model, tmp_path, monkeypatch):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "run")
    byte_tokenizer().save_pretrained(tmp_path / "run")
    save_prompt(tmp_path / "run", {"instruction": "{question} Go."}, chat_template_kwargs=NO_THINKING)
    words = ["merge_adapter.py", "--model", str(tmp_path / "run"), "--output", str(tmp_path / "merged")]
    monkeypatch.setattr(sys, "argv", words)
    merge_adapter.main()
    assert find_prompt(tmp_path / "merged")[0] == find_prompt(tmp_path / "run")[0]


def test_a_changed_chat_template_is_saved_with_the_tokenizer(model, tmp_path, monkeypatch):
    other = copy_of(model, tmp_path / "base")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{{ enable_thinking }}"
    for file in list(other.glob("*token*")) + list(other.glob("*.jinja")):
        file.unlink()
    tokenizer.save_pretrained(other)
    data = write_rows(tmp_path / "d.jsonl", [{"question": f"{n}?", "answer": "2"} for n in range(2)])
    trained = run_training(other, data, tmp_path / "run", monkeypatch, chat_template_kwargs=NO_THINKING)
    assert trained == {tuple(tokenizer(f"[{n}?]False")["input_ids"]) for n in range(2)}
    assert run_evaluation(tmp_path / "run", data, tmp_path / "out", monkeypatch) == trained


def test_the_commands_after_a_training_name_its_columns(model, tmp_path):
    arguments, args, _ = train.make_parser().parse_args_and_config(
        as_words(
            {
                "model_name_or_path": model,
                "dataset_name": "d.jsonl",
                "output_dir": tmp_path / "run",
                "prompt_column": "Task text",
                "solution_column": "Value",
                "use_cpu": True,
                "bf16": False,
            }
        )
    )
    text = train.next_steps(arguments, args, "base", 1)
    assert "--prompt_column 'Task text' --solution_column Value" in text


def test_the_system_prompt_of_the_training_is_kept(model, tmp_path, monkeypatch, capsys):
    """Its conversations are those of the data set, so that nothing else says how questions are asked."""
    rows = [{"prompt": [SYSTEM, user(f"{n} + 1?")], "answer": str(n + 1)} for n in range(2)]
    path = write_rows(tmp_path / "d.jsonl", rows)
    assert training_prompt(str(path)) == training_prompt(str(path), streaming=True) == {"system_prompt": "Be brief."}
    run = copy_of(model, tmp_path / "run")
    save_prompt(run, training_prompt(str(path)))
    other = write_rows(tmp_path / "o.jsonl", [{"question": "3 + 3?", "answer": "6"}])
    (ids,) = run_evaluation(run, other, tmp_path / "out", monkeypatch)
    text = byte_tokenizer().decode(ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n3 + 3?\nPlease reason")
    assert "The system prompt is that of the model's training" in capsys.readouterr().out
    rows[1]["prompt"][0] = {"role": "system", "content": "Be long."}
    assert training_prompt(str(write_rows(tmp_path / "e.jsonl", rows))) is None


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n1?<|im_end|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1?<|eot_id|>",
        "<bos><start_of_turn>user\n1?<end_of_turn>\n<start_of_turn>model\n",
        "<s>[INST] 1? [/INST]",
        "[INST] <<SYS>>\ns\n<</SYS>>\n\n1? [/INST]",
        "<|user|>\n1?<|end|>\n<|assistant|>\n",
        "<|endoftext|><|user|>\n1?\n<|assistant|>\n",  # OLMo
        "<｜begin▁of▁sentence｜><｜User｜>1?<｜Assistant｜>",  # noqa: RUF001
        "[gMASK]<sop><|user|>\n1?<|assistant|>",
        "<|start|>system<|message|>s<|end|><|start|>user<|message|>1?<|end|>",
    ],
)
def test_text_in_chat_format_is_not_wrapped_again(text, tmp_path):
    path = str(write_rows(tmp_path / "d.jsonl", [{"prompt": text, "answer": "2"}]))
    assert load_training_set(path)["prompt"][:] == load_benchmark(path)["prompt"][:] == [text]
    assert training_prompt(path) is None
    # The prompt of a training is for questions; what is asked for in this call is refused by name.
    assert load_benchmark(path, trained_prompt={"instruction": "{question} Go."})["prompt"][:] == [text]
    for name, value in (("instruction", "{question} Go."), ("prompt_template", "paper"), ("system_prompt", "s")):
        for load in (load_training_set, load_benchmark)[name == "system_prompt" :]:
            with pytest.raises(ValueError, match=rf"in chat format already .* {name} would wrap it a second time"):
                load(path, **{name: value})


def test_what_only_speaks_of_a_chat_is_a_question(tmp_path):
    rows = [{"prompt": "What does <|im_start|>user mean?", "answer": "2"}]
    path = str(write_rows(tmp_path / "d.jsonl", rows))
    assert load_training_set(path)["prompt"][0] == [user(rows[0]["prompt"])]


def test_texts_in_chat_format_among_questions_are_refused(tmp_path):
    rows = [{"prompt": "<|im_start|>user\n1?", "answer": "1"}, {"prompt": "2?", "answer": "2"}]
    with pytest.raises(
        ValueError, match="column 'prompt': some prompts are in chat format, as text, and others plain"
    ):
        load_benchmark(str(write_rows(tmp_path / "d.jsonl", rows)))
    with pytest.raises(ValueError, match=r"row 1, column 'prompt'.* None"):
        load_benchmark(str(write_rows(tmp_path / "e.jsonl", [rows[1], {"prompt": None, "answer": "1"}])))


def test_conversations_are_taken_as_training_takes_them(tmp_path):
    conversation = [SYSTEM, user("1 + 1?")]
    path = str(write_rows(tmp_path / "d.jsonl", [{"messages": conversation, "answer": "2"}]))
    columns = {"prompt_column": "messages"}
    assert load_benchmark(path, **columns)["prompt"][:] == load_training_set(path, **columns)["prompt"][:]
    asked = load_benchmark(path, **columns, trained_prompt={"instruction": "{question} Go."})["prompt"][0]
    assert asked == conversation
    for name in ("instruction", "prompt_template"):
        with pytest.raises(ValueError, match=r"messages of \['system', 'user'\].* must be one message of the user"):
            load_benchmark(path, **columns, **{name: "{question} Go."})
    # One message of the user is a question, which a known instruction is taken from as in training
    single = str(write_rows(tmp_path / "s.jsonl", [{"prompt": [user("1 + 1?")], "answer": "2"}]))
    assert load_benchmark(single)["prompt"][0] == load_training_set(single)["prompt"][0] == [user("1 + 1?")]
    settings = {"instruction": "{question} Go."}
    assert load_benchmark(single, **settings)["prompt"][:] == load_training_set(single, **settings)["prompt"][:]
    assert load_benchmark(single, trained_prompt=settings)["prompt"][0] == [user("1 + 1? Go.")]
    assert load_benchmark(single, system_prompt="Be brief.")["prompt"][0] == conversation


@pytest.mark.parametrize("names", [("Problem", "Answer"), ("QUESTION", "Final_Answer"), ("Prompt", "SOLUTION")])
def test_columns_in_any_case(names, tmp_path):
    path = str(write_rows(tmp_path / "d.jsonl", [{names[0]: "1 + 1?", names[1]: "2", "id": 0}]))
    for data in (load_training_set(path), load_benchmark(path)):
        assert data["solution"][:] == ["2"] and "1 + 1?" in data["prompt"][0][0]["content"]
    # The exact name goes first.
    both = Dataset.from_list([{"Question": "a", "question": "b", "answer": "2"}])
    assert to_prompt_and_solution(both)["prompt"][0] == [user("b")]


def test_columns_splits_and_configurations_are_options(model, tmp_path, monkeypatch):
    rows = [{"Task": "1 + 1?", "Worked": "#### 2", "answer": "3"}]
    write_dataset(tmp_path / "set", rows, splits=["validation"], config="hard")
    words = ["--prompt_column", "Task", "--solution_column", "Worked", "--dataset_config", "hard"]
    words += ["--dataset_test_split", "validation"]
    run_evaluation(model, tmp_path / "set", tmp_path / "out", monkeypatch, *words)
    (line,) = map(json.loads, (tmp_path / "out" / "completions.jsonl").read_text().splitlines())
    assert line["solution"] == "2" and "1 + 1?" in line["prompt"]
    with pytest.raises(ValueError, match=r"prompt_column was 'Task', is now None"):
        evaluate.CompletionStore(tmp_path / "out").check_settings(
            {**json.loads((tmp_path / "out" / "settings.json").read_text())["settings"], "prompt_column": None}
        )
    with pytest.raises(ValueError, match=r"prompt_column: the data set has none of the columns .* Set prompt_column"):
        run_evaluation(model, tmp_path / "set", tmp_path / "other", monkeypatch, *words[2:])


# ---------------------------------------------------------------------- stop strings by default


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        ("paper", ["\nUser:"]),
        ("User:\n{question}\n\nAssistant:\n", ["\nUser:"]),
        ("Q: {question}\nA:", ["\nQ:"]),
        ("Question: 1 + 1?\nAnswer: 2\n\nQuestion: {question}\nAnswer:", ["\nQuestion:"]),
        ("### Problem\n{question}\n### Solution\n", ["\n### Problem"]),
        ("**Problem:** {question}\n", ["\n**Problem:**"]),
        ("{question}", []),
        ("{question}\n\nAnswer:", []),
        ("Here is one of many problems from a long and hard competition: {question}", []),
        (None, []),
    ],
)
def test_default_stop(template, stop):
    assert default_stop(template) == stop


def test_stop_strings_are_said_recorded_and_can_be_switched_off(model, tmp_path, capsys):
    data = write_rows(tmp_path / "d.jsonl", [{"question": "1 + 1?", "answer": "2"}])

    def stop_of(*words, where=model):
        options = evaluate.parse_arguments([*as_words({"model": where, "dataset": data, "output": "o"}), *words])
        evaluate.use_training_prompt(options, PartialState(cpu=True))
        assert evaluate.settings_of(options, [])["stop"] == options.stop
        return options.stop, "Samples end before" in capsys.readouterr().out

    paper = ["--prompt_template", "paper"]
    assert stop_of(*paper) == (["\nUser:"], True)
    assert stop_of(*paper, "--stop") == (None, False)
    assert stop_of(*paper, "--stop", "a", "b c") == (["a", "b c"], True)
    assert stop_of() == (None, False)  # a chat model ends its message itself
    # What ended a completion in training
    for number, kwargs in enumerate(({"stop": ["\n\n"]}, {"stop_strings": "\n\n"})):
        run = copy_of(model, tmp_path / f"run{number}")
        save_prompt(run, {"prompt_template": "Q: {question}"}, generation_kwargs={**kwargs, "top_k": 5})
        assert stop_of(where=run) == (["\n\n"], True)
