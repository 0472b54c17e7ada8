"""Muon: matrices step along an orthogonal matrix near their momentum, all other weights by AdamW.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); scales of Liu et al. 2025 (arXiv:2502.16982)
and Bernstein 2025. Which weights it steps, and what is one matrix, is Megatron-LM's choice
(core/optimizer/muon.py):

| weights | step |
|---|---|
| matrices but the token embedding and the output layer | Muon |
| each expert's matrices | Muon, each expert on its own |
| `gate` and `up` of a gated layer | as one matrix of both, which Megatron-LM stores as one |
| queries, keys and values | three matrices, or one with muon_split_qkv off |
| token embedding, output layer, vectors, biases, Mamba's convolution | AdamW |

A matrix M with the singular values s becomes one with p(s / |M|), where p is near 1: a polynomial, by
products of matrices alone (Newton-Schulz). The order of rows does not matter to it, and so neither does how
rows are divided over ranks.

Every rank stores the momentum of its own shard. For a step it gathers the whole matrix, one at a time, and
keeps its part of the result, so that all layouts give the same numbers. Experts are gathered over
tensor-parallel ranks only. With muon_tp_mode `blockwise` each tensor-parallel rank takes its block for a
matrix of its own (Megatron-LM's default): less communication, and numbers that depend on the layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from .model.config import ResolvedModelConfig
from .model.dtensor import DATA_PARALLEL_AXES, local_shard, shard_and_slices

Coefficients = Literal["quintic", "simple", "polar_express", "aol"]
ScaleMode = Literal["spectral", "unit_rms_norm", "shape_scaling"]

# (a, b, c) of each step X <- a X + b (X X') X + c (X X')^2 X
COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "simple": ((3.4445, -4.7750, 2.0315),),  # Jordan et al. 2024
    "quintic": (  # https://leloykun.github.io/ponder/muon-opt-coeffs
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (  # Amsel et al. 2025 (arXiv:2505.16932)
        (8.2051, -22.9019, 16.4607),
        (4.0664, -2.8612, 0.5184),
        (3.9096, -2.8234, 0.5250),
        (3.2856, -2.4153, 0.4853),
        (2.2779, -1.6198, 0.3985),
        (1.8726, -1.2307, 0.3585),
        (1.8564, -1.2132, 0.3568),
        (1.8750, -1.2500, 0.3750),
    ),
    "aol": (  # Boissin et al. 2025
        (4.0098, -7.0585, 2.4635),
        (3.4585, -5.5479, 2.5959),
        (2.7573, -3.2939, 1.4254),
        (2.7215, -3.0494, 1.3169),
    ),
}
assert COEFFICIENTS.keys() == set(get_args(Coefficients))
LEAST_NORM = 1e-7  # of what is divided by its norm
NO_MATRICES = (["embedding", "weight"], ["output", "weight"])  # the ends of the names of weights


def steps_mistake(kind: Coefficients, steps: int) -> str | None:
    """Why so many steps do not fit the coefficients; None if they do."""
    count = len(COEFFICIENTS[kind])
    if kind == "polar_express":
        return None if steps >= count else f"must be at least {count} for polar_express"
    return None if steps >= 1 and steps % count == 0 else f"must be a multiple of {count} for {kind}"


def newton_schulz(x: Tensor, kind: Coefficients, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """x (..., rows, columns) with the singular values p(s / |x|), |x| its Frobenius norm; of x's dtype.

    dtype: of the products (default: x's).
    """
    sets = COEFFICIENTS[kind]
    if kind == "polar_express":
        sets = (*sets, *itertools.repeat(sets[-1], max(steps - len(sets), 0)))
    wide = x.shape[-2] <= x.shape[-1]
    y = x if wide else x.mT
    y = (y / y.norm(dim=(-2, -1), keepdim=True).clamp_min(LEAST_NORM)).to(dtype or x.dtype)
    for a, b, c in itertools.islice(itertools.cycle(sets), steps):
        squares = y @ y.mT
        y = a * y + (b * squares + c * squares @ squares) @ y
    return (y if wide else y.mT).to(x.dtype)


def scale_factor(rows: int, columns: int, mode: ScaleMode) -> float:
    """The factor of an update of that shape. spectral: its root mean square is then near 1."""
    if mode == "shape_scaling":
        return max(1.0, rows / columns) ** 0.5
    return (max(rows, columns) if mode == "spectral" else rows / columns) ** 0.5


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon steps a weight."""
    parts = name.split(".")
    return (
        weight.ndim >= 2
        and parts[-2:] not in NO_MATRICES
        and not parts[-1].endswith("bias")
        and parts[-1] != "convolution"  # of three dimensions in Megatron-LM
    )


class Muon(torch.optim.AdamW):
    """Muon for the groups that have `muon`, AdamW for the others."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        names: Mapping[nn.Parameter, str],
        model: ResolvedModelConfig,
        *,
        momentum: float,
        nesterov: bool,
        split_qkv: bool,
        scale_mode: ScaleMode,
        extra_scale_factor: float,
        coefficients: Coefficients,
        num_steps: int,
        dtype: torch.dtype | None,
        blockwise: bool,
        **adamw: Any,
    ):
        """names: of the weights. dtype: of the products (default: the weights')."""
        super().__init__(groups, **adamw)
        self.momentum, self.nesterov, self.blockwise = momentum, nesterov, blockwise
        self.scale_mode, self.extra_scale_factor = scale_mode, extra_scale_factor
        self.coefficients, self.num_steps, self.dtype = coefficients, num_steps, dtype
        queries = model.num_attention_heads // model.num_query_groups
        self.qkv_rows = [n * model.kv_channels for n in (queries, 1, 1)] if split_qkv else None
        self.names = dict(names)
        self.slices = {weight: self._own_slices(weight) for weight in names if self._is_matrix(weight)}

    def moment_names(self, weight: Tensor) -> tuple[str, ...]:
        """The moments of a weight, by their names in its state."""
        return ("momentum_buffer",) if self._is_matrix(weight) else ("exp_avg", "exp_avg_sq")

    def _is_matrix(self, weight: Tensor) -> bool:
        return is_matrix(self.names[weight], weight)  # type: ignore[index]  # weights are parameters

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # without a closure
        """Steps all weights that have a gradient."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        for weights in _joined([p for p in group["params"] if p.grad is not None], self.names):
            gathered = [self._gather(self._direction(weight), weight) for weight in weights]
            for weight, part in zip(weights, self._update(gathered, self.names[weights[0]])):
                local_shard(weight).mul_(1 - rate * decay).sub_(part[self.slices[weight]], alpha=rate)

    def _direction(self, weight: nn.Parameter) -> Tensor:
        """This rank's shard of the momentum after this step's gradient, or of Nesterov's."""
        assert weight.grad is not None, "weights without a gradient are not stepped"
        state = self.state[weight]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(weight)
        gradient, average = local_shard(weight.grad), local_shard(state["momentum_buffer"])
        average.lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum) if self.nesterov else average

    def _gather(self, shard: Tensor, weight: nn.Parameter) -> Tensor:
        """The matrix of which this rank has a shard. Stacked experts stay divided over ranks."""
        if not isinstance(weight, DTensor):
            return shard
        whole = DTensor.from_local(
            shard, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape,
            stride=weight.stride(),
        )  # fmt: skip
        # one axis at a time, the innermost shards first: what torch recommends for shards of shards
        for i, placement in enumerate(self._gathered_placements(weight)):
            if placement != whole.placements[i]:
                whole = whole.redistribute(
                    placements=[*whole.placements[:i], placement, *whole.placements[i + 1 :]]
                )
        return whole.to_local()

    def _own_slices(self, weight: nn.Parameter) -> tuple[slice, ...]:
        """This rank's shard of a weight, as slices of what `_gather` returns."""
        _, own = shard_and_slices(weight)
        if not isinstance(weight, DTensor):
            return own
        _, begin = compute_local_shape_and_global_offset(
            weight.shape, weight.device_mesh, self._gathered_placements(weight)
        )
        return tuple(slice(o.start - b, o.stop - b) for o, b in zip(own, begin))

    def _gathered_placements(self, weight: DTensor) -> list[Placement]:
        axes = weight.device_mesh.mesh_dim_names
        assert axes is not None, "mesh.py names the axes"
        return [
            placement if self._stays_divided(axis, placement, weight.ndim) else Replicate()
            for axis, placement in zip(axes, weight.placements)
        ]

    def _stays_divided(self, axis: str, placement: Placement, dimensions: int) -> bool:
        if dimensions > 2 and isinstance(placement, Shard) and placement.dim == 0:
            return True  # over the experts
        return self.blockwise and axis not in DATA_PARALLEL_AXES

    def _update(self, parts: Sequence[Tensor], name: str) -> Sequence[Tensor]:
        """The steps of weights that are one matrix, less the learning rate; each (..., rows, columns)."""
        if len(parts) > 1:
            sizes = [part.shape[-2] for part in parts]
            return self._orthogonal(torch.cat(list(parts), -2)).split(sizes, -2)
        (part,) = parts
        if self.qkv_rows is None or not name.endswith("qkv.weight"):
            return [self._orthogonal(part)]
        groups = part.view(-1, sum(self.qkv_rows), part.shape[-1])
        split = [
            self._orthogonal(rows.flatten(0, 1)).view_as(rows) for rows in groups.split(self.qkv_rows, 1)
        ]
        return [torch.cat(split, 1).view_as(part)]

    def _orthogonal(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x  # experts of other ranks only
        y = newton_schulz(x, self.coefficients, self.num_steps, self.dtype)
        return y * (scale_factor(x.shape[-2], x.shape[-1], self.scale_mode) * self.extra_scale_factor)


def _joined(weights: Sequence[nn.Parameter], names: Mapping[nn.Parameter, str]) -> list[list[nn.Parameter]]:
    """Lists of weights that are one matrix: `gate` and `up` of a layer together, all others alone."""
    matrices: dict[str, list[nn.Parameter]] = {}
    for weight in weights:
        parts = names[weight].split(".")
        at = -1 if parts[-1] != "weight" else -2
        if parts[at] in ("gate", "up"):
            parts[at] = "gate and up"
        matrices.setdefault(".".join(parts), []).append(weight)
    return list(matrices.values())
