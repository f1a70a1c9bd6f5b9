"""Data sets as they lie on disk."""

import json

import pytest
from datasets import Dataset, DatasetDict
from trl.rewards import accuracy_reward

from trl_fork.data.benchmarks import load_benchmark
from trl_fork.data.math_datasets import BOXED_INSTRUCTION, PAPER_PROMPT
from trl_fork.data.prompt_and_solution import final_answer, to_prompt_and_solution
from trl_fork.data.splits import load_split, source_of
from trl_fork.data.training_sets import load_training_set, training_prompt


ROWS = [{"question": f"{i} + 1?", "answer": f"Add one. #### {i + 1},000"} for i in range(4)]


def test_local_files_and_folders(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    data = Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.to_csv(tmp_path / "a.csv")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "splits")
    for name in ("a.jsonl", "a.parquet", "a.csv", "saved", "splits"):
        assert load_split(str(tmp_path / name), "train").to_list() == ROWS
    assert len(load_split(str(tmp_path / "splits"), "test")) == 1
    assert list(load_split(str(tmp_path / "a.jsonl"), "train", streaming=True)) == ROWS
    with pytest.raises(ValueError, match=r"no split 'validation'; it has \['test', 'train'\]"):
        load_split(str(tmp_path / "splits"), "validation")
    with pytest.raises(ValueError, match=r"missing\.jsonl' is not there: there is no such file"):
        load_split(str(tmp_path / "missing.jsonl"), "train")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="files must be one of"):
        load_split(str(tmp_path / "a.txt"), "train")


@pytest.mark.parametrize("stream", [False, True])
def test_columns_by_their_usual_names(stream):
    dapo = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "34", "style": "rule"}}
    for row, prompt, solution in (
        (ROWS[0], "0 + 1?", "1000"),
        ({"problem": "p", "solution": r"So \boxed{3}.", "answer": "3", "level": 5}, "p", "3"),
        ({"problem": "p", "solution": r"So \boxed{3}."}, "p", r"So \boxed{3}."),
        ({"prompt": "p", "solution": 7}, "p", "7"),
        (dapo, "q", "34"),
    ):
        data = Dataset.from_list([row])
        data = to_prompt_and_solution(data.to_iterable_dataset() if stream else data)
        (found,) = list(data)
        assert found["prompt"] == [{"role": "user", "content": prompt}]
        assert found["solution"] == solution
        assert found.get("level") == row.get("level")


def test_instruction_and_given_columns():
    data = Dataset.from_list([{"text": "2?", "gold": {"value": "2"}}])
    (row,) = to_prompt_and_solution(
        data, prompt_column="text", solution_column="gold.value", instruction=r"{question} Use \boxed{}."
    )
    kept = {"text": "2?", "gold": {"value": "2"}}
    assert row == kept | {"prompt": [{"role": "user", "content": r"2? Use \boxed{}."}], "solution": "2"}
    (row,) = to_prompt_and_solution(
        data, prompt_column="text", solution_column="gold.value", prompt_template="Q: {question}\nA:"
    )
    assert row == kept | {"prompt": "Q: 2?\nA:", "solution": "2"}
    for argument in ("instruction", "prompt_template"):
        with pytest.raises(ValueError, match=rf"{argument} must contain '\{{question\}}', got 'Answer:'"):
            to_prompt_and_solution(data, prompt_column="text", solution_column="gold.value", **{argument: "Answer:"})
    with pytest.raises(ValueError, match="prompt_template and instruction are both set"):
        to_prompt_and_solution(data, instruction="{question}", prompt_template="{question}")


def test_conversations_are_written_anew_only_when_asked():
    system = {"role": "system", "content": "s"}
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": " q "}], "answer": "1"}])
    assert to_prompt_and_solution(data)[0]["prompt"] == [{"role": "user", "content": " q "}]
    assert to_prompt_and_solution(data, prompt_template="{question}!")[0]["prompt"] == "q!"
    assert to_prompt_and_solution(data, instruction="{question}!")[0]["prompt"] == [{"role": "user", "content": "q!"}]
    longer = Dataset.from_list([{"prompt": [system, {"role": "user", "content": "q"}], "answer": "1"}])
    assert to_prompt_and_solution(longer)[0]["prompt"][0] == system
    with pytest.raises(ValueError, match=r"messages of \['system', 'user'\].* must be one message of the user"):
        to_prompt_and_solution(longer, prompt_template="{question}!")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("settings", [{}, {"instruction": "{question}!"}, {"prompt_template": "paper"}], ids=str)
def test_training_prompt_is_that_of_the_training_set(tmp_path, settings, streaming):
    settings = {**settings, "streaming": streaming, "prompt_column": "text"}
    rows = [{"text": "2?", "answer": "2"}]
    Dataset.from_list(rows).to_json(tmp_path / "a.jsonl")
    prompt = training_prompt(str(tmp_path / "a.jsonl"), **settings)
    row = next(iter(load_training_set(str(tmp_path / "a.jsonl"), **settings)))
    assert row == next(iter(to_prompt_and_solution(Dataset.from_list(rows), prompt_column="text", **prompt)))
    assert all("{question}" in text for text in prompt.values())


def test_evaluation_asks_what_the_training_asked(tmp_path):
    """To a small model, a space before the question is another question."""
    path = str(tmp_path / "a.jsonl")
    Dataset.from_list([{"prompt": " 1 + 1?\n", "answer": "2"}]).to_json(path)
    (trained,), (evaluated,) = load_training_set(path), load_benchmark(path, **training_prompt(path))
    assert evaluated["prompt"] == trained["prompt"] == [{"role": "user", "content": " 1 + 1?\n"}]
    assert load_benchmark(path)[0]["id"] == evaluated["id"]  # the same problem, however it is asked
    settings = {"instruction": "{question}!"}
    assert load_benchmark(path, **settings)[0]["prompt"] == load_training_set(path, **settings)[0]["prompt"]


def test_training_prompt_where_the_data_set_decides(tmp_path):
    conversation = [{"role": "user", "content": "Think. 1 + 1?"}]
    Dataset.from_list([{"prompt": conversation, "answer": "2"}]).to_json(tmp_path / "a.jsonl")
    assert training_prompt(str(tmp_path / "a.jsonl")) is None
    assert training_prompt(str(tmp_path / "a.jsonl"), instruction="{question}!") == {"instruction": "{question}!"}
    # Known data sets have an instruction of their own. Nothing is loaded to see it: there is no Hub here.
    assert training_prompt("dapo-math-17k") == {"instruction": BOXED_INSTRUCTION}
    assert training_prompt("openai/gsm8k", config="main") == {"instruction": BOXED_INSTRUCTION}
    assert training_prompt("dapo-math-17k", prompt_template="paper") == {"prompt_template": PAPER_PROMPT}


def test_any_file_can_be_deduplicated(tmp_path, capsys):
    Dataset.from_list([*ROWS, *ROWS, {"question": "0 + 1? ", "answer": "again"}]).to_json(tmp_path / "a.jsonl")
    data = load_training_set(str(tmp_path / "a.jsonl"), deduplicate=True)
    assert data["solution"][:] == ["1000", "2000", "3000", "4000"]  # of each problem the first row
    assert "4 different problems in 9 rows" in capsys.readouterr().out
    assert len(load_training_set(str(tmp_path / "a.jsonl"))) == 9
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="a stream cannot drop the repetitions"):
        load_training_set(str(tmp_path / "a.jsonl"), deduplicate=True, streaming=True)


def test_missing_column_names_what_there_is():
    data = Dataset.from_list([{"text": "2?", "answer": "2"}])
    with pytest.raises(
        ValueError, match=r"prompt_column: .* none of the columns \['prompt', .*it has \['text', 'answer'\]"
    ):
        to_prompt_and_solution(data)
    with pytest.raises(ValueError, match=r"solution_column: .* no column 'gold'; it has"):
        to_prompt_and_solution(data, prompt_column="text", solution_column="gold")
    with pytest.raises(ValueError, match="no rows and no columns"):
        to_prompt_and_solution(Dataset.from_list([]))


@pytest.mark.parametrize(
    ("answer", "text", "right", "wrong"),
    [
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", "72", "72", "48"),
        ("a #### b #### 1,234,567", "1234567", "1234567", "1"),
        (5, "5", "5", "6"),
        ("27.0", "27.0", "27", "27.1"),
        (27.0, "27.0", "27", "2"),
        ("1 000", "1 000", "1000", "1"),
        # Without dollars math-verify reads the first number of these.
        (r"11\sqrt{2}", r"$11\sqrt{2}$", r"11\sqrt{2}", "11"),
        ("2n+1", "$2n+1$", "1 + 2n", "2"),
        ("2,3", "$2,3$", "3, 2", "2.3"),
        ("3:4", "$3:4$", "3:4", "3"),
        ("[0,1)", "$[0,1)$", "[0,1)", "(0,1)"),
        ("10,000", "$10,000$", "10000", "10"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"$\left( 3, \frac{\pi}{2} \right)$", r"(3, \pi/2)", "3"),
        (r"3 \times 10^5", r"$3 \times 10^5$", "300000", "100000"),
        ("4.5e33", r"$4.5 \times 10^{33}$", r"4.5 \times 10^{33}", "4.5"),
        # Nothing at all of these.
        ("p - q", "$p - q$", "-q + p", "p"),
        (r"\text{June 20}", r"$\text{June 20}$", r"\text{June 20}", r"\text{June 21}"),
        ("east", "$east$", r"\text{east}", r"\text{west}"),
        (r"\$32.50", r"$\$32.50$", "32.50", "32"),
        # OlympiadBench
        (["$2$", "$3$"], "$2, 3$", "3,2", "2"),
        (["$(1,8,19), (2,7,13)$"], "$(1,8,19), (2,7,13)$", "(2,7,13), (1,8,19)", "(1,8,19)"),
        (["$2$, $3$"], "$2$, $3$", "2,3", "3"),
        (["4"], "4", "4", "5"),
        # A worked solution
        (r"So \boxed{\frac{1}{2}}.", r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "1"),
        ("So the answer is 3", "So the answer is 3", "3", "4"),
    ],
    ids=str,
)
def test_final_answers_are_what_the_reward_parses(answer, text, right, wrong):
    assert final_answer(answer) == text
    completions = [[{"role": "assistant", "content": f"It is \\boxed{{{value}}}."}] for value in (right, wrong)]
    assert accuracy_reward(completions, [text] * 2) == [1.0, 0.0]


def test_a_missing_answer_is_left_out_by_the_reward():
    assert accuracy_reward([[{"role": "assistant", "content": r"\boxed{None}"}]], [final_answer(None)]) == [None]


CHATML = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("stream", [False, True])
def test_own_columns_stay(stream):
    row = {"question": "1?", "answer": "So #### 1,000", "solution": 7, "_question": "q", "prompt_0": "p", "level": 5}
    data = Dataset.from_list([row])
    (found,) = to_prompt_and_solution(data.to_iterable_dataset() if stream else data)
    assert found == row | {"prompt": [{"role": "user", "content": "1?"}], "solution": "1000"}
    # Rewards could not be called with these, and TRL would take the prompt of a base model for a conversation.
    row = {"prompts": "1?", "answer": "1", "completions": "c", "messages": [{"role": "user", "content": "1?"}]}
    data = Dataset.from_list([row])
    (found,) = to_prompt_and_solution(data, prompt_column="prompts", prompt_template="{question}")
    assert found == {"answer": "1", "prompt": "1?", "solution": "1"}
    (found,) = to_prompt_and_solution(data, prompt_column="prompts")
    assert set(found) == {"answer", "prompt", "solution", "messages"}


def test_answers_only_where_they_are_needed():
    data = Dataset.from_list([{"prompt": "p", "level": 1}])
    with pytest.raises(
        ValueError, match=r"solution_column: the data set has none of the columns .*it has \['prompt', 'le"
    ):
        to_prompt_and_solution(data)
    (row,) = to_prompt_and_solution(data, solution_required=False)
    assert row == {"prompt": [{"role": "user", "content": "p"}], "level": 1}
    with pytest.raises(ValueError, match="no column 'gold'"):  # what is named must be there
        to_prompt_and_solution(data, solution_required=False, solution_column="gold")
    data = Dataset.from_list([{"prompt": "p", "answer": "1"}, {"prompt": "q", "answer": None}])
    assert to_prompt_and_solution(data, solution_required=False)["solution"][:] == ["1", ""]


@pytest.mark.parametrize("solution", [{"tests": ["f(1) == 2"]}, [{"input": "1", "output": "2"}]], ids=str)
def test_a_structure_for_a_reward_of_the_users_stays_one(solution):
    (row,) = to_prompt_and_solution(Dataset.from_list([{"prompt": "p", "solution": solution}]))
    assert row["solution"] == solution


def test_columns_in_upper_and_lower_case():
    for row in (
        {"Problem": "p", "Answer": "3"},
        {"QUESTION": "p", "Solution": 3},
        {"Prompt": "p", "Final_Answer": "3"},
    ):
        (found,) = to_prompt_and_solution(Dataset.from_list([row]))
        assert (found["prompt"][0]["content"], found["solution"]) == ("p", "3")
        assert row.items() <= found.items()
    (found,) = to_prompt_and_solution(Dataset.from_list([{"Problem": "no", "prompt": "p", "Answer": "3"}]))
    assert found["prompt"][0]["content"] == "p"  # the name as it is comes first
    data = Dataset.from_list([{"Text": "p", "Gold": {"value": "3"}}])
    (found,) = to_prompt_and_solution(data, prompt_column="text", solution_column="gold.value")
    assert (found["prompt"][0]["content"], found["solution"]) == ("p", "3")
    data = Dataset.from_list([{"Prompt": "p", "PROMPT": "q", "answer": "3"}])
    with pytest.raises(ValueError, match=r"prompt_column: the data set has the columns \['Prompt', 'PROMPT'\]"):
        to_prompt_and_solution(data)


QUESTION = {"question": "2?", "answer": "2"}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "2?"}]}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([QUESTION, {"question": None}], {}, "row 1, column 'question': the question is None"),
        (
            [QUESTION, {"question": None}],
            {"prompt_template": "paper"},
            "row 1, column 'question': the question is None",
        ),
        ([QUESTION, {"question": " \n"}], {}, r"row 1, column 'question': the question is ' \\n'"),
        ([{"prompt": 5, "answer": "5"}], {}, "row 0, column 'prompt': the question is 5"),
        ([{"prompt": [], "answer": "5"}], {}, r"row 0, column 'prompt': the question is \[\]"),
        (
            [{"prompt": [{"from": "human", "value": "5?"}], "answer": "5"}],
            {},
            "row 0, column 'prompt': the question is",
        ),
        (
            [{"prompt": [{"role": "user", "content": None}], "answer": "5"}],
            {},
            "row 0, column 'prompt': the question is",
        ),
        ([QUESTION, {"question": "3?", "answer": None}], {}, "row 1, column 'answer': the answer is None"),
        ([{"question": "3?", "answer": float("nan")}], {}, "row 0, column 'answer': the answer is nan"),
        (
            [{"q": {"text": "2?"}, "answer": "2"}],
            {"prompt_column": "q.txt"},
            r"row 0, column 'q.txt': there is no 'txt'; it has \['text'\]",
        ),
        (
            [{"q": {"text": "2?"}, "answer": "2"}, {"q": None, "answer": "2"}],
            {"prompt_column": "q.text"},
            "row 1, column 'q.text': the question is None",
        ),
        (
            [{"prompt": PARTS, "answer": "2"}],
            {"instruction": "{question}!"},
            "row 0, column 'prompt': the content of the message is in parts .*with instruction",
        ),
        (
            [{"prompt": "2?", "answer": "2"}, {"prompt": CHATML, "answer": "2"}],
            {},
            "row 1, column 'prompt': of the prompts, some are in chat format and some are not",
        ),
    ],
    ids=str,
)
def test_bad_rows_are_named(rows, settings, message, stream):
    data = Dataset.from_list(rows)
    with pytest.raises(ValueError, match=message):
        list(to_prompt_and_solution(data.to_iterable_dataset() if stream else data, **settings))


def test_bad_rows_are_named_where_repetitions_are_dropped(tmp_path):
    Dataset.from_list([QUESTION, QUESTION, {"question": None}]).to_json(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="row 2, column 'question': the question is None"):
        load_training_set(str(tmp_path / "a.jsonl"), deduplicate=True)


@pytest.mark.parametrize(
    "prompt",
    [
        CHATML,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1 + 1?<|eot_id|>",
        "<start_of_turn>user\n1 + 1?<end_of_turn>\n<start_of_turn>model\n",
        "<s>[INST] 1 + 1? [/INST]",
        "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>1 + 1?<\uff5cAssistant\uff5c>",
        "<|user|>\n1 + 1?</s>\n<|assistant|>\n",
    ],
)
def test_texts_in_chat_format_are_not_wrapped_again(prompt, tmp_path):
    data = Dataset.from_list([{"prompt": prompt, "answer": "2"}])
    assert to_prompt_and_solution(data)[0]["prompt"] == prompt
    assert to_prompt_and_solution(data, prompt_template="{question}")[0]["prompt"] == prompt
    for settings in ({"instruction": "{question}!"}, {"prompt_template": "{question}!"}, {"prompt_template": "paper"}):
        (name,) = settings
        with pytest.raises(
            ValueError, match=rf"row 0, column 'prompt': .* in chat format already .*{name} would wrap"
        ):
            to_prompt_and_solution(data, **settings)
    data.to_json(tmp_path / "a.jsonl")
    assert training_prompt(str(tmp_path / "a.jsonl")) is None


def test_questions_with_bars_and_brackets_are_no_chat_format():
    for question in ("What is |x| for x < 0?", "Let [INST] be a matrix, a <|b|> c.", "if x <|y| then 1"):
        data = Dataset.from_list([{"prompt": question, "answer": "2"}])
        assert to_prompt_and_solution(data)[0]["prompt"] == [{"role": "user", "content": question}]


def test_content_in_parts_is_left_to_the_template():
    data = Dataset.from_list([{"prompt": PARTS, "answer": "2"}])
    assert to_prompt_and_solution(data)[0]["prompt"] == PARTS


def test_a_file_of_a_repository_is_one_split():
    with pytest.raises(ValueError, match=r"'guru-math' has no split 'test'; it has \['train'\]"):
        load_training_set("guru-math", "test")


def test_rows_are_told_apart_by_their_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Dataset.from_list(ROWS)
    data.to_json("a.jsonl")
    data.save_to_disk("single")
    DatasetDict(train=data, test=data).save_to_disk("splits")
    assert source_of("a.jsonl", "train") == source_of(str(tmp_path / "a.jsonl"), "test")
    assert source_of("single", "train") == source_of("./single", "test")
    assert source_of("splits", "train") != source_of("splits", "test")
    assert source_of("splits", "test") == source_of("./splits", "test")
    assert source_of("gsm8k", "test") == source_of("openai/gsm8k", "test") == source_of("gsm8k", "any", benchmark=True)
    assert source_of("gsm8k", "train") != source_of("gsm8k", "train", benchmark=True)
    assert source_of("a/b", "train") != source_of("a/b", "train", "config")
