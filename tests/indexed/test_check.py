"""`mt data verify` and `mt data inspect` over small pairs."""

from pathlib import Path

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed import check
from mt.indexed.check import InspectPairConfig, VerifyConfig, inspect, verify
from mt.indexed.format import IndexedWriter
from mt.tests.indexed.small_corpora import BYTES, run


def test_verify_notices_every_changed_byte(tmp_path):
    run(tmp_path, [{"text": "ab"}, {"text": ""}, {"text": "c"}])
    prefix = tmp_path / "p_text_document"
    assert verify(VerifyConfig(prefix=str(prefix)))["checked"] == [
        "sizes, lengths, pointers and documents",
        "digests of both files",
        "every token below 512",
    ]
    for suffix in ("bin", "idx"):
        path = Path(f"{prefix}.{suffix}")
        good = path.read_bytes()
        for position in range(len(good)):
            path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            with pytest.raises(UserError):
                verify(VerifyConfig(prefix=str(prefix)))
        path.write_bytes(good)
    verify(VerifyConfig(prefix=f"{prefix}.idx"))


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize(("bad", "block"), [(512, 2), (-1, 4), (512, 1 << 20)])
def test_verify_names_a_token_outside_the_vocabulary(tmp_path, monkeypatch, bad, block, position):
    monkeypatch.setattr(check, "BLOCK", block)
    tokens = [1, 511, 0, 7, 300, 3]
    tokens[position] = bad
    writer = IndexedWriter(tmp_path / "alien", np.int32, tmp_path / "work")
    writer.add(tokens, [2, 1, 2, 1], [2, 2])
    writer.finish()
    prefix = str(tmp_path / "alien")
    assert verify(VerifyConfig(prefix=prefix))["checked"] == ["sizes, lengths, pointers and documents"]
    sequence = (0, 0, 1, 2, 2, 3)[position]
    message = rf"alien\.bin: token {bad} in sequence {sequence} is outside the vocabulary of 512"
    with pytest.raises(UserError, match=message):
        verify(VerifyConfig(prefix=prefix, **BYTES))
    run(tmp_path, [{"text": "a"}])
    with pytest.raises(UserError, match="was written with another tokenizer"):
        verify(
            VerifyConfig(
                prefix=str(tmp_path / "p_text_document"),
                tokenizer_type="ByteLevelTokenizer",
                tokenizer_vocab_size=300,
            )
        )


def test_inspect_prints_the_histogram_and_decodes_a_document(tmp_path):
    run(tmp_path, [{"text": "abc"}, {"text": ""}, {"text": ["Hello", "world!"]}])
    prefix = str(tmp_path / "p_text_document")
    summary = inspect(InspectPairConfig(prefix=prefix))
    assert summary["histogram"] == {"<= 4": 1, "<= 8": 2}
    assert (summary["documents"], summary["empty_documents"], summary["tokens"], summary["median"]) == (
        3,
        1,
        14,
        5,
    )
    assert (
        inspect(InspectPairConfig(prefix=prefix, document=0))["text"]
        == "document 0: 1 sequence, 3 tokens\n97 98 99"
    )
    assert inspect(InspectPairConfig(prefix=prefix, document=2, **BYTES))["decoded"] == ["Hello", "world!"]
    assert inspect(InspectPairConfig(prefix=prefix, document=1))["sequences"] == []
    for wrong in (3, -1):
        with pytest.raises(UserError, match=f"has no document {wrong}; it has 3, counted from 0"):
            inspect(InspectPairConfig(prefix=prefix, document=wrong))


def test_the_histogram_counts_lengths_by_powers_of_two(tmp_path):
    lengths = [1, 2, 3, 4, 5, 8, 9, 16, 17]
    writer = IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work")
    writer.add(np.zeros(sum(lengths), np.uint16), lengths, [4, 0, 5])
    writer.finish()
    summary = inspect(InspectPairConfig(prefix=str(tmp_path / "p")))
    assert summary["histogram"] == {"<= 1": 1, "<= 2": 1, "<= 4": 2, "<= 8": 2, "<= 16": 2, "<= 32": 1}
    assert [summary[n] for n in ("shortest", "median", "longest", "empty_documents")] == [1, 5, 17, 1]
    bars = [line.split()[-1] for line in summary["text"].splitlines() if line.endswith("#")]
    assert [len(bar) for bar in bars] == [20, 20, 40, 40, 40, 20]


def test_as_many_documents_as_requested_are_shown_from_first_to_last(tmp_path):
    run(tmp_path, [{"text": c} for c in "abcdefg"])
    prefix = str(tmp_path / "p_text_document")
    shown = lambda samples: inspect(InspectPairConfig(prefix=prefix, samples=samples, **BYTES))["samples"]
    assert (shown(1), shown(2), shown(4), shown(9)) == (
        ["a"],
        ["a", "g"],
        ["a", "c", "e", "g"],
        list("abcdefg"),
    )
    with pytest.raises(UserError, match="samples = -1 must not be negative"):
        InspectPairConfig(prefix=prefix, samples=-1)


def test_inspect_shows_the_beginnings_of_documents_and_numbers_their_sequences(tmp_path):
    run(tmp_path, [{"text": "y" * 32}], "fits")
    fits = InspectPairConfig(prefix=str(tmp_path / "fits_text_document"), samples=1, **BYTES)
    assert inspect(fits)["samples"] == ["y" * 32], "32 tokens are shown whole"
    run(tmp_path, [{"text": "x" * 40}, {"text": ""}, {"text": ["Hello\nyou", "world!"]}])
    prefix = str(tmp_path / "p_text_document")
    assert inspect(InspectPairConfig(prefix=prefix, samples=3, **BYTES))["samples"] == [
        "x" * 32 + " ...",
        "",
        "Hello you ...",
    ]
    said = inspect(InspectPairConfig(prefix=prefix, document=2, **BYTES))["text"]
    assert (
        said
        == "document 2: 2 sequences, 15 tokens\nsequence 1 (9 tokens): Hello\nyou\nsequence 2 (6 tokens):"
        " world!"
    )
    with pytest.raises(UserError, match="two views"):
        InspectPairConfig(prefix=prefix, samples=1, document=0)
