"""MNLI (Williams et al. 2018): whether one sentence follows from another, by a finetuned BERT.

A file is a tab-separated table with a header: column 0 is the id, columns 8 and 9 are the sentences, the last
is the label. A header of 10 columns is that of the test set, which has no labels. finetune.py describes the
command.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...core.config import UserError
from ...documents.rejects import Reject
from .data_files import Refuse
from .examples import Example, clean, table_rows
from .finetune import FinetuneConfig, run
from .multiple_choice import ClassificationTask

LABELS = ("contradiction", "entailment", "neutral")


def mnli(config: FinetuneConfig) -> dict | None:
    """The summary of `mt eval mnli` on rank 0, None on the other ranks."""
    return run(config, MNLI)


def read_mnli(path: Path, refuse: Refuse) -> Iterator[Example]:
    """The pairs of sentences of an MNLI table."""
    rows = table_rows(path)
    _, header, _ = next(rows)
    if len(header) < 10:
        raise UserError(
            f"{path}, line 1: has {len(header)} columns; a table of MNLI has 10 or more: check that it is the"
            " published file, with tabs between"
        )
    labelled = len(header) > 10
    for number, cells, line in rows:
        wrong = None
        if len(cells) != len(header):
            wrong = f"has {len(cells)} columns, and the header {len(header)}"
        elif labelled and cells[-1].strip() not in LABELS:
            wrong = f"the label is {cells[-1].strip()!r}; it must be {', '.join(LABELS[:-1])} or {LABELS[-1]}"
        elif not (clean(cells[8]) and clean(cells[9])):
            wrong = "a sentence is empty"
        if wrong:
            refuse(Reject(str(path), f"line {number}", wrong, line))
            continue
        label = LABELS.index(cells[-1].strip()) if labelled else None
        yield Example(cells[0].strip(), str(path), (clean(cells[8]),), clean(cells[9]), label)


MNLI = ClassificationTask("mnli", read_mnli, (".tsv",), outputs=len(LABELS))
