"""The `mt data look` command: show documents at random: kept ones, removed ones, pairs of near duplicates.

Raw input (a file, a folder or a glob that no stage wrote) is read as every command reads it. Its files, and
pieces of large ones, are read in a random order, until there are enough documents and RAW_BYTES are read.

Of a stage it reads the manifest, the log `removed/`, and those output files from which documents are drawn
(sampling.py). The text of a removed document comes from `rejects/` if the stage wrote it, else from the
stage's input: the file `removed/NNNNN.jsonl` belongs to the shard NNNNN, which is divided again as the stage
divided it. If that input has changed or is gone, the summary says so in place of the text.

Documents that a stage cut are in the log `cut/`, and have the reason `cut` here.

What offended is marked in the text: for `mt data clean` the places that its rules find again
(filters/offending.py), for `mt data decontaminate` the evaluation text, for `mt data dedup-lines` the
repeated lines, for `mt data dedup-substrings` the beginning of the first span. No code that a manifest names
is run.

look_layout.py makes the text that a person reads of the summary.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from ..core import manifest
from ..core.config import UserError, check, configuration, nearest, option, shown
from ..core.parsing import MADE_BY_MT, Count, Range, check_value
from ..core.progress import activity
from ..documents import charsets, files, reader, shard_groups, sharding, sources, tables
from ..documents.reader import Document
from ..documents.shard_groups import ShardGroup
from ..documents.sharding import InputOptions, Shard
from .dedup.lines import split_text
from .filters.language import language, languages
from .filters.offending import Measure, Offence, explain, merged
from .filters.own_rules import PREFIX
from .sampling import Drawn, Record, RecordFile, draw, records
from .trace import (
    CUT,
    FinishedStage,
    LoggedDocument,
    LoggedRemoval,
    finished_stages,
    id_pattern,
    in_reading_order,
    stages_in,
)
from .word_diff import word_diff

MOST_COUNT = 1000
MOST_OF_AN_ID = 8  # documents of one id in a shard that are kept in memory
NEAR = "near"
RAW = "raw input"  # in place of the name of a stage
RAW_BYTES = 32 << 20  # of raw input that are read, and more where that gives too few documents
RAW_SHARD_BYTES = 1 << 20
PAGE_COST = 30  # the main text of a page takes so many times as long as reading it
PAGE_KINDS = ("text", "html")  # whose files are one document each, with the label as its id
Entry = tuple[dict[str, Any], str | None]  # what the summary has of a document, its text if that is known


@configuration()
class LookConfig(InputOptions):
    """The settings of `mt data look`."""

    POSITIONAL = "dir"

    dir: str = option(
        help="directory of a stage of `mt data`, or of a run with several; or raw input: a file, a folder, a"
        " glob",
        role="input",
    )
    text_key: str = option("text", "of raw input: key, or column, of the text")
    reason: str | None = option(
        None,
        "show documents removed for this reason, or for all that begin so; `cut`: those that a stage cut;"
        " default: kept ones",
    )
    dropped: bool = option(False, "show removed documents: of all reasons, or of --reason")
    pairs: bool = option(False, "show near duplicates that `mt data dedup` removed, beside their survivors")
    lang: str | None = option(None, "only documents in this language: an ISO code, as lid.176 finds it")
    count: int = option(5, "documents, or pairs, of each stage")
    seed: int = option(0, "seed of the choice: the same one shows the same documents")
    full: bool = option(False, "print whole texts, not the parts around the marks")

    def __post_init__(self) -> None:
        check(
            (1 <= self.count <= MOST_COUNT, f"count = {self.count} must be from 1 to {MOST_COUNT:,}"),
            (self.reason != "", "reason is empty: name one, or pass --dropped for all"),
            (not (self.dropped and self.pairs), "dropped and pairs: give one of them"),
            *self.input_rules,
        )


def look(config: LookConfig) -> dict[str, Any]:
    """Draws documents of every stage in a directory.

    Returns {"full", "stages": [{"stage", "folder", "shows", "reasons", "of", "looked_at", "documents"}]}. A
    kept document has id, file, text, fields; a removed one id, reason, facts, file, text, offending,
    measured, note; a pair id, reason, survivor, similarity, removed_text, survivor_text, diff, note.
    offending: [[start, end], ...] in characters of the text. diff: the steps of word_diff. Raw input is one
    stage of the name RAW, whose "whole" says whether all of it was read. Raises UserError for a directory,
    reason or language that is not there.
    """
    if config.lang is not None and config.lang not in languages():
        raise UserError(
            f"lang = {config.lang}: is not a known language{nearest(config.lang, languages())}; write an ISO"
            " code, as in --lang de"
        )
    found = stages_in(Path(config.dir)) if Path(config.dir).is_dir() else []
    stages = in_reading_order(found)
    if not stages:
        shown = [_raw(config)]
    elif config.pairs:
        shown = _pairs(stages, config)
    elif config.dropped or config.reason:
        shown = _removed(stages, config, _chosen_reasons(stages, config))
    else:
        shown = _kept(stages, config)
    return {"full": config.full, "stages": shown}


def _summary(stage: FinishedStage, shows: str) -> dict[str, Any]:
    """The part of the summary about a stage, to which documents are added."""
    return _summary_of(stage.manifest["verb"], str(stage.folder), shows)


def _summary_of(stage: str, folder: str, shows: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "folder": folder,
        "shows": shows,
        "of": 0,
        "looked_at": 0,
        "documents": [],
    }


def _raw(config: LookConfig) -> dict[str, Any]:
    """Documents of raw input."""
    if config.dropped or config.reason or config.pairs:
        raise UserError(
            f"{config.dir}: is no output of a stage, so nothing was removed of it; omit --dropped, --reason"
            " and --pairs, or name the directory that `mt data clean` or another stage wrote"
        )
    shards = config.plan([config.dir], key=config.text_key, shard_bytes=RAW_SHARD_BYTES)
    sharding.refuse_empty(shards)
    generator = random.Random(config.seed)
    order: list[Shard] = generator.sample(shards, len(shards))
    kept: list[tuple[Shard, Document]] = []  # Vitter's algorithm R
    looked_at = fitting = cost = read_shards = 0
    name = ""
    with activity(lambda: f"reading {name}"):
        for shard in order:
            name = shard.name
            cost += shard.bytes * PAGE_COST if shard.kind == "html" else 0
            for document in reader.read(shard):
                if shard.kind != "html":
                    cost += len(document.text)
                looked_at += 1
                if config.lang is None or language(document.text)[0] == config.lang:
                    fitting += 1
                    place = len(kept) if len(kept) < config.count else generator.randrange(fitting)
                    kept[place : place + 1] = [(shard, document)] if place < config.count else []
                if len(kept) == config.count and cost > RAW_BYTES:
                    break
            else:
                read_shards += 1
                continue
            break
    generator.shuffle(kept)
    summary = {**_summary_of(RAW, config.dir, "read"), "of": looked_at, "looked_at": looked_at}
    summary["whole"] = read_shards == len(shards)
    for shard, document in kept:
        entry = {"id": document.id, "file": shard.name, "text": document.text, "fields": document.meta}
        _in_language(document.text, config, entry)
        summary["documents"].append(entry)
    return summary


def _kept(stages: Sequence[FinishedStage], config: LookConfig) -> list[dict[str, Any]]:
    shown = []
    for stage in stages:
        some = _files(stage, lambda output: output.get("documents", True))
        if not some:
            continue
        summary = _summary(stage, "kept")
        counted = stage.manifest["counts"].get("documents", 0)
        place = f"{stage.folder / 'manifest.json'}: counts.documents"
        summary["of"] = check_value(counted, Count, place, MADE_BY_MT)
        share = None if config.lang else 1.0
        _fill(summary, draw(some, config.count, config.seed, share=share), config, _kept_entries)
        shown.append(summary)
    if not shown:
        raise UserError(f"{config.dir}: holds no documents, only a list of URLs; look at its .txt files")
    return shown


def _kept_entries(some: Sequence[Drawn]) -> Iterator[Entry]:
    for each in some:
        document = _document(each.record, each.path)
        entry = {"id": document.id, "file": str(each.path), "text": document.text, "fields": document.meta}
        yield entry, document.text


def _fill(
    summary: dict[str, Any],
    draws: Iterable[tuple[int, list[Drawn]]],
    config: LookConfig,
    entries: Callable[[Sequence[Drawn]], Iterable[Entry]],
) -> None:
    """Adds the documents that are drawn to the summary of a stage, until there are enough."""
    documents = summary["documents"]
    for looked_at, drawn in draws:
        summary["looked_at"] += looked_at
        while drawn and len(documents) < config.count:
            several = config.count - len(documents)
            some, drawn = drawn[:several], drawn[several:]
            documents += [entry for entry, text in entries(some) if _in_language(text, config, entry)]
        if len(documents) >= config.count:
            break


def _files(stage: FinishedStage, chosen: Callable[[Any], bool]) -> list[RecordFile]:
    """The output files of a stage, with their numbers of records."""
    return [
        RecordFile(stage.path(output["name"]), output.get("rows"))
        for output in stage.manifest["outputs"]
        if chosen(output)
    ]


def _document(record: Record, path: Path) -> Document:
    """The document of a record that mt wrote."""
    name, text = record.get("id"), record.get("text")
    if not isinstance(name, str) or not isinstance(text, str):
        raise UserError(f"{path}: has a record without the texts `id` and `text`; {MADE_BY_MT}")
    return Document(name, text, {k: v for k, v in record.items() if k not in ("id", "text")})


def _in_language(text: str | None, config: LookConfig, entry: dict[str, Any]) -> bool:
    """Whether a text is in the language that is asked for, which the entry then tells."""
    if config.lang is None:
        return True
    if text is None:
        return False
    code, score = language(text)
    entry["language"] = {"code": code, "score": round(score, 4)}
    return code == config.lang


def _chosen_reasons(stages: Sequence[FinishedStage], config: LookConfig) -> set[str]:
    """The reasons that the user names: the one of that name, else those that begin so."""
    counts: dict[str, int] = {}
    for stage in stages:
        for reason, count in (_removed_counts(stage) | _cut_counts(stage)).items():
            counts[reason] = counts.get(reason, 0) + count
    if config.reason is None:
        chosen = set(counts) - {CUT}
    elif config.reason in counts:
        chosen = {config.reason}
    else:
        chosen = {r for r in counts if r != CUT and r.startswith(config.reason)}
    if not chosen:
        there = ", ".join(f"{r} ({n:,})" for r, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
        if not there:
            raise UserError(f"{config.dir}: no document was removed; omit --reason, --dropped and --pairs")
        raise UserError(
            f"{config.dir}: no document was removed for the reason {config.reason!r}"
            f"{nearest(config.reason or '', counts)}; the reasons are {there}"
        )
    return chosen


def _removed_counts(stage: FinishedStage) -> dict[str, int]:
    counts = stage.manifest["counts"].get("removed", {})
    place = f"{stage.folder / 'manifest.json'}: counts.removed"
    checked: dict[str, int] = check_value(counts, dict[str, Count], place, MADE_BY_MT)
    return {reason: count for reason, count in checked.items() if count > 0}


def _cut_counts(stage: FinishedStage) -> dict[str, int]:
    """{"cut": how many documents} of a stage that logs them, else {}."""
    if not stage.files("cut/"):
        return {}
    place = f"{stage.folder / 'manifest.json'}: cut"
    counts = check_value(stage.manifest.get("cut", {}), dict[str, Count], place, MADE_BY_MT)
    # decontaminate counts documents with one piece left, and with several
    count = counts.get("documents", counts.get("trimmed", 0) + counts.get("split", 0))
    return {CUT: count} if count else {}


def _removed(stages: Sequence[FinishedStage], config: LookConfig, reasons: set[str]) -> list[dict[str, Any]]:
    shown = []
    for stage in stages:
        counts = {r: n for r, n in (_removed_counts(stage) | _cut_counts(stage)).items() if r in reasons}
        if not counts:
            continue
        entries = functools.partial(removed_entries, stage, texts=_Texts(stage))
        shows = "cut" if CUT in counts else "removed"
        shown.append(_removed_summary(stage, shows, config, counts, entries))
    return shown


def removed_entries(
    stage: FinishedStage, drawn: Sequence[Drawn], texts: _Texts | None = None
) -> Iterator[Entry]:
    """(entry, text) of lines of `removed/`, or of `cut/`, as `look` describes them.

    drawn: all of one of the two folders. texts: that of earlier calls for the stage.
    """
    for each, found in zip(drawn, (texts or _Texts(stage)).of(drawn)):
        yield _removed_entry(stage, each, found), found.text


def _removed_summary(
    stage: FinishedStage,
    shows: str,
    config: LookConfig,
    counts: dict[str, int],
    entries: Callable[[Sequence[Drawn]], Iterable[Entry]],
) -> dict[str, Any]:
    """The summary of a stage with documents that it removed. counts: of each reason that is wanted."""
    summary = _summary(stage, shows) | {"reasons": counts, "of": sum(counts.values())}
    _fill(summary, _draw_removed(stage, config, counts), config, entries)
    return summary


def _draw_removed(
    stage: FinishedStage, config: LookConfig, counts: dict[str, int]
) -> Iterator[tuple[int, list[Drawn]]]:
    """The lines of `removed/` with one of these reasons, at random: see `draw`."""
    if CUT in counts:
        some = _files(stage, lambda output: output["name"].startswith("cut/"))
        return draw(some, config.count, config.seed, lambda record: _is_document(stage, record))
    some = _files(stage, lambda output: output["name"].startswith("removed/"))
    share = sum(counts.values()) / max(sum(_removed_counts(stage).values()), 1)

    def wanted(record: Record) -> bool:
        check_value(record, LoggedRemoval, f"{stage.folder}/removed", MADE_BY_MT)
        return record["reason"] in counts

    return draw(some, config.count, config.seed, wanted, share)


def _is_document(stage: FinishedStage, record: Record) -> bool:
    check_value(record, LoggedDocument, f"{stage.folder}/cut", MADE_BY_MT)
    return True


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is known about the text of a removed document. missing: why it is not there."""

    documents: Sequence[Document] = ()
    missing: str = ""

    @property
    def text(self) -> str | None:
        return self.documents[0].text if self.documents else None


def _removed_entry(stage: FinishedStage, drawn: Drawn, found: _Found) -> dict[str, Any]:
    """The entry of a removed document in the summary."""
    facts = dict(drawn.record)
    name, reason = facts.pop("id"), facts.pop("reason", CUT)
    entry = {"id": name, "reason": reason, "facts": facts, "file": str(drawn.path)}
    if not found.documents:
        return entry | {"text": None, "offending": [], "measured": [], "note": found.missing}
    offence = _offence(stage, reason, facts, found.documents)
    note = offence.note
    if len(found.documents) > 1:
        note += ("; " if note else "") + "several documents of the shard have this id: this is one of them"
    return entry | {
        "text": offence.text,
        "offending": [list(place) for place in offence.places],
        "measured": [_measured(measure) for measure in offence.measures],
        "note": note,
    }


def _measured(measure: Measure) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(measure).items() if value is not None} | {
        "text": str(measure)
    }


def _offence(
    stage: FinishedStage, reason: str, facts: dict[str, Any], documents: Sequence[Document]
) -> Offence:
    """Why a stage removed a document. documents: those with its id, of which one is it."""
    verb, settings, text = stage.manifest["verb"], stage.manifest["settings"], documents[0].text
    if verb == "data clean":
        return _of_rules(settings, reason, documents)
    if verb == "data dedup-substrings" and reason == "repeated":
        return Offence(text, [(0, len(text))] if text else [])
    if verb == "data dedup-lines" and reason == "repeated":
        unit, least = settings.get("unit"), settings.get("min_chars")
        if unit in ("line", "paragraph") and isinstance(least, int):
            pieces, compared = split_text(text, unit, least)
            ends = [0]
            for piece in pieces:
                ends.append(ends[-1] + len(piece))
            return Offence(text, [(ends[i], ends[i + 1]) for i in compared])
    example = facts.get("example")
    if verb in ("data decontaminate", "data dedup-substrings") and isinstance(example, str) and example:
        return Offence(text, merged(found.span() for found in re.finditer(re.escape(example), text)))
    if verb == "data classify" and isinstance(score := facts.get("score"), float | int):
        lowest, highest = (stage.manifest.get(f"{end}_score_kept") for end in ("lowest", "highest"))
        if isinstance(limit := lowest if highest is None else highest, float | int):
            sides = {"at_least": limit} if highest is None else {"at_most": limit}
            return Offence(text, measures=[Measure("score", score, **sides)])
    return Offence(text)


def _of_rules(settings: dict[str, Any], reason: str, documents: Sequence[Document]) -> Offence:
    items, lang = settings.get("rules", []), settings.get("lang", [])
    check_value([items, lang], list[list[str]], "the manifest's rules and lang", MADE_BY_MT)
    for document in documents:
        if offence := explain(items, lang, reason, document):
            return offence
    if any(item.startswith(PREFIX) for item in items):
        note = f"{reason} is the reason of a rule of your own, which names no place"
    else:
        note = f"the rules of this version of mt do not drop it as {reason}: no place is known"
    return Offence(documents[0].text, note=note)


class _InputSettings(TypedDict):
    """The settings of a stage that say how its input is read: those of stage.DocumentStage."""

    text_key: str
    shard_bytes: Annotated[int, Range(1 << 16)]
    max_record_bytes: NotRequired[int]
    include: NotRequired[list[str]]
    encoding: NotRequired[str]
    delimiter: NotRequired[str | None]
    no_header: NotRequired[bool]


class _Texts:
    """Finds the documents that a stage removed, in rejects/ or in the input."""

    def __init__(self, stage: FinishedStage):
        self.stage = stage
        self._groups: list[ShardGroup] | None = None
        self._problem = ""  # why there are no more groups
        self._inputs = {known.get("path", ""): known for known in stage.manifest["inputs"]}

    def of(self, drawn: Sequence[Drawn]) -> list[_Found]:
        """What is found about each of the lines of `removed/`."""
        by_shard: dict[str, set[str]] = {}
        for each in drawn:
            by_shard.setdefault(each.path.stem, set()).add(each.record["id"])
        found: dict[tuple[str, str], _Found] = {}
        for shard, ids in by_shard.items():
            try:
                documents = self._documents(shard, ids, drawn[0].path.parent.name == "removed")
            except (UserError, OSError) as error:
                missing = f"the text cannot be shown: {error}"
                found |= {(shard, name): _Found(missing=missing) for name in ids}
                continue
            gone = self._problem or "the input has no document with this id any more"
            gone = f"the text cannot be shown: {gone}"
            found |= {
                (shard, name): _Found(documents.get(name, ()), "" if name in documents else gone)
                for name in ids
            }
        return [found[each.path.stem, each.record["id"]] for each in drawn]

    def _documents(self, shard: str, ids: set[str], removed: bool) -> dict[str, list[Document]]:
        """The documents of a shard that have one of the ids. removed: whether they were removed, not cut."""
        rejects = [path for path in self.stage.files("rejects/") if _shard_of(path) == shard]
        every: Iterable[Document]
        unique = False  # whether an id that is found has no second document
        if rejects and removed:
            every = (_document(record, path) for path in rejects for record in _with_ids(path, ids))
            place = rejects[0].name
        else:
            if not shard.isdecimal():
                raise UserError(f"{self.stage.folder}/manifest.json: {shard!r} is no number of a shard")
            group = self._group(int(shard))
            likely = tuple(s for s in group.shards if _may_have(s, ids))
            group = dataclasses.replace(group, shards=likely or group.shards[:1])
            every, place = group.read(lambda reject: None), group.name
            unique = all(name.startswith(tuple(f"{s.label}:" for s in group.shards)) for name in ids)
        found: dict[str, list[Document]] = {}
        with activity(f"reading {place}, for {len(ids):,} removed texts"):
            for document in every:
                if document.id in ids and len(found.get(document.id, ())) < MOST_OF_AN_ID:
                    found.setdefault(document.id, []).append(document)
                    if unique and len(found) == len(ids):
                        break
        return found

    def _group(self, number: int) -> ShardGroup:
        """The shards that the stage read as this one; raises UserError if they have changed."""
        if self._groups is None:
            self._groups = self._plan()
        if number >= len(self._groups):
            raise UserError(self._problem or "the input is not divided as it was when the stage ran")
        group = self._groups[number]
        places: manifest.Places = {}
        for path in {shard.path for shard in group.shards}:
            known = self._inputs[path]
            if not _is_same(known, sources.identity(path, places)) and not _is_copy(known, path):
                raise UserError(f"{path} has changed since the stage read it")
        return group

    def _plan(self) -> list[ShardGroup]:
        """The shards of the input, up to the first file that is not what it was when the stage read it."""
        settings = self.stage.manifest["settings"]
        if not {"text_key", "shard_bytes"} <= settings.keys():
            self._problem = f"mt {self.stage.manifest['verb']} keeps no text of what it removes"
            return []
        check_value(settings, _InputSettings, f"{self.stage.folder}/manifest.json: settings", MADE_BY_MT)
        check(
            files.record_limit_rule(settings.get("max_record_bytes", files.MAX_RECORD_BYTES)),
            charsets.encoding_rule(settings.get("encoding", charsets.UTF8)),
            tables.delimiter_rule(settings.get("delimiter")),
        )
        shards: list[Shard] = []
        wanted = len(self.stage.files("removed/"))
        for path, known in self._inputs.items():
            try:
                shards += self._shards(path, known, settings)
            except (UserError, OSError) as error:
                self._problem = str(error)
                break
        # other inputs than documents, such as evaluation texts and earlier outputs, come last
        return shard_groups.group(shards, settings["shard_bytes"])[:wanted]

    def _shards(self, path: str, known: Any, settings: dict[str, Any]) -> Iterator[Shard]:
        if path == "-":
            raise UserError("the input was standard input, which is not kept; --rejects keeps removed texts")
        if path.startswith(sources.HUB) or "://" in path:
            # A manifest may be a stranger's, and nothing is fetched that the user does not name.
            raise UserError(
                f"the input was {shown(path)}, and nothing is fetched because a manifest names it; --rejects"
                " keeps removed texts"
            )
        if Path(path).is_dir():
            return  # an earlier output of --against; documents are read from files
        plan = sharding.plan(
            [path],
            key=settings["text_key"],
            shard_bytes=settings["shard_bytes"],
            on_error="skip",
            max_record_bytes=settings.get("max_record_bytes", files.MAX_RECORD_BYTES),
            include=settings.get("include", ()),
            encoding=settings.get("encoding", charsets.UTF8),
            delimiter=settings.get("delimiter"),
            no_header=settings.get("no_header", False),
            report=False,
        )
        if (
            "bytes" in known and Path(path).stat().st_size != known["bytes"]
        ):  # what follows is divided otherwise
            raise UserError(f"{path} has changed since the stage read it")
        for shard in plan:
            label = shard.label if shard.kind == "hub" else known.get("name", shard.label)
            yield dataclasses.replace(shard, label=str(label))


def _may_have(shard: Shard, ids: set[str]) -> bool:
    """Whether a shard may have a document with one of the ids: a page has one document, of a known id.

    To find the main text of a page takes a hundred times as long as to read a record.
    """
    return shard.kind not in PAGE_KINDS or shard.label in ids


def _shard_of(path: Path) -> str:
    """NNNNN for the output files NNNNN.jsonl, NNNNN_001.jsonl.zst ..."""
    return path.name.split(".")[0].split("_")[0]


def _is_same(known: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two identities are of the same bytes.

    A digest has to prove it. A stranger's manifest could name any file of this machine with its size alone,
    and its text would be shown.
    """
    told = [key for key in ("key", "sample", "bytes", "files") if key in known]
    proved = any(isinstance(known.get(key), str) for key in ("key", "sample")) or bool(known.get("files"))
    return proved and all(known[key] == now.get(key) for key in told)


def _is_copy(known: dict[str, Any], path: str) -> bool:
    """Whether a file has the bytes that the stage with this key wrote: a copy, with another time."""
    made = manifest.manifest_of(path)
    if made is None or made["key"] != known.get("key"):
        return False
    name = Path(path).name
    digest = next((o["xxh3"] for o in made["outputs"] if o["name"] == name), None)
    return digest == manifest.file_digest(path)


def _with_ids(path: Path, ids: set[str]) -> Iterator[Record]:
    """The records of a file of documents that have one of the ids."""
    pattern = id_pattern(ids)
    return (record for _, record in records(path, likely=pattern) if record.get("id") in ids)


def _pairs(stages: Sequence[FinishedStage], config: LookConfig) -> list[dict[str, Any]]:
    shown = []
    deduplicated = [stage for stage in stages if stage.manifest["verb"] == "data dedup"]
    found = {reason for stage in deduplicated for reason in _removed_counts(stage)}
    if config.reason is None and deduplicated and NEAR not in found:
        remedy = "add --reason exact to see exact ones" if "exact" in found else "omit --pairs"
        raise UserError(f"{config.dir}: `mt data dedup` found no near duplicates; {remedy}")
    for stage in stages:
        reasons = {config.reason or NEAR}
        counts = {r: n for r, n in _removed_counts(stage).items() if r in reasons}
        if stage.manifest["verb"] != "data dedup" or not counts:
            continue
        entries = functools.partial(pair_entries, stage, texts=_Texts(stage))
        shown.append(_removed_summary(stage, "pairs", config, counts, entries))
    if not shown:
        raise UserError(
            f"{config.dir}: has no output of `mt data dedup` with pairs of the reason"
            f" {config.reason or NEAR!r}; name one, or omit --pairs"
        )
    return shown


def pair_entries(
    stage: FinishedStage,
    drawn: Sequence[Drawn],
    texts: _Texts | None = None,
    most_bytes: int | None = None,
) -> Iterator[Entry]:
    """(entry, removed text) of pairs, as `look` describes them, for lines of `removed/` of `mt data dedup`.

    texts: that of earlier calls for the stage. most_bytes: of files in which survivors are searched.
    """
    survivors = _survivors(stage, drawn, most_bytes)
    for each, found in zip(drawn, (texts or _Texts(stage)).of(drawn)):
        yield _pair(each, found, survivors), found.text


def _pair(drawn: Drawn, found: _Found, survivors: dict[str, str]) -> dict[str, Any]:
    record = drawn.record
    survivor = record.get("survivor")
    other = survivors.get(survivor) if isinstance(survivor, str) else None
    steps = word_diff(found.text, other) if found.text is not None and other is not None else []
    note = found.missing
    if other is None:
        note += ("; " if note else "") + "the survivor's text is not in the output, nor in one that it names"
    return {
        "id": record["id"],
        "reason": record["reason"],
        "survivor": survivor,
        "similarity": record.get("similarity"),
        "removed_text": found.text,
        "survivor_text": other,
        "diff": [list(step) for step in steps],
        "note": note,
    }


def _survivors(stage: FinishedStage, drawn: Sequence[Drawn], most_bytes: int | None = None) -> dict[str, str]:
    """{id: text} of the survivors of removed documents, which may lie in any file of the output.

    The files are read from those of the removed documents' shards on, until all survivors are found, or about
    most_bytes are read; then those of the earlier outputs that --against named.
    """
    missing = {name for each in drawn if isinstance(name := each.record.get("survivor"), str)}
    shards = {each.path.stem for each in drawn}
    own = _files(stage, lambda output: output.get("documents", True))
    own.sort(key=lambda file: _shard_of(file.path) not in shards)
    earlier = [
        file
        for known in stage.manifest["inputs"]
        if Path(known.get("path", "-")).is_dir() and manifest.manifest_of(known["path"])
        for before in finished_stages((known["path"],))
        for file in _files(before, lambda output: output.get("documents", True))
    ]
    found: dict[str, str] = {}
    read_bytes = 0
    for file in [*own, *earlier]:
        if not missing or (most_bytes is not None and read_bytes > most_bytes):
            break
        read_bytes += file.path.stat().st_size if file.path.exists() else 0
        for record in _with_ids(file.path, missing):
            document = _document(record, file.path)
            found.setdefault(document.id, document.text)
        missing -= found.keys()
    return found
