"""QQP: its tables, and F1 of a finetuned BERT."""

import json

import pytest

from mt.core.config import UserError, build
from mt.eval.tasks.qqp import QqpConfig, qqp, read_qqp
from mt.tests.eval.labelled_data import write_qqp
from mt.tests.eval.tasks.reading import read


def test_qqp_sets_broken_rows_aside_and_reports_f1(tmp_path, bert):
    rows = [
        (
            str(i),
            "1",
            "2",
            "where is the cat ?",
            ("where is the cat ?", "what is red ?")[i % 2],
            str(1 - i % 2),
        )
        for i in range(24)
    ]
    train = write_qqp(tmp_path / "train.tsv", [*rows, ("77", "1", "2", "broken")])
    valid = write_qqp(tmp_path / "valid.tsv", [*rows[:8], ("78", "1"), ("79", "1", "2", "a", "", "1")])
    out = tmp_path / "out"
    run = qqp(
        build(
            QqpConfig,
            (
                "test",
                {
                    "pretrained_checkpoint": bert,
                    "train_data": [train],
                    "valid_data": [valid],
                    "output": str(out),
                    "epochs": 10,
                    "lr": 3e-3,
                    "hidden_dropout": 0.0,
                },
            ),
        )
    )
    assert run["counts"] == {"examples": 8, "scored": 8, "rejected": 3}
    assert [json.loads(line)["place"] for line in (out / "rejects.jsonl").read_text().splitlines()] == [
        "line 26",
        "line 10",
        "line 11",
    ]
    assert run["scores"]["f1"] > 0.9
    assert run["training"]["rejected"] == 1


def test_a_row_gives_two_cleaned_questions_and_its_label(tmp_path):
    path = tmp_path / "a.tsv"
    write_qqp(path, [("7", "1", "2", " a  question . b", "c", "1"), ("8", "3", "4", "d", "e", " 0 ")])
    examples, rejects = read(read_qqp, path)
    assert rejects == []
    assert [(e.id, e.first, e.second, e.label) for e in examples] == [
        ("7", ("a question. b",), "c", 1),
        ("8", ("d",), "e", 0),
    ]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (("1", "2", "3", "a", "b"), "has 5 columns, and the header 6"),
        (("1", "2", "3", "a", "b", "0", "c"), "has 7 columns, and the header 6"),
        (("1", "2", "3", "a", "b", "2"), "the label is '2'; it must be 0 or 1"),
        (("1", "2", "3", "a", "b", ""), "the label is ''; it must be 0 or 1"),
        (("1", "2", "3", " ", "b", "0"), "a question is empty"),
        (("1", "2", "3", "a", "", "0"), "a question is empty"),
    ],
)
def test_an_invalid_row_is_rejected_and_the_next_one_is_read(tmp_path, cells, reason):
    path = tmp_path / "a.tsv"
    write_qqp(path, [cells, ("9", "1", "2", "c", "d", "0")])
    examples, rejects = read(read_qqp, path)
    assert rejects == [("line 2", reason)]
    assert [e.id for e in examples] == ["9"]


def test_a_table_of_3_columns_is_a_test_set_without_labels(tmp_path):
    path = tmp_path / "test.tsv"
    write_qqp(path, [("1", "a", "b"), ("2", "", "b"), ("3", "a", "")], header="id\tquestion1\tquestion2")
    examples, rejects = read(read_qqp, path)
    assert [(e.id, e.first, e.second, e.label) for e in examples] == [("1", ("a",), "b", None)]
    assert rejects == [("line 3", "a question is empty"), ("line 4", "a question is empty")]


@pytest.mark.parametrize("columns", [2, 4, 5, 7])
def test_a_table_of_another_number_of_columns_is_refused(tmp_path, columns):
    path = tmp_path / "a.tsv"
    write_qqp(path, [], header="\t".join("x" * columns))
    with pytest.raises(UserError, match=f"line 1: has {columns} columns; a table of QQP has 6"):
        read(read_qqp, path)
