"""Measures `mt data dedup` on text in many scripts: speed, recall and precision beside those of English.

    apt-get download libreoffice-help-{en-us,ru,el,hi,ja,km,ko,zh-cn,dz} \\
        libreoffice-l10n-{ar,he,th,bn,ta,te,ka,gu} manpages-{de,ja,ru,zh}
    for deb in *.deb; do dpkg -x "$deb" "TEXTS/${deb%%_*}"; done
    python benchmarks/dedup_scripts.py --texts TEXTS

TEXTS has one folder for each package; the end of a folder's name, as in `libreoffice-help-hi`, is the
language. Documents are the packages' help pages, manual pages and, 40 at a time, translated messages. A
tenth of the documents is copied as it is, and a tenth with one word in 30 left out or replaced by another
word of the language.

The truth is brute force: the Jaccard similarity of word 5-grams of every pair of documents.
The words of the truth are those of Unicode's UAX 29 (package uniseg, pure Python), lower-cased, in form NFC,
in which each character of a script without spaces is a word. Recall: pairs at 0.7 or more in one cluster.
Precision: removed documents that have a member of their cluster at 0.7 or more.

Speed is of the whole mixed corpus and of its English part, repeated to the same size; CPU seconds are those
of benchmarks/indexed.py.
"""

from __future__ import annotations

import argparse
import collections
import gettext
import gzip
import itertools
import json
import random
import re
import statistics
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from indexed import run, table

NGRAM, THRESHOLD = 5, 0.7
MESSAGES = 40  # of a program that make one document
COPIED, EDITED, ONE_EDIT_IN = 0.1, 0.1, 30
MIN_CHARS = 200
PACKAGE, ENGLISH = re.compile(r"^(libreoffice-(help|l10n)|manpages)-"), "en-us"
INSIDE_WORDS = re.compile(
    "[-.:,;'\"\u2018\u2019\u00b7\u0387\u05f3\u05f4\u2024\u2027]"
)  # UAX 29: MidLetter ...
ROFF = re.compile(r"^[.'].*$|\\f.|\\[&|^%/,]|\\-", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", required=True, type=Path, help="folder of unpacked Debian packages")
    parser.add_argument("--megabytes", type=float, default=1, help="of each language, to measure quality")
    parser.add_argument("--speed-megabytes", type=float, default=6, help="of each language, to measure speed")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    languages = collections.defaultdict(list)
    for package in sorted(arguments.texts.iterdir()):
        languages[PACKAGE.sub("", package.name)] += texts_of(package)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.megabytes:
            measure_quality(languages, arguments, Path(folder))
        measure_speed(languages, arguments, Path(folder))


def measure_quality(languages: dict[str, list[str]], arguments, folder: Path) -> None:
    corpora = sample(languages, arguments.megabytes)
    documents = [row for rows in corpora.values() for row in rows]
    source, output = folder / "quality.jsonl", folder / "quality"
    write(source, documents)
    run(dedup(source, output, arguments.workers))
    found = outcomes(documents, survivors(output))
    rows, start = [], 0
    for language, some in [*corpora.items(), ("all", documents)]:
        start = 0 if language == "all" else start
        rows.append((language, f"{size(some) / 1e6:.1f}", *summary(found[start : start + len(some)])))
        start += len(some)
    print("\n### Quality by language\n")
    table(("language", "MB", "documents", "pairs >= 0.7", "recall", "removed", "precision"), rows)


def measure_speed(languages: dict[str, list[str]], arguments, folder: Path) -> None:
    corpora = sample(languages, arguments.speed_megabytes)
    sources = {"mixed": folder / "mixed.jsonl", "English": folder / "english.jsonl"}
    write(sources["mixed"], (row for rows in corpora.values() for row in rows))
    times = sum(map(size, corpora.values())) // size(corpora[ENGLISH])
    write(sources["English"], repeated(corpora[ENGLISH], times))
    seconds = collections.defaultdict(list)
    for _ in range(arguments.repeat):
        for name, source in sources.items():
            with tempfile.TemporaryDirectory(dir=folder) as output:
                seconds[name].append(run(dedup(source, Path(output, "out"), arguments.workers))[1])
    rows = []
    for name, source in sources.items():
        megabytes, cpu = size(read(source)) / 1e6, statistics.median(seconds[name])
        rows.append((name, f"{megabytes:.0f}", f"{cpu:.2f}", f"{megabytes / cpu:.1f}"))
    print("\n### Speed\n")
    table(("corpus", "MB of text", "CPU s", "MB/CPU-s"), rows)


def dedup(source: Path, output: Path, workers: int) -> list[str]:
    command = [sys.executable, "-m", "mt", "data", "dedup", "--input", str(source)]
    return [*command, "--output", str(output), "--workers", str(workers)]


def sample(languages: dict[str, list[str]], megabytes: float) -> dict[str, list[dict]]:
    """Documents of each language, with planted copies."""
    return {
        language: planted(first_megabytes(texts, megabytes), seed)
        for seed, (language, texts) in enumerate(languages.items())
    }


def texts_of(package: Path) -> Iterator[str]:
    """The documents of an unpacked package, in the order of its files."""
    from resiliparse.extract.html2text import extract_plain_text

    for path in sorted(path for path in package.rglob("*") if path.is_file()):
        if path.suffix == ".html":
            yield extract_plain_text(path.read_text("utf-8"), main_content=False)
        elif path.suffix == ".mo":
            with open(path, "rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog
            messages = [text for key, text in catalog.items() if key and isinstance(text, str)]
            for start in range(0, len(messages), MESSAGES):
                yield "\n".join(messages[start : start + MESSAGES])
        elif path.suffix == ".gz" and "man" in path.parts:
            with gzip.open(path, "rt", encoding="utf-8", errors="ignore") as file:
                yield ROFF.sub(" ", file.read())


def first_megabytes(texts: list[str], megabytes: float) -> list[str]:
    """Texts of some length until they have so many megabytes of UTF-8, taken evenly from the whole list."""
    texts = [text for text in texts if len(text) >= MIN_CHARS]
    step = max(1.0, sum(len(text.encode()) for text in texts) / 1e6 / megabytes)
    return [texts[int(i * step)] for i in range(int(len(texts) / step))]


def planted(texts: list[str], seed: int) -> list[dict]:
    """Documents with copies of some, equal or edited, in random order."""
    draw = random.Random(seed)
    every = list(texts)
    for text in texts:
        kind = draw.random()
        if kind < COPIED:
            every.append(text)
        elif kind < COPIED + EDITED:
            every.append(edited(text, texts, draw))
    draw.shuffle(every)
    return [{"id": f"{seed}/{number}", "text": text} for number, text in enumerate(every)]


def edited(text: str, texts: list[str], draw: random.Random) -> str:
    """The text with some words, or characters of scripts without spaces, left out or replaced."""
    units = re.split(r"(\s+)", text) if len(text.split()) > len(text) / 15 else list(text)
    others = draw.choice(texts).split()
    for place in range(0, len(units), 2):
        if draw.random() < 1 / ONE_EDIT_IN:
            units[place] = draw.choice(["", draw.choice(others) if others else ""])
    return "".join(units)


def outcomes(documents: list[dict], survivor: dict[str, str]) -> list[tuple[int, int, bool, bool]]:
    """For each document (its pairs at the threshold, those in its cluster, whether removed, rightly)."""
    from scipy import sparse

    number: dict = {}
    grams = [{number.setdefault(gram, len(number)) for gram in ngrams(row["text"])} for row in documents]
    sizes = np.array([len(some) for some in grams])
    columns = [*itertools.chain(*grams)]
    matrix = sparse.csr_matrix((np.ones(len(columns), np.int32), columns, np.cumsum([0, *sizes])))
    shared = (matrix @ matrix.T).tocoo()
    similarity = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    near = (similarity >= THRESHOLD) & (shared.row != shared.col)
    cluster = [survivor.get(row["id"], row["id"]) for row in documents]
    pairs, found = collections.Counter(), collections.Counter()
    for a, b in zip(shared.row[near].tolist(), shared.col[near].tolist()):
        pairs[a] += 1
        found[a] += cluster[a] == cluster[b]
    removed = [row["id"] in survivor for row in documents]
    return [(pairs[i], found[i], removed[i], removed[i] and found[i] > 0) for i in range(len(documents))]


def summary(found: list[tuple[int, int, bool, bool]]) -> tuple[str, ...]:
    pairs, clustered, removed, rightly = (sum(column) for column in zip(*found))
    return (
        f"{len(found):,}",
        f"{pairs // 2:,}",
        f"{clustered / pairs:.4f}",
        f"{removed:,}",
        f"{rightly / removed:.4f}",
    )


def ngrams(text: str) -> set[tuple[str, ...]]:
    words = [word for word in uax29_words(unicodedata.normalize("NFC", text).lower())]
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def uax29_words(text: str) -> Iterator[str]:
    """The words of a text: segments of UAX 29 that hold a letter or digit, cut at apostrophes and points."""
    from uniseg.wordbreak import words

    for segment in words(text):
        for word in INSIDE_WORDS.split(segment):
            if any(character.isalnum() or character == "_" for character in word):
                yield word


def survivors(output: Path) -> dict[str, str]:
    """Removed document -> the document of its cluster that was kept."""
    return {row["id"]: row["survivor"] for path in (output / "removed").glob("*.jsonl") for row in read(path)}


def repeated(rows: list[dict], times: int) -> Iterator[dict]:
    """The rows again and again; a number in front of each word of a repeat makes it unlike the others."""
    for repeat in range(times):
        for row in rows:
            text = re.sub(r"\b(?=[a-z])", chr(ord("a") + repeat % 26), row["text"]) if repeat else row["text"]
            yield {"id": f"{repeat}/{row['id']}", "text": text}


def size(rows: list[dict]) -> int:
    return sum(len(row["text"].encode()) for row in rows)


def read(path: Path) -> list[dict]:
    with open(path, "rb") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[dict]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
