"""`mt data index`: training finds the indices that it built."""

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.bert_dataset import BertConfig, build_bert_datasets
from mt.indexed.build_indices import IndexConfig, index
from mt.indexed.format import IndexedWriter
from mt.indexed.t5_dataset import T5Config, build_t5_datasets
from mt.tokenizer.tokenizer import TokenizerConfig, load

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *(f"w{i}" for i in range(60)),
    *(f"##p{i}" for i in range(20)),
]


@pytest.fixture
def data(tmp_path):
    """(prefix of sentences, tokenizer settings)"""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    random = np.random.default_rng(0)
    per_document = random.integers(1, 6, size=80)
    lengths = random.integers(3, 20, size=per_document.sum())
    writer = IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work")
    writer.add(random.integers(5, len(WORDS), size=lengths.sum()), lengths, per_document)
    writer.finish()
    return str(tmp_path / "p"), TokenizerConfig(
        tokenizer_type="BertWordPieceLowerCase", vocab_file=str(tmp_path / "vocab.txt"), vocab_extra_ids=20
    )


@pytest.mark.parametrize("objective", ["bert", "t5"])
def test_training_finds_the_indices_that_were_built_before(data, tmp_path, objective):
    prefix, tokenizer = data
    settings = {"data_path": (prefix,), "seq_length": 64, "split": "90,10,0"}
    made = index(
        IndexConfig(
            **settings,
            objective=objective,
            tokenizer=tokenizer,
            train_samples=50,
            valid_samples=5,
            output=str(tmp_path / "out"),
        )
    )
    cached = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert cached
    config, build = {"bert": (BertConfig, build_bert_datasets), "t5": (T5Config, build_t5_datasets)}[
        objective
    ]
    train, valid, _ = build(config(**settings), load(tokenizer), (50, 5, 0))
    assert made["fingerprints"] == {"train": train.fingerprint, "valid": valid.fingerprint}
    assert made["counts"] == {"train_samples": len(train), "valid_samples": len(valid)}
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == cached
    assert "train" in made["text"]


def test_a_masked_objective_without_a_tokenizer_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="tokenizer"):
        index(
            IndexConfig(
                data_path=(data[0],),
                seq_length=64,
                objective="bert",
                train_samples=5,
                output=str(tmp_path / "out"),
            )
        )
