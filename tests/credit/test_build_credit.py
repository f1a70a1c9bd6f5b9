"""From a configuration to a chain, and the messages for those that cannot be built."""

import json
import re
import sys

import pytest
import torch
import yaml

from tests.credit import own_rules
from tests.credit.batches import batch_of_signals
from trl_fork.credit import (
    RULES,
    Chain,
    EntropyAdvantage,
    Interval,
    Proportional,
    Random,
    Rank,
    Rollouts,
    Span,
    Spurious,
    TopFraction,
    UserRule,
    build_credit,
    load_preset,
    preset_names,
)


PRESETS = {
    "forking": Chain((TopFraction(0.2),)),
    "forking_bottom": Chain((TopFraction(0.2, complement=True),)),
    "random": Chain((Random(0.2),)),
    "temporal_forking": Chain((TopFraction({"linear": [0.01, 1.0, 0.8]}, pool="sequence"),)),
    "temporal_position": Chain(
        (TopFraction({"linear": [0.01, 1.0, 0.8]}, score="position", pool="sequence"),),
    ),
    "temporal_random": Chain((Random({"linear": [0.01, 1.0, 0.8]}, pool="sequence"),)),
    "temporal_advantage": Chain((EntropyAdvantage(0.4, 2.0, {"linear": [0.99, 0.0, 0.8]}),)),
    "entropy_advantage": Chain((EntropyAdvantage(0.4, 2.0),)),
    "pepo": Chain((Proportional("local_entropy", 101, 1.0, "positive"),)),
    "local_forking": Chain((TopFraction(0.2, "local_entropy"),)),
    "gcpo": Chain((Rank("prompt_contrast", 2.1507),)),
    "gmts": Chain((TopFraction(0.2, "gradient_magnitude"),)),
    "stapo": Chain((Spurious(0.2, 0.002),)),
    "rsi": Chain((Interval(0.1, 3.0, "relative_surprisal"),)),
    "nat": Chain((Random(0.5),)),
    "answer_span": Chain((Span(r"Probability:|(?i:answer:)|####|\\boxed", "completion"),)),
    "high_entropy_rollouts": Chain((Rollouts(0.5, "high_entropy_sum", "random"),)),
    "random_rollouts": Chain((Rollouts(0.5, "random", "random"),)),
}


def test_presets():
    assert preset_names() == sorted(PRESETS)
    for name, chain in PRESETS.items():
        assert build_credit(name) == chain
        chain.check_pool("batch")


def test_presets_name_their_source_and_have_a_control(request):
    for name in preset_names():
        text = (request.config.rootpath / "configs" / "credit" / f"{name}.yaml").read_text()
        facts = dict(re.findall(r"^# (Source|Certainty|Ours|Control) +(.+)$", text, flags=re.MULTILINE))
        assert set(facts) == {"Source", "Certainty", "Ours", "Control"} and "arXiv 2" in facts["Source"]
        assert facts["Certainty"].startswith(("code", "full text", "second-hand", "ours"))
        content = yaml.safe_load(text)
        assert content["token_credit"] == load_preset(name) and set(content) <= {
            "token_credit",
            "contrast_instruction",
        }
        controls = [other for other in preset_names() if re.search(rf"\b{other}\b", facts["Control"])]
        assert "all tokens" in facts["Control"] or (controls and name not in controls)


def test_ways_to_write_a_chain():
    expected = Chain((TopFraction(0.5), Random()))
    assert build_credit({"top_fraction": {"fraction": 0.5}, "random": None}) == expected
    assert build_credit([{"top_fraction": {"fraction": 0.5}}, {"random": {}}]) == expected
    assert build_credit(expected) is expected
    assert build_credit(TopFraction(0.5)) == Chain((TopFraction(0.5),))
    assert build_credit(TopFraction) == Chain((TopFraction(),))
    twice = build_credit([{"random": {"fraction": 0.5}}, {"random": {"fraction": 0.1}}])
    assert [rule.fraction(0) for rule in twice.rules] == [0.5, 0.1]
    for name, rule in RULES.items():
        required = {
            "interval": {"low": 0.1, "high": 3.0},
            "span": {"pattern": "a"},
            "spurious": {"entropy_quantile": 0.2},
        }
        assert build_credit({name: required.get(name, {})}) == Chain((rule(**required.get(name, {})),))


def test_rules_of_a_user():
    by_path = build_credit("tests.credit.own_rules.HalfOfAnswer")
    assert by_path == Chain((UserRule(own_rules.HalfOfAnswer(), "tests.credit.own_rules.HalfOfAnswer"),))
    assert by_path == build_credit(own_rules.HalfOfAnswer) == build_credit(own_rules.HalfOfAnswer())
    assert by_path.describe() == [{"tests.credit.own_rules.HalfOfAnswer": {"marker": 7, "fraction": 0.5}}]
    with_parameters = build_credit({"tests.credit.own_rules.HalfOfAnswer": {"marker": 9}})
    assert with_parameters.rules[0].function.marker == 9
    function = build_credit("tests.credit.own_rules.surprisal")
    assert function == build_credit(own_rules.surprisal)
    assert function.describe() == [{"tests.credit.own_rules.surprisal": {}}]
    rule = function.rules[0]
    assert rule.needs == {"entropies", "log_probs", "completion_ids"} and rule.sparse and not rule.trusted
    assert (rule.mass, rule.counted, rule.pool) == ("summed", True, None)
    rule = build_credit("tests.credit.own_rules.long_rows").rules[0]
    assert (rule.needs, rule.sparse, rule.mass) == (frozenset(), False, "from_masks")


def test_a_function_takes_the_pool_if_it_asks_for_it():
    def positional(signals, tokens):
        return tokens.top(signals.entropies, signals.mask, 0.2)

    def optional(signals, pool=None):
        return pool.top(signals.entropies, signals.mask, 0.2)

    def other_default(signals, scale=2.0):
        return torch.full_like(signals.entropies, scale)

    signals = batch_of_signals()
    forking = build_credit("forking")(signals)
    assert torch.equal(build_credit(positional)(signals), forking)
    assert torch.equal(build_credit(optional)(signals), forking)
    assert build_credit(other_default)(signals).max() == 2.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("forkin", "there is no preset 'forkin'. Did you mean 'forking'. Presets: answer_span, entropy_advantage"),
        ("", "there is no preset ''"),
        ({"top_fractoin": {}}, "no rule 'top_fractoin'. Did you mean 'top_fraction'. Rules: top_fraction, random"),
        ({3: {}}, "no rule 3"),
        (
            {"top_fraction": {"fractoin": 0.3}},
            "no parameter 'fractoin'. Did you mean 'fraction'. Its parameters: fract",
        ),
        ({"top_fraction": 0.3}, "the parameters of top_fraction must be a dictionary .*got 0.3"),
        ({"top_fraction": {"fraction": 3}}, r"token_credit: top_fraction: fraction must be in \(0, 1\], got 3"),
        ({"random": {"complement": True}}, "random has no parameter 'complement'. Its parameters: fraction, pool"),
        ({}, "must name at least one rule, got {}"),
        ([], "must name at least one rule"),
        ([{}], "must name at least one rule"),
        (
            ["forking"],
            "each rule of a list is a dictionary.*got 'forking'. It is a preset. .*trl-fork recipes NAME",
        ),
        (["random"], "got 'random'. Write {'random': {}}"),
        ([["pepo"]], r"got \['pepo'\]"),
        ("PEPO", "Did you mean 'pepo'"),
        ({"Random": {}}, "Did you mean 'random'"),
        # What cannot be hashed cannot be looked up
        ({"top_fraction": {"score": ["entropy"]}}, r"score must be one of .*got \['entropy'\]"),
        ({"rank": {"score": {"entropy": None}}}, "score must be one of .*got {'entropy': None}"),
        ({"spurious": {"entropy_quantile": 0.2, "pool": ["batch"]}}, r"pool must be one of .*got \['batch'\]"),
        ({"random": {"pool": {}}}, "pool must be one of .*got {}"),
        # Numbers that YAML reads as texts
        (
            {"top_fraction": {"fraction": "1e-2"}},
            "got '1e-2'. To YAML, a number with an exponent is a text.*write 0.01",
        ),
        ({"random": {"fraction": {"linear": ["1e-2", 1, 0.8]}}}, "must be numbers.*To YAML.*write 0.01"),
        ({"spurious": {"entropy_quantile": 0.2, "probability": "2e-3"}}, "got '2e-3'. To YAML.*write 0.002"),
        ({"interval": {"low": 0.1, "high": "3e0"}}, "got '3e0'. To YAML.*write 3.0"),
        ({"entropy_advantage": {"alpha": "4e-1"}}, "got '4e-1'.*To YAML.*write 0.4"),
        ({"span": {"pattern": "1e3", "missing": "all"}}, "must be 'completion' or 'drop', got 'all'.$"),
        # Backslashes that JSON, YAML or the regular expression has eaten
        ({"span": {"pattern": "\boxed"}}, "has lost a backslash"),
        ({"span": {"pattern": r"\boxed"}}, "has lost a backslash"),
        ({"span": {"pattern": r"####|\boxed"}}, "has lost a backslash"),
        ({"span": {"pattern": "\frac"}}, "has lost a backslash"),
        ([{"span": {"pattern": "4"}}, "pepo"], "got 'pepo'. It is a preset. A preset stands alone"),
        ("pepo,answer_span", "there is no preset 'pepo,answer_span'. A preset stands alone: to combine it, write its"),
        ("pepo + span", "there is no preset 'pepo . span'. A preset stands alone"),
        ("pepo,answer_spam", "there is no preset 'pepo,answer_spam'. Did you mean 'answer_span'"),
        ("all", "there is no preset 'all'. To train on all tokens alike, set top_entropy_quantile=1.0 and leave"),
        (0.2, "must be the name of a preset, a dictionary of rules or a dotted path, got 0.2"),
        (None, "got None"),
        ("no_such_module.Rule", "there is no module 'no_such_module'.*PYTHONPATH"),
        ("tests.credit.own_rules.no.Rule", "there is no module 'tests.credit.own_rules.no'"),
        ("my_rule.yaml", "there is no module 'my_rule'.*YAML file goes under token_credit"),
        (".Rule", "there is no module ''"),
        ("tests.credit.own_rules.Suprisal", "own_rules has no 'Suprisal'. Did you mean 'surprisal'"),
        (
            "tests.credit.own_rules.NOT_A_RULE",
            "own_rules.NOT_A_RULE must be a function of Signals, got int",
        ),
        (
            "tests.credit.own_rules.three_arguments",
            r"tests.credit.own_rules.three_arguments\(signals, pool, more\) must take \(signals\) or",
        ),
        (
            {"tests.credit.own_rules.surprisal": {"scale": 2}},
            "own_rules.surprisal takes no parameters, got {'scale': 2}",
        ),
        ({"tests.credit.own_rules.HalfOfAnswer": {"mark": 2}}, "no parameter 'mark'. Did you mean 'marker'"),
        ("collections.OrderedDict", "not a class whose instances are rules"),
        ("trl_fork.credit.Schedule", "needs a value for shape, start, end, horizon"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        build_credit(spec)
    assert "token_credit" in str(error.value) or "own_rules" in str(error.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"needs": {"entropy"}}, r"rule.needs names \['entropy'\], which are no signals. Did you mean 'entropies'"),
        ({"needs": "logits"}, "rule.needs names .'logits'."),
        ({"mass": "known"}, r"rule.mass must be one of \['from_masks', 'one_per_row', 'summed'\], got 'known'"),
        ({"pool": "all"}, "pool must be one of"),
    ],
)
def test_bad_attributes_of_a_rule(attributes, message):
    def rule(signals):
        return signals.mask

    for name, value in attributes.items():
        setattr(rule, name, value)
    with pytest.raises(ValueError, match=message):
        build_credit(rule)


def test_an_error_inside_a_users_module_is_shown(tmp_path, monkeypatch):
    (tmp_path / "broken_rules.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="importing broken_rules failed: it imports 'a_package_that_is_missing'"):
        build_credit("broken_rules.Rule")
    assert "broken_rules" not in sys.modules


class Plain:
    """A rule that is no dataclass, with a parameter that JSON cannot hold."""

    needs = {"log_probs", "advantages"}

    def __init__(self, k=1, table=None):
        self.k, self.table = k, table

    def __call__(self, signals):
        return -signals.log_probs * self.k


def test_parameters_of_any_rule_are_compared():
    """A resumed run with another parameter would otherwise train on the weights of the old one."""
    first, second = (build_credit({f"{__name__}.Plain": {"k": k}}) for k in (2, 50))
    assert first.describe() == [{f"{__name__}.Plain": {"k": 2}}] != second.describe()
    assert first.needs == {"log_probs"}
    odd = build_credit({f"{__name__}.Plain": {"table": {(1, 2): 3}}})
    assert json.loads(json.dumps(odd.describe())) == [{f"{__name__}.Plain": {"table": "builtins.dict"}}]


def test_presets_and_rules_are_told_apart():
    with pytest.raises(ValueError, match=r"no preset 'top_fraction'\. It is a rule"):
        build_credit("top_fraction")
    with pytest.raises(ValueError, match=r"no rule 'forking'\. It is a preset"):
        build_credit({"forking": {}})
    with pytest.raises(ValueError, match=r"It is a preset\. A preset stands alone: to combine it, write its rules"):
        build_credit({"span": {"pattern": "4"}, "pepo": None})
    with pytest.raises(ValueError, match=r"no preset '0\.5'"):
        build_credit("0.5")
