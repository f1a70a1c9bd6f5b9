r"""
The data sets of "Beyond the 80/20 Rule" by short name: their places on the Hub and the reading of their texts.

The tables were compiled without access to the Hub, from dataset cards, file listings and public code that loads these
sets. `licence` is what the card states; `"not stated"`: a card without a licence was seen; `"unknown"`: sources
disagree, or none was found.
"""

import re
from dataclasses import dataclass

from ..rewards.golds import as_gold as as_gold  # earlier imports find it here


# The paper's prompt for base models: plain text, ended by `<|endoftext|>`.
PAPER_PROMPT = (
    "User:\n{question}\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:\n"
)
# The same request as the message of a user, for models with a chat template.
BOXED_INSTRUCTION = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class MathDataset:
    """
    One data set of a table.

    Args:
        hub_id (`str`): Name on the Hub.
        split (`str`): Split of the problems.
        num_problems (`int`): Number of different problems.
        prompt_column (`str`): Column of the problem: a text, or a conversation of one message.
        solution_column (`str`): Column of the final answer; a dot for a nested one.
        licence (`str`): SPDX identifier as the card states it, `"not stated"` or `"unknown"`.
        config (`str`, *optional*): Configuration on the Hub.
        data_files (`str`, *optional*): File within the repository, where it is not one data set.
        num_rows (`int`, *optional*): Number of rows, where problems are repeated.
        id_column (`str`, *optional*): Column that names the problem.
        context_column (`str`, *optional*): Column of a text that belongs before some of the problems.
    """

    hub_id: str
    split: str
    num_problems: int
    prompt_column: str
    solution_column: str
    licence: str
    config: str | None = None
    data_files: str | None = None
    num_rows: int | None = None
    id_column: str | None = None
    context_column: str | None = None

    @property
    def repeats(self) -> bool:
        return self.num_rows is not None


TRAINING_SETS = {
    # verl's layout. The number of different problems is the one of the processed form, whose card drops rows by the
    # text of the prompt. A few problems come with two answers (a report on the Hub counts 14); the first is kept.
    "dapo-math-17k": MathDataset(
        hub_id="BytedTsinghua-SIA/DAPO-Math-17k",
        split="train",
        num_problems=17_398,
        num_rows=1_791_700,
        prompt_column="prompt",
        solution_column="reward_model.ground_truth",
        licence="apache-2.0",
    ),
    # The same without repetitions. `en` has 14,116 problems, `cn` 3,282.
    "dapo-math-17k-processed": MathDataset(
        hub_id="open-r1/DAPO-Math-17k-Processed",
        config="all",
        split="train",
        num_problems=17_398,
        prompt_column="prompt",
        solution_column="solution",
        licence="not stated",
    ),
    "dapo-math-17k-processed-en": MathDataset(
        hub_id="open-r1/DAPO-Math-17k-Processed",
        config="en",
        split="train",
        num_problems=14_116,
        prompt_column="prompt",
        solution_column="solution",
        licence="not stated",
    ),
    # The README of the authors' code recommends this in place of DAPO-Math-17k. The repository has six domains with
    # different columns, so only this file can be loaded. Its name says 54.4k.
    "guru-math": MathDataset(
        hub_id="LLM360/guru-RL-92k",
        data_files="train/math__combined_54.4k.parquet",
        split="train",
        num_problems=54_400,
        prompt_column="prompt",
        solution_column="reward_model.ground_truth",
        licence="mit",  # an early version of the card said cc-by-2.0
    ),
    "gsm8k": MathDataset(
        hub_id="openai/gsm8k",
        config="main",
        split="train",
        num_problems=7_473,
        prompt_column="question",
        solution_column="answer",
        licence="mit",
    ),
}

# The paper names its benchmarks but not their files. These are common ones with the usual number of problems.
BENCHMARKS = {
    "aime24": MathDataset(
        hub_id="HuggingFaceH4/aime_2024",
        split="train",
        num_problems=30,
        prompt_column="problem",
        solution_column="answer",
        id_column="id",
        licence="not stated",
    ),
    "aime25": MathDataset(
        hub_id="math-ai/aime25",
        split="test",
        num_problems=30,
        prompt_column="problem",
        solution_column="answer",
        id_column="id",
        licence="unknown",  # no licence in an early listing; a paper that uses it says Apache 2.0
    ),
    "amc23": MathDataset(
        hub_id="math-ai/amc23",
        split="test",
        num_problems=40,
        prompt_column="question",
        solution_column="answer",
        id_column="id",
        licence="not stated",
    ),
    "math500": MathDataset(
        hub_id="HuggingFaceH4/MATH-500",
        split="test",
        num_problems=500,
        prompt_column="problem",
        solution_column="answer",
        id_column="unique_id",
        licence="not stated",
    ),
    "minerva": MathDataset(
        hub_id="math-ai/minervamath",
        split="test",
        num_problems=272,
        prompt_column="question",
        solution_column="answer",
        licence="not stated",
    ),
    # Its open-ended, text-only problems of English mathematics competitions. Answers are lists; the column `error`
    # (a numerical tolerance) is not used.
    "olympiadbench": MathDataset(
        hub_id="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        num_problems=674,
        prompt_column="question",
        solution_column="final_answer",
        id_column="id",
        context_column="context",
        licence="apache-2.0",
    ),
    "gsm8k": MathDataset(
        hub_id="openai/gsm8k",
        config="main",
        split="test",
        num_problems=1_319,
        prompt_column="question",
        solution_column="answer",
        licence="mit",
    ),
}


def find_dataset(table: dict[str, MathDataset], name: str, config: str | None = None) -> MathDataset | None:
    """
    The entry of a table with this short name or this name on the Hub, or `None`.

    Args:
        table (`dict[str, MathDataset]`): `TRAINING_SETS` or `BENCHMARKS`.
        name (`str`): Short name, or name on the Hub.
        config (`str`, *optional*): Configuration on the Hub; picks between entries with one name there.
    """
    if name in table:
        return table[name]
    entries = [entry for entry in table.values() if entry.hub_id == name]
    return next((entry for entry in entries if entry.config == config), entries[0] if entries else None)


# Instructions that these data sets write into the problem. Beside another one they contradict it: DAPO-Math-17k asks
# for "Answer: ...", where rewards look for \boxed{}.
_DAPO_PREFIX = re.compile(
    r"\ASolve the following math problem step by step\. The last line of your response.*?\n\n", re.S
)
_DAPO_SUFFIX = re.compile(r'\s*Remember to put your answer on its own line after "Answer:"\.?\s*\Z')
_GURU_SUFFIX = re.compile(r"\s*Please output the final answer within \\boxed\{\}\.\s*\Z")


def strip_instruction(text: str) -> str:
    """The problem alone, without the instruction that DAPO-Math-17k and guru write around it."""
    for pattern in (_DAPO_PREFIX, _DAPO_SUFFIX, _GURU_SUFFIX):
        text = pattern.sub("", text)
    return text.strip()
