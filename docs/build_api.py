"""
Write docs/api.md from signatures and docstrings.

    python docs/build_api.py
"""

import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType

import trl_fork


PAGE = Path(__file__).with_name("api.md")
# What may be relied on: names listed by the package, and of its modules what README and docs import.
PUBLIC = {
    "trl_fork": trl_fork.__all__,
    "trl_fork.grading": ["accuracy_reward", "reasoning_accuracy_reward", "GradingPool", "Verdict"],
    "trl_fork.rewards": ["get_reward_function"],
    "trl_fork.data": ["load_training_set", "load_benchmark", "to_prompt_and_solution"],
    "trl_fork.callbacks": ["ForkReportCallback", "GenerationCallback"],
    "trl_fork.telemetry": ["SummaryCallback"],
    "trl_fork.report": ["plot_training"],
    "trl_fork.report_page": ["write_report_page", "ReportResponse"],
    "trl_fork.responses": ["score_response"],
    "trl_fork.scoring": ["score_completions", "TokenScores"],
    "trl_fork.response_files": ["read_responses", "Response"],
    "trl_fork.evaluation": ["compare", "Difference", "pass_at_k"],
    "trl_fork.analysis": ["distribution", "overlap", "change_by_percentile", "high_entropy_sum"],
}
HEADER = """# API

What may be relied on; everything else may change. Written from the docstrings by `python docs/build_api.py`.
"""
_SECTION = re.compile(r"(Args|Parameters|Attributes|Returns|Yields|Raises|Example):")
_REFERENCE = re.compile(r"\[`~?(?:[a-z_]\w*\.)*([\w.]+)`\]")  # doc-builder's [`~module.Name`]


def render() -> str:
    parts = [HEADER]
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        parts.append(f"## {module_name}\n")
        for name in names:
            thing = getattr(module, name)
            parts.append(f"### {name}\n")
            parts.append(f"{signature(name, thing)}\n\n{to_markdown(thing)}\n")
            if inspect.isclass(thing):
                parts += [
                    f"{signature(f'.{key}', method)}\n\n{to_markdown(method)}\n" for key, method in methods(thing)
                ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def methods(cls: type) -> list[tuple[str, object]]:
    """The documented public methods that this package has written, those of the trainer's mixins among them."""
    found = {}
    for base in cls.__mro__:
        for name, value in vars(base).items() if base is cls or base.__name__.endswith("Mixin") else ():
            if isinstance(value, (FunctionType, property)) and not name.startswith("_") and value.__doc__:
                found.setdefault(name, value)
    return sorted(found.items())


def signature(name: str, thing) -> str:
    """Names and defaults. The types stand in the docstring, and the two hundred fields of a configuration in TRL's."""
    if isinstance(thing, property):
        return f"`{name}`"
    if inspect.isclass(thing) and issubclass(thing, trl_fork.ForkingGRPOConfig):
        return f"`class {name}(GRPOConfig)`"
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for key, parameter in inspect.signature(thing).parameters.items()
        if key != "self"
    ]
    plain = str(inspect.Signature(parameters)).replace("<factory>", "...")
    return f"`{'class ' if inspect.isclass(thing) else ''}{name}{plain}`"


def to_markdown(thing) -> str:
    """A docstring in TRL's grammar: sections become bold words, their entries lists, references code."""
    text = inspect.getdoc(thing)
    if not text or (inspect.isclass(thing) and "__doc__" not in vars(thing)):
        raise ValueError(f"{thing!r} is public and has no docstring.")
    lines, section, result = text.splitlines(), "", []
    for line in lines:
        if match := _SECTION.fullmatch(line):
            section = match[1]
            result += [f"**{section}**", ""]
        elif section == "Example" or not line.startswith("    "):
            result.append(line.removeprefix("    "))
        else:
            result.append(_entry(line.removeprefix("    "), section))
    return _REFERENCE.sub(r"`\1`", "\n".join(result))


def _entry(line: str, section: str) -> str:
    if line.startswith("> "):  # a group of parameters
        return f"*{line[2:]}*"
    if section in ("Returns", "Yields"):
        return line
    if line.startswith(" ") or (section == "Raises" and not line.startswith(("`", "["))):
        return f"  {line.strip()}"
    return "- " + re.sub(r"^([\w*]+(?:, [\w*]+)*) \(", lambda match: f"**{match[1]}** (", line)


if __name__ == "__main__":
    PAGE.write_text(render())
