"""HTTP responses: what an honest server sends is decoded, what a liar sends is bounded."""

import contextlib
import gzip
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract.http_response import BodyTooLong, read_response

ENCODE = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "identity": bytes,
}
BODIES = st.binary(max_size=200) | st.sampled_from([b"", b"a" * 5000, b"<p>text</p>" * 50])


def chunked(body, size=7):
    pieces = [body[n : n + size] for n in range(0, len(body), size)]
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def response(body, headers="", end="\r\n"):
    head = f"HTTP/1.1 200 OK{end}Content-Type: Text/HTML; charset=UTF-8{end}{headers}{end}"
    return head.encode("latin-1") + body


@given(BODIES, st.sampled_from(sorted(ENCODE)), st.booleans(), st.sampled_from(["\r\n", "\n"]))
def test_every_coding_is_decoded(body, coding, in_chunks, end):
    sent = ENCODE[coding](body)
    headers = f"Content-Encoding: {coding}{end}"
    if in_chunks:
        sent, headers = chunked(sent), f"{headers}transfer-encoding: chunked{end}"
    read = read_response(response(sent, headers, end))
    assert (read.status, read.type, read.charset) == (200, "text/html", "utf-8")
    assert read.body(10_000) == body


@pytest.mark.parametrize("name", ["Content-Encoding", "Transfer-Encoding"])
def test_several_codings_of_a_header_were_applied_in_their_order(name):
    sent = chunked(gzip.compress(brotli.compress(b"text")))
    assert read_response(response(sent, f"{name}: br, gzip, chunked\r\n")).body(100) == b"text"


@given(st.binary(max_size=60), st.lists(st.sampled_from([*ENCODE, "chunked", "what"]), max_size=5))
def test_any_body_under_any_header_is_a_body_or_an_error(body, codings):
    for name in ("Content-Encoding", "Transfer-Encoding"):
        read = read_response(response(body, f"{name}: {', '.join(codings)}\r\n"))
        with contextlib.suppress(ValueError):
            assert len(read.body(1000)) <= 1000


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_is_not_in_the_coding_of_its_header_is_taken_as_it_is(coding):
    body = b"<html><body><p>This server lies about its encoding.</p></body></html>"
    assert read_response(response(body, f"Content-Encoding: {coding}\r\n")).body(1000) == body
    assert read_response(response(body, "Transfer-Encoding: chunked\r\n")).body(1000) == body


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_of_more_bytes_than_allowed_is_not_decompressed(coding):
    sent = ENCODE[coding](bytes(50_000_000))
    with pytest.raises(BodyTooLong):
        read_response(response(sent, f"Content-Encoding: {coding}\r\n")).body(100_000)


def test_the_bare_format_of_deflate_is_read():
    stream = zlib.compressobj(wbits=-15)
    sent = stream.compress(b"bare") + stream.flush()
    assert read_response(response(sent, "Content-Encoding: deflate\r\n")).body(100) == b"bare"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(b"text" * 100)[:-20], "Content-Encoding: gzip\r\n"),
        (chunked(b"text" * 100)[:-20], "Transfer-Encoding: chunked\r\n"),
        (b"4\r\ntextno size\r\n", "Transfer-Encoding: chunked\r\n"),
        (b"4\r\ntext\r\nFFFFFFFFFFFFFFFF\r\n", "Transfer-Encoding: chunked\r\n"),
        (b"", "Content-Encoding: gzip, gzip, gzip, gzip, gzip\r\n"),
    ],
)
def test_a_body_that_is_not_whole_is_an_error(body, headers):
    with pytest.raises(ValueError, match=r"cut short|without a size|times"):
        read_response(response(body, headers)).body(1000)


def test_what_is_no_response_is_an_error():
    for raw in (b"", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 1_000_000):
        with pytest.raises(ValueError, match="no HTTP status line"):
            read_response(raw)
