"""a checkpoint behind HTTP: Megatron-LM's `PUT /api`, OpenAI's `/v1/completions`, and a page at `/` for
people.

    GET  /                 the page (page.html)
    PUT  /api              Megatron-LM's text generation server, every field honoured or refused (api.py)
    POST /v1/completions   OpenAI's, with streaming as server-sent events, log-probabilities, token ids
    GET  /v1/models        the one model's name and positions
    GET  /health           200 while requests are taken, 503 while shutting down
    GET  /metrics          Prometheus
    GET  /openapi.json     the description of all this

The model runs in the main thread (engine.py), where requests of all clients grow together, and newcomers join
between two tokens; HTTP runs in another. Nothing waits without bound: the queue, bodies, tokens and times
have limits. After SIGTERM or Ctrl-C no request is taken, those under way get `shutdown_grace` seconds to
finish, and what then is left is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from ...core.config import UserError, check, configuration, option
from ...train.prepacked_weights import ready_to_run
from ..generation.beam_search import BeamSearch
from ..generation.sampling import Continuation
from ..lm import LanguageModel, Retrieval, open_generator
from .client import read_keys
from .engine import Busy, Closing, Engine, Job
from .middleware import Guard, Metrics
from .requests import (
    MEGATRON_SCHEMA,
    CompletionRequest,
    Refusal,
    Wanted,
    completion_request,
    megatron_request,
)

CONNECTIONS = 1000  # at once; beyond, HTTP 503
POLL_S = 0.25  # how soon a client that has gone is noticed while nothing is generated for it


@configuration()
class ServeConfig:
    """What is served, where, and how much of it."""

    load: str = option(help="checkpoint directory", role="input")
    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0: every network of this machine", role="runtime"
    )
    port: int = option(5000, "port to listen on; 0: any free one", role="runtime")
    model_name: str | None = option(None, "name of the model (default: that of its directory)")
    bf16: bool = option(False, "compute in bfloat16")
    api_key_file: str | None = option(
        None, "file of keys, one a line; requests must carry one: Authorization: Bearer KEY", role="runtime"
    )
    max_batch_size: int = option(64, "texts that grow together")
    max_tokens_to_oom: int = option(
        12000, "rows times positions that may be under way together, and that one request may take"
    )
    max_queue: int = option(256, "texts that may wait; beyond, requests are refused with HTTP 503")
    max_body_bytes: int = option(1_000_000, "largest request body")
    request_timeout: float = option(600.0, "seconds that a request may take, waiting included")
    shutdown_grace: float = option(30.0, "seconds that requests under way get to finish after SIGTERM")
    retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)

    def __post_init__(self):
        check(
            (0 <= self.port <= 65535, f"port = {self.port} must be from 0 to 65535"),
            *(
                (getattr(self, n) >= 1, f"{n} = {getattr(self, n)} must be at least 1")
                for n in ("max_batch_size", "max_tokens_to_oom", "max_queue", "max_body_bytes")
            ),
            (self.request_timeout > 0, f"request_timeout = {self.request_timeout:g} must be above 0"),
            (self.shutdown_grace >= 0, f"shutdown_grace = {self.shutdown_grace:g} must be at least 0"),
        )


def serve(config: ServeConfig) -> dict:
    """Serves until SIGTERM or Ctrl-C; returns what was done."""
    keys = read_keys(config.api_key_file) if config.api_key_file else []
    listener = _listen(config.host, config.port)
    model = open_generator(config.load, config.max_batch_size, config.retrieval)
    ready_to_run(model.model, bf16=config.bf16)
    engine = Engine(
        model,
        max_batch_size=config.max_batch_size,
        max_tokens=config.max_tokens_to_oom,
        max_queue=config.max_queue,
    )
    metrics = Metrics(engine)
    name = config.model_name or Path(config.load).resolve().name
    app = build_app(engine, metrics, name, config, keys)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(config.shutdown_grace) + 5,
        )
    )

    def stop(number, frame) -> None:
        server.should_exit = True
        engine.close(config.shutdown_grace)

    def http() -> None:
        try:
            server.run(sockets=[listener])
        finally:  # however it ended, without it there is nobody to work for
            engine.close(0)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=http, name="http")
    started = time.monotonic()
    thread.start()
    host, port = listener.getsockname()[:2]
    print(
        f"mt: {name} at http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C ends",
        file=sys.stderr,
        flush=True,
    )
    if not keys and not ipaddress.ip_address(host).is_loopback:
        print(
            "mt: anybody who reaches this address can use it; --api-key-file FILE asks for a key",
            file=sys.stderr,
            flush=True,
        )
    try:
        engine.run()
        thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    counts = metrics.counts()
    text = f"served {counts['requests']:,} requests, {counts['tokens']:,} tokens"
    return {"text": text, "model": name, "counts": counts, "seconds": round(time.monotonic() - started, 3)}


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket: what is wrong with the address is said before the model is loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"host = {host}, port = {port}: cannot be listened on ({error.strerror or error}); choose another"
            " --port or --host"
        ) from None
    return listener


ERROR = {
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
    400: "what is wrong with the request",
    401: "an API key is missing or wrong",
    404: "another model is asked for",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "the body is not JSON",
    500: "the model failed",
    503: "the queue is full, or the server is shutting down; see Retry-After",
    504: "the request took too long",
}


def _described(reply: dict, statuses: tuple[int, ...], body: dict | None = None, error: dict = ERROR) -> dict:
    """The OpenAPI parts of an endpoint: what it answers, what it refuses, its body."""
    json_of = lambda schema: {"application/json": {"schema": schema}}
    responses: dict = {200: {"description": "the answer", "content": reply}}
    responses |= {status: {"description": STATUSES[status], "content": json_of(error)} for status in statuses}
    extra = (
        {}
        if body is None
        else {"openapi_extra": {"requestBody": {"required": True, "content": json_of(body)}}}
    )
    return {"responses": responses, **extra}


def build_app(engine: Engine, metrics: Metrics, name: str, config: ServeConfig, keys: list[str]) -> Guard:
    """The HTTP application."""
    app = FastAPI(title="mt serve", version="1", docs_url=None, redoc_url=None)
    desk = Desk(engine, metrics, name, config)
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self';"
        " frame-ancestors 'none'"
    )
    of_work = (400, 408, 413, 415, 500, 503, 504)
    guarded = (401,) if keys else ()
    text, an_object, message = ({"schema": {"type": t}} for t in ("string", "object", "string"))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(
            page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        )

    @app.get("/health", **_described({"application/json": an_object}, (503,)))
    async def health() -> Response:
        """Whether requests are taken."""
        return JSONResponse(
            {"status": "shutting down" if engine.closing else "ok"}, 503 if engine.closing else 200
        )

    @app.get("/metrics", **_described({"text/plain": text}, guarded))
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    @app.get("/v1/models", **_described({"application/json": an_object}, guarded))
    async def models() -> dict:
        """The model that is served."""
        about = {
            "id": name,
            "object": "model",
            "created": desk.started,
            "owned_by": "mt",
            "max_model_len": engine.model.max_length,
            "vocab_size": engine.model.tokenizer.vocab_size,
        }
        return {"object": "list", "data": [about]}

    @app.put(
        "/api",
        **_described(
            {"application/json": an_object}, (*of_work, *guarded), MEGATRON_SCHEMA, message["schema"]
        ),
    )
    async def megatron(request: Request) -> Response:
        """Megatron-LM's text generation server."""
        return await desk.answer(request, desk.megatron, as_text=True)

    @app.post(
        "/v1/completions",
        **_described(
            {"application/json": an_object, "text/event-stream": text},
            (404, *of_work, *guarded),
            _flat_schema(),
        ),
    )
    async def completions(request: Request) -> Response:
        """OpenAI's completions."""
        return await desk.answer(request, desk.completions)

    return Guard(app, metrics, keys, config.max_body_bytes)


def _flat_schema() -> dict:
    schema = CompletionRequest.model_json_schema()
    assert "$defs" not in schema, "the body's schema stands by itself"
    return schema


class Desk:
    """Takes requests in, hands them to the engine, and gives the answers out."""

    def __init__(self, engine: Engine, metrics: Metrics, name: str, config: ServeConfig):
        self.engine, self.metrics, self.name, self.config = engine, metrics, name, config
        self.model: LanguageModel = engine.model
        self.started = int(time.time())
        self._encoding = threading.Lock()  # a tokenizer's backend may know one caller at a time

    async def answer(self, request: Request, endpoint, *, as_text: bool = False) -> Response:
        """The endpoint's response to the request's JSON, or its refusal; as_text: as a bare JSON string,
        Megatron-LM's way.
        """
        try:
            return await endpoint(request, await read_json(request))
        except Refusal as refusal:
            headers = {"Retry-After": str(refusal.retry_after_s)} if refusal.retry_after_s else {}
            return JSONResponse(refusal.message if as_text else error_body(refusal), refusal.status, headers)

    async def megatron(self, request: Request, body) -> Response:
        wanted, logprobs = await self._understand(
            megatron_request, body, self.model, self.config.max_tokens_to_oom
        )
        job = await self._run(request, wanted)
        decode = self.model.tokenizer.decode
        if job.search is not None:
            whole = [[*job.search.prompt, *beam.ids] for beam in job.search.found]
            texts = [body["prompts"][0] + text for text in job.search.texts()]
            return JSONResponse(
                {
                    "text": texts,
                    "segments": [[decode([i]) for i in ids] for ids in whole],
                    "scores": [beam.score for beam in job.search.found],
                }
            )
        whole = [[*c.prompt, *c.ids] for c in job.continuations]
        reply = {
            "text": [prompt + c.text for prompt, c in zip(body["prompts"], job.continuations)],
            "segments": [[decode([i]) for i in ids] for ids in whole],
        }
        if logprobs:
            reply["logprobs"] = [[*c.prompt_logprobs, *c.logprobs] for c in job.continuations]
        return JSONResponse(reply | {"tokens": whole})

    async def completions(self, request: Request, body) -> Response:
        wanted, asked = await self._understand(
            completion_request, body, self.model, self.name, self.config.max_tokens_to_oom
        )
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        given = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        texts = given if isinstance(given[0], str) else map(self.model.tokenizer.decode, wanted.prompts)
        echoed = list(texts) if asked.echo else [None] * len(wanted.prompts)
        views = [
            View(n, ids, text, asked.logprobs, self.model)
            for n, (ids, text) in enumerate(zip(wanted.prompts, echoed))
        ]
        if asked.stream:
            job, grown = self._submit(wanted, streamed=True)
            return StreamingResponse(
                self._stream(request, job, grown, head, views),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store"},
            )
        job = await self._run(request, wanted)
        if job.search is not None:
            choices = [views[0].of_beams(job.search)]
        else:
            choices = [view.news(c) for view, c in zip(views, job.continuations)]
        produced = sum(len(choice["token_ids"]) for choice in choices)
        asked_for = sum(map(len, wanted.prompts))
        usage = {
            "prompt_tokens": asked_for,
            "completion_tokens": produced,
            "total_tokens": asked_for + produced,
        }
        return JSONResponse({**head, "choices": choices, "usage": usage})

    async def _understand(self, function, *arguments) -> tuple:
        """function(*arguments) in another thread: a long text takes the tokenizer a while."""

        def alone():
            with self._encoding:
                return function(*arguments)

        return await run_in_threadpool(alone)

    def _submit(self, wanted: Wanted, *, streamed: bool = False) -> tuple[Job, asyncio.Event]:
        """The job under way, and the event that says that it has grown; raises Refusal."""
        loop, grown = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(grown.set)

        tokenizer = self.model.tokenizer
        search, continuations = None, []
        if wanted.beam_width is not None:
            search = BeamSearch(
                self.model.model,
                tokenizer,
                wanted.prompts[0],
                wanted.sampling,
                beam_width=wanted.beam_width,
                length_penalty=wanted.length_penalty,
            )
        else:
            seeds = [
                None if wanted.seed is None else (wanted.seed, wanted.first_prompt + n)
                for n in range(len(wanted.prompts))
            ]
            continuations = [
                Continuation(ids, wanted.sampling, tokenizer, np.random.default_rng(seed))
                for ids, seed in zip(wanted.prompts, seeds)
            ]
        job = Job(continuations, tell, streamed=streamed, search=search)
        try:
            self.engine.submit(job)
        except Busy:
            raise Refusal(
                503,
                f"the queue is full ({self.engine.waiting} of {self.config.max_queue} texts wait); try again"
                " later",
                retry_after_s=1,
            ) from None
        except Closing:
            raise Refusal(503, "the server is shutting down", retry_after_s=30) from None
        self.metrics.began(sum(map(len, wanted.prompts)))
        return job, grown

    async def _run(self, request: Request, wanted: Wanted) -> Job:
        """The finished job; raises Refusal."""
        job, grown = self._submit(wanted)
        try:
            async for _ in self._until_finished(request, job, grown):
                pass
        finally:
            self._done(job)
        return job

    async def _until_finished(self, request: Request, job: Job, grown: asyncio.Event) -> AsyncIterator[None]:
        """Yields when the job has grown, last when it is finished; raises Refusal."""
        deadline = time.monotonic() + self.config.request_timeout
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(grown.wait(), POLL_S)
            changed, finished = grown.is_set(), job.finished
            grown.clear()
            if job.error is not None:
                raise Refusal(503 if self.engine.closing else 500, job.error)
            if changed or finished:
                yield
            if finished:
                return
            if time.monotonic() > deadline:
                raise Refusal(
                    504,
                    f"the request took longer than {self.config.request_timeout:g} s; ask for fewer tokens",
                )
            if await request.is_disconnected():
                raise Refusal(499, "the client has gone")

    async def _stream(
        self, request: Request, job: Job, grown: asyncio.Event, head: dict, views: list[View]
    ) -> AsyncIterator[str]:
        """Server-sent events: a piece of text each, then [DONE]; an error, where it breaks off, is an event
        too.
        """
        try:
            async for _ in self._until_finished(request, job, grown):
                for choice in filter(None, map(View.news, views, job.continuations)):
                    yield f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"
        except Refusal as refusal:
            yield f"data: {json.dumps(error_body(refusal))}\n\n"
        finally:
            self._done(job)

    def _done(self, job: Job) -> None:
        """Whatever came of it: nobody waits for the job any more."""
        self.engine.cancel(job)
        found = job.continuations if job.search is None else job.search.found[:1]
        self.metrics.ended(sum(len(one.ids) for one in found))


class View:
    """What one choice of a completion has told so far.

    prompt: its ids; echoed: its text, where the answer begins with it.
    """

    def __init__(
        self, index: int, prompt: list[int], echoed: str | None, logprobs: int | None, model: LanguageModel
    ):
        self.index, self.prompt, self.echoed, self.logprobs, self.decode = (
            index,
            prompt,
            echoed,
            logprobs,
            model.tokenizer.decode,
        )
        self.characters = self.tokens = 0
        self.begun = self.over = False

    def news(self, continuation: Continuation) -> dict | None:
        """The choice with what has come since it was asked last; None where that is nothing."""
        ended = continuation.ended  # first: it is set after all else, in another thread
        count, text = len(continuation.ids), continuation.text
        if self.over or not (ended or count > self.tokens):
            return None
        ids, logprobs, top = (
            kept[self.tokens : count] for kept in (continuation.ids, continuation.logprobs, continuation.top)
        )
        piece = text[self.characters :]
        known: tuple[list, list, list] = ([], [], [])  # of the prompt
        if self.echoed is not None and not self.begun:
            piece = self.echoed + piece
            known = (self.prompt, [None, *continuation.prompt_logprobs], [None, *continuation.prompt_top])
        self.characters, self.tokens, self.begun, self.over = len(text), count, True, ended is not None
        choice = self._choice(piece, ids, ended)
        if self.logprobs is not None:
            choice["logprobs"] = self._logprobs([*known[0], *ids], [*known[1], *logprobs], [*known[2], *top])
        return choice

    def of_beams(self, search: BeamSearch) -> dict:
        """The choice of a finished beam search: the best beam, and all of them."""
        best, texts = search.found[0], search.texts()
        choice = self._choice(texts[0], list(best.ids), best.ended)
        if self.logprobs is not None:
            choice["logprobs"] = self._logprobs(best.ids, best.logprobs, [])
        return choice | {
            "beams": [
                {"text": text, "tokens": list(beam.ids), "score": beam.score}
                for text, beam in zip(texts, search.found)
            ]
        }

    def _choice(self, text: str, ids: list[int], ended: str | None) -> dict:
        reason = {"eod": "stop", None: None}.get(ended, ended)
        return {
            "index": self.index,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
            "ended": ended,
            "token_ids": ids,
            "prompt_tokens": len(self.prompt),
        }

    def _logprobs(self, ids, logprobs, top) -> dict:
        alternatives = [one and self._by_text(one) for one in top] if self.logprobs else None
        return {
            "tokens": [self.decode([i]) for i in ids],
            "token_logprobs": list(logprobs),
            "top_logprobs": alternatives,
        }

    def _by_text(self, top: dict[int, float]) -> dict[str, float]:
        """Of tokens whose text is the same (parts of characters), the most probable, which comes first."""
        found: dict[str, float] = {}
        for token, logprob in top.items():
            found.setdefault(self.decode([token]), logprob)
        return found


async def read_json(request: Request):
    """The body; raises Refusal."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(
            415,
            f"the body must be JSON; send Content-Type: application/json{f', not {kind}' if kind else ''}",
        )
    try:
        return json.loads(await request.body())
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON ({error})") from None


def error_body(refusal: Refusal) -> dict:
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {"error": {"message": refusal.message, "type": kind, "code": refusal.status}}
