"""Trains the trees of `mt data extract --extractor block_classifier` and measures them.

    git clone TRAFILATURA
    python benchmarks/train_main_text.py TRAFILATURA --output documents/block_classifier.npz

TRAFILATURA is a checkout of adbar/trafilatura on GitHub, which has annotated pages. Needs lightgbm and
mt-lm[extract]. Half of the pages, by a hash of the file's name (`is_held_out`), take no part in any choice:
they are what is reported. On the other half trees are trained; the threshold is the one with the highest F in
a cross-validation over three parts of it (--cross-validate), on pages that its trees had not seen.

A block of a training page is main text if it has a string that its annotation wants, and is not if it has one
that must not be there. Such blocks have the weight --annotated. The annotations name few blocks of a page, so
the others are taught by trafilatura: main text is what it finds. Longer blocks have more weight.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from fineweb import is_held_out, read_pages
from main_text import one_line, score_segments

from mt.documents import block_classifier
from mt.documents.block_features import features
from mt.documents.html import main_text
from mt.documents.html_blocks import LINE_END, read_blocks

PARTS = 3
THRESHOLDS = [0.3, 0.4, 0.45, 0.5, 0.55, 0.6]
LEARNING = {
    "objective": "binary",
    "learning_rate": 0.06,
    "num_leaves": 31,
    "min_data_in_leaf": 60,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5,
    "verbose": -1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 1,
    "num_threads": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--output", type=Path, help="file for the trees (default: none, only measure)")
    parser.add_argument("--trees", type=int, default=150)
    parser.add_argument("--annotated", type=float, default=15.0, help="weight of annotated blocks")
    parser.add_argument("--cross-validate", action="store_true")
    arguments = parser.parse_args()
    pages = [page for page in read_pages(arguments.checkout) if not is_held_out(page)]
    for page in pages:
        page["blocks"] = read_blocks(page["html"])
        page["features"] = features(page["blocks"])
        page["labels"], page["weights"] = labels(page, arguments.annotated)
    if arguments.cross_validate:
        cross_validate(pages, arguments.trees)
    if arguments.output:
        np.savez_compressed(arguments.output, **table(fit(pages, arguments.trees))._asdict())
        print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")


def labels(page: dict, annotated: float) -> tuple[list[bool], list[float]]:
    """(whether each block is main text, its weight)."""
    taught = main_text(page["html"]) or ""
    whole, lines = one_line(taught), {one_line(line).removeprefix("- ") for line in taught.split("\n")}
    wanted, unwanted = (list(map(one_line, page[name])) for name in ("with", "without"))
    found = []
    for text in page["blocks"].texts:
        parts = [one_line(line) for line in text.split(LINE_END)]
        joined = " ".join(part for part in parts if part)
        if any(string in joined for string in wanted):
            found.append((True, annotated))
        elif any(string in joined for string in unwanted):
            found.append((False, annotated))
        else:
            right = (
                joined in lines
                or (len(joined) >= 25 and joined in whole)
                or (len(joined) > 60 and any(len(part) > 30 and part in whole for part in parts))
            )
            found.append((right, min(1 + len(joined) / 100, 4)))
    return [label for label, _ in found], [weight for _, weight in found]


def fit(pages: list[dict], num_trees: int):
    import lightgbm

    pages = [page for page in pages if page["labels"]]
    join = lambda name: np.concatenate([page[name] for page in pages])
    data = lightgbm.Dataset(join("features"), join("labels"), weight=join("weights"))
    return lightgbm.train(LEARNING, data, num_trees)


def cross_validate(pages: list[dict], num_trees: int) -> None:
    """Prints precision, recall and F of each threshold, on pages that the trees had not seen."""
    part = lambda page: int(hashlib.md5(page["file"].encode()).hexdigest(), 16) % PARTS
    for number in range(PARTS):
        trees = fit([page for page in pages if part(page) != number], num_trees)
        for page in pages:
            if part(page) == number:
                page["found"] = trees.predict(page["features"]) if page["labels"] else np.zeros(0)
    for threshold in THRESHOLDS:
        texts = [
            block_classifier.join_blocks(page["blocks"], np.flatnonzero(page["found"] >= threshold).tolist())
            for page in pages
        ]
        print(threshold, *(f"{value:.4f}" for value in score_segments(texts, pages)))


def table(booster) -> block_classifier.Trees:
    """The trees of LightGBM in one table of nodes."""
    roots, feature, threshold, children, values = [], [], [], [], []

    def add(node: dict) -> int:
        if "leaf_value" in node:
            values.append(node["leaf_value"])
            return -len(values)
        number = len(feature)
        feature.append(node["split_feature"])
        threshold.append(node["threshold"])
        children.append([0, 0])
        children[number] = [add(node["left_child"]), add(node["right_child"])]
        return number

    for tree in booster.dump_model()["tree_info"]:
        roots.append(add(tree["tree_structure"]))
    return block_classifier.Trees(
        np.array(roots, np.int32),
        np.array(feature, np.int16),
        np.array(threshold, np.float32),
        np.array(children, np.int32),
        np.array(values, np.float32),
    )


if __name__ == "__main__":
    main()
