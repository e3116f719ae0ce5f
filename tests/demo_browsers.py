"""A real browser, at a desk and on a phone, in light and dark: what the tests of the page in it share."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VISITS: dict[str, dict[str, Any]] = {
    "desk, light": {"viewport": DESK, "color_scheme": "light"},
    "desk, dark": {"viewport": DESK, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "has_touch": True},
    "phone, dark": {"viewport": PHONE, "color_scheme": "dark", "has_touch": True},
}
SCREENSHOTS = "HOLISTIC_CLIP_SCREENSHOTS"  # a folder, to look at what the browser saw
MOST_MS = 60_000


@contextmanager
def opened_browser() -> Iterator[Any]:
    """Chromium; without it the test is skipped."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def visited(browser: Any, address: str, options: dict[str, Any], name: str, card: str = ".hc-card") -> Iterator[Any]:
    """The page, opened; at the end nothing was asked of others, nothing failed, no script ran, nothing sticks out."""
    context = browser.new_context(**options)
    page, asked, wrong = context.new_page(), [], []
    page.set_default_timeout(MOST_MS)
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"alert: {dialog.message}"), dialog.dismiss()))
    page.goto(address)
    page.wait_for_selector(card)
    try:
        yield page
        is_wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    finally:
        if folder := os.environ.get(SCREENSHOTS):
            page.screenshot(path=Path(folder) / f"{name.replace(', ', '-')}.png", full_page=True)
        context.close()
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == [] and wrong == [] and not is_wide


def ids(page: Any) -> list[str]:
    """The ids of the images that are shown, in their order."""
    return page.locator(".hc-card").evaluate_all("cards => cards.map(card => card.dataset.imageId)")
