"""Opens pages in a headless Chromium; the tests are skipped where there is none."""

from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def opened(browser):
    """Open a page that may neither fail nor load anything."""

    @contextmanager
    def open_page(path, **options):
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        page = context.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: problems.append(request.url) if is_remote(request.url) else None)
        page.goto(Path(path).as_uri())
        try:
            yield page
            assert problems == []
        finally:
            context.close()

    return open_page


def is_remote(url):
    return not url.startswith(("file:", "data:"))
