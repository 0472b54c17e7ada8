"""The HTTP routes of `mt serve` and their OpenAPI description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from .access import Access
from .engine import Engine
from .handlers import RequestHandler
from .middleware import Metrics, RequestMiddleware
from .requests import MEGATRON_SCHEMA, CompletionRequest

# The page loads nothing from elsewhere and talks only to this server.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self';"
    " frame-ancestors 'none'"
)
TEXT, OBJECT = {"schema": {"type": "string"}}, {"schema": {"type": "object"}}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "integer"},
            },
        }
    },
}
STATUSES = {
    400: "the request is invalid",
    401: "the API key is missing or wrong",
    403: "another site's page sent the request",
    404: "the server has no such model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not JSON",
    421: "the Host header has a name that is not allowed",
    500: "the model failed",
    503: "the queue is full, or the server is shutting down; see Retry-After",
    504: "the request took too long",
}
GENERATION_ERRORS = (400, 403, 408, 413, 415, 500, 503, 504)


def build_app(
    engine: Engine,
    metrics: Metrics,
    name: str,
    *,
    access: Access,
    max_tokens: int,
    max_body_bytes: int,
    body_timeout_s: float,
    timeout_s: float,
) -> RequestMiddleware:
    """The ASGI application. name: of the model. The rest: who may ask, and the limits of one request."""
    app = FastAPI(title="mt serve", version="1", docs_url=None, redoc_url=None)
    handler = RequestHandler(engine, metrics, name, max_tokens=max_tokens, timeout_s=timeout_s)
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    access_errors = (401, 421) if access.with_keys else (421,)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(page, headers=headers)

    @app.get("/health", **_openapi({"application/json": OBJECT}, (503,)))
    async def health() -> Response:
        """Whether requests are accepted."""
        if engine.closing:
            return JSONResponse({"status": "shutting down"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", **_openapi({"text/plain": TEXT}, access_errors))
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=metrics.media_type)

    @app.get("/v1/models", **_openapi({"application/json": OBJECT}, access_errors))
    async def models() -> dict:
        """The model of this server."""
        model = {
            "id": name,
            "object": "model",
            "created": handler.started,
            "owned_by": "mt",
            "max_model_len": engine.model.max_length,
            "vocab_size": engine.model.tokenizer.vocab_size,
        }
        return {"object": "list", "data": [model]}

    megatron_openapi = _openapi(
        {"application/json": OBJECT}, (*GENERATION_ERRORS, *access_errors), MEGATRON_SCHEMA, TEXT["schema"]
    )

    @app.put("/api", **megatron_openapi)
    async def megatron(request: Request) -> Response:
        """Megatron-LM's text generation server."""
        return await handler.answer(request, handler.megatron, error_as_text=True)

    completions_openapi = _openapi(
        # no schema for events: one of OpenAPI 3.1 would describe a stream, which tools read as one event
        {"application/json": OBJECT, "text/event-stream": {}},
        (404, *GENERATION_ERRORS, *access_errors),
        _completion_schema(),
    )

    @app.post("/v1/completions", **completions_openapi)
    async def completions(request: Request) -> Response:
        """OpenAI's completions."""
        return await handler.answer(request, handler.completions)

    return RequestMiddleware(app, metrics, access, max_body_bytes, body_timeout_s)


def _openapi(
    reply: dict, statuses: tuple[int, ...], body: dict | None = None, error: dict = ERROR_SCHEMA
) -> dict[str, Any]:
    """FastAPI's arguments that describe an endpoint: its response, its error statuses and its body."""
    json_content = lambda schema: {"application/json": {"schema": schema}}
    responses: dict[int, dict] = {200: {"description": "the answer", "content": reply}}
    for status in statuses:
        responses[status] = {"description": STATUSES[status], "content": json_content(error)}
    described: dict[str, Any] = {"responses": responses}
    if body is not None:
        described["openapi_extra"] = {"requestBody": {"required": True, "content": json_content(body)}}
    return described


def _completion_schema() -> dict:
    schema = CompletionRequest.model_json_schema()
    assert "$defs" not in schema, "the schema needs no definitions outside itself"
    return schema
