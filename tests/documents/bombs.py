"""Small files of documents with one that becomes large, and a function that reads them in another process."""

import json
import zlib

import pyarrow
import pyarrow.parquet
import zstandard

from mt.documents import reader, sharding

PIECE = 1 << 20


def rows(first, last):
    return [{"id": str(i), "text": f"document {i}"} for i in range(first, last)]


def write(path, size):
    """Six documents with one of `size` bytes among them, if that is not 0; the name says the format."""
    if path.suffix in (".parquet", ".arrow"):
        long = [{"id": "long", "text": "a" * size}] if size else []
        table = pyarrow.Table.from_pylist([*rows(0, 3), *long, *rows(3, 6)])
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, path, compression="zstd")
            return path
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_stream(path, table.schema, options=options) as stream:
            stream.write_table(table)
        return path
    packed = {".gz": lambda: zlib.compressobj(1, wbits=31), ".zst": zstandard.ZstdCompressor(1).compressobj}
    pack = packed[path.suffix]() if path.suffix in packed else None
    with open(path, "wb") as file:
        for piece in _pieces(size):
            file.write(pack.compress(piece) if pack else piece)
        if pack:
            file.write(pack.flush())
    return path


def write_repeated(path, size, count):
    """Parquet with `count` rows of the same text of `size` bytes, which is in the file once."""
    texts = pyarrow.array(["first", "a" * size, "last"])
    numbers = pyarrow.array([0, *[1] * count, 2])
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(numbers, texts)})
    # Without Arrow's schema the reader does not learn that it was a dictionary.
    pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False)
    return path


def _pieces(size):
    lines = lambda *between: b"".join(json.dumps(row).encode() + b"\n" for row in rows(*between))
    yield lines(0, 3)
    if size:
        yield b'{"id": "long", "text": "'
        for _ in range(size // PIECE):
            yield b"a" * PIECE
        yield b"a" * (size % PIECE) + b'"}\n'
    yield lines(3, 6)


def read(path, limit, values=False):
    """([the texts that are read], [(place, reason, raw)] of the rejects) of a file."""
    rejects, texts = [], []
    for shard in sharding.plan([str(path)], max_record_bytes=limit, on_error="skip", shard_bytes=64 << 20):
        if values:
            texts += [text for (text,) in reader.read_values(shard, ("text",), rejects.append)]
        else:
            texts += [document.text for document in reader.read(shard, rejects.append)]
    return texts, [(reject.place, reject.reason, reject.raw) for reject in rejects]
