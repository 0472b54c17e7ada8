"""The common part of every document stage: transform all documents, write and count the results.

Output directory:

    NNNNN.jsonl           the documents kept, one file per shard (also .jsonl.zst, .parquet); a file with more
                          than --shard-bytes of text continues in NNNNN_001.jsonl ...
    removed/NNNNN.jsonl   one line per removed document: id, reason, details
    rejects/NNNNN.jsonl   with --rejects: the removed documents, with the reason in a field `removed`
    rejects.jsonl         records that could not be read, with file, place and reason (only if there are any)
    manifest.json         settings, inputs, counts; written last

A stage fails unless rows in = rows kept + rows removed + rows rejected.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import shutil
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TextIO

from ..core import manifest
from ..core.config import Failure, UserError, check, configuration, option
from ..core.executor import Workers, map_shards
from ..documents import files, reader, sources
from ..documents.reader import Document, Shard
from ..documents.writer import Writer

STEMS = {"jsonl": ".jsonl", "jsonl.zst": ".jsonl.zst", "parquet": ".parquet"}


@configuration()
class DocumentStage(Workers):
    """The settings of every stage that reads and writes documents."""

    input: tuple[str, ...] = option(
        help=(
            "files, folders or globs (.jsonl .jsonl.gz .jsonl.zst .parquet .arrow .txt), - for standard"
            " input, hf:NAME[:CONFIG][:SPLIT] for an HF dataset"
        ),
        role="input",
    )
    output: str = option(help="directory for the result", role="output")
    text_key: str = option("text", "key of the text in a record")
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "file format of the documents")
    shard_bytes: int = option(
        64_000_000,
        "bytes of input in a shard, and bytes of text from which a new output file begins",
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", "at a record that cannot be read: stop, or write it to rejects.jsonl", role="runtime"
    )
    max_record_bytes: int = option(files.MAX_RECORD_BYTES, files.MAX_RECORD_HELP, added=True)
    rejects: bool = option(
        False, "also write every removed document, with its text, fields and reason, to rejects/"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (self.shard_bytes >= 1 << 16, f"shard_bytes = {self.shard_bytes} must be at least {1 << 16}"),
            files.record_limit_rule(self.max_record_bytes),
        )


@dataclasses.dataclass(frozen=True)
class Removed:
    """The outcome of a document that a stage removes.

    reason: a short name, counted in the manifest. facts: details for the line in removed/.
    """

    reason: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


# What a stage does with one document: keep it (changed or not), replace it by several, or remove it.
Transform = Callable[[Document], Document | list[Document] | Removed]
Tallies = dict[str, collections.Counter[str]]  # further counts of a stage, {fact: {name: count}}
# Called in the worker with a shard's index: (the transform of its documents in order, its tallies). The
# transform updates the tallies; the manifest gets their sums over all shards.
MakeTransform = Callable[[int], tuple[Transform, Tallies]]


def begin(
    verb: str,
    config: DocumentStage,
    *,
    facts: dict[str, Any] | None = None,
    more_inputs: Iterable[str | Path] = (),
) -> tuple[manifest.Run, list[Shard]]:
    """Claims the stage's output and splits its inputs into shards.

    facts, more_inputs: what else the result depends on, for the manifest's key. Raises UserError if the
    output and the input overlap.
    """
    shards = reader.plan(
        config.input,
        key=config.text_key,
        shard_bytes=config.shard_bytes,
        on_error=config.on_error,
        max_record_bytes=config.max_record_bytes,
        output=config.output,
    )
    inputs = list(dict.fromkeys(s.path for s in shards))
    output = Path(config.output).resolve()
    for path in inputs:
        if output == Path(path).resolve().parent:
            raise UserError(
                f"output = {config.output} is the directory of the input {path}; choose another directory"
            )
    for item in config.input:
        if Path(item).is_dir() and output.is_relative_to(Path(item).resolve()):
            raise UserError(
                f"output = {config.output} lies inside the input {item}, which would then contain its own"
                " output; choose another directory"
            )
    run = manifest.begin(verb, config, [*inputs, *more_inputs], identify=sources.identity, facts=facts)
    if run.finished:
        discard_parts(run)
    return run, shards


def map_documents(
    run: manifest.Run,
    config: DocumentStage,
    shards: list[Shard],
    make: MakeTransform,
    more_outputs: Iterable[dict[str, Any]] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Applies a transform to every document and seals the stage; returns its manifest.

    make: must be picklable. more_outputs, facts: as for `finish`.
    """
    work = functools.partial(
        run_shard,
        output=str(run.output),
        key=config.text_key,
        suffix=STEMS[config.format],
        max_bytes=config.shard_bytes,
        rejects=config.rejects,
        make=make,
    )
    results = map_shards(
        work,
        list(enumerate(shards)),
        done=run.output / "parts",
        **config.where,
        label=run.verb,
        sizes=[s.bytes for s in shards],
    )
    return finish(run, results, more_outputs=more_outputs, **facts)


def run_shard(
    item: tuple[int, Shard],
    *,
    output: str,
    key: str,
    suffix: str,
    max_bytes: int,
    rejects: bool,
    make: MakeTransform,
) -> dict[str, Any]:
    """Writes one shard's kept documents, its removed/ file and, if `rejects`, its rejects/ file.

    item: (shard index, shard). key: of the text in a record. suffix: of the output file. Returns the shard's
    counts, for `finish`.
    """
    index, shard = item
    root = Path(output)
    transform, tallies = make(index)
    removed: collections.Counter[str] = collections.Counter()
    rows_in = kept_rows = text_bytes_in = 0
    removed_path = root / "removed" / f"{index:05d}.jsonl"
    with contextlib.ExitStack() as open_files:
        kept = open_files.enter_context(
            Writer(root / f"{index:05d}{suffix}", root=root, key=key, max_bytes=max_bytes)
        )
        log = open_files.enter_context(manifest.atomic_write(removed_path, "w"))
        unreadable = open_files.enter_context(RejectLog(root, index))
        removed_documents = None
        if rejects:
            removed_documents = open_files.enter_context(
                Writer(root / "rejects" / f"{index:05d}.jsonl", root=root, key=key, max_bytes=max_bytes)
            )
        for document in reader.read(shard, unreadable.add):
            rows_in += 1
            text_bytes_in += len(document.text.encode())
            text = document.text  # the transform may change it in place
            outcome = transform(document)
            if isinstance(outcome, Removed):
                removed[outcome.reason] += 1
                why = {"reason": outcome.reason, **outcome.facts}
                log.write(json.dumps({"id": document.id, **why}, ensure_ascii=False) + "\n")
                if removed_documents is not None:
                    removed_documents.write(Document(document.id, text, {**document.meta, "removed": why}))
                continue
            kept_rows += 1
            for piece in outcome if isinstance(outcome, list) else [outcome]:
                kept.write(piece)
    others = [manifest.record(removed_path, root), *(removed_documents.records if removed_documents else ())]
    return {
        "outputs": [*kept.records, *({**record, "documents": False} for record in others)],
        "rows_in": rows_in,
        "rows_kept": kept_rows,
        "documents": kept.documents,
        "text_bytes_in": text_bytes_in,
        "text_bytes": kept.text_bytes,
        "removed": dict(removed),
        "rejected": unreadable.count,
        "tallies": tallies,
    }


def finish(
    run: manifest.Run,
    results: list[dict[str, Any]],
    *,
    more_outputs: Iterable[dict[str, Any]] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Sums the counts of the shards, checks that no row is lost, and writes the manifest, which it returns.

    more_outputs: manifest.record of each file that has no documents. facts: further entries of the manifest.
    Raises UserError if no document is left.
    """
    removed = _sum_counters(r["removed"] for r in results)
    rejected = sum(r["rejected"] for r in results)
    outputs = [o for r in results for o in r["outputs"]] + [{**o, "documents": False} for o in more_outputs]
    total = {
        name: sum(r[name] for r in results)
        for name in ("rows_in", "rows_kept", "documents", "text_bytes_in", "text_bytes")
    }
    if total["rows_in"] != total["rows_kept"] + sum(removed.values()):
        raise Failure(
            f"{run.output}: {total['rows_in']} rows in, but {total['rows_kept']} kept and"
            f" {sum(removed.values())} removed: please report this"
        )
    if rejected:
        outputs.append(write_rejects(run.output, results))
    if not total["documents"]:
        by_reason = ", ".join(f"{n:,} {reason}" for reason, n in removed.most_common(5))
        why = by_reason or f"{rejected:,} could not be read"
        run.abandon()
        raise UserError(
            f"{run.output}: no document is left ({total['rows_in'] + rejected:,} in: {why}); loosen the"
            " settings or check the input"
        )
    counts = {
        "rows_in": total["rows_in"] + rejected,
        "rows_kept": total["rows_kept"],
        "removed": dict(sorted(removed.items())),
        "rejected": rejected,
        "documents": total["documents"],
        "text_bytes_in": total["text_bytes_in"],
        "text_bytes": total["text_bytes"],
    }
    for name in {name: None for r in results for name in r["tallies"]}:
        facts[name] = dict(_sum_counters(r["tallies"].get(name, {}) for r in results))
    sealed = run.finish(outputs, counts, **facts)
    discard_parts(run)
    return sealed


def _sum_counters(counters: Iterable[dict[str, int]]) -> collections.Counter[str]:
    return sum(map(collections.Counter, counters), collections.Counter())


def discard_parts(run: manifest.Run) -> None:
    """Removes the files that only an unfinished run needs; to be called after the manifest is written.

    If it ran earlier, a kill during the removal would leave shard results that refer to missing files. A kill
    after the manifest is written leaves files that nothing reads; the next run of the command removes them.
    """
    shutil.rmtree(run.output / "parts", ignore_errors=True)


class RejectLog:
    """Writes the records of one shard that cannot be read to a file, since they may be as large as the shard.

    The file lies in parts/rejects/ until `write_rejects` concatenates those of all shards. It is created at
    the first record.
    """

    def __init__(self, root: Path, index: int):
        self._path, self._stack = _reject_path(root, index), contextlib.ExitStack()
        self._file: TextIO | None = None
        self.count = 0

    def __enter__(self) -> RejectLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, reject: reader.Reject) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(manifest.atomic_write(self._path, "w"))
        self._file.write(json.dumps(reject.as_json(), ensure_ascii=False) + "\n")
        self.count += 1


def _reject_path(root: Path, index: int) -> Path:
    return root / "parts" / "rejects" / f"{index:05d}.jsonl"


def write_rejects(folder: Path, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenates the shards' `RejectLog` files to `rejects.jsonl`; returns its entry for the manifest.

    results: the shards' counts, with `rejected`.
    """
    path = folder / "rejects.jsonl"
    with manifest.atomic_write(path) as file:
        for index, result in enumerate(results):
            if result["rejected"]:
                with open(_reject_path(folder, index), "rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
    return {**manifest.record(path, folder), "documents": False}
