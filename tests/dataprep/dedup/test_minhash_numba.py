"""The compiled loops give the same numbers as numpy and plain Python."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.dedup import minhash, shingles
from mt.dataprep.words import WORD

TEXTS = st.lists(
    st.text()
    | st.text("ab _1.\n", max_size=60)
    | st.text("aé中Σ İ.\u0301का", max_size=20)
    | st.text("ab \t\r\n", max_size=30),
    max_size=8,
)


def words_of(text):
    return WORD.findall(text)


@settings(deadline=None)  # the first call compiles
@given(TEXTS, st.integers(1, 6))
def test_compiled_loops_give_the_same_numbers(texts, n):
    minhash_numba = pytest.importorskip("mt.dataprep.dedup.minhash_numba", reason="numba is missing")
    texts = [unicodedata.normalize("NFC", t) for t in texts]
    hashes, first = shingles.shingle(*shingles.batch_words(texts), n)
    compiled, starts = minhash_numba.word_shingles(shingles.texts_word_bytes(texts), n)
    assert (hashes.tolist(), first.tolist()) == (compiled.tolist(), starts.tolist())
    exact = minhash.exact_texts(texts, compiled=True)
    assert [bytes(data) for data in exact] == [shingles.exact_bytes(t) for t in texts]
    if len(texts := [t for t in texts if words_of(t)]):
        hashes, first = shingles.shingle(*shingles.batch_words(texts), n)
        assert (
            minhash.minhash_signatures(hashes, first, 7)
            == minhash.minhash_signatures(hashes, first, 7, compiled=True)
        ).all()


def test_compiled_loops_do_not_import_extensions_of_numba():
    """gigatoken needs awkward, which registers with numba and takes a quarter of a second to import."""
    pytest.importorskip("awkward", reason="nothing else on this machine adds to numba")
    code = (
        "import sys; from mt.dataprep.dedup import minhash; minhash.text_shingles(['some words'], 5, 'word',"
        " True); sys.exit('awkward' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
