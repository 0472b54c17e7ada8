"""Reads and writes Megatron-LM's GPT checkpoints in its `torch` format.

    DIR/latest_checkpointed_iteration.txt                  "300", or "release"
    DIR/iter_0000300/mp_rank_TT[_PPP]/model_optim_rng.pt   TT: tensor-parallel rank; PPP: stage, if several
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
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor

from ...core import manifest, paths
from ...core.config import UserError, shown
from ...core.parsing import Count, Range, check_value, read_text
from ...tokenizer.tokenizer import Tokenizer
from ..model.config import GATED, MOST_SIZE, ModelConfig, ResolvedModelConfig, resolve
from ..model.family import family_of
from ..model.foreign_names import MEGATRON_GPT
from .base import pad_vocabulary, shapes_within, weight_shapes
from .foreign import ForeignCheckpoint
from .safe_reader import check_stored_zip

FILE = "model_optim_rng.pt"
REMEDY = "copy it again"
TRACKER = "latest_checkpointed_iteration.txt"
TRACKER_BYTES = 4096
MOST_RANKS = 1 << 20  # of a layout
MOST_ENTRIES = 1_000_000  # of the mappings in a file
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
# Norm -> prefix of its parameters in transformer-engine, which keeps a norm in the linear layer that it
# feeds.
FUSED_NORMS = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm_",
}
# mt's weights of which each tensor-parallel rank has a slice: of the rows, of the columns.
ROW_SLICED = ("mixer.qkv", "ffn.up", "ffn.gate", "embedding", "output")
COLUMN_SLICED = ("mixer.out.weight", "ffn.down.weight")
# Arguments that mt supports only at one value (or some values) -> that value.
REQUIRED_ARGUMENTS: dict[str, Any] = {
    "num_experts": None,
    "multi_latent_attention": False,
    "rotary_interleaved": False,
    "apply_layernorm_1p": False,
    "qk_l2_norm": False,
    "apply_residual_connection_post_layernorm": False,
    "window_size": None,
    "rotary_percent": 1.0,
    "quick_geglu": False,
    "mtp_num_layers": None,
    "hybrid_override_pattern": None,
    "hybrid_layer_pattern": None,
    "experimental_attention_variant": None,
    "heterogeneous_layers_config_path": None,
    "softmax_type": "vanilla",
    "attention_output_gate": False,
    "no_rope_freq": None,
    "position_embedding_type": ("learned_absolute", "rope", "none"),
    "normalization": ("LayerNorm", "RMSNorm"),
}


class MegatronCheckpoint(ForeignCheckpoint):
    """A GPT checkpoint of Megatron-LM. Its tensors stay on disk until they are read.

    Raises UserError if files are missing, truncated or contain something else, and for a model that is
    not a GPT that mt has.
    """

    library = "Megatron-LM"

    def __init__(self, path: Path):
        super().__init__(path)
        self.folder = _iteration(path)
        states = _states(self.folder)
        first = states[0, 0]
        self.config = _model_config(first["args"], str(self.folder))
        self.version = first.get("checkpoint_version", 0)
        if not isinstance(self.version, int | float) or self.version not in (0, 1, 2, 3):
            raise UserError(
                f"{self.folder}: checkpoint_version is {shown(self.version)}; only 0 to 3 are known"
            )
        if self.version < 2 and self.config.num_query_groups != self.config.num_attention_heads:
            raise UserError(
                f"{self.folder}: checkpoint_version {self.version} has no groups of queries, but"
                f" num_query_groups is {self.config.num_query_groups}; write it again with a newer"
                " Megatron-LM"
            )
        self.shards = _shards(states, self.config, str(self.folder))
        self._check_sizes()
        positions = self.config.max_position_embeddings
        self.seq_length = min(getattr(first["args"], "seq_length", None) or positions, positions)
        self.step = check_value(first.get("iteration", 0), Count, f"{self.folder}: its iteration", REMEDY)

    def _check_sizes(self) -> None:
        """Raises UserError if a weight is missing or has another shape than the settings say; reads none."""
        every = [shard for shards in self.shards.values() for shard in shards]
        numbers = sum(shard.numel() for shard in every)
        for name, shape in shapes_within(self.config, len(every), numbers, self.folder).items():
            if _stored_in(name) not in self.shards:
                raise UserError(
                    f"{self.folder}: has no weight for {name}; its settings do not fit its weights"
                )
            shards = [shard.to("meta") for shard in self.shards[_stored_in(name)]]
            try:
                found: tuple[Any, ...] = tuple(_merge(name, shards, self.config, self.version).shape)
            except (RuntimeError, ValueError, IndexError):  # shards that do not fit together
                found = tuple(tuple(shard.shape) for shard in shards)
            rows = name in ("embedding.weight", "output.weight")
            if found != tuple(shape) and not (rows and found[1:] == shape[1:] and found[0] > shape[0]):
                raise self._wrong_shape(name, found, shape)

    def _wrong_shape(self, name: str, found: tuple[Any, ...], shape: torch.Size) -> UserError:
        return UserError(
            f"{self.folder}: {name} has shape {found}, its settings say {tuple(shape)}; its files do not"
            " belong together"
        )

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether a path looks like such a checkpoint, or like one iteration of it."""
        return (path / TRACKER).exists() or any(path.glob("mp_rank_*")) or (path.parent / TRACKER).exists()

    @property
    def settings_remedy(self) -> str:
        return f"the model's settings as `mt checkpoint inspect {self.path} --json` shows them"

    def load_tokenizer(self) -> Tokenizer:
        raise UserError(
            f"{self.path}: Megatron-LM keeps no tokenizer in its checkpoints; name it to `mt checkpoint"
            " convert`: --vocab-file and --merge-file, or --tokenizer-model"
        )

    def read_weight(self, name: str, shape: torch.Size) -> Tensor:
        tensor = _merge(name, self.shards[_stored_in(name)], self.config, self.version).float()
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
    if (folder / ".metadata").exists():
        raise UserError(
            f"{folder}: is of Megatron-LM's torch_dist format; convert it there with --ckpt-convert-format"
            " torch"
        )
    return folder


def _states(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """(tensor-parallel rank, stage) -> the content of its file. Tensors stay on disk until they are used."""
    files: dict[tuple[int, ...], Path] = {}
    for file in sorted(folder.glob(f"mp_rank_*/{FILE}")):
        ranks = tuple(map(int, re.findall(r"\d+", file.parent.name)))
        if len(ranks) > 2:
            raise UserError(
                f"{file}: is one expert-parallel rank's; mixtures of experts are not read from Megatron-LM's"
                " torch format"
            )
        files[(*ranks, 0)[:2]] = file
    if (0, 0) not in files:
        raise UserError(
            f"{folder}: has no mp_rank_00/{FILE}; give a directory that Megatron-LM wrote in its torch format"
        )
    states = {(0, 0): _read(files[0, 0])}
    args = vars(states[0, 0]["args"])
    check_value(args, LayoutArguments, f"{folder}: its args", REMEDY)
    size = args.get("tensor_model_parallel_size", 1)
    size = args.get("model_parallel_size", size)  # the name in older versions
    stages = args.get("pipeline_model_parallel_size", 1)
    for rank in range(size):
        for stage in range(stages):
            if (rank, stage) not in files:
                name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
                raise UserError(
                    f"{folder}: has no {name}/{FILE}, but was written by {size} x {stages} ranks; copy the"
                    " checkpoint again"
                )
            if (rank, stage) not in states:
                states[rank, stage] = _read(files[rank, stage])
    return states


class _Placeholder:
    """Replaces an object that Megatron-LM saves beside the weights."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


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
    check_stored_zip(paths.regular(file), str(file), REMEDY)
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        strange = sorted(n for n in named if not EXPECTED_GLOBALS.match(n))
        if strange:
            raise UserError(
                f"{file}: names {strange[0]}, which Megatron-LM does not write there and which may run any"
                " code; do not use this file"
            )
        placeholders: list[Any] = [
            (type(n.rpartition(".")[2], (_Placeholder,), {}), n) for n in named if n != "argparse.Namespace"
        ]
        with torch.serialization.safe_globals([argparse.Namespace, *placeholders]):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # A broken or forged pickle makes torch's unpickler, which is written in Python, raise nearly anything.
    except (
        RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
        EOFError, OSError, MemoryError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{file}: not a whole file of torch.save ({said}); {REMEDY}") from None
    if not isinstance(state, dict) or not isinstance(state.get("args"), argparse.Namespace):
        raise UserError(
            f"{file}: holds no `args`: it is no checkpoint of Megatron-LM, or of a version that"
            " does not save them"
        )
    return state


# What arguments must be, of those that `_model_config` reads; None stands for the default.
Size = Annotated[int | None, Range(1, MOST_SIZE)]
Number = Annotated[float | None, Range(0)]


class LayoutArguments(TypedDict, total=False):
    """The arguments that say how many ranks wrote a checkpoint."""

    tensor_model_parallel_size: Annotated[int, Range(1, MOST_RANKS)]
    model_parallel_size: Annotated[int, Range(1, MOST_RANKS)]
    pipeline_model_parallel_size: Annotated[int, Range(1, MOST_RANKS)]


class ModelArguments(TypedDict, total=False):
    """The arguments that describe the model, as far as mt reads them."""

    num_layers: Size
    hidden_size: Size
    ffn_hidden_size: Size
    num_attention_heads: Size
    group_query_attention: bool | None
    num_query_groups: Size
    kv_channels: Size
    qk_layernorm: bool | None
    max_position_embeddings: Size
    seq_length: Size
    position_embedding_type: str | None
    use_rotary_position_embeddings: bool | None
    rotary_base: Number
    use_rope_scaling: bool | None
    rope_scaling_factor: Number
    normalization: str | None
    norm_epsilon: Number
    layernorm_epsilon: Number
    swiglu: bool | None
    squared_relu: bool | None
    openai_gelu: bool | None
    bias_gelu_fusion: bool | None
    add_bias_linear: bool | None
    add_qkv_bias: bool | None
    untie_embeddings_and_output_weights: bool | None
    init_method_std: Number
    hidden_dropout: Number
    attention_dropout: Number
    padded_vocab_size: Size


def _check_arguments(args: argparse.Namespace, place: str) -> None:
    """Raises UserError for arguments of a model that mt does not have, and if required ones are missing."""
    check_value(vars(args), ModelArguments, f"{place}: its args", REMEDY)
    for name, fine in REQUIRED_ARGUMENTS.items():
        value = getattr(args, name, None)
        if not isinstance(value, str | int | float | None):
            raise UserError(f"{place}: {name} is {shown(value)}; a model with it cannot be loaded")
        if isinstance(fine, tuple):
            if value is not None and value not in fine:
                raise UserError(f"{place}: {name} is {shown(value)}; only {' or '.join(fine)} can be loaded")
        elif value is not None and value not in (fine, False if fine is None else fine):
            raise UserError(f"{place}: {name} is {shown(value)}; a model with it cannot be loaded")
    for name in ("num_layers", "hidden_size", "num_attention_heads", "padded_vocab_size"):
        if getattr(args, name, None) is None:
            raise UserError(f"{place}: its args have no {name}; it is no checkpoint of a GPT")


def _rope_scaling(factor: float) -> dict[str, Any]:
    """mt's rope_scaling for Megatron-LM's --use-rope-scaling, of which only the factor can be set."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _model_config(args: argparse.Namespace, place: str) -> ResolvedModelConfig:
    """mt's settings for Megatron-LM's arguments; padding rows of the vocabulary count as vocabulary."""
    _check_arguments(args, place)

    def get(name: str, default: Any = None) -> Any:
        value = getattr(args, name, None)
        return default if value is None else value

    rope = get("use_rotary_position_embeddings", False) or get("position_embedding_type") == "rope"
    without = get("position_embedding_type") == "none"
    scaled = rope and get("use_rope_scaling", False)
    bias = get("add_bias_linear", True)
    try:
        config = ModelConfig(
            num_layers=args.num_layers,
            hidden_size=args.hidden_size,
            ffn_hidden_size=get("ffn_hidden_size"),
            num_attention_heads=args.num_attention_heads,
            num_query_groups=get("num_query_groups") if get("group_query_attention", False) else None,
            kv_channels=get("kv_channels"),
            qk_layernorm=get("qk_layernorm", False),
            max_position_embeddings=get("max_position_embeddings"),
            position_embedding_type="rope" if rope else "none" if without else "learned",
            rotary_base=float(get("rotary_base", 10000)),
            rope_scaling=_rope_scaling(get("rope_scaling_factor", 8.0)) if scaled else None,
            normalization=get("normalization", "LayerNorm"),
            layernorm_epsilon=get("norm_epsilon", get("layernorm_epsilon", 1e-5)),
            activation=_activation(get, bias),
            add_bias_linear=bias,
            add_qkv_bias=get("add_qkv_bias", False),
            untie_embeddings_and_output_weights=get("untie_embeddings_and_output_weights", False),
            init_method_std=get("init_method_std", 0.02),
            hidden_dropout=get("hidden_dropout", 0.0),
            attention_dropout=get("attention_dropout", 0.0),
            vocab_size=args.padded_vocab_size,
            make_vocab_size_divisible_by=args.padded_vocab_size,
        )
        return resolve(config, vocab_size=args.padded_vocab_size, seq_length=get("seq_length", 1024))
    except UserError as error:
        raise UserError("\n".join(f"{place}: {line}" for line in str(error).split("\n"))) from None


def _activation(
    get: Callable[..., Any], bias: bool
) -> Literal["swiglu", "squared_relu", "gelu_tanh", "gelu"]:
    if get("swiglu", False):
        return "swiglu"
    if get("squared_relu", False):
        return "squared_relu"
    # Megatron-LM's kernel that fuses bias and GELU, on by default, computes the tanh approximation.
    return "gelu_tanh" if get("openai_gelu", False) or (get("bias_gelu_fusion", True) and bias) else "gelu"


def _shards(
    states: Mapping[tuple[int, int], dict[str, Any]], config: ResolvedModelConfig, place: str
) -> dict[str, list[Tensor]]:
    """mt's name -> the shards of all tensor-parallel ranks; `ffn.up` also contains the gate."""
    size, stages = (1 + max(numbers) for numbers in zip(*states))
    chunks = ["model"]
    if "model" not in states[0, 0]:
        numbered = (k for k in states[0, 0] if isinstance(k, str) and re.fullmatch(r"model[0-9]{1,4}", k))
        chunks = sorted(numbered, key=lambda k: int(k[5:]))
    shards: dict[str, list[Tensor]] = {}
    before = 0  # layers in the chunks so far: the first chunks of all stages, then their second ones ...
    for chunk in chunks:
        for stage in range(stages):
            layers: set[int] = set()
            for rank in range(size):
                for theirs, tensor in _tensors(states[rank, stage], chunk, place):
                    name = _our_name(theirs, place)
                    if name is None:
                        continue
                    if name == "output.weight" and not config.untie_embeddings_and_output_weights:
                        continue  # the last stage's copy of the tied embedding
                    if match := re.match(r"layers\.(\d+)\.(.*)", name):
                        layers.add(int(match[1]))
                        name = f"layers.{before + int(match[1])}.{match[2]}"
                    shards.setdefault(name, []).append(tensor)
            before += len(layers)
    if before != config.num_layers or any(len(of_name) != size for of_name in shards.values()):
        raise UserError(
            f"{place}: its files hold {before} layers of {config.num_layers}, or not the same ones on every"
            " rank; copy the checkpoint again"
        )
    return shards


def _tensors(state: Mapping[str, Any], chunk: str, place: str) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of the tensors of a model chunk.

    A forged file may name no chunk, nest mappings without end, or have tensors larger than their bytes.
    """
    if not isinstance(state.get(chunk), Mapping):
        raise UserError(f"{place}: holds no `{chunk}` with weights; {REMEDY}")
    try:
        for name, tensor in _flatten(state[chunk], itertools.count()):
            if not _is_plain(tensor):
                raise UserError(
                    f"{place}: {shown(name)} is no plain tensor of numbers that lie in the file; {REMEDY}"
                )
            yield name, tensor
    except RecursionError:  # mappings may hold themselves, or another one many times
        raise UserError(f"{place}: its weights are nested without end; {REMEDY}") from None


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's elements lie in its storage, one beside the other.

    A pickle may say (10^9, 10^9) elements with strides of 0 over 4 bytes: the first copy of them would be it.
    """
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


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


def _our_name(theirs: str, place: str) -> str | None:
    """mt's name of one of Megatron-LM's tensors; None if it is a copy of another weight."""
    if theirs.endswith("_extra_state") or "rotary_pos_emb" in theirs or "word_embeddings_for_head" in theirs:
        return None
    name = re.sub(r"^(language_model\.)?(encoder|transformer)\.", "decoder.", theirs)
    name = name.removeprefix("language_model.").replace(".attention.", ".self_attention.")
    for norm, prefix in FUSED_NORMS.items():
        name = name.replace(f".{prefix}", f".{norm}.")
    module, _, kind = name.rpartition(".")
    layer = re.match(r"decoder\.layers\.([0-9]{1,9})\.(.*)", module)
    module = layer[2] if layer else module
    names = MEGATRON_GPT.layer if layer else MEGATRON_GPT.top
    ours = {their: our for our, their in names.items()}.get(OLDER_NAMES.get(module, module))
    if ours is None:
        raise UserError(
            f"{place}: holds {shown(theirs)}, which no GPT has; only GPT checkpoints can be loaded"
        )
    return f"layers.{layer[1]}.{ours}.{kind}" if layer else f"{ours}.{kind}"


def _stored_in(name: str) -> str:
    """The name in `_shards` of the matrix with a weight: Megatron-LM stores gate and up as one."""
    return name.replace(".ffn.gate.", ".ffn.up.")


def _merge(name: str, shards: list[Tensor], config: ResolvedModelConfig, version: float) -> Tensor:
    """One of mt's weights from the shards of all tensor-parallel ranks."""
    if ".mixer.qkv." in name and version < 2:
        shards = [_group_by_head(shard, config.kv_channels, version) for shard in shards]
    if config.activation in GATED and (".ffn.up." in name or ".ffn.gate." in name):
        half = 0 if ".ffn.gate." in name else 1
        shards = [shard.chunk(2)[half] for shard in shards]
    if len(shards) == 1:
        return shards[0]
    if name.endswith(COLUMN_SLICED):
        return torch.cat(shards, dim=1)
    return torch.cat(shards) if _is_row_sliced(name) else shards[0]


def _is_row_sliced(name: str) -> bool:
    return any(f".{module}." in f".{name}" for module in ROW_SLICED)


def _group_by_head(qkv: Tensor, channels: int, version: float) -> Tensor:
    """The rows of a query, key and value projection in the order of checkpoint_version 2.

    Version 0: (3, heads, channels). Version 1: (heads, channels, 3). Version 2: (heads, 3, channels).
    """
    if version == 0:
        return qkv.unflatten(0, (3, -1, channels)).transpose(0, 1).flatten(0, 2)
    return qkv.unflatten(0, (-1, channels, 3)).transpose(1, 2).flatten(0, 2)


def check_export(config: ResolvedModelConfig, tensor_parallel: int, pipeline_parallel: int) -> None:
    """Raises UserError for a model that Megatron-LM lacks, and for a layout that does not divide it."""
    scaling = config.rope_scaling
    rules = [
        ("family", family_of(config).megatron is not None),
        ("position_embedding_type", config.position_embedding_type in ("learned", "rope", "none")),
        ("hybrid_override_pattern", config.hybrid_override_pattern is None),
        ("num_experts", config.num_experts is None),
        ("window_size", config.window_size is None),
        ("activation", config.activation in ("gelu", "gelu_tanh", "swiglu", "squared_relu")),
        ("rope_scaling", scaling is None or dict(scaling) == _rope_scaling(scaling["factor"])),
    ]
    for field, holds in rules:
        if not holds:
            raise UserError(
                f"Megatron-LM's torch format has no such GPT, as far as mt writes it: {field} ="
                f" {getattr(config, field)}; export it with --format hf"
            )
    for name in ("num_query_groups", "ffn_hidden_size"):
        number = getattr(config, name)
        if number % tensor_parallel:
            raise UserError(
                f"target_tensor_parallel_size = {tensor_parallel} does not divide model.{name} = {number};"
                " use fewer ranks"
            )
    if config.num_layers % pipeline_parallel:
        raise UserError(
            f"target_pipeline_parallel_size = {pipeline_parallel} does not divide model.num_layers ="
            f" {config.num_layers}; use another number of stages"
        )


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
) -> None:
    """Writes what Megatron-LM's --load reads, with --finetune or with --no-load-optim --no-load-rng.

    Has the weights of one rank in memory. read: (mt's name, shape) -> weight. local: writes names
    of --transformer-impl local.
    """
    name = f"iter_{step:07d}" if step else "release"
    multiple = config.make_vocab_size_divisible_by * tensor_parallel
    padded = -(-config.vocab_size // multiple) * multiple
    args = _arguments(config, padded, seq_length, step, dtype, tensor_parallel, pipeline_parallel, local)
    per_stage = config.num_layers // pipeline_parallel
    for stage in range(pipeline_parallel):
        for rank in range(tensor_parallel):
            layers = range(stage * per_stage, (stage + 1) * per_stage)
            shards = _stage_shards(config, read, padded, layers, rank, tensor_parallel, local)
            # Cloned, because torch.save writes the whole storage of a slice.
            weights = {theirs: shard.to(dtype).clone() for theirs, shard in shards}
            state = {
                "args": args,
                "checkpoint_version": 3.0,
                "iteration": step,
                "model": weights,
                "num_floating_point_operations_so_far": 0,
            }
            ranks = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pipeline_parallel > 1 else "")
            with manifest.atomic_write(folder / name / ranks / FILE) as file:
                torch.save(state, file)
    with manifest.atomic_write(folder / TRACKER, "w") as file:
        file.write(str(step) if step else "release")


def _stage_shards(
    config: ResolvedModelConfig,
    read: Callable[[str, torch.Size], Tensor],
    padded: int,
    layers: range,
    rank: int,
    size: int,
    local: bool,
) -> Iterator[tuple[str, Tensor]]:
    """(Megatron-LM's name, one rank's shard) of the weights of the stage that has `layers`."""
    first, last = 0 in layers, config.num_layers - 1 in layers
    tied = not config.untie_embeddings_and_output_weights
    for name, shape in weight_shapes(config).items():
        in_layer = re.match(r"layers\.(\d+)\.(.*)", name)
        if in_layer is None:
            needed = first if name.startswith(("embedding", "positions")) else last
            module, kind = name.rsplit(".", 1)
            shape = torch.Size([padded, *shape[1:]]) if module in ("embedding", "output") else shape
            theirs = f"{MEGATRON_GPT.top[module]}.{kind}"
        else:
            needed = int(in_layer[1]) in layers and ".ffn.gate." not in name
            module, kind = in_layer[2].rsplit(".", 1)
            theirs = MEGATRON_GPT.layer.get(module, "")
            theirs = FUSED_NORMS[theirs] + kind if theirs in FUSED_NORMS and not local else f"{theirs}.{kind}"
            theirs = f"decoder.layers.{int(in_layer[1]) - layers.start}.{theirs}"
        if needed:
            gated = ".ffn.up." in name and config.activation in GATED
            names = [name.replace(".up.", ".gate."), name] if gated else [name]
            yield theirs, torch.cat([_shard(n, read(n, shape), rank, size) for n in names])
        if name == "embedding.weight" and tied and last and not first:
            # the last stage's copy of the tied embedding
            yield "output_layer.weight", _shard(name, read(name, shape), rank, size)


def _shard(name: str, weight: Tensor, rank: int, size: int) -> Tensor:
    """A tensor-parallel rank's shard of one of mt's weights."""
    if name.endswith(COLUMN_SLICED):
        return weight.chunk(size, dim=1)[rank]
    return weight.chunk(size)[rank] if _is_row_sliced(name) else weight


def _arguments(
    config: ResolvedModelConfig,
    padded: int,
    seq_length: int,
    step: int,
    dtype: torch.dtype,
    tensor_parallel: int,
    pipeline_parallel: int,
    local: bool,
) -> argparse.Namespace:
    """The settings by Megatron-LM's names, for its --use-checkpoint-args."""
    positions = config.position_embedding_type
    return argparse.Namespace(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads,
        group_query_attention=config.num_query_groups != config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        kv_channels=config.kv_channels,
        qk_layernorm=config.qk_layernorm,
        max_position_embeddings=config.max_position_embeddings,
        seq_length=seq_length,
        position_embedding_type="learned_absolute" if positions == "learned" else positions,
        add_position_embedding=positions == "learned",
        use_rotary_position_embeddings=positions == "rope",
        rotary_base=config.rotary_base,
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rope_scaling=config.rope_scaling is not None,
        rope_scaling_factor=(config.rope_scaling or {}).get("factor", 8.0),
        normalization=config.normalization,
        norm_epsilon=config.layernorm_epsilon,
        layernorm_epsilon=config.layernorm_epsilon,
        swiglu=config.activation == "swiglu",
        squared_relu=config.activation == "squared_relu",
        openai_gelu=config.activation == "gelu_tanh",
        bias_gelu_fusion=False,
        add_bias_linear=config.add_bias_linear,
        add_qkv_bias=config.add_qkv_bias,
        untie_embeddings_and_output_weights=config.untie_embeddings_and_output_weights,
        init_method_std=config.init_method_std,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        padded_vocab_size=padded,
        make_vocab_size_divisible_by=config.make_vocab_size_divisible_by,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        virtual_pipeline_model_parallel_size=None,
        num_experts=None,
        expert_model_parallel_size=1,
        params_dtype=dtype,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        transformer_impl="local" if local else "transformer_engine",
        ckpt_format="torch",
        use_legacy_models=False,
        iteration=step,
        consumed_train_samples=0,
        consumed_valid_samples=0,
        tokenizer_type=None,
    )
