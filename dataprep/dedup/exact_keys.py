"""Keys of 128 bits that are equal for exact copies: of a text, or of the URL of a document."""

from __future__ import annotations

import urllib.parse

import xxhash

from ...documents.reader import Document
from .shingles import exact_bytes

NO_KEY = bytes(16)  # of a document without a URL
DEFAULT_PORTS = {"http": 80, "https": 443}


def exact_key(text: str) -> bytes:
    """A 128-bit hash of a text in form NFC, equal for exact copies: see `exact_bytes`."""
    return xxhash.xxh3_128_digest(exact_bytes(text))


def url_key(url: str) -> bytes:
    """A 128-bit hash of a URL without scheme, default port, fragment, final slash and case of the host."""
    url = url.strip()
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:  # not a URL: compare the string as it is
        return xxhash.xxh3_128_digest(url.encode())
    if parts.netloc:
        port_suffix = f":{port}" if port not in (None, DEFAULT_PORTS.get(parts.scheme)) else ""
        query = f"?{parts.query}" if parts.query else ""
        url = f"{parts.hostname or ''}{port_suffix}{parts.path.rstrip('/')}{query}"
    return xxhash.xxh3_128_digest(url.encode())


def document_url_key(document: Document, name: str) -> bytes:
    """The key of a document's URL, NO_KEY if it has none. name: of its field, or `id`."""
    url = document.id if name == "id" else document.meta.get(name)
    return url_key(url) if isinstance(url, str) and url.strip() else NO_KEY
