r"""
Evaluate a model as in Table 2 of the paper: mean accuracy of K samples per problem, and their length.

    trl-fork evaluate --model outputs/gsm8k --dataset aime24 math500 --num_samples 16 --output outputs/gsm8k/evaluation
    trl-fork evaluate --compare outputs/base/results.json outputs/gsm8k/evaluation/results.json

The model is a name on the Hub, a folder, a checkpoint, or a LoRA adapter. Options of `accelerate launch`
(--num_processes 8) start several processes, which share the problems. Samples are appended to OUTPUT/completions.jsonl
as they are finished, and a run that was killed continues there when the same command is given again; the number of
processes, the batch size and the engine's GPUs may differ.
"""

import argparse
import sys
from pathlib import Path

from accelerate import PartialState

from .._files import write_json
from ..data.benchmarks import load_benchmark
from ..data.prompt_file import add_prompt_arguments, default_stop, encode_prompt, find_prompt
from ..data.splits import naming
from ..evaluation.metrics import Problem, summarize
from ..evaluation.store import CompletionStore
from ..evaluation.tables import print_comparison, print_results
from ..generation.engines import load_tokenizer
from ..rewards.grading import GradingPool
from .launch import add_launch_arguments, launch
from .options import OptionParser
from .sampling import (
    add_engine_arguments,
    report_unread_arguments,
    rows_with_solution,
    sample_problems,
    settings_of,
    start,
)


def make_parser() -> OptionParser:
    parser = OptionParser(description=__doc__, command="evaluate")
    parser.add_argument("--model", help="Hub name, folder, checkpoint or LoRA adapter")
    parser.add_argument("--base_model", help="base of a LoRA adapter, if not the one its configuration names")
    parser.add_argument("--dataset", nargs="+", help="benchmarks by short name, files, or names on the Hub")
    parser.add_argument("--output", help="folder of results.json, completions.jsonl and settings.json")
    parser.add_argument("--num_samples", type=int, default=16, help="samples per problem, K (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top_p", type=float, default=1.0, help="nucleus sampling (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=20480, help="limit of a sample (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first problems of each data set")
    add_engine_arguments(parser)
    add_prompt_arguments(parser)
    parser.add_argument("--compare", nargs=2, metavar="RESULTS", help="print two results.json side by side, and stop")
    add_launch_arguments(parser)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_args(arguments)
    missing = [f"--{name}" for name in ("model", "dataset", "output") if not getattr(options, name)]
    if missing and not options.compare:
        parser.error(f"give {', '.join(missing)} to evaluate, or --compare A/results.json B/results.json")
    if options.num_samples < 1 or options.max_new_tokens < 1:
        parser.error("--num_samples and --max_new_tokens must be at least 1")
    if options.stop and not all(options.stop):
        parser.error("--stop: an empty text would end every sample before it has begun")
    if options.temperature < 0 or not 0 < options.top_p <= 1:
        parser.error("--temperature must not be negative, and --top_p must be in (0, 1]")
    if options.temperature == 0 and options.num_samples > 1:
        parser.error("at --temperature 0 all samples of a problem are equal: give --num_samples 1 or a temperature")
    return options


def use_training_prompt(options: argparse.Namespace, state: PartialState) -> dict[str, str]:
    """
    Fill in options that the command line left out with those of the model's training, and print them.

    Returns:
        `dict`: the prompt of the training if it is used. It is for questions; prompts in chat format stay.
    """
    trained, path = find_prompt(options.model) or ({}, None)
    prompt: dict[str, str] = {
        name: trained[name] for name in ("instruction", "prompt_template", "system_prompt") if name in trained
    }
    if not options.instruction is options.prompt_template is None:
        prompt = {} if options.prompt_template else {k: v for k, v in prompt.items() if k == "system_prompt"}
    if options.system_prompt is not None:
        prompt.pop("system_prompt", None)
    if prompt:
        what = "system prompt" if set(prompt) == {"system_prompt"} else "prompt"
        state.print(
            f"The {what} is that of the model's training ({path}); --instruction, --system_prompt or "
            "--prompt_template change it."
        )
    vars(options).update(prompt)
    if options.chat_template_kwargs is None and trained.get("chat_template_kwargs"):
        options.chat_template_kwargs = trained["chat_template_kwargs"]
        source = f"those of the model's training ({path}); --chat_template_kwargs changes them"
    else:
        source = f"in the training: {trained.get('chat_template_kwargs', {})}" if trained else "as given"
    if options.chat_template_kwargs is not None:
        state.print(f"chat_template_kwargs: {options.chat_template_kwargs}, {source}.")
    if options.stop is None:
        options.stop = trained.get("stop") or default_stop(options.prompt_template)
        source = "as in the model's training" if trained.get("stop") else "where a base model begins another question"
    else:
        source = "as given"
    if options.stop:
        state.print(f"Samples end before {' or '.join(map(repr, options.stop))}, {source}; --stop changes it.")
    # A missing value has one form, or a continued run would seem to have other settings.
    options.stop, options.chat_template_kwargs = options.stop or None, options.chat_template_kwargs or None
    return prompt


def load_problems(
    options: argparse.Namespace, tokenizer, pool: GradingPool, trained_prompt: dict[str, str]
) -> list[Problem]:
    """The problems of all data sets, without those whose solution the grader cannot read."""
    given = {name: getattr(options, name) for name in ("instruction", "prompt_template", "system_prompt")}
    given = {name: text for name, text in given.items() if name not in trained_prompt}
    problems, has_conversations = [], False
    for name in dict.fromkeys(options.dataset):
        with naming("--dataset"):
            data = load_benchmark(
                name,
                **given,
                trained_prompt=trained_prompt,
                split=options.dataset_test_split,
                config=options.dataset_config,
                prompt_column=options.prompt_column,
                solution_column=options.solution_column,
            )
        data = data.select(range(min(options.limit or len(data), len(data))))
        for number in rows_with_solution(name, data["solution"], pool):
            row = data[number]
            is_conversation = not isinstance(row["prompt"], str)
            has_conversations |= is_conversation
            if is_conversation and tokenizer.chat_template is None:
                raise ValueError(
                    f"The tokenizer of {options.model!r} has no chat template. For a base model give the text of the "
                    "prompt: --prompt_template paper."
                )
            text, ids = encode_prompt(tokenizer, row["prompt"], options.chat_template_kwargs)
            problems.append(Problem(name, row["id"], text, ids, row["solution"]))
    if not problems:
        raise ValueError(f"There are no problems in {options.dataset}.")
    report_unread_arguments(options, tokenizer.get_chat_template() if has_conversations else "")
    return problems


def run(options: argparse.Namespace) -> None:
    if options.compare:
        print_comparison(*options.compare)
        return
    state = start(options)
    tokenizer = load_tokenizer(options.model, base_model=options.base_model)
    trained_prompt = use_training_prompt(options, state)
    store = CompletionStore(options.output, state.process_index)
    with GradingPool() as pool:
        problems = load_problems(options, tokenizer, pool, trained_prompt)
        sample_problems(options, problems, settings_of(options, problems), store, pool, tokenizer, state)
        if state.is_main_process:
            samples = with_answers(store.merge(), pool)
            results = summarize(samples, pool.same_answer, num_threads=pool.num_workers)
            write_json(Path(options.output) / "results.json", results)
            print_results(results)


def with_answers(samples: list[dict], pool: GradingPool) -> list[dict]:
    """Samples with their parsed answers, which earlier versions did not save."""
    old = [sample for sample in samples if "answer" not in sample]
    verdicts = pool.grade([sample["completion"] for sample in old], [sample["solution"] for sample in old])
    for sample, verdict in zip(old, verdicts, strict=True):
        sample["answer"] = verdict.answer
    return samples


def main(arguments: list[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not launch("evaluate", words, make_parser()):
        run(parse_arguments(words))


if __name__ == "__main__":
    main()
