"""Roles: templates, messages, and what a role refuses."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_fork.teams import Role, TeamRollout, load_team
from trl_fork.teams.templates import fields_of, fill


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=6)
PLAIN = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=12)


@pytest.mark.parametrize(
    ("template", "fields", "filled"),
    [
        ("{prompt}", ["prompt"], "<prompt>"),
        (r"{prompt} in \boxed{}.", ["prompt"], r"<prompt> in \boxed{}."),
        (r"\frac{1}{2} { } {x y} {1x} {-} {a.b} {a[0]}", [], r"\frac{1}{2} { } {x y} {1x} {-} {a.b} {a[0]}"),
        ("{{prompt}}", [], "{prompt}"),
        ("{{{prompt}}}", ["prompt"], "{<prompt>}"),
        ("{{{{prompt}}}}", [], "{{prompt}}"),
        ("{{prompt}", ["prompt"], "{<prompt>"),
        ("{prompt}}", ["prompt"], "<prompt>}"),
        (r"\boxed{{{answer}}}", ["answer"], r"\boxed{<answer>}"),
        ("{messages[the solver]} {messages[solver]}", ["messages[the solver]", "messages[solver]"], None),
        ("{messages} {messages[]}", ["messages", "messages[]"], None),
        ("{a}{b}{a}", ["a", "b"], "<a><b><a>"),
        ("{Größe} {_x1}", ["Größe", "_x1"], "<Größe> <_x1>"),
        ("", [], ""),
    ],
)
def test_templates(template, fields, filled):
    assert fields_of(template) == fields
    if filled is not None:
        assert fill(template, lambda name: f"<{name}>") == filled


@given(st.lists(st.tuples(PLAIN, st.sampled_from(["field", "escaped"]), NAMES)), PLAIN, st.text(max_size=9))
def test_any_template_is_filled_part_by_part(parts, end, value):
    """Values are not templates: their braces stay. What is written with doubled braces is read back as a field."""
    template = expected = ""
    for text, kind, name in parts:
        field = "{" + name + "}"
        template += text + (field if kind == "field" else "{" + field + "}")
        expected += text + (value if kind == "field" else field)
    template, expected = template + end, expected + end
    assert fill(template, lambda name: value) == expected
    assert fields_of(template) == list(dict.fromkeys(name for _, kind, name in parts if kind == "field"))


@given(st.text(max_size=30))
def test_text_without_fields_stays_as_it_is(text):
    braces_around_names = re.search(r"\{\w|\{messages\[", text)
    if not braces_around_names:
        assert fill(text, lambda name: "") == text and fields_of(text) == []


@pytest.mark.parametrize(
    ("pattern", "completion", "message"),
    [
        (None, " whole\ntext ", " whole\ntext "),
        (r"Answer: (\w+)", "Answer: no, Answer: yes.", "yes"),
        (r"Answer: (\w+)", "I do not know", ""),
        (r"(?s)<say>(.*?)</say>", "a<say>x\ny</say>b", "x\ny"),
        (r"a(b)?", "ab a", ""),  # the last match, whose group has none
        (r"(\d)(\d)", "12 34", "3"),
        (r"()", "text", ""),
    ],
)
def test_message_is_the_first_group_of_the_last_match(pattern, completion, message):
    assert Role("r", "p", message=pattern).message_of(completion) == message


def test_columns_are_those_that_templates_name():
    role = Role("r", "{prompt}{transcript}{left}{{right}}{messages[q]}", reply="{more}{left}")
    assert role.columns == {"more": "reply", "left": "prompt"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": ""}, ValueError, "name of a role must consist of .* got ''"),
        ({"name": " a"}, ValueError, "name of a role"),
        ({"name": "a/b"}, ValueError, "got 'a/b'"),
        ({"name": "a]"}, ValueError, "got 'a]'"),
        ({"name": "a\nb"}, ValueError, "name of a role"),
        ({"name": 3}, TypeError, "name must be a text, got 3"),
        ({"prompt": None}, TypeError, "Role 'r': prompt must be a text, got None"),
        ({"prompt": " "}, ValueError, "prompt is empty"),
        ({"reply": 1}, TypeError, "reply must be a text"),
        ({"system": 1}, TypeError, "system must be a text, got 1. .* or leave it out"),
        ({"message": "("}, ValueError, "message is no regular expression of Python: .* in '\\('"),
        ({"message": "Answer"}, ValueError, "message has no group, got 'Answer'"),
        ({"message": "(?:x)"}, ValueError, "has no group"),
        ({"temperature": 0}, ValueError, "temperature must be a finite number above 0, got 0"),
        ({"temperature": "1"}, ValueError, "temperature must be a finite number above 0, got '1'"),
        ({"temperature": True}, ValueError, "got True"),
        ({"beta": "1e-3"}, ValueError, "got '1e-3'.* To YAML 1e-3 is a text"),
        ({"prompt": "{prompt:>3}"}, ValueError, "prompt has '{prompt:>3}', which is near a field"),
        ({"reply": "{transcript.x} y"}, ValueError, "reply has '{transcript.x}', which is near a field"),
        ({"prompt": "{ prompt }"}, ValueError, "prompt has '{ prompt }'"),
        ({"beta": -1.0}, ValueError, "Role 'r': beta must be a finite number above 0, got -1.0.*args.beta"),
        ({"beta": float("nan")}, ValueError, "got nan"),
    ],
)
def test_role_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        Role(**{"name": "r", "prompt": "{prompt}"} | arguments)


A, B = Role("a", "{prompt}"), Role("b", "{messages[a]}")


@pytest.mark.parametrize(
    ("roles", "rounds", "error", "message"),
    [
        ([], 1, ValueError, "at least one role"),
        ([A, A], 1, ValueError, r"\['a'\] are there more than once"),
        ([A, {"name": "b"}], 1, TypeError, r"roles\[1\] must be a Role"),
        ([A], 0, ValueError, "rounds must be a whole number of at least 1, got 0"),
        ([A, B], True, ValueError, "rounds must be"),
        ([A, B], 1.0, ValueError, "rounds must be"),
        ([B, A], 1, ValueError, r"Role 'b': prompt has the field \{messages\[a\]\}, .* always be empty"),
        ([A, Role("c", "{messages[x]}")], 1, ValueError, r"there is no role 'x'; there are \['a', 'c'\]"),
        (A, 1, TypeError, "roles must be a list of roles, got the role 'a'"),
        ([Role("c", "x", reply="{messages[]}")], 2, ValueError, "there is no role ''"),
        ([A], 2, ValueError, "Role 'a': reply is '{transcript}', which would always be empty"),
    ],
)
def test_team_refuses(roles, rounds, error, message):
    with pytest.raises(error, match=message):
        TeamRollout(roles, rounds)


def test_rows_of_an_episode():
    assert TeamRollout([A, B], rounds=3).rows_per_episode == 6
    assert TeamRollout([A]).rows_per_episode == 1


@pytest.mark.parametrize(
    ("team", "message"),
    [
        ([{"name": "a", "promt": "x"}], r"role 0 \(a\) has a key 'promt', .* Did you mean 'prompt'\?"),
        ([{"name": "a"}], r"role 0 \(a\) needs a key 'prompt'; it has \['name'\]"),
        ([{"prompt": "x"}], r"role 0 needs a key 'name'"),
        (["a"], "role 0 must be a mapping with the keys name and prompt, got 'a'"),
        ([], "must be a list of roles"),
        ([{"name": "a", "prompt": "x", "temperature": "hot"}], r"role 0 \(a\): .*temperature must be .* got 'hot'"),
        ([{"name": "a", "prompt": "x"}] * 2, r"team: The roles \['a'\] are there more than once"),
        ("solver_cheker", "team: There is no team 'solver_cheker'. Did you mean solver_checker"),
        ("nowhere/team.yaml", "team: there is no file 'nowhere/team.yaml'"),
    ],
)
def test_load_team_refuses(team, message):
    with pytest.raises(ValueError, match=message):
        load_team(team)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roles: []", r"needs a key 'team' .* it has the keys \['roles'\]"),
        ("- name: a", "needs a key 'team'"),
        ("team: {", "is no YAML"),
        ("team: []\nrounds: 2", r"has the keys \['rounds'\] beside 'team'.*--team_rounds"),
        ("team: {name: a}", "must be a list of roles, got {'name': 'a'}"),
        ("", "needs a key 'team' .* it holds None"),
    ],
)
def test_load_team_refuses_a_file(text, message, tmp_path):
    path = tmp_path / "team.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_team(path)
    assert str(path) in str(error.value)


def test_load_team_from_a_file_and_a_list(tmp_path):
    roles = [{"name": "a", "prompt": "{prompt}", "temperature": 0.5}, {"name": "b", "prompt": "{messages[a]}"}]
    (tmp_path / "mine.yaml").write_text(
        "team:\n  - {name: a, prompt: '{prompt}', temperature: 0.5}\n  - {name: b, prompt: '{messages[a]}'}\n"
    )
    expected = (Role("a", "{prompt}", temperature=0.5), Role("b", "{messages[a]}"))
    for team in (load_team(roles, 2), load_team(str(tmp_path / "mine.yaml"), 2)):
        assert (team.roles, team.rounds) == (expected, 2)


@pytest.mark.parametrize("name", ["solver_checker", "halves"])
def test_shipped_teams(name):
    team = load_team(name)
    assert len(team.roles) == 2 and all("prompt" in fields_of(role.prompt) for role in team.roles)
    assert load_team(f"{name}.yaml").roles == team.roles
