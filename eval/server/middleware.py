"""ASGI middleware before every request: who may ask, limits of the body's size and time, and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from .access import WITHOUT_KEY, Access
from .engine import Engine
from .requests import RequestError
from .responses import error_messages

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
PATHS = (*WITHOUT_KEY, "/api", "/v1/completions", "/v1/models", "/metrics", "/openapi.json")
# A body that is too large is read and discarded up to this multiple of the limit, because most clients read
# the response only after they have sent the body.
DISCARDED_BODIES = 64
SHUTTING_DOWN = "the server is shutting down"


class Metrics:
    """Prometheus counters and histograms of one server, in their own registry."""

    def __init__(self, engine: Engine):
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "mt_requests", "Requests by path and HTTP status", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "mt_request_seconds",
            "Time from a request's first byte to the last byte of its response",
            ("path",),
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=registry,
        )
        self.prompt_tokens = Counter("mt_prompt_tokens", "Tokens of accepted prompts", registry=registry)
        self.tokens = Counter("mt_generated_tokens", "Generated tokens", registry=registry)
        Gauge("mt_waiting", "Texts in the queue", registry=registry).set_function(lambda: engine.waiting)
        Gauge("mt_running", "Texts being generated", registry=registry).set_function(lambda: engine.running)
        self.media_type = CONTENT_TYPE_LATEST

    def began(self, prompt_tokens: int) -> None:
        self.prompt_tokens.inc(prompt_tokens)

    def ended(self, tokens: int) -> None:
        self.tokens.inc(tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def counts(self) -> dict[str, int]:
        """The totals: requests, prompt_tokens, tokens."""
        samples = [sample for metric in self.registry.collect() for sample in metric.samples]
        total = lambda name: int(sum(s.value for s in samples if s.name == f"mt_{name}_total"))
        return {
            "requests": total("requests"),
            "prompt_tokens": total("prompt_tokens"),
            "tokens": total("generated_tokens"),
        }


class RequestMiddleware:
    """An ASGI application around another: refuses a request, or reads its body and passes it on.

    closing: whether the server shuts down; a body that is not there yet is then refused.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        metrics: Metrics,
        access: Access,
        max_body_bytes: int,
        body_timeout_s: float,
        closing: Callable[[], bool] = lambda: False,
    ):
        self.app, self.metrics, self.access, self.closing = app, metrics, access, closing
        self.max_body_bytes, self.body_timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, started, status, counted = scope["path"], time.monotonic(), 0, False

        def count() -> None:
            nonlocal counted
            if counted:
                return
            counted = True
            label = path if path in PATHS else "other"
            self.metrics.requests.labels(label, str(status)).inc()
            self.metrics.seconds.labels(label).observe(time.monotonic() - started)

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                count()  # before the last byte: a client that has the response finds it in the metrics
            await send(message)

        try:
            try:
                self.access.check(scope["method"], path, scope["headers"])
                body = await asyncio.wait_for(self._body(receive), self.body_timeout_s)
            except TimeoutError:
                late = RequestError(408, f"the body did not arrive within {self.body_timeout_s:g} s")
                await _refuse(late, path, counting_send)
            except RequestError as error:
                await _refuse(error, path, counting_send)
            except asyncio.CancelledError:  # the server ends, and the body is not there yet
                await _refuse(RequestError(503, SHUTTING_DOWN), path, counting_send)
            else:
                if scope["method"] == "HEAD":  # its response is that of GET; uvicorn leaves the body out
                    scope = {**scope, "method": "GET"}
                await self.app(scope, _replay(body, receive), counting_send)
        finally:
            count()  # also a response that was cut off or failed

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the body was cut off")
            if message.get("more_body") and self.closing():
                raise RequestError(503, SHUTTING_DOWN)
            size += len(message.get("body", b""))
            if size <= self.max_body_bytes:
                parts.append(message.get("body", b""))
            if not message.get("more_body") or size > DISCARDED_BODIES * self.max_body_bytes:
                break
        if size > self.max_body_bytes:
            raise RequestError(
                413, f"the body is larger than {self.max_body_bytes} bytes; send less at a time"
            )
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """An ASGI `receive` that gives a body that was read already, then the further messages (disconnect)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(error: RequestError, path: str, send: Send) -> None:
    for message in error_messages(error, path):
        await send(message)
