"""`.metadata` and the files of tensors of a checkpoint that a stranger made."""

import copy
import pickle
import resource
import shutil
import zipfile
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from mt.core.config import UserError
from mt.tests.train.checkpoint.test_pickle_walk import BOMBS, opcodes
from mt.train.checkpoint import safe_reader
from mt.train.checkpoint.base import dcp_errors_unwrapped
from mt.train.checkpoint.safe_reader import SafeFileSystemReader, check_stored_zip, load_torch_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two tensors."""
    tensors = {
        "model.a": torch.arange(12.0).reshape(3, 4),
        "exp_avg.a": torch.ones(3, 4),
        "model.n": torch.tensor(1),
    }
    dcp.save(tensors, checkpoint_id=tmp_path / "c", no_dist=True)
    return tmp_path / "c"


def forged(folder, change):
    """Changes the content of `.metadata`, as a stranger would, by torch's own classes."""
    file = folder / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))


def refusal(folder):
    with pytest.raises(UserError, match="not the metadata of a checkpoint") as caught:
        SafeFileSystemReader(folder).read_metadata()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    return str(caught.value)


def load(folder):
    loaded = {"model.a": torch.zeros(3, 4)}
    reader = SafeFileSystemReader(folder)
    # As Checkpoint.load does; dcp.load would log an error with a traceback, and assumes names and sizes.
    found = reader.read_metadata().state_dict_metadata.get("model.a")
    if not isinstance(found, TensorStorageMetadata) or found.size != (3, 4):
        raise UserError("holds another model")
    with dcp_errors_unwrapped():
        dcp.load(loaded, storage_reader=reader, no_dist=True)
    return loaded["model.a"]


def test_what_torch_wrote_is_read_as_torch_reads_it(folder):
    ours, theirs = SafeFileSystemReader(folder).read_metadata(), FileSystemReader(folder).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
    assert ours.version == theirs.version
    assert torch.equal(load(folder), torch.arange(12.0).reshape(3, 4))


class Trap:
    def __reduce__(self):
        return print, ("a stranger's code runs",)


def test_a_strangers_metadata_runs_no_code(folder, capsys):
    for content in (pickle.dumps(Trap()), pickle.dumps({"a": shutil.rmtree}), b"", b"garbage"):
        (folder / ".metadata").write_bytes(content)
        refusal(folder)
    assert capsys.readouterr().out == ""


def test_a_pickle_that_sets_attributes_of_classes_leaves_those_of_torch_alone(folder):
    class_and_state = b"ctorch.distributed.checkpoint.metadata\nMetadata\nN}\x8c\x05stolen\x8c\x01xs\x86b."
    (folder / ".metadata").write_bytes(b"\x80\x04" + class_and_state)
    refusal(folder)
    assert not hasattr(dcp.metadata.Metadata, "stolen")


def leaves(metadata):
    """(name, function that sets it) of every leaf of a metadata."""
    for name, tensor in metadata.state_dict_metadata.items():
        yield f"{name} itself", lambda v, name=name: metadata.state_dict_metadata.update({name: v})
        for field in ("size", "properties", "chunks"):
            yield f"{name} {field}", lambda v, t=tensor, f=field: setattr(t, f, v)
        yield f"{name} dtype", lambda v, t=tensor: setattr(t.properties, "dtype", v)
        for number, chunk in enumerate(tensor.chunks):
            yield f"{name} chunk", lambda v, t=tensor, n=number: t.chunks.__setitem__(n, v)
            for field in ("offsets", "sizes"):
                yield f"{name} {field}", lambda v, c=chunk, f=field: setattr(c, f, v)
                for n in range(len(tensor.size)):
                    yield (
                        f"{name} {field} {n}",
                        lambda v, c=chunk, f=field, n=n: setattr(
                            c, f, tuple(v if i == n else x for i, x in enumerate(getattr(c, f)))
                        ),
                    )
    for index, info in metadata.storage_data.items():
        for field in ("fqn", "offset", "index"):
            yield f"{index} {field}", lambda v, i=index, f=field: object.__setattr__(i, f, v)
        for field in ("relative_path", "offset", "length"):
            yield f"{index} {field}", lambda v, i=info, f=field: setattr(i, f, v)
    for field in ("state_dict_metadata", "storage_data", "storage_meta", "version"):
        yield field, lambda v, f=field: setattr(metadata, f, v)


VALUES = (None, True, "x", [], {}, -1, 1e30, 10**5000, 2**62, 10**9, "../../etc/passwd", "\x1b[31m")


def test_every_leaf_is_checked_before_it_is_used(folder):
    """What is not refused is unchanged, or changes nothing that is read."""
    original = (folder / ".metadata").read_bytes()
    expected = load(folder)
    count = len(list(leaves(pickle.loads(original))))
    refused = 0
    for number in range(count):
        for value in VALUES:
            metadata = pickle.loads(original)
            name, change = list(leaves(metadata))[number]
            try:
                change(value)
                (folder / ".metadata").write_bytes(pickle.dumps(metadata))
            except (TypeError, AttributeError):  # torch's own classes cannot be pickled with this value
                continue
            try:
                loaded = load(folder)
            except UserError:
                refused += 1
            else:
                assert torch.equal(loaded, expected), (name, value)
    assert refused > 5 * count


def test_no_memory_is_taken_for_what_a_pickle_says_and_does_not_hold(folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (
        b"\x80\x04]r\xff\xff\xff\x3f.",  # the memo as an array of 2^31 entries
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",  # bytes
        b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b"x.",  # bytearray
        b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"x.",  # frame
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    ):
        (folder / ".metadata").write_bytes(content)
        refusal(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def zipped(file, content):
    """Replaces the pickle in a file of torch.save."""
    with zipfile.ZipFile(file) as entries:
        parts = {name: entries.read(name) for name in entries.namelist()}
    with zipfile.ZipFile(file, "w") as entries:
        for name, part in parts.items():
            entries.writestr(name, content if name.endswith("/data.pkl") else part)


@pytest.mark.parametrize("bomb", ["a key", "a member of a frozenset", "a key within a tuple"])
def test_the_hash_of_a_value_that_is_shared_many_times_is_not_computed(bomb, folder, tmp_path):
    content = BOMBS[bomb] + b"."
    (folder / ".metadata").write_bytes(b"\x80\x04" + content)
    assert "large or nested" in refusal(folder)
    torch.save({"a": torch.zeros(1)}, tmp_path / "common.pt")
    zipped(tmp_path / "common.pt", b"\x80\x02" + content)
    with pytest.raises(UserError, match=r"not a whole file of torch\.save \(it has keys"):
        load_torch_file(tmp_path / "common.pt", "Megatron-LM")


@pytest.mark.parametrize(
    "content", [b"}" + opcodes() + b"Ns", b"ccollections\nCounter\n](" + opcodes() + b"e\x85R"]
)
def test_the_pickles_in_files_of_tensors_are_walked_over(content, folder, monkeypatch):
    monkeypatch.setattr(safe_reader, "check_stored_zip", lambda *a, **k: None)
    monkeypatch.setattr(
        torch, "PyTorchFileReader", lambda file: SimpleNamespace(get_record=lambda name: content + b".")
    )
    with pytest.raises(
        UserError, match=r"its files are not what .metadata says \((it has keys|__0_0.distcp names)"
    ):
        load(folder)


def test_what_a_program_has_registered_is_not_made(tmp_path):
    torch.save({"a": SimpleNamespace()}, tmp_path / "a.pt")
    with torch.serialization.safe_globals([SimpleNamespace]):
        with pytest.raises(UserError, match=r"names types\.SimpleNamespace"):
            load_torch_file(tmp_path / "a.pt", "Megatron-LM")
        assert SimpleNamespace in torch.serialization.get_safe_globals()


def test_a_list_that_is_shared_does_not_stand_for_more_chunks_than_are_stored(folder):
    def share(metadata):
        tensor = metadata.state_dict_metadata["model.a"]
        tensor.chunks *= 10_000
        for number in range(10_000):
            metadata.state_dict_metadata[f"t{number}"] = copy.copy(tensor)

    forged(folder, share)
    assert "it describes 100,010,002 chunks of tensors and stores 3" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, s: setattr(t, "size", torch.Size([3, 400])),
            "has size (3, 400), and its chunks 12 numbers",
        ),
        (lambda t, s: setattr(t.chunks[0], "sizes", torch.Size([3, 5])), "is not inside of its size (3, 4)"),
        (lambda t, s: setattr(s, "length", 10**9), "'__0_0.distcp' has"),
        (lambda t, s: setattr(s, "length", 8), "a chunk of 'model.a' of size (3, 4) is not stored"),
        (lambda t, s: setattr(s, "relative_path", "none"), "it names 'none', which is not there"),
        (lambda t, s: setattr(s, "transform_descriptors", ["zstd"]), "it has transformed chunks"),
    ],
)
def test_sizes_are_compared_with_the_files(folder, change, message):
    def forge(metadata):
        tensor = metadata.state_dict_metadata["model.a"]
        assert isinstance(tensor, TensorStorageMetadata)
        stored = metadata.storage_data[MetadataIndex("model.a", torch.Size([0, 0]))]
        assert isinstance(stored, _StorageInfo)
        change(tensor, stored)

    forged(folder, forge)
    assert message in refusal(folder)


def test_the_files_of_tensors_hold_what_the_metadata_says(folder, tmp_path):
    def swap(metadata):
        """The chunks of a matrix and of a scalar, so that a file holds another tensor than expected."""
        one, other = (
            info for index, info in metadata.storage_data.items() if index.fqn in ("model.a", "model.n")
        )
        vars(one)["offset"], vars(other)["offset"] = other.offset, one.offset

    original = (folder / ".metadata").read_bytes()
    forged(folder, swap)
    with pytest.raises(
        UserError, match=r"its files are not what .metadata says|not a whole file of torch\.save"
    ):
        load(folder)
    (folder / ".metadata").write_bytes(original)
    data = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(data[:64] + b"\0" * (len(data) - 64))
    with pytest.raises(UserError, match=r"not a whole file of torch\.save"):
        load(folder)


def test_a_compressed_file_of_tensors_is_refused(tmp_path):
    torch.save(torch.zeros(1000), tmp_path / "plain.pt")
    check_stored_zip(tmp_path / "plain.pt", "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert torch.equal(torch.load(tmp_path / "packed.pt"), torch.zeros(1000)), "torch would inflate it"
    with pytest.raises(UserError, match=r"is compressed, and torch\.save compresses nothing"):
        check_stored_zip(tmp_path / "packed.pt", "packed.pt")
