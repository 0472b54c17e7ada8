"""how the next token is drawn, what ends a continuation, and what of its text is certain.

A draw is made in Megatron-LM's order: the temperature divides the logits, then top-k or top-p removes
candidates, then one of the rest is drawn. Every continuation has random numbers of its own, one uniform
number a token, so that a text depends neither on its neighbours in a batch nor on the batch's size. top-p may
tighten from token to token: top_p := max(top_p x top_p_decay, top_p_bound) (Lee et al. 2022, arXiv
2206.04624, factual-nucleus sampling).

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

PROMPT_TAIL = 6  # tokens of the prompt that are decoded with what follows: some tokenizers drop a first space


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What decides a continuation, beside its prompt.

    The values are checked by whoever takes them from a user.
    """

    max_new_tokens: int = 64  # 0: only score the prompt
    greedy: bool = False  # the most probable token, always; so does top_k = 1
    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 0.0  # 0: no limit
    top_p_decay: float = 0.0  # 0: none
    top_p_bound: float = 0.0
    stop: tuple[str, ...] = ()  # texts that end a continuation and are cut off
    stop_token: int | None = None  # the id that ends a continuation; None: the end of a document
    stop_on_eol: bool = False  # a line's end ends it, and stays; then no token does
    stop_on_double_eol: bool = False  # an empty line does
    prevent_newline_after_colon: bool = False
    top_logprobs: int = 0  # alternatives told for each token
    prompt_logprobs: bool = False  # tell the prompt's own log-probabilities too

    @property
    def draws(self) -> bool:
        return not self.greedy and self.top_k != 1


class Continuation:
    """A prompt and what has followed it so far.

    prompt: at least one id. random: numpy Generator of its draws; needed where sampling.draws. `text` is what
    is certain of the text: a character that may still be incomplete and the beginning of a stop text are held
    back.
    """

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, tokenizer, random: np.random.Generator | None = None
    ):
        assert len(prompt) >= 1, "an empty prompt starts with the end-of-document token"
        self.prompt, self.sampling, self.random = list(prompt), sampling, random
        self.ids: list[int] = []
        self.logprobs: list[float] = []  # nats, the model's own: before the temperature
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
        """The id that the model sees next."""
        return self.ids[-1] if self.ids else self.prompt[-1]

    def accept(self, token: int, logprob: float, top: dict[int, float] | None = None) -> None:
        """Appends a token and says in `ended` whether it was the last."""
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
            self.ended = ended  # last: another thread may look at what is here

    def _line_ends(self, before: int, token: int) -> bool:
        """Megatron-LM knows GPT-2's ids of "\\n" and "\\n\\n"; here the text of the tokens decides, for any
        vocabulary.
        """
        if self.sampling.stop_on_double_eol:
            return "\n\n" in self._tokenizer.decode([before, token])
        return "\n" in self._tokenizer.decode([token])


class TextStream:
    """Text from tokens one by one, as decoding all of them at once would give it.

    stops: texts at which it ends; the first that occurs and what follows it are cut off.
    """

    def __init__(self, tokenizer, before: Sequence[int], stops: Sequence[str] = ()):
        self.text, self.stopped = "", False
        self._tokenizer, self._stops = tokenizer, stops
        self._window = list(before)  # the ids whose decoding still matters
        # characters of theirs that are in _ready
        self._said = len(tokenizer.decode(self._window)) if self._window else 0
        self._held = ""  # certain as characters, but perhaps the beginning of a stop text

    def push(self, token: int) -> None:
        self._window.append(token)
        decoded = self._tokenizer.decode(self._window)
        # "\ufffd" at the end may be the first bytes of a character whose others are still to come
        whole = len(decoded) - decoded.endswith("\ufffd")
        if whole > self._said:
            self._add(decoded[self._said : whole])
            self._said = whole
        if whole == len(decoded) and len(self._window) > 2 * PROMPT_TAIL:
            self._window = self._window[-PROMPT_TAIL:]
            self._said = len(self._tokenizer.decode(self._window))

    def flush(self) -> None:
        """Gives what was held back: nothing more will come."""
        rest = self._tokenizer.decode(self._window)[self._said :] if self._window else ""
        if not self.stopped:
            self._add(rest)
        if not self.stopped:
            self.text, self._held = self.text + self._held, ""
        self._window, self._said = [], 0

    def _add(self, piece: str) -> None:
        if self.stopped:
            return
        self._held += piece
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.text, self._held, self.stopped = self.text + self._held[: min(found)], "", True
            return
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        self.text, self._held = (
            self.text + self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )


def text_of(tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text that ids add to a prompt."""
    stream = TextStream(tokenizer, prompt[-PROMPT_TAIL:])
    for token in ids:
        stream.push(token)
    stream.flush()
    return stream.text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def newline_after_colon(tokenizer) -> tuple[int, int] | None:
    """(id of ":", id of a line's end), None where the vocabulary has no single token for either."""
    ids = [tokenizer.encode(text) for text in (":", "\n")]
    return (ids[0][-1], ids[1][-1]) if all(ids) else None


def pick(logits: Tensor, rows: Sequence[Continuation], colon: tuple[int, int] | None = None) -> None:
    """Draws the next token of every continuation and appends it. logits: (B, V) fp32.

    colon: newline_after_colon's ids.
    """
    normaliser = logits.logsumexp(1)
    allowed = logits
    if colon and (
        after := [
            i
            for i, row in enumerate(rows)
            if row.sampling.prevent_newline_after_colon and row.last == colon[0]
        ]
    ):
        allowed = logits.clone()
        allowed[after, colon[1]] = float("-inf")
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
    """(B,) int64: a candidate for each row, by their probabilities."""
    rules = [row.sampling for row in rows]
    kept = candidates(
        logits, [r.temperature for r in rules], [r.top_k for r in rules], [row.top_p for row in rows]
    )
    # float64, so that the sum of 50,000 probabilities leaves none out; the inverse of the distribution
    # function needs one uniform number a token, the same on every device
    cumulative = kept.double().softmax(1).cumsum(1)
    uniform = torch.tensor([[row.random.random()] for row in rows], dtype=torch.float64).to(logits.device)
    total = cumulative[:, -1:]
    # a product rounded up to the total would have no index
    below = torch.nextafter(total, torch.zeros_like(total))
    drawn = torch.searchsorted(cumulative, torch.minimum(uniform * total, below), right=True)[:, 0]
    return drawn.clamp(max=logits.shape[1] - 1)  # NaN has none either: see pick


def candidates(
    logits: Tensor, temperatures: Sequence[float], top_ks: Sequence[int], top_ps: Sequence[float]
) -> Tensor:
    """Logits (B, V) divided by the temperatures, minus infinity where no candidate; each setting is one for
    every row.

    top_k: candidates are those not below the k-th logit. top_p: the most probable ones until their sum
    exceeds top_p, the one that crosses it included (Holtzman et al. 2019). 0 switches either off.
    """
    logits = logits / torch.tensor(temperatures, device=logits.device)[:, None]
    if rows := [i for i, k in enumerate(top_ks) if k]:
        ks = [min(top_ks[i], logits.shape[1]) for i in rows]
        best = logits[rows].topk(max(ks), dim=1).values
        kth = best.gather(1, torch.tensor(ks, device=logits.device)[:, None] - 1)
        logits[rows] = logits[rows].masked_fill(logits[rows] < kth, float("-inf"))
    if rows := [i for i, p in enumerate(top_ps) if p]:
        ordered, index = logits[rows].sort(dim=1, descending=True, stable=True)
        removed = torch.zeros_like(ordered, dtype=torch.bool)
        # those before it are enough
        removed[:, 1:] = (
            ordered.softmax(1).cumsum(1)[:, :-1]
            > torch.tensor([top_ps[i] for i in rows], device=logits.device)[:, None]
        )
        logits[rows] = logits[rows].masked_fill(removed.scatter(1, index, removed), float("-inf"))
    return logits


def top_logprobs(logprobs: Tensor, counts: Sequence[int]) -> list[dict[int, float] | None]:
    """For each row of (B, V) log-probabilities its `count` most probable ids, the best first; None where 0
    are asked for.
    """
    best = logprobs.topk(min(max(counts), logprobs.shape[1]), dim=1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return [dict(zip(i[:n], v[:n])) if n else None for n, i, v in zip(counts, ids, values)]
