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


def assert_shows(browser, page: Path) -> None:
    """Every image loads, the console is silent, and nothing is wider than a phone or a desktop."""
    for width in (390, 1200):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())
        broken = browser.execute_script(
            "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
        )
        assert not broken, page.name
        assert browser.get_log("browser") == [], page.name
        assert browser.execute_script("return innerWidth") == width
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (
            page.name,
            width,
        )
