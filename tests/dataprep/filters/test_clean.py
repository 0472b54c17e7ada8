"""The clean command: what it keeps, removes and counts, for any number of workers."""

import inspect
import json
from pathlib import Path

import pytest

from mt import cli
from mt.core.config import UserError
from mt.core.presets import presets, read_preset
from mt.dataprep.filters import thresholds
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.dataprep.filters.rules import EDITS, RULES
from mt.tokenizer.tokenizer import TokenizerConfig, load

FIXTURE = Path(__file__).parents[2] / "fixtures/prose.jsonl"
ROWS = [
    {"id": "a", "text": "A sound text of some words.", "source": "x"},
    {"id": "b", "text": "SchÃ¶n, isnâ€™t it?   "},
    {"id": "c", "text": ""},
    {"id": "d", "text": "short"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_texts_are_repaired_filtered_and_counted_by_reason(tmp_path):
    config = CleanConfig(
        input=(write(tmp_path / "in.jsonl", ROWS),),
        output=str(tmp_path / "out"),
        rules=("fix_text", "whitespace", "length min_chars=6"),
    )
    manifest = clean(config)
    assert lines(tmp_path / "out/00000.jsonl") == [ROWS[0], {"id": "b", "text": "Schön, isn't it?"}]
    assert lines(tmp_path / "out/removed/00000.jsonl") == [
        {"id": "c", "reason": "too_short"},
        {"id": "d", "reason": "too_short"},
    ]
    assert (
        manifest["counts"]["rows_in"]
        == 4
        == manifest["counts"]["rows_kept"] + manifest["counts"]["removed"]["too_short"]
    )
    assert manifest["edited"] == {"fix_text": 1, "whitespace": 1}
    assert clean(config) == manifest


def test_removed_documents_are_written_to_rejects_if_configured(tmp_path):
    rows = [*ROWS, {"id": "e", "text": "brief", "source": "y"}]
    config = {
        "input": (write(tmp_path / "in.jsonl", rows),),
        "rules": ("fix_text", "length min_chars=27"),
        "workers": 1,
    }
    manifest = clean(CleanConfig(**config, output=str(tmp_path / "out"), rejects=True))
    gone, short = lines(tmp_path / "out/rejects/00000.jsonl"), lines(tmp_path / "out/removed/00000.jsonl")
    assert [{k: v for k, v in row.items() if k != "removed"} for row in gone] == rows[1:]
    facts = {"rule": "length", "measure": "characters", "at_least": 27, "parameter": "min_chars"}
    assert gone[-1]["removed"] == {"reason": "too_short", **facts, "number": len("brief")}
    blank = {"measure": "characters that are not white space", "number": 0, "at_least": 1}
    blank |= {"reason": "too_short", "rule": "length", "parameter": "min_chars"}
    assert blank | {"note": "a text of only white space"} in [row["removed"] for row in gone]
    assert short == [{"id": row["id"], **row["removed"]} for row in gone]
    assert lines(tmp_path / "out/00000.jsonl") == rows[:1]
    assert [o["name"] for o in manifest["outputs"] if o.get("documents", True)] == ["00000.jsonl"]
    again = clean(
        CleanConfig(input=(str(tmp_path / "out"),), output=str(tmp_path / "again"), rules=("whitespace",))
    )
    assert again["counts"]["rows_in"] == 1, "a later stage reads what was kept alone"


def test_openwebtext_counts_gpt2s_tokens_if_its_vocabulary_is_given(tmp_path, gpt2_files):
    text = "The people of this town have seen it all before. "
    rows = [{"id": "long", "text": text * 12}, {"id": "short", "text": text * 9}]
    tokenizer = TokenizerConfig(**gpt2_files)
    counts = [len(load(tokenizer).encode(r["text"])) + 1 for r in rows]
    assert counts == [134, 101]
    source = write(tmp_path / "in.jsonl", rows)
    exact = clean(
        CleanConfig(
            input=(source,),
            output=str(tmp_path / "exact"),
            rules=("tokens min_tokens=134",),
            tokenizer=tokenizer,
        )
    )
    assert (exact["counts"]["documents"], exact["counts"]["removed"]) == (1, {"too_few_tokens": 1})
    with pytest.raises(UserError, match="2 too_few_tokens"):
        clean(
            CleanConfig(
                input=(source,),
                output=str(tmp_path / "one_more"),
                rules=("tokens min_tokens=135",),
                tokenizer=tokenizer,
            )
        )
    with pytest.raises(UserError, match="a tokenizer has no effect: no rule counts tokens"):
        CleanConfig(input=(source,), output=str(tmp_path / "none"), tokenizer=tokenizer)
    with pytest.raises(UserError, match="a vocabulary file alone does not determine the tokenizer"):
        CleanConfig(
            input=(source,),
            output=str(tmp_path / "none"),
            rules=("tokens",),
            tokenizer=TokenizerConfig(vocab_file="vocab.json"),
        )


def test_the_number_of_workers_does_not_change_a_byte(tmp_path):
    rows = [{"id": str(i), "text": f"Number {i} of the texts, " * (i % 60)} for i in range(400)]
    source = write(tmp_path / "in.jsonl", rows)
    outputs = []
    for workers in (1, 2):
        clean(
            CleanConfig(
                input=(source,),
                output=str(tmp_path / f"{workers}"),
                workers=workers,
                shard_bytes=1 << 16,
                rules=("length min_words=20",),
                rejects=True,
            )
        )
        outputs.append(
            {
                str(p.relative_to(tmp_path / f"{workers}")): p.read_bytes()
                for p in sorted((tmp_path / f"{workers}").rglob("*.jsonl"))
            }
        )
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 2


@pytest.mark.parametrize("preset", ["prose", "openwebtext", "wikipedia", "fineweb", "gopher", "c4"])
def test_every_preset_runs_from_the_command_line(tmp_path, speeches_file, preset):
    summary = cli.call(
        ("data", "clean"),
        [
            "--input",
            str(speeches_file),
            "--output",
            str(tmp_path / "out"),
            "--preset",
            preset,
            "--workers",
            "1",
        ],
    )
    assert summary["counts"]["rows_in"] == 41
    assert summary["counts"]["documents"] > 27


def test_texts_of_many_languages_are_judged_by_their_own_thresholds(tmp_path, capsys):
    rows = lines(FIXTURE)
    config = {"input": (write(tmp_path / "in.jsonl", rows),), "workers": 1}
    rules = ("language", "gopher_repetition", "gopher_quality", "fineweb")
    every = clean(CleanConfig(**config, output=str(tmp_path / "all"), rules=rules, lang=("all",)))
    assert every["counts"]["documents"] == len(rows) == len(every["languages"])
    assert every["other_languages"] == {"eo": 1}
    assert "general ones were used, without stop words: eo 1 documents" in capsys.readouterr().err
    chinese = clean(CleanConfig(**config, output=str(tmp_path / "zh"), rules=rules, lang=("zh",)))
    assert chinese["counts"]["documents"] == 1
    assert chinese["counts"]["removed"]["language_de"] == 1
    assert (chinese["languages"], chinese["other_languages"], capsys.readouterr().err) == ({}, {}, "")


def test_thresholds_are_part_of_the_key_where_they_are_used(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", lines(FIXTURE))
    rules = ("fix_text", "gopher_quality")

    def key(*lang, rules=rules):
        output = str(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        return clean(CleanConfig(input=(source,), output=output, rules=rules, lang=lang, workers=1))["key"]

    def keys():
        return [key(), key("de"), key("fr"), key("all"), key("de", rules=("whitespace",))]

    before = keys()
    assert len(set(before)) == 5
    changed = thresholds.parameters("de") | {"gopher_quality": {"words": "apart", "min_stop_words": 1}}
    own = thresholds.parameters
    monkeypatch.setattr(thresholds, "parameters", lambda code: changed if code == "de" else own(code))
    assert [a == b for a, b in zip(before, keys())] == [True, False, True, False, True]


def test_an_empty_result_is_an_error_that_says_why(tmp_path):
    with pytest.raises(
        UserError,
        match=r"no document is left \(4 in: 4 too_short\); to keep more, lower min_chars of the rule",
    ):
        clean(
            CleanConfig(
                input=(write(tmp_path / "in.jsonl", ROWS),),
                output=str(tmp_path / "out"),
                rules=("length min_chars=999",),
            )
        )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b'{"text": "a"}\n{"text": null}\n',
            r"in\.jsonl, line 2: 'text' is null, not a text; mend it, or pass --on-error skip",
        ),
        (b'{"text": "a"}\n{"text": \n', r"in\.jsonl, line 2: malformed JSON"),
        (b"", "is empty; give files with documents"),
    ],
)
def test_an_unreadable_record_is_named_or_logged(tmp_path, raw, message):
    (tmp_path / "in.jsonl").write_bytes(raw)
    config = {"input": (str(tmp_path / "in.jsonl"),), "rules": ("whitespace",), "workers": 1}
    with pytest.raises(UserError, match=message):
        clean(CleanConfig(**config, output=str(tmp_path / "out")))
    if raw:
        manifest = clean(CleanConfig(**config, output=str(tmp_path / "skipped"), on_error="skip"))
        assert manifest["counts"]["rejected"] == 1
        assert lines(tmp_path / "skipped/rejects.jsonl")[0]["place"] == "line 2"


def test_an_output_inside_the_input_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.jsonl", ROWS)
    with pytest.raises(UserError, match="lies inside the input"):
        clean(CleanConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "in/out")))


def test_wrong_rules_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="no such rule"):
        CleanConfig(input=("none.jsonl",), output=str(tmp_path / "out"), rules=("lenght",))
    with pytest.raises(UserError, match="rules is empty"):
        CleanConfig(input=("none.jsonl",), output=str(tmp_path / "out"), rules=())


def test_unreadable_records_of_several_shards_are_logged_in_order(tmp_path):
    rows = [
        json.dumps({"id": str(i), "text": "a few words " * 2000}) if i % 3 else f"{{broken {i}"
        for i in range(30)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n")
    config = CleanConfig(
        input=(str(tmp_path / "in.jsonl"),),
        output=str(tmp_path / "out"),
        shard_bytes=1 << 16,
        workers=2,
        on_error="skip",
    )
    counts = clean(config)["counts"]
    assert (counts["rows_in"], counts["rejected"], counts["documents"]) == (30, 10, 20)
    assert [reject["raw"] for reject in lines(tmp_path / "out/rejects.jsonl")] == rows[::3]
    assert len(list((tmp_path / "out").glob("0*.jsonl"))) > 1
    assert not (tmp_path / "out/parts").exists()


def test_the_rule_language_says_how_to_keep_other_languages(tmp_path, capsys):
    rows = map(json.loads, FIXTURE.read_text(encoding="utf-8").splitlines())
    chosen = [row for row in rows if row["id"] in ("en", "zh", "hi")]
    settings = {"input": (write(tmp_path / "in.jsonl", chosen),), "rules": ("language",), "workers": 1}
    clean(CleanConfig(output=str(tmp_path / "a"), **settings))
    told = capsys.readouterr().err
    assert "2 documents in other languages than English were removed (hi 1, zh 1)" in told
    assert "--lang all" in told
    clean(CleanConfig(output=str(tmp_path / "b"), lang=("en", "hi"), **settings))
    assert "--lang" not in capsys.readouterr().err
    write(tmp_path / "in.jsonl", [row for row in chosen if row["id"] == "zh"])
    with pytest.raises(UserError, match=r"no document is left .* pass --lang all"):
        clean(CleanConfig(output=str(tmp_path / "c"), **settings))


def test_where_most_documents_are_dropped_the_last_lines_say_by_which_rule_and_what_to_do(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"text": "short"}] * 7 + [{"text": "long enough " * 20}] * 3)
    arguments = ["data", "clean", "--input", source, "--output", str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--preset", "prose"])
    told = capsys.readouterr().out.splitlines()
    assert "kept 3 of 10 documents" in told[-2]
    assert told[-1] == (
        f"removed 7 of 10 documents (70%), 7 of them for the reason too_short; to see some: `mt data look"
        f" {tmp_path / 'out'} --reason"
        " too_short`; to keep more, lower min_chars of the rule length (now 100), for example: --rules"
        " fix_text whitespace 'length min_chars=50 min_words=15'"
    )


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of a command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    return ended.value.code, *capsys.readouterr()


def test_rules_that_replace_those_of_a_preset_are_told(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"text": "some text"}])
    out = ["data", "clean", "--input", source, "--workers", "1", "--output"]
    *_, told = run(capsys, *out, str(tmp_path / "a"), "--preset", "prose", "--rules", "whitespace")
    assert told.splitlines() == [
        "mt: rules of preset prose are not used, other ones are given; they are fix_text whitespace"
        " 'length min_chars=100 min_words=15'"
    ]
    *_, told = run(capsys, *out, str(tmp_path / "b"), "--preset", "c4", "--rules", "fix_text", "c4")
    assert not [line for line in told.splitlines() if "preset" in line]


def test_help_describes_every_preset_and_every_rule(capsys):
    for name in presets(CleanConfig):
        code, text, _ = run(capsys, "data", "clean", "--help", name)
        words = " ".join(text.replace("│", " ").split())
        assert code == 0
        for item in read_preset(CleanConfig, name)["rules"]:
            assert item.split()[0] in words
    for name, function in (RULES | EDITS).items():
        code, text, _ = run(capsys, "data", "clean", "--help", name)
        assert code == 0
        for key, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and key != "tokenizer":
                assert f"{key}=" in text
    _, text, _ = run(capsys, "data", "clean", "--help", "gopher_quality")
    assert "min_words=50" in text
    assert "drops texts for the reason gopher_too_few_words" in " ".join(text.split())
    assert "--max-record-bytes" in run(capsys, "data", "clean", "--help", "max-record-bytes")[1]
