"""LAMBADA (Paperno et al. 2016): accuracy and perplexity of the last word of each passage.

In: `--load`, a checkpoint, and `--valid-data`, lines {"text": passage}. Out: the scores, each with its
standard error, the number of examples and the settings; with `--output DIR` also one line per passage.

Two definitions of the score are in use, and one pass computes both. `last_token`, Megatron-LM's default,
predicts the last token of the passage. `strict` (`--strict-lambada`) predicts every token of the last word,
given the words before it, as lm-eval does.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

from ...core.config import UserError, check, configuration, option
from ...core.progress import progress
from ...documents import files, sharding
from ...documents.reader import Document
from ...train.checkpoint.open import open_checkpoint
from ..lm import LanguageModel, open_scorer
from ..metrics import RunningMean, perplexity
from ..results import Results, launch_ranks, map_over_ranks, read_records
from .task_config import TaskConfig

# Passages that a rank scores before results are exchanged; those of similar length share a forward pass.
PASSAGES_AT_ONCE = 256


@configuration()
class LambadaConfig(TaskConfig):
    """The settings of `mt eval lambada`."""

    valid_data: tuple[str, ...] = option(
        help='passages whose last word is predicted: lines {"text": passage}', role="input"
    )
    strict_lambada: bool = option(
        False,
        "report the score of the whole last word, not of its last token, as the plain `accuracy` and"
        " `perplexity`; the summary always has both",
    )
    text_key: str = option("text", "the record's key that holds the text")
    on_error: Literal["fail", "skip"] = option(
        "fail", "a record that cannot be scored: stop, or set it aside", role="runtime"
    )
    max_record_bytes: int = option(files.MAX_RECORD_BYTES, files.MAX_RECORD_HELP, added=True)

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.valid_data), "valid_data must name a file: --valid-data FILE..."),
            files.record_limit_rule(self.max_record_bytes),
        )


def lambada(config: LambadaConfig) -> dict | None:
    """The summary of `mt eval lambada` on rank 0, None on the other ranks."""
    with launch_ranks(config.tensor_model_parallel_size) as mesh:
        shards = sharding.plan(
            config.valid_data,
            key=config.text_key,
            shard_bytes=sys.maxsize,
            on_error=config.on_error,
            max_record_bytes=config.max_record_bytes,
            report=mesh.rank == 0,
        )
        inputs = [config.load, *config.retrieval.inputs, *(shard.path for shard in shards)]
        with Results("eval lambada", config, inputs, mesh, shards) as results:
            if results.finished:
                return results.finished if mesh.rank == 0 else None
            model = open_scorer(
                open_checkpoint(config.load),
                config.seq_length or "trained",
                config.micro_batch_size,
                config.retrieval,
                mesh,
            )
            hits = {"last_token": RunningMean(), "strict": RunningMean()}
            losses = {name: RunningMean() for name in hits}
            truncated = 0
            with results.predictions() as write, progress("lambada", None, "examples") as advance:
                score = lambda passages: _score(passages, model)
                passages = _passages(shards, model, results)
                for passage, answers in map_over_ranks(mesh, passages, score, PASSAGES_AT_ONCE):
                    line: dict = {"id": passage.id, "word": passage.word}
                    for name, (logprob, correct) in answers.items():
                        hits[name].add(correct)
                        losses[name].add(-logprob)
                        line[name] = {"correct": correct, "logprob": logprob}
                    truncated += passage.truncated
                    write(line)
                    advance(1)
            examples = hits["strict"].count
            if not examples:
                raise UserError(
                    f"{', '.join(config.valid_data)}: no passage could be scored ({len(results.rejects)} were"
                    " set aside); check the file"
                )
            if mesh.rank != 0:
                return None
            scores = {name: _accuracy_and_perplexity(hits[name], losses[name]) for name in hits}
            plain = scores["strict" if config.strict_lambada else "last_token"]
            return results.finish({"truncated": truncated}, examples=examples, scores={**plain, **scores})


def _score(passages: list[Passage], model: LanguageModel) -> list[dict[str, tuple[float, bool]]]:
    """For each passage, under each request's name: (log-probability in nats, whether it is greedy)."""
    found = iter(
        model.loglikelihood([request for passage in passages for request in passage.requests.values()])
    )
    return [{name: next(found) for name in passage.requests} for passage in passages]


@dataclasses.dataclass(frozen=True)
class Passage:
    """A LAMBADA example. requests: (context ids, continuation ids) under `last_token` and `strict`."""

    id: str
    word: str
    requests: dict[str, tuple[list[int], list[int]]]
    truncated: bool  # the beginning of its context is cut to fit the model


def _passages(shards: Sequence[sharding.Shard], model: LanguageModel, results: Results) -> Iterator[Passage]:
    """The passages in order.

    A record that cannot be scored raises UserError, or is set aside where shard.on_error is "skip".
    """
    for shard in shards:
        for place, document in read_records(shard, results):
            passage = _passage(document, model)
            if isinstance(passage, Passage):
                yield passage
            else:
                results.refuse(shard, place, passage, document)


def _passage(document: Document, model: LanguageModel) -> Passage | str:
    """The example in a document, or a text that says why it cannot be scored."""
    words = document.text.split()
    if len(words) < 2:
        return (
            f"has {len(words)} word{'s' * (len(words) != 1)}; a passage needs a last word and at least one"
            " before it"
        )
    word = words[-1]
    context = document.text[: document.text.rfind(word)].strip()
    encode = model.tokenizer.encode
    ids = encode(document.text)
    requests = {"last_token": (ids[:-1], ids[-1:]), "strict": (encode(context), encode(" " + word))}
    longest = max(len(continuation) for _, continuation in requests.values())
    if longest > model.max_length:
        return f"the last word has {longest} tokens, but a sequence may have {model.max_length}"
    truncated = any(len(a) + len(b) > model.max_length + 1 for a, b in requests.values())
    return Passage(document.id, word, requests, truncated)


def _accuracy_and_perplexity(hits: RunningMean, losses: RunningMean) -> dict:
    """losses: nats per example, so that the perplexity is that of a whole last word, not of its tokens."""
    scores = {"accuracy": hits.mean, "accuracy_stderr": hits.stderr}
    return scores | perplexity("perplexity", losses.mean, losses.stderr)
