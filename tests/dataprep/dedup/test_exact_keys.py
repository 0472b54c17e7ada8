"""Exact keys, compared with texts and URLs brought into one form by other functions."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.dedup.exact_keys import NO_KEY, document_url_key, exact_key, url_key
from mt.documents.reader import Document

TEXTS = st.text(st.sampled_from("ab é\u00a0\n\u3000"), max_size=8)


@given(TEXTS, TEXTS)
def test_texts_have_one_key_if_they_differ_in_white_space_alone(one, other):
    one, other = (unicodedata.normalize("NFC", text) for text in (one, other))
    form = lambda text: " ".join(text.split())
    # without indentation, which counts
    one, other = (text.replace("\n", " ") for text in (one, other))
    assert (exact_key(one) == exact_key(other)) == (form(one) == form(other))


def test_the_key_of_a_document_is_that_of_its_url_field_or_id():
    document = Document("http://a.org/x/", "text", {"link": "https://A.org:443/x#y", "n": 3, "blank": " "})
    assert document_url_key(document, "link") == document_url_key(document, "id") == url_key("//a.org/x")
    assert document_url_key(document, "n") == document_url_key(document, "blank") == NO_KEY
    assert document_url_key(document, "missing") == NO_KEY
