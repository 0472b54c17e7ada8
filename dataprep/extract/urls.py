"""The `mt data urls` command: filter a list of URLs before a crawl, as Megatron-LM's blacklist_urls.py does.

The input is text with one URL per line. A URL is removed for the first of these reasons that applies: its
site is on the list of domains, its path ends in an extension on the list, it is shorter than nine characters,
it is malformed, or it is a duplicate of an earlier line. Hosts and entries are compared as IDNA
(UTS 46), so that `xn--mnchen-3ya.de` on the list is also `münchen.de`. Lines keep their order; blank lines
are ignored. Output directory:

    NNNNN.txt             the URLs kept, one file per shard of the input
    removed/NNNNN.jsonl   one line per removed URL: id (the URL), reason
    manifest.json         settings, inputs, counts; written last

While the command runs, `work/NNNNN.npy` has 9 bytes per URL. Duplicates are found by 64-bit hashes, one
partition of the hash range at a time, so that memory stays within PARTITION_BYTES (the probability of a wrong
match is 3 % in a billion URLs). Source: Megatron-LM, tools/openwebtext/blacklist_urls.py.
"""

from __future__ import annotations

import collections
import functools
import glob
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import idna
import numpy as np
import xxhash

from ...core import manifest
from ...core.arrays import UNFINISHED, open_array, refuse_beyond
from ...core.config import UserError, check, configuration, option
from ...core.executor import Workers, map_shards
from ...core.parsing import Count, read_bytes
from ...core.unicode import without_mark
from ...documents import charsets, files, folders
from ..stage import SHARD_RESULT, finish, no_row_is_lost

LISTS = Path(__file__).parent / "lists"
REASONS = ("kept", "domain", "extension", "too_short", "malformed", "duplicate")  # indexed by ROW's code
KEPT, DUPLICATE = 0, 5
RULES = 2  # to be changed with the reasons that URLs get
ROW = np.dtype([("code", "u1"), ("hash", "<u8")])
PARTITION_BYTES = 256 << 20
FileRange = tuple[str, int, int]  # path, start, end in bytes
LIST_LINE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")


@configuration()
class UrlsConfig(Workers):
    """The settings of `mt data urls`."""

    input: tuple[str, ...] = option(
        help="text files with one URL per line, folders of .txt, or globs", role="input"
    )
    output: str = option(help="directory for the result", role="output")
    domains: str = option(
        str(LISTS / "domains.txt"),
        "file of unwanted sites: `name` under any top-level domain, or `name.org`",
        role="input",
    )
    extensions: str = option(
        str(LISTS / "extensions.txt"), "file of unwanted file extensions, without a dot", role="input"
    )
    min_chars: int = option(9, "remove URLs shorter than this")
    shard_bytes: int = option(64_000_000, "size of the shards that inputs are split into, in bytes")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (bool(self.input), "input is empty: name files or directories"),
            (self.min_chars >= 0, f"min_chars = {self.min_chars} must be at least 0"),
            (self.shard_bytes >= 1 << 10, f"shard_bytes = {self.shard_bytes} must be at least {1 << 10}"),
        )


def urls(config: UrlsConfig) -> dict[str, Any]:
    """Filters lists of URLs; returns the stage's manifest."""
    domains, extensions = read_list(config.domains, hosts=True), read_list(config.extensions)
    not_read = folders.NotRead()
    files = _input_files(config.input, not_read)
    facts = {"lists": [sorted(domains), sorted(extensions)], "url_rules": [RULES, idna.__version__]}
    run = manifest.begin("data urls", config, files, facts=facts)
    not_read.report()
    not_read.tell(run)
    work = run.output / "work"
    sealed = run.manifest
    if not run.finished:
        shards = list(enumerate(_split_files(files, config.shard_bytes)))
        classify = functools.partial(
            _classify_shard, work=work, domains=domains, extensions=extensions, min_chars=config.min_chars
        )
        classified = map_shards(
            classify,
            shards,
            done=run.output / "parts/judged",
            **config.where,
            label="data urls",
            sizes=[end - start for _, (_, start, end) in shards],
            kinds={"rows": Count},
        )
        _mark_duplicates(work, [result["rows"] for result in classified])
        write = functools.partial(_write_shard, work=work, root=run.output)
        written = map_shards(
            write,
            shards,
            done=run.output / "parts/written",
            **config.where,
            label="data urls",
            kinds=SHARD_RESULT,
            agrees=no_row_is_lost,
        )
        sealed = finish(run, written)
    shutil.rmtree(work, ignore_errors=True)
    return sealed


def drop_reason(
    url: str, domains: frozenset[str], extensions: frozenset[str], min_chars: int = 9
) -> str | None:
    """The reason to remove a URL, duplicates aside, or None. Reasons are tested in Megatron-LM's order."""
    lower = url.lower()
    host = host_of(lower)
    if host and not domains.isdisjoint(domain_names(host)):
        return "domain"
    path = lower.partition("?")[0].partition("#")[0]
    _, dot, extension = path.rpartition("/")[2].rpartition(".")
    # "http://example.ai" has three parts between slashes: .ai is its top-level domain, not an extension
    if dot and extension in extensions and path.count("/") > 2:
        return "extension"
    if len(url) < min_chars:
        return "too_short"
    return None if HOST.fullmatch(host) else "malformed"


def host_of(url: str) -> str:
    """The host of a URL, as ascii_host gives it; "" if the URL is malformed."""
    found = ADDRESS.match(url.lower())
    return ascii_host(found["host"]) if found else ""


def ascii_host(host: str) -> str:
    """A lower-case host with `xn--` labels instead of letters outside ASCII (UTS 46, not transitional).

    A host that has characters without a mapping, or is longer than any, is returned as it is.
    """
    if host.isascii() or len(host) > MAX_HOST:
        return host
    try:
        mapped = idna.uts46_remap(host, std3_rules=False, transitional=False)
    except idna.IDNAError:
        return host
    labels = mapped.split(".")
    return ".".join(
        label if label.isascii() else f"xn--{label.encode('punycode').decode()}" for label in labels
    )


ADDRESS = re.compile(
    r"(?:https?|ftp)://(?:[^\s/?#@]*@)?(?P<host>\[[0-9a-f:.]+\]|[^\s/?#:\[\]]+)(?::\d{1,5})?(?:[/?#]\S*)?\Z"
)
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
HOST = re.compile(
    rf"(?:{_LABEL}\.)+(?:[^\W\d_]{{2,63}}|xn--[a-z0-9-]+)\.?|(?:\d{{1,3}}\.){{3}}\d{{1,3}}|\[[0-9a-f:.]+\]"
)
# Second-level domains under which countries register names: the name in google.co.uk is `google`.
SECOND_LEVEL = frozenset(
    ("ac", "co", "com", "edu", "go", "gob", "gov", "gv", "info", "ne", "net", "nom", "or", "org")
)

MAX_HOST = 1000  # characters; a domain name has 253, and fewer letters outside ASCII
MAX_LABELS = 127  # a domain name has 255 bytes at most (RFC 1035)


def domain_names(host: str) -> Iterator[str]:
    """The entries that match a host: google, co.uk, google.co.uk, www.google.co.uk for the last of these."""
    labels = host.rstrip(".").split(".")[-MAX_LABELS:]
    suffix_labels = 2 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL else 1
    if len(labels) > suffix_labels:
        yield labels[-suffix_labels - 1]
    for start in range(len(labels) - 1):
        yield ".".join(labels[start:])


LIST_BYTES = 1 << 30  # of a list of names; lists of millions have some 100 MB


def read_list(path: str | Path, *, hosts: bool = False) -> frozenset[str]:
    """The lower-case entries of a list: one per line, `#` begins a comment.

    hosts: they are hosts or labels of them, and may have letters outside ASCII: see ascii_host.

    Raises UserError with the line number for a line that is not a name.
    """
    try:
        text = without_mark(read_bytes(path, LIST_BYTES, may_be_pipe=True)).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    entries = set()
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.partition("#")[0].strip().lower().removeprefix(".")
        entry = ascii_host(entry) if hosts else entry
        if entry and not LIST_LINE.fullmatch(entry):
            raise UserError(
                f"{path}, line {number}: {entry!r} is not a name; write one name per line, as in example.org"
                " or jpg"
            )
        entries.add(entry)
    return frozenset(entries - {""})


def _input_files(inputs: tuple[str, ...], not_read: folders.NotRead) -> list[Path]:
    """The files that files, folders and globs name; not_read gets those of folders that are none."""
    files: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            # of a folder that mt wrote it is known what the other files are
            others = not_read if manifest.manifest_of(path) is None else folders.NotRead()
            found = folders.below(path, lambda name: name.suffix.lower() == ".txt", others)
        else:
            found = [path] if path.exists() else sorted(map(Path, glob.glob(item, recursive=True)))
        if not found:
            reason = "contains no .txt" if path.is_dir() else "no such file or directory"
            raise UserError(f"{item}: {reason}; check the path")
        files += found
    for path in files:
        if path.is_file():  # what is no file is refused by the stage
            with open(path, "rb") as file:
                encoding = charsets.marked_encoding(file.read(4))
            if encoding not in (None, charsets.UTF8):
                raise UserError(f"{path}: is {encoding.upper()}; save the file as UTF-8")
    return files


def _split_files(files: list[Path], shard_bytes: int) -> list[FileRange]:
    """Ranges of about equal size; a line belongs to the range in which its first byte lies."""
    ranges = []
    for path in files:
        size = path.stat().st_size
        number = max(1, round(size / shard_bytes))
        bounds = [size * i // number for i in range(number + 1)]
        ranges += [(str(path), start, end) for start, end in itertools.pairwise(bounds)]
    return ranges


def _lines(file_range: FileRange) -> Iterator[bytes]:
    """The lines of a range that are not blank, stripped; of one too long to be read, its beginning."""
    for start, _, lines in files.lines_between(*file_range):
        for index, line in enumerate(lines):
            line = line.beginning if isinstance(line, files.Refused) else line
            line = (without_mark(line) if start == index == 0 else line).strip()
            if line:
                yield line


def _classify_shard(
    item: tuple[int, FileRange],
    *,
    work: Path,
    domains: frozenset[str],
    extensions: frozenset[str],
    min_chars: int,
) -> dict[str, int]:
    """Writes `work/NNNNN.npy`, a ROW for each URL of a shard; duplicates are not known yet."""
    index, file_range = item
    codes, hashes = bytearray(), []
    for line in _lines(file_range):
        try:
            reason = drop_reason(line.decode(), domains, extensions, min_chars)
        except UnicodeDecodeError:
            reason = "malformed"
        codes.append(REASONS.index(reason or "kept"))
        hashes.append(xxhash.xxh3_64_intdigest(line))
    rows = np.empty(len(codes), ROW)
    rows["code"], rows["hash"] = np.frombuffer(codes, np.uint8), np.array(hashes, np.uint64)
    with manifest.atomic_write(work / f"{index:05d}.npy") as file:
        np.save(file, rows)
    return {"rows": len(rows)}


def _mark_duplicates(work: Path, rows: list[int]) -> None:
    """Writes `work/NNNNN.duplicates.npy`: the rows of each shard whose URL equals an earlier kept one.

    rows: the number of URLs of each shard. A second run writes the same bytes, so a killed run may repeat
    this step.
    """
    # a hash takes 8 bytes, its row number 8, and sorting them as much again
    num_partitions = 1 + sum(rows) * 40 // PARTITION_BYTES
    duplicates: list[list[np.ndarray]] = [[] for _ in rows]
    starts = np.concatenate(([0], np.cumsum(rows)))  # row number of the first URL of each shard
    for partition in range(num_partitions):
        hashes, row_numbers = [], []
        for index, start in enumerate(starts[:-1]):
            table = _open_rows(work, index, rows[index])
            in_partition = table["hash"] % np.uint64(num_partitions) == partition
            chosen = np.flatnonzero((table["code"] == KEPT) & in_partition)
            hashes.append(table["hash"][chosen])
            row_numbers.append(chosen + start)
        repeated = _repeated(np.concatenate(hashes), np.concatenate(row_numbers))
        for index, (start, end) in enumerate(itertools.pairwise(starts)):
            duplicates[index].append(repeated[(repeated >= start) & (repeated < end)] - start)
    for index, of_partitions in enumerate(duplicates):
        with manifest.atomic_write(work / f"{index:05d}.duplicates.npy") as file:
            np.save(file, np.sort(np.concatenate(of_partitions)))


def _open_rows(work: Path, index: int, count: int | None = None) -> np.ndarray:
    """The ROWs of a shard's URLs."""
    path = work / f"{index:05d}.npy"
    table = open_array(path, ROW, (count,), remedy=UNFINISHED)
    refuse_beyond(table["code"], len(REASONS), path)
    return table


def _repeated(hashes: np.ndarray, row_numbers: np.ndarray) -> np.ndarray:
    """The rows whose hash an earlier row has too. row_numbers: int64, of the hashes, increasing.

    numpy sorts numbers alone fifteen times as fast as it finds their order, which np.unique does.
    """
    ordered = np.sort(hashes)
    several = ordered[1:][ordered[1:] == ordered[:-1]]  # hashes that more than one row has
    if not len(several):
        return row_numbers[:0]
    rows = np.arange(len(hashes))
    if len(several) < len(hashes) // 50:  # else looking for them takes longer than finding the order of all
        places = np.searchsorted(several, hashes)
        rows = np.flatnonzero(several[np.minimum(places, len(several) - 1)] == hashes)
    rows = rows[np.argsort(hashes[rows], kind="stable")]  # of equal hashes the earlier row comes first
    return np.asarray(row_numbers[rows[1:][hashes[rows[1:]] == hashes[rows[:-1]]]])


def _write_shard(item: tuple[int, FileRange], *, work: Path, root: Path) -> dict[str, Any]:
    """Writes a shard's kept URLs and its removed/ file; returns its counts, for stage.finish."""
    index, file_range = item
    codes = np.array(_open_rows(work, index)["code"])
    path = work / f"{index:05d}.duplicates.npy"
    duplicates = open_array(path, np.int64, (None,), remedy=UNFINISHED)
    refuse_beyond(duplicates, len(codes), path)
    codes[duplicates] = DUPLICATE
    kept_path, removed_path = root / f"{index:05d}.txt", root / "removed" / f"{index:05d}.jsonl"
    text_bytes_in = text_bytes = 0
    with manifest.atomic_write(kept_path) as kept, manifest.atomic_write(removed_path, "w") as log:
        for line, code in itertools.zip_longest(_lines(file_range), codes.tolist()):
            if line is None or code is None:
                raise UserError(f"{work / f'{index:05d}.npy'}: is of other URLs than the input; {UNFINISHED}")
            text_bytes_in += len(line)
            if code == KEPT:
                kept.write(line + b"\n")
                text_bytes += len(line)
            else:
                entry = {"id": line.decode("utf-8", "replace"), "reason": REASONS[code]}
                log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    counts = collections.Counter(REASONS[code] for code in codes.tolist())
    number = counts.pop("kept", 0)
    return {
        "outputs": [
            {**manifest.record(path, root), "documents": False} for path in (kept_path, removed_path)
        ],
        "rows_in": len(codes),
        "rows_kept": number,
        "documents": number,
        "text_bytes_in": text_bytes_in,
        "text_bytes": text_bytes,
        "removed": dict(counts),
        "tallies": {},
        "rejected": 0,
    }
