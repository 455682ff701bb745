"""Logs of runs from the task to the history, in this process: on the log in memory, in threads and on an in-process Dask."""

from __future__ import annotations

import asyncio
import logging

import pytest

from engine import testing
from engine.errors import EngineError
from engine.history import History
from engine.history_store import HistoryStore
from engine.log_feeds import HistoryFeed, TopicFeed
from engine.log_rows import LogFilter
from engine.projector import Projector
from engine.settings import Settings
from tests.unit.samples import talk
from tests.waiting import eventually

SETTINGS = Settings(app="test", http="", state_partitions=2, event_partitions=2)
TASK = ["by the engine sku='tea' count=1", "by logging tea", "odd"]


def counted(path: str, run_ids: list[str]) -> list[int]:
    try:
        with History.open(path) as history:
            return [len(history.logs(run_id)) for run_id in run_ids]
    except EngineError:
        return []  # not there yet


@pytest.mark.parametrize("cluster", [False, True])
async def test_what_a_run_logs_is_on_the_topic_and_in_the_history_in_order(
    cluster: bool, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = str(tmp_path_factory.mktemp("history") / "history.db")
    async with testing.bench(talk.wired, talk.awaits, talk.packed, cluster=cluster, settings=SETTINGS) as bench:
        runs = {run.flow: run for run in (await bench.send("talk", {"sku": "tea"})).runs}
        wanted = {"wired": 4, "awaits": 8, "packed": 7}
        projector = Projector(SETTINGS, bench.broker, HistoryStore(path, "test"))
        projecting = asyncio.create_task(projector.run())
        try:
            await eventually(lambda: counted(path, [run.run_id for run in runs.values()]) == [wanted[flow] for flow in runs])
        finally:
            projector.stop()
            await projecting
        topic = TopicFeed(SETTINGS, bench.broker, runs["awaits"].run_id, LogFilter())
        try:
            from_topic = await topic.latest(100)
            while not await topic.has_ended():
                assert await topic.more() == []
        finally:
            await topic.close()
    with History.open(path) as history:
        wired = history.logs(runs["wired"].run_id)
        assert [(line.name, line.message) for line in wired if line.name is None] == [(None, "wired sku='tea'")]
        assert [line.message for line in wired if line.name == "talks/0"] == TASK
        awaits = history.logs(runs["awaits"].run_id)
        assert [line.message for line in awaits if line.name is None] == ["begun", "went on first='tea'"]
        assert [line.message for line in awaits if line.name == "talks/1"] == TASK
        assert from_topic == awaits
        packed = history.logs(runs["packed"].run_id)
        assert {line.name for line in packed} == {None, "talks/0", "talks_later/1"}
        trace = runs["wired"].changes[0].traceparent
        assert trace is not None
        assert {line.trace_id for line in wired} == {trace[3:35]}
        feed = HistoryFeed(history, runs["awaits"].run_id[:12], LogFilter(task="talks/1"), "test")
        assert [line.message for line in await feed.latest(2)] == TASK[1:]
        assert await feed.more() == []
        assert await feed.has_ended()
