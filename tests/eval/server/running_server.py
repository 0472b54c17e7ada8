"""A server on a small random model, in two threads of the test's own process."""

# ruff: noqa: E402 - the packages of the extra `serve` may be missing
from __future__ import annotations

import contextlib
import json
import threading
import time

import pytest
import torch

for package in ("httpx", "uvicorn", "fastapi", "prometheus_client"):
    pytest.importorskip(package, reason="the server's extra `serve` is not installed")

import httpx

from mt.eval.generation.sampling import Sampling
from mt.eval.lm import LanguageModel
from mt.eval.server.app import ServeConfig, assemble, listen
from mt.tests.eval.conftest import ByteTokenizer
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize

POSITIONS = 128


def small_model(positions=POSITIONS):
    config = ModelConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=positions,
        init_method_std=0.4,
    )
    model = GPT(resolve(config, vocab_size=257, seq_length=positions))
    initialize(model, seed=1)
    return LanguageModel(model.eval().requires_grad_(False), ByteTokenizer(), positions, batch_size=16)


class Running:
    """The HTTP application and the engine in two threads, at `url`. They end with the `with` block."""

    def __init__(self, model, keys=(), **settings):
        config = ServeConfig(load="none", port=0, **{"shutdown_grace": 0.0, **settings})
        self.model = model
        self.engine, self.metrics, self._server = assemble(model, "small", config, keys)
        listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.address = listener.getsockname()
        self._threads = [
            threading.Thread(target=self._server.run, args=([listener],)),
            threading.Thread(target=self._work),
        ]
        self.client = httpx.Client(base_url=self.url, timeout=60)

    @property
    def http_thread(self):
        return self._threads[0]

    def _work(self):
        torch.set_num_threads(1)
        self.engine.run()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: self._server.started)
        return self

    def __exit__(self, *_):
        self.client.close()
        self._server.should_exit = True
        self.engine.close(0)
        for thread in self._threads:
            thread.join()

    def waiting_for_bodies(self):
        """The connections whose requests have not arrived in full."""
        return [c for c in list(self._server.server_state.connections) if c.phase == "body"]

    def api(self, **body):
        return self.client.put("/api", json=body)

    def complete(self, **body):
        return self.client.post("/v1/completions", json=body)

    def events(self, **body):
        """The events of a streamed response until its end."""
        with self.client.stream("POST", "/v1/completions", json={"stream": True, **body}) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            data = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]


def until(condition, patience_s=60.0):
    """Waits until `condition()` is true; another thread or process makes it so."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.01)


def greedy(server, text, count):
    (found,) = server.model.generate(
        [server.model.tokenizer.encode(text)], Sampling(max_new_tokens=count, greedy=True)
    )
    return found


class SlowModel(torch.nn.Module):
    """A slow model that never ends a document. A test can pause it (`paused`) or make it fail (`fails`)."""

    def __init__(self, model, seconds=0.01):
        super().__init__()
        self.inner, self.seconds, self.fails = model, seconds, False
        self._may_run = threading.Event()
        self._may_run.set()

    @contextlib.contextmanager
    def paused(self):
        """No forward pass begins within the `with` block."""
        self._may_run.clear()
        try:
            yield
        finally:
            self._may_run.set()

    def forward(self, *arguments, **named):
        self._may_run.wait()
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError("out of memory")
        return self.inner(*arguments, **named)

    def logits(self, hidden):
        logits = self.inner.logits(hidden)
        logits[..., 256] = float("-inf")
        return logits

    def new_cache(self, *size):
        return self.inner.new_cache(*size)


def slow_server(seconds=0.01, **settings):
    model = small_model(1024)
    model.model = SlowModel(model.model, seconds)
    return Running(model, **settings)
