"""The `mt data dedup` command: remove exact and near duplicates.

Exact copies have the same text except for Unicode normalization and runs of white space (`exact_bytes`), or
the same URL with --method url. Near duplicates have a Jaccard similarity of at least `threshold` between
their sets of n-grams, of words (dataprep/words.py) or of characters. MinHash bands (minhash.py) propose
candidate pairs, and `verify` compares their n-grams. Pairs and copies connect documents to clusters, of which
one document is kept, the longest or the first. Every step is a map over shards or over ranges of keys, whose
results lie in parts/:

    sign      text      the exact keys and band keys of each shard, to sign/, or to signatures/ if they are
                        kept (key_index.py)
    exact     keys      copies of the same text, to search/; then, by shard, to copies/
    near      keys      pairs with an equal band key, to search/; sorted in groups first if there are many
    gather    text      the pairs of a shard, and the n-grams of its documents in a pair, to sets/
                        (jaccard.py)
    verify    sets      the pairs at or above the threshold, to clusters/edges/
    clusters  edges     the survivor of each cluster (components.py)
    decide    labels    the documents that each shard loses: why, for which survivor, and how similar
    write     text      the documents kept, and removed/NNNNN.jsonl: id, reason (exact, near or url),
                        survivor, similarity to it

lsh.py has the steps from `exact` to `decide`. `--against` adds the saved signatures of earlier outputs
(signatures.py) to those of this run. Documents of earlier outputs are always kept, and their text is not
read. If such a document had itself been removed, its survivor is named, and the similarity is that to the
removed document. docs/deduplication_cost.md lists the disk space and memory of every step; memory does not
grow with the corpus.

With --method semantic vectors of the texts are compared instead (semantic.py). With --stream documents are
decided one by one (stream.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ...core import manifest
from ...core.arrays import UNFINISHED, open_array, refuse_beyond
from ...core.config import UserError
from ...core.executor import map_shards
from ...core.parsing import Count
from ...core.unicode import normalize
from ...documents.reader import Document, batches
from ...documents.shard_groups import ShardGroup
from .. import stage
from ..stage import Removed, Tallies, Transform
from . import lsh, semantic, signatures, stream
from .config import DedupConfig
from .exact_keys import NO_KEY, document_url_key
from .key_index import Corpus, ShardKeys, load_strings, save_array, save_exact_keys, save_strings
from .minhash import band_keys, exact_texts, minhash_signatures, text_shingles
from .shingles import BATCH_CHARS, COMPILE_FROM, TEXT_RULES


def dedup(config: DedupConfig) -> dict[str, Any]:
    """Removes duplicates; returns the stage's manifest, or with --stream its counts."""
    if config.stream:
        return stream.dedup_stream(config)
    config = dataclasses.replace(config, survivor=config.survivor or "longest")
    if config.method == "semantic":
        return _dedup_semantic(config)
    bands, rows = config.banding()
    facts = {"bands": bands, "band_rows": rows, "ngram": config.ngram, "ngram_unit": config.ngram_unit}
    compared = {} if config.method == "url" else {"text_rules": TEXT_RULES}
    old = signatures.read_old_keys(config.against, config.method, facts, compared)
    run, shards = stage.begin("data dedup", config, facts=compared, more_inputs=config.against)
    if run.finished:
        return run.manifest
    work = run.output / "parts"
    keys_folder = run.output / signatures.FOLDER if config.save_signatures else work / "sign"
    sizes = [s.bytes for s in shards]
    compiled = sum(sizes) >= COMPILE_FROM * config.workers
    sign = functools.partial(
        _sign, config=config, folder=keys_folder, ids=work / "sign", bands=bands, rows=rows, compiled=compiled
    )
    signed = map_shards(
        sign,
        list(enumerate(shards)),
        done=work / "sign",
        **config.where,
        label="data dedup: sign",
        sizes=sizes,
        kinds={"documents": Count, "without_url": Count},
    )
    without_url = sum(s["without_url"] for s in signed)
    if config.method == "url" and without_url == sum(s["documents"] for s in signed) > 0:
        run.abandon()
        raise UserError(
            f"url_key = {config.url_key}: no document has a text under this key; name the key of the URLs"
            " with --url-key"
        )

    new = [ShardKeys(keys_folder / f"{i:05d}", s["documents"]) for i, s in enumerate(signed)]
    corpus = Corpus([*old, *new], "exact_rows")
    found = lsh.find_duplicates(lsh.DedupTasks(config, corpus, len(old), bands, work, sum(sizes)), shards)
    ids = functools.partial(_load_ids, corpus=corpus, num_old=len(old), folder=work / "sign")
    files = []
    if config.save_signatures:
        save_names = functools.partial(
            _save_names,
            decisions=work / "decide",
            ids=ids,
            first=corpus.first[len(old) :],
            folder=keys_folder,
        )
        map_shards(
            save_names,
            list(range(len(shards))),
            done=work / "names",
            **config.where,
            label="data dedup: names",
        )
        files = [manifest.record(path, run.output) for path in sorted(keys_folder.iterdir())]
    counted = {"without_url": without_url} if config.method == "url" else {}
    copy_reason = "url" if config.method == "url" else "exact"
    make = functools.partial(_make_remover, decisions=work / "decide", ids=ids, copy_reason=copy_reason)
    if sum(sizes) <= lsh.ONE_PROCESS_BYTES:
        config = dataclasses.replace(config, workers=1)
    told: dict[str, Any] = {**facts, **compared, **found, **counted}
    return stage.map_documents(run, config, shards, make, more_outputs=files, **told)


def _dedup_semantic(config: DedupConfig) -> dict[str, Any]:
    """Removes documents that say what another one says; returns the stage's manifest."""
    run, shards = stage.begin("data dedup", config, more_inputs=semantic.model_files(config))
    if run.finished:
        return run.manifest
    work = run.output / "parts"
    corpus, facts = semantic.find_semantic(config, work, shards)
    ids = functools.partial(_load_ids, corpus=corpus, num_old=0, folder=work / "sign")
    make = functools.partial(_make_remover, decisions=work / "decide", ids=ids, copy_reason="semantic")
    return stage.map_documents(run, config, shards, make, **facts)


def _sign(
    item: tuple[int, ShardGroup],
    *,
    config: DedupConfig,
    folder: Path,
    ids: Path,
    bands: int,
    rows: int,
    compiled: bool,
) -> dict[str, int]:
    """Writes the ids and keys of one shard and, if signatures are saved, its sketches."""
    index, shard = item
    exact: list[bytes] = []
    chars: list[int] = []
    names: list[str] = []
    keys: list[np.ndarray] = []
    key_rows: list[np.ndarray] = []
    sketches: list[np.ndarray] = []
    for batch in batches(shard.read(lambda reject: None), BATCH_CHARS):
        texts = [normalize("NFC", d.text) for d in batch]
        names += [d.id for d in batch]
        chars += [len(d.text) for d in batch]
        if bands:
            shingles, starts = text_shingles(texts, config.ngram, config.ngram_unit, compiled)
            if config.save_signatures:
                sketches += signatures.batch_sketches(shingles, starts)
            if len(with_words := np.flatnonzero(np.diff(starts) > 0)):
                # texts without words have no shingles, so those with words follow each other
                starts = np.append(starts[with_words], starts[-1])
                minhashes = minhash_signatures(shingles, starts, bands * rows, compiled)
                keys.append(band_keys(minhashes, bands, rows))
                key_rows.append((len(exact) + with_words).astype(np.uint32))
        if config.method == "url":
            exact += [document_url_key(d, config.url_key) for d in batch]
        else:
            exact += map(xxhash.xxh3_128_digest, exact_texts(texts, compiled))

    stem = folder / f"{index:05d}"
    save_exact_keys(stem, exact)
    save_array(Path(f"{stem}.chars.npy"), np.array(chars, np.uint32))
    save_strings(ids / f"{index:05d}", "id", names)
    if bands:
        save_array(Path(f"{stem}.keys.npy"), np.concatenate([np.empty((bands, 0), np.uint64), *keys], axis=1))
        save_array(Path(f"{stem}.rows.npy"), np.concatenate([np.empty(0, np.uint32), *key_rows]))
        if config.save_signatures:
            signatures.save_sketches(stem, sketches)
    return {"documents": len(exact), "without_url": exact.count(NO_KEY)}


def _load_ids(numbers: np.ndarray, *, corpus: Corpus, num_old: int, folder: Path) -> list[str]:
    """The ids of documents; for documents that an earlier run removed, those of their survivors."""
    ids = [""] * len(numbers)
    for part, places, rows in corpus.by_part(numbers):
        stem = corpus.parts[part].stem
        if part < num_old:
            found = load_strings(stem, "name", rows.tolist())
        else:
            found = load_strings(folder / stem.name, "id", rows.tolist())
        for place, name in zip(places.tolist(), found):
            ids[place] = name
    return ids


def _save_names(
    shard: int, *, decisions: Path, ids: Callable[[np.ndarray], list[str]], first: np.ndarray, folder: Path
) -> dict[str, int]:
    """Writes the names of a shard's documents for saved signatures. first: of each shard's documents."""
    names = ids(np.arange(first[shard], first[shard + 1]))
    decided = _open_decisions(decisions, shard)
    refuse_beyond(decided["row"], len(names), decisions / f"{shard:05d}.npy")
    for row, name in zip(decided["row"].tolist(), ids(decided["survivor"])):
        names[row] = name
    save_strings(folder / f"{shard:05d}", "name", names)
    return {}


def _open_decisions(folder: Path, shard: int) -> np.ndarray:
    return open_array(folder / f"{shard:05d}.npy", lsh.DECISION, (None,), remedy=UNFINISHED)


def _make_remover(
    shard_index: int, *, decisions: Path, ids: Callable[[np.ndarray], list[str]], copy_reason: str
) -> tuple[Transform, Tallies]:
    """The transform of one shard's documents. copy_reason: for documents with the exact key of another."""
    decided = _open_decisions(decisions, shard_index)
    survivors = ids(decided["survivor"])
    removed = {}
    for row, near, survivor, similarity in zip(
        decided["row"].tolist(), decided["near"].tolist(), survivors, decided["similarity"].tolist()
    ):
        facts: dict[str, Any] = {"survivor": survivor}
        if copy_reason != "url":  # texts with the same URL are not compared
            facts["similarity"] = round(similarity, 4)
        removed[row] = Removed("near" if near else copy_reason, facts)
    row = -1

    def change(document: Document) -> Document | Removed:
        nonlocal row
        row += 1
        return removed.get(row, document)

    return change, {}
