"""WikiText (Merity et al. 2016): token, word and byte perplexity of one text file.

In: `--load`, a checkpoint, and `--valid-data`, a text file. Out: the scores, each with its standard error,
the number of scored tokens and the settings; with `--output DIR` also one line per window.

The file is tokenised as one stream. Windows of seq_length + 1 tokens advance by the stride
(`--overlapping-eval`, default seq_length). Each window scores only the tokens that no earlier window has
scored, so that the tokens 1 .. T-1 are scored once each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from ...core.config import UserError, check, check_each, configuration, option
from ...core.paths import check_exists
from ...core.progress import activity, progress
from ...core.unicode import without_mark
from ...documents.compression import read_whole
from ...train.checkpoint.open import open_checkpoint
from ...train.parallel.mesh import Mesh
from ..lm import LanguageModel, open_scorer
from ..metrics import perplexity
from ..results import Results, launch_ranks, map_over_ranks
from ..windows import document_windows, rolling_windows
from .detokenize import DETOKENIZERS
from .task_config import TaskConfig


@configuration()
class WikitextConfig(TaskConfig):
    """The settings of `mt eval wikitext`."""

    valid_data: str = option(help="one text file", role="input")
    overlapping_eval: int | None = option(
        None, "stride in tokens: each window scores only its last N; none: windows do not overlap"
    )
    by_article: bool = option(True, "also score each article as a text of its own, by lm-eval's definitions")
    detokenizer: Literal["none", "wikitext", "ptb"] = option(
        "none", "undo the tokenised spelling of this corpus before the text is tokenised"
    )

    def __post_init__(self):
        super().__post_init__()
        check(
            (
                self.overlapping_eval is None or self.overlapping_eval >= 1,
                f"overlapping_eval = {self.overlapping_eval} must be at least 1",
            )
        )

    def check_inputs(self) -> None:
        check_each(super().check_inputs, functools.partial(check_exists, self.valid_data))


def wikitext(config: WikitextConfig) -> dict | None:
    """The summary of `mt eval wikitext` on rank 0, None on the others; `examples` counts scored tokens."""
    with launch_ranks(config.tensor_model_parallel_size) as mesh:
        raw = _read_text(config.valid_data)
        inputs = [config.load, config.valid_data, *config.retrieval.inputs]
        with Results("eval wikitext", config, inputs, mesh) as results:
            if results.finished:
                return results.finished if mesh.rank == 0 else None
            model = open_scorer(
                open_checkpoint(config.load),
                config.seq_length or "trained",
                config.micro_batch_size,
                config.retrieval,
                mesh,
            )
            seq_length = model.max_length
            stride = config.overlapping_eval or seq_length
            if stride > seq_length:
                raise UserError(
                    f"overlapping_eval = {stride} must be at most seq_length = {seq_length}, or tokens"
                    " between windows would not be scored"
                )
            with activity(f"tokenizing {config.valid_data}"):
                tokens = np.array(model.tokenizer.encode(DETOKENIZERS[config.detokenizer](raw)), np.int64)
            # Megatron-LM's count: only single spaces separate words, so " \n " counts as one word.
            words = len(raw.strip().split(" "))
            if len(tokens) < 2 or words < 2:
                raise UserError(
                    f"{config.valid_data}: words = {words} and tokens = {len(tokens)}; a perplexity needs two"
                    " of each"
                )
            windows = list(rolling_windows(len(tokens), seq_length, stride))
            # (blocks,) float64: nats of each run of seq_length targets, whatever the stride
            blocks = np.zeros(-(-(len(tokens) - 1) // seq_length))
            score = lambda part: list(
                model.rolling((tokens[start:end], first - start) for start, first, end in part)
            )
            by_article = None
            if config.by_article and model.tokenizer.eod is not None:
                with activity("cutting the articles into windows"):
                    by_article = ArticleWindows.of(raw, config, model)
            every = len(windows) + (len(by_article.windows) if by_article is not None else 0)
            with results.predictions() as write, progress("wikitext", every, "windows") as advance:
                for (_, first, end), logprobs in map_over_ranks(
                    mesh, windows, score, config.micro_batch_size
                ):
                    block_of_target = (np.arange(first, end) - 1) // seq_length
                    np.subtract.at(blocks, block_of_target, logprobs.astype(np.float64))
                    logprob = float(logprobs.sum(dtype=np.float64))
                    write({"first_token": first, "tokens": end - first, "logprob": logprob})
                    advance(1)
                article_scores = {}
                if by_article is not None:
                    article_scores = {"lm_eval": by_article.scores(config, model, mesh, advance)}
            if mesh.rank != 0:
                return None
            targets, text_bytes = len(tokens) - 1, len(raw.encode())
            counts = {"windows": len(windows), "tokens": len(tokens), "words": words, "bytes": text_bytes}
            scores = {**text_scores(blocks, seq_length, targets, words, text_bytes), **article_scores}
            return results.finish(
                counts, examples=targets, seq_length=seq_length, stride=stride, scores=scores
            )


def articles(text: str) -> Iterator[str]:
    """The articles of a WikiText file, split as in the data set that lm-eval reads.

    A line `= Title =` begins an article.
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


@dataclasses.dataclass(frozen=True)
class ArticleWindows:
    """A text for lm-eval's definitions of its scores, which treat every article as a text of its own.

    Each article follows the beginning-of-text token (or else the end-of-document token), and its first token
    is scored too. Windows start again with each article. White space of any kind separates words.
    """

    windows: list[tuple[list[int], int]]  # (ids, the index of the first one that is scored)
    words: int
    text_bytes: int

    @staticmethod
    def of(raw: str, config: WikitextConfig, model: LanguageModel) -> ArticleWindows:
        start = model.start if model.tokenizer.bos is None else model.tokenizer.bos
        words, text_bytes = 0, 0
        windows: list[tuple[list[int], int]] = []
        for article in articles(raw):
            ids = [start, *model.tokenizer.encode(DETOKENIZERS[config.detokenizer](article))]
            windows += document_windows(ids, model.max_length)
            words += len(re.split(r"\s+", article))
            text_bytes += len(article.encode())
        return ArticleWindows(windows, words, text_bytes)

    def scores(
        self, config: WikitextConfig, model: LanguageModel, mesh: Mesh, advance: Callable[[int], None]
    ) -> dict:
        """advance: called with 1 for every window that is scored."""
        nats = 0.0
        score = lambda part: [float(logprobs.sum(dtype=np.float64)) for logprobs in model.rolling(part)]
        for _, logprob in map_over_ranks(mesh, self.windows, score, config.micro_batch_size):
            nats -= logprob
            advance(1)
        per_byte = nats / self.text_bytes
        return {
            **perplexity("word_perplexity", nats / self.words, None),
            **perplexity("byte_perplexity", per_byte, None),
            "bits_per_byte": per_byte / math.log(2),
        }


def text_scores(blocks: np.ndarray, block_length: int, targets: int, words: int, text_bytes: int) -> dict:
    """The scores of a text from the loss of its blocks.

    blocks: (N,) float64, the nats in each block of `block_length` targets; the last block may be shorter.

    The word (adjusted) perplexity divides the nats by words instead of tokens, exp(nats / (words - 1)), so
    that tokenizers can be compared. token_ratio = targets / (words - 1) as in Megatron-LM (WikiText-103's
    test set with GPT-2's tokenizer: 270329 / 245565). The bytes are those of the file, before it is
    detokenised. Standard errors treat blocks as independent samples, because neighbouring tokens are not
    independent. They are None below two blocks.
    """
    loss, ratio = float(blocks.sum()) / targets, targets / (words - 1)
    stderr = None
    if len(blocks) > 1:
        lengths = np.full(len(blocks), block_length)
        lengths[-1] = targets - block_length * (len(blocks) - 1)
        squares = float(np.square(blocks - loss * lengths).sum())
        stderr = math.sqrt(len(blocks) / (len(blocks) - 1) * squares) / targets
    bits = targets / text_bytes / math.log(2)
    scores: dict[str, float | None] = {"loss": loss, "loss_stderr": stderr}
    scores |= perplexity("token_perplexity", loss, stderr)
    scores |= perplexity("word_perplexity", loss * ratio, None if stderr is None else stderr * ratio)
    scores["bits_per_byte"] = loss * bits
    scores["bits_per_byte_stderr"] = None if stderr is None else stderr * bits
    return scores | {"token_ratio": ratio}


def _read_text(path: str) -> str:
    """The whole file as text; raises UserError for records, an empty file, or bytes that are not UTF-8."""
    if path.endswith((".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet")):
        raise UserError(f"{path}: holds records, but WikiText is one plain text file; give the text itself")
    try:
        text = without_mark(read_whole(path)).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; check the path")
    return text
