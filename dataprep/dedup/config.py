"""The configuration of `mt data dedup`, which dedup.py and lsh.py read."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from ...core.config import check, configuration, option
from ...documents.sharding import INPUT_HELP
from ..stage import DocumentStage
from .minhash import choose_bands

# The settings that --stream reads; it refuses the others.
STREAM_SETTINGS = {
    "stream", "index", "input", "output", "survivor", "method", "threshold", "ngram", "ngram_unit",
    "num_perm", "bands", "rows", "missed_weight", "verify", "text_key", "url_key", "on_error",
    "max_record_bytes",
}  # fmt: skip


@configuration()
class KeyComparison(DocumentStage):
    """The settings of stages that compare keys on disk (key_index.py)."""

    range_keys: int = option(
        1 << 23,
        "keys that a task compares, with 60 bytes of memory each; a large corpus is faster with more",
        role="runtime",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check((self.range_keys >= 1, f"range_keys = {self.range_keys} must be at least 1"))


@configuration()
class DedupConfig(KeyComparison):
    """The settings of `mt data dedup`."""

    input: tuple[str, ...] = option((), INPUT_HELP + "; required without --stream", role="input")
    output: str = option(
        "", "directory for the result; required without --stream, which writes its logs there", role="output"
    )
    method: Literal["near", "exact", "url", "semantic"] = option(
        "near",
        "remove near and exact duplicates, exact ones only, documents with the same URL, or documents that a"
        " sentence encoder finds to say the same (SemDeDup)",
    )
    threshold: float = option(0.7, "Jaccard similarity of n-grams from which documents are near duplicates")
    ngram: int = option(5, "words, or characters, in an n-gram")
    ngram_unit: Literal["word", "char"] = option(
        "word", "unit of n-grams; in scripts without spaces between words a character is a word"
    )
    num_perm: int = option(100, "maximum number of MinHash permutations, bands x rows")
    bands: int | None = option(None, "LSH bands of the signature (default: chosen for the threshold)")
    rows: int | None = option(None, "signature values in a band (default: chosen for the threshold)")
    missed_weight: float = option(
        0.98, "weight of false negatives against false positives in the choice of bands and rows"
    )
    verify: bool = option(
        True, "compare the n-grams of candidate pairs; without it every candidate is a duplicate"
    )
    survivor: Literal["longest", "first", "farthest", "nearest"] | None = option(
        None,
        "which document of a cluster to keep; the first one if several are equally long; farthest from or"
        " nearest to the centroid with --method semantic (default: longest, with --stream first)",
    )
    min_cosine: float = option(
        0.95, "--method semantic: cosine of the vectors from which documents are duplicates", added=True
    )
    num_clusters: int | None = option(
        None, "--method semantic: clusters of k-means (default: one for 4,096 documents)", added=True
    )
    bert_model: str | None = option(
        None,
        "--method semantic: directory of a BERT that makes the vectors (default: the installed MiniLM)",
        role="input",
    )
    url_key: str = option("url", "key of the URL in a record, for --method url")
    save_signatures: bool = option(False, "keep the signatures in the output, for a later --against")
    against: tuple[str, ...] = option(
        (), "outputs with saved signatures: remove duplicates of their documents", role="input"
    )
    stream: bool = option(
        False,
        "decide about the JSON lines of standard input one by one, and write those that are kept to standard"
        " output at once",
        added=True,
    )
    index: str | None = option(
        None,
        "with --stream: where its index is kept, redis://HOST[:PORT]/DB (default: in memory)",
        role="runtime",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (0 < self.threshold <= 1, f"threshold = {self.threshold} must be above 0 and at most 1"),
            (self.ngram >= 1, f"ngram = {self.ngram} must be at least 1"),
            (self.num_perm >= 1, f"num_perm = {self.num_perm} must be at least 1"),
            (
                (self.bands is None) == (self.rows is None),
                f"bands = {self.bands} and rows = {self.rows} go together: give both or neither",
            ),
            (
                all(value is None or value >= 1 for value in (self.bands, self.rows)),
                f"bands = {self.bands} and rows = {self.rows} must be at least 1",
            ),
            (0 <= self.missed_weight <= 1, f"missed_weight = {self.missed_weight} must lie between 0 and 1"),
            (
                len(set(self.against)) == len(self.against),
                "against names the same directory twice; name each once",
            ),
        )
        check(*self._semantic_rules(), *(self._stream_rules() if self.stream else self._batch_rules()))

    def _semantic_rules(self) -> list[tuple[bool, str]]:
        if self.method == "semantic":
            return [
                (0 < self.min_cosine < 1, f"min_cosine = {self.min_cosine} must lie between 0 and 1"),
                (
                    self.num_clusters is None or self.num_clusters >= 1,
                    f"num_clusters = {self.num_clusters} must be at least 1",
                ),
                (not self.against, "against has no effect with --method semantic; leave it out"),
                (
                    not self.save_signatures,
                    "save_signatures has no effect with --method semantic; leave it out",
                ),
            ]
        remedy = "has no effect without --method semantic"
        return [
            (self.min_cosine == 0.95, f"min_cosine = {self.min_cosine} {remedy}"),
            (self.num_clusters is None, f"num_clusters = {self.num_clusters} {remedy}"),
            (self.bert_model is None, f"bert_model = {self.bert_model} {remedy}"),
            (self.survivor not in ("farthest", "nearest"), f"survivor = {self.survivor} {remedy}"),
        ]

    def _batch_rules(self) -> list[tuple[bool, str]]:
        fields = {field.name: field.metadata["help"] for field in dataclasses.fields(self)}
        given = {"input": self.input, "output": self.output}
        return [
            *(
                (bool(value), f"{name} must be given (--{name}): {fields[name]}")
                for name, value in given.items()
            ),
            (self.index is None, f"index = {self.index} has no effect without --stream"),
        ]

    def _stream_rules(self) -> list[tuple[bool, str]]:
        bands, rows = self.banding()
        return [
            (
                self.input in ((), ("-",)),
                f"input = {', '.join(self.input)}: a stream reads standard input alone; leave --input out",
            ),
            (self.method != "semantic", "method = semantic has no effect with --stream; leave --stream out"),
            (
                self.survivor != "longest",
                "survivor = longest: a stream keeps the first document of a cluster, since it has written it"
                " before it sees the others; leave --survivor out",
            ),
            (
                self.method != "near" or bands > 1,
                f"bands = {bands} of rows = {rows}: a stream needs at least 2 bands; pass --bands and --rows",
            ),
            (
                self.index is None or re.fullmatch(r"rediss?://[^/?#\s]+/[0-9]+", self.index) is not None,
                f"index = {self.index} must be redis://HOST[:PORT]/DB, or left out for an index in memory",
            ),
            *(
                (
                    getattr(self, field.name) == field.default,
                    f"{field.name} = {getattr(self, field.name)} has no effect with --stream; leave it out",
                )
                for field in dataclasses.fields(self)
                if field.name not in STREAM_SETTINGS
            ),
        ]

    def banding(self) -> tuple[int, int]:
        """(bands, rows) as given or chosen; (0, 0) if near duplicates are not searched."""
        if self.method != "near":
            return 0, 0
        if self.bands is not None and self.rows is not None:
            return self.bands, self.rows
        return choose_bands(self.threshold, self.num_perm, self.missed_weight)
