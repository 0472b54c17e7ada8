"""Megatron-LM's torch_dist format: what megatron-core's dist_checkpointing writes and reads, without it.

    DIR/iter_0000300/metadata.json      {"sharded_backend": "torch_dist", ...}
                     common.pt          torch.save of {"args": Namespace, "iteration": 300, ...}
                     .metadata, __R_N.distcp    torch.distributed.checkpoint: the whole tensors, in chunks

Where all layers are alike, a tensor holds those of all of them: decoder.layers.mlp.linear_fc1.weight is
(layers, rows, columns). Otherwise, and in newer versions, each layer has its own, decoder.layers.3... .
Experts are a dimension after that of the layers, or tensors of their own. Gate and up are the halves of one
tensor, or two (weight_w, weight_v); Mamba's sections are always tensors of their own (in_proj.weight.z, ...).

Reading and writing take the memory of one chunk, whatever the layout that wrote the files.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, LoadPlan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ...core import manifest
from ...core.config import UserError, shown
from ..model.config import ResolvedModelConfig
from ..model.decoder_blocks import layer_kinds
from .base import stored_dtype
from .megatron_names import (
    LAYER_NAME,
    PREDICTION_MODULES,
    Stored,
    fused_name,
    hybrid_name,
    shape_of,
    split,
    usual_name,
    written,
)
from .safe_reader import SafeFileSystemReader

COMMON = "common.pt"
MOST_ENTRIES = 1_000_000  # of the mappings in a file, of the tensors in a checkpoint
SUFFIXES = r"(_w|_v|\.z|\.x|\.B|\.C|\.dt)?"
NO_WEIGHTS = re.compile(r"(chained_\d+\.)?(optimizer|rng_state|rerun_state|opt_param)\b|.*_extra_state")


class DistTensors:
    """The tensors of a checkpoint, by the names of megatron_names.py."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reader = SafeFileSystemReader(folder)
        described = self.reader.read_metadata().state_dict_metadata
        # name -> suffix of a section -> (key of the file, indices of its first dimensions: layer, expert)
        self.places: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
        self.described = {
            key: tensor
            for key, tensor in described.items()
            if isinstance(tensor, TensorStorageMetadata) and not NO_WEIGHTS.match(key)
        }
        for key, tensor in self.described.items():
            self._place(key, tuple(tensor.size))
        self.names = self.places.keys()
        self.count = sum(map(len, self.places.values()))
        self.numbers = sum(tensor.size.numel() for tensor in self.described.values())

    def _place(self, key: str, size: tuple[int, ...]) -> None:
        found = re.fullmatch(
            r"(?P<stack>decoder\.layers\.)(?P<layer>\d+\.)?(?P<own>.*?)" + SUFFIXES, key
        ) or re.fullmatch(
            r"(?P<stack>mtp\.layers\.\d+\.transformer_layer\.|)(?P<layer>)(?P<own>.*?)" + SUFFIXES, key
        )
        assert found is not None, "the second pattern matches everything"
        stack, layer, own, suffix = found["stack"], found["layer"], found["own"], found[4] or ""
        layers: list[tuple[str, tuple[int, ...]]] = [(layer or "", ())]
        if stack == "decoder.layers." and not layer:
            layers = [(f"{number}.", (number,)) for number in self._first(key, size, 0)]
        experts = re.fullmatch(r"(mlp\.)experts\.experts\.(\d+\.)?(.*)", own)
        for number, index in layers:
            if experts is None:
                names = [(own, index)]
            elif experts[2]:
                names = [(f"{experts[1]}experts.{experts[2]}{experts[3]}", index)]
            else:
                names = [
                    (f"{experts[1]}experts.{expert}.{experts[3]}", (*index, expert))
                    for expert in self._first(key, size, len(index))
                ]
            for name, place in names:
                usual = usual_name(f"{stack}{number}{name}")
                if usual is not None:
                    self.places.setdefault(usual, {})[suffix] = (key, place)

    def _first(self, key: str, size: tuple[int, ...], dimension: int) -> range:
        """The indices of a dimension that counts layers or experts."""
        if len(size) <= dimension or 0 in size or len(self.places) + size[dimension] > MOST_ENTRIES:
            raise UserError(
                f"{self.folder}: {shown(key)} has size {size}, not that of all layers; copy the checkpoint"
                " again"
            )
        return range(size[dimension])

    def shapes(self, stored: Stored) -> list[tuple[int, ...]]:
        places = self.places[stored.name].values()
        return [tuple(self.described[key].size[len(index) :]) for key, index in places]

    def sections(self, stored: Stored, *, meta: bool) -> list[Tensor]:
        """The sections of a tensor, whole. meta: without values."""
        places, suffixes = self.places[stored.name], [suffix for suffix, _ in stored.sections]
        if "" in places:
            whole = self._read(*places[""], meta)
            return list(whole.split([rows for _, rows in stored.sections])) if suffixes else [whole]
        return [self._read(*places[suffix], meta) for suffix in suffixes]

    def _read(self, key: str, index: tuple[int, ...], meta: bool) -> Tensor:
        described = self.described[key]
        size = described.size[len(index) :]
        target = torch.empty(size, dtype=described.properties.dtype, device="meta" if meta else "cpu")
        if not meta:
            wanted = ChunkStorageMetadata(
                torch.Size([*index, *[0] * len(size)]), torch.Size([*[1] * len(index), *size])
            )
            items = create_read_items_for_chunk_list(key, described, [wanted])
            metadata = self.reader.read_metadata()
            self.reader.set_up_storage_reader(metadata, is_coordinator=True)
            planner = _SlicePlanner(target.view(wanted.sizes))
            self.reader.read_data(LoadPlan(items), planner).wait()
        return target


class _SlicePlanner(DefaultLoadPlanner):
    """Copies what is read into one tensor."""

    def __init__(self, target: Tensor):
        super().__init__()
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        place = zip(read_item.dest_offsets, read_item.lengths)
        return self.target[tuple(slice(start, start + length) for start, length in place)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass


class _Writer:
    """Writes chunks of tensors and objects to files of a folder, and then their .metadata."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.metadata = Metadata({}, storage_data={})

    def write(self, name: str, file: IO[bytes], index: MetadataIndex, content: Any) -> None:
        start = file.tell()
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)
        self.metadata.storage_data[index] = _StorageInfo(name, start, file.tell() - start)

    def add(
        self, key: str, size: torch.Size, chunk: ChunkStorageMetadata, dtype: torch.dtype
    ) -> MetadataIndex:
        tensor = self.metadata.state_dict_metadata.setdefault(
            key, TensorStorageMetadata(TensorProperties(dtype=dtype), size, [])
        )
        assert isinstance(tensor, TensorStorageMetadata), "objects have other keys"
        tensor.chunks.append(chunk)
        return MetadataIndex(key, chunk.offsets, len(tensor.chunks) - 1)


def write_dist(
    folder: Path,
    config: ResolvedModelConfig,
    shapes: Mapping[str, torch.Size],
    read: Callable[[str], Tensor],
    state: dict[str, Any],
    dtype: torch.dtype,
    *,
    local: bool,
) -> None:
    """Writes a checkpoint of weights. read: our name -> weight.

    shapes: of our weights, with the padding of the vocabulary in the output. local: the names of
    --transformer-impl local, which differ for experts alone.
    A file for the tensors outside the layers, and one for each layer.
    """
    kinds, writer = layer_kinds(config), _Writer(folder)
    alike = len(set(kinds)) == 1 and config.hybrid_override_pattern is None
    alike = alike and config.moe_layer_freq == "1"
    files: dict[int, list[tuple[Stored, str]]] = {}
    for stored, name in written(shapes, config):
        in_layer = LAYER_NAME.match(stored.name)
        number = int(in_layer["number"] or -1) if in_layer else -1
        files.setdefault(number, []).append((stored, name))
    for layer, every in files.items():
        file_name = f"__{layer + 1}_0.distcp"
        with manifest.atomic_write(folder / file_name) as file:
            for stored, name in every:
                shape = shape_of(stored, name, shapes[name], config)
                key, index, count = _key(stored, config, kinds, alike, local)
                own = stored_dtype(name, dtype)
                sections = [part.to(own).contiguous() for part in split(stored, name, read, config)]
                apart = ".mixer." in name and len(sections) > 1
                start = 0
                for (suffix, _), part in zip(stored.sections or (("", 0),), sections):
                    rows = part.shape[0] if apart else shape[0]
                    chunk = ChunkStorageMetadata(
                        torch.Size([*index, start, *[0] * (part.ndim - 1)]),
                        torch.Size([*[1] * len(index), *part.shape]),
                    )
                    size = torch.Size([*count, rows, *part.shape[1:]])
                    place = writer.add(key + suffix if apart else key, size, chunk, own)
                    writer.write(file_name, file, place, part.view(chunk.sizes).clone())
                    start += 0 if apart else part.shape[0]
            stacks = [f"mtp.layers.{depth}.transformer_layer." for depth in range(config.mtp_num_layers)]
            if layer >= 0:
                stacks = ["decoder.layers." + ("" if alike else f"{layer}.")]
            states = [
                unique
                for stack in stacks
                for unique in _extra_states(layer, stack, config, kinds, alike and layer >= 0)
            ]
            if layer < 0:
                states += [
                    f"mtp.layers.{depth}.{module}._extra_state/shard_0_1"
                    for depth in range(config.mtp_num_layers)
                    for module in PREDICTION_MODULES.values()
                ]
            for unique in states:
                writer.metadata.state_dict_metadata[unique] = BytesStorageMetadata()
                writer.write(file_name, file, MetadataIndex(unique), _none())
    with manifest.atomic_write(folder / COMMON) as file:
        torch.save(state, file)
    with manifest.atomic_write(folder / ".metadata") as file:
        pickle.dump(writer.metadata, file)
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    with manifest.atomic_write(folder / "metadata.json", "w") as file:
        json.dump({**backend, "common_backend": "torch", "common_backend_version": 1}, file)


def _key(
    stored: Stored, config: ResolvedModelConfig, kinds: list[str], alike: bool, local: bool
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """(key, indices of the first dimensions, their sizes) of a tensor."""
    layer = LAYER_NAME.match(stored.name)
    if layer is None:
        return hybrid_name(stored.name, config), (), ()
    number, named = int(layer["number"] or -1), stored.name[layer.end() :]
    alike = alike and number >= 0
    latent = config.multi_latent_attention
    # Local layers name the norm before experts as if it were fused into a feed-forward layer; those with
    # multi-latent attention name no norm so.
    own = named if local and latent else fused_name(named, "-" if local else kinds[number], latent=latent)
    index, count = ((number,), (len(kinds),)) if alike else ((), ())
    if expert := re.fullmatch(r"mlp\.experts\.(\d+)\.(.*)", own):
        own = f"mlp.experts.experts.{expert[2]}"
        index, count = (*index, int(expert[1])), (*count, config.num_experts or 0)
    return f"{'decoder.layers' if alike else layer['stack']}.{own}", index, count


def _extra_states(
    layer: int, prefix: str, config: ResolvedModelConfig, kinds: list[str], alike: bool
) -> list[str]:
    """The keys of the extra states of a layer's modules, which Megatron-LM asks for: None.

    layer: -1 for that of a depth of multi-token prediction, which is of the last layer's kind.
    """
    kind = kinds[layer]
    index, count = ((layer,), (len(kinds),)) if alike else ((0,), (1,))
    modules: list[str] = []
    if "*" in kind:
        attention: tuple[str, ...] = (
            "linear_qkv",
            "linear_proj",
            "core_attention",
            "q_layernorm",
            "k_layernorm",
        )
        if config.multi_latent_attention:
            attention = (
                *("linear_q_proj", "linear_q_down_proj", "linear_q_up_proj", "q_layernorm", "kv_layernorm"),
                *("linear_kv_down_proj", "linear_kv_up_proj", "linear_proj", "core_attention"),
            )
        modules += [f"self_attention.{name}" for name in attention]
    if "M" in kind:
        modules += ["mixer.in_proj", "mixer.out_proj"]
    if "-" in kind:
        modules += ["mlp.linear_fc1", "mlp.linear_fc2"]
    if "E" in kind and config.moe_shared_expert_intermediate_size:
        modules += ["mlp.shared_experts.linear_fc1", "mlp.shared_experts.linear_fc2"]
    modules += ["input_layernorm", "pre_mlp_layernorm"]
    found = [(module, index, count) for module in modules]
    if "E" in kind:
        first, of = (index, count) if alike else ((), ())
        found += [
            (f"mlp.experts.experts.{fc}", (*first, expert), (*of, config.num_experts or 0))
            for fc in ("linear_fc1", "linear_fc2")
            for expert in range(config.num_experts or 0)
        ]
    dotted = lambda numbers: ".".join(map(str, numbers))
    return [f"{prefix}{m}._extra_state/shard_{dotted(i)}_{dotted(n)}" for m, i, n in found]


def _none() -> bytes:
    """A ShardedObject of None in a file: torch.save of the list of its shards."""
    stream = io.BytesIO()
    torch.save([None], stream)
    return stream.getvalue()
