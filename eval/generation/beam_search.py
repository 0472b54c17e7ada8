"""Beam search: the continuations with the highest sum of log-probabilities over length^penalty.

The rules are those of transformers with `early_stopping=False`, which are also Megatron-LM's. Every step
considers twice as many candidates as beams. A candidate in the best half that ends the text becomes a
finished beam; the best K finished beams are kept. The search ends when the best running beam, scored at its
present length, is no better than the worst of K finished beams. Temperature, top-k and top-p do not apply.

K beams, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import forward_rows, map_rows, outgrows_cache, whole_text
from .sampling import Sampling, newline_after_colon, text_of

IMPOSSIBLE = -1e9  # the score of a beam that must not be selected


@dataclasses.dataclass(frozen=True)
class Beam:
    """A finished beam. score: log-probability in nats over length^length_penalty. logprobs: of each id."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float
    ended: str  # "eod" or "length"


class BeamSearch:
    """The beams of one prompt.

    `step` extends them by a token; when `done` is true, `found` holds the result, best first.

    model: as GenerationBatch takes it. prompt: at least one id. sampling: only max_new_tokens, stop_token and
    prevent_newline_after_colon are used.
    """

    def __init__(
        self,
        model,
        tokenizer,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        beam_width: int,
        length_penalty: float = 1.0,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.width, self.length_penalty = beam_width, length_penalty
        self.max_new_tokens = sampling.max_new_tokens
        self.end = tokenizer.eod if sampling.stop_token is None else sampling.stop_token
        self.device = next(model.parameters()).device
        self.prompt = list(prompt)
        self.found: list[Beam] = []
        self.done = False
        self._colon = newline_after_colon(tokenizer) if sampling.prevent_newline_after_colon else None
        self._running: list[tuple[int, ...]] = [()] * beam_width
        self._logprobs: list[tuple[float, ...]] = [()] * beam_width
        # In the first step all beams are equal, so only the first one competes.
        self._scores = torch.tensor([0.0] + [IMPOSSIBLE] * (beam_width - 1), device=self.device)
        self._cache = None

    def texts(self) -> list[str]:
        """The text of every finished beam."""
        return [
            text_of(self.tokenizer, self.prompt, beam.ids[:-1] if beam.ended == "eod" else beam.ids)
            for beam in self.found
        ]

    @torch.inference_mode()
    def step(self) -> None:
        logprobs = self._logits().log_softmax(1)  # (K, V)
        if self._colon:
            colon, newline = self._colon
            after_colon = [i for i, ids in enumerate(self._running) if (ids or self.prompt)[-1] == colon]
            logprobs[after_colon, newline] = float("-inf")
        totals = (logprobs + self._scores[:, None]).flatten()
        best = totals.topk(2 * self.width)
        vocabulary = logprobs.shape[1]
        parents = (best.indices // vocabulary).tolist()
        tokens = (best.indices % vocabulary).tolist()
        scores = best.values.tolist()
        token_logprobs = logprobs[parents, tokens].tolist()
        length = len(self._running[0]) + 1
        last = length == self.max_new_tokens
        ended = [last or token == self.end for token in tokens]
        for i in range(self.width):
            if ended[i]:
                ids = (*self._running[parents[i]], tokens[i])
                logprobs_of_ids = (*self._logprobs[parents[i]], token_logprobs[i])
                score = length_penalized(scores[i], length, self.length_penalty)
                self.found.append(
                    Beam(ids, logprobs_of_ids, score, "eod" if tokens[i] == self.end else "length")
                )
        # a stable sort: of equal beams the earlier one stays
        self.found = sorted(self.found, key=lambda beam: -beam.score)[: self.width]
        going = [i for i in range(2 * self.width) if not ended[i]][: self.width]
        if last or not going:
            self.done, self._cache = True, None
            return
        self._running = [(*self._running[parents[i]], tokens[i]) for i in going]
        self._logprobs = [(*self._logprobs[parents[i]], token_logprobs[i]) for i in going]
        self._scores = torch.tensor([scores[i] for i in going], device=self.device)
        self._select_rows([parents[i] for i in going])
        best_running = length_penalized(scores[going[0]], length, self.length_penalty)
        if len(self.found) == self.width and best_running <= self.found[-1].score:
            self.done, self._cache = True, None

    def _logits(self) -> Tensor:
        """(K, V) float32: the logits of every beam's next token."""
        if self._cache is None:
            self._cache = self.model.new_cache(self.width, len(self.prompt) + self.max_new_tokens)
            positions = torch.arange(len(self.prompt), device=self.device)[None]
            hidden = forward_rows(  # (1, D)
                self.model,
                self._cache,
                self.width,
                torch.tensor([self.prompt], device=self.device),
                positions,
                0,
                lengths=torch.tensor([len(self.prompt)], device=self.device),
                at=(positions[:, 0], positions[:, -1]),
            )
            self._select_rows([0] * self.width)
            return self.model.logits(hidden).float().expand(self.width, -1).clone()
        position = len(self.prompt) + len(self._running[0]) - 1
        if outgrows_cache(self.model, position + 1):
            texts = [whole_text([*self.prompt, *ids], self.device) for ids in self._running]
            hidden = [
                forward_rows(self.model, self._cache, self.width, *text, row)[:, -1]
                for row, text in enumerate(texts)
            ]
            return self.model.logits(torch.cat(hidden)).float()
        tokens = torch.tensor([[ids[-1]] for ids in self._running], device=self.device)
        positions = torch.full_like(tokens, position)
        hidden = forward_rows(self.model, self._cache, self.width, tokens, positions, 0)
        return self.model.logits(hidden[:, 0]).float()

    def _select_rows(self, parents: list[int]) -> None:
        """Replaces row n of the cache by its row parents[n]."""
        if parents != list(range(self.width)):
            index = torch.tensor(parents, device=self.device)
            self._cache = map_rows(self._cache, self.width, lambda tensor: tensor[index])


def length_penalized(logprob: float, length: int, length_penalty: float) -> float:
    """logprob / length^length_penalty, or the nearest float64 where it is out of the range."""
    try:
        power = float(length**length_penalty)
    except OverflowError:
        power = math.inf
    return max(logprob / power, -sys.float_info.max) if power else -sys.float_info.max
