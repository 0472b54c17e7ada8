"""Windows of a token stream: each token except the first is a target exactly once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mt.eval.windows import document_windows, rolling_windows


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_every_token_except_the_first_is_a_target_once(num_tokens, seq_length, data):
    stride = data.draw(st.integers(1, seq_length))
    targets = []
    for start, first, end in rolling_windows(num_tokens, seq_length, stride):
        assert start < first < end <= start + seq_length + 1
        targets += range(first, end)
    assert targets == list(range(1, num_tokens))


def test_windows_of_8_tokens_are_those_worked_out_by_hand():
    assert list(rolling_windows(8, 4, 2)) == [(0, 1, 5), (2, 5, 7), (4, 7, 8)]
    assert list(rolling_windows(5, 4, 4)) == [(0, 1, 5)]
    assert list(rolling_windows(6, 4, 4)) == [(0, 1, 5), (4, 5, 6)]


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 20))
def test_windows_of_a_document_score_each_token_once_with_the_longest_context(length, seq_length):
    ids = list(range(length))
    scored = []
    for window, first in document_windows(ids, seq_length):
        assert len(window) == min(seq_length + 1, length)
        assert window == ids[window[0] : window[-1] + 1], "a window is a part of the document"
        scored += window[first:]
    assert scored == ids[1:]
