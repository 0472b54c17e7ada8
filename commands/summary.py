"""The summary of a command as text; it ends with what was made, where, how much, and how long it took."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from ..core import terminal
from ..core.manifest import Sealed
from ..core.progress import duration

# Counts that say how much a command made, in the order of preference: (in counts, in words).
KEPT = (
    ("tokens", "tokens"),
    ("documents", "documents"),
    ("lines", "lines"),
    ("chunks", "chunks"),
    ("blocks", "blocks"),
    ("samples", "samples"),
    ("scored", "examples"),
    ("parameters", "parameters"),
)
DEEPEST = 2  # groups around a fact that is printed; --json has all


def format_summary(summary: Mapping[str, Any], stream: TextIO | None = None) -> str:
    """A command's summary as text: its own `text` if it has one, else a line for each count and fact.

    A summary that is the manifest of an output ends with a line of `closing`, which is broken into lines of
    the terminal behind `stream`, if it is one.
    """
    if isinstance(summary, Sealed):
        last = closing(summary)
        return f"{_facts(summary)}\n\n{terminal.fold(last, stream, indent='  ') if stream else last}"
    return _facts(summary)


def closing(summary: Sealed) -> str:
    """What was made, where, how much was kept, and how long it took; or since when it is up to date."""
    place = terminal.escape_line(str(summary.output))
    took = duration(float(summary.get("seconds", 0)))
    if summary.up_to_date:
        when = str(summary.get("finished", "")).replace("T", " ").replace("Z", " UTC")
        done = terminal.escape_line(f"{place} is up to date since {when} (made in {took}); nothing was done")
        return "\n".join([done, *_next_steps(summary)])
    outputs = summary["outputs"]
    files = f"{len(outputs):,} file{'s' if len(outputs) != 1 else ''}"
    size = _size(sum(output["bytes"] for output in outputs))
    made = f"made {place} ({files}, {size}){_kept(summary['counts'])} in {took}"
    return "\n".join([made, *_next_steps(summary)])


def _next_steps(summary: Sealed) -> Iterator[str]:
    """What the command advises, and how training reads the .bin/.idx pairs that it made."""
    if advice := summary.get("advice"):
        yield terminal.escape_line(str(advice))
    names = {str(output.get("name", "")) for output in summary["outputs"]}
    stems = sorted(n.removesuffix(".bin") for n in names if n.endswith(".bin"))
    pairs = [str(summary.output.with_name(stem)) for stem in stems if f"{stem}.idx" in names]
    if pairs:
        yield terminal.escape_line(f"to train on it: --data-path {' or '.join(map(shlex.quote, pairs))}")


def _kept(counts: Mapping[str, Any]) -> str:
    """How much a command made: `: 900 of 1,000 documents (90 %)`."""
    kept, read = counts.get("rows_kept"), counts.get("rows_in")
    if isinstance(kept, int) and isinstance(read, int) and read:
        written = counts.get("documents", kept)
        if written != kept:  # some were cut into pieces
            return f": {written:,} documents, from {kept:,} of {read:,} ({kept / read:.1%})"
        return f": kept {kept:,} of {read:,} documents ({kept / read:.1%})"
    found = next(((counts[key], word) for key, word in KEPT if isinstance(counts.get(key), int)), None)
    return f": {found[0]:,} {found[1]}" if found else ""


def _size(count: float) -> str:
    """A number of bytes: `12 MB`."""
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:,.3g} {name}"
    return f"{count} bytes"


def _facts(summary: Mapping[str, Any]) -> str:
    """The summary's own text, or its counts and facts."""
    if "text" in summary:
        return str(summary["text"])
    hidden = {"settings", "inputs", "outputs", "key", "mt_version", "verb", "finished", "curve"}
    hidden |= {"command", "directory", "machine", "advice"}
    rows = {key: value for key, value in summary.items() if key not in hidden}
    lines = list(_lines(rows))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {shown}" for name, shown in lines)


def _lines(rows: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of every fact; one whose value is not known (None) has no line, and a list has none."""
    for key, value in rows.items():
        if isinstance(value, dict):
            if group.count(".") < DEEPEST:
                yield from _lines(value, f"{group}{key}.")
        elif value is not None and not isinstance(value, list):
            yield f"{group}{key}", _number(value)


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return terminal.escape_line(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
