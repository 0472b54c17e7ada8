"""What the page shows of documents: histograms, removed ones with what offended, duplicates, n-grams.

All is drawn from a bounded part of the files, at random and with the same seed, so that a report of a corpus
of terabytes takes seconds too; the page says how much was read. What cannot be read, as an input that is no
longer there, is a note on the page and not an error.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import random
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...core.config import UserError
from ...core.manifest import Json
from ...core.numba_loops import for_few_inputs
from ...core.parsing import MADE_BY_MT, check_value
from ...core.progress import activity
from ...dataprep import sampling
from ...dataprep.filters.language import language
from ...dataprep.look import NEAR, pair_entries, removed_entries
from ...dataprep.sampling import Drawn, Record, RecordFile
from ...dataprep.trace import CUT, FinishedStage, LoggedDocument, LoggedRemoval
from .stages import ReportedRun, RunStage, with_present_inputs
from .table import shortened

MOST_FILES = 4  # of a kind in a stage, of which documents are drawn
MOST_BYTES = 64 << 20  # of each of them, about
MOST_SAMPLED = 1000  # documents in a histogram
MOST_REASONS = 12  # of a stage
MOST_OF_A_REASON = 3  # documents
MOST_PAIRS = 6
MOST_NGRAMS = 12
MOST_CUT_LINES = 100_001  # that are read of a log of cut documents
MOST_BARS = 12
AROUND = 160  # characters shown before and after a mark
LONG = 700  # characters of an excerpt
LONG_NAME = 120
SOURCE_FIELDS = ("source", "dataset", "subset", "domain", "url")

Piece = tuple[str, str]  # a text, and its kind: "" plain, "mark", "gap", "removed", "added"


@dataclasses.dataclass
class DocumentSections:
    """What the page shows of the documents of a run. notes: what could not be shown, and why."""

    histograms: list[Json] = dataclasses.field(default_factory=list)
    removed: list[Json] = dataclasses.field(default_factory=list)
    pairs: list[Json] = dataclasses.field(default_factory=list)
    ngrams: list[Json] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def document_sections(run: ReportedRun) -> DocumentSections:
    """The sections about the documents of a run."""
    sections = DocumentSections()
    at = run.name  # what is looked at now
    stages = [(s, with_present_inputs(s, run)) for s in run.finished if s.has_documents]

    def tried(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (UserError, OSError) as error:
            sections.notes.append(f"{name}: {error}")

    with for_few_inputs(), activity(lambda: f"report: looking at documents of {at}"):
        for own, stage in stages:
            at = own.name
            tried(own.name, functools.partial(_add_logged, sections, own.name, stage))
        ends = [stages[0], stages[-1]] if len(stages) > 1 else stages
        at = "the first and the last stage"
        tried("histograms", lambda: sections.histograms.extend(_histograms(ends)))
    return sections


def _some_files(
    stage: FinishedStage, chosen: Callable[[Json], bool], seed: int
) -> tuple[list[RecordFile], int]:
    """(a few files at random, of large ones the first rows; how many there are)."""
    files = [
        (stage.path(output["name"]), output.get("rows"), output["bytes"])
        for output in stage.manifest["outputs"]
        if chosen(output) and output.get("rows") != 0 and output["bytes"]
    ]
    some = random.Random(seed).sample(files, min(MOST_FILES, len(files)))
    return [
        RecordFile(path, rows if rows is None else min(rows, max(rows * MOST_BYTES // size, 1)))
        for path, rows, size in some
    ], len(files)


# --- histograms ---


def _histograms(ends: Sequence[tuple[RunStage, FinishedStage]]) -> Iterator[Json]:
    """The histograms of the first and the last stage, in the same bars: length, language, source."""
    samples = [(own.name, _documents(stage)) for own, stage in ends]
    samples = [(name, documents) for name, documents in samples if documents]
    if not samples:
        return
    counted = [(name, len(documents)) for name, documents in samples]
    for title, about, group, order in (
        ("Length", "characters of a document", _length, _by_length),
        ("Language", "as lid.176 finds it", _language, None),
        ("Source", _source_about(samples[-1][1]), _source_of(samples[-1][1]), None),
    ):
        counters = [collections.Counter(map(group, documents)) for _, documents in samples]
        yield {
            "title": title,
            "about": about,
            "stages": counted,
            "bars": _bars(counters, [n for _, n in counted], order),
        }


def _documents(stage: FinishedStage) -> list[Record]:
    """Documents that a stage kept, at random."""
    files, _ = _some_files(stage, lambda output: output.get("documents", True), seed=0)
    known = [file for file in files if file.rows is not None]
    if not known:
        return []
    rows = sum(file.rows or 0 for file in known)
    found: list[Drawn] = []
    for _, drawn in sampling.draw(known, min(MOST_SAMPLED, rows), seed=0):
        found += drawn
        if len(found) >= MOST_SAMPLED:
            break
    return [d.record for d in found[:MOST_SAMPLED] if isinstance(d.record.get("text"), str)]


def _length(record: Record) -> str:
    """The bar of a length: from 2^n to the next power of two."""
    length = len(record["text"])
    if length < 64:
        return "< 64"
    low = 1 << (length.bit_length() - 1)
    return f"{low:,}–{2 * low - 1:,}"


def _by_length(name: str) -> int:
    return 0 if name.startswith("<") else int(name.split("–")[0].replace(",", ""))


def _language(record: Record) -> str:
    return language(record["text"])[0]


def _source_field(documents: Sequence[Record]) -> str | None:
    """The field that tells where documents come from, if one does."""
    return next(
        (f for f in SOURCE_FIELDS if sum(isinstance(d.get(f), str) for d in documents) > len(documents) / 2),
        None,
    )


def _source_about(documents: Sequence[Record]) -> str:
    field = _source_field(documents)
    if field is None:
        return "the beginning of the id"
    return "host of the field url" if field == "url" else f"the field {field}"


def _source_of(documents: Sequence[Record]) -> Callable[[Record], str]:
    field = _source_field(documents)

    def source(record: Record) -> str:
        value = record.get(field or "id")
        if not isinstance(value, str) or not value:
            return "none"
        if field == "url":
            try:
                return (urllib.parse.urlsplit(value).hostname or "none")[:LONG_NAME]
            except ValueError:
                return "none"
        return value[:LONG_NAME] if field else _beginning(value)

    return source


def _beginning(name: str) -> str:
    """What an id begins with, up to the first mark that is no letter and no digit."""
    end = next((i for i, c in enumerate(name) if i and not (c.isalnum() or c == "_")), len(name))
    beginning = name[:end][:LONG_NAME]
    return "numbers" if beginning.isdigit() else beginning


def _bars(
    counters: Sequence[collections.Counter[str]], totals: Sequence[int], order: Callable[[str], int] | None
) -> list[Json]:
    """[{"name", "shares": one for each stage}], the largest or in order; the rest together."""
    names = {name for counter in counters for name in counter}
    largest = sorted(names, key=lambda name: (-sum(c[name] for c in counters), name))
    shown = sorted(names, key=order) if order else largest[:MOST_BARS]
    bars = [
        {"name": name, "shares": [c[name] / total for c, total in zip(counters, totals)]} for name in shown
    ]
    if len(shown) < len(names):
        rest = [sum(c[name] for name in names - set(shown)) / total for c, total in zip(counters, totals)]
        bars.append({"name": f"{len(names) - len(shown):,} others", "shares": rest})
    return bars


# --- what a stage removed ---


def _add_logged(sections: DocumentSections, name: str, stage: FinishedStage) -> None:
    """Adds what the logs of a stage tell: removed and cut documents, pairs, n-grams."""
    removed, read, of = _drawn_by_reason(stage)
    counts: dict[str, int] = stage.manifest["counts"].get("removed") or {}
    reasons = sorted((reason for reason in counts if counts[reason]), key=lambda r: (-counts[r], r))
    verb = stage.manifest["verb"]
    near = removed.pop(NEAR, []) if verb == "data dedup" else []
    contaminated = removed.pop("contaminated", []) if verb == "data decontaminate" else []
    # in one call, as each reads the shards of its documents
    drawn = [d for reason in reasons[:MOST_REASONS] for d in removed.get(reason, [])]
    documents: dict[str, list[Json]] = collections.defaultdict(list)
    for entry, _ in removed_entries(stage, drawn):
        documents[entry["reason"]].append(_removed(entry))
    groups = [
        {"reason": reason, "count": counts[reason], "documents": documents[reason]}
        for reason in reasons[:MOST_REASONS]
    ]
    if groups:
        sections.removed.append(
            {
                "stage": name,
                "verb": verb,
                "groups": groups,
                "more": len(reasons) - len(groups),
                "logs_read": read,
                "logs": of,
            }
        )
    if near:
        pairs = [
            _pair(entry) for entry, _ in pair_entries(stage, near[:MOST_PAIRS], most_bytes=4 * MOST_BYTES)
        ]
        sections.pairs.append({"stage": name, "of": counts.get(NEAR, 0), "pairs": pairs})
    if verb == "data decontaminate":
        cut = _drawn_cut(stage)
        entries = [*removed_entries(stage, contaminated), *removed_entries(stage, cut)]
        if entries:
            tasks = {
                task: {k: v for k, v in facts.items() if isinstance(v, int)}
                for task, facts in (stage.manifest.get("evaluation") or {}).items()
                if isinstance(facts, dict)
            }
            ngrams = [_ngram(entry) for entry, _ in entries[:MOST_NGRAMS]]
            sections.ngrams.append({"stage": name, "tasks": tasks, "ngrams": ngrams})


def _drawn_by_reason(stage: FinishedStage) -> tuple[dict[str, list[Drawn]], int, int]:
    """({reason: some of its lines in removed/, at random}, how many files were read, how many there are)."""
    files, of = _some_files(stage, lambda output: output["name"].startswith("removed/"), seed=1)
    lines = (
        Drawn(file.path, check_value(record, LoggedRemoval, file.path, MADE_BY_MT))
        for file in files
        for _, record in itertools.takewhile(_within(file.rows), sampling.records(file.path))
    )
    kept = _at_random(lines, lambda line: line.record["reason"], max(MOST_OF_A_REASON, MOST_PAIRS), seed=1)
    limits = {NEAR: MOST_PAIRS, "contaminated": MOST_NGRAMS}
    return {r: drawn[: limits.get(r, MOST_OF_A_REASON)] for r, drawn in kept.items()}, len(files), of


def _drawn_cut(stage: FinishedStage) -> list[Drawn]:
    """Some lines of cut/, at random."""
    files, _ = _some_files(stage, lambda output: output["name"].startswith("cut/"), seed=2)
    lines = (
        Drawn(file.path, check_value(record, LoggedDocument, file.path, MADE_BY_MT))
        for file in files
        for _, record in itertools.takewhile(_within(MOST_CUT_LINES), sampling.records(file.path))
    )
    return _at_random(lines, lambda line: CUT, MOST_NGRAMS, seed=2).get(CUT, [])


def _within(rows: int | None) -> Callable[[tuple[int, Record]], bool]:
    """Whether a numbered record is one of the first `rows` of its file; of all without a number."""
    return lambda numbered: rows is None or numbered[0] < rows


def _at_random(
    lines: Iterable[Drawn], group: Callable[[Drawn], str], most: int, seed: int
) -> dict[str, list[Drawn]]:
    """At most `most` lines of each group, each with the same probability: reservoir sampling."""
    kept: dict[str, list[Drawn]] = {}
    seen: collections.Counter[str] = collections.Counter()
    generator = random.Random(seed)
    for line in lines:
        name = group(line)
        seen[name] += 1
        place = len(kept.get(name, ())) if seen[name] <= most else generator.randrange(seen[name])
        if place < most:
            kept.setdefault(name, [])[place : place + 1] = [line]
    return kept


def _removed(entry: dict[str, Any]) -> Json:
    """A removed document as the page shows it."""
    facts = {k: _fact(v) for k, v in entry["facts"].items()}
    return {
        "id": entry["id"][:LONG_NAME],
        "facts": facts,
        "measured": [m["text"] for m in entry["measured"]],
        "note": entry["note"],
        "pieces": excerpt(entry["text"], entry["offending"]) if entry["text"] is not None else [],
    }


def _fact(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shortened(text, LONG_NAME)


def _ngram(entry: dict[str, Any]) -> Json:
    facts = entry["facts"]
    pieces = facts.get("pieces")
    return {
        "id": entry["id"][:LONG_NAME],
        "ngram": shortened(str(facts.get("example", "")), 400),
        "against": _fact(facts.get("against", "")),
        "fate": "removed" if entry["reason"] != CUT else f"cut into {pieces}" if pieces != 1 else "trimmed",
        "note": entry["note"],
        "pieces": excerpt(entry["text"], entry["offending"]) if entry["offending"] else [],
    }


def _pair(entry: dict[str, Any]) -> Json:
    """A pair of near duplicates as the page shows it."""
    pieces: list[Piece] = []
    removed, survivor = entry["removed_text"], entry["survivor_text"]
    for tag, a, b, c, d in entry["diff"]:
        if tag == "equal":
            pieces.append((removed[a:b], ""))
        else:
            pieces += [(removed[a:b], "removed"), (survivor[c:d], "added")]
    return {
        "id": entry["id"][:LONG_NAME],
        "survivor": str(entry["survivor"])[:LONG_NAME],
        "similarity": entry["similarity"],
        "note": entry["note"],
        "pieces": list(_limited(pieces, 4 * LONG)),
    }


# --- excerpts ---


def excerpt(text: str, places: Sequence[Sequence[int]]) -> list[Piece]:
    """The parts of a text around its marked places, at most about LONG characters."""
    if not places:
        return list(_limited([(text, "")], LONG))
    pieces: list[Piece] = []
    at = 0
    for start, end in places:
        pieces += [(text[at:start], ""), (text[start:end], "mark")]
        at = end
    pieces.append((text[at:], ""))
    return list(_limited(pieces, LONG))


def _limited(pieces: Sequence[Piece], most: int) -> Iterator[Piece]:
    """The pieces with the middle of long ones left out, and what comes after `most` characters."""
    shown = 0
    last = len(pieces) - 1
    for number, (text, kind) in enumerate(pieces):
        if not text:
            continue
        if shown >= most:
            left = sum(len(t) for t, k in pieces[number:] if k != "added")
            if left:
                yield f"{left:,} more characters", "gap"
            return
        if kind:
            parts = _ends(text, kind, most // 2, most // 2)
        elif last == 0:
            parts = _ends(text, kind, most, 0)
        else:
            parts = _ends(text, kind, 0 if number == 0 else AROUND, 0 if number == last else AROUND)
        for part in parts:
            shown += len(part[0]) if part[1] != "gap" else 0
            yield part


def _ends(text: str, kind: str, head: int, tail: int) -> Iterator[Piece]:
    """The beginning and the end of a text, and between them how much is left out."""
    left = len(text) - head - tail
    if left <= 40:  # the note takes as much
        yield text, kind
        return
    if head:
        yield text[:head], kind
    yield f"{left:,} characters", "gap"
    if tail:
        yield text[len(text) - tail :], kind
