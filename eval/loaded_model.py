"""A model for Python: `mt.load` opens a checkpoint of any format, to generate, score and read logits.

    model = mt.load("out/model")                     # or the directory of a Hugging Face model
    model.generate("The first", max_new_tokens=20)   # the text that follows

Texts are generated as by `mt generate`: the same prompt with the same seed and number gives the same text
there. Log-likelihoods are those of lm-eval.

T tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypedDict, Unpack, cast, overload

import numpy as np
import torch
from torch import Tensor

from ..core.config import UserError, check, shown
from ..core.progress import notes_as_warnings
from ..tokenizer.tokenizer import Tokenizer
from ..train.checkpoint.base import Checkpoint
from ..train.checkpoint.open import open_checkpoint
from ..train.model.base import Model
from ..train.model.config import ResolvedModelConfig
from ..train.prepacked_weights import prepare_for_inference
from .encoder_decoder import EncoderDecoder
from .generation.sampling import Sampling
from .lm import LanguageModel, Retrieval, open_generator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Texts = list[str] | tuple[str, ...]
Ids = list[int] | np.ndarray | Tensor


class SamplingOptions(TypedDict, total=False):
    """How `LoadedModel.generate` samples; described there."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: str | Texts


class LogLikelihood(NamedTuple):
    """The log-likelihood of a continuation.

    logprob: the log-probability of its tokens, in nats. is_greedy: whether greedy decoding would give it.
    """

    logprob: float
    is_greedy: bool


class LoadedModel:
    """A model in memory, opened by `mt.load`.

    Attributes: tokenizer (encode, decode, vocab_size, eod, bos), config (the model's settings), max_length
    (number of positions), device, dtype, num_parameters, module (the torch module, for inference only),
    checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, language_model: LanguageModel, dtype: torch.dtype):
        self.checkpoint, self.dtype = checkpoint, dtype
        self._lm = language_model
        self.config: ResolvedModelConfig = checkpoint.config
        self.module: Model = language_model.model
        self.tokenizer: Tokenizer = language_model.tokenizer
        self.max_length, self.device = language_model.max_length, language_model.device
        self.num_parameters = sum(p.numel() for p in self.module.parameters())

    def __repr__(self) -> str:
        return (
            f"<{self.config.family} of {self.num_parameters:,} parameters from {self.checkpoint}:"
            f" {self.max_length:,} positions, {self.tokenizer.vocab_size:,} tokens in the vocabulary,"
            f" {str(self.dtype).removeprefix('torch.')} on {self.device}>"
        )

    @overload
    def generate(
        self,
        prompts: str,
        max_new_tokens: int = ...,
        *,
        stream: Literal[False] = ...,
        **how: Unpack[SamplingOptions],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompts: Texts,
        max_new_tokens: int = ...,
        *,
        stream: Literal[False] = ...,
        **how: Unpack[SamplingOptions],
    ) -> list[str]: ...
    @overload
    def generate(
        self,
        prompts: str,
        max_new_tokens: int = ...,
        *,
        stream: Literal[True],
        **how: Unpack[SamplingOptions],
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self,
        prompts: Texts,
        max_new_tokens: int = ...,
        *,
        stream: Literal[True],
        **how: Unpack[SamplingOptions],
    ) -> Iterator[tuple[int, str]]: ...
    def generate(
        self,
        prompts: str | Texts,
        max_new_tokens: int = 64,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        seed: int = 1234,
        stop: str | Texts = (),
        stream: bool = False,
    ) -> str | list[str] | Iterator[str] | Iterator[tuple[int, str]]:
        """Generates the text that follows each prompt. The result does not contain the prompt.

        Args:
            prompts: one text, for which a text is returned; or a list of texts, for which a list is returned.
                Several prompts are generated together in batches.
            max_new_tokens: maximum number of tokens to generate.
            temperature: divides the logits; 0 decodes greedily.
            top_k: sample among the k most probable tokens; 0: among all.
            top_p: sample among the most probable tokens whose total probability first exceeds this; 0:
                among all.
            seed: the same seed gives the same texts.
            stop: one text or several. Generation stops where one of them appears; it is not part of the
                result.
            stream: return an iterator that gives pieces of text while they are generated; for several prompts
                it gives (number of the prompt, piece). The pieces of a prompt, joined, are its whole text.

        Generation also stops at the end-of-document token. Raises UserError for invalid settings, and if a
        prompt and max_new_tokens together exceed the model's positions.
        """
        single = isinstance(prompts, str)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        check(
            (
                all(isinstance(text, str) for text in texts),
                "prompts must be a text or several texts; decode ids with tokenizer.decode",
            ),
            (max_new_tokens >= 1, f"max_new_tokens = {max_new_tokens} must be at least 1"),
            (0 <= temperature <= 100, f"temperature = {temperature:g} must be from 0 (greedy) to 100"),
            (top_k >= 0, f"top_k = {top_k} must be at least 0 (0: no limit)"),
            (0 <= top_p <= 1, f"top_p = {top_p:g} must be from 0 to 1 (0: no limit)"),
            (not (top_k and top_p), f"top_k = {top_k} and top_p = {top_p:g} cannot both be set; choose one"),
            (seed >= 0, f"seed = {seed} must be at least 0"),
            (all(stops), "stop = '' would end every continuation at once; give a text"),
        )
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            greedy=temperature == 0,
            temperature=temperature or 1.0,
            top_k=top_k,
            top_p=top_p,
            stop=stops,
        )
        ids = [self._lm.encode(text) for text in texts]
        for number, prompt in enumerate(ids):
            count = max(1, len(prompt))
            if count + max_new_tokens > self.max_length:
                raise UserError(
                    f"prompt {number} has {count:,} tokens; with max_new_tokens = {max_new_tokens} that is"
                    f" {count + max_new_tokens:,}, but the model has {self.max_length:,} positions; shorten"
                    " it or lower max_new_tokens"
                )
        seeds = [(seed, number) for number in range(len(ids))]
        if stream:
            pieces = self._stream(ids, sampling, seeds)
            return (piece for _, piece in pieces) if single else pieces
        found = [continuation.text for continuation in self._lm.generate(ids, sampling, seeds)]
        return found[0] if single else found

    def _stream(
        self, prompts: list[list[int]], sampling: Sampling, seeds: list[tuple[int, int]]
    ) -> Iterator[tuple[int, str]]:
        """(number of the prompt, new text) after every step in which the text grew."""
        continuations = self._lm.continuations(prompts, sampling, seeds)
        numbers = {id(continuation): number for number, continuation in enumerate(continuations)}
        batch = self._lm.new_batch()
        for continuation in continuations:
            batch.add(continuation)
        shown_chars = [0] * len(continuations)
        while batch.waiting or batch.rows:
            for continuation in batch.step():
                number, text = numbers[id(continuation)], continuation.text
                if len(text) > shown_chars[number]:
                    yield number, text[shown_chars[number] :]
                    shown_chars[number] = len(text)

    @overload
    def loglikelihood(self, context: str, continuation: str) -> LogLikelihood: ...
    @overload
    def loglikelihood(self, context: Sequence[tuple[str, str]]) -> list[LogLikelihood]: ...
    def loglikelihood(
        self, context: str | Sequence[tuple[str, str]], continuation: str | None = None
    ) -> LogLikelihood | list[LogLikelihood]:
        """The log-likelihood of a continuation after a context, as lm-eval computes it.

        Args:
            context: a text, or a list of (context, continuation) pairs, for which a list is returned. An
                empty context means the beginning of a document. If a context is too long, its beginning is
                cut off.
            continuation: the text that is scored. Both texts are tokenized together, and the tokens after
                those of the context are scored.

        Raises UserError for a T5, and for a continuation that is longer than the model's positions.
        """
        if isinstance(self.module, EncoderDecoder):
            raise UserError(
                f"{self.checkpoint}: is a model of family {self.config.family}, whose log-likelihoods mt does"
                " not compute; give a model of family gpt"
            )
        if isinstance(context, str):
            if not isinstance(continuation, str):
                raise UserError("loglikelihood needs a context and a continuation, or a list of such pairs")
            return self.loglikelihood([(context, continuation)])[0]
        requests = [self._encode_pair(*pair) for pair in context]
        for (_, text), (_, ids) in zip(context, requests):
            if len(ids) > self.max_length:
                raise UserError(
                    f"a continuation of {len(ids):,} tokens ({text[:40]!r}...) does not fit the"
                    f" {self.max_length:,} positions of the model; shorten it"
                )
        return [LogLikelihood(*found) for found in self._lm.loglikelihood(requests)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """(context ids, continuation ids), divided as by lm-eval's TemplateLM.loglikelihood."""
        encode = self.tokenizer.encode
        if not context:
            prefix, ids = self._prefix, encode(continuation)
            return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)
        stripped = context.rstrip()
        whole, before = encode(context + continuation), encode(stripped)
        return before, whole[len(before) :]

    @property
    def _prefix(self) -> int:
        return self._lm.start if self.tokenizer.bos is None else self.tokenizer.bos

    @overload
    def logits(self, inputs: str | Ids) -> Tensor: ...
    @overload
    def logits(self, inputs: Texts) -> list[Tensor]: ...
    def logits(self, inputs: str | Ids | Texts) -> Tensor | list[Tensor]:
        """The logits of every position: (T, V), float32, on the model's device.

        Args:
            inputs: a text, or its token ids (a list, array or tensor of length T); or a list of texts, for
                which a list is returned. Row t of the result has the scores for the token that follows token
                t. The columns are the token ids of the vocabulary, without its padding.

        Raises UserError for a T5, a text without tokens, ids outside the vocabulary, and more tokens than the
        model has positions.
        """
        if isinstance(inputs, list | tuple) and any(isinstance(item, str) for item in inputs):
            return [self.logits(text) for text in cast(Texts, inputs)]
        if isinstance(self.module, EncoderDecoder):
            raise UserError(
                f"{self.checkpoint}: is a model of family {self.config.family}, of which mt gives no logits;"
                " give a model of family gpt"
            )
        ids = self.tokenizer.encode(inputs) if isinstance(inputs, str) else inputs
        tokens = torch.as_tensor(ids, dtype=torch.int64, device=self.device)
        size = self.tokenizer.vocab_size
        check(
            (
                tokens.dim() == 1,
                f"ids of shape {tuple(tokens.shape)} must have the shape (T,)",
            ),
            (len(tokens) >= 1, "a text without tokens has no logits; give a longer one"),
            (
                len(tokens) <= self.max_length,
                f"{len(tokens):,} tokens do not fit the {self.max_length:,} positions of the model; shorten"
                " the text",
            ),
        )
        if tokens.min() < 0 or tokens.max() >= size:
            bad = int(tokens[(tokens < 0) | (tokens >= size)][0])
            raise UserError(f"id {bad} must be from 0 to {size - 1:,}, an id of the vocabulary")
        with torch.inference_mode():
            hidden = self.module(tokens[None])
            logits: Tensor = self._lm.model.logits(hidden)
            return logits[0, :, :size].float()


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    batch_size: int = 16,
    retro_db: str | None = None,
) -> LoadedModel:
    """Opens a checkpoint to generate text, score it and read logits.

    Args:
        path: a run of `mt train` or one of its steps, the directory of a Hugging Face model, or a checkpoint
            of Megatron-LM. The model must be a decoder or a T5. A T5 can only generate.
        step: the step of a run; default: its newest.
        device: such as `cpu` or `cuda:1`; default: the GPU if there is one.
        dtype: the precision in which the model computes, float32 or bfloat16.
        batch_size: number of texts that are generated or scored together.
        retro_db: for a Retro model, its retrieval database; without it only the GPT inside the model is used.

    Nothing is downloaded. Raises UserError if path is no checkpoint, or if mt does not support the model.
    """
    name = str(dtype).removeprefix("torch.")
    check(
        (name in DTYPES, f"dtype = {shown(name)} must be one of {', '.join(DTYPES)}"),
        (batch_size >= 1, f"batch_size = {batch_size} must be at least 1"),
    )
    with notes_as_warnings():
        checkpoint = open_checkpoint(os.fspath(path), step)
        retrieval = Retrieval(retro_db=retro_db, retro_attention_gate=0.0 if retro_db is None else 1.0)
        language_model = open_generator(checkpoint, batch_size, retrieval)
    if device is not None:
        try:
            language_model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:  # torch: no such device, or built without it
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"device = {device}: {reason}; give cpu, or a device of this machine") from None
    prepare_for_inference(language_model.model, bf16=name == "bfloat16")
    return LoadedModel(checkpoint, language_model, DTYPES[name])
