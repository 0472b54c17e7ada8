"""Instruction tuning on questions: a prompt of passages and a question; the loss is computed on the answer.

The data and the prompt are those of InstructRetro (Wang et al. 2023).

In: folders `<data-folder>/<name>/<name>_QA_train.json` and `..._QA_dev.json`, which questions.py reads. Out:
datasets whose item k is text and answer_mask, (seq_length + 1,) int64. The text is the prompt, the answer,
the end-of-document token, and padding; the mask is 1 at the answer and its end-of-document token. An epoch is
a permutation of the questions that depends on the seed and the epoch's number alone.

The prompt is Megatron-LM's (tools/retro/sft): a system message, the first passages, and a user turn that asks
the question in the words of its dataset. Passages are truncated to fit, and the empty line after them stays.
Questions and answers are never truncated.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from ..core import manifest
from ..core.config import UserError, configuration, option
from ..documents.rejects import Reject
from ..tokenizer.tokenizer import Tokenizer
from .gpt_dataset import DataConfig, Dataset, SourceRow, blend_datasets
from .questions import Question, read_questions
from .splits import SPLIT_NAMES

FILES = {"train": "train", "valid": "dev", "test": "test"}
SYSTEM = (
    "System: This is a chat between a user and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the user's questions based on the context. The assistant"
    " should also indicate when the answer cannot be found in the context.\n\n"
)
# The instruction depends on a question's dataset. Any dataset that is not listed here asks for a full answer;
# conversations get no instruction.
# fmt: off
SHORT = {
    "drop", "narrativeqa", "qasc", "quoref", "ropes", "squad1.1", "squad2.0", "newsqa", "nq", "bioasq",
    "duorc_paraphraserc", "textbookqa", "tqa",
}
# fmt: on
TRUE_OR_FALSE = {"boolq", "multirc"}
OPTIONS = {"race"}
CONVERSATIONS = {"convqa", "chatgptgen", "doc2dial", "quac", "qrecc", "sharc"}
# neither passages nor an instruction
PLAIN = {"oasst", "quiet_cockatoo", "open_inst", "quiet-cockatoo_commercial"}


@configuration()
class InstructConfig(DataConfig):
    """Data settings of instruction tuning."""

    data_folder: str | None = option(
        None,
        "instruction tuning: folder with NAME/NAME_QA_train.json and NAME_QA_dev.json; --data-path then lists"
        " NAMEs, with or without weights",
        role="input",
    )
    ft_neighbours: int = option(1, "instruction tuning: the most passages before a question")

    def prefixes(self) -> list[str]:
        return [] if self.data_folder is not None else super().prefixes()

    def files(self) -> list[str]:
        if self.data_folder is None:
            return super().files()
        return [
            str(path)
            for split in SPLIT_NAMES
            for _, name in self.sources(split)
            if (path := self.file_of(name, split)).exists()
        ]

    @property
    def folder(self) -> Path:
        assert self.data_folder is not None, "data_folder is set where instruction tuning is chosen"
        return Path(self.data_folder)

    def file_of(self, name: str, split: str) -> Path:
        return self.folder / name / f"{Path(name).name}_QA_{FILES[split]}.json"


def build_instruct_datasets(
    config: InstructConfig, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets, as `gpt_dataset.build_datasets` returns them.

    A dataset without a file for validation or test is left out of that split.
    """
    if config.ft_neighbours < 0:
        raise UserError(f"data.ft_neighbours = {config.ft_neighbours} must not be negative (0: no passages)")
    cache = Path(config.data_cache_path or config.folder / "cache")
    built: list[Dataset | None] = []
    for split, count in zip(SPLIT_NAMES, num_samples, strict=True):
        files = [
            (weight, config.file_of(name, split)) for weight, name in config.sources(split) if weight != 0
        ]
        present = [(weight, path) for weight, path in files if path.exists()]
        if count == 0:
            built.append(None)
            continue
        if not present or (split == "train" and len(present) < len(files)):
            missing = next((path for _, path in files if not path.exists()), config.folder)
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
        makers = [(weight, functools.partial(make, path)) for weight, path in present]
        built.append(blend_datasets(makers, count, split, cache))
    return tuple(built)


class QuestionDataset:
    """Samples of a file of questions.

    num_samples: how many, epoch after epoch; None: one epoch. passages: the most before a question. Raises
    UserError if the tokenizer has no end-of-document token, for a record that is no question, and if a
    question and its answer do not fit seq_length.
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
                "the tokenizer has no end-of-document token, which must end every answer; give another"
                " tokenizer"
            )
        self.questions = list(read_questions(path, _raise))
        self.path, self.passages = path, passages
        self.tokenizer, self.eod = tokenizer, tokenizer.eod
        self.seq_length, self.seed = seq_length, seed
        self.num_samples = len(self.questions) if num_samples is None else num_samples
        self.file_digest = manifest.file_digest(path)
        key = (
            "instruct 1",
            self.file_digest,
            dataset_name(path),
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
            dataset_name(self.path),
            (question.given or question.passages)[: self.passages],
            self.seq_length + 1 - len(answer),
        )
        text = np.full(self.seq_length + 1, self.eod, np.int64)
        mask = np.zeros(self.seq_length + 1, np.int64)
        used = len(prompt) + len(answer)
        text[:used], mask[len(prompt) : used] = [*prompt, *answer], 1
        return {"text": text, "answer_mask": mask}

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """(len(indices), seq_length + 1) int64 each."""
        samples = [self[k] for k in indices]
        return {name: np.array([s[name] for s in samples]) for name in samples[0]}

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[SourceRow]:
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
        """The tokens that the loss is computed on, question by question."""
        return (np.array(self._answer(question), np.int64) for question in self.questions)

    def _answer(self, question: Question) -> list[int]:
        return [*self.tokenizer.encode(" " + question.answers[0]), self.eod]

    def _check_lengths(self) -> None:
        """Raises UserError if a question and its answer do not fit.

        Only those with more bytes than the limit are encoded: no text has more tokens than bytes.
        """
        name, most = dataset_name(self.path), self.seq_length + 1
        wrong: list[tuple[Question, int, int]] = []
        for question in self.questions:
            _, turn = prompt_parts(question, name)
            if len(SYSTEM) + len(turn.encode()) + len(question.answers[0].encode()) + 8 > most:
                prompt = encode_prompt(self.tokenizer, question, name, (), None)
                answer = self._answer(question)
                if len(prompt) + len(answer) > most:
                    wrong.append((question, len(prompt), len(answer)))
        if wrong:
            question, in_prompt, in_answer = max(wrong, key=lambda found: found[1] + found[2])
            raise UserError(
                f"{self.path}: {len(wrong):,} of its {len(self.questions):,} questions do not fit"
                f" data.seq_length = {self.seq_length} even without passages; the longest, {question.id}, has"
                f" {in_prompt} tokens with its instructions, and its answer {in_answer}; raise --seq-length"
                f" to {in_prompt + in_answer - 1}, or remove such records"
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
    """The ids of a prompt, at most `room` of them (None: no limit), with as much of the passages as fits.

    name: of the question's dataset. short: the question alone, for models without instruction tuning.
    Passages are cut between tokens, and the whole text is then encoded at once, as an uncut prompt would be;
    if it has too many tokens still, more are cut. Raises ValueError if the question itself does not fit.
    """
    before, turn = prompt_parts(question, name, short=short)
    context = "\n\n".join(passages) if name.lower() not in PLAIN else ""

    def encode(context: str) -> list[int]:
        return tokenizer.encode(f"{before}{context}\n\n{turn}" if context else before + turn)

    ids = encode(context)
    kept: list[int] | None = None
    while room is not None and (excess := len(ids) - room) > 0:
        kept = tokenizer.encode(context) if kept is None else kept
        if not kept:
            raise ValueError(f"has {len(ids)} tokens with its instructions, and there is room for {room}")
        kept = kept[: max(0, len(kept) - excess)]
        ids = encode(tokenizer.decode(kept).rstrip("\ufffd"))
    return ids


def prompt_parts(question: Question, name: str, *, short: bool = False) -> tuple[str, str]:
    """(text before the passages, text after them)"""
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
        instruction = "Answer the following question with True or False."
    elif name in OPTIONS:
        instruction = "Answer the following question by selecting one of the provided options."
    else:
        instruction = "Please give a full and complete answer for the question."
    return SYSTEM, f"User: {instruction} {text}\n\nAssistant:"


def dataset_name(path: Path) -> str:
    """The name of the dataset of a file: that of its folder."""
    return path.resolve().parent.name


def _raise(bad: Reject) -> None:
    raise UserError(f"{bad.file}, {bad.place}: {bad.reason}; correct or remove the record")


@functools.lru_cache(4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of the questions in an epoch: (count,) int64."""
    return np.random.default_rng((seed, epoch)).permutation(count)
