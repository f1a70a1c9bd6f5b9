"""Negative prompts: a prompt with an instruction after its question."""

import copy

import pytest
from datasets import Dataset

from trl_fork.data.benchmarks import load_benchmark
from trl_fork.data.contrast import contrast_prompt_of, pattern_of, with_instruction
from trl_fork.data.math_datasets import PAPER_PROMPT
from trl_fork.data.prompt_and_solution import to_prompt_and_solution
from trl_fork.data.training_sets import load_training_set


NO = "Answer wrongly."


def test_with_instruction():
    assert with_instruction("2 + 2?", NO, "here") == "2 + 2?\n\nAnswer wrongly."
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "begun"},
    ]
    before = copy.deepcopy(conversation)
    made = with_instruction(conversation, NO, "here")
    assert conversation == before
    assert [m["content"] for m in made] == ["s", "first", "yes", "second\n\nAnswer wrongly.", "begun"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]
    made = with_instruction(parts, NO, "here")
    assert made[0]["content"] == [{"type": "text", "text": "2 + 2?"}, {"type": "text", "text": "\n\nAnswer wrongly."}]
    for content in ([{"type": "image"}, {"type": "text", "text": "2"}], None):
        with pytest.raises(ValueError, match="here: contrast_instruction can be put after texts only"):
            with_instruction([{"role": "user", "content": content}], NO, "here")
    with pytest.raises(ValueError, match=r"here: .* holds the special token '\[X\]'"):
        with_instruction("a[X]b", NO, "here", pattern_of(["[X]"]))
    assert pattern_of([]) is None


def test_the_column_comes_first():
    row = {"prompt": "a", "contrast_prompt": "b"}
    assert contrast_prompt_of(row, NO, "here") == contrast_prompt_of(row, None, "here") == "b"
    with pytest.raises(ValueError, match="must be a conversation of messages"):
        contrast_prompt_of({"prompt": [{"role": "user", "content": "a"}], "contrast_prompt": ["b"]}, None, "here")


def user(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("question", "settings", "expected"),
    [
        ("2 + 2?", {}, user(f"2 + 2?\n\n{NO}")),
        ("2 + 2?", {"instruction": "{question} Box it."}, user(f"2 + 2?\n\n{NO} Box it.")),
        ("2 + 2?", {"prompt_template": "Q: {question}\nA:"}, f"Q: 2 + 2?\n\n{NO}\nA:"),
        ("2 + 2?", {"prompt_template": "paper"}, PAPER_PROMPT.replace("{question}", f"2 + 2?\n\n{NO}")),
        (user("2 + 2?"), {}, user(f"2 + 2?\n\n{NO}")),
        (user("2 + 2?"), {"prompt_template": "Q: {question}\nA:"}, f"Q: 2 + 2?\n\n{NO}\nA:"),
        (
            [{"role": "system", "content": "s"}, *user("2 + 2?")],
            {},
            [{"role": "system", "content": "s"}, *user(f"2 + 2?\n\n{NO}")],
        ),
    ],
    ids=str,
)
def test_the_instruction_follows_the_question(question, settings, expected):
    data = Dataset.from_list([{"question": question, "answer": "4"}])
    (row,) = to_prompt_and_solution(data, contrast=True, contrast_instruction=NO, **settings)
    assert row["contrast_prompt"] == expected
    (plain,) = to_prompt_and_solution(data, **settings)
    assert row["prompt"] == plain["prompt"] and "contrast_prompt" not in plain


def test_the_instruction_of_the_data_set_is_left_out():
    """DAPO-Math-17k asks for another form of the answer, before and after the question."""
    text = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n2 + 2?\n\nRemember to put your "
        'answer on its own line after "Answer:".'
    )
    data = Dataset.from_list([{"prompt": user(text), "answer": "4"}])
    (row,) = to_prompt_and_solution(data, instruction="{question} Box it.", contrast=True, contrast_instruction=NO)
    assert row["prompt"] == user("2 + 2? Box it.") and row["contrast_prompt"] == user(f"2 + 2?\n\n{NO} Box it.")


def test_a_column_of_questions_becomes_one_of_prompts():
    rows = [{"prompt": "2 + 2?", "contrast_prompt": "2 - 2?", "answer": 4}] * 2 + [
        {"prompt": "2 + 3?", "contrast_prompt": " ", "answer": 5}
    ]
    data = Dataset.from_list(rows)
    made = to_prompt_and_solution(data, instruction="{question} Box it.", contrast=True)
    assert list(made["contrast_prompt"]) == [user("2 - 2? Box it.")] * 2 + [None]
    assert list(to_prompt_and_solution(data)["contrast_prompt"]) == ["2 - 2?", "2 - 2?", " "]
    with_both = to_prompt_and_solution(data, contrast=True, contrast_instruction=NO)
    assert with_both["contrast_prompt"][0] == user("2 - 2?"), "the column comes first"


def test_texts_in_chat_format():
    text = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    data = Dataset.from_list([{"prompt": text, "answer": "4"}])
    with pytest.raises(ValueError, match=r"row 0, column 'prompt': .* in a text that is in chat format already"):
        to_prompt_and_solution(data, contrast=True, contrast_instruction=NO)
    own = text.replace("?", "? No.")
    (row,) = to_prompt_and_solution(data.add_column("contrast_prompt", [own]), contrast=True)
    assert row["prompt"] == text and row["contrast_prompt"] == own


def test_files_and_benchmarks(tmp_path):
    path = str(tmp_path / "problems.jsonl")
    Dataset.from_list([{"question": "2 + 2?", "answer": "4"}]).to_json(path)
    for streaming in (False, True):
        (row,) = load_training_set(
            path, instruction="{question} Box it.", contrast=True, contrast_instruction=NO, streaming=streaming
        )
        assert row["contrast_prompt"] == user(f"2 + 2?\n\n{NO} Box it.")
    (row,) = load_benchmark(path, prompt_template="Q: {question}\nA:", contrast_instruction=NO)
    assert row["prompt"] == "Q: 2 + 2?\nA:" and row["contrast_prompt"] == f"Q: 2 + 2?\n\n{NO}\nA:"
