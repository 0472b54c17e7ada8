"""continue prompts: greedy or sampled, in batches of prompts of different lengths.

A draw is made in Megatron-LM's order: the temperature divides the logits, then top-k or top-p removes candidates, then one
of the rest is drawn. Every prompt has its own random numbers, from (seed, number of the prompt), so that a text
depends neither on the prompts beside it nor on the batch size.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from .. import documents
from ..config import UserError, check, option
from ..executor import progress
from .lm import Choose, LanguageModel, Stopped, batched, open_model
from .results import Results, records

SAMPLES_SHOWN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How prompts are continued."""

    load: str = option(help="checkpoint directory", role="input")
    prompts: tuple[str, ...] = option((), "texts to continue; an empty one starts a new document")
    input: tuple[str, ...] = option((), 'documents to continue: lines {"text": prompt}', role="input")
    output: str | None = option(None, "directory for a line per prompt; none: only print them", role="output")
    tokens_to_generate: int = option(64, "tokens to add at most")
    temperature: float = option(1.0, "divides the logits: below 1 surer, above 1 wilder; at most 100")
    top_k: int = option(0, "draw among the k most probable tokens; 0: among all")
    top_p: float = option(0.0, "draw among the most probable tokens that together first exceed this probability; 0: among all")
    greedy: bool = option(False, "always take the most probable token (so does --top-k 1)")
    random_seed: int = option(1234, "the same seed gives the same texts")
    stop: tuple[str, ...] = option((), "texts that end a continuation, and are not part of it")
    micro_batch_size: int = option(16, "prompts continued together")
    text_key: str = option("text", "the record's key that holds the prompt")
    on_error: Literal["fail", "skip"] = option("fail", "a prompt that cannot be read or continued: stop, or set it aside", role="runtime")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        check(
            (bool(self.prompts) != bool(self.input), "give either --prompts TEXT... or --input FILE..."),
            (self.tokens_to_generate >= 1, f"tokens_to_generate = {self.tokens_to_generate} must be at least 1"),
            (0 < self.temperature <= 100, f"temperature = {self.temperature:g} must be above 0 and at most 100; for the most probable token pass --greedy"),
            (self.top_k >= 0, f"top_k = {self.top_k} must be at least 0 (0: no limit)"),
            (0 <= self.top_p <= 1, f"top_p = {self.top_p:g} must be from 0 to 1 (0: no limit)"),
            (not (self.top_k and self.top_p), f"top_k = {self.top_k} and top_p = {self.top_p:g} cannot both be set; choose one"),
            (self.random_seed >= 0, f"random_seed = {self.random_seed} must be at least 0"),
            (all(self.stop), "stop = '' would end every continuation at once; give a text"),
            (self.micro_batch_size >= 1, f"micro_batch_size = {self.micro_batch_size} must be at least 1"),
        )


def generate(config: GenerateConfig) -> dict:
    """Continues prompts; each of the summary's `samples` has text, token ids, their log-probabilities and why it ended.

    The log-probabilities are in nats and the model's own, before the temperature. With --output every sample is a line of
    predictions.jsonl, and the summary keeps the first few.
    """
    shards = documents.plan(config.input, key=config.text_key, shard_bytes=sys.maxsize, on_error=config.on_error) if config.input else []
    with Results("generate", config, [config.load, *(shard.path for shard in shards)]) as results:
        if results.finished:
            return _for_people(results.finished)
        model = open_model(config.load, "positions", config.micro_batch_size)
        samples: list[dict] = []
        counts = {"prompts": 0, "prompt_tokens": 0, "tokens": 0}
        with results.predictions() as write, progress("generate", None, "prompts") as advance:
            for slab in batched(_prompts(config, shards, model, results), model.slab):
                for prompt, sample in zip(slab, _continue(slab, counts["prompts"], model, config)):
                    write(sample)
                    if config.output is None or len(samples) < SAMPLES_SHOWN:
                        samples.append(sample)
                    counts["prompt_tokens"] += len(prompt.ids)
                    counts["tokens"] += len(sample["tokens"])
                counts["prompts"] += len(slab)
                advance(len(slab))
        if not counts["prompts"]:
            raise UserError(f"{', '.join(config.input)}: no prompt could be continued ({len(results.rejects)} were set aside); check the file")
        return _for_people(results.finish(counts, samples=samples))


def _for_people(summary: dict) -> dict:
    """The summary with the texts to print: each prompt with what follows it."""
    texts = [sample["prompt"] + sample["text"] for sample in summary["samples"]]
    if (more := summary["counts"]["prompts"] - len(texts)) > 0:
        texts.append(f"... and {more:,} more in predictions.jsonl")
    if count := summary["counts"]["rejected"]:
        texts.append(f"{count:,} prompt{'s were' if count > 1 else ' was'} set aside: they could not be read or are too long")
    return {**summary, "text": "\n\n".join(texts)}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to continue, and its token ids."""

    id: str
    text: str
    ids: list[int]


def _prompts(config: GenerateConfig, shards: list[documents.Shard], model: LanguageModel, results: Results) -> Iterator[Prompt]:
    """The prompts in order; one too long is a UserError, or a reject where it came from a file and on_error is "skip"."""
    for number, text in enumerate(config.prompts, 1):
        ids = model.tokenizer.encode(text)
        if problem := _too_long(ids, config, model):
            raise UserError(f"prompt {number} ({_head(text)}) {problem}")
        yield Prompt(str(number), text, ids)
    for shard in shards:
        for place, document in records(shard, results):
            ids = model.tokenizer.encode(document.text)
            if problem := _too_long(ids, config, model):
                results.refuse(shard, place, problem, document)
            else:
                yield Prompt(document.id, document.text, ids)


def _too_long(ids: list[int], config: GenerateConfig, model: LanguageModel) -> str | None:
    """What is wrong with a prompt of these ids, if anything."""
    count, wanted, positions = max(1, len(ids)), config.tokens_to_generate, model.max_length
    if count + wanted <= positions:
        return None
    remedy = f"generate at most {positions - count}" if count < positions else f"shorten it to {max(1, positions - wanted)}"
    return f"has {count} tokens; with tokens_to_generate = {wanted} that is {count + wanted}, but the model has {positions} positions; {remedy}"


def _head(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _continue(prompts: list[Prompt], first: int, model: LanguageModel, config: GenerateConfig) -> Iterator[dict]:
    """The samples of consecutive prompts, the first of which has the number `first`."""
    choose = None
    if not config.greedy and config.top_k != 1:
        draws = [np.random.default_rng((config.random_seed, first + i)) for i in range(len(prompts))]
        choose = sampler(config.temperature, config.top_k, config.top_p, draws)
    stopped = stop_rule(config.stop, model.tokenizer) if config.stop else None
    for prompt, (ids, logprobs) in zip(prompts, model.generate([p.ids for p in prompts], config.tokens_to_generate, choose, stopped)):
        ended = "eod" if ids[-1] == model.tokenizer.eod else "length"
        text = model.tokenizer.decode(ids[:-1] if ended == "eod" else ids)
        stops = [at for stop in config.stop if (at := text.find(stop)) >= 0]
        if stops:
            text, ended = text[: min(stops)], "stop"
        yield {"id": prompt.id, "prompt": prompt.text, "text": text, "tokens": ids, "logprobs": logprobs, "ended": ended}


def sampler(temperature: float, top_k: int, top_p: float, draws: Sequence[np.random.Generator]) -> Choose:
    """Draws among the candidates by their probabilities; draws[n] gives the random numbers of prompt n."""

    def choose(logits: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        # float64, so that the sum of 50,000 probabilities leaves none out; the inverse of the distribution function
        # needs one uniform number a token, the same on every device
        cumulative = candidates(logits, temperature, top_k, top_p).double().softmax(1).cumsum(1)
        uniform = torch.tensor([[draws[n].random()] for n in numbers], dtype=torch.float64, device=logits.device)
        return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]

    return choose


def candidates(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Logits (B, V) divided by the temperature, minus infinity where no candidate.

    top_k: candidates are those not below the k-th logit. top_p: the most probable ones until their sum exceeds top_p,
    the one that crosses it included (Holtzman et al. 2019). 0 switches either off.
    """
    logits = logits / temperature
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[1]), dim=1).values[:, -1:]
        return logits.masked_fill(logits < kth, float("-inf"))
    if top_p:
        ordered, index = logits.sort(dim=1, descending=True, stable=True)
        removed = torch.zeros_like(ordered, dtype=torch.bool)
        removed[:, 1:] = ordered.softmax(1).cumsum(1)[:, :-1] > top_p  # those before it are enough
        return logits.masked_fill(removed.scatter(1, index, removed), float("-inf"))
    return logits


def stop_rule(texts: Sequence[str], tokenizer) -> Stopped:
    """Stops where one of the texts stands in the continuation."""
    # A token spells at least a byte, so a text that the newest token completes lies in this many; four more for a
    # character that the cut would break.
    tail = max(len(text.encode()) for text in texts) + 4

    def stopped(number: int, ids: list[int]) -> bool:
        recent = tokenizer.decode(ids[-tail:])
        return any(text in recent for text in texts)

    return stopped
