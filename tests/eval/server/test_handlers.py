"""Both APIs over HTTP: responses, request time limits, clients that disconnect."""

import httpx
import numpy as np
import pytest

from mt.tests.eval.server.running_server import greedy, slow_server, until


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
