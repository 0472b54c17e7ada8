"""The page as HTML: valid, and safe with texts of strangers."""

import base64
import hashlib
import html.parser
import json
import re
import shutil

import pytest

from mt.commands.report.page import render
from mt.commands.report.stages import find_run
from mt.commands.report.view import view
from mt.tests.commands.report.small_runs import document_stages, documents, fake_stage, fake_training

HOSTILE = (
    "</script><script>window.hit=1</script><!--<img src=x onerror='window.hit=2'>\"'><svg onload=hit()>\u2028"
)

VOID = {"meta", "br", "link", "img", "input"}


class Page(html.parser.HTMLParser):
    """Collects the elements; raises where a tag closes that is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.ids = [], [], [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run in which every text that a stranger can choose is hostile."""
    folder = tmp_path_factory.mktemp("hostile") / "<b>run<script>"
    folder.mkdir()
    rows = documents()
    for row in rows:
        row["text"] = f"{row['text']} {HOSTILE}"
        row["id"] = f"{row['id']} {HOSTILE}"
        row["source"] = HOSTILE
    document_stages(folder, rows, min_chars=230)
    fake_training(folder / "<i>model")
    fake_stage(
        folder / "x", "generate", samples=[{"prompt": HOSTILE, "text": HOSTILE}], scores={HOSTILE: HOSTILE}
    )
    return folder


@pytest.fixture(scope="module")
def hostile_page(hostile):
    return render(hostile.name, view([find_run(hostile)]))


def test_the_page_is_well_formed_and_every_id_is_its_own(run_folder):
    page = Page(render("small", view([find_run(run_folder)])))
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("h1") == 1


def test_no_text_of_a_stranger_becomes_an_element(hostile_page):
    page = Page(hostile_page)
    assert page.tags.count("script") == 2, "the data and the page's own"
    assert not {"img", "b<", "iframe", "link", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert [
        value for name, value in page.attributes if name in ("href", "src") and not value.startswith("#")
    ] == []
    shown = "".join(text for texts in page.texts.values() for text in texts)
    assert HOSTILE in shown, "it is shown as text"


def test_the_data_cannot_close_its_element_and_reads_back(hostile_page, hostile):
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', hostile_page, re.DOTALL)[
        1
    ]
    assert not set("<>&") & set(inside)
    data = json.loads(inside)
    assert data["runs"] == [hostile.name]
    assert data["charts"][0][0]["title"] == "Loss"


def test_the_policy_lets_only_the_pages_own_script_and_style_run(hostile_page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', hostile_page)[1].replace("&#39;", "'")
    script = re.search(r"<script>(.*?)</script>", hostile_page, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", hostile_page, re.DOTALL)[1]
    digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{digest(script)}'",
        f"style-src 'sha256-{digest(style)}'",
    ]
    assert "style=" not in re.sub(
        r"<script.*?</script>|<style.*?</style>|<pre>.*?</pre>", "", hostile_page, flags=re.S
    )


def test_the_page_of_two_runs_is_well_formed(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "other")
    page = Page(render("two", view([find_run(run_folder), find_run(tmp_path / "other")])))
    assert "None: all stages have the same settings." in "".join(page.texts["p"])


def test_the_licence_of_uplot_is_in_the_page(hostile_page):
    assert "Copyright (c) 2022 Leon Sorokin" in hostile_page
    assert "THE SOFTWARE IS PROVIDED" in hostile_page


def test_the_page_has_no_control_characters(tmp_path):
    controls = "\x00\x07\x1b[31m\x7f\x9b2J\x0c"
    fake_stage(tmp_path / "x", "generate", samples=[{"prompt": controls, "text": controls}])
    page = render(f"{controls} \ud800", view([find_run(tmp_path)]))
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", page) == []
    assert r"\x1b[31m\x7f\x9b2J" in page
