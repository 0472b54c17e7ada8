"""`mt generate`: continue prompts by greedy decoding, sampling or beam search.

The model is a checkpoint (`--load`), or an `mt serve` (`--url`), which gives the same texts for the same
settings. Prompts come from the command line or from documents. The text of a prompt depends on the seed, on
the prompt's number and on the prompt, not on the other prompts or on the batch size. With `--output` the
samples are documents, which `mt data clean` and `mt data tokenize` read.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from ...core.config import UserError, check, configuration, option
from ...core.progress import progress
from ...documents import files, sharding
from ...train.checkpoint.open import open_checkpoint
from ...train.checkpoint.presence import check_presence
from ...train.prepacked_weights import prepare_for_inference
from ..lm import LanguageModel, Retrieval, batched, open_generator
from ..results import Results, read_records
from ..server.client import ServerModel, check_answers
from .beam_search import BeamSearch
from .sampling import Sampling

SAMPLES_SHOWN = 10


@configuration()
class GenerateConfig:
    """The settings of `mt generate`."""

    load: str | None = option(None, "checkpoint directory", role="input")
    url: str | None = option(None, "address of a running `mt serve`, in place of --load")
    api_key_file: str | None = option(None, "file with the API key of the server at --url", role="runtime")
    prompts: tuple[str, ...] = option((), "texts to continue; an empty text starts a new document")
    input: tuple[str, ...] = option((), 'documents to continue: lines {"text": prompt}', role="input")
    output: str | None = option(None, "directory for a line per prompt; none: only print them", role="output")
    tokens_to_generate: int = option(64, "tokens to add at most")
    temperature: float = option(
        1.0, "divides the logits: below 1 makes probable tokens more probable, above 1 less; at most 100"
    )
    top_k: int = option(0, "sample among the k most probable tokens; 0: among all")
    top_p: float = option(
        0.0, "sample among the most probable tokens whose total probability first exceeds this; 0: among all"
    )
    top_p_decay: float = option(0.0, "multiply top-p by this after every token; 0: no decay")
    top_p_bound: float = option(0.0, "lower bound of top-p as it decays")
    greedy: bool = option(False, "always take the most probable token (so does --top-k 1)")
    beam_width: int | None = option(
        None, "search for the most probable text with this many beams, instead of sampling"
    )
    length_penalty: float = option(1.0, "rank beams by log-probability / length^this")
    random_seed: int = option(1234, "the same seed gives the same texts")
    stop: tuple[str, ...] = option((), "texts that end a continuation; they are not part of it")
    stop_token: int | None = option(
        None, "id of the token that ends a continuation (default: the end-of-document token)"
    )
    stop_on_eol: bool = option(False, "end at the first newline, and at nothing else")
    stop_on_double_eol: bool = option(False, "end at the first empty line, and at nothing else")
    prevent_newline_after_colon: bool = option(False, "never generate a newline after a colon")
    add_bos: bool = option(False, "put the end-of-document token before every prompt")
    echo: bool = option(False, "begin each text with its prompt, as for training data")
    bf16: bool = option(False, "compute in bfloat16")
    micro_batch_size: int = option(16, "prompts in a batch")
    text_key: str = option("text", "the record's key that holds the prompt")
    on_error: Literal["fail", "skip"] = option(
        "fail", "a prompt that cannot be read or continued: stop, or set it aside", role="runtime"
    )
    max_record_bytes: int = option(files.MAX_RECORD_BYTES, files.MAX_RECORD_HELP, added=True)
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")
    retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)

    def __post_init__(self):
        lines = self.stop_on_eol or self.stop_on_double_eol
        sampling_rules = self.greedy or self.top_k or self.top_p or self.temperature != 1
        check(
            (bool(self.load) != bool(self.url), "give either --load CHECKPOINT or --url http://HOST:PORT"),
            (
                self.url is not None or self.api_key_file is None,
                "api_key_file has no effect without --url; leave it out",
            ),
            (
                self.url is None or self.retrieval == Retrieval(),
                "retro_db and retro_attention_gate have no effect with --url; pass them to `mt serve`",
            ),
            (self.url is None or not self.bf16, "bf16 has no effect with --url; pass it to `mt serve`"),
            (bool(self.prompts) != bool(self.input), "give either --prompts TEXT... or --input FILE..."),
            files.record_limit_rule(self.max_record_bytes),
            (
                self.tokens_to_generate >= 1,
                f"tokens_to_generate = {self.tokens_to_generate} must be at least 1",
            ),
            (
                0 < self.temperature <= 100,
                (
                    f"temperature = {self.temperature:g} must be above 0 and at most 100; for the most"
                    " probable token pass --greedy"
                ),
            ),
            (self.top_k >= 0, f"top_k = {self.top_k} must be at least 0 (0: no limit)"),
            (0 <= self.top_p <= 1, f"top_p = {self.top_p:g} must be from 0 to 1 (0: no limit)"),
            (
                not (self.top_k and self.top_p),
                f"top_k = {self.top_k} and top_p = {self.top_p:g} cannot both be set; choose one",
            ),
            (0 <= self.top_p_decay <= 1, f"top_p_decay = {self.top_p_decay:g} must be from 0 to 1 (0: none)"),
            (bool(self.top_p) or not self.top_p_decay, "top_p_decay has no effect without --top-p; set it"),
            (
                bool(self.top_p_decay) or not self.top_p_bound,
                "top_p_bound has no effect without --top-p-decay; set it",
            ),
            (
                0 <= self.top_p_bound <= max(self.top_p, 0),
                f"top_p_bound = {self.top_p_bound:g} must be from 0 to top_p = {self.top_p:g}",
            ),
            (
                self.beam_width is None or 1 <= self.beam_width <= 64,
                f"beam_width = {self.beam_width} must be from 1 to 64",
            ),
            (
                self.beam_width is None or not sampling_rules,
                "beam_width does not sample: leave out --greedy, --temperature, --top-k and --top-p",
            ),
            (
                self.beam_width is None or not (lines or self.stop),
                "beam_width ends texts at --stop-token only; leave out --stop and --stop-on-...",
            ),
            (
                self.beam_width is not None or self.length_penalty == 1,
                f"length_penalty = {self.length_penalty:g} has no effect without --beam-width; set it",
            ),
            (self.random_seed >= 0, f"random_seed = {self.random_seed} must be at least 0"),
            (all(self.stop), "stop = '' would end every continuation at once; give a text"),
            (
                self.stop_token is None or not lines,
                (
                    f"stop_token = {self.stop_token} has no effect with --stop-on-eol or"
                    " --stop-on-double-eol; leave one out"
                ),
            ),
            (self.micro_batch_size >= 1, f"micro_batch_size = {self.micro_batch_size} must be at least 1"),
        )

    def check_inputs(self) -> None:
        """Raises UserError for a checkpoint or a server that is not there, before anything is read."""
        if self.load is not None:
            check_presence(self.load)
        if self.url is not None and not (self.output and Path(self.output, "manifest.json").exists()):
            check_answers(self.url)  # a finished output needs no server

    def sampling(self) -> Sampling:
        names = {field.name for field in dataclasses.fields(Sampling)} & {
            field.name for field in dataclasses.fields(self)
        }
        return Sampling(
            max_new_tokens=self.tokens_to_generate, **{name: getattr(self, name) for name in names}
        )


def generate(config: GenerateConfig) -> dict:
    """The summary of `mt generate`.

    Each of its `samples` has text, token ids, their log-probabilities and the reason why it ended. The
    log-probabilities are in nats, before the temperature. With --output every sample is a line of
    predictions.jsonl, and the summary keeps the first SAMPLES_SHOWN.
    """
    shards = (
        sharding.plan(
            config.input,
            key=config.text_key,
            shard_bytes=sys.maxsize,
            on_error=config.on_error,
            max_record_bytes=config.max_record_bytes,
        )
        if config.input
        else sharding.Plan()
    )
    model_files = [config.load, *config.retrieval.inputs] if config.load else []
    inputs = [*model_files, *(shard.path for shard in shards)]
    with Results("generate", config, inputs, shards=shards) as results:
        if results.finished:
            return _with_text(results.finished, config)
        source: LocalModel | ServerModel
        if config.url:
            source = ServerModel(config.url, config.api_key_file)
        else:
            assert config.load, "the configuration has --load or --url"
            source = LocalModel(
                open_generator(open_checkpoint(config.load), config.micro_batch_size, config.retrieval),
                config,
            )
        samples: list[dict] = []
        counts = {"prompts": 0, "prompt_tokens": 0, "tokens": 0}
        with results.predictions() as write, progress("generate", None, "prompts") as advance:
            for slab in batched(_prompts(config, shards, source, results), source.slab):
                for prompt, answer in zip(
                    slab, source.complete([p.text for p in slab], counts["prompts"], config)
                ):
                    counts["prompt_tokens"] += answer.pop("prompt_tokens")
                    text = prompt.text + answer["text"] if config.echo else answer["text"]
                    sample = {"id": prompt.id, "prompt": prompt.text, **answer, "text": text}
                    write(sample)
                    if config.output is None or len(samples) < SAMPLES_SHOWN:
                        samples.append(sample)
                    counts["tokens"] += len(sample["tokens"])
                counts["prompts"] += len(slab)
                advance(len(slab))
        if not counts["prompts"]:
            raise UserError(
                f"{', '.join(config.input)}: no prompt could be continued ({len(results.rejects)} were set"
                " aside); check the file"
            )
        return _with_text(results.finish(counts, samples=samples), config)


def _with_text(summary: dict, config: GenerateConfig) -> dict:
    """The summary with `text` to print: each prompt and its continuation."""
    texts = [
        sample["text"] if config.echo else sample["prompt"] + sample["text"] for sample in summary["samples"]
    ]
    if (more := summary["counts"]["prompts"] - len(texts)) > 0:
        texts.append(f"... and {more:,} more in predictions.jsonl")
    if count := summary["counts"]["rejected"]:
        texts.append(
            f"{count:,} prompt{'s were' if count > 1 else ' was'} set aside: they could not be read or are"
            " too long"
        )
    return {**summary, "text": "\n\n".join(texts)}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to continue."""

    id: str
    text: str


def _prompts(
    config: GenerateConfig,
    shards: Sequence[sharding.Shard],
    source: LocalModel | ServerModel,
    results: Results,
) -> Iterator[Prompt]:
    """The prompts in order.

    A prompt that is too long raises UserError, or is set aside where it is of a file and on_error is "skip".
    """
    for number, text in enumerate(config.prompts, 1):
        if problem := source.problem(text, config):
            raise UserError(f"prompt {number} ({_beginning(text)}) {problem}")
        yield Prompt(str(number), text)
    for shard in shards:
        for place, document in read_records(shard, results):
            if problem := source.problem(document.text, config):
                results.refuse(shard, place, problem, document)
            else:
                yield Prompt(document.id, document.text)


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


class LocalModel:
    """A model in this process; ServerModel in server/client.py has the same methods."""

    def __init__(self, model: LanguageModel, config: GenerateConfig):
        self.model, self.slab = model, model.slab
        prepare_for_inference(model.model, bf16=config.bf16)
        if config.stop_token is not None and not 0 <= config.stop_token < model.tokenizer.vocab_size:
            raise UserError(
                f"stop_token = {config.stop_token} must be from 0 to {model.tokenizer.vocab_size - 1}, an id"
                " of the vocabulary"
            )

    def problem(self, text: str, config: GenerateConfig) -> str | None:
        """Why a prompt cannot be continued, or None."""
        count = max(1, len(self._ids(text, config)))
        wanted, positions = config.tokens_to_generate, self.model.max_length
        if count + wanted <= positions:
            return None
        remedy = (
            f"generate at most {positions - count}"
            if count < positions
            else f"shorten it to {max(1, positions - wanted)}"
        )
        return (
            f"has {count} tokens; with tokens_to_generate = {wanted} that is {count + wanted}, but the model"
            f" has {positions} positions; {remedy}"
        )

    def complete(self, texts: list[str], first: int, config: GenerateConfig) -> Iterator[dict]:
        """The continuations of consecutive prompts, of which the first has the number `first`."""
        prompts = [self._ids(text, config) for text in texts]
        if config.beam_width is not None:
            for prompt in prompts:
                yield {
                    "prompt_tokens": max(1, len(prompt)),
                    **search(self.model, prompt, config.sampling(), config.beam_width, config.length_penalty),
                }
            return
        seeds = [(config.random_seed, first + n) for n in range(len(prompts))]
        for prompt, found in zip(prompts, self.model.generate(prompts, config.sampling(), seeds)):
            yield {
                "prompt_tokens": max(1, len(prompt)),
                "text": found.text,
                "tokens": found.ids,
                "logprobs": found.logprobs,
                "ended": found.ended,
            }

    def _ids(self, text: str, config: GenerateConfig) -> list[int]:
        ids = self.model.encode(text)
        return [self.model.start, *ids] if config.add_bos else ids


def search(
    model: LanguageModel, prompt: list[int], sampling: Sampling, beam_width: int, length_penalty: float
) -> dict:
    """The best beam of one prompt, and all `beams`, each with text, tokens and score."""
    prompt = prompt or [model.start]
    beams = BeamSearch(
        model.model, model.tokenizer, prompt, sampling, beam_width=beam_width, length_penalty=length_penalty
    )
    while not beams.done:
        beams.step()
    found = [
        {"text": text, "tokens": list(beam.ids), "score": beam.score}
        for text, beam in zip(beams.texts(), beams.found)
    ]
    best = beams.found[0]
    return {
        "text": found[0]["text"],
        "tokens": found[0]["tokens"],
        "logprobs": list(best.logprobs),
        "ended": best.ended,
        "beams": found,
    }
