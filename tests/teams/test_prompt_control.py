"""Prompt control: where it ends with known and with sampled values, and what it refuses."""

import json

import numpy as np
import pytest

from trl_fork.teams import PromptControl, contraction, solve_hqre


PROMPTS = {"solver": ["one", "two", "three"], "checker": ["a", "b"]}
PAYOFF = np.array([[0.9, 0.2], [0.1, 0.7], [0.4, 0.5]])
TAUS = {"solver": 0.2, "checker": 0.4}


def control(**options):
    return PromptControl(**{"prompts": PROMPTS, "temperatures": TAUS, "step_size": 1.0, **options})


def exact_values(policies):
    return {"solver": PAYOFF @ policies["checker"], "checker": PAYOFF.T @ policies["solver"]}


def returns_of(choices):
    return PAYOFF[choices["solver"], choices["checker"]]


@pytest.mark.parametrize(
    "magnets", [None, {"solver": [0.2, 0.5, 0.3], "checker": [0.1, 0.9]}, {"checker": [0.9, 0.1]}]
)
def test_with_exact_values_it_ends_in_the_equilibrium(magnets):
    mine = control(magnets=magnets)
    for _ in range(300):
        mine.step(exact_values(mine.policies))
    priors = None if magnets is None else [magnets.get("solver", np.full(3, 1 / 3)), magnets["checker"]]
    want = solve_hqre(PAYOFF, [0.2, 0.4], magnets=priors)
    assert want.converged and len(mine.history) == 301
    for got, policy in zip(mine.policies.values(), want.policies, strict=True):
        assert got == pytest.approx(policy, abs=1e-8)
    assert (contraction(mine.history[:20])[5:] < 1).all()


def test_with_sampled_returns_it_stays_near_the_equilibrium():
    """
    Returns of 0 or 1 with the payoffs as probabilities. A value is the mean of 200 of them, so its standard error is
    at most 0.5 / sqrt(200) = 0.035, and that of a log-ratio of two prompts of a role is sqrt(2) times that over tau,
    were every step to start at the magnet. The mean over 200 steps is nearer.
    """
    mine, coins = control(seed=3), np.random.default_rng(0)
    for _ in range(230):
        choices = mine.sample(5 * 200)
        mine.update(choices, (coins.random(1000) < returns_of(choices)).astype(float))
    want = solve_hqre(PAYOFF, [*TAUS.values()])
    log_ratios = {role: np.log([policies[role] for policies in mine.history[30:]]) for role in PROMPTS}
    for (role, tau), policy in zip(TAUS.items(), want.policies, strict=True):
        got = (log_ratios[role] - log_ratios[role][:, :1]).mean(0)
        error = np.sqrt(2) * 0.5 / np.sqrt(200) / tau
        assert got == pytest.approx(np.log(policy / policy[0]), abs=error)


def test_a_round_measures_every_prompt_and_the_others_follow_their_policies():
    mine = control(magnets={"solver": [0.98, 0.02, 0.0], "checker": [0.25, 0.75]}, seed=1)
    choices = mine.sample(5 * 4000)
    assert set(choices) == set(PROMPTS) and all(len(rows) == 20_000 for rows in choices.values())
    for block in range(5):
        rows = slice(4000 * block, 4000 * (block + 1))
        if block < 3:
            assert (choices["solver"][rows] == block).all()
            assert choices["checker"][rows].mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.1875 / 4000))
        else:
            assert (choices["checker"][rows] == block - 3).all()
            share = np.bincount(choices["solver"][rows], minlength=3) / 4000
            assert share == pytest.approx([0.98, 0.02, 0.0], abs=4 * np.sqrt(0.02 / 4000))
    values = mine.action_values(choices, returns_of(choices))
    for role, want in exact_values(mine.policies).items():
        assert values[role] == pytest.approx(want, abs=4 * 0.5 / np.sqrt(4000))


def test_values_are_means_of_blocks_by_hand():
    mine = PromptControl({"a": ["x", "y"], "b": ["z"]}, 1.0, 1.0)
    choices = mine.sample(6)
    assert choices["a"].tolist()[:4] == [0, 0, 1, 1] and choices["b"].tolist() == [0] * 6
    values = mine.action_values(choices, [1, 0, 1, 1, 0, 0])
    assert {role: value.tolist() for role, value in values.items()} == {"a": [0.5, 1.0], "b": [0.0]}
    mine.update(choices, [1, 0, 1, 1, 0, 0])
    # eta = tau = 1 from the uniform magnet: log pi+ = Q / 2, up to a constant
    weights = np.exp([0.25, 0.5])
    assert mine.policies["a"] == pytest.approx(weights / weights.sum())
    assert mine.policies["b"].tolist() == [1.0]


def test_seeds_differ_and_repeat():
    first, again, other = (control(seed=seed).sample(50) for seed in (1, 1, 2))
    assert all((first[role] == again[role]).all() for role in PROMPTS)
    assert any((first[role] != other[role]).any() for role in PROMPTS)


def test_it_goes_on_from_its_state_through_json():
    whole, cut = control(seed=5), control(seed=5)
    for number in range(6):
        if number == 3:
            state = json.loads(json.dumps(cut.state_dict()))
            cut = control(seed=99)
            cut.load_state_dict(state)
        for each in (whole, cut):
            choices = each.sample(25)
            each.update(choices, returns_of(choices))
    assert len(cut.history) == 7
    for one, two in zip(whole.history, cut.history, strict=True):
        assert all(one[role].tolist() == two[role].tolist() for role in PROMPTS)


def test_states_that_are_none_are_named_and_change_nothing():
    mine = control(seed=1)
    mine.step(exact_values(mine.policies))
    state, before = mine.state_dict(), mine.policies
    row = state["history"][-1]
    for change, message in (
        ({"history": []}, "history must be a list, the policies after each step, got "),
        ({"history": None}, "history must be a list"),
        ({"history": [None]}, r"history\[0\] must be a dictionary by role"),
        ({"history": [row, {**row, "checker": None}]}, r"history\[1\]: role 'checker': must be numbers"),
        ({"history": [{**row, "checker": ["-1", "-1"]}]}, "role 'checker': must be numbers"),
        ({"history": [{**row, "checker": [row["checker"]]}]}, r"role 'checker': must have the shape \(2,\)"),
        ({"history": [{**row, "checker": [0.5, 0.5]}]}, "role 'checker': must be the logarithms of probabilities"),
        ({"history": [{"checker": row["checker"]}]}, "role 'solver' is missing"),
        ({"settings": None}, "settings must be a dictionary, got None"),
        ({"settings": {}}, "prompts was None when the state was saved"),
        ({"generator": None}, "generator must be the state of numpy's PCG64, got None"),
        ({"generator": {}}, "generator must be the state"),
        ({"generator": {**state["generator"], "state": {"state": "x", "inc": 1}}}, "generator must be the state"),
    ):
        with pytest.raises(ValueError, match=message):
            mine.load_state_dict({**state, **change})
    with pytest.raises(ValueError, match="state must be the result of `state_dict`, got None"):
        mine.load_state_dict(None)
    assert mine.state_dict() == state and all((mine.policies[role] == before[role]).all() for role in PROMPTS)
    # Rounded by another program: still a policy to choose by
    mine.load_state_dict({**state, "history": [{role: np.round(log, 7).tolist() for role, log in row.items()}]})
    assert len(mine.sample(5)["solver"]) == 5


def test_a_state_is_a_copy():
    mine = control()
    mine.state_dict()["settings"]["temperatures"]["solver"] = 99.0
    assert mine.temperatures == TAUS


def test_a_prompt_comes_back_from_a_probability_that_no_float_has():
    mine = PromptControl({"a": ["x", "y", "z"]}, 0.1, 1.0, magnets={"a": [0.6, 0.4, 0.0]})
    for _ in range(60):
        mine.step({"a": [100.0, 0.0, 0.0]})
    assert mine.policies["a"].tolist() == [1.0, 0.0, 0.0]
    again = PromptControl({"a": ["x", "y", "z"]}, 0.1, 1.0, magnets={"a": [0.6, 0.4, 0.0]})
    again.load_state_dict(json.loads(json.dumps(mine.state_dict(), allow_nan=False)))
    for _ in range(500):
        again.step({"a": [0.0, 100.0, 0.0]})
    assert again.policies["a"].tolist() == [0.0, 1.0, 0.0]
    for _ in range(500):
        again.step({"a": [0.0, 0.1, 5.0]})
    weights = np.array([0.6, 0.4 * np.e, 0.0])
    assert again.policies["a"] == pytest.approx(weights / weights.sum())


@pytest.mark.parametrize(("tau", "eta"), [(1e200, 1e200), (0.0, 1e308), (1e-300, 1e300)])
def test_extreme_settings_and_returns_give_policies(tau, eta):
    mine = PromptControl({"a": ["x", "y"]}, tau, eta)
    for returns in ([1e308, 1e308, -1e308, -1e308], [1.0, 1.0, 0.0, 0.0]):
        values = mine.action_values({"a": [0, 0, 1, 1]}, returns)["a"]
        assert values.tolist() == [returns[0], returns[2]]
        mine.step({"a": values})
        policy = mine.policies["a"]
        assert np.isfinite(policy).all() and policy.sum() == pytest.approx(1) and policy[0] >= 0.5
    assert mine.sample(4)["a"].tolist() == [0, 0, 1, 1]
    json.dumps(mine.state_dict(), allow_nan=False)


def test_a_policy_that_is_changed_outside_is_a_copy():
    mine = control()
    mine.policies["solver"][:] = 0
    mine.history[0]["solver"][:] = 0
    assert mine.policies["solver"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": {}}, "prompts must be a dictionary with the prompts of each role"),
        ({"prompts": {"a": "a text"}}, "prompts: role 'a': must be a list of texts, at least one, got 'a text'"),
        ({"prompts": {"a": []}}, "role 'a': must be a list of texts, at least one"),
        ({"prompts": {"a": ["x", "x"]}, "temperatures": 1.0}, "role 'a': 'x' occurs twice"),
        ({"temperatures": {"solver": 1.0}}, "temperatures: role 'checker' is missing"),
        ({"temperatures": {**TAUS, "judge": 1.0}}, "temperatures: there is no role 'judge'"),
        ({"temperatures": {**TAUS, "checker": -1.0}}, "temperatures: role 'checker': must be a finite number"),
        ({"temperatures": float("nan")}, "temperatures: role 'solver': must be a finite number, at least 0, got nan"),
        ({"step_size": 0.0}, "step_size must be a finite number above 0"),
        ({"prompts": {"a": None}}, "role 'a': must be a list of texts, at least one, got None"),
        ({"prompts": {"a": {"x": 1}}}, "role 'a': must be a list of texts"),
        ({"prompts": {1: ["x"]}, "temperatures": 1.0}, "the name of a role must be a text, got 1"),
        ({"temperatures": True}, "temperatures: role 'solver': must be a finite number, at least 0, got True"),
        ({"temperatures": 10**400}, "temperatures: role 'solver': must be a finite number"),
        ({"magnets": [[0.5, 0.5]]}, "magnets must be a dictionary by role"),
        ({"magnets": {"checker": ["0.5", "0.5"]}}, "magnets: role 'checker': must be numbers.*, got '0.5'"),
        *[({"seed": seed}, "seed must be a whole number, at least 0") for seed in (None, True, "1", -1, 1.0)],
        ({"magnets": {"judge": [1.0]}}, "magnets: there is no role 'judge'"),
        ({"magnets": {"checker": [0.5, 0.6]}}, "magnets: role 'checker': must sum to 1 over the actions, got 1.1"),
        ({"magnets": {"checker": [0.5, 0.25, 0.25]}}, r"magnets: role 'checker': must have the shape \(2,\)"),
    ],
)
def test_settings_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        control(**options)


def changed(choices, role, row, value):
    return {**choices, role: [value if number == row else old for number, old in enumerate(choices[role])]}


def test_rounds_that_do_not_fit_are_named_and_change_nothing():
    mine = control()
    choices, returns = mine.sample(10), np.ones(10)
    for call, message in (
        (lambda: mine.sample(7), "num_episodes: the number of episodes must be a multiple of 5, .* got 7"),
        (lambda: mine.sample(0), "num_episodes must be a whole number, at least 1, got 0"),
        (lambda: mine.update(choices, returns[:7]), "returns: the number of episodes must be a multiple of 5"),
        (lambda: mine.update(choices, returns[:5]), "choices: role 'solver': must have a prompt for each of the 5"),
        (lambda: mine.update(choices, [*returns[:9], np.nan]), r"returns must be finite, got nan at \[9\]"),
        (lambda: mine.update(choices, [*returns[:9], None]), "returns must be numbers.*, got None"),
        (lambda: mine.update(choices, [*returns[:9], True]), "returns must be numbers.*, got True"),
        (lambda: mine.update(choices, [*returns[:9], "1"]), "returns must be numbers.*, got '1'"),
        (lambda: mine.update(None, returns), "choices must be a dictionary by role, got None"),
        (
            lambda: mine.update(choices, [returns]),
            r"returns must have one number per episode, got the shape \(1, 10\)",
        ),
        (lambda: mine.update({"solver": choices["solver"]}, returns), "choices: role 'checker' is missing"),
        (
            lambda: mine.update(changed(choices, "checker", 4, 2), returns),
            "choices: role 'checker': row 4: 2 is not the number of a prompt, which are 0 to 1",
        ),
        (
            lambda: mine.update(changed(choices, "solver", 3, 2), returns),
            "choices: role 'solver': row 3: this episode measures prompt 1, got 2. Pass the choices in the order",
        ),
        (lambda: mine.step({"solver": [1.0, 0.0, 0.0]}), "values: role 'checker' is missing"),
        (lambda: mine.step({"solver": [1.0], "checker": [1.0, 0.0]}), "values: role 'solver': must have a value for"),
        (lambda: mine.load_state_dict({}), "state has no"),
        (lambda: mine.load_state_dict(control(step_size=2.0).state_dict()), "step_size was 2.0 .* and is 1.0 now"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert len(mine.history) == 1
