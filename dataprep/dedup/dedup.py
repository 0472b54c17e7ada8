"""signatures -> bands -> verified pairs -> clusters -> survivors: remove exact and near duplicates.

Exact copies have the same text but for whitespace, or the same URL where that is asked for. Near copies have
a Jaccard similarity of n-grams, of words or of characters, of at least `threshold`: MinHash bands
(minhash.py) propose pairs, `verify` compares their n-grams themselves. Pairs and copies join documents into
clusters; one of each survives, the longest or the first. Everything is done by tasks over shards or over
ranges of keys, whose results lie in parts/:

    sign      text      each shard's exact keys and band keys, to sign/ (or signatures/, to stay; keys.py)
    exact     keys      copies of one text, to search/; then by shard to copies/
    near      keys      pairs with a band in common, to search/ (sorted in groups first, where there are many
        keys)
    gather    text      n-grams of the documents in a pair, to sets/ (similarity.py), and the shard's pairs
    verify    sets      pairs at or above the threshold, to clusters/edges/
    clusters  edges     the survivor of every cluster (clusters.py)
    decide    labels    what each shard loses, why, to whom, and how similar the two are
    write     text      survivors and removed/NNNNN.jsonl: id, reason (exact, near or url), survivor,
        similarity to it

`--against` puts the saved signatures of old outputs (saved.py) before those of this run: old documents
survive, and nobody reads their text; where an old one had been removed itself, its survivor is named, and the
similarity is that to the one removed. docs/scale.md tells the bytes on disk and in memory of every step;
memory does not grow with the corpus.
"""

from __future__ import annotations

import dataclasses
import functools
import urllib.parse
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from ...core import manifest
from ...core.config import UserError, check, configuration, option
from ...core.executor import map_shards
from ...documents import reader
from ...documents.reader import Document, Shard
from .. import stage
from ..stage import DocumentStage, Removed
from . import lsh, signatures
from .key_index import Corpus, Part, load_strings, save_array, save_exact, save_strings
from .minhash import band_keys, choose_bands, minhash_signatures, text_shingles
from .shingles import COMPILE_FROM, bare_bytes, batches

NO_KEY = bytes(16)  # of a document that has no URL
DEFAULT_PORTS = {"http": 80, "https": 443}


@configuration()
class DedupConfig(DocumentStage):
    """What counts as a duplicate, and which one stays."""

    method: Literal["near", "exact", "url"] = option(
        "near", "near duplicates as well as exact ones, exact ones only, or documents of one URL"
    )
    threshold: float = option(
        0.7, "Jaccard similarity of n-grams from which two documents are near duplicates"
    )
    ngram: int = option(5, "words, or characters, in an n-gram")
    ngram_unit: Literal["word", "char"] = option(
        "word", "what n-grams are made of; characters suit languages without spaces"
    )
    num_perm: int = option(100, "MinHash permutations to choose bands and rows within")
    bands: int | None = option(None, "bands of the signature (default: chosen for the threshold)")
    rows: int | None = option(None, "signature values in a band (default: chosen for the threshold)")
    missed_weight: float = option(
        0.98, "weight of missed pairs against false ones when bands and rows are chosen"
    )
    verify: bool = option(
        True, "compare the n-grams of proposed pairs; without it every proposed pair is a duplicate"
    )
    survivor: Literal["longest", "first"] = option(
        "longest", "which document of a cluster stays; of equally long ones the first"
    )
    url_key: str = option("url", "the record's key that holds the URL, for --method url")
    save_signatures: bool = option(False, "keep the signatures in the output, for a later --against")
    against: tuple[str, ...] = option(
        (), "outputs with saved signatures: what they hold is removed here", role="input"
    )
    range_keys: int = option(
        1 << 23,
        "keys that a task compares at a time, 60 bytes of memory each; more are quicker on a large corpus",
        role="runtime",
    )

    def __post_init__(self):
        super().__post_init__()
        check(
            (0 < self.threshold <= 1, f"threshold = {self.threshold} must lie above 0 and at most at 1"),
            (self.ngram >= 1, f"ngram = {self.ngram} must be at least 1"),
            (self.num_perm >= 1, f"num_perm = {self.num_perm} must be at least 1"),
            (
                (self.bands is None) == (self.rows is None),
                f"bands = {self.bands} and rows = {self.rows} go together: give both or neither",
            ),
            (
                (self.bands or 1) >= 1 and (self.rows or 1) >= 1,
                f"bands = {self.bands} and rows = {self.rows} must be at least 1",
            ),
            (0 <= self.missed_weight <= 1, f"missed_weight = {self.missed_weight} must lie between 0 and 1"),
            (self.range_keys >= 1, f"range_keys = {self.range_keys} must be at least 1"),
            (
                len(set(self.against)) == len(self.against),
                "against names the same place twice; name each once",
            ),
        )


def dedup(config: DedupConfig) -> dict:
    """Removes duplicates; returns the stage's manifest."""
    bands, rows = banding(config)
    facts = {"bands": bands, "band_rows": rows, "ngram": config.ngram, "ngram_unit": config.ngram_unit}
    old = signatures.read_parts(config.against, config.method, facts)
    run, shards = stage.begin("data dedup", config, more_inputs=config.against)
    if run.finished:
        return run.manifest
    work = run.output / "parts"
    keys = run.output / signatures.FOLDER if config.save_signatures else work / "sign"
    sizes = [s.bytes for s in shards]
    compiled = sum(sizes) >= COMPILE_FROM * config.workers
    sign = functools.partial(
        _sign, config=config, folder=keys, ids=work / "sign", bands=bands, rows=rows, compiled=compiled
    )
    signed = map_shards(
        sign,
        list(enumerate(shards)),
        done=work / "sign",
        **config.where,
        label="data dedup: sign",
        sizes=sizes,
    )
    without_url = sum(s["without_url"] for s in signed)
    if config.method == "url" and without_url == sum(s["documents"] for s in signed) > 0:
        run.abandon()
        raise UserError(
            f"url_key = {config.url_key}: no document has a text under this key; name the key of the URLs"
            " with --url-key"
        )

    corpus = Corpus([*old, *(Part(keys / f"{i:05d}", s["documents"]) for i, s in enumerate(signed))])
    found = lsh.decide(lsh.Search(config, corpus, len(old), bands, work, sum(sizes)), shards)
    ids = functools.partial(_ids, corpus=corpus, num_old=len(old), folder=work / "sign")
    if config.save_signatures:
        name = functools.partial(_name, decisions=work / "decide", ids=ids, folder=keys)
        map_shards(
            name, list(range(len(shards))), done=work / "names", **config.where, label="data dedup: names"
        )
        files = [manifest.record(path, run.output) for path in sorted(keys.iterdir())]
    else:
        files = []
    counted = {"without_url": without_url} if config.method == "url" else {}
    remover = functools.partial(
        _remover, decisions=work / "decide", ids=ids, same="url" if config.method == "url" else "exact"
    )
    if sum(sizes) <= lsh.FEW_BYTES:
        config = dataclasses.replace(config, workers=1)
    return stage.map_documents(run, config, shards, remover, more_outputs=files, **facts, **found, **counted)


def banding(config: DedupConfig) -> tuple[int, int]:
    """(bands, rows) as given or chosen; (0, 0) where near duplicates are not looked for."""
    if config.method != "near":
        return 0, 0
    return (
        (config.bands, config.rows)
        if config.bands
        else choose_bands(config.threshold, config.num_perm, config.missed_weight)
    )


def exact_key(text: str) -> bytes:
    """128 bits of the text without its whitespace."""
    return xxhash.xxh3_128_digest(bare_bytes(text))


def url_key(url: str) -> bytes:
    """128 bits of a URL without what names the same page: scheme, default port, fragment, a slash at the end,
    case of the host.
    """
    url = url.strip()
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:  # not a URL: only the same characters are the same
        return xxhash.xxh3_128_digest(url.encode())
    if parts.netloc:
        place = f":{port}" if port not in (None, DEFAULT_PORTS.get(parts.scheme)) else ""
        url = f"{parts.hostname or ''}{place}{parts.path.rstrip('/')}" + (
            f"?{parts.query}" if parts.query else ""
        )
    return xxhash.xxh3_128_digest(url.encode())


def _sign(
    item: tuple[int, Shard],
    *,
    config: DedupConfig,
    folder: Path,
    ids: Path,
    bands: int,
    rows: int,
    compiled: bool,
) -> dict:
    """Writes one shard's ids and keys, and what else its signatures hold where they are saved."""
    index, shard = item
    exact, chars, names, keys, key_rows, sketches = [], [], [], [], [], []
    for batch in batches(reader.read(shard, lambda reject: None)):
        texts = [d.text for d in batch]
        names += [d.id for d in batch]
        chars += map(len, texts)
        if bands:
            shingles, starts, bare = text_shingles(texts, config.ngram, config.ngram_unit, compiled)
            if config.save_signatures:
                sketches += signatures.batch_sketches(shingles, starts)
            if len(with_words := np.flatnonzero(np.diff(starts) > 0)):
                # texts without words have no shingles in between
                starts = np.append(starts[with_words], starts[-1])
                keys.append(
                    band_keys(minhash_signatures(shingles, starts, bands * rows, compiled), bands, rows)
                )
                key_rows.append((len(exact) + with_words).astype(np.uint32))
        else:
            bare = [None] * len(texts)
        exact += (
            [_url_key_of(d, config) for d in batch]
            if config.method == "url"
            else [exact_key(t) if b is None else xxhash.xxh3_128_digest(b) for t, b in zip(texts, bare)]
        )

    stem = folder / f"{index:05d}"
    save_exact(stem, exact)
    save_array(Path(f"{stem}.chars.npy"), np.array(chars, np.uint32))
    save_strings(ids / f"{index:05d}", "id", names)
    if bands:
        save_array(Path(f"{stem}.keys.npy"), np.concatenate([np.empty((bands, 0), np.uint64), *keys], axis=1))
        save_array(Path(f"{stem}.rows.npy"), np.concatenate([np.empty(0, np.uint32), *key_rows]))
        if config.save_signatures:
            signatures.save_sketches(stem, sketches)
    return {"documents": len(exact), "without_url": exact.count(NO_KEY)}


def _url_key_of(document: Document, config: DedupConfig) -> bytes:
    url = document.id if config.url_key == "id" else document.meta.get(config.url_key)
    return url_key(url) if isinstance(url, str) and url.strip() else NO_KEY


def _ids(numbers: np.ndarray, *, corpus: Corpus, num_old: int, folder: Path) -> list[str]:
    """The ids of documents; of old ones that had been removed, those of their survivors."""
    found = [""] * len(numbers)
    for part, places, rows in corpus.by_part(numbers):
        stem = corpus.parts[part].stem
        for place, name in zip(
            places.tolist(),
            load_strings(*((stem, "name") if part < num_old else (folder / stem.name, "id")), rows.tolist()),
        ):
            found[place] = name
    return found


def _name(shard: int, *, decisions: Path, ids, folder: Path) -> dict:
    """Writes the names of a shard's documents, which saved signatures hold."""
    corpus, num_old = ids.keywords["corpus"], ids.keywords["num_old"]
    names = ids(np.arange(*corpus.first[num_old + shard : num_old + shard + 2]))
    decided = np.load(decisions / f"{shard:05d}.npy")
    for row, name in zip(decided["row"].tolist(), ids(decided["survivor"])):
        names[row] = name
    save_strings(folder / f"{shard:05d}", "name", names)
    return {}


def _remover(shard_index: int, *, decisions: Path, ids, same: str):
    """The change of one shard's documents. same: the reason of those with one key."""
    decided = np.load(decisions / f"{shard_index:05d}.npy")
    survivors = ids(decided["survivor"])
    removed = {}
    for row, near, survivor, similarity in zip(
        decided["row"].tolist(), decided["near"].tolist(), survivors, decided["similarity"].tolist()
    ):
        # Nobody compared the texts behind one URL.
        facts = {"survivor": survivor} | ({} if same == "url" else {"similarity": round(similarity, 4)})
        removed[row] = Removed("near" if near else same, facts)
    row = -1

    def change(document: Document) -> Document | Removed:
        nonlocal row
        row += 1
        return removed.get(row, document)

    return change
