"""Compares the extractors of `mt data extract --source warc` with the libraries alone: quality and speed.

    git clone TRAFILATURA; python benchmarks/main_text.py TRAFILATURA
    git clone ARTICLE-EXTRACTION-BENCHMARK; python benchmarks/main_text.py ARTICLE-EXTRACTION-BENCHMARK

The argument is a checkout of adbar/trafilatura or of scrapinghub/article-extraction-benchmark on GitHub,
which have annotated pages; they stay outside this repository. Each page is decoded once, by mt.

trafilatura's annotations are some strings that a text must contain, and some that it must not. Recall is the
share of the first that the texts contain, precision the share of them among all annotated strings that the
texts contain, over all pages together. The other set has whole texts: precision and recall are those of their
4-grams of words, each the mean over pages. Its own script is the same but for rounding. `empty pages` are
those without a text. --held-out leaves out the pages on which `block_classifier` was trained: its figures on
trafilatura's set mean nothing without it.

Speed is CPU seconds for 1 MB of HTML, in one process, after a first page. readability-lxml takes part if it
is installed; resiliparse makes text of its HTML.
"""

from __future__ import annotations

import argparse
import collections
import functools
import gzip
import json
import logging
import re
import statistics
import time
import typing
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from fineweb import is_held_out

from indexed import table
from mt.documents.html import Extractor, main_text
from mt.documents.html_encoding import decode_page

Extract = Callable[[str], str | None]
Counts = tuple[float, float, float]  # what is rightly in a text, wrongly in it, missing
WORD = re.compile(r"\w+")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--repeat", type=int, default=1, help="runs of the speed; the fastest counts")
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="of trafilatura's set, only pages that block_classifier is new to",
    )
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    read, score = (segments, score_segments) if is_trafilatura(arguments.checkout) else (texts, score_texts)
    pages = read(arguments.checkout)
    if arguments.held_out:
        pages = [(page, gold) for page, gold in pages if is_held_out(gold)]
    megabytes = sum(len(page.encode("utf-8", "replace")) for page, _ in pages) / 1e6
    rows = []
    for name, extract in contestants().items():
        extract(pages[0][0])
        seconds = []
        for _ in range(arguments.repeat):
            start = time.process_time()
            found = [attempt(extract, page) for page, _ in pages]
            seconds.append(time.process_time() - start)
        precision, recall, f_score = score(found, [gold for _, gold in pages])
        empty = sum(not text.strip() for text in found)
        figures = (f"{precision:.3f}", f"{recall:.3f}", f"{f_score:.4f}", str(empty))
        rows.append((name, *figures, f"{min(seconds) / megabytes:.3f}"))
    print(f"### {len(pages)} pages, {megabytes:.0f} MB\n")
    table(("", "precision", "recall", "F", "empty pages", "CPU s for 1 MB"), rows)


def attempt(extract: Extract, page: str) -> str:
    """The text of a page; a page at which a library fails has none."""
    try:
        return extract(page) or ""
    except Exception:
        return ""


def contestants() -> dict[str, Extract]:
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    alone = functools.partial(trafilatura.extract, include_comments=False)
    library = f"trafilatura {version('trafilatura')}"
    found: dict[str, Extract] = {
        f"mt, {name}": functools.partial(main_text, extractor=name) for name in typing.get_args(Extractor)
    }
    found[library] = alone
    found[f"{library}, fast"] = functools.partial(alone, fast=True)
    found[f"resiliparse {version('resiliparse')}"] = functools.partial(extract_plain_text, main_content=True)
    try:
        from readability import Document

        name = f"readability-lxml {version('readability-lxml')}"
        found[name] = lambda page: extract_plain_text(Document(page).summary())
    except ImportError:
        print("readability-lxml is not installed: left out\n")
    return found


def is_trafilatura(checkout: Path) -> bool:
    return (checkout / "tests/evaldata.json").exists()


def segments(checkout: Path) -> list[tuple[str, dict]]:
    """(page, its annotation) of trafilatura's set."""
    pages = []
    for item in json.loads((checkout / "tests/evaldata.json").read_text(encoding="utf-8")).values():
        paths = [checkout / "tests" / folder / item["file"] for folder in ("cache", "eval")]
        pages.append((decode_page(next(path for path in paths if path.exists()).read_bytes()), item))
    return pages


def score_segments(found: list[str], annotations: list[dict]) -> tuple[float, float, float]:
    right = wrong = wanted = 0
    for text, item in zip(found, annotations):
        words = one_line(text)
        right += sum(one_line(segment) in words for segment in item["with"])
        wrong += sum(one_line(segment) in words for segment in item["without"])
        wanted += len(item["with"])
    return harmonic(right / max(right + wrong, 1), right / wanted)


def one_line(text: str) -> str:
    return " ".join(text.split())


def texts(checkout: Path) -> list[tuple[str, str]]:
    """(page, its text) of the article-extraction-benchmark."""
    gold = json.loads((checkout / "ground-truth.json").read_text(encoding="utf-8"))
    body = lambda name: gzip.decompress((checkout / "html" / f"{name}.html.gz").read_bytes())
    return [(decode_page(body(name)), item["articleBody"]) for name, item in gold.items()]


def score_texts(found: list[str], expected: list[str]) -> tuple[float, float, float]:
    counts = [overlap(four_grams(text), four_grams(gold)) for text, gold in zip(found, expected)]
    precisions = [right / (right + wrong) for right, wrong, _ in counts if right + wrong]
    recalls = [right / (right + missing) for right, _, missing in counts if right + missing]
    return harmonic(statistics.mean(precisions), statistics.mean(recalls))


def four_grams(text: str) -> collections.Counter[tuple[str, ...]]:
    words = WORD.findall(text)
    grams = (tuple(words[n : n + 4]) for n in range(max(1, len(words) - 3)))
    return collections.Counter(gram for gram in grams if gram)


def overlap(found: collections.Counter, expected: collections.Counter) -> Counts:
    right = (found & expected).total()
    return right, found.total() - right, expected.total() - right


def harmonic(precision: float, recall: float) -> tuple[float, float, float]:
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


if __name__ == "__main__":
    main()
