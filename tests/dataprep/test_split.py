"""Pieces of long documents, compared with the package regex (grapheme clusters) and brute force."""

import dataclasses
import itertools
import json
import re

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.split import PARENT, SplitConfig, _clusters, count_tokens, split, split_text
from mt.dataprep.trace import WhyConfig, why
from mt.tokenizer.tokenizer import TokenizerConfig, load

PARTS = st.sampled_from(
    ["word", "a", "。", "東京", ".", "! ", " ", "\n", "\r\n", "\n\n", "\n \n", "e\u0301", " \u0301",
     "\u0600 ", "\u2029", "🇩🇪", "👩\u200d👩\u200d👧", "\u0915\u094d\u0937\u093f", "x" * 30, '."', "\0",
     "\u1100\u1161\u11a8"]
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=60).map("".join)


def cluster_ends(text):
    return {0, *(found.end() for found in regex.finditer(r"\X", text))}


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.integers(1, 40))
@example("title\n\n" + "a sentence. " * 20 + "\n\nend", 30)
@example("e" + "\u0301" * 90 + "f", 10)
def test_joined_pieces_are_the_text_and_no_cut_lies_inside_a_character(text, limit):
    pieces = split_text(text, limit)
    assert "".join(pieces) == text
    assert all(pieces) or not text
    ends = cluster_ends(text)
    end = 0
    for piece in pieces:
        assert end in ends
        end += len(piece)
        assert len(piece) <= limit or len(regex.findall(r"\X", piece)) == 1


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text("ab .", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=12))
def test_no_paragraph_that_fits_is_cut_and_pieces_are_as_long_as_they_may_be(paragraphs):
    paragraphs = [" ".join(p.split()) for p in paragraphs]
    limit = max(map(len, paragraphs))
    pieces = split_text("\n\n".join(paragraphs), limit)
    assert [p for piece in pieces for p in re.split(r"\s*\n\s*", piece.strip()) if p] == paragraphs
    for left, right in itertools.pairwise(pieces):
        first = re.split(r"(?<=\S)\n\n", right)[0]
        assert len(left) + len(first) > limit


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("One. Two. Three.", 10, ["One. Two. ", "Three."]),
        ("one two three", 8, ["one two ", "three"]),
        ("一二。三四。五六", 6, ["一二。三四。", "五六"]),
        ("a line\nanother line", 13, ["a line\n", "another line"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("π is 3.14 or so. It goes on.", 17, ["π is 3.14 or so. ", "It goes on."]),
        ("", 5, [""]),
    ],
)
def test_long_paragraphs_are_cut_at_lines_sentences_words_and_characters_in_turn(text, limit, pieces):
    assert split_text(text, limit) == pieces


def test_a_long_word_takes_linear_time():
    for unit in ("x", "\u0301", " ", "\n", ".", "。", '."'):
        counted = []

        def count(texts, counted=counted):
            counted.append(sum(map(len, texts)))
            return list(map(len, texts))

        assert "".join(split_text(unit * 300_000, 1000, count)) == unit * 300_000
        assert sum(counted) <= 8 * len(unit) * 300_000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from mt.tokenizer.train import TrainTokenizerConfig, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "in.txt").write_text(
        "the words of a text, and then the words of another text.\n\nSo on.\n" * 40
    )
    train_tokenizer(
        TrainTokenizerConfig(input=(str(folder / "in.txt"),), output=str(folder / "bpe"), vocab_size=300)
    )
    return TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder / "bpe"))


@settings(deadline=None, max_examples=50)
@given(TEXTS, st.integers(4, 30))
def test_pieces_have_no_more_tokens_than_they_may(tokenizer, text, limit):
    loaded = load(tokenizer)
    pieces = split_text(text, limit, lambda texts: count_tokens(loaded, texts))
    assert "".join(pieces) == text
    for piece in pieces:
        assert len(loaded.encode(piece)) <= limit or len(regex.findall(r"\X", piece)) == 1


BOOK = "\n\n".join(f"Paragraph {i} of the book. " + "It goes on. " * (i % 7) for i in range(60))


def config(folder, **more):
    return SplitConfig(input=(str(folder / "in.jsonl"),), output=str(folder / "out"), workers=1, **more)


def test_documents_are_cut_and_every_piece_can_be_traced(tmp_path):
    rows = [{"id": "book", "text": BOOK, "title": "A"}, {"id": "note", "text": "short", "title": "B"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = split(config(tmp_path, max_chars=500))
    found = [json.loads(line) for line in (tmp_path / "out/00000.jsonl").open()]
    *pieces, note = found
    assert note == rows[1]
    assert "".join(p["text"] for p in pieces) == BOOK
    assert [p["id"] for p in pieces] == [f"book#{n}" for n in range(len(pieces))]
    assert {(p["title"], p[PARENT]) for p in pieces} == {("A", "book")}
    assert summary["cut"] == {"documents": 1, "pieces": len(pieces)}
    assert summary["counts"]["rows_in"] == 2
    assert summary["counts"]["documents"] == len(pieces) + 1
    traced = why(WhyConfig(id="book", run_dir=(str(tmp_path / "out"),)))
    assert [(s["id"], s["reason"], s["pieces"]) for s in traced["steps"]] == [("book", "cut", len(pieces))]
    assert [k["id"] for k in traced["kept"]] == [p["id"] for p in pieces]
    one = why(WhyConfig(id="book#1", run_dir=(str(tmp_path / "out"),)))
    assert ([s["id"] for s in one["steps"]], [k["id"] for k in one["kept"]]) == (["book"], ["book#1"])


def test_the_result_does_not_depend_on_workers_and_is_not_made_twice(tmp_path):
    rows = [{"id": str(i), "text": BOOK[i:]} for i in range(120)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = config(tmp_path, max_chars=300, shard_bytes=1 << 16)
    two = dataclasses.replace(one, output=str(tmp_path / "two"), workers=2)
    assert [o["xxh3"] for o in split(one)["outputs"]] == [o["xxh3"] for o in split(two)["outputs"]]
    finished = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    split(one)
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == finished


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "max_chars = 0 and max_tokens = 0: give the length of a piece as one of them"),
        ({"max_chars": 5, "max_tokens": 5}, "give the length of a piece as one of them"),
        ({"max_chars": -1}, "give the length of a piece as one of them"),
        ({"max_tokens": 5}, "max_tokens and a tokenizer .* belong together"),
    ],
)
def test_settings_that_name_no_length_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        config(tmp_path, **settings)


@given(
    st.text("a\U0001f1e9\U0001f1ea\u0301\u200d\u0600\u0903\U0001f468\U0001f3fb\r\n\u1100\u1161 ", max_size=12)
)
def test_clusters_are_those_of_the_standard(text):
    assert list(_clusters(text)) == [found.end() for found in regex.finditer(r"\X", text)]


def test_fields_that_would_fill_the_disk_are_refused_or_set_aside(tmp_path):
    fields = {"html": "h" * 50_000}
    records = [{"id": "large", "text": "word " * 1_000, **fields}, {"id": "short", "text": "a", **fields}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = config(tmp_path, max_chars=50, max_record_bytes=1_000_000)
    with pytest.raises(UserError, match=r"document large: its 100 pieces would .* of 50,0.. bytes"):
        split(made)
    counts = split(dataclasses.replace(made, on_error="skip"))
    assert (counts["counts"]["rejected"], counts["counts"]["documents"]) == (1, 1)
    assert counts["cut"] == {}
    more = dataclasses.replace(made, max_record_bytes=6_000_000, overwrite=True)
    assert split(more)["cut"] == {"documents": 1, "pieces": 100}
