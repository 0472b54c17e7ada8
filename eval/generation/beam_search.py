"""beam search: the continuations with the highest sum of log-probabilities over length^penalty.

As transformers searches with `early_stopping=False` (and Megatron-LM, by the same rules): twice as many
candidates as beams are looked at in every step; those that end the text among the best half join the finished
ones, of which as many as there are beams are kept; the search ends when the best unfinished beam, scored at
its present length, can no longer join them. Without rules for the draw: neither temperature nor top-k nor
top-p.

K beams, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import forward_rows, map_rows
from .sampling import Sampling, newline_after_colon, text_of

IMPOSSIBLE = -1e9  # the score of a beam that may not be taken


@dataclasses.dataclass(frozen=True)
class Beam:
    """One result. score: log-probability in nats over length^length_penalty. logprobs: of each id."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float
    ended: str  # "eod" or "length"


class BeamSearch:
    """The beams of one prompt; `step` grows them by a token, `done` says when `found` holds the result, the
    best first.

    prompt: at least one id. sampling: of it only max_new_tokens, stop_token and prevent_newline_after_colon
    matter. model: as batching.Batch wants it.
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
        self.tokenizer = tokenizer
        self.model, self.width, self.max_new_tokens, self.length_penalty = (
            model,
            beam_width,
            sampling.max_new_tokens,
            length_penalty,
        )
        self.end = tokenizer.eod if sampling.stop_token is None else sampling.stop_token
        self.device = next(model.parameters()).device
        self.prompt = list(prompt)
        self.found: list[Beam] = []
        self.done = False
        self._colon = newline_after_colon(tokenizer) if sampling.prevent_newline_after_colon else None
        self._running: list[tuple[int, ...]] = [()] * beam_width
        self._logprobs: list[tuple[float, ...]] = [()] * beam_width
        # only the first counts in the first step, where all are alike
        self._scores = torch.tensor([0.0] + [IMPOSSIBLE] * (beam_width - 1), device=self.device)
        self._cache = None

    def texts(self) -> list[str]:
        """The text of every beam that was found."""
        return [
            text_of(self.tokenizer, self.prompt, beam.ids[:-1] if beam.ended == "eod" else beam.ids)
            for beam in self.found
        ]

    @torch.inference_mode()
    def step(self) -> None:
        logprobs = self._logits().log_softmax(1)  # (K, V)
        if self._colon:
            colon, newline = self._colon
            logprobs[
                [i for i, ids in enumerate(self._running) if (ids or self.prompt)[-1] == colon], newline
            ] = float("-inf")
        totals = (logprobs + self._scores[:, None]).flatten()
        best = totals.topk(2 * self.width)
        vocabulary = logprobs.shape[1]
        parents, tokens, scores = (
            (best.indices // vocabulary).tolist(),
            (best.indices % vocabulary).tolist(),
            best.values.tolist(),
        )
        own = logprobs[parents, tokens].tolist()
        length = len(self._running[0]) + 1
        last = length == self.max_new_tokens
        ended = [last or token == self.end for token in tokens]
        for i in range(self.width):
            if ended[i]:
                ids = (*self._running[parents[i]], tokens[i])
                reason = "eod" if tokens[i] == self.end else "length"
                self.found.append(
                    Beam(
                        ids,
                        (*self._logprobs[parents[i]], own[i]),
                        scores[i] / length**self.length_penalty,
                        reason,
                    )
                )
        # stable: the earlier of equals stays
        self.found = sorted(self.found, key=lambda beam: -beam.score)[: self.width]
        going = [i for i in range(2 * self.width) if not ended[i]][: self.width]
        if last or not going:
            self.done, self._cache = True, None
            return
        self._running, self._logprobs = (
            [(*kept[parents[i]], new[i]) for i in going]
            for kept, new in ((self._running, tokens), (self._logprobs, own))
        )
        self._scores = torch.tensor([scores[i] for i in going], device=self.device)
        self._keep([parents[i] for i in going])
        if (
            len(self.found) == self.width
            and scores[going[0]] / length**self.length_penalty <= self.found[-1].score
        ):
            self.done, self._cache = True, None

    def _logits(self) -> Tensor:
        """(K, V) fp32: what follows every beam."""
        if self._cache is None:
            self._cache = self.model.new_cache(self.width, len(self.prompt) + self.max_new_tokens)
            positions = torch.arange(len(self.prompt), device=self.device)[None]
            told = {
                "lengths": torch.tensor([len(self.prompt)], device=self.device),
                "at": (positions[:, 0], positions[:, -1]),
            }
            # (1, D)
            hidden = forward_rows(
                self.model,
                self._cache,
                self.width,
                torch.tensor([self.prompt], device=self.device),
                positions,
                0,
                **told,
            )
            self._keep([0] * self.width)
            return self.model.logits(hidden).float().expand(self.width, -1).clone()
        place = len(self.prompt) + len(self._running[0]) - 1
        tokens = torch.tensor([[ids[-1]] for ids in self._running], device=self.device)
        hidden = forward_rows(self.model, self._cache, self.width, tokens, torch.full_like(tokens, place), 0)
        return self.model.logits(hidden[:, 0]).float()

    def _keep(self, parents: list[int]) -> None:
        """Row n of the cache becomes what row parents[n] was."""
        if parents != list(range(self.width)):
            index = torch.tensor(parents, device=self.device)
            self._cache = map_rows(self._cache, self.width, lambda tensor: tensor[index])
