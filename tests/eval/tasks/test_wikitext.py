"""WikiText: every number, compared with transformers, one window at a time."""

import contextlib
import json
import math

import numpy as np
import pytest

from mt.core.config import UserError
from mt.eval.lm import LanguageModel
from mt.eval.tasks.wikitext import WikitextConfig, text_scores, wikitext
from mt.tests.eval.tasks.oracle import logprobs

TEXT = (
    ' = Lobster = \n \n The lobster \'s claws ( 24 in ) weigh 1 @.@ 5 – 2 kg , or " more " . Colour is blue'
    " . \n"
)


def wikitext_by_hand(gpt2, ids, seq_length, stride):
    """-log p of ids[1:], each from its window, with windows and masks as in Megatron-LM's dataset."""
    nats = {}
    count = max(math.ceil(max(len(ids) - 1 - stride, 0) / stride) + 1, 1)
    for i in range(count):
        window = ids[i * stride : i * stride + seq_length + 1]
        padded = window + [256] * (seq_length + 1 - len(window))
        mask = [1] * (len(window) - 1) + [0] * (seq_length + 1 - len(window))
        if i > 0:
            mask[: seq_length - stride] = [0] * (seq_length - stride)
        if not any(mask):
            continue
        table = logprobs(gpt2, padded)
        for position, scored in enumerate(mask):
            if scored:
                target = i * stride + position + 1
                assert target not in nats, "a target must be scored once"
                nats[target] = -float(table[position, ids[target]])
    return np.array([nats[target] for target in range(1, len(ids))])


@pytest.mark.parametrize("stride", [None, 1, 7, 16, 32])
def test_wikitext_is_megatrons_loss_at_any_stride(checkpoint, gpt2, tmp_path, stride):
    path, output = tmp_path / "valid.txt", tmp_path / "out"
    path.write_text(TEXT)
    summary = wikitext(
        WikitextConfig(load=checkpoint, valid_data=str(path), overlapping_eval=stride, output=str(output))
    )
    nats = wikitext_by_hand(gpt2, list(TEXT.encode()), 32, stride or 32)
    words, scores = len(TEXT.strip().split(" ")), summary["scores"]
    assert scores["loss"] == pytest.approx(nats.mean(), rel=1e-6)
    assert scores["token_perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert scores["word_perplexity"] == pytest.approx(math.exp(nats.sum() / (words - 1)), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / len(TEXT.encode()), rel=1e-6)
    assert scores["token_ratio"] == len(nats) / (words - 1)
    assert summary["examples"] == len(nats)
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert sum(line["tokens"] for line in lines) == len(nats)
    assert sum(line["logprob"] for line in lines) == pytest.approx(-nats.sum(), rel=1e-6)


def test_the_bar_counts_the_windows_of_articles_too_and_ends_with_the_last_forward_pass(
    checkpoint, tmp_path, monkeypatch
):
    (tmp_path / "valid.txt").write_text(3 * TEXT)
    totals, done = [], []

    @contextlib.contextmanager
    def progress(label, total, unit):
        totals.append(total)
        yield done.append

    forward = LanguageModel._score_batch
    at_forward = []
    monkeypatch.setattr("mt.eval.tasks.wikitext.progress", progress)
    monkeypatch.setattr(
        LanguageModel, "_score_batch", lambda *given: (at_forward.append(sum(done)), forward(*given))[1]
    )
    wikitext(WikitextConfig(load=checkpoint, valid_data=str(tmp_path / "valid.txt"), micro_batch_size=2))
    assert totals == [sum(done)]
    assert at_forward[-1] >= totals[0] - 2, "nothing is scored after the bar is full"


def test_a_sequence_may_be_longer_than_in_training_but_not_than_the_models_positions(
    checkpoint, gpt2, tmp_path
):
    path = tmp_path / "valid.txt"
    path.write_text(TEXT)
    summary = wikitext(WikitextConfig(load=checkpoint, valid_data=str(path), seq_length=64))
    assert summary["scores"]["loss"] == pytest.approx(
        wikitext_by_hand(gpt2, list(TEXT.encode()), 64, 64).mean(), rel=1e-6
    )
    with pytest.raises(UserError, match="seq_length = 65 must be at most the 64 positions of the model in"):
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(path), seq_length=65))


def test_the_detokenizer_changes_the_tokens_but_not_the_words(checkpoint, tmp_path):
    path = tmp_path / "valid.txt"
    path.write_text(TEXT)
    plain, detokenized = (
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(path), detokenizer=d))["counts"]
        for d in ("none", "wikitext")
    )
    assert plain["words"] == detokenized["words"]
    assert plain["bytes"] == detokenized["bytes"]
    assert plain["tokens"] == len(TEXT.encode())
    assert detokenized["tokens"] < plain["tokens"]


def test_the_token_ratio_of_wikitext_103_is_megatrons():
    scores = text_scores(np.array([3.0 * 270329]), 270329, 270329, 245566, 1_290_590)
    assert scores["token_ratio"] == 1.1008449901248143
    assert scores["word_perplexity"] == pytest.approx(math.exp(3.0 * 1.1008449901248143))
    assert scores["loss_stderr"] is None


def test_the_standard_error_of_a_loss_is_the_standard_deviation_of_resampled_blocks():
    rng = np.random.default_rng(0)
    lengths = np.full(400, 10)
    lengths[-1] = 4
    blocks = rng.normal(3, 1, 400) * lengths
    stderr = text_scores(blocks, 10, int(lengths.sum()), 100, 1000)["loss_stderr"]
    draws = rng.integers(0, 400, (4000, 400))
    resampled = blocks[draws].sum(1) / lengths[draws].sum(1)
    assert stderr == pytest.approx(resampled.std(), rel=0.05)


def test_a_short_last_block_does_not_add_to_the_standard_error():
    blocks = 3.0 * np.array([10, 10, 10, 4])
    assert text_scores(blocks, 10, 34, 20, 100)["loss_stderr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"valid\.txt: the file is empty"),
        (b" \n \n", r"valid\.txt: the file is empty"),
        (b"word", r"valid\.txt: words = 1 and tokens = 4; a perplexity needs two of each"),
        (b"two w\xffrds", r"valid\.txt: byte 5 is not UTF-8"),
    ],
)
def test_a_text_that_cannot_be_scored_is_named(checkpoint, tmp_path, content, message):
    (tmp_path / "valid.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(tmp_path / "valid.txt")))


def test_a_file_of_records_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: holds records, but WikiText is one plain text file"):
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(tmp_path / "a.jsonl")))


def test_a_stride_longer_than_the_sequence_is_refused(checkpoint, tmp_path):
    (tmp_path / "valid.txt").write_text(TEXT)
    with pytest.raises(UserError, match="overlapping_eval = 33 must be at most seq_length = 32"):
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(tmp_path / "valid.txt"), overlapping_eval=33))
