"""The `mt data split` command: cut long documents, such as books, into pieces of a length.

A piece has at most --max-chars characters, or --max-tokens tokens of a tokenizer. A document that is no
longer stays as it is. The pieces of another one, joined, are its text. A cut lies between paragraphs, which
an empty line separates. Only a paragraph that is longer than a piece may be is cut at the ends of its lines,
then of its sentences, then of its words, and a longer word between two characters as readers see them
(grapheme clusters, UAX 29).

Piece N of document ID has the id `ID#N`, from `ID#0` on, the fields of the document and its id under
`split_from`. The output directory is that of every stage (stage.py); `cut/NNNNN.jsonl` has one line for each
document that was cut: id, pieces. A document is set aside if its other fields, repeated in every piece, would
take more than --max-record-bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import regex

from ..core.config import check, configuration, option
from ..documents import writer
from ..documents.reader import Document
from ..tokenizer.tokenizer import Tokenizer, TokenizerConfig, load
from . import stage
from .stage import DocumentError, DocumentStage, Tallies, Transform

PARENT = "split_from"
RULES = 1  # to be changed with the places of the cuts
# What goes on with the character before it, so that no cut lies there. (The same after U+0600 and its like.)
JOINED = (
    r"[\p{Grapheme_Cluster_Break=Extend}\p{Grapheme_Cluster_Break=ZWJ}\p{Grapheme_Cluster_Break=SpacingMark}]"
)
SPACE = regex.compile(rf"(?<!\p{{Grapheme_Cluster_Break=Prepend}})\s+(?!{JOINED})")
LINE_END = regex.compile(r"[\n\r\x85\u2028\u2029]")
SENTENCE_END = regex.compile(
    r"(?:[.!?…؟۔।॥։።፧]['\"”’»)\]]*+(?=\s)|[。！？｡][”’」』）】]*+)" + rf"(?!{JOINED})"
)
# \X alone counts all flag letters (regional indicators) before each, which takes quadratic time.
CLUSTER = regex.compile(rf"\p{{Grapheme_Cluster_Break=Regional_Indicator}}{{2}}{JOINED}*+|\X")
Count = Callable[[Sequence[str]], list[int]]  # the lengths of texts


@configuration()
class SplitConfig(DocumentStage):
    """The settings of `mt data split`."""

    max_chars: int = option(0, "characters of a piece at most; give this or max_tokens")
    max_tokens: int = option(0, "tokens of a piece at most, by the tokenizer, without a begin or end token")
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)  # of max_tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (
                (self.max_chars > 0) != (self.max_tokens > 0) and min(self.max_chars, self.max_tokens) >= 0,
                f"max_chars = {self.max_chars} and max_tokens = {self.max_tokens}: give the length of a piece"
                " as one of them, at least 1",
            ),
            (
                (self.max_tokens > 0) == (self.tokenizer.kind is not None),
                "max_tokens and a tokenizer (--tokenizer-type ...) belong together: give both or neither",
            ),
        )


def split(config: SplitConfig) -> dict[str, Any]:
    """Cuts long documents; returns the stage's manifest, whose `cut` counts them and their pieces."""
    facts: dict[str, Any] = {"split_rules": [RULES, regex.__version__]}
    if config.max_tokens:
        facts["tokenizer"] = load(config.tokenizer).fingerprint
    run, shards = stage.begin("data split", config, facts=facts)
    if run.finished:
        return run.manifest
    make = functools.partial(_make_splitter, config)
    return stage.map_documents_with_log(run, config, shards, make)


def _make_splitter(config: SplitConfig, log: TextIO, shard_index: int) -> tuple[Transform, Tallies]:
    """The transform of documents to their pieces. log: gets a line for each document that is cut."""
    limit, count = config.max_chars, count_chars
    if config.max_tokens:
        limit, count = config.max_tokens, functools.partial(count_tokens, load(config.tokenizer))
    outcomes: Counter[str] = Counter()

    def change(document: Document) -> Document | list[Document]:
        pieces = split_text(document.text, limit, count)
        if len(pieces) == 1:
            return document
        _check_fields(document, len(pieces), config.max_record_bytes)
        outcomes["documents"] += 1
        outcomes["pieces"] += len(pieces)
        log.write(json.dumps({"id": document.id, "pieces": len(pieces)}, ensure_ascii=False) + "\n")
        meta = {**document.meta, PARENT: document.id}
        return [Document(f"{document.id}#{n}", piece, meta) for n, piece in enumerate(pieces)]

    return change, {"cut": outcomes}


def _check_fields(document: Document, pieces: int, most: int) -> None:
    """Raises DocumentError if the fields of a document, which every piece has, would take more than `most`.

    A record of 10 MB, half of it one field, could else become 50 GB.
    """
    num_bytes = len(writer.json_line(Document(document.id, "", document.meta)))
    if num_bytes * pieces > most:
        raise DocumentError(
            f"its {pieces:,} pieces would each have its id and other fields of {num_bytes:,} bytes, together"
            f" more than --max-record-bytes {most}; remove large fields first, or give a larger number"
        )


def count_chars(texts: Sequence[str]) -> list[int]:
    """The numbers of characters of texts."""
    return list(map(len, texts))


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """The numbers of tokens of texts."""
    return list(map(len, tokenizer.encode_pieces(texts)))


def split_text(text: str, limit: int, count: Count = count_chars) -> list[str]:
    """The pieces of a text, in order, each of at most `limit`; joined they are the text.

    count: the lengths of texts. Only a grapheme cluster that is longer by itself is a longer piece.
    """
    if count([text])[0] <= limit:
        return [text]
    units = [(unit, 0) for unit in _units(text, 0)]
    lengths = count([unit for unit, _ in units])
    while any(length > limit and level < len(BOUNDARIES) for length, (_, level) in zip(lengths, units)):
        units, lengths = _divided(units, lengths, limit, count)
    pieces: list[str] = []
    for group in _packed([unit for unit, _ in units], lengths, limit):
        pieces += _fitting(group, limit, count)
    return pieces


Unit = tuple[str, int]  # a part of a text, and the level of BOUNDARIES at which it is not cut any more


def _divided(units: list[Unit], lengths: list[int], limit: int, count: Count) -> tuple[list[Unit], list[int]]:
    """The units, of which those that are too long are divided at their next level; all lengths."""
    divided: list[list[Unit]] = []
    for (unit, level), length in zip(units, lengths):
        too_long = length > limit and level < len(BOUNDARIES)
        parts = _units(unit, level + 1) if too_long and level + 1 < len(BOUNDARIES) else [unit]
        divided.append([(part, level + 1 if too_long else level) for part in parts])
    new = [unit for parts in divided if len(parts) > 1 for unit, _ in parts]
    new_lengths = iter(count(new))
    found = [
        list(itertools.islice(new_lengths, len(parts))) if len(parts) > 1 else [length]
        for parts, length in zip(divided, lengths)
    ]
    return list(itertools.chain.from_iterable(divided)), list(itertools.chain.from_iterable(found))


def _packed(units: list[str], lengths: list[int], limit: int) -> Iterator[list[str]]:
    """Consecutive units in groups, each as long as the limit allows."""
    group: list[str] = []
    total = 0
    for unit, length in zip(units, lengths):
        if group and total + length > limit:
            yield group
            group, total = [], 0
        group.append(unit)
        total += length
    if group:
        yield group


def _fitting(group: list[str], limit: int, count: Count) -> list[str]:
    """The text of units in one piece, or in halves where it has more tokens than the sum of its units."""
    piece = "".join(group)
    if len(group) == 1 or count([piece])[0] <= limit:
        return [piece]
    middle = len(group) // 2
    return _fitting(group[:middle], limit, count) + _fitting(group[middle:], limit, count)


def _units(text: str, level: int) -> list[str]:
    """The parts of a text between all boundaries of a level."""
    bounds = sorted({0, len(text), *BOUNDARIES[level](text)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def _around(runs: Iterator[Any]) -> Iterator[int]:
    """The boundaries before and after runs of white space, so that a piece may end before one."""
    for run in runs:
        yield from run.span()


def _paragraphs(text: str) -> Iterator[int]:
    return _around(
        run for run in SPACE.finditer(text) if len(LINE_END.findall(run[0].replace("\r\n", "\n"))) > 1
    )


def _lines(text: str) -> Iterator[int]:
    return _around(run for run in SPACE.finditer(text) if LINE_END.search(run[0]))


def _sentences(text: str) -> Iterator[int]:
    for found in SENTENCE_END.finditer(text):
        yield found.end()
        if run := SPACE.match(text, found.end()):
            yield run.end()


def _words(text: str) -> Iterator[int]:
    return _around(SPACE.finditer(text))


def _clusters(text: str) -> Iterator[int]:
    return (found.end() for found in CLUSTER.finditer(text))


BOUNDARIES: tuple[Callable[[str], Iterator[int]], ...] = (_paragraphs, _lines, _sentences, _words, _clusters)
