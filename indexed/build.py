"""documents -> .bin/.idx; merging, checking and looking into such pairs.

`tokenize` reads documents in order and writes `{prefix}_{key}_document.bin/.idx` for every JSON key, byte for byte what
Megatron-LM's tools/preprocess_data.py writes. The input is cut into batches of a few megabytes by the files alone, a
pool of processes encodes them, and this process appends them in order, so that the bytes do not depend on the number
of workers and memory does not depend on the corpus. Once a second what is written is made to survive a crash and noted
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
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from .. import documents, manifest
from ..config import Failure, UserError, check, option
from ..documents import Shard
from ..executor import default_workers, progress
from ..tokenizer import Tokenizer, TokenizerConfig, load
from .format import BLOCK, IndexedDataset, IndexedWriter, token_dtype

BATCH_BYTES = 8_000_000  # of text that a worker encodes at a time
COMMIT_SECONDS = 1.0
AHEAD = 12  # batches that may be encoded before those ahead of them: the work of half a second, while processes start


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeConfig(TokenizerConfig):
    """The settings of `mt data tokenize`: those of the tokenizer and these."""

    input: tuple[str, ...] = option(help="files, folders or globs: .jsonl(.gz .zst), .parquet, .txt", role="input")
    output_prefix: str = option(help="the result is PREFIX_KEY_document.bin and .idx", role="output")
    json_keys: tuple[str, ...] = option(("text",), "the record's keys that hold texts; each gives its own pair of files")
    append_eod: bool = option(False, "end every document that has tokens with the end-of-document token")
    on_error: Literal["fail", "skip"] = option("fail", "a record that cannot be read: stop, or set it aside in PREFIX_rejects.jsonl", role="runtime")
    workers: int = option(default_workers(), "processes", role="runtime")
    log_interval: int | None = option(None, "print a line after every so many documents, beside the progress bar", role="runtime")
    overwrite: bool = option(False, "replace another run at the output prefix", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        double = [k for k, n in collections.Counter(self.json_keys).items() if n > 1]
        check(
            (bool(self.json_keys), "json_keys must name at least one key"),
            (not double, f"json_keys names {', '.join(double)} twice; each key gives one pair of files"),
            (self.workers >= 1, f"workers = {self.workers} must be at least 1"),
            (self.log_interval is None or self.log_interval >= 1, f"log_interval = {self.log_interval} must be at least 1"),
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """A piece of the input: shards that a worker reads itself, or the values of records that were read for it."""

    shards: tuple[Shard, ...]
    values: tuple = ()  # of records: for each key a text or a list of texts
    rejects: tuple[dict, ...] = ()
    bytes: int = 0  # of the input, for the progress bar


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A batch as tokens. parts: for every key (tokens in the file's dtype, lengths of sequences, sequences per document)."""

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    rejects: list[dict]
    bytes: int
    text_bytes: int
    num_documents: int


def tokenize(config: TokenizeConfig) -> dict:
    """Documents to token ids on disk; returns the manifest.

    A text is one sequence; a list of texts is a document of several. Empty sequences are left out, and a document
    without tokens keeps its place as one without sequences. Tokens are uint16 where the vocabulary is below 65500.
    """
    tokenizer = load(config)
    if config.append_eod and tokenizer.eod is None:
        raise UserError("append_eod: the tokenizer has no end-of-document token; leave --append-eod out, or choose another tokenizer")
    shards = documents.plan(config.input, key=config.json_keys[0], shard_bytes=BATCH_BYTES, on_error=config.on_error)
    run = manifest.begin("data tokenize", config, dict.fromkeys(s.path for s in shards), facts={"tokenizer": tokenizer.fingerprint})
    if run.finished:
        shutil.rmtree(work_folder(run.output), ignore_errors=True)  # killed just after it was sealed
        return run.manifest
    work = _Work(run, config, token_dtype(tokenizer.vocab_size))
    encode = _Encoder(tokenizer, config.json_keys, config.append_eod, work.dtype)
    total = sum(s.bytes for s in shards)
    try:
        with progress("tokenize", total, "B") as advance:
            batches = _batches(shards, config.json_keys)
            for batch in itertools.islice(batches, work.batches):
                advance(batch.bytes)
            for encoded in _in_order(encode, batches, min(config.workers, -(-total // BATCH_BYTES))):
                work.add(encoded)
                advance(encoded.bytes)
        if not work.counts["documents"]:
            raise UserError(f"{', '.join(config.input)}: holds no document that can be read ({work.counts['rejected']:,} set aside); check the input")
    except UserError:
        work.abandon()  # the remedy changes the input or a setting: nothing here would be of use to the next run
        raise
    facts = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "eod": tokenizer.eod}
    return work.finish(dtype=str(work.dtype), tokenizer=facts)


class _Work:
    """What one run has written so far, and the journal from which the same run goes on after a kill."""

    def __init__(self, run: manifest.Run, config: TokenizeConfig, dtype: np.dtype):
        self.run, self.dtype, self.log_interval = run, dtype, config.log_interval
        self.started = self.committed = time.monotonic()
        self.folder = work_folder(run.output)
        self.journal = self.folder / "journal.json"
        state = manifest.read_json(self.journal) if self.journal.exists() else None
        if state is None or state["key"] != run.key:
            shutil.rmtree(self.folder, ignore_errors=True)
            zero = {"documents": 0, "sequences": 0, "tokens": 0, "empty": 0, "text_bytes": 0, "rejected": 0}
            state = {"batches": 0, "counts": zero, "rejects": 0, "writers": [None] * len(config.json_keys)}
            foreign = [p for key in config.json_keys for s in ("bin", "idx") if (p := self._prefix(key).with_name(f"{self._prefix(key).name}.{s}")).exists()]
            if foreign and not config.overwrite:
                run.release()
                raise UserError(f"{foreign[0]}: is there already, and no unfinished run of these settings wrote it; choose another output or pass --overwrite")
        self.folder.mkdir(exist_ok=True)
        self.batches, self.counts = state["batches"], state["counts"]
        self.writers = [IndexedWriter(self._prefix(k), dtype, self.folder, w) for k, w in zip(config.json_keys, state["writers"])]
        self.rejects = open(self.folder / "rejects.jsonl", "ab")  # noqa: SIM115 - closed by finish
        self.rejects.truncate(state["rejects"])

    def _prefix(self, key: str) -> Path:
        return self.run.output.with_name(f"{self.run.output.name}_{key}_document")

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
        self.rejects.write(b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in encoded.rejects))
        if time.monotonic() - self.committed > COMMIT_SECONDS:
            self._commit()
        if self.log_interval and before // self.log_interval != self.counts["documents"] // self.log_interval:
            seconds = time.monotonic() - self.started
            print(f"tokenized {self.counts['documents']:,} documents, {self.counts['tokens']:,} tokens in {seconds:.1f} s", file=sys.stderr, flush=True)

    def _commit(self) -> None:
        self.rejects.flush()
        os.fsync(self.rejects.fileno())
        writers = [w.commit() for w in self.writers]
        state = {"key": self.run.key, "batches": self.batches, "counts": self.counts, "rejects": self.rejects.tell(), "writers": writers}
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


def work_folder(prefix: Path) -> Path:
    """Where a verb whose output is a prefix works; manifest.begin removes it with what else a stale run left."""
    return prefix.with_name(f".{prefix.name}.partial")


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """A batch -> its tokens: what a worker does."""

    tokenizer: Tokenizer
    keys: tuple[str, ...]
    append_eod: bool
    dtype: np.dtype

    def __call__(self, batch: Batch) -> Encoded:
        rejects = [documents.Reject(**r) for r in batch.rejects]
        values = list(batch.values)
        for shard in batch.shards:
            values += documents.read_values(shard, self.keys, rejects.append)
        columns = list(zip(*values)) if values else [()] * len(self.keys)
        parts, text_bytes = [], 0
        for column in columns:
            sentences, counts = _sentences(column)
            text_bytes += sum(map(len, map(str.encode, sentences)))
            parts.append(self._encode(sentences, counts))
        return Encoded(parts, [r.as_json() for r in rejects], batch.bytes, text_bytes, len(values))

    def _encode(self, sentences: Sequence[str], counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens, lengths = self.tokenizer.encode_batch(sentences)
        owner = np.repeat(np.arange(len(counts)), counts)[lengths > 0]
        lengths = lengths[lengths > 0]
        tokens = tokens.astype(self.dtype)
        if self.append_eod and len(owner):
            last = np.append(owner[1:] != owner[:-1], True)  # of its document's sequences
            tokens = np.insert(tokens, np.cumsum(lengths, dtype=np.int64)[last], self.tokenizer.eod)
            lengths = lengths + last
        return tokens, lengths.astype(np.int32), np.bincount(owner, minlength=len(counts))


def _sentences(column: Sequence[str | list[str]]) -> tuple[list[str], np.ndarray]:
    """(every text, how many of each document): one where a document is a text, any number where it is a list."""
    if set(map(type, column)) == {str}:
        return list(column), np.ones(len(column), np.int64)
    groups = [[value] if isinstance(value, str) else value for value in column]
    return list(itertools.chain.from_iterable(groups)), np.array([len(g) for g in groups], np.int64)


def _batches(shards: Sequence[Shard], keys: Sequence[str]) -> Iterator[Batch]:
    """The input in pieces of about BATCH_BYTES, told by the files alone.

    Plain JSONL is cut already. Small files come together. What cannot be cut (compressed files, Parquet with large
    row groups) is read here and dealt out.
    """
    group: list[Shard] = []
    for shard in shards:
        whole = shard.bytes <= 4 * BATCH_BYTES and not shard.path.endswith((".gz", ".zst"))
        if group and (not whole or sum(s.bytes for s in group) + shard.bytes > BATCH_BYTES):
            yield Batch(tuple(group), bytes=sum(s.bytes for s in group))
            group = []
        if whole:
            group.append(shard)
        else:
            yield from _dealt(shard, keys)
    if group:
        yield Batch(tuple(group), bytes=sum(s.bytes for s in group))


def _dealt(shard: Shard, keys: Sequence[str]) -> Iterator[Batch]:
    rejects: list[documents.Reject] = []
    values, size = [], 0
    for row in documents.read_values(shard, keys, rejects.append):
        values.append(row)
        size += sum(len(v) if isinstance(v, str) else sum(map(len, v)) for v in row)
        if size >= BATCH_BYTES:
            yield Batch((), tuple(values), tuple(r.as_json() for r in rejects))
            values, size = [], 0
            rejects.clear()
    yield Batch((), tuple(values), tuple(r.as_json() for r in rejects), bytes=shard.bytes)


def _in_order(function: Callable[[Batch], Encoded], batches: Iterator[Batch], workers: int) -> Iterator[Encoded]:
    """`map(function, batches)` on so many processes, this one among them: it helps whenever the others have enough to do.

    So no processor waits while the others start, and two processes are enough for two processors.
    """
    if workers <= 1:
        yield from map(function, batches)
        return
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    context = multiprocessing.get_context("spawn")  # as in executor.py
    with concurrent.futures.ProcessPoolExecutor(workers - 1, mp_context=context, initializer=_start, initargs=(function,)) as pool:
        try:
            for batch in batches:
                if sum(not f.done() for f in waiting) < 2 * workers:
                    waiting.append(pool.submit(_call, batch))
                else:
                    waiting.append(concurrent.futures.Future())
                    waiting[-1].set_result(function(batch))
                while waiting and (waiting[0].done() or len(waiting) >= 2 * workers + AHEAD):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except concurrent.futures.process.BrokenProcessPool:
            raise Failure(
                "a worker process died, possibly killed for want of memory. What is written is kept: run the same command "
                "again, with fewer --workers if memory was short"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(function: Callable[[Batch], Encoded]) -> None:
    """In a new worker: the encoder is sent once, and its threads would fight with the other workers for the processors."""
    global _function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _function = function


def _call(batch: Batch) -> Encoded:
    return _function(batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """The settings of `mt data merge`."""

    input: tuple[str, ...] = option(help="prefixes of .bin/.idx pairs, in the order wanted; a folder stands for its pairs, sorted", role="input")
    output_prefix: str = option(help="the result is PREFIX.bin and PREFIX.idx", role="output")
    overwrite: bool = option(False, "replace another run at the output prefix", role="runtime")


def merge(config: MergeConfig) -> dict:
    """Several pairs of the same dtype into one, in order, as a stream; returns the manifest."""
    prefixes = [p for item in config.input for p in _pairs(item)]
    datasets = [IndexedDataset(p) for p in prefixes]
    for prefix, dataset in zip(prefixes, datasets):
        if dataset.dtype != datasets[0].dtype:
            raise UserError(f"{prefix}: its tokens are {dataset.dtype}, those of {prefixes[0]} {datasets[0].dtype}; tokenize both with one tokenizer")
    facts = [(manifest.manifest_of(f"{p}.bin") or {}).get("tokenizer") for p in prefixes]  # None where mt did not write it
    known = [(p, f) for p, f in zip(prefixes, facts) if f]
    other = next((p for p, f in known if f != known[0][1]), None)
    if other is not None:
        raise UserError(f"{other}: was written with another tokenizer than {known[0][0]}; tokenize both with one")
    run = manifest.begin("data merge", config, [f"{p}.{s}" for p in prefixes for s in ("bin", "idx")])
    if run.finished:
        return run.manifest
    folder = work_folder(run.output)
    shutil.rmtree(folder, ignore_errors=True)  # a killed merge is done again: it is as fast as the disk
    writer = IndexedWriter(run.output, datasets[0].dtype, folder)
    with progress("merge", sum(d.tokens.nbytes for d in datasets), "B") as advance:
        for dataset in datasets:
            for at in range(0, len(dataset.tokens), BLOCK):
                block = dataset.tokens[at : at + BLOCK]
                writer.add(block, (), ())
                advance(block.nbytes)
            for at in range(0, len(dataset), BLOCK):
                writer.add((), dataset.lengths[at : at + BLOCK], ())
            for at in range(0, dataset.num_documents, BLOCK):
                writer.add((), (), np.diff(dataset.document_indices[at : at + BLOCK + 1]))
    counts = {"inputs": len(datasets), "documents": writer.documents, "sequences": writer.sequences, "tokens": sum(len(d.tokens) for d in datasets)}
    same = {"tokenizer": facts[0]} if all(facts) else {}
    outputs = [{**o, "documents": False} for o in writer.finish()]
    sealed = run.finish(outputs, counts, dtype=str(datasets[0].dtype), **same)
    shutil.rmtree(folder, ignore_errors=True)
    return sealed


def _pairs(item: str) -> list[str]:
    if not os.path.isdir(item):
        return [_prefix(item)]
    found = sorted(str(p.with_suffix("")) for p in Path(item).glob("*.idx"))
    if not found:
        raise UserError(f"{item}: holds no .bin/.idx pair; check the path")
    return found


def _prefix(path: str) -> str:
    """A prefix, also where a user's shell completed it to one of the two files."""
    return path[:-4] if path.endswith((".bin", ".idx")) else path


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig(TokenizerConfig):
    """The settings of `mt data verify`; with a tokenizer, tokens are checked against its vocabulary."""

    POSITIONAL = "prefix"

    prefix: str = option(help="prefix of a .bin/.idx pair", role="input")


def verify(config: VerifyConfig) -> dict:
    """Checks a pair from end to end; raises UserError that says what is wrong.

    Always: header, sizes, lengths, pointers, documents. Where mt wrote it: every byte of both files against the
    manifest. Where the vocabulary is known (by the manifest, or a tokenizer's settings): every token.
    """
    prefix = _prefix(config.prefix)
    dataset = IndexedDataset(prefix)
    sealed = manifest.manifest_of(f"{prefix}.bin")
    checked = ["sizes, lengths, pointers and documents"]
    if sealed is not None:
        recorded = {Path(o["name"]).name: o["xxh3"] for o in sealed["outputs"]}
        for path in (f"{prefix}.bin", f"{prefix}.idx"):
            if manifest.file_digest(path) != recorded[Path(path).name]:
                raise UserError(f"{path}: its bytes are not those that `mt {sealed['verb']}` wrote on {sealed['finished']}; fetch it again, or tokenize again")
        checked.append("digests of both files")
    tokenizer = load(config) if config.kind else None
    facts = (sealed or {}).get("tokenizer")
    if tokenizer is not None and facts is not None and tokenizer.fingerprint != facts["fingerprint"]:
        raise UserError(f"{prefix}: was written with another tokenizer (vocabulary of {facts['vocab_size']:,}, this one {tokenizer.vocab_size:,}); give that one")
    vocab_size = tokenizer.vocab_size if tokenizer else facts["vocab_size"] if facts else None
    if vocab_size is not None:
        _check_tokens(dataset, vocab_size)
        checked.append(f"every token below {vocab_size:,}")
    counts = {"documents": dataset.num_documents, "sequences": len(dataset), "tokens": len(dataset.tokens)}
    text = f"{prefix}: whole: {counts['documents']:,} documents, {counts['sequences']:,} sequences, {counts['tokens']:,} tokens ({dataset.dtype}); checked: {', '.join(checked)}"
    return {"text": text, "prefix": prefix, "counts": counts, "dtype": str(dataset.dtype), "checked": checked}


def _check_tokens(dataset: IndexedDataset, vocab_size: int) -> None:
    for at in range(0, len(dataset.tokens), BLOCK):
        block = dataset.tokens[at : at + BLOCK]
        wrong = (block < 0) | (block >= vocab_size)
        if wrong.any():
            bad = at + int(np.argmax(wrong))
            sequence = int(np.searchsorted(dataset.pointers, bad * dataset.dtype.itemsize, side="right")) - 1
            raise UserError(f"{dataset.prefix}.bin: token {dataset.tokens[bad]} in sequence {sequence} is outside the vocabulary of {vocab_size:,}; it was written with another tokenizer or is damaged")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig(TokenizerConfig):
    """The settings of `mt data inspect`; with a tokenizer, documents are decoded."""

    POSITIONAL = "prefix"

    prefix: str = option(help="prefix of a .bin/.idx pair", role="input")
    document: int | None = option(None, "the document to print, counted from 0")


def inspect(config: InspectConfig) -> dict:
    """What a pair holds: counts and the histogram of its lengths, or one document."""
    dataset = IndexedDataset(_prefix(config.prefix))
    if config.document is not None:
        return _inspect_document(dataset, config)
    lengths = dataset.lengths
    summary = {
        "prefix": dataset.prefix, "dtype": str(dataset.dtype), "documents": dataset.num_documents, "sequences": len(dataset),
        "tokens": len(dataset.tokens), "empty_documents": int((np.diff(dataset.document_indices) == 0).sum()),
    }
    lines = [f"{name:<16}{value:,}" if isinstance(value, int) else f"{name:<16}{value}" for name, value in summary.items()]
    if len(lengths):
        points = dict(zip(("shortest", "median", "longest"), (int(lengths.min()), int(np.median(lengths)), int(lengths.max()))))
        bins = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1))).astype(int))
        histogram = {f"<= {1 << i:,}": int(n) for i, n in enumerate(bins) if n}
        width = max(histogram.values())
        lines += [f"{name:<16}{value:,}" for name, value in points.items()]
        lines += ["", "sequences by tokens:", *(f"  {name:>12}  {n:>12,}  {'#' * max(1, 40 * n // width)}" for name, n in histogram.items())]
        summary |= {**points, "histogram": histogram}
    return {"text": "\n".join(lines), **summary}


def _inspect_document(dataset: IndexedDataset, config: InspectConfig) -> dict:
    number, count = config.document, dataset.num_documents
    if not 0 <= number < count:
        raise UserError(f"{dataset.prefix}: has no document {number}; it has {count:,}, counted from 0")
    sequences = [dataset[i].tolist() for i in range(*dataset.document_indices[number : number + 2].tolist())]
    found = {"prefix": dataset.prefix, "document": number, "sequences": sequences}
    if config.kind:
        tokenizer = load(config)
        found["decoded"] = [tokenizer.decode(s) for s in sequences]
    shown = found.get("decoded") or [" ".join(map(str, s)) for s in sequences]
    head = f"document {number}: {len(sequences)} sequences, {sum(map(len, sequences)):,} tokens"
    return {"text": "\n".join([head, *shown]), **found}
