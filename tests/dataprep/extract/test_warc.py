"""WARC files: the main text of their pages, and truncated files."""

import gzip
import json
import struct
import zlib

import pytest
import zstandard

from mt.core.config import UserError
from mt.dataprep.extract.extract import ExtractConfig, extract
from mt.tests.memory import peak_growth

STORY = (
    "The old house stood at the end of the lane, and nobody who lived in the village could say who had built"
    " it. " * 3
)


def record(kind, body, identity="x", url="http://a.org/x", pack=gzip.compress):
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{identity}>\r\nWARC-Date:"
        f" 2024-05-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http;"
        f" msgtype={kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return pack(head.encode() + body + b"\r\n\r\n")


def response(
    identity, html, content_type="text/html; charset=utf-8", status="200 OK", more="", pack=gzip.compress
):
    body = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{more}\r\n".encode() + html
    return record("response", body, identity, f"http://a.org/{identity}", pack)


def page(text, encoding="utf-8"):
    return (
        "<html><head><title>T</title><script>var x ="
        " 1;</script></head><body><nav><ul><li>Home</li><li>About</li></ul></nav><main><h1>A"
        f" story</h1><p>{text}</p></main><footer>Copyright</footer></body></html>".encode(encoding)
    )


RECORDS = [
    record("warcinfo", b"software: test\r\n"),
    record("request", b"GET / HTTP/1.1\r\n\r\n"),
    response("plain", page(STORY)),
    response(
        "latin",
        page("Größe und Übermut sind vergänglich. " + STORY, "latin-1"),
        "text/html; charset=iso-8859-1",
    ),
    response(
        "liar", page("Größe und Übermut sind vergänglich. " + STORY, "latin-1"), "text/html; charset=utf-8"
    ),
    response("squeezed", gzip.compress(page(STORY)), more="Content-Encoding: gzip\r\n"),
    response("image", b"\x89PNG", "image/png"),
    response("gone", page("Not found"), status="404 Not Found"),
    response("blank", b"<html><body></body></html>"),
]


def config(folder, **more):
    return ExtractConfig(
        source="warc", input=(str(folder / "in"),), output=str(folder / "out"), workers=1, **more
    )


def write(folder, data, name="a.warc.gz"):
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / name).write_bytes(data)


def test_the_main_text_of_pages_is_extracted_and_other_records_are_counted(tmp_path):
    write(tmp_path, b"".join(RECORDS))
    summary = extract(config(tmp_path))
    found = {d["id"]: d for d in map(json.loads, (tmp_path / "out/00000.jsonl").open())}
    assert list(found) == ["plain", "latin", "liar", "squeezed"]
    assert found["plain"] == {
        "id": "plain",
        "text": f"A story\n{STORY.strip()}",
        "url": "http://a.org/plain",
        "date": "2024-05-01T00:00:00Z",
    }
    assert found["latin"]["text"] == found["liar"]["text"]
    assert "Größe und Übermut" in found["latin"]["text"]
    assert found["squeezed"]["text"] == found["plain"]["text"]
    assert summary["counts"]["removed"] == {"empty": 1, "http_status_404": 1, "not_html": 1}
    assert summary["counts"]["rows_in"] == 7


@pytest.mark.parametrize(
    ("case", "pack", "ending"),
    [
        (str.lower, bytes, "warc"),
        (str.upper, gzip.compress, "warc.gz"),
        (str.title, zstandard.compress, "warc.zst"),
        (str.swapcase, bytes, "warc"),
    ],
)
def test_names_of_headers_and_types_of_records_may_be_in_any_case(tmp_path, case, pack, ending):
    """WARC 1.1, section 4: names are case-insensitive."""
    names = ["WARC-Type", "WARC-Record-ID", "WARC-Date", "WARC-Target-URI", "Content-Length"]
    data = b"".join(response(name, page(STORY), pack=bytes) for name in ("one", "two"))
    for name in names:
        data = data.replace(name.encode(), case(name).encode())
    write(tmp_path, pack(data.replace(b": response", case(": response").encode())), f"a.{ending}")
    extract(config(tmp_path))
    found = [json.loads(line) for line in (tmp_path / "out/00000.jsonl").open()]
    assert [(d["id"], d["url"]) for d in found] == [(x, f"http://a.org/{x}") for x in ("one", "two")]


def test_a_page_that_looks_like_a_header_stays_as_it_is(tmp_path):
    """The content of a record is as long as its header says."""
    inside = "WARC/1.1\r\ncontent-length: 999999\r\n\r\n"
    data = b"".join(response(name, page(f"{inside} {STORY}"), pack=bytes) for name in ("one", "two"))
    write(tmp_path, data, "a.warc")
    extract(config(tmp_path))
    found = [json.loads(line) for line in (tmp_path / "out/00000.jsonl").open()]
    assert [d["id"] for d in found] == ["one", "two"]
    assert all("content-length: 999999" in d["text"] for d in found)


def test_a_dictionary_of_zstd_may_come_first(tmp_path):
    """As in the files of Archive Team: a frame to skip has the dictionary of the frames after it."""
    pages = [response(str(i), page(f"{i} {STORY}"), pack=bytes) for i in range(100)]
    dictionary = zstandard.train_dictionary(4096, pages)
    raw = dictionary.as_bytes()
    packer = zstandard.ZstdCompressor(dict_data=dictionary)
    head = struct.pack("<II", 0x184D2A5D, len(raw)) + raw
    write(tmp_path, head + b"".join(map(packer.compress, pages)), "a.warc.zst")
    assert extract(config(tmp_path))["counts"]["rows_kept"] == 100


def test_every_file_is_a_shard_and_compression_does_not_matter(tmp_path):
    write(tmp_path, response("one", page(STORY)), "a.warc.gz")
    write(tmp_path, response("one", page(STORY), pack=bytes), "b.warc")
    extract(config(tmp_path))
    assert (tmp_path / "out/00000.jsonl").read_bytes() == (tmp_path / "out/00001.jsonl").read_bytes()


def converted(identity, text, language="eng", pack=gzip.compress):
    head = (
        f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:{identity}>\r\nWARC-Target-URI:"
        f" http://a.org/{identity}\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
    )
    spoken = f"WARC-Identified-Content-Language: {language}\r\n" if language else ""
    return pack(
        f"{head}{spoken}Content-Type: text/plain\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        + text
        + b"\r\n\r\n"
    )


def test_the_text_of_a_wet_file_is_unchanged(tmp_path):
    text = "Überschrift\n\nHome | About\nA story.\n"
    write(
        tmp_path,
        RECORDS[0]
        + converted("one", text.encode())
        + converted("two", b" \n", None)
        + converted("three", b"caf\xe9")
        + converted("four", b"Last.", None),
        "a.warc.wet.gz",
    )
    write(tmp_path, b"".join(converted("five", b"Plain.", pack=bytes) for _ in range(2)), "b.wet")
    summary = extract(config(tmp_path))
    found = [
        json.loads(line) for name in ("00000", "00001") for line in (tmp_path / f"out/{name}.jsonl").open()
    ]
    assert found[0] == {
        "id": "one",
        "text": text.strip(),
        "url": "http://a.org/one",
        "date": "2024-05-01T00:00:00Z",
        "language": "eng",
    }
    assert [(d["id"], d["text"], "language" in d) for d in found[1:]] == [
        ("four", "Last.", False),
        ("five", "Plain.", True),
        ("five", "Plain.", True),
    ]
    assert summary["counts"]["removed"] == {"empty": 1}
    assert summary["counts"]["rows_in"] == 6
    (reject,) = map(json.loads, (tmp_path / "out/rejects.jsonl").open())
    assert (reject["place"], reject["reason"]) == ("record three", "byte 3 of the text is not UTF-8")


def test_the_text_of_a_large_crawl_file_is_written_to_several_files(tmp_path):
    write(tmp_path, b"".join(converted(f"{i}", f"{i} {STORY}".encode()) for i in range(20)), "a.warc.wet.gz")
    summary = extract(config(tmp_path, shard_bytes=2000))
    files = [(o["name"], o["rows"]) for o in summary["outputs"] if o.get("documents", True)]
    assert files == [("00000.jsonl", 7), ("00000_001.jsonl", 7), ("00000_002.jsonl", 6)]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, share):
    data = response("last", page(STORY * 9))
    write(tmp_path, b"".join(RECORDS) + data[: int(len(data) * share)])
    with pytest.raises(
        UserError,
        match=(
            r"a\.warc\.gz: is cut short or damaged inside a record"
            r" \((Compressed file ended|record .* is cut short).*\);"
            r" download the file again"
        ),
    ):
        extract(config(tmp_path))


@pytest.mark.parametrize("count", [1, 5000])
@pytest.mark.parametrize("empty", [b"", b"\r\n\r\n"])
@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "a.warc.gz"), (zstandard.compress, "a.warc.zst")], ids=["gzip", "zstd"]
)
def test_empty_members_hide_no_record(tmp_path, pack, name, empty, count):
    one, two = (response(identity, page(STORY), pack=pack) for identity in ("one", "two"))
    nothing = pack(empty) * count
    write(tmp_path, nothing + one + nothing + two + nothing, name)
    extract(config(tmp_path))
    assert [json.loads(line)["id"] for line in (tmp_path / "out/00000.jsonl").open()] == ["one", "two"]


def test_a_file_without_records_is_refused(tmp_path):
    write(tmp_path, b"<html>no</html>", "a.warc")
    with pytest.raises(UserError, match=r"a\.warc: "):
        extract(config(tmp_path))


def test_a_response_that_is_not_http_is_logged(tmp_path):
    write(tmp_path, record("response", b"\x00\x01 no header", "odd") + RECORDS[2])
    summary = extract(config(tmp_path))
    assert summary["counts"]["documents"] == 1
    assert summary["counts"]["rejected"] + sum(summary["counts"]["removed"].values()) == 1


def endless(identity, size, kind="text/html", more=""):
    """A response of `size` bytes in a gzip member, made without having it in memory."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{more}\r\n".encode()
    whole = record("response", b"", identity, f"http://a.org/{identity}", bytes)
    before, after = (
        whole.replace(b"Content-Length: 0", b"Content-Length: %d" % (len(head) + size)),
        b"\r\n\r\n",
    )
    pack = zlib.compressobj(1, wbits=31)
    data = [pack.compress(before[:-4] + head)]
    data += [pack.compress(b"a" * min(MEGABYTE, size - start)) for start in range(0, size, MEGABYTE)]
    return b"".join(data) + pack.compress(after) + pack.flush()


MEGABYTE = 1 << 20


def test_long_records_and_pages_are_rejects_in_little_memory_and_the_rest_comes_out(tmp_path):
    squeezed = gzip.compress(b"<html><p>" + b"a " * (32 * MEGABYTE))
    small, large = tmp_path / "small.warc.gz", tmp_path / "large.warc.gz"
    small.write_bytes(RECORDS[0] + RECORDS[2])
    large.write_bytes(
        b"".join(
            [
                RECORDS[2],
                endless("page", 64 * MEGABYTE),
                endless("film", 64 * MEGABYTE, "video/mp4"),
                record("request", b"a" * (4 * MEGABYTE)),
                response("bomb", squeezed, more="Content-Encoding: gzip\r\n"),
                response("picture", squeezed, "image/png", more="Content-Encoding: gzip\r\n"),
                converted("text", b"a" * (4 * MEGABYTE)),
                RECORDS[5],
            ]
        )
    )
    kinds, grown = peak_growth(
        "mt.tests.dataprep.extract.readers", "kinds_of_crawl", (small, large), (MEGABYTE, MEGABYTE)
    )
    assert kinds == [
        ("plain", "Document"),
        ("page", "Reject"),
        ("film", "Removed"),
        ("bomb", "Reject"),
        ("picture", "Removed"),
        ("text", "Reject"),
        ("squeezed", "Document"),
    ]
    assert grown < 40 * MEGABYTE


def test_a_limit_names_the_record_and_changes_no_other(tmp_path):
    write(tmp_path, b"".join(RECORDS) + response("long", page(STORY * 90)))
    extract(config(tmp_path))
    whole = [json.loads(line) for line in (tmp_path / "out/00000.jsonl").open()]
    summary = extract(config(tmp_path, max_record_bytes=10_000, overwrite=True))
    assert [json.loads(line) for line in (tmp_path / "out/00000.jsonl").open()] == whole[:-1]
    assert summary["counts"]["removed"] == {"empty": 1, "http_status_404": 1, "not_html": 1}
    (reject,) = map(json.loads, (tmp_path / "out/rejects.jsonl").open())
    assert (reject["place"], reject["raw"]) == ("record long", "http://a.org/long")
    assert reject["reason"].endswith("bytes, more than --max-record-bytes 10000")


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_a_long_record_that_is_cut_short_is_still_noticed(tmp_path, pack):
    whole, data = response("whole", page(STORY), pack=pack), response("long", page(STORY * 90), pack=bytes)
    write(tmp_path, whole + pack(data[:-3000]), "a.warc.gz" if pack is gzip.compress else "a.warc")
    with pytest.raises(UserError, match="record long is cut short"):
        extract(config(tmp_path, max_record_bytes=10_000))


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape", "utf-7", "nonsense", "a\0b"])
def test_a_charset_that_is_none_of_pages_is_guessed(tmp_path, charset):
    """Decoding 200 kB of punycode takes minutes, and the escapes make surrogates."""
    body = page(STORY + " \\ud800 +2AA- " + "x" * 200_000)
    write(tmp_path, response("odd", body, f"text/html; charset={charset}"))
    extract(config(tmp_path))
    (document,) = map(json.loads, (tmp_path / "out/00000.jsonl").open())
    assert document["text"].startswith("A story")
    assert document["text"].endswith("x" * 100)


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        ("<div>" * 500 + STORY, True),
        ("<div>" * 20_000 + STORY, False),
        ("<div>" * 1_200 + STORY + "</div>" * 1_200, False),
        ("<p><b>" * 3_000 + STORY, True),  # of equal formatting elements, three are repeated
        ("".join(f"<b id={i}>bold</b> " for i in range(9_000)) + STORY, True),
        ("".join(f"<b id={i}>" for i in range(5_000)) + "<p>a" * 5_000 + STORY, False),
    ],
)
def test_a_page_that_is_nested_too_deeply_is_removed_with_this_reason(tmp_path, html, kept):
    write(tmp_path, response("deep", f"<html><body><main>{html}".encode()) + response("plain", page(STORY)))
    removed = extract(config(tmp_path))["counts"]["removed"]
    assert removed == ({} if kept else {"nested_too_deeply": 1})


def test_a_page_of_very_many_tags_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("mt.dataprep.extract.warc.MAX_TAGS", 500)
    write(tmp_path, RECORDS[2] + response("tags", page("<b>a</b>" * 250)))
    extract(config(tmp_path))
    assert [json.loads(line)["id"] for line in (tmp_path / "out/00000.jsonl").open()] == ["plain"]
    (reject,) = map(json.loads, (tmp_path / "out/rejects.jsonl").open())
    assert reject["place"] == "record tags"
    assert reject["reason"].endswith(" tags, more than 500")


def test_on_error_fail_stops_at_the_first_page_that_cannot_be_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("mt.dataprep.extract.warc.MAX_TAGS", 500)
    write(tmp_path, RECORDS[2] + response("tags", page("<b>a</b>" * 250)))
    with pytest.raises(UserError, match=r"record tags: .* tags, more than 500; pass --on-error skip"):
        extract(config(tmp_path, on_error="fail"))
    assert extract(config(tmp_path, on_error="skip"))["counts"]["rejected"] == 1


def test_another_extractor_is_another_run(tmp_path):
    write(tmp_path, response("one", page(STORY)))
    texts = []
    for extractor in ("trafilatura", "resiliparse"):
        summary = extract(config(tmp_path, extractor=extractor, overwrite=True))
        assert ("trafilatura" in summary["versions"]) == (extractor == "trafilatura")
        texts += [json.loads(line)["text"] for line in (tmp_path / "out/00000.jsonl").open()]
    assert texts == [f"A story\n{STORY.strip()}", f"A story\n\n{STORY.strip()}"]


def test_pages_are_decoded_by_mark_header_meta_and_guess(tmp_path):
    words = "Größe “und” Übermut – 5 €, sagte er ganz leise."
    russian = "Вся деревня смотрела на это молча, и никто не знал почему."
    body = lambda text, encoding, meta="": f"<html><head>{meta}</head><body><p>{text}</p>".encode(encoding)
    pages = [
        (words, "text/html; charset=ISO-8859-1", body(words, "cp1252")),
        (words, "text/html; charset=latin1", b"\xef\xbb\xbf" + body(words, "utf-8")),
        (words, "text/html; charset=utf-8", body(words, "cp1252")),
        (words, "text/html", body(words, "utf-16-le")),
        (russian, "text/html; charset=utf-8", body(russian, "koi8-r", "<meta charset=koi8-r>")),
        (russian, "text/html; charset=nonsense", body(russian, "cp1251")),
    ]
    write(tmp_path, b"".join(response(f"{n}", page, kind) for n, (_, kind, page) in enumerate(pages)))
    extract(config(tmp_path))
    assert [json.loads(line)["text"] for line in (tmp_path / "out/00000.jsonl").open()] == [
        p[0] for p in pages
    ]


@pytest.mark.parametrize("rules", ["dataprep.extract.warc.RECORD_RULES", "documents.html.PAGE_RULES"])
def test_other_rules_of_records_or_pages_make_an_output_stale(rules, tmp_path, monkeypatch):
    file = tmp_path / "crawl.warc.gz"
    file.write_bytes(b"".join(RECORDS))
    settings = {"source": "warc", "input": (str(file),), "output": str(tmp_path / "out"), "workers": 1}
    first = extract(ExtractConfig(**settings))["key"]
    assert extract(ExtractConfig(**settings))["key"] == first
    monkeypatch.setattr(f"mt.{rules}", "others")
    with pytest.raises(UserError, match="overwrite"):
        extract(ExtractConfig(**settings))
    assert extract(ExtractConfig(**settings, overwrite=True))["key"] != first
