"""The frame of every document stage: shards in, a function over documents, survivors, removed and rejects
out.

Output directory:

    NNNNN.jsonl           the documents kept, one file a shard (also .jsonl.zst, .parquet), and where it would
        grow
                          beyond --shard-bytes of text NNNNN_001.jsonl ...
    removed/NNNNN.jsonl   a line for every document removed: id, reason, and what else explains it
    rejects/NNNNN.jsonl   with --rejects: those documents themselves, the reason in a field `removed`
    rejects.jsonl         records that could not be read, with file, place and reason (only if there are any)
    manifest.json         settings, inputs, counts; written last

Rows in = rows kept + rows removed by reason + rows set aside, or the stage fails.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..core import manifest
from ..core.config import Failure, UserError, check, configuration, option
from ..core.executor import Workers, map_shards
from ..documents import reader, sources
from ..documents.reader import Document, Shard
from ..documents.writer import Writer

STEMS = {"jsonl": ".jsonl", "jsonl.zst": ".jsonl.zst", "parquet": ".parquet"}


@configuration()
class DocumentStage(Workers):
    """The settings that every stage from documents to documents has."""

    input: tuple[str, ...] = option(
        help=(
            "files, folders or globs (.jsonl .jsonl.gz .jsonl.zst .parquet .arrow .txt), - for standard"
            " input, hf:NAME[:CONFIG][:SPLIT] for an HF dataset"
        ),
        role="input",
    )
    output: str = option(help="directory for the result", role="output")
    text_key: str = option("text", "the record's key that holds the text")
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "how to write documents")
    shard_bytes: int = option(
        64_000_000,
        "size of the pieces that inputs are cut into, and text from which a file of the output ends, in"
        " bytes",
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", "a record that cannot be read: stop, or set it aside in rejects.jsonl", role="runtime"
    )
    rejects: bool = option(
        False, "keep every removed document too, with text and fields and its reason, in rejects/"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(
            (self.shard_bytes >= 1 << 16, f"shard_bytes = {self.shard_bytes} must be at least {1 << 16}"),
        )


@dataclasses.dataclass(frozen=True)
class Removed:
    """A document that does not go on. reason: a short name that is counted; facts: what explains it."""

    reason: str
    facts: dict = dataclasses.field(default_factory=dict)


# What a stage does with one document: keep it (changed or not), keep several pieces of it, or remove it. A
# function that counts anything else has an attribute `tallies`, {fact: {name: count}}; the manifest gets the
# sums.
Change = Callable[[Document], "Document | list[Document] | Removed"]


def begin(
    verb: str, config: DocumentStage, *, facts: dict | None = None, more_inputs=()
) -> tuple[manifest.Run, list[Shard]]:
    """Claims the stage's output and cuts its inputs into shards."""
    shards = reader.plan(
        config.input,
        key=config.text_key,
        shard_bytes=config.shard_bytes,
        on_error=config.on_error,
        output=config.output,
    )
    inputs = list(dict.fromkeys(s.path for s in shards))
    output = Path(config.output).resolve()
    for path in inputs:
        if output == Path(path).resolve().parent:
            raise UserError(
                f"output = {config.output} is where the input {path} lies; choose another directory"
            )
    for item in config.input:
        if Path(item).is_dir() and output.is_relative_to(Path(item).resolve()):
            raise UserError(
                f"output = {config.output} lies inside the input {item}, which would then hold it; choose"
                " another directory"
            )
    run = manifest.begin(verb, config, [*inputs, *more_inputs], identify=sources.identity, facts=facts)
    if run.finished:
        discard_parts(run)
    return run, shards


def map_documents(
    run: manifest.Run,
    config: DocumentStage,
    shards: list[Shard],
    make: Callable[[int], Change],
    more_outputs=(),
    **facts,
) -> dict:
    """Runs a change over every document and seals the stage; returns its manifest.

    make: picklable; called in the worker with the shard's index, returns the function that is applied to each
    of its documents in order. more_outputs: as for `finish`.
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
    item: tuple[int, Shard], *, output: str, key: str, suffix: str, max_bytes: int, rejects: bool, make
) -> dict:
    """Writes one shard's survivors and removed/ lines, and its rejects/ where asked; returns its counts, for
    `finish`.
    """
    index, shard = item
    root = Path(output)
    change = make(index)
    removed: collections.Counter = collections.Counter()
    rows_in = kept_rows = text_bytes_in = 0
    removed_path = root / "removed" / f"{index:05d}.jsonl"
    with contextlib.ExitStack() as open_files:
        kept = open_files.enter_context(
            Writer(root / f"{index:05d}{suffix}", root=root, key=key, max_bytes=max_bytes)
        )
        log = open_files.enter_context(manifest.atomic_write(removed_path, "w"))
        unread = open_files.enter_context(Unread(root, index))
        aside = (
            open_files.enter_context(
                Writer(root / "rejects" / f"{index:05d}.jsonl", root=root, key=key, max_bytes=max_bytes)
            )
            if rejects
            else None
        )
        for document in reader.read(shard, unread.add):
            rows_in += 1
            text_bytes_in += len(document.text.encode())
            text = document.text
            outcome = change(document)
            if isinstance(outcome, Removed):
                removed[outcome.reason] += 1
                log.write(
                    json.dumps(
                        {"id": document.id, "reason": outcome.reason, **outcome.facts}, ensure_ascii=False
                    )
                    + "\n"
                )
                if aside is not None:
                    aside.write(
                        Document(
                            document.id,
                            text,
                            {**document.meta, "removed": {"reason": outcome.reason, **outcome.facts}},
                        )
                    )
                continue
            kept_rows += 1
            for piece in outcome if isinstance(outcome, list) else [outcome]:
                kept.write(piece)
    return {
        "outputs": [
            *kept.records,
            *(
                {**r, "documents": False}
                for r in [manifest.record(removed_path, root), *(aside.records if aside else ())]
            ),
        ],
        "rows_in": rows_in,
        "rows_kept": kept_rows,
        "documents": kept.documents,
        "text_bytes_in": text_bytes_in,
        "text_bytes": kept.text_bytes,
        "removed": dict(removed),
        "rejected": unread.count,
        "tallies": getattr(change, "tallies", {}),
    }


def finish(run: manifest.Run, results: list[dict], *, more_outputs=(), **facts) -> dict:
    """Adds the shards' counts up, checks that no row is lost, and seals the stage.

    more_outputs: records of files beside the documents, as manifest.record makes them.
    """
    removed = sum((collections.Counter(r["removed"]) for r in results), collections.Counter())
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
        why = (
            ", ".join(f"{n:,} {reason}" for reason, n in removed.most_common(5))
            or f"{rejected:,} could not be read"
        )
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
        facts[name] = dict(
            sum((collections.Counter(r["tallies"].get(name, {})) for r in results), collections.Counter())
        )
    sealed = run.finish(outputs, counts, **facts)
    discard_parts(run)
    return sealed


def discard_parts(run: manifest.Run) -> None:
    """Removes what only an unfinished run needs, once the output is sealed.

    Not before: a kill amid the removal would leave results of shards that name files already gone. A kill
    after the seal leaves files that nothing reads, and the next run of the same command removes them.
    """
    shutil.rmtree(run.output / "parts", ignore_errors=True)


class Unread:
    """The records of one shard that cannot be read: in a file, since they may be as large as the shard.

    They wait in parts/rejects/ until `write_rejects` joins them.
    """

    def __init__(self, root: Path, index: int):
        self._path, self._stack, self._file = _unread(root, index), contextlib.ExitStack(), None
        self.count = 0

    def __enter__(self) -> Unread:
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def add(self, reject: reader.Reject) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(manifest.atomic_write(self._path, "w"))
        self._file.write(json.dumps(reject.as_json(), ensure_ascii=False) + "\n")
        self.count += 1


def _unread(root: Path, index: int) -> Path:
    return root / "parts" / "rejects" / f"{index:05d}.jsonl"


def write_rejects(folder: Path, results: list[dict]) -> dict:
    """Joins what the shards' `Unread` have kept to `rejects.jsonl`; returns its entry for the manifest.

    results: the shards', with `rejected`.
    """
    path = folder / "rejects.jsonl"
    with manifest.atomic_write(path) as file:
        for index, result in enumerate(results):
            if result["rejected"]:
                with open(_unread(folder, index), "rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
    return {**manifest.record(path, folder), "documents": False}
