"""Cleaning and deduplication of documents in memory: `mt.clean` and `mt.dedup`.

Both give every document the verdict that the commands `mt data clean` and `mt data dedup` give it with the
same settings. They are for documents that fit into memory; the commands are for those that do not.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from ..core.config import UserError, build
from ..core.executor import default_workers
from ..core.presets import read_preset
from ..core.progress import notes_as_warnings
from ..documents.in_memory import DocumentLike, as_documents, write_documents
from ..documents.reader import Document
from ..tokenizer.tokenizer import Tokenizer
from .dedup.config import DedupConfig
from .dedup.dedup import dedup as dedup_files
from .filters.clean import CleanConfig
from .filters.offending import drop_facts
from .filters.quality import Drop
from .filters.rules import compile_rules
from .stage import DocumentError, Removed


@dataclasses.dataclass(frozen=True)
class RemovedDocument:
    """A document that was removed, the reason, and facts about it.

    facts: of `mt.clean`, what decided: `rule`, `measure`, `number`, its limit as `at_least` or `at_most`, and
    `parameter`, which sets the limit. Of `mt.dedup`, `survivor` and `similarity`.
    """

    document: Document
    reason: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class KeptDocuments(Sequence[Document]):
    """The documents that were kept, as a sequence: `len`, indices, slices and iteration work.

    Attributes: removed (a RemovedDocument for each removed document, in the order of the input), counts (the
    number of removed documents for each reason).
    """

    def __init__(self, kept: Sequence[Document], removed: Sequence[RemovedDocument]):
        self._kept, self.removed = list(kept), list(removed)
        self.counts = dict(Counter(one.reason for one in removed).most_common())

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        return self._kept[index]

    def __repr__(self) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.items())
        return (
            f"<{len(self):,} documents kept, {len(self.removed):,} removed{f' ({reasons})' * bool(reasons)}>"
        )


def clean(
    documents: Iterable[DocumentLike],
    preset: str | None = None,
    *,
    rules: Sequence[str] | None = None,
    lang: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
) -> KeptDocuments:
    """Repairs and filters documents as `mt data clean` does.

    Args:
        documents: Documents, texts, or mappings with the key `text`. They are not changed; the kept documents
            are new objects with the repaired text.
        preset: named rules: `fineweb`, `gopher`, `prose` ...; the list is in docs/cleaning.md.
        rules: edits and rules in order, each a name and its parameters: `"length min_chars=512"`. They
            replace those of a preset. By default, texts are repaired and empty ones dropped.
        lang: languages of the texts, as ISO codes or `all`. The rules use the thresholds of each language.
        tokenizer: for the rule `tokens`; without one the rule estimates the number of tokens.

    Raises UserError for an unknown preset, rule, parameter or language.
    """
    layers: list[tuple[str, dict[str, Any]]] = [("mt.clean", {"input": "memory", "output": "memory"})]
    if preset is not None:
        layers.append((f"preset {preset}", read_preset(CleanConfig, preset)))
    given = {"rules": rules, "lang": lang or None}
    layers.append(("mt.clean", {name: value for name, value in given.items() if value is not None}))
    config = build(CleanConfig, *layers)
    apply = compile_rules(config.rules, tokenizer, config.lang)

    def judge(document: Document) -> Removed | None:
        try:
            text = apply(document.text, document)
        except DocumentError as error:
            raise UserError(f"document {document.id}: {error}") from None
        if isinstance(text, Drop):
            return Removed(str(text), drop_facts(apply))
        document.text = text
        return None

    return _select((document, judge(document)) for document in as_documents(documents))


def dedup(
    documents: Iterable[DocumentLike],
    *,
    method: Literal["near", "exact", "url", "semantic"] = "near",
    threshold: float = 0.7,
    ngram: int = 5,
    ngram_unit: Literal["word", "char"] = "word",
    survivor: Literal["longest", "first", "farthest", "nearest"] = "longest",
    num_perm: int = 100,
    bands: int | None = None,
    rows: int | None = None,
    missed_weight: float = 0.98,
    verify: bool = True,
    url_key: str = "url",
    min_cosine: float = 0.95,
    num_clusters: int | None = None,
    bert_model: str | None = None,
    workers: int | None = None,
) -> KeptDocuments:
    """Removes exact and near duplicates as `mt data dedup` does; the settings are those of the command.

    Args:
        documents: Documents, texts, or mappings with the key `text`.
        method: `near` removes near and exact duplicates, `exact` copies, `url` documents with the same URL,
            `semantic` those that say the same in other words, as a sentence encoder finds.
        threshold: documents with at least this Jaccard similarity of n-grams are near duplicates.
        ngram, ngram_unit: the number of words, or of characters, in an n-gram.
        survivor: which document of a cluster is kept.
        num_perm, bands, rows, missed_weight: the MinHash signature and its bands, as in
            `mt data dedup --help`.
        verify: compare the n-grams of candidate pairs; if False, every candidate is a duplicate.
        url_key: the field of a document that has its URL, for `url`.
        min_cosine, num_clusters, bert_model: for `semantic`, as in `mt data dedup --help`.
        workers: number of processes; default: one for each processor.

    During the call the texts are in a temporary folder. The facts of a removed document are `survivor`, the
    id of the document that was kept in its place, and `similarity`, how similar the two are.
    """
    settings = {
        "method": method, "threshold": threshold, "ngram": ngram, "ngram_unit": ngram_unit,
        "survivor": survivor, "num_perm": num_perm, "bands": bands, "rows": rows,
        "missed_weight": missed_weight, "verify": verify, "url_key": url_key, "min_cosine": min_cosine,
        "num_clusters": num_clusters, "bert_model": bert_model,
        "workers": default_workers() if workers is None else workers,
    }  # fmt: skip
    given = list(as_documents(documents))
    with tempfile.TemporaryDirectory(prefix="mt_dedup_") as name, notes_as_warnings():
        folder = Path(name)
        files = {"input": str(folder / "in.jsonl"), "output": str(folder / "out")}
        largest = max((len(document.text) for document in given), default=0)
        # a text has at most six bytes for a character in JSON; besides, there are the id and the URL
        limit = max(6 * largest + (1 << 20), DedupConfig.max_record_bytes)
        config = build(DedupConfig, ("mt.dedup", {**settings, **files, "max_record_bytes": limit}))
        if not given:
            return KeptDocuments([], [])
        read = {url_key} if method == "url" else set()  # the fields that the method reads
        # numbers for ids: those of the documents need not differ
        numbered = (
            Document(
                str(number), document.text, {key: document.meta[key] for key in read & set(document.meta)}
            )
            for number, document in enumerate(given)
        )
        write_documents(numbered, files["input"])
        dedup_files(config)
        removed = {}
        for path in sorted(Path(files["output"], "removed").iterdir()):
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                number, reason = int(entry.pop("id")), entry.pop("reason")
                entry["survivor"] = given[int(entry["survivor"])].id
                removed[number] = Removed(reason, entry)
    return _select((document, removed.get(number)) for number, document in enumerate(given))


def _select(judged: Iterable[tuple[Document, Removed | None]]) -> KeptDocuments:
    """judged: each document, and why it is removed, None for one that is kept."""
    kept, removed = [], []
    for document, outcome in judged:
        if outcome is None:
            kept.append(document)
        else:
            removed.append(RemovedDocument(document, outcome.reason, outcome.facts))
    return KeptDocuments(kept, removed)
