"""Files of questions in every format, and the records that are refused."""

import csv
import json

import pytest

from mt.core.config import UserError
from mt.indexed.questions import read_questions


def fail(reject):
    raise AssertionError(reject)


def test_every_format_of_a_file_gives_the_same_questions(tmp_path):
    records = [
        {"question": 'who is "he"?', "answers": ["Anne's", 'a "b"']},
        {"question": "where?", "answers": ["Paris"]},
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    (tmp_path / "a.tsv").write_text("".join(f"{r['question']}\t{r['answers']!r}\n" for r in records))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([r["question"], r["answers"]] for r in records)
    for extension in ("json", "jsonl", "tsv", "csv"):
        found = list(read_questions(tmp_path / f"a.{extension}", fail))
        assert [(q.text, q.answers) for q in found] == [(r["question"], tuple(r["answers"])) for r in records]
        assert [q.id for q in found] == [f"a.{extension}:1", f"a.{extension}:2"]


def test_answers_passages_and_options_of_every_kind_are_read(tmp_path):
    records = [
        {"question": "q", "answers": [{"text": " x "}], "ctxs": [{"text": "S"}]},
        {"question": "q", "answer": ["y", "z"], "sub_paragraph": "P"},
        {"question": "q", "answer": True},
        {"question": "q", "longform_answer": "long"},
        {"question": "q", "answer": "A", "qa_type": "multi_choice_qa", "multichoice_options": ["one", "two"]},
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    first, second, third, fourth, fifth = read_questions(tmp_path / "a.json", fail)
    assert (first.answers, first.passages, first.given) == (("x",), ("title: , source: S",), ())
    assert (second.answers, second.given) == (("y", "z"), ("title: , source: P",))
    assert (third.answers, fourth.answers) == (("True",), ("long",))
    assert fifth.text == "q\nChoose one based on the following options: (A) one (B) two"


GOOD = {"question": "q", "answers": ["a"]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("q", "is not a JSON object"),
        ({"answers": ["a"]}, "has no 'question' that is a text"),
        ({"question": "  ", "answers": ["a"]}, "has no 'question' that is a text"),
        ({"question": "q"}, "has neither 'answers' nor 'answer'"),
        ({"question": "q", "answers": []}, "has no answers"),
        ({"question": "q", "answers": ["a", 3]}, "the answer 3 is not a text"),
        ({"question": "q", "answers": [{"no": "text"}]}, "the answer None is not a text"),
        ({**GOOD, "ctxs": "S"}, "'ctxs' is not a list of objects with a title and a text"),
        ({**GOOD, "ctxs": [{"title": "T"}]}, "'ctxs' is not a list of objects with a title and a text"),
        ({**GOOD, "ctxs": [{"title": 1, "text": "S"}]}, "'ctxs' is not a list of objects"),
        (
            {**GOOD, "sub-paragraphs": ["T"]},
            "'sub-paragraphs' is neither a text nor a list of title and text",
        ),
        ({**GOOD, "sub-paragraphs": 7}, "'sub-paragraphs' is neither a text nor a list of title and text"),
        ({**GOOD, "qa_type": "multi_choice_qa"}, "is of qa_type multi_choice_qa and has no list of"),
        ({**GOOD, "qa_type": "multi_choice_qa", "multichoice_options": [1]}, "is of qa_type multi_choice_qa"),
    ],
)
def test_an_invalid_record_is_rejected_with_its_place_and_reason(tmp_path, record, reason):
    (tmp_path / "a.json").write_text(json.dumps([GOOD, record, GOOD]))
    rejects = []
    assert len(list(read_questions(tmp_path / "a.json", rejects.append))) == 2
    ((file, place, found),) = [(r.file, r.place, r.reason) for r in rejects]
    assert (file, place) == (str(tmp_path / "a.json"), "record 2")
    assert found.startswith(reason)


def test_lines_that_cannot_be_parsed_are_rejected_and_the_others_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answers": ["a"]}\n{"question"\n')
    (tmp_path / "a.tsv").write_text("q\t['a']\nq\tnot a list\nq\t['a']\tmore\nq\t'a'\n")
    for name, places in (("a.jsonl", ["line 2"]), ("a.tsv", ["line 2", "line 3", "line 4"])):
        rejects = []
        (question,) = read_questions(tmp_path / name, rejects.append)
        assert (question.text, question.answers) == ("q", ("a",))
        assert [r.place for r in rejects] == places


def test_the_first_of_several_paragraphs_is_used(tmp_path):
    record = {**GOOD, "sub-paragraphs": ["T", "S", "more"], "id": 5}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    (question,) = read_questions(tmp_path / "a.json", fail)
    assert (question.given, question.id) == (("title: T, source: S",), "5")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", " ", "a.json: the file is empty; check the path"),
        (
            "a.json",
            '[\n{"question": }]',
            "a.json, line 2: malformed JSON at column 14; a .json file is one list",
        ),
        ("a.json", '{"question": "q"}', "a.json: is not a list of questions; give"),
        ("a.json", "[]", "a.json: holds no question; check the path"),
        ("a.tsv", "", "a.tsv: the file is empty; check the path"),
    ],
)
def test_a_file_without_questions_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_questions(tmp_path / name, fail))
