"""Reads checkpoints of torch.distributed.checkpoint that somebody else may have made, and believes nothing.

`.metadata` is a pickle. torch unpickles it without restriction, so that a checkpoint from elsewhere could run
any code. Here its classes become inert records, which are checked field by field; only then are objects of
torch's own classes made of them. A size must be that of its chunks, and a chunk must lie whole in a file that
is there, so that nothing is allocated for a tensor that no file holds.

`load_torch_file` reads a file of torch.save, also a pickle, by torch's restricted unpickler.

A `.distcp` file is a sequence of torch.save's zip files, one a chunk. Their entries must be stored, as torch
writes them: a compressed one could be a thousand times as long as the file.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from ...core import paths
from ...core.config import UserError, shown
from ...core.parsing import read_bytes
from .pickle_walk import TorchWalk, Walk, is_torch_name

MOST_BYTES = 1 << 30  # of .metadata; it has about 100 bytes a chunk
MOST_PICKLE_BYTES = 1 << 26  # of a file of torch.save; it has some 200 bytes a tensor
REMEDY = "do not use it, take another checkpoint"

# The names that a `.metadata` of torch's writer may hold, by module; torch's dtypes come beside them.
METADATA_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    # megatron-core's own, which it does not need for reading
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}


class SafeFileSystemReader(FileSystemReader):
    """torch's reader of checkpoint directories, which checks what it reads and raises UserError."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._metadata: Metadata | None = None

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        if self._metadata is None:
            self._metadata = read_metadata(Path(self.path))
        assert self._metadata.storage_meta is not None, "read_metadata makes it"
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        try:
            return super().read_data(plan, planner)
        except (
            RuntimeError,
            ValueError,
            EOFError,
            AssertionError,
            LookupError,
            pickle.UnpicklingError,
        ) as error:
            said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(
                f"{self.path}: its files are not what .metadata says ({said}); {REMEDY}"
            ) from None

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        check_stored_zip(_Part(file, sinfo.offset, sinfo.length), f"{self.path}/{sinfo.relative_path}")
        if strange := check_torch_pickle(_Part(file, sinfo.offset, sinfo.length)):
            raise ValueError(f"{sinfo.relative_path} names {shown(min(strange))}")
        return super()._slice_file(file, sinfo)


class _Part(io.RawIOBase):
    """Some bytes of an open file as a file. (torch's own view turns around seeking from the end.)"""

    def __init__(self, file: IO[bytes], offset: int, length: int):
        self.file, self.offset, self.length, self.position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        if start + offset < 0:
            raise OSError("the seek leads to before the file")  # zipfile expects this of short files
        self.position = start + offset
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.length - self.position)
        self.file.seek(self.offset + self.position)
        data = self.file.read(left if size is None or size < 0 else min(size, left))
        self.position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def check_stored_zip(file: Any, place: str, remedy: str = REMEDY) -> None:
    """Raises UserError unless a file, or its path, is a zip file whose entries are not compressed."""
    try:
        with zipfile.ZipFile(file) as entries:
            packed = next((e for e in entries.infolist() if e.compress_type != zipfile.ZIP_STORED), None)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: not a whole file of torch.save ({error}); {remedy}") from None
    if packed is not None:
        raise UserError(
            f"{place}: its entry {shown(packed.filename)} is compressed, and torch.save compresses nothing;"
            f" {remedy}"
        )


def check_torch_pickle(file: Any, classes: Collection[str] = ()) -> set[str]:
    """The names in a file of torch.save that are neither torch's nor of `classes` (see TorchWalk).

    file: open, or its path. Raises ValueError if reading the pickle in it costs more than its length.
    """
    # torch's own reader, because it and zipfile may find different entries in a forged file
    data = torch.PyTorchFileReader(file).get_record("data.pkl")
    if len(data) > MOST_PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(data):,} bytes, and may have {MOST_PICKLE_BYTES:,}")
    walk = TorchWalk(data, classes)
    walk.check()
    return {name for name in walk.names.difference(classes) if not is_torch_name(name)}


@contextlib.contextmanager
def _only_safe_globals(classes: list[Any]) -> Iterator[None]:
    """As torch.serialization.safe_globals, without those that the program has registered so far."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(classes)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class _Placeholder:
    """Replaces an object of a class that is not needed."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_torch_file(
    file: Path,
    writer: str,
    *,
    classes: Sequence[type] = (),
    replaced: re.Pattern[str] | None = None,
    remedy: str = REMEDY,
) -> Any:
    """The content of a file of torch.save; its tensors stay on disk until they are used.

    writer: the library whose file it is, for messages. classes: those that may be in it, beside tensors,
    numbers, texts and lists. replaced: the names of those that become empty placeholders. Raises UserError if
    the file is not whole, or names anything else.
    """
    check_stored_zip(paths.regular(file), str(file), remedy)
    kept = {f"{c.__module__}.{c.__qualname__}" for c in classes}
    try:
        named = check_torch_pickle(str(file), kept)
        strange = sorted(n for n in named if replaced is None or not replaced.match(n))
        if strange:
            raise UserError(
                f"{file}: names {strange[0]}, which {writer} does not write there and which may run any"
                " code; do not use this file"
            )
        placeholders: list[Any] = [
            (type(n.rpartition(".")[2], (_Placeholder,), {}), n) for n in sorted(named)
        ]
        with _only_safe_globals([*classes, *placeholders]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # A broken or forged pickle makes torch's unpickler, which is written in Python, raise nearly anything.
    except (
        RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
        EOFError, OSError, MemoryError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{file}: not a whole file of torch.save ({said}); {remedy}") from None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's elements lie in its storage, one beside the other.

    A pickle may say (10^9, 10^9) elements with strides of 0 over 4 bytes: the first copy of them would be it.
    """
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def read_metadata(folder: Path) -> Metadata:
    """The content of the `.metadata` in a folder; raises UserError for anything that torch does not write."""
    file = folder / ".metadata"
    data = read_bytes(file, MOST_BYTES, REMEDY)
    try:
        Walk(data).check()
        return _metadata(_InertUnpickler(io.BytesIO(data)).load(), folder)
    # A pickle can make the unpickler raise nearly anything, and the checks below expect records.
    except (
        pickle.UnpicklingError, EOFError, AttributeError, LookupError, ValueError, TypeError, OverflowError,
        MemoryError, RecursionError, AssertionError, ImportError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{file}: not the metadata of a checkpoint ({str(error)[:200] or type(error).__name__}); {REMEDY}"
        ) from None


class _Inert:
    """A record in place of an object of the class `kind`: its arguments, and the state that is set later."""

    kind = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Inert:
        record = super().__new__(cls)
        record.arguments, record.state = arguments, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Makes records of all objects, of classes of its own: a pickle can also set attributes of classes."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self._classes: dict[str, type[_Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        dtype = getattr(torch, name, None) if module == "torch" and "." not in name else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if name not in METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {shown(f'{module}.{name}')}")
        if name not in self._classes:
            self._classes[name] = type(name, (_Inert,), {"kind": name})
        return self._classes[name]


def _fields(record: Any, kind: str) -> dict[str, Any]:
    if not isinstance(record, _Inert) or record.kind != kind or not isinstance(record.state, dict):
        raise ValueError(f"it has a {type(record).__name__} in place of a {kind}")
    return record.state


def _size(record: Any) -> tuple[int, ...]:
    """The numbers of a torch.Size."""
    numbers = record.arguments[0] if isinstance(record, _Inert) and record.kind == "Size" else record
    if not isinstance(numbers, tuple | list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise ValueError(f"it has {shown(numbers)} in place of a size")
    return tuple(numbers)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"it has {shown(value)} in place of a name")
    return value


def _metadata(record: Any, folder: Path) -> Metadata:
    fields = _fields(record, "Metadata")
    storage = dict(_stored(fields.get("storage_data") or {}))
    described = fields["state_dict_metadata"]
    if not isinstance(described, dict):
        raise ValueError("it names no tensors")
    # Every chunk is stored once. Lists may be shared, so that a small pickle stands for 10^12 chunks.
    tensors = {_text(name): value for name, value in described.items()}
    of_tensors = {n: _fields(t, t.kind) for n, t in tensors.items() if isinstance(t, _Inert)}
    chunks = sum(len(t["chunks"]) for t in of_tensors.values() if "chunks" in t)
    if len(of_tensors) != len(tensors) or chunks > len(storage):
        raise ValueError(f"it describes {chunks:,} chunks of tensors and stores {len(storage):,}")
    found = {name: _described(name, tensors[name], storage) for name in tensors}
    _check_files(storage, folder)
    saved = _fields(meta, "StorageMeta") if (meta := fields.get("storage_meta")) is not None else {}
    save_id = saved.get("save_id")
    return Metadata(
        found,
        storage_data=storage,
        storage_meta=StorageMeta(save_id=None if save_id is None else _text(save_id)),
        version=None if (version := fields.get("version")) is None else _text(version),
    )


def _stored(entries: Any) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
    if not isinstance(entries, dict):
        raise ValueError("its storage_data is no mapping")
    for key, value in entries.items():
        index, info = _fields(key, "MetadataIndex"), _fields(value, "_StorageInfo")
        offset, hint = index.get("offset"), index.get("index")
        if info.get("transform_descriptors"):
            raise ValueError("it has transformed chunks, which mt does not read")
        start, length = _size((info["offset"], info["length"]))
        yield (
            MetadataIndex(
                _text(index["fqn"]),
                None if offset is None else _size(offset),
                None if hint is None else _size((hint,))[0],
            ),
            _StorageInfo(_text(info["relative_path"]), start, length),
        )


def _described(
    name: str, record: _Inert, storage: Mapping[MetadataIndex, _StorageInfo]
) -> TensorStorageMetadata | BytesStorageMetadata:
    """A tensor of the checkpoint: its chunks lie in it, are as large as it, and have room in their files."""
    if record.kind == "BytesStorageMetadata":
        return BytesStorageMetadata()
    fields = _fields(record, "TensorStorageMetadata")
    size, properties = _size(fields["size"]), fields["properties"]
    if not isinstance(properties, _Inert) or properties.kind != "TensorProperties":
        raise ValueError(f"it has no properties of {shown(name)}")
    dtype = properties.state[0] if isinstance(properties.state, tuple) else properties.state.get("dtype")
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"it has {shown(dtype)} in place of the dtype of {shown(name)}")
    chunks, numbers = [], 0
    for chunk in fields["chunks"]:
        part = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _size(part["offsets"]), _size(part["sizes"])
        inside = len(offsets) == len(sizes) == len(size)
        if not inside or any(o + s > n for o, s, n in zip(offsets, sizes, size)):
            raise ValueError(f"a chunk of {shown(name)} is not inside of its size {size}")
        place = storage.get(MetadataIndex(name, offsets))
        if place is None or place.length < math.prod(sizes) * dtype.itemsize:
            raise ValueError(f"a chunk of {shown(name)} of size {sizes} is not stored")
        numbers += math.prod(sizes)
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
    if numbers != math.prod(size):
        raise ValueError(f"{shown(name)} has size {size}, and its chunks {numbers:,} numbers")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(size), chunks)


def _check_files(storage: Mapping[MetadataIndex, _StorageInfo], folder: Path) -> None:
    """Raises ValueError for a chunk that ends behind its file, or whose file is not there.

    Raises UserError for a file outside of the folder, or one that is not regular.
    """
    ends: dict[str, int] = {}
    for info in storage.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in ends.items():
        try:
            size = paths.named(folder, name, f"{folder / '.metadata'}, storage_data").stat().st_size
        except (OSError, ValueError):
            raise ValueError(f"it names {shown(name)}, which is not there") from None
        if end > size:
            raise ValueError(f"{shown(name)} has {size:,} bytes, and a chunk up to {end:,}")
