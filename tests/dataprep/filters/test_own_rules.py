"""Rules of the user's own: parameters, errors named by file and document, stale outputs, other processes."""

import json
import subprocess
import sys

import pytest

from mt import cli
from mt.core.config import UserError
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.dataprep.filters.rules import compile_rules

SOURCE = '''
import own_helper  # a module beside it


def too_many_tables(document, max=5, mark="<table", strict=False):
    """Drops by text and fields."""
    if document.meta.get("source") == own_helper.TRUSTED:
        return None
    return "too_many_tables" if document.text.count(mark) > max else None


def bad_id(document):
    if document.id == "7":
        raise ValueError("seven\\nis bad")
    return document.id == "3"


def returns_number(document):
    return 3


def writes(document):
    document.meta["x"] = 1


def leaves(document):
    raise SystemExit(0)


not_callable = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_filters.py").write_text(SOURCE)
    (tmp_path / "own_helper.py").write_text("TRUSTED = 'book'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own_helper", None)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = [
    {"id": str(i), "text": f"<table> {i} " * (i + 1), "source": "book" if i == 4 else "web"} for i in range(9)
]


def run(folder, rules, output="out", **settings):
    source = folder / "in.jsonl"
    if not source.exists():
        write(source, ROWS)
    settings = {"workers": 1, **settings}
    return clean(CleanConfig(input=(str(source),), output=str(folder / output), rules=rules, **settings))


def test_a_function_decides_by_text_fields_and_parameters(folder):
    manifest = run(folder, ("whitespace", "python:my_filters.too_many_tables max=2"))
    assert [row["id"] for row in rows_of(folder / "out/00000.jsonl")] == ["0", "1", "4"]
    assert manifest["counts"]["removed"] == {"too_many_tables": 6}
    assert manifest["edited"] == {"whitespace": 9}


def test_true_drops_with_the_name_of_the_function(folder):
    manifest = run(folder, ("python:my_filters.bad_id",), on_error="skip")
    assert manifest["counts"]["removed"] == {"bad_id": 1}


def test_the_function_gets_the_edited_text(folder):
    apply = compile_rules(["fix_text", "python:my_filters.too_many_tables max=0 mark=Ã"])
    assert apply("sch\u00c3\u00b6n") == "schön"
    assert apply("São Ãé") == "too_many_tables"


def test_an_error_names_the_file_the_document_and_the_rule(folder):
    with pytest.raises(
        UserError,
        match=r"in\.jsonl, document 7: python:my_filters\.bad_id raised ValueError: seven\nis bad; mend it,"
        r" or pass --on-error skip",
    ):
        run(folder, ("python:my_filters.bad_id",))
    manifest = run(folder, ("whitespace", "python:my_filters.bad_id"), output="skipped", on_error="skip")
    assert (manifest["counts"]["rejected"], manifest["counts"]["rows_in"]) == (1, 9)
    assert manifest["counts"]["documents"] == 7
    (reject,) = rows_of(folder / "skipped/rejects.jsonl")
    assert (reject["place"], json.loads(reject["raw"])) == ("document 7", ROWS[7])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("returns_number", r"returned 3; it must return the reason to drop the document"),
        ("writes", "raised TypeError: 'mappingproxy' object does not support item assignment"),
        ("leaves", "raised SystemExit: 0"),
    ],
)
def test_other_mistakes_of_a_function_are_told(folder, name, message):
    with pytest.raises(UserError, match=rf"document 0: python:my_filters\.{name} {message}"):
        run(folder, (f"python:my_filters.{name}",))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("python:none.f", r"none\.py cannot be read \(No such file or directory\); rules are looked for in"),
        ("python:my_filters.g", "my_filters.py has no function 'g'; define it there"),
        ("python:my_filters.not_callable", "has no function 'not_callable'"),
        ("python:f", r"name a function in a file, as python:my_filters\.too_many_tables"),
        ("python:my filters.f", "name a function in a file"),
        (
            "python:my_filters.bad_id max=3",
            r"unexpected keyword argument 'max'; the function takes \(document\)",
        ),
        ("python:my_filters.too_many_tables max", "'max' is no parameter; write NAME=VALUE, as in max=3"),
        ("python:my_filters.too_many_tables lang=xx", "'xx' is not a known language"),
        ("python:broken.f", r"broken\.py raised SyntaxError"),
        ("python:raises.f", r"raises\.py raised ZeroDivisionError in line 2: division by zero"),
    ],
)
def test_a_wrong_item_is_refused_before_anything_is_read(folder, item, message):
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "raises.py").write_text("\n1 / 0\n")
    with pytest.raises(UserError, match=message):
        CleanConfig(input=("none.jsonl",), output="out", rules=(item,))


def test_values_are_numbers_truth_values_or_texts(folder):
    (folder / "shows.py").write_text(
        "def shows(document, **given):\n    return repr(sorted(given.items()))\n"
    )
    assert compile_rules(["python:shows.shows a=3 b=0.5 c=true d=x,y e= f=2024-01-01"])("") == (
        "[('a', 3), ('b', 0.5), ('c', True), ('d', 'x,y'), ('e', ''), ('f', '2024-01-01')]"
    )


def test_an_item_may_be_for_some_languages(folder):
    apply = compile_rules(["python:my_filters.too_many_tables max=0 lang=de"], lang=("en",))
    assert apply("<table>") == "<table>"


def test_a_changed_function_makes_the_output_stale(folder):
    rules = ("python:my_filters.too_many_tables max=2",)
    first = run(folder, rules)
    assert run(folder, rules) == first
    text = SOURCE.replace('"too_many_tables" if', '"too_many_marks_" if')  # as many bytes
    (folder / "my_filters.py").write_text(text)
    with pytest.raises(UserError, match="holds another run"):
        run(folder, rules)
    again = run(folder, rules, overwrite=True)
    assert again["counts"]["removed"] == {"too_many_marks_": 6}
    assert again["key"] != first["key"]


def test_the_function_runs_in_every_worker(folder):
    rows = [{"id": str(i), "text": "<table> words and words " * 300, "source": "web"} for i in range(80)]
    source = write(folder / "many.jsonl", rows)
    config = {"input": (source,), "shard_bytes": 1 << 16, "workers": 3}
    rules = ("python:my_filters.too_many_tables max=900", "python:my_filters.bad_id")
    counts = clean(CleanConfig(**config, output="out", rules=rules, on_error="skip"))["counts"]
    assert (counts["documents"], counts["rejected"], counts["removed"]) == (78, 1, {"bad_id": 1})
    with pytest.raises(
        UserError, match=r"many\.jsonl, document 7: python:my_filters\.bad_id raised ValueError"
    ):
        clean(CleanConfig(**config, output="failed", rules=rules))


def test_the_error_names_the_one_of_several_small_files(folder):
    sources = tuple(write(folder / f"{name}.jsonl", [{"id": name, "text": "x"}]) for name in "67")
    with pytest.raises(UserError, match=r"/7\.jsonl, document 7: python:my_filters\.bad_id raised"):
        clean(CleanConfig(input=sources, output="out", rules=("python:my_filters.bad_id",), workers=1))


def test_the_function_runs_on_ray(folder, ray_cluster):
    rules = ("python:my_filters.too_many_tables max=2",)
    local = run(folder, rules, "local")["counts"]
    assert run(folder, rules, "ray", executor="ray")["counts"] == local
    with pytest.raises(UserError, match=r"document 7: python:my_filters\.bad_id raised ValueError"):
        run(folder, ("python:my_filters.bad_id",), "failed", executor="ray")


def test_the_file_may_lie_beside_the_yaml_file(folder, tmp_path_factory, monkeypatch):
    source = write(folder / "in.jsonl", ROWS)
    (folder / "clean.yaml").write_text("rules: ['python:my_filters.too_many_tables max=2', whitespace]\n")
    (folder / "pipeline.yaml").write_text(
        f"run_dir: {folder / 'runs'}\nstages:\n  clean: {{run: data clean, input: {source}, workers: 1,"
        " rules: ['python:my_filters.too_many_tables max=2']}\n"
    )
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    arguments = ["--input", source, "--output", "out", "--workers", "1"]
    summary = cli.call(("data", "clean"), [*arguments, "--config", str(folder / "clean.yaml")])
    assert summary["counts"]["documents"] == 3
    cli.call(("run",), [str(folder / "pipeline.yaml")])
    assert len(rows_of(folder / "runs/clean/00000.jsonl")) == 3
    with pytest.raises(UserError, match="cannot be read"):
        cli.call(("data", "clean"), [*arguments, "--rules", "python:my_filters.too_many_tables"])


def test_the_command_line_ends_with_exit_code_2_and_one_line(folder):
    source = write(folder / "in.jsonl", ROWS)
    command = [
        sys.executable,
        "-m",
        "mt",
        "data",
        "clean",
        "--input",
        source,
        "--output",
        "out",
        "--workers",
        "1",
    ]
    done = subprocess.run([*command, "--rules", "python:my_filters.bad_id"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "document 7: python:my_filters.bad_id raised ValueError" in done.stderr
    assert "Traceback" not in done.stderr
