"""A mixture of experts in place of the feed-forward layer: router, dispatch, experts, balancing.

    tokens (N, D) -> Router -> experts (N, K), weights (N, K)
                  -> dispatch -> permute -> rows (M, D), sorted by expert -> Experts -> rows (M, D)
                  -> unpermute -> (N, D)

The steps are functions with plain tensors between them, so that an all-to-all fits between `permute` and
`Experts`, and another before `unpermute`. The number of experts and their width come from the weights, not
from the configuration, so that an `Experts` with cut weights computes its share. Rows move only by gathers,
forwards and backwards, and are sorted stably: results are deterministic.

Load balancing. The auxiliary loss (Fedus et al. 2021) and the z-loss (Zoph et al. 2022) of a micro-batch join
the graph at the router's weights, which pass unchanged (`_Attach`), so that a pipeline stage needs no loss of
its own to train its routers. They are means over tokens, while the loss of the model is a sum over tokens,
which the train loop divides once by the tokens of the global batch. So both are multiplied here by the
micro-batch's tokens (rows, whatever their weight in the loss), and the train loop sets the divisor by
`set_loss_scale`. After each step it calls `balance`. The auxiliary loss counts choices over a micro-batch,
over each of its sequences (DeepSeek-V2), or over all micro-batches of the step so far, of all data-parallel
ranks (Qiu et al. 2025); Sinkhorn's iteration balances the choice itself (Clark et al. 2022).

Legend: N tokens, E experts, K experts that a token goes to, M rows that experts get (N x K, less those
dropped), D hidden, F width of an expert.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import FeedForward, activate
from .config import GATED, ResolvedModelConfig
from .layers import Linear, compute_dtype


class MoE(nn.Module):
    """x (B, T, D) -> (B, T, D).

    Where `config.moe_shared_expert_intermediate_size` is set, every token also goes through a shared expert,
    whose output may have a gate (Qwen2-MoE). Capacity limits experts in training only: the output of a
    trained model must not depend on the other texts of a batch.
    """

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.capacity_factor = config.moe_expert_capacity_factor
        self.drop_policy = config.moe_token_drop_policy
        self.router, self.experts = Router(config), Experts(config)
        shared = config.moe_shared_expert_intermediate_size
        self.shared = (
            FeedForward(dataclasses.replace(config, ffn_hidden_size=shared, add_bias_linear=False))
            if shared
            else None
        )
        gated = config.moe_shared_expert_gate
        self.shared_gate = (
            Linear(config.hidden_size, 1, bias=False, std=config.init_method_std) if gated else None
        )
        # parallel/ replaces this where ranks share a micro-batch's tokens.
        self.within_capacity = within_capacity

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        experts, weights = self.router(tokens, len(tokens) // x.shape[-2])
        kept = None
        if self.capacity_factor is not None and self.training:
            chosen, scores = (t.unflatten(0, x.shape[:-1]) for t in (experts, weights))
            kept = self.within_capacity(
                chosen, scores, self.router.num_experts, self.capacity_factor, self.drop_policy
            ).flatten(0, -2)
        sent = dispatch(experts, self.router.num_experts, kept)
        rows = self.experts(permute(tokens, sent), sent.counts)
        y = unpermute(rows, weights, sent).view_as(x)
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if self.shared_gate is None else shared * self.shared_gate(x).sigmoid())


class Router(nn.Module):
    """tokens (N, D) -> experts (N, K) int64, a token's first choice first, and their weights (N, K).

    Computed in float32 for tokens of any dtype, because rounding can change the choice of experts, and scores
    in bfloat16 or float16 tie often.
    """

    expert_bias: Tensor | None
    loads: Tensor
    step_counts: Tensor
    loss_scale: Tensor

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        assert config.num_experts is not None, "only a model with experts has routers"
        self.num_experts, self.topk = config.num_experts, config.moe_router_topk
        self.std = config.init_method_std
        self.score_function = config.moe_router_score_function
        self.pre_softmax = config.moe_router_pre_softmax
        self.aux_coefficient, self.z_coefficient = config.moe_aux_loss_coeff, config.moe_z_loss_coeff
        self.bias_update_rate = config.moe_router_bias_update_rate
        self.balancing = config.moe_router_load_balancing_type
        self.num_groups, self.group_topk = config.moe_router_num_groups, config.moe_router_group_topk
        self.group_score_topk = config.moe_router_group_score_topk
        self.scaling_factor = config.moe_router_topk_scaling_factor or 1.0
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        # Added to the scores for the choice of experts, not for their weights (Wang et al. 2024).
        self.register_buffer(
            "expert_bias", torch.zeros(config.num_experts) if config.moe_router_enable_expert_bias else None
        )
        self.register_buffer("loads", torch.zeros(config.num_experts, dtype=torch.int64), persistent=False)
        self.register_buffer("loss_scale", torch.ones(()), persistent=False)
        # Choices of the step so far, of all ranks, for a global auxiliary loss
        self.register_buffer("step_counts", torch.zeros(config.num_experts), persistent=False)
        # Where ranks share a micro-batch's tokens (tensor parallelism with sequence parallelism, context
        # parallelism), parallel/ replaces this by the sum over those ranks.
        self.sum_counts: Callable[[Tensor], Tensor] = _alone
        # Where ranks have other micro-batches of the step, parallel/ replaces this by the sum over them.
        self.sum_counts_of_step: Callable[[Tensor], Tensor] = _alone

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """For layers.initialize."""
        if name == "weight":
            return torch.empty(shape).normal_(0.0, self.std, generator=generator)
        return torch.full(shape, 1.0 if name == "loss_scale" else 0.0)

    def forward(self, tokens: Tensor, num_sequences: int = 1) -> tuple[Tensor, Tensor]:
        """num_sequences: those that the tokens are from, of equal lengths, one after another."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        with _without_autocast(tokens.device):
            logits = F.linear(tokens.to(wide), self.weight.to(wide))
        experts, weights = choose(
            logits,
            self.topk,
            score_function=self.score_function,
            pre_softmax=self.pre_softmax,
            expert_bias=self.expert_bias,
            num_groups=self.num_groups,
            group_topk=self.group_topk,
            group_score_topk=self.group_score_topk,
            balanced=self.balancing == "sinkhorn" and self.training,
        )
        if self.scaling_factor != 1.0:
            weights = weights * self.scaling_factor
        if self.training:
            # Recomputation runs this twice and counts twice. That does not change the shares that `balance`
            # uses.
            self.loads += _counts(experts, self.num_experts)
            if torch.is_grad_enabled() and (self.aux_coefficient or self.z_coefficient):
                weights = _Attach.apply(
                    weights, self._auxiliary_loss(logits, experts, num_sequences), self.loss_scale
                )
        return experts, weights

    def _auxiliary_loss(self, logits: Tensor, experts: Tensor, num_sequences: int = 1) -> Tensor:
        """This rank's part of (auxiliary loss + z-loss) x the micro-batch's tokens, a scalar."""
        loss = logits.new_zeros(())
        if self.aux_coefficient:
            probabilities = _normalised(logits, self.score_function)
            # As in Megatron-LM: the choice by the scores without the bias and the groups.
            if self.expert_bias is not None or self.num_groups is not None:
                experts = probabilities.topk(self.topk).indices
            if self.balancing == "seq_aux_loss":
                probabilities = probabilities.unflatten(0, (num_sequences, -1))
                counts = torch.stack([_counts(own, self.num_experts) for own in experts.chunk(num_sequences)])
            else:
                counts = _counts(experts, self.num_experts)
            counts = self.sum_counts(counts)
            if self.balancing == "global_aux_loss":
                self.step_counts += self.sum_counts_of_step(counts)
                counts = self.step_counts.clone()
            loss = loss + self.aux_coefficient * balancing_loss(probabilities, counts)
        if self.z_coefficient:
            loss = loss + self.z_coefficient * logits.logsumexp(-1).square().sum()
        return loss


def _alone(counts: Tensor) -> Tensor:
    return counts


def choose(
    logits: Tensor,
    k: int,
    *,
    score_function: Literal["softmax", "sigmoid"],
    pre_softmax: bool = False,
    expert_bias: Tensor | None = None,
    num_groups: int | None = None,
    group_topk: int | None = None,
    group_score_topk: int | None = None,
    balanced: bool = False,
) -> tuple[Tensor, Tensor]:
    """(experts (N, k) int64, weights (N, k)) from logits (N, E).

    num_groups: only experts of the group_topk best of so many groups are chosen: those whose
    group_score_topk (by default k / group_topk) best scores have the greatest sums. balanced: the choice by
    `sinkhorn`, the weights as without it.

    softmax: over the chosen k (Mixtral), or, with pre_softmax, over all E, so that the weights of the chosen
    sum to less than 1. sigmoid: divided by the sum over the chosen k; expert_bias (E,) is used only for the
    choice (DeepSeek-V3).
    """

    def best(scores: Tensor) -> Tensor:
        if balanced:
            return sinkhorn(logits.detach()).topk(k).indices
        if num_groups is None or group_topk is None:
            return scores.topk(k).indices
        grouped = scores.unflatten(-1, (num_groups, -1))
        sums = grouped.topk(group_score_topk or k // group_topk).values.sum(-1)
        chosen = (
            sums.topk(group_topk).indices[..., None] == torch.arange(num_groups, device=sums.device)
        ).any(-2)
        return grouped.masked_fill(~chosen[..., None], -math.inf).flatten(-2).topk(k).indices

    if score_function == "sigmoid":
        scores = logits.sigmoid()
        experts = best(scores if expert_bias is None else scores + expert_bias)
        weights = _Pick.apply(scores, experts)
        return experts, weights / (weights.sum(-1, keepdim=True) + 1e-20) if k > 1 else weights
    if pre_softmax:
        probabilities = logits.softmax(-1)
        experts = best(probabilities)
        return experts, _Pick.apply(probabilities, experts)
    experts = best(logits)
    return experts, _Pick.apply(logits, experts).softmax(-1)


def sinkhorn(logits: Tensor, tolerance: float = 1e-4) -> Tensor:
    """exp(logits), (N, E), with rows and columns multiplied by numbers that make their sums equal."""
    cost = logits.exp()
    rows, columns = cost.new_ones(cost.shape[0]), cost.new_ones(cost.shape[1])
    error = math.inf
    while error > tolerance:
        rows = 1 / (cost.shape[0] * ((columns * cost).sum(1) + 1e-8))
        before, columns = columns, 1 / (cost.shape[1] * ((rows[:, None] * cost).sum(0) + 1e-8))
        error = (before - columns).abs().mean().item()
    return columns * cost * rows[:, None]


class _Pick(torch.autograd.Function):
    """scores (N, E), experts (N, K) -> (N, K): the scores of the chosen experts.

    The backward pass compares indices instead of the scatter of torch.gather: compiled for a CPU, torch 2.13
    reads the target of that scatter before it is written, and the routers silently lose the gradient of the
    model's loss.
    """

    @staticmethod
    def forward(ctx, scores, experts):
        ctx.save_for_backward(experts)
        ctx.num_experts = scores.shape[-1]
        return scores.gather(-1, experts)

    @staticmethod
    def backward(ctx, gradient):
        (experts,) = ctx.saved_tensors
        every = torch.arange(ctx.num_experts, device=experts.device)
        return (
            sum(
                torch.where(experts[:, j, None] == every, gradient[:, j, None], 0.0)
                for j in range(experts.shape[1])
            ),
            None,
        )


def _normalised(logits: Tensor, score_function: str) -> Tensor:
    """Each token's scores of all experts, which sum to 1."""
    if score_function == "softmax":
        return logits.softmax(-1)
    scores = logits.sigmoid()
    return scores / (scores.sum(-1, keepdim=True) + 1e-20)


def balancing_loss(probabilities: Tensor, counts: Tensor) -> Tensor:
    """N x E x the sum over experts i of f_i P_i: share of choices times mean probability of expert i.

    probabilities: (N, E), of this rank's tokens. counts: (E,), choices of the tokens of all ranks that share
    the micro-batch; the results of these ranks add up. The minimum, N, is at equal shares. For (B, T, E) and
    (B, E) it is the sum over B sequences.
    """
    num_experts = probabilities.shape[-1]
    return num_experts * (probabilities.sum(-2) * counts / counts.sum(-1, keepdim=True)).sum()


class _Attach(torch.autograd.Function):
    """Returns the weights unchanged; in the backward pass `loss` gets the gradient `scale`."""

    @staticmethod
    def forward(ctx, weights, loss, scale):
        ctx.save_for_backward(scale)
        ctx.dtype = loss.dtype
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, ctx.saved_tensors[0].to(ctx.dtype), None


def set_loss_scale(model: nn.Module, scale: Tensor | float) -> None:
    """Sets the factor of the model's summed loss, before the forward passes of a step.

    It is one over the tokens of the global batch, times the loss scale of fp16. Without this call it is 1,
    which is right for `model.loss(...).backward()`.
    """
    for module in model.modules():
        if isinstance(module, Router):
            module.loss_scale.copy_(torch.as_tensor(scale))


@torch.no_grad()
def balance(model: nn.Module, total: Callable[[Tensor], Tensor] = _alone) -> dict[str, Tensor]:
    """Balances the routers after a step; returns each expert's share of choices, (E,), by layer.

    Moves the expert bias of each router that has one by its rate: up where an expert had less than the mean
    load, down where it had more (Wang et al. 2024). total: sums a tensor over all ranks that had tokens of
    this step. Choices that capacity dropped count too. Counting starts anew.
    """
    routers = {
        name.removesuffix(".router"): module
        for name, module in model.named_modules()
        if isinstance(module, Router)
    }
    if not routers:
        return {}
    shares = {}
    loads = total(torch.stack([router.loads for router in routers.values()]))
    for (name, router), load in zip(routers.items(), loads):
        if router.expert_bias is not None:
            router.expert_bias += router.bias_update_rate * torch.sign(load.sum() - len(load) * load)
        shares[name] = load / load.sum().clamp(min=1)
        router.loads.zero_()
        router.step_counts.zero_()
    return shares


def within_capacity(
    experts: Tensor, weights: Tensor, num_experts: int, factor: float, policy: Literal["probs", "position"]
) -> Tensor:
    """Which choices (..., K) are kept, bool: an expert takes at most ceil(N K / E x factor) tokens.

    policy: keep those with the greatest weights, the first of equal ones, or those that come first.
    """
    capacity = math.ceil(experts.numel() / num_experts * factor)
    chosen = experts.flatten()
    order = weights.detach().flatten().argsort(descending=True, stable=True) if policy == "probs" else None
    by_expert = chosen.argsort(stable=True) if order is None else order[chosen[order].argsort(stable=True)]
    ranked = chosen[by_expert]
    first = torch.searchsorted(ranked, torch.arange(num_experts, device=experts.device))
    rank = torch.arange(len(ranked), device=experts.device) - first[ranked]
    return (rank < capacity)[by_expert.argsort()].view_as(experts)


class Dispatch(NamedTuple):
    """The rows that experts get for the choices of tokens. Choice n K + j is the j-th expert of token n.

    Rows are sorted by expert, those of an expert by token.
    """

    choices: Tensor  # (M,) int64: the choice of each row
    rows: Tensor  # (N, K) int64: the row of each choice; -1 where it was dropped
    counts: Tensor  # (E,) int64: rows of each expert


def dispatch(experts: Tensor, num_experts: int, kept: Tensor | None = None) -> Dispatch:
    """The rows of the choices in experts (N, K), without those that are not kept.

    Without `kept` no shape depends on a value.
    """
    # Dropped choices go to the end.
    key = experts.flatten() if kept is None else torch.where(kept, experts, num_experts).flatten()
    ranked, choices = key.sort(stable=True)
    ends = torch.searchsorted(ranked, torch.arange(num_experts, device=experts.device), right=True)
    rows = choices.argsort().view_as(experts)  # the inverse permutation
    counts = ends.diff(prepend=ends.new_zeros(1))
    if kept is None:
        return Dispatch(choices, rows, counts)
    return Dispatch(choices[: int(ends[-1])], torch.where(kept, rows, -1), counts)


def _counts(experts: Tensor, num_experts: int) -> Tensor:
    """(E,) int64: number of choices of each expert.

    By sorting, because torch.bincount is not deterministic on a GPU and waits for it.
    """
    ends = torch.searchsorted(
        experts.flatten().sort().values, torch.arange(num_experts, device=experts.device), right=True
    )
    return ends.diff(prepend=ends.new_zeros(1))


def permute(tokens: Tensor, sent: Dispatch) -> Tensor:
    """(M, D): the token (N, D) of every row."""
    return _Permute.apply(tokens, sent.choices, sent.rows)


def unpermute(rows: Tensor, weights: Tensor, sent: Dispatch) -> Tensor:
    """(N, D): the sum over a token's choices of weight (N, K) x row (M, D), without dropped choices."""
    return _Unpermute.apply(rows, weights, sent.choices, sent.rows)


class _Permute(torch.autograd.Function):
    """tokens.index_select with a gradient that adds the rows of a token in a fixed order on a GPU too."""

    @staticmethod
    def forward(ctx, tokens, choices, rows):
        ctx.save_for_backward(rows)
        ctx.dropped = len(choices) < rows.numel()
        return tokens.index_select(0, choices // rows.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        return sum(_read(gradient, rows[:, j], ctx.dropped) for j in range(rows.shape[1])), None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weights, choices, rows):
        ctx.save_for_backward(values, weights, choices, rows)
        ctx.dropped = len(choices) < rows.numel()
        return sum(
            weights[:, j, None] * _read(values, rows[:, j], ctx.dropped) for j in range(rows.shape[1])
        ).to(values.dtype)

    @staticmethod
    def backward(ctx, gradient):
        values, weights, choices, rows = ctx.saved_tensors
        wide = gradient.to(weights.dtype)
        of_weights = torch.stack(
            [(wide * _read(values, rows[:, j], ctx.dropped)).sum(-1) for j in range(rows.shape[1])], dim=-1
        )
        of_values = (
            gradient.index_select(0, choices // rows.shape[1])
            * weights.flatten().index_select(0, choices)[:, None]
        )
        return of_values.to(values.dtype), of_weights, None, None


def _read(values: Tensor, rows: Tensor, dropped: bool) -> Tensor:
    """values (M, D) at rows (N,); zeros for -1, which occurs only where choices were dropped."""
    if not dropped:
        return values.index_select(0, rows)
    return torch.where(rows[:, None] < 0, 0.0, values.index_select(0, rows.clamp(min=0)))


class Experts(nn.Module):
    """E feed-forward layers without biases: rows (M, D), sorted by expert, counts (E,) -> (M, D).

    The weights of all experts are stacked, so that expert parallelism cuts dimension 0, and tensor
    parallelism cuts dimension 1 of `gate` and `up` (E, F, D) and dimension 2 of `down` (E, D, F); the outputs
    of its ranks are summed.
    """

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        assert config.num_experts is not None, "only a model with experts has this layer"
        count, size, inner = config.num_experts, config.hidden_size, config.expert_size
        self.activation = config.activation
        self.std, self.residual_std = config.init_method_std, config.residual_std
        self.gate = nn.Parameter(torch.empty(count, inner, size)) if self.activation in GATED else None
        self.up = nn.Parameter(torch.empty(count, inner, size))
        self.down = nn.Parameter(torch.empty(count, size, inner))

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """For layers.initialize."""
        return torch.empty(shape).normal_(
            0.0, self.residual_std if name == "down" else self.std, generator=generator
        )

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        up = grouped_linear(rows, self.up, counts)
        if self.gate is None:
            return grouped_linear(activate(up, self.activation), self.down, counts)
        return grouped_linear(
            activate(grouped_linear(rows, self.gate, counts), self.activation) * up, self.down, counts
        )


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """(M, out): the first counts[0] rows of x (M, in) times weight[0].T, and so on.

    weight: (E, out, in). Under autocast in its dtype. By torch's grouped product where that works, which also
    does not wait for the GPU to know the counts; otherwise by a loop.
    """
    dtype = compute_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    # It needs rows of a multiple of 16 bytes, at least one row, and under torch.compile bfloat16.
    fits = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:]) and len(x) > 0
    if (
        fits
        and (dtype == torch.bfloat16 or not torch.compiler.is_compiling())
        and grouped_product_works(x.device, dtype)
    ):
        return F.grouped_mm(x, weight.transpose(-2, -1), offs=counts.cumsum(0, dtype=torch.int32))
    return looped_linear(x, weight, counts)


def looped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """`grouped_linear` by a product for each expert."""
    # unbind has one gradient for the stack of weights; weight[e] would have one as large as the stack for
    # every e.
    return torch.cat([F.linear(part, own) for part, own in zip(x.split(counts.tolist()), weight.unbind(0))])


def grouped_product_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether F.grouped_mm computes products and gradients here: in torch 2.13 not in float64."""
    return _probe(device, dtype)


@functools.cache
def _probe(device: torch.device, dtype: torch.dtype) -> bool:
    # In another thread, which has none of this one's dispatch modes: if this first runs under recomputation,
    # its products would count among those to recompute.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_grouped_products_are_right, device, dtype).result()


def _grouped_products_are_right(device: torch.device, dtype: torch.dtype) -> bool:
    x = torch.ones(4, 16, device=device, dtype=dtype)
    weight = torch.ones(2, 16, 16, device=device, dtype=dtype, requires_grad=True)
    try:
        y = F.grouped_mm(
            x, weight.transpose(-2, -1), offs=torch.tensor([1, 4], device=device, dtype=torch.int32)
        )
        (gradient,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    except (RuntimeError, AttributeError, NotImplementedError, ValueError):
        return False
    return bool((y == 16).all() and (gradient[0] == 1).all() and (gradient[1] == 3).all())


def _without_autocast(device: torch.device):
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else contextlib.nullcontext()
