"""Pages that are left out for their URL: each reason, lists in all notations, and errors of lists."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.extract import url_filter as module
from mt.dataprep.extract.extract import ExtractConfig, extract
from mt.tests.dataprep.extract.test_warc import STORY, page, record

NAME = st.text("abcdefghijklmnopqrstuvwxyzäж0123456789", min_size=1, max_size=8)
HOST = st.lists(NAME, min_size=2, max_size=4).map(".".join)


def made(folder, min_soft_words=2, **lists):
    paths = {}
    for name, lines in lists.items():
        paths[name] = str(folder / name)
        (folder / name).write_bytes("\n".join(lines).encode())
    return module.save(module.read_lists(paths), min_soft_words, folder / "work")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/a", "url_domain"),
        ("https://www.EXAMPLE.org:8080/a", "url_domain"),
        ("http://a.b.example.org", "url_domain"),
        ("https://notexample.org/a", None),
        ("https://example.org.net/a", None),
        ("https://example.net/example.org", None),
        ("https://everywhere.co.uk/", "url_domain"),
        ("https://everywhere.example.com/", None),
        ("https://xn--mnchen-3ya.de/", "url_domain"),
        ("https://münchen.de/", "url_domain"),
        ("https://a_b.example.com/", "url_domain"),
        ("https://site.com/one/page?x=1#part", "url"),
        ("http://SITE.com/one/page?x=1#part/", "url"),
        ("https://site.com/one/page", None),
        ("https://site.com/buy-Casino-now", "url_word"),
        ("https://site.com/buy-%63asino-now", "url_word"),
        ("https://site.com/casinos", None),
        ("https://site.com/cheap/cheap", None),  # one word twice
        ("https://site.com/cheap_pills", "url_soft_words"),
        ("https://site.com/the-lost-jackpots", "url_substring"),
        ("https://site.com/the-lost-jack-pot", "url_substring"),
        ("https://site.com/the-lost-jack", None),
        ("no url", None),
        ("", None),
    ],
)
def test_the_first_reason_that_applies_is_given(tmp_path, url, reason):
    chosen = made(
        tmp_path,
        blocked_domains=[
            "# sites",
            "",
            ".example.org",
            "everywhere # a name",
            "MÜNCHEN.de",
            "a_b.example.com.",
        ],
        blocked_urls=["https://site.com/one/page?x=1#part", "example.org/# no comment"],
        blocked_words=["casino"],
        soft_blocked_words=["cheap", "pills"],
        blocked_substrings=["Jack-Pot"],
    )
    assert chosen.block_reason(url) == reason


@settings(max_examples=30)
@given(st.lists(HOST, min_size=1, max_size=20), st.lists(HOST, max_size=20), NAME)
def test_hosts_of_a_list_and_their_sub_domains_are_blocked_and_no_others(
    tmp_path_factory, listed, others, name
):
    chosen = made(tmp_path_factory.mktemp("lists"), blocked_domains=listed)
    for host in listed:
        assert (
            chosen.block_reason(f"http://{host}/")
            == chosen.block_reason(f"http://{name}.{host}/")
            == "url_domain"
        )
    for host in others:
        labels = host.split(".")
        expected = any(".".join(labels[start:]) in listed for start in range(len(labels) - 1))
        assert (chosen.block_reason(f"http://{host}/") is not None) == expected


def test_a_list_is_read_the_same_in_blocks_that_need_no_change_and_line_by_line(tmp_path):
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    plain.write_text("a.org\nb-1.net\n\nc_d.com")
    mixed.write_text("# comment\n.A.org\nb-1.net.\r\nc_d.com # comment\n")
    assert module.read_lists({"blocked_domains": str(plain)})["blocked_domains"].tolist() == (
        module.read_lists({"blocked_domains": str(mixed)})["blocked_domains"].tolist()
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("blocked_domains", b"a.org\nhttp://b.org/\n", "line 2: 'http://b.org/' is not a domain"),
        ("blocked_domains", b"a.org\n.\n", "line 2: '.' is not a domain"),
        ("blocked_domains", b"a.org\nb\xff.org\n", "line 2: byte 1 is not UTF-8"),
        ("blocked_words", b"good\n--\n", "line 2: '--' has no letter or digit"),
    ],
)
def test_a_line_that_is_no_entry_is_named(tmp_path, name, data, message):
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(UserError, match=message):
        module.read_lists({name: str(tmp_path / "list")})


def crawl(folder, **more):
    return ExtractConfig(
        source="warc", input=(str(folder / "in"),), output=str(folder / "out"), workers=1, **more
    )


def crawled(url, identity):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    return record("response", head + page(STORY), identity, url)


def test_blocked_pages_and_texts_are_counted_by_reason_and_not_extracted(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.warc.gz").write_bytes(
        crawled("http://a.org/fine", "fine")
        + crawled("http://www.bad.org/x", "bad")
        + record("conversion", STORY.encode(), "text", "http://a.org/casino")
    )
    for name, entry in {"domains": "bad.org", "words": "casino"}.items():
        (tmp_path / name).write_text(entry)
    lists = {"blocked_domains": str(tmp_path / "domains"), "blocked_words": str(tmp_path / "words")}
    pages = []
    monkeypatch.setattr(
        "mt.dataprep.extract.warc.main_text", lambda text, extractor: pages.append(text) or STORY
    )
    found = extract(crawl(tmp_path, **lists))
    assert (found["counts"]["documents"], len(pages)) == (1, 1)
    assert found["counts"]["removed"] == {"url_domain": 1, "url_word": 1}
    removed = [json.loads(line) for line in (tmp_path / "out/removed/00000.jsonl").open()]
    assert removed[0] == {"id": "bad", "reason": "url_domain", "url": "http://www.bad.org/x"}
    assert not (tmp_path / "out/work").exists()


def test_another_list_is_another_run_and_the_same_list_elsewhere_is_not(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.warc.gz").write_bytes(crawled("http://a.org/x", "a") + crawled("http://b.org/x", "b"))
    keys = [extract(crawl(tmp_path))["key"]]
    for name, line in (("one", "a.org"), ("two", "a.org"), ("three", "b.org")):
        (tmp_path / name).write_text(line)
        sealed = extract(crawl(tmp_path, blocked_domains=str(tmp_path / name), overwrite=True))
        keys.append(sealed["key"])
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"source": "python", "blocked_words": "x"}, "blocked_words = x needs source = warc"),
        (
            {"source": "warc", "input": ("x",), "min_soft_words": 3},
            "has no effect without soft_blocked_words",
        ),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        ExtractConfig(output=str(tmp_path), **more)


def test_default_is_the_list_of_mt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = list(module.DEFAULTS)
    chosen = module.save(module.read_lists(dict.fromkeys(names, "default")), 2, tmp_path / "work")
    reasons = [
        chosen.block_reason(url)
        for url in (
            "https://www.youtube.com/watch",
            "http://a.org/free-porn",
            "http://a.org/sexy/girls",
            "http://my-online-casino1.org",
            "http://a.org/essex/girls-school/middlesex",
        )
    ]
    assert reasons == ["url_domain", "url_word", "url_soft_words", "url_substring", None]


def test_a_file_of_the_name_default_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").write_text("mine")
    assert module.read_lists({"blocked_words": "default"}) == {"blocked_words": {"mine"}}


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", max_size=30), max_size=30))
def test_the_hashes_of_a_block_are_those_of_its_lines(lines):
    block = "".join(f"{line}\n" for line in ["", *lines]).encode()
    assert module._hashes_of_lines(block).tolist() == [module.name_hash(line) for line in lines if line]


@given(st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_dot_at_an_end_of_a_line_is_seen(lines):
    block = "".join(f"{line}\n" for line in ["", *lines]).encode()
    assert module._has_outer_dot(block) == any(line[0] == "." or line[-1] == "." for line in lines)


def test_a_hash_is_a_polynomial_of_the_bytes():
    value = sum((byte + 1) * 0x9E3779B97F4A7C15**place for place, byte in enumerate("zoë.org".encode()))
    assert module.name_hash("zoë.org") == value % 2**64


def test_a_url_within_a_url_keeps_its_scheme(tmp_path):
    found = made(tmp_path, blocked_urls=["site.com/go?to=http://other.org"])
    assert found.block_reason("https://site.com/go?to=http://other.org") == "url"
    assert found.block_reason("https://site.com/go?to=other.org") is None
