"""`mt serve`: serves a checkpoint over HTTP, with Megatron-LM's and OpenAI's API and a web page.

    GET  /                 the page (page.html)
    PUT  /api              Megatron-LM's text generation server; every field is honoured or refused
    POST /v1/completions   OpenAI's, with streaming as server-sent events, log-probabilities, token ids
    GET  /v1/models        the name and the positions of the model
    GET  /health           200 while requests are accepted, 503 while shutting down
    GET  /metrics          Prometheus
    GET  /openapi.json     the description of this API

The model runs in the main thread (engine.py), HTTP in another. Nothing waits without bound: the queue, the
bodies, the tokens and the times have limits. After SIGTERM or Ctrl-C no request is accepted. Running requests
have `shutdown_grace` seconds to finish; those that do not are answered with an error.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from ...core.config import UserError, check, configuration, option
from ...train.checkpoint.open import open_checkpoint
from ...train.prepacked_weights import prepare_for_inference
from ..lm import LanguageModel, Retrieval, open_generator
from .client import read_keys
from .engine import Engine
from .middleware import Metrics, RequestMiddleware
from .routes import build_app

CONNECTIONS = 1000  # at the same time; further ones get HTTP 503


@configuration()
class ServeConfig:
    """The settings of `mt serve`."""

    load: str = option(help="checkpoint directory", role="input")
    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0: all networks of this machine", role="runtime"
    )
    port: int = option(5000, "port to listen on; 0: any free port", role="runtime")
    model_name: str | None = option(None, "name of the model (default: the name of its directory)")
    bf16: bool = option(False, "compute in bfloat16")
    api_key_file: str | None = option(
        None,
        "file of API keys, one a line; a request must have one: Authorization: Bearer KEY",
        role="runtime",
    )
    max_batch_size: int = option(64, "texts generated at the same time")
    max_tokens_to_oom: int = option(
        12000, "limit of rows times positions, for all running texts and for one request"
    )
    max_queue: int = option(
        256, "texts that may wait in the queue; further requests are refused with HTTP 503"
    )
    max_body_bytes: int = option(1_000_000, "largest request body")
    request_timeout: float = option(600.0, "seconds that a request may take, waiting included")
    shutdown_grace: float = option(30.0, "seconds that running requests have to finish after SIGTERM")
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
    """Serves until SIGTERM or Ctrl-C; returns the summary of `mt serve`."""
    keys = read_keys(config.api_key_file) if config.api_key_file else []
    listener = listen(config.host, config.port)
    model = open_generator(open_checkpoint(config.load), config.max_batch_size, config.retrieval)
    prepare_for_inference(model.model, bf16=config.bf16)
    name = config.model_name or Path(config.load).resolve().name
    engine, metrics, app = assemble(model, name, config, keys)
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

    def run_http() -> None:
        try:
            server.run(sockets=[listener])
        finally:  # without HTTP the engine gets no more requests
            engine.close(0)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=run_http, name="http")
    started = time.monotonic()
    thread.start()
    _announce(name, listener, with_keys=bool(keys))
    try:
        engine.run()
        thread.join()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    counts = metrics.counts()
    text = f"served {counts['requests']:,} requests, {counts['tokens']:,} tokens"
    return {"text": text, "model": name, "counts": counts, "seconds": round(time.monotonic() - started, 3)}


def assemble(
    model: LanguageModel, name: str, config: ServeConfig, keys: Sequence[str] = ()
) -> tuple[Engine, Metrics, RequestMiddleware]:
    """The engine, the metrics and the ASGI application of one server, none of them started."""
    engine = Engine(
        model,
        max_batch_size=config.max_batch_size,
        max_tokens=config.max_tokens_to_oom,
        max_queue=config.max_queue,
    )
    metrics = Metrics(engine)
    app = build_app(
        engine,
        metrics,
        name,
        keys=keys,
        max_tokens=config.max_tokens_to_oom,
        max_body_bytes=config.max_body_bytes,
        timeout_s=config.request_timeout,
    )
    return engine, metrics, app


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; raises UserError for an address that cannot be used, before the model is loaded."""
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


def _announce(name: str, listener: socket.socket, *, with_keys: bool) -> None:
    """Prints the address, and a warning where others can reach the server without a key."""
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"mt: {name} at {url}; Ctrl-C ends", file=sys.stderr, flush=True)
    if not with_keys and not ipaddress.ip_address(host).is_loopback:
        warning = "mt: anybody who can reach this address can use it; require a key with --api-key-file FILE"
        print(warning, file=sys.stderr, flush=True)
