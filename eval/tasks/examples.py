"""Labelled examples of RACE, MNLI and QQP: two texts, or a question with its options, and the right answer.

Texts are cleaned as in Megatron-LM (tasks/data_utils.py): white space of every kind becomes one space, and
" . " becomes ". ".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from ...documents.files import utf8_lines


@dataclasses.dataclass(frozen=True)
class Example:
    """One question with a fixed set of answers.

    Each text of `first` together with `second` makes one sequence; the model chooses among the answers.

    first: for RACE the question with each of its options, otherwise the first sentence alone. label: the
    index of the right answer; None where the file has no labels. question, options: those of RACE, cleaned.
    """

    id: str
    file: str
    first: tuple[str, ...]
    second: str
    label: int | None
    question: str = ""
    options: tuple[str, ...] = ()


def clean(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text


def table_rows(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """(line number, cells, line) of a tab-separated table.

    A quotation mark is an ordinary character, as in the published files.
    """
    for number, line in utf8_lines(path):
        yield number, line.split("\t"), line
