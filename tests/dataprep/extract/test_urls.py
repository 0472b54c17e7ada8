"""URL lists: each reason to remove a URL, order, duplicates, replaced lists, and errors."""

import json
import random

import idna
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt import cli
from mt.core.config import UserError
from mt.dataprep.extract import urls as module
from mt.dataprep.extract.url_filter import read_lists
from mt.dataprep.extract.urls import LISTS, UrlsConfig, drop_reason, read_list, urls

DOMAINS, EXTENSIONS = read_list(LISTS / "domains.txt", hosts=True), read_list(LISTS / "extensions.txt")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://www.example.org/a/story", None),
        ("http://example.org", None),
        ("https://bücher.example.de/größe?x=1#y", None),
        ("http://user@example.co.uk:8080/a", None),
        ("http://192.168.0.1/page", None),
        ("ftp://[2001:db8::1]/page", None),
        ("https://www.youtube.com/watch?v=1", "domain"),
        ("https://youtube.co.uk/", "domain"),
        ("http://m.YouTube.com:80/a.jpg", "domain"),  # the first reason counts
        ("https://youtube.example.org/", None),  # the name of a site within another site's name
        ("https://notyoutube.com/", None),
        ("https://sub.last.fm/x", "domain"),
        ("https://glast.fm/x", None),
        ("http://example.org/picture.JPG?size=3", "extension"),
        ("http://example.org/a.7z", "extension"),
        ("http://example.ai", None),
        ("http://example.ai/", None),
        ("http://example.org/why-jpg", None),
        ("http://example.org/?file=a.jpg", None),
        ("http://a", "too_short"),
        ("http://ab", "malformed"),
        ("example.org/no/scheme", "malformed"),
        ("http://exa mple.org/", "malformed"),
        ("http://example.org/a b", "malformed"),
        ("http://-bad-.org/page", "malformed"),
        ("mailto:somebody@example.org", "malformed"),
    ],
)
def test_the_first_reason_that_applies_is_given(url, reason):
    assert drop_reason(url, DOMAINS, EXTENSIONS) == reason


def write(folder, lines, name="urls.txt"):
    (folder / name).write_bytes(b"".join(line.encode() + b"\n" for line in lines))
    return str(folder / name)


def test_order_is_kept_duplicates_are_removed_and_every_removal_is_logged(tmp_path):
    lines = [
        "http://example.org/b",
        "",
        "http://imgur.com/x",
        "http://example.org/a",
        "  http://example.org/b ",
        "http://x",
        "http://example.org/b/",
    ]
    summary = urls(UrlsConfig(input=(write(tmp_path, lines),), output=str(tmp_path / "out")))
    assert (tmp_path / "out/00000.txt").read_text().split() == [
        "http://example.org/b",
        "http://example.org/a",
        "http://example.org/b/",
    ]
    assert [json.loads(line) for line in (tmp_path / "out/removed/00000.jsonl").open()] == [
        {"id": "http://imgur.com/x", "reason": "domain"},
        {"id": "http://example.org/b", "reason": "duplicate"},
        {"id": "http://x", "reason": "too_short"},
    ]
    assert summary["counts"]["rows_in"] == 6
    assert summary["counts"]["removed"] == {"domain": 1, "duplicate": 1, "too_short": 1}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["00000.txt", "manifest.json", "removed"]
    assert urls(UrlsConfig(input=(str(tmp_path / "urls.txt"),), output=str(tmp_path / "out"))) == summary


def test_workers_and_partitions_do_not_change_the_result(tmp_path, monkeypatch):
    pick = random.Random(1)
    lines = [f"http://example.org/{pick.randrange(900)}" for _ in range(3000)]
    files = [write(tmp_path, lines[:1700], "a.txt"), write(tmp_path, lines[1700:], "b.txt")]
    results = []
    for workers, share in ((1, 1 << 28), (2, 1 << 28), (1, 20_000)):
        monkeypatch.setattr(module, "PARTITION_BYTES", share)
        out = tmp_path / f"{workers}-{share}"
        urls(UrlsConfig(input=tuple(files), output=str(out), workers=workers, shard_bytes=16_000))
        results.append([p.read_text() for p in sorted(out.glob("*.txt"))])
    assert len(results[0]) > 3
    assert results[0] == results[1] == results[2]
    assert "".join(results[0]).split() == list(dict.fromkeys(lines))


def test_a_user_can_replace_the_lists(tmp_path):
    (tmp_path / "d.txt").write_text("# mine\nexample.org  # theirs\n")
    (tmp_path / "e.txt").write_text(".html\n")
    source = write(tmp_path, ["http://imgur.com/x.jpg", "http://a.example.org/", "http://other.org/i.HTML"])
    flags = ["--input", source, "--domains", str(tmp_path / "d.txt"), "--extensions", str(tmp_path / "e.txt")]
    summary = cli.call(("data", "urls"), [*flags, "--output", str(tmp_path / "out")])
    assert summary["counts"]["removed"] == {"domain": 1, "extension": 1}
    (tmp_path / "d.txt").write_text("other.org")
    with pytest.raises(UserError, match="holds another run"):
        cli.call(("data", "urls"), [*flags, "--output", str(tmp_path / "out")])
    (tmp_path / "e.txt").write_text("jpg\njpg png\n")
    with pytest.raises(UserError, match=r"e\.txt, line 2: 'jpg png' is not a name; write one name per line"):
        cli.call(("data", "urls"), [*flags, "--output", str(tmp_path / "new")])


def test_errors_and_bytes_that_are_not_text(tmp_path):
    (tmp_path / "u.txt").write_bytes(b"http://example.org/\xff\nhttp://example.org/a\r\n")
    summary = urls(UrlsConfig(input=(str(tmp_path / "*.txt"),), output=str(tmp_path / "out")))
    assert summary["counts"]["removed"] == {"malformed": 1}
    assert (tmp_path / "out/00000.txt").read_bytes() == b"http://example.org/a\n"
    with pytest.raises(UserError, match=r"none\.txt: no such file or directory; check the path"):
        urls(UrlsConfig(input=(str(tmp_path / "none.txt"),), output=str(tmp_path / "x")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: contains no \.txt"):
        urls(UrlsConfig(input=(str(tmp_path / "empty"),), output=str(tmp_path / "x")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": ()}, "input is empty: name files or directories"),
        ({"min_chars": -1}, "min_chars = -1 must be at least 0"),
        ({"shard_bytes": 1023}, "shard_bytes = 1023 must be at least 1024"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    UrlsConfig(input=("x",), output="y", min_chars=0, shard_bytes=1024)
    with pytest.raises(UserError, match=message):
        UrlsConfig(**{"input": ("x",), "output": "y", **settings})


def test_urls_of_eight_characters_are_too_short_by_default(tmp_path):
    config = UrlsConfig(input=(write(tmp_path, ["http://a", "http://ab"]),), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"no document is left \(2 in: 1 too_short, 1 malformed\)"):
        urls(config)


def test_a_host_of_more_labels_than_a_domain_name_can_have_is_matched_by_its_last_ones():
    host = "a." * 1_000 + "bad.org"
    assert drop_reason(f"http://{host}/", frozenset(("bad.org",)), frozenset()) == "domain"
    assert len(list(module.domain_names(host))) == module.MAX_LABELS


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_belongs_to_no_url_and_to_no_list(tmp_path, mark):
    (tmp_path / "u.txt").write_bytes(
        mark + b"http://example.org/first\r\nhttp://bad.org/\r\nhttp://a.org/i.jpg\r\n"
    )
    (tmp_path / "d.txt").write_bytes(mark + b"bad.org\r\n")
    (tmp_path / "e.txt").write_bytes(mark + b"jpg\r\n")
    lists = {"domains": str(tmp_path / "d.txt"), "extensions": str(tmp_path / "e.txt")}
    urls(UrlsConfig(input=(str(tmp_path / "u.txt"),), output=str(tmp_path / "out"), **lists))
    assert (tmp_path / "out/00000.txt").read_bytes() == b"http://example.org/first\n"


def test_a_list_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "u.txt").write_bytes("http://example.org/".encode("utf-16"))
    with pytest.raises(UserError, match=r"u\.txt: is UTF-16; save the file as UTF-8"):
        urls(UrlsConfig(input=(str(tmp_path / "u.txt"),), output=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("host", "entry"),
    [
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("xn--mnchen-3ya.de", "münchen.de"),
        ("www.MÜNCHEN.de", "münchen.de"),
        ("mu\u0308nchen.de", "münchen.de"),  # the mark by itself
        ("ｍünchen。de", "münchen.de"),
        ("straße.example", "straße.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("☕.example.org", "xn--53h.example.org"),
    ],
)
def test_hosts_and_entries_are_compared_as_idna(tmp_path, host, entry):
    (tmp_path / "d.txt").write_text(entry)
    domains = read_list(tmp_path / "d.txt", hosts=True)
    assert drop_reason(f"http://{host}/page", domains, frozenset()) == "domain"
    assert drop_reason("http://munchen.de/page", domains, frozenset()) is None


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20))
def test_a_host_is_what_idna_encodes(label):
    try:
        wanted = idna.encode(f"{label}.org", uts46=True).decode()
    except idna.IDNAError:
        return
    assert module.ascii_host(f"{label}.org".lower() if label.isascii() else f"{label}.org") == wanted


def test_the_files_of_a_folder_that_are_no_lists_are_counted(tmp_path, capsys):
    for name in ("in/a.txt", "in/b/c.TXT", "in/.hidden.txt", "in/d.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"http://example.org/{name}\n")
    summary = urls(UrlsConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "out")))
    assert summary["counts"]["rows_in"] == 2
    assert summary["not_read"]["endings"] == {"hidden": 1, ".csv": 1}
    assert capsys.readouterr().err.startswith("mt: not read: 2 files (hidden 1, .csv 1): ")
    again = urls(UrlsConfig(input=(str(tmp_path / "out"),), output=str(tmp_path / "again")))
    assert (again["counts"]["rows_in"], "not_read" in again) == (2, False)


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1)), min_size=1, max_size=300))
def test_all_but_the_first_row_of_a_hash_are_repeated(hashes):
    hashes = np.array(hashes, np.uint64)
    rows = np.arange(len(hashes)) * 3 + 1
    others = np.delete(rows, np.unique(hashes, return_index=True)[1])
    assert sorted(module._repeated(hashes, rows).tolist()) == others.tolist()


def test_a_list_that_is_a_device_is_refused(tmp_path):
    (tmp_path / "list.txt").symlink_to("/dev/null")  # a careless reader of /dev/zero fills the memory
    with pytest.raises(UserError, match=r"list\.txt: is not a regular file"):
        read_list(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["blocked_domains", "blocked_urls", "blocked_words"])
def test_a_list_of_blocked_names_that_is_a_device_is_refused(tmp_path, name):
    (tmp_path / "list.txt").symlink_to("/dev/null")
    with pytest.raises(UserError, match=r"list\.txt: is a device, not a list"):
        read_lists({name: str(tmp_path / "list.txt")})
