"""API keys and metrics."""

import asyncio
import contextlib

import pytest

from mt.core.config import UserError
from mt.eval.generation.generate import GenerateConfig, generate
from mt.eval.server.access import Access
from mt.eval.server.middleware import Metrics, RequestMiddleware
from mt.tests.eval.server.running_server import Running, small_model


def test_every_path_but_the_page_and_health_needs_a_key(tmp_path):
    with Running(small_model(), keys=["secret", "other"]) as server:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert server.client.get(path).status_code == 401
            assert server.client.get(path, headers={"Authorization": "Bearer other"}).status_code == 200
        assert server.api(prompts=["a"]).status_code == 401
        assert server.client.get("/").status_code == server.client.get("/health").status_code == 200
        (tmp_path / "keys").write_text("secret\n")
        request = {"url": server.url, "prompts": ("a",), "tokens_to_generate": 2}
        assert (
            generate(GenerateConfig(**request, api_key_file=str(tmp_path / "keys")))["counts"]["tokens"] == 2
        )
        with pytest.raises(UserError, match="an API key is missing or wrong"):
            generate(GenerateConfig(**request))


def test_metrics_count_requests_and_tokens(server):
    before = server.metrics.counts()
    server.complete(prompt="abc", max_tokens=4, temperature=0)
    after = server.metrics.counts()
    assert [after[name] - before[name] for name in ("requests", "prompt_tokens", "tokens")] == [1, 3, 4]
    text = server.client.get("/metrics").text
    assert 'mt_requests_total{path="/v1/completions",status="200"}' in text
    assert "mt_running 0.0" in text


@pytest.mark.parametrize("cut", [False, True])
def test_a_request_is_counted_once_and_before_the_end_of_its_response(server, cut):
    metrics, counted = Metrics(server.engine), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        if cut:
            raise ConnectionResetError
        await send({"type": "http.response.body", "body": b"b"})

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        counted.append(metrics.counts()["requests"])

    with contextlib.suppress(ConnectionResetError):
        asyncio.run(
            RequestMiddleware(app, metrics, Access([], []), 100, 60)(
                {"type": "http", "method": "PUT", "path": "/api", "headers": []}, receive, send
            )
        )
    assert counted == ([0, 0] if cut else [0, 0, 1])
    assert metrics.counts()["requests"] == 1
