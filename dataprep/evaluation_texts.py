"""evaluation files of every layout to the texts that training documents must not hold.

    RACE          folders of `.txt`, each line a JSON object {article, questions, options, answers}; also the
        records of
                  its Parquet, with one `question` each. Texts: the article, every question, and with each of
                      its options
                  as the task puts it: in place of `_`, or behind.
    MNLI, QQP     `.tsv` with a header: both sentences, both questions. As records also `premise` and
        `hypothesis`.
    WikiText      plain text, a text a line, in pieces between `<unk>`, which no other text holds. Nothing is
        detokenised:
                  words are the same either way (`\\w+`), and ` N `, which that would make ` 1 `, is no word
                      of the source.
    LAMBADA       and anything else in JSONL or Parquet: the text under one key. Original LAMBADA is a text a
        line.

Which one it is, the columns tell, or the keys, or the first line.
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson

from ..core import manifest
from ..core.config import UserError
from ..documents import reader, sources

RECORD_FILES = tuple(e for e in reader.EXTENSIONS if e != ".txt")
TEXT_FILES = (".txt", ".tokens", ".raw")
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
NAMED = re.compile(r"([\w.+-]+)=(.+)")


@dataclasses.dataclass
class Task:
    """One name of the report.

    places: files, folders and datasets, as given; skipped: rows of a table that are none.
    """

    name: str
    places: list[str]
    skipped: int = 0


def tasks(items: tuple[str, ...]) -> list[Task]:
    """`NAME=PLACE` or `PLACE` each, in order; places of one name are one task, and a place without one has
    its own.
    """
    split = [
        match.groups() if (match := NAMED.fullmatch(item)) and not Path(item).exists() else (None, item)
        for item in items
    ]
    plain = Counter(Path(place).name for name, place in split if name is None)
    found: dict[str, Task] = {}
    for name, place in split:
        name = name or (Path(place).name if plain[Path(place).name] == 1 else place)
        found.setdefault(name, Task(name, [])).places.append(place)
    return list(found.values())


def inputs(all_tasks: list[Task]) -> list[str]:
    """Every place, with globs resolved, for manifest.begin; raises UserError for one that gives nothing."""
    return list(
        dict.fromkeys(path for task in all_tasks for place in task.places for path in _resolved(place))
    )


def texts(task: Task, key: str) -> Iterator[list[str]]:
    """The texts of a task, each in the pieces that may stand in a document.

    key: of the text, in records of no known task. Raises UserError for a record without texts; a row of a
    table with too few columns (QQP has some) is skipped and counted.
    """
    for place in task.places:
        for path in _resolved(place):
            for file in _files(path):
                yield from _texts_in(file, key, task)


def _resolved(place: str) -> list[str]:
    if place.startswith(sources.HUB) or Path(place).exists():
        return [place]
    found = sorted(glob.glob(place, recursive=True))
    if not found:
        raise UserError(f"{place}: no such file or directory; check the path")
    return found


def _files(path: str) -> list[str]:
    """The files of a folder that hold texts, sorted; of a folder that mt wrote its documents."""
    folder = Path(path)
    if path.startswith(sources.HUB) or not folder.is_dir():
        return [path]
    if manifest.manifest_of(folder) is not None or any(
        (folder / name).exists() for name in ("run.json", "state.json", "dataset_dict.json")
    ):
        return list(map(str, reader.expand([path])))
    found = sorted(
        str(p)
        for p in folder.rglob("*")
        if p.is_file() and p.name.endswith((*RECORD_FILES, *TEXT_FILES, ".tsv"))
    )
    if not found:
        raise UserError(
            f"{path}: holds no evaluation files ({', '.join((*RECORD_FILES, *TEXT_FILES, '.tsv'))}); check"
            " the path"
        )
    return found


def _texts_in(path: str, key: str, task: Task) -> Iterator[list[str]]:
    if path.startswith(sources.HUB) or path.endswith(RECORD_FILES):
        shards = reader.plan([path], key=key, on_error="skip")
        rows = (
            (place, record)
            for shard in shards
            for place, record in reader.read_raw(
                shard, lambda reject: _refuse(reject.file, reject.place, reject.reason)
            )
        )
    elif path.endswith(".tsv"):
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


def record_texts(record: dict, key: str) -> list[str] | str:
    """The texts of a record, or what is wrong with it."""
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
        return f"has no key {key!r} (it has {', '.join(map(repr, list(record)[:8]))})"
    value = record[key]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    return f"{key!r} is {'null' if value is None else f'a {type(value).__name__}'}, not a text"


def _race(record: dict) -> list[str] | str:
    """The article, the questions, and the questions with their options."""
    many = "questions" in record
    questions, options = (
        (record["questions"], record["options"]) if many else ([record["question"]], [record["options"]])
    )
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
        found += [
            question,
            *(
                question.replace("_", choice) if "_" in question else f"{question} {choice}"
                for choice in choices
            ),
        ]
    return found


def _table(path: str, task: Task) -> Iterator[tuple[str, dict]]:
    """(place, row) of a table with a header; quotation marks are letters, as in the published files."""
    header: list[str] = []
    for number, line in enumerate(_plain_lines(path), 1):
        cells = line.rstrip("\r").split("\t")
        if not header:
            header = cells
            if len(header) < 2:
                _refuse(path, "line 1", "is no header of columns with tabs between")
        elif len(cells) < len(header):
            task.skipped += bool(line.strip())
        else:
            yield f"line {number}", dict(zip(header, cells))


def _plain_lines(path: str) -> list[str]:
    data = Path(path).read_bytes()
    if not data:
        _refuse(path, "line 1", "the file is empty")
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(path, f"line {line}", f"byte {error.start} of the file is not UTF-8")


def _is_race(lines: list[str]) -> bool:
    first = next((line.strip() for line in lines if line.strip()), "")
    if not (first.startswith("{") and first.endswith("}")):
        return False
    try:
        return {"article", "questions", "options"} <= orjson.loads(first).keys()
    except orjson.JSONDecodeError:
        return False


def _race_line(path: str, number: int, line: str) -> dict:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        _refuse(path, f"line {number}", f"malformed JSON at column {error.colno}")
    return record if isinstance(record, dict) else _refuse(path, f"line {number}", "is not a JSON object")


def _refuse(path: str, place: str, reason: str):
    raise UserError(
        f"{path}{f', {place}' if place else ''}: {reason}; mend the evaluation file, or name the key of its"
        " texts with --evaluation-key"
    )
