"""Merged pairs, compared with a tokenization of all inputs at once and megatron-core's builder."""

import shutil

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.check import InspectPairConfig, VerifyConfig, inspect, verify
from mt.indexed.format import IndexedDataset
from mt.indexed.merge import MergeConfig, merge
from mt.tests.indexed.small_corpora import BYTES, files, prose, run, write


def test_a_merge_equals_the_tokenization_of_all_inputs_in_order(tmp_path):
    parts = [prose(50, seed) for seed in range(3)]
    for i, records in enumerate(parts):
        run(tmp_path, records, f"part{i}", append_eod=True)
    run(tmp_path, [r for records in parts for r in records], "all", append_eod=True)
    merged = merge(
        MergeConfig(
            input=tuple(str(tmp_path / f"part{i}_text_document") for i in range(3)),
            output_prefix=str(tmp_path / "merged"),
        )
    )
    assert files(tmp_path / "merged") == files(tmp_path / "all_text_document")
    assert merged["counts"]["documents"] == 150
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in tmp_path.glob("part*_text_document.*"):
        shutil.copy(path, folder)
    merge(MergeConfig(input=(str(folder),), output_prefix=str(tmp_path / "folder_merged")))
    assert files(tmp_path / "folder_merged") == files(tmp_path / "merged")
    assert "every token below 512" in verify(VerifyConfig(prefix=str(tmp_path / "merged")))["text"]


def test_a_prefix_that_names_a_folder_or_a_weight_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    run(tmp_path, write(tmp_path / "a.jsonl", prose(5)), "pairs/a")
    for prefix in ("", "/", ".", "..", "out/", "out/.", "out/.."):
        with pytest.raises(UserError, match=r"output_prefix = .* names a folder; .* as in .*data"):
            MergeConfig(input=("pairs",), output_prefix=prefix)
    with pytest.raises(UserError, match=r"^0\.5\.idx: no such file; 0\.5 is a number where the prefix"):
        merge(MergeConfig(input=("0.5", "pairs/a_text_document"), output_prefix="out"))
    for prefix in ("pairs", "pairs/"):
        with pytest.raises(UserError, match=r"is a folder; .* such as pairs/a_text_document$"):
            verify(VerifyConfig(prefix=prefix))
    with pytest.raises(UserError, match=r"a_text_document\.idx/\.idx: no such file"):
        verify(VerifyConfig(prefix="pairs/a_text_document.idx/"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "pairs"]


def multimodal(prefix, lengths, modes):
    """A pair of one document as megatron-core's builder writes multimodal data; images hold any int32."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    random = np.random.RandomState(len(lengths))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32, multimodal=True)
    builder.add_document(
        np.concatenate(
            [random.randint(-999 if m else 0, 999 if m else 200, n) for n, m in zip(lengths, modes)]
        ),
        lengths,
        modes,
    )
    builder.finalize(f"{prefix}.idx")


def test_multimodal_pairs_are_merged_verified_and_shown_as_by_megatron_core(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    multimodal(tmp_path / "a", [3, 4], [0, 1])
    multimodal(tmp_path / "b", [2, 5, 1], [0, 1, 0])
    pairs = tuple(str(tmp_path / name) for name in "ab")
    merge(MergeConfig(input=pairs, output_prefix=str(tmp_path / "ours")))
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32, multimodal=True)
    for pair in pairs:
        builder.add_index(pair)
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    found = verify(VerifyConfig(prefix=str(tmp_path / "ours"), **BYTES))
    assert (found["multimodal"], found["counts"]["sequences"]) == (True, 5)
    assert "every token below 512" in found["text"], "the bytes of images are no tokens"
    assert inspect(InspectPairConfig(prefix=str(tmp_path / "ours")))["modes"] == {"0": 3, "1": 2}
    assert inspect(InspectPairConfig(prefix=str(tmp_path / "ours"), document=1))["modes"] == [0, 1, 0]
    run(tmp_path, [{"text": "1 70000"}], "text", tokenizer_type="NullTokenizer", tokenizer_vocab_size=100000)
    with pytest.raises(
        UserError,
        match=(
            r"text_text_document: lacks the modes of multimodal data, unlike those before it; merge the two"
            r" kinds apart"
        ),
    ):
        merge(
            MergeConfig(
                input=(pairs[0], str(tmp_path / "text_text_document")), output_prefix=str(tmp_path / "m")
            )
        )


def test_tokens_are_synced_while_more_are_merged_and_a_failed_sync_ends_the_merge(tmp_path, monkeypatch):
    monkeypatch.setattr("mt.indexed.merge.SYNC_BYTES", 1)
    run(tmp_path, prose(50), "a")
    pair = str(tmp_path / "a_text_document")
    merge(MergeConfig(input=(pair, pair), output_prefix=str(tmp_path / "m")))
    assert files(tmp_path / "m")[0] == 2 * files(pair)[0]

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mt.indexed.format.IndexedWriter.sync_tokens", full)
    with pytest.raises(OSError, match="No space left"):
        merge(MergeConfig(input=(pair,), output_prefix=str(tmp_path / "n")))
    assert not (tmp_path / "n.bin").exists()


def test_a_merge_replaces_no_input_and_no_other_pair(tmp_path):
    run(tmp_path, [{"text": "a"}], append_eod=True)
    prefix, before = str(tmp_path / "p_text_document"), files(tmp_path / "p_text_document")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="p_text_document is one of the inputs; choose another output"):
            merge(MergeConfig(input=(prefix, prefix), output_prefix=prefix, overwrite=overwrite))
    assert files(tmp_path / "p_text_document") == before
    (tmp_path / "m.bin").write_bytes(b"precious")
    twice = {"input": (prefix, prefix), "output_prefix": str(tmp_path / "m")}
    with pytest.raises(UserError, match=r"m.bin: exists already"):
        merge(MergeConfig(**twice))
    assert (tmp_path / "m.bin").read_bytes() == b"precious"
    merge(MergeConfig(**twice, overwrite=True))
    assert IndexedDataset(tmp_path / "m").num_documents == 2


def test_a_merge_of_two_dtypes_is_refused(tmp_path):
    run(tmp_path, [{"text": "1 2"}], "small")
    run(tmp_path, [{"text": "1 70000"}], "large", tokenizer_type="NullTokenizer", tokenizer_vocab_size=100000)
    with pytest.raises(
        UserError,
        match=r"large_text_document: its tokens are int32, those of .*small_text_document uint16",
    ):
        merge(
            MergeConfig(
                input=(str(tmp_path / "small_text_document"), str(tmp_path / "large_text_document")),
                output_prefix=str(tmp_path / "m"),
            )
        )


def test_a_merge_of_two_tokenizers_is_refused(tmp_path):
    run(tmp_path, [{"text": "1 2"}], "a")
    run(tmp_path, [{"text": "1 2"}], "b", tokenizer_type="NullTokenizer", tokenizer_vocab_size=512)
    with pytest.raises(
        UserError, match=r"b_text_document: was written with another tokenizer than .*a_text_document"
    ):
        merge(
            MergeConfig(
                input=(str(tmp_path / "a_text_document"), str(tmp_path / "b_text_document")),
                output_prefix=str(tmp_path / "m"),
            )
        )
