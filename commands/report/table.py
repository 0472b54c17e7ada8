"""The table of a run's stages: documents, tokens and seconds of each, and its results in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from ...core.manifest import Json

COLUMNS = ("stage", "documents", "tokens", "seconds", "result")

Finished = tuple[str, Json]  # a finished stage: its name, its manifest


def rows(stages: Sequence[Finished]) -> list[Json]:
    """A row for each stage: name, command, documents and tokens after it, seconds, and its results in words.

    The tokens of a stage that writes documents come from `data stats`, if that has read them.
    """
    counted = _counted_tokens(stages)
    table = []
    for name, m in stages:
        counts = {} if m["verb"] == "data stats" else m.get("counts", {})
        table.append(
            {
                "stage": name,
                "verb": m["verb"],
                "documents": counts.get("documents"),
                "tokens": counts.get("tokens", counted.get((m.get("key"), counts.get("documents")))),
                "seconds": m["seconds"],
                "result": result(m),
            }
        )
    return table


def _counted_tokens(stages: Sequence[Finished]) -> dict[tuple[str | None, int | None], int | None]:
    """{(key of a stage, its number of documents): its tokens}, from the stages `data stats`.

    A row of stats names a place; the inputs there have the key of the stage that wrote them.
    """
    found = {}
    for _, m in stages:
        for row in m.get("rows", []):
            place = PurePath(row["name"])
            keys = {
                known.get("key")
                for known in m.get("inputs", [])
                if isinstance(path := known.get("path"), str)
                and place in (PurePath(path), PurePath(path).parent)
            }
            if len(keys) == 1:
                found[keys.pop(), row.get("documents")] = row.get("tokens")
    return found


def result(m: Json) -> str:
    """The results of a stage in a few words: removals, losses, scores, rates."""
    counts = m.get("counts", {})
    words = []
    removed = counts.get("removed") or {}
    if removed:
        most = sorted(removed.items(), key=lambda reason: -reason[1])[:3]
        words.append(f"removed {sum(removed.values()):,} ({', '.join(f'{k} {v:,}' for k, v in most)})")
    if counts.get("rejected"):
        words.append(f"set aside {counts['rejected']:,}")
    if m.get("valid_loss") is not None:
        entropy = f", unigram entropy {m['unigram_entropy']:.3f}" if m.get("unigram_entropy") else ""
        trained = f"train loss {m['train_loss']:.3f}, " if m.get("train_loss") is not None else ""
        words.append(f"{trained}validation {m['valid_loss']:.3f}{entropy}")
    if m.get("tokens_per_second"):
        words.append(f"{m['tokens_per_second']:,.0f} tokens/s")
    words += [
        f"{k} {short(v)}"
        for k, v in (m.get("scores") or {}).items()
        if isinstance(v, int | float) and not k.endswith("stderr")
    ]
    words += [f"{k} {short(counts[k])}" for k in ("vocab_size", "chunks", "train_samples") if k in counts]
    return ", ".join(words)


def short(value: float) -> str:
    """A number for a table: at most four digits after which nothing matters."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:,.0f}"


def shortened(text: str, most: int) -> str:
    """The text, or its first `most` characters and an ellipsis."""
    return text if len(text) <= most else f"{text[:most]}…"


def text_table(table: Sequence[Json]) -> str:
    """The rows as aligned text for a terminal."""
    cells = [list(COLUMNS)] + [[cell(row[name]) for name in COLUMNS] for row in table]
    width = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = []
    for row in cells:
        numbers = "  ".join(f"{row[i]:>{width[i]}}" for i in (1, 2, 3))
        lines.append(f"{row[0]:<{width[0]}}  {numbers}  {row[4]}".rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def cell(value: object) -> str:
    """A value of the table as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
