"""Checks of the names in the configuration of an adapter, which only the loaded model can answer."""

import re
from collections.abc import Callable, Iterable

import torch
from transformers.pytorch_utils import Conv1D

from .._nearest import did_you_mean


ALL_LINEAR = "all-linear"


def add_adapter(get_peft_model: Callable, model, peft_config, **arguments):
    """
    Call PEFT's `get_peft_model`, with errors that name the option and what the model has.

    PEFT refuses names of which none matches, without saying which there are, and passes over a single one that does
    not match.

    Args:
        get_peft_model (`Callable`): PEFT's function.
        model ([`~transformers.PreTrainedModel`]): The model, loaded.
        peft_config ([`~peft.PeftConfig`]): The configuration of the adapter.
        **arguments: Further arguments of the function.

    Raises:
        `ValueError`: for names that match nothing, and for what PEFT refuses itself.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    linear = _linear_modules(model)
    has = f"the linear modules of this {type(model).__name__} are {linear}, and {ALL_LINEAR!r} stands for all of them"
    _check_names(peft_config, "target_modules", modules, linear, has)
    _check_names(peft_config, "target_parameters", parameters, parameters, f"its last one is {parameters[-1]!r}")
    children = [name for name, _ in model.base_model.named_children()]
    _check_names(
        peft_config, "modules_to_save", modules, {*map(_last, modules)}, f"it has {children}, with more inside"
    )
    try:
        return get_peft_model(model, peft_config, **arguments)
    except ValueError as error:
        targets = getattr(peft_config, "target_modules", None)
        targets = sorted(targets) if isinstance(targets, set) else targets
        raise ValueError(
            f"PEFT cannot add this adapter, with lora_target_modules={targets!r} (target_modules of peft_config): "
            f"{str(error).rstrip('.')}. Here {has}."
        ) from error


def _check_names(peft_config, name: str, there: list[str], suggested: Iterable[str], remedy: str) -> None:
    given = getattr(peft_config, name, None)
    if not given or given == ALL_LINEAR:
        return
    if isinstance(given, str):  # PEFT takes a text for a pattern of whole names
        unknown = [] if any(re.fullmatch(given, other) for other in there) else [given]
    else:
        unknown = sorted(part for part in given if not any(f".{other}".endswith(f".{part}") for other in there))
    if unknown:
        kind = "parameters" if name == "target_parameters" else "modules"
        meant = next(filter(None, (did_you_mean(part, suggested) for part in unknown)), ".")
        raise ValueError(
            f"lora_{name} ({name} of peft_config) must name {kind} of the model, got {unknown}, which match none: "
            f"{remedy}{meant}"
        )


def _linear_modules(model) -> list[str]:
    """The last parts of the names of the linear modules, without the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return sorted(
        {
            _last(name)
            for name, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
        }
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
