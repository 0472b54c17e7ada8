"""Windows of a token stream: each token but the first is a target exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from mt.eval.windows import rolling_windows


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_every_token_but_the_first_is_a_target_once(num_tokens, seq_length, data):
    stride = data.draw(st.integers(1, seq_length))
    targets = []
    for start, first, end in rolling_windows(num_tokens, seq_length, stride):
        assert start < first < end <= start + seq_length + 1
        targets += range(first, end)
    assert targets == list(range(1, num_tokens))
