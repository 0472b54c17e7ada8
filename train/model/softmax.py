"""The output layer's softmax and its gradient on a CPU, in place of the logits.

torch reads the logits some eight times, half of them in float32: 7 ns a logit where this takes 1, which was a
third of a bfloat16 step of a small GPT-2 (V = 50304). numba compiles the loops; this file writes out what
numba has no instruction for, the exponential of a vector and bfloat16. Importing this module loads numba, so
import it late.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

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
LOG2_E = np.float32(1.44269504088896341)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln(2)
# For |r| <= ln(2) / 2, exp(r) is 1 + r + r^2 x this polynomial, to 2e-7: expf of the Cephes library (Moshier
# 1992).
COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
P0, P1, P2, P3, P4, P5 = map(np.float32, COEFFICIENTS)
HALF, ONE = np.float32(0.5), np.float32(1.0)
BIAS, MANTISSA = np.int32(127), np.int32(23)  # of float32: exponent bias, mantissa bits
UPPER, LAST, ROUND = np.int32(16), np.int32(1), np.int32(0x7FFF)  # of rounding float32 to bfloat16

ROWS_BYTES = {torch.float32: 100 << 20, torch.bfloat16: 256 << 20}  # of a chunk of logits
COLUMNS = 4096  # rows of the output layer in one product, in float32


def loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    *,
    needs_gradient: bool,
) -> tuple[Tensor, tuple]:
    """loss._loss_and_gradients on a CPU: (the loss, (the gradients of hidden and weight)).

    All chunks of logits use the same memory: fresh pages cost a fifth of the product. In float32 chunks are
    small, and the product with the output layer goes by blocks of its rows, which keeps oneDNN at 105 instead
    of 85 GFLOP a CPU second (Zen 4). In bfloat16 chunks are large, because the sum of their products in
    float32 costs more.
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
        to_hidden *= mask[:, None]  # rows of D, not of V
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
    """Adds a chunk of the vocabulary to an online softmax, the tensors of likelihood.Softmax, in place.

    logits: (N, C) float32 of the ids from `first` on, on a CPU; only read.
    """
    values, *known = (tensor.numpy() for tensor in (logits, largest, best, total))
    _by_rows(len(logits), lambda s: _fold(values[s], first, *(tensor[s] for tensor in known)))


def _by_rows(count: int, work: Callable[[slice], None]) -> None:
    """Calls `work` in threads, each with a slice of the rows."""
    parts = np.array_split(np.arange(count), torch.get_num_threads())
    slices = [slice(p[0], p[-1] + 1) for p in parts if len(p)]
    with ThreadPoolExecutor(len(slices)) as pool:
        list(pool.map(work, slices))


def _bitcast(signature: Any, kind: ir.Type) -> Callable[[Any], Any]:
    """An instruction for numba's loops: the same 32 bits as another type."""

    def implement(context, builder, signature, values):
        return builder.bitcast(values[0], kind)

    return cast("Callable[[Any], Any]", intrinsic(lambda typing, value: (signature, implement)))


_as_float = _bitcast(numba.float32(numba.int32), ir.FloatType())
_as_bits = _bitcast(numba.int32(numba.float32), ir.IntType(32))


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
    """row becomes exp(row - most), whose sum is returned; NaN stays NaN in both."""
    total = np.float64(0)
    for start in range(0, len(row), BLOCK):
        # LLVM vectorises only a loop whose index starts at zero.
        part, block = np.float32(0), row[start : start + BLOCK]
        for j in range(len(block)):
            e = _exponential(block[j] - most)
            block[j] = e
            part += e
        total += part
    return total


@LOOSELY
def _sum_of_exponentials(row, most):
    total = np.float64(0)
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
    """(the label's log-probability, scale): row x scale is then the softmax minus one at the label."""
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
    """bits: row x scale in bfloat16, rounded to nearest, ties to even."""
    for j in range(len(row)):
        wide: np.int32 = _as_bits(row[j] * scale)
        bits[j] = np.uint16((wide + ROUND + ((wide >> UPPER) & LAST)) >> UPPER)
