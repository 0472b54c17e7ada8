"""Blocks and queries of the inverse cloze task, compared with megatron-core's mapping and plain loops."""

import itertools

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed import ict_dataset
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.indexed.ict_dataset import IctConfig, IctDataset, build_blocks_mapping, build_ict_datasets
from mt.indexed.word_pieces import WordPieces
from mt.tokenizer.tokenizer import TokenizerConfig, load

WORDS = WordPieces("toy", (False,) * 100, cls=1, sep=2, mask=3, pad=0, bos=None, eos=None, sentinels=())


def write(prefix, random, per_document, lengths):
    writer = IndexedWriter(prefix, np.uint16, prefix.with_suffix(".work"))
    writer.add(random.randint(6, 90, size=int(lengths.sum())), lengths, per_document)
    writer.finish()
    return IndexedDataset(str(prefix))


@pytest.fixture
def pairs(tmp_path):
    """(150 documents of 0 to 12 sentences, their titles of 0 to 2 sentences). One sentence is too long."""
    random = np.random.RandomState(11)
    per_document = random.randint(0, 13, size=150)
    lengths = random.randint(1, 20, size=per_document.sum())
    lengths[per_document[: int(np.argmax(per_document > 5))].sum()] = 600
    text = write(tmp_path / "text_sentence", random, per_document, lengths)
    per_title = random.randint(0, 3, size=150)
    return text, write(
        tmp_path / "title_sentence", random, per_title, random.randint(1, 6, size=per_title.sum())
    )


@pytest.mark.parametrize("one_sentence", [False, True])
@pytest.mark.parametrize("num_samples", [None, 1, 1000])
def test_the_mapping_equals_megatron_cores(pairs, one_sentence, num_samples):
    helpers = pytest.importorskip(
        "megatron.core.datasets.helpers_cpp", reason="megatron-core's compiled helper is missing"
    )
    text, titles = pairs
    sizes = ict_dataset.title_lengths(titles, 150, 64).astype(np.int32)
    theirs = helpers.build_blocks_mapping(
        text.document_indices,
        text.lengths,
        sizes,
        1 if num_samples is None else 2**31 - 2,
        num_samples or 2**63 - 2,
        40,
        5,
        False,
        one_sentence,
    )
    ours = build_blocks_mapping(text.document_indices, text.lengths, sizes, num_samples, 40, 5, one_sentence)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_the_mapping_is_the_same_in_parts_and_compiled(pairs, monkeypatch):
    text, titles = pairs
    make = lambda: build_blocks_mapping(
        text.document_indices, text.lengths, ict_dataset.title_lengths(titles, 150, 64), 1000, 40, 5
    )
    whole = make()
    monkeypatch.setattr(ict_dataset, "DOCUMENTS_AT_A_TIME", 7)
    np.testing.assert_array_equal(make(), whole)
    monkeypatch.setattr("mt.indexed.blend.COMPILE_FROM", 0)
    np.testing.assert_array_equal(make(), whole)


def test_blocks_equal_those_of_a_loop_over_the_documents(pairs):
    text, titles = pairs
    expected = []
    for document in range(60, 150):
        first, end = (int(i) for i in text.document_indices[document : document + 2])
        sentences = list(range(first, end))
        if len(sentences) < 2 or any(text.lengths[s] > 512 for s in sentences):
            continue
        room = 64 - 3 - min(len(title(titles, document)), 32)
        while sentences:
            taken = [sentences.pop(0)]
            while sentences and not (
                sum(text.lengths[s] for s in taken) >= room and len(taken) >= 2 and len(sentences) >= 2
            ):
                taken.append(sentences.pop(0))
            expected.append((taken[0], taken[-1] + 1, document))
    dataset = IctDataset(text, titles, (60, 150), None, WORDS, 64, 3)
    order = np.argsort(dataset.sample_index[:, 3])
    assert [tuple(row) for row in dataset.sample_index[order, :3].tolist()] == expected
    assert dataset.sample_index[order, 3].tolist() == list(range(len(expected)))


def title(titles, document):
    first, end = (int(i) for i in titles.document_indices[document : document + 2])
    return [int(t) for s in range(first, end) for t in titles[s]]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("titled", [True, False])
def test_a_sample_is_a_sentence_and_the_block_it_was_taken_from(pairs, share, titled):
    text, titles = pairs[0], pairs[1] if titled else None
    dataset = IctDataset(
        text, titles, (0, 150), 2000, WORDS, 48, 3, query_in_block_prob=share, use_one_sent_docs=True
    )
    kept, queries = 0, 0
    for k in range(500):
        first, end, document, _ = dataset.sample_index[k].tolist()
        sample = {name: array.tolist() for name, array in dataset[k].items()}
        query = unpadded(sample, "query")
        sentences = [text[i].tolist() for i in range(first, end)]
        head = [1, *title(titles, document)[:24], 2] if titled else [1]
        frame = lambda chosen, head=head: [*[*head, *itertools.chain(*chosen)][:47], 2]
        whole = frame(sentences)
        without = [
            frame([s for j, s in enumerate(sentences) if j != i])
            for i, s in enumerate(sentences)
            if [1, *s[:46], 2] == query
        ]
        assert without  # the query is one of the sentences
        context = unpadded(sample, "context")
        assert context in [whole, *without]
        if len(sentences) > 1 and len(whole) < 48:
            queries, kept = queries + 1, kept + (context == whole)
    assert kept / queries == pytest.approx(share, abs=0.07)


def unpadded(sample, name):
    tokens, mask = list(sample[f"{name}_tokens"]), list(sample[f"{name}_pad_mask"])
    used = sum(mask)
    assert mask == [1] * used + [0] * (48 - used)
    assert tokens[used:] == [0] * (48 - used)
    return tokens[:used]


def test_a_title_is_truncated_to_half_a_block(tmp_path):
    random = np.random.RandomState(0)
    text = write(tmp_path / "text", random, np.array([4]), np.array([5, 6, 5, 6]))
    titles = write(tmp_path / "title", random, np.array([1]), np.array([100]))
    dataset = IctDataset(text, titles, (0, 1), None, WORDS, 32, 3, query_in_block_prob=1.0)
    tokens, mask = (dataset[0][f"context_{name}"] for name in ("tokens", "pad_mask"))
    assert tokens[:18].tolist() == [1, *titles[0][:16].tolist(), 2]
    assert 18 < mask.sum() <= 32


def test_a_batch_does_not_depend_on_earlier_batches_or_global_state(pairs):
    dataset = IctDataset(*pairs, (0, 150), 100, WORDS, 48, 3)
    batch = dataset.batch([4, 9])
    again = dataset.batch([9])
    np.testing.assert_array_equal(batch["query_tokens"][1], again["query_tokens"][0])
    other = IctDataset(*pairs, (0, 150), 100, WORDS, 48, 4)
    assert other.fingerprint != dataset.fingerprint


def test_datasets_are_built_from_prefixes_and_mistakes_are_named(pairs, tmp_path):
    text, titles = (pair.prefix for pair in pairs)
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]) + "\n"
    )
    tokenizer = load(
        TokenizerConfig(tokenizer_type="BertWordPieceLowerCase", vocab_file=str(tmp_path / "vocab.txt"))
    )
    made = lambda **more: build_ict_datasets(
        IctConfig(data_path=(text,), seq_length=48, **more), tokenizer, (10, 10, 0)
    )
    train, valid, test = made(titles_data_path=(titles,), split="50,50,0")
    assert test is None
    assert {d for d in train.sample_index[:, 2].tolist()} <= set(range(75))
    assert {d for d in valid.sample_index[:, 2].tolist()} <= set(range(75, 150))
    # from the cache
    assert (
        made(titles_data_path=(titles,), split="50,50,0")[0][3]["query_tokens"].tolist()
        == train[3]["query_tokens"].tolist()
    )
    assert made(split="50,50,0")[0].titles is None
    with pytest.raises(
        UserError,
        match=(
            r"titles_data_path names 2 and the data 1 \(.*text_sentence\); give one for each, in this order"
        ),
    ):
        made(titles_data_path=(titles, titles))
    with pytest.raises(UserError, match=r"query_in_block_prob = 1.5 must lie in"):
        made(query_in_block_prob=1.5)
    short = write(tmp_path / "short", np.random.RandomState(0), np.array([1, 1]), np.array([3, 3]))
    with pytest.raises(
        UserError,
        match=(
            r"short: has 2 documents, and .*text_sentence has 150; tokenize both from the same records:"
            r" --json-keys text title"
        ),
    ):
        made(titles_data_path=(short.prefix,))
    with pytest.raises(
        UserError,
        match=r"short: the train split gives no block: none of its 2 documents has 2 or more sentences",
    ):
        build_ict_datasets(
            IctConfig(data_path=(short.prefix,), seq_length=48, split="100,0,0"), tokenizer, (10, 0, 0)
        )
