"""The pictures of the README, of the demo's data: written only where ENGINE_SCREENSHOTS is set, into ``screenshots``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

FOLDER = Path(__file__).parent / "screenshots"
ROOT = Path(__file__).parents[2]
LARGEST_BYTES = 150_000
ENGINE = (sys.executable, "-m", "engine")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of ``engine dev`` when ``engine demo`` has sent its flights: its address."""
    if not os.environ.get("ENGINE_SCREENSHOTS"):
        pytest.skip("set ENGINE_SCREENSHOTS=1 to write the pictures")
    history = tmp_path_factory.mktemp("pictures") / "history.db"
    where = ("--app", "flights", "--fresh", "--json")
    environment = os.environ | {"ENGINE_HISTORY": str(history)}
    stack = subprocess.Popen([*ENGINE, "dev", "handlers/flights.py", *where], stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    assert stack.stdout is not None
    ready = json.loads(stack.stdout.readline())
    there = ("--app", "flights", "--kafka", ready["kafka"], "--dask", ready["dask"])
    subprocess.run([*ENGINE, "demo", *there], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    yield ready["http"]
    stack.send_signal(signal.SIGINT)
    stack.wait(60)
    stack.stdout.close()


def largest(demo: str) -> str:
    """The run with the most tasks among the last."""
    runs = httpx.get(f"{demo}/api/v1/runs", params={"limit": 1_000}).json()["items"]
    return str(max(runs, key=lambda run: run["tasks"])["run_id"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    ["health", "health-dark", "runs", "run", "graph", "flows", "flow", "events", "letters", "letter", "cluster"],
)
def test_take_a_picture(demo: str, page: Page, name: str) -> None:
    run = f"/runs/{largest(demo)}"
    letter = httpx.get(f"{demo}/api/v1/dead-letters").json()["items"][0]["id"]
    flow = httpx.get(f"{demo}/api/v1/flows").json()["items"][0]["name"]
    addresses = {
        "health": "/",
        "health-dark": "/",
        "run": run,
        "graph": f"{run}/graph",
        "flow": f"/flows/{flow}",
        "events": "/events?topic=flights",
        "letters": "/dead-letters",
        "letter": f"/dead-letters/{letter}",
    }
    page.emulate_media(color_scheme="dark" if name.endswith("dark") else "light")
    page.set_viewport_size({"width": 1200, "height": 750})
    page.goto(demo + addresses.get(name, f"/{name}"))
    if page.locator("[data-live]").count():
        expect(page.locator("[data-live]").first).to_have_attribute("data-live", "on")
    FOLDER.mkdir(exist_ok=True)
    page.screenshot(path=FOLDER / f"{name}.png")
    assert (FOLDER / f"{name}.png").stat().st_size < LARGEST_BYTES
