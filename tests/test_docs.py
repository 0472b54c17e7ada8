"""The pages of docs/ as a site: it needs no network, its commands exist, its reference has every setting."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mt.commands.megatron_flags import entries
from mt.commands.table import COMMANDS, RAW, load
from mt.core.config import settings
from mt.dataprep.filters.rules import EDITS, RULES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ALWAYS = {"--config", "--json", "--preset", "--hf", "--help", "--version"}


class Tags(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it; strict, so every link between its pages leads somewhere."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    ended = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def test_every_page_is_in_the_navigation():
    hooks = (ROOT / ".ci" / "mkdocs_hooks.py").read_text(encoding="utf-8")
    named = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8") + hooks)
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - set(named) == set()
    made = str(runpy.run_path(str(ROOT / ".ci" / "reference.py"))["navigation"]())
    assert [path for path in COMMANDS if f"'mt {' '.join(path)}': 'reference/mt_" not in made] == []


@pytest.mark.slow  # builds the site, which takes 10 s
def test_the_site_loads_nothing_from_a_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(COMMANDS)
    loaded = [
        f"{page.name}: {tag} {place}"
        for page in pages
        for tag, attributes in Tags(page.read_text(encoding="utf-8")).found
        for place in (attributes.get("src"), attributes.get("href") if tag == "link" else None)
        if place and re.match(r"(https?:)?//", place)
    ]
    assert loaded == []
    sheets = "".join(sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)]*", sheets) == []


@pytest.mark.slow  # builds the site
def test_the_reference_has_every_setting_of_every_command(site):
    for path in COMMANDS:
        if path in RAW:  # their flags are those of other programs
            continue
        text = (site / "reference" / f"mt_{'_'.join(path).replace('-', '_')}.html").read_text("utf-8")
        marked = [
            attributes["id"] for tag, attributes in Tags(text).found if tag == "code" and "id" in attributes
        ]
        known = list(settings(load(path)[1]))
        assert marked == [setting.flag[2:] for setting in known], path
        assert [s.name for s in known if f"<code>{s.name}</code>" not in text] == [], path


@pytest.mark.slow  # builds the site
def test_the_reference_has_every_rule_preset_and_family(site):
    def headings(name):
        text = (site / "reference" / f"{name}.html").read_text(encoding="utf-8")
        return set(re.findall(r"<h3[^>]*>([^<]+)", text))

    assert headings("rules") == {*RULES, *EDITS}
    files = [*ROOT.glob("train/presets/*.yaml"), *ROOT.glob("dataprep/filters/presets/*.yaml")]
    assert headings("presets") == {file.stem for file in files}
    families = (site / "reference" / "families.html").read_text(encoding="utf-8")
    from mt.train.model.family import FAMILIES

    assert re.findall(r"<tr>\s*<td><code>([^<]+)", families) == list(FAMILIES)


@pytest.mark.slow  # builds the site
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_search_works_in_pages_that_are_opened_as_files(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((site / "index.html").as_uri())
        page.keyboard.press("/")
        page.keyboard.type("max_symbols_per_word")
        first = page.locator(".md-search-result__item").first
        first.wait_for()
        assert "max_symbols_per_word" in first.inner_text()
        browser.close()


@pytest.mark.slow  # minutes: every command from text to a served model
def test_the_tutorial_runs_in_an_empty_folder(tmp_path):
    """Its `bash` blocks, unchanged, with few steps; those of installing are `sh`, tests/test_packaging.py."""
    programs, folder = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    folder.mkdir()
    for name, arguments in (("python", ""), ("mt", "-m mt")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    few = {"STEPS": "2", "FINETUNE_STEPS": "1", "PORT": str(port)}
    environment = os.environ | few | {"PATH": f"{programs}:{os.environ['PATH']}"}
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    script = "set -em\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "".join(blocks)
    run = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "todo.md: removed by data clean (run/notes): gopher_too_few_words" in output
    assert '"object":"text_completion"' in output.replace(" ", "")
    manifest = json.loads((folder / "run" / "dedup" / "manifest.json").read_text())
    assert manifest["counts"]["removed"]["exact"] >= 27  # every old article is there twice
    assert len(list((folder / "run" / "model").glob("step_*"))) == 1
    assert (folder / "run" / "hf" / "model.safetensors").exists()


@pytest.mark.slow  # 15 s of a CPU: eighteen plans
def test_the_table_of_sizes_in_the_tutorial_is_that_of_the_plans():
    sizes = runpy.run_path(str(ROOT / ".ci" / "sizes.py"))
    text = sizes["PAGE"].read_text(encoding="utf-8")
    assert sizes["page"](text, sizes["table"]()) == text


def test_every_block_of_datatrove_that_the_migration_names_exists():
    page = (ROOT / "docs" / "howto" / "migrate.md").read_text(encoding="utf-8")
    rows = page.partition("| datatrove | mt |")[2].partition("\n\n")[0].splitlines()
    named = {name for row in rows for name in re.findall(r"`([A-Z][A-Za-z0-9]+)[`(]", row.split(" | ")[0])}
    package = importlib.util.find_spec("datatrove")
    if package is None:
        pytest.skip("needs datatrove")
    texts = [p.read_text("utf-8") for p in Path(package.origin).parent.rglob("*.py")]
    defined = {name for text in texts for name in re.findall(r"^class (\w+)", text, re.MULTILINE)}
    assert len(named) > 20
    assert named - defined == set()


def commands(page):
    """The command lines of mt in the shell blocks of a page: lists of words."""
    blocks = re.findall(
        r"^ *```(?:bash|sh|shell)?\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in re.split(r"\s(?:&&|\|\||\||;)\s", line.partition("  #")[0]):
            if found := re.match(r" *mt ((?!launch|megatron)[a-z].*)", part):
                yield shlex.split(found[1].replace("...", ""), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_in_a_page_exists_with_its_flags(page):
    wrong = []
    for words in commands(page):
        path = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in COMMANDS), None)
        if path is None:
            if not words or words[0].startswith("-") or words[-1] == "--help":
                continue
            wrong.append(words)
            continue
        known = {setting.flag for setting in settings(load(path)[1])} | ALWAYS | set(entries())
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        unknown = [f for f in flags if f not in known and f.replace("--no-", "--", 1) not in known]
        wrong += [(path, flag) for flag in unknown]
    assert wrong == []
