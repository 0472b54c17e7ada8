"""QQP: its tables, and F1 of a finetuned BERT."""

import json

from mt.core.config import build
from mt.eval.tasks.qqp import QqpConfig, qqp
from mt.tests.eval.labelled_data import write_qqp


def test_qqp_sets_broken_rows_aside_and_tells_f1(tmp_path, bert):
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
