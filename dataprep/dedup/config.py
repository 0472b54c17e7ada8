"""The configuration of `mt data dedup`, which dedup.py and lsh.py read."""

from __future__ import annotations

from typing import Literal

from ...core.config import check, configuration, option
from ..stage import DocumentStage
from .minhash import choose_bands


@configuration()
class DedupConfig(DocumentStage):
    """The settings of `mt data dedup`."""

    method: Literal["near", "exact", "url"] = option(
        "near", "remove near and exact duplicates, exact ones only, or documents with the same URL"
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
    survivor: Literal["longest", "first"] = option(
        "longest", "which document of a cluster to keep; the first one if several are equally long"
    )
    url_key: str = option("url", "key of the URL in a record, for --method url")
    save_signatures: bool = option(False, "keep the signatures in the output, for a later --against")
    against: tuple[str, ...] = option(
        (), "outputs with saved signatures: remove duplicates of their documents", role="input"
    )
    range_keys: int = option(
        1 << 23,
        "keys that a task compares, with 60 bytes of memory each; a large corpus is faster with more",
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
            (self.range_keys >= 1, f"range_keys = {self.range_keys} must be at least 1"),
            (
                len(set(self.against)) == len(self.against),
                "against names the same directory twice; name each once",
            ),
        )

    def banding(self) -> tuple[int, int]:
        """(bands, rows) as given or chosen; (0, 0) if near duplicates are not searched."""
        if self.method != "near":
            return 0, 0
        if self.bands is not None and self.rows is not None:
            return self.bands, self.rows
        return choose_bands(self.threshold, self.num_perm, self.missed_weight)
