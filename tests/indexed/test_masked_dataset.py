"""BERT's and T5's mappings and samples, beside Megatron-LM's golden numbers, its compiled helper and its
Python code.
"""

import types
from pathlib import Path

import numpy as np
import pytest

from mt.core import config
from mt.indexed import masked_dataset
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.indexed.masked_dataset import (
    T5,
    Bert,
    BertConfig,
    MaskedDataset,
    T5Config,
    WordPieces,
    bounded_draws,
    build_bert_datasets,
    build_mapping,
    build_t5_datasets,
    word_pieces,
)
from mt.tokenizer.tokenizer import TokenizerConfig, load

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


@pytest.fixture
def prefix(tmp_path):
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


def as_lists(sample):
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in sample.items()
    }


def test_mappings_are_the_golden_ones(megatron_golden):
    golden = megatron_golden
    for case in golden["mapping"]:
        found = build_mapping(
            np.array(case["docs"]),
            np.array(case["sizes"], np.int32),
            None if case["num_epochs"] == 1 else case["max_num_samples"],
            case["max_seq_length"],
            case["short_seq_prob"],
            case["seed"],
            case["min_num_sent"],
        )
        assert (str(found.dtype), found.tolist()) == (case["dtype"], case["mapping"])


def test_the_64_bit_twister_gives_the_number_that_the_c_plus_plus_standard_demands():
    # [rand.predef]: the 10000th number of a default-constructed mt19937_64 (seed 5489) is
    # 9981545732273789042.
    stream = masked_dataset.mt19937_64(5489)
    numbers = np.concatenate([next(stream) for _ in range(33)])
    assert int(numbers[9999]) == 9981545732273789042
    assert bounded_draws(5489, 4).tolist() == [
        0,
        int(numbers[2]) % 2,
        int(numbers[1]) % 3,
        int(numbers[0]) % 4,
    ]


@pytest.mark.parametrize("compile_from", [0, 1 << 40], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    ("num_samples", "short", "least"), [(None, 0.1, 2), (None, 0.0, 1), (700, 0.1, 2), (5000, 0.37, 1)]
)
def test_mappings_are_those_of_megatrons_compiled_helper_in_blocks_of_any_size(
    monkeypatch, compile_from, num_samples, short, least
):
    helpers = pytest.importorskip("megatron.core.datasets.helpers_cpp")
    monkeypatch.setattr("mt.indexed.blend.COMPILE_FROM", compile_from)
    random = np.random.RandomState(least + (num_samples or 0))
    per_document = random.randint(0, 9, size=300)
    documents = np.concatenate([[0], np.cumsum(per_document)])
    sizes = random.randint(1, 90, size=documents[-1]).astype(np.int32)
    sizes[::97] = 513
    theirs = helpers.build_mapping(
        documents,
        sizes,
        1 if num_samples is None else 2**31 - 2,
        num_samples or 2**63 - 1,
        125,
        short,
        77,
        False,
        least,
    )
    for block in (1 << 20, 7):
        monkeypatch.setattr(masked_dataset, "DOCUMENTS_AT_A_TIME", block)
        ours = build_mapping(documents, sizes, num_samples, 125, short, 77, least)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    part = helpers.build_mapping(documents[20:], sizes, 1, 2**63 - 1, 125, short, 77, False, least)
    assert np.array_equal(build_mapping(documents[20:], sizes, None, 125, short, 77, least), part), (
        "a split that does not begin at sentence 0"
    )


def test_documents_without_enough_sentences_are_an_error_and_not_an_endless_loop():
    with pytest.raises(
        ValueError, match=r"none of its 3 documents has 2 or more sentences of at most 512 tokens"
    ):
        build_mapping(np.array([0, 1, 2, 4]), np.array([5, 5, 5, 600], np.int32), 100, 125, 0.1, 1, 2)


def test_bert_samples_are_the_golden_ones(megatron_golden):
    golden = megatron_golden
    case = golden["bert"]
    bert = Bert(WORDS, case["seq"], case["mask_prob"], True, case["max_ngram"])
    for k, wanted in case["samples"].items():
        assert (
            as_lists(bert.sample(SENTENCES, case["target"], np.random.RandomState(case["seed"] + int(k))))
            == wanted
        )
    for k, wanted in golden["bert_truncated"]["samples"].items():
        random = np.random.RandomState(case["seed"] + int(k))
        assert as_lists(bert.sample(SENTENCES, golden["bert_truncated"]["target"], random)) == wanted


def test_t5_samples_are_the_golden_ones(megatron_golden):
    golden = megatron_golden
    case = golden["t5"]
    t5 = T5(WORDS, case["seq_enc"], case["seq_dec"], 0.15, case["max_ngram"])
    for k, wanted in case["samples"].items():
        found = t5.sample(SENTENCES, case["target"], np.random.RandomState(case["seed"] + int(k)))
        assert as_lists(found) == wanted
        assert all(v.dtype == np.int64 for v in found.values() if isinstance(v, np.ndarray))


def theirs(kind, prefix, sample_index, **settings):
    """Megatron's dataset, made without its constructor, which wants torch.distributed."""
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


@pytest.mark.parametrize("head", [True, False])
def test_bert_datasets_are_those_of_megatron_core(prefix, head):
    ours = MaskedDataset(IndexedDataset(prefix), (0, 150), 300, Bert(WORDS, 64, binary_head=head), 0.1, 5)
    reference = theirs(
        "bert",
        prefix,
        ours.sample_index,
        sequence_length=64,
        classification_head=head,
        masking_max_ngram=3,
        masking_use_geometric_distribution=False,
    )
    assert len(ours) >= 300
    for k in range(len(ours)):
        assert as_lists(ours[k]) == as_lists(reference[k])


def test_t5_datasets_are_those_of_megatron_core(prefix):
    words = WordPieces(**{**vars(WORDS), "sentinels": tuple(range(90, 100))})
    ours = MaskedDataset(IndexedDataset(prefix), (0, 150), 200, T5(words, 64, 40), 0.1, 5)
    reference = theirs(
        "t5",
        prefix,
        ours.sample_index,
        sequence_length=64,
        sequence_length_encoder=64,
        sequence_length_decoder=40,
        masking_max_ngram=10,
        masking_use_geometric_distribution=True,
    )
    for k in range(len(ours)):
        assert as_lists(ours[k]) == as_lists(reference[k])


def test_a_batch_is_its_samples_whatever_was_read_before(prefix):
    dataset = MaskedDataset(IndexedDataset(prefix), (0, 150), None, Bert(WORDS, 64), 0.1, 5)
    order = np.random.RandomState(0).permutation(len(dataset))[:30]
    batch = dataset.batch(order)
    assert {name: (a.dtype, a.shape) for name, a in batch.items()} == {
        **{name: (np.int64, (30, 64)) for name in ("text", "types", "labels", "loss_mask", "padding_mask")},
        **{name: (np.int64, (30,)) for name in ("is_random", "truncated")},
    }
    for row, k in enumerate(order):
        assert as_lists({n: a[row] for n, a in batch.items()}) == {
            n: v for n, v in as_lists(dataset[k]).items()
        }


@pytest.fixture
def tokenizer(bert_vocabulary):
    return load(
        TokenizerConfig(
            tokenizer_type="BertWordPieceLowerCase",
            vocab_file=bert_vocabulary,
            vocab_extra_ids=10,
        )
    )


def test_word_pieces_of_a_real_vocabulary(tokenizer, bert_vocabulary):
    names = Path(bert_vocabulary).read_text().splitlines()
    words = word_pieces(tokenizer)
    assert words.continues[: len(names)] == tuple(n.startswith("##") for n in names)
    assert [names[i] for i in (words.cls, words.sep, words.mask, words.pad)] == [
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[PAD]",
    ]
    assert [tokenizer.decode([i]) for i in words.sentinels] == [f"<extra_id_{i}>" for i in range(10)]


def test_datasets_of_a_split_are_cached_and_mixed(prefix, tokenizer, tmp_path):
    settings = BertConfig(data_path=("1", prefix, "2", prefix), seq_length=64, split="80,20", seed=3)
    train, valid, test = build_bert_datasets(settings, tokenizer, (90, 10, 0))
    assert test is None
    assert len(train) >= 90
    assert len(list((tmp_path / "cache").glob("*masked_index.npy"))) == 4
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.npy")}
    again = build_bert_datasets(settings, tokenizer, (90, 10, 0))
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.npy")} == stamps
    assert (again[0].fingerprint, again[1].fingerprint) == (train.fingerprint, valid.fingerprint)
    batch = train.batch([5, 0, 3])
    for row, k in enumerate([5, 0, 3]):
        assert as_lists({n: a[row] for n, a in batch.items()}) == as_lists(train[k])
    t5, *_ = build_t5_datasets(
        T5Config(data_path=(prefix,), seq_length=64, split="1", seed=3), tokenizer, (50, 0, 0)
    )
    assert t5.fingerprint != train.datasets[0].fingerprint
    assert t5[0]["text_enc"].shape == (64,)


def test_a_split_uses_documents_and_a_row_says_how_often(prefix):
    indexed = IndexedDataset(prefix)
    whole = MaskedDataset(indexed, (0, 150), None, T5(WORDS, 64, 60), 0.1, 5)
    (row,) = whole.describe()
    assert (row["sequences"], row["tokens"]) == (len(indexed), len(indexed.tokens))
    assert 0.9 < row["epochs"] < 1, "the document with a long sentence is left out"
    thrice = MaskedDataset(indexed, (0, 150), 3 * len(whole) - 5, T5(WORDS, 64, 60), 0.1, 5)
    assert thrice.describe()[0]["epochs"] == pytest.approx(3 * row["epochs"], rel=0.05)
    part = MaskedDataset(indexed, (100, 150), None, T5(WORDS, 64, 60), 0.1, 5)
    assert part.sample_index[:, 0].min() >= indexed.document_indices[100]


def test_mistakes_are_named(prefix, tmp_path):
    with pytest.raises(config.UserError, match=r"mask_prob = 1\.5 must lie between 0 and 1"):
        BertConfig(data_path=("p",), mask_prob=1.5)
    with pytest.raises(config.UserError, match="decoder_seq_length = 1 must be at least 4"):
        T5Config(data_path=("p",), decoder_seq_length=1)
    with pytest.raises(
        config.UserError, match=r"no token for cls, sep, mask, pad; give a vocabulary that has them"
    ):
        Bert(word_pieces(load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer"))), 64)
    with pytest.raises(
        config.UserError, match=r"no token for sentinels; add sentinels with --vocab-extra-ids 100"
    ):
        T5(WordPieces(**{**vars(WORDS), "sentinels": ()}), 64, 64)
    short = MaskedDataset(IndexedDataset(prefix), (0, 150), 50, T5(WORDS, 64, 4), 0.1, 5)
    with pytest.raises(
        config.UserError,
        match=r"decoder_seq_length = 4 is too short for a sample whose masked spans take \d+",
    ):
        [short[k] for k in range(50)]
    few = MaskedDataset(
        IndexedDataset(prefix),
        (0, 150),
        50,
        T5(WordPieces(**{**vars(WORDS), "sentinels": (90,)}), 64, 60),
        0.1,
        5,
    )
    with pytest.raises(
        config.UserError, match=r"masked spans, but the tokenizer only 1 sentinels; raise --vocab-extra-ids"
    ):
        [few[k] for k in range(50)]
    writer = IndexedWriter(tmp_path / "single", np.uint16, tmp_path / "work2")
    writer.add(np.arange(30), [10, 10, 10], [1, 1, 1])
    writer.finish()
    with pytest.raises(
        config.UserError,
        match=(
            r"the train split gives no sample: none of its 3 documents has 2 or more"
            r" sentences.*--split-sentences"
        ),
    ):
        MaskedDataset(IndexedDataset(tmp_path / "single"), (0, 3), 5, Bert(WORDS, 64), 0.1, 5)
