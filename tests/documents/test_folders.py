"""The files of folders: those read and those counted are all that are there, compared with os.walk."""

import fnmatch
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.documents import folders
from mt.documents.folders import InputFile, NotRead, distinct, files_of, find, kind_of

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", ".", ".#", "#"]),
        st.sampled_from(["a", "b.c", "É"]),
        st.sampled_from(
            [".jsonl", ".JSONL", ".ndjson", ".json", ".csv", ".Tsv", ".txt", ".md", ".HTM", ".html",
             ".parquet", ".arrow",
             ".png", ".py", "", ".swp", ".zip", ".jsonl.bak"]
        ),
        st.sampled_from(["", ".gz", ".bz2", ".xz", ".zst", ".ZSTD", "~", "#"]),
    ),
)  # fmt: skip
FOLDERS = st.lists(st.sampled_from(["x", "y", ".git", ".ipynb_checkpoints", "z.jsonl"]), max_size=3)
LINKS = st.lists(st.tuples(FOLDERS, FOLDERS), max_size=3)


def is_read(path, include):
    """The rule, written again: no hidden part, no editor's copy, an ending that is read or a pattern."""
    name = path.name
    if any(part.startswith(".") for part in path.parts) or name.endswith(("~", ".swp")):
        return False
    if name.startswith("#") and name.endswith("#"):
        return False
    plain = name
    for packed in (".gz", ".bz2", ".xz", ".zst", ".zstd"):
        if name.lower().endswith(packed):
            plain = name[: -len(packed)]
            break
    texts = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".html", ".htm")
    return (
        plain.lower().endswith(texts)
        or name.lower().endswith((".parquet", ".arrow"))
        or any(fnmatch.fnmatchcase(n, pattern) for n in (name, plain) for pattern in include)
    )


@quick
@given(
    files=st.lists(st.tuples(FOLDERS, NAMES), min_size=1, max_size=12),
    links=LINKS,
    include=st.sampled_from([(), ("*.py",), ("*.p*", "a*")]),
)
@example(files=[(["x"], "a.jsonl")], links=[(["x", "y"], ["x"]), ([], ["x"])], include=())
def test_files_read_and_files_counted_are_the_files_there(tmp_path_factory, files, links, include):
    root = tmp_path_factory.mktemp("tree")
    for parts, name in files:
        place = root.joinpath(*parts)
        place.mkdir(parents=True, exist_ok=True)
        if not (place / name).is_dir():
            (place / name).write_text("x")
    for number, (parts, target) in enumerate(links):
        if root.joinpath(*parts).is_dir() and root.joinpath(*target).is_dir():
            (root.joinpath(*parts) / f"link{number}").symlink_to(root.joinpath(*target))
    here = {
        (os.path.realpath(f), n) for f, _, names in os.walk(root) for n in names if not n.startswith("link")
    }
    not_read = NotRead()
    walked = [p for p in root.rglob("*") if p.is_file() and "link" not in str(p)]
    if not any(is_read(p.relative_to(root), include) for p in walked):
        with pytest.raises(UserError, match="holds no documents"):
            files_of(str(root), include, not_read)
        return
    found = files_of(str(root), include, not_read)
    real = [(os.path.realpath(f.path.parent), f.path.name) for f in found]
    assert len(set(real)) == len(real)
    assert set(real) <= here
    assert len(found) + not_read.endings.total() == len(here)
    own = [f.path.relative_to(root) for f in found if "link" not in str(f.path)]
    assert own == sorted(p for p in (w.relative_to(root) for w in walked) if is_read(p, include))
    assert [f.label for f in found] == [str(f.path.relative_to(root)) for f in found]


def test_the_files_that_are_not_read_are_counted_by_their_endings_and_the_first_named(tmp_path):
    for name in (
        "a.jsonl",
        "b.csv.bak",
        "c.csv.bak",
        "d.png",
        "e",
        "f.tar.gz",
        ".git/config",
        "g.jsonl~",
        "v1.2.bin",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    not_read = NotRead()
    assert [f.label for f in files_of(str(tmp_path), (), not_read)] == ["a.jsonl"]
    once = (".png", "no ending", ".tar.gz", "hidden", ".jsonl~", ".bin", ".jsonl", ".txt")
    assert not_read.endings == {".csv.bak": 2, **dict.fromkeys(once, 1)}
    assert str(not_read).startswith("not read: 10 files (.csv.bak 2, ")
    assert str(not_read).endswith(
        f"): {tmp_path}/.git/config, {tmp_path}/b.csv.bak, {tmp_path}/c.csv.bak, ..."
    )
    assert not_read.as_json()["files"] == 10


def test_a_folder_without_documents_says_what_it_holds(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(
        UserError, match=r"holds no documents .*; not read: 1 file \(\.png 1\): .*a\.png; check"
    ):
        files_of(str(tmp_path), (), NotRead())


def test_folders_and_globs_are_read_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a.txt", "c.png", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    assert [f.label for f in find([str(tmp_path)])] == ["a.txt", "b.jsonl", "sub/d.jsonl"]
    assert [f.label for f in find([str(tmp_path / "*.jsonl")])] == ["b.jsonl"]
    assert [f.label for f in find([str(tmp_path / "**/*.jsonl")])] == ["b.jsonl", "sub/d.jsonl"]
    assert [f.label for f in find([str(tmp_path / "s*")])] == [
        "sub/d.jsonl",
        "sub/loop/a.txt",
        "sub/loop/b.jsonl",
    ]
    with pytest.raises(UserError, match="no such file"):
        find([str(tmp_path / "*.zip")])
    with pytest.raises(UserError, match=r"c.png: not a kind of file that mt reads; it reads .jsonl"):
        find([str(tmp_path / "c.png")])
    assert find([str(tmp_path / "c.png")], ["*.png"])[0].label == "c.png"
    with pytest.raises(UserError, match=r"a\.txt: two inputs name this file; name it once"):
        find([str(tmp_path), str(tmp_path / "a.txt")])


@quick
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), st.integers(1, 4)), max_size=8
    )
)
def test_labels_differ_whatever_the_inputs_and_are_the_shortest_where_they_already_differ(inputs):
    paths = {"/".join(["", *parts]): min(depth, len(parts)) for parts, depth in inputs}
    files = [
        InputFile(folders.Path(p), "/".join(p.split("/")[-depth:]), "text") for p, depth in paths.items()
    ]
    labels = [f.label for f in distinct(files)]
    assert len(set(labels)) == len(files)
    for file, label in zip(files, labels):
        assert str(file.path).endswith(label)
    if len({f.label for f in files}) == len(files):
        assert labels == [f.label for f in files]


@pytest.mark.parametrize(
    ("name", "include", "kind"),
    [
        ("A.JSONL", (), "lines"),
        ("a.json.XZ", (), "json"),
        ("a.parquet.gz", (), None),
        ("a.py", (), None),
        ("a.py", ("*.py",), "text"),
        ("a.py.bz2", ("*.py",), "text"),
        ("src/a.py", ("src/*",), "text"),
        ("a.csv", ("*.csv",), "text"),
        ("a.zst", (), None),
    ],
)
def test_the_ending_or_a_pattern_tells_how_a_file_is_read(name, include, kind):
    assert kind_of(name, include) == kind


def test_a_folder_that_cannot_be_opened_is_an_error_unless_it_is_hidden(tmp_path, monkeypatch):
    for name in ("a.jsonl", ".trash/x", "open/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) in denied:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    denied = {".trash"}
    assert len(find([str(tmp_path)])) == 2
    denied = {"open"}
    with pytest.raises(UserError, match="open: cannot be opened"):
        find([str(tmp_path)])


def test_names_that_are_no_text_are_told_escaped(tmp_path, capsys):
    not_read = folders.NotRead()
    not_read.add(Path(os.fsdecode(b"a\xff.b\xffn")), os.fsdecode(b".b\xffn"))
    not_read.add(Path("b\x1b[2J\n\u202e.exe"), ".exe")
    assert not_read.as_json() == {
        "files": 2,
        "endings": {r".b\xffn": 1, ".exe": 1},
        "first": [r"a\xff.b\xffn", r"b\x1b[2J\n\u202e.exe"],
    }
    json.dumps(not_read.as_json(), ensure_ascii=False).encode()
    for number in range(1000):
        not_read.add(Path(f"x.{number}"), f".{number}")
    assert len(str(not_read)) < 1000
