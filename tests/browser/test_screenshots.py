"""The pictures of the README: written only where ENGINE_SCREENSHOTS is set, in this folder's ``screenshots``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Shop
from tests.browser.desk import Desk

FOLDER = Path(__file__).parent / "screenshots"
LARGEST_BYTES = 150_000
#: Pages whose sample is on topics.
OF_THE_DESK = {
    "flows": "/flows",
    "flow": "/flows/fulfil",
    "events": "/events?topic=orders",
    "letters": "/dead-letters?all=1",
    "letter": "/dead-letters/0/0",
}


@pytest.mark.skipif(not os.environ.get("ENGINE_SCREENSHOTS"), reason="set ENGINE_SCREENSHOTS=1 to write the pictures")
@pytest.mark.parametrize(
    "name",
    ["health", "health-dark", "runs", "run", "graph", "cluster", "flows", "flow", "events", "letters", "letter"],
)
def test_take_a_picture(page: Page, shop: Shop, desk: Desk, name: str) -> None:
    story = shop.story
    if name in OF_THE_DESK:
        take(page, desk.url + OF_THE_DESK[name], name)
        return
    address = {"runs": "/runs", "run": f"/runs/{story.summary}", "graph": f"/runs/{story.summary}/graph"}.get(
        name, "/cluster" if name == "cluster" else "/"
    )
    take(page, shop.url + address, name)


def take(page: Page, address: str, name: str) -> None:
    page.emulate_media(color_scheme="dark" if name.endswith("dark") else "light")
    page.set_viewport_size({"width": 1200, "height": 750})
    page.goto(address)
    if page.locator("[data-live]").count():
        expect(page.locator("[data-live]").first).to_have_attribute("data-live", "on")
    FOLDER.mkdir(exist_ok=True)
    page.screenshot(path=FOLDER / f"{name}.png")
    assert (FOLDER / f"{name}.png").stat().st_size < LARGEST_BYTES
