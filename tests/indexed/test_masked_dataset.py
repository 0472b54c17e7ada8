"""Sample indices of sentences, compared with Megatron-LM's golden numbers and its compiled helper."""

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed import masked_dataset
from mt.indexed.bert_dataset import BertObjective
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.indexed.masked_dataset import MaskedDataset, build_mapping
from mt.indexed.t5_dataset import T5Objective
from mt.tests.indexed.toy_vocabulary import WORDS, as_lists


def test_mappings_equal_the_golden_ones(megatron_golden):
    for case in megatron_golden["mapping"]:
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


@pytest.mark.parametrize("compile_from", [0, 1 << 40], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    ("num_samples", "short", "least"), [(None, 0.1, 2), (None, 0.0, 1), (700, 0.1, 2), (5000, 0.37, 1)]
)
def test_mappings_equal_those_of_megatrons_compiled_helper_in_blocks_of_any_size(
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


def test_documents_without_enough_sentences_raise():
    with pytest.raises(
        ValueError, match=r"none of its 3 documents has 2 or more sentences of at most 512 tokens"
    ):
        build_mapping(np.array([0, 1, 2, 4]), np.array([5, 5, 5, 600], np.int32), 100, 125, 0.1, 1, 2)


def test_a_batch_has_its_samples_whatever_was_read_before(sentences_prefix):
    dataset = MaskedDataset(
        IndexedDataset(sentences_prefix), (0, 150), None, BertObjective(WORDS, 64), 0.1, 5
    )
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


def test_splits_are_ranges_of_documents_and_describe_counts_epochs(sentences_prefix):
    indexed = IndexedDataset(sentences_prefix)
    whole = MaskedDataset(indexed, (0, 150), None, T5Objective(WORDS, 64, 60), 0.1, 5)
    (row,) = whole.describe()
    assert (row["sequences"], row["tokens"]) == (len(indexed), len(indexed.tokens))
    assert 0.9 < row["epochs"] < 1, "the document with a long sentence is left out"
    thrice = MaskedDataset(indexed, (0, 150), 3 * len(whole) - 5, T5Objective(WORDS, 64, 60), 0.1, 5)
    assert thrice.describe()[0]["epochs"] == pytest.approx(3 * row["epochs"], rel=0.05)
    part = MaskedDataset(indexed, (100, 150), None, T5Objective(WORDS, 64, 60), 0.1, 5)
    assert part.sample_index[:, 0].min() >= indexed.document_indices[100]


def test_a_split_without_a_sample_is_refused_with_the_reason(tmp_path):
    writer = IndexedWriter(tmp_path / "single", np.uint16, tmp_path / "work")
    writer.add(np.arange(30), [10, 10, 10], [1, 1, 1])
    writer.finish()
    message = (
        r"the train split gives no sample: none of its 3 documents has 2 or more sentences"
        r".*--split-sentences"
    )
    with pytest.raises(UserError, match=message):
        MaskedDataset(IndexedDataset(tmp_path / "single"), (0, 3), 5, BertObjective(WORDS, 64), 0.1, 5)
