"""Streamed choices, compared with whole ones, and the format of responses."""

import itertools

import pytest

from mt.eval.generation.sampling import Continuation, Sampling
from mt.eval.server.requests import RequestError
from mt.eval.server.responses import CompletionChoice, error_body
from mt.tests.eval.server.running_server import small_model


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
def test_the_pieces_of_a_stream_join_to_the_whole_response(server, rules):
    request = {"prompt": ["naïve", "b"], "max_tokens": 25, **rules}
    whole = server.complete(**request).json()["choices"]
    pieces = [event["choices"][0] for event in server.events(**request)]
    for n, choice in enumerate(whole):
        mine = [p for p in pieces if p["index"] == n]
        assert "".join(p["text"] for p in mine) == choice["text"]
        assert list(itertools.chain(*(p["token_ids"] for p in mine))) == choice["token_ids"]
        assert [p["finish_reason"] for p in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        if "logprobs" in rules:
            assert list(itertools.chain(*(p["logprobs"]["token_logprobs"] for p in mine))) == pytest.approx(
                choice["logprobs"]["token_logprobs"], abs=1e-4
            )


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (499, "invalid_request_error"), (500, "server_error")],
)
def test_an_error_body_has_openais_format(status, kind):
    assert error_body(RequestError(status, "why")) == {
        "error": {"message": "why", "type": kind, "param": None, "code": status}
    }


def continuation_of(model, *tokens, stop=()):
    """A continuation of "x" by given tokens, each with log-probability -1 and two alternatives."""
    found = Continuation(b"x", Sampling(max_new_tokens=4, stop=stop, top_logprobs=2), model.tokenizer)
    for token in tokens:
        found.accept(token, -1.0, {token: -1.0, 65: -2.0})
    return found


def test_a_choice_returns_each_token_once_and_none_without_new_tokens():
    model = small_model()
    choice, found = CompletionChoice(3, [120], None, 2, model), continuation_of(model)
    assert choice.news(found) is None
    found.accept(97, -1.0, {97: -1.0, 65: -2.0})
    first = choice.news(found)
    assert choice.news(found) is None
    for token in (98, 256):
        found.accept(token, -0.5, {token: -0.5, 65: -2.0})
    last = choice.news(found)
    assert choice.news(found) is None
    common = {"index": 3, "prompt_tokens": 1}
    assert first == common | {
        "text": "a",
        "finish_reason": None,
        "ended": None,
        "token_ids": [97],
        "logprobs": {
            "tokens": ["a"],
            "token_logprobs": [-1.0],
            "top_logprobs": [{"a": -1.0, "A": -2.0}],
        },
    }
    assert last == common | {
        "text": "b",
        "finish_reason": "stop",
        "ended": "eod",
        "token_ids": [98, 256],
        "logprobs": {
            "tokens": ["b", ""],
            "token_logprobs": [-0.5, -0.5],
            "top_logprobs": [{"b": -0.5, "A": -2.0}, {"": -0.5, "A": -2.0}],
        },
    }


@pytest.mark.parametrize(
    ("stop", "tokens", "ended"),
    [((), (97, 98, 99, 100), "length"), (("b",), (97, 98), "stop"), ((), (256,), "eod")],
)
def test_the_finish_reason_is_openais(stop, tokens, ended):
    model = small_model()
    news = CompletionChoice(0, [120], None, None, model).news(continuation_of(model, *tokens, stop=stop))
    assert (news["ended"], news["finish_reason"]) == (ended, "stop" if ended == "eod" else ended)
    assert news["logprobs"] is None


def test_only_the_first_piece_has_the_echoed_prompt():
    model = small_model()
    choice, found = CompletionChoice(0, [120, 121], "xy", 0, model), continuation_of(model, 97)
    found.prompt_logprobs = [-3.0]
    first = choice.news(found)
    assert first["text"] == "xya"
    assert first["token_ids"] == [97]
    assert first["logprobs"]["tokens"] == ["x", "y", "a"]
    assert first["logprobs"]["token_logprobs"] == [None, -3.0, -1.0]
    assert first["logprobs"]["top_logprobs"] is None, "no alternatives were requested"
    found.accept(98, -1.0)
    assert choice.news(found)["text"] == "b"


def test_alternatives_with_the_same_text_are_merged_into_the_most_probable():
    model = small_model()
    choice = CompletionChoice(0, [120], None, 3, model)
    found = Continuation(b"x", Sampling(max_new_tokens=4), model.tokenizer)
    found.accept(200, -1.0, {200: -1.0, 201: -2.0, 97: -3.0})
    assert choice.news(found)["logprobs"]["top_logprobs"] == [{"\ufffd": -1.0, "a": -3.0}]
