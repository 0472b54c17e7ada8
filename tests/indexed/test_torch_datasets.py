"""`mt.open_dataset` and `mt.gpt_dataset` in torch's DataLoader, against the texts and training's samples."""

import pickle
import warnings

import numpy as np
import pytest

import mt
from mt.indexed.format import IndexedDataset
from mt.indexed.gpt_dataset import DataConfig, build_datasets
from mt.indexed.torch_datasets import gpt_dataset, open_dataset

TEXTS = ["one", "", "three words here", *(f"document {n}" for n in range(40))]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    mt.write_documents(TEXTS, folder / "in.jsonl")
    mt.run("data tokenize", input=folder / "in.jsonl", output_prefix=folder / "x", workers=1,
           tokenizer_type="ByteLevelTokenizer")  # fmt: skip
    return folder / "x_text_document"


def test_items_slices_and_documents_are_the_texts(prefix):
    dataset = open_dataset(prefix)
    expected = [list(text.encode()) for text in TEXTS if text]
    assert len(dataset) == len(expected) == dataset.num_documents - 1
    assert [item.tolist() for item in dataset] == expected
    assert (
        [item.tolist() for item in dataset[-3:]]
        == [dataset[k].tolist() for k in (-3, -2, -1)]
        == expected[-3:]
    )
    assert [dataset.document(k).tolist() for k in range(-len(TEXTS), 0)] == [list(t.encode()) for t in TEXTS]
    assert dataset[np.int32(1)].dtype == dataset.document(1).dtype == np.int64
    assert dataset.num_tokens == sum(map(len, expected)) == dataset.lengths.sum()
    assert repr(dataset) == f"<{prefix}: 42 sequences of 43 documents, {dataset.num_tokens} tokens, uint16>"
    for wrong in (42, -43):
        with pytest.raises(IndexError, match="has 42 sequences, no"):
            dataset[wrong]
    with pytest.raises(TypeError):
        dataset["1"]
    assert open_dataset(f"{prefix}.idx")[0].tolist() == expected[0]


def test_torch_reads_both_without_a_warning_and_items_can_be_changed(prefix):
    torch = pytest.importorskip("torch")
    dataset, samples = open_dataset(prefix), gpt_dataset(prefix, 16, split="1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, shuffle=True)
        assert sorted(len(item) for item in loader) == sorted(dataset.lengths.tolist())
        batches = list(torch.utils.data.DataLoader(samples, batch_size=4, drop_last=True))
    assert batches[0]["tokens"].shape == (4, 16)
    assert batches[0]["tokens"].dtype == torch.int64
    assert torch.equal(batches[0]["tokens"][:, 1:], batches[0]["labels"][:, :-1])
    dataset[0][:] = samples[0]["tokens"][:] = 0
    assert dataset[0].any()
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again[3], dataset[3])
    assert np.array_equal(pickle.loads(pickle.dumps(samples))[5]["labels"], samples[5]["labels"])


def test_samples_are_those_that_training_reads(prefix):
    config = DataConfig(
        data_path=("0.5", str(prefix), "0.5", str(prefix)), seq_length=16, split="80,20", seed=5
    )
    expected = build_datasets(config, (30, 8, 0))
    for k, name in enumerate(("train", "valid")):
        found = gpt_dataset(
            [0.5, prefix, 0.5, f"{prefix}.bin"], 16, name=name, num_samples=(30, 8)[k], split="80,20", seed=5
        )
        assert len(found) == len(expected[k])
        for n in range(len(found)):
            assert np.array_equal(found[n]["tokens"], expected[k][n][:-1])
            assert np.array_equal(found[n]["labels"], expected[k][n][1:])
    one = gpt_dataset(prefix, 16, split="1")
    assert len(one) == (int(IndexedDataset(str(prefix)).lengths.sum()) - 1) // 16
    assert repr(one) == f"<train of {prefix}: {len(one)} samples of 16 tokens>"
    with pytest.raises(IndexError, match="samples, no"):
        one[len(one)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"name": "dev"}, "name = 'dev' must be one of train, valid, test"),
        ({"num_samples": 0}, "num_samples = 0 must be at least 1"),
        ({"seq_length": 0}, "seq_length = 0 must be at least 1"),
        ({"split": "a"}, "split = 'a' must be up to three shares"),
        ({"seq_length": 10**6, "split": "1"}, "fewer than the 1,000,001 of one sample"),
    ],
)
def test_mistakes_have_the_messages_of_training(prefix, how, message):
    with pytest.raises(mt.UserError, match=message):
        gpt_dataset(prefix, **how)
    with pytest.raises(mt.UserError, match=r"none\.idx: no such file"):
        open_dataset("none")
