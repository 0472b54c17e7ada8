"""Streamed choices against the whole ones."""

import itertools

import pytest


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 0},
        {"seed": 5},
        {"seed": 5, "top_k": 9, "logprobs": 1},
        {"seed": 6, "stop": ["e", "zz"]},
        {"seed": 7, "echo": True},
    ],
)
def test_a_stream_says_piece_by_piece_what_comes_at_once_otherwise(server, rules):
    asked = {"prompt": ["naïve", "b"], "max_tokens": 25, **rules}
    whole = server.complete(**asked).json()["choices"]
    pieces = [event["choices"][0] for event in server.events(**asked)]
    for n, choice in enumerate(whole):
        mine = [p for p in pieces if p["index"] == n]
        assert "".join(p["text"] for p in mine) == choice["text"]
        assert list(itertools.chain(*(p["token_ids"] for p in mine))) == choice["token_ids"]
        assert [p["finish_reason"] for p in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        if "logprobs" in rules:
            assert list(itertools.chain(*(p["logprobs"]["token_logprobs"] for p in mine))) == pytest.approx(
                choice["logprobs"]["token_logprobs"], abs=1e-4
            )
