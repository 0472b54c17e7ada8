"""LAMBADA: every number, compared with transformers, one passage at a time."""

import json
import math

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.eval.tasks.lambada import LambadaConfig, lambada
from mt.tests.eval.tasks.oracle import logprobs

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


def reference(gpt2, context, continuation, longest):
    ids = (context + continuation)[-(longest + 1) :]
    table = logprobs(gpt2, ids)[-len(continuation) :]
    picked = table[range(len(continuation)), continuation]
    return float(picked.sum()), bool((table.argmax(-1) == torch.tensor(continuation)).all())


def with_planted_answers(gpt2, texts):
    """The texts, and three that end in the model's most probable letter, so that accuracy is not zero."""
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
def test_strict_lambada_chooses_the_main_score(checkpoint, tmp_path, strict, name):
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
        (b"", r"passages\.jsonl: no passage could be scored \(0 were set aside\); check the file"),
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


def test_a_failed_evaluation_leaves_its_output_free_for_the_corrected_input(checkpoint, tmp_path):
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


def test_without_an_output_a_record_set_aside_is_printed(checkpoint, tmp_path, capsys):
    path = tmp_path / "passages.jsonl"
    path.write_text('{"text": "a b"}\n{"txt": 1}\n')
    lambada(LambadaConfig(load=checkpoint, valid_data=(str(path),), on_error="skip"))
    told = "passages.jsonl, line 2: has no key 'text' (it has 'txt'); name the text's with --text-key"
    assert told in capsys.readouterr().err
