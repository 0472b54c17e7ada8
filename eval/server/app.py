"""`mt serve`: serves a checkpoint over HTTP, with Megatron-LM's and OpenAI's API and a web page.

    GET  /                 the page (page.html)
    PUT  /api              Megatron-LM's text generation server; every field is honoured or refused
    POST /v1/completions   OpenAI's, with streaming as server-sent events, log-probabilities, token ids
    GET  /v1/models        the name and the positions of the model
    GET  /health           200 while requests are accepted, 503 while shutting down
    GET  /metrics          Prometheus
    GET  /openapi.json     the description of this API

The model runs in the main thread (engine.py), HTTP in another. Nothing waits without bound: the queue, the
bodies, the tokens, the times and the connections (connections.py) have limits; access.py says who may ask.
After SIGTERM or Ctrl-C no request is accepted. Running requests have `shutdown_grace` seconds to finish;
those that do not are answered with an error.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import math
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from ...core.config import UserError, check, check_each, configuration, option
from ...train.checkpoint.open import open_checkpoint
from ...train.checkpoint.presence import check_presence
from ...train.prepacked_weights import prepare_for_inference
from ..lm import LanguageModel, Retrieval, open_generator
from .access import Access, check_hosts, hosts_of
from .client import read_keys
from .connections import Connections, Limits, protocol
from .engine import Engine
from .middleware import Metrics
from .routes import build_app

OTHER_FILES = 200  # that the process may have open beside connections
LONGEST_S = 1e6  # of every timeout


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
    allowed_hosts: tuple[str, ...] = option(
        (),
        "names that a request may ask for (its Host header), such as llm.example.com or *.example.com; *:"
        " any. Addresses, localhost and --host are always allowed",
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
    max_connections: int = option(1000, "connections at the same time", role="runtime")
    max_connections_per_client: int = option(
        256,
        "of them from one address (IPv6: from one /64 network); behind a proxy all have the proxy's",
        role="runtime",
    )
    reserved_connections: int = option(
        16, "further connections when there is no room, which are answered at /health only", role="runtime"
    )
    header_timeout: float = option(10.0, "seconds that the header of a request may take", role="runtime")
    body_timeout: float = option(60.0, "seconds that the body of a request may take", role="runtime")
    idle_timeout: float = option(60.0, "seconds that a connection may wait for a request", role="runtime")
    write_timeout: float = option(
        30.0, "seconds that a client may take to read 16 KiB of its response", role="runtime"
    )
    request_timeout: float = option(600.0, "seconds that a request may take, waiting included")
    shutdown_grace: float = option(30.0, "seconds that running requests have to finish after SIGTERM")
    retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)

    def __post_init__(self):
        check(
            (0 <= self.port <= 65535, f"port = {self.port} must be from 0 to 65535"),
            *(
                (getattr(self, n) >= 1, f"{n} = {getattr(self, n)} must be at least 1")
                for n in (
                    "max_batch_size",
                    "max_tokens_to_oom",
                    "max_queue",
                    "max_body_bytes",
                    "max_connections",
                    "max_connections_per_client",
                    "reserved_connections",
                )
            ),
            *(
                (
                    0 < getattr(self, n) <= LONGEST_S,
                    f"{n} = {getattr(self, n):g} must be above 0 and at most {LONGEST_S:g}",
                )
                for n in (
                    "header_timeout",
                    "body_timeout",
                    "idle_timeout",
                    "write_timeout",
                    "request_timeout",
                )
            ),
            (
                0 <= self.shutdown_grace <= LONGEST_S,
                f"shutdown_grace = {self.shutdown_grace:g} must be from 0 to {LONGEST_S:g}",
            ),
        )
        check_hosts(self.allowed_hosts)

    def check_inputs(self) -> None:
        """Raises UserError for a checkpoint that is not there and a port in use, before anything is read."""
        check_each(
            functools.partial(check_presence, self.load),
            lambda: listen(self.host, self.port).close(),
        )


def serve(config: ServeConfig) -> dict:
    """Serves until SIGTERM or Ctrl-C; returns the summary of `mt serve`."""
    keys = read_keys(config.api_key_file) if config.api_key_file else []
    allow_open_files(config.max_connections + config.reserved_connections)
    listener = listen(config.host, config.port)
    model = open_generator(open_checkpoint(config.load), config.max_batch_size, config.retrieval)
    prepare_for_inference(model.model, bf16=config.bf16)
    name = config.model_name or Path(config.load).resolve().name
    engine, metrics, server = assemble(model, name, config, keys)

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
) -> tuple[Engine, Metrics, uvicorn.Server]:
    """The engine, the metrics and the HTTP server of one model, none of them started."""
    engine = Engine(
        model,
        max_batch_size=config.max_batch_size,
        max_tokens=config.max_tokens_to_oom,
        max_queue=config.max_queue,
    )
    metrics = Metrics(engine)
    hosts = hosts_of(config.host, loopback=_is_loopback(config.host))
    app = build_app(
        engine,
        metrics,
        name,
        access=Access(keys, {*hosts, *config.allowed_hosts}),
        max_tokens=config.max_tokens_to_oom,
        max_body_bytes=config.max_body_bytes,
        body_timeout_s=config.body_timeout,
        timeout_s=config.request_timeout,
    )
    return engine, metrics, http_server(app, config)


def http_server(app: Any, config: ServeConfig) -> uvicorn.Server:
    """The server of an ASGI application, with the limits of `config` on connections."""
    limits = Limits(
        total=config.max_connections,
        per_client=config.max_connections_per_client,
        reserved=config.reserved_connections,
        header_s=config.header_timeout,
        body_s=config.body_timeout,
        idle_s=config.idle_timeout,
        write_s=config.write_timeout,
    )
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol(Connections(limits)),
            loop="asyncio",
            ws="none",  # a WebSocket would have none of the limits
            log_level="error",  # not a line for each request that is not HTTP
            use_colors=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            # the engine ends what runs after shutdown_grace; another second is for its answers
            timeout_graceful_shutdown=math.ceil(config.shutdown_grace) + 1,
        )
    )


def allow_open_files(connections: int) -> None:
    """Raises this process's limit of open files if so many connections need it.

    Raises UserError where the system does not allow as many: the server would no longer accept connections,
    also those that would replace others.
    """
    needed = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UserError(
                f"max_connections: {connections} connections need {needed} open files, but this process may"
                f" have {hard} (ulimit -Hn); choose fewer --max-connections or raise the limit"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


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
    if not with_keys and not _is_loopback(host):
        warning = "mt: anybody who can reach this address can use it; require a key with --api-key-file FILE"
        print(warning, file=sys.stderr, flush=True)


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
