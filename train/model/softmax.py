"""the head's softmax and its gradient on a CPU, in the place of the logits: one read and one write of memory.

torch goes over the logits some eight times, half of them in float32: 7 ns a logit where this takes 1, and a
third of a bfloat16 step of a small GPT-2 (V = 50304) went there. numba compiles the loops; what it has no
instruction for, a vector's exponential and bfloat16, is written out here. numba loads when this module does,
so import it where that pays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from ...core.numba_loops import compile_loop
from .layers import chunks_of

LANES, BLOCK = 64, 512
LOWEST = np.float32(-87.0)  # exp of less is no normal float32
LOG2_E, LN_2_HIGH, LN_2_LOW = (
    np.float32(1.44269504088896341),
    np.float32(0.693359375),
    np.float32(-2.12194440e-4),
)
# exp(r) for |r| <= ln(2) / 2 is 1 + r + r^2 (the polynomial), to 2e-7: expf of the Cephes library (Moshier
# 1992).
P0, P1, P2, P3, P4, P5 = (
    np.float32(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
HALF, ONE = np.float32(0.5), np.float32(1.0)
BIAS, MANTISSA, UPPER, LAST, ROUND = np.int32(127), np.int32(23), np.int32(16), np.int32(1), np.int32(0x7FFF)


ROWS_BYTES = {torch.float32: 100 << 20, torch.bfloat16: 256 << 20}  # of logits at a time
COLUMNS = 4096  # of a product with the head's rows, in float32


def loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    *,
    needs_gradient: bool,
) -> tuple[Tensor, tuple]:
    """What loss._loss_and_gradients gives, for float32 or bfloat16 on a CPU: (the loss, (the gradients of
    hidden and weight)).

    A chunk of logits is one piece of memory for all of them: fresh pages cost as much as a fifth of the
    product. In float32 chunks are small and the product with the head goes by its rows, which keeps oneDNN at
    105 instead of 85 GFLOP a CPU second (Zen 4); in bfloat16 chunks are large, because adding up their
    products in float32 costs more.
    """
    N, V = len(hidden), len(weight)
    wide = weight.dtype == torch.float32
    slices = list(chunks_of(N, max(128, ROWS_BYTES[weight.dtype] // (weight.itemsize * V))))
    logits = hidden.new_empty(slices[0].stop, V)
    hidden_gradient, weight_gradient = torch.zeros_like(hidden), None
    total = torch.zeros((), dtype=torch.float64)
    for here in slices:
        x, gradient, mask = hidden[here], logits[: here.stop - here.start], loss_mask[here]
        torch.mm(x, weight.T, out=gradient)
        total -= softmax_gradient_(gradient, labels[here], vocab_size) @ mask.double()
        if not needs_gradient:
            continue
        to_hidden = hidden_gradient[here]
        step = COLUMNS if wide else V
        for start in range(0, V, step):
            to_hidden.addmm_(gradient[:, start : start + step], weight[start : start + step])
        to_hidden *= mask[:, None]  # what is D wide, not V
        x = x * mask[:, None].to(x.dtype)
        if weight_gradient is None:
            weight_gradient = gradient.T @ x
        elif wide:
            weight_gradient.addmm_(gradient.T, x)
        else:
            weight_gradient = weight_gradient.float().add_(gradient.T @ x)
    return total, (hidden_gradient, weight_gradient)


def softmax_gradient_(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """The labels' log-probabilities, (N,) float64; the logits become softmax(logits) minus one at the label.

    logits: (N, V) contiguous, float32 or bfloat16, on a CPU. labels: (N,) int64. vocab_size: columns that are
    tokens; the gradient of those after them is zero.
    """
    narrow = logits.dtype == torch.bfloat16
    loop = _narrow if narrow else _wide
    values, wanted = (logits.view(torch.uint16) if narrow else logits).numpy(), labels.numpy()
    picked = np.empty(len(logits))
    _by_rows(
        len(logits),
        lambda s: loop(values[s], wanted[s], vocab_size, picked[s], np.empty(vocab_size, np.float32)),
    )
    return torch.from_numpy(picked)


def fold_(logits: Tensor, first: int, largest: Tensor, best: Tensor, total: Tensor) -> None:
    """Adds a piece of the vocabulary to what is known of a softmax; see likelihood.Softmax, whose tensors are
    changed.

    logits: (N, C) float32 of the ids from `first` on, on a CPU; only read.
    """
    values, *known = (tensor.numpy() for tensor in (logits, largest, best, total))
    _by_rows(len(logits), lambda s: _fold(values[s], first, *(tensor[s] for tensor in known)))


def _by_rows(count: int, work: Callable[[slice], None]) -> None:
    """Calls work with as many slices of the rows as there are threads, in threads."""
    parts = np.array_split(np.arange(count), torch.get_num_threads())
    slices = [slice(p[0], p[-1] + 1) for p in parts if len(p)]
    with ThreadPoolExecutor(len(slices)) as pool:
        list(pool.map(work, slices))


@intrinsic
def _as_float(typing, bits):
    return numba.float32(numba.int32), lambda context, builder, signature, values: builder.bitcast(
        values[0], ir.FloatType()
    )


@intrinsic
def _as_bits(typing, number):
    return numba.int32(numba.float32), lambda context, builder, signature, values: builder.bitcast(
        values[0], ir.IntType(32)
    )


@compile_loop
def _greatest(row):
    lanes = np.full(LANES, row[0])
    whole = len(row) // LANES * LANES
    for start in range(0, whole, LANES):
        block = row[start : start + LANES]
        for lane in range(LANES):
            value = block[lane]
            lanes[lane] = value if value > lanes[lane] else lanes[lane]
    most = lanes.max()
    for j in range(whole, len(row)):
        most = row[j] if row[j] > most else most
    return most


LOOSELY = functools.partial(compile_loop, fastmath=frozenset({"contract", "reassoc", "nsz"}))


@LOOSELY
def _exponential(x):
    x = LOWEST if x < LOWEST else x
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN_2_HIGH - n * LN_2_LOW
    p = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    return (p * r * r + r + ONE) * _as_float((np.int32(n) + BIAS) << MANTISSA)


@LOOSELY
def _exponentials(row, most):
    """row becomes exp(row - most), whose sum is returned; what is not a number stays so, and makes the sum
    so.
    """
    total = 0.0
    for start in range(0, len(row), BLOCK):
        # an index that starts at zero is one that LLVM trusts
        part, block = np.float32(0), row[start : start + BLOCK]
        for j in range(len(block)):
            e = _exponential(block[j] - most)
            block[j] = e
            part += e
        total += part
    return total


@LOOSELY
def _sum_of_exponentials(row, most):
    total = 0.0
    for start in range(0, len(row), BLOCK):
        part, block = np.float32(0), row[start : start + BLOCK]
        for j in range(len(block)):
            part += _exponential(block[j] - most)
        total += part
    return total


@compile_loop
def _fold(logits, first, largest, best, total):
    for i in range(len(logits)):
        row = logits[i]
        most = _greatest(row)
        if most > largest[i] or most != most:
            total[i] *= np.exp(np.float64(largest[i]) - most)
            largest[i] = most
            for j in range(len(row)):
                if row[j] == most:
                    best[i] = first + j
                    break
        total[i] += _sum_of_exponentials(row, largest[i])


@compile_loop
def _wide(logits, labels, tokens, picked, scratch):
    for i in range(len(logits)):
        row = logits[i, :tokens]
        picked[i], scale = _softmax(row, labels[i])
        for j in range(tokens):
            row[j] *= scale
        logits[i, tokens:] = 0


@compile_loop
def _narrow(logits, labels, tokens, picked, row):
    for i in range(len(logits)):
        _widen(logits[i, :tokens], row)
        picked[i], scale = _softmax(row, labels[i])
        _round(row, scale, logits[i, :tokens])
        logits[i, tokens:] = 0


@compile_loop
def _softmax(row, label):
    """(the label's log-probability, scale); row x scale is then the softmax of the row, minus one at the
    label.
    """
    most = _greatest(row)
    at = np.float64(row[label]) - most
    total = _exponentials(row, most)
    log_probability = at - np.log(total)
    row[label] = np.expm1(log_probability) * total
    return log_probability, np.float32(1 / total)


@compile_loop
def _widen(bits, row):
    for j in range(len(row)):
        row[j] = _as_float(np.int32(bits[j]) << UPPER)


@compile_loop
def _round(row, scale, bits):
    """bits: row x scale in bfloat16, to the nearest and of two the even one."""
    for j in range(len(row)):
        b = _as_bits(row[j] * scale)
        bits[j] = np.uint16((b + ROUND + ((b >> UPPER) & LAST)) >> UPPER)
