"""LAMBADA and WikiText: last-word accuracy, and the perplexity of a text.

Both take `--load` (a checkpoint) and `--valid-data` (a file) and return their scores, each with its standard
error, with the number of examples and the settings. `--output DIR` keeps a line for every example besides.

LAMBADA (Paperno et al. 2016): lines {"text": a passage}; how well is its last word predicted? Two definitions
are in use, and both are scored in one pass: `last_token`, Megatron-LM's default, predicts the last token of
the passage; `strict` (`--strict-lambada`) predicts every token of the last word, given the words before it,
as lm-eval does.

WikiText (Merity et al. 2016): one text file, tokenised as one stream. Windows of seq_length + 1 tokens
advance by the stride (`--overlapping-eval`, else seq_length), and each scores only what no earlier window
has: the tokens 1 .. T-1 once each.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.config import UserError, check, option
from ...core.progress import progress
from ...documents import reader
from ...documents.files import open_binary
from ...train.parallel.mesh import Mesh
from ..lm import LanguageModel, Retrieval, open_scorer
from ..results import Mean, Results, ranks, records, shared
from .detokenize import DETOKENIZERS

# that a rank scores before it tells the others; those of like length share a forward pass
PASSAGES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The settings that every task has."""

    load: str = option(help="checkpoint directory", role="input")
    output: str | None = option(
        None, "directory for a line per example and the scores; none: only print the scores", role="output"
    )
    seq_length: int | None = option(
        None, "tokens in a sequence at most; none: as many as the model was trained with"
    )
    micro_batch_size: int = option(16, "sequences scored together")
    tensor_model_parallel_size: int = option(
        1,
        "processes that share one copy of the model, for models too large for one; the others share the work",
        role="runtime",
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")
    retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)

    def __post_init__(self):
        check(
            (self.micro_batch_size >= 1, f"micro_batch_size = {self.micro_batch_size} must be at least 1"),
            (
                self.tensor_model_parallel_size >= 1,
                f"tensor_model_parallel_size = {self.tensor_model_parallel_size} must be at least 1",
            ),
            (
                self.seq_length is None or self.seq_length >= 1,
                f"seq_length = {self.seq_length} must be at least 1",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LambadaConfig(Evaluation):
    valid_data: tuple[str, ...] = option(
        help='documents whose last word is asked: lines {"text": passage}', role="input"
    )
    strict_lambada: bool = option(
        False,
        "the whole last word, not its last token, is the score named plain `accuracy`; both are always"
        " reported",
    )
    text_key: str = option("text", "the record's key that holds the text")
    on_error: Literal["fail", "skip"] = option(
        "fail", "a record that cannot be scored: stop, or set it aside", role="runtime"
    )

    def __post_init__(self):
        super().__post_init__()
        check((bool(self.valid_data), "valid_data must name a file: --valid-data FILE..."))


def lambada(config: LambadaConfig) -> dict | None:
    """Last-word accuracy and perplexity, by the last token and by the whole word."""
    with ranks(config.tensor_model_parallel_size) as mesh:
        shards = reader.plan(
            config.valid_data, key=config.text_key, shard_bytes=sys.maxsize, on_error=config.on_error
        )
        with Results(
            "eval lambada",
            config,
            [config.load, *config.retrieval.inputs, *(shard.path for shard in shards)],
            mesh,
        ) as results:
            if results.finished:
                return results.finished if mesh.rank == 0 else None
            model = open_scorer(
                config.load, config.seq_length or "trained", config.micro_batch_size, config.retrieval, mesh
            )
            hits, losses = ({"last_token": Mean(), "strict": Mean()} for _ in range(2))
            truncated = 0
            with results.predictions() as write, progress("lambada", None, "examples") as advance:
                for passage, answers in shared(
                    mesh,
                    _passages(shards, model, results),
                    lambda passages: _answers(passages, model),
                    PASSAGES_AT_ONCE,
                ):
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
            scores = {name: _accuracy_and_perplexity(hits[name], losses[name]) for name in hits}
            headline = scores["strict" if config.strict_lambada else "last_token"]
            return (
                results.finish({"truncated": truncated}, examples=examples, scores={**headline, **scores})
                if mesh.rank == 0
                else None
            )


def _answers(passages: list[Passage], model: LanguageModel) -> list[dict[str, tuple[float, bool]]]:
    """(log-probability, whether it is greedy) of each passage's requests, under their names."""
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
    truncated: bool  # the sequence has lost its head to fit the model


def _passages(shards: list[reader.Shard], model: LanguageModel, results: Results) -> Iterator[Passage]:
    """The passages in order; one that cannot be scored is a UserError, or a reject where shard.on_error is
    "skip".
    """
    for shard in shards:
        for place, document in records(shard, results):
            passage = _passage(document, model)
            if isinstance(passage, Passage):
                yield passage
            else:
                results.refuse(shard, place, passage, document)


def _passage(document: reader.Document, model: LanguageModel) -> Passage | str:
    """The example in a document, or what is wrong with it."""
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


def _accuracy_and_perplexity(hits: Mean, losses: Mean) -> dict:
    """losses: nats per example, so that the perplexity is the one of a whole last word, not of its tokens."""
    scores = {"accuracy": hits.mean, "accuracy_stderr": hits.stderr}
    return scores | _perplexity("perplexity", losses.mean, losses.stderr)


def _perplexity(name: str, loss: float, stderr: float | None) -> dict:
    """exp(loss) and its standard error to first order.

    Megatron-LM cuts it off at e^20, here only what no float holds is.
    """
    value = math.exp(min(loss, 700))
    return {name: value, f"{name}_stderr": None if stderr is None else value * stderr}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WikitextConfig(Evaluation):
    valid_data: str = option(help="one text file", role="input")
    overlapping_eval: int | None = option(
        None, "stride in tokens: each window scores only its last N; none: windows do not overlap"
    )
    by_article: bool = option(True, "also score article by article, by lm-eval's definitions")
    detokenizer: Literal["none", "wikitext", "ptb"] = option(
        "none", "how the file's tokenised spelling is undone before it is tokenised anew"
    )

    def __post_init__(self):
        super().__post_init__()
        check(
            (
                self.overlapping_eval is None or self.overlapping_eval >= 1,
                f"overlapping_eval = {self.overlapping_eval} must be at least 1",
            )
        )


def wikitext(config: WikitextConfig) -> dict | None:
    """Token and word perplexity, bits per byte and token ratio of a text.

    `examples` are the tokens that were scored.
    """
    with ranks(config.tensor_model_parallel_size) as mesh:
        raw = _read_text(config.valid_data)
        with Results(
            "eval wikitext", config, [config.load, config.valid_data, *config.retrieval.inputs], mesh
        ) as results:
            if results.finished:
                return results.finished if mesh.rank == 0 else None
            model = open_scorer(
                config.load, config.seq_length or "trained", config.micro_batch_size, config.retrieval, mesh
            )
            seq_length = model.max_length
            stride = config.overlapping_eval or seq_length
            if stride > seq_length:
                raise UserError(
                    f"overlapping_eval = {stride} must be at most seq_length = {seq_length}, or tokens"
                    " between windows would not be scored"
                )
            tokens = np.array(model.tokenizer.encode(DETOKENIZERS[config.detokenizer](raw)), np.int64)
            # Megatron-LM's count: only spaces part words, so that " \n " is one
            words = len(raw.strip().split(" "))
            if len(tokens) < 2 or words < 2:
                raise UserError(
                    f"{config.valid_data}: words = {words} and tokens = {len(tokens)}; a perplexity needs two"
                    " of each"
                )
            windows = list(rolling_windows(len(tokens), seq_length, stride))
            # nats in each run of seq_length targets, whatever the stride
            blocks = np.zeros(-(-(len(tokens) - 1) // seq_length))
            score = lambda part: list(
                model.rolling((tokens[start:end], first - start) for start, first, end in part)
            )
            with results.predictions() as write, progress("wikitext", len(windows), "windows") as advance:
                for (_, first, end), logprobs in shared(mesh, windows, score, config.micro_batch_size):
                    np.subtract.at(
                        blocks, (np.arange(first, end) - 1) // seq_length, logprobs.astype(np.float64)
                    )
                    write(
                        {
                            "first_token": first,
                            "tokens": end - first,
                            "logprob": float(logprobs.sum(dtype=np.float64)),
                        }
                    )
                    advance(1)
            by_article = (
                {"lm_eval": _article_scores(raw, config, model, mesh)}
                if config.by_article and model.tokenizer.eod is not None
                else {}
            )
            if mesh.rank != 0:
                return None
            targets, text_bytes = len(tokens) - 1, len(raw.encode())
            counts = {"windows": len(windows), "tokens": len(tokens), "words": words, "bytes": text_bytes}
            scores = {**text_scores(blocks, seq_length, targets, words, text_bytes), **by_article}
            return results.finish(
                counts, examples=targets, seq_length=seq_length, stride=stride, scores=scores
            )


def rolling_windows(num_tokens: int, seq_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, end): tokens[start:end] is a window, and tokens[first:end] are its targets.

    Every token but the first is a target once. 8 tokens, seq_length 4, stride 2: (0, 1, 5), (2, 5, 7), (4, 7,
    8). Megatron-LM appends seq_length / stride - 1 windows of padding alone; they score nothing and are left
    out.
    """
    yield 0, 1, min(seq_length + 1, num_tokens)
    for start in range(stride, num_tokens - 1 - seq_length + stride, stride):
        first = start + seq_length - stride + 1
        yield start, first, min(start + seq_length + 1, num_tokens)


def document_windows(ids: list[int], seq_length: int) -> Iterator[tuple[list[int], int]]:
    """(a window's ids, the first of them that it scores), for LanguageModel.rolling: lm-eval's windows.

    ids: what the first token follows, then the document. Windows are as long as the model allows and score
    each token but the first once; only the last may overlap the one before, so that it is as long as the
    others.
    """
    first = 1
    while first < len(ids):
        end = min(first + seq_length, len(ids))
        start = max(0, end - seq_length - 1)
        yield ids[start:end], first - start
        first = end


def articles(text: str) -> Iterator[str]:
    """The articles of a WikiText file, as the data set that lm-eval reads was cut: a line `= Title =` begins
    one.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        title = line.replace("= = =", "===").replace("= =", "==").strip()
        if title.startswith("= ") and title.endswith(" ="):
            if "\n".join(lines).strip():
                yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def _article_scores(raw: str, config: WikitextConfig, model: LanguageModel, mesh: Mesh) -> dict:
    """lm-eval's definitions, which treat every article as a text of its own.

    The first token of each follows the token that begins (or else ends) a document and is scored too, windows
    begin anew, and words are what stands between white space of any kind.
    """
    start = model.start if model.tokenizer.bos is None else model.tokenizer.bos
    nats, words, text_bytes, windows = 0.0, 0, 0, []
    for article in articles(raw):
        ids = [start, *model.tokenizer.encode(DETOKENIZERS[config.detokenizer](article))]
        windows += document_windows(ids, model.max_length)
        words += len(re.split(r"\s+", article))
        text_bytes += len(article.encode())
    score = lambda part: [float(logprobs.sum(dtype=np.float64)) for logprobs in model.rolling(part)]
    for _, logprob in shared(mesh, windows, score, config.micro_batch_size):
        nats -= logprob
    per_byte = nats / text_bytes
    return {
        **_perplexity("word_perplexity", nats / words, None),
        **_perplexity("byte_perplexity", per_byte, None),
        "bits_per_byte": per_byte / math.log(2),
    }


def text_scores(blocks: np.ndarray, block_length: int, targets: int, words: int, text_bytes: int) -> dict:
    """The scores of a text from the nats in each block of `block_length` targets, the last block shorter.

    The word (adjusted) perplexity spreads the nats over words instead of tokens: exp(nats / (words - 1)),
    which two tokenizers may be compared by; token_ratio = targets / (words - 1) as in Megatron-LM
    (WikiText-103's test set with GPT-2's tokenizer: 270329 / 245565). The bytes are those of the file, before
    it is detokenised. Standard errors treat blocks as the independent samples: neighbouring tokens are not.
    They are None below two blocks.
    """
    loss, ratio = float(blocks.sum()) / targets, targets / (words - 1)
    stderr = None
    if len(blocks) > 1:
        lengths = np.full(len(blocks), block_length)
        lengths[-1] = targets - block_length * (len(blocks) - 1)
        stderr = (
            math.sqrt(len(blocks) / (len(blocks) - 1) * float(np.square(blocks - loss * lengths).sum()))
            / targets
        )
    bits = targets / text_bytes / math.log(2)
    scores = {"loss": loss, "loss_stderr": stderr}
    scores |= _perplexity("token_perplexity", loss, stderr)
    scores |= _perplexity("word_perplexity", loss * ratio, None if stderr is None else stderr * ratio)
    scores |= {
        "bits_per_byte": loss * bits,
        "bits_per_byte_stderr": None if stderr is None else stderr * bits,
    }
    return scores | {"token_ratio": ratio}


def _read_text(path: str) -> str:
    """The whole file as text; raises UserError for one that is not a plain text file with something in it."""
    if path.endswith((".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet")):
        raise UserError(f"{path}: holds records, but WikiText is one plain text file; give the text itself")
    try:
        with open_binary(Path(path)) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; check the path")
    return text
