"""Training a tokenizer: reproducible files, compared with the library `tokenizers`."""

import json
import random

import pytest
import regex
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from mt.core import config
from mt.tests.tokenizer.texts import TEXTS
from mt.tokenizer import train
from mt.tokenizer.tokenizer import PROBE, TokenizerConfig, load, load_directory
from mt.tokenizer.train import TrainTokenizerConfig, cut_long_words, train_tokenizer


def test_training_is_reproducible_and_both_file_formats_give_the_same_ids(tmp_path, documents, trained):
    train_tokenizer(
        TrainTokenizerConfig(input=(str(documents),), output=str(tmp_path / "again"), vocab_size=400)
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()
    a = load(TokenizerConfig(tokenizer_model=str(trained)))
    b = load(TokenizerConfig(vocab_file=str(trained / "vocab.json"), merge_file=str(trained / "merges.txt")))
    assert a.encode(PROBE) == b.encode(PROBE)
    assert (a.eod, a.vocab_size) == (b.eod, b.vocab_size) == (0, 400)
    assert len(a.encode(TEXTS[0])) < len(TEXTS[0]) / 2, "merges have been learned from the text"


def test_a_sample_is_drawn_from_the_whole_input(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {i} " * 20}) + "\n" for i in range(2000)))
    made = train_tokenizer(
        TrainTokenizerConfig(
            input=(str(path),),
            output=str(tmp_path / "tok"),
            vocab_size=300,
            sample_bytes=path.stat().st_size // 4,
        )
    )
    assert 400 < made["counts"]["documents"] < 600


def test_the_ids_are_those_of_the_library_trained_on_the_same_texts(trained):
    from tokenizers import decoders, models, pre_tokenizers, trainers

    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            min_frequency=2,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    ours = load_directory(trained)
    for text in [*TEXTS, PROBE]:
        assert ours.encode(text) == theirs.encode(text).ids


def test_the_manifest_counts_documents_and_bytes_and_a_second_run_is_up_to_date(tmp_path, documents, trained):
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["counts"] == {
        "documents": len(TEXTS),
        "text_bytes": sum(len(text.encode()) for text in TEXTS),
        "rejected": 0,
        "long_words": 0,
        "vocab_size": 400,
    }
    before = (trained / "manifest.json").stat().st_mtime_ns
    again = train_tokenizer(
        TrainTokenizerConfig(input=(str(documents),), output=str(trained), vocab_size=400)
    )
    assert again == manifest
    assert (trained / "manifest.json").stat().st_mtime_ns == before


def test_unreadable_records_end_the_run_or_are_set_aside(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "some text, some text"}\n{"body": 1}\n')
    config_of = lambda **how: TrainTokenizerConfig(
        input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "tok"), **how
    )
    with pytest.raises(config.UserError, match=r"in\.jsonl, line 2: has no key 'text'"):
        train_tokenizer(config_of())
    made = train_tokenizer(config_of(on_error="skip"))
    assert (made["counts"]["documents"], made["counts"]["rejected"]) == (1, 1)
    (reject,) = (tmp_path / "tok/rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["place"] == "line 2"


def test_input_without_text_and_settings_out_of_range_are_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n')
    fine = {"input": (str(tmp_path / "in.jsonl"),), "output": str(tmp_path / "tok")}
    with pytest.raises(config.UserError, match=r"in\.jsonl: holds no text to learn from; check the input"):
        train_tokenizer(TrainTokenizerConfig(**fine))
    with pytest.raises(config.UserError, match="vocab_size = 257 must be more than the 256 bytes"):
        TrainTokenizerConfig(**fine, vocab_size=257)
    with pytest.raises(config.UserError, match="sample_bytes = 0 must be at least 1"):
        TrainTokenizerConfig(**fine, sample_bytes=0)


@given(
    st.lists(
        st.sampled_from(
            ["a", "Z", "9", "\xb2", " ", "\n", "-", "_", "\u4e2d", "\u0e31", "\u0301", "'s"]
        ).flatmap(lambda unit: st.integers(1, 25).map(lambda n: unit * n)),
        max_size=12,
    ).map("".join)
)
@example(" " * 11 + "a")
@example("'s" + "a" * 10)
def test_only_long_words_are_cut_and_no_longer_ones_remain(text):
    from tokenizers import pre_tokenizers

    split = lambda text: [text[a:b] for _, (a, b) in by_library.pre_tokenize_str(text)]
    by_library = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "MAX_WORD_CHARS", 10)
        patch.setattr(train, "HALF", regex.compile(train.HALF.pattern.replace("{500}", "{5}")))
        pieces, long_words = cut_long_words(text)
    assert "".join(pieces) == text
    whole, cut = split(text), [word for piece in pieces for word in split(piece)]
    assert max(map(len, cut), default=0) <= 11, "ten characters and the space before them"
    # a row of letters may begin with that of a contraction, and one of spaces may end with that of a word
    if max(map(len, whole), default=0) <= 10 - len("re"):
        assert pieces == [text]
        assert long_words == 0


def test_a_word_of_three_million_letters_is_cut_and_counted(tmp_path):
    letters = "".join(random.Random(1).choices("acgt", k=300_000))
    records = [
        {"text": "ordinary words, ordinary words " * 50},
        {"text": letters * 10},
        {"text": " " * 5_000},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = train_tokenizer(
        TrainTokenizerConfig(
            input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "tok"), vocab_size=300
        )
    )
    assert made["counts"]["long_words"] == 2
    assert made["counts"]["vocab_size"] == 300
