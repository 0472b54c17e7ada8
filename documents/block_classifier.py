"""The main text of an HTML page by a classifier of its blocks: boosted trees over block_features.py.

`block_classifier.npz` has the trees, which benchmarks/train_main_text.py makes with LightGBM from annotated
pages. A tree asks one feature at each node and goes left if it is at most the threshold. The sum of the
leaves is the logarithm of the odds that a block is main text.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.numba_loops import compile_loop
from ..core.unicode import normalize
from .block_features import features
from .html_blocks import LINE_END, PageBlocks, read_blocks

# To be changed with what this module, html_blocks.py, block_features.py or the trees make of a page.
BLOCK_RULES = "1"
TREES = Path(__file__).with_name("block_classifier.npz")
THRESHOLD = 0.5  # probability of main text from which a block is kept; chosen on the training pages
CELLS = (3, 4)  # <td> and <th> in html_blocks.TAGS


class Trees(NamedTuple):
    """T trees in one table of nodes: tree t begins at node roots[t].

    feature: (M,) int16, of each node. threshold: (M,) float32. children: (M, 2) int32, left and right; a leaf
    has the number -1 - its place in values. values: (L,) float32.
    """

    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    children: np.ndarray
    values: np.ndarray


def main_text(page: str) -> str:
    """The main text of a page: a line for each of its blocks; "" if there is none."""
    blocks = read_blocks(page)
    kept = probabilities(blocks) >= THRESHOLD
    return normalize("NFC", join_blocks(blocks, np.flatnonzero(kept).tolist()).replace("\0", "\ufffd"))


def probabilities(blocks: PageBlocks) -> np.ndarray:
    """(N,) float64: how probable it is that each block is main text."""
    odds: np.ndarray = compile_loop(_sum_of_leaves)(features(blocks), *trees())
    return np.asarray(1 / (1 + np.exp(-odds)))


@functools.cache
def trees() -> Trees:
    with np.load(TREES) as file:
        return Trees(*(file[name] for name in Trees._fields))


def _sum_of_leaves(rows: Any, roots: Any, feature: Any, threshold: Any, children: Any, values: Any) -> Any:
    """(N,) the sum of the leaves that each row reaches."""
    found = np.zeros(len(rows))
    for number in range(len(rows)):
        row = rows[number]
        for root in roots:
            node = root
            while node >= 0:
                node = children[node, 0 if row[feature[node]] <= threshold[node] else 1]
            found[number] += values[-1 - node]
    return found


def join_blocks(blocks: PageBlocks, kept: list[int]) -> str:
    """The texts of some blocks: cells of a row on one line, other blocks on a line each."""
    parts: list[str] = []
    row = -1  # the element around the cell before
    for number in kept:
        element = blocks.element[number]
        around = blocks.parent[element] if blocks.tag[element] in CELLS else -1
        if parts:
            parts.append(" | " if around == row >= 0 else "\n")
        lines = (line.strip() for line in blocks.texts[number].split(LINE_END))
        parts.append("\n".join(line for line in lines if line))
        row = around
    return "".join(parts)
