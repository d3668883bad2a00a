"""A headless Chromium for the tests of the page; they are skipped where there is none."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if path is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


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
