"""The language model that tasks use: log-likelihoods of continuations, rolling log-likelihoods, generation.

A task gives token ids and gets numbers or token ids back. This file decides how sequences are batched, which
changes results only by float rounding. Sequences are sorted by length, so that there is little padding.
Padding is on the right, where the causal mask hides it from every scored position. Only the hidden states at
scored positions go through the last feed-forward layer and the output layer (train/model/likelihood.py).

B batch, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from ..core.config import UserError, check, configuration, option
from ..indexed.word_pieces import word_pieces
from ..tokenizer.tokenizer import Tokenizer
from ..train.checkpoint.base import Checkpoint
from ..train.model.base import Model
from ..train.model.family import family_of
from ..train.model.retro import Retro
from ..train.model.t5 import T5
from ..train.parallel.mesh import Mesh
from ..train.precision import use_fast_float32_matmul
from ..train.prepacked_weights import prepare_for_inference
from .encoder_decoder import EncoderDecoder
from .generation.batch import GenerationBatch
from .generation.sampling import Continuation, Sampling

SLAB_BATCHES = 32  # batches that are read ahead and sorted by length
# (ids, the index of the first one that is scored)
Window = tuple[Sequence[int] | np.ndarray, int]
Item = TypeVar("Item")


class LanguageModel:
    """A model, its tokenizer, and the longest sequence that it gets.

    model: as Checkpoint.load_model returns it: `model(tokens (B, T) int64, positions=, cache=, at=) ->
    hidden (B, T, D)`, `model.log_likelihoods(hidden (N, D), targets (N,))`, `model.logits(hidden) -> (...,
    V)`, `model.new_cache(batch, max_length)`. batch_size: sequences in one forward pass.
    """

    def __init__(self, model, tokenizer, max_length: int, batch_size: int = 16):
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.batch_size = max_length, batch_size
        self.device = next(model.parameters()).device
        self.slab = batch_size * SLAB_BATCHES  # sequences that are read ahead

    def encode(self, text: str) -> list[int]:
        """A prompt's ids; for a T5 with relative positions they end with EOS, as in its training.

        (Raffel et al. 2020)
        """
        ids = self.tokenizer.encode(text)
        ends = isinstance(self.model, EncoderDecoder) and self.model.model.encoder_bias is not None
        return [*ids, self.start] if ends else ids

    @property
    def start(self) -> int:
        """The id that replaces an empty text: the end-of-document token.

        Raises UserError where the vocabulary has none.
        """
        if self.tokenizer.eod is None:
            raise UserError(
                "the tokenizer has no end-of-document token, so that an empty text cannot be continued or"
                " scored; give a longer text"
            )
        return self.tokenizer.eod

    def loglikelihood(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """For each (context ids, continuation ids): (the continuation's log-probability in nats, greedy).

        greedy: whether each token of the continuation is the model's most probable one. The beginning of a
        context that is too long for the model is cut; an empty context becomes the end-of-document token.
        Requests with the same ids share one forward pass, wherever context and continuation divide.
        """
        first_scored: dict[tuple[int, ...], int] = {}
        keys = []
        for context, continuation in requests:
            assert len(continuation) <= self.max_length, (
                "a continuation longer than the model's positions cannot be scored"
            )
            sequence = (*(context or [self.start]), *continuation)[-(self.max_length + 1) :]
            first_scored[sequence] = min(
                first_scored.get(sequence, len(sequence)), len(sequence) - len(continuation)
            )
            keys.append(sequence)
        scored = dict(zip(first_scored, self._score(first_scored.items())))
        results = []
        for key, (_, continuation) in zip(keys, requests):
            logprobs, greedy = scored[key]
            start = len(logprobs) - len(continuation)
            results.append((float(logprobs[start:].sum(dtype=np.float64)), bool(greedy[start:].all())))
        return results

    def rolling(self, windows: Iterable[Window]) -> Iterator[np.ndarray]:
        """For each (ids, first): the log-probabilities in nats of ids[first:], each given all ids before it.

        ids: at most max_length + 1; 1 <= first <= len(ids). Yields (len(ids) - first,) float32 arrays in the
        order of the windows. At most SLAB_BATCHES batches of windows are in memory.
        """
        for logprobs, _ in self._score(windows):
            yield logprobs

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], seeds: Sequence = ()
    ) -> list[Continuation]:
        """A finished Continuation of each prompt. An empty prompt becomes the end-of-document token.

        sampling: the same for all prompts, or one for each. seeds: one for each, as numpy's default_rng takes
        them; default (0, n) for prompt n. A prompt with its max_new_tokens must fit max_length.
        """
        continuations = self.continuations(prompts, sampling, seeds)
        for _ in self.new_batch().run(sorted(continuations, key=lambda c: len(c.prompt))):
            pass
        return continuations

    def continuations(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], seeds: Sequence = ()
    ) -> list[Continuation]:
        """A Continuation of each prompt before its first token: see `generate`."""
        rules = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        seeds = seeds or [(0, n) for n in range(len(prompts))]
        return [
            Continuation(
                list(prompt) or [self.start],
                rule,
                self.tokenizer,
                np.random.default_rng(seed) if rule.draws else None,
            )
            for prompt, rule, seed in zip(prompts, rules, seeds, strict=True)
        ]

    def new_batch(self) -> GenerationBatch:
        return GenerationBatch(
            self.model, self.tokenizer, max_length=self.max_length, max_rows=self.batch_size
        )

    def to(self, device: torch.device) -> None:
        """Moves the model to a device."""
        self.model.to(device)
        self.device = next(self.model.parameters()).device

    def _score(self, windows: Iterable[Window]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each window, in order: (log-probabilities of its scored tokens, whether each is greedy)."""
        for slab in batched(windows, self.slab):
            results: list = [None] * len(slab)
            by_length = sorted(range(len(slab)), key=lambda i: -len(slab[i][0]))
            for indices in batched(by_length, self.batch_size):
                for index, result in zip(indices, self._score_batch([slab[i] for i in indices])):
                    results[index] = result
            yield from results

    @torch.inference_mode()
    def _score_batch(self, windows: list[Window]) -> list[tuple[np.ndarray, np.ndarray]]:
        assert all(first >= 1 and len(ids) <= self.max_length + 1 for ids, first in windows), (
            "a window does not fit the model"
        )
        length = max(1, len(windows[0][0]) - 1)  # the first window is the longest
        tokens = torch.zeros((len(windows), length), dtype=torch.int64)
        for row, (ids, _) in enumerate(windows):
            tokens[row, : len(ids) - 1] = torch.as_tensor(ids[:-1], dtype=torch.int64)
        counts = [len(ids) - first for ids, first in windows]
        # position n - 1 predicts ids[n]
        rows = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor(counts))
        columns = torch.cat([torch.arange(first - 1, len(ids) - 1) for ids, first in windows])
        targets = torch.cat([torch.as_tensor(ids[first:], dtype=torch.int64) for ids, first in windows]).to(
            self.device
        )
        at = rows.to(self.device), columns.to(self.device)
        lengths = torch.tensor([max(1, len(ids) - 1) for ids, _ in windows], device=self.device)
        hidden = self.model(tokens.to(self.device), at=at, lengths=lengths)  # (N, D)
        logprobs, hits = (found.cpu().numpy() for found in self.model.log_likelihoods(hidden, targets))
        if not np.isfinite(logprobs).all():
            raise UserError(
                "the model's logits are not numbers (NaN): its weights are broken; use another checkpoint"
            )
        ends = np.cumsum(counts)[:-1]
        return list(zip(np.split(logprobs, ends), np.split(hits, ends)))


@configuration(group="retrieval")
class Retrieval:
    """Settings of a Retro model's retrieval."""

    retro_db: str | None = option(
        None, "Retro: the database of `mt retro build-db` to retrieve neighbours from", role="input"
    )
    retro_attention_gate: float = option(
        1.0,
        "Retro: factor of the cross-attention to neighbours; 0: no retrieval, as the GPT alone",
    )

    def __post_init__(self):
        check(
            (
                self.retro_attention_gate >= 0,
                f"retro_attention_gate = {self.retro_attention_gate:g} must not be negative",
            )
        )

    @property
    def inputs(self) -> list[str]:
        return [] if self.retro_db is None else [self.retro_db]


NO_RETRIEVAL = Retrieval(retro_attention_gate=0.0)


def open_model(
    checkpoint: Checkpoint,
    length: int | Literal["trained", "positions"],
    batch_size: int,
    retrieval: Retrieval = NO_RETRIEVAL,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """The GPT or Retro model of a checkpoint.

    length: the longest sequence in tokens, or that of the training, or all positions of the model. retrieval:
    for Retro, which retrieves neighbours whenever a chunk is complete. mesh: its tensor-parallel ranks share
    the model and must call it with the same arguments in the same order. Raises UserError.
    """
    use_fast_float32_matmul()
    if family_of(checkpoint.config).text != "decoder":
        raise UserError(
            f"{checkpoint}: is a model of family {checkpoint.config.family}, which does not continue text;"
            " give a model of family gpt (mt generate and mt serve also take t5)"
        )
    tokenizer, model = checkpoint.load_tokenizer(), checkpoint.load_model(mesh)
    _connect(model, tokenizer, retrieval, checkpoint)
    positions = checkpoint.config.max_position_embeddings
    lengths = {"trained": min(checkpoint.seq_length, positions), "positions": positions}
    max_length = lengths[length] if isinstance(length, str) else length
    if max_length > positions:
        raise UserError(
            f"seq_length = {max_length} must be at most the {positions} positions of the model in"
            f" {checkpoint}"
        )
    return LanguageModel(model, tokenizer, max_length, batch_size)


def _connect(model: Model, tokenizer: Tokenizer, retrieval: Retrieval, checkpoint: Checkpoint) -> None:
    """Connects a Retro model to its database.

    Raises UserError for a Retro model without a database, or a database without a Retro model.
    """
    if not checkpoint.config.retro_add_retriever:
        _refuse_database(retrieval, checkpoint)
        return
    retro = cast(Retro, model)
    retro.gate = retrieval.retro_attention_gate
    if not retro.gate:
        return
    if retrieval.retro_db is None:
        raise UserError(
            f"{checkpoint}: holds a Retro model; give the database of its neighbours with --retro-db, or"
            " --retro-attention-gate 0 for the GPT inside"
        )
    from ..retro.retriever import Retriever

    retro.retrieve = Retriever(
        retrieval.retro_db,
        tokenizer,
        chunk_length=model.config.retro_chunk_length,
        num_neighbors=model.config.retro_num_neighbors,
    )


def _refuse_database(retrieval: Retrieval, checkpoint: Checkpoint) -> None:
    if retrieval.retro_db is not None:
        raise UserError(
            f"retro_db = {retrieval.retro_db}: {checkpoint} holds a model without retrieval; leave it out"
        )


def open_generator(
    checkpoint: Checkpoint, batch_size: int, retrieval: Retrieval = NO_RETRIEVAL
) -> LanguageModel:
    """The model of a checkpoint for generation with all its positions; a T5's encoder reads the prompt."""
    if family_of(checkpoint.config).text != "encoder-decoder":
        return open_model(checkpoint, "positions", batch_size, retrieval)
    use_fast_float32_matmul()
    _refuse_database(retrieval, checkpoint)
    tokenizer, model = checkpoint.load_tokenizer(), checkpoint.load_model()
    bos, eos = word_pieces(tokenizer).require("bos", "eos")
    tokenizer = copy.copy(tokenizer)
    tokenizer.eod = eos
    return LanguageModel(
        EncoderDecoder(cast(T5, model), bos),
        tokenizer,
        checkpoint.config.max_position_embeddings,
        batch_size,
    )


def open_scorer(
    checkpoint: Checkpoint,
    length: int | Literal["trained", "positions"],
    batch_size: int,
    retrieval: Retrieval = NO_RETRIEVAL,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """`open_model` with prepacked weights (train/prepacked_weights.py), unless ranks share them."""
    model = open_model(checkpoint, length, batch_size, retrieval, mesh)
    if mesh is None or mesh.tp.size == 1:
        prepare_for_inference(model.model)
    return model


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
