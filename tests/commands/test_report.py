"""The report: the table of stages and the HTML page."""

import html.parser

from mt.commands import report

STAGES = [
    (
        "clean",
        "/r/clean",
        {
            "verb": "data clean",
            "counts": {"documents": 90, "removed": {"too short <b>": 10}},
            "seconds": 1.5,
            "settings": {"a": "</pre><script>"},
            "inputs": [],
        },
    ),
    (
        "stats",
        "/r/stats",
        {
            "verb": "data stats",
            "counts": {},
            "rows": [{"name": "/r/clean", "documents": 90, "tokens": 12345}],
            "seconds": 0.1,
            "settings": {},
            "inputs": [],
        },
    ),
    (
        "train",
        "/r/train",
        {
            "verb": "train",
            "counts": {"tokens": 999},
            "train_loss": 4.0,
            "valid_loss": 4.25,
            "unigram_entropy": 6.5,
            "tokens_per_second": 5000.0,
            "curve": [[1, 9.0], [2, float("nan")], [3, 4.0]],
            "valid_curve": [[3, 4.25]],
            "seconds": 60.0,
            "settings": {},
            "inputs": [],
        },
    ),
    (
        "lambada",
        "/r/lambada",
        {
            "verb": "eval lambada",
            "counts": {},
            "scores": {"accuracy": 0.25, "accuracy_stderr": 0.01},
            "seconds": 2.0,
            "settings": {},
            "inputs": [],
        },
    ),
    (
        "generate",
        "/r/generate",
        {
            "verb": "generate",
            "counts": {},
            "samples": [{"prompt": "x <", "text": " y & z"}],
            "seconds": 1.0,
            "settings": {},
            "inputs": [],
        },
    ),
]


class Balance(html.parser.HTMLParser):
    """Counts open tags; raises where a tag closes that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in {"line", "polyline"}:
            self.open.pop()
        assert self.open.pop() == tag


def test_rows_have_documents_tokens_losses_and_scores():
    rows = {r["stage"]: r for r in report.rows(STAGES)}
    assert (rows["clean"]["documents"], rows["clean"]["tokens"]) == (90, 12345)
    assert (
        rows["train"]["result"] == "train loss 4.000, validation 4.250, unigram entropy 6.500, 5,000 tokens/s"
    )
    assert rows["lambada"]["result"] == "accuracy 0.25"


def test_the_table_is_aligned_and_the_page_is_valid_and_escaped():
    lines = report.text_table(report.rows(STAGES)).split("\n")
    assert lines[0].split() == ["stage", "documents", "tokens", "seconds", "result"]
    column = lines[0].index("result")
    assert all(len(line) <= column or line[column - 1] == " " for line in lines[2:])
    page = report.render("a <run>", STAGES)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.tags
    assert parser.tags.count("polyline") == 2
    assert "x &lt; y &amp; z" in page
    assert "nan" not in page
