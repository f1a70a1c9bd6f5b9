"""The task of a team: what a message tells, whether turns are right, and that no phase sees a held-out problem."""

import random
import re
from collections import Counter

import pytest
import torch

from examples import train_team
from trl_fork.tasks import digit_sums, team_play
from trl_fork.tasks import split_sums as task
from trl_fork.tasks.team_play import Episode


PROBLEM = ((3, 2, 4), (2, 4))


def naive_answer(left, right, written, read):
    """The answer of a team without errors, by numbers in place of digits."""
    said = sum(left) if written == "plain" else 15 - sum(left)
    heard = said if read == "plain" else 15 - said
    return (heard + sum(right)) % 10


def problems(number=200):
    rng = random.Random(0)
    return [*task.training_problems(number, rng), *task.held_out_problems()]


@pytest.mark.parametrize("written", task.CODES)
@pytest.mark.parametrize("read", task.CODES)
def test_a_team_without_errors_is_right_where_the_codes_agree_and_nowhere_else(written, read):
    for problem in problems():
        left = task.left_turn(problem, written)
        message = re.search(task.MESSAGE, left)[1]
        right = task.right_turn(problem, message, read)
        episode = Episode(problem, left, message, right)
        answer = naive_answer(*problem, written, read)
        assert right.endswith(f"\\boxed{{{answer}}}")
        assert episode.codes == (written, read)
        assert episode.is_right == (written == read) == (task.solution(problem) == str(answer))


def test_a_message_does_not_tell_its_code():
    """Over all numbers that `left` may have, a digit is as likely in one code as in the other."""
    sums = Counter(a + b + c for a in range(1, 5) for b in range(1, 5) for c in range(1, 5))
    said = {code: Counter() for code in task.CODES}
    for total, number in sums.items():
        for code in task.CODES:
            said[code][task.encode(total % 10, code)] += number
        assert len({task.encode(total % 10, code) for code in task.CODES}) == 2, "the codes never say the same"
    assert said["plain"] == said["mirrored"] and len(said["plain"]) == 10


def test_no_held_out_problem_is_trained_on():
    held_out = task.held_out_problems()
    assert not {*held_out} & {*task.training_problems(3000, random.Random(1))}
    assert len({*held_out}) == len(held_out) and 0.2 < len(held_out) / 4**5 < 0.3
    assert {task.solution(problem) for problem in held_out} == {*"0123456789"}


def test_demonstrations_choose_codes_independently_and_make_no_error():
    rng = random.Random(0)
    counts = Counter()
    for problem in task.training_problems(4000, rng):
        (asked_left, left), (asked_right, right) = task.demonstrations(problem, rng)
        code, reading = task.code_of_left(left), task.code_of_right(right)
        counts[code, reading] += 1
        message = asked_right[-1]
        assert asked_left == task.left_question(problem) and asked_right == task.right_question(problem, message)
        assert left.partition(" ")[2] == task.left_turn(problem, code).partition(" ")[2]
        assert right == task.right_turn(problem, message, reading)
    for code, reading in counts:
        share = (0.6 if code == "plain" else 0.4) * (0.6 if reading == "plain" else 0.4)
        assert abs(counts[code, reading] / 4000 - share) < 0.03
    assert len(counts) == 4


@pytest.mark.parametrize(
    ("left", "code"),
    [
        ("so 3+2=5+4=9. say 9", "plain"),
        ("so 3+2=5+4=9. say 6", "mirrored"),
        ("so 3+2=5+4=8. say 8", "plain"),  # of its own sum, though that is wrong
        ("so 3+2=5+4=9. say 7", None),
        ("so 3+2=5+4=9. say 9.", None),
        ("", None),
    ],
)
def test_code_of_left(left, code):
    assert task.code_of_left(left) == code


@pytest.mark.parametrize(
    ("right", "code"),
    [
        ("9 plain=9+2=1+4=5 \\boxed{5}", "plain"),
        ("9 mirrored=6", "mirrored"),
        ("9 mirrored=9+2=1", "plain"),  # whatever the word says
        ("9 plain=8", None),
        ("plain=9", None),
        ("9 so=9", None),
        ("", None),
    ],
)
def test_code_of_right(right, code):
    assert task.code_of_right(right) == code


def test_texts_survive_the_tokenizer_and_fit():
    tokenizer, rng, longest = task.make_tokenizer(), random.Random(0), 0
    for problem in task.training_problems(200, rng):
        for pair in task.demonstrations(problem, rng):
            for text in pair:
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
            longest = max(longest, len(ids) + 1)  # with the end token
    assert longest <= team_play.MAX_COMPLETION_LENGTH


def test_roles_are_told_what_the_demonstrations_ask():
    """The templates by the fields that the task writes into its questions itself."""
    row = task.row(PROBLEM)
    assert row == {"prompt": " left 3 2 4. right 2 4", "left": "3 2 4", "right": "2 4", "solution": "5"}
    left, right = train_team.ROLES
    assert left.prompt.format(**row) == task.left_question(PROBLEM) == " left 3 2 4"
    assert right.prompt.format(**row, transcript="left: 9") == task.right_question(PROBLEM, "9")
    assert task.right_question(PROBLEM, "9") == " right 2 4. left: 9"
    assert left.message_of("so 3+2=5+4=9. say 6") == "6" and left.message_of("so 3+2=5+4=9.") == ""


# ---------------------------------------------------------------------- what is measured


@pytest.fixture(scope="module")
def player():
    tokenizer = task.make_tokenizer()
    return digit_sums.make_model(tokenizer, 3, train_team.SHAPE).eval(), tokenizer


def test_conventions_are_the_probabilities_of_the_choice(player):
    """Against one forward pass per problem, in full, with the probabilities of the two tokens."""
    model, tokenizer = player
    chosen = task.held_out_problems()[:3]
    expected = {"left": [], "right": []}

    def probability(prompt, word):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            probabilities = model(input_ids=ids).logits[0, -1].softmax(-1)
        return probabilities[tokenizer.convert_tokens_to_ids(word)].item()

    for problem in chosen:
        digits = [str(sum(problem[0]) % 10), str((15 - sum(problem[0])) % 10)]
        numbers, said = " ".join(map(str, problem[0])), task.left_turn(problem, "plain")[:-1]
        plain, mirrored = (probability(f"<bos><user> left {numbers}<assistant>{said}", digit) for digit in digits)
        expected["left"].append(plain / (plain + mirrored))
        heard = f"<bos><user>{task.right_question(problem, digits[0])}<assistant>{digits[0]}"
        plain, mirrored = (
            sum(probability(heard, word) * probability(f"{heard}{word}=", digit) for word in (" plain", " mirrored"))
            for digit in digits
        )
        expected["right"].append(plain / (plain + mirrored))
    found = team_play.conventions(model, tokenizer, chosen)
    assert found == {role: pytest.approx(sum(values) / 3, abs=1e-6) for role, values in expected.items()}


def test_episodes_pass_the_message_on_and_do_not_disturb_other_random_numbers(player):
    model, tokenizer = player
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    episodes = team_play.play(model, tokenizer, task.held_out_problems()[:8], seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert episodes == team_play.play(model, tokenizer, task.held_out_problems()[:8], seed=1)
    assert episodes != team_play.play(model, tokenizer, task.held_out_problems()[:8], seed=2)
    for episode in episodes:
        found = re.search(r"say (\d)$", episode.left)
        assert episode.message == (found[1] if found else "")


def test_success_by_agreement():
    right = task.right_turn(PROBLEM, "9", "plain")
    episodes = [
        Episode(PROBLEM, task.left_turn(PROBLEM, "plain"), "9", right),  # agree, right
        Episode(PROBLEM, task.left_turn(PROBLEM, "plain"), "9", "9 plain=9+2=1+4=6 \\boxed{6}"),  # agree, wrong
        Episode(PROBLEM, task.left_turn(PROBLEM, "mirrored"), "6", "6 plain=6+2=8+4=2 \\boxed{2}"),  # differ, wrong
        Episode(PROBLEM, "well", "", right),  # of no kind, right
    ]
    assert team_play.success(episodes) == {"all": 0.5, "agree": 0.5, "differ": 0.0}
    assert team_play.success(episodes[:1])["differ"] == 0.0
