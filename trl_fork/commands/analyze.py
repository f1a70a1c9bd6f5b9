"""
See where a model's chains of thought fork: the analyses of the paper, on your model and your problems.

    trl-fork analyze --model outputs/gsm8k --completions outputs/gsm8k/evaluation/completions.jsonl \
        --reference_model Qwen/Qwen3-0.6B --checkpoints outputs/gsm8k/checkpoint-* --output outputs/gsm8k/entropy
    trl-fork analyze --model Qwen/Qwen3-0.6B --dataset aime24 --output outputs/entropy

The responses are those in a file (of `trl-fork evaluate`, or any JSONL with prompts and completions), or they are
sampled as `trl-fork evaluate` does. OUTPUT receives summary.json, in which every number has its definition, figures
as PNG and SVG, tokens.md, and report.html, which shows every token. Every model reads the responses
once. Its scores are kept in OUTPUT/scores, so a killed run continues, and a further checkpoint costs one pass.
"""

import argparse
import hashlib
import json
import multiprocessing
import re
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from .._files import write_json, write_text
from ..analysis import statistics
from ..analysis.definitions import DEFINITIONS
from ..analysis.score_store import ScoreStore
from ..analysis.summary import draw, loops_as_markdown, print_summary, tokens_as_markdown
from ..analysis.temperatures import TEMPERATURES, decode_with_temperatures, problems_of
from ..data.prompt_file import PROMPT_ARGUMENTS, add_prompt_arguments, find_prompt
from ..generation.engines import auto_model_class, check_model_path, load_tokenizer
from ..generation.slow_dtypes import warn_of_slow_dtype
from ..report.curves import require_matplotlib
from . import evaluate
from .corpus import (
    FRACTION,
    Corpus,
    analyse_positions,
    analyse_tokens,
    check_same_tokens,
    compare_models,
    load_corpus,
    without_nan,
)
from .corpus_credit import SCOPES, credit_rules, group_advantages, refuse_advantages, weigh
from .corpus_loops import analyse_loops, refuse_without_loops
from .corpus_page import write_page
from .options import OptionParser


DEFAULT_ANALYSES = ("distribution", "tokens", "overlap", "change", "position")
ANALYSES = (*DEFAULT_ANALYSES, "loops", "temperature")  # for looped models only; generates
COMPARISONS = ("overlap", "change")  # need a reference


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__, command="analyze")
    parser.add_argument("--model", required=True, help="Hub name or folder of the model that is analysed")
    parser.add_argument("--reference_model", help="model to compare with; the first of --checkpoints if not given")
    parser.add_argument("--checkpoints", nargs="+", default=[], help="models between reference and model, in order "
                        "(checkpoint-STEP in the order of their steps)")  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--completions", help="JSONL file of responses, such as evaluate's completions.jsonl")
    source.add_argument("--dataset", nargs="+", help="sample responses to these problems, as trl-fork evaluate does")
    parser.add_argument("--output", required=True, help="folder of what is written")
    parser.add_argument("--analyses", nargs="+", choices=ANALYSES, help=f"default: {' '.join(DEFAULT_ANALYSES)}")
    parser.add_argument("--max_responses", type=int, help="read only the first responses of the file")
    parser.add_argument("--temperature", type=float, default=1.0, help="inside the softmax (default: %(default)s)")
    parser.add_argument("--min_token_count", type=int, default=100, help="list token types seen more often than this")
    parser.add_argument("--page_responses", type=int, default=200, help="responses in report.html (default: 200)")
    parser.add_argument("--max_batch_tokens", type=int, default=16384, help="tokens of a scoring batch")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, such as bfloat16 (default: the checkpoint's)"
    )
    parser.add_argument("--attn_implementation", help="of transformers, such as flash_attention_2")
    parser.add_argument("--device_map", help="'auto' spreads a large model over all GPUs")

    credit = parser.add_argument_group("credit of tokens, on report.html")
    credit.add_argument("--token_credit", type=credit_rules, metavar="NAME", help="show the weights that these rules "
                        "give, as in trl-fork train: a preset, a chain as JSON or the path of a rule")  # fmt: skip
    credit.add_argument("--token_credit_progress", type=float, default=0.0, metavar="SHARE",
                        help="share of the training that is done, for schedules (default: %(default)s)")  # fmt: skip
    credit.add_argument("--entropy_threshold_scope", choices=SCOPES, default="batch", help="pool of rules that name "
                        "none: all responses of the page, or each (default: %(default)s)")  # fmt: skip

    sampling = parser.add_argument_group("sampling, for --dataset and the temperature analysis")
    sampling.add_argument("--num_samples", type=int, default=16, help="responses per problem (default: %(default)s)")
    sampling.add_argument("--max_new_tokens", type=int, default=20480, help="of a response (default: %(default)s)")
    sampling.add_argument("--limit", type=int, help="only the first problems of each data set")
    sampling.add_argument("--batch_size", type=int, help="responses at a time (default: 32; with vLLM 1024)")
    sampling.add_argument("--engine", choices=["transformers", "vllm"], default="transformers", help="for --dataset")
    sampling.add_argument("--tensor_parallel_size", type=int, default=1, help="GPUs of vLLM (default: %(default)s)")
    sampling.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    sampling.add_argument("--threshold", type=float, help="nats; forking tokens are above it (default: the 80th "
                          "percentile of the responses read)")  # fmt: skip
    sampling.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES, help="default: the paper's")
    add_prompt_arguments(parser)
    options = parser.parse_args(arguments)

    if not options.temperature > 0:
        parser.error(f"--temperature must be positive, got {options.temperature}: at 0 every entropy is 0")
    if not 0 <= options.token_credit_progress <= 1:
        parser.error(f"--token_credit_progress must be in [0, 1], got {options.token_credit_progress}: it is a share")
    if options.token_credit is not None and options.page_responses < 1:
        parser.error("--token_credit weighs the responses of report.html, and --page_responses is less than 1")
    if options.completions and not Path(options.completions).is_file():
        parser.error(f"--completions: there is no file {options.completions!r}")
    if options.completions:
        names = [name for name in PROMPT_ARGUMENTS if name not in ("chat_template_kwargs", "stop")]
        if given := [f"--{name}" for name in names if getattr(options, name) is not None]:
            parser.error(f"{' and '.join(given)} set the prompts of --dataset; a file of --completions has its own")
    numbered = {name: re.search(r"checkpoint-(\d+)/?$", name) for name in options.checkpoints}
    steps = {name: int(found[1]) for name, found in numbered.items() if found}
    if len(steps) == len(numbered):  # the shell sorts checkpoint-100 before checkpoint-20
        options.checkpoints.sort(key=steps.__getitem__)
    if options.reference_model is None and options.checkpoints:
        options.reference_model = options.checkpoints.pop(0)
    if options.reference_model is None:
        asked_for = [name for name in options.analyses or () if name in COMPARISONS]
        if asked_for:
            parser.error(f"--analyses {' '.join(asked_for)} compares models: give --reference_model or --checkpoints")
    possible = [name for name in DEFAULT_ANALYSES if options.reference_model or name not in COMPARISONS]
    options.analyses = options.analyses or possible
    return options


def load_model(name: str, options: argparse.Namespace) -> torch.nn.Module:
    model = auto_model_class(name).from_pretrained(
        name, dtype=options.dtype, attn_implementation=options.attn_implementation, device_map=options.device_map
    )
    model = model if options.device_map else model.to(PartialState().device)
    warn_of_slow_dtype(model)
    return model.eval()


def score(
    name: str, corpus: Corpus, options: argparse.Namespace, num_alternatives: int = 0, loops: bool = False
) -> ScoreStore:
    """Score all responses with a model, except those that an earlier run has scored."""
    store = ScoreStore(Path(options.output) / "scores", name, temperature=options.temperature, dtype=options.dtype)
    with tqdm(total=corpus.num_tokens, desc=f"scores of {name}", unit=" tokens", unit_scale=True) as progress:
        store.score(
            corpus.read(),
            lambda: load_model(name, options),
            num_alternatives=num_alternatives,
            max_batch_tokens=options.max_batch_tokens,
            progress=progress,
            loops=loops,
        )
    return store


def run(options: argparse.Namespace) -> None:
    require_matplotlib()
    models = list(dict.fromkeys(filter(None, [options.reference_model, *options.checkpoints])))
    models = [*(model for model in models if model != options.model), options.model]
    for model in models:  # before the first of them has sampled or read for hours
        check_model_path(model)
    if "loops" in options.analyses:
        refuse_without_loops(options.model)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(options.model)
    if options.token_credit is not None and options.dataset and options.num_samples < 2:
        refuse_advantages(tokenizer, options)
    completions = Path(options.completions) if options.completions else sample_responses(options)
    for model in models[:-1]:
        check_same_tokens(model, tokenizer)
    corpus = load_corpus(completions, tokenizer, options.max_responses, chat_template_kwargs_of(options))

    if options.token_credit is not None and group_advantages(corpus) is None:
        refuse_advantages(tokenizer, options)

    wanted = options.analyses
    compared = models if set(wanted) & set(COMPARISONS) else [options.model]
    stores = {m: score(m, corpus, options) for m in compared if m != options.model}
    store = score(options.model, corpus, options, options.page_responses, loops="loops" in wanted)
    stores[options.model] = store
    entropies = store.entropies(corpus.read())

    known = [value for value in corpus.correct if value is not None]
    summary = {
        "model": options.model,
        "reference_model": options.reference_model,
        "checkpoints": options.checkpoints,
        "completions": str(completions),
        "responses": {
            "num_responses": len(corpus.lengths),
            "num_problems": corpus.num_problems,
            "num_correct": sum(known) if known else None,
            "num_other_length": corpus.num_other_length,
            "temperature": options.temperature,
        },
    }
    if "distribution" in wanted:
        summary["distribution"] = statistics.distribution(entropies)
    if "tokens" in wanted:
        summary["tokens"] = analyse_tokens(store, corpus, tokenizer, options.min_token_count)
        write_text(output / "tokens.md", tokens_as_markdown(summary["tokens"]))
    summary |= compare_models(compared, stores, corpus, wanted)
    if "position" in wanted:
        summary |= analyse_positions(entropies, corpus)
    if "loops" in wanted:
        summary["loops"] = analyse_loops(store, corpus, tokenizer)
        write_text(output / "loops.md", loops_as_markdown(summary["loops"]))
    if "temperature" in wanted:
        threshold = statistics.percentile(entropies, 1 - FRACTION) if options.threshold is None else options.threshold
        settings = f"{store.directory.name} {threshold} {options.num_samples} {options.max_new_tokens} {options.seed}"
        if stop := stop_of(options, completions):
            settings += json.dumps(stop)
            print(f"Responses end before {' or '.join(map(repr, stop))}.")
        digest = hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()
        summary["decoding_temperature"] = decode_with_temperatures(
            lambda: load_model(options.model, options),
            tokenizer,
            problems_of(corpus.read()),
            output / f"decoding_temperature-{digest}.jsonl",
            threshold=threshold,
            temperatures=options.temperatures,
            num_samples=options.num_samples,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size or 32,
            seed=options.seed,
            stop=stop,
        )
    weights = None
    if options.token_credit is not None:
        weights, summary["credit"] = weigh(store, corpus, tokenizer, options)
    summary["definitions"] = {name: text for name, text in DEFINITIONS.items() if name in summary}
    summary = without_nan(summary)
    write_json(output / "summary.json", summary, ensure_ascii=False)
    drawn = draw(summary, entropies, corpus.lengths, corpus.correct, output)
    write_page(output / "report.html", store, corpus, tokenizer, options.page_responses, drawn, summary, weights)
    print_summary(summary, output, FRACTION)


def sample_responses(options: argparse.Namespace) -> Path:
    """Sample and grade with the command `evaluate`, into the same folder; it continues a killed run."""
    names = (
        *("model", "output", "num_samples", "temperature", "max_new_tokens", "limit", "batch_size", "seed", "dtype"),
        *("engine", "tensor_parallel_size"),
    )
    arguments = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) is not None]
    if options.attn_implementation:
        arguments.append(f"--attn_implementation={options.attn_implementation}")
    settings = evaluate.parse_arguments([*arguments, "--dataset", *options.dataset])
    # These are not passed on a command line, as a text may begin with a dash.
    vars(settings).update({name: getattr(options, name) for name in PROMPT_ARGUMENTS})
    if options.engine == "transformers":
        evaluate.run(settings)
    else:  # a process of its own: an engine frees its memory only when its process ends, and scoring needs it
        sampler = multiprocessing.get_context("spawn").Process(target=evaluate.run, args=(settings,))
        sampler.start()
        sampler.join()
        if sampler.exitcode:
            raise RuntimeError(
                "Sampling with vLLM has failed; its error is above. Use --engine transformers, or sample with "
                "trl-fork evaluate and pass its completions.jsonl in --completions."
            )
    return Path(options.output) / "completions.jsonl"


def chat_template_kwargs_of(options: argparse.Namespace) -> dict | None:
    """Arguments of the chat template: those of the command line, or else of the model's training."""
    if options.chat_template_kwargs is not None:
        return options.chat_template_kwargs
    found = find_prompt(options.model)
    return found[0].get("chat_template_kwargs") if found else None


def stop_of(options: argparse.Namespace, completions: Path) -> list[str]:
    """The stop strings of the command line, or else those that the responses were sampled with."""
    if options.stop is not None:
        return options.stop
    settings = completions.with_name("settings.json")
    return (json.loads(settings.read_text())["settings"].get("stop") or []) if settings.is_file() else []


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))


if __name__ == "__main__":
    main()
