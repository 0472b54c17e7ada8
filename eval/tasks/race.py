"""RACE, MNLI and QQP as they were published -> examples: a question or a sentence, what belongs to it, and
the right answer.

    RACE        folders of `.txt`, each line a JSON object {article, questions[], options[][4],
        answers["A".."D"]}, perhaps an id
    MNLI        a table with tabs and a header; columns 0 uid, 8 and 9 the sentences, the last the label; a
        header of 10
                columns is the test set's, which has no labels
    QQP         a table with tabs and a header of 6 columns: id, qid1, qid2, both questions, 0 or 1; one of 3
        columns
                (id and both questions) is the test set's

Texts are cleaned as Megatron-LM does (tasks/data_utils.py): spaces of every kind become one, and " . "
becomes ". ".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from ...core.config import UserError
from ...documents.files import utf8_lines
from ...documents.reader import Reject

CHOICES = 4
MNLI_LABELS = ("contradiction", "entailment", "neutral")


@dataclasses.dataclass(frozen=True)
class Example:
    """One question.

    A sequence is made of each of `first` together with `second`; the model chooses among the answers.

    first: RACE: the question with each of its options; else the first sentence. label: the right answer's
    number; None where the file does not tell. question, options: RACE's, cleaned.
    """

    id: str
    file: str
    first: tuple[str, ...]
    second: str
    label: int | None
    question: str = ""
    options: tuple[str, ...] = ()


# Is called with a row that is no example: raises, or sets it aside.
Refuse = Callable[[Reject], None]
Reader = Callable[[Path, Refuse], Iterator[Example]]


def read_race(path: Path, refuse: Refuse) -> Iterator[Example]:
    """The questions of a RACE file, article by article."""
    for number, line in utf8_lines(path):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            refuse(Reject(str(path), f"line {number}", f"malformed JSON at column {error.colno}", line))
            continue
        if wrong := _race_mistake(record):
            refuse(Reject(str(path), f"line {number}", wrong, line))
            continue
        article = clean(record["article"])
        name = str(record.get("id", f"{path.name}:{number}"))
        for n, (question, options, answer) in enumerate(
            zip(record["questions"], record["options"], record["answers"])
        ):
            # A gap is filled, every one of them; a question is followed by its answer.
            filled = [
                question.replace("_", option) if "_" in question else f"{question} {option}"
                for option in options
            ]
            yield Example(
                f"{name}:{n}",
                str(path),
                tuple(map(clean, filled)),
                article,
                ord(answer) - ord("A"),
                clean(question),
                tuple(map(clean, options)),
            )


def _race_mistake(record) -> str | None:
    if not isinstance(record, dict):
        return "is not a JSON object"
    for key, kind in (("article", str), ("questions", list), ("options", list), ("answers", list)):
        if not isinstance(record.get(key), kind):
            return (
                f"has no {key!r} that is a {'text' if kind is str else 'list'}; a line of RACE has article,"
                " questions, options and answers"
            )
    questions, options, answers = (record[key] for key in ("questions", "options", "answers"))
    if not len(questions) == len(options) == len(answers):
        return (
            f"has {len(questions)} questions, {len(options)} lists of options and {len(answers)} answers; it"
            " must have as many of each"
        )
    for n, (question, choices, answer) in enumerate(zip(questions, options, answers), 1):
        if (
            not isinstance(question, str)
            or not isinstance(choices, list)
            or not all(isinstance(c, str) for c in choices)
        ):
            return f"question {n} or one of its options is not a text"
        if len(choices) != CHOICES:
            return f"question {n} has {len(choices)} options; RACE has {CHOICES}"
        if answer not in ("A", "B", "C", "D"):
            return f"the answer of question {n} is {answer!r}; it must be A, B, C or D"
    return None


def read_mnli(path: Path, refuse: Refuse) -> Iterator[Example]:
    """The pairs of sentences of an MNLI table."""
    rows = _table(path)
    _, header, _ = next(rows)
    if len(header) < 10:
        raise UserError(
            f"{path}, line 1: has {len(header)} columns; a table of MNLI has 10 or more: check that it is the"
            " published file, with tabs between"
        )
    test = len(header) == 10
    for number, cells, line in rows:
        wrong = label = None
        if len(cells) != len(header):
            wrong = f"has {len(cells)} columns, and the header {len(header)}"
        elif not test and cells[-1].strip() not in MNLI_LABELS:
            wrong = (
                f"the label is {cells[-1].strip()!r}; it must be {', '.join(MNLI_LABELS[:-1])} or"
                f" {MNLI_LABELS[-1]}"
            )
        elif not (clean(cells[8]) and clean(cells[9])):
            wrong = "a sentence is empty"
        if wrong:
            refuse(Reject(str(path), f"line {number}", wrong, line))
            continue
        if not test:
            label = MNLI_LABELS.index(cells[-1].strip())
        yield Example(cells[0].strip(), str(path), (clean(cells[8]),), clean(cells[9]), label)


def read_qqp(path: Path, refuse: Refuse) -> Iterator[Example]:
    """The pairs of questions of a QQP table."""
    rows = _table(path)
    _, header, _ = next(rows)
    if len(header) not in (3, 6):
        raise UserError(
            f"{path}, line 1: has {len(header)} columns; a table of QQP has 6, its test set 3: check that it"
            " is the published file, with tabs between"
        )
    test = len(header) == 3
    for number, cells, line in rows:
        wrong = None
        if len(cells) != len(header):
            wrong = f"has {len(cells)} columns, and the header {len(header)}"
        elif not test and cells[5].strip() not in ("0", "1"):
            wrong = f"the label is {cells[5].strip()!r}; it must be 0 or 1"
        first, second = (clean(cells[n]) for n in ((1, 2) if test else (3, 4))) if wrong is None else ("", "")
        if wrong is None and not (first and second):
            wrong = "a question is empty"
        if wrong:
            refuse(Reject(str(path), f"line {number}", wrong, line))
            continue
        yield Example(cells[0].strip(), str(path), (first,), second, None if test else int(cells[5]))


def files_of(place: str, endings: tuple[str, ...]) -> list[Path]:
    """A file, or those of a folder, in order; raises UserError for a place that gives none."""
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or directory; check the path")
    found = (
        sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(endings))
        if path.is_dir()
        else [path]
    )
    if not found:
        raise UserError(f"{place}: holds no files that end in {' or '.join(endings)}; check the path")
    return found


def reader(
    read: Reader, reject: Callable[[Reject], None], on_error: str
) -> Callable[[Path], Iterator[Example]]:
    """`read` of one file, whose bad rows raise UserError, or with on_error "skip" are handed to `reject`."""

    def refuse(bad: Reject) -> None:
        if on_error == "fail":
            raise UserError(
                f"{bad.file}, {bad.place}: {bad.reason}; mend it, or pass --on-error skip to set such rows"
                " aside"
            )
        reject(bad)

    return lambda path: read(path, refuse)


def clean(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text


def _table(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """(line number, cells, line) of a table; quotation marks are letters, as in the published files."""
    for number, line in utf8_lines(path):
        yield number, line.split("\t"), line
