"""Wikipedia dumps: removed markup, removed pages, and truncated dumps."""

import bz2
import gzip
import json
import random
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt import cli
from mt.core.config import UserError
from mt.dataprep.extract import wikipedia
from mt.dataprep.extract.extract import ExtractConfig, extract
from mt.dataprep.extract.wikipedia import plain_text
from mt.documents import files
from mt.tests.memory import peak_growth

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <base>https://de.wikipedia.org/wiki/Hauptseite</base>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="10" case="first-letter">Vorlage</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""


def page(number, title, text, ns=0, redirect=""):
    target = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>{number}</id>\n   "
        f' {target}<revision>\n      <id>{number}77</id>\n      <text bytes="9"'
        f' xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
    )


PAGES = [
    page(
        1,
        "Haus",
        "Ein '''Haus''' ist ein [[Gebäude|Bau]] & mehr.\n[[Datei:Haus.jpg|mini|Ein"
        " [[Haus]]]]\n[[Kategorie:Bau]]",
    ),
    page(2, "Heim", "#REDIRECT [[Haus]]", redirect="Haus"),
    page(3, "Diskussion:Haus", "Ich finde, nein.", ns=1),
    page(4, "Leer", "{{Stub}}"),
    *(
        page(10 + i, f"Zahl {i}", f"Die Zahl {i} ist <ref>Quelle</ref>größer als die Zahl {i - 1}. " * 9)
        for i in range(200)
    ),
]


def dump(folder, pages=PAGES, name="dewiki.xml.bz2", pack=bz2.compress):
    (folder / name).write_bytes(pack((HEAD + "".join(pages) + "</mediawiki>\n").encode()))
    return str(folder / name)


def config(source, output, **more):
    return ExtractConfig(
        source="wikipedia",
        input=(source,),
        output=str(output),
        **{"workers": 1, "shard_bytes": 20_000} | more,
    )


def read(folder):
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        if path.name[0].isdigit()
        for line in path.open()
    ]


def test_articles_have_url_and_title_and_every_other_page_has_a_reason(tmp_path):
    summary = extract(config(dump(tmp_path), tmp_path / "out"))
    found = read(tmp_path / "out")
    assert found[0] == {
        "id": "1",
        "text": "Ein Haus ist ein Bau & mehr.",
        "url": "https://de.wikipedia.org/wiki?curid=1",
        "title": "Haus",
    }
    assert [d["id"] for d in found[1:]] == [str(10 + i) for i in range(200)]
    assert found[2]["text"] == " ".join(["Die Zahl 1 ist größer als die Zahl 0."] * 9)
    assert summary["counts"]["rows_in"] == 204
    assert summary["counts"]["removed"] == {"empty": 1, "not_an_article": 1, "redirect": 1}
    removed = [json.loads(line) for line in (tmp_path / "out/removed/00000.jsonl").open()]
    assert removed[0] == {"id": "2", "reason": "redirect", "title": "Heim"}


def pack_streams(data, size=5_000):
    """Compressed as by a parallel bzip2: streams begin anywhere, also within tags."""
    return b"".join(bz2.compress(data[i : i + size]) for i in range(0, len(data), size))


@pytest.mark.parametrize(
    ("name", "pack", "files"),
    [
        ("one.xml.bz2", bz2.compress, 2),
        ("many.xml.bz2", pack_streams, 7),
        ("odd.xml.bz2", lambda d: pack_streams(d, 1_777), 9),
        ("a.xml.gz", gzip.compress, 1),
        ("a.xml", bytes, 20),
    ],
)
def test_every_page_is_read_once_for_any_compression_shards_and_workers(tmp_path, name, pack, files):
    extract(config(dump(tmp_path), tmp_path / "whole"))
    source = dump(tmp_path, name=name, pack=pack)
    size = (
        max(1 << 10, wikipedia.COMPRESSION_RATIO * Path(source).stat().st_size // files)
        if name.endswith("bz2")
        else 8_000
    )
    for workers in (1, 2):
        extract(config(source, tmp_path / f"{workers}", workers=workers, shard_bytes=size))
    assert read(tmp_path / "1") == read(tmp_path / "whole")
    of = lambda folder: {
        str(p.relative_to(tmp_path / folder)): p.read_bytes() for p in (tmp_path / folder).rglob("*.jsonl")
    }
    assert of("1") == of("2")
    assert len(list((tmp_path / "1").glob("0*.jsonl"))) >= files
    assert len(wikipedia.split_dump(source, size)) >= min(files, 2) or name.endswith(".gz")


def test_a_single_stream_is_read_by_several_shards(tmp_path):
    letters = random.Random(3)
    noise = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz ", k=20_000)) for _ in range(150)]
    source = dump(tmp_path, [page(i, f"P {i}", text) for i, text in enumerate(noise)])
    summary = extract(config(source, tmp_path / "out", shard_bytes=Path(source).stat().st_size))
    assert len([o for o in summary["outputs"] if o.get("rows")]) > 2
    assert [d["id"] for d in read(tmp_path / "out")] == [str(i) for i in range(150)]


def test_an_interrupted_run_continues_with_the_missing_shards(tmp_path, monkeypatch):
    module = sys.modules["mt.dataprep.extract.extract"]
    source, written = dump(tmp_path, name="a.xml", pack=bytes), []
    original = module.write_shard

    def dies_at_two(item, **how):
        if item[0] == 2:
            raise KeyboardInterrupt
        return original(item, **how)

    monkeypatch.setattr(module, "write_shard", dies_at_two)
    with pytest.raises(KeyboardInterrupt):
        extract(config(source, tmp_path / "out"))
    assert len(list((tmp_path / "out/parts").glob("*.json"))) == 2
    monkeypatch.setattr(
        module, "write_shard", lambda item, **how: written.append(item[0]) or original(item, **how)
    )
    extract(config(source, tmp_path / "out"))
    assert written[0] == 2
    assert not (tmp_path / "out/parts").exists()
    assert len(read(tmp_path / "out")) == 201


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{Infobox|a={{b}}|c=[[d]]}}Text.", "Text."),
        ("A<ref name=x>{{cite}} hidden</ref> b<ref name=y /> c<!-- no -->.", "A b c."),
        ("'''Ada''' ({{lang|el|x}}; born 1815) was ({{small}}) ''here''.", "Ada (x; born 1815) was here."),
        ("{| class=wikitable\n|-\n| a || b\n|}\nAfter.", "After."),
        (
            "[[File:a.jpg|thumb|The [[b]] caption]]In [[2001: A Space Odyssey]],"
            " [[:Category:Films|films]] and [[:Category:X]].",
            "In 2001: A Space Odyssey, films and Category:X.",
        ),
        ("[[de:Haus]][[zh-min-nan:X]][[Category:Houses]]House.", "House."),
        ("See [http://a.org the site] or http://b.org [http://c.org].", "See the site or http://b.org."),
        (
            "Intro.\n== Full ==\n=== Inner ===\n* one\n* two\n== Empty ==\n{{x}}\n== References"
            " ==\n<references />",
            "Intro.\nFull\nInner\none\ntwo",
        ),
        ("1&nbsp;000 &lt;b&gt; <b>bold</b><br/>next __NOTOC__", "1 000 <b> bold\nnext"),
        ("Euler: <math>e^{i\\pi} = -1</math>.", "Euler: e^{i\\pi} = -1."),
        ("== {{only}} ==\n'''", ""),
        ("No &#xD800; character", "No &#xD800; character"),
    ],
)
def test_visible_text_is_kept_and_markup_is_removed(wikitext, text):
    assert plain_text(wikitext) == text


def test_truncated_dumps_and_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "cut.xml.bz2").write_bytes((tmp_path / dump(tmp_path)).read_bytes()[:-40])
    (tmp_path / "bad.xml.bz2").write_bytes(b"no bzip2 at all")
    (tmp_path / "short.xml").write_text(HEAD + PAGES[0] + "  <page>\n    <title>Ha")
    (tmp_path / "none.xml").write_text(HEAD + "</mediawiki>")
    (tmp_path / "odd.xml").write_text("<rss>" + PAGES[0])
    for name, message in {
        "cut.xml.bz2": (
            r"cut\.xml\.bz2: the compressed data is cut short or damaged \(.*\); download the file again"
        ),
        "bad.xml.bz2": r"bad\.xml\.bz2: the compressed data is cut short or damaged \(Invalid data stream\)",
        "short.xml": r"short\.xml: ends before its </mediawiki>",
        "none.xml": "contains no <page>",
        "odd.xml": "does not begin with <mediawiki>",
    }.items():
        with pytest.raises(UserError, match=message):
            extract(config(str(tmp_path / name), tmp_path / f"out-{name}"))
    with pytest.raises(UserError, match=r"x\.json: no such file or directory; check the path"):
        extract(config(str(tmp_path / "x.json"), tmp_path / "out"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"x\.json: --source wikipedia does not read this type of file; use one of \.xml, "
    ):
        extract(config(str(tmp_path / "x.json"), tmp_path / "out"))


def test_a_page_that_is_not_xml_is_logged(tmp_path, capsys):
    source = dump(tmp_path, [PAGES[0], "  <page><title>A & B</title></page>\n", PAGES[4]])
    with pytest.raises(SystemExit) as exit:
        cli.main(
            [
                "data",
                "extract",
                "--source",
                "wikipedia",
                "--input",
                source,
                "--output",
                str(tmp_path / "out"),
                "--workers",
                "1",
            ]
        )
    assert exit.value.code == 3
    assert json.loads((tmp_path / "out/rejects.jsonl").read_text())["reason"].startswith("not valid XML")
    assert len(read(tmp_path / "out")) == 2


def test_input_and_source_must_match(tmp_path):
    with pytest.raises(UserError, match="source = wikipedia reads files: name them with --input"):
        ExtractConfig(source="wikipedia", output=str(tmp_path))
    with pytest.raises(UserError, match="source = python reads this installation: omit input"):
        ExtractConfig(input=("a",), output=str(tmp_path))


def long_page(number, size, end="</text></revision></page>\n"):
    """A page whose text has `size` bytes, and which ends as given."""
    head = f"  <page><title>Long {number}</title><ns>0</ns><id>{number}</id><revision><text>"
    return head + "a " * (size // 2) + end


@pytest.mark.parametrize("name", ["a.xml", "a.xml.bz2", "a.xml.gz"])
@pytest.mark.parametrize("read_bytes", [7, 100, 1 << 20])
@pytest.mark.parametrize("end", ["</text></revision></page>\n", "", "</text>"])
def test_a_page_that_is_too_long_or_never_ends_is_one_reject(tmp_path, monkeypatch, name, read_bytes, end):
    monkeypatch.setattr(wikipedia, "READ_BYTES", read_bytes)
    pack = {
        "a.xml": bytes,
        "a.xml.gz": gzip.compress,
        "a.xml.bz2": lambda d: pack_streams(d, max(read_bytes, 500)),
    }
    pages = [PAGES[0], long_page(5, 3000, end), PAGES[4], PAGES[5], long_page(6, 4000, end), PAGES[6]]
    source = dump(tmp_path, pages, name, pack[name])
    for shard_bytes in (1 << 10, 1 << 20):
        out = tmp_path / f"{shard_bytes}"
        summary = extract(config(source, out, shard_bytes=shard_bytes, max_record_bytes=2000))
        assert [d["id"] for d in read(out)] == ["1", "10", "11", "12"]
        assert summary["counts"]["rejected"] == 2
        rejects = [json.loads(line) for line in (out / "rejects.jsonl").open()]
        assert {r["reason"] for r in rejects} == {"has more bytes than --max-record-bytes 2000"}
        assert ["<title>Long 5</title>" in r["raw"] for r in rejects] == [True, False]


@pytest.mark.parametrize("closing", ["</mediawiki>\n", ""])
def test_a_dump_that_ends_within_a_page_that_is_too_long_gives_the_pages_before_it(tmp_path, closing):
    text = (HEAD + PAGES[0] + long_page(5, 60_000, closing)).encode()
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(text))
    summary = extract(config(str(tmp_path / "a.xml.bz2"), tmp_path / "out", max_record_bytes=5000))
    assert (summary["counts"]["documents"], summary["counts"]["rejected"]) == (1, 1)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    limit=st.integers(30, 90),
    block=st.integers(7, 40),  # the tag <page> fits in a block, as it does in those of a megabyte
    part_bytes=st.integers(20, 400),
)
def test_pages_and_the_long_ones_do_not_depend_on_blocks_and_parts(
    tmp_path_factory, sizes, limit, block, part_bytes
):
    pages = [b"<page>%s</page>" % (b"%d" % (i % 10) * size) for i, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("pages") / "a.xml"
    path.write_bytes(b"<mediawiki>" + b"\n".join(pages) + b"</mediawiki>")
    size, found = path.stat().st_size, []
    count = -(-size // part_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikipedia, "READ_BYTES", block)
        for i in range(count):
            site = wikipedia.Site("", {})
            part = wikipedia.DumpPart(str(path), size * i // count, size * (i + 1) // count, site)
            found += [b"" if isinstance(p, files.Refused) else p for p in wikipedia._pages(part, limit)]
    assert found == [page if len(page) <= limit else b"" for page in pages]


def test_a_page_of_many_tags_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "MAX_TAGS", 100)
    source = dump(tmp_path, [PAGES[0], "<page>" + "<a/>" * 100 + "</page>", PAGES[4]])
    summary = extract(config(source, tmp_path / "out"))
    assert (summary["counts"]["documents"], summary["counts"]["rejected"]) == (2, 1)
    reject = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert reject["reason"] == "not valid XML (more than 100 tags)"


def test_a_page_of_much_wikitext_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "MAX_WIKITEXT", 3000)
    source = dump(tmp_path, [PAGES[0], page(7, "Long", "ä" * 3001), page(8, "Short", "ä" * 3000)])
    assert extract(config(source, tmp_path / "out"))["counts"]["rejected"] == 1
    assert [d["id"] for d in read(tmp_path / "out")] == ["1", "8"]
    reject = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert (reject["place"], reject["raw"]) == ("page 7 (Long)", "ä" * 1000)
    assert reject["reason"] == "has 3,001 characters of wikitext, more than 3,000"


def test_a_page_that_expands_to_far_more_is_one_reject(tmp_path):
    title = "T" * 1_000_000
    pages = page(1, title, "{{PAGENAME}} " * 100) + page(2, "Haus", "Ein Haus.")
    (tmp_path / "dump.xml").write_text(HEAD + pages + "</mediawiki>")
    (part,) = wikipedia.split_dump(str(tmp_path / "dump.xml"), 1 << 30)
    (_, reject), (_, document) = wikipedia.documents(part)
    assert "templates become more than 8,388,608 characters" in reject.reason
    assert len(reject.place) < 200
    assert document.text == "Ein Haus."


def test_a_page_that_never_ends_takes_little_memory(tmp_path):
    piece = bz2.compress(b"a " * (8 << 20))  # 16 MB of text, 600 bytes
    small, large = tmp_path / "small.xml.bz2", tmp_path / "large.xml.bz2"
    start = bz2.compress((HEAD + PAGES[0] + long_page(5, 10, "")).encode())
    end = bz2.compress((PAGES[4] + "</mediawiki>").encode())
    small.write_bytes(start + end)
    large.write_bytes(start + piece * 4 + end)
    (kinds, grown) = peak_growth(
        "mt.tests.dataprep.extract.readers", "kinds_of_dump", (small, large), (1 << 20, 1 << 20)
    )
    assert kinds == ["Document", "Reject", "Document"]
    assert grown < 30 << 20


def test_what_articles_leave_out_is_counted_in_the_manifest(tmp_path):
    pages = [
        page(1, "A", "{{Infobox|a}}Words.<ref>b</ref>"),
        page(2, "B", "{{infobox}}More<ref>c</ref> words."),
    ]
    for workers in (1, 2):
        summary = extract(
            config(dump(tmp_path, pages), tmp_path / f"{workers}", workers=workers, shard_bytes=1024)
        )
        assert summary["dropped"] == {"reference": 2, "template:Infobox": 2}


def test_the_language_of_a_dump_decides_how_templates_are_read(tmp_path):
    pages = [
        page(1, "A", "{{formatnum:1234567}} {{enS|house}} [[Datei:a]][[Kategorie:b]]{{Vorlage:Nowrap|c}}")
    ]
    summary = extract(config(dump(tmp_path, pages), tmp_path / "out"))
    assert read(tmp_path / "out")[0]["text"] == "1.234.567 englisch house c"
    assert summary["dropped"] == {"category": 1, "file": 1}


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ('<mediawiki xml:lang="fr"><siteinfo></siteinfo>', "fr"),
        ('<mediawiki xml:lang="fr"><base>https://de.wikipedia.org/wiki/A</base>', "de"),
        ("<mediawiki><base>https://zh-yue.wikipedia.org/wiki/A</base>", "zh-yue"),
        ("<mediawiki>", "en"),
    ],
)
def test_the_header_tells_the_language(header, language):
    assert wikipedia._parse_site(header.encode(), "path").language == language


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 100])
def test_the_header_ends_at_the_first_page_however_it_is_cut(tmp_path, monkeypatch, length):
    xml = b'<mediawiki xml:lang="de"><pag <pages> <page><title>a</title></page><page>'
    (tmp_path / "a.xml").write_bytes(xml)
    pieces = [(xml[i : i + length], True) for i in range(0, len(xml), length)]
    monkeypatch.setattr(wikipedia, "_read_xml", lambda *_: iter(pieces))
    headers = []
    monkeypatch.setattr(wikipedia, "_parse_site", lambda header, _: headers.append(header))
    wikipedia._read_site(str(tmp_path / "a.xml"))
    assert headers == [xml[: xml.index(b"<page>")]]


def test_other_rules_of_text_make_an_output_stale(tmp_path, monkeypatch):
    source = dump(tmp_path)
    first = extract(config(source, tmp_path / "out"))["key"]
    assert extract(config(source, tmp_path / "out"))["key"] == first
    monkeypatch.setattr("mt.dataprep.extract.wikitext.TEXT_RULES", "others")
    with pytest.raises(UserError, match="overwrite"):
        extract(config(source, tmp_path / "out"))
    assert extract(config(source, tmp_path / "out", overwrite=True))["key"] != first
