"""Evaluation files of every published format: their texts, and planted copies that are found."""

import bz2
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from mt.core.config import UserError
from mt.dataprep import evaluation_texts
from mt.dataprep.decontaminate import DecontaminateConfig, decontaminate
from mt.eval.tasks.detokenize import wikitext


def words(prefix, count=13):
    return " ".join(f"{prefix}{i}" for i in range(count))


RACE = {
    "id": "high1.txt",
    "article": words("article", 60),
    "answers": ["B", "A"],
    "questions": [f"{words('cloze', 8)} _ {words('after', 4)} .", words("question", 10)],
    "options": [[words("first", 2), words("second", 3)], [words("third", 6), "no"]],
}
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
)
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def mnli(premise, hypothesis):
    return (
        "0\t1\t2\tfiction\t( ( a ) )\t( b )\t(ROOT a)\t(ROOT b)\t"
        + f'{premise}\t"{hypothesis}\tneutral\tneutral\n'
    )


@pytest.fixture
def files(tmp_path):
    """A file of every published format, with texts that no other file has."""
    folder = tmp_path / "tasks"
    (folder / "RACE/test/high").mkdir(parents=True)
    (folder / "RACE/test/high/1.txt").write_text(json.dumps(RACE) + "\n")
    (folder / "RACE/test/high/2.txt").write_text(json.dumps(RACE | {"article": words("other", 30)}))
    (folder / "dev_matched.tsv").write_text(MNLI + mnli(words("premise", 20), words("hypothesis", 9)))
    (folder / "dev.tsv").write_text(QQP + f"1\t2\t3\t{words('asked')}\t{words('again')}\t1\nbroken\tline\n")
    (folder / "wiki.test.tokens").write_text(
        f" \n = Title = \n \n The <unk> {words('wiki', 9)} <unk> @-@ {words('rest', 4)} \n"
    )
    (folder / "lambada.jsonl").write_text(json.dumps({"text": words("passage", 30)}) + "\n")
    (folder / "mine.jsonl").write_text(json.dumps({"prompt": [words("prompt"), "short"]}) + "\n")
    return folder


def planted(document, text):
    return {"id": document, "text": f"Words before it. {text} And words behind."}


PLANTS = [
    planted("race-article", words("ARTICLE", 60)[70:320]),
    planted("race-question", words("question", 10)),
    planted("race-cloze", f"{words('cloze', 8)}, {words('second', 3)} {words('after', 4)}"),
    planted("race-option", f"{words('question', 10)} {words('third', 3)}"),
    planted("mnli-premise", words("premise", 20)),
    planted("mnli-hypothesis", words("hypothesis", 9)),
    planted("qqp", words("again").upper()),
    planted("wikitext", words("wiki", 9)),
    planted("lambada", words("passage", 14)),
    planted("two", f"{words('asked')} {words('passage', 15)}"),
]
CLEAN = [
    planted("half a question", words("question", 9)),
    planted("short option", words("third", 6)),
    planted("end of a line", words("rest", 4)),
    planted("label", "contradiction neutral entailment B A"),
]


def test_planted_texts_of_every_format_are_found_and_reported_by_task(tmp_path, files):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in PLANTS + CLEAN))
    named = {
        "race": "RACE",
        "mnli": "dev_matched.tsv",
        "qqp": "dev.tsv",
        "wikitext": "wiki.test.tokens",
        "lambada": "lambada.jsonl",
    }
    config = DecontaminateConfig(
        input=(str(tmp_path / "in.jsonl"),),
        output=str(tmp_path / "out"),
        evaluation=tuple(f"{name}={files / file}" for name, file in named.items()),
        mode="document",
        workers=1,
    )
    summary = decontaminate(config)
    removed = {r["id"]: r["against"] for r in map(json.loads, (tmp_path / "out/removed/00000.jsonl").open())}
    assert removed == {r["id"]: [r["id"].partition("-")[0]] for r in PLANTS[:-1]} | {
        "two": ["lambada", "qqp"]
    }
    report = summary["evaluation"]
    assert {name: r["documents_matched"] for name, r in report.items()} == {
        "race": 4,
        "mnli": 2,
        "qqp": 2,
        "wikitext": 1,
        "lambada": 2,
    }
    assert (
        report["race"]["texts"],
        report["mnli"]["texts"],
        report["qqp"]["texts"],
        report["qqp"]["rows_malformed"],
    ) == (14, 2, 2, 1)
    assert (report["lambada"]["ngrams"], report["lambada"]["ngrams_matched"]) == (18, 3)
    assert (
        summary["counts"]["rows_in"]
        == len(PLANTS + CLEAN)
        == summary["counts"]["rows_kept"] + summary["counts"]["removed"]["contaminated"]
    )


def texts(*items, key="text"):
    return [
        piece
        for task in evaluation_texts.tasks(items)
        for pieces in evaluation_texts.texts(task, key)
        for piece in pieces
    ]


def test_texts_of_race_are_the_article_the_questions_and_both_with_each_option(files, tmp_path):
    cloze, question = RACE["questions"]
    expected = [
        RACE["article"],
        cloze,
        *(cloze.replace("_", o) for o in RACE["options"][0]),
        question,
        *(f"{question} {o}" for o in RACE["options"][1]),
    ]
    assert texts(str(files / "RACE/test/high/1.txt")) == expected
    rows = [
        {"article": RACE["article"], "question": q, "options": o, "answer": "A"}
        for q, o in zip(RACE["questions"], RACE["options"])
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "race.parquet")
    assert set(texts(str(tmp_path / "race.parquet"))) == set(expected)


def test_pairs_are_read_from_records_and_any_key_can_be_named(files, tmp_path):
    assert texts(str(files / "dev_matched.tsv")) == [words("premise", 20), '"' + words("hypothesis", 9)]
    (tmp_path / "nli.jsonl").write_text('{"premise": "a b", "hypothesis": "c", "label": 1}\n')
    assert texts(str(tmp_path / "nli.jsonl")) == ["a b", "c"]
    assert texts(str(files / "mine.jsonl"), key="prompt") == [words("prompt"), "short"]
    assert texts(str(files / "dev.tsv"), key="question2") == [words("again")]


def test_a_split_of_a_dataset_can_be_an_evaluation_set(tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'mt-lm[hf]'")
    (tmp_path / "hub").mkdir()
    for name in ("train", "test"):
        (tmp_path / f"hub/{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    assert texts(f"mine=hf:{tmp_path}/hub:test") == ["test"]


def test_files_given_one_name_are_one_task_and_equal_file_names_keep_their_paths(files, tmp_path):
    (tmp_path / "dev.tsv").write_text(QQP)
    found = evaluation_texts.tasks(
        (
            f"glue={files}/dev.tsv",
            f"glue={files}/dev_matched.tsv",
            f"{files}/RACE",
            f"{tmp_path}/dev.tsv",
            f"{files}/dev.tsv",
        )
    )
    assert [(t.name, len(t.places)) for t in found] == [
        ("glue", 2),
        ("RACE", 1),
        (f"{tmp_path}/dev.tsv", 1),
        (f"{files}/dev.tsv", 1),
    ]


def test_wikitext_has_the_same_words_tokenized_and_detokenized(shared):
    """The one exception is ` N `, which detokenizing turns into ` 1 `; no other text has it."""
    raw = (shared / "data/wikitext/valid.txt").read_text()
    assert re.findall(r"\w+", wikitext(raw.replace(" N ", " n "))) == re.findall(
        r"\w+", raw.replace(" N ", " n ")
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", r"a\.tsv, line 1: the file is empty; correct the evaluation file"),
        ("a.tsv", "one column\n", r"a\.tsv, line 1: is not a header of tab-separated columns"),
        ("a.tsv", "a\tb\n1\t2\n", r"a\.tsv, line 2: has no key 'text' \(it has 'a', 'b'\)"),
        ("a.txt", json.dumps(RACE) + "\n{", r"a\.txt, line 2: malformed JSON at column"),
        (
            "a.txt",
            json.dumps(RACE | {"options": []}),
            r"a\.txt, line 1: 'questions' and 'options' are not lists of one length",
        ),
        ("a.txt", json.dumps(RACE | {"questions": ["a", None]}), "a question or an option is not a text"),
        (
            "a.jsonl",
            '{"premise": "a", "hypothesis": null}\n',
            r"a\.jsonl, line 1: 'hypothesis' is not a text",
        ),
        ("a.txt", b"caf\xe9\n", r"a\.txt, line 1: byte 3 of the file is not UTF-8"),
    ],
)
def test_an_evaluation_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        texts(str(tmp_path / name))


def test_missing_paths_and_folders_without_evaluation_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"none/\*\.txt: no such file or directory; check the path"):
        texts(f"race={tmp_path}/none/*.txt")
    with pytest.raises(UserError, match=r"empty: contains no evaluation files \("):
        texts(str(tmp_path / "empty"))


def test_blanks_of_a_question_are_filled_but_not_without_end():
    record = {"article": "a", "questions": ["_" * 1_000], "options": [["x" * 1_000]], "answers": ["A"]}
    filled = "x" * 1_000 * evaluation_texts.MAX_BLANKS + "_" * (1_000 - evaluation_texts.MAX_BLANKS)
    assert evaluation_texts.record_texts(record, "text") == ["a", "_" * 1_000, filled]


def test_the_files_of_a_folder_are_read_in_every_format_or_counted(tmp_path):
    folder = tmp_path / "eval"
    folder.mkdir()
    rows = {
        "a.JSONL": '{"text": "one"}',
        "b.json": '[{"text": "two"},\n{"text": "three"}]',
        "c.csv": "text\nfour\n",
    }
    for name, content in rows.items():
        (folder / name).write_text(content)
    (folder / "d.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "five"}'))
    (folder / "e.pdf").touch()
    (folder / ".f.jsonl").touch()
    assert texts(str(folder)) == ["one", "two", "three", "four", "five"]
    (task,) = evaluation_texts.tasks((str(folder),))
    list(evaluation_texts.texts(task, "text"))
    assert task.not_read.endings == {"hidden": 1, ".pdf": 1}


def test_the_files_that_are_not_read_are_told(tmp_path, capsys):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/a.jsonl").write_text(json.dumps({"text": words("e")}))
    (tmp_path / "eval/b.pdf").touch()
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "1", "text": words("t", 40)}))
    settings = {"evaluation": (str(tmp_path / "eval"),), "workers": 1}
    summary = decontaminate(
        DecontaminateConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), **settings)
    )
    assert summary["evaluation_not_read"]["endings"] == {".pdf": 1}
    assert "mt: not read: 1 file (.pdf 1): " in capsys.readouterr().err


def test_an_evaluation_file_that_is_a_device_is_refused(tmp_path):
    (tmp_path / "test.txt").symlink_to("/dev/null")  # of /dev/zero all memory would be read
    (task,) = evaluation_texts.tasks((str(tmp_path / "test.txt"),))
    with pytest.raises(UserError, match="is a device"):
        list(evaluation_texts.texts(task, "text"))
