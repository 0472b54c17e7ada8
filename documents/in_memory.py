"""Documents as Python objects: `mt.read_documents` and `mt.write_documents`.

Functions that take documents take a `Document`, a text, or a mapping with the key `text`, as a row of a data
set of Hugging Face or a dict of pandas. A mapping's `id` is the document's id; its other keys are its fields.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.config import UserError, shown
from ..core.progress import notes_as_warnings
from . import charsets, files, reader, sharding, values
from .reader import Document
from .rejects import Reject
from .writer import Unwritable, Writer

DocumentLike = Document | str | Mapping[str, Any]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
ENDINGS = (".jsonl", ".jsonl.zst", ".parquet")


def read_documents(
    input: Paths,
    *,
    text_key: str = "text",
    include: Sequence[str] = (),
    encoding: str = charsets.UTF8,
    delimiter: str | None = None,
    no_header: bool = False,
    rejects: list[Reject] | None = None,
    max_record_bytes: int = files.MAX_RECORD_BYTES,
) -> Iterator[Document]:
    """Reads the documents of files, folders and globs, in the order in which commands read them.

    Args:
        input: a path or several: JSONL, JSON, CSV, TSV, text, Markdown, HTML, Parquet, Arrow, compressed or
            not; `hf:NAME[:CONFIG][:SPLIT]` for a data set of Hugging Face.
        text_key: the key of the text in a record.
        include: patterns of file names, such as `*.py`; files with such names are read as plain text.
        encoding: encoding of text files that do not begin with a byte-order mark.
        delimiter: what divides the columns of CSV and TSV files; by default it is found in their first rows.
        no_header: the first row of CSV and TSV files names no columns; their names are `1`, `2` ...
        rejects: a list, to which records that cannot be read are appended. Without it the first one raises
            UserError.
        max_record_bytes: a record of more bytes counts as one that cannot be read.

    A warning names the files of a folder that are not read. Raises UserError at once if an input does not
    exist.
    """
    options = sharding.InputOptions(
        include=tuple(include),
        encoding=encoding,
        delimiter=delimiter,
        no_header=no_header,
        on_error="fail" if rejects is None else "skip",
        max_record_bytes=max_record_bytes,
    )
    inputs = [input] if isinstance(input, str | os.PathLike) else list(input)
    with notes_as_warnings():
        shards = options.plan([os.fspath(path) for path in inputs], key=text_key)
        sharding.refuse_empty(shards)
    return _read(shards, rejects)


def _read(shards: sharding.Plan, rejects: list[Reject] | None) -> Iterator[Document]:
    for shard in shards:
        try:
            yield from reader.read(shard, None if rejects is None else rejects.append)
        except UserError as error:  # the remedy of the command line, as an argument
            raise UserError(str(error).replace("pass --on-error skip", "pass rejects=[]")) from None


def write_documents(documents: Iterable[DocumentLike], path: str | os.PathLike[str]) -> int:
    """Writes documents with all their fields to a file, and returns the number of documents.

    Args:
        documents: an iterable; only one of its documents at a time is in memory.
        path: ends in `.jsonl`, `.jsonl.zst` or `.parquet`. The file appears when it is complete, and replaces
            an older one.

    Raises UserError for another ending, and for a document that the format cannot store.
    """
    target = Path(path)
    if not target.name.endswith(ENDINGS) or target.name in ENDINGS:
        raise UserError(f"{target}: the name of a file of documents must end in {', '.join(ENDINGS)}")
    if target.is_dir():
        raise UserError(f"{target}: is a folder, but a file of documents is written; add a name")
    with Writer(target, root=target.parent) as writer:
        for document in as_documents(documents):
            try:
                writer.write(document)
            except Unwritable as error:
                raise UserError(f"document {shown(document.id)}: {error.reason}; mend it") from None
    return writer.documents


def as_documents(documents: Iterable[DocumentLike]) -> Iterator[Document]:
    """New Documents of what a caller gives, so that a change of them does not change the caller's.

    One without an id gets its number, from 0. Raises UserError for what is no document.
    """
    if isinstance(documents, str | Mapping | Document):
        raise UserError("documents must be several, as in a list; this is one: put it into [ ]")
    for number, item in enumerate(documents):
        if isinstance(item, Document):
            yield Document(item.id, item.text, dict(item.meta))
        elif isinstance(item, str):
            yield Document(str(number), item)
        elif isinstance(item, Mapping):
            fields = dict(item)
            text, name = fields.pop("text", None), fields.pop("id", None)
            if not isinstance(text, str):
                raise UserError(f"document {number}: its 'text' is {shown(text)}, which must be a text")
            yield Document(str(number) if name is None else values.id_text(name), text, fields)
        else:
            raise UserError(
                f"document {number}: is {shown(item)}, which must be a text, a mapping with the key 'text',"
                " or a Document"
            )
