"""A real Chromium, and the dashboard served on a history that is filled as a projector would fill it.

Playwright's own event loop may not run where those of other tests do, so browser tests run in a thread of their own.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, sync_playwright

from engine.settings import Settings
from engine.web_app import build
from tests.browser.desk import Desk
from tests.browser.sample import Story, Writer
from tests.browser.serving import Noted, Served, Shown, a_vital, guarded

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
#: Chromium may need so long for a step on a busy machine.
STEP_SECONDS = 30.0

_thread = ThreadPoolExecutor(1, "browser")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    _thread.submit(pyfuncitem.obj, **arguments).result()
    return True


class Shop:
    """What is served, what writes to its history, and what was done."""

    def __init__(self, folder: Path) -> None:
        self.now = time.time()
        self.writer = Writer(folder / "history.db")
        self.story = Story(self.writer, self.now)
        self.actions = Noted()
        self.vitals = Shown(a_vital(self.now))
        settings = Settings(app="app", history=str(folder / "history.db"))
        self.served = Served(lambda: guarded(build(settings, actions=self.actions, vitals=self.vitals)))
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
    playwright = _thread.submit(sync_playwright().start).result()
    browser = _thread.submit(
        playwright.chromium.launch, executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    ).result()
    yield browser
    _thread.submit(browser.close).result()
    _thread.submit(playwright.stop).result()
    _thread.shutdown()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The sample's dashboard, shared by all tests; they add to it and take nothing away."""
    made = Shop(tmp_path_factory.mktemp("shop"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A whole dashboard on the log in memory, whose topics show what was done; shared as the shop is."""
    made = Desk(tmp_path_factory.mktemp("desk"))
    yield made
    made.close()


class Listener:
    """Hears everything that a page should not say."""

    def __init__(self, page: Page) -> None:
        self.wrong: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", self._dialog)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _dialog(self, dialog: Dialog) -> None:
        if dialog.type == "alert":
            self.wrong.append(f"a script of an event's ran: {dialog.message}")
        dialog.accept()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = _thread.submit(chromium.new_context, viewport=WIDE, color_scheme="light", reduced_motion="reduce").result()
    made.set_default_timeout(STEP_SECONDS * 1000)
    yield made
    _thread.submit(made.close).result()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page whose test fails when anything is wrong on its console."""
    made = _thread.submit(context.new_page).result()
    listener = _thread.submit(Listener, made).result()
    yield made
    _thread.submit(made.close).result()
    assert not listener.wrong, listener.wrong


@pytest.fixture
def chromium_without_scripts(chromium: Browser) -> Iterator[Page]:
    """A page in a browser that runs no scripts."""
    context = _thread.submit(chromium.new_context, java_script_enabled=False).result()
    made = _thread.submit(context.new_page).result()
    made.set_default_timeout(STEP_SECONDS * 1000)
    yield made
    _thread.submit(context.close).result()
