"""HTTP client of `mt serve`: sends prompts to /v1/completions and returns them as `mt generate` does."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ...core.config import Failure, UserError

PROMPTS_AT_ONCE = 64
PATIENCE_S = 600.0  # how long to retry while the server is busy


class ServerModel:
    """A running `mt serve`."""

    def __init__(self, url: str, api_key_file: str | None = None):
        self.slab = PROMPTS_AT_ONCE
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"url = {url} must begin with http:// or https://, as in http://127.0.0.1:5000")
        self._headers = {"Content-Type": "application/json"}
        if api_key_file is not None:
            self._headers["Authorization"] = f"Bearer {read_keys(api_key_file)[0]}"

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
        for choice in reply["choices"]:
            answer = {
                "prompt_tokens": choice["prompt_tokens"],
                "text": choice["text"],
                "tokens": choice["token_ids"],
            }
            answer |= {"logprobs": choice["logprobs"]["token_logprobs"], "ended": choice["ended"]}
            yield answer | ({"beams": choice["beams"]} if "beams" in choice else {})

    def _post(self, path: str, body: dict) -> dict:
        """The server's reply; retries while it is busy. Raises UserError where the server refuses."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            request = urllib.request.Request(
                self.url + path, json.dumps(body).encode(), self._headers, method="POST"
            )
            try:
                with urllib.request.urlopen(request) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                wait = error.headers.get("Retry-After", "")
                message = _message(error)
                if error.code == 503 and wait.isdigit() and time.monotonic() + int(wait) < give_up:
                    time.sleep(int(wait))
                    continue
                kind = UserError if error.code < 500 else Failure
                raise kind(f"{self.url}: {message} (HTTP {error.code})") from None
            except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError) as error:
                reason = getattr(error, "reason", error)
                raise UserError(
                    f"{self.url}: no answer of `mt serve` ({reason}); check the address, and that the server"
                    " runs"
                ) from None


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
        body = json.load(error)
    except (json.JSONDecodeError, UnicodeDecodeError, OSError):
        return str(error.reason)
    return body["error"]["message"] if isinstance(body, dict) and "error" in body else str(body)


def read_keys(path: str) -> list[str]:
    """The API keys of a file, one a line; raises UserError where there is none."""
    try:
        keys = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text; give a file with one key a line") from None
    if not keys:
        raise UserError(f"{path}: holds no key; give a file with one key a line")
    return keys
