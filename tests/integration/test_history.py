"""The projector as a process on real Kafka: killed again and again, its tables are those that the topics give at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.broker import Outgoing, Record, TopicSpec
from engine.errors import EngineError
from engine.history_opener import reading
from engine.history_schema import TABLES
from engine.kafka import KafkaBroker
from engine.settings import Settings
from tests.app_under_test import fresh_settings
from tests.history_records import LETTERS, LOGS, a_busy_day
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PARTITIONS = 3


async def projector(settings: Settings, place: str, what: str) -> asyncio.subprocess.Process:
    # The records say that it is 2023.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ENGINE_HISTORY_RETENTION_SECONDS": "1e10", "ENGINE_HISTORY": place}
    flags = ("--app", settings.app, "--kafka", settings.kafka)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "history", what, "--json", *flags),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


def tables(place: str) -> dict[str, list[Any]]:
    try:
        with contextlib.closing(reading(place)) as db:
            return {name: sorted(db.all(f"SELECT * FROM {name}"), key=repr) for name in TABLES}
    except EngineError:
        return {}  # Not there yet, or being made.


def read_to(place: str) -> dict[tuple[str, int], int]:
    return {(topic, partition): offset for topic, partition, offset, _ in tables(place).get("offsets", [])}


async def write(broker: KafkaBroker, settings: Settings, records: list[Record]) -> Mapping[tuple[str, int], int]:
    """Write them to the topics of that app; answers where each partition then ends."""
    sink = broker.sink()
    await sink.start()
    outgoing = [
        Outgoing(
            {LETTERS: settings.dead_letters_topic, LOGS: settings.logs_topic}.get(record.topic, settings.states_topic),
            *(record.key, record.value, record.headers, record.partition),
        )
        for record in records
    ]
    positions = await sink.write(outgoing)
    await sink.close()
    return {(position.topic, position.partition): position.offset + 1 for position in positions}


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_killed_in_the_middle_it_ends_with_the_tables_of_a_rebuild(
    database: str, kafka: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if database == "postgres":
        server = request.getfixturevalue("postgres")
        path, again = server.schema(), server.schema()
    else:
        path, again = str(tmp_path / "history.db"), str(tmp_path / "again.db")
    settings = fresh_settings(kafka=kafka)
    broker = KafkaBroker(settings)
    beside = [TopicSpec(name, 2) for name in (settings.dead_letters_topic, settings.logs_topic)]
    await broker.ensure_topics([TopicSpec(settings.states_topic, PARTITIONS), *beside])
    records = a_busy_day(11, runs=600, partitions=PARTITIONS, gaps=False).records
    third = len(records) // 3
    ends: dict[tuple[str, int], int] = {}
    for start in range(0, len(records), third):
        running = await projector(settings, path, "run")
        try:
            before = read_to(path)
            ends |= await write(broker, settings, records[start : start + third])
            await eventually(lambda: read_to(path) != before)  # noqa: B023  # awaited within the turn
        finally:
            # Wherever it is just then: between two batches, or within one.
            running.send_signal(signal.SIGKILL)
            await running.wait()
    last = await projector(settings, path, "run")
    try:
        assert last.stdout is not None
        assert await last.stdout.readline()  # it has begun, and hears signals
        await eventually(lambda: read_to(path) == ends)
        last.send_signal(signal.SIGTERM)
        assert await last.wait() == 0
    finally:
        if last.returncode is None:
            last.kill()
    rebuilt = await projector(settings, again, "rebuild")
    await rebuilt.communicate()
    assert rebuilt.returncode == 0
    assert tables(path) == tables(again)
    assert len(tables(path)["runs"]) == 600
    assert tables(path)["letters"]
    assert tables(path)["logs"]
    await broker.close()
