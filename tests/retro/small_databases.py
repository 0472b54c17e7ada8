"""Texts and settings of small databases and of neighbours of samples. Tokens are the bytes of the texts."""

from pathlib import Path

import numpy as np

from mt.core import config
from mt.indexed.format import IndexedWriter
from mt.indexed.gpt_dataset import DataConfig, build_datasets
from mt.retro.build import BuildDbConfig
from mt.retro.sample_neighbors import NeighborsConfig

LENGTH, SEQ = 16, 64  # bytes of a chunk and of a sample
FILES = ("chunks.npy", "index.faiss", "neighbors.npy", "tokenizer/tokenizer_config.json")
# fmt: off
NOUNS = [
    "river", "mountain", "violin", "engine", "planet", "garden", "letter", "bridge", "winter", "soldier",
    "island",
    "horse",
]
# fmt: on
VERBS = ["sings", "falls", "grows", "waits", "turns", "burns", "sleeps", "shines", "travels", "breaks"]


def texts(count, seed=0, sentences=7):
    """Texts of one to `sentences` sentences of two words each; every eleventh is empty."""
    rng = np.random.default_rng(seed)
    return [
        (
            ""
            if i % 11 == 5
            else " ".join(
                f"{rng.choice(NOUNS)} {rng.choice(VERBS)}." for _ in range(rng.integers(1, sentences + 1))
            )
        )
        for i in range(count)
    ]


def write(prefix, documents):
    """Documents of up to two sequences each, of bytes, ended by 0; an empty text is an empty document."""
    writer = IndexedWriter(prefix, np.uint16, Path(f"{prefix}.parts"))
    for i, text in enumerate(documents):
        tokens = [*text.encode(), 0] if text else []
        cut = len(tokens) // 2 if i % 3 == 0 else 0
        lengths = [n for n in (cut, len(tokens) - cut) if n]
        writer.add(np.array(tokens, np.uint16), lengths, [len(lengths)])
    writer.finish()


def database_settings(tmp_path, *, output="db", data=("data",), **more):
    given = {
        "data_path": [str(tmp_path / d) for d in data],
        "output": str(tmp_path / output),
        "tokenizer.tokenizer_type": "ByteLevelTokenizer",
        "chunk_length": LENGTH,
        "num_neighbors": 4,
        "workers": 1,
    }
    return config.build(BuildDbConfig, ("test", given | more))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def neighbor_settings(folder, **more):
    given = {
        "data_path": ["2", str(folder / "a"), "1", str(folder / "b"), "1", str(folder / "c")],
        "split": "80,20",
        "seq_length": SEQ,
        "db": str(folder / "db"),
        "output": str(folder / "near"),
        "train_samples": 150,
        "valid_samples": 9,
        "num_neighbors": 3,
        "workers": 1,
    }
    return config.build(NeighborsConfig, ("test", given | more))


def datasets(folder, counts=(150, 9, 0), **more):
    data = {
        "data_path": ("2", str(folder / "a"), "1", str(folder / "b"), "1", str(folder / "c")),
        "split": "80,20",
        "seq_length": SEQ,
    }
    return build_datasets(DataConfig(**(data | more)), counts)
