"""
The LM head, computed for the rows that matter only.

TRL's fused head projects every completion token to the vocabulary, in the forward pass and again in the backward pass.
A token outside the selection is multiplied by zero afterwards, so the gradient of its row is exactly zero: the
backward can skip it, and so can the forward if the selection is known beforehand. The kernels, on Triton and on other
devices, are TRL's own; they get fewer rows.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace

import torch

from ._trl import ChunkedLogProbFunction, fused_head_function


# Attributes of its context that TRL's backward reads beside the saved tensors.
_CONTEXT = ("compute_dtype", "chunk_size", "kernel_args", "needs_input_grad")

rows_projected = {"forward": 0, "backward": 0}  # rows in all calls so far, by which tests see that the sparse path ran


class RowSparseLogProbFunction(ChunkedLogProbFunction):
    """
    `ChunkedLogProbFunction` whose backward visits only rows with a nonzero upstream gradient.

    It equals the function it derives from, in value and gradient. A row's contribution to every gradient is linear in
    the upstream gradients of its log-probability and of its entropy; where both are zero, the row adds nothing to the
    gradients of weight and bias, and its own is zero. The backward is TRL's, called with the other rows. It gathers
    a partitioned head once, even if no row is left, so that ZeRO-3's ranks stay in step.
    """

    @staticmethod
    def forward(ctx, hidden, *arguments):
        rows_projected["forward"] += len(hidden)
        return ChunkedLogProbFunction.forward(ctx, hidden, *arguments)

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy, *others):
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        has_gradient = torch.zeros_like(log_z, dtype=torch.bool)
        for gradient in (grad_logprobs, grad_entropy):
            if gradient is not None:
                has_gradient |= gradient != 0  # NaN is not 0, so it reaches the optimizer and is noticed
        rows = has_gradient.nonzero().squeeze(1)
        rows_projected["backward"] += len(rows)
        fewer = SimpleNamespace(**{name: getattr(ctx, name) for name in _CONTEXT})
        fewer.saved_tensors = (hidden[rows], weight, bias, targets[rows], log_z[rows], entropy[rows])
        grad_hidden, *rest = ChunkedLogProbFunction.backward(
            fewer,
            None if grad_logprobs is None else grad_logprobs[rows],
            None if grad_entropy is None else grad_entropy[rows],
            *others,
        )
        if grad_hidden is not None:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, rows, grad_hidden)
        return grad_hidden, *rest


# Which tokens of the batch in hand are wanted, and which are not padding: both `(batch, seq)`, ending with the batch.
_tokens: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("tokens", default=None)


class RowSparseHead:
    """
    Replacement of `ChunkedLogProbFunction` where TRL's fused head calls it.

    It is one object for the whole process and hidden from the compiler: `torch.compile` guards on the identity of the
    objects in a module and on the numbers there, and would otherwise recompile the model for each batch.
    """

    @staticmethod
    @torch.compiler.disable
    def apply(hidden, weight, bias, targets, *settings):
        tokens = _tokens.get()
        rows = None if tokens is None else _rows_of(*tokens, len(hidden))
        if rows is None:
            return RowSparseLogProbFunction.apply(hidden, weight, bias, targets, *settings)
        # `index_select` and `index_copy` keep the graph: without any row the result is a differentiable zero.
        outputs = RowSparseLogProbFunction.apply(
            hidden.index_select(0, rows), weight, bias, targets.index_select(0, rows), *settings
        )
        return tuple(None if x is None else x.new_zeros(len(hidden)).index_copy(0, rows, x) for x in outputs)


@contextmanager
def row_sparse_head(wanted: torch.Tensor | None = None, completion_mask: torch.Tensor | None = None):
    """
    Within this context TRL's fused head skips, in the backward, rows without gradient.

    Args:
        wanted (`torch.Tensor` of shape `(batch, completion_length)`, *optional*):
            Nonzero at the completion tokens whose log-probability and entropy will be used. The forward then scores
            these alone, and gives 0 for the others. By default it scores all.
        completion_mask (`torch.Tensor` of shape `(batch, completion_length)`, *optional*):
            Tokens that are not padding; required with `wanted`.
    """
    with fused_head_function(RowSparseHead), _set(None if wanted is None else (wanted, completion_mask)):
        yield


@contextmanager
def wanted_tokens_moved(move, width: int):
    """
    Make [`row_sparse_head`] find its tokens after `move` has moved them.

    Args:
        move (`Callable`): Function from a tensor of shape `(batch, width)` to one of shape `(batch, columns)`.
        width (`int`): Columns of the batch before it was moved; completions are at their end.
    """
    tokens = _tokens.get()
    if tokens is not None:

        def moved(mask):  # without the first column, which nothing predicts
            return move(torch.nn.functional.pad(mask.bool(), (width - mask.shape[1], 0)))[:, 1:]

        tokens = (moved(tokens[0]), moved(tokens[1]))
    with _set(tokens):
        yield


def last_wanted_columns(width: int) -> torch.Tensor | None:
    """
    Column of the last wanted token of each row, shape `(batch, 1)`: -1 without any, `None` where all are wanted.

    Args:
        width (`int`): Columns of the batch; completions are at their end.
    """
    tokens = _tokens.get()
    if tokens is None:
        return None
    wanted = tokens[0].bool()
    columns = torch.arange(width - wanted.shape[1] + 1, width + 1, device=wanted.device)
    return (wanted * columns).amax(1, keepdim=True) - 1


@contextmanager
def _set(tokens):
    before = _tokens.set(tokens)
    try:
        yield
    finally:
        _tokens.reset(before)


def _rows_of(wanted, completion_mask, num_rows: int) -> torch.Tensor | None:
    """
    Numbers of the wanted tokens among the rows that TRL projects; `None` if they are not known.

    On Triton devices these rows are the valid completion tokens; elsewhere all positions that predict a token.
    """
    batch, length = wanted.shape
    wanted, completion_mask = wanted.bool(), completion_mask.bool()
    if num_rows == int(completion_mask.sum()):
        return wanted[completion_mask].nonzero().squeeze(1)
    per_row, remainder = divmod(num_rows, batch)
    if remainder or per_row < length:  # virtual tokens of prompt-learning adapters, or another way of counting in TRL
        return None
    return torch.nn.functional.pad(wanted, (per_row - length, 0)).flatten().nonzero().squeeze(1)
