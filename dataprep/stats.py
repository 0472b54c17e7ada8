"""The `mt data stats` command: count documents, text bytes, words and tokens of each input.

Output directory: `stats.json` {"rows": [{"name", "documents", "text_bytes", "words", "tokens"}]} with one row
per input in the order given, and the manifest, which has the same rows. `text_bytes` are bytes of UTF-8;
words are separated by whitespace; `tokens` do not include the end-of-document token, and are null without a
tokenizer.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from ..core import manifest
from ..core.config import check, configuration, option
from ..core.executor import Workers, map_shards
from ..documents import files, reader, sources
from ..documents.reader import Shard
from ..tokenizer.tokenizer import Tokenizer, TokenizerConfig, load
from .stage import RejectLog, discard_parts, write_rejects

BATCH_CHARS = 4_000_000  # characters tokenized in one call
COUNTED = ("documents", "text_bytes", "words", "tokens")


@configuration()
class StatsConfig(Workers):
    """The settings of `mt data stats`."""

    input: tuple[str, ...] = option(
        help="files, directories, - or hf:NAME[:CONFIG][:SPLIT]; each is counted separately", role="input"
    )
    output: str = option(help="directory for stats.json", role="output")
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    text_key: str = option("text", "key of the text in a record")
    on_error: Literal["fail", "skip"] = option(
        "fail", "at a record that cannot be read: stop, or write it to rejects.jsonl", role="runtime"
    )
    max_record_bytes: int = option(files.MAX_RECORD_BYTES, files.MAX_RECORD_HELP, added=True)
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (bool(self.input), "input is empty: name files or directories"),
            files.record_limit_rule(self.max_record_bytes),
            (len(set(self.input)) == len(self.input), "input names the same place twice; name each once"),
        )


def stats(config: StatsConfig) -> dict[str, Any]:
    """Counts every input; returns the manifest, with the counts in `rows` and as a table in `text`."""
    plans = [
        reader.plan(
            [name],
            key=config.text_key,
            on_error=config.on_error,
            max_record_bytes=config.max_record_bytes,
            output=config.output,
        )
        for name in config.input
    ]
    shards = [s for plan in plans for s in plan]
    tokenizer = config.tokenizer if config.tokenizer.kind else None
    facts = {"tokenizer": load(tokenizer).fingerprint} if tokenizer else {}
    # The names of the inputs are part of the result, so they belong to the key.
    run = manifest.begin(
        "data stats",
        config,
        dict.fromkeys(s.path for s in shards),
        identify=sources.identity,
        facts={**facts, "names": config.input},
    )
    if run.finished:
        discard_parts(run)
        return run.manifest
    work = functools.partial(_count_shard, root=run.output, tokenizer=tokenizer)
    results = map_shards(
        work,
        list(enumerate(shards)),
        done=run.output / "parts",
        **config.where,
        label=run.verb,
        sizes=[s.bytes for s in shards],
    )
    rows: list[dict[str, Any]] = []
    start = 0
    for name, plan in zip(config.input, plans):
        of_input = results[start : start + len(plan)]
        start += len(plan)
        sums: dict[str, int | None] = {k: sum(r[k] for r in of_input) for k in COUNTED}
        if not tokenizer:
            sums["tokens"] = None
        rows.append({"name": name, **sums})
    rejected = sum(r["rejected"] for r in results)
    path = run.output / "stats.json"
    manifest.write_json(path, {"rows": rows})
    outputs = [{**manifest.record(path, run.output), "documents": False}]
    if rejected:
        outputs.append(write_rejects(run.output, results))
    kept = sum(row["documents"] for row in rows)
    counts = {
        "rows_in": kept + rejected,
        "documents": kept,
        "rejected": rejected,
        "inputs": {row["name"]: {k: row[k] for k in COUNTED} for row in rows},
    }
    sealed = run.finish(outputs, counts, rows=rows, text=table(rows))
    discard_parts(run)
    return sealed


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a text table with aligned columns."""
    cells = [["input", "documents", "text MB", "words", "tokens", "bytes/token"]]
    for row in rows:
        ratio = f"{row['text_bytes'] / row['tokens']:.2f}" if row["tokens"] else "-"
        tokens = "-" if row["tokens"] is None else f"{row['tokens']:,}"
        megabytes = f"{row['text_bytes'] / 1e6:,.2f}"
        cells.append([row["name"], f"{row['documents']:,}", megabytes, f"{row['words']:,}", tokens, ratio])
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
        for line in cells
    )


def _count_shard(item: tuple[int, Shard], *, root: Path, tokenizer: TokenizerConfig | None) -> dict[str, int]:
    """The counts of one shard, and the number of its records that could not be read."""
    index, shard = item
    counts = dict.fromkeys(COUNTED, 0)
    encode = _loaded(tokenizer).encode_batch if tokenizer else None
    batch: list[str] = []
    size = 0

    def flush() -> None:
        if encode and batch:
            counts["tokens"] += len(encode(batch)[0])
        batch.clear()

    with RejectLog(root, index) as unreadable:
        for document in reader.read(shard, unreadable.add):
            counts["documents"] += 1
            counts["text_bytes"] += len(document.text.encode())
            counts["words"] += len(document.text.split())
            batch.append(document.text)
            size += len(document.text)
            if size >= BATCH_CHARS:
                flush()
                size = 0
    flush()
    return {**counts, "rejected": unreadable.count}


@functools.lru_cache(maxsize=1)
def _loaded(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer, loaded once in each worker."""
    return load(config)
