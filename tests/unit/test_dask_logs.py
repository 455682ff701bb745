"""engine.dask_logs: lines go to the engine that owns their run, and never hold anything else up."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from engine import dask_logs
from engine.dask_logs import LOGS, LogWays


class Engine:
    """What the scheduler has of an engine that takes messages, or not."""

    def __init__(self, *, waiting: int = 0, is_closed: bool = False) -> None:
        self.buffer: list[Any] = [None] * waiting
        self._is_closed = is_closed
        self.heard: list[bytes] = []

    def closed(self) -> bool:
        return self._is_closed

    def send(self, message: dict[str, Any]) -> None:
        assert (message["op"], message["topic"]) == ("event", LOGS)
        self.heard += message["event"]


def test_lines_go_to_the_owner_of_their_run_in_order_and_to_nobody_where_there_is_none() -> None:
    one, two, gone = Engine(), Engine(), Engine(is_closed=True)
    owners = {"a": "one", "b": "two", "c": "gone", "d": "never here"}
    ways = LogWays({"one": one, "two": two, "gone": gone}, owners.get)
    ways.pass_on("w", [("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4"), ("d", b"5"), ("e", b"6")])
    assert (one.heard, two.heard, gone.heard) == ([b"1", b"3"], [b"2"], [])


def test_the_last_lines_of_a_run_that_was_let_go_still_find_their_way() -> None:
    engine = Engine()
    ways = LogWays({"one": engine}, lambda run_id: None)
    for number in range(dask_logs._REMEMBERED + 1):
        ways.let_go(f"run-{number}", "one")
    ways.pass_on("w", [("run-0", b"too late"), ("run-1", b"just in time")])
    assert engine.heard == [b"just in time"]


def test_an_engine_that_does_not_keep_up_gets_none_and_others_do() -> None:
    slow, quick = Engine(waiting=dask_logs._MOST_WAITING + 1), Engine()
    ways = LogWays({"slow": slow, "quick": quick}, {"a": "slow", "b": "quick"}.get)
    with structlog.testing.capture_logs() as logged:
        ways.pass_on("w", [("a", b"1"), ("b", b"2")])
    assert (slow.heard, quick.heard) == ([], [b"2"])
    assert [(line["log_level"], line["records"]) for line in logged] == [("warning", 1)]


def test_all_workers_together_are_held_to_what_the_scheduler_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_logs, "_BURST_BYTES", 1_000)
    monkeypatch.setattr(dask_logs, "_BYTES_PER_SECOND", 0)
    engine = Engine()
    ways = LogWays({"one": engine}, lambda run_id: "one")
    for _ in range(30):
        ways.pass_on("w", [("a", b"x" * 100)])
    assert len(engine.heard) == 10
