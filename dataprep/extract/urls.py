"""URL lists to fewer URLs: the step before a crawl, Megatron-LM's tools/openwebtext/blacklist_urls.py.

Input is text with one URL to a line. The first of these that holds removes a URL: its site is on the list of
domains, its path ends in an extension on the list, it has at most eight characters, it is malformed, it has
stood before. Lines keep their order; blank ones are no rows. Output directory:

    NNNNN.txt             the URLs kept, one file a shard of the input
    removed/NNNNN.jsonl   a line for every URL removed: id (the URL), reason
    manifest.json         settings, inputs, counts; written last

While it runs, `work/NNNNN.npy` holds 9 bytes for each URL. Duplicates are found from 64-bit hashes, a share
of all hashes at a time, so that memory stays within PARTITION_BYTES (a wrong match has odds of 3 % in a
billion URLs).
"""

from __future__ import annotations

import collections
import functools
import glob
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash

from ...core import manifest
from ...core.config import UserError, check, configuration, option
from ...core.executor import Workers, map_shards
from ..stage import finish

LISTS = Path(__file__).parent / "lists"
# a row's code is its place here
REASONS = ("kept", "domain", "extension", "too_short", "malformed", "duplicate")
KEPT, DUPLICATE = 0, 5
ROW = np.dtype([("code", "u1"), ("hash", "<u8")])
PARTITION_BYTES = 256 << 20
LIST_LINE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")


@configuration()
class UrlsConfig(Workers):
    """The settings of `mt data urls`."""

    input: tuple[str, ...] = option(
        help="text files with one URL to a line, folders of .txt, or globs", role="input"
    )
    output: str = option(help="directory for the result", role="output")
    domains: str = option(
        str(LISTS / "domains.txt"),
        "file of unwanted sites: `name` under any ending, or `name.org`",
        role="input",
    )
    extensions: str = option(
        str(LISTS / "extensions.txt"), "file of unwanted endings, without a dot", role="input"
    )
    min_chars: int = option(9, "URLs shorter than this go")
    shard_bytes: int = option(64_000_000, "size of the pieces that inputs are cut into, in bytes")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.input), "input is empty: name files or directories"),
            (self.min_chars >= 0, f"min_chars = {self.min_chars} must be at least 0"),
            (self.shard_bytes >= 1 << 10, f"shard_bytes = {self.shard_bytes} must be at least {1 << 10}"),
        )


def urls(config: UrlsConfig) -> dict:
    """Drops the URLs that are not worth fetching; returns the stage's manifest."""
    lists = (read_list(config.domains), read_list(config.extensions))
    files = _files(config.input)
    facts = {"lists": [sorted(entries) for entries in lists]}
    run = manifest.begin("data urls", config, files, facts=facts)
    work = run.output / "work"
    if not run.finished:
        shards = list(enumerate(_pieces(files, config.shard_bytes)))
        judge = functools.partial(_judge_shard, work=work, lists=lists, min_chars=config.min_chars)
        rows = [
            r["rows"]
            for r in map_shards(
                judge,
                shards,
                done=run.output / "parts/judged",
                **config.where,
                label="data urls",
                sizes=[e - s for _, (_, s, e) in shards],
            )
        ]
        _mark_duplicates(work, rows)
        write = functools.partial(_write_shard, work=work, root=run.output)
        finish(
            run,
            map_shards(write, shards, done=run.output / "parts/written", **config.where, label="data urls"),
        )
    shutil.rmtree(work, ignore_errors=True)
    return run.manifest


def drop_reason(
    url: str, domains: frozenset[str], extensions: frozenset[str], min_chars: int = 9
) -> str | None:
    """Why a URL is not worth fetching, duplicates aside, or None; the first of the reasons in Megatron's
    order.
    """
    lower = url.lower()
    found = ADDRESS.match(lower)
    host = found["host"] if found else ""
    if host and not domains.isdisjoint(_names(host)):
        return "domain"
    path = lower.partition("?")[0].partition("#")[0]
    _, dot, ending = path.rpartition("/")[2].rpartition(".")
    if dot and ending in extensions and path.count("/") > 2:  # a site's own ending (.ai, .ps) is none
        return "extension"
    if len(url) < min_chars:
        return "too_short"
    return None if found and HOST.fullmatch(host) else "malformed"


ADDRESS = re.compile(
    r"(?:https?|ftp)://(?:[^\s/?#@]*@)?(?P<host>\[[0-9a-f:.]+\]|[^\s/?#:\[\]]+)(?::\d{1,5})?(?:[/?#]\S*)?\Z"
)
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
HOST = re.compile(
    rf"(?:{_LABEL}\.)+(?:[^\W\d_]{{2,63}}|xn--[a-z0-9-]+)\.?|(?:\d{{1,3}}\.){{3}}\d{{1,3}}|\[[0-9a-f:.]+\]"
)
# Second-level endings under which countries register names: google.co.uk is `google`.
SECOND_LEVEL = frozenset(
    ("ac", "co", "com", "edu", "go", "gob", "gov", "gv", "info", "ne", "net", "nom", "or", "org")
)


def _names(host: str) -> Iterator[str]:
    """What a list may call a site: `www.google.co.uk` is google, co.uk, google.co.uk and www.google.co.uk."""
    labels = host.rstrip(".").split(".")
    ending = 2 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL else 1
    if len(labels) > ending:
        yield labels[-ending - 1]
    for start in range(len(labels) - 1):
        yield ".".join(labels[start:])


def read_list(path: str) -> frozenset[str]:
    """The entries of a list: one to a line in lower case, `#` begins a comment; UserError names a line that
    is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    entries = set()
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.partition("#")[0].strip().lower().removeprefix(".")
        if entry and not LIST_LINE.fullmatch(entry):
            raise UserError(
                f"{path}, line {number}: {entry!r} is not a name; write one to a line, as in example.org"
                " or jpg"
            )
        entries.add(entry)
    return frozenset(entries - {""})


def _files(inputs: tuple[str, ...]) -> list[Path]:
    files: list[Path] = []
    for item in inputs:
        path = Path(item)
        found = (
            sorted(path.rglob("*.txt"))
            if path.is_dir()
            else [path]
            if path.exists()
            else sorted(map(Path, glob.glob(item, recursive=True)))
        )
        if not found:
            raise UserError(
                f"{item}: {'holds no .txt' if path.is_dir() else 'no such file or directory'}; check the path"
            )
        files += found
    return files


def _pieces(files: list[Path], shard_bytes: int) -> list[tuple[str, int, int]]:
    """(path, start, end) of pieces of about equal size; a line belongs to the piece in which its first byte
    lies.
    """
    pieces = []
    for path in files:
        size = path.stat().st_size
        number = max(1, round(size / shard_bytes))
        cuts = [size * i // number for i in range(number + 1)]
        pieces += [(str(path), a, b) for a, b in itertools.pairwise(cuts)]
    return pieces


def _lines(piece: tuple[str, int, int]) -> Iterator[bytes]:
    """The lines of a piece that are not blank, stripped."""
    path, start, end = piece
    with open(path, "rb", buffering=1 << 20) as file:
        if start:
            file.seek(start - 1)
            file.readline()
        while file.tell() < end and (line := file.readline()):
            if line := line.strip():
                yield line


def _judge_shard(item, *, work: Path, lists, min_chars: int) -> dict:
    """Writes a ROW for each URL of a shard, duplicates still unknown."""
    index, piece = item
    judge: Callable[[str], str | None] = functools.partial(
        drop_reason, domains=lists[0], extensions=lists[1], min_chars=min_chars
    )
    codes, hashes = bytearray(), []
    for line in _lines(piece):
        try:
            reason = judge(line.decode())
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
    """Writes `work/NNNNN.duplicates.npy`: the rows of each shard whose URL has been kept before, here or
    further up.

    Writing it again gives the same bytes, so a run killed here begins this step anew.
    """
    # a hash takes 8 bytes, its place 8, sorting them as much again
    parts = 1 + sum(rows) * 40 // PARTITION_BYTES
    found: list[list[np.ndarray]] = [[] for _ in rows]
    starts = np.concatenate(([0], np.cumsum(rows)))
    for part in range(parts):
        hashes, places = [], []
        for index, start in enumerate(starts[:-1]):
            table = np.load(work / f"{index:05d}.npy", mmap_mode="r")
            mine = np.flatnonzero((table["code"] == KEPT) & (table["hash"] % np.uint64(parts) == part))
            hashes.append(table["hash"][mine])
            places.append(mine + start)
        first = np.unique(np.concatenate(hashes), return_index=True)[1]
        again = np.delete(np.concatenate(places), first)
        for index, (start, end) in enumerate(itertools.pairwise(starts)):
            found[index].append(again[(again >= start) & (again < end)] - start)
    for index, shares in enumerate(found):
        with manifest.atomic_write(work / f"{index:05d}.duplicates.npy") as file:
            np.save(file, np.sort(np.concatenate(shares)))


def _write_shard(item, *, work: Path, root: Path) -> dict:
    """Writes a shard's URLs that stay and its removed/ lines; returns its counts, for stage.finish."""
    index, piece = item
    codes = np.array(np.load(work / f"{index:05d}.npy")["code"])
    codes[np.load(work / f"{index:05d}.duplicates.npy")] = DUPLICATE
    kept_path, removed_path = root / f"{index:05d}.txt", root / "removed" / f"{index:05d}.jsonl"
    text_bytes_in = text_bytes = 0
    with manifest.atomic_write(kept_path) as kept, manifest.atomic_write(removed_path, "w") as log:
        for line, code in zip(_lines(piece), codes.tolist(), strict=True):
            text_bytes_in += len(line)
            if code == KEPT:
                kept.write(line + b"\n")
                text_bytes += len(line)
            else:
                log.write(
                    json.dumps(
                        {"id": line.decode("utf-8", "replace"), "reason": REASONS[code]}, ensure_ascii=False
                    )
                    + "\n"
                )
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
