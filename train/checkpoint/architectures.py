"""Weights of Hugging Face's architectures: renamed and reshaped, both ways.

An architecture is the `model_type` of a config.json; model/foreign_names.py has its table. Weights are
converted one of ours at a time, so that a model is never in memory twice.

Legend: G groups (of heads: key-value groups, or those of Mamba-2), V padded vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ...core.config import UserError
from ..model.config import GATED, ResolvedModelConfig
from ..model.family import FAMILIES
from ..model.foreign_names import WeightNames

ARCHITECTURES = {
    name: architecture for family in FAMILIES.values() for name, architecture in family.huggingface.items()
}


def weights_in(
    architecture: str,
    shapes: Mapping[str, torch.Size],
    config: ResolvedModelConfig,
    available: Container[str],
    read: Callable[[str], Tensor],
    place: str,
) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) of every weight in `shapes`, read from Hugging Face's.

    available: the names that are there. read: gives one of them. place: what to name in a message. Raises
    UserError for a weight that is missing or of another shape.
    """
    weights = ARCHITECTURES[architecture].weights
    for name, shape in shapes.items():
        names = []
        for there in _names(name, weights, config):
            short = there.removeprefix(weights.base)
            if there not in available and short not in available:
                raise UserError(
                    f"{place}: has no weight {there}; give a whole {architecture} model's directory"
                )
            names.append(there if there in available else short)
        tensor = _join([read(n) for n in names], name, weights, config)
        if _is_padded(name) and len(tensor) == config.vocab_size:
            tensor = torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), *tensor.shape[1:])])
        if tensor.shape != shape:
            raise UserError(
                f"{place}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(shape)}; fetch the"
                " model again"
            )
        yield name, tensor


def weights_out(
    architecture: str, ours: Iterable[tuple[str, Tensor]], config: ResolvedModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face's name, tensor) of our weights; the rows that pad the vocabulary are left out."""
    weights = ARCHITECTURES[architecture].weights
    for name, tensor in ours:
        names = _names(name, weights, config)
        tensor = tensor[: config.vocab_size] if _is_padded(name) else tensor
        yield from zip(names, _split(tensor, name, len(names), weights, config), strict=True)


def foreign_names(architecture: str, names: Iterable[str], config: ResolvedModelConfig) -> set[str]:
    """What Hugging Face calls our weights."""
    return {there for name in names for there in _names(name, ARCHITECTURES[architecture].weights, config)}


def _names(name: str, weights: WeightNames, config: ResolvedModelConfig) -> tuple[str, ...]:
    """Hugging Face's names of what our weight `name` holds."""
    prefix, modules, rest = "", weights.top, name
    if (stack := name.split(".")[0]) in weights.stacks:
        prefix, modules = weights.stacks[stack]
        _, layer, rest = name.split(".", 2)
        prefix = f"{prefix}.{layer}."
    if rest in modules:
        whole = prefix + modules[rest]
        return (
            tuple(whole.format(expert=e) for e in range(config.num_experts))
            if "{expert}" in whole
            else (whole,)
        )
    module, kind = rest.rsplit(".", 1)
    found = modules[module]
    if module in weights.gated_suffix and config.activation not in GATED:
        found = found.removesuffix(weights.gated_suffix[module])
    return tuple(f"{prefix}{n}.{kind}" for n in ((found,) if isinstance(found, str) else found))


def _join(parts: list[Tensor], name: str, weights: WeightNames, config: ResolvedModelConfig) -> Tensor:
    """Ours from theirs."""
    if ".experts." in name:
        return torch.stack(parts)
    if _is_transposed(name, weights):
        parts = [p.T for p in parts]
    if name.endswith(".convolution"):  # theirs is torch's Conv1d, one channel to one
        parts = [p.squeeze(1) for p in parts]
    if name.endswith(weights.part_by_part):
        groups, rows = _rows(name, config)
        parts = list(parts[0].split([groups * r for r in rows]))
    if len(parts) == 1:
        return parts[0]
    return torch.cat([p.unflatten(0, (_rows(name, config)[0], -1)) for p in parts], dim=1).flatten(0, 1)


def _split(
    tensor: Tensor, name: str, count: int, weights: WeightNames, config: ResolvedModelConfig
) -> list[Tensor]:
    """Theirs, `count` of them, from ours."""
    if ".experts." in name:
        return list(tensor.unbind())
    part_by_part = name.endswith(weights.part_by_part)
    parts = [tensor]
    if count > 1 or part_by_part:
        groups, rows = _rows(name, config)
        parts = [p.flatten(0, 1) for p in tensor.unflatten(0, (groups, -1)).split(rows, dim=1)]
    if part_by_part:
        parts = [torch.cat(parts)]
    if name.endswith(".convolution"):
        parts = [p.unsqueeze(1) for p in parts]
    return [p.T.contiguous() if _is_transposed(name, weights) else p for p in parts]


def _rows(name: str, config: ResolvedModelConfig) -> tuple[int, tuple[int, ...]]:
    """(number of groups, how many rows of each part one group has) of a weight that is made of parts."""
    if ".projection." in name or ".convolution" in name:
        groups, heads, state = (
            config.mamba_num_groups,
            config.mamba_num_heads // config.mamba_num_groups,
            config.mamba_state_dim,
        )
        mixed = (heads * config.mamba_head_dim, state, state)
        return groups, (mixed[0], *mixed, heads) if ".projection." in name else mixed
    channels = config.kv_channels
    queries = config.num_attention_heads // config.num_query_groups * channels
    return config.num_query_groups, (
        (channels, channels) if ".key_value." in name else (queries, channels, channels)
    )


def _is_transposed(name: str, weights: WeightNames) -> bool:
    return name.endswith(tuple(f".{m}.weight" for m in weights.transposed))


def _is_padded(name: str) -> bool:
    return name in ("embedding.weight", "output.weight", "head.bias")
