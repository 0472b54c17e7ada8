"""texts -> embeddings, with a BERT: one vector for each text.

Mean of the last hidden states by the model's own rule. A sentence-transformers directory (the default all-MiniLM-L6-v2
is one) says in `modules.json` that the mean is over all tokens and that the vector is brought to length one; for any
other BERT directory it is Retro's rule: the mean without [CLS] and [SEP], as it is (a text without a token gives zeros).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
import xxhash

from ..config import UserError
from ..indexed.neighbors import Database
from ..manifest import file_digest, read_json
from ..train.convert.hf import load_bert, minilm_directory
from ..train.precision import use_fast_float32_products

MAX_TOKENS = 256  # of a text, [CLS] and [SEP] included; more are cut off (Megatron-LM's bert_max_chunk_length)
TOKENS_PER_BATCH = 2048  # 1.4 times faster than 8192 on a CPU: what lies between two layers stays in cache
# What decides the vectors; modules.json and those after it are in sentence-transformers directories only.
FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")


class Embedder:
    """`Embedder(directory)(texts)` -> (len(texts), dimension) float32.

    directory: a Hugging Face BERT with its tokenizer.json or vocab.txt; None: the installed all-MiniLM-L6-v2.
    Vectors do not depend on the number of threads: all work is on one.
    """

    def __init__(self, directory: str | Path | None = None):
        self.directory = Path(directory) if directory is not None else minilm_directory()
        self.own_rule, self.normalize = _pooling(self.directory)
        self.model = load_bert(self.directory)
        self.dimension: int = self.model.config.hidden_size
        self.tokenizer = _tokenizer(self.directory, self.model.config.max_position_embeddings)
        use_fast_float32_products()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        encodings = self.tokenizer.encode_batch_fast(list(texts))
        lengths = np.array([len(e.ids) for e in encodings], np.int64)
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for rows in batches_by_length(lengths):
                width = int(lengths[rows].max())
                tokens = np.zeros((len(rows), width), np.int64)
                for i, row in enumerate(rows):
                    tokens[i, : lengths[row]] = encodings[row].ids
                vectors[rows] = self._embed(torch.from_numpy(tokens), torch.from_numpy(lengths[rows])).numpy()
        finally:
            torch.set_num_threads(threads)
        return vectors

    def _embed(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int64, lengths (B,) -> (B, D)."""
        positions = torch.arange(tokens.shape[1])
        present = positions < lengths[:, None]
        hidden = self.model(tokens, present)  # (B, T, D)
        counted = present if self.own_rule else (positions >= 1) & (positions < lengths[:, None] - 1)
        weights = counted.to(hidden.dtype)[..., None]
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=1) if self.normalize else mean


    @property
    def digest(self) -> str:
        """Of the files that decide the vectors, wherever they lie."""
        digests = [(name, file_digest(self.directory / name)) for name in FILES if (self.directory / name).exists()]
        return xxhash.xxh3_128(json.dumps(digests).encode()).hexdigest()


def open_same(database: Database, directory: str | None, root: Path) -> Embedder:
    """The embedder of the database `root`; directory: where it lies now, if it has moved. Raises UserError for another one."""
    embedder = Embedder(directory or database["embedder"]["directory"])
    if embedder.digest != database["embedder"]["digest"]:
        raise UserError(f"{embedder.directory}: is not the model that made the vectors of {root}; name that one with --bert-model")
    return embedder


def batches_by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of texts of about the same length, the longest first, so that little is padded."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, TOKENS_PER_BATCH // int(lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def _pooling(directory: Path) -> tuple[bool, bool]:
    """(whether the mean is over all tokens, whether vectors are normalised); raises UserError for another rule."""
    if not (directory / "modules.json").exists():
        return False, False
    modules = [m["type"].rsplit(".", 1)[-1] for m in read_json(directory / "modules.json")]
    rule = read_json(directory / "1_Pooling" / "config.json") if (directory / "1_Pooling" / "config.json").exists() else {}
    chosen = sorted(name for name, value in rule.items() if name.startswith("pooling_mode") and value not in (False, "mean"))
    if modules not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or chosen not in (["pooling_mode_mean_tokens"], []):
        raise UserError(f"{directory}: embeds by {' > '.join(modules)} with {', '.join(chosen)}; only the mean of all tokens, normalised or not, is supported: choose another --bert-model")
    return True, modules[-1] == "Normalize"


def _tokenizer(directory: Path, max_positions: int):
    """WordPiece with [CLS] and [SEP] around and long texts cut off."""
    if (directory / "tokenizer.json").exists():
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    elif (directory / "vocab.txt").exists():
        settings = directory / "tokenizer_config.json"
        lowercase = read_json(settings).get("do_lower_case", True) if settings.exists() else True
        tokenizer = tokenizers.BertWordPieceTokenizer(str(directory / "vocab.txt"), lowercase=lowercase)._tokenizer
    else:
        raise UserError(f"{directory}: has neither tokenizer.json nor vocab.txt; give the directory of a Hugging Face BERT model")
    limits = directory / "sentence_bert_config.json"
    longest = read_json(limits).get("max_seq_length") if limits.exists() else None
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(longest or MAX_TOKENS, max_positions))
    return tokenizer
