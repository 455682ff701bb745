"""The engine as a whole, the same wherever it runs: the log in memory or real Kafka, tasks in threads or on Dask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from engine.broker import Broker
from engine.cluster import Cluster, in_process
from engine.executor import Executor
from engine.flows import Flow
from engine.inline import InlineExecutor
from engine.kafka import KafkaBroker
from engine.memory import MemoryBroker
from engine.states import State
from tests.app_under_test import AppUnderTest, Run, fresh_settings
from tests.integration import flows_graphs as flows
from tests.waiting import eventually

S = State


class Place:
    """Where engines run in this test."""

    def __init__(self, kafka: str, dask: str, memory: MemoryBroker) -> None:
        self.kafka, self.dask = kafka, dask
        self._memory = memory
        self._stack = AsyncExitStack()

    async def start(self, *flows: Flow[..., object]) -> AppUnderTest:
        """An engine that runs."""
        settings = fresh_settings(kafka=self.kafka, dask=self.dask)
        executor: Executor = Cluster(settings.app, self.dask) if self.dask else InlineExecutor()
        broker, log = self._broker(settings), self._broker(settings)
        app = AppUnderTest(settings, flows, broker, executor, log)
        self._stack.push_async_callback(app.close)
        await app.start()
        return app

    async def close(self) -> None:
        await self._stack.aclose()

    def _broker(self, settings: object) -> Broker:
        return KafkaBroker(settings) if self.kafka else self._memory  # type: ignore[arg-type]


@pytest.fixture(params=["memory and threads", "memory and Dask", "Kafka and Dask"])
def parts(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Kafka's address, empty for the log in memory, and whether there is a Dask."""
    return (request.getfixturevalue("kafka") if "Kafka" in request.param else ""), "Dask" in request.param


@pytest.fixture
async def place(parts: tuple[str, bool]) -> AsyncIterator[Place]:
    """Each combination that is to make the same state changes."""
    kafka, has_dask = parts
    async with AsyncExitStack() as stack:
        dask = await stack.enter_async_context(in_process()) if has_dask else ""
        place = Place(kafka, dask, MemoryBroker())
        stack.push_async_callback(place.close)
        yield place


def told(run: Run) -> list[tuple[str, str, int, tuple[str, ...], int | None, str | None]]:
    """All that a run's changes say but times, places and the order among tasks that run side by side."""
    return sorted(
        (
            (change.task_run_id or "").removeprefix(run.id),
            change.state.value,
            change.attempt,
            tuple(parent.removeprefix(run.id) for parent in change.parents),
            change.map_index,
            change.reason,
        )
        for change in run.changes
    )


def assert_in_order(run: Run) -> None:
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert run.story[:2] == [(None, S.SCHEDULED), (None, S.RUNNING)]
    assert run.end.is_flow_run
    assert run.end.state.is_end


class TestEngine:
    async def test_tasks_run_and_their_result_comes_back(self, place: Place) -> None:
        app = await place.start(flows.two)
        run = await app.do("numbers", {"value": 20}, "two")
        assert_in_order(run)
        assert run.result == 41
        assert told(run) == sorted(
            [
                ("", "SCHEDULED", 0, (), None, None),
                ("", "RUNNING", 1, (), None, None),
                ("/double/0", "SCHEDULED", 0, (), None, None),
                ("/add/1", "SCHEDULED", 0, ("/double/0",), None, None),
                ("/double/0", "RUNNING", 1, (), None, None),
                ("/double/0", "COMPLETED", 1, (), None, None),
                ("/add/1", "RUNNING", 1, (), None, None),
                ("/add/1", "COMPLETED", 1, (), None, None),
                ("", "COMPLETED", 1, (), None, None),
            ]
        )

    async def test_a_map_and_a_sum(self, place: Place) -> None:
        app = await place.start(flows.spread)
        run = await app.do("maps", {"values": [1, 2, 3]}, "spread")
        assert_in_order(run)
        assert run.result == 12
        assert [c.map_index for c in run.of("double") if c.state is S.SCHEDULED] == [0, 1, 2]
        assert {c.task_run_id for c in run.of("double")} == {f"{run.id}/double/0.{n}" for n in range(3)}
        assert run.of("total")[0].parents == (f"{run.id}/double/0",), "the map as a whole"

    async def test_a_composite_result_of_async_and_plain_tasks(self, place: Place) -> None:
        app = await place.start(flows.composite, flows.plain)
        run = await app.do("baskets", {"skus": ["a", "bb"]}, "composite")
        assert_in_order(run)
        assert run.result == {
            "priced": [{"sku": "a", "cents": 1}, {"sku": "bb", "cents": 2}],
            "count": 2,
            "deep": [{"later": 2}],
        }
        assert (await app.do("plain", {"value": 1}, "plain")).story == [
            (None, S.SCHEDULED),
            (None, S.RUNNING),
            (None, S.COMPLETED),
        ]

    async def test_a_failure_cancels_what_needs_it(self, place: Place) -> None:
        app = await place.start(flows.break_down)
        run = await app.do("failures", {"value": 1}, "break_down")
        assert_in_order(run)
        assert (run.end.state, run.end.error and run.end.error.message) == (S.FAILED, "no 1 here")
        ends = {c.task_run_id: (c.state, c.reason) for c in run.changes if c.task and c.state.is_end}
        assert ends == {
            f"{run.id}/fail/0": (S.FAILED, None),
            f"{run.id}/add/1": (S.CANCELLED, "upstream"),
            f"{run.id}/double/2": (S.COMPLETED, None),
            f"{run.id}/double/3": (S.CANCELLED, "upstream"),
        }

    async def test_a_failed_attempt_is_tried_again_later(self, place: Place, tmp_path: Path) -> None:
        app = await place.start(flows.persevere)
        run = await app.do("retries", {"attempt": 2, "folder": str(tmp_path)}, "persevere")
        assert_in_order(run)
        assert run.result == 4
        assert [(c.state, c.attempt) for c in run.of("succeed_at")] == [
            (S.SCHEDULED, 0),
            (S.RUNNING, 1),
            (S.RETRYING, 1),
            (S.RUNNING, 2),
            (S.COMPLETED, 2),
        ]

    @pytest.mark.parametrize("kind", ["spin", "wait"])
    async def test_a_task_over_its_time_fails(self, place: Place, kind: str) -> None:
        app = await place.start(flows.overrun)
        run = await app.do("timeouts", {"kind": kind}, "overrun")
        assert_in_order(run)
        assert run.end.error is not None
        assert (run.end.state, run.end.error.type) == (S.FAILED, "TaskTimeout")

    async def test_a_large_result_stays(self, place: Place) -> None:
        app = await place.start(flows.outgrow)
        run = await app.do("large", {"size": 20_000}, "outgrow")
        assert_in_order(run)
        assert run.end.result_ref == f"dask:variable/run-{run.id}"
        assert run.end.reason == "too large: 20,002 bytes"

    async def test_an_event_sent_twice_makes_one_run(self, place: Place) -> None:
        app = await place.start(flows.one)
        for id in ("same", "same", "after"):
            await app.send("numbers", {"value": 1}, id=id)
        runs = [await app.run("one", id) for id in ("same", "after")]
        assert len({run.id for run in runs}) == len(app.ends()) == 2
        # Subscribers drop repeats: the log itself has to be asked whether the run was begun twice.
        records = await app.records(app.settings.states_topic)
        begun = [r for r in records if ("ce_type", b"engine.flow_run.running") in r.headers]
        assert len(begun) == 2

    async def test_runs_of_one_key_take_turns(self, place: Place, tmp_path: Path) -> None:
        app = await place.start(flows.in_turn)
        ids = [
            await app.send("keyed", {"customer": "Ada", "folder": str(tmp_path), "name": name}, id=name) for name in ("1", "2")
        ]
        await eventually(lambda: any(c.state is S.RUNNING for c in app.changes))
        for name in ("2", "1"):
            (tmp_path / name).touch()
        # Events of one key may lie on two partitions of the event topic: either may be first, but then it ends first.
        first, second = sorted([await app.run("in_turn", id) for id in ids], key=lambda run: run.end.at)
        assert first.end.at <= second.changes[1].at

    async def test_what_cannot_be_a_run_is_a_dead_letter(self, place: Place) -> None:
        app = await place.start(flows.one)
        position = await app.send_record("numbers", b'{"value": "x"}', (("trace", b"1"),), key=b"k")
        [letter] = await app.letters(1)
        assert (letter.key, letter.value, letter.headers[0]) == (b"k", b'{"value": "x"}', ("trace", b"1"))
        headers = dict(letter.headers)
        assert headers["x-engine-reason"] == b"invalid-parameters"
        assert headers["x-engine-origin"] == str(position).encode()
        assert headers["x-engine-flow"] == b"one"
        assert (await app.do("numbers", {"value": 1}, "one")).result == 2

    async def test_many_runs_end_and_none_stays_open(self, place: Place) -> None:
        app = await place.start(flows.diamond)
        await app.send_many("diamonds", [(str(n), {"value": n}) for n in range(60)])
        for n in range(60):
            run = await app.run("diamond", str(n))
            assert_in_order(run)
            assert run.result == 4 * n + 3
        await eventually(lambda: app.open_runs == 0)
