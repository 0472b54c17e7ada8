"""Read the texts of evaluation files, in the published layout of each task, for decontamination.

    RACE        folders of `.txt`, each line a JSON object {article, questions, options, answers}; also the
                records of its Parquet files, with one `question` each. Texts: the article, each question, and
                each question with each option, in place of `_` or after the question, as the task does it.
    MNLI, QQP   `.tsv` with a header. Texts: both sentences, or both questions. Records may instead have
                `premise` and `hypothesis`.
    WikiText    plain text, one text per line, split at `<unk>`, which occurs in no other text. Texts are not
                detokenized: the words (`\\w+`) are the same either way, and the ` N ` that detokenizing would
                turn into ` 1 ` is not a word of the source.
    LAMBADA     and all other JSONL and Parquet: the text under one key. Plain text: one text per line.

The layout is recognized by the columns, the keys or the first line.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import orjson

from ..core import manifest, paths
from ..core.config import UserError, shown_names
from ..core.unicode import without_mark
from ..documents import files, folders, reader, sharding, sources

RULES = 2  # to be changed with what is read of evaluation files
RECORD_KINDS = ("lines", "json", "csv", "parquet", "arrow")
TEXT_FILES = (".txt", ".tokens", ".raw")
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
NAMED = re.compile(r"([\w.+-]+)=(.+)")
MAX_BLANKS = 100  # blanks of a question that are filled, as in eval/tasks/race.py


@dataclasses.dataclass
class EvaluationTask:
    """One evaluation task of the report.

    places: files, folders and datasets, as given. skipped: rows of tables with too few columns.
    not_read: the files of folders that are no evaluation files.
    """

    name: str
    places: list[str]
    skipped: int = 0
    not_read: folders.NotRead = dataclasses.field(default_factory=folders.NotRead)


def tasks(items: tuple[str, ...]) -> list[EvaluationTask]:
    """The tasks of items `NAME=PLACE` or `PLACE`, in order.

    Places with the same name belong to one task. A place without a name is a task of its own, named after its
    last path component, or after the whole path if that is ambiguous.
    """
    named: list[tuple[str | None, str]] = []
    for item in items:
        match = NAMED.fullmatch(item)
        named.append((match[1], match[2]) if match and not Path(item).exists() else (None, item))
    unnamed = Counter(Path(place).name for name, place in named if name is None)
    found: dict[str, EvaluationTask] = {}
    for name, place in named:
        name = name or (Path(place).name if unnamed[Path(place).name] == 1 else place)
        found.setdefault(name, EvaluationTask(name, [])).places.append(place)
    return list(found.values())


def inputs(all_tasks: list[EvaluationTask]) -> list[str]:
    """All places, globs expanded, for manifest.begin; raises UserError for a glob without matches."""
    return list(
        dict.fromkeys(path for task in all_tasks for place in task.places for path in _resolved(place))
    )


def texts(
    task: EvaluationTask, key: str, max_record_bytes: int = files.MAX_RECORD_BYTES
) -> Iterator[list[str]]:
    """Yields the texts of a task, each as the list of pieces that may occur in a document.

    key: of the text, in records of no known task. max_record_bytes: a longer record is refused. Raises
    UserError for a record without texts. Rows of tables with too few columns (QQP has some) are skipped and
    counted in task.skipped.
    """
    for place in task.places:
        for path in _resolved(place):
            for file in _files(path, task.not_read):
                yield from _texts_in(file, key, max_record_bytes, task)


def _resolved(place: str) -> list[str]:
    if place.startswith(sources.HUB) or Path(place).exists():
        return [place]
    found = sorted(glob.glob(place, recursive=True))
    if not found:
        raise UserError(f"{place}: no such file or directory; check the path")
    return found


def _is_records(name: str) -> bool:
    return folders.kind_of(name) in RECORD_KINDS


def _files(path: str, not_read: folders.NotRead) -> list[str]:
    """The sorted evaluation files of a folder; if mt wrote the folder, only its documents.

    not_read: gets the other files of the folder.
    """
    folder = Path(path)
    if path.startswith(sources.HUB) or not folder.is_dir():
        return [path]
    if manifest.manifest_of(folder) is not None or any(
        (folder / name).exists() for name in ("run.json", "state.json", "dataset_dict.json")
    ):
        return [str(file.path) for file in folders.find([path])]
    texts = (*TEXT_FILES, ".tsv")
    skipped = folders.NotRead()
    found = folders.below(folder, lambda p: _is_records(p.name) or p.name.lower().endswith(texts), skipped)
    not_read.add_all(skipped)
    if not found:
        raise UserError(
            f"{path}: contains no evaluation files (JSON, CSV, Parquet, Arrow, {', '.join(texts)})"
            f"{f'; {skipped}' if skipped else ''}; check the path"
        )
    return list(map(str, found))


def _texts_in(path: str, key: str, max_record_bytes: int, task: EvaluationTask) -> Iterator[list[str]]:
    rows: Iterable[tuple[str, dict[str, Any]]]
    if path.startswith(sources.HUB) or _is_records(path):
        refuse = lambda reject: _refuse(reject.file, reject.place, reject.reason)
        if not path.startswith(sources.HUB) and os.path.getsize(path) == 0:
            _refuse(path, "line 1", "the file is empty")
        shards = sharding.plan([path], key=key, on_error="skip", max_record_bytes=max_record_bytes)
        rows = (row for shard in shards for row in reader.read_raw(shard, refuse))
    elif path.lower().endswith(".tsv"):
        rows = _table(path, task)
    else:
        lines = _plain_lines(path)
        if not _is_race(lines):
            yield from (
                [piece for piece in line.split("<unk>") if piece.strip()] for line in lines if line.strip()
            )
            return
        rows = ((f"line {n}", _race_line(path, n, line)) for n, line in enumerate(lines, 1) if line.strip())
    for place, record in rows:
        found = record_texts(record, key)
        if isinstance(found, str):
            _refuse(path, place, found)
        yield from ([text] for text in found)


def record_texts(record: dict[str, Any], key: str) -> list[str] | str:
    """The texts of a record, or a message that says what is wrong with it."""
    if (
        isinstance(record.get("article"), str)
        and ("questions" in record or "question" in record)
        and "options" in record
    ):
        return _race(record)
    for pair in PAIRS:
        if key not in record and all(name in record for name in pair):
            wrong = next((name for name in pair if not isinstance(record[name], str)), None)
            return f"{wrong!r} is not a text" if wrong else [record[name] for name in pair]
    if key not in record:
        return f"has no key {key!r} (it has {shown_names(record)})"
    value = record[key]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    return f"{key!r} is {'null' if value is None else f'a {type(value).__name__}'}, not a text"


def _race(record: dict[str, Any]) -> list[str] | str:
    """The article, the questions, and the questions with their options."""
    questions, options = record.get("questions"), record["options"]
    if "questions" not in record:  # Parquet: one question in a record
        questions, options = [record["question"]], [options]
    if not isinstance(questions, list) or not isinstance(options, list) or len(questions) != len(options):
        return "'questions' and 'options' are not lists of one length"
    found = [record["article"]]
    for question, choices in zip(questions, options):
        if (
            not isinstance(question, str)
            or not isinstance(choices, list)
            or not all(isinstance(c, str) for c in choices)
        ):
            return "a question or an option is not a text"
        found.append(question)
        for choice in choices:
            filled = question.replace("_", choice, MAX_BLANKS)
            found.append(filled if "_" in question else f"{question} {choice}")
    return found


def _table(path: str, task: EvaluationTask) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row) of a table with a header; quotes are literal, as in the published files."""
    header: list[str] = []
    for number, line in enumerate(_plain_lines(path), 1):
        cells = line.rstrip("\r").split("\t")
        if not header:
            header = cells
            if len(header) < 2:
                _refuse(path, "line 1", "is not a header of tab-separated columns")
        elif len(cells) < len(header):
            task.skipped += bool(line.strip())
        else:
            yield f"line {number}", dict(zip(header, cells))


def _plain_lines(path: str) -> list[str]:
    paths.refuse_stream(path)
    data = Path(path).read_bytes()
    if not data:
        _refuse(path, "line 1", "the file is empty")
    try:
        return without_mark(data).decode().split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(path, f"line {line}", f"byte {error.start} of the file is not UTF-8")


def _is_race(lines: list[str]) -> bool:
    first = next((line.strip() for line in lines if line.strip()), "")
    if not (first.startswith("{") and first.endswith("}")):
        return False
    try:
        record: dict[str, Any] = orjson.loads(first)
        return {"article", "questions", "options"} <= record.keys()
    except orjson.JSONDecodeError:
        return False


def _race_line(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        _refuse(path, f"line {number}", f"malformed JSON at column {error.colno}")
    return record if isinstance(record, dict) else _refuse(path, f"line {number}", "is not a JSON object")


def _refuse(path: str, place: str, reason: str) -> NoReturn:
    raise UserError(
        f"{path}{f', {place}' if place else ''}: {reason}; correct the evaluation file, or name the key of"
        " its texts with --evaluation-key"
    )
