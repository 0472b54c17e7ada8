"""`mt report` as a command, and its page in a browser: values, keyboard, phone, both colour schemes, axe."""

import json
import shutil

import pytest

from mt import cli
from mt.commands.report.report import ReportConfig, report
from mt.core.config import UserError
from mt.tests.accessibility import WINDOWS, findings
from mt.tests.commands.report.small_runs import small_run


@pytest.fixture(scope="module")
def page_path(run_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("page")
    return report(ReportConfig(run_dir=(str(run_folder),), output=str(output)))["page"]


@pytest.fixture(scope="module")
def compared_path(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    other = small_run(folder / "other", scale=0.5, lr=0.01)
    return report(ReportConfig(run_dir=(str(run_folder), str(other)), output=str(folder / "page")))["page"]


@pytest.fixture
def opened(browser):
    """A function that opens a page; after the test no script may have failed, and nothing been loaded."""
    problems, urls, pages = [], [], []

    def opened(path, width=1280, **how):
        page = browser.new_page(viewport={"width": width, "height": 900}, **how)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text))
        page.on("request", lambda request: urls.append(request.url))
        page.goto(f"file://{path}")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert problems == []
    assert {url.split(":")[0] for url in urls} == {"file"}


def test_the_report_lies_in_the_run_and_is_made_again_only_where_something_changed(tmp_path, capsys):
    folder = small_run(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            cli.main(["report", str(folder), "--json"])
        assert end.value.code == 0
    first, second = map(json.loads, capsys.readouterr().out.strip().splitlines())
    assert first == second
    assert first["page"] == str(folder / "report" / "report.html")
    (folder / "lambada" / "manifest.json").unlink()
    again = report(ReportConfig(run_dir=(str(folder),)))
    assert again["counts"]["stages"] == first["counts"]["stages"] - 1


def test_the_report_is_made_again_when_the_log_of_a_training_changes(tmp_path):
    folder = small_run(tmp_path / "run")
    config = ReportConfig(run_dir=(str(folder),))
    report(config)
    before = (folder / "report" / "report.html").read_text()
    (log,) = folder.rglob("log.jsonl")
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    report(config)
    assert (folder / "report" / "report.html").read_text() != before


def test_two_runs_are_compared_in_a_page_of_their_own(tmp_path):
    for name, scale in (("a", 1.0), ("b", 0.5)):
        small_run(tmp_path / name, scale)
    config = ReportConfig(run_dir=(str(tmp_path / "a"), str(tmp_path / "b")))
    assert report(config)["page"] == str(tmp_path / "a" / "report-with-b" / "report.html")
    alone = report(ReportConfig(run_dir=(str(tmp_path / "a"),)))
    assert alone["counts"]["stages"] == 7, "the other report is no stage"


def test_a_moved_run_has_the_same_page_from_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_run(tmp_path / "run")
    before = report(ReportConfig(run_dir=("run",), output="before"))["page"]
    before = (tmp_path / before).read_text()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    monkeypatch.chdir("/")
    after = report(ReportConfig(run_dir=(str(tmp_path / "moved"),)))["page"]
    with open(after) as file:
        text = file.read()
    # the raw file moved too, and no stage wrote it: its documents cannot be shown, those of later stages can
    assert text.count("<mark>") >= 1
    assert before.count("<del>") == text.count("<del>") > 0
    assert "the text cannot be shown" in text


@pytest.mark.parametrize("folders", [(), ("a", "a"), tuple("abcdefg")])
def test_wrong_numbers_of_runs_are_refused(folders):
    with pytest.raises(UserError, match="run_dir"):
        ReportConfig(run_dir=folders)


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_the_page_has_no_finding_of_axe_and_fits_its_window(opened, page_path, scheme, width):
    page = opened(page_path, width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1280, 360])
def test_a_page_that_compares_runs_has_no_finding_of_axe(opened, compared_path, width):
    page = opened(compared_path, width)
    assert findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".plot canvas").count() == 5
    labels = page.locator(".chart").first.locator(".legend button").all_inner_texts()
    assert labels == [
        "small: training",
        "small: validation",
        "other: training",
        "other: validation",
        "unigram entropy",
    ]


def test_values_are_under_the_pointer_and_under_the_keys(opened, page_path):
    page = opened(page_path)
    chart = page.locator(".chart").first
    over = chart.locator(".u-over")
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 50)
    tip = chart.locator(".tip")
    assert tip.inner_text().split("\n") == [
        "step 40",
        "training 3.15",
        "validation 3.625",
        "unigram entropy 5.5",
    ]
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    over.focus()
    page.keyboard.press("Home")
    assert over.get_attribute("aria-valuetext") == "step 1, training 9, validation none, unigram entropy 5.5"
    for _ in range(11):
        page.keyboard.press("ArrowRight")
    assert over.get_attribute("aria-valuetext") == "step 12, training 3.5, validation 4, unigram entropy 5.5"
    assert tip.is_visible()
    assert chart.locator(".reset").is_hidden()
    page.keyboard.press("+")
    assert chart.locator(".reset").is_visible()
    chart.locator(".reset").click()
    assert chart.locator(".reset").is_hidden()
    button = chart.get_by_role("button", name="validation")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    over.focus()
    page.keyboard.press("End")
    assert over.get_attribute("aria-valuetext") == "step 40, training 3.15, unigram entropy 5.5"


def test_everything_can_be_reached_by_the_tab_key(opened, page_path):
    page = opened(page_path)
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        tag = page.evaluate("document.activeElement.className + ' ' + document.activeElement.tagName")
        if tag.endswith("BODY"):
            break
        reached.add(tag.strip())
    assert {"skip A", "u-over DIV", "copy BUTTON", "BUTTON", "SUMMARY", "wide DIV"} <= reached


def test_a_finger_reads_a_curve(browser, page_path):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"file://{page_path}")
    page.locator(".u-over").first.tap()
    assert page.locator(".tip").first.is_visible()
    context.close()


def test_the_colours_change_with_the_scheme_without_a_reload(opened, page_path):
    page = opened(page_path, color_scheme="light")
    before = page.screenshot()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert page.locator(".u-over").count() == 5, "each chart is drawn once"
    assert page.screenshot() != before


def test_the_copy_button_copies_the_command(browser, page_path):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"file://{page_path}")
    page.locator(".copy").first.click()
    page.wait_for_function("document.getElementById('copied').textContent")
    assert page.inner_text("#copied") in ("Copied.", "Selected: press Ctrl+C to copy.")
    context.close()
