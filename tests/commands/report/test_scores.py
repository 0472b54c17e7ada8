"""Sentences about scores."""

import math

import pytest

from mt.commands.report.scores import scores, sentence


@pytest.mark.parametrize(
    ("verb", "metric", "value", "words"),
    [
        ("eval lambada", "accuracy", 0.0325, "the last word of 3.2% of the passages"),
        ("eval race", "accuracy", 0.5, "50.0% of the answers are right"),
        ("eval wikitext", "bits_per_byte", 2.27, "compressed to 2.27 bits a byte"),
        ("eval retrieval", "recall@20", 0.125, "For 12.5% of the questions one of the 20 best blocks"),
        ("eval harness", "acc", 0.25, "25.0% of the answers"),
        ("eval qa", "f1", 0.25, "the best expected answer"),
        ("eval mnli", "f1", 0.25, "precision and recall"),
        ("eval wikitext", "loss", math.nan, "Not a finite number"),
    ],
)
def test_a_score_has_a_sentence_with_its_value(verb, metric, value, words):
    assert words in sentence(verb, metric, value)


def test_scores_of_tasks_are_named_with_their_task_and_errors_stand_beside_them():
    manifest = {
        "verb": "eval harness",
        "scores": {
            "arc": {"acc": 0.5, "acc_stderr": 0.125, "own": 3},
            "loss": 2.5,
            "loss_stderr": None,
            "n": "x",
        },
    }
    found = {s["name"]: (s["shown"], s["error"], bool(s["sentence"])) for s in scores(manifest)}
    assert found == {
        "arc acc": ("0.5", "0.125", True),
        "arc own": ("3", None, False),
        "loss": ("2.5", None, True),
        "n": ("x", None, False),
    }
