"""Names from files and planted links, against what the operating system says of every path."""

import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core import paths
from mt.core.config import UserError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder with files, folders, links inside and outside, and special files, beside others' files."""
    root = tmp_path_factory.mktemp("tree")
    folder = root / "folder"
    (folder / "sub").mkdir(parents=True)
    (root / "other").mkdir()
    for path in (folder / "file", folder / "sub/file", root / "secret", root / "other/file"):
        path.write_text(path.name)
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    for name, target in (
        ("inside", "sub/file"),
        ("chain", "inside"),
        ("to_folder", "sub"),
        ("out", "../secret"),
        ("out_folder", "../other"),
        ("absolute", "/etc/passwd"),
        ("zero", "/dev/zero"),
        ("broken", "nowhere"),
        ("broken_out", "../nowhere"),
        ("loop", "loop"),
        ("self", "."),
    ):
        (folder / name).symlink_to(target)
    (root / "named").symlink_to("folder")
    return root


PARTS = st.sampled_from(
    ["file", "sub", "inside", "chain", "to_folder", "out", "out_folder", "absolute", "zero", "broken", "loop"]
    + ["broken_out", "self", "fifo", "socket", "nowhere", "folder", "secret", ".", "..", "...", ""]
    + ["\0", "\ud800", "é", "a b", "x" * 300, "\n"]
)
NAMES = st.one_of(
    st.lists(PARTS, max_size=4).map("/".join),
    st.lists(PARTS, max_size=4).map(lambda parts: "/" + "/".join(parts)),
    st.text(max_size=8),
    st.sampled_from([None, True, 7, 1.5, b"file", [], {}, ["file"]]),
)


def leads_right(folder: Path, name: object) -> bool:
    """Whether a name is one that may be used: by the words of the rule, with realpath and stat."""
    if not isinstance(name, str) or "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        return False
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or not set(parts) - {"", "."}:
        return False
    whole = "/".join([str(folder), *(part for part in parts if part not in ("", "."))])
    real, root = os.path.realpath(whole), os.path.realpath(folder)
    if not (real + "/").startswith(root + "/"):
        return False
    try:
        return stat.S_ISREG(os.stat(whole).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


@given(name=NAMES, link=st.booleans())
def test_a_name_is_taken_if_it_is_a_regular_file_in_the_folder_and_refused_in_a_line_otherwise(
    tree, name, link
):
    folder = tree / ("named" if link else "folder")
    if leads_right(folder, name):
        assert paths.named(folder, name, "DIR/index.json, files[3]") == folder / name
        return
    with pytest.raises(UserError) as error:
        paths.named(folder, name, "DIR/index.json, files[3]")
    said = str(error.value)
    assert said.startswith("DIR/index.json, files[3]: ")
    assert "\n" not in said
    rule = f"; it must be the relative path of a regular file inside {folder}: "
    assert said.endswith(f"{rule}fetch it again, from a source that you trust")


@pytest.mark.parametrize("kind", ["file", "folder"])
@given(name=NAMES)
def test_a_name_whose_content_is_compared_may_lead_outside_but_not_to_another_kind(tree, kind, name):
    folder = tree / "folder"
    try:
        path = paths.named(folder, name, "x", kind=kind, outside=True)
    except UserError:
        return
    assert not name.startswith("/")
    assert not path.exists() or (path.is_file() if kind == "file" else path.is_dir())


def test_the_message_names_the_file_the_place_and_the_rule(tree):
    folder = tree / "folder"
    for name, what in (
        ("../secret", "'../secret' contains `..`"),
        ("/etc/passwd", "'/etc/passwd' is an absolute path"),
        ("a\0b", r"'a\x00b' contains a NUL character"),
        ("\ud800", r"'\ud800' contains half of a surrogate pair"),
        ("", "'' is empty"),
        ("./.", "'./.' is empty"),
        (7, "7 is not a text"),
        ("out", "'out' is a link to another place, or lies behind one"),
        ("out_folder/file", "'out_folder/file' is a link to another place, or lies behind one"),
        ("zero", "'zero' is a link to another place, or lies behind one"),
        ("fifo", "'fifo' is a named pipe"),
        ("socket", "'socket' is a socket"),
        ("sub", "'sub' is a folder"),
        ("x" * 300, f"'{'x' * 79}... cannot be looked up (File name too long)"),
    ):
        with pytest.raises(UserError) as error:
            paths.named(folder, name, "m.json")
        assert str(error.value).startswith(f"m.json: {what}; it must be"), name


def test_links_of_hugging_faces_cache_lead_to_its_blobs_and_to_nothing_else(tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    (snapshot / "onnx").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "12ab").write_text("weights")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "model.safetensors").symlink_to("../../blobs/12ab")
    (snapshot / "onnx/model.onnx").symlink_to("../../../blobs/12ab")
    for name in ("model.safetensors", "onnx/model.onnx"):
        assert paths.named(snapshot, name, "x").read_text() == "weights"
    assert paths.named(snapshot / "onnx", "model.onnx", "x").read_text() == "weights"
    (blobs / "evil").symlink_to(tmp_path / "secret")
    os.mkfifo(blobs / "fifo")
    for name, target in (
        ("a", "../../blobs/evil"),
        ("b", "../../blobs/fifo"),
        ("c", "../../../secret"),
        ("d", "../../blobs"),
        ("e", "../.."),
    ):
        (snapshot / name).symlink_to(target)
        with pytest.raises(UserError):
            paths.named(snapshot, name, "x")
    # the same links outside of such a cache
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/12ab").write_text("weights")
    (tmp_path / "model" / "v1").mkdir(parents=True)
    (tmp_path / "model/v1/model.safetensors").symlink_to("../../blobs/12ab")
    with pytest.raises(UserError, match="is a link to another place"):
        paths.named(tmp_path / "model/v1", "model.safetensors", "x")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("fifo", "a named pipe"),
        ("socket", "a socket"),
        ("sub", "a folder"),
        ("zero", "a device"),
        ("file", None),
        ("out", None),
        ("inside", None),
        ("nowhere", None),
        ("broken", None),
        ("file/x", None),
    ],
)
def test_a_file_with_a_fixed_name_must_be_regular(tree, name, what):
    path = tree / "folder" / name
    if what is None:
        assert paths.regular(path) == path
        return
    with pytest.raises(UserError, match=rf"{name}: is {what}; it must be a regular file"):
        paths.regular(path)
    with pytest.raises(UserError, match="it must be a regular file"):
        paths.regular_files(tree / "folder")


def plant(path: Path, victim: Path, how: str) -> None:
    """Puts something at a path through which a careless writer would change the victim, or hang."""
    if how == "link":
        path.symlink_to(victim)
    elif how == "hard link":
        path.hardlink_to(victim)
    elif how == "broken link":
        path.symlink_to(victim.with_name("made"))
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("of an earlier run")


@pytest.mark.parametrize("how", ["link", "hard link", "broken link", "pipe", "file"])
@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_new_file_replaces_what_is_under_its_name(tmp_path, how, mode):
    victim, path = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    plant(path, victim, how)
    with paths.create(path, mode) as file:
        file.write("new é" if mode == "w" else b"new \xc3\xa9")
    assert path.read_bytes() == b"new \xc3\xa9"
    assert stat.S_ISREG(path.lstat().st_mode)
    assert victim.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "victim"]


@pytest.mark.parametrize("how", ["link", "broken link", "pipe", "file"])
@pytest.mark.parametrize("mode", ["a", "ab", "a+", "r+b"])
def test_a_file_of_an_earlier_run_goes_on_and_nothing_else_does(tmp_path, how, mode):
    victim, path = tmp_path / "victim", tmp_path / "log"
    victim.write_text("precious")
    plant(path, victim, how)
    with paths.update(path, mode) as file:
        file.write(b"+" if "b" in mode else "+")
    before = "of an earlier run" if how == "file" else ""
    assert path.read_text() == (f"+{before[1:]}" if "r" in mode else f"{before}+")
    assert victim.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "victim"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_have_the_modes_that_the_umask_gives_and_private_ones_their_own(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        paths.create(tmp_path / "a").close()
        paths.update(tmp_path / "b").close()
        paths.create(tmp_path / "c", "wb", 0o600).close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in "abc"] == [mode, mode, 0o600]


def test_removing_and_making_folders_does_not_follow_links(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    for name in ("removed", "made"):
        (tmp_path / name).symlink_to(victim)
    paths.remove(tmp_path / "removed")
    paths.remove(tmp_path / "nothing")
    assert not os.path.lexists(tmp_path / "removed")
    (paths.make_folder(tmp_path / "made") / "file").write_text("mine")
    assert not (tmp_path / "made").is_symlink()
    assert (victim / "file").read_text() == "precious"
    paths.remove(tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_an_input_that_cannot_be_read_twice_is_refused_with_the_way_that_works(tree):
    for name in ("file", "sub", "out", "nowhere"):
        paths.refuse_stream(tree / "folder" / name)
    with pytest.raises(UserError, match=r"fifo: is a named pipe, .* --input - < .*/fifo$"):
        paths.refuse_stream(tree / "folder/fifo")
    with pytest.raises(UserError, match="zero: is a device, which cannot be read twice"):
        paths.refuse_stream(tree / "folder/zero")
