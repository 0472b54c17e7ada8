"""MNLI's tables: rows that are read, and rows that are rejected with their reason."""

import pytest

from mt.core.config import UserError
from mt.eval.tasks.mnli import read_mnli
from mt.tests.eval.tasks.reading import read

HEADER = ["index", *["x"] * 7, "sentence1", "sentence2", "label1", "gold_label"]


def write(path, *rows, header=HEADER):
    path.write_text("\n".join("\t".join(row) for row in (header, *rows)) + "\n")
    return path


def row(number, first, second, *labels):
    return [str(number), *["x"] * 7, first, second, *labels]


def test_a_row_gives_two_cleaned_sentences_and_the_number_of_its_gold_label(tmp_path):
    path = write(
        tmp_path / "a.tsv",
        row(7, " One  sentence . Two ", '"quoted"', "neutral", "contradiction"),
        row(8, "a", "b", "neutral", " entailment "),
        row(9, "a", "b", "entailment", "neutral"),
    )
    examples, rejects = read(read_mnli, path)
    assert rejects == []
    assert [(e.id, e.first, e.second, e.label) for e in examples] == [
        ("7", ("One sentence. Two",), '"quoted"', 0),
        ("8", ("a",), "b", 1),
        ("9", ("a",), "b", 2),
    ]
    assert {e.file for e in examples} == {str(path)}


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (row(1, "a", "b", "neutral"), "has 11 columns, and the header 12"),
        (row(1, "a", "b", "neutral", "neutral", "more"), "has 13 columns, and the header 12"),
        (
            row(1, "a", "b", "neutral", "-"),
            "the label is '-'; it must be contradiction, entailment or neutral",
        ),
        (row(1, " ", "b", "neutral", "neutral"), "a sentence is empty"),
        (row(1, "a", "", "neutral", "neutral"), "a sentence is empty"),
    ],
)
def test_an_invalid_row_is_rejected_and_the_next_one_is_read(tmp_path, cells, reason):
    path = write(tmp_path / "a.tsv", cells, row(2, "c", "d", "neutral", "neutral"))
    examples, rejects = read(read_mnli, path)
    assert rejects == [("line 2", reason)]
    assert [e.id for e in examples] == ["2"]


def test_a_table_of_10_columns_is_a_test_set_without_labels(tmp_path):
    path = write(tmp_path / "test.tsv", row(1, "a", "b"), row(2, "a", ""), header=HEADER[:10])
    examples, rejects = read(read_mnli, path)
    assert [(e.first, e.second, e.label) for e in examples] == [(("a",), "b", None)]
    assert rejects == [("line 3", "a sentence is empty")]


def test_a_table_of_11_columns_has_labels(tmp_path):
    path = write(tmp_path / "a.tsv", row(1, "a", "b", "neutral"), header=HEADER[:11])
    assert [e.label for e in read(read_mnli, path)[0]] == [2]


def test_a_table_of_9_columns_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 1: has 9 columns; a table of MNLI has 10 or more"):
        read(read_mnli, write(tmp_path / "a.tsv", header=HEADER[:9]))
