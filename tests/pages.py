"""A browser for tests, and what every page must do in it."""

import shutil
from pathlib import Path

import machine
import pytest


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, from Debian's chromium-driver or the like."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = machine.chromium()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield chrome
    chrome.quit()


def assert_shows(browser, page: Path, has_images: bool = True) -> None:
    """Every image loads, the console is silent, and nothing is wider than a phone or a desktop.

    Args:
        has_images: whether a page without images is wrong, too.
    """
    for width in (390, 1200):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())
        images = browser.execute_script(
            "return [...document.images].map(i => [i.src, i.complete && i.naturalWidth > 0])"
        )
        assert images or not has_images, page.name
        assert all(loaded for _, loaded in images), images
        assert browser.get_log("browser") == [], page.name
        assert browser.execute_script("return innerWidth") == width
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (
            page.name,
            width,
        )
