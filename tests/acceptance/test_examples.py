"""All of handlers/ in one stack of ``engine dev``, seen through the commands and the topics alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.conftest import ROOT, SOURCE, Stack, engine

#: The engine that follows one that was killed waits so long for its partitions.
SESSION_SECONDS = 6.0
WAIT = "engine.wait_for_event"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that events may name paths in: three levels, seven folders."""
    root = tmp_path_factory.mktemp("tree")
    for outer in ("a", "b"):
        for inner in ("x", "y"):
            folder = root / outer / inner
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(b"x" * 100)
    (root / "a" / "x" / "large").write_bytes(b"x" * 1_000)
    return root


@pytest.fixture(scope="module")
def stack(kafka: str, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With two worker processes."""
    running = Stack(
        tmp_path_factory.mktemp("examples"),
        "examples",
        ["--kafka", kafka, "--workers", "2", "--json", "--no-reload"],
        handlers=ROOT / "handlers",
        environment={"HANDLERS_FOLDERS_ROOT": str(tree), "ENGINE_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS)},
    )
    try:
        running.wait_ready()
        yield running
    finally:
        code, rest = running.stop()
    assert (code, rest) == (0, b""), running.log


async def completed(stack: Stack, flow: str, event_id: str) -> list[dict[str, Any]]:
    """The changes of a run, which must have completed, told without a gap."""
    watched = await stack.watch(stack.run_id(flow, event_id))
    assert watched.code == 0, (watched.err, watched.out[-2_000:], stack.log[-4_000:])
    changes: list[dict[str, Any]] = watched.lines
    assert [change["seq"] for change in changes] == list(range(len(changes)))
    return changes


def scheduled(changes: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    return [change for change in changes if change.get("task") == task and change["state"] == "SCHEDULED"]


def tasks(changes: list[dict[str, Any]], state: str = "COMPLETED") -> list[str]:
    """Names of the tasks that came to this state, in order."""
    return [change["task"] for change in changes if "task" in change and change["state"] == state]


def order(order_id: str, **changes: object) -> dict[str, object]:
    return {"order_id": order_id, "sku": "tea", "country": "DE"} | changes


async def place(stack: Stack, order_id: str, **changes: object) -> str:
    """Send an order, and come back when its run waits for the money; answers the run's id."""
    await stack.send_event("orders", "order.created", order_id, order(order_id, **changes))
    run_id = stack.run_id("checkout", order_id)
    # That of the run, of reserve, and of the wait.
    seen = await stack.tail("--run", run_id, "--state", "RUNNING", "--count", "3")
    assert [change.get("task") for change in seen.lines] == [None, "reserve", WAIT], seen.err
    return run_id


async def pay(stack: Stack, order_id: str) -> None:
    await stack.send_event("orders", "order.paid", f"payment-{order_id}", {"order_id": order_id, "payment_id": "p"})


async def test_the_flows_of_all_examples_are_listed() -> None:
    listed = await engine("flows", "ls", str(ROOT / "handlers"), "--json")
    assert listed.code == 0, listed.err
    assert {line["flow"] for line in listed.lines} == {"checkout", "daily_summary", "delay_report", "folder_size", "score"}


async def test_a_map_over_what_a_task_has_found_is_as_long_as_that(stack: Stack) -> None:
    flights = [
        {
            "carrier": carrier,
            "number": number,
            "origin": "EWR",
            "destination": "ORD",
            "distance_miles": 719,
            "scheduled_at": "2013-03-08T10:00:00-05:00",
            "departed_at": f"2013-03-08T10:{10 * number:02}:00-05:00",
        }
        for number, carrier in enumerate(("UA", "B6", "AA", "UA"), 1)
    ]
    await stack.send_event("flights", "day.closed", "day", {"airport": "EWR", "day": "2013-03-08", "flights": flights})
    changes = await completed(stack, "daily_summary", "day")
    [split] = [change for change in changes if change.get("task") == "by_carrier" and change["state"] == "COMPLETED"]
    assert split["length"] == 3
    elements = scheduled(changes, "summarise_carrier")
    assert [change["map_index"] for change in elements] == [0, 1, 2]
    assert {change["state"] for change in changes if change["seq"] < elements[0]["seq"]} >= {"COMPLETED"}, "split first"
    result = changes[-1]["result"]
    assert (result["flights"], result["late"], result["median_delay_minutes"]) == (4, 3, 25.0)
    assert [line["flights"] for line in result["carriers"]] == [2, 1, 1]


async def test_a_task_starts_a_task_for_each_folder_and_the_sum_is_the_result(stack: Stack) -> None:
    await stack.send_event("folders", "folder.named", "tree", {"folder": "."})
    changes = await completed(stack, "folder_size", "tree")
    assert changes[-1]["result"] == {
        "folder": ".",
        "files": 5,
        "folders": 6,
        "bytes": 1_400,
        "fullest": "a/x",
        "fullest_bytes": 1_100,
    }
    measured = scheduled(changes, "measure_folder")
    by_parent = Counter(change.get("spawned_by") for change in measured)
    root, *_ = (change["task_run_id"] for change in measured)
    assert (by_parent[None], by_parent[root], sum(by_parent.values())) == (1, 2, 7)
    assert sorted(by_parent.values()) == [1, 2, 2, 2]
    sums = scheduled(changes, "add_up")
    assert len(sums) == 3
    assert {change["spawned_by"] for change in sums} < {change["task_run_id"] for change in measured}


@pytest.mark.parametrize("folder", ["..", "a/../../..", "/etc"])
async def test_an_event_cannot_lead_a_task_out_of_its_root(stack: Stack, folder: str) -> None:
    event_id = f"out-{folder.replace('/', '-')}"
    await stack.send_event("folders", "folder.named", event_id, {"folder": folder})
    # The event behind it has run: had it become a run, that would be on the topic.
    await stack.send_event("folders", "folder.named", f"behind-{event_id}", {"folder": "a"})
    await completed(stack, "folder_size", f"behind-{event_id}")
    assert (await stack.watch(stack.run_id("folder_size", event_id))).code == 3


async def test_an_order_waits_for_its_money_and_goes_on(stack: Stack) -> None:
    await place(stack, "waits")
    await pay(stack, "waits")
    changes = await completed(stack, "checkout", "waits")
    assert changes[-1]["result"] == {"order_id": "waits", "outcome": "shipped", "parcel": "DE-waits", "reason": ""}
    assert tasks(changes) == ["reserve", WAIT, "ship"]


async def test_money_that_came_before_the_wait_began_is_found(stack: Stack, tmp_path: Path) -> None:
    """Order and payment lie on the topic one behind the other before the run begins."""
    both = tmp_path / "both.jsonl"
    events = [
        {"type": "order.created", "id": "early", "data": order("early")},
        {"type": "order.paid", "id": "payment-early", "data": {"order_id": "early", "payment_id": "p"}},
    ]
    lines = [{"specversion": "1.0", "source": SOURCE, "partitionkey": "early"} | event for event in events]
    both.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sent = await engine("events", "send", "orders", "--file", str(both), "--kafka", stack.ready["kafka"])
    assert sent.code == 0, sent.err
    changes = await completed(stack, "checkout", "early")
    assert changes[-1]["result"]["outcome"] == "shipped"
    [found] = [change["result"] for change in changes if change.get("task") == WAIT and change["state"] == "COMPLETED"]
    assert (found["id"], found["position"]["offset"]) == ("payment-early", changes[0]["event"]["offset"] + 1)


async def test_an_order_that_nobody_pays_is_cancelled(stack: Stack) -> None:
    await place(stack, "unpaid", pay_within_seconds=1)
    changes = await completed(stack, "checkout", "unpaid")
    assert (changes[-1]["result"]["outcome"], changes[-1]["result"]["reason"]) == ("cancelled", "not paid in time")
    assert (tasks(changes), tasks(changes, "CANCELLED")) == (["reserve", "release"], [WAIT])


async def test_what_cannot_be_shipped_is_made_undone(stack: Stack) -> None:
    await place(stack, "far", country="AQ")
    await pay(stack, "far")
    changes = await completed(stack, "checkout", "far")
    assert (changes[-1]["result"]["outcome"], changes[-1]["result"]["reason"]) == ("refunded", "no carrier goes to AQ")
    assert (tasks(changes), tasks(changes, "FAILED")) == (["reserve", WAIT, "refund", "release"], ["ship"])


async def test_a_packed_run_tells_of_itself_alone_with_its_tasks_in_the_end(stack: Stack, tmp_path: Path) -> None:
    views = tmp_path / "views.csv"
    rows = [f"visitor-{n},/tea,{30 * n},0.5" for n in range(10)]
    views.write_text("\n".join(["visitor,page,seconds,depth", *rows]) + "\n")
    sent = await engine(
        "events", "send", "clicks", "--type", "page.viewed", "--file", str(views), "--kafka", stack.ready["kafka"]
    )
    assert sent.code == 0, sent.err
    seen = await stack.tail("--flow", "score", "--count", "30")
    assert Counter(change["state"] for change in seen.lines) == {"SCHEDULED": 10, "RUNNING": 10, "COMPLETED": 10}
    assert not any("task" in change for change in seen.lines)
    ends = [change for change in seen.lines if change["state"] == "COMPLETED"]
    assert {end["result"]["visitor"]: end["result"]["score"] for end in ends}["visitor-4"] == 36
    for end in ends:
        assert [(task["task"], task["state"]) for task in end["tasks"]] == [
            ("attention", "COMPLETED"),
            ("came_by", "COMPLETED"),
            ("rate", "COMPLETED"),
        ]


async def test_an_engine_that_is_killed_while_orders_wait_is_followed_by_one_that_goes_on(stack: Stack) -> None:
    """One is paid while no engine runs, one never: what was reserved is not reserved again."""
    await place(stack, "paid-later")
    await place(stack, "never-paid", pay_within_seconds=10)
    children = {tuple(child.cmdline()): child for child in psutil.Process(stack.process.pid).children()}
    [killed] = [child for words, child in children.items() if {"engine", "run"} <= set(words) and "history" not in words]
    os.kill(killed.pid, signal.SIGKILL)
    await asyncio.to_thread(killed.wait, 10)
    await pay(stack, "paid-later")
    paid = await completed(stack, "checkout", "paid-later")
    unpaid = await completed(stack, "checkout", "never-paid")
    assert (paid[-1]["result"]["outcome"], unpaid[-1]["result"]["outcome"]) == ("shipped", "cancelled")
    for changes in (paid, unpaid):
        assert len({change["epoch"] for change in changes[1:]}) == 2, "two owners"
        again = {key: n for key, n in Counter((c.get("task"), c["state"]) for c in changes).items() if n > 1}
        assert again == {}
