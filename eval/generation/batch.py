"""Continuous batching: continuations grow together by one token a step, and join and leave between steps.

A step first generates the next token of every running continuation, in one forward pass. Then waiting
continuations join while there is room: their prompts go through the model (prefill) in groups of similar
length, chosen so that padding costs less than another pass over the weights. The tokens of a continuation do
not depend on the others in the batch beyond float rounding.

The cache is the model's own, from `new_cache(rows, length)`. The batch requires only that every tensor of the
cache that belongs to rows has them as its first dimension. A row is then a slice of every such tensor, so
that the cache can grow and a freed row can be filled whichever layers the model has. The number of rows grows
by powers of two, the length by multiples of LENGTH_MULTIPLE.

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

LOGIT_ROWS = 256  # prompt positions whose logits are in memory at a time
PREFILL_TOKENS = 8192  # prompt tokens that may join in one step, because running continuations wait for them
# One forward pass costs as much as this many more tokens in a pass (measured with GPT-2 on a CPU).
PASS_TOKENS = 48
LENGTH_MULTIPLE = 128  # cache lengths are multiples of it


class GenerationBatch:
    """The waiting and the running continuations of one model.

    model: has `model(tokens (B, T) int64, positions=, cache=, lengths=, at=) -> hidden (B, T, D)`,
    `model.logits(hidden)` and `model.new_cache(rows, length)`. max_length: positions of the model; a prompt
    with its new tokens must fit them. max_rows: continuations that run at the same time. max_tokens: limit of
    rows times the positions of the longest (None: no limit; a single continuation may always join).
    """

    def __init__(self, model, tokenizer, *, max_length: int, max_rows: int, max_tokens: int | None = None):
        self.model = model
        self.max_length, self.max_rows, self.max_tokens = max_length, max_rows, max_tokens
        self.device = next(model.parameters()).device
        self.waiting: collections.deque[Continuation] = collections.deque()
        self.rows: list[Continuation] = []  # rows[n] has row n of the cache
        self._cache, self._size = None, (0, 0)
        self._colon = newline_after_colon(tokenizer)
        # A Mamba layer starts from the state in the cache, so a new row needs zeros. Attention masks slots
        # that its row has not written.
        self._has_recurrent_state = any(isinstance(module, Mamba) for module in model.modules())

    def add(self, continuation: Continuation) -> None:
        assert num_positions(continuation) <= self.max_length, (
            "a prompt and its continuation must fit the model's positions"
        )
        self.waiting.append(continuation)

    @torch.inference_mode()
    def remove(self, continuation: Continuation) -> None:
        """Removes a continuation before its end, waiting or running."""
        if continuation in self.waiting:
            self.waiting.remove(continuation)
        elif continuation in self.rows:
            self._leave([continuation])

    def clear(self) -> None:
        """Removes all continuations and the cache, after a step that failed."""
        self.waiting.clear()
        self.rows.clear()
        self._cache, self._size = None, (0, 0)

    @torch.inference_mode()
    def step(self) -> list[Continuation]:
        """One more token for every running continuation; then waiting ones join.

        Returns the continuations that grew or ended.
        """
        running = list(self.rows)
        if running:
            self._decode()
        joined = self._join()
        self._leave([c for c in self.rows if c.ended])
        return running + joined

    def run(self, continuations: Iterable[Continuation]) -> Iterator[Continuation]:
        """Completes continuations and yields each when it ends; reads at most `max_rows` ahead."""
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
        hidden = self._forward(tokens, positions, 0)[:, 0]
        for index, row in enumerate(self.rows):
            text = [*row.prompt, *row.ids]
            if outgrows_cache(self.model, len(text)):
                hidden[index] = self._forward(*whole_text(text, self.device), index)[0, -1]
        pick(self.model.logits(hidden).float(), self.rows, self._colon)

    def _join(self) -> list[Continuation]:
        """Moves waiting continuations into the batch, in their order, and generates their first tokens."""
        joining: list[Continuation] = []
        longest, tokens = max(map(num_positions, self.rows), default=0), 0
        while self.waiting and len(self.rows) + len(joining) < self.max_rows:
            candidate = self.waiting[0]
            longest, tokens = max(longest, num_positions(candidate)), tokens + len(candidate.prompt)
            count = len(self.rows) + len(joining) + 1
            if count > 1 and self.max_tokens is not None and count * longest > self.max_tokens:
                break
            if joining and tokens > PREFILL_TOKENS:
                break
            joining.append(self.waiting.popleft())
        if joining:
            self._reserve(len(self.rows) + len(joining), max(map(num_positions, self.rows + joining)))
        for group in prefill_groups(joining):
            self._prefill(group)
        return joining

    def _prefill(self, group: list[Continuation]) -> None:
        lengths = [len(c.prompt) for c in group]
        longest = max(lengths)
        # A token's cache slot is its position. Prompts are padded on the right, and the tokens of a row
        # overwrite its padding before the attention mask includes it.
        tokens = torch.tensor(
            [c.prompt + [0] * (longest - n) for c, n in zip(group, lengths)], device=self.device
        )
        positions = torch.arange(longest, device=self.device).expand(len(group), longest)
        first = len(self.rows)
        self.rows += group
        if self._has_recurrent_state:
            for tensor in row_tensors(self._cache, self._size[0]):
                tensor[first : first + len(group)].zero_()
        row_lengths = torch.tensor(lengths, device=self.device)
        ends = torch.arange(len(group), device=self.device), row_lengths - 1
        if any(c.sampling.prompt_logprobs for c in group):
            hidden = self._forward(tokens, positions, first, lengths=row_lengths)  # (B, T, D)
            for i, continuation in enumerate(group):
                if continuation.sampling.prompt_logprobs:
                    self._score(continuation, hidden[i, : lengths[i] - 1])
            last = hidden[ends]
        else:
            last = self._forward(tokens, positions, first, lengths=row_lengths, at=ends)  # (B, D)
        drawing = [i for i, c in enumerate(group) if c.sampling.max_new_tokens]
        for continuation in group:
            if not continuation.sampling.max_new_tokens:
                continuation.ended = "length"
        if drawing:
            pick(self.model.logits(last[drawing]).float(), [group[i] for i in drawing], self._colon)

    def _score(self, continuation: Continuation, hidden: Tensor) -> None:
        """Stores the log-probabilities of prompt[1:]. hidden: (T - 1, D), the states that predict them."""
        targets = torch.tensor(continuation.prompt[1:], device=self.device)
        for start in range(0, len(hidden), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            logprobs = self.model.logits(hidden[rows]).float().log_softmax(1)
            continuation.prompt_logprobs += logprobs.gather(1, targets[rows, None])[:, 0].tolist()
            if count := continuation.sampling.top_logprobs:
                tops = top_logprobs(logprobs, [count] * len(logprobs))
                continuation.prompt_top += [top for top in tops if top is not None]

    def _forward(self, tokens: Tensor, positions: Tensor, first: int, **more) -> Tensor:
        """Hidden states (B, T, D) of the cache rows from `first` on; (N, D) where `at` selects positions."""
        return forward_rows(self.model, self._cache, self._size[0], tokens, positions, first, **more)

    def _reserve(self, rows: int, length: int) -> None:
        """Makes the cache large enough and keeps its content."""
        if rows <= self._size[0] and length <= self._size[1]:
            return
        rows = max(self._size[0], min(1 << (rows - 1).bit_length(), self.max_rows))
        length = max(self._size[1], min(-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, self.max_length))
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
        """Frees the rows of continuations; the last row moves into each freed one."""
        for continuation in gone:
            freed, last = self.rows.index(continuation), len(self.rows) - 1
            if freed != last:
                for tensor in row_tensors(self._cache, self._size[0]):
                    tensor[freed] = tensor[last]
                self.rows[freed] = self.rows[last]
            self.rows.pop()
        if not self.rows:
            self._cache, self._size = None, (0, 0)  # free the memory


def outgrows_cache(model, length: int) -> bool:
    """Whether a text that grows to this length needs a new cache. Models of other kinds do not say."""
    return getattr(model, "outgrows_cache", lambda length: False)(length)


def whole_text(text: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(tokens, positions), each (1, T), of a text that is computed from its beginning."""
    return torch.tensor([text], device=device), torch.arange(len(text), device=device)[None]


def num_positions(continuation: Continuation) -> int:
    """Positions that a continuation may take at most."""
    return len(continuation.prompt) + continuation.sampling.max_new_tokens


def prefill_groups(continuations: Sequence[Continuation]) -> list[list[Continuation]]:
    """The groups whose prompts share a forward pass: the cheapest partition of the prompts sorted by length.

    A group of n costs n times its longest prompt, plus PASS_TOKENS.
    """
    ordered = sorted(continuations, key=lambda c: len(c.prompt))
    best: list[tuple[float, int]] = [(0.0, 0)]  # best[n]: (cost of the first n, start of their last group)
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
    """Hidden states (B, T, D) of tokens (B, T) in the cache rows first .. first + B - 1; `rows`: all of them.

    more: further arguments of the model (lengths, at).
    """
    view = map_rows(cache, rows, lambda tensor: tensor[first : first + len(tokens)])
    hidden = model(tokens, positions=positions, cache=view, **more)
    _write_back(cache, view, rows, first)
    return hidden


def _write_back(cache, view, rows: int, first: int) -> None:
    """Copies into the cache each state that a layer replaced by a new tensor; writes in place are there."""
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
    """A copy of a cache in which `function` is applied to every tensor that has `rows` rows, at any depth."""
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

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_rows(cache, rows, collect)
    return found
