"""The page in Chromium."""

import shutil

import pytest

from mt.tests.eval.server.running_server import Running, greedy, slow_server, small_model, until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_streams_text_with_its_probabilities_in_chromium(server, browser, scheme):
    page = browser.new_page(color_scheme=scheme)
    problems, urls = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
    page.on("request", lambda request: urls.append(request.url))
    page.goto(server.url)
    until(lambda: page.evaluate("document.getElementById('model').textContent.includes('128')"))
    page.fill("#prompt", "the cat")
    for slider, value in {"tokens": 12, "temperature": 0}.items():
        page.locator(f"#{slider}").fill(str(value))
    page.click("#go")
    until(
        lambda: page.evaluate(
            "!document.getElementById('go').disabled && document.querySelectorAll('.token').length"
        )
    )
    found = greedy(server, "the cat", 12)
    assert page.inner_text("#output").strip() == ("the cat" + found.text).strip()
    assert page.inner_text("#status").startswith(f"{len(found.ids)} tokens")
    colours = page.evaluate("[...document.querySelectorAll('.token')].map((t) => t.style.background)")
    assert all(colour.startswith("color-mix(") for colour in colours)
    page.locator(".token").first.hover()
    assert page.is_visible("#tip")
    assert "log-probability" in page.inner_text("#tip")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) > 384) == (
        scheme == "light"
    )
    page.locator("#tokens").fill("2")
    page.fill("#prompt", "x" * 127)
    page.click("#go")
    until(lambda: page.evaluate("document.getElementById('error').textContent"))
    assert "the model has 128 positions" in page.inner_text("#error")
    assert all(url.startswith(server.url) for url in urls), "the page loads nothing from other servers"
    assert [p for p in problems if "400" not in p and "favicon" not in p] == []
    page.close()


def test_the_page_sends_the_given_key_and_its_stop_button_ends_generation(browser):
    with Running(small_model(), keys=["secret"]) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#key", state="visible")
        page.fill("#key", "secret")
        page.locator("#key").blur()
        until(lambda: page.evaluate("document.getElementById('model').textContent.includes('small')"))
        assert page.inner_text("#error") == ""
        page.close()
    with slow_server() as server:
        page = browser.new_page()
        page.goto(server.url)
        until(lambda: page.evaluate("document.getElementById('model').textContent.includes('small')"))
        page.locator("#tokens").fill("900")
        page.fill("#prompt", "a")
        page.click("#go")
        page.wait_for_selector(".token", state="attached")
        page.click("#stop")
        until(lambda: page.evaluate("document.getElementById('status').textContent.includes('stopped')"))
        until(lambda: server.engine.running == 0, 5)
        page.close()
