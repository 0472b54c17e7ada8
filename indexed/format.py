"""Reads and writes .bin/.idx pairs, Megatron-LM's format of token files, byte for byte.

A pair of files `PREFIX.bin` and `PREFIX.idx` has documents of one or more sequences of tokens. `.bin` is the
tokens of every sequence, concatenated, and nothing else. `.idx` is little-endian and packed, and gives their
positions (S sequences, D = documents + 1):

    offset      size  field
    0           9     magic "MMIDIDX\\0\\0"
    9           8     u64 version = 1
    17          1     u8 dtype code: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16 (mt writes 4 and 8)
    18          8     u64 S
    26          8     u64 D
    34          4 S   i32 length of every sequence, in tokens
    34 +  4 S   8 S   i64 start of every sequence in .bin, in bytes: the running sum of length * item size
    34 + 12 S   8 D   i64 document indices: 0, then the number of sequences up to the end of each document
                      (the last is S)
    34 + 12 S + 8 D   S   i8 mode of every sequence, only in multimodal files (only the size shows them)

A document without tokens has no sequence; its document index repeats the one before it.

Example: documents "ab", "", "cde" as bytes in u16, 299 appended to each that has tokens: S = 2, D = 4,
lengths [3, 4], pointers [0, 6], document indices [0, 1, 1, 2]; .idx has 90 bytes, .bin is `6100 6200 2b01
6300 6400 6500 2b01`.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
import numpy.typing as npt
import xxhash

from ..core import manifest, paths
from ..core.config import UserError
from ..core.parsing import Count
from .remote import RemoteSettings, RemoteTokens, is_remote, local_copy, remote_sample_digest, remote_size

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
LEGACY_HEADER = struct.Struct("<8s6Q")
# fmt: off
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64,
    6: np.float64, 7: np.float32, 8: np.uint16,
}
# fmt: on
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
# (dtype, lengths, pointers, document indices, modes) of an index; see IndexedDataset
Tables = tuple["np.dtype[Any]", np.ndarray, np.ndarray, np.ndarray, "np.ndarray | None"]
BLOCK = 1 << 20  # entries of a table that are read, checked or written at a time


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that Megatron-LM writes for a vocabulary; other programs rely on the same rule."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


class IndexedDataset:
    """A pair PREFIX.bin, PREFIX.idx, opened read-only and memory-mapped.

    prefix: without extension; remote.py reads s3://, gs:// and others. multimodal: whether the index ends
    with a mode for every sequence; None: decide by its size.

    Attributes: lengths: (S,) int32, tokens of every sequence. pointers: (S,) int64, in bytes.
    document_indices: (documents + 1,) int64, in sequences. modes: (S,) int8, or None. tokens: (sum of
    lengths,), all tokens in order, not copied. local_folder: folder for files that belong to the pair, such
    as sample indices.

    A pair that mt wrote is compared with its manifest: by size, then by modification time, and by every byte
    if the time differs. Raises UserError for a pair that is not whole.
    """

    tokens: np.ndarray | RemoteTokens

    def __init__(
        self, prefix: str | Path, *, multimodal: bool | None = False, remote: RemoteSettings | None = None
    ):
        self.prefix, self.remote = str(prefix), remote or RemoteSettings()
        distant = is_remote(self.prefix)
        where = local_copy(self.prefix + ".idx", self.remote) if distant else self.prefix + ".idx"
        self.local_folder = Path(where).parent
        index = _map(str(where))
        tables = _legacy_tables if bytes(index[:8]) == LEGACY_MAGIC else _tables
        self.dtype, self.lengths, self.pointers, self.document_indices, self.modes = tables(
            self.prefix + ".idx", index, multimodal
        )
        self.multimodal = self.modes is not None
        self._check()
        if distant:
            self.tokens = RemoteTokens(self.prefix + ".bin", self.dtype, self.remote)
        else:
            _check_manifest(self.prefix)
            self.tokens = np.frombuffer(_map(self.prefix + ".bin"), self.dtype)
        # Indexing a memoryview is three times as fast as indexing an array.
        self._lengths = self.lengths.view(np.uint8).data.cast("i")
        self._starts = self.pointers.view(np.uint8).data.cast("q")
        self._item = self.dtype.itemsize

    def __reduce__(self) -> tuple[Callable[[str], IndexedDataset], tuple[str]]:
        open_again = functools.partial(IndexedDataset, multimodal=self.multimodal, remote=self.remote)
        return open_again, (self.prefix,)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of a sequence, a read-only view."""
        start = self._starts[index] // self._item
        return self.tokens[start : start + self._lengths[index]]

    def get(self, index: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """`length` tokens (None: all others) of a sequence from `offset` on, a read-only view."""
        size = self._lengths[index]
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise IndexError(f"{self.prefix}: sequence {index} has {size} tokens, not [{offset}, {end})")
        start = self._starts[index] // self._item
        return self.tokens[start + offset : start + end]

    @property
    def num_documents(self) -> int:
        return len(self.document_indices) - 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the data, whatever its path: the index, the size of .bin and samples of its bytes."""
        index, data = self.prefix + ".idx", self.prefix + ".bin"
        distant = is_remote(self.prefix)
        digest = xxhash.xxh3_128(
            manifest.file_digest(local_copy(index, self.remote) if distant else index).encode()
        )
        digest.update((remote_sample_digest(data) if distant else manifest.sample_digest(data)).encode())
        return digest.hexdigest()

    def _check(self) -> None:
        """Raises UserError if the tables do not agree with one another or with the size of .bin."""
        name, total = self.prefix + ".idx", 0
        for at in range(0, len(self.lengths), BLOCK):
            lengths = self.lengths[at : at + BLOCK].astype(np.int64)
            if lengths.min() < 0:
                bad = at + int(np.argmax(lengths < 0))
                raise UserError(
                    f"{name}: sequence {bad} has the length {self.lengths[bad]}, which must not be negative;"
                    f" {_REMEDY}"
                )
            ends = total + np.cumsum(lengths * self.dtype.itemsize)
            wrong = self.pointers[at : at + BLOCK] != np.concatenate([[total], ends[:-1]])
            if wrong.any():
                bad = at + int(np.argmax(wrong))
                raise UserError(
                    f"{name}: sequence {bad} starts at byte {self.pointers[bad]}, not where the one before it"
                    f" ends; {_REMEDY}"
                )
            total = int(ends[-1])
        entries = self.document_indices
        if len(entries) == 0:
            raise UserError(f"{name}: has no document indices, not even the first 0; {_REMEDY}")
        if entries[0] != 0 or entries[-1] != len(self.lengths):
            raise UserError(
                f"{name}: its documents run from sequence {entries[0]} to {entries[-1]}, not from 0 to"
                f" {len(self.lengths)}; {_REMEDY}"
            )
        for at in range(0, len(entries) - 1, BLOCK):
            falls = np.diff(entries[at : at + BLOCK + 1]) < 0
            if falls.any():
                bad = at + int(np.argmax(falls))
                raise UserError(
                    f"{name}: document {bad} ends before it starts, at sequence {entries[bad + 1]}; {_REMEDY}"
                )
        size = remote_size(self.prefix + ".bin") if is_remote(self.prefix) else _size(self.prefix + ".bin")
        if size != total:
            raise UserError(
                f"{self.prefix}.bin: has {size:,} bytes where {name} records {total:,}: it is"
                f" {'truncated' if size < total else 'another file'}; {_REMEDY}"
            )


_REMEDY = "fetch or build the pair again"


def prefix_of(path: str) -> str:
    """The prefix of a pair, also from the path of one of its files: shells complete to those."""
    return path[:-4] if path.endswith((".bin", ".idx")) else path


def output_prefix_rule(prefix: str) -> tuple[bool, str]:
    """The rule of an output prefix, for `check`: it ends in the beginning of a file's name."""
    return (
        os.path.basename(prefix) not in ("", ".", ".."),
        f"output_prefix = {prefix} names a folder; add a name with which the files begin, as in"
        f" {os.path.join(prefix, 'data')}",
    )


def number(word: str) -> float | None:
    """The number that a word of a list of prefixes and weights is, or None."""
    try:
        return float(word)
    except ValueError:
        return None


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; {_prefix_remedy(path[:-4])}") from None


def check_pair_exists(prefix: str) -> None:
    """Raises UserError if a file of a local pair is not there; nothing is read."""
    for suffix in () if is_remote(prefix) else (".idx", ".bin"):
        _size(prefix + suffix)


def _prefix_remedy(prefix: str) -> str:
    """What to do about a prefix without files."""
    if number(prefix) is not None:
        return f"{prefix} is a number where the prefix of a .bin/.idx pair must stand; leave it out"
    if os.path.isdir(prefix):
        pairs = sorted(path.stem for path in Path(prefix).glob("*.idx"))
        example = f", such as {os.path.join(prefix, pairs[0])}" if pairs else ""
        return f"{prefix} is a folder; give the prefix of a .bin/.idx pair{example}"
    folder, name = os.path.split(prefix)
    ends = (
        "_document.idx",
        "_sentence.idx",
    )  # `mt data tokenize` adds the key and one of these to its prefix
    with contextlib.suppress(OSError):
        pairs = [
            n for n in sorted(os.listdir(folder or ".")) if n.startswith(f"{name}_") and n.endswith(ends)
        ]
        if name and pairs:
            meant = os.path.join(folder, pairs[0].removesuffix(".idx"))
            others = f" (and {len(pairs) - 1} more that begin so)" if len(pairs) > 1 else ""
            return f"did you mean {meant}?{others}"
    return "give the prefix of a .bin/.idx pair, without extension"


def _map(path: str) -> memoryview | bytes:
    """The bytes of a file, memory-mapped unless it is empty."""
    if _size(path) == 0:
        return b""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _tables(name: str, index: memoryview | bytes, multimodal: bool | None) -> Tables:
    """(dtype, lengths, pointers, document indices, modes) of an .idx file, not copied.

    Raises UserError if the header is wrong or does not agree with the size of the file.
    """
    if len(index) < HEADER.size:
        raise UserError(
            f"{name}: has {len(index)} bytes, fewer than the {HEADER.size} of a header; {_REMEDY}"
        )
    magic, version, code, sequences, entries = HEADER.unpack(index[: HEADER.size])
    if magic != MAGIC:
        raise UserError(
            f"{name}: starts with {magic!r}, not with {MAGIC!r}: it is not the index of a .bin file; check"
            " the path"
        )
    if version != 1:
        raise UserError(f"{name}: is of version {version}; mt reads version 1")
    if code not in DTYPES:
        raise UserError(
            f"{name}: has the dtype code {code}, which must be one of {', '.join(map(str, DTYPES))};"
            f" {_REMEDY}"
        )
    if entries < 1:
        raise UserError(f"{name}: has no document indices, not even the first 0; {_REMEDY}")
    plain = HEADER.size + 12 * sequences + 8 * entries
    if multimodal is None:
        multimodal = len(index) == plain + sequences > plain
    if len(index) != plain + (sequences if multimodal else 0):
        other = len(index) == plain + (0 if multimodal else sequences)
        kind = (
            "an index without modes: open it with multimodal=False"
            if multimodal
            else "a multimodal index, not one of text: open it with multimodal=True"
        )
        more = f"it is {kind}" if other else _REMEDY
        raise UserError(
            f"{name}: has {len(index):,} bytes where its header ({sequences:,} sequences, {entries - 1:,}"
            f" documents) gives {plain:,}; {more}"
        )
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    lengths = np.frombuffer(index, "<i4", sequences, HEADER.size)
    pointers = np.frombuffer(index, "<i8", sequences, HEADER.size + 4 * sequences)
    documents = np.frombuffer(index, "<i8", entries, HEADER.size + 12 * sequences)
    modes = np.frombuffer(index, "i1", sequences, plain) if multimodal else None
    return dtype, lengths, pointers, documents, modes


def _legacy_tables(name: str, index: memoryview | bytes, multimodal: bool | None) -> Tables:
    """`_tables` of an index from before 2023 (fairseq's TNTIDX, Megatron-LM's `lazy` and `cached`):

    magic "TNTIDX\\0\\0"; u64 version 1, dtype code, item size, N items, Z sizes, C document indices; then i64
    dimension offsets [N + 1], data offsets [N + 1] in tokens, sizes [Z], document indices [C].
    """
    if multimodal:
        raise UserError(
            f"{name}: has the format from before 2023 (TNTIDX), which has no modes; open it with"
            " multimodal=False"
        )
    if len(index) < LEGACY_HEADER.size:
        raise UserError(
            f"{name}: has {len(index)} bytes, fewer than the {LEGACY_HEADER.size} of a header; {_REMEDY}"
        )
    _, version, code, item, items, sizes, entries = LEGACY_HEADER.unpack(index[: LEGACY_HEADER.size])
    if version != 1:
        raise UserError(f"{name}: is of version {version}; mt reads version 1")
    # The codes 6 and 7 changed their meaning over the years; no text was written with them.
    if code not in DTYPES or code in (6, 7) or np.dtype(DTYPES[code]).itemsize != item:
        raise UserError(
            f"{name}: has the dtype code {code} with items of {item} bytes, which no text has; {_REMEDY}"
        )
    size = LEGACY_HEADER.size + 8 * (2 * (items + 1) + sizes + entries)
    if len(index) != size:
        raise UserError(
            f"{name}: has {len(index):,} bytes where its header ({items:,} sequences, {entries - 1:,}"
            f" documents) gives {size:,}; {_REMEDY}"
        )
    values = np.frombuffer(index, "<i8", offset=LEGACY_HEADER.size)
    dimensions, offsets, lengths, documents = np.split(values, np.cumsum([items + 1, items + 1, sizes]))
    if sizes != items or not np.array_equal(dimensions, np.arange(items + 1)):
        raise UserError(
            f"{name}: its items are not rows of tokens with one length each: it is not the index of a text;"
            " check the path"
        )
    if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= np.iinfo(np.int32).max:
        raise UserError(
            f"{name}: has a sequence of {lengths.min():,} or {lengths.max():,} tokens, which is impossible;"
            f" {_REMEDY}"
        )
    if offsets[0] != 0 or not np.array_equal(np.diff(offsets), lengths):
        raise UserError(f"{name}: its sequences do not start where those before them end; {_REMEDY}")
    return (
        np.dtype(DTYPES[code]).newbyteorder("<"),
        lengths.astype(np.int32),
        offsets[:-1] * item,
        documents,
        None,
    )


def _check_manifest(prefix: str) -> None:
    """Raises UserError if mt wrote the pair and a file of it has changed since."""
    for path in (Path(prefix + ".idx"), Path(prefix + ".bin")):
        sealed = manifest.manifest_of(path)
        if sealed is None:
            continue
        wrote = next(o for o in sealed["outputs"] if Path(o["name"]).name == path.name)
        stat = path.stat()
        if stat.st_size == wrote["bytes"] and stat.st_mtime_ns == wrote["mtime_ns"]:
            continue
        manifest.check_digest(path, wrote, sealed)
        # An intact copy gets the modification time of its original, so that it is compared only once.
        with contextlib.suppress(OSError):
            os.utime(path, ns=(stat.st_atime_ns, wrote["mtime_ns"]))


def refuse_pairs_of_others(run: manifest.Run, prefixes: Iterable[Path]) -> None:
    """Raises UserError and releases the run if a file of a pair exists; for runs before their first write."""
    for prefix in prefixes:
        for suffix in ("bin", "idx"):
            if (file := prefix.with_name(f"{prefix.name}.{suffix}")).exists():
                run.release()
                raise UserError(
                    f"{file}: exists already, and no unfinished run of these settings wrote it; choose"
                    " another output or pass --overwrite"
                )


def work_folder(prefix: Path) -> Path:
    """The working folder of a command that writes to a prefix; manifest.begin removes that of a stale run."""
    return prefix.with_name(f".{prefix.name}.partial")


class WriterState(TypedDict):
    """What an IndexedWriter has written at a commit."""

    bytes: Count
    sequences: Count
    documents: Count
    ends: Count
    xxh3: dict[str, str]  # of each file


class IndexedWriter:
    """Writes a pair as a stream; memory does not grow with it.

    It works on files in `folder`: NAME.bin, NAME.lengths, NAME.ends, and NAME.modes of multimodal data. The
    caller removes the folder when the result is complete. `commit` syncs everything added so far to the disk
    and returns a state; a later writer continues from that state and drops what was added after it. `finish`
    moves the pair to its place.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: npt.DTypeLike,
        folder: str | Path,
        state: WriterState | None = None,
        *,
        multimodal: bool = False,
    ):
        self.prefix, self.folder = Path(prefix), Path(folder)
        self.dtype, self.multimodal = np.dtype(dtype), multimodal
        paths.make_folder(self.folder)
        self._continued = state is not None
        state = state or WriterState(bytes=0, sequences=0, documents=0, ends=0, xxh3={})
        self.bytes, self.sequences, self.documents = state["bytes"], state["sequences"], state["documents"]
        self._ends = state["ends"]  # sequences in the documents so far
        self._digests = {suffix: xxhash.xxh3_128() for suffix in ("bin", "lengths", "ends", "modes")}
        final = self._final("bin")
        if self.bytes and final.exists() and not self._path("bin").exists():
            # killed in `finish` after the first rename, which is undone
            os.replace(final, self._path("bin"))
        self._files = {
            "bin": self._open("bin", self.bytes, state),
            "lengths": self._open("lengths", 4 * self.sequences, state),
            "ends": self._open("ends", 8 * self.documents, state),
        }
        if multimodal:
            self._files["modes"] = self._open("modes", self.sequences, state)

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.prefix.name}.{suffix}"

    def _final(self, suffix: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.{suffix}")

    def _open(self, suffix: str, size: int, state: WriterState) -> BinaryIO:
        path, digest = self._path(suffix), self._digests[suffix]
        file: BinaryIO = paths.update(path, "r+b")  # closed by finish
        if os.fstat(file.fileno()).st_size < size:
            file.close()
            raise UserError(f"{path}: has lost bytes since the run before; {self._remedy}")
        file.truncate(size)  # drops what was written after the commit
        manifest.add_to_digest(digest, file)
        if size and digest.hexdigest() != state["xxh3"].get(suffix):
            file.close()
            raise UserError(f"{path}: has other bytes than the run before wrote; {self._remedy}")
        file.seek(size)
        return file

    @property
    def _remedy(self) -> str:
        return f"remove the folder {self.folder} and run the same command again"

    def add(
        self,
        tokens: np.ndarray | Sequence[int],
        lengths: np.ndarray | Sequence[int],
        sequences_per_document: np.ndarray | Sequence[int],
        modes: np.ndarray | Sequence[int] | None = None,
    ) -> None:
        """Appends tokens, lengths of sequences, and numbers of sequences of documents.

        The three are separate streams: they must agree at `finish`, not after every call. modes: of
        multimodal data, one for each of the lengths.
        """
        raw = np.ascontiguousarray(tokens, self.dtype).data.cast("B") if len(tokens) else b""
        ends = self._ends + np.cumsum(sequences_per_document, dtype=np.int64)
        self._append("bin", raw)
        self._append("lengths", np.asarray(lengths, "<i4").tobytes())
        self._append("ends", ends.astype("<i8").tobytes())
        if self.multimodal:
            self._append("modes", np.asarray(() if modes is None else modes, "i1").tobytes())
        self.bytes += len(raw)
        self.sequences += len(lengths)
        self.documents += len(ends)
        self._ends = int(ends[-1]) if len(ends) else self._ends

    def _append(self, suffix: str, raw: Any) -> None:
        self._digests[suffix].update(raw)
        self._files[suffix].write(raw)

    def commit(self) -> WriterState:
        """Syncs everything to the disk; returns the state from which another writer continues."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return WriterState(
            bytes=self.bytes,
            sequences=self.sequences,
            documents=self.documents,
            ends=self._ends,
            xxh3={suffix: self._digests[suffix].hexdigest() for suffix in self._files},
        )

    def written(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is written so far, mapped: tokens, lengths of sequences, ends of documents in sequences.

        Nothing may be added afterwards.
        """
        self.commit()
        for file in self._files.values():
            file.close()
        kinds: dict[str, Any] = {"bin": self.dtype, "lengths": "<i4", "ends": "<i8"}
        tokens, lengths, ends = (np.frombuffer(_map(str(self._path(n))), k) for n, k in kinds.items())
        return tokens, lengths, ends

    def sync_tokens(self) -> None:
        """Syncs the tokens to the disk; another thread may add more meanwhile."""
        os.fsync(self._files["bin"].fileno())

    def finish(self) -> list[dict[str, Any]]:
        """Writes the index, moves the pair to its place, the index last, and returns `manifest.record`s."""
        self.commit()
        for file in self._files.values():
            file.close()
        digest = xxhash.xxh3_128()
        with paths.create(self._path("idx")) as file:
            for part in self._index():
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        records = []
        for suffix, hexdigest in (("bin", self._digests["bin"].hexdigest()), ("idx", digest.hexdigest())):
            os.replace(self._path(suffix), self._final(suffix))
            records.append(manifest.record(self._final(suffix), self.prefix.parent, hexdigest))
        manifest.sync_directory(self.prefix.parent)
        return records

    def _index(self) -> Iterator[bytes]:
        """The bytes of .idx, in blocks."""
        yield HEADER.pack(MAGIC, 1, CODES[self.dtype], self.sequences, self.documents + 1)
        yield from _blocks(self._path("lengths"), 4)
        start = 0
        for raw in _blocks(self._path("lengths"), 4):
            ends = start + np.cumsum(np.frombuffer(raw, "<i4").astype(np.int64) * self.dtype.itemsize)
            yield np.concatenate([[start], ends[:-1]]).astype("<i8").tobytes()
            start = int(ends[-1])
        wrong = start != self.bytes or self._ends != self.sequences
        if wrong and self._continued:
            raise UserError(f"{self.folder}: its files do not belong together; {self._remedy}")
        assert start == self.bytes, (
            f"{self.prefix}: lengths of {start} bytes for {self.bytes} bytes of tokens"
        )
        assert self._ends == self.sequences, (
            f"{self.prefix}: documents of {self._ends} sequences for {self.sequences}"
        )
        yield struct.pack("<q", 0)
        yield from _blocks(self._path("ends"), 8)
        if self.multimodal:
            size = self._path("modes").stat().st_size
            assert size == self.sequences, f"{self.prefix}: {size} modes for {self.sequences} sequences"
            yield from _blocks(self._path("modes"), 1)


def _blocks(path: Path, item: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(BLOCK * item), b"")
