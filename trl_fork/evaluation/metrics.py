"""avg@k, pass@k, maj@k, length and truncation of sampled completions, and the loop that samples and grades them."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np

from ..rewards.grading import SHOWN, GradingPool
from .store import CompletionStore, key


@dataclass(frozen=True)
class Problem:
    """
    One problem of a benchmark.

    Args:
        dataset (`str`): Name of the benchmark.
        problem_id (`str`): Unique in the benchmark.
        prompt (`str`): Prompt with the chat template applied.
        prompt_ids (`list[int]`): Its tokens.
        solution (`str`): Gold solution.
    """

    dataset: str
    problem_id: str
    prompt: str
    prompt_ids: list[int]
    solution: str


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """
    The unbiased estimate of the probability that at least one of `k` samples is right (Chen et al., 2021,
    [arXiv 2107.03374](https://arxiv.org/abs/2107.03374), section 2.1).

    Args:
        num_samples (`int`): Samples of the problem, n.
        num_correct (`int`): Right samples among them, c.
        k (`int`): At most n.

    Returns:
        `float`: 1 - C(n - c, k) / C(n, k).
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            "pass@k needs 0 <= num_correct <= num_samples and 1 <= k <= num_samples, got "
            f"num_samples={num_samples}, num_correct={num_correct}, k={k}."
        )
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


_PLAIN = r"\boxed{1}"  # any answer that is not hostile can be compared with this one


@dataclass
class _Vote:
    first: dict  # sample
    count: int
    is_comparable: bool = True


def majority(samples: list[dict], same_answer: Callable[[str, str], bool | None]) -> float:
    """
    Whether the answer that most samples of a problem give is right: maj@K of one problem.

    Samples with equal answers vote for one answer, which is right if the first of them is. If several answers have
    most votes, each counts by its share, as if one of them was drawn. Samples without an answer, or that could not be
    graded, have no vote; without any vote the majority is wrong.

    Args:
        samples (`list[dict]`): Lines of `completions.jsonl` of one problem.
        same_answer (`callable`): Whether two completions give equal answers. `None` means undecided, and they count as
            two answers. See [`~rewards.grading.GradingPool.same_answer`].

    Returns:
        `float`: in [0, 1].
    """
    texts: dict[str, list[dict]] = {}  # samples by the text of their answer
    for sample in samples:
        answer = sample["answer"]
        if answer is not None:
            is_whole = len(answer) < SHOWN and answer != "[unprintable]"
            texts.setdefault(answer if is_whole else sample["completion"], []).append(sample)
    votes: list[_Vote] = []
    for alike in sorted(texts.values(), key=len, reverse=True):
        new, undecided = _Vote(alike[0], len(alike)), 0
        for vote in votes:
            same = vote.is_comparable and same_answer(vote.first["completion"], new.first["completion"])
            if same:
                vote.count += new.count
                break
            if same is None:  # one of the two makes the grader run for ever, or both together
                new.is_comparable = same_answer(_PLAIN, new.first["completion"]) is not None
                vote.is_comparable = same_answer(_PLAIN, vote.first["completion"]) is not None
                undecided += vote.is_comparable
            if not new.is_comparable or undecided > 1:
                votes.append(new)
                break
        else:
            votes.append(new)
    most = max((vote.count for vote in votes), default=0)
    winners = [vote.first["correct"] for vote in votes if vote.count == most]
    return sum(winners) / len(winners) if winners else 0.0


def summarize(
    samples: list[dict], same_answer: Callable[[str, str], bool | None] | None = None, num_threads: int = 1
) -> dict[str, dict[str, float | int | None]]:
    """
    Compute the contents of `results.json`.

    Args:
        samples (`list[dict]`): Lines of `completions.jsonl`.
        same_answer (`callable`, *optional*): See [`majority`]. Without it there is no maj@K.
        num_threads (`int`, *optional*, defaults to `1`): Number of problems whose answers are compared at a time.

    Returns:
        `dict`: by data set, `"avg@K"`, the mean over problems of the fraction of right samples; `"avg@K_stderr"`, its
        standard error over problems (`None` for a single one); `"maj@K"`, the mean of [`majority`]; `"pass@k"` for
        k = K and the powers of two below; `"mean_length"` in tokens over samples; `"truncated_fraction"`;
        `"num_problems"`; `"num_samples"` per problem; and `"grading_failures"`, the number of samples that count as
        wrong because they could not be graded.

    Raises:
        `ValueError`: if problems of a data set have different numbers of samples.
    """
    results = {}
    for dataset, problems in _by_problem(samples).items():
        counts = {len(rows) for rows in problems.values()}
        if len(counts) > 1:
            raise ValueError(f"The problems of {dataset!r} have between {min(counts)} and {max(counts)} samples.")
        (k,) = counts
        rows = [row for rows in problems.values() for row in rows]
        correct = np.array([sum(row["correct"] for row in rows) for rows in problems.values()])
        n = len(problems)
        results[dataset] = {
            f"avg@{k}": float(np.mean(correct / k)),
            f"avg@{k}_stderr": float(np.std(correct / k, ddof=1) / np.sqrt(n)) if n > 1 else None,
            **({} if same_answer is None else {f"maj@{k}": _mean_majority(problems, same_answer, num_threads)}),
            **{
                f"pass@{size}": float(np.mean([pass_at_k(k, int(c), size) for c in correct]))
                for size in sorted({k, *(2**i for i in range(k.bit_length()))})
            },
            "mean_length": float(np.mean([row["length"] for row in rows])),
            "truncated_fraction": float(np.mean([row["truncated"] for row in rows])),
            "num_problems": n,
            "num_samples": k,
            "grading_failures": sum(row["grading_failure"] is not None for row in rows),
        }
    return results


@dataclass(frozen=True)
class Difference:
    """
    Accuracy of B minus accuracy of A on the problems of a data set that both have.

    Args:
        num_problems (`int`): Problems in both.
        mean (`float`, *optional*): Mean difference; `None` without common problems.
        low (`float`, *optional*): Lower end of its 95 % confidence interval; `None` with fewer than two problems.
        high (`float`, *optional*): Upper end.
    """

    num_problems: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def compare(samples_a: list[dict], samples_b: list[dict], resamples: int = 10_000) -> dict[str, Difference]:
    """
    Paired difference in accuracy by data set, with its 95 % confidence interval.

    Problems are paired by their id. The interval is the percentile bootstrap over problems (seeded): benchmarks of 30
    problems with accuracies near 0 and 1 are far from normal. It covers both the choice of problems and the noise of
    sampling.

    Args:
        samples_a, samples_b (`list[dict]`): Lines of two `completions.jsonl`.
        resamples (`int`, *optional*, defaults to `10000`): Bootstrap resamples.

    Returns:
        `dict[str, Difference]`: for every data set in both.
    """
    from scipy.stats import bootstrap  # takes a second to import

    a, b = _accuracies(samples_a), _accuracies(samples_b)
    differences = {}
    for dataset in (name for name in a if name in b):
        common = sorted(set(a[dataset]) & set(b[dataset]))
        paired = np.array([b[dataset][problem] - a[dataset][problem] for problem in common])
        n = len(common)
        if n < 2:
            differences[dataset] = Difference(n, float(paired[0]) if n else None)
            continue
        # Batches, because all resamples of ten thousand problems at once would take 1.6 GB.
        interval = bootstrap(
            (paired,), np.mean, n_resamples=resamples, batch=100, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        differences[dataset] = Difference(n, float(paired.mean()), float(interval.low), float(interval.high))
    return differences


def evaluate(
    problems: list[Problem],
    engine,
    pool: GradingPool,
    store: CompletionStore,
    *,
    done: set[tuple[str, str, int]],
    num_samples: int,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    num_processes: int = 1,
    progress: Callable[[list[dict]], None] = lambda samples: None,
    keep_ids: bool = False,
) -> None:
    """
    Sample and grade the samples that are missing, and append them to the store batch by batch.

    The seed of a sample depends only on the run's seed, the problem and the sample's number, not on batches, processes
    or earlier runs.

    Args:
        problems (`list[Problem]`): All problems, the same on every process.
        engine ([`TransformersEngine`] or [`VLLMEngine`]): Engine that samples.
        pool ([`GradingPool`]): Pool that grades.
        store ([`CompletionStore`]): Store of the samples.
        done (`set`): Keys (data set, problem id, sample number) of the samples in the store.
        num_samples (`int`): Samples per problem.
        batch_size (`int`): Completions at a time.
        seed (`int`, *optional*, defaults to `0`): Seed of the run.
        rank, num_processes (`int`, *optional*): Number of this process, and of all of them.
        progress (`callable`, *optional*): Called with each batch of samples after it was stored.
        keep_ids (`bool`, *optional*, defaults to `False`): Whether the store gets the tokens of each completion, too.
    """
    todo = todo_of(problems, num_samples, done)[rank::num_processes]
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        seeds = [sample_seed(seed, problem, number) for problem, number in batch]
        sampled = engine.generate([problem.prompt_ids for problem, _ in batch], seeds)
        verdicts = pool.grade([s.text for s in sampled], [problem.solution for problem, _ in batch])
        samples = [
            {
                "dataset": problem.dataset,
                "problem_id": problem.problem_id,
                "sample": number,
                "prompt": problem.prompt,
                "completion": sample.text,
                "length": sample.length,
                "truncated": sample.truncated,
                "solution": problem.solution,
                "correct": verdict.reward == 1.0,
                "answer": verdict.answer,
                "grading_failure": verdict.failure,
                **({"completion_ids": list(sample.ids)} if keep_ids else {}),
            }
            for (problem, number), sample, verdict in zip(batch, sampled, verdicts, strict=True)
        ]
        store.append(samples)
        progress(samples)


def todo_of(problems: list[Problem], num_samples: int, done: set) -> list[tuple[Problem, int]]:
    """
    Problems and sample numbers that are left, one data set after the other.

    The longest prompts come first, so a batch needs little padding, and one too large for memory fails at once.
    """
    datasets = list(dict.fromkeys(problem.dataset for problem in problems))
    ordered = sorted(problems, key=lambda p: (datasets.index(p.dataset), -len(p.prompt_ids)))
    todo = [(problem, number) for problem in ordered for number in range(num_samples)]
    return [(p, n) for p, n in todo if (p.dataset, p.problem_id, n) not in done]


def sample_seed(seed: int, problem: Problem, number: int) -> int:
    """A seed of its own for every sample."""
    text = "\0".join((str(seed), problem.dataset, problem.problem_id, str(number)))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest())


def _by_problem(samples: list[dict]) -> dict[str, dict[str, list[dict]]]:
    problems: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for sample in sorted(samples, key=lambda sample: key(sample)[1:]):
        problems[sample["dataset"]][sample["problem_id"]].append(sample)
    # The order of the run, not of the alphabet
    return {name: problems[name] for name in dict.fromkeys(sample["dataset"] for sample in samples)}


def _mean_majority(problems: dict[str, list[dict]], same_answer, num_threads: int) -> float:
    with ThreadPoolExecutor(num_threads) as threads:
        return float(np.mean(list(threads.map(lambda rows: majority(rows, same_answer), problems.values()))))


def _accuracies(samples: list[dict]) -> dict[str, dict[str, float]]:
    return {
        dataset: {problem: float(np.mean([row["correct"] for row in rows])) for problem, rows in problems.items()}
        for dataset, problems in _by_problem(samples).items()
    }
