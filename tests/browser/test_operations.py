"""Flows, Events, Dead letters, Cluster and About in a real Chromium: each action is followed to its record on a topic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from engine.cancellations import Cancellation, is_cancellation, read_cancellation
from engine.dead_letters import Mark, Marked, read_letter, read_replay
from engine.settings import Secret
from engine.states import type_of
from tests.browser.conftest import NARROW, WIDE
from tests.browser.desk import Desk, event_record

STATES, LETTERS, REPLAYS = "app.states", "app.dead-letters", "app.replays"
TOKEN = "a-token-to-operate-with"
PAGES = {
    "flows": "/flows",
    "flow": "/flows/fulfil",
    "events": "/events",
    "topic": "/events?topic=orders",
    "hostile topic": "/events?topic=payments",
    "no events": "/events?topic=clicks",
    "letters": "/dead-letters?all=1",
    "text": "/dead-letters/0/0",
    "bytes": "/dead-letters/0/1",
    "hostile": "/dead-letters/0/2",
    "cluster": "/cluster",
    "about": "/about",
}


@pytest.fixture
def guarded_desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path, http_token=Secret(TOKEN), http_read_token=Secret("a-token-to-look-only"))
    yield made
    made.close()


def check_access(page: Page, name: str) -> None:
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    told = [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found.response["violations"]]
    assert not told, (name, told)


@pytest.mark.parametrize(
    ("theme", "size"), [("light", WIDE), ("dark", WIDE), ("light", NARROW)], ids=["light", "dark", "narrow"]
)
def test_everybody_can_use_every_page(page: Page, desk: Desk, theme: str, size: dict[str, int]) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.set_viewport_size(size)  # type: ignore[arg-type]
    for name, address in PAGES.items():
        page.goto(desk.url + address)
        expect(page.locator("h1")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], f"{name} is wider than the window"
        check_access(page, name)
        assert page.locator("img, main script").count() == 0, f"{name} has taken an event for markup"


def test_a_flow_is_run_with_the_form_of_its_parameters(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/flows")
    page.get_by_role("link", name="fulfil", exact=True).click()
    expect(page.locator(".signature").first).to_have_text("fulfil(order: Order)")
    page.get_by_label("order.id").fill("o-by-hand")
    page.get_by_label("order.customer").fill("Ada")
    page.get_by_label("order.express").select_option("true")
    page.get_by_label("order.lines").fill('[{"sku": "tea", "quantity": 2}]')
    page.get_by_label("Ordering key").fill("customer-Ada")
    page.get_by_role("button", name="Run fulfil").click()
    page.wait_for_url(re.compile("/runs/[0-9a-f]+"))
    record = desk.wait_for(STATES, lambda record: b"o-by-hand" in (record.value or b""))
    change = msgspec.json.decode(record.value or b"")
    assert record.key == b"customer-Ada"
    assert change["parameters"]["order"] == {
        "id": "o-by-hand",
        "customer": "Ada",
        "express": True,
        "lines": [{"sku": "tea", "quantity": 2}],
    }
    assert change["run_id"] in page.url


def test_runs_are_retried_rerun_and_cancelled_on_the_state_topic(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/runs?flow=fulfil&state=FAILED")
    page.locator("tbody a").first.click()
    page.wait_for_url(re.compile("/runs/[0-9a-f]{32}"))
    failed = page.url.rpartition("/")[2][:32].encode()
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda address: failed.decode() not in address)
    retry = desk.wait_for(STATES, lambda record: b'"repeats":"' + failed in (record.value or b""))
    again = msgspec.json.decode(retry.value or b"")["run_id"]
    assert again in page.url
    page.get_by_role("button", name="Cancel").first.click()
    page.get_by_label("Reason").fill("nobody wants it")
    page.get_by_role("button", name="Cancel the run").click()
    asked = desk.wait_for(STATES, lambda record: is_cancellation(type_of(record.headers)))
    assert read_cancellation(asked.value) == Cancellation(again, read_cancellation(asked.value).at, "nobody wants it")

    page.goto(f"{desk.url}/runs?flow=fulfil&state=COMPLETED")
    page.locator("tbody input[type=checkbox]").first.check()
    before = len(desk.records(STATES))
    page.get_by_role("button", name="Rerun").click()
    expect(page.locator("#said")).to_contain_text("rerun")
    [rerun] = desk.records(STATES)[before:]
    assert b'"repeats":"' in (rerun.value or b"")


def test_what_is_wrong_with_a_form_is_said(context: BrowserContext, desk: Desk) -> None:
    """The answer is an error, of which the console speaks, too."""
    page = context.new_page()
    page.goto(f"{desk.url}/flows/fulfil")
    page.get_by_label("order.lines").fill('[{"sku": "tea", "quantity": "two"}]')
    page.get_by_role("button", name="Run fulfil").click()
    expect(page.locator("#trouble")).to_contain_text("order.lines[0].quantity")
    expect(page.get_by_label("order.lines")).to_have_value('[{"sku": "tea", "quantity": "two"}]')


def test_a_test_event_is_sent_and_seen(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/events?topic=payments")
    page.get_by_role("button", name="Send an event").click()
    page.get_by_label("Type").fill("payment.made")
    page.get_by_label("Source").fill("/tests")
    page.get_by_label("Id", exact=True).fill("sent-by-hand")
    page.get_by_label("Data, JSON").fill('{"payment_id": "p-1"}')
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#said")).to_contain_text("Sent: payments/0/")
    record = desk.wait_for("payments", lambda record: record.value == b'{"payment_id": "p-1"}')
    assert dict(record.headers)["ce_id"] == b"sent-by-hand"
    expect(page.locator("#events")).to_contain_text("sent-by-hand")


def test_what_made_no_run_says_why_and_new_events_come_by_themselves(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/events?topic=orders")
    expect(page.locator("#events")).to_contain_text("order.archived")
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "on")
    desk.do(lambda broker: event_record(broker, "orders", "a-late-one", "order.created", {"id": "late"}))
    expect(page.locator("#events")).to_contain_text("a-late-one")


def test_a_topic_that_is_not_there_is_said(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/events?topic=nowhere")
    expect(page.locator(".note-bad")).to_contain_text("topic nowhere: does not exist")


def test_a_dead_letter_is_mended_and_replayed(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/dead-letters")
    page.get_by_role("link", name="invalid-parameters").click()
    expect(page.get_by_label("The value as text")).to_contain_text('"lines": "many"')
    page.get_by_role("textbox", name="Value").fill('{"id": "o-47", "customer": "c-7", "express": false, "lines": []}')
    page.get_by_role("button", name="Replay").click()
    record = desk.wait_for(REPLAYS, lambda record: b'"lines": []' in (record.value or b""))
    assert read_replay(record.headers).letter == "0/0"
    expect(page.locator(".head .tag")).to_have_text("Replayed")
    expect(page.locator("#letter")).to_be_visible()


def test_bytes_are_edited_in_hexadecimal(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/dead-letters/0/1")
    expect(page.get_by_label("The value in hexadecimal")).to_contain_text("0001 feff")
    page.get_by_label("Value, in hexadecimal").fill("7b7d")
    page.get_by_label("Into the flow").select_option("settle")
    page.get_by_role("button", name="Replay").click()
    record = desk.wait_for(REPLAYS, lambda record: record.value == b"{}")
    assert read_replay(record.headers).flow == "settle"


def test_letters_are_dropped_together(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/dead-letters")
    page.get_by_label("Select letter 0/3").check()
    page.get_by_role("button", name="Drop").click()
    expect(page.locator("#said")).to_have_text("1 letter dropped")

    def is_drop(mark: object) -> bool:
        return isinstance(mark, Mark) and (mark.letter, mark.marked) == ("0/3", Marked.DROPPED)

    desk.wait_for(LETTERS, lambda record: is_drop(read_letter(record)))
    expect(page.get_by_label("Select letter 0/3")).to_have_count(0)


def test_letters_are_filtered_by_reason_in_the_address(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.url}/dead-letters?all=1")
    page.get_by_label("Reason").select_option("malformed-data")
    page.wait_for_url("**/dead-letters?reason=malformed-data&all=1")
    expect(page.locator("#row-0-1")).to_have_text("malformed-data")
    expect(page.locator("[data-row]")).to_have_count(1)
    check_access(page, "filtered letters")
    desk.letter("malformed-data", 60)
    expect(page.locator("[data-row]")).to_have_count(2)
    desk.letter("invalid-parameters", 61)
    desk.letter("malformed-data", 62)
    expect(page.locator("[data-row]")).to_have_count(3)
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url("**/dead-letters?all=1")
    expect(page.locator("[data-row] a", has_text="invalid-parameters")).not_to_have_count(0)
    page.goto(f"{desk.url}/dead-letters?reason=too-large")
    expect(page.locator("#letters")).to_contain_text("No such dead letters")


def test_with_a_token_one_logs_in_acts_and_logs_out(guarded_desk: Desk, page: Page) -> None:
    """The page is closed before its server is, whose end it would hear of."""
    desk = guarded_desk
    page.goto(f"{desk.url}/login?next=/flows/settle")
    check_access(page, "login")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("h1")).to_have_text("settle")
    assert TOKEN not in page.content()
    page.get_by_label("payment_id").fill("p-2")
    page.get_by_label("amount").fill("3.5")
    page.get_by_role("button", name="Run settle").click()
    page.wait_for_url(re.compile("/runs/[0-9a-f]+"))
    desk.wait_for(STATES, lambda record: b'"p-2"' in (record.value or b""))
    expect(page.locator("h1")).to_have_text("settle")
    expect(page.locator("[data-live]").first).to_have_attribute("data-live", "on")
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("h1")).to_have_text("Log in")
    page.get_by_label("Token").fill("a-token-to-look-only")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("[data-live]").first).to_have_attribute("data-live", "on")
    page.goto(f"{desk.url}/flows/settle")
    expect(page.locator("h1")).to_have_text("settle")
    expect(page.locator("[data-live]").first).to_have_attribute("data-live", "on")
    assert page.get_by_role("button", name="Run settle").count() == 0


def test_a_page_of_another_site_cannot_act(chromium_without_scripts: Page, desk: Desk) -> None:
    """As a form that a web page sends to a dashboard on the visitor's own machine."""
    page, before = chromium_without_scripts, len(desk.records(LETTERS))
    page.goto("data:text/html,<form method=post action='" + desk.url + "/dead-letters/0/2/drop'><button>x</button></form>")
    page.get_by_role("button").click()
    expect(page.locator("body")).to_contain_text("foreign-origin")
    assert len(desk.records(LETTERS)) == before
