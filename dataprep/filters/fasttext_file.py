"""Reads and writes fastText's model files of text classifiers: .bin, and .ftz with quantized matrices.

The format is that of facebookresearch/fastText, `FastText::saveModel`, little-endian throughout:

    int32 magic, int32 version (11 or 12)
    12 x int32 dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate
    double t
    int32 size, nwords, nlabels; int64 ntokens, num_pruned
    size x (bytes of the word, 0, int64 count, int8 kind)     the words, then the labels
    num_pruned x (int32 n-gram, int32 row)                    num_pruned is -1 in a model that is not pruned
    bool quantized; the input matrix, a row for each word and n-gram
    bool quantized; the output matrix, a row for each label

A dense matrix is int64 rows, int64 columns and float32 values. A quantized one has a byte for each group of
columns of a row, which chooses one of 256 centroids of that group (product quantization).

A model file may come from a stranger: every size is compared with the length of the file before anything of
that size is allocated, and every number that is an index with what it is an index of.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from pathlib import Path
from typing import IO, Any, Never

import numpy as np

from ...core import paths
from ...core.config import UserError

MAGIC, VERSION = 793712314, 12
# fastText 0.1 wrote version 11, and its classifiers have no character n-grams, whatever `maxn` says
OLD_VERSION = 11
LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
SUPERVISED = 3  # the kind of model of a classifier
LABEL_PREFIX = "__label__"  # the file does not say it: fastText takes this one for every file
CENTROIDS = 256
MAX_NGRAM = 64  # characters or words; the time for a text grows with it
MAX_OUTPUT_BYTES = 1 << 30  # of a quantized output matrix, made dense
MAX_COUNTS = 10**15  # sum of the labels' counts, from which fastText's tree of labels has no root


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of a model that its scores depend on.

    loss: hs (hierarchical softmax), ns (negative sampling), softmax, or ova (one-vs-all). bucket: number of
    rows for n-grams. minn, maxn: lengths of character n-grams; maxn = 0: none. word_ngrams: 1 is words alone.
    """

    dim: int
    loss: str
    word_ngrams: int = 1
    bucket: int = 0
    minn: int = 0
    maxn: int = 0
    epoch: int = 5
    min_count: int = 1


@dataclasses.dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix whose rows are sums of centroids.

    codes: uint8 (rows, G). centroids: float32 (G, 256, D), where G * D is at least the number of columns;
    those beyond it are 0. norm_codes: uint8 (rows,), or (0,) where rows have no factor of their own. norms:
    float32 (256,).
    """

    codes: np.ndarray
    centroids: np.ndarray
    norm_codes: np.ndarray
    norms: np.ndarray

    def dense(self, columns: int) -> np.ndarray:
        """float32 (rows, columns)."""
        groups = np.arange(self.codes.shape[1])
        rows = self.centroids[groups, self.codes].reshape(len(self.codes), -1)[:, :columns]
        factors = self.norms[self.norm_codes][:, None] if len(self.norm_codes) else np.float32(1)
        return np.ascontiguousarray(rows * factors, np.float32)


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """The contents of a model file.

    words, labels: UTF-8, as in the file. word_counts, label_counts: int64. num_tokens: of the text that it
    was trained on. pruned: int32 (P, 2), n-grams and their rows behind those of the words; None where an
    n-gram is its own row. input: float32 (rows, dim), or quantized. output: float32 (labels, dim).
    """

    options: Options
    words: list[bytes]
    labels: list[bytes]
    word_counts: np.ndarray
    label_counts: np.ndarray
    num_tokens: int
    pruned: np.ndarray | None
    input: np.ndarray | QuantizedMatrix
    output: np.ndarray


def read_model(path: str | Path) -> ModelFile:
    """The model in a file. Its large matrices stay in the file, and are shared by all processes that read it.

    Raises UserError for what is not a classifier of fastText, or not a whole one.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; check the path")
    with open(paths.regular(path), "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            _Reader(path, b"").fail("it is empty")
    return _read(_Reader(path, data))


class _Reader:
    """Takes values from a file, in order; raises UserError where the file is shorter than they are."""

    def __init__(self, path: str | Path, data: bytes | mmap.mmap):
        self.path, self.data, self.place = path, data, 0

    def fail(self, message: str) -> Never:
        raise UserError(
            f"{self.path}: no model of fastText that can be read: {message}; give the .bin or .ftz file of a"
            " classifier (`fasttext supervised`, `mt data train-classifier`)"
        )

    def check(self, holds: bool, message: str) -> None:
        if not holds:
            self.fail(message)

    def need(self, count: int, size: int, what: str) -> None:
        """Checks that `count` things of `size` bytes are left."""
        left = len(self.data) - self.place
        self.check(
            0 <= count * size <= left,
            f"{what} would take {count * size} bytes at byte {self.place}, where the file has {left}",
        )

    def numbers(self, layout: str, what: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        self.need(1, struct.calcsize(layout), what)
        values = struct.unpack_from(layout, self.data, self.place)
        self.place += struct.calcsize(layout)
        return values

    def flag(self, what: str) -> bool:
        (value,) = self.numbers("B", what)
        self.check(value <= 1, f"{what} = {value} must be 0 or 1")
        return bool(value)

    def array(self, dtype: str, count: int, what: str) -> np.ndarray:
        """A view of the file."""
        kind = np.dtype(dtype)
        self.need(count, kind.itemsize, what)
        values = np.frombuffer(self.data, kind, count, self.place)
        self.place += values.nbytes
        return values

    def floats(self, count: int, what: str) -> np.ndarray:
        values = self.array("<f4", count, what)
        self.check(all_finite(values), f"{what} holds numbers that are not finite")
        return values


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; a large array is looked at in pieces."""
    step = 1 << 20
    return all(bool(np.isfinite(values[i : i + step]).all()) for i in range(0, len(values), step))


def _read(reader: _Reader) -> ModelFile:
    magic, version = reader.numbers("2i", "the header")
    reader.check(magic == MAGIC, f"its first bytes are {magic:#x} instead of {MAGIC:#x}")
    reader.check(version in (OLD_VERSION, VERSION), f"version = {version} must be {OLD_VERSION} or {VERSION}")
    options = _read_options(reader, version)
    size, num_words, num_labels, num_tokens, num_pruned = reader.numbers("3i2q", "the header of the words")
    for name, value in (("nwords", num_words), ("nlabels", num_labels)):
        reader.check(value >= 0, f"{name} = {value} must not be negative")
    reader.check(
        size == num_words + num_labels,
        f"size = {size} must be the sum of nwords = {num_words} and nlabels = {num_labels}",
    )
    reader.check(num_labels > 0, "it has no labels")
    reader.check(num_pruned >= -1, f"the number of pruned n-grams = {num_pruned} must be at least -1")
    names, counts = _read_words(reader, num_words, size)
    label_counts = counts[num_words:]
    if options.loss == "hs":
        total = sum(map(int, label_counts))
        reader.check(
            bool((label_counts >= 0).all()) and total < MAX_COUNTS,
            f"the counts of its labels must not be negative, and their sum below {MAX_COUNTS}",
        )
    pruned = None
    if num_pruned >= 0:
        pruned = reader.array("<i4", 2 * num_pruned, "the pruned n-grams").reshape(-1, 2)
        inside = pruned.min(initial=0) >= 0 and pruned[:, 0].max(initial=-1) < options.bucket
        reader.check(inside, f"a pruned n-gram is not in the range of bucket = {options.bucket}")
        reader.check(len(np.unique(pruned[:, 0])) == num_pruned, "a pruned n-gram occurs twice")
    quantized = reader.flag("quant_input")
    reader.check(quantized or pruned is None, "its n-grams are pruned, but its matrix is not quantized")
    matrix = _read_matrix(reader, options.dim, quantized, "the input matrix")
    has_ngrams = options.maxn > 0 or options.word_ngrams > 1
    ngram_rows = options.bucket if pruned is None else int(pruned[:, 1].max(initial=-1)) + 1
    rows = num_words + (ngram_rows if has_ngrams else 0)
    num_rows = len(matrix.codes) if isinstance(matrix, QuantizedMatrix) else len(matrix)
    reader.check(num_rows >= rows, f"its input matrix has {num_rows} rows; {rows} are needed")
    quantized_output = reader.flag("qout")
    output = _read_matrix(reader, options.dim, quantized and quantized_output, "the output matrix")
    if isinstance(output, QuantizedMatrix):
        num_bytes = 4 * len(output.codes) * options.dim
        reader.check(num_bytes <= MAX_OUTPUT_BYTES, f"its output matrix would take {num_bytes} bytes")
        output = output.dense(options.dim)
    reader.check(
        len(output) == num_labels, f"its output matrix has {len(output)} rows for {num_labels} labels"
    )
    words, labels = names[:num_words], names[num_words:]
    return ModelFile(
        options, words, labels, counts[:num_words], label_counts, num_tokens, pruned, matrix, output.copy()
    )


def _read_options(reader: _Reader, version: int) -> Options:
    dim, _, epoch, min_count, _, word_ngrams, loss, kind, bucket, minn, maxn, _, _ = reader.numbers(
        "12id", "the settings"
    )
    reader.check(kind == SUPERVISED, f"model = {kind} must be {SUPERVISED}: it holds vectors of words")
    reader.check(loss in LOSSES, f"loss = {loss} must be one of {', '.join(map(str, LOSSES))}")
    reader.check(dim >= 1, f"dim = {dim} must be at least 1")
    reader.check(bucket >= 0, f"bucket = {bucket} must not be negative")
    for name, value in (("minn", minn), ("maxn", maxn), ("wordNgrams", word_ngrams)):
        reader.check(0 <= value <= MAX_NGRAM, f"{name} = {value} must be from 0 to {MAX_NGRAM}")
    if version == OLD_VERSION:
        maxn = 0
    reader.check(
        bucket > 0 or (maxn == 0 and word_ngrams <= 1), "bucket = 0: it has n-grams and no rows for them"
    )
    return Options(dim, LOSSES[loss], word_ngrams, bucket, minn, maxn, epoch, min_count)


def _read_words(reader: _Reader, num_words: int, size: int) -> tuple[list[bytes], np.ndarray]:
    """(the words and labels, their counts)."""
    reader.need(size, 10, f"{size} words and labels")
    names: list[bytes] = []
    counts = np.empty(size, np.int64)
    data, place = reader.data, reader.place
    for index in range(size):
        end = data.find(b"\0", place)
        if end < 0 or end + 10 > len(data):
            reader.place = place
            reader.fail(f"it ends within word {index + 1} of {size}")
        names.append(data[place:end])
        kind = data[end + 9]
        if kind != (index >= num_words):
            reader.fail(
                f"word {index + 1} has the kind {kind}; the words come first (0), then the labels (1)"
            )
        counts[index] = int.from_bytes(data[end + 1 : end + 9], "little", signed=True)
        place = end + 10
    reader.place = place
    if len(set(names)) < size:
        reader.fail("a word occurs twice")
    return names, counts


def _read_matrix(reader: _Reader, dim: int, quantized: bool, what: str) -> np.ndarray | QuantizedMatrix:
    has_norms = quantized and reader.flag(f"qnorm of {what}")
    rows, columns = reader.numbers("2q", f"the header of {what}")
    reader.check(rows >= 0, f"{what} has {rows} rows")
    reader.check(columns == dim, f"{what} has {columns} columns; dim is {dim}")
    if not quantized:
        return reader.floats(rows * dim, what).reshape(rows, dim)
    (code_bytes,) = reader.numbers("i", f"the size of {what}")
    codes = reader.array("u1", code_bytes, f"the codes of {what}")
    centroids = _read_centroids(reader, dim, what)
    groups = len(centroids)
    reader.check(code_bytes == rows * groups, f"{what} has {code_bytes} codes for {rows} rows of {groups}")
    norm_codes, norms = np.empty(0, np.uint8), np.ones(CENTROIDS, np.float32)
    if has_norms:
        norm_codes = reader.array("u1", rows, f"the norms of {what}")
        norms = _read_centroids(reader, 1, f"the norms of {what}").reshape(-1)
    return QuantizedMatrix(codes.reshape(rows, groups), centroids, norm_codes, norms)


def _read_centroids(reader: _Reader, dim: int, what: str) -> np.ndarray:
    """float32 (groups, 256, columns of a group), with 0 in the last group's columns beyond dim."""
    columns, groups, width, last = reader.numbers("4i", f"the quantizer of {what}")
    fits = columns == dim and width >= 1 and groups == -(-dim // width) and last == dim - (groups - 1) * width
    reader.check(
        fits, f"{what}: {groups} groups of {width} columns, the last of {last}, do not make {columns}"
    )
    values = reader.floats(dim * CENTROIDS, f"the centroids of {what}")
    centroids = np.zeros((groups, CENTROIDS, width), np.float32)
    whole = (groups - 1) * CENTROIDS * width
    centroids[:-1] = values[:whole].reshape(-1, CENTROIDS, width)
    centroids[-1, :, :last] = values[whole:].reshape(CENTROIDS, last)
    return centroids


def write_model(file: IO[bytes], model: ModelFile) -> None:
    """Writes a model that is neither pruned nor quantized, as `fasttext supervised` does."""
    assert isinstance(model.input, np.ndarray), "quantized models are only read"
    assert model.pruned is None, "pruned models are only read"
    options = model.options
    loss = {name: number for number, name in LOSSES.items()}[options.loss]
    file.write(struct.pack("<2i", MAGIC, VERSION))
    # ws, neg, lrUpdateRate and t have no part in the scores; these are fastText's defaults
    settings = (options.dim, 5, options.epoch, options.min_count, 5, options.word_ngrams, loss, SUPERVISED)
    file.write(struct.pack("<12id", *settings, options.bucket, options.minn, options.maxn, 100, 1e-4))
    sizes = len(model.words) + len(model.labels), len(model.words), len(model.labels)
    file.write(struct.pack("<3i2q", *sizes, model.num_tokens, -1))
    for kind, names, counts in ((0, model.words, model.word_counts), (1, model.labels, model.label_counts)):
        for name, count in zip(names, counts.tolist()):
            file.write(name + struct.pack("<Bqb", 0, count, kind))
    for matrix in (model.input, model.output):
        file.write(struct.pack("<B2q", 0, *matrix.shape))
        step = max(1, (1 << 22) // options.dim)
        for start in range(0, len(matrix), step):
            file.write(np.ascontiguousarray(matrix[start : start + step], "<f4").tobytes())


def label_tree(counts: np.ndarray) -> np.ndarray:
    """The binary tree of hierarchical softmax: int64 (2 * labels - 1, 2), the children of each node.

    Nodes below len(counts) are the labels and have no children (-1); the last node is the root. As fastText,
    it joins the two rarest at a time, counts being in descending order.
    """
    num_labels = len(counts)
    weights = [int(c) for c in counts] + [MAX_COUNTS] * (num_labels - 1)
    children = np.full((2 * num_labels - 1, 2), -1, np.int64)
    leaf, node = num_labels - 1, num_labels
    for parent in range(num_labels, 2 * num_labels - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children[parent, side] = leaf
                leaf -= 1
            else:
                children[parent, side] = node
                node += 1
        weights[parent] = sum(weights[c] for c in children[parent].tolist())
    return children


def label_name(label: bytes) -> str:
    """`en` for `__label__en`."""
    return label.decode("utf-8", "replace").removeprefix(LABEL_PREFIX)
