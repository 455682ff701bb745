"""Health, Runs and Run in a real Chromium: whole in both themes and on a phone, by keyboard, live, and deaf to hostile text."""

from __future__ import annotations

import re
import time
from urllib.parse import quote

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from engine.repeats import Kind
from engine.states import State
from tests.browser.conftest import NARROW, WIDE, Shop
from tests.browser.sample import HOSTILE, Run

expect.set_options(timeout=30_000)
AXE = Axe()


def pages(shop: Shop) -> dict[str, str]:
    story = shop.story
    return {
        "health": "/",
        "runs": "/runs",
        "run": f"/runs/{story.failed}",
        "retried": f"/runs/{story.summary}",
        "graph": f"/runs/{story.summary}/graph",
        "children": f"/runs/{story.folders}",
        "changes": f"/runs/{story.failed}/changes",
        "logs": f"/runs/{story.failed}/logs",
        "task": f"/runs/{story.failed}/task?name=charge/1",
        "hostile": f"/runs/{story.hostile}",
        "nothing": "/runs?q=nothing",
    }


def violations(page: Page, name: str, **options: object) -> list[str]:
    found = AXE.run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [f"{name}: {one['id']} of {[node['target'] for node in one['nodes']][:3]}" for one in found]


def run_id(number: int) -> str:
    return f"{0xE0 << 120 | number:032x}"


def test_everybody_can_use_every_page_in_both_themes_and_on_a_phone(page: Page, shop: Shop) -> None:
    wrong: list[str] = []
    for name, address in pages(shop).items():
        page.set_viewport_size(WIDE)
        page.emulate_media(color_scheme="light")
        page.goto(shop.url + address)
        expect(page.locator("h1")).to_have_count(1)
        wrong += violations(page, name)
        page.emulate_media(color_scheme="dark")
        # All that a theme changes.
        wrong += violations(page, f"{name}, dark", runOnly=["color-contrast", "link-in-text-block"])
        page.set_viewport_size(NARROW)
        wrong += violations(page, f"{name}, narrow")
        if page.evaluate("document.documentElement.scrollWidth") > NARROW["width"]:
            wrong.append(f"{name} is wider than a phone")
    assert not wrong, "\n".join(wrong)


def test_from_health_to_the_traceback_of_a_failure_in_two_clicks(page: Page, shop: Shop) -> None:
    page.goto(shop.url)
    expect(page.locator(".verdict-text")).to_contain_text("dead letters wait")
    page.get_by_role("link", name="All failures").click()
    page.locator(f"#row-{shop.story.failed}").click()
    expect(page.locator(".error")).to_contain_text("CardDeclined")
    expect(page.get_by_label("Traceback")).to_contain_text("handlers/orders.py")


def test_a_list_is_used_by_keyboard(page: Page, shop: Shop) -> None:
    page.goto(f"{shop.url}/runs?flow=daily_summary")
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    page.keyboard.press("j")
    expect(page.locator(f"#row-{shop.story.summary}")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("daily_summary")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(page.locator("[id='task-by_carrier/0']")).to_be_focused()
    page.keyboard.press("g")
    page.keyboard.press("h")
    expect(page.locator("h1")).to_have_text("Health")


def test_a_theme_stays_chosen(page: Page, shop: Shop) -> None:
    page.goto(shop.url)
    page.keyboard.press("t")
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto(f"{shop.url}/runs")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    expect(page.locator("[data-theme-name]")).to_have_text("Dark theme")


def test_lists_and_runs_are_live_and_keep_what_is_selected(page: Page, shop: Shop) -> None:
    first, second, third = (run_id(number) for number in (1, 2, 3))
    page.goto(f"{shop.url}/runs?flow=live")
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "on")
    run = Run(shop.writer, first, "live", time.time()).begin()
    shop.writer.flush()
    row = page.locator(f"tr:has(#row-{first})")
    expect(row).to_contain_text("Running")
    page.locator(f"#row-{first}").focus()
    Run(shop.writer, second, "live", time.time())
    shop.writer.flush()
    expect(page.locator(f"#row-{second}")).to_be_visible()
    expect(page.locator(f"#row-{first}")).to_be_focused()
    page.keyboard.press("x")
    expect(page.locator("[data-live]")).to_contain_text("Paused")
    run.end(State.COMPLETED)
    Run(shop.writer, third, "live", time.time())
    shop.writer.flush()
    expect(page.locator("[data-bulk-count]")).to_have_text("1 selected")
    page.keyboard.press("x")
    expect(row).to_contain_text("Completed")
    expect(page.locator(f"#row-{third}")).to_be_visible()


def test_a_run_is_watched_to_its_end(page: Page, shop: Shop) -> None:
    run = Run(shop.writer, run_id(10), "watched", time.time()).begin()
    shop.writer.flush()
    page.goto(f"{shop.url}/runs/{run.run_id}")
    expect(page.locator("#run-head .head .state")).to_have_text("Running")
    run.do("step", "0", run.at, 0.01, 0.02)
    shop.writer.flush()
    expect(page.locator("[id='task-step/0']")).to_be_visible()
    run.end(State.COMPLETED)
    shop.writer.flush()
    expect(page.locator("#run-head .head .state")).to_have_text("Completed")
    expect(page.get_by_role("button", name="Rerun")).to_be_visible()


def test_runs_are_cancelled_retried_and_rerun(page: Page, shop: Shop) -> None:
    page.goto(f"{shop.url}/runs/{shop.story.running}")
    page.get_by_role("button", name="Cancel").first.click()
    page.get_by_label("Reason").fill("wrong prices")
    page.get_by_role("button", name="Cancel the run").click()
    expect(page.locator("#said")).to_have_text("The run is being cancelled")
    assert shop.actions.done[-1] == ("cancel", shop.story.running, "wrong prices")

    shop.actions.new_run_id = run_id(20)
    page.goto(f"{shop.url}/runs/{shop.story.failed}")
    page.get_by_role("button", name="Rerun").click()
    page.get_by_label("From task").select_option("charge")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("h1")).to_have_text("A new run")
    assert shop.actions.done[-1] == ("repeat", shop.story.failed, Kind.RERUN, "charge")
    Run(shop.writer, run_id(20), "again", time.time(), repeats=shop.story.failed).begin()
    shop.writer.flush()
    expect(page.locator("h1")).to_have_text("again")


def test_many_runs_are_retried_at_once(page: Page, shop: Shop) -> None:
    for number in (30, 31):
        Run(shop.writer, run_id(number), "bulk", time.time()).begin().end(State.FAILED)
    shop.writer.flush()
    page.goto(f"{shop.url}/runs?flow=bulk")
    page.get_by_label("Select all runs of this page").check()
    expect(page.locator("[data-bulk-count]")).to_have_text("2 selected")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#said")).to_have_text("2 runs are being retried")
    assert {done[:3] for done in shop.actions.done[-2:]} == {("repeat", run_id(n), Kind.RETRY) for n in (30, 31)}
    expect(page.locator("[data-bulk-count]")).to_be_hidden()


def test_hostile_text_is_shown_and_does_nothing(page: Page, shop: Shop) -> None:
    for address in (f"/runs?q={shop.story.hostile}", f"/runs?flow={quote(HOSTILE)}", f"/runs/{shop.story.hostile}"):
        page.goto(shop.url + address)
        expect(page.locator("#content :is(a, h1)", has_text="<img src=x onerror=alert(1)>").first).to_be_visible()
        expect(page.locator("[data-live]")).to_have_attribute("data-live", "on")
    for tab in ("graph", "logs", "changes"):
        page.goto(f"{shop.url}/runs/{shop.story.hostile}/{tab}")
        expect(page.locator("h1")).to_contain_text("<script>alert(2)</script>")
    page.locator("table a").first.click()
    expect(page.locator("h1")).to_have_text(re.compile(re.escape("<img")))


def test_without_scripts_pages_still_read(chromium_without_scripts: Page, shop: Shop) -> None:
    page = chromium_without_scripts
    page.goto(f"{shop.url}/runs")
    page.get_by_label("Run or event id").fill(shop.story.summary)
    page.get_by_role("button", name="Filter").click()
    page.locator(f"#row-{shop.story.summary}").click()
    expect(page.locator("h1")).to_have_text("daily_summary")
