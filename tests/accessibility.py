"""What axe-core, the usual checker of accessibility, finds on a page in a browser.

The rules are those of WCAG 2.2, levels A and AA, and axe's own best practices. The script is that of the
package axe-playwright-python; it is run by the browser's debugger, so that a Content-Security-Policy of the
page does not hold it.
"""

from pathlib import Path

import pytest

# (width of the window in pixels, colours) that a page is looked at in; two of the four are slow tests.
WINDOWS = [
    (1280, "light"),
    (360, "dark"),
    pytest.param(1280, "dark", marks=pytest.mark.slow),
    pytest.param(360, "light", marks=pytest.mark.slow),
]


def findings(page) -> list[str]:
    """One line for each rule that a page of playwright breaks: impact, rule, the first element."""
    package = pytest.importorskip("axe_playwright_python", reason="has the script of axe-core")
    page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 10, "the rules ran"
    return [
        f"{broken['impact']}: {broken['id']}: {broken['nodes'][0]['html'][:200]}"
        for broken in found["violations"]
    ]
