"""`mt eval qa`: open-domain question answering; compares generated answers with the right ones.

In: a GPT or Retro checkpoint, files of questions with answers and perhaps passages (indexed/questions.py).
Out: exact match and F1 over words, each a mean with its standard error; with `--output` also a line for every
question.

Texts are compared in lower case, without punctuation and articles and with single spaces (SQuAD, Rajpurkar et
al. 2016). Exact match and F1 take the best of a question's answers, as in SQuAD's evaluation;
`f1_first_answer` takes the first one, as in Megatron-LM. One function makes the prompts for evaluation and
for instruction tuning (indexed/instruct_dataset.py).
"""

from __future__ import annotations

import collections
import dataclasses
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...core.config import UserError, check, configuration, option
from ...core.progress import progress
from ...documents.rejects import Reject
from ...indexed.instruct_dataset import dataset_name, encode_prompt
from ...indexed.questions import Question, read_questions
from ...train.checkpoint.open import open_checkpoint
from ..generation.sampling import Sampling
from ..lm import NO_RETRIEVAL, LanguageModel, open_scorer
from ..metrics import RunningMean
from ..results import Results, launch_ranks, map_over_ranks
from .data_files import files_in, with_error_policy
from .task_config import TaskConfig

QUESTIONS_AT_ONCE = 64  # questions that a rank answers before results are exchanged
SCORES = ("exact_match", "f1", "f1_first_answer")


@configuration()
class QaConfig(TaskConfig):
    """The settings of `mt eval qa`."""

    valid_data: tuple[str, ...] = option(
        help="questions with answers: .json, .jsonl, or lines of a question, a tab and a list of answers",
        role="input",
    )
    task: str | None = option(
        None,
        "the data set whose instructions the prompts use: nq, tqa, BoolQ, quac ... (default: the name of a"
        " file's folder)",
    )
    ft_neighbours: int = option(1, "passages before a question")
    use_retrieved_neighbours: bool = option(
        True,
        "use the retrieved passages (ctxs) where there are any; otherwise prefer those that come with the"
        " question",
    )
    short_format: bool = option(
        False,
        "ask without instructions, for models without instruction tuning: Question: ... Answer: The answer"
        " is",
    )
    tokens_to_generate: int = option(64, "most tokens of an answer")
    stop_on_eol: bool = option(False, "an answer ends at the first newline, and at nothing else")
    on_error: Literal["fail", "skip"] = option(
        "fail",
        "a record that is not a question or does not fit the model: stop, or set it aside",
        role="runtime",
    )

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.valid_data), "valid_data must name a file: --valid-data FILE..."),
            (
                self.ft_neighbours >= 0,
                f"ft_neighbours = {self.ft_neighbours} must not be negative (0: no passages)",
            ),
            (
                self.tokens_to_generate >= 1,
                f"tokens_to_generate = {self.tokens_to_generate} must be at least 1",
            ),
            (
                not (self.short_format and self.task),
                f"task = {self.task} names instructions, and --short-format asks without; leave one out",
            ),
        )


def qa(config: QaConfig) -> dict | None:
    """The summary of `mt eval qa` on rank 0, None on the other ranks."""
    with launch_ranks(config.tensor_model_parallel_size) as mesh:
        paths = [
            path
            for place in config.valid_data
            for path in files_in(place, (".json", ".jsonl", ".tsv", ".csv"))
        ]
        with Results("eval qa", config, [config.load, *config.retrieval.inputs, *paths], mesh) as results:
            if results.finished:
                return results.finished if mesh.rank == 0 else None
            model = open_scorer(
                open_checkpoint(config.load),
                config.seq_length or "positions",
                config.micro_batch_size,
                config.retrieval if config.retrieval.retro_db else NO_RETRIEVAL,
                mesh,
            )
            means = {name: RunningMean() for name in SCORES}
            without_passages = 0
            with results.predictions() as write, progress("qa", None, "questions") as advance:
                answer = lambda prompts: _answers(prompts, model, config)
                prompts = _prompts(paths, model, config, results)
                for prompt, text in map_over_ranks(mesh, prompts, answer, QUESTIONS_AT_ONCE):
                    question = prompt.question
                    scores = score(text, question.answers)
                    for name, mean in means.items():
                        mean.add(scores[name])
                    without_passages += not prompt.num_passages
                    line = {"id": question.id, "question": question.text, "answers": question.answers}
                    write({**line, "prediction": text, "passages": prompt.num_passages, **scores})
                    advance(1)
            examples = means["f1"].count
            if not examples:
                raise UserError(
                    f"{', '.join(config.valid_data)}: no question could be asked ({len(results.rejects)} were"
                    " set aside); check the file"
                )
            if mesh.rank != 0:
                return None
            found: dict[str, float | None] = {name: mean.mean for name, mean in means.items()}
            found |= {f"{name}_stderr": mean.stderr for name, mean in means.items()}
            return results.finish({"without_passages": without_passages}, examples=examples, scores=found)


@dataclasses.dataclass(frozen=True)
class QuestionPrompt:
    """A question and its prompt."""

    question: Question
    ids: list[int]
    num_passages: int


def _prompts(
    paths: list[Path], model: LanguageModel, config: QaConfig, results: Results
) -> Iterator[QuestionPrompt]:
    """The prompts of all questions, in order.

    A question that does not fit the model raises UserError, or is set aside where on_error is "skip".
    """
    room = model.max_length - config.tokens_to_generate

    def refuse(bad: Reject) -> None:
        if config.on_error == "fail":
            raise UserError(
                f"{bad.file}, {bad.place}: {bad.reason}; mend it, or pass --on-error skip to set such records"
                " aside"
            )
        results.reject(bad)

    read = with_error_policy(read_questions, results.reject, config.on_error)
    for path in paths:
        name = config.task if config.task is not None else dataset_name(path)
        for question in read(path):
            sources = (
                (question.passages, question.given)
                if config.use_retrieved_neighbours
                else (question.given, question.passages)
            )
            passages = (sources[0] or sources[1])[: config.ft_neighbours]
            try:
                prompt = encode_prompt(
                    model.tokenizer, question, name, passages, room, short=config.short_format
                )
            except ValueError as error:
                refuse(
                    Reject(
                        question.file,
                        f"question {question.id}",
                        f"{error}: the {model.max_length} positions of the model less tokens_to_generate ="
                        f" {config.tokens_to_generate}",
                        question.text,
                    )
                )
                continue
            yield QuestionPrompt(question, prompt, len(passages))


def _answers(prompts: list[QuestionPrompt], model: LanguageModel, config: QaConfig) -> list[str]:
    """The greedy answers as single lines."""
    sampling = Sampling(max_new_tokens=config.tokens_to_generate, greedy=True, stop_on_eol=config.stop_on_eol)
    return [
        " ".join(found.text.split("\n")).strip()
        for found in model.generate([prompt.ids for prompt in prompts], sampling)
    ]


def score(prediction: str, answers: tuple[str, ...]) -> dict[str, float]:
    """The SCORES of a prediction, each from 0 to 1."""
    f1s = [f1(prediction, answer) for answer in answers]
    exact = any(normalize(prediction) == normalize(answer) for answer in answers)
    return {"exact_match": float(exact), "f1": max(f1s), "f1_first_answer": f1s[0]}


def f1(prediction: str, answer: str) -> float:
    """F1 over words, with multiplicity: the harmonic mean of precision and recall.

    Where one text has no words, 1 if neither has, otherwise 0.
    """
    found, wanted = normalize(prediction).split(), normalize(answer).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def normalize(text: str) -> str:
    """The text in lower case, without punctuation and articles, with single spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())
