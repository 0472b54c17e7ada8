"""Training a tokenizer: reproducible files, compared with the library `tokenizers`."""

import json

import pytest
import tokenizers

from mt.core import config
from mt.tests.tokenizer.texts import TEXTS
from mt.tokenizer.tokenizer import PROBE, TokenizerConfig, load, load_directory
from mt.tokenizer.train import TrainTokenizerConfig, train_tokenizer


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
