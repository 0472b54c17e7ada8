"""Cross-entropy of the output layer and its gradients in chunks of rows, without an (N, V) array.

Legend: N rows (B x T), D hidden, V padded vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import chunks_of, compute_dtype

# Logits of a micro-batch. For fewer, loading the compiled loops of softmax.py takes longer than they save.
WORTH_COMPILING = 1 << 22


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
) -> Tensor:
    """Sum over rows of loss_mask x the negative log-likelihood of the labels; a float32 (float64) scalar.

    hidden: (N, D). weight: (V, D), of the output layer; bias: (V,), or None. labels: (N,) int64. loss_mask:
    (N,). vocab_size: rows of `weight` that are tokens; the padding after them gets no probability. softcap:
    see `limited`.

    Goes through the rows in chunks and computes the gradients in the forward pass, so that no (N, V) array
    ever exists. At N = 2048, V = 50304 this saves 1.5 GiB and is faster than F.linear_cross_entropy, which
    also breaks the graph of torch.compile.
    """
    # Under no_grad a Function's needs_input_grad stays true for a weight that requires a gradient.
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    return _CrossEntropy.apply(hidden, weight, labels, loss_mask, vocab_size, bias, softcap)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, loss_mask, vocab_size, bias, softcap):
        dtype = compute_dtype(weight)
        wide = torch.promote_types(dtype, torch.float32)  # softmax and sums are in float32 at least
        compute_weight = weight.to(dtype)
        needs_gradient = any(ctx.needs_input_grad[:2])
        in_place = (
            hidden.device.type == "cpu"
            and dtype in (torch.float32, torch.bfloat16)
            and bias is None
            and softcap is None
            and len(hidden) * len(weight) >= WORTH_COMPILING
            and not torch.compiler.is_compiling()
        )
        if in_place:
            from .softmax import loss_and_gradients

            total, gradients = loss_and_gradients(
                hidden.to(dtype), compute_weight, labels, loss_mask, vocab_size, needs_gradient=needs_gradient
            )
        else:
            total, gradients = _loss_and_gradients(
                hidden, compute_weight, labels, loss_mask, vocab_size, bias, softcap, needs_gradient
            )
        if needs_gradient:
            ctx.save_for_backward(
                *(
                    g if g is None else g.to(x.dtype)
                    for g, x in zip((*gradients, None)[:3], (hidden, weight, bias))
                )
            )
        return total.to(wide)

    @staticmethod
    def backward(ctx, gradient):
        # Scaled in place: a second copy of the weight's gradient would be a tenth of all memory. So a second
        # backward pass raises.
        to_hidden, to_weight, to_bias = (g if g is None else g.mul_(gradient) for g in ctx.saved_tensors)
        return to_hidden, to_weight, None, None, None, to_bias, None


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    bias: Tensor | None,
    softcap: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
    """(the loss, float64; the gradients of hidden, weight and bias) by torch's operations.

    weight: in the dtype to compute in. The gradients of weight and bias are None where there is none.
    """
    dtype = weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient: Tensor | None = None  # the first chunk's product; the others are added in `wide`
    bias_gradient = None if bias is None else torch.zeros(bias.shape, dtype=wide, device=bias.device)
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    rows = max(128, chunk_bytes(hidden.device) // ((dtype.itemsize + 2 * wide.itemsize) * len(weight)))
    for here in chunks_of(len(hidden), rows):
        x, mask = hidden[here].to(dtype), loss_mask[here].to(wide)
        logits = logits_of(x, weight, vocab_size, bias, softcap=softcap)
        log_probabilities = logits.log_softmax(-1, dtype=wide)
        picked = log_probabilities.gather(-1, labels[here, None])
        total -= (picked[:, 0] * mask).sum(dtype=torch.float64)
        if not needs_gradient:
            continue
        gradient = log_probabilities.exp_().scatter_(-1, labels[here, None], picked.expm1())
        if softcap is not None:
            gradient *= slope(logits, softcap, vocab_size)
        if bias_gradient is not None:
            bias_gradient += mask @ gradient
        gradient = gradient.to(dtype)
        # Multiply rows of D by the mask instead of rows of V.
        hidden_gradient[here] = (gradient @ weight) * mask[:, None]
        x = x * mask[:, None].to(dtype)
        if weight_gradient is None:
            weight_gradient = gradient.T @ x
        elif wide == dtype:
            weight_gradient.addmm_(gradient.T, x)
        else:
            weight_gradient = weight_gradient.to(wide).add_(gradient.T @ x)
    return total, (hidden_gradient, weight_gradient, bias_gradient)


def chunk_bytes(device: torch.device) -> int:
    """Bytes that a chunk of logits may take with the tensors computed from it.

    Every chunk reads the output layer's whole weight and, in bfloat16 and float16, adds to a float32 gradient
    of its size. On a GPU, whose products are faster than its memory, chunks must be few; for a CPU's cache
    they should be even smaller than these.
    """
    return torch.cuda.get_device_properties(device).total_memory // 32 if device.type == "cuda" else 256 << 20


def limited(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap tanh(logits / softcap), which lies between -softcap and softcap (Gemma 2); None: no limit."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def slope(logits: Tensor, softcap: float, vocab_size: int) -> Tensor:
    """The derivative of `limited`, from its results (..., V); 0 for the ids from vocab_size on."""
    found = 1 - (logits.to(torch.promote_types(logits.dtype, torch.float32)) / softcap).square()
    found[..., vocab_size:] = 0
    return found


def logits_of(
    hidden: Tensor,
    weight: Tensor,
    vocab_size: int,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
) -> Tensor:
    """(..., V) from (..., D), weight (V, D) and bias (V,); minus infinity for the padding of the vocabulary.

    The product includes the padding, because matrix units need round shapes. softcap: see `limited`.
    """
    logits = limited(F.linear(hidden, weight, bias if bias is None else bias.to(weight.dtype)), softcap)
    if vocab_size < weight.shape[0]:
        logits[..., vocab_size:] = float("-inf")
    return logits
