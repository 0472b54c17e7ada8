"""The .bin/.idx bytes, beside the golden example, megatron-core's reader, and every way to damage them."""

import json
import struct

import numpy as np
import pytest

from mt import config
from mt.indexed.format import IndexedDataset, IndexedWriter, token_dtype

TOKENS, LENGTHS, PER_DOCUMENT = [97, 98, 299, 99, 100, 101, 299], [3, 4], [1, 0, 1]


@pytest.fixture
def pair(tmp_path):
    writer = IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work")
    writer.add(np.array(TOKENS), LENGTHS, PER_DOCUMENT)
    writer.finish()
    return tmp_path / "p"


def test_the_bytes_are_those_of_the_golden_example(shared, pair):
    golden = json.loads((shared / "reference/megatron_golden.json").read_text())["idx"]
    assert pair.with_suffix(".idx").read_bytes().hex() == golden["idx_hex"]
    assert pair.with_suffix(".bin").read_bytes().hex() == golden["bin_hex"]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron_core_reads_what_is_written_however_it_was_added(tmp_path, dtype):
    from megatron.core.datasets.indexed_dataset import IndexedDataset as Theirs

    random = np.random.RandomState(0)
    lengths = random.randint(1, 50, size=200)
    per_document = random.multinomial(200, [1 / 120] * 120)
    tokens = random.randint(0, 60000, size=lengths.sum())
    writer = IndexedWriter(tmp_path / "p", dtype, tmp_path / "work")
    for part in np.array_split(tokens, 7):
        writer.add(part, (), ())
    for part in np.array_split(lengths, 3):
        writer.add((), part, ())
    for part in np.array_split(per_document, 5):
        writer.add((), (), part)
    writer.finish()
    ours, theirs = IndexedDataset(tmp_path / "p"), Theirs(str(tmp_path / "p"))
    assert len(ours) == len(theirs) == 200
    assert np.array_equal(ours.document_indices, theirs.document_indices)
    assert np.array_equal(ours.lengths, theirs.sequence_lengths)
    cuts = np.split(tokens, np.cumsum(lengths)[:-1])
    for i in range(200):
        assert np.array_equal(ours[i], cuts[i])
        assert np.array_equal(theirs[i], cuts[i])
        assert np.array_equal(ours.get(i, 1), theirs.get(i, 1))
    assert np.array_equal(ours.get(7, 0, 1), cuts[7][:1])
    assert ours[3].dtype == theirs[3].dtype == dtype


def test_what_megatron_wrote_is_read(shared):
    from megatron.core.datasets.indexed_dataset import IndexedDataset as Theirs

    for name in ("inputs", "targets"):
        prefix = str(shared / f"data/megatron/ag_news_prompt_{name}_document")
        ours, theirs = IndexedDataset(prefix), Theirs(prefix)
        assert [s.tolist() for s in ours] == [theirs[i].tolist() for i in range(len(theirs))]


def test_no_documents_make_an_index_of_42_bytes(tmp_path):
    IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work").finish()
    assert (tmp_path / "p.idx").stat().st_size == 42
    empty = IndexedDataset(tmp_path / "p")
    assert (len(empty), empty.num_documents, len(empty.tokens)) == (0, 0, 0)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, np.uint16), (65500, np.int32), (65536, np.int32)])
def test_the_dtype_follows_megatrons_rule(vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype


def test_a_read_beyond_a_sequence_is_an_error(pair):
    dataset = IndexedDataset(pair)
    assert dataset.get(1, 4).tolist() == []
    for bad in [(0, 0, 4), (0, 4), (0, -1), (1, 2, 3)]:
        with pytest.raises(IndexError):
            dataset.get(*bad)
    with pytest.raises(IndexError):
        dataset[2]
    with pytest.raises(ValueError, match="read-only"):
        dataset[0][0] = 1


def test_the_fingerprint_is_that_of_the_content_not_of_the_place(tmp_path, pair):
    first = IndexedDataset(pair).fingerprint
    for suffix in (".bin", ".idx"):
        (tmp_path / f"copy{suffix}").write_bytes(pair.with_suffix(suffix).read_bytes())
    assert IndexedDataset(tmp_path / "copy").fingerprint == first
    data = bytearray((tmp_path / "copy.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "copy.bin").write_bytes(data)
    assert IndexedDataset(tmp_path / "copy").fingerprint != first


def refusal(prefix):
    try:
        IndexedDataset(prefix)
    except config.UserError as error:
        return str(error)
    return None


def test_every_flipped_bit_of_the_index_is_refused(pair):
    """But one, which makes another index in good order; only a digest tells it (test_build.py: verify)."""
    good = pair.with_suffix(".idx").read_bytes()
    accepted = []
    for position in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[position] ^= 1 << bit
            pair.with_suffix(".idx").write_bytes(data)
            said = refusal(pair)
            if said is None:
                accepted.append((position, bit))
            else:
                assert said.startswith(str(pair))
                assert "\n" not in said
    # Documents [0, 1, 1, 2] become [0, 0, 1, 2]: the empty document changes its place.
    assert accepted == [(34 + 12 * len(LENGTHS) + 8, 0)]


def test_every_truncation_is_refused(pair):
    for suffix in (".idx", ".bin"):
        path = pair.with_suffix(suffix)
        good = path.read_bytes()
        for size in range(len(good)):
            path.write_bytes(good[:size])
            with pytest.raises(config.UserError):
                IndexedDataset(pair)
        path.write_bytes(good + b"\0")
        with pytest.raises(config.UserError):
            IndexedDataset(pair)
        path.write_bytes(good)
    IndexedDataset(pair)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, b"TNTIDX\0\0", "in the format of before 2023 (TNTIDX)"),
        (0, b"PK", "it is not the index of a .bin file"),
        (9, struct.pack("<Q", 2), "is of version 2; mt reads version 1"),
        (17, b"\x09", "has the dtype code 9, which must be one of 1, 2, 3, 4, 5, 6, 7, 8"),
        (18, struct.pack("<Q", 3), "has 90 bytes where its header (3 sequences, 3 documents) makes 102"),
        (26, struct.pack("<Q", 0), "has no document indices"),
        (34, struct.pack("<i", -3), "sequence 0 has the length -3"),
        (46, struct.pack("<q", 5), "sequence 0 starts at byte"),
        (50, struct.pack("<q", 8), "sequence 1 starts at byte 8, not where the one before it ends"),
        (38, struct.pack("<i", 9), "p.bin: has 14 bytes where"),
        (58, struct.pack("<q", 1), "its documents run from sequence 1 to 2, not from 0 to 2"),
        (66, struct.pack("<q", 2), "document 1 ends before it starts, at sequence 1"),
    ],
)
def test_a_refusal_says_what_is_wrong(pair, position, value, message):
    data = bytearray(pair.with_suffix(".idx").read_bytes())
    data[position : position + len(value)] = value
    pair.with_suffix(".idx").write_bytes(data)
    with pytest.raises(config.UserError) as error:
        IndexedDataset(pair)
    assert message in str(error.value)


def test_a_multimodal_index_is_named(pair):
    path = pair.with_suffix(".idx")
    path.write_bytes(path.read_bytes() + b"\0\1")
    with pytest.raises(config.UserError, match="a multimodal index, which mt does not read"):
        IndexedDataset(pair)


def test_a_missing_file_is_named_with_the_prefix_rule(tmp_path):
    with pytest.raises(config.UserError, match=r"none.idx: no such file; give the prefix of a .bin/.idx pair, without extension"):
        IndexedDataset(tmp_path / "none")


def test_a_writer_goes_on_from_a_commit_whatever_was_written_after_it(tmp_path, pair):
    writer = IndexedWriter(tmp_path / "q", np.uint16, tmp_path / "work")
    writer.add(np.array(TOKENS[:3]), LENGTHS[:1], PER_DOCUMENT[:2])
    state = writer.commit()
    writer.add(np.arange(50), [20, 30], [1, 0, 1, 0])  # more than is still to come
    writer.commit()
    again = IndexedWriter(tmp_path / "q", np.uint16, tmp_path / "work", json.loads(json.dumps(state)))
    again.add(np.array(TOKENS[3:]), LENGTHS[1:], PER_DOCUMENT[2:])
    records = again.finish()
    for suffix, record in zip((".bin", ".idx"), records):
        assert (tmp_path / f"q{suffix}").read_bytes() == pair.with_suffix(suffix).read_bytes()
        assert record["bytes"] == pair.with_suffix(suffix).stat().st_size


def test_lengths_that_do_not_add_up_are_our_mistake(tmp_path):
    writer = IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work")
    writer.add(np.array([1, 2, 3]), [2], [1])
    with pytest.raises(AssertionError, match="lengths of 4 bytes for 6 bytes of tokens"):
        writer.finish()
    assert not (tmp_path / "p.bin").exists()
