"""Collectives for tensor, sequence, context and expert parallelism, as autograd functions of plain tensors.

The gradient of each is its transpose. The names are Megatron-LM's (core/tensor_parallel/mappings.py). `x` is
the tensor of this rank, `axis` the group of ranks:

    function                        forward                         backward
    copy_to                         identity                        all-reduce
    reduce_from                     all-reduce                      identity
    gather_from                     all-gather along dim            reduce-scatter along dim
    gather_from, gradient="split"   all-gather along dim            this rank's part along dim
    reduce_scatter_to               reduce-scatter along dim        all-gather along dim
    scatter_to                      this rank's part along dim      all-gather along dim
    all_to_all                      rows to their ranks             rows back

A pair of matrices, the first divided by rows and the second by columns, has copy_to before it and reduce_from
after it. With sequence parallelism these are gather_from and reduce_scatter_to. Context parallelism gathers
keys and values with gather_from. gradient="split" is for states that all ranks process alike: all ranks then
have the same gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..model.layers import compute_dtype
from ..model.likelihood import Softmax, answers, joined, read
from ..model.loss import chunk_bytes, chunks_of, limited, slope
from .mesh import Axis

# The names since torch 2.13, else the older ones.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def copy_to(x: Tensor, axis: Axis) -> Tensor:
    """The same x; its gradient is summed over the ranks."""
    return _CopyTo.apply(x, axis)


def reduce_from(x: Tensor, axis: Axis) -> Tensor:
    """The sum of x over the ranks."""
    return _ReduceFrom.apply(x, axis)


def gather_from(
    x: Tensor, axis: Axis, dim: int, gradient: Literal["reduce_scatter", "split"] = "reduce_scatter"
) -> Tensor:
    """The x of all ranks, concatenated along `dim` in the order of the ranks.

    gradient: "split" where all ranks have the same gradient of the result, "reduce_scatter" where each has a
    part of a sum.
    """
    return (_gather_split if gradient == "split" else _gather_reduce_scatter)(x, axis, dim)


def reduce_scatter_to(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part along `dim` of the sum of x over the ranks."""
    return _reduce_scatter_gather(x, axis, dim)


def scatter_to(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part along `dim` of an x that all ranks have alike."""
    return _split_gather(x, axis, dim)


def all_to_all(rows: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    """(sum of received, ...) from rows (sum of sent, ...): the first sent[0] rows go to rank 0, the next
    sent[1] to rank 1, and so on.
    """
    return _AllToAll.apply(rows, sent, received, axis)


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return _sum(gradient, ctx.axis), None


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        return _sum(x, axis)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, sent, received, axis):
        ctx.how = sent, received, axis
        return _all_to_all(rows, sent, received, axis)

    @staticmethod
    def backward(ctx, gradient):
        sent, received, axis = ctx.how
        return _all_to_all(gradient, received, sent, axis), None, None, None


def local_part(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part of x, which is divided equally along `dim`; a view."""
    size = x.shape[dim] // axis.size
    return x.narrow(dim, axis.rank * size, size)


def _sum(x: Tensor, axis: Axis) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)  # autograd may have saved x
    dist.all_reduce(x, group=axis.group)
    return x


def _all_gather(x: Tensor, axis: Axis, dim: int) -> Tensor:
    found = x.new_empty(axis.size * x.shape[0], *x.shape[1:])
    _all_gather_single(found, x.contiguous(), group=axis.group)
    return found if dim == 0 else found.unflatten(0, (axis.size, -1)).movedim(0, dim).flatten(dim, dim + 1)


def _reduce_scatter(x: Tensor, axis: Axis, dim: int) -> Tensor:
    if dim != 0:
        x = x.unflatten(dim, (axis.size, -1)).movedim(dim, 0).flatten(0, 1)
    found = x.new_empty(x.shape[0] // axis.size, *x.shape[1:])
    _reduce_scatter_single(found, x.contiguous(), group=axis.group)
    return found


def _with_transpose(collective, transpose):
    """An autograd function of (x, axis, dim): `collective` forward, `transpose` of the gradient backward."""

    class WithTranspose(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, axis, dim):
            ctx.axis, ctx.dim = axis, dim
            return collective(x, axis, dim)

        @staticmethod
        def backward(ctx, gradient):
            return transpose(gradient, ctx.axis, ctx.dim), None, None

    return WithTranspose.apply


_gather_reduce_scatter = _with_transpose(_all_gather, _reduce_scatter)
_reduce_scatter_gather = _with_transpose(_reduce_scatter, _all_gather)
_gather_split = _with_transpose(_all_gather, local_part)
_split_gather = _with_transpose(lambda x, axis, dim: local_part(x, axis, dim).clone(), _all_gather)


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    found = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), received, sent, group=axis.group)
    return found


def vocab_parallel_embedding(ids: Tensor, weight: Tensor, axis: Axis) -> Tensor:
    """(..., D): embeddings of the ids (...) whose rows this rank has, zeros for the others.

    The sum over the ranks (`reduce_from`) is the embedding. weight: (V / ranks, D), this rank's rows.
    """
    ids = ids - axis.rank * weight.shape[0]
    absent = (ids < 0) | (ids >= weight.shape[0])
    return F.embedding(ids.masked_fill(absent, 0), weight).masked_fill(absent[..., None], 0.0)


def vocab_parallel_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    axis: Axis,
) -> Tensor:
    """loss.cross_entropy with the vocabulary divided over ranks: weight (V / ranks, D), bias (V / ranks,).

    hidden, labels and loss_mask are the same on all ranks of `axis`, and so are the loss and the gradient of
    hidden. Like loss.cross_entropy it computes the logits in chunks of rows. A chunk takes two all-reduces,
    of one and of two numbers a row.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    return _VocabParallelCrossEntropy.apply(
        copy_to(hidden, axis), weight, labels, loss_mask, vocab_size, bias, softcap, axis
    )


def vocab_parallel_logits(
    hidden: Tensor, weight: Tensor, vocab_size: int, *, softcap: float | None = None, axis: Axis
) -> Tensor:
    """loss.logits_of with the vocabulary divided over ranks, weight (V / ranks, D): all logits, on all ranks.

    Without a gradient.
    """
    logits = limited(_all_gather(F.linear(hidden, weight), axis, hidden.dim() - 1), softcap)
    logits[..., vocab_size:] = float("-inf")
    return logits


def vocab_parallel_likelihoods(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    *,
    softcap: float | None = None,
    axis: Axis,
) -> tuple[Tensor, Tensor]:
    """likelihood.likelihoods with the vocabulary divided over ranks, weight (V / ranks, D).

    The result is the same on all ranks.
    """
    first = axis.rank * len(weight)
    own = read(hidden, weight[: max(0, vocab_size - first)], targets, first, softcap=softcap)
    return answers(joined(Softmax(*(_all_gather(known[None], axis, 0) for known in own))), targets)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, loss_mask, vocab_size, bias, softcap, axis):
        dtype = compute_dtype(weight)
        wide = torch.promote_types(dtype, torch.float32)
        compute_weight = weight.to(dtype)
        first = axis.rank * len(weight)
        needs_gradient = any(ctx.needs_input_grad[:2])
        if needs_gradient:
            hidden_gradient = torch.empty_like(hidden)
            weight_gradient = torch.zeros(weight.shape, dtype=wide, device=weight.device)
            bias_gradient = None if bias is None else torch.zeros(bias.shape, dtype=wide, device=bias.device)
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = max(128, chunk_bytes(hidden.device) // ((dtype.itemsize + 2 * wide.itemsize) * len(weight)))
        for here in chunks_of(len(hidden), rows):
            x, mask = hidden[here].to(dtype), loss_mask[here].to(wide)
            logits = F.linear(x, compute_weight, None if bias is None else bias.to(dtype)).to(wide)
            logits = limited(logits, softcap)
            own_tokens = max(0, vocab_size - first)
            slopes = None if softcap is None else slope(logits, softcap, own_tokens)
            logits[:, own_tokens:] = float("-inf")
            own = labels[here] - first
            absent = (own < 0) | (own >= len(weight))
            own = own.masked_fill(absent, 0)[:, None]
            probabilities, log_likelihood = _softmax(logits, own, absent, axis)
            loss -= (log_likelihood * mask).sum(dtype=torch.float64)
            if needs_gradient:
                probabilities.scatter_add_(-1, own, torch.where(absent, 0.0, -1.0).to(wide)[:, None])
                if slopes is not None:
                    probabilities *= slopes
                if bias is not None:
                    bias_gradient += mask @ probabilities
                gradient = probabilities.to(dtype)
                hidden_gradient[here] = (gradient @ compute_weight) * mask[:, None]
                weight_gradient += gradient.T @ (x * mask[:, None].to(dtype))
        if needs_gradient:
            ctx.save_for_backward(
                hidden_gradient,
                weight_gradient.to(weight.dtype),
                bias_gradient if bias is None or bias_gradient is None else bias_gradient.to(bias.dtype),
            )
        return loss.to(wide)

    @staticmethod
    def backward(ctx, gradient):
        hidden_gradient, weight_gradient, bias_gradient = ctx.saved_tensors
        return (
            hidden_gradient * gradient,
            weight_gradient * gradient,
            None,
            None,
            None,
            None if bias_gradient is None else bias_gradient * gradient,
            None,
            None,
        )


def _softmax(logits: Tensor, own: Tensor, absent: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """(this rank's probabilities (N, V / ranks), the labels' log-likelihoods (N,)), of logits (N, V / ranks).

    The logits are overwritten. own: (N, 1), the row of a label among this rank's rows. absent: (N,), whether
    the label is in another rank's rows.
    """
    largest = logits.amax(-1)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=axis.group)
    logits -= largest[:, None]
    picked = logits.gather(-1, own)[:, 0].masked_fill(absent, 0.0)
    exponentials = logits.exp_()
    sums = torch.stack([exponentials.sum(-1), picked])
    dist.all_reduce(sums, group=axis.group)
    return exponentials.div_(sums[0, :, None]), sums[1] - sums[0].log()
