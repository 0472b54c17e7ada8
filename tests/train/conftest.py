"""A small corpus of tokens and a small run on it."""

import struct
from pathlib import Path

import numpy as np
import pytest

from mt.core.config import build
from mt.core.config import settings as leaves
from mt.indexed.format import IndexedWriter

VOCABULARY = 60  # 59 words and the end of a document


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """The prefix of a .bin/.idx pair of 200 documents in which each token makes the next one likely."""
    prefix = tmp_path_factory.mktemp("data") / "corpus"
    random = np.random.default_rng(0)
    documents = []
    for _ in range(200):
        words = (random.integers(0, 59) + np.cumsum(random.integers(1, 4, size=random.integers(20, 60)))) % 59
        documents.append(np.append(words, 59).astype("<u2"))
    lengths = np.array([len(d) for d in documents])
    prefix.with_suffix(".bin").write_bytes(np.concatenate(documents).tobytes())
    prefix.with_suffix(".idx").write_bytes(  # the byte table of indexed/format.py
        struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 200, 201)
        + lengths.astype("<i4").tobytes()
        + (2 * np.concatenate([[0], lengths.cumsum()[:-1]])).astype("<i8").tobytes()
        + np.arange(201).astype("<i8").tobytes()
    )
    return str(prefix)


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" if i % 3 else f"##p{i}" for i in range(45))]
TOKENIZER = {"tokenizer_type": "BertWordPieceLowerCase", "vocab_extra_ids": 20}  # 70 ids in all


@pytest.fixture(scope="session")
def sentences(tmp_path_factory):
    """(prefix of documents, settings of their tokenizer of 70 ids, prefix of the documents' titles).

    120 documents of 2 to 8 sentences, in which each token makes the next one likely.
    """
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    random = np.random.RandomState(0)
    per_document = random.randint(2, 9, size=120)
    lengths = random.randint(3, 9, size=per_document.sum())
    tokens = np.concatenate([5 + (random.randint(45) + 3 * np.arange(n)) % 45 for n in lengths])
    writer = IndexedWriter(folder / "text_sentence", np.uint16, folder / "work")
    writer.add(tokens, lengths, per_document)
    writer.finish()
    writer = IndexedWriter(folder / "title_sentence", np.uint16, folder / "work-titles")
    writer.add(5 + np.arange(240) % 45, np.full(120, 2), np.ones(120, int))
    writer.finish()
    tokenizer = {**TOKENIZER, "vocab_file": str(folder / "vocab.txt")}
    return str(folder / "text_sentence"), tokenizer, str(folder / "title_sentence")


def _tree(corpus: str, save: Path, **settings) -> dict:
    """The settings of a run that takes a second; `settings` replaces leaves by name, as flags do."""
    base = {
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4},
        "data": {"data_path": [corpus], "seq_length": 16, "split": "90,10,0"},
        "tokenizer": {"tokenizer_type": "NullTokenizer", "tokenizer_vocab_size": VOCABULARY},
        "optimizer": {"lr": 1e-2, "lr_warmup_iters": 2},
        "train": {
            "micro_batch_size": 2,
            "global_batch_size": 8,
            "train_iters": 8,
            "eval_interval": 4,
            "eval_iters": 2,
        },
        "checkpoint": {"save": str(save), "save_interval": 3},
        "log": {"log_interval": 2},
    }
    from mt.train.config import TrainConfig

    groups = {leaf.path[-1]: leaf.path[:-1] for leaf in leaves(TrainConfig)}
    for name, value in settings.items():
        group = groups.get(name, ())  # () of what is no leaf of a group: `dry_run`, or a whole group
        (base.setdefault(*group, {}) if group else base)[name] = value
    return base


@pytest.fixture(scope="session")
def tree(corpus):
    """tree(save, name=value ...) -> the settings as a YAML file has them"""
    return lambda save, **values: _tree(corpus, save, **values)


@pytest.fixture(scope="session")
def settings(tree):
    """settings(save, name=value ...) -> TrainConfig"""
    from mt.train.loop import TrainConfig

    return lambda save, **values: build(TrainConfig, ("test", tree(save, **values)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, settings):
    """(directory with checkpoints of steps 3, 6 and 8, manifest) of a run. Copy it to change it."""
    from mt.train.loop import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(settings(folder, keep_last=0))
