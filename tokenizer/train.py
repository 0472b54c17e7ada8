"""Trains a tokenizer, a byte-level BPE like GPT-2's, on a sample of documents."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import regex
import xxhash

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..core.manifest import Json
from ..core.progress import progress
from ..documents import reader, sharding
from ..documents.rejects import Reject, Rejects
from ..documents.sharding import InputOptions
from .vocabulary import END_NAMES, Tree

# For the training, longer words are cut into words of this length, in characters. Every merge inside a word
# reads the whole word, so that one word of 200,000 letters takes 15 s and one of 3 million never ends. For
# the same reason, sentencepiece leaves out lines of more than 4,192 bytes. The longest words of ordinary
# texts, rows of `=` or of spaces, have some hundred characters.
MAX_WORD_CHARS = 1000
# The kinds of characters of GPT-2's pre-tokenizer, which begins a new word where the kind changes.
KINDS = (r"\p{L}", r"\p{N}", r"\s", r"[^\s\p{L}\p{N}]")
RUN = regex.compile("|".join(f"{kind}++" for kind in KINDS))
HALF = regex.compile("|".join(f"{kind}{{{MAX_WORD_CHARS // 2}}}" for kind in KINDS))


@configuration()
class TrainTokenizerConfig(InputOptions):
    """The settings of `mt data train-tokenizer`."""

    input: tuple[str, ...] = option(
        help="files, folders or globs: .jsonl(.gz .zst), .parquet, .txt", role="input"
    )
    output: str = option(help="directory for the tokenizer", role="output")
    vocab_size: int = option(8192, "number of ids to reach, including the 256 bytes and the special token")
    text_key: str = option("text", "the record's key that holds the text")
    sample_bytes: int = option(
        1_000_000_000, "train on about this many bytes of input, spread evenly; memory grows with it"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        check(
            (
                self.vocab_size > 257,
                f"vocab_size = {self.vocab_size} must be more than the 256 bytes and the special token",
            ),
            *self.input_rules,
            (self.sample_bytes >= 1, f"sample_bytes = {self.sample_bytes} must be at least 1"),
        )


def train_tokenizer(config: TrainTokenizerConfig) -> Json:
    """Trains a byte-level BPE like GPT-2's on documents; `<|endoftext|>`, id 0, ends a document.

    The output directory holds tokenizer.json and tokenizer_config.json (for --tokenizer-model DIR and for
    transformers) and vocab.json and merges.txt (for --vocab-file and --merge-file). Both give the same ids.
    Returns the manifest.
    """
    shards = config.plan(config.input, key=config.text_key, output=config.output)
    run = shards.begin("data train-tokenizer", config)
    if run.finished:
        return run.manifest
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Reference

    learner = Reference(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(END_NAMES[0], special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counts = {"documents": 0, "text_bytes": 0, "rejected": 0, "long_words": 0}
    rejects = Rejects()

    def pieces() -> Iterator[str]:
        label = "train-tokenizer: reading"
        for text in sample_texts(shards, config.sample_bytes, rejects, counts, label):
            cut, long_words = cut_long_words(text)
            counts["long_words"] += long_words
            yield from cut

    try:
        learner.train_from_iterator(pieces(), trainer)
        if not counts["text_bytes"]:
            raise UserError(f"{', '.join(config.input)}: holds no text to learn from; check the input")
    except UserError:
        run.release()  # nothing is written yet, and the user will change the input or a setting
        raise
    counts["rejected"] = len(rejects)
    counts["vocab_size"] = learner.get_vocab_size()
    written = _write(run.output, json.loads(learner.to_str()))
    if rejects:
        written.append(run.output / "rejects.jsonl")
        rejects.write(written[-1])
    return run.finish([{**manifest.record(f, run.output), "documents": False} for f in written], counts)


def sample_texts(
    shards: Sequence[sharding.Shard],
    sample_bytes: int,
    rejects: list[Reject],
    counts: dict[str, int],
    label: str,
) -> Iterator[str]:
    """All texts of a small input; of a large one those with a low hash, the same texts in every run.

    rejects: records that cannot be read are appended. counts: "documents" and "text_bytes" are increased.
    """
    total = sum(s.bytes for s in shards)
    limit = (1 << 64) * min(1.0, sample_bytes / max(total, 1))
    with progress(label, total, "B") as advance:
        for shard in shards:
            for document in reader.read(shard, rejects.append):
                raw = document.text.encode()
                if xxhash.xxh3_64_intdigest(raw) < limit:
                    counts["documents"] += 1
                    counts["text_bytes"] += len(raw)
                    yield document.text
            advance(shard.bytes)


def cut_long_words(text: str) -> tuple[list[str], int]:
    """(the text in pieces, how many words of more than MAX_WORD_CHARS characters are cut).

    Nearly all texts have no such word and are one piece.
    """
    # a longer run contains one of the blocks of half the length that begin at its multiples
    step = MAX_WORD_CHARS // 2
    if not any(HALF.match(text, start) for start in range(0, len(text) - step + 1, step)):
        return [text], 0
    cuts, long_words = [0], 0
    for run in RUN.finditer(text):
        inside = range(run.start() + MAX_WORD_CHARS, run.end(), MAX_WORD_CHARS)
        cuts += inside
        long_words += bool(inside)
    return [text[a:b] for a, b in itertools.pairwise([*cuts, len(text)])], long_words


def _write(folder: Path, tree: Tree) -> list[Path]:
    """Writes the files of a tokenizer; returns their paths."""
    model = tree["model"]
    contents = {
        "tokenizer.json": json.dumps(tree, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_NAMES[0]}
        ),
        "vocab.json": json.dumps(
            dict(sorted(model["vocab"].items(), key=lambda item: item[1])), ensure_ascii=False
        ),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]),
    }
    for name, text in contents.items():
        with manifest.atomic_write(folder / name, "w") as file:
            file.write(text)
    return [folder / name for name in contents]
