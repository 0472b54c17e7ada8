"""Compares `redact` of `mt data clean` with its public peers: precision, recall and speed.

    python benchmarks/redaction.py
    python benchmarks/redaction.py --sample MY.jsonl

The sample (default: tests/fixtures/redaction.jsonl) has lines {"text": ..., "private": [strings to replace]}.
A string is found if it is no longer in the text. Every other replacement is a mistake. datatrove's
PIIFormatter knows no telephone numbers, so the table has a second line for it without them. presidio takes
part if it is installed with a model of spaCy.

Speed is MB of text for each CPU second, over film reviews and WikiText (../shared/data, if it is here).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from indexed import SHARED, table

SAMPLE = Path(__file__).parent.parent / "tests/fixtures/redaction.jsonl"
Redact = Callable[[str], tuple[str, int]]  # a text to (redacted text, number of replacements)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.sample.read_text(encoding="utf-8").split("\n") if line]
    contestants = {"mt": own(), "datatrove PIIFormatter": datatrove(), "presidio": presidio()}
    contestants = {name: redact for name, redact in contestants.items() if redact is not None}
    no_phones = [{**line, "private": [s for s in line["private"] if is_address(s)]} for line in lines]
    rows = []
    for name, redact in contestants.items():
        rows.append((name, "all", *score(redact, lines)))
        if name.startswith("datatrove"):
            rows.append((name, "email and IP", *score(redact, no_phones)))
    print(f"### {len(lines)} texts, {sum(len(line['private']) for line in lines)} strings to replace\n")
    table(("", "kinds", "precision", "recall", "found", "mistakes", "missed"), rows)
    if SHARED.exists():
        speed(contestants, arguments.repeat)


def is_address(string: str) -> bool:
    """Whether a labelled string is an email or IP address, not a telephone number."""
    return (
        "@" in string
        or string.count(":") >= 2
        or (string.replace(".", "").isdigit() and string.count(".") == 3)
    )


def score(redact: Redact, lines: list[dict]) -> tuple[str, ...]:
    found = mistakes = missed = 0
    for line in lines:
        text, replaced = redact(line["text"])
        right = sum(string not in text for string in line["private"])
        found, missed = found + right, missed + len(line["private"]) - right
        mistakes += max(0, replaced - right)
    precision, recall = found / max(1, found + mistakes), found / max(1, found + missed)
    return f"{precision:.3f}", f"{recall:.3f}", str(found), str(mistakes), str(missed)


def speed(contestants: dict[str, Redact], repeat: int) -> None:
    reviews = (SHARED / "corpus/reviews.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in reviews if line]
    texts.append((SHARED / "wikitext/valid.txt").read_text(encoding="utf-8"))
    spent: dict[str, list[float]] = {name: [] for name in contestants if name != "presidio"}
    for _ in range(repeat):
        for name, times in spent.items():
            start = time.process_time()
            for text in texts:
                contestants[name](text)
            times.append(time.process_time() - start)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"\n### Speed on {megabytes:.0f} MB\n")
    medians = {name: statistics.median(times) for name, times in spent.items()}
    table(
        ("", "MB/CPU-s", "mt's speed / its"),
        [(name, f"{megabytes / each:.1f}", f"{each / medians['mt']:.2f}") for name, each in medians.items()],
    )


def own() -> Redact:
    from mt.dataprep.filters.redact import redact

    placeholders = ("email@example.com", "192.0.2.1", "2001:db8::1", "555-0100")

    def apply(text: str) -> tuple[str, int]:
        redacted = redact(text)
        return redacted, sum(redacted.count(p) - text.count(p) for p in placeholders)

    return apply


def datatrove() -> Redact | None:
    try:
        from datatrove.pipeline.formatters.pii import PIIFormatter
    except ImportError:
        return None
    formatter = PIIFormatter(email_replacement="\ue000", ip_replacement="\ue000")

    def apply(text: str) -> tuple[str, int]:
        redacted = formatter.format(text)
        return redacted, redacted.count("\ue000")

    return apply


def presidio() -> Redact | None:
    try:
        from presidio_analyzer import AnalyzerEngine

        engine = AnalyzerEngine()
    except (ImportError, OSError, SystemExit):
        return None

    def apply(text: str) -> tuple[str, int]:
        kinds = ["EMAIL_ADDRESS", "IP_ADDRESS", "PHONE_NUMBER"]
        spans = sorted(engine.analyze(text, "en", kinds), key=lambda span: -span.start)
        for span in spans:
            text = text[: span.start] + "\ue000" + text[span.end :]
        return text, len(spans)

    return apply


if __name__ == "__main__":
    main()
