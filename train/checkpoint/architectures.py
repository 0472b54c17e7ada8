"""Converts weights between mt's and Hugging Face's names and layouts, in both directions.

An architecture is the `model_type` of a config.json; model/foreign_names.py has a table of names for each.
One weight of mt is converted at a time, so that a model is never in memory twice.

Some weights of mt contain several of Hugging Face's (queries, keys and values). Their rows are ordered group
by group: (G, rows of each part in a group). Hugging Face has a separate matrix (rows of one part) for each
part. G: groups of key-value heads, or of Mamba-2's heads.
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


def weights_from_hf(
    architecture: str,
    shapes: Mapping[str, torch.Size],
    config: ResolvedModelConfig,
    available: Container[str],
    read: Callable[[str], Tensor],
    place: str,
) -> Iterator[tuple[str, Tensor]]:
    """(mt's name, tensor) of every weight in `shapes`, converted from Hugging Face's.

    available: Hugging Face's names that exist. read: name -> tensor. place: begins messages. Raises
    UserError for a weight that is missing or of another shape.
    """
    weights = ARCHITECTURES[architecture].weights
    for name, shape in shapes.items():
        names = []
        for theirs in _hf_names(name, weights, config):
            short = theirs.removeprefix(weights.base)
            if theirs not in available and short not in available:
                raise _missing(theirs, architecture, place)
            names.append(theirs if theirs in available else short)
        tensor = _join([read(n) for n in names], name, weights, config)
        if _has_vocabulary_rows(name) and len(tensor) == config.vocab_size:
            tensor = torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), *tensor.shape[1:])])
        if tensor.shape != shape:
            raise UserError(
                f"{place}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(shape)}; fetch the"
                " model again"
            )
        yield name, tensor


def check_stored(
    architecture: str,
    shapes: Mapping[str, torch.Size],
    config: ResolvedModelConfig,
    stored: Mapping[str, tuple[int, ...]],
    place: str,
    *,
    may_lack: Callable[[str], bool],
) -> None:
    """Compares the settings with the shapes of the stored tensors, before anything is allocated.

    shapes: of our weights. stored: Hugging Face's name -> shape. may_lack: whether our weight of a name may
    be missing. A vocabulary may have more rows than the settings say. Raises UserError as weights_from_hf.
    """
    weights = ARCHITECTURES[architecture].weights
    base = weights.base
    for name, shape in shapes.items():
        ours = [(name, torch.empty(shape, device="meta"))]
        if _half(name, weights) is not None:
            ours *= len(weights.halves)
        for theirs, tensor in weights_to_hf(architecture, ours, config):
            found = stored.get(theirs, stored.get(theirs.removeprefix(base)))
            if found is None:
                if may_lack(name):
                    continue
                raise _missing(theirs, architecture, place)
            wanted = tuple(tensor.shape)
            if _has_vocabulary_rows(name) and found[1:] == wanted[1:] and found[:1] > wanted[:1]:
                continue
            if found != wanted:
                raise UserError(
                    f"{place}: {theirs} has shape {found}, config.json says {wanted}; fetch the model again"
                )


def _missing(theirs: str, architecture: str, place: str) -> UserError:
    return UserError(f"{place}: has no weight {theirs}; give a whole {architecture} model's directory")


def weights_to_hf(
    architecture: str, ours: Iterable[tuple[str, Tensor]], config: ResolvedModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face's name, tensor) of our weights, without the rows that pad the vocabulary."""
    weights = ARCHITECTURES[architecture].weights
    waiting: dict[str, list[Tensor]] = {}  # first halves of their tensors
    for name, tensor in ours:
        names = _hf_names(name, weights, config)
        if _half(name, weights) is not None:
            found = waiting.setdefault(names[0], [])
            found.append(tensor)
            if len(found) == len(weights.halves):
                yield names[0], torch.cat(waiting.pop(names[0]))
            continue
        tensor = tensor[: config.vocab_size] if _has_vocabulary_rows(name) else tensor
        yield from zip(names, _split(tensor, name, len(names), weights, config), strict=True)


def hf_names(architecture: str, names: Iterable[str], config: ResolvedModelConfig) -> set[str]:
    """Hugging Face's names of our weights."""
    weights = ARCHITECTURES[architecture].weights
    return {theirs for name in names for theirs in _hf_names(name, weights, config)}


def _hf_names(name: str, weights: WeightNames, config: ResolvedModelConfig) -> tuple[str, ...]:
    """Hugging Face's names of the tensors that mt's weight `name` contains."""
    prefix, rest = "", name
    modules: Mapping[str, str | tuple[str, ...]] = weights.top
    if (stack := name.split(".")[0]) in weights.stacks:
        prefix, modules = weights.stacks[stack]
        _, layer, rest = name.split(".", 2)
        prefix = f"{prefix}.{layer}."
    if rest in modules:  # a parameter with a name of its own
        theirs = modules[rest]
        assert isinstance(theirs, str), "only modules are several of theirs"
        if "{expert}" not in theirs:
            return (prefix + theirs,)
        assert config.num_experts is not None, "only mixtures have experts"
        return tuple(prefix + theirs.format(expert=e) for e in range(config.num_experts))
    module, kind = rest.rsplit(".", 1)
    found = modules[module]
    several = (found,) if isinstance(found, str) else found
    if module in weights.gated_suffix and config.activation not in GATED:
        several = tuple(n.removesuffix(weights.gated_suffix[module]) for n in several)
    return tuple(f"{prefix}{n}.{kind}" for n in several)


def _join(parts: list[Tensor], name: str, weights: WeightNames, config: ResolvedModelConfig) -> Tensor:
    """mt's weight, joined from Hugging Face's."""
    if ".experts." in name:
        return torch.stack(parts)
    if _is_transposed(name, weights):
        parts = [p.T for p in parts]
    if (half := _half(name, weights)) is not None:
        return parts[0].chunk(len(weights.halves))[half]
    if name.endswith(".convolution"):  # a torch Conv1d of one channel each: (channels, 1, width)
        parts = [p.squeeze(1) for p in parts]
    if name.endswith(weights.part_by_part):
        groups, rows = _rows_per_group(name, config)
        parts = list(parts[0].split([groups * r for r in rows]))
    if len(parts) == 1:
        return parts[0]
    groups, _ = _rows_per_group(name, config)
    return torch.cat([p.unflatten(0, (groups, -1)) for p in parts], dim=1).flatten(0, 1)


def _split(
    tensor: Tensor, name: str, count: int, weights: WeightNames, config: ResolvedModelConfig
) -> list[Tensor]:
    """Hugging Face's `count` weights, split from mt's."""
    if ".experts." in name:
        return list(tensor.unbind())
    part_by_part = name.endswith(weights.part_by_part)
    parts = [tensor]
    if count > 1 or part_by_part:
        groups, rows = _rows_per_group(name, config)
        parts = [p.flatten(0, 1) for p in tensor.unflatten(0, (groups, -1)).split(rows, dim=1)]
    if part_by_part:
        parts = [torch.cat(parts)]
    if name.endswith(".convolution"):
        parts = [p.unsqueeze(1) for p in parts]
    return [p.T.contiguous() if _is_transposed(name, weights) else p for p in parts]


def _half(name: str, weights: WeightNames) -> int | None:
    """Which half of one of their tensors a weight is, or None."""
    module = name.rpartition(".")[0]
    return next((i for i, half in enumerate(weights.halves) if module.endswith(f".{half}")), None)


def _rows_per_group(name: str, config: ResolvedModelConfig) -> tuple[int, tuple[int, ...]]:
    """(G, rows of each part in one group) of a weight that contains several parts."""
    if ".projection." in name or ".convolution" in name:
        assert config.mamba_num_heads is not None, "a model with Mamba layers has heads"
        groups, state = config.mamba_num_groups, config.mamba_state_dim
        heads = config.mamba_num_heads // groups
        convolved = (heads * config.mamba_head_dim, state, state)  # x, B, C
        # the projection also has the gate z before them and dt after them
        return groups, (convolved[0], *convolved, heads) if ".projection." in name else convolved
    channels = config.kv_channels
    queries = config.num_attention_heads // config.num_query_groups * channels
    rows = (channels, channels) if ".key_value." in name else (queries, channels, channels)
    return config.num_query_groups, rows


def _is_transposed(name: str, weights: WeightNames) -> bool:
    return name.endswith(tuple(f".{m}.weight" for m in weights.transposed))


def _has_vocabulary_rows(name: str) -> bool:
    return name in ("embedding.weight", "output.weight", "head.bias")
