"""A page in a real browser: what the tests of the page use, and what makes the README's figure of it.

python -m tests.screenshot demo_output/report.html docs/figures/report.png
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {1280: 860, 400: 860}  # widths and heights of screenshots


def find_chromium() -> str:
    """The program; a test that needs it and playwright is skipped without them, and fails in CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None or importlib.util.find_spec("playwright") is None:
        if os.environ.get("CI"):
            pytest.fail("chromium or playwright is missing, and CI is set")
        pytest.skip("needs chromium (apt-get install chromium) and playwright (of the dev extra)")
    return found


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium, without a window. It has no sandbox, which root in a container cannot have."""
    program = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser: Browser, path: Path, width: int, events: list[str]) -> Page:
    """A page at a width; `events` gets what it logs, what fails in it, and what it requests."""
    page = browser.new_page(viewport={"width": width, "height": SIZES[width]})
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("request", lambda request: events.append(f"request: {request.url}"))
    page.goto(path.absolute().as_uri())
    return page


def main() -> None:
    path, figure = map(Path, sys.argv[1:])
    with open_browser() as browser:
        page = open_page(browser, path, 1280, [])
        page.set_viewport_size({"width": 1280, "height": 1000})
        page.locator("#group").select_option("retrieved")
        page.locator("#domain").select_option("cc")
        page.locator("#rows").evaluate("element => element.scrollIntoView()")
        page.screenshot(path=figure)


if __name__ == "__main__":
    main()
