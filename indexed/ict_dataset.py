"""Samples of the inverse cloze task: a block of sentences, and one of them as its query (Lee et al. 2019).

In: .bin/.idx pairs with a sequence for every sentence, and pairs with the titles of the same documents (`mt
data tokenize --split-sentences --json-keys text title` writes both). Out: datasets whose item k is a dict of
int64 arrays; its random numbers depend on seed + k alone.

    sample index    (samples, 4) uint32, or uint64 beyond 2**32 sentences: first sentence, one past the last,
                    document, block

The index holds whole epochs, shuffled, so there may be more samples than requested. It equals that of
Megatron-LM's build_blocks_mapping, and samples equal those of its ICTDataset, except for three mistakes
there: here a title that was split into sentences counts whole, documents of a later split keep their own
titles, and a title takes at most half a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from ..core.config import UserError, check, configuration, option
from ..tokenizer.tokenizer import Tokenizer
from .blend import compile_if_long
from .format import IndexedDataset
from .gpt_dataset import DataConfig, Dataset, build_splits, cached, open_pair
from .masked_dataset import DOCUMENTS_AT_A_TIME, LONG_SENTENCE, SentenceDataset, padded
from .shuffle import shuffled
from .splits import SPLIT_NAMES
from .word_pieces import WordPieces, word_pieces

SPECIAL_TOKENS = 3  # of a block: [CLS] title [SEP] sentences [SEP]


@configuration()
class IctConfig(DataConfig):
    """Data settings of the inverse cloze task; seq_length is that of blocks and of queries."""

    titles_data_path: tuple[str, ...] = option(
        (),
        "ict: prefixes of the documents' titles, in the order of the prefixes of the texts (default: blocks"
        " have no titles)",
        role="input",
    )
    query_in_block_prob: float = option(0.1, "ict: share of the samples whose query stays in its block")
    use_one_sent_docs: bool = option(False, "ict: allow blocks of one sentence")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (
                0 <= self.query_in_block_prob <= 1,
                f"query_in_block_prob = {self.query_in_block_prob} must lie in [0, 1]",
            ),
            (
                self.seq_length >= 8,
                f"seq_length = {self.seq_length} must be at least 8: special tokens, a title and sentences",
            ),
        )
        self.titles()

    def titles(self) -> dict[str, str]:
        """Prefix of a text -> prefix of its titles; raises UserError if their numbers differ."""
        prefixes = list(dict.fromkeys(prefix for name in SPLIT_NAMES for _, prefix in self.sources(name)))
        if self.titles_data_path and len(self.titles_data_path) != len(prefixes):
            raise UserError(
                f"titles_data_path names {len(self.titles_data_path)} and the data {len(prefixes)}"
                f" ({', '.join(prefixes)}); give one for each, in this order"
            )
        return dict(zip(prefixes, self.titles_data_path))

    def prefixes(self) -> list[str]:
        return [*super().prefixes(), *self.titles_data_path]


def build_ict_datasets(
    config: IctConfig, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets, as `gpt_dataset.build_datasets` returns them."""
    words, titles = word_pieces(tokenizer), config.titles()

    def make(
        indexed: IndexedDataset, documents: tuple[int, int], count: int | None, name: str, cache: Path
    ) -> IctDataset:
        title = open_pair(titles[indexed.prefix], config) if titles else None
        return IctDataset(
            indexed,
            title,
            documents,
            count,
            words,
            config.seq_length,
            config.seed,
            query_in_block_prob=config.query_in_block_prob,
            use_one_sent_docs=config.use_one_sent_docs,
            name=name,
            cache=cache,
        )

    return build_splits(config, num_samples, make, of="documents")


class IctDataset(SentenceDataset):
    """Blocks of a range of the documents of one .bin/.idx pair, each with a query.

    titles: the pair with the title of every document, or None. num_samples: how many are requested (None: one
    epoch); there may be more. cache: directory of the sample index, or None to keep it in memory. Raises
    UserError if no document gives a block, or if there are not as many titles as documents.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        titles: IndexedDataset | None,
        document_range: tuple[int, int],
        num_samples: int | None,
        words: WordPieces,
        seq_length: int,
        seed: int,
        *,
        query_in_block_prob: float = 0.1,
        use_one_sent_docs: bool = False,
        name: str = "train",
        cache: Path | None = None,
    ):
        words.require("cls", "sep", "pad")
        check_titles(indexed, titles)
        self.titles, self.words = titles, words
        self.seq_length, self.query_in_block_prob = seq_length, query_in_block_prob
        key = (
            "ict 1",
            indexed.fingerprint,
            None if titles is None else titles.fingerprint,
            document_range,
            num_samples,
            seq_length,
            use_one_sent_docs,
            seed,
        )
        stem = f"{Path(indexed.prefix).name}-{name}-{xxhash.xxh3_128(repr(key).encode()).hexdigest()}"
        fingerprint = xxhash.xxh3_128(
            repr((key, words.fingerprint, query_in_block_prob)).encode()
        ).hexdigest()
        first, end = document_range

        def build() -> list[np.ndarray]:
            documents = indexed.document_indices[first : end + 1]
            lengths = title_lengths(titles, indexed.num_documents, seq_length)[first:end]
            try:
                rows = build_blocks_mapping(
                    documents,
                    indexed.lengths,
                    lengths,
                    num_samples,
                    seq_length - SPECIAL_TOKENS,
                    seed,
                    use_one_sent_docs,
                )
            except ValueError as error:
                raise UserError(
                    f"{indexed.prefix}: the {name} split gives no block: {error}; tokenize with"
                    f" --split-sentences, or give {name} a larger share"
                ) from None
            rows[:, 2] += first
            return [rows]

        (sample_index,) = build() if cache is None else cached(cache, stem, ("ict_index",), build)
        super().__init__(indexed, document_range, seed, fingerprint, sample_index, num_samples)

    def sample(self, row: list[int], random: np.random.RandomState) -> dict[str, np.ndarray | int]:
        """query_tokens, context_tokens; query_pad_mask, context_pad_mask (1 at tokens): (seq_length,) int64.

        The query is [CLS], one of the block's sentences, [SEP]. The sentence is removed from the block,
        except with probability query_in_block_prob and if nothing would be left.
        """
        first, end, document, _ = row
        sentences = [self.indexed[i] for i in range(first, end)]
        chosen = random.randint(0, len(sentences))
        query = sentences[chosen]
        if random.random_sample() >= self.query_in_block_prob and (
            len(sentences) > 1 or self.titles is not None
        ):
            del sentences[chosen]
        title = None if self.titles is None else title_of(self.titles, document, self.seq_length)
        query_tokens, query_mask = self._padded(query, None)
        context_tokens, context_mask = self._padded(joined(sentences), title)
        return {
            "query_tokens": query_tokens,
            "query_pad_mask": query_mask,
            "context_tokens": context_tokens,
            "context_pad_mask": context_mask,
        }

    def _padded(self, tokens: np.ndarray, title: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        (pad,) = self.words.require("pad")
        return padded(add_special_tokens(self.words, self.seq_length, tokens, title), self.seq_length, pad)


def add_special_tokens(
    words: WordPieces, length: int, tokens: np.ndarray, title: np.ndarray | None = None
) -> list[int]:
    """[CLS] title [SEP] tokens [SEP], or [CLS] tokens [SEP] without a title; tokens are truncated to fit."""
    cls, sep = words.require("cls", "sep")
    before = [cls] if title is None else [cls, *title.tolist(), sep]
    return [*before, *tokens[: length - len(before) - 1].tolist(), sep]


def joined(sentences: Sequence[np.ndarray]) -> np.ndarray:
    """The tokens of all sentences, in order; (0,) int64 for none."""
    return np.concatenate(sentences) if len(sentences) else np.empty(0, np.int64)


def title_of(titles: IndexedDataset, document: int, seq_length: int) -> np.ndarray:
    """The tokens of a document's title, of all its sequences, truncated to half a block: (n,)."""
    first, end = (int(i) for i in titles.document_indices[document : document + 2])
    return joined([titles[i] for i in range(first, end)])[: seq_length // 2]


def title_lengths(titles: IndexedDataset | None, documents: int, seq_length: int) -> np.ndarray:
    """(documents,) int64: tokens of every document's title as `title_of` returns it; zeros without titles."""
    if titles is None:
        return np.zeros(documents, np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(titles.lengths, dtype=np.int64)])
    return np.minimum(np.diff(offsets[titles.document_indices]), seq_length // 2)


def check_titles(indexed: IndexedDataset, titles: IndexedDataset | None) -> None:
    """Raises UserError if there are not as many titles as documents."""
    if titles is not None and titles.num_documents != indexed.num_documents:
        raise UserError(
            f"{titles.prefix}: has {titles.num_documents:,} documents, and {indexed.prefix} has"
            f" {indexed.num_documents:,}; tokenize both from the same records: --json-keys text title"
        )


def build_blocks_mapping(
    documents: np.ndarray,
    lengths: np.ndarray,
    title_lengths: np.ndarray,
    num_samples: int | None,
    max_length: int,
    seed: int,
    use_one_sent_docs: bool = False,
) -> np.ndarray:
    """The sample index, (n, 4) uint32 or uint64, equal to that of Megatron-LM's build_blocks_mapping.

    num_samples: None for one epoch. The other arguments are those of `blocks_in_order`. Raises ValueError if
    no document has enough sentences, none of them too long.
    """
    rows = blocks_in_order(documents, lengths, title_lengths, max_length, use_one_sent_docs)
    if not len(rows):
        raise ValueError(
            f"none of its {len(documents) - 1:,} documents has {_least(use_one_sent_docs)} or more sentences"
            f" of at most {LONG_SENTENCE} tokens"
        )
    epochs = 1 if num_samples is None else -(-num_samples // len(rows))
    return shuffled(np.tile(rows, (epochs, 1)), seed)


def blocks_in_order(
    documents: np.ndarray,
    lengths: np.ndarray,
    title_lengths: np.ndarray,
    max_length: int,
    use_one_sent_docs: bool = False,
) -> np.ndarray:
    """(n, 4) uint32 or uint64: first sentence, one past the last, document (from documents[0] on), block.

    documents: (documents + 1,) int64, the first sentence of every document. lengths: (S,) int32 tokens of
    every sentence. title_lengths: (documents,) int64. max_length: tokens of a title and its block. A block
    ends with the sentence that reaches it, unless too few sentences would be left for another block.
    """
    least = _least(use_one_sent_docs)
    dtype = np.uint32 if len(lengths) <= np.iinfo(np.uint32).max else np.uint64
    parts, count = [np.empty((0, 4), dtype)], 0
    for start in range(0, len(documents) - 1, DOCUMENTS_AT_A_TIME):
        some = documents[start : start + DOCUMENTS_AT_A_TIME + 1]
        most = int(some[-1] - some[0])  # blocks: each has a sentence
        rows = np.empty((most, 4), dtype)
        loop = compile_if_long(_blocks_of_documents, most)
        found = loop(
            some,
            lengths[some[0] : some[-1]],
            np.asarray(title_lengths[start : start + len(some) - 1], np.int64),
            max_length,
            least,
            rows,
        )
        rows[:found, 2:] += np.array([start, count], dtype)
        parts.append(rows[:found].copy())
        count += found
    return np.concatenate(parts)


def _least(use_one_sent_docs: bool) -> int:
    """The fewest sentences of a block."""
    return 1 if use_one_sent_docs else 2


def _blocks_of_documents(
    documents: np.ndarray,
    lengths: np.ndarray,
    title_lengths: np.ndarray,
    max_length: int,
    least: int,
    rows: np.ndarray,
) -> int:
    """Fills `rows` in the order of the documents; documents and blocks count from 0; returns how many.

    lengths: of the sentences from documents[0] on. numba compiles it.
    """
    count, base = 0, documents[0]
    for d in range(len(documents) - 1):
        first, last = documents[d], documents[d + 1]
        if last - first < least or lengths[first - base : last - base].max() > LONG_SENTENCE:
            continue
        start, tokens, target = first, 0, max_length - title_lengths[d]
        for s in range(first, last):
            tokens += lengths[s - base]
            remaining = last - s - 1
            if remaining == 0 or (tokens >= target and remaining >= least and s + 1 - start >= least):
                rows[count, 0], rows[count, 1], rows[count, 2], rows[count, 3] = start, s + 1, d, count
                count += 1
                start, tokens = s + 1, 0
    return count
