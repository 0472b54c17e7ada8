"""continuations that grow together, a token a step; they join and leave between steps.

A step first lets waiting continuations join while there is room: their prompts go through the model in groups
of similar length, chosen so that padding costs less than another pass over the weights would. Then every
continuation that was there before gets its next token, all in one pass. What a continuation gives does not
depend on its neighbours beyond float rounding.

The cache is the model's own, from `new_cache(rows, length)`. All that is asked of it: whatever tensor it
keeps for the rows of the batch has them as its first dimension. So a row is a slice of every tensor, and the
cache can grow, and close the gap of a row that left, whichever layers the model has. Its size follows what is
in use, by powers of two.

B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ...train.model.mamba import Mamba
from .sampling import Continuation, newline_after_colon, pick, top_logprobs

LOGIT_ROWS = 256  # rows of logits of a prompt held at once
PREFILL_TOKENS = 8192  # of prompts that may join in one step: the others wait for as long
# a pass over the weights takes about as long as this many more tokens in one (measured on a CPU, GPT-2)
PASS_TOKENS = 48
LENGTHS = 128  # cache lengths are multiples of it


class Batch:
    """The continuations under way on one model.

    model: has `model(tokens (B, T) int64, positions=, cache=, lengths=, at=) -> hidden (B, T, D)`,
    `model.logits(hidden)` and `model.new_cache(rows, length)`. max_length: its positions, which every prompt
    and what follows it must fit. max_rows: continuations that grow together. max_tokens: at most so many rows
    times the positions of the longest (None: no limit; one alone may always join).
    """

    def __init__(self, model, tokenizer, *, max_length: int, max_rows: int, max_tokens: int | None = None):
        self.model, self.max_length, self.max_rows, self.max_tokens = model, max_length, max_rows, max_tokens
        self.device = next(model.parameters()).device
        self.waiting: collections.deque[Continuation] = collections.deque()
        self.rows: list[Continuation] = []  # row n of the cache is theirs
        self._cache, self._size = None, (0, 0)
        self._colon = newline_after_colon(tokenizer)
        # Mamba's state goes on from what is there; what attention finds in a slot not yet its own, it does
        # not see
        self._goes_on = any(isinstance(module, Mamba) for module in model.modules())

    def add(self, continuation: Continuation) -> None:
        assert places(continuation) <= self.max_length, (
            "a prompt and its continuation must fit the model's positions"
        )
        self.waiting.append(continuation)

    @torch.inference_mode()
    def remove(self, continuation: Continuation) -> None:
        """Takes a continuation out whose text nobody wants any more."""
        if continuation in self.waiting:
            self.waiting.remove(continuation)
        elif continuation in self.rows:
            self._leave([continuation])

    def clear(self) -> None:
        """Forgets everything: after a failure in the middle of a step."""
        self.waiting.clear()
        self.rows.clear()
        self._cache, self._size = None, (0, 0)

    @torch.inference_mode()
    def step(self) -> list[Continuation]:
        """A token more for every continuation under way, and as many newcomers as fit; returns those that
        grew or ended.
        """
        old = list(self.rows)
        if old:
            self._decode()
        new = self._join()
        self._leave([c for c in self.rows if c.ended])
        return old + new

    def run(self, continuations: Iterable[Continuation]) -> Iterator[Continuation]:
        """Completes continuations; yields each as it ends, reading few more than `max_rows` ahead."""
        source = iter(continuations)
        while True:
            while len(self.waiting) < self.max_rows and (following := next(source, None)) is not None:
                self.add(following)
            if not self.waiting and not self.rows:
                return
            yield from [c for c in self.step() if c.ended]

    def _decode(self) -> None:
        tokens = torch.tensor([[row.last] for row in self.rows], device=self.device)
        positions = torch.tensor(
            [[len(row.prompt) + len(row.ids) - 1] for row in self.rows], device=self.device
        )
        hidden = self._forward(tokens, positions, 0)
        pick(self.model.logits(hidden[:, 0]).float(), self.rows, self._colon)

    def _join(self) -> list[Continuation]:
        """Lets waiting continuations in, in their order, and gives them their first tokens."""
        coming: list[Continuation] = []
        longest, tokens = max(map(places, self.rows), default=0), 0
        while self.waiting and len(self.rows) + len(coming) < self.max_rows:
            candidate = self.waiting[0]
            longest, tokens = max(longest, places(candidate)), tokens + len(candidate.prompt)
            count = len(self.rows) + len(coming) + 1
            if count > 1 and self.max_tokens is not None and count * longest > self.max_tokens:
                break
            if coming and tokens > PREFILL_TOKENS:
                break
            coming.append(self.waiting.popleft())
        if coming:
            self._reserve(len(self.rows) + len(coming), max(map(places, self.rows + coming)))
        for group in groups(coming):
            self._prefill(group)
        return coming

    def _prefill(self, group: list[Continuation]) -> None:
        lengths = [len(c.prompt) for c in group]
        longest = max(lengths)
        # A token's cache slot is its position. Prompts are padded on the right, and each row's own tokens
        # overwrite its padding before they could see it.
        tokens = torch.tensor(
            [c.prompt + [0] * (longest - n) for c, n in zip(group, lengths)], device=self.device
        )
        positions = torch.arange(longest, device=self.device).expand(len(group), longest)
        first = len(self.rows)
        self.rows += group
        if self._goes_on:
            for tensor in row_tensors(self._cache, self._size[0]):
                tensor[first : first + len(group)].zero_()
        told = {"lengths": torch.tensor(lengths, device=self.device)}
        ends = torch.arange(len(group), device=self.device), told["lengths"] - 1
        if any(c.sampling.prompt_logprobs for c in group):
            hidden = self._forward(tokens, positions, first, **told)  # (B, T, D)
            for i, continuation in enumerate(group):
                if continuation.sampling.prompt_logprobs:
                    self._score(continuation, hidden[i, : lengths[i] - 1])
            last = hidden[ends]
        else:
            last = self._forward(tokens, positions, first, at=ends, **told)  # (B, D)
        drawing = [i for i, c in enumerate(group) if c.sampling.max_new_tokens]
        for continuation in group:
            if not continuation.sampling.max_new_tokens:
                continuation.ended = "length"
        if drawing:
            pick(self.model.logits(last[drawing]).float(), [group[i] for i in drawing], self._colon)

    def _score(self, continuation: Continuation, hidden: Tensor) -> None:
        """The log-probabilities of prompt[1:], from the hidden states (T - 1, D) before each."""
        targets = torch.tensor(continuation.prompt[1:], device=self.device)
        for start in range(0, len(hidden), LOGIT_ROWS):
            logprobs = self.model.logits(hidden[start : start + LOGIT_ROWS]).float().log_softmax(1)
            continuation.prompt_logprobs += logprobs.gather(1, targets[start : start + LOGIT_ROWS, None])[
                :, 0
            ].tolist()
            if count := continuation.sampling.top_logprobs:
                continuation.prompt_top += top_logprobs(logprobs, [count] * len(logprobs))

    def _forward(self, tokens: Tensor, positions: Tensor, first: int, **more) -> Tensor:
        """Hidden states (B, T, D) of the rows from `first` on; with `at` (N, D)."""
        return forward_rows(self.model, self._cache, self._size[0], tokens, positions, first, **more)

    def _reserve(self, rows: int, length: int) -> None:
        """Makes the cache large enough, keeping what is in it."""
        if rows <= self._size[0] and length <= self._size[1]:
            return
        rows = max(self._size[0], min(1 << (rows - 1).bit_length(), self.max_rows))
        length = max(self._size[1], min(-(-length // LENGTHS) * LENGTHS, self.max_length))
        size = (rows, length)
        larger = self.model.new_cache(rows, length)
        if self.rows:
            for old, new in zip(
                row_tensors(self._cache, self._size[0]), row_tensors(larger, rows), strict=True
            ):
                both = tuple(slice(min(a, b)) for a, b in zip(old.shape, new.shape))
                new[both] = old[both]
        self._cache, self._size = larger, size

    def _leave(self, gone: Sequence[Continuation]) -> None:
        """Takes continuations out; the last rows move into their places."""
        for continuation in gone:
            place, last = self.rows.index(continuation), len(self.rows) - 1
            if place != last:
                for tensor in row_tensors(self._cache, self._size[0]):
                    tensor[place] = tensor[last]
                self.rows[place] = self.rows[last]
            self.rows.pop()
        if not self.rows:
            self._cache, self._size = None, (0, 0)  # give the memory back


def places(continuation: Continuation) -> int:
    """Positions that a continuation may take."""
    return len(continuation.prompt) + continuation.sampling.max_new_tokens


def groups(coming: Sequence[Continuation]) -> list[list[Continuation]]:
    """Continuations whose prompts go through the model together: the cheapest division of them sorted by
    length.

    A group of n costs n times its longest prompt and PASS_TOKENS.
    """
    ordered = sorted(coming, key=lambda c: len(c.prompt))
    best: list[tuple[float, int]] = [(0.0, 0)]  # (cost of the first n, where the last group of those begins)
    for end in range(1, len(ordered) + 1):
        longest = len(ordered[end - 1].prompt)
        best.append(min((best[s][0] + PASS_TOKENS + (end - s) * longest, s) for s in range(end)))
    found, end = [], len(ordered)
    while end:
        start = best[end][1]
        found.append(ordered[start:end])
        end = start
    return found[::-1]


def forward_rows(model, cache, rows: int, tokens: Tensor, positions: Tensor, first: int, **more) -> Tensor:
    """Hidden states (B, T, D) of tokens (B, T) that belong to the rows first, first + 1 ...

    of a cache of `rows` rows.

    more: what else the model is told (lengths, at).
    """
    view = map_rows(cache, rows, lambda tensor: tensor[first : first + len(tokens)])
    hidden = model(tokens, positions=positions, cache=view, **more)
    _write_back(cache, view, rows, first)
    return hidden


def _write_back(cache, view, rows: int, first: int) -> None:
    """What a layer wrote into its slots is in the cache already; a state that it replaced by another tensor
    is copied there.
    """
    if isinstance(cache, Tensor):
        if (
            cache.dim()
            and len(cache) == rows
            and (part := cache[first : first + len(view)]).data_ptr() != view.data_ptr()
        ):
            part.copy_(view)
    elif isinstance(cache, list | tuple):
        for mine, new in zip(cache, view):
            _write_back(mine, new, rows, first)
    elif hasattr(cache, "__dict__"):
        for key, mine in vars(cache).items():
            _write_back(mine, getattr(view, key), rows, first)


def map_rows(value, rows: int, function: Callable[[Tensor], Tensor]):
    """A cache with `function` applied to every tensor in it that has `rows` rows, wherever it lies; the
    original stays.
    """
    if isinstance(value, Tensor):
        return function(value) if value.dim() and len(value) == rows else value
    if isinstance(value, list | tuple):
        return type(value)([map_rows(item, rows, function) for item in value])
    if hasattr(value, "__dict__"):
        changed = copy.copy(value)
        changed.__dict__.update({key: map_rows(item, rows, function) for key, item in vars(value).items()})
        return changed
    return value


def row_tensors(cache, rows: int) -> list[Tensor]:
    """The tensors in a cache that have `rows` rows, in the order of map_rows."""
    found: list[Tensor] = []
    map_rows(cache, rows, lambda tensor: found.append(tensor) or tensor)
    return found
