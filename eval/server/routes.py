"""The HTTP routes of `mt serve` and their OpenAPI description."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from ...core.content_security import inline_source
from .access import Access
from .engine import Engine
from .handlers import RequestHandler
from .middleware import Metrics, RequestMiddleware
from .requests import MEGATRON_SCHEMA, CompletionRequest, RequestError
from .responses import error_body

INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)
TEXT, OBJECT = {"schema": {"type": "string"}}, {"schema": {"type": "object"}}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
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
UNKNOWN = {
    404: "the server has no such path; /openapi.json describes those it has",
    405: "the path does not take this method; the header Allow names those that it takes",
}
GENERATION_ERRORS = (400, 403, 408, 413, 415, 500, 503, 504)


def content_security_policy(page: str) -> str:
    """The policy of a page that loads nothing and talks only to this server.

    Only its own script and style run: their digests are named.
    """
    sources: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in INLINE.findall(page):
        sources[kind].append(inline_source(text))
    return (
        f"default-src 'none'; style-src {' '.join(sources['style'])};"
        f" script-src {' '.join(sources['script'])};"
        " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


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
    handler = RequestHandler(
        engine, metrics, name, max_tokens=max_tokens, timeout_s=timeout_s, with_keys=access.with_keys
    )
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    page_headers = {
        "Content-Security-Policy": content_security_policy(page),
        "X-Content-Type-Options": "nosniff",
    }
    access_errors = (401, 421) if access.with_keys else (421,)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers)

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

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        """A path or a method that the server does not have."""
        refusal = RequestError(error.status_code, UNKNOWN.get(error.status_code, str(error.detail)))
        body = refusal.message if request.url.path == "/api" else error_body(refusal)
        return JSONResponse(body, error.status_code, error.headers)

    return RequestMiddleware(
        app, metrics, access, max_body_bytes, body_timeout_s, closing=lambda: engine.closing
    )


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
