"""Scores of a model at each token of a response, for [`~report.page.write_report_page`]."""

import inspect

import torch
from accelerate.utils import is_peft_model

from ..entropy import rows_per_chunk, token_entropy
from .marks import token_texts
from .page import ReportResponse


@torch.no_grad()
def score_response(
    model: torch.nn.Module,
    tokenizer,
    prompt_ids: list[int],
    completion_ids: list[int],
    *,
    temperature: float = 1.0,
    num_alternatives: int = 5,
    entropies: list[float] | None = None,
    mask: list[bool] | None = None,
    correct: bool | None = None,
    label: str = "",
    weights: list[float] | None = None,
) -> ReportResponse:
    """
    Score one response in one forward pass.

    The pass holds the logits of all of its tokens: 0.6 GB for 2,048 tokens of a 150k-word vocabulary in bfloat16.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt_ids, completion_ids (`list[int]`):
            At least one token of prompt, and the tokens to score, without padding.
        temperature (`float`, *optional*, defaults to `1.0`):
            Decoding temperature.
        num_alternatives (`int`, *optional*, defaults to `5`):
            Number of most probable tokens to name at each position.
        entropies (`list[float]`, *optional*):
            Token entropies in nats if they are known already; computed here otherwise.
        mask (`list[bool]`, *optional*):
            Tokens that the model has written; all by default. The others, such as a tool's output, get entropy 0,
            probability 1 and no alternatives.
        correct, label, weights (*optional*):
            Fields of [`~report.page.ReportResponse`].

    Returns:
        [`~report.page.ReportResponse`]
    """
    device = next(model.parameters()).device
    input_ids = torch.tensor([prompt_ids + completion_ids], device=device)
    length = len(completion_ids)
    # The model's own arguments are read, as wrappers accept anything.
    inner = model.get_base_model() if is_peft_model(model) else model  # type: ignore[operator]
    keeps = "logits_to_keep" in inspect.signature(type(inner).forward).parameters
    logits = model(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        use_cache=False,
        **({"logits_to_keep": length + 1} if keeps else {}),
    ).logits[0, -length - 1 : -1]  # (length, vocabulary): row t predicts token t

    if entropies is None:
        entropies = token_entropy(logits, temperature).tolist()
    probabilities, best, best_ids = [], [], []
    rows = rows_per_chunk(logits.shape[-1])
    for chunk, drawn in zip(logits.split(rows), input_ids[0, -length:].split(rows), strict=True):
        distribution = (chunk.float() / temperature).softmax(-1)
        probabilities += distribution.gather(1, drawn[:, None])[:, 0].tolist()
        top = distribution.topk(min(num_alternatives, distribution.shape[-1]))
        best += top.values.tolist()
        best_ids += top.indices.tolist()
    if mask is None:
        mask = [True] * length
    return ReportResponse(
        prompt=tokenizer.decode(prompt_ids),
        tokens=token_texts(tokenizer, completion_ids),
        entropies=[value if written else 0.0 for value, written in zip(entropies, mask, strict=True)],
        probabilities=[value if written else 1.0 for value, written in zip(probabilities, mask, strict=True)],
        alternatives=[
            list(zip(token_texts(tokenizer, ids), values, strict=True)) if written else []
            for ids, values, written in zip(best_ids, best, mask, strict=True)
        ],
        correct=correct,
        label=label,
        weights=weights,
    )
