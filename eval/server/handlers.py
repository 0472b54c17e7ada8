"""Request handlers: read a request, give it to the engine, and return its response or stream.

HTTP runs in an asyncio loop in one thread, the engine in another. An event tells the loop that a job has
grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from ..generation.beam_search import BeamSearch
from ..generation.sampling import Continuation
from ..lm import LanguageModel
from .connections import client_name
from .engine import Engine, Job, QueueFull, ShuttingDown
from .middleware import Metrics
from .requests import GenerationRequest, RequestError, completion_request, megatron_request
from .responses import CompletionChoice, error_body, error_headers, finite

T = TypeVar("T")
MOST_TOKENS_IN_LOOP = 100  # of a piece of a stream that is written in the loop's thread
POLL_S = 0.25  # how often to check for a client that has gone while nothing is generated for it


class RequestHandler:
    """Handles the generation requests of one server.

    name: of the model. max_tokens: limit of one request, prompts times positions. timeout_s: limit of a
    request's time, waiting included. with_keys: requests have API keys, which were checked.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        name: str,
        *,
        max_tokens: int,
        timeout_s: float,
        with_keys: bool = False,
    ):
        self.engine, self.metrics, self.name = engine, metrics, name
        self.max_tokens, self.timeout_s, self.with_keys = max_tokens, timeout_s, with_keys
        self.model: LanguageModel = engine.model
        self.started = int(time.time())
        self._tokenizing = threading.Lock()  # a tokenizer's backend may not be thread-safe

    async def answer(
        self,
        request: Request,
        endpoint: Callable[[Request, Any], Awaitable[Response]],
        *,
        error_as_text: bool = False,
    ) -> Response:
        """The endpoint's response to the request's JSON, or an error response.

        error_as_text: the error is a bare JSON string, as in Megatron-LM.
        """
        try:
            return await endpoint(request, await read_json(request, OTHER_VALUES + 2 * self.max_tokens))
        except RequestError as error:
            body = error.message if error_as_text else error_body(error)
            return JSONResponse(body, error.status, error_headers(error))

    async def megatron(self, request: Request, body: Any) -> Response:
        """Megatron-LM's `PUT /api`."""
        wanted, logprobs = await self._off_loop(lambda: megatron_request(body, self.model, self.max_tokens))
        job = await self._run(request, wanted)
        return await self._off_loop(lambda: self._megatron_response(body, job, logprobs))

    def _megatron_response(self, body: Any, job: Job, logprobs: bool) -> Response:
        decode = self.model.tokenizer.decode
        if job.search is not None:
            sequences = [[*job.search.prompt, *beam.ids] for beam in job.search.found]
            return JSONResponse(
                {
                    "text": [body["prompts"][0] + text for text in job.search.texts()],
                    "segments": [[decode([i]) for i in ids] for ids in sequences],
                    "scores": [beam.score for beam in job.search.found],
                }
            )
        sequences = [[*c.prompt, *c.ids] for c in job.continuations]
        reply: dict[str, Any] = {
            "text": [prompt + c.text for prompt, c in zip(body["prompts"], job.continuations)],
            "segments": [[decode([i]) for i in ids] for ids in sequences],
        }
        if logprobs:
            reply["logprobs"] = [finite([*c.prompt_logprobs, *c.logprobs]) for c in job.continuations]
        return JSONResponse(reply | {"tokens": sequences})

    async def completions(self, request: Request, body: Any) -> Response:
        """OpenAI's `POST /v1/completions`."""
        wanted, asked = await self._off_loop(
            lambda: completion_request(body, self.model, self.name, self.max_tokens)
        )
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        echoes: list[str | None] = [None] * len(wanted.prompts)
        if asked.echo:
            decode = self.model.tokenizer.decode
            echoes = await self._off_loop(lambda: list(asked.texts() or map(decode, wanted.prompts)))
        choices = [
            CompletionChoice(n, ids, echo, asked.logprobs, self.model)
            for n, (ids, echo) in enumerate(zip(wanted.prompts, echoes))
        ]
        if asked.stream:
            job, grown = self._submit(request, wanted, streamed=True)
            return StreamingResponse(
                self._stream(request, job, grown, head, choices),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store"},
            )
        job = await self._run(request, wanted)
        return await self._off_loop(lambda: self._completion_response(wanted, job, head, choices))

    def _completion_response(
        self, wanted: GenerationRequest, job: Job, head: dict, choices: list[CompletionChoice]
    ) -> Response:
        if job.search is not None:
            found = [choices[0].of_beams(job.search)]
        else:
            found = [news for choice, c in zip(choices, job.continuations) if (news := choice.news(c))]
        prompt_tokens = sum(map(len, wanted.prompts))
        completion_tokens = sum(len(choice["token_ids"]) for choice in found)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        return JSONResponse({**head, "choices": found, "usage": usage})

    async def _off_loop(self, work: Callable[[], T]) -> T:
        """work() in another thread: tokenising a long text, or writing a long answer, takes time.

        The loop's thread answers /health and all other clients meanwhile.
        """

        def alone() -> T:
            with self._tokenizing:
                return work()

        return await run_in_threadpool(alone)

    def _client(self, request: Request) -> str:
        """Whose turn a request takes: its key's, or its address's."""
        if not self.with_keys:
            return client_name(request.client)
        return request.headers["authorization"].partition(" ")[2].strip()  # the scheme has many spellings

    def _submit(
        self, request: Request, wanted: GenerationRequest, *, streamed: bool = False
    ) -> tuple[Job, asyncio.Event]:
        """The queued job, and the event that is set when it has grown; raises RequestError."""
        loop, grown = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
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
        job = Job(continuations, notify, streamed=streamed, search=search, client=self._client(request))
        try:
            self.engine.submit(job)
        except QueueFull:
            raise RequestError(
                503,
                f"the queue is full ({self.engine.waiting} of {self.engine.max_queue} texts wait); try again"
                " later",
                retry_after_s=1,
            ) from None
        except ShuttingDown:
            raise RequestError(503, "the server is shutting down", retry_after_s=30) from None
        self.metrics.began(sum(map(len, wanted.prompts)))
        return job, grown

    async def _run(self, request: Request, wanted: GenerationRequest) -> Job:
        """The finished job; raises RequestError."""
        job, grown = self._submit(request, wanted)
        try:
            async for _ in self._until_finished(request, job, grown):
                pass
        finally:
            self._release(job)
        return job

    async def _until_finished(self, request: Request, job: Job, grown: asyncio.Event) -> AsyncIterator[None]:
        """Yields whenever the job has grown, the last time when it is finished; raises RequestError."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(grown.wait(), POLL_S)
            changed, finished = grown.is_set(), job.finished
            grown.clear()
            if job.error is not None:
                busy = self.engine.closing or job.crowded_out
                raise RequestError(503 if busy else 500, job.error, retry_after_s=1 if busy else None)
            if changed or finished:
                yield
            if finished:
                return
            if time.monotonic() > deadline:
                raise RequestError(
                    504, f"the request took longer than {self.timeout_s:g} s; ask for fewer tokens"
                )
            if await request.is_disconnected():
                raise RequestError(499, "the client has gone")

    async def _stream(
        self,
        request: Request,
        job: Job,
        grown: asyncio.Event,
        head: dict,
        choices: list[CompletionChoice],
    ) -> AsyncIterator[str]:
        """Server-sent events: one for each new piece of text, then [DONE]; an error is an event too."""
        try:
            async for _ in self._until_finished(request, job, grown):
                work = functools.partial(_events, head, choices, job.continuations)
                waiting = sum(map(CompletionChoice.unsent_tokens, choices, job.continuations))
                for event in await self._off_loop(work) if waiting > MOST_TOKENS_IN_LOOP else work():
                    yield event
            yield "data: [DONE]\n\n"
        except RequestError as error:
            yield f"data: {json.dumps(error_body(error))}\n\n"
        finally:
            self._release(job)

    def _release(self, job: Job) -> None:
        """Cancels what is left of a job and counts its tokens, after its response or its failure."""
        self.engine.cancel(job)
        if job.search is None:
            tokens = sum(len(continuation.ids) for continuation in job.continuations)
        else:
            tokens = sum(len(beam.ids) for beam in job.search.found[:1])
        self.metrics.ended(tokens)


def _events(
    head: dict, choices: Sequence[CompletionChoice], continuations: Sequence[Continuation]
) -> list[str]:
    """Server-sent events of what is new in a stream."""
    return [
        f"data: {json.dumps({**head, 'choices': [news]}, ensure_ascii=False)}\n\n"
        for news in filter(None, map(CompletionChoice.news, choices, continuations))
    ]


OTHER_VALUES = 1000  # that a request may have beside the ids of its prompts
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


async def read_json(request: Request, most_values: int) -> Any:
    """The request's body; raises RequestError, also for more values than `most_values`.

    They are counted before the body is parsed, because a megabyte of small objects takes 100 MB of memory and
    seconds to check.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            415,
            f"the body must be JSON; send Content-Type: application/json{f', not {kind}' if kind else ''}",
        )
    body = await request.body()
    outside_strings = STRING.sub(b"", body)
    if sum(map(outside_strings.count, (b",", b"[", b"{"))) > most_values:
        raise RequestError(400, f"the body has more than {most_values} values; send less at a time")
    try:
        return parse_json(body)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not valid JSON ({error})") from None


def parse_json(body: bytes) -> Any:
    """JSON as RFC 8259 defines it; raises ValueError or RecursionError.

    Python would also take NaN and Infinity, other encodings, and the last of several values of one key. Which
    of them the client means is not known, and a field that is not honoured is refused.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the key {name[:100]!r} is given twice")
            found[name] = value
        return found

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON value")

    return json.loads(body.decode("utf-8-sig"), object_pairs_hook=unique, parse_constant=refuse)
