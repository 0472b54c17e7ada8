"""Reads and writes Megatron-LM's checkpoints of GPT, mixtures, Mamba and hybrids. Here its `torch` format:

    DIR/latest_checkpointed_iteration.txt                  "300", or "release"
    DIR/iter_0000300/mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt
              TT: tensor-parallel rank; PPP: stage, if several; EEE: expert-parallel rank, if several
        {"args": argparse.Namespace, "checkpoint_version": 3.0, "iteration": 300,
         "model": {name: tensor}, ...}

In an interleaved pipeline a rank has several model chunks: "model0", "model1" ... in place of "model". The
files are pickles, which may run any code. torch's restricted unpickler reads them; it accepts tensors,
numbers, strings, lists and the Namespace of the settings. Other objects of Megatron-LM become empty
placeholders, and a file that names anything else is refused.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import manifest
from ...core.config import UserError, shown
from ...core.parsing import Count, check_value, read_text
from ...tokenizer.tokenizer import Tokenizer
from ..model.config import ResolvedModelConfig
from ..model.decoder_blocks import layer_kinds
from .base import pad_vocabulary, shapes_within, stored_dtype, weight_shapes
from .foreign import ForeignCheckpoint
from .megatron_arguments import REMEDY, LayoutArguments, export_arguments, model_config
from .megatron_dist import COMMON, MOST_ENTRIES, DistTensors, write_dist
from .megatron_names import (
    LAYER_NAME,
    TIED,
    Stored,
    fused_name,
    hybrid_name,
    join,
    split,
    stored_for,
    usual_name,
    written,
)
from .safe_reader import is_plain, load_torch_file

FILE = "model_optim_rng.pt"
TRACKER = "latest_checkpointed_iteration.txt"
TRACKER_BYTES = 4096


class MegatronCheckpoint(ForeignCheckpoint):
    """A checkpoint of Megatron-LM's GPT, in its torch or torch_dist format.

    Its tensors stay on disk until they are read.

    Raises UserError if files are missing, truncated or contain something else, and for a model that is
    not a GPT that mt has.
    """

    library = "Megatron-LM"

    def __init__(self, path: Path):
        super().__init__(path)
        self.folder = _iteration(path)
        place = str(self.folder)
        self.tensors: Ranks | DistTensors
        if (self.folder / ".metadata").exists():
            first = _read(self.folder / COMMON)
            self.config = model_config(first["args"], place)
            self.tensors = DistTensors(self.folder)
        else:
            states = _states(self.folder)
            first = states[0, 0, 0]
            self.config = model_config(first["args"], place)
            self.tensors = Ranks(states, self.config, place)
        self._check_stored()
        positions = self.config.max_position_embeddings
        self.seq_length = min(getattr(first["args"], "seq_length", None) or positions, positions)
        self.step = check_value(first.get("iteration", 0), Count, f"{self.folder}: its iteration", REMEDY)

    def _check_stored(self) -> None:
        """Raises UserError if a weight is missing, superfluous or of another shape; reads none."""
        tensors, config = self.tensors, self.config
        known: set[str] = set()
        for name, shape in shapes_within(config, tensors.count, tensors.numbers, self.folder).items():
            every = stored_for(name, config)
            known |= {stored.name for stored in every}
            if missing := [stored.name for stored in every if stored.name not in tensors.names]:
                raise UserError(
                    f"{self.folder}: has no weight for {name} ({missing[0]}); its settings do not fit its"
                    " weights"
                )
            try:
                parts = [tensors.sections(stored, meta=True) for stored in every]
                found: tuple[Any, ...] = tuple(join(name, parts, config).shape)
            except (RuntimeError, ValueError, IndexError, KeyError):  # shards that do not fit together
                found = tuple(tensors.shapes(every[0]))
            rows = name in ("embedding.weight", "output.weight")
            if found != tuple(shape) and not (rows and found[1:] == shape[1:] and found[0] > shape[0]):
                raise self._wrong_shape(name, found, shape)
        if more := sorted(tensors.names - known):
            # A last stage with multi-token prediction has an embedding, and a weight that it does not use.
            unused = config.mtp_num_layers and not config.untie_embeddings_and_output_weights
            if more[0] == TIED and (unused or self._is_tied()):
                more.pop(0)
            if more:
                raise UserError(
                    f"{self.folder}: holds {shown(more[0])}, which no GPT of its settings has; such a"
                    " checkpoint cannot be loaded"
                )

    def _is_tied(self) -> bool:
        """Whether the output layer's weight is the last stage's copy of the embedding."""
        embedding, copy = (
            self.tensors.sections(Stored(name, 0), meta=False)[0]
            for name in ("embedding.word_embeddings.weight", TIED)
        )
        return torch.equal(embedding, copy)

    def _wrong_shape(self, name: str, found: tuple[Any, ...], shape: torch.Size) -> UserError:
        return UserError(
            f"{self.folder}: {name} has shape {found}, its settings say {tuple(shape)}; its files do not"
            " belong together"
        )

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether a path looks like such a checkpoint, or like one iteration of it."""
        files = (path / TRACKER, path / COMMON, path.parent / TRACKER)
        return any(file.exists() for file in files) or any(path.glob("mp_rank_*"))

    @property
    def settings_remedy(self) -> str:
        return f"the model's settings as `mt checkpoint inspect {self.path} --json` shows them"

    def load_tokenizer(self) -> Tokenizer:
        raise UserError(
            f"{self.path}: Megatron-LM keeps no tokenizer in its checkpoints; name it to `mt checkpoint"
            " convert`: --vocab-file and --merge-file, or --tokenizer-model"
        )

    def read_weight(self, name: str, shape: torch.Size) -> Tensor:
        parts = [self.tensors.sections(stored, meta=False) for stored in stored_for(name, self.config)]
        tensor = join(name, parts, self.config).float()
        if name in ("embedding.weight", "output.weight"):
            tensor = pad_vocabulary(tensor, shape[0], self.config.vocab_size)
        if tensor.shape != shape:
            raise self._wrong_shape(name, tuple(tensor.shape), shape)
        return tensor


def _iteration(path: Path) -> Path:
    """The folder that contains the mp_rank_* folders of a path."""
    tracker = path / TRACKER
    if not tracker.exists():
        folder = path
    else:
        said = read_text(tracker, TRACKER_BYTES, "copy the checkpoint again").strip()
        if said != "release" and not re.fullmatch(r"[0-9]{1,18}", said):
            raise UserError(
                f"{tracker}: must hold a number or `release`, not {shown(said)}; copy the checkpoint again"
            )
        folder = path / ("release" if said == "release" else f"iter_{int(said):07d}")
        if not folder.exists():
            raise UserError(f"{folder}: does not exist, but {TRACKER} names it; copy the checkpoint again")
    return folder


def _states(folder: Path) -> dict[tuple[int, int, int], dict[str, Any]]:
    """(tensor-parallel rank, stage, expert-parallel rank) -> the content of its file, tensors on disk."""
    files = {
        tuple(map(int, re.findall(r"\d+", file.parent.name))): file
        for file in sorted(folder.glob(f"mp_rank_*/{FILE}"))
    }
    first = min(files, default=(1,))
    if any(first):
        raise UserError(
            f"{folder}: has no mp_rank_00/{FILE}; give a directory that Megatron-LM wrote in its torch format"
        )
    read = {first: _read(files[first])}
    args = vars(read[first]["args"])
    check_value(args, LayoutArguments, f"{folder}: its args", REMEDY)
    size = args.get("tensor_model_parallel_size", 1)
    size = args.get("model_parallel_size", size)  # the name in older versions
    stages, experts = args.get("pipeline_model_parallel_size", 1), args.get("expert_model_parallel_size") or 1
    if (args.get("expert_tensor_parallel_size") or size) != size:
        raise UserError(
            f"{folder}: expert_tensor_parallel_size is {args['expert_tensor_parallel_size']} beside"
            f" tensor_model_parallel_size {size}; convert it there with --ckpt-convert-format torch_dist"
        )
    if size * stages * experts > MOST_ENTRIES:
        raise UserError(f"{folder}: its args say {size} x {stages} x {experts} ranks; {REMEDY}")
    states = {}
    for rank, stage, expert in itertools.product(range(size), range(stages), range(experts)):
        numbers = (rank, *((stage,) if stages > 1 else ()), *((expert,) if experts > 1 else ()))
        if numbers not in files:
            name = "_".join([f"mp_rank_{rank:02d}", *(f"{number:03d}" for number in numbers[1:])])
            layout = f"{size} x {stages}" + (f" x {experts}" if experts > 1 else "")
            raise UserError(
                f"{folder}: has no {name}/{FILE}, but was written by {layout} ranks; copy the"
                " checkpoint again"
            )
        states[rank, stage, expert] = read[first] if numbers == first else _read(files[numbers])
    if len(files) > len(states):
        raise UserError(
            f"{folder}: holds {len(files)} mp_rank folders, but was written by {len(states)} ranks; remove"
            " those of another run"
        )
    return states


# The names that Megatron-LM's settings and bookkeeping may have in a pickle (megatron/core/safe_globals.py):
# its own classes, paths, signals, states of random generators.
EXPECTED_GLOBALS = re.compile(
    r"megatron\.|argparse\.Namespace$|types\.SimpleNamespace$|signal\.(Signals$|SIG)|_io\.BytesIO$"
    r"|pathlib\.(_local\.)?PosixPath$|_codecs\.encode$"
    r"|numpy\.(ndarray$|dtype$|dtypes\.UInt32DType$|_?core\.multiarray\.(_reconstruct|scalar)$)"
)


def _read(file: Path) -> dict[str, Any]:
    """The content of a file.

    Raises UserError if it is truncated, or if it names a type that Megatron-LM never writes.
    """
    state = load_torch_file(
        file, "Megatron-LM", classes=[argparse.Namespace], replaced=EXPECTED_GLOBALS, remedy=REMEDY
    )
    if not isinstance(state, dict) or not isinstance(state.get("args"), argparse.Namespace):
        raise UserError(
            f"{file}: holds no `args`: it is no checkpoint of Megatron-LM, or of a version that"
            " does not save them"
        )
    return state


class Ranks:
    """The tensors in the files of all ranks, by the names of megatron_names.py."""

    def __init__(
        self,
        states: Mapping[tuple[int, int, int], dict[str, Any]],
        config: ResolvedModelConfig,
        place: str,
    ):
        first = states[0, 0, 0]
        self.version = first.get("checkpoint_version", 0)
        if not isinstance(self.version, int | float) or self.version not in (0, 1, 2, 3):
            raise UserError(f"{place}: checkpoint_version is {shown(self.version)}; only 0 to 3 are known")
        if self.version < 2 and config.num_query_groups != config.num_attention_heads:
            raise UserError(
                f"{place}: checkpoint_version {self.version} has no groups of queries, but"
                f" num_query_groups is {config.num_query_groups}; write it again with a newer"
                " Megatron-LM"
            )
        self.channels = config.kv_channels
        self.size, stages, experts = (1 + max(numbers) for numbers in zip(*states))
        self.experts_of_rank = (config.num_experts or 0) // experts
        chunks = ["model"]
        if "model" not in first:
            numbered = (k for k in first if isinstance(k, str) and re.fullmatch(r"model[0-9]{1,4}", k))
            chunks = sorted(numbered, key=lambda k: int(k[5:]))
        self.shards: dict[str, list[Tensor]] = {}
        self.copies: list[tuple[str, int, Tensor]] = []  # the last stage's embedding: name, rank, shard
        before = 0  # layers in the chunks so far: the first chunks of all stages, then their second ones ...
        for chunk, stage in itertools.product(chunks, range(stages)):
            layers: set[int] = set()
            for rank, expert in itertools.product(range(self.size), range(experts)):
                for theirs, tensor in _tensors(states[rank, stage, expert], chunk, place):
                    for name, part in self._named(theirs, tensor, expert, place):
                        if expert and ".experts." not in name:
                            continue  # the same on every expert-parallel rank
                        is_first = (chunk, stage) == (chunks[0], 0)
                        if config.mtp_num_layers and name.startswith("embedding.") and not is_first:
                            self.copies.append((name, rank, part))
                            continue
                        if match := re.match(r"(decoder\.layers)\.(\d+)\.(.*)", name):
                            layers.add(int(match[2]))
                            name = f"{match[1]}.{before + int(match[2])}.{match[3]}"
                        self.shards.setdefault(name, []).append(part)
            before += len(layers)
        whole = all(len(of_name) == self.size for of_name in self.shards.values())
        if before != config.num_layers or not whole:
            raise UserError(
                f"{place}: its files hold {before} layers of {config.num_layers}, or not the same ones on"
                " every rank; copy the checkpoint again"
            )
        for name, rank, part in self.copies:
            if not torch.equal(self.shards[name][rank] if name in self.shards else part[:0], part):
                raise UserError(
                    f"{place}: the last stage's copy of {name} is another than the first stage's; copy the"
                    " checkpoint again"
                )
        self.names = self.shards.keys()
        self.count = sum(map(len, self.shards.values()))
        self.numbers = sum(shard.numel() for shards in self.shards.values() for shard in shards)

    def _named(self, theirs: str, tensor: Tensor, rank: int, place: str) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of one of a rank's tensors; several of one that holds several experts."""
        name = usual_name(theirs)
        if name is None:
            return
        offset = rank * self.experts_of_rank
        if match := re.search(
            r"\.experts\.(?:local_experts\.([0-9]{1,6})\.|(linear_fc[12]\.\w+?)([0-9]{1,6})$)", name
        ):
            number = offset + int(match[1] or match[3])
            tail = name[match.end() :] if match[1] else match[2]
            yield f"{name[: match.start()]}.experts.{number}.{tail}", tensor
        elif match := re.search(r"\.experts\.weight([12])$", name):  # (D, E x F) and (E x F, D), as E of them
            count = self.experts_of_rank
            try:
                wide = int(tensor.shape[0] if match[1] == "1" else tensor.shape[1])
                stacked = tensor.view(count, *((wide, -1) if match[1] == "1" else (-1, wide)))
            except (RuntimeError, IndexError):
                raise UserError(
                    f"{place}: {shown(theirs)} has shape {tuple(tensor.shape)}, not that of {count} experts;"
                    f" {REMEDY}"
                ) from None
            for number in range(count):
                whole = f"{name[: match.start()]}.experts.{offset + number}.linear_fc{match[1]}.weight"
                yield whole, stacked[number].T
        else:
            yield name, tensor

    def shapes(self, stored: Stored) -> list[tuple[int, ...]]:
        return [tuple(shard.shape) for shard in self.shards[stored.name]]

    def sections(self, stored: Stored, *, meta: bool) -> list[Tensor]:
        """The sections of a tensor, whole. meta: without values."""
        shards = [shard.to("meta") if meta else shard for shard in self.shards[stored.name]]
        if self.version < 2 and ".linear_qkv." in stored.name:
            shards = [_group_by_head(shard, self.channels, self.version) for shard in shards]
        if stored.sections:
            rows = [size // self.size for _, size in stored.sections]
            return [torch.cat(parts) for parts in zip(*(shard.split(rows) for shard in shards))]
        if len(shards) == 1 or stored.axis is None or len(shards[0]) == stored.rows:
            return shards[:1]
        return [torch.cat(shards, dim=stored.axis)]


def _tensors(state: Mapping[str, Any], chunk: str, place: str) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of the tensors of a model chunk.

    A forged file may name no chunk, nest mappings without end, or have tensors larger than their bytes.
    """
    if not isinstance(state.get(chunk), Mapping):
        raise UserError(f"{place}: holds no `{chunk}` with weights; {REMEDY}")
    try:
        for name, tensor in _flatten(state[chunk], itertools.count()):
            if not is_plain(tensor):
                raise UserError(
                    f"{place}: {shown(name)} is no plain tensor of numbers that lie in the file; {REMEDY}"
                )
            yield name, tensor
    except RecursionError:  # mappings may hold themselves, or another one many times
        raise UserError(f"{place}: its weights are nested without end; {REMEDY}") from None


def _flatten(
    tree: Mapping[str, Any], counter: Iterator[int], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of the tensors in nested mappings; raises RecursionError if they do not end."""
    for key, value in tree.items():
        if next(counter) > MOST_ENTRIES:
            raise RecursionError
        if isinstance(value, Mapping):
            yield from _flatten(value, counter, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value


def _group_by_head(qkv: Tensor, channels: int, version: float) -> Tensor:
    """The rows of a query, key and value projection in the order of checkpoint_version 2.

    Version 0: (3, heads, channels). Version 1: (heads, channels, 3). Version 2: (heads, 3, channels).
    """
    if version == 0:
        return qkv.unflatten(0, (3, -1, channels)).transpose(0, 1).flatten(0, 2)
    return qkv.unflatten(0, (-1, channels, 3)).transpose(1, 2).flatten(0, 2)


def write_directory(
    folder: Path,
    config: ResolvedModelConfig,
    read: Callable[[str, torch.Size], Tensor],
    *,
    step: int,
    seq_length: int,
    dtype: torch.dtype,
    tensor_parallel: int,
    pipeline_parallel: int,
    local: bool,
    dist: bool,
) -> None:
    """Writes what Megatron-LM's --load reads, with --finetune or with --no-load-optim --no-load-rng.

    Has the weights of one rank in memory, of torch_dist one weight. read: (mt's name, shape) -> weight.
    local: writes names of --transformer-impl local.
    """
    name = f"iter_{step:07d}" if step else "release"
    multiple = config.make_vocab_size_divisible_by * tensor_parallel
    padded = -(-config.vocab_size // multiple) * multiple
    shapes = weight_shapes(config)
    for wide in ("embedding.weight", "output.weight"):
        if wide in shapes:
            shapes[wide] = torch.Size([padded, *shapes[wide][1:]])
    state = {
        "args": export_arguments(
            config, padded, seq_length, step, dtype, tensor_parallel, pipeline_parallel, local,
            "torch_dist" if dist else "torch",
        ),
        "checkpoint_version": 3.0,
        "iteration": step,
        "num_floating_point_operations_so_far": 0,
    }  # fmt: skip
    latest = _Latest(lambda our: read(our, shapes[our]))
    if dist:
        write_dist(folder / name, config, shapes, latest, state, dtype, local=local)
    else:
        per_stage = config.num_layers // pipeline_parallel
        for stage in range(pipeline_parallel):
            for rank in range(tensor_parallel):
                layers = range(stage * per_stage, (stage + 1) * per_stage)
                shards = _stage_shards(config, shapes, latest, layers, rank, tensor_parallel, local)
                # Cloned, because torch.save writes the whole storage of a slice.
                weights = {theirs: shard.to(stored_dtype(theirs, dtype)).clone() for theirs, shard in shards}
                ranks = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pipeline_parallel > 1 else "")
                with manifest.atomic_write(folder / name / ranks / FILE) as file:
                    torch.save({**state, "model": weights}, file)
    with manifest.atomic_write(folder / TRACKER, "w") as file:
        file.write(str(step) if step else "release")


class _Latest:
    """Reads weights by name, and keeps the two read last: gate and up of a layer's experts, whole."""

    def __init__(self, read: Callable[[str], Tensor]):
        self.read = read
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name not in self.kept:
            for old in list(self.kept)[:-1]:
                del self.kept[old]
            self.kept[name] = self.read(name)
        return self.kept[name]


def _stage_shards(
    config: ResolvedModelConfig,
    shapes: Mapping[str, torch.Size],
    read: Callable[[str], Tensor],
    layers: range,
    rank: int,
    size: int,
    local: bool,
) -> Iterator[tuple[str, Tensor]]:
    """(Megatron-LM's name, one rank's shard) of the weights of the stage that has `layers`."""
    first, last = 0 in layers, config.num_layers - 1 in layers
    kinds = layer_kinds(config)

    def shard(stored: Stored, name: str) -> Tensor:
        sections = split(stored, name, read, config)
        axis = None if stored.rows is not None and not local else stored.axis
        return torch.cat(sections if axis is None else [s.chunk(size, axis)[rank] for s in sections])

    for stored, name in written(shapes, config):
        layer = LAYER_NAME.match(stored.name)
        if layer is None:
            theirs = stored.name
            embeds = name.startswith(("embedding", "positions"))
            needed = (first or (last and bool(config.mtp_num_layers))) if embeds else last
        else:
            number = int(layer["number"] or -1)
            needed = number in layers if layer["number"] else last
            theirs = stored.name[layer.end() :].replace(".experts.", ".experts.local_experts.")
            if not local:
                theirs = fused_name(theirs, kinds[number], latent=config.multi_latent_attention)
            stack = f"decoder.layers.{number - layers.start}" if layer["number"] else layer["stack"]
            theirs = f"{stack}.{theirs}"
        if needed:
            yield hybrid_name(theirs, config), shard(stored, name)
        tied = not config.untie_embeddings_and_output_weights
        if name == "embedding.weight" and tied and last and not first:
            yield TIED, shard(stored, name)  # the last stage's copy of the tied embedding
