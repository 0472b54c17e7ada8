"""HTTP responses: what an honest server sends is decoded, what a liar sends is bounded."""

import contextlib
import gzip
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract.http_response import GZIP, ZSTD, BodyTooLong, read_response
from mt.tests.repeated_units import excess

ENCODE = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "identity": bytes,
}
# what begins as gzip or zstd is decompressed once more
BODIES = st.binary(max_size=200).filter(lambda body: not body.startswith((GZIP, ZSTD))) | st.sampled_from(
    [b"", b"a" * 5000, b"<p>text</p>" * 50]
)


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
        (gzip.compress(b"text" * 100, mtime=0)[:-20], "Content-Encoding: gzip\r\n"),
        (zstandard.compress(bytes(range(256)) * 9)[:-20], "Content-Encoding: zstd\r\n"),
        (
            gzip.compress(b"text", mtime=0) + gzip.compress(b"text" * 100, mtime=0)[:-20],
            "Content-Encoding: gzip\r\n",
        ),
        (gzip.compress(b"text" * 100, mtime=0)[:-20], ""),
        (chunked(b"text" * 100)[:-20], "Transfer-Encoding: chunked\r\n"),
        (b"4\r\ntextno size\r\n", "Transfer-Encoding: chunked\r\n"),
        (b"4\r\ntext\r\nFFFFFFFFFFFFFFFF\r\n", "Transfer-Encoding: chunked\r\n"),
        (b"", "Content-Encoding: gzip, gzip, gzip, gzip, gzip\r\n"),
    ],
)
def test_a_body_that_is_not_whole_is_an_error(body, headers):
    with pytest.raises(ValueError, match=r"cut short|without a size|times"):
        read_response(response(body, headers)).body(1000)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("said", ["", *sorted(ENCODE), "what"])
def test_a_compressed_body_is_known_by_its_first_bytes_whatever_the_header_says(coding, said):
    page = b"<html><body><p>This server lies about its encoding.</p></body></html>" * 20
    sent = ENCODE[coding](page[:500]) + ENCODE[coding](page[500:])
    headers = f"Content-Encoding: {said}\r\n" if said else ""
    assert read_response(response(sent, headers)).body(10_000) == page
    with pytest.raises(BodyTooLong):
        read_response(response(sent, headers)).body(len(page) - 1)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@given(st.binary(min_size=1, max_size=30), st.integers(0, 99), st.integers(1, 255))
def test_a_damaged_body_is_an_error_or_the_page(coding, text, place, change):
    page = b"<p>" + text * 40
    sent = bytearray(ENCODE[coding](page))
    sent[4 + place % (len(sent) - 4)] ^= change
    with contextlib.suppress(ValueError):
        found = read_response(response(bytes(sent), f"Content-Encoding: {coding}\r\n")).body(10_000)
        assert not found.startswith(bytes(sent[:4]))


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("text", [b"", b"a"])
def test_a_body_of_many_short_members_takes_linear_time(coding, text):
    member = ENCODE[coding](text)

    def body(size):
        return member * (size // len(member))

    assert not excess(
        lambda sent: read_response(response(sent, f"Content-Encoding: {coding}\r\n")).body(10**8),
        body,
        400_000,
        0.1,
    )


def test_what_is_no_response_is_an_error():
    for raw in (b"", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 1_000_000):
        with pytest.raises(ValueError, match="no HTTP status line"):
            read_response(raw)


@pytest.mark.parametrize("line", [" a\n", "X: a\n", "\tb\r\n"])
def test_headers_of_many_lines_take_linear_time(line):
    def response(chars):
        head = "HTTP/1.1 200 OK\nContent-Type: text/html\nX: a\n" + line * (chars // len(line))
        return (head + "\n<p>a").encode()

    assert excess(lambda text: read_response(text), response, 65_000, 0.01) is None
