"""Sampling and stop conditions, by hand and as in Megatron-LM; streamed texts compared with whole ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.eval.generation.sampling import Continuation, Sampling, TextStream, candidates, draw, pick
from mt.tests.eval.conftest import ByteTokenizer


class EmptyLineTokenizer(ByteTokenizer):
    """A ByteTokenizer in which id 257 is an empty line."""

    vocab_size = 258

    def decode(self, ids):
        return super().decode([byte for i in ids for byte in ((10, 10) if i == 257 else (i,))])


TOKENIZER = EmptyLineTokenizer()
LOGITS = torch.tensor([[2.0, 1.0, 1.0, 0.0, -1.0]])


def one(**rules):
    return Continuation([65], Sampling(**rules), TOKENIZER, np.random.default_rng(0))


def kept(logits):
    return torch.isfinite(logits)[0].tolist()


def test_the_temperature_divides_the_logits():
    assert torch.equal(candidates(LOGITS, [0.5], [0], [0.0]), LOGITS * 2)


def test_top_k_keeps_every_logit_that_is_at_least_the_kth():
    assert kept(candidates(LOGITS, [1.0], [2], [0.0])) == [True, True, True, False, False]
    assert kept(candidates(LOGITS, [1.0], [99], [0.0])) == [True] * 5


def test_top_p_keeps_the_token_at_which_the_sum_exceeds_p():
    probabilities = torch.tensor([[0.2, 0.5, 0.3]])
    for top_p, expected in [
        (0.001, [False, True, False]),
        (0.49, [False, True, False]),
        (0.6, [False, True, True]),
        (0.81, [True, True, True]),
        (1.0, [True, True, True]),
    ]:
        assert kept(candidates(probabilities.log(), [1.0], [0], [top_p])) == expected


def test_top_p_is_applied_after_the_temperature():
    probabilities = torch.tensor([[0.6, 0.4]])
    assert kept(candidates(probabilities.log(), [1.0], [0], [0.7])) == [True, True]
    assert kept(candidates(probabilities.log(), [0.1], [0], [0.7])) == [True, False]


def megatron_top_p(logits, top_p):
    """modify_logits_for_top_p_filtering of Megatron-LM's text_generation/sampling.py."""
    ordered, indices = torch.sort(logits, descending=True)
    removed = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
    removed[:, 1:] = removed[:, :-1].clone()
    removed[..., 0] = 0
    return logits.masked_fill(removed.scatter(1, indices, removed), float("-inf"))


def test_top_p_is_megatrons_on_random_logits():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    for top_p in (0.1, 0.5, 0.9, 0.99):
        assert torch.equal(
            candidates(logits, [1.0] * 50, [0] * 50, [top_p] * 50), megatron_top_p(logits, top_p)
        )


def test_rows_with_different_rules_have_the_candidates_of_each_row_alone():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    rules = [(1.0, 0, 0.0), (0.5, 3, 0.0), (2.0, 0, 0.7), (1.0, 7, 0.0), (1.0, 0, 0.2), (3.0, 0, 0.0)]
    together = candidates(logits, *zip(*rules))
    for row, rule in enumerate(rules):
        torch.testing.assert_close(together[row : row + 1], candidates(logits[row : row + 1], *zip(rule)))


def test_tokens_are_drawn_with_their_probabilities():
    rows = [one(temperature=2.0, top_k=3)]
    counts = torch.bincount(torch.cat([draw(LOGITS, rows) for _ in range(10_000)]), minlength=5) / 10_000
    expected = torch.cat([(LOGITS[0, :3] / 2).softmax(0), torch.zeros(2)])
    torch.testing.assert_close(counts, expected, atol=0.02, rtol=0)
    assert counts[3:].sum() == 0


def test_top_p_decays_with_every_token_down_to_its_bound():
    row = one(top_p=0.8, top_p_decay=0.5, top_p_bound=0.3, max_new_tokens=9)
    values = []
    for _ in range(4):
        values.append(row.top_p)
        row.accept(66, -1.0)
    assert values == [0.8, 0.4, 0.3, 0.3]


@pytest.mark.parametrize(
    ("rules", "tokens", "ended", "text"),
    [
        ({}, b"ab", None, "ab"),
        ({"max_new_tokens": 2}, b"ab", "length", "ab"),
        ({}, [97, 256], "eod", "a"),
        ({"stop_token": 98}, b"ab", "eod", "a"),
        ({"stop_token": 98}, [97, 256, 97], None, "aa"),
        ({"stop_on_eol": True}, b"a\n", "stop", "a\n"),
        ({"stop_on_eol": True}, [97, 257], "stop", "a\n\n"),
        ({"stop_on_eol": True}, [97, 256, 98], None, "ab"),
        ({"stop_on_double_eol": True}, b"a\nb\n", None, "a\nb\n"),
        ({"stop_on_double_eol": True}, b"a\n\n", "stop", "a\n\n"),
        ({"stop_on_double_eol": True}, [97, 257], "stop", "a\n\n"),
        ({"stop": ("lo w",)}, b"hello world", "stop", "hel"),
        ({"stop": ("zz", "l")}, b"hel", "stop", "he"),
    ],
)
def test_a_continuation_ends_at_its_stop_condition(rules, tokens, ended, text):
    row = one(**rules)
    for token in tokens:
        assert row.ended is None
        row.accept(token, -1.0)
        if row.ended:
            break
    assert (row.ended, row.text) == (ended, text)


def test_the_first_newline_of_an_empty_line_may_be_in_the_prompt():
    row = Continuation(list(b"a\n"), Sampling(stop_on_double_eol=True), TOKENIZER)
    row.accept(10, -1.0)
    assert row.ended == "stop"


def test_prevent_newline_after_colon_excludes_the_newline():
    logits = torch.zeros(1, 258)
    logits[0, 10], logits[0, 66] = 5.0, 4.0
    for prevent, last, expected in [(True, b":", 66), (False, b":", 10), (True, b";", 10)]:
        row = Continuation(list(last), Sampling(greedy=True, prevent_newline_after_colon=prevent), TOKENIZER)
        pick(logits, [row], (58, 10))
        assert row.ids == [expected]
        assert row.logprobs[0] == pytest.approx(float(logits.log_softmax(1)[0, expected]), abs=1e-6)


def test_top_logprobs_are_the_most_probable_ids_with_their_log_probabilities():
    logits = torch.randn(2, 258, generator=torch.Generator().manual_seed(0))
    rows = [one(top_logprobs=3, greedy=True), one(greedy=True)]
    pick(logits, rows)
    expected = logits[0].log_softmax(0).topk(3)
    assert list(rows[0].top[0]) == expected.indices.tolist()
    np.testing.assert_allclose(list(rows[0].top[0].values()), expected.values, rtol=1e-5)
    assert rows[1].top == []


def test_a_model_with_nan_logits_is_refused():
    for rules in ({"greedy": True}, {}, {"top_p": 0.5}):
        with pytest.raises(UserError, match="logits are not numbers"):
            pick(torch.full((1, 258), float("nan")), [one(**rules)])


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 255), max_size=40),
    st.text(max_size=5),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
)
def test_streamed_text_is_the_decoded_text(tokens, before, stops):
    stream = TextStream(TOKENIZER, TOKENIZER.encode(before), stops)
    pieces, streamed = [], 0
    for token in tokens:
        stream.push(token)
        pieces.append(stream.text[streamed:])
        streamed = len(stream.text)
    stream.flush()
    whole = TOKENIZER.decode(tokens)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    assert stream.text == (whole[: min(ends)] if ends else whole)
    assert stream.text.startswith("".join(pieces)), "streamed text is never changed"
    assert stream.stopped == bool(ends)


def test_the_space_between_prompt_and_text_is_kept_if_the_tokenizer_drops_a_first_space():
    class WordTokenizer:
        eod, words = None, ["▁the", "▁cat", "s"]

        def decode(self, ids):
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    stream = TextStream(WordTokenizer(), [0])
    for token in (1, 2, 0):
        stream.push(token)
    stream.flush()
    assert stream.text == " cats the"


def test_the_tokens_that_are_decoded_again_stay_few_where_no_character_is_complete():
    class CountingTokenizer:
        decoded = 0

        def decode(self, ids):
            self.decoded += len(ids)
            return TOKENIZER.decode(ids)

    for tokens in ([0x80] * 2_000, [0xF0, 0x9F] * 1_000, [0xEF, 0xBF, 0xBD] * 700):
        stream = TextStream(counting := CountingTokenizer(), [65], ("stop",))
        for token in tokens:
            stream.push(token)
        stream.flush()
        assert stream.text == TOKENIZER.decode(tokens)
        assert counting.decoded < 30 * len(tokens)
