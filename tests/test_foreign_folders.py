"""Folders that a stranger made, for every reader of names and every writer: nothing outside is read, removed
or written, and nothing hangs. tests/core/test_paths.py has the rule itself.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from mt import cli
from mt.core import manifest
from mt.core.config import UserError
from mt.dataprep.dedup.signatures import read_old_keys
from mt.dataprep.trace import WhyConfig, why
from mt.documents import folders, reader, sharding
from mt.indexed.neighbors import open_data, read_fact
from mt.tokenizer.tokenizer import load_directory

SECRET = '{"id": "s", "text": "a secret"}\n'


def write_manifest(path: Path, *names: object, **facts) -> None:
    """A manifest as mt writes it, with outputs of these names."""
    outputs = [{"name": name, "bytes": 0, "mtime_ns": 0, "xxh3": ""} for name in names]
    known = {"verb": "data clean", "key": "k", "settings": {}, "inputs": [], "outputs": outputs, "counts": {}}
    path.write_text(json.dumps(known | facts))


def documents(folder: Path, name: object) -> None:
    write_manifest(folder / "manifest.json", name)
    for shard in sharding.plan([str(folder)]):
        list(reader.read(shard))


def saved_dataset(folder: Path, name: object) -> None:
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    folders.find([str(folder)])


def overwritten(folder: Path, name: object) -> None:
    write_manifest(folder / "p.manifest.json", name)
    (folder / "in.jsonl").write_text(SECRET)
    vocabulary = ["--tokenizer-type", "ByteLevelTokenizer", "--append-eod", "--overwrite"]
    arguments = ["data", "tokenize", "--input", folder / "in.jsonl", "--output-prefix", folder / "p"]
    cli.command([*map(str, arguments), "--workers", "1", *vocabulary])


def signatures(folder: Path, name: object) -> None:
    write_manifest(folder / "manifest.json", name, settings={"method": "exact"})
    read_old_keys((str(folder),), "exact", {}, {})


def trace(folder: Path, name: object) -> None:
    write_manifest(folder / "manifest.json", name)
    why(WhyConfig(id="s", run_dir=(str(folder),)))


def retrieval(folder: Path, name: object) -> None:
    write_manifest(folder / "manifest.json", name, database={})
    read_fact(folder, "database", "not a database", Any)


def data_of_a_database(folder: Path, name: object) -> None:
    open_data(folder, [{"prefix": name, "fingerprint": "f"}])


def neighbours_of_megatron(folder: Path, name: object) -> None:
    from mt.retro.megatron_hdf5 import MegatronNeighbors

    (folder / "config.json").write_text(json.dumps({"retro_neighbor_dirs": {"train": name}}))
    MegatronNeighbors(folder, "train", (0, 1), 2, 1)


def safetensors_index(folder: Path, name: object) -> None:
    from mt.train.checkpoint.huggingface import SafetensorsDirectory

    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    SafetensorsDirectory(folder)


def metadata(folder: Path, name: object) -> None:
    import torch.distributed.checkpoint.metadata as md
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    from mt.train.checkpoint.native import SafeFileSystemReader

    storage = {md.MetadataIndex("model.w"): _StorageInfo(name, 0, 1)}
    (folder / ".metadata").write_bytes(pickle.dumps(md.Metadata({}, storage_data=storage)))
    SafeFileSystemReader(folder).read_metadata()


def state(folder: Path, name: object) -> None:
    from mt.train.checkpoint.base import Progress
    from mt.train.checkpoint.open import open_checkpoint

    files = [{"name": name, "bytes": len(SECRET), "xxh3": manifest.file_digest(folder.parent / "secret")}]
    saved = dataclasses.asdict(Progress(step=1)) | {"data": None, "files": files}
    (folder / "state.json").write_text(json.dumps(saved))
    open_checkpoint(folder)


# reader, how its names begin and end
READERS = [
    (documents, "", ".jsonl"),
    (saved_dataset, "", ".arrow"),
    (overwritten, "", ""),
    (signatures, "signatures/", ".exact.npy"),
    (trace, "removed/", ".jsonl"),
    (retrieval, "", ""),
    (neighbours_of_megatron, "", ""),
    (safetensors_index, "", ".safetensors"),
    (metadata, "", ""),
    (state, "", ""),
]


@contextlib.contextmanager
def fed(*pipes: Path):
    """Lets a careless reader of a named pipe read nothing, so that it does not hang the test."""
    done = threading.Event()

    def feed() -> None:
        while not done.wait(0.01):
            for pipe in pipes:
                with contextlib.suppress(OSError):  # nobody reads
                    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(("read", "begin", "end"), READERS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("how", ["up", "absolute", "nul", "pipe", "link", "device", "number", "empty"])
def test_no_reader_follows_a_name_out_of_its_folder(tmp_path, read, begin, end, how):
    folder, secret = tmp_path / "folder", tmp_path / f"secret{end}"
    (folder / begin).mkdir(parents=True)
    for path in {secret, tmp_path / "secret"}:
        path.write_text(SECRET)
    name: object = f"{begin}{how}{end}"
    place = folder / str(name)
    if how == "up":
        name = f"{begin}{'../' * (1 + begin.count('/'))}secret{end}"
    elif how == "absolute":
        name = str(secret)
    elif how == "nul":
        name = f"{begin}a\0b{end}"
    elif how == "pipe":
        os.mkfifo(place)
    elif how in ("link", "device"):
        place.symlink_to(secret if how == "link" else "/dev/null")
    else:
        name = 7 if how == "number" else ""
    if not str(name).startswith(begin) or not str(name).endswith(end):
        pytest.skip("this reader takes no such name for one of its files")
    with fed(folder / f"{begin}pipe{end}"), pytest.raises(UserError) as error:
        read(folder, name)
    assert how in ("empty", "number") or "it must be the relative path of a" in str(error.value)
    assert "\n" not in str(error.value)
    assert secret.read_text() == SECRET


def test_data_of_a_database_may_lie_beside_it_but_is_regular_and_named_by_a_relative_path(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.idx")
    for name in ("/etc/passwd", "../a\0b", "../pipe"):
        with pytest.raises(UserError, match="it must be the relative path of a regular file beside"):
            data_of_a_database(tmp_path / "folder", name)
    with pytest.raises(UserError, match=r"none\.idx: no such file, but the database"):
        data_of_a_database(tmp_path / "folder", "../none")


def test_a_strangers_manifest_beside_a_prefix_does_not_remove_other_files_of_the_same_folder(tmp_path):
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(UserError, match=r"precious\.txt' does not begin with .*/p\. or .*/p_, as all"):
        overwritten(tmp_path, "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "precious"


def open_any(folder: Path) -> None:
    from mt.train.checkpoint.open import open_checkpoint

    open_checkpoint(folder)


def open_settings(folder: Path) -> None:
    from mt.train.checkpoint.native import NativeCheckpoint

    _ = NativeCheckpoint(folder).run_settings


def open_metadata(folder: Path) -> None:
    from mt.train.checkpoint.native import SafeFileSystemReader

    SafeFileSystemReader(folder).read_metadata()


def open_weights(folder: Path) -> None:
    from mt.train.checkpoint.huggingface import SafetensorsDirectory

    SafetensorsDirectory(folder)


def expand(folder: Path) -> None:
    folders.find([str(folder)])


def read_dataset(folder: Path) -> None:
    (folder / "dataset_info.json").write_text("{}")
    folders.find([str(folder)])


def read_gpt2(folder: Path) -> None:
    (folder / "merges.txt").write_text("")
    load_directory(folder)


def read_specials(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    load_directory(folder)


# file with a fixed name, who reads it
FIXED = [
    ("config.json", open_any),
    ("model.safetensors.index.json", open_weights),
    ("model.safetensors", open_weights),
    ("state.json", open_any),
    (".metadata", open_metadata),
    ("config.yaml", open_settings),
    ("latest_checkpointed_iteration.txt", open_any),
    ("mp_rank_00/model_optim_rng.pt", open_any),
    ("tokenizer.json", load_directory),
    ("tokenizer_config.json", load_directory),
    ("special_tokens_map.json", read_specials),
    ("vocab.json", read_gpt2),
    ("manifest.json", expand),
    ("dataset_dict.json", expand),
    ("state.json", read_dataset),
]


@pytest.mark.parametrize(("name", "read"), FIXED, ids=[f"{n} {r.__name__}" for n, r in FIXED])
@pytest.mark.parametrize("how", ["pipe", "device"])
def test_a_file_with_a_fixed_name_in_a_folder_that_is_no_regular_file_is_refused(tmp_path, name, read, how):
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    if how == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/null")  # at which a careless reader does not hang
    with fed(place), pytest.raises(UserError) as error:
        read(tmp_path)
    kind = "a named pipe" if how == "pipe" else "a device"
    if read is not open_any or name != "state.json":  # which is damaged, whatever the reason
        said = str(error.value)
        assert f"{name}: is {kind}; it must be a regular file" in said or "is not a regular file" in said


# command -> its arguments after --input FILE, without the output
WRITERS = {
    "clean": ["data", "clean", "--workers", "1", "--on-error", "skip"],
    "dedup": ["data", "dedup", "--workers", "1", "--on-error", "skip", "--save-signatures"],
    "tokenize": [
        *("data", "tokenize", "--tokenizer-type", "ByteLevelTokenizer", "--append-eod", "--workers", "1"),
        *("--on-error", "skip"),
    ],
}


def run(command: str, source: Path, folder: Path) -> int:
    flag = ["--output-prefix", str(folder / "p")] if command == "tokenize" else ["--output", str(folder)]
    return cli.command([*WRITERS[command], "--input", str(source), *flag, "--json"])


def bytes_in(folder: Path) -> dict[str, bytes]:
    """The content of all files that a run leaves, except what tells its time."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(("manifest.json", ".partial"))
    }


@pytest.mark.parametrize("command", ["clean", "tokenize", pytest.param("dedup", marks=pytest.mark.slow)])
def test_nothing_is_written_through_links_that_lie_in_an_unfinished_output(
    tmp_path, command, monkeypatch, capsys
):
    """The names are those that the command itself writes; each becomes a link, and so does its `.partial`."""
    source, victims = tmp_path / "in.jsonl", tmp_path / "victims"
    rows = [json.dumps({"id": str(i), "text": "a text of some words, long enough to be kept"}) for i in "ab"]
    source.write_text("\n".join([*rows, '{"id": "bad"}']) + "\n")
    plain = tmp_path / "plain"
    assert run(command, source, plain) == 3

    opened: set[str] = set()
    unfinished = tmp_path / "unfinished"
    with monkeypatch.context() as patch:
        create, update, replace = manifest.paths.create, manifest.paths.update, os.replace

        def noting(function):
            return lambda path, *more, **how: (opened.add(str(path)), function(path, *more, **how))[1]

        patch.setattr("mt.core.paths.create", noting(create))
        patch.setattr("mt.core.paths.update", noting(update))
        patch.setattr("os.replace", lambda a, b: (opened.add(str(b)), replace(a, b))[1])
        patch.setattr(manifest.Run, "finish", lambda self, *_, **__: _stop(self))
        with pytest.raises(KeyboardInterrupt):
            run(command, source, unfinished)
    names = sorted(os.path.relpath(path, unfinished) for path in opened)
    assert any(name.endswith(".partial") for name in names)
    left = {str(p.relative_to(unfinished)) for p in unfinished.rglob("*") if p.is_file()}
    for name in [n for n in names if not re.search(r"run\.json$", n)]:
        output = tmp_path / "output"
        shutil.copytree(unfinished, output)
        victims.mkdir()
        victim = victims / "precious"
        victim.write_text("precious")
        place = output / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(victim)
        with contextlib.suppress(UserError):  # a marker of a finished shard that is not one
            assert run(command, source, output) == 3
            if name not in left:  # what an earlier process finished is not written again
                assert bytes_in(output) == bytes_in(plain), name
        assert victim.read_text() == "precious", name
        assert [p.name for p in victims.iterdir()] == ["precious"], name
        shutil.rmtree(output)
        shutil.rmtree(victims)
    assert left, "an unfinished run leaves files, so the links were met while it went on"
    capsys.readouterr()


def _stop(self: manifest.Run) -> None:
    self.lock.close()
    raise KeyboardInterrupt


def test_a_folder_of_an_unfinished_output_that_is_a_link_to_another_place_is_refused(tmp_path, capsys):
    source, victim = tmp_path / "in.jsonl", tmp_path / "victim"
    source.write_text(SECRET)
    victim.mkdir()
    for claim in ("", "{}", '{"key": "other", "verb": "data clean", "settings": {}}'):
        output = tmp_path / "output"
        output.mkdir()
        (output / "run.json").write_text(claim)
        (output / "removed").symlink_to(victim)
        with contextlib.suppress(UserError):
            run("clean", source, output)
        assert list(victim.iterdir()) == []
        shutil.rmtree(output)
    capsys.readouterr()


def test_a_working_folder_of_a_prefix_that_is_a_link_is_replaced(tmp_path, capsys):
    source, victim, output = tmp_path / "in.jsonl", tmp_path / "victim", tmp_path / "output"
    source.write_text(SECRET)
    for folder in (victim, output):
        folder.mkdir()
    (victim / "p_text_document.bin").write_text("precious")
    (output / ".p.partial").symlink_to(victim)
    assert run("tokenize", source, output) == 0
    assert {p.name: p.read_text() for p in victim.iterdir()} == {"p_text_document.bin": "precious"}
    assert not os.path.lexists(output / ".p.partial")
    capsys.readouterr()


def test_named_pipes_as_input_are_refused_in_a_line(tmp_path, capsys):
    pipe = tmp_path / "in.jsonl"
    os.mkfifo(pipe)
    for command in WRITERS:
        with (
            fed(pipe),
            pytest.raises(UserError, match=r"in\.jsonl: is a named pipe, which cannot be read twice"),
        ):
            run(command, pipe, tmp_path / command)
    with fed(pipe), pytest.raises(UserError, match="is a named pipe"):
        run("clean", Path(f"{tmp_path}/*.jsonl"), tmp_path / "glob")


def test_a_linked_private_file_is_not_copied_into_an_export(tmp_path):
    pytest.importorskip("torch")
    from mt.train.checkpoint import huggingface

    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "model/special_tokens_map.json").symlink_to("../secret")
    (tmp_path / "model/added_tokens.json").write_text("{}")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"special_tokens_map\.json' is a link to another place"):
        huggingface.copy_tokenizer(tmp_path / "model", tmp_path / "out")
    (tmp_path / "model/special_tokens_map.json").unlink()
    huggingface.copy_tokenizer(tmp_path / "model", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["added_tokens.json"]
