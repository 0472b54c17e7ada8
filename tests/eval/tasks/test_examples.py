"""Cleaning of texts, compared with Megatron-LM's function, and tab-separated tables."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from mt.eval.tasks.examples import clean, table_rows


def megatron_clean(text):
    """clean_text of Megatron-LM's tasks/data_utils.py."""
    text = text.replace("\n", " ")
    text = re.sub(r"\s+", " ", text)
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text


@settings(deadline=None)
@given(st.text(alphabet="ab. \n\t\u00a0", max_size=30))
def test_a_text_is_cleaned_as_by_megatron_except_for_spaces_at_its_ends(text):
    assert clean(text) == megatron_clean(text.strip())


def test_a_quotation_mark_in_a_table_is_an_ordinary_character(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('a\t"b\nc"\td\t\n')
    assert list(table_rows(path)) == [(1, ["a", '"b'], 'a\t"b'), (2, ['c"', "d", ""], 'c"\td\t')]
