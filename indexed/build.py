"""Tokenizes documents into .bin/.idx pairs (`mt data tokenize`).

`tokenize` reads documents in order and writes `{prefix}_{key}_document.bin/.idx` for every JSON key, byte for
byte as Megatron-LM's tools/preprocess_data.py does; if it splits sentences, `{prefix}_{key}_sentence`. It
cuts the input into batches of about a megabyte, by the files alone. A pool of processes encodes them, and
this process appends the results in order. So the bytes do not depend on the number of workers, and memory
does not depend on the corpus. Every second it syncs the files to the disk and records the progress in a
journal; after a kill the same command continues from there.

The working folder is `.{name of prefix}.partial/` beside the result:

    NAME.bin NAME.lengths NAME.ends   the files of IndexedWriter, for every key
    rejects.jsonl                     records that could not be read
    journal.json                      number of finished batches, and the size of each file after them
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import gc
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import xxhash

from ..core import manifest, paths
from ..core.config import UserError, check, configuration, option
from ..core.executor import default_workers, processes, without_collector
from ..core.parsing import Count, check_value
from ..core.progress import activity, progress
from ..documents import compression, files, reader
from ..documents.rejects import Reject, Rejects
from ..documents.sharding import INPUT_HELP, InputOptions, Shard
from ..tokenizer.tokenizer import Tokenizer, TokenizerConfig, load
from .format import (
    IndexedWriter,
    WriterState,
    output_prefix_rule,
    refuse_pairs_of_others,
    token_dtype,
    work_folder,
)
from .sentences import SentenceSplitter, find_parameters

SHARD_BYTES = (
    32_000_000  # of one planned shard: a Parquet reader starts again in each and waits for its first rows
)
BATCH_BYTES = (
    1_000_000  # of input that a worker encodes at a time: it fits the processor's cache (8 MB: 1/5 slower)
)
BLOCK_ROWS = (
    files.BATCH_ROWS
)  # documents encoded at once: a Parquet row group may be larger than a JSONL batch
COMMIT_SECONDS = 1.0  # between two commits
START_SECONDS = 2.0  # of remaining work from which other processes pay: each takes a second to start
AHEAD = 100  # finished batches that may wait for an earlier one: half a second of work, while processes start


@configuration()
class TokenizeConfig(TokenizerConfig, InputOptions):
    """The settings of `mt data tokenize`, besides those of the tokenizer."""

    input: tuple[str, ...] = option(help=INPUT_HELP, role="input")
    output_prefix: str = option(
        help="the result is PREFIX_KEY_document.bin and .idx, or PREFIX_KEY_sentence", role="output"
    )
    json_keys: tuple[str, ...] = option(
        ("text",), "the record's keys of texts; each gives its own pair of files"
    )
    append_eod: bool = option(False, "append the end-of-document token to every document that has tokens")
    prepend_bos: bool = option(
        False, "prepend the beginning-of-sequence token to every document that has tokens"
    )
    allow_special: bool = option(
        False,
        "encode the literal of a special token in a text, such as <|endoftext|>, as that token (default: as"
        " text)",
    )
    split_sentences: bool = option(
        False, "make every sentence a sequence, by NLTK's Punkt; a list of texts counts as split already"
    )
    keep_newlines: bool = option(False, "keep the white space after a sentence")
    lang: str = option("english", "language of the texts: the folder of its Punkt parameters")
    punkt: str | None = option(
        None,
        "folder of Punkt parameters (default: tokenizers/punkt_tab in $NLTK_DATA or ~/nltk_data)",
        role="input",
    )
    shuffle_seed: int | None = option(
        None,
        "write the documents in a random order, that of this seed (default: in the order of the input); the"
        " last ones become the validation data of --split",
        added=True,
    )
    workers: int = option(default_workers(), "number of processes", role="runtime")
    log_interval: int | None = option(
        None, "print a line after every so many documents, besides the progress bar", role="runtime"
    )
    overwrite: bool = option(False, "replace another run at the output prefix", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        double = [k for k, n in collections.Counter(self.json_keys).items() if n > 1]
        nameless = [k for k in self.json_keys if "/" in k or "\0" in k]
        check(
            output_prefix_rule(self.output_prefix),
            (bool(self.json_keys), "json_keys must name at least one key"),
            (
                not nameless,
                f"json_keys: {', '.join(map(repr, nameless))} cannot be part of a file's name, because of the"
                " slash or NUL; give the key another name in the records",
            ),
            (not double, f"json_keys names {', '.join(double)} twice; each key gives one pair of files"),
            *self.input_rules,
            (self.workers >= 1, f"workers = {self.workers} must be at least 1"),
            (
                self.split_sentences or not self.keep_newlines,
                "keep_newlines has no effect without --split-sentences; add that, or leave it out",
            ),
            (
                self.split_sentences or self.punkt is None,
                f"punkt = {self.punkt} is not read without --split-sentences; add that, or leave it out",
            ),
            (
                self.log_interval is None or self.log_interval >= 1,
                f"log_interval = {self.log_interval} must be at least 1",
            ),
            (
                self.shuffle_seed is None or self.shuffle_seed >= 0,
                f"shuffle_seed = {self.shuffle_seed} must not be negative",
            ),
        )


# (tokens in the file's dtype, int32 lengths of sequences, int64 sequences of every document) of one key
EncodedKey = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class InputBatch:
    """A batch of the input: shards that a worker reads itself, or values of records that are read already."""

    shards: tuple[Shard, ...]
    values: tuple[Sequence[Any], ...] = ()  # of records: a text or a list of texts for every key
    rejects: tuple[dict[str, Any], ...] = ()
    bytes: int = 0  # of the input, for the progress bar


@dataclasses.dataclass(frozen=True)
class EncodedBatch:
    """The tokens of a batch."""

    parts: list[EncodedKey]  # for every key
    rejects: list[dict[str, Any]]
    bytes: int
    text_bytes: int
    num_documents: int


def tokenize(config: TokenizeConfig) -> dict[str, Any]:
    """Writes the token ids of documents; returns the manifest.

    A text is one sequence; a list of texts is a document of several. Empty sequences are dropped; a document
    without tokens stays as a document without sequences. Tokens are uint16 for a vocabulary below 65,500,
    otherwise int32. Raises UserError for settings that do not fit the tokenizer, and for an input without
    documents.
    """
    with without_collector():
        tokenizer = load(config, allow_special=config.allow_special)
    check(
        (
            not config.append_eod or tokenizer.eod is not None,
            "append_eod: the tokenizer has no end-of-document token; leave --append-eod out, or choose"
            " another tokenizer",
        ),
        (
            not config.prepend_bos or tokenizer.bos is not None,
            "prepend_bos: the tokenizer has no beginning-of-sequence token; leave --prepend-bos out, or"
            " choose another tokenizer",
        ),
    )
    splitter = None
    if config.split_sentences:
        splitter = SentenceSplitter(find_parameters(config.lang, config.punkt), config.keep_newlines)
    begin = [tokenizer.bos] if config.prepend_bos else []
    end = [tokenizer.eod] if config.append_eod else []
    shards = config.plan(
        config.input, key=config.json_keys[0], output=config.output_prefix, shard_bytes=SHARD_BYTES
    )
    depends = {
        "tokenizer": tokenizer.fingerprint,
        "ends": [begin, end],
        "punkt": splitter and splitter.fingerprint,
    }
    run = shards.begin("data tokenize", config, facts=depends)
    if run.finished:
        shutil.rmtree(work_folder(run.output), ignore_errors=True)  # killed after the manifest was written
        return run.manifest
    work = _TokenizeRun(run, config, token_dtype(tokenizer.vocab_size))
    encode = _BatchEncoder(
        tokenizer,
        splitter,
        config.json_keys,
        np.array(begin, work.dtype),
        np.array(end, work.dtype),
        work.dtype,
    )
    left = sum(s.bytes for s in shards)
    try:
        with progress("tokenize", left, "B") as advance, without_collector():
            batches = _batches(shards, config.json_keys)
            for batch in itertools.islice(batches, work.batches):
                advance(batch.bytes)
                left -= batch.bytes
            for encoded in _in_order(encode, batches, config.workers, left):
                work.add(encoded)
                advance(encoded.bytes)
        if not work.counts["documents"]:
            raise UserError(
                f"{', '.join(config.input)}: contains no document that can be read"
                f" ({work.counts['rejected']:,} set aside); check the input"
            )
    except UserError:
        # The remedy changes the input or a setting, so the next run cannot use this work.
        work.abandon()
        raise
    facts = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "eod": tokenizer.eod}
    return work.finish(dtype=str(work.dtype), tokenizer=facts)


class _Journal(TypedDict):
    """journal.json: what is written at a commit."""

    key: str
    batches: Count
    counts: _Counts
    rejects: Count  # bytes
    rejects_xxh3: str
    writers: list[WriterState]


class _Counts(TypedDict):
    documents: Count
    sequences: Count
    tokens: Count
    empty: Count
    text_bytes: Count
    rejected: Count


class _TokenizeRun:
    """The output of a run so far, and the journal from which the same run continues after a kill."""

    def __init__(self, run: manifest.Run, config: TokenizeConfig, dtype: np.dtype):
        self.run, self.dtype, self.log_interval = run, dtype, config.log_interval
        self.shuffle_seed = config.shuffle_seed
        self.level = "sentence" if config.split_sentences else "document"
        self.started = self.committed = time.monotonic()
        self.folder = work_folder(run.output)
        self.journal = self.folder / "journal.json"
        state: _Journal | None = None
        if os.path.lexists(self.journal):
            read = manifest.read_json(paths.regular(self.journal))
            state = check_value(read, _Journal, self.journal, f"remove the folder {self.folder}")
        if state is None or state["key"] != run.key:
            paths.remove(self.folder, ignore_errors=True)
            state = None
            if not config.overwrite:
                refuse_pairs_of_others(run, map(self._prefix, config.json_keys))
        paths.make_folder(self.folder)
        self.batches = state["batches"] if state else 0
        self.counts: dict[str, int] = dict.fromkeys(_Counts.__annotations__, 0)
        if state:
            self.counts.update(**state["counts"])
        before: Sequence[WriterState | None] = state["writers"] if state else [None] * len(config.json_keys)
        if len(before) != len(config.json_keys) or any(
            w["documents"] != self.counts["documents"] for w in before if w
        ):
            raise UserError(f"{self.journal}: is of other documents; remove the folder {self.folder}")
        self.writers = [
            IndexedWriter(self._prefix(k), dtype, self.folder, w) for k, w in zip(config.json_keys, before)
        ]
        self._open_rejects(state)

    def _open_rejects(self, state: _Journal | None) -> None:
        """Opens the file of rejects as it was at the commit; raises UserError if it has changed."""
        path, size = self.folder / "rejects.jsonl", state["rejects"] if state else 0
        self.rejects = paths.update(path, "a+b")  # closed by finish
        self.rejects.truncate(min(size, os.path.getsize(path)))
        self.rejects.seek(0)
        self.rejects_digest = xxhash.xxh3_128()
        manifest.add_to_digest(self.rejects_digest, self.rejects)
        if state and self.rejects_digest.hexdigest() != state["rejects_xxh3"]:
            self.rejects.close()
            raise UserError(
                f"{path}: has other bytes than the run before wrote; remove the folder {self.folder} and run"
                " the same command again"
            )

    def _prefix(self, key: str) -> Path:
        return self.run.output.with_name(f"{self.run.output.name}_{key}_{self.level}")

    def add(self, encoded: EncodedBatch) -> None:
        """Appends a batch; commits and prints progress if it is time."""
        before = self.counts["documents"]
        self.batches += 1
        for writer, part in zip(self.writers, encoded.parts):
            writer.add(*part)
            self.counts["tokens"] += len(part[0])
            self.counts["sequences"] += len(part[1])
            self.counts["empty"] += int((part[2] == 0).sum())
        self.counts["documents"] += encoded.num_documents
        self.counts["text_bytes"] += encoded.text_bytes
        self.counts["rejected"] += len(encoded.rejects)
        rejects = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in encoded.rejects)
        self.rejects.write(rejects)
        self.rejects_digest.update(rejects)
        if time.monotonic() - self.committed > COMMIT_SECONDS:
            self._commit()
        if self.log_interval and before // self.log_interval != self.counts["documents"] // self.log_interval:
            seconds = time.monotonic() - self.started
            print(
                f"tokenized {self.counts['documents']:,} documents, {self.counts['tokens']:,} tokens in"
                f" {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    def _commit(self) -> None:
        self.rejects.flush()
        os.fsync(self.rejects.fileno())
        writers = [w.commit() for w in self.writers]
        state = {
            "key": self.run.key,
            "batches": self.batches,
            "counts": self.counts,
            "rejects": self.rejects.tell(),
            "rejects_xxh3": self.rejects_digest.hexdigest(),
            "writers": writers,
        }
        manifest.write_json(self.journal, state)
        self.committed = time.monotonic()

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Moves the files to their places and writes the manifest."""
        self._commit()
        root = self.run.output.parent
        writers = self.writers
        if self.shuffle_seed is not None:
            order = np.random.default_rng(self.shuffle_seed).permutation(self.counts["documents"])
            with activity("writing the documents in a random order"):
                writers = [self._shuffled(writer, order) for writer in writers]
        outputs = [record for writer in writers for record in writer.finish()]
        self.rejects.close()
        if self.counts["rejected"]:
            path = self.run.path("rejects").with_name(f"{self.run.output.name}_rejects.jsonl")
            with manifest.atomic_write(path) as copy, open(self.folder / "rejects.jsonl", "rb") as rejects:
                shutil.copyfileobj(rejects, copy)
            outputs.append(manifest.record(path, root))
        sealed = self.run.finish([{**o, "documents": False} for o in outputs], self.counts, **facts)
        shutil.rmtree(self.folder, ignore_errors=True)
        return sealed

    def _shuffled(self, writer: IndexedWriter, order: np.ndarray) -> IndexedWriter:
        """Another writer, with the documents of this one in an order. After a kill it begins again."""
        tokens, lengths, ends = writer.written()
        starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))  # of sequences, in tokens
        ends = np.concatenate(([0], ends))  # of documents, in sequences
        shuffled = IndexedWriter(writer.prefix, self.dtype, self.folder / "shuffled")
        for document in order.tolist():
            first, last = ends[document], ends[document + 1]
            shuffled.add(tokens[starts[first] : starts[last]], lengths[first:last], [last - first])
        return shuffled

    def abandon(self) -> None:
        """Removes everything that was written and releases the output."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.run.release()


@dataclasses.dataclass(frozen=True)
class _BatchEncoder:
    """Encodes a batch: the work of a worker."""

    tokenizer: Tokenizer
    splitter: SentenceSplitter | None
    keys: tuple[str, ...]
    begin: np.ndarray  # (0 or 1,) token before each document that has tokens
    end: np.ndarray  # (0 or 1,) token after it
    dtype: np.dtype[Any]

    def __call__(self, batch: InputBatch) -> EncodedBatch:
        rejects = Rejects(Reject(**r) for r in batch.rejects)
        rows = itertools.chain(
            batch.values, *(reader.read_values(s, self.keys, rejects.append) for s in batch.shards)
        )
        parts: list[list[EncodedKey]] = [[] for _ in self.keys]
        num_documents = text_bytes = 0
        while values := list(itertools.islice(rows, BLOCK_ROWS)):
            num_documents += len(values)
            for part, column in zip(parts, zip(*values)):
                sequences, counts = self._sequences(column)
                text_bytes += sum(len(s) if s.isascii() else len(s.encode()) for s in sequences)
                part.append(self._encode(sequences, counts))
        joined = [part[0] if len(part) == 1 else self._join(part) for part in parts]
        return EncodedBatch(joined, [r.as_json() for r in rejects], batch.bytes, text_bytes, num_documents)

    def _join(self, blocks: list[EncodedKey]) -> EncodedKey:
        if not blocks:
            return np.empty(0, self.dtype), np.empty(0, np.int32), np.empty(0, np.int64)
        tokens, lengths, counts = map(np.concatenate, zip(*blocks))
        return tokens, lengths, counts

    def _sequences(self, column: Sequence[Any]) -> tuple[list[str], np.ndarray]:
        """(the texts of all sequences, number of sequences of every document).

        column: a text or a list of texts of every document.
        """
        if self.splitter is None and set(map(type, column)) == {str}:
            return list(column), np.ones(len(column), np.int64)
        split = self.splitter or (lambda text: [text])
        groups = [split(value) if isinstance(value, str) else value for value in column]
        return list(itertools.chain.from_iterable(groups)), np.array([len(g) for g in groups], np.int64)

    def _encode(self, sequences: Sequence[str], counts: np.ndarray) -> EncodedKey:
        pieces = self.tokenizer.encode_pieces(sequences)
        lengths = np.fromiter(map(len, pieces), np.int32, len(pieces))
        owner = np.repeat(np.arange(len(counts)), counts)
        if len(lengths) and not lengths.all():
            kept = np.flatnonzero(lengths)
            pieces, lengths, owner = [pieces[i] for i in kept], lengths[kept], owner[kept]
        if len(owner):
            change = owner[1:] != owner[:-1]
            first, last = np.append(True, change), np.append(change, True)
            pieces = self._with_ends(pieces, first, last)
            lengths = (
                lengths + len(self.begin) * first.astype(np.int32) + len(self.end) * last.astype(np.int32)
            )
        # one pass over the tokens: concatenated with begin and end tokens, in the dtype of the file
        tokens = (
            np.concatenate(pieces, dtype=self.dtype, casting="unsafe") if pieces else np.empty(0, self.dtype)
        )
        return tokens, lengths, np.bincount(owner, minlength=len(counts))

    def _with_ends(self, pieces: list[np.ndarray], first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
        """The pieces, with `begin` before the first of every document and `end` after the last.

        first, last: (pieces,) bool, whether a piece is the first or the last of its document.
        """
        if first.all() and last.all():
            begins = [[self.begin] * len(pieces)] if len(self.begin) else []
            ends = [[self.end] * len(pieces)] if len(self.end) else []
            return list(itertools.chain.from_iterable(zip(*begins, pieces, *ends)))
        parts: list[np.ndarray] = []
        for piece, is_first, is_last in zip(pieces, first.tolist(), last.tolist()):
            if is_first:
                parts.append(self.begin)
            parts.append(piece)
            if is_last:
                parts.append(self.end)
        return parts


def _batches(shards: Sequence[Shard], keys: Sequence[str]) -> Iterator[InputBatch]:
    """The input in batches of about BATCH_BYTES, determined by the files alone.

    Shards of plain JSONL are cut, and small ones are grouped. Those that cannot be cut (compressed files,
    Parquet with large row groups) are read here.
    """
    group: list[Shard] = []
    size = 0  # of the group
    for shard in itertools.chain.from_iterable(map(_pieces, shards)):
        whole = shard.bytes <= 2 * SHARD_BYTES and shard.kind != "hub" and not compression.ending(shard.path)
        if group and (not whole or size + shard.bytes > BATCH_BYTES):
            yield InputBatch(tuple(group), bytes=size)
            group, size = [], 0
        if whole:
            group.append(shard)
            size += shard.bytes
        else:
            yield from _read_here(shard, keys)
    if group:
        yield InputBatch(tuple(group), bytes=size)


def _pieces(shard: Shard) -> Iterator[Shard]:
    """A shard of plain JSONL in pieces of about BATCH_BYTES; any other shard as it is."""
    count = max(1, round(shard.bytes / BATCH_BYTES)) if shard.kind == "lines" else 1
    if count == 1:
        yield shard
        return
    cuts = [shard.start + (shard.end - shard.start) * i // count for i in range(count + 1)]
    for start, end in itertools.pairwise(cuts):
        yield dataclasses.replace(shard, start=start, end=end, bytes=end - start)


def _read_here(shard: Shard, keys: Sequence[str]) -> Iterator[InputBatch]:
    """Batches of the values of a shard that one process must read."""
    rejects = Rejects()
    values: list[Sequence[Any]] = []
    size = 0
    for row in reader.read_values(shard, keys, rejects.append):
        values.append(row)
        size += sum(len(v) if isinstance(v, str) else sum(map(len, v)) for v in row)
        if size >= BATCH_BYTES:
            yield InputBatch((), tuple(values), tuple(r.as_json() for r in rejects))
            values, size = [], 0
            rejects.clear()
    yield InputBatch((), tuple(values), tuple(r.as_json() for r in rejects), bytes=shard.bytes)


def _in_order(
    function: Callable[[InputBatch], EncodedBatch], batches: Iterator[InputBatch], workers: int, total: int
) -> Iterator[EncodedBatch]:
    """`map(function, batches)` on `workers` processes, of which this one is one.

    This process works too whenever the others have enough to do, so no processor is idle while they start. It
    begins alone and measures its speed; it stays alone if too little of the `total` bytes is left to pay for
    other processes.
    """
    begun, done = 0.0, 0
    for batch in batches:
        yield function(batch)
        if not begun:  # the first batch includes loading the encoder: its time says nothing about the speed
            begun, total = time.monotonic(), total - batch.bytes
            continue
        done += batch.bytes
        spent = time.monotonic() - begun
        # the progress within a compressed file is unknown
        left = spent * (total - done) / done if done else spent
        # the first batches are slower than later ones
        if workers > 1 and left > START_SECONDS and spent > START_SECONDS / 10:
            yield from _on_processes(function, batches, workers)


def _on_processes(
    function: Callable[[InputBatch], EncodedBatch], batches: Iterator[InputBatch], workers: int
) -> Iterator[EncodedBatch]:
    """The results of all batches in order, computed by a pool of `workers - 1` processes and this one."""
    queue: collections.deque[concurrent.futures.Future[EncodedBatch]] = collections.deque()
    running: list[concurrent.futures.Future[EncodedBatch]] = []
    with processes(workers - 1, initializer=_start, initargs=(function,)) as pool:
        for batch in batches:
            running = [f for f in running if not f.done()]
            if len(running) < 2 * workers:
                queue.append(pool.submit(_call, batch))
                running.append(queue[-1])
            else:
                queue.append(concurrent.futures.Future())
                queue[-1].set_result(function(batch))
            while queue and (queue[0].done() or len(queue) >= 2 * workers + AHEAD):
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


_function: Callable[[InputBatch], EncodedBatch]  # in a worker process: set once, by _start


def _start(function: Callable[[InputBatch], EncodedBatch]) -> None:
    """Prepares a new worker process: it gets the encoder once, and the encoder uses a single thread."""
    global _function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.disable()  # as without_collector
    _function = function


def _call(batch: InputBatch) -> EncodedBatch:
    return _function(batch)
