"""Files of questions and answers -> one form, for instruction tuning, open-domain question answering and
retrieval.

    .json      a list of objects {question, answers | answer, ...}: InstructRetro's NAME_QA_train.json, NQ,
        TriviaQA
    .jsonl     such an object on each line
    .tsv ...   any other ending: question, tab, a list of answers as Python or JSON writes it: DPR's
        nq-test.qa.csv

answers is a list of texts, or of objects with a `text`; answer (longform_answer) a text, a list of them, a
number or a truth value. Passages beside a question are `ctxs`, a list of {title, text} that a retriever
found, and `sub-paragraphs` (`sub_paragraph`), the one that holds the answer: a text, or a list of title and
text. A question of `qa_type` multi_choice_qa is followed by its `multichoice_options`.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from ..core.config import UserError
from ..documents.files import utf8_lines
from ..documents.reader import Reject


@dataclasses.dataclass(frozen=True)
class Question:
    """passages: what a retriever found, best first; given: those that come with the question.

    Both as `title: T, source: S`.
    """

    id: str
    file: str
    text: str
    answers: tuple[str, ...]
    passages: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


Refuse = Callable[[Reject], None]


def read_questions(path: Path, refuse: Refuse) -> Iterator[Question]:
    """The questions of a file. refuse: is called with a record that is none: raises, or sets it aside.

    Raises UserError for a file that is empty or cannot be parsed at all.
    """
    rows = {".json": _array, ".jsonl": _lines}.get(path.suffix, _table)(path, refuse)
    found = False
    for place, record in rows:
        found = True
        if wrong := _mistake(record):
            refuse(Reject(str(path), place, wrong, orjson.dumps(record).decode()[:200]))
            continue
        yield _question(path, place, record)
    if not found:
        raise UserError(f"{path}: holds no question; check the path")


def _array(path: Path, refuse: Refuse) -> Iterator[tuple[str, dict]]:
    data = path.read_bytes()
    if not data.strip():
        raise UserError(f"{path}: the file is empty; check the path")
    try:
        records = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: malformed JSON at column {error.colno}; a .json file is one list"
            " of questions, and one with a question on each line is named .jsonl"
        ) from None
    if not isinstance(records, list):
        raise UserError(
            f'{path}: is not a list of questions; give [{{"question": ..., "answers": [...]}}, ...]'
        )
    return ((f"record {number}", record) for number, record in enumerate(records, 1))


def _lines(path: Path, refuse: Refuse) -> Iterator[tuple[str, dict]]:
    for number, line in utf8_lines(path):
        try:
            yield f"line {number}", orjson.loads(line)
        except orjson.JSONDecodeError as error:
            refuse(Reject(str(path), f"line {number}", f"malformed JSON at column {error.colno}", line))


def _table(path: Path, refuse: Refuse) -> Iterator[tuple[str, dict]]:
    for number, line in utf8_lines(path):
        cells = line.split("\t")
        answers = _literal(_unquoted(cells[-1]))
        if len(cells) == 2 and isinstance(answers, list):
            yield f"line {number}", {"question": _unquoted(cells[0]), "answers": answers}
        else:
            refuse(
                Reject(
                    str(path),
                    f"line {number}",
                    "is not a question, a tab and a list of answers, such as ['Paris', 'Lutetia']",
                    line,
                )
            )


def _unquoted(cell: str) -> str:
    """What Python's csv writer put into quotation marks."""
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _literal(text: str) -> object:
    """A Python or JSON literal, or None; nothing is run."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _mistake(record) -> str | None:
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


def _answers(record: dict) -> list | None:
    if "answers" in record:
        answers = record["answers"]
        answers = answers if isinstance(answers, list) else [answers]
        return [a.get("text") if isinstance(a, dict) else a for a in answers]
    key = next((key for key in ("answer", "longform_answer") if key in record), None)
    if key is None:
        return None
    answer = record[key]
    return (
        answer
        if isinstance(answer, list)
        else [str(answer) if isinstance(answer, bool | int | float) else answer]
    )


def _given(record: dict) -> list | None:
    """[title, text] of the paragraph that comes with a question, if there is one."""
    given = next((record[key] for key in ("sub-paragraphs", "sub_paragraph") if key in record), None)
    return (
        ["", given]
        if isinstance(given, str)
        else list(given[:2])
        if isinstance(given, list)
        else given
        if given is None
        else [given]
    )


def _question(path: Path, place: str, record: dict) -> Question:
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
        tuple(a.strip() for a in _answers(record)),
        tuple(_passage(c.get("title", ""), c["text"]) for c in record.get("ctxs", [])),
        (_passage(*given),) if given else (),
    )


def _passage(title: str, text: str) -> str:
    return f"title: {title}, source: {text}"
