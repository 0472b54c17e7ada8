"""Numbers that describe each block of a page, for block_classifier.py: text, elements, neighbours.

Only the markup and the form of the text count: no word of any language is known, so that the same features
serve all languages. Loops over characters, elements and blocks are compiled.
"""

from __future__ import annotations

import collections
import functools
import unicodedata
from typing import Any

import numpy as np

from ..core.numba_loops import compile_loop
from .html_blocks import NUM_CLASSES, NUM_CONTEXTS, PageBlocks

SPACE, UPPER, DIGIT, COMMA, END, MARK, LETTER = (1 << bit for bit in range(7))
ANCESTORS, NEIGHBOURS = 4, (-3, -2, -1, 1, 2, 3)
TEXT_FEATURES, ANCESTOR_FEATURES, PAGE_FEATURES, NEIGHBOUR_FEATURES = 16, 6, 16, 6
NUM_FEATURES = (
    TEXT_FEATURES
    + ANCESTORS * ANCESTOR_FEATURES
    + PAGE_FEATURES
    + NUM_CONTEXTS
    + 2 * NUM_CLASSES
    + 1
    + len(NEIGHBOURS) * NEIGHBOUR_FEATURES
)


def features(blocks: PageBlocks) -> np.ndarray:
    """(N, NUM_FEATURES) float32: a row for each block."""
    count = len(blocks.texts)
    found = np.zeros((count, NUM_FEATURES), np.float32)
    if not count:
        return found
    codes = np.frombuffer("".join(blocks.texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter(map(len, blocks.texts), np.int64, count)
    equal = collections.Counter(blocks.texts)
    numbers = np.array([blocks.element, blocks.link_chars, blocks.bold_chars, blocks.links], np.int64)
    elements = np.array(
        [blocks.parent, blocks.tag, blocks.context, blocks.classes, blocks.own_classes, blocks.depth],
        np.int64,
    )
    repeats = np.fromiter((equal[text] for text in blocks.texts), np.int64, count)
    compile_loop(_text_features)(codes, _classes_of_characters(), lengths, numbers, found)
    scores = compile_loop(_scores)(lengths, found)
    sums, tree = compile_loop(_sum_elements)(lengths, numbers, elements, scores)
    compile_loop(_describe)(lengths, numbers, elements, scores, sums, tree, repeats, found)
    return found


@functools.cache
def _classes_of_characters() -> np.ndarray:
    """(65536,) uint8: SPACE | UPPER ... of each character; those above count as 65535."""
    found = np.zeros(1 << 16, np.uint8)
    for code in range(1 << 16):
        char = chr(code)
        category = unicodedata.category(char)
        found[code] = (
            SPACE * (char.isspace() or char == "\x02")
            | UPPER * (category == "Lu")
            | DIGIT * (category == "Nd")
            | COMMA * (char in ",،、，")
            | END * (char in ".!?。！？…।۔؟")
            | MARK * (char in "|»›©•→")
            | LETTER * (category[0] == "L")
        )
    return found


def _text_features(codes: Any, classes: Any, lengths: Any, numbers: Any, found: Any) -> None:
    """Columns 0 ...: logarithm of characters, words, shares of links, bold text, short and upper words ..."""
    at = 0
    for block in range(len(lengths)):
        size = lengths[block]
        words = short = upper = digit = commas = ends = marks = lines = upper_letters = letters = 0
        in_word = 0
        for place in range(at, at + size):
            code = codes[place]
            kind = classes[min(code, 65535)]
            if code == 2:
                lines += 1
            if kind & 1:
                short += 0 < in_word <= 3
                in_word = 0
                continue
            if in_word == 0:
                words += 1
                upper += (kind & 2) > 0
                digit += (kind & 4) > 0
            in_word += 1
            commas += (kind & 8) > 0
            if kind & 16 and (
                place + 1 == at + size or classes[min(codes[place + 1], 65535)] & 1 or code > 255
            ):
                ends += 1
            marks += (kind & 32) > 0
            letters += (kind & 64) > 0
            upper_letters += (kind & 2) > 0
        short += 0 < in_word <= 3
        last = codes[at + size - 1]
        ended = (classes[min(last, 65535)] & 16) > 0
        if size > 1 and (last == 34 or last == 0x201D or last == 0x201C or last == 0xBB or last == 41):
            ended = ended or (classes[min(codes[at + size - 2], 65535)] & 16) > 0
        row = found[block]
        row[0] = np.log1p(size)
        row[1] = words
        row[2] = min(1.0, numbers[1, block] / size)
        row[3] = numbers[3, block]
        row[4] = commas
        row[5] = ends
        row[6] = ended
        row[7] = last == 58
        row[8] = short / max(words, 1)
        row[9] = upper / max(words, 1)
        row[10] = digit / max(words, 1)
        row[11] = size / max(words, 1)
        row[12] = min(1.0, numbers[2, block] / size)
        row[13] = lines
        row[14] = marks
        row[15] = upper_letters / max(letters, 1)
        at += size


def _scores(lengths: Any, found: Any) -> Any:
    """(N,) how much a block looks like a paragraph: by its length and commas, as in readability."""
    scores = np.zeros(len(lengths))
    for block in range(len(lengths)):
        if lengths[block] >= 25 and found[block, 2] < 0.5:
            scores[block] = 1 + found[block, 4] + min(lengths[block] / 100, 3.0)
    return scores


def _sum_elements(lengths: Any, numbers: Any, elements: Any, scores: Any) -> Any:
    """Sums over all blocks in each element: (5, E) characters, those of links, of paragraphs, blocks, scores.

    And (4, E): whether it is in the best element, and in the parent of that, by readability's rule; its
    distance from the end of the path of the highest scores; the share of the best element's score.
    """
    num_elements = elements.shape[1]
    sums, tree = np.zeros((5, num_elements)), np.zeros((5, num_elements))
    candidates = np.zeros(num_elements)
    for block in range(len(lengths)):
        element = numbers[0, block]
        link = min(numbers[1, block], lengths[block])
        sums[0, element] += lengths[block]
        sums[1, element] += link
        sums[2, element] += (lengths[block] - link) * (elements[1, element] == 1)
        sums[3, element] += 1
        sums[4, element] += scores[block]
        around = elements[0, element]
        candidates[around] += scores[block]
        candidates[elements[0, around]] += scores[block] / 2
    for element in range(num_elements - 1, 0, -1):
        for row in range(5):
            sums[row, elements[0, element]] += sums[row, element]
    candidates *= 1 - sums[1] / np.maximum(sums[0], 1.0)
    best = np.argmax(candidates)
    tree[0, best] = 1
    tree[1, elements[0, best]] = 1
    heaviest = np.zeros(num_elements, np.int64)
    weight = np.zeros(num_elements)
    for element in range(1, num_elements):
        around = elements[0, element]
        if sums[4, element] > weight[around]:
            weight[around], heaviest[around] = sums[4, element], element
    on_path = np.full(num_elements, -1)
    at = levels = 0
    on_path[0] = 0
    while weight[at] > 0.6 * sums[4, at] and weight[at] > 0:
        at = heaviest[at]
        levels += 1
        on_path[at] = levels
    for element in range(num_elements):
        around = elements[0, element]
        if element:
            tree[0, element] = max(tree[0, element], tree[0, around])
            tree[1, element] = max(tree[1, element], tree[1, around])
        tree[2, element] = levels - on_path[element] if on_path[element] >= 0 else tree[2, around]
        tree[3, element] = candidates[element] / max(candidates[best], 1.0)
        tree[4, element] = levels
    return sums, tree


def _describe(
    lengths: Any, numbers: Any, elements: Any, scores: Any, sums: Any, tree: Any, repeats: Any, found: Any
) -> None:
    """The columns of elements, of the place in the page, and of neighbours."""
    count = len(lengths)
    all_chars, all_scores = max(sums[0, 0], 1.0), max(sums[4, 0], 1.0)
    chars = score = 0.0
    headings = 0
    last_long = -99
    for block in range(count):
        row = found[block]
        element = numbers[0, block]
        column, around, near_classes = 16, element, 0
        for level in range(4):
            total = max(sums[0, around], 1.0)
            row[column] = np.log1p(sums[0, around])
            row[column + 1] = sums[1, around] / total
            row[column + 2] = sums[3, around]
            row[column + 3] = sums[4, around] / all_scores
            row[column + 4] = sums[2, around] / total
            row[column + 5] = sums[0, around] / max(sums[3, around], 1.0)
            if level < 3:
                near_classes |= elements[4, around]
            column += 6
            around = elements[0, around]
        chars += lengths[block]
        score += scores[block]
        headings += elements[1, element] == 6
        row[column] = tree[0, element]
        row[column + 1] = tree[1, element]
        row[column + 2] = tree[2, element]
        row[column + 3] = tree[4, element]
        row[column + 4] = tree[3, elements[0, element]]
        row[column + 5] = elements[5, element]
        row[column + 6] = np.log1p(all_chars)
        row[column + 7] = all_scores
        row[column + 8] = chars / all_chars
        row[column + 9] = score / all_scores
        row[column + 10] = block / count
        row[column + 11] = 1 - sums[1, 0] / all_chars
        row[column + 12] = min(headings, 20)
        row[column + 13] = min(block - last_long, 99)
        row[column + 14] = 99
        row[column + 15] = min(repeats[block], 99)
        if lengths[block] > 80 and row[2] < 0.3:
            last_long = block
            row[column + 13] = 0
        column += 16
        for bit in range(20):
            row[column + bit] = (elements[2, element] >> bit) & 1
        column += 20
        for bit in range(20):
            row[column + bit] = (elements[3, element] >> bit) & 1
            row[column + 20 + bit] = (near_classes >> bit) & 1
        column += 40
        row[column] = elements[1, element]
        column += 1
        for step in (-3, -2, -1, 1, 2, 3):
            other = block + step
            if 0 <= other < count:
                its = numbers[0, other]
                row[column] = found[other, 0]
                row[column + 1] = found[other, 2]
                row[column + 2] = found[other, 6]
                row[column + 3] = found[other, 8]
                row[column + 4] = elements[1, its]
                row[column + 5] = its == element or elements[0, its] == elements[0, element]
            else:
                row[column : column + 6] = -1
            column += 6
    next_long = count + 99
    for block in range(count - 1, -1, -1):
        if lengths[block] > 80 and found[block, 2] < 0.3:
            next_long = block
        found[block, 16 + 24 + 14] = min(next_long - block, 99)
