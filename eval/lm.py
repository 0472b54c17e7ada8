"""the three methods every task sees: log-likelihood, rolling log-likelihood, generate.

A task hands token ids in and gets numbers or token ids back; how sequences are batched is decided here and never shows
in a result beyond float rounding. Sequences are sorted by length, so that little is padded; padding stands on the
right, where causal attention keeps it from every scored position. Only the hidden states at scored positions meet the
vocabulary matrix, a few hundred rows at a time, and the log-sum-exp is taken in fp32.

B batch, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from ..config import UserError
from ..train.checkpoint import load_model
from ..train.precision import use_fast_float32_products

# Draws the next ids (B,) int64 from logits (B, V) fp32, given each row's prompt by its number.
Choose = Callable[[torch.Tensor, list[int]], torch.Tensor]
# Whether a continuation is over: the number of its prompt, its ids so far.
Stopped = Callable[[int, list[int]], bool]

LOGIT_ROWS = 256  # rows of logits held at once: 64 and 1024 were slower on a CPU with V = 50257
SLAB_BATCHES = 32


class LanguageModel:
    """A model, its tokenizer, and the most positions that it may be given.

    model: as train.checkpoint.load_model returns it: `model(tokens (B, T) int64, positions=, cache=) -> hidden (B, T, D)`,
    `model.logits(hidden) -> (..., V)`, `model.new_cache(batch, max_length)`. batch_size: sequences in one forward pass.
    """

    def __init__(self, model, tokenizer, max_length: int, batch_size: int = 16):
        self.model, self.tokenizer, self.max_length, self.batch_size = model, tokenizer, max_length, batch_size
        self.device = next(model.parameters()).device
        self.slab = batch_size * SLAB_BATCHES  # sequences read ahead, to sort them by length

    def loglikelihood(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context ids, continuation ids): the continuation's log-probability in nats, and whether it is greedy.

        Greedy: the model's most probable token is the continuation's at each of its positions. A context too long for
        the model loses its head; an empty one is the end-of-document token. Requests that spell the same sequence share one
        forward pass, however they are cut.
        """
        first_scored: dict[tuple[int, ...], int] = {}
        keys = []
        for context, continuation in requests:
            assert len(continuation) <= self.max_length, "a continuation longer than the model's positions cannot be scored"
            sequence = (*(context or [self._end_of_document()]), *continuation)[-(self.max_length + 1) :]
            first_scored[sequence] = min(first_scored.get(sequence, len(sequence)), len(sequence) - len(continuation))
            keys.append(sequence)
        scored = dict(zip(first_scored, self._score(first_scored.items(), greedy=True)))
        results = []
        for key, (_, continuation) in zip(keys, requests):
            logprobs, greedy = scored[key]
            start = len(logprobs) - len(continuation)
            results.append((float(logprobs[start:].sum(dtype=np.float64)), bool(greedy[start:].all())))
        return results

    def rolling(self, windows: Iterable[tuple[Sequence[int], int]]) -> Iterator[np.ndarray]:
        """For each (ids, first): the log-probabilities in nats of ids[first:], each given all ids before it.

        ids: at most max_length + 1 of them; 1 <= first <= len(ids). Yields (len(ids) - first,) float32 arrays in the order of the
        windows, which are read a few batches ahead and never held all at once.
        """
        for logprobs, _ in self._score(windows, greedy=False):
            yield logprobs

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, choose: Choose | None = None, stopped: Stopped | None = None
    ) -> list[tuple[list[int], list[float]]]:
        """For each prompt: the ids that follow it, at most max_new_tokens >= 1, and their log-probabilities in nats.

        choose: draws the next ids; the most probable one where it is None. The log-probabilities are the model's own,
        before choose changes anything. A continuation ends with the end-of-document token, or when `stopped` says so;
        the ids that ended it are part of it. An empty prompt is the end-of-document token.
        """
        starts = [list(prompt) or [self._end_of_document()] for prompt in prompts]
        results: list = [None] * len(starts)
        for numbers in batched(sorted(range(len(starts)), key=lambda i: len(starts[i])), self.batch_size):
            batch = self._generate_batch(numbers, [starts[i] for i in numbers], max_new_tokens, choose, stopped)
            for number, result in zip(numbers, batch):
                results[number] = result
        return results

    def _generate_batch(self, numbers, prompts, max_new_tokens, choose, stopped) -> list[tuple[list[int], list[float]]]:
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        longest = max(map(len, prompts))
        assert longest + max_new_tokens <= self.max_length, "a prompt and its continuation must fit the model's positions"
        # A token's cache slot is its position. Prompts are padded on the right, and each row's own tokens overwrite its
        # padding before they could see it.
        tokens = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=self.device)
        positions = torch.arange(longest, device=self.device).expand(len(prompts), longest)
        cache = self.model.new_cache(len(prompts), longest + max_new_tokens)
        hidden = self.model(tokens, positions=positions, cache=cache)[torch.arange(len(prompts), device=self.device), lengths - 1]
        results: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
        alive = set(range(len(prompts)))
        for step in range(max_new_tokens):
            logits = self.model.logits(hidden).float()  # (B, V)
            chosen = logits.argmax(1) if choose is None else choose(logits, numbers)
            logprobs = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1)
            for row, token, logprob in zip(range(len(prompts)), chosen.tolist(), logprobs.tolist()):
                if row not in alive:
                    continue
                ids, ids_logprobs = results[row]
                ids.append(token)
                ids_logprobs.append(logprob)
                if token == self.tokenizer.eod or (stopped is not None and stopped(numbers[row], ids)):
                    alive.discard(row)
            if not alive or step == max_new_tokens - 1:
                return results
            # a row that has ended is carried along; nobody reads what it says
            hidden = self.model(chosen[:, None], positions=(lengths + step)[:, None], cache=cache)[:, 0]
        return results

    def _end_of_document(self) -> int:
        if self.tokenizer.eod is None:
            raise UserError("the tokenizer has no token that ends a document, so that an empty text has nothing to start from; give a longer text")
        return self.tokenizer.eod

    def _score(self, windows: Iterable[tuple[Sequence[int], int]], *, greedy: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """(log-probabilities, whether each is the most probable) of the scored tokens of each window, in order."""
        for slab in batched(windows, self.slab):
            results: list = [None] * len(slab)
            by_length = sorted(range(len(slab)), key=lambda i: -len(slab[i][0]))
            for indices in batched(by_length, self.batch_size):
                for index, result in zip(indices, self._score_batch([slab[i] for i in indices], greedy)):
                    results[index] = result
            yield from results

    @torch.inference_mode()
    def _score_batch(self, windows: list[tuple[Sequence[int], int]], greedy: bool) -> list[tuple[np.ndarray, np.ndarray | None]]:
        assert all(first >= 1 and len(ids) <= self.max_length + 1 for ids, first in windows), "a window does not fit the model"
        length = max(1, len(windows[0][0]) - 1)  # the longest comes first
        tokens = torch.zeros((len(windows), length), dtype=torch.int64)
        for row, (ids, _) in enumerate(windows):
            tokens[row, : len(ids) - 1] = torch.as_tensor(ids[:-1], dtype=torch.int64)
        counts = [len(ids) - first for ids, first in windows]
        # ids[n] is predicted at position n - 1
        rows = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor(counts))
        columns = torch.cat([torch.arange(first - 1, len(ids) - 1) for ids, first in windows])
        targets = torch.cat([torch.as_tensor(ids[first:], dtype=torch.int64) for ids, first in windows]).to(self.device)
        hidden = self.model(tokens.to(self.device))[rows.to(self.device), columns.to(self.device)]  # (N, D)
        logprobs, hits = [], []
        for start in range(0, len(hidden), LOGIT_ROWS):
            logits = self.model.logits(hidden[start : start + LOGIT_ROWS]).float()  # (n, V)
            target = targets[start : start + LOGIT_ROWS]
            logprobs.append(logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(1))
            if greedy:
                hits.append(logits.argmax(1) == target)
        return list(zip(_split(logprobs, counts), _split(hits, counts) if greedy else itertools.repeat(None)))


def open_model(load: str, length: int | Literal["trained", "positions"], batch_size: int) -> LanguageModel:
    """The model of a checkpoint for sequences of `length` tokens: those of its training, all that its positions allow, or a number."""
    use_fast_float32_products()
    model, tokenizer, config = load_model(load)
    positions = config.model.max_position_embeddings
    lengths = {"trained": min(config.data.seq_length, positions), "positions": positions}
    wanted = lengths.get(length, length)
    if wanted > positions:
        raise UserError(f"seq_length = {wanted} must be at most the {positions} positions of the model in {load}")
    return LanguageModel(model, tokenizer, wanted, batch_size)


def _split(pieces: list[torch.Tensor], counts: list[int]) -> list[np.ndarray]:
    whole = torch.cat(pieces).cpu().numpy() if pieces else np.zeros(0, np.float32)
    return np.split(whole, np.cumsum(counts)[:-1])


def batched(items: Iterable, size: int) -> Iterator[list]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch

