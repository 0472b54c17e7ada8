"""signatures -> bands -> verified pairs -> clusters -> survivors: remove exact and near duplicates.

Exact copies have the same text but for whitespace, or the same URL where that is asked for. Near copies have a Jaccard
similarity of n-grams, of words or of characters, of at least `threshold`: MinHash bands (minhash.py) propose pairs,
`verify` compares their n-grams themselves. Pairs and copies join documents into clusters; one of each survives, the
longest or the first. Three passes over the text:

    sign     each shard's exact keys and band keys, sorted, to parts/sign/NNNNN.*.npy (or signatures/, to stay)
    gather   ids and n-gram hashes of the documents that some key joins, to parts/gather/NNNNN.*
    write    survivors and removed/NNNNN.jsonl: id, reason (exact, near or url), survivor, similarity to it

Between them this process alone looks for equal keys, a range of keys at a time (keys.py). `--against` puts the saved
signatures of old outputs (saved.py) before those of this run: old documents survive, and nobody reads their text; where
an old one had been removed itself, its survivor is named, and the similarity is that to the one removed. On
disk a document takes 24 + 12 x bands bytes, a joined one 8 bytes a word more; in memory about 50 bytes for each joined
document and 16 for each pair, and 20 x range_keys bytes for the range at hand, whatever the corpus.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import string
import urllib.parse
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from .. import documents, manifest
from ..config import UserError, check, option
from ..documents import Document, Shard
from ..executor import map_shards
from . import saved, stage
from .keys import Corpus, Part, save_array, save_bands, save_exact
from .minhash import band_keys, batch_characters, batch_words, choose_bands, jaccard, shingle, signatures
from .stage import DocumentStage, Removed

BATCH_CHARS = 500_000  # texts signed together: their arrays fit the second-level cache
PAIR_BLOCK = 20_000  # pairs verified by a worker at a time
NO_KEY = bytes(16)  # of a document that has no URL
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupConfig(DocumentStage):
    """What counts as a duplicate, and which one stays."""

    method: Literal["near", "exact", "url"] = option("near", "near duplicates as well as exact ones, exact ones only, or documents of one URL")
    threshold: float = option(0.7, "Jaccard similarity of n-grams from which two documents are near duplicates")
    ngram: int = option(5, "words, or characters, in an n-gram")
    ngram_unit: Literal["word", "char"] = option("word", "what n-grams are made of; characters suit languages without spaces")
    num_perm: int = option(100, "MinHash permutations to choose bands and rows within")
    bands: int | None = option(None, "bands of the signature (default: chosen for the threshold)")
    rows: int | None = option(None, "signature values in a band (default: chosen for the threshold)")
    missed_weight: float = option(0.98, "weight of missed pairs against false ones when bands and rows are chosen")
    verify: bool = option(True, "compare the n-grams of proposed pairs; without it every proposed pair is a duplicate")
    survivor: Literal["longest", "first"] = option("longest", "which document of a cluster stays; of equally long ones the first")
    url_key: str = option("url", "the record's key that holds the URL, for --method url")
    save_signatures: bool = option(False, "keep the signatures in the output, for a later --against")
    against: tuple[str, ...] = option((), "outputs with saved signatures: what they hold is removed here", role="input")
    range_keys: int = option(1 << 23, "keys compared at a time, 20 bytes of memory each; more are quicker on a large corpus", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(
            (0 < self.threshold <= 1, f"threshold = {self.threshold} must lie above 0 and at most at 1"),
            (self.ngram >= 1, f"ngram = {self.ngram} must be at least 1"),
            (self.num_perm >= 1, f"num_perm = {self.num_perm} must be at least 1"),
            ((self.bands is None) == (self.rows is None), f"bands = {self.bands} and rows = {self.rows} go together: give both or neither"),
            ((self.bands or 1) >= 1 and (self.rows or 1) >= 1, f"bands = {self.bands} and rows = {self.rows} must be at least 1"),
            (0 <= self.missed_weight <= 1, f"missed_weight = {self.missed_weight} must lie between 0 and 1"),
            (self.range_keys >= 1, f"range_keys = {self.range_keys} must be at least 1"),
            (len(set(self.against)) == len(self.against), "against names the same place twice; name each once"),
        )


def dedup(config: DedupConfig) -> dict:
    """Removes duplicates; returns the stage's manifest."""
    bands, rows = banding(config)
    facts = {"bands": bands, "band_rows": rows, "ngram": config.ngram, "ngram_unit": config.ngram_unit}
    old = saved.read_parts(config.against, config.method, facts)
    run, shards = stage.begin("data dedup", config, more_inputs=config.against)
    if run.finished:
        return run.manifest
    work = run.output / "parts"
    keys = run.output / saved.FOLDER if config.save_signatures else work / "sign"
    sizes = [s.bytes for s in shards]
    sign = functools.partial(_sign, config=config, folder=keys, ids=work / "sign", bands=bands, rows=rows)
    signed = map_shards(sign, list(enumerate(shards)), done=work / "sign", **config.where, label="data dedup: sign", sizes=sizes)
    without_url = sum(s["without_url"] for s in signed)
    if config.method == "url" and without_url == sum(s["documents"] for s in signed) > 0:
        run.abandon()
        raise UserError(f"url_key = {config.url_key}: no document has a text under this key; name the key of the URLs with --url-key")
    corpus = Corpus([*old, *(Part(keys / f"{i:05d}", s["documents"]) for i, s in enumerate(signed))], config.range_keys)
    new = int(corpus.first[len(old)])  # the first document of this run

    copies = np.concatenate(list(corpus.exact_pairs()))
    copies = copies[np.argsort(copies[:, 1], kind="stable")]
    pairs = corpus.near_pairs(copies[:, 1], bands)
    copies, pairs = (found[found[:, 1] >= new] for found in (copies, pairs))  # what is old has been decided
    joined = np.unique(np.concatenate((copies.ravel(), pairs.ravel())))
    gather = functools.partial(_gather, folder=work / "gather", config=config)
    in_shard = lambda numbers, shard: corpus.rows_in_part(numbers, len(old) + shard)
    items = [(i, s, in_shard(joined, i), in_shard(np.unique(pairs), i)) for i, s in enumerate(shards)]
    map_shards(gather, items, done=work / "gather", **config.where, label="data dedup: gather", sizes=sizes)

    similar = _Similarity(work / "gather", corpus, len(old), config)
    candidates = len(pairs)
    if config.verify:
        pairs = pairs[similar("verify", pairs) >= config.threshold]
    decisions = _decide(config, corpus, new, joined, copies, pairs, similar)
    survivors = _write_decisions(work, corpus, len(old), joined, decisions)
    files = saved.write_names(keys, work / "sign", survivors) if config.save_signatures else []
    counted = {"without_url": without_url} if config.method == "url" else {}
    clusters = len(np.unique(decisions["survivor"]))
    return stage.map_documents(
        run, config, shards, functools.partial(_remover, str(work / "decide")), more_outputs=files,
        **facts, clusters=clusters, candidate_pairs=candidates, near_pairs=len(pairs), **counted,
    )


def banding(config: DedupConfig) -> tuple[int, int]:
    """(bands, rows) as given or chosen; (0, 0) where near duplicates are not looked for."""
    if config.method != "near":
        return 0, 0
    return (config.bands, config.rows) if config.bands else choose_bands(config.threshold, config.num_perm, config.missed_weight)


def exact_key(text: str) -> bytes:
    """128 bits of the text without its whitespace."""
    bare = text.encode().translate(None, string.whitespace.encode()) if text.isascii() else "".join(text.split()).encode()
    return xxhash.xxh3_128_digest(bare)


def url_key(url: str) -> bytes:
    """128 bits of a URL without what names the same page: scheme, default port, fragment, a slash at the end, case of the host."""
    url = url.strip()
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:  # not a URL: only the same characters are the same
        return xxhash.xxh3_128_digest(url.encode())
    if parts.netloc:
        place = f":{port}" if port not in (None, DEFAULT_PORTS.get(parts.scheme)) else ""
        url = f"{parts.hostname or ''}{place}{parts.path.rstrip('/')}" + (f"?{parts.query}" if parts.query else "")
    return xxhash.xxh3_128_digest(url.encode())


def _key(document: Document, config: DedupConfig) -> bytes:
    """What equal documents have in common."""
    if config.method != "url":
        return exact_key(document.text)
    url = document.id if config.url_key == "id" else document.meta.get(config.url_key)
    return url_key(url) if isinstance(url, str) and url.strip() else NO_KEY


def _shingles(texts: list[str], config: DedupConfig) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of texts, as of minhash.shingle."""
    return shingle(*(batch_characters if config.ngram_unit == "char" else batch_words)(texts), config.ngram)


def _sign(item: tuple[int, Shard], *, config: DedupConfig, folder: Path, ids: Path, bands: int, rows: int) -> dict:
    """Writes one shard's keys, and what else its signatures hold where they are saved."""
    index, shard = item
    exact, chars, keys, key_rows, sketches, names = [], [], [], [], [], []

    def sign(texts: list[str], first_row: int) -> None:
        shingles, starts = _shingles(texts, config)
        with_words = np.flatnonzero(np.diff(starts) > 0)
        if config.save_signatures:
            sketches.extend(saved.batch_sketches(shingles, starts))
        if len(with_words):
            starts = np.append(starts[with_words], starts[-1])  # texts without words have no shingles in between
            keys.append(band_keys(signatures(shingles, starts, bands * rows), bands, rows))
            key_rows.append((first_row + with_words).astype(np.uint32))

    batch, size = [], 0
    for document in documents.read(shard, lambda reject: None):
        exact.append(_key(document, config))
        chars.append(len(document.text))
        if config.save_signatures:
            names.append(document.id)
        if bands:
            batch.append(document.text)
            size += len(document.text)
        if size >= BATCH_CHARS:
            sign(batch, len(exact) - len(batch))
            batch, size = [], 0
    if batch:
        sign(batch, len(exact) - len(batch))

    stem = folder / f"{index:05d}"
    save_exact(stem, exact)
    save_array(Path(f"{stem}.chars.npy"), np.array(chars, np.uint32))
    if bands:
        save_bands(stem, np.concatenate([np.empty((bands, 0), np.uint64), *keys], axis=1), np.concatenate([np.empty(0, np.uint32), *key_rows]))
    if config.save_signatures:
        manifest.write_json(ids / f"{index:05d}.ids.json", names)
        if bands:
            saved.save_sketches(stem, sketches)
    return {"documents": len(exact), "without_url": exact.count(NO_KEY)}


def _gather(item, *, folder: Path, config: DedupConfig) -> dict:
    """Writes ids of the joined documents of a shard, and the sorted n-gram hashes of those that a band joins."""
    index, shard, joined, compared = item
    wanted, sets = dict.fromkeys(joined.tolist()), set(compared.tolist())
    hashes, ends = [np.empty(0, np.uint64)], [0]
    batch: list[str] = []
    size = 0

    def flush() -> None:
        shingles, first = _shingles(batch, config)
        for start, end in itertools.pairwise(first):
            hashes.append(np.unique(shingles[start:end]))
            ends.append(ends[-1] + len(hashes[-1]))
        batch.clear()

    for row, document in enumerate(documents.read(shard, lambda reject: None) if wanted else ()):
        if row in wanted:
            wanted[row] = document.id
            if row in sets:
                batch.append(document.text)
                size += len(document.text)
        if size >= BATCH_CHARS:
            flush()
            size = 0
    flush()
    save_array(folder / f"{index:05d}.hashes.npy", np.concatenate(hashes))
    save_array(folder / f"{index:05d}.ends.npy", np.array(ends, np.int64))
    save_array(folder / f"{index:05d}.compared.npy", compared)
    manifest.write_json(folder / f"{index:05d}.ids.json", list(wanted.values()))
    return {}


class _Similarity:
    """Jaccard similarities of pairs of documents: of the gathered n-grams, or of sketches where one of them is old."""

    def __init__(self, folder: Path, corpus: Corpus, num_old: int, config: DedupConfig):
        self.folder, self.corpus, self.num_old, self.config = folder, corpus, num_old, config

    def __call__(self, name: str, pairs: np.ndarray) -> np.ndarray:
        """float64 (len(pairs),); pairs: int64 (N, 2) document numbers."""
        compare = functools.partial(_compare, folder=self.folder, first=self.corpus.first, old=self.corpus.parts[: self.num_old])
        blocks = [pairs[i : i + PAIR_BLOCK] for i in range(0, len(pairs), PAIR_BLOCK)]
        results = map_shards(compare, blocks, done=self.folder / name, **self.config.where, label=f"data dedup: {name}", unit="blocks")
        return np.array([value for r in results for value in r["similarity"]], np.float64)


def _compare(pairs: np.ndarray, *, folder: Path, first: np.ndarray, old: list[Part]) -> dict:
    load = functools.cache(lambda shard, name: np.load(folder / f"{shard:05d}.{name}.npy", mmap_mode="r"))
    old_sketches = functools.cache(lambda part: saved.sketches_of(old[part]))
    new = first[len(old)]
    part_of = lambda number: int(np.searchsorted(first, number, side="right")) - 1

    @functools.lru_cache(maxsize=4096)
    def hashes(number: int) -> np.ndarray:
        part = part_of(number)
        shard = part - len(old)
        place = int(np.searchsorted(load(shard, "compared"), number - first[part]))
        start, end = load(shard, "ends")[place : place + 2]
        return np.asarray(load(shard, "hashes")[start:end])

    @functools.lru_cache(maxsize=4096)
    def sketch(number: int) -> np.ndarray:
        part = part_of(number)
        return old_sketches(part)(number - first[part]) if number < new else saved.sketch(hashes(number))

    similar = lambda a, b: jaccard(hashes(a), hashes(b)) if min(a, b) >= new else saved.sketch_jaccard(sketch(a), sketch(b))
    return {"similarity": [similar(a, b) for a, b in pairs.tolist()]}


def _decide(config: DedupConfig, corpus: Corpus, new: int, joined, copies, pairs, similar: _Similarity) -> dict[str, np.ndarray]:
    """What is removed: arrays `removed`, `survivor` (document numbers, by removed), `reason`, `similarity`."""
    a, b = (np.searchsorted(joined, np.concatenate((copies[:, side], pairs[:, side]))) for side in (0, 1))
    cluster = components(len(joined), a, b)
    length = corpus.chars(joined).astype(np.int64) if config.survivor == "longest" else np.zeros(len(joined), np.int64)
    order = np.lexsort((joined, -length, joined >= new, cluster))  # the survivor of each cluster stands first
    best = np.empty(len(joined), np.int64)
    best[cluster[order][::-1]] = order[::-1]
    survivor = joined[best[cluster]]
    gone = (survivor != joined) & (joined >= new)
    removed, survivor = joined[gone], survivor[gone]

    # A copy has the n-grams of the first document with its text, which stood for it when pairs were compared.
    def leader(numbers):
        place = np.minimum(np.searchsorted(copies[:, 1], numbers), max(len(copies) - 1, 0))
        return np.where(copies[place, 1] == numbers, copies[place, 0], numbers) if len(copies) else numbers

    original, kept = leader(removed), leader(survivor)
    exact = original == kept
    similarity = np.ones(len(removed))
    if len(near := np.flatnonzero(~exact)):
        similarity[near] = similar("survivors", np.stack((original[near], kept[near]), axis=1))
    reason = np.where(exact, "url" if config.method == "url" else "exact", "near")
    return {"removed": removed, "survivor": survivor, "reason": reason, "similarity": similarity}


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The least member of the connected component of each of `count` nodes; a, b: the ends of the edges.

    Union-find without a loop over edges: roots hook onto the least root across an edge, then every path is halved
    until all nodes point at their root; about log(count) rounds.
    """
    parent = np.arange(count)
    while True:
        roots = np.minimum(parent[a], parent[b])
        before = parent.copy()
        np.minimum.at(parent, parent[a], roots)
        np.minimum.at(parent, parent[b], roots)
        while not np.array_equal(parent, jumped := parent[parent]):
            parent = jumped
        if np.array_equal(parent, before):
            return parent


def _write_decisions(work: Path, corpus: Corpus, num_old: int, joined: np.ndarray, decisions: dict[str, np.ndarray]) -> list[dict[int, str]]:
    """decide/NNNNN.json for every shard: {row: [reason, facts]}; returns {row: survivor's id} of every shard."""
    id_of = _ids(work / "gather", corpus, num_old, joined, np.unique(decisions["survivor"]))
    survivors = []
    for part in range(num_old, len(corpus.parts)):
        chosen = range(*np.searchsorted(decisions["removed"], corpus.first[part : part + 2]))
        rows, survivors_of = {}, {}
        for i in chosen:
            row, reason = int(decisions["removed"][i] - corpus.first[part]), str(decisions["reason"][i])
            survivors_of[row] = id_of[int(decisions["survivor"][i])]
            # Nobody compared the texts behind one URL.
            rows[row] = [reason, {"survivor": survivors_of[row]} | ({} if reason == "url" else {"similarity": round(float(decisions["similarity"][i]), 4)})]
        manifest.write_json(work / "decide" / f"{part - num_old:05d}.json", rows)
        survivors.append(survivors_of)
    return survivors


def _ids(folder: Path, corpus: Corpus, num_old: int, joined: np.ndarray, numbers: np.ndarray) -> dict[int, str]:
    """Ids of sorted document numbers; those of this run are among the gathered ones, `joined`."""
    found: dict[int, str] = {}
    for part, where in enumerate(corpus.parts):
        rows = corpus.rows_in_part(numbers, part)
        if len(rows):
            ids = manifest.read_json(f"{where.stem}.names.json" if part < num_old else folder / f"{part - num_old:05d}.ids.json")
            places = rows if part < num_old else np.searchsorted(corpus.rows_in_part(joined, part), rows)
            found |= {int(row + corpus.first[part]): ids[place] for row, place in zip(rows, places)}
    return found


def _remover(folder: str, shard_index: int):
    decisions = {int(row): d for row, d in json.loads(Path(folder, f"{shard_index:05d}.json").read_text(encoding="utf-8")).items()}
    row = -1

    def change(document: Document) -> Document | Removed:
        nonlocal row
        row += 1
        if row not in decisions:
            return document
        return Removed(*decisions[row])

    return change
