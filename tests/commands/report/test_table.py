"""The table of stages."""

from mt.commands.report import table

STAGES = [
    (
        "clean",
        {
            "verb": "data clean",
            "key": "k",
            "counts": {"documents": 90, "removed": {"too short <b>": 10}},
            "seconds": 1.5,
            "inputs": [],
        },
    ),
    (
        "stats",
        {
            "verb": "data stats",
            "counts": {},
            "rows": [
                {"name": "/r/clean", "documents": 90, "tokens": 12345},
                {"name": "/r/clean/0.jsonl", "documents": 3, "tokens": 7},
            ],
            "seconds": 0.1,
            "inputs": [{"path": "/r/clean/0.jsonl", "key": "k"}, {"path": "/r/clean/1.jsonl", "key": "k"}],
        },
    ),
    (
        "train",
        {
            "verb": "train",
            "counts": {"tokens": 999},
            "train_loss": 4.0,
            "valid_loss": 4.25,
            "unigram_entropy": 6.5,
            "tokens_per_second": 5000.0,
            "seconds": 60.0,
        },
    ),
    (
        "lambada",
        {
            "verb": "eval lambada",
            "counts": {},
            "scores": {"accuracy": 0.25, "accuracy_stderr": 0.01},
            "seconds": 2.0,
        },
    ),
]


def test_rows_have_documents_tokens_losses_and_scores():
    rows = {r["stage"]: r for r in table.rows(STAGES)}
    assert (rows["clean"]["documents"], rows["clean"]["tokens"]) == (90, 12345)
    assert (
        rows["train"]["result"] == "train loss 4.000, validation 4.250, unigram entropy 6.500, 5,000 tokens/s"
    )
    assert rows["lambada"]["result"] == "accuracy 0.25"
    assert rows["clean"]["result"] == "removed 10 (too short <b> 10)"


def test_the_table_is_aligned():
    lines = table.text_table(table.rows(STAGES)).split("\n")
    assert lines[0].split() == ["stage", "documents", "tokens", "seconds", "result"]
    column = lines[0].index("result")
    assert all(len(line) <= column or line[column - 1] == " " for line in lines[2:])
