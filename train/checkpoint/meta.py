"""Reads Meta's own files of Llama 1 to 3.2.

    DIR/params.json             the settings: {"dim": 4096, "n_layers": 32, "n_heads": 32, ...}
    DIR/consolidated.NN.pth     the weights of each of the model-parallel ranks, from 00 on
    DIR/tokenizer.model         (or beside DIR) sentencepiece's of Llama 1 and 2, tiktoken's ranks of Llama 3

The ranks share the rows of most matrices, and the columns of `wo` and `w2`; of the embedding its rows (Llama
3) or its columns (Llama 1 and 2). Meta rotates neighbouring channels of a head, (0, 1), (2, 3) ..., and mt
those at half the distance, as Hugging Face does, so the rows of queries and keys change places.

The files are pickles, and read by torch's restricted unpickler.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ...core import paths
from ...core.config import UserError, shown
from ...core.parsing import Range, check_value, read_json
from ...tokenizer.tokenizer import Tokenizer, load_llama
from ..model.config import MOST_SIZE, ModelConfig, ResolvedModelConfig, resolve
from .base import pad_vocabulary, shapes_within
from .foreign import ForeignCheckpoint
from .safe_reader import is_plain, load_torch_file

REMEDY = "fetch it again"
Size = Annotated[int, Range(1, MOST_SIZE)]
Positive = Annotated[float, Range(0, 1e12)]


class Params(TypedDict):
    """params.json. Its other keys are refused by name: they are of models that mt does not have."""

    dim: Size
    n_layers: Size
    n_heads: Size
    n_kv_heads: NotRequired[Size | None]
    vocab_size: Annotated[int, Range(-1, MOST_SIZE)]  # -1: the tokenizer's
    multiple_of: NotRequired[Size]
    ffn_dim_multiplier: NotRequired[Positive | None]
    norm_eps: Positive
    rope_theta: NotRequired[Annotated[float, Range(1, 1e12)]]
    use_scaled_rope: NotRequired[bool]
    rope_scaling_factor: NotRequired[Annotated[float, Range(1, 1e6)] | None]
    # Limits of Meta's own key-value cache.
    max_batch_size: NotRequired[Size]
    max_seq_len: NotRequired[Size]


# (dim, n_layers) of Llama 3.2 1B and 3B. Their params.json is as Llama 3.1's, but they were trained with the
# rotary positions scaled by 32, those of Llama 3.1 by 8 (Hugging Face's config.json of both).
LLAMA_3_2 = ((2048, 16), (3072, 28))
SCALED_FROM = 8192  # tokens; of all Llamas with use_scaled_rope
SCALED_POSITIONS = 131072
# Meta's module -> ours, in each layer
LAYER = {
    "attention_norm": "mixer_norm",
    "attention.wo": "mixer.out",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn.gate",
    "feed_forward.w3": "ffn.up",
    "feed_forward.w2": "ffn.down",
}
TOP = {"tok_embeddings": "embedding", "norm": "norm", "output": "output"}
QKV = ("attention.wq", "attention.wk", "attention.wv")
BY_COLUMNS = ("attention.wo", "feed_forward.w2")


class MetaCheckpoint(ForeignCheckpoint):
    """A Llama in Meta's files. Its tensors stay on disk until they are read.

    Raises UserError if a file is missing, truncated or contains something else.
    """

    library = "Meta"

    def __init__(self, path: Path):
        super().__init__(path)
        self.params = _read_params(path / "params.json")
        self.parts = _read_parts(path)
        self.step = 0
        self.config = self._config()
        self.seq_length = min(self.config.max_position_embeddings, SCALED_FROM)
        self._check_stored()

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether a path looks like such a directory."""
        return (path / "params.json").exists() and any(path.glob("consolidated.*.pth"))

    @property
    def settings_remedy(self) -> str:
        return f"the model's settings as `mt checkpoint inspect {self.path} --json` shows them"

    def load_tokenizer(self) -> Tokenizer:
        for folder in (self.path, self.path.resolve().parent):
            file = folder / "tokenizer.model"
            if file.exists():
                return load_llama(paths.regular(file), scaled=bool(self.params.get("use_scaled_rope")))
        raise UserError(
            f"{self.path}: has no tokenizer.model; copy it there, or name it to `mt checkpoint convert`"
            " (--tokenizer-model)"
        )

    def read_weight(self, name: str, shape: torch.Size) -> Tensor:
        if ".mixer.qkv." in name:
            layer = name.partition(".mixer.")[0]
            query, key, value = (self._joined(f"{layer}.{module}.weight").float() for module in QKV)
            groups = self.config.num_query_groups
            parts = (_by_halves(query, self.config.kv_channels), _by_halves(key, self.config.kv_channels))
            by_group = [part.unflatten(0, (groups, -1)) for part in (*parts, value)]
            weight = torch.cat(by_group, dim=1).flatten(0, 1)
        else:
            weight = self._joined(_meta_name(name)).float()
        if name in ("embedding.weight", "output.weight"):
            weight = pad_vocabulary(weight, shape[0], self.config.vocab_size)
        if weight.shape != shape:
            raise self._wrong_shape(name, tuple(weight.shape), tuple(shape))
        return weight

    def _wrong_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> UserError:
        return UserError(
            f"{self.path}: {name} has shape {found}, its params.json says {expected}; its files do not belong"
            " together"
        )

    def _joined(self, name: str) -> Tensor:
        """A tensor of the model by Meta's name, from the parts of all ranks."""
        parts = [part[name] for part in self.parts]
        if len(parts) == 1 or parts[0].ndim < 2:
            return parts[0]
        columns = name.removesuffix(".weight").endswith(BY_COLUMNS)
        if name == "tok_embeddings.weight":
            columns = parts[0].shape[1] < self.params["dim"]
        return torch.cat(parts, dim=int(columns))

    def _size(self, name: str, dimension: int) -> int:
        """The size of a tensor that all ranks have parts of."""
        if name not in self.parts[0]:
            raise UserError(f"{self.path}: holds no {name}; it is no Llama of Meta: {REMEDY}")
        shapes = [part[name].shape for part in self.parts]
        if any(len(shape) != 2 for shape in shapes):
            raise UserError(f"{self.path}: {name} has shape {tuple(shapes[0])}, and is no matrix; {REMEDY}")
        if dimension == 0 and name == "tok_embeddings.weight" and shapes[0][1] < self.params["dim"]:
            return shapes[0][0]
        return sum(shape[dimension] for shape in shapes)

    def _config(self) -> ResolvedModelConfig:
        params = self.params
        theta = float(params.get("rope_theta", 10000.0))
        scaled = params.get("use_scaled_rope", False)
        factor = params.get("rope_scaling_factor")
        if factor is not None and not scaled:
            raise UserError(
                f"{self.path / 'params.json'}: rope_scaling_factor = {factor:g} without use_scaled_rope; such"
                " a model cannot be loaded"
            )
        if factor is None:
            factor = 32.0 if (params["dim"], params["n_layers"]) in LLAMA_3_2 else 8.0
        rows = self._size("tok_embeddings.weight", 0)
        if params["vocab_size"] not in (-1, rows):
            raise UserError(
                f"{self.path}: its embedding has {rows:,} rows, its params.json vocab_size ="
                f" {params['vocab_size']:,}; its files do not belong together"
            )
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": SCALED_FROM,
        }
        try:
            config = ModelConfig(
                num_layers=params["n_layers"],
                hidden_size=params["dim"],
                ffn_hidden_size=self._ffn_hidden_size(),
                num_attention_heads=params["n_heads"],
                num_query_groups=params.get("n_kv_heads"),
                max_position_embeddings=SCALED_POSITIONS if scaled else 4096 if theta < 5e5 else 8192,
                position_embedding_type="rope",
                rotary_base=theta,
                rope_scaling=scaling if scaled else None,
                normalization="RMSNorm",
                layernorm_epsilon=params["norm_eps"],
                activation="swiglu",
                add_bias_linear=False,
                untie_embeddings_and_output_weights="output.weight" in self.parts[0],
                vocab_size=rows,
                make_vocab_size_divisible_by=1,
            )
            return resolve(config, vocab_size=rows, seq_length=SCALED_FROM)
        except UserError as error:
            place = self.path / "params.json"
            raise UserError("\n".join(f"{place}: {line}" for line in str(error).split("\n"))) from None

    def _ffn_hidden_size(self) -> int:
        """The width of the feed-forward layers: of the weights, compared with Meta's formula."""
        width, params = self._size("layers.0.feed_forward.w1.weight", 0), self.params
        if (multiple := params.get("multiple_of")) is not None:
            by_formula = int((params.get("ffn_dim_multiplier") or 1.0) * (8 * params["dim"] // 3))
            by_formula = -(-by_formula // multiple) * multiple
            if by_formula != width:
                raise UserError(
                    f"{self.path}: its feed-forward layers are {width:,} wide, by dim, multiple_of and"
                    f" ffn_dim_multiplier of its params.json {by_formula:,}; its files do not belong together"
                )
        return width

    def _check_stored(self) -> None:
        """Raises UserError if a weight is missing, superfluous or of another shape; reads none."""
        tensors = [tensor for part in self.parts for tensor in part.values()]
        numbers = sum(tensor.numel() for tensor in tensors)
        expected = shapes_within(self.config, len(tensors), numbers, self.path)
        names = {theirs for name in expected for theirs in _meta_names(name)} | {"rope.freqs"}
        for rank, part in enumerate(self.parts):
            missing, more = sorted(names - {"rope.freqs"} - part.keys()), sorted(part.keys() - names)
            if missing or more:
                raise UserError(
                    f"{self.path / f'consolidated.{rank:02d}.pth'}: "
                    + (f"holds no {missing[0]}" if missing else f"holds {shown(more[0])}, which no Llama has")
                    + f"; {REMEDY}"
                )
        meta = [{name: tensor.to("meta") for name, tensor in part.items()} for part in self.parts]
        real, self.parts = self.parts, meta
        try:
            for name, shape in expected.items():
                self.read_weight(name, shape)
        except (RuntimeError, ValueError, IndexError):  # parts that do not fit together
            raise UserError(f"{self.path}: the parts of {name} do not fit together; {REMEDY}") from None
        finally:
            self.parts = real


def _read_params(file: Path) -> Any:
    params = check_value(read_json(paths.regular(file)), Params, file, REMEDY)
    if strange := sorted(params.keys() - Params.__annotations__.keys()):
        raise UserError(
            f"{file}: {strange[0]} = {shown(params[strange[0]])}: no setting of a Llama 1 to 3.2; a model"
            " with it cannot be loaded"
        )
    return params


def _read_parts(path: Path) -> list[dict[str, Tensor]]:
    """The tensors of each rank's file, which stay on disk."""
    files = sorted(path.glob("consolidated.*.pth"))
    for rank, file in enumerate(files):
        if file.name != f"consolidated.{rank:02d}.pth":
            raise UserError(f"{path}: has no consolidated.{rank:02d}.pth, but {file.name}; {REMEDY}")
    parts = []
    for file in files:
        part = load_torch_file(file, "Meta", remedy=REMEDY)
        if not isinstance(part, dict):
            raise UserError(f"{file}: holds no mapping of weights; {REMEDY}")
        for name, tensor in part.items():
            plain = isinstance(tensor, Tensor) and is_plain(tensor) and tensor.is_floating_point()
            if not isinstance(name, str) or not plain:
                raise UserError(
                    f"{file}: {shown(name)} is no plain tensor of numbers that lie in the file; {REMEDY}"
                )
        parts.append(part)
    if any(part.keys() != parts[0].keys() for part in parts):
        raise UserError(f"{path}: its consolidated files hold different tensors; {REMEDY}")
    return parts


def _meta_names(name: str) -> list[str]:
    """Meta's names of the tensors of which one of our weights is made."""
    if ".mixer.qkv." in name:
        return [f"{name.partition('.mixer.')[0]}.{module}.weight" for module in QKV]
    return [_meta_name(name)]


def _meta_name(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if layer := re.match(r"layers\.(\d+)\.(.*)", module):
        return f"layers.{layer[1]}.{_theirs(LAYER, layer[2])}.{kind}"
    return f"{_theirs(TOP, module)}.{kind}"


def _theirs(table: Mapping[str, str], ours: str) -> str:
    return next(theirs for theirs, module in table.items() if module == ours)


def _by_halves(weight: Tensor, channels: int) -> Tensor:
    """The rows of queries or keys: of each head first the even channels, then the odd ones."""
    return weight.unflatten(0, (-1, channels // 2, 2)).transpose(1, 2).flatten(0, 2)
