"""RACE: its files, and a GPT's answers by likelihood."""

import json
import types

import numpy as np
import pytest

from mt.core.config import UserError, build
from mt.eval.tasks.race import MAX_BLANKS, RaceConfig, race, read_race
from mt.tests.eval.labelled_data import write_race
from mt.tests.eval.tasks.reading import read
from mt.train.model.config import ModelConfig


def test_a_gpt_answers_race_by_likelihood(tmp_path, monkeypatch, language_model):
    folder = write_race(tmp_path / "dev", 6, 4)
    gpt = types.SimpleNamespace(config=ModelConfig(), run_settings={})
    monkeypatch.setattr("mt.eval.tasks.finetune.open_checkpoint", lambda path: gpt)
    monkeypatch.setattr("mt.eval.tasks.multiple_choice.open_scorer", lambda *_, mesh: language_model)
    run = race(
        build(
            RaceConfig,
            ("test", {"load": str(tmp_path), "valid_data": [folder], "output": str(tmp_path / "out")}),
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    examples = [e for path in sorted((tmp_path / "dev").iterdir()) for e in read_race(path, None)]
    assert [line["id"] for line in lines] == [e.id for e in examples]
    for line, example in zip(lines, examples):
        prompt = f"Article: {example.second}\n\nQuestion: {example.question}\nAnswer:"
        scores = [
            language_model.loglikelihood([(list(prompt.encode()), list(f" {option}".encode()))])[0][0]
            for option in example.options
        ]
        assert line["logprobs"] == pytest.approx(scores, rel=1e-5)
        assert line["prediction"] == int(np.argmax(scores))
        assert line["prediction_per_byte"] == int(
            np.argmax([s / len(o) for s, o in zip(scores, example.options)])
        )
    assert run["scores"]["accuracy"] == pytest.approx(
        np.mean([line["prediction"] == line["label"] for line in lines])
    )
    assert {"accuracy_stderr", "accuracy_per_byte", "accuracy_per_byte_stderr"} < run["scores"].keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"x\.txt: the file is empty"),
        ("{", r"x\.txt, line 1: malformed JSON at column"),
        ('{"article": "a"}', r"x\.txt, line 1: has no 'questions' that is a list"),
        (
            '{"article": "a", "questions": ["q"], "options": [["1", "2", "3", "4", "5"]], "answers": ["A"]}',
            r"x\.txt, line 1: question 1 has 5 options; RACE has 4; mend it, or pass --on-error skip",
        ),
        (
            '{"article": "a", "questions": ["q"], "options": [["1", "2", "3", "4"]], "answers": ["E"]}',
            r"the answer of question 1 is 'E'; it must be A, B, C or D",
        ),
        (
            '{"article": "a", "questions": ["q", "r"], "options": [["1", "2", "3", "4"]], "answers": ["A"]}',
            "has 2 questions, 1 lists of options and 1 answers",
        ),
    ],
)
def test_a_bad_race_file_is_named_before_anything_is_trained(tmp_path, bert, content, message):
    write_race(tmp_path / "train", 2, 1)
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        race(
            build(
                RaceConfig,
                (
                    "test",
                    {
                        "pretrained_checkpoint": bert,
                        "train_data": [str(tmp_path / "train")],
                        "valid_data": [str(tmp_path / "x.txt")],
                        "output": str(tmp_path / "out"),
                    },
                ),
            )
        )
    assert not list((tmp_path / "out").iterdir()), "the corrected command needs no --overwrite"


QUESTION = {"article": "a", "questions": ["q"], "options": [["1", "2", "3", "4"]], "answers": ["A"]}


def test_an_option_fills_every_blank_of_a_question_or_follows_a_question_without_blanks(tmp_path):
    record = {
        "article": " The  cat . It sat\n",
        "questions": ["_ is _ .", "who ?"],
        "options": [["a", "b", " c", "d"], ["e", "f", "g", "h"]],
        "answers": ["D", "B"],
    }
    path = tmp_path / "x.txt"
    path.write_text(json.dumps(record) + "\n" + json.dumps(QUESTION | {"id": 5}) + "\n")
    (blank, plain, last), rejects = read(read_race, path)
    assert rejects == []
    assert blank.first == ("a is a .", "b is b .", "c is c .", "d is d .")
    assert plain.first == ("who ? e", "who ? f", "who ? g", "who ? h")
    assert blank.second == plain.second == "The cat. It sat"
    assert (blank.label, plain.label) == (3, 1)
    assert (blank.question, blank.options) == ("_ is _ .", ("a", "b", "c", "d"))
    assert (blank.id, plain.id, last.id) == ("x.txt:1:0", "x.txt:1:1", "5:0")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "is not a JSON object"),
        ("{", "malformed JSON at column 2"),
        (json.dumps(QUESTION | {"article": 3}), "has no 'article' that is a text"),
        (json.dumps(QUESTION | {"questions": "q"}), "has no 'questions' that is a list"),
        (json.dumps(QUESTION | {"options": {}}), "has no 'options' that is a list"),
        (json.dumps(QUESTION | {"answers": None}), "has no 'answers' that is a list"),
        (json.dumps(QUESTION | {"questions": []}), "has 0 questions, 1 lists of options and 1 answers"),
        (json.dumps(QUESTION | {"options": []}), "has 1 questions, 0 lists of options and 1 answers"),
        (json.dumps(QUESTION | {"answers": []}), "has 1 questions, 1 lists of options and 0 answers"),
        (json.dumps(QUESTION | {"questions": [1]}), "question 1 or one of its options is not a text"),
        (json.dumps(QUESTION | {"options": ["1234"]}), "question 1 or one of its options is not a text"),
        (json.dumps(QUESTION | {"options": [["1", "2", "3", 4]]}), "question 1 or one of its options is not"),
        (json.dumps(QUESTION | {"options": [["1", "2", "3"]]}), "question 1 has 3 options; RACE has 4"),
        (
            json.dumps(QUESTION | {"answers": ["AB"]}),
            "the answer of question 1 is 'AB'; it must be A, B, C or D",
        ),
        (
            json.dumps(QUESTION | {"answers": [["A"]]}),
            "the answer of question 1 is ['A']; it must be A, B, C",
        ),
    ],
)
def test_an_invalid_line_is_rejected_and_the_next_one_is_read(tmp_path, line, reason):
    path = tmp_path / "x.txt"
    path.write_text(line + "\n" + json.dumps(QUESTION) + "\n")
    examples, ((place, found),) = read(read_race, path)
    assert place == "line 1"
    assert found.startswith(reason)
    assert [e.id for e in examples] == ["x.txt:2:0"]


def test_blanks_are_filled_but_not_without_end(tmp_path):
    line = {"article": "a", "questions": ["_" * 1_000], "options": [["x" * 1_000] * 4], "answers": ["A"]}
    (tmp_path / "a.txt").write_text(json.dumps(line) + "\n")
    (example,) = read(read_race, tmp_path / "a.txt")[0]
    assert example.first[0] == "x" * 1_000 * MAX_BLANKS + "_" * (1_000 - MAX_BLANKS)
