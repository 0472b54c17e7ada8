"""Megatron-LM's tensors for each of mt's weights: names, cuts over ranks, how ours are made.

A name here is that of the whole model in megatron-core's local layers, with the layer's number in the model
and the expert's in the layer: `decoder.layers.3.mlp.experts.5.linear_fc1.weight`. megatron.py and
megatron_dist.py know what files call it.

Some tensors have sections along their rows, of which each tensor-parallel rank has a slice: gate and up of a
gated feed-forward layer; z, x, B, C and dt of Mamba. mt keeps gate and up apart, and orders Mamba's rows by
group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.config import GATED, ResolvedModelConfig
from ..model.family import family_of
from ..model.mamba import WIDTH

TIED = "output_layer.weight"  # where it is tied, a copy of the embedding
FC1, FC2 = "linear_fc1.weight", "linear_fc2.weight"


# Norm -> prefix of its parameters in transformer-engine, which keeps a norm in the linear layer that it
# feeds.
FUSED_NORMS = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm_",
    "norm": "mixer.in_proj.layer_norm_",
}
# The same of layers with multi-latent attention: their first norm feeds two linear layers.
FUSED_LATENT_NORMS = {
    **{norm: prefix for norm, prefix in FUSED_NORMS.items() if norm != "input_layernorm"},
    "self_attention.q_layernorm": "self_attention.linear_q_up_proj.layer_norm_",
    "self_attention.kv_layernorm": "self_attention.linear_kv_up_proj.layer_norm_",
}


def fused_name(own: str, kind: str, *, latent: bool = False) -> str:
    """The name of transformer-engine in a layer of a kind of decoder_blocks.layer_kinds.

    latent: in a model with multi-latent attention.
    """
    norm, _, parameter = own.rpartition(".")
    fused = FUSED_LATENT_NORMS if latent else FUSED_NORMS
    if norm not in fused or (norm == "pre_mlp_layernorm" and "E" in kind):
        return own
    return fused[norm] + parameter


def hybrid_name(name: str, config: ResolvedModelConfig) -> str:
    """The name of a tensor outside the layers in Megatron-LM's hybrid models, if the model is one."""
    hybrid = config.hybrid_override_pattern is not None
    return name.replace("final_layernorm", "final_norm") if hybrid else name


class Stored(NamedTuple):
    """A tensor of Megatron-LM."""

    name: str
    axis: int | None = None  # along which tensor-parallel ranks cut it
    sections: tuple[tuple[str, int], ...] = ()  # (suffix of its name where it is stored alone, rows)
    # its rows, if local layers cut them and transformer-engine has all of them on every rank
    rows: int | None = None


# In a layer: our modules of whose weights ranks have rows, and columns; others are whole on every rank.
ROW_SLICED = (
    "mixer.qkv", "mixer.query", "mixer.query_up", "mixer.key_value_up", "ffn.up", "ffn.shared.up",
    "mixer.query_down", "mixer.key_value_down",
)  # fmt: skip
COLUMN_SLICED = ("mixer.out.weight", "ffn.down.weight", "ffn.shared.down.weight")
TOP_SLICED = ("embedding.weight", "output.weight")
MAMBA_SLICED = ("mixer.dt_bias", "mixer.A_log", "mixer.D", "mixer.norm_weight")


# Names of modules in older versions of Megatron-LM -> the names that it uses now.
OLDER_NAMES = {
    "self_attention.query_key_value": "self_attention.linear_qkv",
    "self_attention.dense": "self_attention.linear_proj",
    "input_norm": "input_layernorm",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "post_attention_norm": "pre_mlp_layernorm",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
    "decoder.final_norm": "decoder.final_layernorm",
}


def usual_name(theirs: str) -> str | None:
    """A tensor's name in megatron-core's local layers; None if it holds no weight."""
    if theirs.endswith("_extra_state") or "rotary_pos_emb" in theirs:
        return None
    if "word_embeddings_for_head" in theirs:
        return TIED
    name = re.sub(r"^(language_model\.)?(encoder|transformer)\.", "decoder.", theirs)
    name = name.removeprefix("language_model.").replace(".attention.", ".self_attention.")
    for norm, prefix in {**FUSED_NORMS, **FUSED_LATENT_NORMS}.items():
        name = name.replace(f".{prefix}", f".{norm}.")
    module, _, kind = name.rpartition(".")
    layer = re.match(r"decoder\.layers\.([0-9]{1,9}\.)?", module)
    head, tail = (layer[0], module[layer.end() :]) if layer else ("", module)
    return f"{head}{OLDER_NAMES.get(tail, tail)}.{kind}"


# The modules of a depth of multi-token prediction beside its block
PREDICTION_MODULES = {
    "enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "norm": "final_layernorm",
}  # fmt: skip
LAYER_NAME = re.compile(r"(?P<stack>decoder\.layers\.(?P<number>\d+)|mtp\.layers\.\d+\.transformer_layer)\.")


def stored_for(name: str, config: ResolvedModelConfig) -> list[Stored]:
    """The tensors of Megatron-LM that one of our weights is made of."""
    names = family_of(config).megatron
    assert names is not None, "callers ask whether Megatron-LM has the family"
    depth = re.fullmatch(r"(mtp\.layers\.\d+)\.(\w+)\.(.*)", name)
    if depth is not None and depth[2] in PREDICTION_MODULES:
        theirs = f"{depth[1]}.{PREDICTION_MODULES[depth[2]]}.{depth[3]}"
        return [Stored(theirs, 0 if depth[2] == "eh_proj" else None)]
    layer = re.fullmatch(r"(\w+)\.(\d+)\.(.*)", name)
    if depth is not None:
        prefix, own = f"{depth[1]}.transformer_layer", depth[3]
    elif layer is not None:
        prefix, own = f"{names.stacks[layer[1]]}.layers.{layer[2]}", layer[3]
    else:
        module, kind = name.rsplit(".", 1)
        return [Stored(f"{names.top[module]}.{kind}", 0 if name in TOP_SLICED else None)]
    if own.startswith("ffn.experts."):
        fc, axis = (FC2, 1) if own.endswith(".down") else (FC1, 0)
        sections = _gate_and_up(config, config.expert_size) if fc == FC1 else ()
        count = config.num_experts or 0
        return [Stored(f"{prefix}.mlp.experts.{e}.{fc}", axis, sections) for e in range(count)]
    if own in names.parameters:
        theirs = names.parameters[own]
    else:
        module, kind = own.rsplit(".", 1)
        pattern = config.hybrid_override_pattern
        is_mamba = pattern and layer is not None and pattern[int(layer[2])] == "M"
        modules = names.mamba_layer if is_mamba else names.layer
        theirs = f"{modules[module.replace('.gate', '.up')]}.{kind}"
    return [Stored(f"{prefix}.{theirs}", _axis(own, theirs), _sections(own, config), _rows(own, config))]


def _rows(own: str, config: ResolvedModelConfig) -> int | None:
    """Stored.rows."""
    if own.startswith("mixer.query_down."):
        return config.q_lora_rank
    if own.startswith("mixer.key_value_down."):
        return config.kv_lora_rank + config.qk_pos_emb_head_dim
    return None


def _axis(own: str, theirs: str) -> int | None:
    row_sliced = own.replace(".gate.", ".up.").rsplit(".", 1)[0] in ROW_SLICED
    if row_sliced or own in MAMBA_SLICED or own.startswith(("mixer.projection", "mixer.convolution")):
        return 0
    return 1 if own in COLUMN_SLICED else None


def _gate_and_up(config: ResolvedModelConfig, width: int) -> tuple[tuple[str, int], ...]:
    return (("_w", width), ("_v", width)) if config.activation in GATED else ()


def _sections(own: str, config: ResolvedModelConfig) -> tuple[tuple[str, int], ...]:
    if own.startswith(("ffn.up.", "ffn.gate.")):
        return _gate_and_up(config, config.ffn_hidden_size)
    if own.startswith(("ffn.shared.up.", "ffn.shared.gate.")):
        return _gate_and_up(config, config.moe_shared_expert_intermediate_size or 0)
    if not own.startswith(("mixer.projection", "mixer.convolution")):
        return ()
    inner, state = (
        config.mamba_heads * config.mamba_head_dim,
        config.mamba_num_groups * config.mamba_state_dim,
    )
    convolved = ((".x", inner), (".B", state), (".C", state))
    if own.startswith("mixer.convolution"):
        return convolved
    return ((".z", inner), *convolved, (".dt", config.mamba_heads))


def join(name: str, parts: Sequence[Sequence[Tensor]], config: ResolvedModelConfig) -> Tensor:
    """One of our weights. parts: the sections of each of the tensors in `stored_for(name)`."""
    own = name.rsplit(".", 1)[0]
    section = 1 if own.endswith(".up") or name.endswith(".up") else 0
    if ".experts." in name:
        return torch.stack([sections[section if len(sections) > 1 else 0] for sections in parts])
    (sections,) = parts
    if ".mixer.projection" in name or ".mixer.convolution" in name:
        by_group = [part.unflatten(0, (config.mamba_num_groups, -1)) for part in sections]
        joined = torch.cat(by_group, dim=1).flatten(0, 1)
        return joined.squeeze(1) if joined.ndim == 3 else joined
    return sections[section if len(sections) > 1 else 0]


def split(
    stored: Stored, name: str, read: Callable[[str], Tensor], config: ResolvedModelConfig
) -> list[Tensor]:
    """The sections of a tensor of Megatron-LM, of which our weight is a part. read: our name -> weight."""
    if ".experts." in name:
        expert = int(stored.name.split(".experts.")[1].split(".")[0])
        names = [name.replace(".up", ".gate"), name] if len(stored.sections) > 1 else [name]
        return [read(n)[expert] for n in names]
    if ".mixer.projection" in name or ".mixer.convolution" in name:
        groups = config.mamba_num_groups
        rows = [size // groups for _, size in stored.sections]
        by_group = read(name).unflatten(0, (groups, -1)).split(rows, dim=1)
        sections = [part.flatten(0, 1) for part in by_group]
        is_kernel = name.endswith(".convolution")
        return [part.unsqueeze(1) if is_kernel else part for part in sections]
    names = [name.replace(".up.", ".gate."), name] if len(stored.sections) > 1 else [name]
    return [read(n) for n in names]


def shape_of(stored: Stored, name: str, shape: torch.Size, config: ResolvedModelConfig) -> torch.Size:
    """The shape of a tensor of Megatron-LM, of which our weight of that name and shape is a part."""
    rows = sum(size for _, size in stored.sections)
    if ".experts." in name:
        shape = shape[1:]
    if name.endswith(".convolution"):
        shape = torch.Size((shape[0], 1, WIDTH))
    return torch.Size((rows, *shape[1:])) if rows else shape


def written(names: Mapping[str, torch.Size], config: ResolvedModelConfig) -> Iterator[tuple[Stored, str]]:
    """(tensor of Megatron-LM, the last of our weights in it) of a model, each tensor once."""
    for name in names:
        if re.search(r"\.gate(\.|$)", name) and ".shared_gate" not in name:
            continue  # in the tensor of `up`
        for stored in stored_for(name, config):
            yield stored, name
