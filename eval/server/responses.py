"""Response bodies: the choices of OpenAI's completions, whole or piece by piece, and errors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from ..generation.beam_search import BeamSearch
from ..generation.sampling import Continuation
from ..lm import LanguageModel
from .requests import RequestError

LOWEST = -9999.0  # the log-probability of what is impossible, as other servers of OpenAI's API say it


def error_body(error: RequestError) -> dict:
    """The body of a refused request in OpenAI's form."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.status}}


def error_messages(error: RequestError, path: str) -> list[dict[str, Any]]:
    """The ASGI messages of an error response; for Megatron-LM's path a bare JSON string."""
    body = json.dumps(error.message if path == "/api" else error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    start = {"type": "http.response.start", "status": error.status, "headers": headers}
    return [start, {"type": "http.response.body", "body": body}]


def error_headers(error: RequestError) -> dict[str, str]:
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status == 408:  # what arrives later is not the next request
        headers["connection"] = "close"
    return headers


def finite(logprobs: Sequence[float | None]) -> list[float | None]:
    """Log-probabilities as JSON can hold them: minus infinity becomes LOWEST.

    NaN stays: there is no answer of a model that is broken.
    """
    return [LOWEST if value == -math.inf else value for value in logprobs]


class CompletionChoice:
    """One choice of a completion, and how much of it has been sent.

    prompt: its ids. echo: the prompt's text, where the answer begins with it. logprobs: alternatives for each
    token; None: no log-probabilities.
    """

    def __init__(
        self, index: int, prompt: list[int], echo: str | None, logprobs: int | None, model: LanguageModel
    ):
        self.index, self.prompt, self.echo, self.logprobs = index, prompt, echo, logprobs
        self.decode = model.tokenizer.decode
        self.sent_characters = self.sent_tokens = 0
        self.begun = self.over = False

    def unsent_tokens(self, continuation: Continuation) -> int:
        """How many tokens `news` would return, the echoed prompt's included."""
        echoed = 0 if self.begun or self.echo is None else len(self.prompt)
        return echoed + len(continuation.ids) - self.sent_tokens

    def news(self, continuation: Continuation) -> dict | None:
        """The choice with what is new since the last call; None where nothing is new."""
        ended = continuation.ended  # read first, because the engine's thread sets it last
        count, text = len(continuation.ids), continuation.text
        if self.over or not (ended or count > self.sent_tokens):
            return None
        new = slice(self.sent_tokens, count)
        piece = text[self.sent_characters :]
        prompt_ids: list[int] = []
        prompt_logprobs: list[float | None] = []
        prompt_top: list[dict[int, float] | None] = []
        if self.echo is not None and not self.begun:
            piece = self.echo + piece
            prompt_ids = self.prompt
            prompt_logprobs = [None, *continuation.prompt_logprobs]
            prompt_top = [None, *continuation.prompt_top]
        self.sent_characters, self.sent_tokens = len(text), count
        self.begun, self.over = True, ended is not None
        choice = self._choice(piece, continuation.ids[new], ended)
        if self.logprobs is not None:
            choice["logprobs"] = self._logprobs(
                [*prompt_ids, *continuation.ids[new]],
                [*prompt_logprobs, *continuation.logprobs[new]],
                [*prompt_top, *continuation.top[new]],
            )
        return choice

    def of_beams(self, search: BeamSearch) -> dict:
        """The choice of a finished beam search: the best beam, and all of them."""
        best, texts = search.found[0], search.texts()
        choice = self._choice(texts[0], list(best.ids), best.ended)
        if self.logprobs is not None:
            choice["logprobs"] = self._logprobs(best.ids, best.logprobs, [])
        choice["beams"] = [
            {"text": text, "tokens": list(beam.ids), "score": beam.score}
            for text, beam in zip(texts, search.found)
        ]
        return choice

    def _choice(self, text: str, ids: list[int], ended: str | None) -> dict:
        return {
            "index": self.index,
            "text": text,
            "logprobs": None,
            "finish_reason": "stop" if ended == "eod" else ended,
            "ended": ended,
            "token_ids": ids,
            "prompt_tokens": len(self.prompt),
        }

    def _logprobs(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float | None],
        top: Sequence[dict[int, float] | None],
    ) -> dict:
        alternatives = [one and self._by_text(one) for one in top] if self.logprobs else None
        return {
            "tokens": [self.decode([i]) for i in ids],
            "token_logprobs": finite(logprobs),
            "top_logprobs": alternatives,
        }

    def _by_text(self, top: dict[int, float]) -> dict[str, float | None]:
        """Log-probabilities by the tokens' text.

        Of tokens with the same text (parts of characters) the most probable one counts, which comes first.
        """
        found: dict[str, float | None] = {}
        for token, logprob in top.items():
            found.setdefault(self.decode([token]), finite([logprob])[0])
        return found
