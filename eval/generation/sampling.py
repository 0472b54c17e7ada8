"""Sampling of the next token, stop conditions, and incremental decoding of token ids to text.

The next token is sampled in Megatron-LM's order: divide the logits by the temperature, remove candidates by
top-k or top-p, draw one of the rest. Every continuation has its own random generator and uses one uniform
number a token, so that its text depends neither on the other continuations in the batch nor on the batch
size. top-p may decay from token to token: top_p := max(top_p x top_p_decay, top_p_bound) (Lee et al. 2022,
arXiv 2206.04624, factual-nucleus sampling).

B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...core.config import UserError

# Tokens of the prompt that are decoded with the new ones, because some tokenizers drop a leading space.
PROMPT_TAIL = 6


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of one continuation: sampling, stop conditions, and which log-probabilities to return.

    The caller checks values that come from a user.
    """

    max_new_tokens: int = 64  # 0: only score the prompt
    greedy: bool = False  # always the most probable token, like top_k = 1
    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 0.0  # 0: no limit
    top_p_decay: float = 0.0  # 0: none
    top_p_bound: float = 0.0
    stop: tuple[str, ...] = ()  # texts that end a continuation; the text is cut before them
    stop_token: int | None = None  # id that ends a continuation; None: the end-of-document token
    stop_on_eol: bool = False  # a newline ends it and stays in the text; then no stop token does
    stop_on_double_eol: bool = False  # the same for an empty line
    prevent_newline_after_colon: bool = False
    top_logprobs: int = 0  # alternatives to return for each token
    prompt_logprobs: bool = False  # also return the log-probabilities of the prompt

    @property
    def draws(self) -> bool:
        return not self.greedy and self.top_k != 1


class Continuation:
    """A prompt and the tokens generated after it so far.

    prompt: at least one id. random: generator of its draws; required where sampling.draws. `text` is the
    decoded text without an incomplete character at its end and without the beginning of a stop text.
    """

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, tokenizer, random: np.random.Generator | None = None
    ):
        assert len(prompt) >= 1, "an empty prompt starts with the end-of-document token"
        self.prompt, self.sampling, self.random = list(prompt), sampling, random
        self.ids: list[int] = []
        self.logprobs: list[float] = []  # nats, before the temperature
        self.top: list[dict[int, float]] = []  # the most probable ids of each step, if asked for
        self.prompt_logprobs: list[float] = []  # of prompt[1:], if asked for
        self.prompt_top: list[dict[int, float]] = []
        self.ended: str | None = None  # "eod", "stop" or "length" once it is over
        self.top_p = sampling.top_p
        self._tokenizer = tokenizer
        self._end = tokenizer.eod if sampling.stop_token is None else sampling.stop_token
        self._stream = TextStream(tokenizer, self.prompt[-PROMPT_TAIL:], sampling.stop)

    @property
    def text(self) -> str:
        return self._stream.text

    @property
    def last(self) -> int:
        """The input id of the next step."""
        return self.ids[-1] if self.ids else self.prompt[-1]

    def next_uniform(self) -> float:
        """The next of its random numbers, from [0, 1)."""
        assert self.random is not None, "a continuation that draws has a random generator"
        return self.random.random()

    def accept(self, token: int, logprob: float, top: dict[int, float] | None = None) -> None:
        """Appends a token; sets `ended` where it is the last."""
        before = self.last
        self.ids.append(token)
        self.logprobs.append(logprob)
        if top is not None:
            self.top.append(top)
        rules = self.sampling
        by_line = rules.stop_on_eol or rules.stop_on_double_eol
        if rules.top_p_decay:
            self.top_p = max(self.top_p * rules.top_p_decay, rules.top_p_bound)
        ended = None
        if token == self._end and not by_line:
            ended = "eod"
        else:
            self._stream.push(token)
            if self._stream.stopped or (by_line and self._line_ends(before, token)):
                ended = "stop"
            elif len(self.ids) >= rules.max_new_tokens:
                ended = "length"
        if ended:
            self._stream.flush()
            self.ended = ended  # set last: another thread may read this object

    def _line_ends(self, before: int, token: int) -> bool:
        """Whether a line ends, by the text of the tokens.

        Megatron-LM compares with GPT-2's ids of "\\n" and "\\n\\n", which other vocabularies do not share.
        """
        if self.sampling.stop_on_double_eol:
            return "\n\n" in self._tokenizer.decode([before, token])
        return "\n" in self._tokenizer.decode([token])


class TextStream:
    """Decodes tokens one by one; the result equals decoding all of them at once.

    before: ids of the prompt's end, for context. stops: the text is cut before the first of them.
    """

    def __init__(self, tokenizer, before: Sequence[int], stops: Sequence[str] = ()):
        self.text, self.stopped = "", False
        self._tokenizer, self._stops = tokenizer, stops
        self._window = list(before)  # the last ids, which are decoded together
        # how many characters of the decoded window are emitted already
        self._emitted = len(tokenizer.decode(self._window)) if self._window else 0
        self._pending = ""  # complete characters that may be the beginning of a stop text

    def push(self, token: int) -> None:
        self._window.append(token)
        decoded = self._tokenizer.decode(self._window)
        # "\ufffd" at the end may be the first bytes of a character that the next token completes
        complete = len(decoded) - decoded.endswith("\ufffd")
        if complete > self._emitted:
            self._add(decoded[self._emitted : complete])
            self._emitted = complete
        # Also where a character is incomplete: its bytes, three at most, are among the last ids. Otherwise
        # the window would grow with every byte of a text that is not UTF-8.
        if len(self._window) > 2 * PROMPT_TAIL:
            self._window = self._window[-PROMPT_TAIL:]
            self._emitted = len(self._tokenizer.decode(self._window)) - (len(decoded) - complete)

    def flush(self) -> None:
        """Adds the pending text after the last token."""
        rest = self._tokenizer.decode(self._window)[self._emitted :] if self._window else ""
        if not self.stopped:
            self._add(rest)
        if not self.stopped:
            self.text += self._pending
            self._pending = ""
        self._window, self._emitted = [], 0

    def _add(self, piece: str) -> None:
        if self.stopped:
            return
        pending = self._pending + piece
        found = [start for stop in self._stops if (start := pending.find(stop)) >= 0]
        if found:
            self.text += pending[: min(found)]
            self._pending, self.stopped = "", True
            return
        certain = len(pending) - max((_overlap(pending, stop) for stop in self._stops), default=0)
        self.text += pending[:certain]
        self._pending = pending[certain:]


def text_of(tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text that ids add to a prompt."""
    stream = TextStream(tokenizer, prompt[-PROMPT_TAIL:])
    for token in ids:
        stream.push(token)
    stream.flush()
    return stream.text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def newline_after_colon(tokenizer) -> tuple[int, int] | None:
    """(last id of ":", last id of a newline); None where the tokenizer has no id for one of them."""
    ids = [tokenizer.encode(text) for text in (":", "\n")]
    return (ids[0][-1], ids[1][-1]) if all(ids) else None


def pick(logits: Tensor, rows: Sequence[Continuation], colon: tuple[int, int] | None = None) -> None:
    """Selects the next token of every continuation and appends it.

    logits: (B, V) float32. colon: the ids of newline_after_colon. Raises UserError for NaN.
    """
    normaliser = logits.logsumexp(1)
    allowed = logits
    if colon:
        restricted = [row.sampling.prevent_newline_after_colon and row.last == colon[0] for row in rows]
        if any(restricted):
            allowed = logits.clone()
            allowed[torch.tensor(restricted, device=logits.device), colon[1]] = float("-inf")
    chosen = allowed.argmax(1)
    if drawing := [i for i, row in enumerate(rows) if row.sampling.draws]:
        chosen[drawing] = draw(allowed[drawing], [rows[i] for i in drawing])
    logprobs = logits.gather(1, chosen[:, None])[:, 0] - normaliser
    told = logprobs.tolist()
    if any(map(math.isnan, told)):
        raise UserError(
            "the model's logits are not numbers (NaN): its weights are broken; use another checkpoint"
        )
    counts = [row.sampling.top_logprobs for row in rows]
    tops = top_logprobs(logits - normaliser[:, None], counts) if any(counts) else [None] * len(rows)
    for row, token, logprob, top in zip(rows, chosen.tolist(), told, tops):
        row.accept(token, logprob, top)


def draw(logits: Tensor, rows: Sequence[Continuation]) -> Tensor:
    """(B,) int64: for each row a candidate, sampled by probability."""
    rules = [row.sampling for row in rows]
    kept = candidates(
        logits, [r.temperature for r in rules], [r.top_k for r in rules], [row.top_p for row in rows]
    )
    # Inverse transform sampling: one uniform number a token, the same on every device. float64, so that no
    # candidate is lost by rounding in the cumulative sum of 50,000 probabilities.
    cumulative = kept.double().softmax(1).cumsum(1)
    uniform = torch.tensor([[row.next_uniform()] for row in rows], dtype=torch.float64).to(logits.device)
    total = cumulative[:, -1:]
    # a product that is rounded up to the total would have no index
    below = torch.nextafter(total, torch.zeros_like(total))
    drawn = torch.searchsorted(cumulative, torch.minimum(uniform * total, below), right=True)[:, 0]
    return drawn.clamp(max=logits.shape[1] - 1)  # NaN has no index either; `pick` raises for it


def candidates(
    logits: Tensor, temperatures: Sequence[float], top_ks: Sequence[int], top_ps: Sequence[float]
) -> Tensor:
    """Logits (B, V) divided by the temperatures, minus infinity for every token that is no candidate.

    Each setting has one value for every row. top_k: candidates are the logits not below the k-th largest.
    top_p: the most probable tokens until their sum exceeds top_p, including the one that crosses it (Holtzman
    et al. 2019). 0 disables either.
    """
    # a smaller temperature would divide by zero, or give infinity, in float32; it is greedy as this one is
    logits = logits / torch.tensor(temperatures, device=logits.device).clamp(min=1e-30)[:, None]
    if rows := [i for i, k in enumerate(top_ks) if k]:
        ks = [min(top_ks[i], logits.shape[1]) for i in rows]
        best = logits[rows].topk(max(ks), dim=1).values
        kth = best.gather(1, torch.tensor(ks, device=logits.device)[:, None] - 1)
        logits[rows] = logits[rows].masked_fill(logits[rows] < kth, float("-inf"))
    if rows := [i for i, p in enumerate(top_ps) if p]:
        ordered, index = logits[rows].sort(dim=1, descending=True, stable=True)
        removed = torch.zeros_like(ordered, dtype=torch.bool)
        limits = torch.tensor([top_ps[i] for i in rows], device=logits.device)[:, None]
        # a token is removed where the sum of those before it exceeds the limit
        removed[:, 1:] = ordered.softmax(1).cumsum(1)[:, :-1] > limits
        logits[rows] = logits[rows].masked_fill(removed.scatter(1, index, removed), float("-inf"))
    return logits


def top_logprobs(logprobs: Tensor, counts: Sequence[int]) -> list[dict[int, float] | None]:
    """For each row of (B, V) log-probabilities the `counts[row]` best ids, in order; None for 0."""
    best = logprobs.topk(min(max(counts), logprobs.shape[1]), dim=1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return [dict(zip(i[:n], v[:n])) if n else None for n, i, v in zip(counts, ids, values)]
