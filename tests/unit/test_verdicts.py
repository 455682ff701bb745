"""The sentence on the Health page follows from what is known, and never takes the unknown for good."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verdicts import Facts, Level, failure_share, judge
from engine.vital_signs import DaskVital, EngineVital, Lag, Vital, Worker

NOW = 1_800_000_000.0
MINUTE = int(NOW // 60) * 60


def worker(**more: Any) -> Worker:
    known: dict[str, Any] = {
        "address": "tcp://w", "name": "w", "status": "running", "threads": 2, "memory_bytes": 10, "memory_limit_bytes": 100,
        "managed_bytes": 0, "spilled_bytes": 0, "executing": 0, "queued": 0, "cpu": 1.0, "last_seen_at": NOW,
    }  # fmt: skip
    return Worker(**(known | more))


def vital(**more: Any) -> Vital:
    dask = DaskVital("tcp://s", NOW, 2, (worker(),), 0, 0, 0)
    known = Vital(NOW, (Lag("app.intake", "orders", 0, 1, 1, 0),), {}, "", dask, "", (EngineVital("e:1", True, {}),))
    return msgspec.structs.replace(known, **more)


def facts(**more: Any) -> Facts:
    known: dict[str, Any] = {"now": NOW, "minutes": [(MINUTE, "COMPLETED", 40)], "vital": vital()}
    return Facts(**(known | more))


def test_all_is_well_and_says_what_happened() -> None:
    verdict = judge(facts(open_runs={"RUNNING": 2}))
    assert verdict.level is Level.OK
    assert verdict.sentence == "All is well: 40 runs completed in the last 15 minutes, and 2 runs are under way."
    assert all(reason.level is Level.OK for reason in verdict.reasons)


def test_an_idle_system_is_well() -> None:
    assert judge(facts(minutes=[])).sentence == "All is well, and nothing is going on."


@pytest.mark.parametrize(
    ("given", "level", "text"),
    [
        ({"minutes": [(MINUTE, "FAILED", 30), (MINUTE, "COMPLETED", 10)]}, Level.BAD, "30 of 40 runs"),
        ({"minutes": [(MINUTE, "FAILED", 3), (MINUTE, "COMPLETED", 37)]}, Level.WARN, "3 of 40 runs"),
        ({"minutes": [(MINUTE, "FAILED", 1), (MINUTE, "COMPLETED", 99)]}, Level.OK, "All is well"),
        ({"minutes": [(MINUTE, "CRASHED", 1), (MINUTE, "COMPLETED", 99)]}, Level.WARN, "1 of 100 runs"),
        ({"minutes": [(MINUTE - 3_000, "FAILED", 40)]}, Level.OK, "nothing is going on"),
        ({"letters": 1}, Level.WARN, "1 dead letter waits for somebody"),
        ({"letters": 100, "more_letters": True}, Level.WARN, "more than 100 dead letters wait"),
        ({"waiting_since": NOW - 300}, Level.WARN, "has waited for 5 min"),
        ({"waiting_since": NOW - 3}, Level.OK, "All is well"),
        ({"behind": 50_000}, Level.WARN, "the history is 50,000 records behind"),
        ({"vital": None}, Level.UNKNOWN, "not everything can be seen"),
        ({"vital": vital(lags=None, kafka_trouble="refused")}, Level.BAD, "Kafka does not answer (refused)"),
        ({"vital": vital(lags=(Lag("app.intake", "o", 0, 0, 5_000, 5_000),))}, Level.WARN, "5,000 events wait"),
        ({"vital": vital(lags=(Lag("app.dispatch", "s", 0, 0, 5_000, 5_000),))}, Level.OK, "All is well"),
        ({"vital": vital(dask=None, dask_trouble="refused")}, Level.BAD, "the Dask scheduler does not answer (refused)"),
        ({"vital": vital(dask=DaskVital("s", NOW, 0, (), 0, 0, 0))}, Level.BAD, "Dask has no workers"),
        (
            {"vital": vital(dask=DaskVital("s", NOW, 4, (worker(), worker(status="paused")), 0, 0, 0))},
            Level.WARN,
            "1 of 2 workers is paused",
        ),
        (
            {"vital": vital(dask=DaskVital("s", NOW, 2, (worker(memory_bytes=90),), 0, 0, 0))},
            Level.WARN,
            "a worker uses 90.0 % of its memory",
        ),
        ({"vital": vital(engines=(EngineVital("e:1", None, {}, "refused"),))}, Level.BAD, "does not answer (refused)"),
        (
            {"vital": vital(engines=(EngineVital("e:1", True, {}), EngineVital("e:2", False, {"kafka": "lost"})))},
            Level.WARN,
            "the engine at e:2 is not ready (kafka: lost)",
        ),
    ],
)
def test_the_worst_decides_and_is_said(given: dict[str, Any], level: Level, text: str) -> None:
    verdict = judge(facts(**given))
    assert (verdict.level, text in verdict.sentence) == (level, True), verdict.sentence
    assert [reason.level for reason in verdict.reasons] == sorted((reason.level for reason in verdict.reasons), reverse=True)


def test_several_troubles_are_counted() -> None:
    sentence = judge(facts(letters=2, behind=50_000)).sentence
    assert sentence.endswith(("dead letters wait for somebody, and 1 more.", "behind the topics, and 1 more."))


def test_cancelled_runs_are_no_failures() -> None:
    assert failure_share({"CANCELLED": 5}) is None
    assert failure_share({"CANCELLED": 5, "COMPLETED": 1, "CRASHED": 1}) == 0.5
