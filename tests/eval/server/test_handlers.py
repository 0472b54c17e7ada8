"""Both APIs over HTTP: responses, request time limits, clients that disconnect."""

import collections
import json
import logging
import re
import socket
import threading

import httpx
import numpy as np
import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.eval.server.handlers import RequestHandler, parse_json
from mt.eval.server.requests import MEGATRON_SCHEMA, CompletionRequest
from mt.tests.eval.server.running_server import Running, greedy, slow_server, small_model, until


def test_megatrons_request_gives_prompt_and_text_segments_tokens_and_log_probabilities(server):
    prompts = ["the cat", "a dog sat"]
    reply = server.api(prompts=prompts, tokens_to_generate=12, top_k=1, logprobs=True)
    assert reply.status_code == 200
    body = reply.json()
    assert set(body) == {"text", "segments", "tokens", "logprobs"}
    for n, prompt in enumerate(prompts):
        found = greedy(server, prompt, 12)
        assert body["text"][n] == prompt + found.text
        assert body["tokens"][n] == [*prompt.encode(), *found.ids]
        assert body["segments"][n] == [server.model.tokenizer.decode([i]) for i in body["tokens"][n]]
        (expected,) = server.model.rolling([(body["tokens"][n], 1)])
        np.testing.assert_allclose(body["logprobs"][n], expected, rtol=1e-3, atol=1e-4)


def test_no_tokens_to_generate_scores_the_prompts(server):
    body = server.api(prompts=["the cat", ""], tokens_to_generate=0, logprobs=True, add_BOS=True).json()
    assert body["text"] == ["the cat", ""]
    assert body["tokens"] == [[256, *b"the cat"], [256]]
    assert [len(one) for one in body["logprobs"]] == [7, 0]


def test_megatrons_beam_search_gives_scores_best_first(server):
    body = server.api(prompts=["the cat"], tokens_to_generate=8, beam_width=3, length_penalty=0.7).json()
    assert set(body) == {"text", "segments", "scores"}
    assert len(body["text"]) == 3
    assert body["scores"] == sorted(body["scores"], reverse=True)


def test_a_seed_reproduces_a_text_and_without_a_seed_texts_differ(server):
    draw = lambda **more: server.api(prompts=["x", "x"], tokens_to_generate=20, **more).json()["text"]
    assert draw(random_seed=3) == draw(random_seed=3) != draw(random_seed=4)
    assert draw(random_seed=3)[0] != draw(random_seed=3)[1], "every prompt has its own random numbers"
    assert draw() != draw()


def test_a_completion_has_openais_format(server):
    reply = server.complete(prompt="the cat", max_tokens=6, temperature=0, logprobs=2, model="small")
    body, found = reply.json(), greedy(server, "the cat", 6)
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert (choice["index"], choice["text"], choice["token_ids"], choice["finish_reason"]) == (
        0,
        found.text,
        found.ids,
        "length",
    )
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(found.logprobs, abs=1e-4)
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"])
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}


@pytest.mark.parametrize("prompt", ["ab", ["ab", "c"], [97, 98], [[97, 98], [99]], ""])
def test_a_prompt_is_a_text_or_ids_one_or_many(server, prompt):
    choices = server.complete(prompt=prompt, max_tokens=3, temperature=0).json()["choices"]
    texts = (
        {"ab": ["ab"], "": [""]}.get(prompt)
        if isinstance(prompt, str)
        else ["ab", "c"][: 1 if isinstance(prompt[0], int) else 2]
    )
    assert [c["text"] for c in choices] == [greedy(server, text, 3).text for text in texts]


def test_an_echo_with_log_probabilities_scores_the_prompt(server):
    (choice,) = server.complete(prompt="the cat", max_tokens=0, echo=True, logprobs=1).json()["choices"]
    (expected,) = server.model.rolling([(list(b"the cat"), 1)])
    assert choice["text"] == "the cat"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_body_that_is_not_json_is_refused(server):
    for path, method in (("/api", "PUT"), ("/v1/completions", "POST")):
        send = lambda content, kind="application/json", path=path, method=method: server.client.request(
            method, path, content=content, headers={"Content-Type": kind}
        )
        for content in (b"", b"{", b'{"prompts": ["a"', b"\xff\xfe", b"[" * 100_000, b"null", b"3", b"NaN"):
            assert send(content).status_code == 400, content[:20]
        assert send(b"{}", "text/plain").status_code == 415
        assert send(b"x" * 10_000_000).status_code == 413
    assert server.client.get("/api").status_code == 405
    assert server.complete(prompt="a", max_tokens=1).status_code == 200


def test_a_request_that_exceeds_the_time_limit_is_ended_and_its_row_is_freed():
    with slow_server(request_timeout=0.3) as server:
        reply = server.complete(prompt="a", max_tokens=1000)
        assert reply.status_code == 504
        assert "longer than 0.3 s" in reply.json()["error"]["message"]
        until(lambda: server.engine.running == 0)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_disconnects_frees_its_row(streamed):
    with slow_server() as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            if streamed:
                with client.stream(
                    "POST",
                    "/v1/completions",
                    json={"prompt": "a", "max_tokens": 1000, "temperature": 0, "stream": True},
                ) as reply:
                    next(reply.iter_lines())
                    assert server.engine.running == 1
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(
                        "/v1/completions",
                        json={"prompt": "a", "max_tokens": 1000, "temperature": 0},
                        timeout=0.3,
                    )
        until(lambda: server.engine.running == 0, 5)
        assert server.complete(prompt="a", max_tokens=1).status_code == 200


# Values that a field should not have, and that a JSON text can have all the same: lone surrogates, numbers
# that no float64 or int64 holds, NaN, deep trees.
TEXTS = st.text(st.characters(codec=None), max_size=6)
NUMBERS = st.sampled_from(
    [0, 1, -1, 0.5, 1e-300, 5e-324, 1e300, 10**400, -(10**30), 2**63, 2**31, 97, 255, 256, 257]
)
LEAVES = st.none() | st.booleans() | NUMBERS | st.floats(width=64) | st.integers() | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2)
)
FIELDS = {"/v1/completions": [*CompletionRequest.model_fields], "/api": [*MEGATRON_SCHEMA["properties"]]}


def bodies(path):
    """(pairs of field and value); most have a prompt that is right, so that later checks are reached."""
    name, good = {"/v1/completions": ("prompt", ["ab", [97]]), "/api": ("prompts", [["ab"]])}[path]
    fields = st.sampled_from(FIELDS[path])
    pairs = st.tuples(fields | TEXTS, VALUES) | st.tuples(fields, st.booleans() | NUMBERS)
    prompt = st.tuples(st.just(name), st.sampled_from(good) | VALUES)
    few = st.tuples(st.just("max_tokens" if path != "/api" else "tokens_to_generate"), st.integers(1, 4))
    return st.tuples(prompt, few).flatmap(
        lambda two: st.lists(pairs, max_size=3).map(lambda more: [*two, *more])
    )


def encoded(pairs):
    """The JSON of an object, in which a key may be there twice."""
    return "{" + ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pairs) + "}"


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_no_body_makes_the_server_fail(server, path, caplog):
    statuses = set()

    @settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(bodies(path))
    def fuzz(pairs):
        reply = server.client.request(
            {"/api": "PUT"}.get(path, "POST"),
            path,
            content=encoded(pairs),
            headers={"Content-Type": "application/json"},
        )
        statuses.add(reply.status_code)
        assert reply.status_code in (200, 400, 404), (reply.status_code, reply.text)
        if "event-stream" not in reply.headers["content-type"]:
            parse_json(reply.content)
        assert len(reply.content) < 20_000

    with caplog.at_level(logging.ERROR):
        fuzz()
    assert statuses >= {200, 400}
    assert not caplog.records, "no traceback in the server's log"
    assert server.engine.running == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompts": ["a"], "\\ud800": 1}',
        b'{"prompt": "a", "": 1}',
        b'{"prompts": ["a"], "": 1}',
        b'{"prompt": "a", "model": "\\udfff"}',
        b'{"prompt": "a", "stop": "\\udfff"}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": -Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "max_tokens": 1' + b"0" * 4299 + b"}",
        b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "a", "seed": 1' + b"0" * 4299 + b"}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"x": ' * 100_000,
        b"{" + b",".join(b'"%d": 1' % n for n in range(90_000)) + b"}",
        b"{" + b",".join(b'"k%d": 1' % (n % 70_000) for n in range(80_000)) + b"}",
        b'{"' + b"x" * 900_000 + b'": 1}',
        b"\xef\xbb\xbf{}",
        b'{"prompt": "a"}'.decode().encode("utf-16"),
        b"\xff\xfe",
        b"",
        b"null",
    ],
    ids=lambda body: repr(body[:40]) + str(len(body)),
)
def test_bodies_that_are_hard_to_read_are_refused_in_few_words(server, body):
    for path in FIELDS:
        reply = server.client.request(
            {"/api": "PUT"}.get(path, "POST"),
            path,
            content=body,
            headers={"Content-Type": "application/json"},
        )
        assert reply.status_code in (400, 404), reply.text[:300]
        parse_json(reply.content)
        assert len(reply.content) < 6000


def test_a_key_given_twice_is_refused_and_so_is_what_json_does_not_have(server):
    ask = lambda text: server.client.post(
        "/v1/completions", content=text, headers={"Content-Type": "application/json"}
    ).json()["error"]["message"]
    assert "the key 'max_tokens' is given twice" in ask('{"prompt": "a", "max_tokens": 1, "max_tokens": 2}')
    assert "NaN is not a JSON value" in ask('{"prompt": "a", "temperature": NaN}')


@given(VALUES)
def test_json_is_read_as_pythons_reader_reads_it_where_both_take_it(value):
    text = json.dumps(value)
    try:
        mine = parse_json(text.encode())
    except ValueError:
        assert re.search("NaN|Infinity|[0-9]{4300}", text)
    else:
        assert json.dumps(mine) == text


def test_a_token_that_is_impossible_has_a_log_probability_that_json_can_hold():
    """SlowModel gives minus infinity to the end of a document."""
    with slow_server(0) as server:
        (choice,) = server.complete(prompt=[97, 256, 98], max_tokens=1, echo=True, logprobs=20).json()[
            "choices"
        ]
        assert choice["logprobs"]["token_logprobs"][1] == -9999.0
        pieces = server.events(prompt=[97, 256, 98], max_tokens=1, echo=True, logprobs=20)
        assert pieces[0]["choices"][0]["logprobs"]["token_logprobs"][1] == -9999.0
        body = server.api(prompts=["a"], tokens_to_generate=1, logprobs=True)
        assert body.status_code == 200


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-300, 5e-324])
def test_the_smallest_temperatures_are_greedy(server, temperature):
    reply = server.complete(prompt="the cat", max_tokens=8, temperature=temperature)
    assert reply.json()["choices"][0]["text"] == greedy(server, "the cat", 8).text


@pytest.mark.parametrize("penalty", [-100, 100])
def test_beams_have_finite_scores_at_every_length_penalty(server, penalty):
    with slow_server(0) as long:  # of 1,024 positions: 1,200 to the power of 100 is no float64
        body = long.api(prompts=["a"], beam_width=2, length_penalty=penalty, tokens_to_generate=9)
        assert body.status_code == 200


JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n"


@settings(suppress_health_check=list(HealthCheck), max_examples=150, derandomize=True)
@given(st.data())
def test_no_bytes_make_the_server_fail(server, caplog, data):
    """Requests with bytes replaced, removed or put in, and bytes that are no request."""
    whole = data.draw(
        st.sampled_from(
            [
                b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"PUT /api HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Content-Length: 2\r\n\r\n{}",
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + JSON + CHUNKED,
                b"GET http://localhost/v1/models HTTP/1.0\r\n" + UPGRADE,
                b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n",
                b"",
            ]
        )
    )
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(len(whole), start + 3)))
        new = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\r\n", b"\0", b"%", b"\xff", b": ", b" HTTP/1.1\r\n"])
        )
        whole = whole[:start] + new + whole[end:]
    with caplog.at_level(logging.ERROR), socket.create_connection(server.address) as client:
        client.sendall(whole)
        client.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while piece := client.recv(65536):
                said += piece
        except ConnectionError:
            pass
    for status in re.findall(rb"HTTP/1.1 (\d{3})", said):
        assert status != b"500", (whole, said)
    assert not caplog.records, (whole, caplog.records[0].getMessage(), caplog.records[0].exc_text)


@pytest.mark.parametrize("value", ["-1", "{}", "[]", "[1]", '{"":0}', '"a"', "null"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/completions"), ("PUT", "/api")])
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(server, value, method, path):
    body = f'{{"prompt":[{",".join([value] * 100_000)}]}}'
    headers = {"Content-Type": "application/json"}
    reply = httpx.request(method, server.url + path, content=body, headers=headers)
    assert reply.status_code == 400
    assert "the body has more than 25000 values; send less at a time" in reply.text


def test_commas_and_brackets_in_texts_are_no_values(server):
    reply = server.complete(prompt="a", max_tokens=1, stop=[',[{"\\' * 100])
    assert reply.status_code == 200


def test_beams_count_as_rows_of_a_request():
    with slow_server(seconds=0, max_tokens_to_oom=150) as server:
        refused = server.complete(prompt="a", max_tokens=2, beam_width=64)
        assert refused.status_code == 400
        assert "beam_width: 64 beams of up to 3 tokens each are 192" in refused.json()["error"]["message"]
        assert server.complete(prompt="a", max_tokens=1, beam_width=64).status_code == 200
        assert server.api(prompts=["a"], tokens_to_generate=2, beam_width=64).status_code == 400


@pytest.mark.parametrize("streamed", [False, True])
def test_long_answers_are_not_written_in_the_thread_that_answers_all_clients(monkeypatch, streamed):
    with Running(small_model(1024)) as server:
        loop, threads = server.http_thread, collections.Counter()
        decode = server.model.tokenizer.decode

        def noted(ids):
            threads[threading.current_thread()] += 1
            return decode(ids)

        monkeypatch.setattr(server.model.tokenizer, "decode", noted)
        body = {"prompt": "a" * 500, "max_tokens": 2, "logprobs": 1, "echo": True}
        if streamed:
            assert server.events(**body)  # two tokens that come at once share an event
        else:
            assert server.complete(**body).status_code == 200
            reply = server.api(prompts=["a" * 500], tokens_to_generate=2, logprobs=True)
            assert len(reply.json()["segments"][0]) == 502
        assert threads
        assert all(count < 500 for thread, count in threads.items() if thread is loop), "short pieces only"


def test_clients_are_told_apart_by_their_keys_or_without_keys_by_their_addresses(server):
    def client(key, address, with_keys):
        handler = RequestHandler(
            server.engine, server.metrics, "x", max_tokens=1, timeout_s=1, with_keys=with_keys
        )
        scope = {"type": "http", "headers": [(b"authorization", key)], "client": (address, 1)}
        return handler._client(Request(scope))

    assert client(b"Bearer a", "192.0.2.1", True) == client(b"bearer  a", "192.0.2.2", True)
    assert client(b"Bearer a", "192.0.2.1", True) != client(b"Bearer b", "192.0.2.1", True)
    assert client(b"Bearer a", "192.0.2.1", False) == client(b"Bearer b", "192.0.2.1", False)
    assert client(b"", "2001:db8::1", False) == client(b"", "2001:db8::2", False)
