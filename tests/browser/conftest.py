"""A dashboard in a thread, and a real Chromium that looks at it."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from small_study import write_small_study

from tests.live_server import running

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server shows: a complete study, and whatever a test puts beside it."""
    folder = tmp_path_factory.mktemp("runs")
    write_small_study(folder / "small.duckdb", tell=True)
    return folder


@pytest.fixture(scope="session")
def address(runs: Path) -> Iterator[str]:
    """Where the dashboard listens."""
    with running(runs) as listening:
        yield listening


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; a missing one is a failure, so that nobody takes skipped tests for passed ones."""
    if os.environ.get("LINEUP_NO_BROWSER") == "1":
        pytest.skip("LINEUP_NO_BROWSER=1")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("No chromium found: install it, or set LINEUP_NO_BROWSER=1 to go without the browser tests.")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on a desk; the test fails if it logs an error or a script breaks."""
    yield from watched(browser, 1440)


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """The same on a phone, in the dark."""
    yield from watched(browser, 390)


def watched(browser: Browser, width: int) -> Iterator[Page]:
    """Open a page and collect what goes wrong on it."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if width < 500 else "light"
    )
    opened, problems = context.new_page(), list[str]()
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield opened
    assert opened.evaluate("window.hacked") is None
    context.close()
    assert problems == []
