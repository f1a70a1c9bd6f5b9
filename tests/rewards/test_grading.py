"""Answers graded in worker processes: honest ones as TRL grades them, hostile ones without harm."""

import inspect
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from trl.rewards import accuracy_reward as trl_accuracy_reward
from trl.rewards import reasoning_accuracy_reward as trl_reasoning_reward

from tests.hostile_answers import HOSTILE, hostile_answers
from trl_fork.rewards import grading
from trl_fork.rewards.functions import get_reward_function
from trl_fork.rewards.grading import GradingPool, accuracy_reward, reasoning_accuracy_reward


ROOT = Path(__file__).parents[2]

HONEST = [  # completion, solution
    (r"So it is \boxed{72}.", "72"),
    (r"So it is \boxed{71}.", "72"),
    ("So it is 72.", "72"),
    (r"\boxed{72} then \boxed{1}", "72"),
    (r"\boxed{1,018}", "1018"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{0.5}", r"$\frac{1}{2}$"),
    (r"\boxed{\dfrac{\sqrt{3}}{2}}", r"$\frac{\sqrt{3}}{2}$"),
    (r"\boxed{2\sqrt{3}}", r"$\sqrt{12}$"),
    (r"\boxed{(1,2)}", "$(1, 2)$"),
    (r"\boxed{(2,1)}", "$(1, 2)$"),
    (r"\boxed{[0,\infty)}", r"$x \ge 0$"),
    (r"\boxed{\{1,2,3\}}", r"$\{3,2,1\}$"),
    (r"\boxed{x^2+2x+1}", "$(x+1)^2$"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{30^\circ}", "30"),
    (r"\boxed{10\%}", "0.1"),
    (r"\boxed{12\text{ cm}}", "12"),
    (r"\boxed{\text{B}}", "$B$"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"$\begin{pmatrix}1\\2\end{pmatrix}$"),
    (r"\boxed{2^{2^{2^{2}}}}", "65536"),
    (r"\boxed{10!}", "3628800"),
    (r"\boxed{\binom{10}{3}}", "120"),
    (r"\boxed{((7))}", "7"),
    (r"The final answer is $\frac{3}{4}$. I hope it is correct.", "0.75"),
    (r"answer: $x=3$", "3"),
    (r"\boxed{", "3"),
    (r"\boxed{}", "3"),
    (r"\boxed{\frac{1}{0}}", "3"),
    ("", "3"),
    ("\\boxed{\ud800}", "3"),
    ("\\boxed{3}\x00\ufffd", "3"),
    (r"\boxed{3}", ""),
    (r"\boxed{3}", "no number here"),
    (r"\boxed{2n\pi}", r"$2\pi n$"),
    (r"\boxed{-\frac{1}{3}}", r"\boxed{-\frac{1}{3}}"),
]


def trl_rewards(answers, golds, log_extra=None):
    return trl_accuracy_reward([[{"role": "assistant", "content": a}] for a in answers], list(golds), log_extra)


@pytest.fixture(scope="module")
def pool():
    pool = GradingPool(num_workers=2)
    yield pool
    pool.close()


def test_honest_answers_are_graded_as_trl_grades_them(pool):
    answers, golds = zip(*HONEST, strict=True)
    logged = {}
    expected = trl_rewards(answers, golds, logged.__setitem__)
    assert {0.0, 1.0, None} == set(expected)
    verdicts = pool.grade(list(answers), list(golds))
    assert [v.reward for v in verdicts] == expected
    assert [v.gold_parsed for v in verdicts] == logged["gold_parsed"]
    assert [v.answer_parsed for v in verdicts] == logged["answer_parsed"]
    assert not pool.failures


def test_hostile_answers_of_every_kind():
    with GradingPool(num_workers=2, time_limit=0.1) as pool:
        answers = hostile_answers(4 * len(HOSTILE))
        assert [v.reward for v in pool.grade(answers, ["72"] * len(answers))] == [0.0] * len(answers)
        assert pool.failures["timeout"] > len(HOSTILE)  # or they were not hostile
        assert pool.num_graded == len(answers)
        assert pool.grade([r"\boxed{72}"], ["72"])[0].reward == 1.0  # and it goes on working


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_hostile_answers():
    """
    Two hundred take half a minute of two cores. `HOSTILE_ANSWERS=10000`, as once a week in CI, takes a quarter of an
    hour.
    """
    count = int(os.environ.get("HOSTILE_ANSWERS", "200"))
    with GradingPool(num_workers=2) as pool:
        for start in range(0, count, 500):
            answers = hostile_answers(min(500, count - start), seed=start)
            assert [v.reward for v in pool.grade(answers, ["72"] * len(answers))] == [0.0] * len(answers)
        answers, golds = zip(*HONEST, strict=True)
        verdicts = pool.grade(answers, golds)
        assert [v.reward for v in verdicts] == trl_rewards(answers, golds)


def test_hostile_answers_share_an_allowance(monkeypatch):
    """Each of the first ones may take the full limit; the rest does not, until honest answers have made up for it."""
    monkeypatch.setattr(grading, "ALLOWANCE", 0.5)
    monkeypatch.setattr(grading, "SHORT_LIMIT", 0.05)
    hostile = HOSTILE["powers"]
    with GradingPool(num_workers=1, time_limit=0.4) as pool:
        limits = []
        worker = pool._workers[0]
        worker.grade = lambda *pair, grade=worker.grade: limits.append(pair[2]) or grade(*pair)
        pool.grade([hostile(random.Random(i)) for i in range(5)], ["72"] * 5)
        assert limits == [0.4, 0.4, 0.05, 0.05, 0.05]
        pool.grade([rf"\boxed{{{i}}}" for i in range(30)], ["72"] * 30)
        pool.grade([r"\boxed{72}"], ["72"])
        assert limits[-1] == 0.4


def test_a_grader_that_takes_all_memory_is_ended():
    worker = Path(grading.__file__).with_name("_grading_worker.py")
    code = (
        "import os, sys; sys.path.insert(0, os.path.dirname(sys.argv[1])); import _grading_worker as w\n"
        "w.grade = lambda answer, gold: {'python': lambda: bytearray(2**40), 'c': lambda: os.abort()}[answer]()\n"
        "w.WARM_UP = ()\n"
        "w.main()"
    )
    requests = [[1, "python", "72", 5], [2, "c", "72", 5], [3, "python", "72", 5]]
    done = subprocess.run(
        [sys.executable, "-c", code, str(worker)],
        input="".join(json.dumps(r) + "\n" for r in requests[:1]),
        capture_output=True,
        text=True,
    )
    assert [json.loads(line)[-1] for line in done.stdout.splitlines()] == ["ready", "memory"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(worker)], input=json.dumps(requests[1]), capture_output=True, text=True
    )
    assert json.loads(done.stdout.splitlines()[1]) == [2, 0.0, "[not shown]", "[not graded]", "crash"]


def test_address_space_is_limited():
    with GradingPool(num_workers=1) as pool:
        pool.grade(["1"], ["1"])
        (grader,) = psutil.Process(pool._workers[0]._process.pid).children()
        assert grader.rlimit(psutil.RLIMIT_AS)[0] == 2 * 2**30


def test_survives_the_death_of_its_processes(pool):
    right = [r"\boxed{72}"], ["72"]
    assert pool.grade(*right)[0].reward == 1.0
    for with_its_parent in (False, True, False):
        for process in [psutil.Process(w._process.pid) for w in pool._workers if w._process]:
            family = [*process.children(), process]
            for member in family if with_its_parent else family[:1]:
                member.kill()
        time.sleep(0.2)
        assert [pool.grade(*right)[0].reward for _ in range(4)] == [1.0] * 4
    assert not pool.failures


def test_no_orphans_when_the_parent_is_killed():
    code = (
        # Without torch and TRL, which the package itself imports
        "import sys, types; package = sys.modules['trl_fork'] = types.ModuleType('trl_fork')\n"
        "package.__path__ = ['trl_fork']\n"
        "from trl_fork.rewards.grading import GradingPool\n"
        "pool = GradingPool(num_workers=1)\n"
        "pool.grade(['1'], ['1'])\n"
        "print(pool._workers[0]._process.pid, flush=True)\n"
        "pool.grade([r'\\boxed{9^{9^{9^{9}}}}'], ['72'])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = psutil.Process(int(parent.stdout.readline()))
    family = [worker, *worker.children()]
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_equal_answers_are_graded_once():
    with GradingPool(num_workers=1, time_limit=0.2) as pool:
        verdicts = pool.grade([HOSTILE["powers"](random.Random(0))] * 1000, ["72"] * 1000)
        assert {v.failure for v in verdicts} == {"timeout"}
        assert pool.failures["timeout"] == 1 and pool.num_graded == 1000


def test_a_gold_that_cannot_be_read_in_time_is_skipped():
    with GradingPool(num_workers=1, time_limit=0.2) as pool:
        (verdict,) = pool.grade([r"\boxed{1}"], [HOSTILE["braces"](random.Random(0))])
        assert verdict.reward is None and verdict.failure == "timeout"


@pytest.mark.parametrize("settings", [{"num_workers": 0}, {"time_limit": 0}, {"time_limit": 61}])
def test_bad_settings(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must be"):
        GradingPool(**settings)


def test_reward_is_trls_for_messages_and_works_on_text_and_in_a_thread():
    answers, golds = map(list, zip(*HONEST, strict=True))
    logged, expected_log = {}, {}
    expected = trl_rewards(answers, golds, expected_log.__setitem__)
    messages = [[{"role": "assistant", "content": answer}] for answer in answers]
    assert accuracy_reward(completions=messages, solution=golds, log_extra=logged.__setitem__, prompts=[]) == expected
    assert logged == expected_log
    assert accuracy_reward(answers, golds) == expected
    found = []
    thread = threading.Thread(target=lambda: found.append(accuracy_reward(answers, golds)))
    thread.start()
    thread.join()
    assert found == [expected]


def test_reasoning_reward_is_trls():
    texts = [
        r"<think>\boxed{1}</think> \boxed{3}",
        r"<think>\boxed{3}</think> \boxed{1}",
        r"<think>\boxed{3}",
        r"a</think>b</think>\boxed{3}",
        r"a[end]\boxed{3}</think>\boxed{1}",
        r"x</think>\boxed{3}",
    ]
    golds = [*["3"] * 5, "no number"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    for delimiters in (None, ["[end]", "</think>"]):
        logged, expected_log = {}, {}
        expected = trl_reasoning_reward(messages, golds, delimiters, expected_log.__setitem__)
        assert reasoning_accuracy_reward(messages, golds, delimiters, logged.__setitem__) == expected
        assert logged == expected_log
        assert reasoning_accuracy_reward(texts, golds, delimiters) == expected


@pytest.mark.parametrize(
    ("ours", "trls"),
    [(accuracy_reward, trl_accuracy_reward), (reasoning_accuracy_reward, trl_reasoning_reward)],
    ids=["accuracy", "reasoning"],
)
def test_training_uses_them_by_name(ours, trls):
    assert inspect.unwrap(get_reward_function(trls.__name__)) is ours
    assert ours.__name__ == trls.__name__  # the name of the metric
