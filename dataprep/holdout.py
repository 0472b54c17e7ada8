"""The `mt data holdout` command: set documents aside for evaluation, in the formats of WikiText and LAMBADA.

A document is set aside if it is long enough and the hash of the seed and its id falls into the first
`fraction` of all hashes; the choice depends on nothing else. Output directory, in addition to the files of
every stage (stage.py):

    NNNNN.jsonl      the documents that remain for training; a stage that reads the directory reads these
    heldout.jsonl    the documents set aside
    wikitext.txt     their text in the format of WikiText's raw files: ` = Title = `, an empty line, and one
                     line per paragraph
    lambada.jsonl    {"text"} lines: some sentences of one document, up to the last word, without its
                     punctuation. The last word is a content word that occurs earlier in the passage, so that
                     the context predicts it (Paperno et al. 2016, arXiv 1606.06031, without the human filter)

Evaluate on the last two files, and decontaminate the training documents against them, since these may contain
near copies.
"""

from __future__ import annotations

import functools
import heapq
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import xxhash

from ..core import manifest, paths
from ..core.config import UserError, check, configuration, option
from ..core.executor import map_shards
from ..documents import reader, sharding
from ..documents.reader import Document
from ..documents.shard_groups import ShardGroup
from ..documents.writer import Writer
from . import stage
from .stage import DocumentStage, Removed

SENTENCE_BREAK = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
TARGET = re.compile(r"\s([A-Za-z]{4,})[.!?]$")
CONTEXT_WORDS = 25  # LAMBADA's passages have 75 tokens on average, but many corpora have shorter paragraphs
MAX_CONTEXT_SENTENCES = 8
_FUNCTION_WORDS = """
about above after again against also although always among another anyone anything around because been before
being below between both could does doing done down during each either else ever every everything from further
have having here hers herself himself however into itself just least less like made many more most much must
myself neither never none nothing often once only other others otherwise ours over perhaps quite rather same
shall should since some someone something such than that their theirs them themselves then there therefore
these they this those though through thus together toward under until upon used very well were what whatever
when where whether which while whom whose will with within without would your yours yourself
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@configuration()
class HoldoutConfig(DocumentStage):
    """The settings of `mt data holdout`."""

    fraction: float = option(0.02, "fraction of the documents to set aside")
    min_chars: int = option(300, "never set aside shorter documents")
    lambada: int = option(500, "maximum number of passages in lambada.jsonl")
    seed: int = option(1234, "seed of the choice of documents")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (0 < self.fraction < 1, f"fraction = {self.fraction} must lie between 0 and 1"),
            (self.min_chars >= 0, f"min_chars = {self.min_chars} must not be negative"),
            (self.lambada >= 0, f"lambada = {self.lambada} must not be negative"),
        )


def holdout(config: HoldoutConfig) -> dict[str, Any]:
    """Sets documents aside; returns the stage's manifest. Raises UserError if none is set aside."""
    run, shards = stage.begin("data holdout", config)
    if run.finished:
        return run.manifest
    work = functools.partial(_split_shard, config=config)
    parts = run.output / "parts"
    results = map_shards(
        work,
        list(enumerate(shards)),
        done=parts,
        **config.where,
        label=run.verb,
        sizes=[s.bytes for s in shards],
        kinds=stage.SHARD_RESULT,
        agrees=stage.no_row_is_lost,
    )
    whole = run.output / "heldout.jsonl"
    with manifest.atomic_write(whole) as file:
        for index in range(len(shards)):
            with open(paths.regular(parts / "heldout" / f"{index:05d}.jsonl"), "rb") as piece:
                shutil.copyfileobj(piece, file, 1 << 20)
    if not whole.stat().st_size:
        raise UserError(
            f"{run.output}: none of {sum(r['rows_in'] for r in results):,} documents was set aside (fraction"
            f" = {config.fraction}, min_chars = {config.min_chars}); raise fraction, lower min_chars, or give"
            " more documents"
        )
    passages = _write_evaluation(run.output, config)
    files = [
        manifest.record(run.output / name, run.output)
        for name in ("heldout.jsonl", "wikitext.txt", "lambada.jsonl")
    ]
    if told := _advice(config, results):
        run.notes["advice"] = told
    return stage.finish(run, results, more_outputs=files, lambada_passages=passages)


def _advice(config: HoldoutConfig, results: list[dict[str, Any]]) -> str:
    """What to do where most of the documents that were drawn are too short to be set aside, else ""."""
    rows = sum(r["rows_in"] for r in results)
    chosen = sum(r["removed"].get("held_out", 0) for r in results)
    passed_over = sum(r["tallies"].get("passed_over", {}).get("too_short", 0) for r in results)
    if passed_over <= chosen:
        return ""
    return (
        f"set aside {chosen / rows:.2%} of the documents, not {config.fraction:.2%}: {passed_over:,} more"
        f" were drawn, but have fewer than min_chars = {config.min_chars} characters; lower --min-chars, or"
        " raise --fraction"
    )


def is_held_out(name: str, seed: int, fraction: float) -> bool:
    """Whether the document with the id `name` is set aside, if it is long enough."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) < fraction * 2**64


def _split_shard(item: tuple[int, ShardGroup], *, config: HoldoutConfig) -> dict[str, Any]:
    """Writes one shard's documents that stay, and those set aside to parts/heldout/; returns its counts."""
    root = Path(config.output)
    heldout_path = root / "parts" / "heldout" / f"{item[0]:05d}.jsonl"
    with Writer(heldout_path, root=root) as heldout:
        passed_over = Counter(too_short=0)  # documents that were drawn, but are too short

        def change(document: Document) -> Document | Removed:
            if not is_held_out(document.id, config.seed, config.fraction):
                return document
            if len(document.text) < config.min_chars:
                passed_over["too_short"] += 1
                return document
            heldout.write(document)
            return Removed("held_out")

        return stage.run_shard(item, config=config, make=lambda index: (change, {"passed_over": passed_over}))


def _write_evaluation(folder: Path, config: HoldoutConfig) -> int:
    """Writes wikitext.txt and lambada.jsonl from heldout.jsonl; returns the number of passages."""
    chosen: list[tuple[int, int, str]] = []  # heap of the passages of least hash: (-hash, -order, text)
    order = 0
    with manifest.atomic_write(folder / "wikitext.txt", "w") as file:
        # A record has more bytes as JSON, with escapes, than it had in Parquet.
        shards = sharding.plan([str(folder / "heldout.jsonl")], max_record_bytes=sys.maxsize)
        for shard in shards:
            for document in reader.read(shard):
                file.write(wikitext(document))
                for passage in passages_of(document.text):
                    order += 1
                    rank = xxhash.xxh3_64_intdigest(f"{config.seed}:{passage}".encode())
                    heapq.heappush(chosen, (-rank, -order, passage))
                    if len(chosen) > config.lambada:
                        heapq.heappop(chosen)
    with manifest.atomic_write(folder / "lambada.jsonl") as file:
        for _, _, passage in sorted(chosen, key=lambda entry: -entry[1]):
            file.write(orjson.dumps({"text": passage}) + b"\n")
    return len(chosen)


def wikitext(document: Document) -> str:
    """A document in the format of WikiText's raw files; its title is the record's `title`, or else its id."""
    title = " ".join(str(document.meta.get("title") or document.id).split())
    return f" \n = {title} = \n \n" + "".join(
        f" {paragraph} \n" for paragraph in paragraphs_of(document.text)
    )


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs of a text, separated by empty lines, each joined to one line."""
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]


def passages_of(text: str) -> Iterator[str]:
    """Yields the LAMBADA passages of a text; they do not overlap."""
    previous: list[str] = []  # consecutive sentences of prose since the last passage
    for paragraph in paragraphs_of(text):
        for sentence in SENTENCE_BREAK.split(paragraph):
            if not _is_prose(sentence):
                previous = []
                continue
            passage = _passage(previous, sentence)
            previous = [*previous[-MAX_CONTEXT_SENTENCES:], sentence]
            if passage is not None:
                previous = []
                yield passage


def _passage(previous: list[str], sentence: str) -> str | None:
    """The passage that ends with the last word of a sentence, or None if it does not make one.

    previous: the sentences before it, the last of which are the context, as many as give CONTEXT_WORDS words.
    """
    target = TARGET.search(sentence)
    if target is None or target[1].lower() in FUNCTION_WORDS:
        return None
    context: list[str] = []
    while previous and sum(len(s.split()) for s in context) < CONTEXT_WORDS:
        *previous, last = previous
        context.insert(0, last)
    passage = " ".join([*context, sentence[: target.end(1)]])
    words = [w.lower() for w in re.findall(r"[A-Za-z]+", passage)]
    long_enough = sum(len(s.split()) for s in context) >= CONTEXT_WORDS
    return passage if long_enough and target[1].lower() in words[:-1] else None


def _is_prose(sentence: str) -> bool:
    """Whether a sentence has four words, begins with a capital, ends in punctuation and is mostly letters."""
    words = sentence.split()
    letters = sum(map(str.isalpha, sentence))
    return (
        len(words) >= 4
        and sentence[-1] in ".!?"
        and letters >= 0.7 * len(sentence)
        and sentence.lstrip("\"'([")[:1].isupper()
    )
