"""Inputs of several test files of this folder."""

import numpy as np
import pytest

from mt.indexed.format import IndexedWriter
from mt.tokenizer.tokenizer import TokenizerConfig, load


@pytest.fixture
def sentences_prefix(tmp_path):
    """Documents of 0 to 12 sentences of the toy vocabulary; one document has a sentence that is too long."""
    random = np.random.RandomState(11)
    per_document = random.randint(0, 13, size=150)
    lengths = random.randint(1, 20, size=per_document.sum())
    big = int(np.argmax(per_document > 5))
    lengths[per_document[:big].sum()] = 600
    writer = IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work")
    writer.add(random.randint(6, 90, size=lengths.sum()), lengths, per_document)
    writer.finish()
    return str(tmp_path / "p")


@pytest.fixture
def bert_tokenizer(bert_vocabulary):
    return load(
        TokenizerConfig(
            tokenizer_type="BertWordPieceLowerCase", vocab_file=bert_vocabulary, vocab_extra_ids=10
        )
    )
