"""LAMBADA and WikiText: every number again by transformers, one example or one window at a time."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.eval.tasks.lambada import (
    LambadaConfig,
    Mean,
    WikitextConfig,
    lambada,
    rolling_windows,
    text_scores,
    wikitext,
)

PASSAGES = [
    "the cat sat on the mat",
    "all of it , and none of it",
    "a b",
    "naïve words – and more naïve words",
    "x " * 60 + "end",
    "trailing space ",
]


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return (str(path),)


def logprobs(gpt2, ids):
    """(len(ids) - 1, V) log-probabilities of what follows each prefix."""
    with torch.no_grad():
        return gpt2(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)


def reference(gpt2, context, continuation, longest):
    ids = (context + continuation)[-(longest + 1) :]
    table = logprobs(gpt2, ids)[-len(continuation) :]
    picked = table[range(len(continuation)), continuation]
    return float(picked.sum()), bool((table.argmax(-1) == torch.tensor(continuation)).all())


def with_planted_answers(gpt2, texts):
    """The texts, and for some of them one whose last byte is what the model expects, so that accuracy is not
    zero.
    """
    planted = []
    for text in texts[:3]:
        ids = list((text + " ").encode())[-33:]
        best = logprobs(gpt2, [*ids, 0])[-1].topk(257).indices.tolist()
        letter = next(chr(i) for i in best if i < 127 and chr(i).isalnum())
        planted.append(text + " " + letter)
    return texts + planted


def test_lambada_scores_each_passage_as_transformers_does_alone(checkpoint, gpt2, tmp_path):
    texts = with_planted_answers(gpt2, PASSAGES)
    files = write_lines(tmp_path / "passages.jsonl", texts)
    output = tmp_path / "out"
    summary = lambada(LambadaConfig(load=checkpoint, valid_data=files, output=str(output)))
    expected = {"last_token": [], "strict": []}
    for text in texts:
        word = text.split()[-1]
        ids, context = list(text.encode()), list(text[: text.rfind(word)].strip().encode())
        expected["last_token"].append(reference(gpt2, ids[:-1], ids[-1:], 32))
        expected["strict"].append(reference(gpt2, context, list((" " + word).encode()), 32))
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["word"] for line in lines] == [t.split()[-1] for t in texts]
    for name, answers in expected.items():
        assert [line[name]["correct"] for line in lines] == [hit for _, hit in answers]
        np.testing.assert_allclose(
            [line[name]["logprob"] for line in lines], [p for p, _ in answers], rtol=1e-5
        )
        hits, nats = np.array([hit for _, hit in answers], float), -np.array([p for p, _ in answers])
        scores = summary["scores"][name]
        assert scores["accuracy"] == pytest.approx(hits.mean())
        assert scores["accuracy_stderr"] == pytest.approx(hits.std(ddof=1) / math.sqrt(len(hits)))
        assert scores["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)
        assert scores["perplexity_stderr"] == pytest.approx(
            math.exp(nats.mean()) * nats.std(ddof=1) / math.sqrt(len(hits)), rel=1e-4
        )
    truncated = sum(len(text.encode()) > 33 for text in texts)
    assert truncated > 0
    assert (summary["examples"], summary["counts"]) == (len(texts), {"truncated": truncated, "rejected": 0})


@pytest.mark.parametrize(("strict", "name"), [(False, "last_token"), (True, "strict")])
def test_strict_lambada_chooses_which_score_is_the_plain_one(checkpoint, tmp_path, strict, name):
    files = write_lines(tmp_path / "passages.jsonl", PASSAGES)
    scores = lambada(LambadaConfig(load=checkpoint, valid_data=files, strict_lambada=strict))["scores"]
    assert scores["perplexity"] == scores[name]["perplexity"]
    assert scores["last_token"]["perplexity"] != scores["strict"]["perplexity"]


def test_lambada_without_an_output_writes_nothing(checkpoint, tmp_path):
    files = write_lines(tmp_path / "passages.jsonl", PASSAGES)
    before = sorted(tmp_path.rglob("*"))
    lambada(LambadaConfig(load=checkpoint, valid_data=files))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_lambada_command_again_returns_the_finished_scores(checkpoint, tmp_path, monkeypatch):
    files = write_lines(tmp_path / "passages.jsonl", PASSAGES)
    config = LambadaConfig(load=checkpoint, valid_data=files, output=str(tmp_path / "out"))
    first = lambada(config)
    monkeypatch.setattr(
        "mt.eval.tasks.lambada.open_scorer", lambda *_: pytest.fail("the model was opened again")
    )
    assert lambada(config) == first


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"", r"passages\.jsonl, line 1: the file is empty"),
        (b'{"text": "a b"}\n{"txt": "a b"}\n', r"passages\.jsonl, line 2: has no key 'text'"),
        (
            b'{"text": "a b"}\n{"text": "hello"}\n',
            r"passages\.jsonl, record 2: has 1 word; a passage needs a last word and at least one before it",
        ),
        (b'{"text": "a b"}\n{"text": "  "}\n', r"passages\.jsonl, record 2: has 0 words;"),
        (
            b'{"text": "a ' + b"b" * 50 + b'"}\n',
            r"passages\.jsonl, record 1: the last word has 51 tokens, but a sequence may have 32",
        ),
    ],
)
def test_a_lambada_line_that_cannot_be_scored_is_named(checkpoint, tmp_path, lines, message):
    (tmp_path / "passages.jsonl").write_bytes(lines)
    with pytest.raises(UserError, match=message):
        lambada(LambadaConfig(load=checkpoint, valid_data=(str(tmp_path / "passages.jsonl"),)))


def test_bad_lambada_lines_can_be_set_aside(checkpoint, tmp_path):
    path, output = tmp_path / "passages.jsonl", tmp_path / "out"
    path.write_text('{"text": "a b"}\n{"txt": 1}\n{"text": "hello"}\n{"text": "c d"}\n')
    summary = lambada(
        LambadaConfig(load=checkpoint, valid_data=(str(path),), output=str(output), on_error="skip")
    )
    assert (summary["examples"], summary["counts"]) == (2, {"truncated": 0, "rejected": 2})
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    assert [(r["place"], r["raw"]) for r in rejects] == [("line 2", '{"txt": 1}'), ("record 3", "hello")]
    path.write_text('{"text": "hello"}\n')
    with pytest.raises(UserError, match=r"no passage could be scored \(1 were set aside\)"):
        lambada(LambadaConfig(load=checkpoint, valid_data=(str(path),), on_error="skip"))


def test_a_running_mean_is_numpys():
    values = np.random.default_rng(0).normal(1e6, 1, 1000)
    mean = Mean()
    for value in values:
        mean.add(value)
    assert mean.mean == pytest.approx(values.mean(), rel=1e-12)
    assert mean.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-9)


TEXT = (
    ' = Lobster = \n \n The lobster \'s claws ( 24 in ) weigh 1 @.@ 5 – 2 kg , or " more " . Colour is blue'
    " . \n"
)


def wikitext_by_hand(gpt2, ids, seq_length, stride):
    """-log p of ids[1:], each from its window: Megatron-LM's windows, written as its dataset writes them."""
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


def test_a_sequence_may_be_longer_than_in_training_up_to_the_models_positions(checkpoint, gpt2, tmp_path):
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
    plain, undone = (
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(path), detokenizer=d))["counts"]
        for d in ("none", "wikitext")
    )
    assert plain["words"] == undone["words"]
    assert plain["bytes"] == undone["bytes"]
    assert plain["tokens"] == len(TEXT.encode())
    assert undone["tokens"] < plain["tokens"]


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_every_token_but_the_first_is_a_target_once(num_tokens, seq_length, data):
    stride = data.draw(st.integers(1, seq_length))
    targets = []
    for start, first, end in rolling_windows(num_tokens, seq_length, stride):
        assert start < first < end <= start + seq_length + 1
        targets += range(first, end)
    assert targets == list(range(1, num_tokens))


def test_the_token_ratio_of_wikitext_103_is_the_one_megatron_prints():
    scores = text_scores(np.array([3.0 * 270329]), 270329, 270329, 245566, 1_290_590)
    assert scores["token_ratio"] == 1.1008449901248143
    assert scores["word_perplexity"] == pytest.approx(math.exp(3.0 * 1.1008449901248143))
    assert scores["loss_stderr"] is None


def test_the_standard_error_of_a_loss_is_the_spread_of_resampled_blocks():
    rng = np.random.default_rng(0)
    lengths = np.full(400, 10)
    lengths[-1] = 4
    blocks = rng.normal(3, 1, 400) * lengths
    stderr = text_scores(blocks, 10, int(lengths.sum()), 100, 1000)["loss_stderr"]
    draws = rng.integers(0, 400, (4000, 400))
    resampled = blocks[draws].sum(1) / lengths[draws].sum(1)
    assert stderr == pytest.approx(resampled.std(), rel=0.05)


def test_a_short_last_block_is_no_spread():
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


def test_records_are_no_text(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: holds records, but WikiText is one plain text file"):
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(tmp_path / "a.jsonl")))


def test_a_stride_beyond_the_sequence_is_refused(checkpoint, tmp_path):
    (tmp_path / "valid.txt").write_text(TEXT)
    with pytest.raises(UserError, match="overlapping_eval = 33 must be at most seq_length = 32"):
        wikitext(WikitextConfig(load=checkpoint, valid_data=str(tmp_path / "valid.txt"), overlapping_eval=33))


def test_a_failed_evaluation_leaves_its_output_free_for_the_mended_input(checkpoint, tmp_path):
    path, output = tmp_path / "passages.jsonl", tmp_path / "out"
    for broken in ('{"text": "a b"}\n{"text": "hello"}\n', '{"text": "hello"}\n'):
        path.write_text(broken)
        with pytest.raises(UserError):
            lambada(
                LambadaConfig(
                    load=checkpoint,
                    valid_data=(str(path),),
                    output=str(output),
                    on_error="fail" if "b" in broken else "skip",
                )
            )
        assert list(output.iterdir()) == []
    path.write_text('{"text": "a b"}\n')
    assert (
        lambada(LambadaConfig(load=checkpoint, valid_data=(str(path),), output=str(output)))["examples"] == 1
    )


def test_a_record_set_aside_is_said_where_no_file_keeps_it(checkpoint, tmp_path, capsys):
    path = tmp_path / "passages.jsonl"
    path.write_text('{"text": "a b"}\n{"txt": 1}\n')
    lambada(LambadaConfig(load=checkpoint, valid_data=(str(path),), on_error="skip"))
    assert "passages.jsonl, line 2: has no key 'text' (it has 'txt'); set aside" in capsys.readouterr().err


def test_settings_out_of_range_are_all_said_at_once():
    with pytest.raises(
        UserError, match=r"micro_batch_size = 0 must be at least 1\nseq_length = -1 must be at least 1"
    ):
        LambadaConfig(load="x", valid_data=("y",), micro_batch_size=0, seq_length=-1)
    with pytest.raises(UserError, match="valid_data must name a file"):
        LambadaConfig(load="x", valid_data=())
    with pytest.raises(UserError, match="overlapping_eval = 0 must be at least 1"):
        WikitextConfig(load="x", valid_data="y", overlapping_eval=0)
