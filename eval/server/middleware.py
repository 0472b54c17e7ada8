"""what stands before every request: the API key, the size and speed of the body; and what is counted of them."""

from __future__ import annotations

import asyncio
import hmac
import json
import time

import prometheus_client

from .engine import Engine
from .requests import Refusal

OPEN = ("/", "/health")  # without a key
READ_S = 60.0  # for a whole body
# times the largest body: so much of one too large is read and thrown away, so that its sender hears the
# answer
DRAINED = 64


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self, engine: Engine):
        registry = self.registry = prometheus_client.CollectorRegistry()
        make = lambda kind, name, text, labels=(), **how: kind(
            f"mt_{name}", text, labels, registry=registry, **how
        )
        times = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
        self.requests = make(
            prometheus_client.Counter, "requests", "Requests by path and HTTP status", ("path", "status")
        )
        self.seconds = make(
            prometheus_client.Histogram,
            "request_seconds",
            "From a request's first byte to its answer's last",
            ("path",),
            buckets=times,
        )
        self.prompt_tokens = make(prometheus_client.Counter, "prompt_tokens", "Tokens of prompts taken on")
        self.tokens = make(prometheus_client.Counter, "generated_tokens", "Tokens generated")
        make(prometheus_client.Gauge, "waiting", "Texts that wait").set_function(lambda: engine.waiting)
        make(prometheus_client.Gauge, "running", "Texts that grow").set_function(lambda: engine.running)
        self.media_type = prometheus_client.CONTENT_TYPE_LATEST

    def began(self, prompt_tokens: int) -> None:
        self.prompt_tokens.inc(prompt_tokens)

    def ended(self, tokens: int) -> None:
        self.tokens.inc(tokens)

    def text(self) -> bytes:
        return prometheus_client.generate_latest(self.registry)

    def counts(self) -> dict:
        """The totals: requests, prompt_tokens, tokens."""
        samples = [sample for metric in self.registry.collect() for sample in metric.samples]
        total = lambda name: int(sum(s.value for s in samples if s.name == f"mt_{name}_total"))
        return {
            "requests": total("requests"),
            "prompt_tokens": total("prompt_tokens"),
            "tokens": total("generated_tokens"),
        }


class Guard:
    """An ASGI application around another: refuses, or lets through with the body read."""

    def __init__(self, app, metrics: Metrics, keys: list[str], max_body_bytes: int):
        self.app, self.metrics, self.keys, self.max_body_bytes = (
            app,
            metrics,
            [key.encode() for key in keys],
            max_body_bytes,
        )

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        path, started, status, counted = scope["path"], time.monotonic(), 0, False

        def count() -> None:
            nonlocal counted
            if counted:
                return
            counted = True
            known = (
                path
                if path in (*OPEN, "/api", "/v1/completions", "/v1/models", "/metrics", "/openapi.json")
                else "other"
            )
            self.metrics.requests.labels(known, str(status)).inc()
            self.metrics.seconds.labels(known).observe(time.monotonic() - started)

        async def counting_send(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                count()  # before its last byte leaves: whoever has the answer finds it counted
            await send(message)

        try:
            try:
                self._check_key(scope)
                body = await asyncio.wait_for(self._body(receive), READ_S)
            except TimeoutError:
                await _refuse(Refusal(408, f"the body did not come within {READ_S:g} s"), path, counting_send)
            except Refusal as refusal:
                await _refuse(refusal, path, counting_send)
            else:
                await self.app(scope, _replay(body, receive), counting_send)
        finally:
            count()  # an answer that was cut off, or that failed, is one too

    def _check_key(self, scope) -> None:
        if not self.keys or scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
        # every key is compared in full, so that the time tells nothing
        if not any([hmac.compare_digest(given, key) for key in self.keys]):
            raise Refusal(401, "an API key is missing or wrong; send the header Authorization: Bearer KEY")

    async def _body(self, receive) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the body was cut off")
            size += len(message.get("body", b""))
            if size <= self.max_body_bytes:
                parts.append(message.get("body", b""))
            if not message.get("more_body") or size > DRAINED * self.max_body_bytes:
                break
        if size > self.max_body_bytes:
            raise Refusal(413, f"the body is larger than {self.max_body_bytes} bytes; send less at a time")
        return b"".join(parts)


def _replay(body: bytes, receive):
    """An ASGI `receive` that gives a body that was read already, then what else comes: the client's going."""
    given = False

    async def again() -> dict:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(refusal: Refusal, path: str, send) -> None:
    body = json.dumps(
        refusal.message
        if path == "/api"
        else {"error": {"message": refusal.message, "type": "invalid_request_error", "code": refusal.status}}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
