"""documents -> .bin/.idx.

`tokenize` reads documents in order and writes `{prefix}_{key}_document.bin/.idx` for every JSON key, byte for
byte what Megatron-LM's tools/preprocess_data.py writes; with sentences split, `{prefix}_{key}_sentence`, in
the same pass. The input is cut into batches of a few megabytes by the files alone, a pool of processes
encodes them, and this process appends them in order, so that the bytes do not depend on the number of workers
and memory does not depend on the corpus. Once a second what is written is made to survive a crash and noted
in a journal; the same command, run again after a kill, goes on from there.

While it works, everything lies in `.{name of prefix}.partial/` beside the result:

    NAME.bin NAME.lengths NAME.ends   what IndexedWriter keeps, for every key
    rejects.jsonl                     records that could not be read
    journal.json                      batches done, and how long each file was then
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
from typing import Literal

import numpy as np

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..core.executor import default_workers, processes, without_collector
from ..core.progress import progress
from ..documents import reader, sources
from ..documents.reader import Shard
from ..tokenizer.tokenizer import Tokenizer, TokenizerConfig, load
from .format import IndexedWriter, refuse_pairs_of_others, token_dtype, work_folder
from .sentences import SentenceSplitter, find_parameters

# of input that is planned as one piece: a Parquet reader starts anew in each, and waits for its first rows
SHARD_BYTES = 32_000_000
# of it that a worker encodes at a time: small enough for the processor's cache (8 MB: a fifth slower)
BATCH_BYTES = 1_000_000
# documents that are encoded at once: a row group of Parquet may be far larger than a batch of JSONL
BLOCK_ROWS = reader.BATCH_ROWS
COMMIT_SECONDS = 1.0
START_SECONDS = 2.0  # of work left that are worth starting other processes for: each takes one to come up
# batches that may be encoded before those ahead of them: the work of half a second, while processes start
AHEAD = 100


@configuration()
class TokenizeConfig(TokenizerConfig):
    """The settings of `mt data tokenize`: those of the tokenizer and these."""

    input: tuple[str, ...] = option(
        help="files, folders or globs: .jsonl(.gz .zst), .parquet, .txt", role="input"
    )
    output_prefix: str = option(
        help="the result is PREFIX_KEY_document.bin and .idx, or PREFIX_KEY_sentence", role="output"
    )
    json_keys: tuple[str, ...] = option(
        ("text",), "the record's keys that hold texts; each gives its own pair of files"
    )
    append_eod: bool = option(False, "end every document that has tokens with the end-of-document token")
    prepend_bos: bool = option(
        False, "begin every document that has tokens with the tokenizer's beginning token"
    )
    allow_special: bool = option(
        False,
        "make the literal of a special token in a text, such as <|endoftext|>, that token; by default it is"
        " text",
    )
    split_sentences: bool = option(
        False, "make every sentence a sequence, by NLTK's Punkt; a list of texts is taken as split already"
    )
    keep_newlines: bool = option(False, "leave the white space after a sentence in it")
    lang: str = option("english", "language of the texts: the folder of its Punkt parameters")
    punkt: str | None = option(
        None,
        "folder of Punkt parameters (default: tokenizers/punkt_tab in $NLTK_DATA or ~/nltk_data)",
        role="input",
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", "a record that cannot be read: stop, or set it aside in PREFIX_rejects.jsonl", role="runtime"
    )
    workers: int = option(default_workers(), "processes", role="runtime")
    log_interval: int | None = option(
        None, "print a line after every so many documents, beside the progress bar", role="runtime"
    )
    overwrite: bool = option(False, "replace another run at the output prefix", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        double = [k for k, n in collections.Counter(self.json_keys).items() if n > 1]
        check(
            (bool(self.json_keys), "json_keys must name at least one key"),
            (not double, f"json_keys names {', '.join(double)} twice; each key gives one pair of files"),
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
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """A piece of the input: shards that a worker reads itself, or the values of records that were read for
    it.
    """

    shards: tuple[Shard, ...]
    values: tuple = ()  # of records: for each key a text or a list of texts
    rejects: tuple[dict, ...] = ()
    bytes: int = 0  # of the input, for the progress bar


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A batch as tokens.

    parts: for every key (tokens in the file's dtype, lengths of sequences, sequences per document).
    """

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    rejects: list[dict]
    bytes: int
    text_bytes: int
    num_documents: int


def tokenize(config: TokenizeConfig) -> dict:
    """Documents to token ids on disk; returns the manifest.

    A text is one sequence; a list of texts is a document of several. Empty sequences are left out, and a
    document without tokens keeps its place as one without sequences. Tokens are uint16 where the vocabulary
    is below 65500.
    """
    with without_collector():
        tokenizer = load(config, allow_special=config.allow_special)
    check(
        (
            not config.append_eod or tokenizer.eod is not None,
            (
                "append_eod: the tokenizer has no end-of-document token; leave --append-eod out, or choose"
                " another tokenizer"
            ),
        ),
        (
            not config.prepend_bos or tokenizer.bos is not None,
            (
                "prepend_bos: the tokenizer has no token that begins a document; leave --prepend-bos out, or"
                " choose another tokenizer"
            ),
        ),
    )
    splitter = (
        SentenceSplitter(find_parameters(config.lang, config.punkt), config.keep_newlines)
        if config.split_sentences
        else None
    )
    begin = [tokenizer.bos] if config.prepend_bos else []
    end = [tokenizer.eod] if config.append_eod else []
    shards = reader.plan(
        config.input,
        key=config.json_keys[0],
        shard_bytes=SHARD_BYTES,
        on_error=config.on_error,
        output=config.output_prefix,
    )
    depends = {
        "tokenizer": tokenizer.fingerprint,
        "ends": [begin, end],
        "punkt": splitter and splitter.fingerprint,
    }
    run = manifest.begin(
        "data tokenize",
        config,
        dict.fromkeys(s.path for s in shards),
        identify=sources.identity,
        facts=depends,
    )
    if run.finished:
        shutil.rmtree(work_folder(run.output), ignore_errors=True)  # killed just after it was sealed
        return run.manifest
    work = _Work(run, config, token_dtype(tokenizer.vocab_size))
    encode = _Encoder(
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
                f"{', '.join(config.input)}: holds no document that can be read ({work.counts['rejected']:,}"
                " set aside); check the input"
            )
    except UserError:
        # the remedy changes the input or a setting: nothing here would be of use to the next run
        work.abandon()
        raise
    facts = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "eod": tokenizer.eod}
    return work.finish(dtype=str(work.dtype), tokenizer=facts)


class _Work:
    """What one run has written so far, and the journal from which the same run goes on after a kill."""

    def __init__(self, run: manifest.Run, config: TokenizeConfig, dtype: np.dtype):
        self.run, self.dtype, self.log_interval = run, dtype, config.log_interval
        self.level = "sentence" if config.split_sentences else "document"
        self.started = self.committed = time.monotonic()
        self.folder = work_folder(run.output)
        self.journal = self.folder / "journal.json"
        state = manifest.read_json(self.journal) if self.journal.exists() else None
        if state is None or state["key"] != run.key:
            shutil.rmtree(self.folder, ignore_errors=True)
            zero = {"documents": 0, "sequences": 0, "tokens": 0, "empty": 0, "text_bytes": 0, "rejected": 0}
            state = {"batches": 0, "counts": zero, "rejects": 0, "writers": [None] * len(config.json_keys)}
            if not config.overwrite:
                refuse_pairs_of_others(run, map(self._prefix, config.json_keys))
        self.folder.mkdir(exist_ok=True)
        self.batches, self.counts = state["batches"], state["counts"]
        self.writers = [
            IndexedWriter(self._prefix(k), dtype, self.folder, w)
            for k, w in zip(config.json_keys, state["writers"])
        ]
        self.rejects = open(self.folder / "rejects.jsonl", "ab")  # noqa: SIM115 - closed by finish
        self.rejects.truncate(state["rejects"])

    def _prefix(self, key: str) -> Path:
        return self.run.output.with_name(f"{self.run.output.name}_{key}_{self.level}")

    def add(self, encoded: Encoded) -> None:
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
        self.rejects.write(
            b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in encoded.rejects)
        )
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
            "writers": writers,
        }
        manifest.write_json(self.journal, state)
        self.committed = time.monotonic()

    def finish(self, **facts) -> dict:
        self._commit()
        root = self.run.output.parent
        outputs = [record for writer in self.writers for record in writer.finish()]
        self.rejects.close()
        if self.counts["rejected"]:
            path = self.run.path("rejects").with_name(f"{self.run.output.name}_rejects.jsonl")
            shutil.copyfile(self.folder / "rejects.jsonl", path)
            outputs.append(manifest.record(path, root))
        sealed = self.run.finish([{**o, "documents": False} for o in outputs], self.counts, **facts)
        shutil.rmtree(self.folder, ignore_errors=True)
        return sealed

    def abandon(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.run.release()


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """A batch -> its tokens: what a worker does."""

    tokenizer: Tokenizer
    splitter: SentenceSplitter | None
    keys: tuple[str, ...]
    begin: np.ndarray  # the token before each document that has tokens, or none
    end: np.ndarray  # the same after it
    dtype: np.dtype

    def __call__(self, batch: Batch) -> Encoded:
        rejects = [reader.Reject(**r) for r in batch.rejects]
        rows = itertools.chain(
            batch.values, *(reader.read_values(s, self.keys, rejects.append) for s in batch.shards)
        )
        parts: list[list] = [[] for _ in self.keys]
        num_documents = text_bytes = 0
        while values := list(itertools.islice(rows, BLOCK_ROWS)):
            num_documents += len(values)
            for part, column in zip(parts, zip(*values)):
                sequences, counts = self._sequences(column)
                text_bytes += sum(len(s) if s.isascii() else len(s.encode()) for s in sequences)
                part.append(self._encode(sequences, counts))
        joined = [part[0] if len(part) == 1 else self._join(part) for part in parts]
        return Encoded(joined, [r.as_json() for r in rejects], batch.bytes, text_bytes, num_documents)

    def _join(
        self, blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = zip(*blocks) if blocks else ((), (), ())
        dtypes = (self.dtype, np.int32, np.int64)
        return tuple(np.concatenate(c) if c else np.empty(0, dtype) for c, dtype in zip(columns, dtypes))

    def _sequences(self, column: Sequence[str | list[str]]) -> tuple[list[str], np.ndarray]:
        """(every text that is to be a sequence, how many of each document)."""
        if self.splitter is None and set(map(type, column)) == {str}:
            return list(column), np.ones(len(column), np.int64)
        split = self.splitter or (lambda text: [text])
        groups = [split(value) if isinstance(value, str) else value for value in column]
        return list(itertools.chain.from_iterable(groups)), np.array([len(g) for g in groups], np.int64)

    def _encode(
        self, sequences: Sequence[str], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        # One pass over the tokens: joined, ends between, in the dtype of the file.
        tokens = (
            np.concatenate(pieces, dtype=self.dtype, casting="unsafe") if pieces else np.empty(0, self.dtype)
        )
        return tokens, lengths, np.bincount(owner, minlength=len(counts))

    def _with_ends(self, pieces: list[np.ndarray], first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
        """The pieces, `begin` before those that are first of their documents and `end` after the last."""
        if first.all() and last.all():
            filled = [ends for ends in (self.begin, pieces, self.end) if len(ends)]
            parts = [None] * (len(filled) * len(pieces))
            for i, column in enumerate(filled):
                parts[i :: len(filled)] = column if column is pieces else [column] * len(pieces)
            return parts
        parts = []
        for piece, is_first, is_last in zip(pieces, first.tolist(), last.tolist()):
            if is_first:
                parts.append(self.begin)
            parts.append(piece)
            if is_last:
                parts.append(self.end)
        return parts


def _batches(shards: Sequence[Shard], keys: Sequence[str]) -> Iterator[Batch]:
    """The input in pieces of about BATCH_BYTES, told by the files alone.

    Plain JSONL is cut further. Small files come together. What cannot be cut (compressed files, Parquet with
    large row groups) is read here and dealt out.
    """
    group: list[Shard] = []
    for shard in itertools.chain.from_iterable(map(_pieces, shards)):
        whole = (
            shard.bytes <= 2 * SHARD_BYTES
            and not shard.path.endswith((".gz", ".zst"))
            and not shard.path.startswith("hf:")
        )
        if group and (not whole or sum(s.bytes for s in group) + shard.bytes > BATCH_BYTES):
            yield Batch(tuple(group), bytes=sum(s.bytes for s in group))
            group = []
        if whole:
            group.append(shard)
        else:
            yield from _dealt(shard, keys)
    if group:
        yield Batch(tuple(group), bytes=sum(s.bytes for s in group))


def _pieces(shard: Shard) -> Iterator[Shard]:
    """A shard of plain JSONL in about equal pieces of a batch; any other as it is."""
    count = max(1, round(shard.bytes / BATCH_BYTES)) if shard.path.endswith((".jsonl", ".json")) else 1
    cuts = (
        [shard.start + (shard.end - shard.start) * i // count for i in range(count + 1)] if count > 1 else []
    )
    yield from (
        (dataclasses.replace(shard, start=a, end=b, bytes=b - a) for a, b in itertools.pairwise(cuts))
        if cuts
        else [shard]
    )


def _dealt(shard: Shard, keys: Sequence[str]) -> Iterator[Batch]:
    rejects: list[reader.Reject] = []
    values, size = [], 0
    for row in reader.read_values(shard, keys, rejects.append):
        values.append(row)
        size += sum(len(v) if isinstance(v, str) else sum(map(len, v)) for v in row)
        if size >= BATCH_BYTES:
            yield Batch((), tuple(values), tuple(r.as_json() for r in rejects))
            values, size = [], 0
            rejects.clear()
    yield Batch((), tuple(values), tuple(r.as_json() for r in rejects), bytes=shard.bytes)


def _in_order(
    function: Callable[[Batch], Encoded], batches: Iterator[Batch], workers: int, total: int
) -> Iterator[Encoded]:
    """`map(function, batches)` on so many processes, this one among them: it helps whenever the others have
    enough to do.

    So no processor waits while the others start, and two processes are enough for two processors. It begins
    alone, and goes on alone where its own pace leaves too little of the `total` bytes to do.
    """
    begun, done = 0.0, 0
    for batch in batches:
        yield function(batch)
        if not begun:  # the first batch waits for the encoder to be loaded: it tells nothing of the pace
            begun, total = time.monotonic(), total - batch.bytes
            continue
        done += batch.bytes
        spent = time.monotonic() - begun
        # of a compressed file nothing is known until its end
        left = spent * (total - done) / done if done else spent
        # the first batches are slower than the rest
        if workers > 1 and left > START_SECONDS and spent > START_SECONDS / 10:
            yield from _on_processes(function, batches, workers)


def _on_processes(
    function: Callable[[Batch], Encoded], batches: Iterator[Batch], workers: int
) -> Iterator[Encoded]:
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    running: list[concurrent.futures.Future] = []
    with processes(workers - 1, initializer=_start, initargs=(function,)) as pool:
        for batch in batches:
            running = [f for f in running if not f.done()]
            if len(running) < 2 * workers:
                waiting.append(pool.submit(_call, batch))
                running.append(waiting[-1])
            else:
                waiting.append(concurrent.futures.Future())
                waiting[-1].set_result(function(batch))
            while waiting and (waiting[0].done() or len(waiting) >= 2 * workers + AHEAD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start(function: Callable[[Batch], Encoded]) -> None:
    """In a new worker: the encoder is sent once, and its threads would fight with the other workers for the
    processors.
    """
    global _function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.disable()  # as without_collector
    _function = function


def _call(batch: Batch) -> Encoded:
    return _function(batch)
