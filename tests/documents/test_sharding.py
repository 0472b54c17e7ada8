"""Shards, made ids and keys of inputs."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError, configuration, option
from mt.documents import charsets
from mt.documents.folders import NotRead
from mt.documents.reader import read
from mt.documents.sharding import joined, plan

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
FOLDERS = st.lists(st.sampled_from(["x", "y", "z"]), max_size=3)
NAMES = st.sampled_from(["a.jsonl", "a.txt", "b.csv", "a.json"])
DATA = {
    "a.jsonl": '{"text": "1"}\n{"text": "2"}\n',
    "a.txt": "text",
    "b.csv": "text\none\ntwo\n",
    "a.json": '[{"text": "1"}, {"text": "2"}]',
}


def ids(*inputs):
    return [d.id for s in plan(list(map(str, inputs))) for d in read(s)]


@quick
@given(st.lists(st.tuples(st.sampled_from(["one", "two"]), FOLDERS, NAMES), min_size=1, max_size=12))
def test_made_ids_are_unique_over_any_trees(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("trees")
    for tree, parts, name in files:
        place = root.joinpath(tree, *parts, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(DATA[name])
    trees = sorted({root / tree for tree, _, _ in files})
    found = ids(*trees)
    different = {(tree, tuple(parts), name) for tree, parts, name in files}
    documents = sum(1 if name == "a.txt" else 2 for _, _, name in different)
    assert len(set(found)) == len(found) == documents
    if len(trees) == 1:
        (tree,) = trees
        for name in found:
            assert (tree / re.sub(r":\d+\Z", "", name)).is_file()
    assert ids(*sorted(root.rglob("a.jsonl"))) == ids(*sorted(root.rglob("a.jsonl")))


def test_ids_begin_with_the_name_of_a_file_or_its_path_in_a_folder(tmp_path):
    for place in ("t/x/a.jsonl", "t/y/a.jsonl", "u/x/a.jsonl"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text('{"text": "a"}')
    assert ids(tmp_path / "t/x/a.jsonl") == ["a.jsonl:0"]
    assert ids(tmp_path / "t") == ["x/a.jsonl:0", "y/a.jsonl:0"]
    assert ids(tmp_path / "t/*/a.jsonl") == ["x/a.jsonl:0", "y/a.jsonl:0"]
    assert ids(tmp_path / "t/x/a.jsonl", tmp_path / "t/y/a.jsonl") == ["x/a.jsonl:0", "y/a.jsonl:0"]
    assert ids(tmp_path / "t", tmp_path / "u") == ["t/x/a.jsonl:0", "y/a.jsonl:0", "u/x/a.jsonl:0"]


@configuration()
class Stage:
    input: tuple[str, ...] = option(help="", role="input")
    output: str = option(help="", role="output")
    overwrite: bool = option(False, "", role="runtime")


def test_the_key_changes_with_the_ids_and_the_manifest_tells_what_is_not_read(tmp_path, capsys):
    (tmp_path / "t/x").mkdir(parents=True)
    (tmp_path / "t/x/a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "t/b.png").touch()

    def key(item, output):
        config = Stage(input=(str(item),), output=str(tmp_path / str(output)))
        run = plan([str(item)]).begin("data x", config)
        sealed = run.finish([], {})
        return sealed["key"], sealed.get("not_read")

    by_file, by_folder, by_tree = (
        key(tmp_path / "t/x/a.jsonl", 1),
        key(tmp_path / "t/x", 2),
        key(tmp_path / "t", 3),
    )
    assert by_file[0] == by_folder[0] != by_tree[0]
    assert by_file[1] is None
    assert by_tree[1] == {"files": 1, "endings": {".png": 1}, "first": [f"{tmp_path}/t/b.png"]}
    assert capsys.readouterr().err == f"mt: not read: 1 file (.png 1): {tmp_path}/t/b.png\n"
    assert json.loads((tmp_path / "3/manifest.json").read_text())["not_read"] == by_tree[1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_outputs_of_files_in_other_encodings_are_made_again_when_their_rules_change(
    tmp_path, monkeypatch, encoding
):
    (tmp_path / "a.jsonl").write_text('{"text": "é"}', encoding)

    def begin(name):
        config = Stage(input=(str(tmp_path / "a.jsonl"),), output=str(tmp_path / name))
        return plan([str(tmp_path / "a.jsonl")]).begin("data x", config).finish([], {})["key"]

    before = begin("before")
    monkeypatch.setattr(charsets, "RULES", "others")
    assert (begin("after") == before) == (encoding == "utf-8")


def test_plans_are_joined_with_what_they_do_not_read(tmp_path):
    for place in ("t/a.jsonl", "u/a.jsonl"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text('{"text": "a"}')
        (tmp_path / place).with_suffix(".png").touch()
    whole = joined(plan([str(tmp_path / tree)], report=False) for tree in "tu")
    assert [s.label for s in whole] == ["a.jsonl", "a.jsonl"]
    assert whole.not_read == NotRead({".png": 2}, [f"{tmp_path}/t/a.png", f"{tmp_path}/u/a.png"])


@pytest.mark.parametrize(("name", "kind"), [("a.json", "lines"), ("a.jsonl.gz", "packed"), ("b.csv", "csv")])
def test_the_kind_of_a_shard_follows_from_name_content_and_encoding(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b'{"text": "a"}\n' * 10_000)
    assert {s.kind for s in plan([str(tmp_path / name)], shard_bytes=1 << 16)} == {kind}
    assert len(plan([str(tmp_path / name)], shard_bytes=1 << 16)) == (3 if kind == "lines" else 1)
    assert {s.kind for s in plan([str(tmp_path / name)], encoding="latin-1")} <= {"packed", "csv"}


def test_a_missing_input_is_named():
    with pytest.raises(UserError, match="nowhere: no such file or directory"):
        plan(["nowhere"])


def test_a_pattern_with_a_slash_counts_from_the_input_also_where_labels_get_longer(tmp_path):
    for place in ("t/src/a.py", "u/src/a.py"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("pass")
    found = plan([str(tmp_path / "t"), str(tmp_path / "u")], include=("src/*.py",))
    assert [(s.label, s.kind) for s in found] == [("t/src/a.py", "text"), ("u/src/a.py", "text")]
