"""QQP (Quora; Wang et al. 2019): whether two questions have the same meaning, by a finetuned BERT.

A file is a tab-separated table with a header. 6 columns are id, qid1, qid2, both questions and the label (0
or 1). 3 columns are those of the test set, id and both questions, without labels. finetune.py describes the
command.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...core.config import UserError, configuration, option
from ...documents.rejects import Reject
from .data_files import Refuse
from .examples import Example, clean, table_rows
from .finetune import FinetuneConfig, run
from .multiple_choice import ClassificationTask


@configuration()
class QqpConfig(FinetuneConfig):
    """The settings of `mt eval qqp`."""

    # The published train.tsv has rows with line breaks inside a question.
    on_error: Literal["fail", "skip"] = option("skip", "a row that is no example: stop, or set it aside")


def qqp(config: QqpConfig) -> dict | None:
    """The summary of `mt eval qqp` on rank 0, None on the other ranks."""
    return run(config, QQP)


def read_qqp(path: Path, refuse: Refuse) -> Iterator[Example]:
    """The pairs of questions of a QQP table."""
    rows = table_rows(path)
    _, header, _ = next(rows)
    if len(header) not in (3, 6):
        raise UserError(
            f"{path}, line 1: has {len(header)} columns; a table of QQP has 6, its test set 3: check that it"
            " is the published file, with tabs between"
        )
    labelled = len(header) == 6
    columns = (3, 4) if labelled else (1, 2)
    for number, cells, line in rows:
        wrong = None
        first = second = ""
        if len(cells) != len(header):
            wrong = f"has {len(cells)} columns, and the header {len(header)}"
        elif labelled and cells[5].strip() not in ("0", "1"):
            wrong = f"the label is {cells[5].strip()!r}; it must be 0 or 1"
        else:
            first, second = (clean(cells[n]) for n in columns)
            if not (first and second):
                wrong = "a question is empty"
        if wrong:
            refuse(Reject(str(path), f"line {number}", wrong, line))
            continue
        yield Example(cells[0].strip(), str(path), (first,), second, int(cells[5]) if labelled else None)


QQP = ClassificationTask("qqp", read_qqp, (".tsv",), outputs=2, reports_f1=True)
