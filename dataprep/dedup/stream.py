"""`mt data dedup --stream`: decide about the documents of standard input one by one, against an index.

In: JSON lines on standard input, in an order that does not end. Out, as soon as they are decided: the lines
kept, on standard output; the documents removed and the records that cannot be read, with --output, in

    removed.jsonl    id, reason (exact, near or url), survivor, similarity to it
    rejects.jsonl    file, place, reason, the record; with --on-error skip

which are continued. The index (stream_index.py) is in memory, or in Redis, where it outlives the command.

**Which verdict.** A document gets the verdict, survivor and similarity that `mt data dedup --survivor first`
gives to the last document of an input that ends with it. So it is removed if it is a copy or a near duplicate
of an earlier document, whether that one was removed or not. The batch command over a longer input removes
more: a later document may be near to two clusters, which it joins. The first document of the second cluster
was written by then. The later documents of both name the same survivor.

Exception: a document that comes again with its id and its text is a document that is sent again, not a copy.
It is written again only if the command ended before it was written.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...core import paths, terminal
from ...core.config import UserError
from ...core.unicode import normalize
from ...documents import files, writer
from ...documents.reader import Document, read_arriving
from ...documents.rejects import Reject
from ...documents.sharding import Shard
from .config import DedupConfig
from .exact_keys import document_url_key, exact_key
from .jaccard import distinct_hashes, distinct_in_place
from .minhash import minhash_signatures, text_shingles
from .shingles import TEXT_RULES, long_text_shingles
from .stream_index import AGAIN, KEPT, Signed, StreamIndex, Verdict, identity
from .stream_tables import MemoryTables, RedisTables

STDIN = "stdin"
LONG = 1 << 22  # characters of a text whose n-grams are made in blocks


def dedup_stream(config: DedupConfig) -> dict[str, Any]:
    """Decides about every document of standard input; returns the counts.

    Raises UserError for a terminal, or for a record that cannot be read and --on-error fail. The documents
    before it are decided and written.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("standard input is a terminal; pipe JSONL into the command, as in `crawler | mt ...`")
    index = open_index(config)
    counts: collections.Counter[str] = collections.Counter()
    try:
        _read_and_decide(index, config, counts)
    except KeyboardInterrupt:
        if config.index is not None:
            raise
        raise KeyboardInterrupt(
            "interrupted; the lines that were written stay, but the index was in memory: the next run knows"
            " none of them"
        ) from None
    rows_in = sum(counts.values())
    removed = {name: n for name, n in sorted(counts.items()) if name in ("exact", "near", "url")}
    facts = {"rows_kept": counts[KEPT], "removed": removed}
    facts |= {name: counts[name] for name in ("rejected", "repeated")}
    return {
        "counts": {"rows_in": rows_in, **facts},
        "index_documents": index.documents,
        "standard_output": "documents",
    }


def _read_and_decide(index: StreamIndex, config: DedupConfig, counts: collections.Counter[str]) -> None:
    """Decides about the documents of standard input, and counts the outcomes."""
    with _Logs(config.output) as logs:

        def reject(rejected: Reject) -> None:
            counts["rejected"] += 1
            logs.reject(rejected)

        shard = Shard(
            STDIN, 0, 0, 0, config.text_key, config.on_error, config.max_record_bytes, "lines", label=STDIN
        )
        read = functools.partial(os.read, sys.stdin.fileno())
        for arrived in read_arriving(read, shard, reject, need_id=config.index is not None):
            documents, lines = [], []
            for document in arrived:
                try:
                    lines.append(writer.json_line(document))
                    documents.append(document)
                except writer.Unwritable as error:
                    if config.on_error == "fail":
                        _decide(index, config, documents, lines, counts, logs)
                        raise
                    raw = document.text[: files.BEGINNING_BYTES].encode(errors="replace").decode()
                    reject(Reject(STDIN, f"document {document.id}", error.reason, raw))
            _decide(index, config, documents, lines, counts, logs)


def open_index(config: DedupConfig) -> StreamIndex:
    """The index of a stream, made if it is not there; raises UserError if it has other settings."""
    tables = RedisTables(config.index) if config.index is not None else MemoryTables()
    bands, rows = config.banding()
    settings: dict[str, Any] = {"method": config.method, "text_rules": TEXT_RULES}
    if bands:
        settings |= {"threshold": config.threshold, "verify": config.verify, "bands": bands, "rows": rows}
        settings |= {"ngram": config.ngram, "ngram_unit": config.ngram_unit}
    if config.method == "url":
        settings["url_key"] = config.url_key
    return StreamIndex(
        tables,
        settings,
        threshold=config.threshold,
        banding=(bands, rows),
        verify=config.verify,
        copy_reason="url" if config.method == "url" else "exact",
    )


def sign(documents: Sequence[Document], config: DedupConfig) -> list[Signed]:
    """The keys, n-grams and signatures of documents."""
    if len(documents) > 1 and any(len(d.text) > LONG for d in documents):
        return [signed for document in documents for signed in sign([document], config)]
    texts = [normalize("NFC", d.text) for d in documents]
    text_keys = list(map(exact_key, texts))
    keys = [document_url_key(d, config.url_key) for d in documents] if config.method == "url" else text_keys
    grams = [np.empty(0, np.uint64)] * len(documents)
    signatures: list[np.ndarray | None] = [None] * len(documents)
    bands, rows = config.banding()
    if bands and len(documents) == 1 and len(texts[0]) > LONG and config.ngram_unit == "word":
        shingles = long_text_shingles(texts[0], config.ngram)
        if len(shingles):
            [signatures[0]] = minhash_signatures(shingles, np.array([0, len(shingles)]), bands * rows)
        grams[0] = distinct_in_place(shingles)
    elif bands and documents:
        shingles, first = text_shingles(texts, config.ngram, config.ngram_unit, compiled=False)
        distinct, ends = distinct_hashes(shingles, first)
        grams = np.split(distinct, ends[:-1])
        with_words = np.flatnonzero(np.diff(first) > 0)
        # texts without words have no shingles, so those with words follow each other
        starts = np.append(first[with_words], first[-1])
        for place, signature in zip(with_words.tolist(), minhash_signatures(shingles, starts, bands * rows)):
            signatures[place] = signature
    return [
        Signed(d.id, identity(d.id, text_key), key, own, signature)
        for d, text_key, key, own, signature in zip(documents, text_keys, keys, grams, signatures)
    ]


def _decide(
    index: StreamIndex,
    config: DedupConfig,
    documents: list[Document],
    lines: list[bytes],
    counts: collections.Counter[str],
    logs: _Logs,
) -> None:
    """Decides about some documents, and writes what was decided."""
    signed = sign(documents, config)
    verdicts = index.decide(signed) if documents else []
    with _uninterrupted():
        for document, verdict in zip(documents, verdicts):
            counts["repeated" if verdict["what"] == AGAIN else verdict["what"]] += 1
            if verdict["what"] not in (KEPT, AGAIN):
                logs.remove(document.id, verdict)
        logs.flush()
        _write(b"".join(line for line, v in zip(lines, verdicts) if v["what"] == KEPT))
    index.written(signed)


def _write(lines: bytes) -> None:
    """Writes lines to standard output and flushes it; on a terminal they are escaped."""
    if not lines:
        return
    if sys.stdout.isatty():
        print(terminal.escape_json(lines.decode()), end="", flush=True)
        return
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait for the end of the block, so that no line is written in part."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Logs:
    """removed.jsonl and rejects.jsonl in a folder, continued; without one, rejects go to standard error."""

    def __init__(self, folder: str):
        self.folder = folder
        self._files: dict[str, IO[str]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Logs:
        if self.folder:
            paths.make_folder(self.folder)
            for name in ("removed", "rejects"):
                file = paths.update(Path(self.folder, f"{name}.jsonl"), "a")
                self._files[name] = self._stack.enter_context(file)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def remove(self, name: str, verdict: Verdict) -> None:
        facts: dict[str, Any] = {"survivor": verdict["survivor"]}
        if verdict["what"] != "url":  # texts with the same URL are not compared
            facts["similarity"] = round(verdict["similarity"], 4)
        self._add("removed", {"id": name, "reason": verdict["what"], **facts})

    def reject(self, reject: Reject) -> None:
        self._add("rejects", reject.as_json())
        if not self._files:
            print(f"mt: {reject.file}, {reject.place}: {reject.reason}; set aside", file=sys.stderr)

    def _add(self, name: str, line: dict[str, Any]) -> None:
        if self._files:
            self._files[name].write(json.dumps(line, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()
