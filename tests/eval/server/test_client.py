"""`mt generate --url`, compared with `mt generate --load` of the same model."""

import contextlib
import http.server
import json
import socket
import threading

import pytest

from mt.core.config import UserError
from mt.eval.generation.generate import GenerateConfig, generate
from mt.eval.server.client import read_keys
from mt.tests.eval.server.running_server import small_model


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
def test_the_client_returns_the_texts_of_the_local_model(server, monkeypatch, settings):
    request = {"prompts": ("ab", "", "naïve", "ab"), "tokens_to_generate": 15, **settings}
    if "beam_width" in settings:
        request["prompts"] = ("ab",)
    monkeypatch.setattr("mt.eval.generation.generate.open_checkpoint", lambda path: None)
    monkeypatch.setattr("mt.eval.generation.generate.open_generator", lambda *_: small_model())
    there, here = (
        generate(GenerateConfig(**where, **request)) for where in ({"url": server.url}, {"load": "x"})
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


def test_a_wrong_address_or_request_is_named_by_the_client(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="no answer of `mt serve`"):
            generate(GenerateConfig(url=f"http://127.0.0.1:{free.getsockname()[1]}", prompts=("a",)))
    with pytest.raises(UserError, match="must begin with http"):
        generate(GenerateConfig(url="localhost:5000", prompts=("a",)))
    with pytest.raises(UserError, match=r"the model has 128 positions \(HTTP 400\)"):
        generate(GenerateConfig(url=server.url, prompts=("a",), tokens_to_generate=500))


@contextlib.contextmanager
def stranger():
    """A server that gives `answer` (status, body, headers) to everything and keeps requests in `seen`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.seen.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body, headers = self.server.answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url, server.seen, server.answer = f"http://127.0.0.1:{server.server_port}", [], (200, b"", {})
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


GOOD = {
    "prompt_tokens": 1,
    "text": "b",
    "token_ids": [1],
    "logprobs": {"token_logprobs": [-1.0]},
    "ended": "eod",
}


def answers():
    for value in (None, True, "x", [], {}, -1, 1e30, 10**4000):
        yield json.dumps(value)
        yield json.dumps({"choices": value})
        yield json.dumps({"choices": [value]})
        for name in GOOD:
            if name != "ended" and not isinstance(value, type(GOOD[name])):
                yield json.dumps({"choices": [GOOD | {name: value}]})
    yield from (
        "",
        "{",
        "[" * 10**6,
        "[" * 10**5 + "]" * 10**5,
        "9" * 5000,
        json.dumps({"choices": [GOOD] * 2}),
    )


def test_a_stranger_in_place_of_the_server_gets_one_line_whatever_it_answers():
    with stranger() as server:
        ask = GenerateConfig(url=server.url, prompts=("a",))
        for answer in answers():
            server.answer = (200, answer.encode(), {})
            with pytest.raises(UserError, match=r"no answer of `mt serve`|not one of `mt serve`") as said:
                generate(ask)
            assert len(str(said.value)) < 5000
        for answer in (b"", b"\xff", b"[]", b'{"error": []}', b'{"error": {"message": "it"}}'):
            server.answer = (418, answer, {"Retry-After": "9" * 5000})
            with pytest.raises(UserError, match=r"\(HTTP 418\)"):
                generate(ask)


def test_the_key_does_not_follow_a_redirection(tmp_path):
    (tmp_path / "key").write_text("secret")
    with stranger() as elsewhere, stranger() as server:
        for status in (301, 302, 303, 307, 308):
            server.answer = (status, b"", {"Location": elsewhere.url})
            with pytest.raises(UserError, match=f"HTTP {status}"):
                generate(GenerateConfig(url=server.url, prompts=("a",), api_key_file=str(tmp_path / "key")))
        assert len(server.seen) == 5
        assert elsewhere.seen == []


def test_a_byte_order_mark_belongs_to_no_key(tmp_path):
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_keys(str(tmp_path / "keys")) == ["one", "two"]
