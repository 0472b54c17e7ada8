"""WARC files: the main text of their pages, and files that are cut short."""

import gzip
import json

import pytest

from mt.config import UserError
from mt.dataprep.extract import ExtractConfig, extract

STORY = "The old house stood at the end of the lane, and nobody who lived in the village could say who had built it. " * 3


def record(kind, body, identity="x", url="http://a.org/x", pack=gzip.compress):
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{identity}>\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
        f"WARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype={kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return pack(head.encode() + body + b"\r\n\r\n")


def response(identity, html, content_type="text/html; charset=utf-8", status="200 OK", more="", pack=gzip.compress):
    body = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{more}\r\n".encode() + html
    return record("response", body, identity, f"http://a.org/{identity}", pack)


def page(text, encoding="utf-8"):
    return f"<html><head><title>T</title><script>var x = 1;</script></head><body><nav><ul><li>Home</li><li>About</li></ul></nav><main><h1>A story</h1><p>{text}</p></main><footer>Copyright</footer></body></html>".encode(encoding)


RECORDS = [
    record("warcinfo", b"software: test\r\n"),
    record("request", b"GET / HTTP/1.1\r\n\r\n"),
    response("plain", page(STORY)),
    response("latin", page("Größe und Übermut sind vergänglich. " + STORY, "latin-1"), "text/html; charset=iso-8859-1"),
    response("liar", page("Größe und Übermut sind vergänglich. " + STORY, "latin-1"), "text/html; charset=utf-8"),
    response("squeezed", gzip.compress(page(STORY)), more="Content-Encoding: gzip\r\n"),
    response("image", b"\x89PNG", "image/png"),
    response("gone", page("Not found"), status="404 Not Found"),
    response("blank", b"<html><body></body></html>"),
]


def config(folder, **more):
    return ExtractConfig(source="warc", input=(str(folder / "in"),), output=str(folder / "out"), workers=1, **more)


def write(folder, data, name="a.warc.gz"):
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / name).write_bytes(data)


def test_pages_become_their_main_text_and_the_rest_is_counted(tmp_path):
    write(tmp_path, b"".join(RECORDS))
    summary = extract(config(tmp_path))
    found = {d["id"]: d for d in map(json.loads, (tmp_path / "out/00000.jsonl").open())}
    assert list(found) == ["plain", "latin", "liar", "squeezed"]
    assert found["plain"] == {"id": "plain", "text": f"A story\n\n{STORY.strip()}", "url": "http://a.org/plain", "date": "2024-05-01T00:00:00Z"}
    assert found["latin"]["text"] == found["liar"]["text"]
    assert "Größe und Übermut" in found["latin"]["text"]
    assert found["squeezed"]["text"] == found["plain"]["text"]
    assert summary["counts"]["removed"] == {"empty": 1, "http_status_404": 1, "not_html": 1}
    assert summary["counts"]["rows_in"] == 7


def test_every_file_is_a_shard_and_packing_does_not_matter(tmp_path):
    write(tmp_path, response("one", page(STORY)), "a.warc.gz")
    write(tmp_path, response("one", page(STORY), pack=bytes), "b.warc")
    extract(config(tmp_path))
    assert (tmp_path / "out/00000.jsonl").read_bytes() == (tmp_path / "out/00001.jsonl").read_bytes()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_refused_in_one_line(tmp_path, share):
    data = response("last", page(STORY * 9))
    write(tmp_path, b"".join(RECORDS) + data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"a\.warc\.gz: ends or breaks amid a record \(record .* is cut short\); fetch the file again"):
        extract(config(tmp_path))


def test_a_file_without_records_is_refused(tmp_path):
    write(tmp_path, b"<html>no</html>", "a.warc")
    with pytest.raises(UserError, match=r"a\.warc: "):
        extract(config(tmp_path))


def test_a_response_that_is_not_http_is_set_aside(tmp_path):
    write(tmp_path, record("response", b"\x00\x01 no header", "odd") + RECORDS[2])
    summary = extract(config(tmp_path))
    assert summary["counts"]["documents"] == 1
    assert summary["counts"]["rejected"] + sum(summary["counts"]["removed"].values()) == 1
