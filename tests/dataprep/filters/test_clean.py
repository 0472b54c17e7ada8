"""The clean command: what it keeps, removes and counts, for any number of workers."""

import json

import pytest

from mt import cli
from mt.core.config import UserError
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.tokenizer.tokenizer import TokenizerConfig, load

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
    gone = {"removed": {"reason": "too_short"}}
    assert lines(tmp_path / "out/rejects/00000.jsonl") == [{**row, **gone} for row in rows[1:]]
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


def test_an_empty_result_is_an_error_that_says_why(tmp_path):
    with pytest.raises(
        UserError, match=r"no document is left \(4 in: 4 too_short\); loosen the settings or check the input"
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
        (b"", r"in\.jsonl, line 1: the file is empty"),
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
