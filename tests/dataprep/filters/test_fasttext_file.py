"""ModelFile files of fastText: read, written, and refused where a size in them is wrong."""

import io
import struct
from pathlib import Path

import fasttext
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mt.core.config import UserError
from mt.dataprep.filters.fasttext_file import ModelFile, Options, QuantizedMatrix, read_model, write_model
from mt.dataprep.filters.fasttext_model import FastTextModel
from mt.tests.foreign_files import survive

FILES = sorted((Path(__file__).parents[2] / "fixtures/fasttext").iterdir())
BINS = [path for path in FILES if path.suffix == ".bin"]
HEADER = 8 + 12 * 4 + 8 + 3 * 4 + 2 * 8  # up to the first word
ids = {"ids": lambda path: path.name}


def written(model):
    file = io.BytesIO()
    write_model(file, model)
    return file.getvalue()


@pytest.mark.parametrize("path", BINS, **ids)
def test_a_model_that_is_read_and_written_has_the_bytes_that_fasttext_wrote(path):
    assert written(read_model(path)) == path.read_bytes()


@pytest.mark.parametrize("path", FILES, **ids)
def test_words_labels_and_options_are_those_of_fasttext(path):
    model = read_model(path)
    assert sorted(label.decode() for label in model.labels) == sorted(
        fasttext.load_model(str(path)).predict("the", -1, -1.0)[0]
    )
    assert b"</s>" in model.words
    assert b"the" in model.words
    assert model.options.loss == path.name.partition("_")[0]
    assert (model.options.maxn > 0) == ("characters" in path.name or "pruned" in path.name)
    assert isinstance(model.input, QuantizedMatrix) == (path.suffix == ".ftz")
    assert (model.pruned is not None) == ("pruned" in path.name)


def test_quantized_rows_are_close_to_those_of_the_model_before():
    dense = read_model(FILES[0].with_name("softmax_bigrams.bin"))
    options = Options(dim=5, loss="softmax", word_ngrams=2, bucket=300, epoch=3, min_count=40)
    quantized = read_model(FILES[0].with_name("softmax_quantized.ftz"))
    assert quantized.options == options
    assert quantized.words == dense.words
    assert quantized.input.dense(5).shape == (len(dense.words) + 300, 5)


def test_fasttext_loads_what_is_written(tmp_path):
    model = ModelFile(
        Options(dim=2, loss="softmax"),
        [b"</s>", "é".encode(), b"word"],
        [b"__label__a", b"__label__b"],
        np.array([3, 2, 1]),
        np.array([2, 1]),
        6,
        None,
        np.array([[1, 2], [3, 4], [5, 6]], np.float32),
        np.array([[1, 0], [0, 1]], np.float32),
    )
    path = tmp_path / "model.bin"
    path.write_bytes(written(model))
    labels, scores = fasttext.load_model(str(path)).predict("é", 2)
    # the mean of rows 0 and 1 is (2, 3)
    assert labels == ("__label__b", "__label__a")
    assert scores == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], abs=2e-5)


@pytest.mark.parametrize("path", FILES, **ids)
def test_a_file_that_ends_early_is_refused(path, tmp_path):
    data = path.read_bytes()
    cut = tmp_path / "cut.bin"
    for size in [*range(0, HEADER + 60, 3), *range(HEADER + 60, len(data), 211), len(data) - 1]:
        cut.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"cut\.bin: no model of fastText that can be read: "):
            read_model(cut)


def broken_headers(data):
    """(name, file): each number of the header replaced by one that is wrong or enormous."""
    for place in [*range(0, 56, 4), *range(64, 76, 4)]:
        for value in (-(2**31), -1, 0, 1, 2**20, 2**31 - 1):
            yield f"int32 {place} = {value}", data[:place] + struct.pack("<i", value) + data[place + 4 :]
    for place in (76, 84):
        for value in (-(2**63), -2, -1, 0, 1, 2**33, 2**63 - 1):
            yield f"int64 {place} = {value}", data[:place] + struct.pack("<q", value) + data[place + 8 :]


def read_and_score(path):
    """The exit code of a command that scores a text."""
    try:
        FastTextModel.load(path).predict("the government of the people")
    except UserError:
        return 2
    return 0


@pytest.mark.parametrize("path", FILES, **ids)
def test_wrong_numbers_in_the_header_are_refused_or_harmless(path, tmp_path):
    file = tmp_path / "broken.bin"
    FastTextModel.load(path).predict("compiled before the memory is bounded")
    codes = survive(broken_headers(path.read_bytes()), file, lambda: read_and_score(file))
    assert codes[2] > 60


@hypothesis.given(
    st.sampled_from(FILES), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8), st.data()
)
def test_changed_bytes_anywhere_are_refused_or_harmless(tmp_path_factory, path, place, change, data):
    original = path.read_bytes()
    place %= len(original) - len(change)
    file = tmp_path_factory.mktemp("changed") / "model.bin"
    file.write_bytes(original[:place] + change + original[place + len(change) :])
    assert read_and_score(file) in (0, 2)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 1, "its first bytes are 0x1 instead of 0x2f4f16ba"),
        (4, 13, "version = 13 must be 11 or 12"),
        (8, 2**30, f"the input matrix has 4 columns; dim is {2**30}"),
        (32, 9, "loss = 9 must be one of 1, 2, 3, 4"),
        (36, 1, "model = 1 must be 3: it holds vectors of words"),
        (40, 0, "bucket = 0: it has n-grams and no rows for them"),
        (40, 301, r"its input matrix has 374 rows; 375 are needed"),
        (28, 65, "wordNgrams = 65 must be from 0 to 64"),
        (64, 78, "size = 78 must be the sum of nwords = 74 and nlabels = 3"),
        (84, 5, "a word"),
    ],
)
def test_the_message_says_what_is_wrong(tmp_path, place, value, message):
    data = (FILES[0].with_name("softmax_bigrams.bin")).read_bytes()
    file = tmp_path / "model.bin"
    file.write_bytes(data[:place] + struct.pack("<i", value) + data[place + 4 :])
    if place == 84:  # pruned n-grams, which are not there
        message = "pruned n-gram"
    with pytest.raises(UserError, match=f"{message}.*; give the .bin or .ftz file of a classifier"):
        read_model(file)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    data = FILES[0].with_name("softmax_words.bin").read_bytes()
    file = tmp_path / "model.bin"
    file.write_bytes(data[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(UserError, match="the output matrix holds numbers that are not finite"):
        read_model(file)
    huge = data[: -4 * 12] + struct.pack("<12f", *[3e38] * 12)
    file.write_bytes(huge)
    model = FastTextModel.load(file)
    with pytest.raises(UserError, match="a score is not a number; train it again"):
        model.probabilities("the " * 10)


def test_an_empty_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(UserError, match="it is empty"):
        read_model(tmp_path / "empty.bin")
    with pytest.raises(UserError, match="must be a regular file"):
        read_model(tmp_path)
    with pytest.raises(UserError, match="no such file; check the path"):
        read_model(tmp_path / "missing.bin")
