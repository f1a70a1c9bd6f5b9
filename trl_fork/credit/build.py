"""From the configuration's `token_credit` to a chain of rules."""

import inspect
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from .._imports import import_module_of_user
from .chain import Chain
from .entropy_advantage import EntropyAdvantage
from .interval import Interval
from .presets import load_preset, preset_names
from .proportional import Proportional
from .random_fraction import Random
from .rank import Rank
from .rollouts import Rollouts
from .span import Span
from .spurious import Spurious
from .top_fraction import TopFraction
from .user_rules import UserRule, as_rule


_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.\w+|\.\w+")
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")

RULES: dict[str, type] = {
    rule.name: rule
    for rule in (TopFraction, Random, Proportional, Rank, Interval, Span, EntropyAdvantage, Spurious, Rollouts)
}

_IN_A_CHAIN = (
    "A preset stands alone: to combine it, write its rules into the chain, which `trl-fork recipes NAME` prints."
)


def build_credit(spec: str | dict | list | Callable) -> Chain:
    """
    Build the chain that a configuration describes.

    Args:
        spec (`str`, `dict`, `list` or `Callable`):
            A dictionary `{rule: {parameter: value}}` is a chain in its order. Its keys are those of `RULES`, or dotted
            paths of a user's rules. A list of such dictionaries may hold a rule twice. A text is the name of a preset
            or, with a dot in it, the path of a user's function or class, `my_package.MyRule`. A function takes
            [`Signals`] and returns weights.

    Returns:
        [`Chain`].

    Raises:
        `ValueError`: for an unknown name, parameter or value, with those that exist.

    Example:
        ```python
        >>> from trl_fork.credit import build_credit
        >>> build_credit({"top_fraction": {"fraction": 0.5, "score": "position", "pool": "sequence"}}).mass
        'from_masks'
        ```
    """
    if isinstance(spec, Chain):
        return spec
    if isinstance(spec, str):
        if _PATH.fullmatch(spec):
            return Chain((_user_rule(spec, {}),))
        if spec not in preset_names():
            if spec in RULES:
                meant = f" It is a rule, and stands in a chain: {{{spec!r}: {{}}}}."
            elif spec == "all":
                meant = " To train on all tokens alike, set top_entropy_quantile=1.0 and leave token_credit out."
            elif len(words := re.findall(r"[^\s,+]+", spec)) > 1 and {*words} <= {*preset_names(), *RULES}:
                meant = " " + _IN_A_CHAIN
            else:
                meant = _suggestion(spec, preset_names())
            raise ValueError(
                f"token_credit: there is no preset {spec!r}.{meant} "
                f"Presets: {', '.join(preset_names())}. A chain is a dictionary such as "
                "{'top_fraction': {'fraction': 0.5}}; a rule of your own is named by its dotted path, such as "
                "my_package.MyRule."
            )
        return build_credit(load_preset(spec))
    if isinstance(spec, (dict, list)):
        links = spec if isinstance(spec, list) else [spec]
        for link in links:
            if not isinstance(link, dict):
                meant = ""
                if link in list(RULES):
                    meant = f" Write {{{link!r}: {{}}}} for its defaults."
                elif link in preset_names():
                    meant = f" It is a preset. {_IN_A_CHAIN}"
                raise ValueError(
                    f"token_credit: each rule of a list is a dictionary {{rule: {{parameter: value}}}}, got {link!r}."
                    f"{meant} Rules: {', '.join(RULES)}."
                )
        if not all(links) or not links:
            raise ValueError(
                f"token_credit must name at least one rule, got {spec!r}. Write {{rule: {{parameter: value}}}} with "
                f"rules of {list(RULES)}, or leave it out to use top_entropy_quantile and token_selection."
            )
        return Chain(tuple(_rule(name, parameters) for link in links for name, parameters in link.items()))
    if isinstance(spec, type):
        return Chain((as_rule(_instance(spec, spec.__qualname__, {})),))
    if callable(spec):
        return Chain((as_rule(spec),))
    raise ValueError(
        f"token_credit must be the name of a preset, a dictionary of rules or a dotted path, got {spec!r}. Presets: "
        f"{', '.join(preset_names())}."
    )


def _rule(name: Any, parameters: Any):
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise ValueError(
            f"token_credit: the parameters of {name} must be a dictionary {{parameter: value}}, got {parameters!r}."
        )
    if isinstance(name, str) and "." in name:
        return _user_rule(name, parameters)
    if name not in RULES:
        meant = f" It is a preset. {_IN_A_CHAIN}" if name in preset_names() else _suggestion(name, RULES)
        raise ValueError(
            f"token_credit: there is no rule {name!r}.{meant} Rules: {', '.join(RULES)}; a rule of "
            "your own is named by its dotted path, such as my_package.MyRule."
        )
    return _instance(RULES[name], name, parameters)


def _instance(rule: Callable, name: str, parameters: dict):
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):
        raise ValueError(f"token_credit: {name} is not a class whose instances are rules.") from None
    known = list(signature.parameters)
    any_name = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for parameter in parameters:
        if parameter not in known and not any_name:
            raise ValueError(
                f"token_credit: {name} has no parameter {parameter!r}.{_suggestion(parameter, known)} Its parameters: "
                f"{', '.join(known) or 'none'}."
            )
    missing = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in parameters
    ]
    if missing:
        raise ValueError(f"token_credit: {name} needs a value for {', '.join(missing)}. Give it in a dictionary.")
    try:
        return rule(**parameters)
    except ValueError as error:
        raise ValueError(f"token_credit: {name}: {error}{_hint_of_yaml(parameters, str(error))}") from error


def _hint_of_yaml(values: Any, message: str) -> str:
    """What to write for a number that YAML has read as a text, if a message complains of one."""
    if isinstance(values, (dict, list, tuple)):
        inner = values.values() if isinstance(values, dict) else values
        return next(filter(None, (_hint_of_yaml(value, message) for value in inner)), "")
    if not isinstance(values, str) or not _EXPONENT.fullmatch(values) or repr(values) not in message:
        return ""
    return f" To YAML, a number with an exponent is a text unless it has a dot and a sign: write {float(values)}."


def _user_rule(path: str, parameters: dict) -> UserRule:
    module_name, _, attribute = path.rpartition(".")
    try:
        module = import_module_of_user(module_name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:  # the last two for an empty name, or a relative one
        missing = getattr(error, "name", None)
        if missing is not None and not f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"token_credit={path!r}: importing {module_name} failed: it imports {missing!r}, which is not there."
            ) from error
        raise ValueError(
            f"token_credit={path!r}: there is no module {module_name!r}. Name a rule of yours as "
            "module.function or package.module.Class, in a package that is installed, in the working directory or in "
            "a folder of PYTHONPATH; a chain of a YAML file goes under token_credit in the file of the run."
        ) from error
    except Exception as error:
        raise ValueError(
            f"token_credit={path!r}: importing {module_name} failed ({type(error).__name__}: {error})."
        ) from error
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ValueError(f"token_credit={path!r}: {module_name} has no {attribute!r}.{_suggestion(attribute, names)}")
    rule = getattr(module, attribute)
    if isinstance(rule, type):
        rule = _instance(rule, path, parameters)
    elif parameters:
        raise ValueError(
            f"token_credit: {path} takes no parameters, got {parameters}: it is a {type(rule).__name__}. Write a "
            "class whose instances are rules."
        )
    return UserRule(rule, path, parameters)


def _suggestion(name: Any, known) -> str:
    close = get_close_matches(str(name), list(known), n=1) or get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
