"""set documents aside for evaluation, and write them in the formats of WikiText and LAMBADA.

Which documents: those whose hash of seed and id falls into the first `fraction` of all hashes, so that the
choice depends on nothing else, and that are long enough. Output directory, beside what every stage writes
(stage.py):

    NNNNN.jsonl      the documents that remain for training; a stage that reads the directory reads these
    heldout.jsonl    the documents set aside, whole
    wikitext.txt     their text as WikiText's raw files have it: ` = Title = `, an empty line, a line a
        paragraph
    lambada.jsonl    {"text"} lines: some sentences of one document, up to the last word without its
        punctuation; that
                     word is a content word that stands earlier in the passage, so that context predicts it
                     (Paperno et al. 2016, arXiv 1606.06031, without the human filter)

Evaluate on the last two, and decontaminate the training documents against them: near copies may have stayed
behind.
"""

from __future__ import annotations

import functools
import heapq
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import xxhash

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..core.executor import map_shards
from ..documents import reader
from ..documents.reader import Document, Shard
from ..documents.writer import Writer
from . import stage
from .stage import DocumentStage, Removed

SENTENCE_BREAK = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
TARGET = re.compile(r"\s([A-Za-z]{4,})[.!?]$")
CONTEXT_WORDS = 25  # LAMBADA's passages have 75 tokens on average; documentation has shorter paragraphs
MAX_CONTEXT_SENTENCES = 8
FUNCTION_WORDS = frozenset(
    [
        "about",
        "above",
        "after",
        "again",
        "against",
        "also",
        "although",
        "always",
        "among",
        "another",
        "anyone",
        "anything",
        "around",
        "because",
        "been",
        "before",
        "being",
        "below",
        "between",
        "both",
        "could",
        "does",
        "doing",
        "done",
        "down",
        "during",
        "each",
        "either",
        "else",
        "ever",
        "every",
        "everything",
        "from",
        "further",
        "have",
        "having",
        "here",
        "hers",
        "herself",
        "himself",
        "however",
        "into",
        "itself",
        "just",
        "least",
        "less",
        "like",
        "made",
        "many",
        "more",
        "most",
        "much",
        "must",
        "myself",
        "neither",
        "never",
        "none",
        "nothing",
        "often",
        "once",
        "only",
        "other",
        "others",
        "otherwise",
        "ours",
        "over",
        "perhaps",
        "quite",
        "rather",
        "same",
        "shall",
        "should",
        "since",
        "some",
        "someone",
        "something",
        "such",
        "than",
        "that",
        "their",
        "theirs",
        "them",
        "themselves",
        "then",
        "there",
        "therefore",
        "these",
        "they",
        "this",
        "those",
        "though",
        "through",
        "thus",
        "together",
        "toward",
        "under",
        "until",
        "upon",
        "used",
        "very",
        "well",
        "were",
        "what",
        "whatever",
        "when",
        "where",
        "whether",
        "which",
        "while",
        "whom",
        "whose",
        "will",
        "with",
        "within",
        "without",
        "would",
        "your",
        "yours",
        "yourself",
    ]
)


@configuration()
class HoldoutConfig(DocumentStage):
    """How much to set aside."""

    fraction: float = option(0.02, "share of the documents to set aside")
    min_chars: int = option(300, "shorter documents are never set aside")
    lambada: int = option(500, "passages to write to lambada.jsonl, at most")
    seed: int = option(1234, "another seed sets other documents aside")

    def __post_init__(self):
        super().__post_init__()
        check(
            (0 < self.fraction < 1, f"fraction = {self.fraction} must lie between 0 and 1"),
            (self.min_chars >= 0, f"min_chars = {self.min_chars} must not be negative"),
            (self.lambada >= 0, f"lambada = {self.lambada} must not be negative"),
        )


def holdout(config: HoldoutConfig) -> dict:
    """Sets documents aside; returns the stage's manifest."""
    run, shards = stage.begin("data holdout", config)
    if run.finished:
        return run.manifest
    work = functools.partial(_set_aside, config=config)
    parts = run.output / "parts"
    results = map_shards(
        work,
        list(enumerate(shards)),
        done=parts,
        **config.where,
        label=run.verb,
        sizes=[s.bytes for s in shards],
    )
    whole = run.output / "heldout.jsonl"
    with manifest.atomic_write(whole) as file:
        for index in range(len(shards)):
            with open(parts / "heldout" / f"{index:05d}.jsonl", "rb") as piece:
                shutil.copyfileobj(piece, file, 1 << 20)
    if not whole.stat().st_size:
        raise UserError(
            f"{run.output}: of {sum(r['rows_in'] for r in results):,} documents none was set aside (fraction"
            f" = {config.fraction}, min_chars = {config.min_chars}); raise the fraction, lower the length, or"
            " give more documents"
        )
    passages = _write_evaluation(run.output, config)
    files = [
        manifest.record(run.output / name, run.output)
        for name in ("heldout.jsonl", "wikitext.txt", "lambada.jsonl")
    ]
    return stage.finish(run, results, more_outputs=files, lambada_passages=passages)


def is_held_out(name: str, seed: int, fraction: float) -> bool:
    """Whether a document's id falls into the share that is set aside."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) < fraction * 2**64


def _set_aside(item: tuple[int, Shard], *, config: HoldoutConfig) -> dict:
    root = Path(config.output)
    with Writer(root / "parts" / "heldout" / f"{item[0]:05d}.jsonl", root=root, key=config.text_key) as aside:

        def change(document: Document) -> Document | Removed:
            if len(document.text) < config.min_chars or not is_held_out(
                document.id, config.seed, config.fraction
            ):
                return document
            aside.write(document)
            return Removed("held_out")

        return stage.run_shard(
            item,
            output=config.output,
            key=config.text_key,
            suffix=stage.STEMS[config.format],
            max_bytes=config.shard_bytes,
            rejects=config.rejects,
            make=lambda index: change,
        )


def _write_evaluation(folder: Path, config: HoldoutConfig) -> int:
    """Writes wikitext.txt and lambada.jsonl from heldout.jsonl; returns how many passages there are."""
    # a heap of the passages with the least hashes: (-hash, -order, text)
    chosen: list[tuple[int, int, str]] = []
    order = 0
    with manifest.atomic_write(folder / "wikitext.txt", "w") as file:
        for shard in reader.plan([str(folder / "heldout.jsonl")], key=config.text_key):
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
    """A document as WikiText's raw files have it; its title is the record's `title`, else its id."""
    title = " ".join(str(document.meta.get("title") or document.id).split())
    return f" \n = {title} = \n \n" + "".join(
        f" {paragraph} \n" for paragraph in paragraphs_of(document.text)
    )


def paragraphs_of(text: str) -> list[str]:
    """What empty lines separate, each on one line."""
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]


def passages_of(text: str) -> Iterator[str]:
    """LAMBADA passages of a text, none overlapping another."""
    run: list[str] = []  # consecutive sentences of prose behind the last passage
    for paragraph in paragraphs_of(text):
        for sentence in SENTENCE_BREAK.split(paragraph):
            if not _is_prose(sentence):
                run = []
                continue
            passage = _passage(run, sentence)
            run = [*run[-MAX_CONTEXT_SENTENCES:], sentence]
            if passage is not None:
                run = []
                yield passage


def _passage(run: list[str], sentence: str) -> str | None:
    """The shortest context of CONTEXT_WORDS words before a sentence and the sentence to its last word, if
    that recurs.
    """
    target = TARGET.search(sentence)
    if target is None or target[1].lower() in FUNCTION_WORDS:
        return None
    context: list[str] = []
    while run and sum(len(s.split()) for s in context) < CONTEXT_WORDS:
        *run, last = run
        context.insert(0, last)
    passage = " ".join([*context, sentence[: target.end(1)]])
    words = [w.lower() for w in re.findall(r"[A-Za-z]+", passage)]
    long_enough = sum(len(s.split()) for s in context) >= CONTEXT_WORDS
    return passage if long_enough and target[1].lower() in words[:-1] else None


def _is_prose(sentence: str) -> bool:
    """A sentence of words: begins like one, ends in punctuation, mostly letters."""
    words = sentence.split()
    letters = sum(map(str.isalpha, sentence))
    return (
        len(words) >= 4
        and sentence[-1] in ".!?"
        and letters >= 0.7 * len(sentence)
        and sentence.lstrip("\"'([")[:1].isupper()
    )
