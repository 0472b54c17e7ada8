"""The `mt data stats` command: count documents, text bytes, words and tokens of each input.

Output directory, if one is named: `stats.json` {"rows": [{"name", "documents", "text_bytes", "words",
"tokens"}]} with one row per input in the order given, and the manifest, which has the same rows. `text_bytes`
are bytes of UTF-8; `words` are those of words.py (UAX 29, or characters in scripts without spaces); `tokens`
do not include the end-of-document token, and are null without a tokenizer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

from ..core import manifest
from ..core.config import check, configuration, option
from ..core.executor import Workers, map_shards
from ..core.parsing import Count
from ..documents import shard_groups, sharding
from ..documents.reader import batches
from ..documents.shard_groups import ShardGroup
from ..documents.sharding import InputOptions
from ..tokenizer.tokenizer import Tokenizer, TokenizerConfig, load
from .stage import RejectLog, discard_parts, write_rejects
from .words import WORD_RULES, count_words

BATCH_CHARS = 4_000_000  # characters tokenized in one call
COUNTED = ("documents", "text_bytes", "words", "tokens")


@configuration()
class StatsConfig(Workers, InputOptions):
    """The settings of `mt data stats`."""

    POSITIONAL = "input"

    input: tuple[str, ...] = option(
        help="files, directories, - or hf:NAME[:CONFIG][:SPLIT]; each is counted separately", role="input"
    )
    output: str | None = option(None, "directory for stats.json; none: only print the counts", role="output")
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    text_key: str = option("text", "key of the text in a record")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (bool(self.input), "input is empty: name files or directories"),
            *self.input_rules,
            (len(set(self.input)) == len(self.input), "input names the same place twice; name each once"),
            (
                self.output is not None or self.on_error == "fail",
                "on_error = skip writes rejects.jsonl to the output directory; name one with --output",
            ),
        )


def stats(config: StatsConfig) -> dict[str, Any]:
    """Counts every input; returns the manifest, with the counts in `rows` and as a table in `text`."""
    if config.output is None:
        with tempfile.TemporaryDirectory() as folder:
            # no longer a manifest.Sealed: its summary would end with this folder, which is removed
            return dict(stats(dataclasses.replace(config, output=folder)))
    plans = [config.plan([name], key=config.text_key, output=config.output) for name in config.input]
    sharding.refuse_empty([shard for plan in plans for shard in plan])
    groups_of_plans = [shard_groups.group(plan, sharding.SHARD_BYTES) for plan in plans]
    groups = list(itertools.chain.from_iterable(groups_of_plans))
    tokenizer = config.tokenizer if config.tokenizer.kind else None
    facts: dict[str, Any] = {"tokenizer": load(tokenizer).fingerprint} if tokenizer else {}
    # The names of the inputs are part of the result, so they belong to the key.
    facts |= {"names": config.input, "word_rules": WORD_RULES, **shard_groups.facts(groups)}
    run = sharding.joined(plans).begin("data stats", config, facts=facts)
    if run.finished:
        discard_parts(run)
        return run.manifest
    work = functools.partial(_count_shard, root=run.output, tokenizer=tokenizer)
    results = map_shards(
        work,
        list(enumerate(groups)),
        done=run.output / "parts",
        **config.where,
        label=run.verb,
        sizes=[g.bytes for g in groups],
        kinds=dict.fromkeys((*COUNTED, "rejected"), Count),
    )
    rows: list[dict[str, Any]] = []
    start = 0
    for name, of_plan in zip(config.input, groups_of_plans):
        of_input = results[start : start + len(of_plan)]
        start += len(of_plan)
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


def _count_shard(
    item: tuple[int, ShardGroup], *, root: Path, tokenizer: TokenizerConfig | None
) -> dict[str, int]:
    """The counts of one shard, and the number of its records that could not be read."""
    index, shard = item
    counts = dict.fromkeys(COUNTED, 0)
    encode = _loaded(tokenizer).encode_batch if tokenizer else None
    with RejectLog(root, index) as unreadable:
        for batch in batches(shard.read(unreadable.add), BATCH_CHARS):
            texts = [document.text for document in batch]
            counts["documents"] += len(texts)
            counts["text_bytes"] += sum(len(text.encode()) for text in texts)
            counts["words"] += sum(map(count_words, texts))
            if encode:
                counts["tokens"] += len(encode(texts)[0])
    return {**counts, "rejected": unreadable.count}


@functools.lru_cache(maxsize=1)
def _loaded(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer, loaded once in each worker."""
    return load(config)
