"""A browser that opens a report from disk and lets nothing out of the page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.browser import made_up
from workflow import report, tables
from workflow.grid import Grid

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"]
NOTE_WHAT_RAN = "window.hasRun = []; window.ran = name => window.hasRun.push(name);"
HEADING = "document.querySelector('#page h1')"
WAIT = 30_000  # ms until a page is given up: the machine may be busy


def until(page: Any, script: str, arg: Any = None, seconds: float = 30) -> None:
    """Ask again and again from outside: the page's own policy forbids it to evaluate what it waits for."""
    end = time.monotonic() + seconds
    while not page.evaluate(script, arg):
        assert time.monotonic() < end, f"not in {seconds} s: {script}"
        page.wait_for_timeout(50)


@pytest.fixture(scope="session")
def browser():
    """The system's chromium, without a window; the tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=QUIET, timeout=10 * WAIT)
        yield browser
        browser.close()


class Opened:
    """A page of the browser, what its console said, and what it asked the network for."""

    def __init__(self, browser, file: Path, **options):
        self.file = file
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.context.set_default_timeout(WAIT)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.overlooked: tuple[str, ...] = ()  # parts of what the console may say
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(NOTE_WHAT_RAN)

    def go(self, route: str = ""):
        """The page at a route, `#/method/lora`, drawn."""
        self.page.goto(self.file.as_uri() + route)
        return self.page

    def follow(self, route: str):
        """The page after a link to another route in the same file."""
        self.page.evaluate(f"route => {{ window.former = {HEADING}; location.hash = route }}", route)
        until(self.page, f"{HEADING} && {HEADING} !== window.former")
        return self.page

    def check(self) -> None:
        """No script failed or complained, and nothing was asked for but the file itself."""
        left = [url for url in self.asked if not url.startswith((self.file.as_uri(), "data:", "blob:"))]
        assert left == []
        complaints = [line for line in self.said if line.startswith(("error", "warning"))]
        assert [line for line in complaints if not any(part in line for part in self.overlooked)] == []


@pytest.fixture
def opener(browser) -> Iterator[Callable[..., Opened]]:
    """Opens files with the options of a browser's context; checks every page at the end."""
    opened: list[Opened] = []

    def open_(file: Path, **options) -> Opened:
        opened.append(Opened(browser, file, **options))
        return opened[-1]

    yield open_
    for one in opened:
        one.context.close()
    for one in opened:
        one.check()


class Study(NamedTuple):
    """The made-up study: its grid, the folder that its results are in, its report and the folder of its tables."""

    grid: Grid
    root: Path
    file: Path
    tables: Path


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Study:
    root = tmp_path_factory.mktemp("study")
    grid = made_up.write(root)
    folder = root / "results" / grid.name / "tables"
    tables.write(tables.build(grid, root), folder)
    return Study(grid, root, report.build(grid, root), folder)


@pytest.fixture
def site(study, opener):
    """The made-up study's report in the browser, at the width of a desktop."""
    return opener(study.file)
