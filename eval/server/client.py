"""HTTP client of `mt serve`: sends prompts to /v1/completions and returns them as `mt generate` does."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...core.config import Failure, UserError
from ...core.unicode import without_mark

PROMPTS_AT_ONCE = 64
MAX_REPLY_BYTES = 1 << 28  # 64 prompts with log-probabilities are some megabytes
MAX_MESSAGE = 2000  # characters
SILENCE_S = 3600.0  # how long the server may say nothing; its own --request-timeout is shorter by default
GREETING_S = 5.0  # how long the first request waits; it only asks whether anything is there
PATIENCE_S = 600.0  # how long to retry while the server is busy


class ServerModel:
    """A running `mt serve`."""

    def __init__(self, url: str, api_key_file: str | None = None):
        self.slab = PROMPTS_AT_ONCE
        self.url = url.rstrip("/")
        check_address(url)
        self._headers = {"Content-Type": "application/json"}
        if api_key_file is not None:
            # a header is bytes, which urllib takes as latin-1
            key = read_keys(api_key_file)[0].encode().decode("latin-1")
            self._headers["Authorization"] = f"Bearer {key}"

    def problem(self, text: str, config) -> str | None:
        """None: the server checks the prompts."""
        return None

    def complete(self, texts: list[str], first: int, config) -> Iterator[dict]:
        """The continuations of consecutive prompts, of which the first has the number `first`.

        config: a GenerateConfig.
        """
        body = {
            "prompt": texts,
            "first_prompt": first,
            "max_tokens": config.tokens_to_generate,
            "logprobs": 0,
            "stop": list(config.stop),
            "temperature": 0.0 if config.greedy else config.temperature,
            "top_p": config.top_p or 1.0,
            "seed": config.random_seed,
            **{name: getattr(config, name) for name in SAME_NAME if getattr(config, name) is not None},
        }
        reply = self._post("/v1/completions", body)
        try:
            answers = [_answer(choice) for choice in reply["choices"]]
            if len(answers) != len(texts):
                raise ValueError(f"{len(answers)} texts for {len(texts)} prompts")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.url}: the answer is not one of `mt serve` ({type(error).__name__}: {error});"
                " check the address"
            ) from None
        yield from answers

    def _post(self, path: str, body: dict) -> dict:
        """The server's reply; retries while it is busy. Raises UserError where the server refuses."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            request = urllib.request.Request(
                self.url + path, json.dumps(body).encode(), self._headers, method="POST"
            )
            try:
                with OPENER.open(request, timeout=SILENCE_S) as reply:
                    return json.loads(_whole(reply))
            except urllib.error.HTTPError as error:
                wait = error.headers.get("Retry-After", "")
                message = _message(error)
                if (
                    error.code == 503
                    and re.fullmatch("[0-9]{1,4}", wait)
                    and time.monotonic() + int(wait) < give_up
                ):
                    time.sleep(int(wait))
                    continue
                kind = UserError if error.code < 500 else Failure
                raise kind(f"{self.url}: {message} (HTTP {error.code})") from None
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                raise _no_answer(self.url, getattr(error, "reason", error)) from None


def check_answers(url: str) -> None:
    """Raises UserError where the address is none or nothing listens there; any answer will do."""
    check_address(url)
    try:
        OPENER.open(url, timeout=GREETING_S).close()
    except (urllib.error.HTTPError, TimeoutError):
        pass  # it listens, and may be busy
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, TimeoutError):
            raise _no_answer(url, reason) from None


def check_address(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"url = {url} must begin with http:// or https://, as in http://127.0.0.1:5000")


def _no_answer(url: str, reason: object) -> UserError:
    return UserError(
        f"{url}: no answer of `mt serve` ({reason}); check the address, and that the server runs"
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirection as an error: the key and the prompts are for the server that the user named."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect)


def _whole(reply: IO[bytes]) -> bytes:
    """The body of a response; raises ValueError for one that no request of ours gets."""
    body = reply.read(MAX_REPLY_BYTES + 1)
    if len(body) > MAX_REPLY_BYTES:
        raise ValueError(f"more than {MAX_REPLY_BYTES} bytes")
    return body


def _answer(choice: Any) -> dict[str, Any]:
    """A choice of the server as `mt generate` gives it; raises KeyError, TypeError or ValueError."""
    answer = {
        "prompt_tokens": choice["prompt_tokens"],
        "text": choice["text"],
        "tokens": choice["token_ids"],
        "logprobs": choice["logprobs"]["token_logprobs"],
        "ended": choice["ended"],
    }
    for name, kind in {"prompt_tokens": int, "text": str, "tokens": list, "logprobs": list}.items():
        if not isinstance(answer[name], kind):
            raise ValueError(f"{name} is a {type(answer[name]).__name__}")
    return answer | ({"beams": choice["beams"]} if "beams" in choice else {})


# Settings of `mt generate` that have the same name in a request to the server.
SAME_NAME = (
    "top_k",
    "top_p_decay",
    "top_p_bound",
    "beam_width",
    "length_penalty",
    "stop_token",
    "stop_on_eol",
    "stop_on_double_eol",
    "prevent_newline_after_colon",
    "add_bos",
)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        body = json.loads(_whole(error))
        return str(body["error"]["message"])[:MAX_MESSAGE]
    except (ValueError, RecursionError, OSError, http.client.HTTPException, LookupError, TypeError):
        return str(error.reason)[:MAX_MESSAGE]


def read_keys(path: str) -> list[str]:
    """The API keys of a file, one a line; raises UserError where there is none."""
    try:
        lines = without_mark(Path(path).read_bytes()).decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text; give a file with one key a line") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UserError(f"{path}: holds no key; give a file with one key a line")
    for number, key in enumerate(keys, 1):
        if not key.isprintable():
            raise UserError(
                f"{path}: key {number} holds a character that no HTTP header can carry (a control character"
                " or an invisible one); write another key"
            )
    return keys
