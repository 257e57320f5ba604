"""The documentation that `make docs` built, in a browser."""

from pathlib import Path

import pytest
from pages import assert_shows, browser  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"


@pytest.mark.long
@pytest.mark.needs("browser", "site")
def test_every_page_shows(browser):  # noqa: F811
    names = {page.stem for page in (ROOT / "docs").glob("*.md")}
    pages = {page.stem: page for page in SITE.glob("*.html")}
    assert names <= set(pages), "make docs builds them"
    for name in sorted(names):
        assert_shows(browser, pages[name], has_images=False)
