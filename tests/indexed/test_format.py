"""The .bin/.idx bytes, compared with the golden example and megatron-core's reader, and damaged pairs."""

import json
import os
import pickle
import re
import shutil
import struct

import numpy as np
import pytest

from mt.core import config
from mt.indexed.format import IndexedDataset, IndexedWriter, token_dtype

TOKENS, LENGTHS, PER_DOCUMENT = [97, 98, 299, 99, 100, 101, 299], [3, 4], [1, 0, 1]


def write_pair(folder):
    writer = IndexedWriter(folder / "p", np.uint16, folder / "work")
    writer.add(np.array(TOKENS), LENGTHS, PER_DOCUMENT)
    writer.finish()
    return folder / "p"


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path)


@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_the_bytes_are_those_of_the_golden_example(megatron_golden, monkeypatch, tmp_path, block):
    monkeypatch.setattr("mt.indexed.format.BLOCK", block)
    pair = write_pair(tmp_path)
    assert [s.tolist() for s in IndexedDataset(pair)] == [TOKENS[:3], TOKENS[3:]]
    golden = megatron_golden["idx"]
    assert pair.with_suffix(".idx").read_bytes().hex() == golden["idx_hex"]
    assert pair.with_suffix(".bin").read_bytes().hex() == golden["bin_hex"]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron_core_reads_a_pair_written_in_one_call_or_several(tmp_path, dtype):
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


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_pair_that_megatron_core_wrote_is_read(tmp_path, dtype):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    random = np.random.RandomState(1)
    documents = [
        [random.randint(0, 60000, size=n) for n in random.randint(1, 9, size=sequences)]
        for sequences in (2, 0, 1, 5, 0, 0, 3)
    ]
    builder = IndexedDatasetBuilder(str(tmp_path / "p.bin"), dtype=dtype)
    for sequences in documents:
        builder.add_document(np.concatenate([np.empty(0, np.int64), *sequences]), [len(s) for s in sequences])
    builder.finalize(str(tmp_path / "p.idx"))
    data = IndexedDataset(tmp_path / "p")
    assert data.dtype == dtype
    assert data.document_indices.tolist() == [0, 2, 2, 3, 8, 8, 8, 11]
    assert [s.tolist() for s in data] == [s.tolist() for sequences in documents for s in sequences]


def test_an_index_without_documents_has_42_bytes(tmp_path):
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


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(tmp_path, pair):
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
    """Except one, which gives another valid index. Only a digest finds it: `mt data verify`."""
    good = pair.with_suffix(".idx").read_bytes()
    accepted = []
    for position in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[position] ^= 1 << bit
            pair.with_suffix(".idx").write_bytes(data)
            message = refusal(pair)
            if message is None:
                accepted.append((position, bit))
            else:
                assert message.startswith(str(pair))
                assert "\n" not in message
    # Documents [0, 1, 1, 2] become [0, 0, 1, 2]: the empty document has another position.
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
        (0, b"PK", "it is not the index of a .bin file"),
        (9, struct.pack("<Q", 2), "is of version 2; mt reads version 1"),
        (17, b"\x09", "has the dtype code 9, which must be one of 1, 2, 3, 4, 5, 6, 7, 8"),
        (18, struct.pack("<Q", 3), "has 90 bytes where its header (3 sequences, 3 documents) gives 102"),
        (26, struct.pack("<Q", 0), "has no document indices"),
        (34, struct.pack("<i", -3), "sequence 0 has the length -3"),
        (46, struct.pack("<q", 5), "sequence 0 starts at byte"),
        (50, struct.pack("<q", 8), "sequence 1 starts at byte 8, not where the one before it ends"),
        (38, struct.pack("<i", 9), "p.bin: has 14 bytes where"),
        (58, struct.pack("<q", 1), "its documents run from sequence 1 to 2, not from 0 to 2"),
        (66, struct.pack("<q", 2), "document 1 ends before it starts, at sequence 1"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_refusal_says_what_is_wrong(pair, monkeypatch, block, position, value, message):
    monkeypatch.setattr("mt.indexed.format.BLOCK", block)
    data = bytearray(pair.with_suffix(".idx").read_bytes())
    data[position : position + len(value)] = value
    pair.with_suffix(".idx").write_bytes(data)
    with pytest.raises(config.UserError) as error:
        IndexedDataset(pair)
    assert message in str(error.value)


def test_a_multimodal_index_is_refused_as_text_and_read_as_multimodal(pair):
    from megatron.core.datasets.indexed_dataset import IndexedDataset as Theirs

    path = pair.with_suffix(".idx")
    plain = path.read_bytes()
    with pytest.raises(
        config.UserError, match=r"gives 90; it is an index without modes: open it with multimodal=False"
    ):
        IndexedDataset(pair, multimodal=True)
    path.write_bytes(plain + b"\0\1")
    with pytest.raises(
        config.UserError,
        match=(r"gives 90; it is a multimodal index, not one of text: open it with multimodal=True"),
    ):
        IndexedDataset(pair)
    ours, theirs = IndexedDataset(pair, multimodal=True), Theirs(str(pair), multimodal=True)
    assert (ours.modes.tolist(), ours.modes.dtype) == ([0, 1], np.int8)
    for i in range(2):
        tokens, mode = theirs[i]
        assert (ours[i].tolist(), ours.modes[i]) == (tokens.tolist(), mode)
    assert pickle.loads(pickle.dumps(ours)).modes.tolist() == [0, 1]
    assert IndexedDataset(pair, multimodal=None).modes.tolist() == [0, 1]
    path.write_bytes(plain)
    assert IndexedDataset(pair, multimodal=None).modes is None
    path.write_bytes(plain + b"\0\1\0")
    with pytest.raises(config.UserError, match="fetch or build the pair again"):
        IndexedDataset(pair, multimodal=True)


def legacy_index(lengths, per_document, *, code=4, item=4) -> bytes:
    """An index of Megatron-LM's `lazy` and `cached` builders until 2023: IndexedDatasetBuilder.finalize."""
    out = (
        b"TNTIDX\0\0"
        + struct.pack("<QQQ", 1, code, item)
        + struct.pack("<QQQ", len(lengths), len(lengths), len(per_document) + 1)
    )
    for values in (range(len(lengths) + 1), np.cumsum([0, *lengths]), lengths, np.cumsum([0, *per_document])):
        out += b"".join(struct.pack("<q", int(v)) for v in values)
    return out


@pytest.fixture
def legacy(tmp_path):
    (tmp_path / "old.idx").write_bytes(legacy_index(LENGTHS, PER_DOCUMENT))
    (tmp_path / "old.bin").write_bytes(np.array(TOKENS, "<i4").tobytes())
    return tmp_path / "old"


def test_an_index_from_before_2023_is_read(legacy, pair):
    old, new = IndexedDataset(legacy), IndexedDataset(pair)
    assert (old.dtype, old.lengths.dtype) == (np.int32, np.int32)
    assert [s.tolist() for s in old] == [s.tolist() for s in new]
    assert old.document_indices.tolist() == new.document_indices.tolist()
    assert old.pointers.tolist() == [0, 12]
    assert old.get(1, 1, 2).tolist() == [100, 101]
    assert old.fingerprint != new.fingerprint


def test_every_flipped_bit_and_every_truncation_of_an_index_of_before_2023_is_refused(legacy):
    path = legacy.with_suffix(".idx")
    good = path.read_bytes()
    accepted = []
    for position in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[position] ^= 1 << bit
            path.write_bytes(data)
            message = refusal(legacy)
            if message is None:
                accepted.append((position, bit))
            else:
                assert message.startswith(str(legacy))
                assert "\n" not in message
    # As in test_every_flipped_bit_of_the_index_is_refused: the empty document has another position.
    assert accepted == [(56 + 8 * (3 + 3 + 2 + 1), 0)]
    for size in range(len(good)):
        path.write_bytes(good[:size])
        assert refusal(legacy)
    path.write_bytes(good + b"\0")
    assert refusal(legacy)
    path.write_bytes(good)
    data = legacy.with_suffix(".bin").read_bytes()
    for size in range(len(data)):
        legacy.with_suffix(".bin").write_bytes(data[:size])
        assert "truncated" in refusal(legacy)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            legacy_index(LENGTHS, PER_DOCUMENT, code=6, item=4),
            "has the dtype code 6 with items of 4 bytes, which no text has",
        ),
        (legacy_index(LENGTHS, PER_DOCUMENT, code=7, item=4), "has the dtype code 7 with items of 4 bytes"),
        (legacy_index(LENGTHS, PER_DOCUMENT, code=4, item=8), "has the dtype code 4 with items of 8 bytes"),
        (legacy_index([3, -4], PER_DOCUMENT), "has a sequence of -4 or 3 tokens"),
        (legacy_index([3, 5], PER_DOCUMENT), "old.bin: has 28 bytes where"),
        (legacy_index(LENGTHS, PER_DOCUMENT)[:20], "has 20 bytes, fewer than the 56 of a header"),
        (legacy_index(LENGTHS, PER_DOCUMENT)[:-8], "gives 152"),
    ],
)
def test_a_refusal_of_an_index_of_before_2023_says_what_is_wrong(legacy, index, message):
    legacy.with_suffix(".idx").write_bytes(index)
    assert message in refusal(legacy)


def test_every_changed_byte_of_a_pair_is_found_by_verify(tmp_path):
    from mt.indexed.build import TokenizeConfig, tokenize
    from mt.indexed.check import VerifyConfig, verify

    (tmp_path / "in.jsonl").write_text('{"text": "ab"}\n{"text": ""}\n{"text": "cde"}\n')
    tokenize(
        TokenizeConfig(
            input=(str(tmp_path / "in.jsonl"),),
            output_prefix=str(tmp_path / "p"),
            tokenizer_type="ByteLevelTokenizer",
            workers=1,
        )
    )
    prefix = tmp_path / "p_text_document"
    assert "complete" in verify(VerifyConfig(prefix=str(prefix)))["text"]
    for suffix in (".idx", ".bin"):
        path = prefix.with_suffix(suffix)
        good, times = path.read_bytes(), path.stat()
        for position in range(len(good)):
            for value in {0, 1, 7, 255, good[position] ^ 1, good[position] ^ 128} - {good[position]}:
                path.write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
                # a disk error does not change the modification time
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
                with pytest.raises(config.UserError, match=r"^" + re.escape(str(prefix))):
                    verify(VerifyConfig(prefix=str(prefix)))
        path.write_bytes(good)


def test_a_file_changed_after_tokenization_is_refused_and_a_copy_is_hashed_once(tmp_path, monkeypatch):
    from mt.indexed.build import TokenizeConfig, tokenize

    (tmp_path / "in.jsonl").write_text('{"text": "some text"}\n{"text": "and more"}\n')
    (tmp_path / "made").mkdir()
    tokenize(
        TokenizeConfig(
            input=(str(tmp_path / "in.jsonl"),),
            output_prefix=str(tmp_path / "made/p"),
            tokenizer_type="ByteLevelTokenizer",
            workers=1,
        )
    )
    folder = tmp_path / "copied"
    shutil.copytree(tmp_path / "made", folder, copy_function=shutil.copyfile)
    prefix = folder / "p_text_document"
    assert (
        prefix.with_suffix(".bin").stat().st_mtime_ns
        != (tmp_path / "made/p_text_document.bin").stat().st_mtime_ns
    )
    IndexedDataset(prefix)
    with monkeypatch.context() as patch:
        patch.setattr("mt.core.manifest.file_digest", None)
        IndexedDataset(prefix)
    data = bytearray(prefix.with_suffix(".bin").read_bytes())
    data[4] ^= 1
    prefix.with_suffix(".bin").write_bytes(data)
    with pytest.raises(
        config.UserError,
        match=(
            r"p_text_document.bin: its bytes are not those that `mt data tokenize` wrote on .*; fetch it"
            r" again, or run that command again"
        ),
    ):
        IndexedDataset(prefix)


def test_a_manifest_of_another_program_beside_the_data_is_ignored(pair):
    for content in ("[1]", '{"outputs": 3}', '{"outputs": [4]}', "{}"):
        (pair.parent / "manifest.json").write_text(content)
        assert len(IndexedDataset(pair)) == 2


def test_a_missing_file_is_named_with_the_prefix_rule(tmp_path):
    with pytest.raises(
        config.UserError,
        match=r"none.idx: no such file; give the prefix of a .bin/.idx pair, without extension",
    ):
        IndexedDataset(tmp_path / "none")


def test_a_writer_resumes_from_a_commit_and_drops_later_writes(tmp_path, pair):
    writer = IndexedWriter(tmp_path / "q", np.uint16, tmp_path / "work")
    writer.add(np.array(TOKENS[:3]), LENGTHS[:1], PER_DOCUMENT[:2])
    state = writer.commit()
    writer.add(np.arange(50), [20, 30], [1, 0, 1, 0])  # more than will be added again
    writer.commit()
    again = IndexedWriter(tmp_path / "q", np.uint16, tmp_path / "work", json.loads(json.dumps(state)))
    again.add(np.array(TOKENS[3:]), LENGTHS[1:], PER_DOCUMENT[2:])
    records = again.finish()
    for suffix, record in zip((".bin", ".idx"), records):
        assert (tmp_path / f"q{suffix}").read_bytes() == pair.with_suffix(suffix).read_bytes()
        assert record["bytes"] == pair.with_suffix(suffix).stat().st_size


def test_lengths_that_do_not_add_up_fail_an_assertion(tmp_path):
    writer = IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work")
    writer.add(np.array([1, 2, 3]), [2], [1])
    with pytest.raises(AssertionError, match="lengths of 4 bytes for 6 bytes of tokens"):
        writer.finish()
    assert not (tmp_path / "p.bin").exists()


def test_a_prefix_without_the_key_is_answered_with_the_prefix_that_is_there(tmp_path):
    for name in ("c_text_document", "c_title_document", "cat_text_document", "c_notes"):
        (tmp_path / f"{name}.idx").touch()
    with pytest.raises(config.UserError, match=r"mean \S+/c_text_document\? \(and 1 more that begin so\)$"):
        IndexedDataset(tmp_path / "c")
    with pytest.raises(config.UserError, match=r"did you mean \S+/cat_text_document\?$"):
        IndexedDataset(tmp_path / "cat")
    with pytest.raises(config.UserError, match=r"give the prefix of a .bin/.idx pair, without"):
        IndexedDataset(tmp_path / "c_notes_")
