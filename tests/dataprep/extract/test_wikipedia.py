"""Wikipedia dumps: removed markup, removed pages, and truncated dumps."""

import bz2
import gzip
import json
import random
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from mt import cli
from mt.core.config import UserError
from mt.dataprep.extract import wikipedia
from mt.dataprep.extract.extract import ExtractConfig, extract
from mt.dataprep.extract.wikipedia import plain_text

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <base>https://de.wikipedia.org/wiki/Hauptseite</base>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
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
        ("'''Ada''' ({{lang|el|x}}; born 1815) was ({{small}}) ''here''.", "Ada (born 1815) was here."),
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
        ("No &#xD800; character", "No ? character"),
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
