"""URL lists: each reason to remove a URL, order, duplicates, replaced lists, and errors."""

import json
import random

import pytest

from mt import cli
from mt.core.config import UserError
from mt.dataprep.extract import urls as module
from mt.dataprep.extract.urls import LISTS, UrlsConfig, drop_reason, read_list, urls

DOMAINS, EXTENSIONS = read_list(LISTS / "domains.txt"), read_list(LISTS / "extensions.txt")


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
    assert len(list(module._domain_names(host))) == module.MAX_LABELS
