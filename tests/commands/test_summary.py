"""The summary of a command as text, and as JSON: docs/summaries.json describes it."""

import ast
import json
import random
from pathlib import Path

import jsonschema
import pytest

from mt import cli
from mt.commands import table
from mt.commands.summary import closing, format_summary
from mt.core.manifest import Sealed

CLEANED = {
    "outputs": [{"bytes": 1_000_000}, {"bytes": 234_000}],
    "counts": {"rows_in": 1000, "rows_kept": 900, "documents": 900},
    "seconds": 75.2,
    "finished": "2026-12-01T01:02:03Z",
}


def test_counts_and_facts_are_one_line_each_without_lists_and_unknown_values():
    summary = {
        "counts": {"documents": 12345, "removed": {"short": 2}},
        "loss": 0.123456,
        "loss_stderr": None,
        "rows": [1],
        "key": "x",
    }
    assert format_summary(summary).splitlines() == [
        "counts.documents      12,345",
        "counts.removed.short  2",
        "loss                  0.1235",
    ]


def test_a_text_of_the_command_itself_is_printed_as_it_is():
    assert format_summary({"text": "two\nlines", "counts": {"n": 1}}) == "two\nlines"


def test_control_characters_of_strangers_are_escaped():
    assert format_summary({"file": "a\n\x1b[2Jb"}) == "file  a\\n\\x1b[2Jb"


def test_the_last_line_says_what_was_made_where_how_much_was_kept_and_how_long_it_took():
    made = Sealed(CLEANED, Path("out/clean"), up_to_date=False)
    assert format_summary(made).splitlines()[-2:] == [
        "",
        "made out/clean (2 files, 1.23 MB): kept 900 of 1,000 documents (90.0%) in 1 min 15 s",
    ]
    with_text = Sealed({**CLEANED, "text": "a table"}, Path("out/clean"), up_to_date=False)
    assert format_summary(with_text).startswith("a table\n\nmade out/clean")


def test_a_command_that_is_run_again_says_since_when_its_output_is_up_to_date():
    again = Sealed(CLEANED, Path("out/clean"), up_to_date=True)
    assert closing(again) == (
        "out/clean is up to date since 2026-12-01 01:02:03 UTC (made in 1 min 15 s); nothing was done"
    )


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"tokens": 5000, "documents": 3}, ": 5,000 tokens"),
        ({"scored": 7}, ": 7 examples"),
        ({}, ""),
        ({"rows_in": 0, "rows_kept": 0}, ""),
        ({"rows_in": 2, "rows_kept": 2, "documents": 61}, ": 61 documents, from 2 of 2 (100.0%)"),
    ],
)
def test_what_was_made_is_counted_in_its_own_unit(counts, kept):
    made = Sealed({**CLEANED, "counts": counts}, Path("a\x1b[2J"), up_to_date=False)
    assert closing(made) == f"made a\\x1b[2J (2 files, 1.23 MB){kept} in 1 min 15 s"


def test_pairs_are_named_as_training_takes_them_and_advice_comes_last():
    outputs = [
        {"name": f"a_{key}_document.{end}", "bytes": 1} for key in ("text", "b c") for end in ("bin", "idx")
    ]
    made = Sealed({**CLEANED, "outputs": outputs}, Path("out/a"), up_to_date=False)
    line = "to train on it: --data-path 'out/a_b c_document' or out/a_text_document"
    assert closing(made).splitlines()[1:] == [line]
    assert closing(Sealed(made, made.output, up_to_date=True)).splitlines()[1:] == [line]
    advised = Sealed({**CLEANED, "advice": "do\x1b that"}, Path("out/a"), up_to_date=False)
    assert format_summary(advised).splitlines()[-1] == "do\\x1b that"


ROOT = Path(__file__).parents[2]
SCHEMAS = json.loads((ROOT / "docs" / "summaries.json").read_text(encoding="utf-8"))
ONE, BYTES = ["--workers", "1"], ["--tokenizer-type", "ByteLevelTokenizer"]
SHAPE = ["--num-layers", "1", "--hidden-size", "32", "--num-attention-heads", "2"]
# in an order in which each has its input
DATA = {
    "data clean": ["--input", "in.jsonl", "--output", "clean", *ONE],
    "data dedup": ["--input", "clean", "--output", "dedup", *ONE],
    "data tokenize": ["--input", "dedup", "--output-prefix", "p", *BYTES, *ONE],
    "data verify": ["p_text_document"],
    "doctor": [],
}
MORE = {
    "data dedup-lines": ["--input", "clean", "--output", "lines", *ONE],
    "data holdout": ["--input", "dedup", "--output", "holdout", "--fraction", "0.1", *ONE],
    "data split": ["--input", "dedup", "--output", "split", "--max-chars", "300", *ONE],
    "data decontaminate": [
        *["--input", "holdout", "--output", "train", "--evaluation", "holdout/wikitext.txt", *ONE],
    ],
    "data stats": ["--input", "train", "--output", "stats", *ONE],
    "data train-tokenizer": ["--input", "train", "--output", "tokenizer", "--vocab-size", "300"],
    "data inspect": ["p_text_document"],
    "data index": [
        *[
            "--data-path",
            "p_text_document",
            "--train-samples",
            "20",
            "--seq-length",
            "32",
            "--output",
            "index",
        ],
    ],
    "data why": ["copy", "--run-dir", "."],
    "data look": ["dedup"],
    "train": [
        *[*SHAPE, *BYTES, "--data-path", "p_text_document", "--seq-length", "32", "--micro-batch-size", "2"],
        *["--train-iters", "2", "--eval-iters", "1", "--save", "model"],
    ],
    "plan": [*SHAPE, "--vocab-size", "512", "--world-size", "2", "--global-batch-size", "8"],
    "checkpoint inspect": ["model"],
    "checkpoint convert": ["model", "megatron", "--format", "torch"],
    "checkpoint export": ["model", "hf"],
    "report": ["."],
    "completion": ["bash"],
    "data dedup-substrings": ["--input", "clean", "--output", "substrings", *ONE],
    "data train-punkt": ["--input", "train", "--output", "punkt"],
    "eval wikitext": ["--load", "model", "--valid-data", "holdout/wikitext.txt"],
    "generate": ["--load", "model", "--prompts", "The", "--tokens-to-generate", "3"],
}


def check(name: str, summary: object) -> None:
    """Raises ValidationError if a summary is not as docs/summaries.json says."""
    schema = {"$defs": SCHEMAS["$defs"], **SCHEMAS["commands"][name]}
    jsonschema.Draft202012Validator(schema).validate(summary)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    generator = random.Random(1)
    rows = [{"id": str(n), "text": " ".join(generator.choices(words, k=120)) + ".\n"} for n in range(120)]
    rows.append(rows[3] | {"id": "copy"})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def check_all(commands: dict[str, list[str]]) -> None:
    for name, flags in commands.items():
        check(name, json.loads(json.dumps(cli.call(tuple(name.split()), flags), default=str)))


def test_the_summaries_of_documents_are_as_their_schemas_say(folder):
    check_all(DATA)


@pytest.mark.slow
def test_the_summaries_of_all_commands_that_have_a_schema_are_as_it_says(folder):
    pytest.importorskip("torch", reason="training needs the extra `train`")
    check_all(DATA | MORE)


def test_every_schema_is_one_of_a_command(folder):
    jsonschema.Draft202012Validator.check_schema({"$defs": SCHEMAS["$defs"] | SCHEMAS["commands"]})
    assert set(SCHEMAS["commands"]) >= set(DATA | MORE)
    assert {tuple(name.split()) for name in SCHEMAS["commands"]} <= set(table.COMMANDS)


@pytest.mark.parametrize("path", [p for p in table.COMMANDS if p not in table.RAW], ids=" ".join)
def test_every_command_that_prints_a_summary_has_a_schema(path):
    """A command that returns none, as its annotation says, has none: its output is for another program."""
    (function,) = [
        node
        for node in ast.parse(
            (ROOT / f"{table.COMMANDS[path].module.replace('.', '/')}.py").read_bytes()
        ).body
        if isinstance(node, ast.FunctionDef) and node.name == table.COMMANDS[path].function
    ]
    assert function.returns is not None
    assert (" ".join(path) in SCHEMAS["commands"]) != (ast.unparse(function.returns) == "None")


def test_a_failure_is_as_its_schema_says(capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", "clean", "--json", "--foo"])
    schema = {"$defs": SCHEMAS["$defs"], "$ref": "#/$defs/failure"}
    jsonschema.Draft202012Validator(schema).validate(json.loads(capsys.readouterr().out))


def test_a_summary_without_a_key_is_refused():
    with pytest.raises(jsonschema.ValidationError, match="'counts' is a required property"):
        check(
            "data verify", {"text": "", "prefix": "p", "dtype": "int32", "multimodal": False, "checked": []}
        )
