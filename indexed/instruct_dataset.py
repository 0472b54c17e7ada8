"""Instruction tuning on questions (InstructRetro, Wang et al.

2023): a prompt with passages and a question, of which only the answer is asked.

In: folders `<data-folder>/<name>/<name>_QA_train.json` and `..._QA_dev.json` (questions.py says what is in
them). Out: datasets whose item k is text and answer_mask, (seq_length + 1,) int64: the prompt, the answer,
the token that ends a document, and padding; the mask is 1 on the answer and that token. An epoch is a
permutation of the questions that depends on the seed and its number alone.

The prompt is Megatron-LM's (tools/retro/sft): a system's line, the first passages, and a turn of the user
that asks the question in the words of its set. Passages lose their end so that all fits (and keep the empty
line after them); a question or an answer never does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from ..core import manifest
from ..core.config import UserError, configuration, option
from ..documents.reader import Reject
from ..tokenizer.tokenizer import Tokenizer
from .gpt_dataset import DataConfig, Dataset, mixture
from .questions import Question, read_questions
from .splits import NAMES

FILES = {"train": "train", "valid": "dev", "test": "test"}
SYSTEM = (
    "System: This is a chat between a user and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the user's questions based on the context. The assistant"
    " should also indicate when the answer cannot be found in the context.\n\n"
)
# What a set's questions are asked with; those of no set here want a full answer, and a conversation is what
# it is.
SHORT = {
    "drop",
    "narrativeqa",
    "qasc",
    "quoref",
    "ropes",
    "squad1.1",
    "squad2.0",
    "newsqa",
    "nq",
    "bioasq",
    "duorc_paraphraserc",
    "textbookqa",
    "tqa",
}
TRUE_OR_FALSE = {"boolq", "multirc"}
OPTIONS = {"race"}
CONVERSATIONS = {"convqa", "chatgptgen", "doc2dial", "quac", "qrecc", "sharc"}
# neither passages nor a turn of the user
PLAIN = {"oasst", "quiet_cockatoo", "open_inst", "quiet-cockatoo_commercial"}


@configuration()
class InstructConfig(DataConfig):
    """Instruction tuning's data settings."""

    data_folder: str | None = option(
        None,
        "instruction tuning: folder with NAME/NAME_QA_train.json and NAME_QA_dev.json; --data-path then gives"
        " NAMEs, with weights or without",
        role="input",
    )
    ft_neighbours: int = option(1, "instruction tuning: passages that stand before a question")

    def files(self) -> list[str]:
        if self.data_folder is None:
            return super().files()
        return [
            str(path)
            for split in NAMES
            for _, name in self.sources(split)
            if (path := self.file_of(name, split)).exists()
        ]

    def file_of(self, name: str, split: str) -> Path:
        base = Path(name).name
        return Path(self.data_folder) / name / f"{base}_QA_{FILES[split]}.json"


def build_instruct_datasets(
    config: InstructConfig, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets: see gpt.build_datasets.

    A set without a file for validation or test has no part in them.
    """
    if config.ft_neighbours < 0:
        raise UserError(f"data.ft_neighbours = {config.ft_neighbours} must not be negative (0: no passages)")
    cache = Path(config.data_cache_path or Path(config.data_folder) / "cache")
    built: list[Dataset | None] = []
    for split, count in zip(NAMES, num_samples, strict=True):
        files = [
            (weight, config.file_of(name, split)) for weight, name in config.sources(split) if weight != 0
        ]
        present = [(weight, path) for weight, path in files if path.exists()]
        if count == 0:
            built.append(None)
            continue
        if not present or (split == "train" and len(present) < len(files)):
            missing = next((path for _, path in files if not path.exists()), Path(config.data_folder))
            remedy = (
                "check --data-folder and the names in --data-path"
                if split == "train"
                else "ask for no such samples: --eval-iters 0"
            )
            raise UserError(f"{missing}: no such file, and {split} samples are asked for; {remedy}")
        make = functools.partial(
            QuestionDataset,
            tokenizer=tokenizer,
            seq_length=config.seq_length,
            seed=config.seed,
            passages=config.ft_neighbours,
        )
        built.append(
            mixture(
                [(weight, functools.partial(make, path)) for weight, path in present], count, split, cache
            )
        )
    return tuple(built)


class QuestionDataset:
    """Samples of a file of questions. num_samples: how many are wanted, epoch after epoch; None: one epoch.

    passages: before a question, at most.
    """

    def __init__(
        self,
        path: Path,
        num_samples: int | None,
        *,
        tokenizer: Tokenizer,
        seq_length: int,
        seed: int,
        passages: int,
    ):
        if tokenizer.eod is None:
            raise UserError(
                "the tokenizer has no token that ends a document, and so nothing to end an answer with; give"
                " another tokenizer"
            )
        self.questions = list(read_questions(path, _refuse))
        self.path, self.tokenizer, self.seq_length, self.seed, self.passages = (
            path,
            tokenizer,
            seq_length,
            seed,
            passages,
        )
        self.num_samples = len(self.questions) if num_samples is None else num_samples
        self.file_digest = manifest.file_digest(path)
        key = (
            "instruct 1",
            self.file_digest,
            set_of(path),
            tokenizer.fingerprint,
            self.num_samples,
            seq_length,
            seed,
            passages,
        )
        self.fingerprint = xxhash.xxh3_128(repr(key).encode()).hexdigest()
        self._check_lengths()

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """text, answer_mask: (seq_length + 1,) int64."""
        epoch, within = divmod(int(k) + (len(self) if k < 0 else 0), len(self.questions))
        question = self.questions[_order(self.seed, epoch, len(self.questions))[within]]
        answer = self._answer(question)
        prompt = encode_prompt(
            self.tokenizer,
            question,
            set_of(self.path),
            (question.given or question.passages)[: self.passages],
            self.seq_length + 1 - len(answer),
        )
        text, mask = (
            np.full(self.seq_length + 1, self.tokenizer.eod, np.int64),
            np.zeros(self.seq_length + 1, np.int64),
        )
        used = len(prompt) + len(answer)
        text[:used], mask[len(prompt) : used] = [*prompt, *answer], 1
        return {"text": text, "answer_mask": mask}

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """(len(indices), seq_length + 1) int64 each."""
        samples = [self[k] for k in indices]
        return {name: np.array([s[name] for s in samples]) for name in samples[0]}

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[dict]:
        samples = self.num_samples if samples is None else samples
        return [
            {
                "prefix": str(self.path),
                "weight": weight,
                "sequences": len(self.questions),
                "tokens": None,
                "samples": samples,
                "epochs": round(samples / len(self.questions), 4),
            }
        ]

    def answer_tokens(self) -> Iterator[np.ndarray]:
        """What is asked, question by question."""
        return (np.array(self._answer(question), np.int64) for question in self.questions)

    def _answer(self, question: Question) -> list[int]:
        return [*self.tokenizer.encode(" " + question.answers[0]), self.tokenizer.eod]

    def _check_lengths(self) -> None:
        """Raises UserError where a question and its answer do not fit, which only those that are long enough
        in bytes are encoded to find out.
        """
        name, most, wrong = set_of(self.path), self.seq_length + 1, []
        for question in self.questions:
            _, turn = prompt_parts(question, name)
            if len(SYSTEM) + len(turn.encode()) + len(question.answers[0].encode()) + 8 > most:
                prompt, answer = (
                    encode_prompt(self.tokenizer, question, name, (), None),
                    self._answer(question),
                )
                if len(prompt) + len(answer) > most:
                    wrong.append((question, len(prompt), len(answer)))
        if wrong:
            question, prompt, answer = max(wrong, key=lambda found: found[1] + found[2])
            raise UserError(
                f"{self.path}: {len(wrong):,} of its {len(self.questions):,} questions do not fit"
                f" data.seq_length = {self.seq_length} even without passages; the longest, {question.id}, has"
                f" {prompt} tokens with its instructions, and its answer {answer}; raise --seq-length to"
                f" {prompt + answer - 1}, or take such records out"
            )


def encode_prompt(
    tokenizer: Tokenizer,
    question: Question,
    name: str,
    passages: Sequence[str],
    room: int | None,
    *,
    short: bool = False,
) -> list[int]:
    """The prompt's ids, at most `room` of them where that is given: as many tokens of the passages' as fit.

    name: of the question's set. short: the question alone, for models that were not tuned to instructions.
    Passages are cut between tokens and the text is encoded as one, so that a model sees what it would see of
    the text itself; cutting is repeated where that has more tokens. Raises ValueError where there is no room
    for the question itself.
    """
    head, turn = prompt_parts(question, name, short=short)
    context = "\n\n".join(passages) if name.lower() not in PLAIN else ""
    text = lambda context: f"{head}{context}\n\n{turn}" if context else head + turn
    ids, kept = tokenizer.encode(text(context)), None
    while room is not None and (excess := len(ids) - room) > 0:
        kept = tokenizer.encode(context) if kept is None else kept
        if not kept:
            raise ValueError(f"has {len(ids)} tokens with its instructions, and there is room for {room}")
        kept = kept[: max(0, len(kept) - excess)]
        ids = tokenizer.encode(text(tokenizer.decode(kept).rstrip("\ufffd")))
    return ids


def prompt_parts(question: Question, name: str, *, short: bool = False) -> tuple[str, str]:
    """(what stands before the passages, what after them)"""
    text, name = question.text, name.lower()
    if short:
        return "", f"Question: {text}{'' if text.endswith('?') else '?'} Answer: The answer is"
    if name in PLAIN or name in CONVERSATIONS:
        return SYSTEM, text
    if name in SHORT:
        return (
            SYSTEM,
            f"User: Answer the following question with a short span. {text}\n\nAssistant: The answer is",
        )
    if name in TRUE_OR_FALSE:
        asked = "Answer the following question with True or False."
    elif name in OPTIONS:
        asked = "Answer the following question by selecting one of the provided options."
    else:
        asked = "Please give a full and complete answer for the question."
    return SYSTEM, f"User: {asked} {text}\n\nAssistant:"


def set_of(path: Path) -> str:
    """The name of the set that a file is of: that of its folder."""
    return path.resolve().parent.name


def _refuse(bad: Reject) -> None:
    raise UserError(f"{bad.file}, {bad.place}: {bad.reason}; mend it, or take the record out")


@functools.lru_cache(4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
