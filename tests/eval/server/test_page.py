"""The page in Chromium."""

import pytest

from mt.tests.accessibility import WINDOWS, findings
from mt.tests.eval.server.running_server import Running, greedy, slow_server, small_model, until


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
    assert [p for p in problems if "400" not in p] == []
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


@pytest.fixture
def page(server, browser):
    """The page, ready; after the test no script has failed, and nothing was loaded from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
    page.goto(server.url)
    until(lambda: page.evaluate("document.getElementById('model').textContent.includes('128')"))
    yield page
    context.close()
    assert problems == []


def generate(page, prompt="the cat", tokens=12):
    """Generates greedily with the page; returns the text that it then shows."""
    page.select_option("#preset", "Greedy: always the most probable token")
    page.locator("#tokens").fill(str(tokens))
    page.fill("#prompt", prompt)
    page.click("#go")
    until(lambda: page.evaluate("document.getElementById('go').disabled === false"))
    return page.evaluate("document.getElementById('output').textContent")


def stored(page):
    return page.evaluate("JSON.parse(localStorage.getItem('mt serve history') ?? '[]')")


def test_tokens_are_walked_with_the_arrow_keys_and_tell_their_alternatives(page):
    generate(page)
    page.locator("#copy").focus()
    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.dataset.tip")
    assert first
    assert page.inner_text("#tip") == first
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.dataset.tip")
    assert page.inner_text("#tip") == second
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    assert page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 1
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement === document.querySelector('#output').lastElementChild")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")
    assert page.locator(".token[tabindex='0']").count() == 1, "one stop of the Tab key"


def test_a_tap_shows_the_alternatives_of_a_token_and_a_tap_elsewhere_hides_them(server, browser):
    context = browser.new_context(viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(server.url)
    generate(page)
    page.locator(".token").nth(2).tap()
    assert page.inner_text("#tip") == page.locator(".token").nth(2).get_attribute("data-tip")
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.locator("h1").tap()
    assert page.is_hidden("#tip")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_the_page_has_no_finding_of_axe(page, scheme, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    generate(page)
    page.locator(".token").first.focus()
    page.evaluate("document.querySelector('details').open = true")
    assert findings(page) == []


def test_presets_set_the_sliders_and_a_moved_slider_is_a_setting_of_ones_own(page):
    values = lambda: [page.input_value(f"#{name}") for name in ("temperature", "top-p", "top-k")]
    assert page.input_value("#preset") == "Balanced"
    page.select_option("#preset", "The 40 most probable tokens")
    assert values() == ["0.8", "1", "40"]
    assert page.inner_text("#top-p-value") == "off"
    page.locator("#temperature").fill("0.5")
    assert page.input_value("#preset") == "Your own"
    page.locator("#top-p").fill("0.5")
    assert values() == ["0.5", "0.5", "0"], "one of the two is off"


def test_the_text_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text = generate(page)
    page.click("#copy")
    until(lambda: page.inner_text("#status") == "copied")
    assert page.evaluate("navigator.clipboard.readText()") == text


def test_the_history_outlives_a_reload_and_can_be_cleared(page, server):
    texts = [generate(page, prompt) for prompt in ("the cat", "<img src=x onerror=alert(1)>")]
    assert [one["prompt"] + one["text"] for one in stored(page)] == texts[::-1]
    page.reload()
    assert page.inner_text("#history-count") == "(2)"
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    page.locator("#temperature").fill("1")
    page.locator("#history .restore").nth(1).click()
    assert page.input_value("#prompt") == "the cat"
    assert page.evaluate("document.getElementById('output').textContent") == texts[0]
    assert page.input_value("#temperature") == "0", "with its settings"
    page.locator("#history .remove").first.click()
    assert len(stored(page)) == 1
    page.click("#clear")
    assert stored(page) == []
    assert page.inner_text("#history-count") == "(empty)"


def test_the_history_is_bounded_and_foreign_contents_do_no_harm(page):
    entry = {"prompt": "p", "text": "t", "settings": {"tokens": "3", "prompt": "no"}, "time": 0}
    for value in ("[1, null, {}]", "no JSON", "{}", str([entry] * 80).replace("'", '"')):
        page.evaluate("(value) => localStorage.setItem('mt serve history', value)", value)
        page.reload()
        generate(page, tokens=2)
        assert 1 <= len(stored(page)) <= 50
    assert len(stored(page)) == 50
    assert "secret" not in str(stored(page))
