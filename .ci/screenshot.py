"""Writes docs/images/report.png, the picture of README.md: the first screen of a run's report, in Chromium.

    python -m mt demo && python .ci/screenshot.py runs/demo

It needs playwright (the extra `dev`) and Chromium.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1200, 1080
MOST_BYTES = 300_000  # README.md is read on phones too


def main() -> None:
    from playwright.sync_api import sync_playwright

    page_path = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo", "report", "report.html").resolve()
    picture = ROOT / "docs" / "images" / "report.png"
    picture.parent.mkdir(exist_ok=True)
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, found), None), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_path.as_uri())
        box = page.locator(".u-over").first.bounding_box()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"])  # the values there
        page.screenshot(path=picture)
        browser.close()
    size = picture.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{picture}: has {size:,} bytes, more than {MOST_BYTES:,}; lower HEIGHT")
    print(f"{picture}: {size:,} bytes")


if __name__ == "__main__":
    main()
