"""The server over real HTTP: both dialects, every limit, clients that go, SIGTERM under load."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mt.core.config import UserError
from mt.eval.generation.generate import GenerateConfig, generate

for package in ("httpx", "uvicorn", "fastapi", "prometheus_client"):
    pytest.importorskip(package, reason="the server's extra `serve` is not installed")

import httpx  # noqa: E402

from mt.eval.server.app import _listen  # noqa: E402
from mt.eval.server.middleware import Guard, Metrics  # noqa: E402
from mt.tests.eval.serving import Running, greedy, slow_server, small_model, until  # noqa: E402


@pytest.fixture(scope="module")
def server():
    with Running(small_model()) as running:
        yield running


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


def test_a_seed_reproduces_and_no_seed_does_not(server):
    draw = lambda **more: server.api(prompts=["x", "x"], tokens_to_generate=20, **more).json()["text"]
    assert draw(random_seed=3) == draw(random_seed=3) != draw(random_seed=4)
    assert draw(random_seed=3)[0] != draw(random_seed=3)[1], "every prompt has draws of its own"
    assert draw() != draw()


MEGATRON_REFUSALS = [
    ({}, "prompts argument required"),
    ({"prompts": ["a"], "max_len": 3}, "max_len is no longer used.  Replace with tokens_to_generate"),
    ({"prompts": ["a"], "sentences": ["b"]}, "sentences is no longer used.  Replace with prompts"),
    ({"prompts": "a"}, "prompts is not a list of strings"),
    ({"prompts": [1]}, "prompts is not a list of strings"),
    ({"prompts": []}, "prompts is empty"),
    ({"prompts": ["a"] * 129}, "Maximum number of prompts is 128"),
    ({"tokens_to_generate": 1.5}, "tokens_to_generate must be an integer greater than 0"),
    ({"tokens_to_generate": -1}, "tokens_to_generate must be an integer greater than or equal to 0"),
    ({"tokens_to_generate": 0}, "tokens_to_generate=0 implies logprobs should be True"),
    ({"logprobs": 1}, "logprobs must be a boolean value"),
    ({"temperature": "hot"}, "temperature must be a positive number less than or equal to 100.0"),
    ({"temperature": 0}, "temperature must be a positive number less than or equal to 100.0"),
    ({"top_k": 1.0}, "top_k must be an integer equal to or greater than 0 and less than or equal to 1000"),
    ({"top_k": 1001}, "top_k must be equal to or greater than 0 and less than or equal to 1000"),
    ({"top_p": True}, "top_p must be a positive float less than or equal to 1.0"),
    ({"top_p": 1.1}, "top_p must be less than or equal to 1.0"),
    ({"top_p": 0.5, "top_k": 2}, "cannot set both top-k and top-p samplings."),
    ({"top_p_decay": 0.5}, "top_p_decay cannot be set without top_p"),
    ({"top_p_bound": 0.5}, "top_p_bound cannot be set without top_p"),
    ({"top_p": 0.4, "top_p_bound": 0.5}, "top_p_bound must be greater than 0 and less than top_p"),
    ({"add_BOS": "yes"}, "add_BOS must be a boolean value"),
    ({"prompts": ["a", ""]}, "Empty prompts require add_BOS=true"),
    ({"stop_on_eol": 0}, "stop_on_eol must be a boolean value"),
    ({"stop_on_double_eol": 0}, "stop_on_double_eol must be a boolean value"),
    ({"prevent_newline_after_colon": 0}, "prevent_newline_after_colon must be a boolean value"),
    ({"random_seed": "1"}, "random_seed must be integer"),
    ({"random_seed": -1}, "random_seed must be a positive integer"),
    ({"no_log": 1}, "no_log must be a boolean value"),
    ({"beam_width": 2.0}, "beam_width must be integer"),
    ({"beam_width": 0}, "beam_width must be an integer > 1"),
    ({"prompts": ["a", "b"], "beam_width": 2}, "When doing beam_search, batch size must be 1"),
    ({"stop_token": "x"}, "stop_token must be an integer"),
    ({"stop_token": 257}, "stop_token must be an id of the vocabulary"),
    ({"beam_width": 2, "length_penalty": "1"}, "length_penalty must be a float"),
    ({"length_penalty": 2.0}, "length_penalty cannot be set without beam_width"),
    ({"tokens_to_generate": 128}, "Length of prompt + tokens_to_generate longer than allowed"),
    (
        {"prompts": ["a" * 60] * 128, "tokens_to_generate": 60},
        "Too many tokens.  15360 is greater than 12000",
    ),
    ({"tokens_to_generatr": 3}, "tokens_to_generatr is not known; did you mean tokens_to_generate?"),
    ({"prompts": ["\ud800"]}, "prompt: number 1 is not valid Unicode text (a lone surrogate)"),
]


@pytest.mark.parametrize(("body", "message"), MEGATRON_REFUSALS, ids=range(len(MEGATRON_REFUSALS)))
def test_what_megatrons_request_may_not_be_is_refused_with_its_message(server, body, message):
    body = body if not body or "prompts" in body else {"prompts": ["a"], **body}
    reply = server.client.put("/api", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()) == (400, message)


@pytest.mark.parametrize(
    "field",
    [
        {"stop_on_eol": True},
        {"stop_on_double_eol": True},
        {"prevent_newline_after_colon": True},
        {"no_log": True},
        {"stop_token": 32},
        {"top_p": 1},
        {"top_p": 0.9, "top_p_decay": 0.9, "top_p_bound": 0.2},
        {"temperature": 100},
        {"add_BOS": True},
    ],
)
def test_every_other_field_of_megatrons_is_honoured(server, field):
    reply = server.api(prompts=["a:"], tokens_to_generate=5, random_seed=1, **field)
    assert reply.status_code == 200, reply.text
    if "stop_token" in field:
        end = server.api(prompts=["a:"], tokens_to_generate=30, top_k=1).json()["tokens"][0][5]
        (ids,) = server.api(prompts=["a:"], tokens_to_generate=30, top_k=1, stop_token=end).json()["tokens"]
        assert ids.index(end, 2) == len(ids) - 1


def test_a_completion_has_openais_form(server):
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


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"max_tokens": 3}, 400, "prompt: Field required"),
        ({"prompt": []}, 400, "prompt: "),
        ({"prompt": [300]}, 400, "prompt: id 300 is not below 257, the size of the vocabulary"),
        (
            {"prompt": "a", "max_tokens": 200},
            400,
            (
                "prompt: number 1 has 1 tokens; with max_tokens = 200 that is 201, but the model has 128"
                " positions"
            ),
        ),
        ({"prompt": "a", "temperature": "x"}, 400, "temperature: "),
        ({"prompt": "a", "temperature": 1, "n": 2}, 400, "n: "),
        ({"prompt": "a", "best": 2}, 400, "best: Extra inputs are not permitted"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens: 0 needs echo and logprobs"),
        ({"prompt": "a", "beam_width": 2, "stream": True}, 400, "beam_width: cannot be combined"),
        ({"prompt": "a", "model": "gpt-5"}, 404, "model 'gpt-5' is not served here; ask for 'small'"),
        (
            {"prompt": ["a"] * 100, "max_tokens": 126},
            400,
            "prompt: 100 prompts of up to 127 tokens each are 12700, more than the 12000",
        ),
    ],
)
def test_what_a_completion_may_not_be_is_refused_in_one_line(server, body, status, message):
    reply = server.complete(**body)
    assert reply.status_code == status
    assert message in reply.json()["error"]["message"]


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


def test_64_clients_at_once_get_what_each_would_get_alone_and_grow_together(server):
    before = server.engine.steps.copy()
    ask = lambda n: server.complete(prompt=f"client {n}", max_tokens=20, seed=n).json()["choices"][0]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, range(64)))
    assert max(server.engine.steps - before) > 4, "they shared their steps"
    assert [choice["token_ids"] for choice in together[::8]] == [ask(n)["token_ids"] for n in range(0, 64, 8)]


def test_a_full_queue_refuses_and_says_when_to_come_again():
    with (
        slow_server(max_batch_size=1, max_queue=2) as server,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        ask = lambda: pool.submit(server.complete, prompt="a", max_tokens=4, temperature=0)
        with server.model.model.held():  # so that nothing ends, however slow this machine is
            running = [ask()]
            until(lambda: server.engine.running == 1)
            running += [ask(), ask()]
            until(lambda: server.engine.waiting == 2)
            refused = server.complete(prompt="a", max_tokens=1)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "the queue is full (2 of 2 texts wait)" in refused.json()["error"]["message"]
        assert [r.result().status_code for r in running] == [200] * 3


def test_a_request_that_takes_too_long_is_given_up_and_its_row_is_free():
    with slow_server(request_timeout=0.3) as server:
        reply = server.complete(prompt="a", max_tokens=1000)
        assert reply.status_code == 504
        assert "longer than 0.3 s" in reply.json()["error"]["message"]
        until(lambda: server.engine.running == 0)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_frees_its_row(streamed):
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


def test_a_model_that_fails_fails_its_requests_and_the_server_goes_on(capfd):
    with slow_server() as server:
        server.model.model.fails = True
        reply = server.complete(prompt="a", max_tokens=3)
        assert reply.status_code == 500
        assert "the model failed (RuntimeError)" in reply.json()["error"]["message"]
        server.model.model.fails = False
        assert server.complete(prompt="a", max_tokens=3).status_code == 200
        assert "out of memory" in capfd.readouterr().err


def test_a_key_is_asked_for_everywhere_but_at_the_page_and_health(tmp_path):
    with Running(small_model(), keys=["secret", "other"]) as server:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert server.client.get(path).status_code == 401
            assert server.client.get(path, headers={"Authorization": "Bearer other"}).status_code == 200
        assert server.api(prompts=["a"]).status_code == 401
        assert server.client.get("/").status_code == server.client.get("/health").status_code == 200
        (tmp_path / "keys").write_text("secret\n")
        ask = {"url": server.url, "prompts": ("a",), "tokens_to_generate": 2}
        assert generate(GenerateConfig(**ask, api_key_file=str(tmp_path / "keys")))["counts"]["tokens"] == 2
        with pytest.raises(UserError, match="an API key is missing or wrong"):
            generate(GenerateConfig(**ask))


def test_metrics_count_requests_and_tokens(server):
    before = server.metrics.counts()
    server.complete(prompt="abc", max_tokens=4, temperature=0)
    after = server.metrics.counts()
    assert [after[name] - before[name] for name in ("requests", "prompt_tokens", "tokens")] == [1, 3, 4]
    text = server.client.get("/metrics").text
    assert 'mt_requests_total{path="/v1/completions",status="200"}' in text
    assert "mt_running 0.0" in text


@pytest.mark.parametrize("cut", [False, True])
def test_a_request_is_counted_once_and_before_the_last_byte_of_its_answer_leaves(server, cut):
    metrics, seen = Metrics(server.engine), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        if cut:
            raise ConnectionResetError
        await send({"type": "http.response.body", "body": b"b"})

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        seen.append(metrics.counts()["requests"])

    with contextlib.suppress(ConnectionResetError):
        asyncio.run(
            Guard(app, metrics, [], 100)({"type": "http", "path": "/api", "headers": []}, receive, send)
        )
    assert seen == ([0, 0] if cut else [0, 0, 1])
    assert metrics.counts()["requests"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"greedy": True},
        {"top_p": 0.8, "top_p_decay": 0.9, "top_p_bound": 0.1},
        {"beam_width": 3},
        {"stop": ("e",), "temperature": 2.0},
        {"add_bos": True, "stop_on_eol": True},
    ],
)
def test_the_client_gives_the_texts_that_the_model_gives_here(server, monkeypatch, settings):
    asked = {"prompts": ("ab", "", "naïve", "ab"), "tokens_to_generate": 15, **settings}
    if "beam_width" in settings:
        asked["prompts"] = ("ab",)
    monkeypatch.setattr("mt.eval.generation.generate.open_generator", lambda *_: small_model())
    there, here = (
        generate(GenerateConfig(**where, **asked)) for where in ({"url": server.url}, {"load": "x"})
    )
    assert there["counts"] == here["counts"]
    for mine, own in zip(there["samples"], here["samples"]):
        for name in mine:
            if name == "beams":
                assert [b["tokens"] for b in mine[name]] == [b["tokens"] for b in own[name]]
            else:
                assert (
                    mine[name] == pytest.approx(own[name], abs=1e-4)
                    if name == "logprobs"
                    else mine[name] == own[name]
                )


def test_the_client_says_what_is_wrong_with_the_address_or_the_request(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="no answer of `mt serve`"):
            generate(GenerateConfig(url=f"http://127.0.0.1:{free.getsockname()[1]}", prompts=("a",)))
    with pytest.raises(UserError, match="must begin with http"):
        generate(GenerateConfig(url="localhost:5000", prompts=("a",)))
    with pytest.raises(UserError, match=r"the model has 128 positions \(HTTP 400\)"):
        generate(GenerateConfig(url=server.url, prompts=("a",), tokens_to_generate=500))


def test_an_address_in_use_is_said_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot be listened on .* choose another --port"):
            _listen("127.0.0.1", taken.getsockname()[1])


ROOT = Path(__file__).parents[3]
SERVE = """
import sys
from mt.tests.eval.serving import SlowModel, small_model
from mt.eval import serve
model = small_model(1024)
model.model = SlowModel(model.model)
serve.open_generator = lambda *_: model
serve.ready_to_run = lambda model, **_: model
print(serve.serve(serve.ServeConfig(load="small", port=int(sys.argv[1]), shutdown_grace=6))["text"])
"""


def test_sigterm_under_load_lets_requests_finish_tells_those_that_cannot_and_exits_0():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def up():
        try:
            return client.get("/health").status_code == 200
        except httpx.TransportError:
            assert process.poll() is None, process.stderr.read()
            return False

    def ask(n):
        body = {"prompt": f"client {n}", "max_tokens": 80 if n < 4 else 1000, "temperature": 0}
        if n % 2:
            reply = client.post("/v1/completions", json=body)
            return (
                reply.status_code
                if reply.status_code != 200
                else len(reply.json()["choices"][0]["token_ids"])
            )
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
            said = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        return len(said) if said[-1] == "[DONE]" else json.loads(said[-1])["error"]["code"]

    try:
        until(up)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, n) for n in range(8)]
            until(lambda: "mt_running 8.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in asked]
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert answers[1] == answers[3] == 80
    assert all(8 < answers[n] <= 81 for n in (0, 2)), "pieces of text, and [DONE]"
    assert answers[4:] == [503] * 4
    assert "served" in out
    assert "Traceback" not in err
