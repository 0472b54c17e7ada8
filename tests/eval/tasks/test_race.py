"""RACE: its files, and a GPT's answers by likelihood."""

import json
import types

import numpy as np
import pytest

from mt.core.config import UserError, build
from mt.eval.tasks.race import RaceConfig, race, read_race
from mt.tests.eval.labelled_data import write_race
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
def test_a_race_file_that_is_none_is_named_before_anything_is_trained(tmp_path, bert, content, message):
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
    assert not list((tmp_path / "out").iterdir()), "nothing stands in the way of the mended command"
