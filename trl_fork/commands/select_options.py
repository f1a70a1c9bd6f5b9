"""Options of `trl-fork select`, and which of them go together."""

import argparse
from math import isfinite
from pathlib import Path

from ..analysis.data_selection import OF_HIGH_ENTROPY, ORDERS, SCORES, TOP_TOKENS
from .options import OptionParser


def parse_select(arguments: list[str] | None, description: str | None) -> argparse.Namespace:
    """The options, of which `top_tokens` is `None` where no share of the tokens is taken."""
    parser = OptionParser(description=description, command="select")
    parser.add_argument("--model", required=True, help="Hub name or folder of the model that scores")
    parser.add_argument(
        "--completions",
        required=True,
        help="JSONL file, such as evaluate's completions.jsonl",
    )
    parser.add_argument("--output", required=True, help="JSONL file of the responses that are selected")
    parser.add_argument("--fraction", type=float, help="fraction of the responses of each pool, in (0, 1]; rounded up")
    parser.add_argument("--num_selected", type=int, help="responses of each pool, instead of --fraction")
    parser.add_argument("--pool", choices=["global", "problem"], default="global", help="(default: %(default)s)")
    parser.add_argument(
        "--score",
        choices=SCORES,
        default="high_entropy_sum",
        help="sum or mean over the top tokens, sum over all, or the number of tokens, which needs no scoring "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default="highest",
        help="highest or lowest score first, or whatever the score: at random, or most tokens first; ties to the "
        "earlier response (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --order random (default: %(default)s)")
    parser.add_argument(
        "--match_length",
        action="store_true",
        help="select the same share of each decile of length of a pool (of fewer strata where fewer than ten are "
        "selected), so that the selection has the lengths of the candidates",
    )
    parser.add_argument("--top_tokens", type=float, help=f"share of tokens in the sum or mean (default: {TOP_TOKENS})")
    parser.add_argument(
        "--entropy_threshold",
        type=float,
        metavar="NATS",
        help="sum, or mean, over the tokens of more entropy than this instead of the top ones; 0 if there are none",
    )
    parser.add_argument("--include_incorrect", action="store_true", help="rank wrong and ungraded responses too")
    parser.add_argument("--temperature", type=float, default=1.0, help="inside the softmax (default: %(default)s)")
    parser.add_argument("--max_batch_tokens", type=int, default=16384, help="tokens of a scoring batch")
    parser.add_argument("--scores_dir", help="folder in which scores are kept (default: COMPLETIONS.scores)")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, such as bfloat16 (default: the checkpoint's)"
    )
    parser.add_argument("--device_map", help="'auto' spreads a large model over all GPUs")
    options = parser.parse_args(arguments)
    parser.refuse(problems_of(options))
    if options.score in OF_HIGH_ENTROPY and options.entropy_threshold is None and options.top_tokens is None:
        options.top_tokens = TOP_TOKENS
    return options


def problems_of(options: argparse.Namespace) -> list[str]:
    """A sentence about each option that cannot be taken."""
    problems = []
    if (options.fraction is None) == (options.num_selected is None):
        problems.append("give one of --fraction and --num_selected")
    for name, value, example in (
        ("fraction", options.fraction, "0.2 is 20 %"),
        ("top_tokens", options.top_tokens, "0.005 is 0.5 %"),
    ):
        if value is not None and not 0 < value <= 1:
            problems.append(f"--{name} must be in (0, 1], got {value}: {example}")
    if options.num_selected is not None and options.num_selected < 1:
        problems.append(f"--num_selected must be at least 1, got {options.num_selected}: it counts responses")
    for name, value in (("top_tokens", options.top_tokens), ("entropy_threshold", options.entropy_threshold)):
        if value is not None and options.score not in OF_HIGH_ENTROPY:
            problems.append(
                f"--{name} {value} has no effect on --score {options.score}, which counts all tokens: leave it out, "
                f"or choose --score {' or '.join(OF_HIGH_ENTROPY)}"
            )
    threshold = options.entropy_threshold
    if threshold is not None and not (isfinite(threshold) and threshold >= 0):
        problems.append(
            f"--entropy_threshold must be a number of nats that is not negative, such as 0.672, got {threshold}: "
            "for the sum over all tokens choose --score entropy_sum"
        )
    if threshold is not None and options.top_tokens is not None:
        problems.append(
            f"--entropy_threshold {threshold} and --top_tokens {options.top_tokens} both say which tokens are summed: "
            "give one of them"
        )
    if options.match_length and options.order == "longest":
        problems.append(
            "--match_length keeps the lengths of the candidates, --order longest changes them: give one of them"
        )
    elif options.match_length and options.score == "length" and options.order != "random":
        problems.append(
            f"--match_length keeps the lengths of the candidates, --order {options.order} by --score length changes "
            "them: leave it out, or choose another score"
        )
    if options.match_length and options.num_selected == 1:
        problems.append(
            "--match_length with --num_selected 1: a single response of a pool has no distribution of lengths; select "
            "2 at least, or more of --pool global"
        )
    if not 0 <= options.seed < 2**63:
        problems.append(f"--seed must be at least 0 and below 2**63, got {options.seed}: choose another")
    if not options.temperature > 0:
        problems.append(f"--temperature must be positive, got {options.temperature}: at 0 every entropy is 0")
    if not Path(options.completions).is_file():
        problems.append(f"--completions: there is no file {options.completions!r}")
    return problems
