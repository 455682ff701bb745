"""A real Chromium, and the dashboard served on a history that is filled as a projector would fill it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, sync_playwright

from engine.settings import Settings
from engine.web_app import build
from tests.browser.sample import Story, Writer
from tests.browser.serving import Noted, Served, Shown, a_vital

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
#: Chromium may need so long for a step on a busy machine.
STEP_SECONDS = 30.0


class Shop:
    """What is served, what writes to its history, and what was done."""

    def __init__(self, folder: Path) -> None:
        self.now = time.time()
        self.writer = Writer(folder / "history.db")
        self.story = Story(self.writer, self.now)
        self.actions = Noted()
        self.vitals = Shown(a_vital(self.now))
        settings = Settings(app="app", history=str(folder / "history.db"))
        self.served = Served(lambda: build(settings, actions=self.actions, vitals=self.vitals))
        self.url = self.served.url

    def close(self) -> None:
        self.served.close()
        self.writer.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser. Without one, tests are skipped, but fail where CI is set."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "no chromium on PATH; install it: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    playwright: Playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The sample's dashboard, shared by all tests; they add to it and take nothing away."""
    made = Shop(tmp_path_factory.mktemp("shop"))
    yield made
    made.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context(viewport=WIDE, color_scheme="light", reduced_motion="reduce")
    made.set_default_timeout(STEP_SECONDS * 1000)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, shop: Shop) -> Iterator[Page]:
    """A page whose test fails when anything is wrong on its console."""
    made = context.new_page()
    wrong: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    made.on("console", hear)
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("requestfailed", lambda request: None if request.url.startswith(shop.url) else wrong.append(request.url))
    yield made
    made.close()
    assert not wrong, wrong
