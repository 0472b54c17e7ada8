"""Which pages of a crawl are left out for their URL alone, before their text is extracted.

The lists are files of the user, or those of lists/: one entry on a line, `#` before a comment. A URL is
blocked for the first of these reasons that applies:

    url_domain       its host or a part of it is on a list of domains: `example.org` also blocks
                     `www.example.org`, and `example` blocks that name under every top-level domain
    url              the whole URL, without its scheme, is on a list of URLs
    url_word         one of its words is blocked; words are what stands between other characters than letters
                     and digits
    url_soft_words   it has at least `min_soft_words` different words of a second list
    url_substring    its letters and digits, joined, contain an entry

Case does not matter, and `%41` is `A`. Hosts are compared as IDNA, as in urls.py. Lists of domains have
millions of entries, so workers share one file of sorted 64-bit hashes. The probability that a URL is blocked
wrongly because of an equal hash is below 1e-12 for each name that is looked up in ten million entries.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import idna
import numpy as np
import xxhash

from ...core import manifest
from ...core.arrays import UNFINISHED, open_array
from ...core.config import UserError, shown
from ...core.unicode import without_mark
from ...documents import files
from .urls import LISTS, ascii_host, domain_names, host_of

# To be changed with what is blocked for the same lists.
RULES = 2
BASE = 0x9E3779B97F4A7C15  # of a polynomial modulo 2^64; odd, so that it has an inverse
BLOCK_BYTES = 1 << 18  # of lines that are hashed at once
DEFAULT = "default"
DEFAULTS = {
    "blocked_domains": "domains.txt",
    "blocked_words": "url_words.txt",
    "soft_blocked_words": "url_soft_words.txt",
    "blocked_substrings": "url_substrings.txt",
}
PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789-_.\n"
COMMENT = re.compile(r"(?:^|\s)#")
ENTRY = re.compile(r"[^\s/?#:@]+")  # a host, or a label of one
MASK = (1 << 64) - 1
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
SEPARATORS = re.compile(r"[\W_]+")


@dataclasses.dataclass(frozen=True)
class UrlFilter:
    """What is blocked. domains, urls: files of hashes that `save` wrote; None blocks none."""

    domains: str | None = None
    urls: str | None = None
    words: frozenset[str] = frozenset()
    soft_words: frozenset[str] = frozenset()
    min_soft_words: int = 2
    substrings: tuple[str, ...] = ()

    def block_reason(self, url: str) -> str | None:
        """The reason to leave a URL out, or None."""
        if self.domains is not None and _any_in(_load(self.domains), domain_names(host_of(url))):
            return "url_domain"
        if self.urls is not None and _any_in(_load(self.urls), [_bare_url(url)]):
            return "url"
        if not (self.words or self.soft_words or self.substrings):
            return None
        words = SEPARATORS.split(unquote(url).lower())
        if not self.words.isdisjoint(words):
            return "url_word"
        if self.soft_words and len(self.soft_words.intersection(words)) >= self.min_soft_words:
            return "url_soft_words"
        joined = "".join(words)
        return "url_substring" if any(entry in joined for entry in self.substrings) else None


Lists = dict[str, np.ndarray | frozenset[str]]  # by the setting that names the file


def read_lists(paths: Mapping[str, str | None]) -> Lists:
    """The lists in the files that are given; raises UserError for one that cannot be read.

    `default` is mt's own list. Domains and URLs are sorted hashes (uint64), words are texts without what is
    no letter or digit.
    """
    found: Lists = {}
    for name, path in paths.items():
        if path == DEFAULT and not Path(path).exists():
            path = str(LISTS / DEFAULTS[name]) if name in DEFAULTS else path
        if path is not None:
            if Path(path).is_char_device():  # /dev/zero has no end
                raise UserError(f"{path}: is a device, not a list; check the path")
            found[name] = READERS[name](path)
    return found


def facts(lists: Lists) -> dict[str, Any]:
    """What a run's key needs to know of the lists; nothing without lists."""
    digests = {name: _digest(values) for name, values in lists.items()}
    return {"url_filter": {"rules": [RULES, idna.__version__], **digests}} if lists else {}


def save(lists: Lists, min_soft_words: int, folder: Path) -> UrlFilter | None:
    """The filter of some lists, whose hashes are saved in a folder for all workers; None without lists."""
    if not lists:
        return None
    found: dict[str, Any] = dict(lists)
    for name in ("blocked_domains", "blocked_urls"):
        if name in lists:
            path = folder / f"{name}-{_digest(lists[name])}.npy"
            with manifest.atomic_write(path) as file:
                np.save(file, np.asarray(lists[name]))
            found[name] = str(path)
    return UrlFilter(
        domains=found.get("blocked_domains"),
        urls=found.get("blocked_urls"),
        words=found.get("blocked_words", frozenset()),
        soft_words=found.get("soft_blocked_words", frozenset()),
        min_soft_words=min_soft_words,
        substrings=tuple(sorted(found.get("blocked_substrings", ()))),
    )


def _bare_url(url: str) -> str:
    """A URL without its scheme, a slash at its end, and what case hides."""
    url = url.strip()
    scheme = SCHEME.match(url)
    return url[scheme.end() if scheme else 0 :].lower().rstrip("/")


def name_hash(name: str) -> int:
    """The hash of a name, below 2^64: the sum of (byte + 1) * BASE^place over its bytes in UTF-8."""
    found = 0
    for byte in reversed(name.encode()):
        found = (found * BASE + byte + 1) & MASK
    return found


def _has_outer_dot(block: bytes) -> bool:
    """Whether a line begins or ends with a dot. The block begins and ends with a newline."""
    codes = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(codes == ord("\n"))
    return bool((codes[ends[1:] - 1] == ord(".")).any() or (codes[ends[:-1] + 1] == ord(".")).any())


def _hashes_of_lines(block: bytes) -> np.ndarray:
    """uint64: name_hash of every line of a block that is not empty; the block ends with a newline.

    A line's sum is taken with the powers of its bytes' places in the block, and divided by that of the first.
    """
    powers, inverses = _powers()
    codes = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(codes == ord("\n"))
    starts = np.concatenate(([0], ends[:-1] + 1))
    terms = (codes + np.uint8(1)) * powers[: len(codes)]
    terms[ends] = 0
    starts = starts[starts < ends]
    if not len(starts):
        return np.empty(0, np.uint64)
    return np.asarray(np.add.reduceat(terms, starts) * inverses[starts])


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """(BLOCK_BYTES,) uint64 each: the powers of BASE, and of its inverse modulo 2^64."""
    return tuple(  # type: ignore[return-value]
        np.cumprod(np.array([1, *[base] * (BLOCK_BYTES - 1)], np.uint64))
        for base in (BASE, pow(BASE, -1, 1 << 64))
    )


def _read_words(path: str) -> frozenset[str]:
    found = set()
    for number, entry in _entries(path):
        word = SEPARATORS.sub("", entry.lower())
        if not word:
            raise UserError(
                f"{path}, line {number}: {shown(entry)} has no letter or digit; write one word per line"
            )
        found.add(word)
    return frozenset(found)


def _read_domains(path: str) -> np.ndarray:
    hashes = array.array("Q")
    for _, first, lines in files.packed_lines(path):
        # a block of a list that needs no change, as nearly all are, is hashed as a whole
        try:
            block = b"\n%b\n" % b"".join(lines)
        except TypeError:  # one is Refused
            block = b"#"
        if len(block) <= BLOCK_BYTES and not block.translate(None, PLAIN) and not _has_outer_dot(block):
            hashes.frombytes(_hashes_of_lines(block).tobytes())
            continue
        for number, entry in _entries_of(path, first, lines):
            host = ascii_host(entry.lower().removeprefix(".").rstrip("."))
            if not ENTRY.fullmatch(host):
                raise UserError(
                    f"{path}, line {number}: {shown(entry)} is not a domain; write one name per line, as in"
                    " example.org"
                )
            hashes.append(name_hash(host))
    return np.sort(np.array(hashes, np.uint64))  # np.unique takes ten times as long


def _read_urls(path: str) -> np.ndarray:
    hashes = (name_hash(_bare_url(entry)) for _, entry in _entries(path))
    return np.sort(np.fromiter(hashes, np.uint64))


READERS: dict[str, Callable[[str], np.ndarray | frozenset[str]]] = {
    "blocked_domains": _read_domains,
    "blocked_urls": _read_urls,
    "blocked_words": _read_words,
    "soft_blocked_words": _read_words,
    "blocked_substrings": _read_words,
}


def _digest(values: np.ndarray | frozenset[str]) -> str:
    data = values.tobytes() if isinstance(values, np.ndarray) else "\n".join(sorted(values)).encode()
    return xxhash.xxh3_128(data).hexdigest()


def _entries(path: str) -> Iterator[tuple[int, str]]:
    """(line number, entry) of a list, without comments and blank lines."""
    for _, first, lines in files.packed_lines(path):
        yield from _entries_of(path, first, lines)


def _entries_of(path: str, first: int, lines: files.Lines) -> Iterator[tuple[int, str]]:
    """The entries in some lines, of which `first` is the number of the first one."""
    for number, line in enumerate(lines, first):
        if isinstance(line, files.Refused):
            raise UserError(f"{path}, line {number}: {line.reason}; check the file")
        try:
            text = without_mark(line).decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: byte {error.start} is not UTF-8; save the file as UTF-8"
            ) from None
        # a URL may have `#` in it
        entry = COMMENT.split(text, maxsplit=1)[0].strip() if "#" in text else text.strip()
        if entry:
            yield number, entry


@functools.cache
def _load(path: str) -> np.ndarray:
    """The hashes in a file, as one copy for all processes of a machine."""
    return open_array(path, np.uint64, (None,), remedy=UNFINISHED)


def _any_in(hashes: np.ndarray, names: Iterable[str]) -> bool:
    """Whether the hash of a name is among sorted ones."""
    wanted = np.array(list(map(name_hash, names)), np.uint64)
    places = np.searchsorted(hashes, wanted)
    return bool(np.any(hashes[np.minimum(places, len(hashes) - 1)] == wanted)) if len(hashes) else False
