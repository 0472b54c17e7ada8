"""A vocabulary of 100 pieces, some sentences of it, and Megatron-LM's datasets of them."""

import types

import numpy as np

from mt.indexed.word_pieces import WordPieces

PIECES = ["##" + str(i) if i >= 10 and i % 3 == 0 else f"w{i}" for i in range(100)]
WORDS = WordPieces(
    "toy",
    tuple(p.startswith("##") for p in PIECES),
    cls=1,
    sep=2,
    mask=3,
    pad=0,
    bos=4,
    eos=5,
    sentinels=tuple(range(90, 95)),
)
SENTENCES = [np.arange(10, 16), np.arange(16, 20), np.arange(20, 25)]


def as_lists(sample):
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in sample.items()
    }


def megatron_dataset(kind, prefix, sample_index, **settings):
    """Megatron's dataset, made without its constructor, which needs torch.distributed."""
    from megatron.core.datasets import bert_dataset, t5_dataset
    from megatron.core.datasets.indexed_dataset import IndexedDataset as TheirIndexed

    cls = {"bert": bert_dataset.BERTMaskedWordPieceDataset, "t5": t5_dataset.T5MaskedWordPieceDataset}[kind]
    tokenizer = types.SimpleNamespace(
        cls=1,
        sep=2,
        mask=3,
        pad=0,
        bos=4,
        eos=5,
        inv_vocab=dict(enumerate(PIECES)),
        additional_special_tokens_ids=list(range(90, 100)),
    )
    dataset = object.__new__(cls)
    dataset.config = types.SimpleNamespace(
        tokenizer=tokenizer,
        random_seed=5,
        masking_probability=0.15,
        masking_do_full_word=True,
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        **settings,
    )
    dataset.dataset, dataset.sample_index, dataset._pad_token_id = TheirIndexed(prefix), sample_index, 0
    dataset.token_lookup = list(tokenizer.inv_vocab)
    return dataset
