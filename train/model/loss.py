"""the head's loss: cross-entropy in chunks of rows that makes its gradients as it goes, so that no (N, V)
array ever exists.

Legend: N rows (B x T), D hidden, V padded vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import chunks_of, compute_dtype

# logits of a micro-batch: for fewer the loops of softmax.py take longer to load than they save
WORTH_COMPILING = 1 << 22


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Sum over rows of loss_mask x the negative log-likelihood of the labels; a float32 (float64) scalar.

    hidden: (N, D). weight: (V, D), the head; bias: (V,), or none. labels: (N,) int64. loss_mask: (N,).
    vocab_size: rows of `weight` that are tokens; the padding after them gets no probability.

    Works through the rows in chunks and makes the gradients in the forward pass, so that no (N, V) array ever
    exists: at N = 2048, V = 50304 this saves 1.5 GiB and is faster than F.linear_cross_entropy, which also
    breaks out of torch.compile.
    """
    # which a Function does not see: its weight would still ask for a gradient
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    return _CrossEntropy.apply(hidden, weight, labels, loss_mask, vocab_size, bias)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, loss_mask, vocab_size, bias):
        dtype = compute_dtype(weight)
        wide = torch.promote_types(dtype, torch.float32)  # softmax and sums are never narrower than float32
        compute_weight = weight.to(dtype)
        needs_gradient = any(ctx.needs_input_grad[:2])
        in_place = (
            hidden.device.type == "cpu"
            and dtype in (torch.float32, torch.bfloat16)
            and bias is None
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
                hidden, compute_weight, labels, loss_mask, vocab_size, bias, needs_gradient
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
        # Scaled where they lie: a second copy of the weight's would be a tenth of all memory. A second
        # backward pass raises.
        to_hidden, to_weight, to_bias = (g if g is None else g.mul_(gradient) for g in ctx.saved_tensors)
        return to_hidden, to_weight, None, None, None, to_bias


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    bias: Tensor | None,
    needs_gradient: bool,
):
    """(the loss, float64; the gradients of hidden, weight and bias or None) by torch's operations; weight in
    the numbers to compute in.
    """
    dtype = weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    # the latter: the first chunk's product, to which the others' are added in `wide`
    hidden_gradient, weight_gradient = torch.empty_like(hidden), None
    bias_gradient = None if bias is None else torch.zeros(bias.shape, dtype=wide, device=bias.device)
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    rows = max(128, chunk_bytes(hidden.device) // ((dtype.itemsize + 2 * wide.itemsize) * len(weight)))
    for here in chunks_of(len(hidden), rows):
        x, mask = hidden[here].to(dtype), loss_mask[here].to(wide)
        log_probabilities = logits_of(x, weight, vocab_size, bias).log_softmax(-1, dtype=wide)
        picked = log_probabilities.gather(-1, labels[here, None])
        total -= (picked[:, 0] * mask).sum(dtype=torch.float64)
        if not needs_gradient:
            continue
        gradient = log_probabilities.exp_().scatter_(-1, labels[here, None], picked.expm1())
        if bias is not None:
            bias_gradient += mask @ gradient
        gradient = gradient.to(dtype)
        # The mask multiplies what is D wide, not V.
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
    """What the head's chunks of logits may take with all that is made of them.

    Every chunk reads the whole head and, in narrow numbers, adds to a float32 gradient as large: on a GPU,
    whose products are faster than its memory, that must be few; a CPU's cache would have them smaller still.
    """
    return torch.cuda.get_device_properties(device).total_memory // 32 if device.type == "cuda" else 256 << 20


def logits_of(hidden: Tensor, weight: Tensor, vocab_size: int, bias: Tensor | None = None) -> Tensor:
    """(..., V) from (..., D), weight (V, D) and bias (V,); minus infinity for the padding of the vocabulary.

    The product keeps the padding, because matrix units want round shapes.
    """
    logits = F.linear(hidden, weight, bias if bias is None else bias.to(weight.dtype))
    if vocab_size < weight.shape[0]:
        logits[..., vocab_size:] = float("-inf")
    return logits
