"""`mt eval retrieval`: recall@k, whether one of the k best blocks of a biencoder contains an answer.

In: a biencoder, the blocks that it embedded (`mt retro embed-blocks`), files of questions with answers
(indexed/questions.py). Out: recall@k, each with its standard error; with `--output` also a line for every
question.

A block contains an answer where the answer's words occur in it consecutively. Words are runs of letters,
digits and combining marks, or single other characters, in lower case and canonical decomposition (DPR,
Karpukhin et al. 2020; ORQA's evaluation in Megatron-LM). A block's text is decoded from its tokens, which may
have lost accents and case. So the answer as encoded and decoded by the same tokenizer matches too. Titles are
not searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import regex

from ...core.config import UserError, check, configuration, option
from ...core.progress import progress
from ...core.unicode import normalize
from ...indexed.questions import Question, read_questions
from ...retro.embed_blocks import BiencoderEmbedder, BlockSearcher
from ..lm import batched
from ..metrics import RunningMean
from ..results import Results
from .data_files import files_in, with_error_policy

QUESTIONS_AT_ONCE = 256
WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@configuration()
class RetrievalConfig:
    """The settings of `mt eval retrieval`."""

    load: str = option(help="the biencoder, a run of `mt train --family ict`", role="input")
    db: str = option(help="the blocks that it embedded (`mt retro embed-blocks`)", role="input")
    valid_data: tuple[str, ...] = option(
        help="questions with answers: .json, .jsonl, or lines of a question, a tab and a list of answers",
        role="input",
    )
    output: str | None = option(
        None, "directory for a line per question and the scores; none: only print the scores", role="output"
    )
    retriever_report_topk_accuracies: tuple[int, ...] = option((1, 5, 20, 100), "the k of recall@k")
    faiss_match: Literal["string", "regex"] = option("string", "answers are texts, or regular expressions")
    data_path: tuple[str, ...] = option((), "the data of the blocks, if it has moved", role="input")
    titles_data_path: tuple[str, ...] = option(
        (), "the titles of the blocks, if they have moved", role="input"
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", "a record that is not a question: stop, or set it aside", role="runtime"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        ks = self.retriever_report_topk_accuracies
        check(
            (bool(self.valid_data), "valid_data must name a file: --valid-data FILE..."),
            (
                bool(ks) and min(ks) >= 1,
                f"retriever_report_topk_accuracies = {' '.join(map(str, ks))} must be numbers of at least 1",
            ),
        )


def retrieval(config: RetrievalConfig) -> dict:
    """The summary of `mt eval retrieval`."""
    paths = [
        path for place in config.valid_data for path in files_in(place, (".json", ".jsonl", ".tsv", ".csv"))
    ]
    with Results("eval retrieval", config, [config.load, config.db, *paths]) as results:
        if results.finished:
            return results.finished
        search = BlockSearcher(
            config.db, BiencoderEmbedder(config.load), config.data_path, config.titles_data_path
        )
        ks = sorted(set(config.retriever_report_topk_accuracies))
        hits = {k: RunningMean() for k in ks}
        read = with_error_policy(read_questions, results.reject, config.on_error)
        with results.predictions() as write, progress("retrieval", None, "questions") as advance:
            for questions in batched(
                (question for path in paths for question in read(path)), QUESTIONS_AT_ONCE
            ):
                scores, found = search([question.text for question in questions], ks[-1])
                for question, numbers, products in zip(questions, found.tolist(), scores.tolist()):
                    numbers = [n for n in numbers if n >= 0]
                    matcher = AnswerMatcher(question, search, config.faiss_match)
                    first = next((rank for rank, n in enumerate(numbers, 1) if matcher.matches(n)), None)
                    for k, mean in hits.items():
                        mean.add(first is not None and first <= k)
                    best = [
                        {"block": n, "score": round(s, 6), "text": search.text(n)}
                        for n, s in zip(numbers[: ks[0]], products)
                    ]
                    write({"id": question.id, "question": question.text, "first": first, "best": best})
                advance(len(questions))
        if not hits[ks[0]].count:
            raise UserError(
                f"{', '.join(config.valid_data)}: no question could be read ({len(results.rejects)} were set"
                " aside); check the file"
            )
        recall: dict[str, float | None] = {f"recall@{k}": mean.mean for k, mean in hits.items()}
        recall |= {f"recall@{k}_stderr": mean.stderr for k, mean in hits.items()}
        return results.finish({"blocks": len(search.blocks.table)}, examples=hits[ks[0]].count, scores=recall)


class AnswerMatcher:
    """Finds blocks that contain an answer of a question."""

    def __init__(self, question: Question, search: BlockSearcher, match: Literal["string", "regex"]):
        self.search = search
        self.patterns: list[regex.Pattern[str]] = []
        self.answers: list[list[str]] = []
        if match == "regex":
            self.patterns = [pattern(answer, question) for answer in question.answers]
        else:
            tokenizer = search.encoder.tokenizer
            self.answers = [
                words(text)
                for answer in question.answers
                for text in (answer, tokenizer.decode(tokenizer.encode(answer)))
            ]

    def matches(self, number: int) -> bool:
        """Whether the block of that number contains an answer."""
        text = self.search.text(number)
        if self.patterns:
            return any(p.search(normalize("NFD", text)) for p in self.patterns)
        block = words(text)
        return any(contains(block, answer) for answer in self.answers if answer)


def words(text: str) -> list[str]:
    """The words of a text in lower case and canonical decomposition."""
    return [word.lower() for word in WORD.findall(normalize("NFD", text))]


def contains(text: Sequence[str], part: Sequence[str]) -> bool:
    """Whether the words of `part` occur in `text` consecutively."""
    # Words hold no spaces. str.find takes linear time, and comparing the words at every place quadratic.
    return not part or f" {' '.join(part)} " in f" {' '.join(text)} "


def pattern(answer: str, question: Question) -> regex.Pattern[str]:
    """An answer as a regular expression; raises UserError where it is none."""
    try:
        return regex.compile(normalize("NFD", answer), regex.IGNORECASE | regex.MULTILINE)
    except regex.error as error:
        raise UserError(
            f"{question.file}, question {question.id}: the answer {answer!r} is no regular expression"
            f" ({error}); mend it, or leave out --faiss-match regex"
        ) from None
