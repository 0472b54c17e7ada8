"""The common part of every document stage: transform all documents, write and count the results.

Output directory:

    NNNNN.jsonl           the documents kept, one file per shard (also .jsonl.zst, .parquet); a file with more
                          than --shard-bytes of text continues in NNNNN_001.jsonl ...; small input files share
                          a shard (documents/shard_groups.py)
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
import os
import shlex
import shutil
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from ..core import manifest, paths
from ..core.config import Failure, UserError, check, configuration, option
from ..core.executor import Workers, map_shards, working_on
from ..core.parsing import Count
from ..documents import compression, files, reader, shard_groups, sharding, values
from ..documents.reader import Document
from ..documents.rejects import MAX_REJECTS, Reject, Rejecter, set_aside, too_many
from ..documents.shard_groups import ShardGroup
from ..documents.sharding import INPUT_HELP, InputOptions, Shard
from ..documents.writer import Unwritable, Writer

STEMS = {"jsonl": ".jsonl", "jsonl.zst": ".jsonl.zst", "parquet": ".parquet"}


@configuration()
class DocumentStage(Workers, InputOptions):
    """The settings of every stage that reads and writes documents."""

    input: tuple[str, ...] = option(help=INPUT_HELP, role="input")
    output: str = option(help="directory for the result", role="output")
    text_key: str = option("text", "key of the text in a record; it becomes `text` in the output")
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "file format of the documents")
    shard_bytes: int = option(
        64_000_000,
        "bytes of input in a shard, and bytes of text from which a new output file begins",
    )
    rejects: bool = option(
        False, "also write every removed document, with its text, fields and reason, to rejects/"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (self.shard_bytes >= 1 << 16, f"shard_bytes = {self.shard_bytes} must be at least {1 << 16}"),
            *self.input_rules,
        )


@dataclasses.dataclass(frozen=True)
class Removed:
    """The outcome of a document that a stage removes.

    reason: a short name, counted in the manifest. facts: details for the line in removed/.
    """

    reason: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class DocumentError(UserError):
    """A document that a stage cannot process. The message does not name it: `run_shard` puts that before."""


KEEP_A_SHARE = ("data classify", "data holdout")  # a setting says how many documents they remove
MOST_REMOVED = 0.5  # of the documents: to lose more than that surprises, and the manifest says what to do
# {reason: documents removed for it} -> what the user may do about them, "" if there is nothing to say.
Advice = Callable[[Mapping[str, int]], str]
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
) -> tuple[manifest.Run, list[ShardGroup]]:
    """Claims the stage's output and splits its inputs into shards, of which small ones share a group.

    facts, more_inputs: what else the result depends on, for the manifest's key. Raises UserError if the
    output and the input overlap.
    """
    shards = config.plan(
        config.input, key=config.text_key, output=config.output, shard_bytes=config.shard_bytes
    )
    sharding.refuse_empty(shards)
    output = Path(config.output).resolve()
    # an input in every folder, and all links: resolving a million paths would take a minute
    somewhere = {path if os.path.islink(path) else os.path.dirname(path): path for path in shards.paths}
    for path in somewhere.values():
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
    groups = shard_groups.group(shards, config.shard_bytes)
    facts = {"value_rules": values.RULES, **(facts or {}), **shard_groups.facts(groups)}
    run = shards.begin(verb, config, more_inputs, facts)
    if run.finished:
        discard_parts(run)
    return run, groups


def map_documents(
    run: manifest.Run,
    config: DocumentStage,
    shards: Sequence[ShardGroup],
    make: MakeTransform,
    more_outputs: Iterable[dict[str, Any]] = (),
    advice: Advice | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Applies a transform to every document and seals the stage; returns its manifest.

    make: must be picklable. more_outputs, facts: as for `finish`.
    """
    results = _results(run, config, shards, functools.partial(run_shard, config=config, make=make))
    return finish(run, results, more_outputs=more_outputs, advice=advice, **facts)


def _results(
    run: manifest.Run,
    config: DocumentStage,
    shards: Sequence[ShardGroup],
    write: Callable[[tuple[int, ShardGroup]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The counts of every shard, which `write` returns."""
    return map_shards(
        write,
        list(enumerate(shards)),
        done=run.output / "parts",
        **config.where,
        label=run.verb,
        sizes=[s.bytes for s in shards],
        kinds=SHARD_RESULT,
        agrees=no_row_is_lost,
    )


# The kinds of the counts of a shard (run_shard).
SHARD_RESULT = {
    "outputs": list[manifest.FileRecord],
    **dict.fromkeys(("rows_in", "rows_kept", "documents", "text_bytes_in", "text_bytes", "rejected"), Count),
    "removed": dict[str, Count],
    "tallies": dict[str, dict[str, Count]],
}


def no_row_is_lost(result: Mapping[str, Any]) -> bool:
    """Whether the rows of a shard are those kept and those removed."""
    return bool(result["rows_in"] == result["rows_kept"] + sum(result["removed"].values()))


# As MakeTransform, with a file before the index: the shard's log of documents that are cut
MakeCutter = Callable[[TextIO, int], tuple[Transform, Tallies]]


def map_documents_with_log(
    run: manifest.Run, config: DocumentStage, shards: Sequence[ShardGroup], make: MakeCutter, **facts: Any
) -> dict[str, Any]:
    """As map_documents, for a transform that cuts documents and writes which ones to cut/NNNNN.jsonl."""
    write = functools.partial(_run_shard_with_log, config=config, make=make)
    results = _results(run, config, shards, write)
    logs = [manifest.record(run.output / "cut" / f"{i:05d}.jsonl", run.output) for i in range(len(shards))]
    return finish(run, results, more_outputs=logs, **facts)


def _run_shard_with_log(
    item: tuple[int, ShardGroup], *, config: DocumentStage, make: MakeCutter
) -> dict[str, Any]:
    """As run_shard; also writes the shard's cut/ file."""
    with manifest.atomic_write(Path(config.output, "cut", f"{item[0]:05d}.jsonl"), "w") as log:
        return run_shard(item, config=config, make=functools.partial(make, log))


def run_shard(item: tuple[int, ShardGroup], *, config: DocumentStage, make: MakeTransform) -> dict[str, Any]:
    """Writes one shard's kept documents, its removed/ file and, if `rejects`, its rejects/ file.

    item: (shard index, shard). Returns the shard's counts, for `finish`. What cannot be written is treated as
    what cannot be read: it raises UserError, or with on_error "skip" it is a line of rejects.jsonl.
    """
    index, shard = item
    root, max_bytes = Path(config.output), config.shard_bytes
    name = f"{index:05d}{STEMS[config.format]}"
    transform, tallies = make(index)
    removed: collections.Counter[str] = collections.Counter()
    rows_in = kept_rows = text_bytes_in = 0
    removed_path = root / "removed" / f"{index:05d}.jsonl"
    with contextlib.ExitStack() as open_files:
        kept = open_files.enter_context(
            Writer(root / name, root=root, max_bytes=max_bytes, fields=shard.fields())
        )
        log = open_files.enter_context(manifest.atomic_write(removed_path, "w"))
        unreadable = open_files.enter_context(RejectLog(root, index))
        removed_documents = None
        if config.rejects:
            removed_documents = open_files.enter_context(
                Writer(root / "rejects" / f"{index:05d}.jsonl", root=root, max_bytes=max_bytes)
            )
        for part, document in _read(shard, unreadable.add):
            text = document.text  # the transform may change it in place
            try:
                outcome = transform(document)
                if not isinstance(outcome, Removed):
                    for piece in outcome if isinstance(outcome, list) else [outcome]:
                        kept.write(piece)
                elif removed_documents is not None:
                    why = {"reason": outcome.reason, **outcome.facts}
                    removed_documents.write(Document(document.id, text, {**document.meta, "removed": why}))
            except Unwritable as error:
                if part.on_error == "fail":
                    raise
                place, raw = f"document {document.id}", text[: files.BEGINNING_BYTES]
                unreadable.add(Reject(part.name, place, error.reason, raw))
                continue
            except DocumentError as error:
                # json, since orjson refuses integers of more than 64 bits
                record = json.dumps({"id": document.id, "text": text, **document.meta}, default=str)
                set_aside(part, f", document {document.id}", str(error), record.encode(), unreadable.add)
                continue
            rows_in += 1
            text_bytes_in += len(text.encode())
            if isinstance(outcome, Removed):
                removed[outcome.reason] += 1
                line = {"id": document.id, "reason": outcome.reason, **outcome.facts}
                log.write(json.dumps(line, ensure_ascii=False) + "\n")
            else:
                kept_rows += 1
    log_record = {**manifest.record(removed_path, root), "rows": sum(removed.values())}
    others = [log_record, *(removed_documents.records if removed_documents else ())]
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


def _read(shard: ShardGroup, reject: Rejecter) -> Iterator[tuple[Shard, Document]]:
    """The documents of a shard, each with its file; tells the progress meanwhile.

    How far a file is read is told by the text so far, which has about as many bytes, or by the place in a
    compressed file.
    """
    before = 0
    for part in shard.shards:
        packed = bool(compression.ending(part.path))
        size = 0
        working_on(part.name, before)
        for document in reader.read(part, reject):
            yield part, document
            size = compression.bytes_read(part.path) if packed else size + len(document.text)
            working_on(part.name, before + min(size, part.bytes))
        before += part.bytes


def finish(
    run: manifest.Run,
    results: list[dict[str, Any]],
    *,
    more_outputs: Iterable[dict[str, Any]] = (),
    advice: Advice | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Sums the counts of the shards, checks that no row is lost, and writes the manifest, which it returns.

    more_outputs: manifest.record of each file that has no documents. advice: what to do where most documents
    are removed, or all. facts: further entries of the manifest. Its entry `advice` tells the user what to do.
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
        why = by_reason or (f"{rejected:,} could not be read" if rejected else "nothing to read")
        run.abandon()
        raise UserError(
            f"{run.output}: no document is left ({total['rows_in'] + rejected:,} in: {why});"
            f" {(advice and advice(removed)) or 'loosen the settings or check the input'}"
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
    if told := _most_removed(run, removed, total["rows_in"], advice):
        run.notes["advice"] = told
    sealed = run.finish(outputs, counts, **facts)
    discard_parts(run)
    return sealed


def _most_removed(
    run: manifest.Run, removed: collections.Counter[str], rows: int, advice: Advice | None
) -> str:
    """Why most documents were removed, how to see some of them, and what to do; "" if most were kept."""
    if removed.total() <= MOST_REMOVED * rows or run.verb in KEEP_A_SHARE:
        return ""
    [(reason, count)] = removed.most_common(1)
    look = f"`mt data look {shlex.quote(str(run.output))} --reason {shlex.quote(reason)}`"
    share = f"removed {removed.total():,} of {rows:,} documents ({removed.total() / rows:.0%})"
    text = f"{share}, {count:,} of them for the reason {reason}; to see some: {look}"
    return f"{text}; {told}" if (told := advice and advice(removed)) else text


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

    def add(self, reject: Reject) -> None:
        if self.count >= MAX_REJECTS:
            raise too_many(reject)
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
                with open(paths.regular(_reject_path(folder, index)), "rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
    return {**manifest.record(path, folder), "documents": False}
