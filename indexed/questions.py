"""Reads questions with answers and passages from JSON, JSON lines or tab-separated files.

Instruction tuning, open-domain question answering and retrieval use them.

    .json      a list of objects {question, answers | answer, ...}: InstructRetro's data, NQ, TriviaQA
    .jsonl     such an object on each line
    .tsv ...   any other extension: question, tab, list of answers as a Python or JSON literal: DPR's *.qa.csv

`answers` is a list of texts, or of objects with a `text`. `answer` (or `longform_answer`) is a text, a list
of texts, a number or a boolean. `ctxs` is a list of {title, text}, the passages that a retriever found.
`sub-paragraphs` (or `sub_paragraph`) is the passage with the answer: a text, or a list of title and text. If
`qa_type` is multi_choice_qa, the `multichoice_options` are appended to the question.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ..core.config import UserError, shown
from ..documents.files import utf8_lines
from ..documents.rejects import Reject


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its answers.

    passages: those that a retriever found, best first. given: the passage that belongs to the question. Both
    have the form `title: TITLE, source: TEXT`.
    """

    id: str
    file: str
    text: str
    answers: tuple[str, ...]
    passages: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


OnReject = Callable[[Reject], None]


def read_questions(path: Path, on_reject: OnReject) -> Iterator[Question]:
    """The questions of a file.

    on_reject: called with every record that is not a question; it raises, or keeps the record for a report.
    Raises UserError for a file that is empty or cannot be parsed.
    """
    rows = {".json": _array, ".jsonl": _lines}.get(path.suffix, _table)(path, on_reject)
    found = False
    for place, record in rows:
        found = True
        if reason := _reject_reason(record):
            on_reject(Reject(str(path), place, reason, _shortened(record)))
            continue
        yield _question(path, place, record)
    if not found:
        raise UserError(f"{path}: holds no question; check the path")


def _shortened(record: object) -> str:
    try:
        return orjson.dumps(record).decode()[:200]
    except TypeError:  # it is nested deeper than orjson writes
        return shown(record)


def _array(path: Path, on_reject: OnReject) -> Iterator[tuple[str, Any]]:
    data = path.read_bytes()
    if not data.strip():
        raise UserError(f"{path}: the file is empty; check the path")
    try:
        records = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: malformed JSON at column {error.colno}; a .json file is one list"
            " of questions; name a file with a question on each line .jsonl"
        ) from None
    if not isinstance(records, list):
        raise UserError(
            f'{path}: is not a list of questions; give [{{"question": ..., "answers": [...]}}, ...]'
        )
    return ((f"record {number}", record) for number, record in enumerate(records, 1))


def _lines(path: Path, on_reject: OnReject) -> Iterator[tuple[str, Any]]:
    for number, line in utf8_lines(path):
        try:
            yield f"line {number}", orjson.loads(line)
        except orjson.JSONDecodeError as error:
            on_reject(Reject(str(path), f"line {number}", f"malformed JSON at column {error.colno}", line))


def _table(path: Path, on_reject: OnReject) -> Iterator[tuple[str, Any]]:
    for number, line in utf8_lines(path):
        cells = line.split("\t")
        answers = _literal(_unquoted(cells[-1]))
        if len(cells) == 2 and isinstance(answers, list):
            yield f"line {number}", {"question": _unquoted(cells[0]), "answers": answers}
        else:
            reason = "is not a question, a tab and a list of answers, such as ['Paris', 'Lutetia']"
            on_reject(Reject(str(path), f"line {number}", reason, line))


def _unquoted(cell: str) -> str:
    """A cell without the quotation marks of Python's csv writer."""
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _literal(text: str) -> object:
    """The value of a Python or JSON literal, or None; no code is run."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _reject_reason(record: object) -> str | None:
    """Why a record is not a question; None if it is one."""
    if not isinstance(record, dict):
        return "is not a JSON object"
    if not isinstance(record.get("question"), str) or not record["question"].strip():
        return "has no 'question' that is a text"
    answers = _answers(record)
    if answers is None:
        return "has neither 'answers' nor 'answer'"
    if not answers:
        return "has no answers"
    if wrong := [a for a in answers if not isinstance(a, str)]:
        return f"the answer {wrong[0]!r:.60} is not a text"
    ctxs = record.get("ctxs", [])
    if not isinstance(ctxs, list) or not all(
        isinstance(c, dict) and isinstance(c.get("text"), str) and isinstance(c.get("title", ""), str)
        for c in ctxs
    ):
        return "'ctxs' is not a list of objects with a title and a text"
    given = _given(record)
    if given is not None and not (len(given) == 2 and all(isinstance(part, str) for part in given)):
        return "'sub-paragraphs' is neither a text nor a list of title and text"
    options = record.get("multichoice_options", [])
    if record.get("qa_type") == "multi_choice_qa" and not (
        options and isinstance(options, list) and all(isinstance(o, str) for o in options)
    ):
        return "is of qa_type multi_choice_qa and has no list of multichoice_options"
    return None


def _answers(record: dict[str, Any]) -> list[Any] | None:
    """The answers of a record, None if it has no such key."""
    if "answers" in record:
        answers = record["answers"]
        answers = answers if isinstance(answers, list) else [answers]
        return [a.get("text") if isinstance(a, dict) else a for a in answers]
    key = next((key for key in ("answer", "longform_answer") if key in record), None)
    if key is None:
        return None
    answer = record[key]
    if isinstance(answer, list):
        return answer
    return [str(answer) if isinstance(answer, bool | int | float) else answer]


def _given(record: dict[str, Any]) -> list[Any] | None:
    """[title, text] of the passage that belongs to a question; None if there is none."""
    given = next((record[key] for key in ("sub-paragraphs", "sub_paragraph") if key in record), None)
    if given is None:
        return None
    if isinstance(given, str):
        return ["", given]
    return given[:2] if isinstance(given, list) else [given]


def _question(path: Path, place: str, record: dict[str, Any]) -> Question:
    text = record["question"]
    if record.get("qa_type") == "multi_choice_qa":
        options = " ".join(
            f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(record["multichoice_options"])
        )
        text = f"{text}\nChoose one based on the following options: {options}"
    given = _given(record)
    return Question(
        str(record.get("id", f"{path.name}:{place.split()[-1]}")),
        str(path),
        text,
        tuple(a.strip() for a in _answers(record) or ()),
        tuple(_passage(c.get("title", ""), c["text"]) for c in record.get("ctxs", [])),
        (_passage(*given),) if given else (),
    )


def _passage(title: str, text: str) -> str:
    return f"title: {title}, source: {text}"
