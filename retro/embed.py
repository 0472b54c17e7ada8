"""Embeds texts with a BERT: one vector for each text, the mean of its last hidden states.

The pooling is the model's own. A sentence-transformers directory, such as the default all-MiniLM-L6-v2,
defines in `modules.json` that the mean is over all tokens and that the vector is normalized to length one.
Any other BERT has Retro's rule: the mean without [CLS] and [SEP], not normalized. A text without tokens then
gives zeros.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

import numpy as np
import tokenizers
import torch
import xxhash

from ..core.config import UserError
from ..core.manifest import file_digest
from ..core.parsing import SETTINGS_BYTES, Range, check_value, read_json
from ..core.paths import regular_files
from ..indexed.neighbors import DatabaseInfo
from ..indexed.word_pieces import word_pieces
from ..tokenizer.vocabulary import read_tokenizer_json
from ..train.checkpoint.base import Checkpoint
from ..train.checkpoint.huggingface import HuggingFaceCheckpoint, minilm_directory
from ..train.checkpoint.native import NativeCheckpoint
from ..train.checkpoint.open import open_checkpoint
from ..train.compile import keep_freed_memory
from ..train.model.attention import packed_texts_mask
from ..train.model.bert import Bert
from ..train.model.family import family_of
from ..train.precision import use_fast_float32_matmul
from ..train.prepacked_weights import prepare_for_inference

# of a text, [CLS] and [SEP] included; longer texts are truncated (Megatron-LM's bert_max_chunk_length)
MAX_TOKENS = 256
# on a CPU 1,536 or 6,144 take 1 to 4 % longer; a GPU needs many
TOKENS_PER_BATCH, TOKENS_PER_BATCH_CUDA = 4096, 65536
# The files that determine the vectors; only sentence-transformers directories have the last three.
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


class Embedder:
    """`Embedder(directory)(texts)` returns the vectors of texts: (len(texts), dimension) float32.

    directory: a Hugging Face BERT with its tokenizer.json or vocab.txt, or a run of `mt train --family bert`;
    None: the installed all-MiniLM-L6-v2. bf16: compute in bfloat16, two to three times as fast on a CPU that
    supports it, at a cosine of 0.9998 or more to the vectors of float32. It runs on the GPU if there is one.
    Otherwise it uses one thread, so that vectors do not depend on the number of threads.
    """

    def __init__(self, directory: str | Path | None = None, bf16: bool = False):
        self.directory, self.bf16 = Path(directory) if directory is not None else minilm_directory(), bf16
        checkpoint = open_checkpoint(self.directory)
        if isinstance(checkpoint, HuggingFaceCheckpoint):
            regular_files(self.directory)
            self.mean_of_all_tokens, self.normalize = _pooling(self.directory)
            model = checkpoint.load_encoder()
            tokenizer = _tokenizer(self.directory, model.config.max_position_embeddings)
            self.encode = lambda texts: [e.ids for e in tokenizer.encode_batch_fast(list(texts))]
            self.digest = _digest(self.directory)
        else:
            model, self.encode, self.digest = _load_bert(checkpoint)
            self.mean_of_all_tokens, self.normalize = False, False
        self.digest += "-bf16" if bf16 else ""  # of everything that determines the vectors, not of the path
        self.dimension: int = model.config.hidden_size
        self.device = torch.device("cpu")
        if torch.cuda.is_available():  # the workers on a machine share its GPUs
            self.device = torch.device("cuda", os.getpid() % torch.cuda.device_count())
        else:
            use_fast_float32_matmul()
            keep_freed_memory()
        self.packs = self.device.type == "cpu"  # concatenates texts in place of a padded batch
        self.model = prepare_for_inference(model.to(self.device), bf16=bf16, rows=TOKENS_PER_BATCH)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        ids = self.encode(texts)
        lengths = np.array([len(row) for row in ids], np.int64)
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        embed = self._packed if self.packs else self._padded
        with one_thread():
            for rows in batches_by_length(lengths, tokens_per_batch(self.device)):
                vectors[rows] = embed([ids[row] for row in rows]).cpu().numpy()
        return vectors

    def _packed(self, ids: list[list[int]]) -> torch.Tensor:
        """The vectors of texts, (texts, D) float32, from one sequence of all their tokens."""
        tokens = torch.tensor([token for row in ids for token in row], device=self.device)
        lengths = [len(row) for row in ids]
        hidden = self.model(tokens[None], mask=packed_texts_mask(lengths, self.device))[
            0
        ].float()  # (tokens, D)
        excluded = 0 if self.mean_of_all_tokens else 1  # tokens at each end: [CLS] and [SEP]
        means = [
            part[excluded : len(part) - excluded].sum(0) / max(1, len(part) - 2 * excluded)
            for part in hidden.split(lengths)
        ]
        return self._normalized(torch.stack(means))

    def _padded(self, ids: list[list[int]]) -> torch.Tensor:
        """The vectors of texts, (texts, D) float32, from a padded batch."""
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(
            self.device
        )
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        positions = torch.arange(tokens.shape[1], device=self.device)
        present = positions < lengths[:, None]
        hidden = self.model(tokens, present).float()  # (B, T, D)
        counted = present
        if not self.mean_of_all_tokens:
            counted = (positions >= 1) & (positions < lengths[:, None] - 1)
        weights = counted.to(hidden.dtype)
        # a matrix product sums without a copy of the hidden states
        sums = torch.bmm(weights[:, None], hidden)[:, 0]
        return self._normalized(sums / weights.sum(1, keepdim=True).clamp(min=1))

    def _normalized(self, mean: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(mean, dim=1) if self.normalize else mean


def _load_bert(checkpoint: Checkpoint) -> tuple[Bert, Callable[[Sequence[str]], list[list[int]]], str]:
    """(model, texts -> ids with [CLS] and [SEP], digest) of a run of `mt train --family bert`.

    Raises UserError for another family.
    """
    if family_of(checkpoint.config).encoder != "single":
        raise UserError(
            f"{checkpoint}: is a model of family {checkpoint.config.family}; a BERT embeds texts: give a"
            " run of `mt train --family bert`, or leave --bert-model out"
        )
    assert isinstance(checkpoint, NativeCheckpoint), "Megatron-LM's checkpoints are read for GPTs alone"
    model, tokenizer = cast(Bert, checkpoint.load_model()), checkpoint.load_tokenizer()
    room = min(MAX_TOKENS, model.config.max_position_embeddings) - 2
    cls, sep = word_pieces(tokenizer).require("cls", "sep")
    model.head = model.pooler = model.binary_head = None
    encode = lambda texts: [[cls, *tokenizer.encode(text)[:room], sep] for text in texts]
    return model.eval(), encode, checkpoint.weights_digest()


def _digest(directory: Path) -> str:
    """Hex digest of the files that determine the vectors."""
    digests = [(name, file_digest(directory / name)) for name in FILES if (directory / name).exists()]
    return xxhash.xxh3_128(json.dumps(digests).encode()).hexdigest()


def open_same(database: DatabaseInfo, directory: str | None, root: str | Path) -> Embedder:
    """The embedder of the database `root`; raises UserError for another one.

    directory: its present directory, if it has moved.
    """
    embedder = Embedder(directory or database["embedder"]["directory"], database["embedder"]["bf16"])
    if embedder.digest != database["embedder"]["digest"]:
        raise UserError(
            f"{embedder.directory}: is not the model that made the vectors of {root}; give that one with"
            " --bert-model"
        )
    return embedder


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sets torch to one thread, so that results do not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tokens_per_batch(device: torch.device) -> int:
    """The most tokens of a batch, padding included."""
    return TOKENS_PER_BATCH if device.type == "cpu" else TOKENS_PER_BATCH_CUDA


def batches_by_length(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Batches of row numbers, the longest texts first, so that texts of about the same length come together.

    A batch with its padding has at most `tokens` tokens, or a single text.
    """
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, tokens // int(lengths[order[0]]))
        yield order[:size]
        order = order[size:]


class SentenceModule(TypedDict):
    """An entry of the modules.json of sentence-transformers."""

    type: str


class SentenceSettings(TypedDict, total=False):
    """A sentence_bert_config.json."""

    max_seq_length: Annotated[int | None, Range(2, 1 << 20)]  # [CLS] and [SEP] included


class TokenizerSettings(TypedDict, total=False):
    """What is read of a BERT's tokenizer_config.json."""

    do_lower_case: bool


def _checked(file: Path, kind: Any) -> Any:
    """The value of a JSON file, which has the type `kind`."""
    return check_value(read_json(file, SETTINGS_BYTES), kind, file)


def _pooling(directory: Path) -> tuple[bool, bool]:
    """(mean over all tokens, vectors are normalized) of a model; raises UserError for any other pooling."""
    if not (directory / "modules.json").exists():
        return False, False
    listed: list[SentenceModule] = _checked(directory / "modules.json", list[SentenceModule])
    modules = [module["type"].rsplit(".", 1)[-1] for module in listed]
    settings = directory / "1_Pooling" / "config.json"
    modes = sorted(
        name
        for name, value in (_checked(settings, dict[str, Any]) if settings.exists() else {}).items()
        if name.startswith("pooling_mode") and value not in (False, "mean")
    )
    known = modules in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
    if not known or modes not in (["pooling_mode_mean_tokens"], []):
        raise UserError(
            f"{directory}: embeds by {' > '.join(modules)} with {', '.join(modes)}; only the mean of all"
            " tokens, normalized or not, is supported: choose another --bert-model"
        )
    return True, modules[-1] == "Normalize"


def _tokenizer(directory: Path, max_positions: int) -> tokenizers.Tokenizer:
    """The WordPiece tokenizer of a directory; it adds [CLS] and [SEP] and truncates long texts."""
    if (directory / "tokenizer.json").exists():
        read_tokenizer_json(directory / "tokenizer.json")  # the library crashes on some of what it refuses
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # its Rust code raises bare Exception
            raise UserError(
                f"{directory / 'tokenizer.json'}: cannot be read ({str(error)[:200]}); fetch the file again"
            ) from None
    elif (directory / "vocab.txt").exists():
        settings = directory / "tokenizer_config.json"
        lowercase = (
            _checked(settings, TokenizerSettings).get("do_lower_case", True) if settings.exists() else True
        )
        tokenizer = tokenizers.BertWordPieceTokenizer(
            str(directory / "vocab.txt"), lowercase=lowercase
        )._tokenizer
    else:
        raise UserError(
            f"{directory}: has neither tokenizer.json nor vocab.txt; give the directory of a Hugging Face"
            " BERT model"
        )
    limits = directory / "sentence_bert_config.json"
    longest = _checked(limits, SentenceSettings).get("max_seq_length") if limits.exists() else None
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(longest or MAX_TOKENS, max_positions))
    return tokenizer
