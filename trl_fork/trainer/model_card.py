"""The model card of a run: the model, the method, the data and the results."""

import json
import re
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..credit import Chain
from ..data.prompt_file import find_prompt
from .objective_checks import BALANCE_FIELDS


TEMPLATE = Path(__file__).with_name("model_card.md")

# The settings on the card. `training_args.bin` has all of them.
SETTINGS = (
    "entropy_threshold_scope",
    "loss_denominator",
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "beta",
    "dynamic_sampling",
    "num_generations",
    "generation_batch_size",
    "steps_per_generation",
    "max_completion_length",
    "temperature",
    "learning_rate",
    "seed",
)
# Of a run of trajectory balance, in the place of those that it does not read.
BALANCE_SETTINGS = ("objective", *BALANCE_FIELDS)
_UNREAD_BY_BALANCE = ("loss_type", "epsilon", "epsilon_high", "delta")
LOOP_SETTINGS = ("loop_credit", "loop_credit_power")  # of a run of RLTT
PACKAGES = ("trl_fork", "trl", "transformers", "torch", "datasets", "tokenizers")

CITATION = textwrap.dedent("""\
    @inproceedings{wang2025beyond,
        title     = {{Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning
                     for LLM Reasoning}},
        author    = {Shenzhi Wang and Le Yu and Chang Gao and Chujie Zheng and others},
        year      = 2025,
        booktitle = {Advances in Neural Information Processing Systems},
        eprint    = {arXiv:2506.01939},
    }""")
BALANCE_CITATION = textwrap.dedent("""\
    @article{zhu2025flowrl,
        title  = {{FlowRL: Matching Reward Distributions for LLM Reasoning}},
        author = {Xuekai Zhu and others},
        year   = 2025,
        eprint = {arXiv:2509.15207},
    }""")
OTHER_CITATIONS = textwrap.dedent("""\
    @article{yu2025dapo,
        title  = {{DAPO: An Open-Source LLM Reinforcement Learning System at Scale}},
        author = {Qiying Yu and Zheng Zhang and Ruofei Zhu and others},
        year   = 2025,
        eprint = {arXiv:2503.14476},
    }

    @article{shao2024deepseekmath,
        title  = {{DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models}},
        author = {Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Mingchuan Zhang and
                  Y. K. Li and Y. Wu and Daya Guo},
        year   = 2024,
        eprint = {arXiv:2402.03300},
    }

    @software{vonwerra2020trl,
        title  = {{TRL: Transformers Reinforcement Learning}},
        author = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and
                  Thrush, Tristan and Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and
                  Gallouédec, Quentin},
        url    = {https://github.com/huggingface/trl},
        year   = {2020},
    }""")


def build_model_card(
    args,
    credit: Chain | None,
    *,
    model_name: str,
    repo_id: str | None,
    base_model: str | None,
    datasets: list[str],
    tags: list[str],
    is_adapter: bool,
    has_chat_template: bool,
    steps: int,
) -> ModelCard:
    """
    Build the card of the model in `args.output_dir`. It includes `results.json`, `training.png` and the prompt of the
    training if they exist.

    Args:
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        credit ([`~credit.Chain`], *optional*): Its credit rules; `None` where every token had weight 1.
        model_name (`str`): Title of the card.
        repo_id (`str`, *optional*): `user/name` on the Hub; the output directory before there is one.
        base_model (`str`, *optional*): Hub name of the model that was trained.
        datasets (`list[str]`): Hub names of the data sets.
        tags (`list[str]`): Tags.
        is_adapter (`bool`): Whether the model is a PEFT adapter.
        has_chat_template (`bool`): Whether prompts are conversations.
        steps (`int`): Optimizer steps that were done.

    Returns:
        [`~huggingface_hub.ModelCard`].
    """
    output_dir = Path(args.output_dir)
    columns, results = read_results(output_dir / "results.json")
    example = example_prompt(output_dir, has_chat_template)
    kwargs = args.chat_template_kwargs if isinstance(example, list) else None
    balance = args.objective == "trajectory_balance"
    names = (
        [*BALANCE_SETTINGS, *(name for name in SETTINGS if name not in _UNREAD_BY_BALANCE)] if balance else SETTINGS
    )
    data = ModelCardData(
        base_model=base_model,
        datasets=datasets or None,
        library_name="peft" if is_adapter else "transformers",
        model_name=model_name,
        pipeline_tag="text-generation",
        tags=["generated_from_trainer", *sorted(set(tags))],
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=_text(model_name),
        repo_id=repo_id or str(output_dir),
        base_model=base_model,
        datasets=datasets,
        is_adapter=is_adapter,
        example=repr(example),
        # The configuration's value is used, because a run from Python has no file.
        chat_template_kwargs=repr(kwargs) if kwargs else None,
        credit=None if credit is None else _text(credit.in_words),
        partition=args.partition if balance else None,
        columns=list(map(_text, columns)),
        results=[list(map(_text, row)) for row in results],
        curve="training.png" if (output_dir / "training.png").is_file() else None,
        settings={
            name: _code(str(value))
            for name, value in {
                "token_credit": None if credit is None else json.dumps(credit.describe()),
                **({"contrast_instruction": args.contrast_instruction} if args.contrast_instruction else {}),
                **({name: getattr(args, name) for name in LOOP_SETTINGS} if args.loop_credit else {}),
                **{name: getattr(args, name) for name in names},
            }.items()
        },
        steps=steps,
        versions=installed_versions((*PACKAGES, "peft") if is_adapter else PACKAGES),
        citations="\n\n".join([CITATION, *[BALANCE_CITATION] * balance, OTHER_CITATIONS]),
    )


def example_prompt(output_dir: Path, has_chat_template: bool) -> str | list[dict[str, str]]:
    """Prompt of the card's snippet: that of the training, if it is known."""
    found = find_prompt(output_dir) if output_dir.is_dir() else None  # any other name would be looked up on the Hub
    prompt = found[0] if found else {}
    text = prompt.get("prompt_template") or prompt.get("instruction") or "{question} Please reason step by step."
    text = text.replace("{question}", "What is 12 * 34?")
    if "prompt_template" in prompt or not has_chat_template:
        return text
    system = [{"role": "system", "content": prompt["system_prompt"]}] if "system_prompt" in prompt else []
    return [*system, {"role": "user", "content": text}]


def read_results(path: Path) -> tuple[list[str], list[list[str]]]:
    """
    Headings and rows for a table of the results of `trl-fork evaluate`; empty if there are none.

    Accuracies are fractions in the file and percent in the table, as in the paper's Table 2.
    """
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        return [], []
    results = {name: values for name, values in results.items() if "num_problems" in values}
    names = [
        name
        for name in dict.fromkeys(name for values in results.values() for name in values)
        if name.startswith(("avg@", "maj@", "pass@", "mean_length", "truncated_fraction")) and "stderr" not in name
    ]
    rows = [
        [dataset, str(values["num_problems"]), *(_format(name, values.get(name)) for name in names)]
        for dataset, values in results.items()
    ]
    return [name.replace("_", " ") for name in names], rows


def installed_versions(names) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            versions[name] = "not installed as a package"
    return versions


def _text(text: str) -> str:
    """Text for Markdown, outside code: on one line, in one cell of a table, and no markup."""
    return re.sub(r"([\\`<\[|&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text for Markdown as code, on one line and in one cell of a table, whatever backticks it holds."""
    text = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _format(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if name == "mean_length" else f"{100 * value:.1f} %"
