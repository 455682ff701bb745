"""engine.projector: goes on where the database is, over what Kafka and the database do to it."""

from __future__ import annotations

import asyncio

from engine.broker import Outgoing, TopicSpec
from engine.errors import EngineError
from engine.history import History
from engine.history_store import HistoryStore
from engine.memory import MemoryBroker
from engine.projector import Projector
from engine.settings import Settings
from tests.contract.histories import Places
from tests.history_records import Topics, a_run
from tests.waiting import eventually

#: The records are of 2023.
SETTINGS = Settings(app="app", http="", state_partitions=2, history_retention_seconds=1e10)


async def broker_with(*run_ids: str) -> MemoryBroker:
    broker = MemoryBroker()
    names = (SETTINGS.states_topic, SETTINGS.dead_letters_topic, SETTINGS.logs_topic)
    await broker.ensure_topics([TopicSpec(name, 2) for name in names])
    await write(broker, *run_ids)
    return broker


async def write(broker: MemoryBroker, *run_ids: str) -> None:
    topics = Topics()
    for run_id in run_ids:
        a_run(topics, run_id)
    sink = broker.sink()
    await sink.start()
    await sink.write([Outgoing(record.topic, None, record.value, record.headers, 0) for record in topics.records])
    await sink.close()


def runs(path: str) -> set[str]:
    try:
        with History.open(path) as found:
            return {run.run_id for run in found.runs(limit=1_000).items}
    except EngineError:  # not there yet: asked again
        return set()


async def test_it_projects_what_comes_until_it_is_stopped_and_goes_on_from_there(places: Places) -> None:
    path = places.new()
    broker = await broker_with("one")
    first = Projector(SETTINGS, broker, HistoryStore(path, "app"))
    running = asyncio.create_task(first.run())
    await eventually(lambda: runs(path) == {"one"})
    await write(broker, "two")
    await eventually(lambda: runs(path) == {"one", "two"})
    first.stop()
    await running
    await write(broker, "three")
    second = Projector(SETTINGS, broker, HistoryStore(path, "app"))
    assert await second.catch_up() == 6
    await second.close()
    assert runs(path) == {"one", "two", "three"}


async def test_a_database_deleted_under_it_is_made_anew_from_the_topics(places: Places) -> None:
    path = places.new()
    broker = await broker_with("one")
    projector = Projector(SETTINGS, broker, HistoryStore(path, "app"))
    running = asyncio.create_task(projector.run())
    await eventually(lambda: runs(path) == {"one"})
    places.drop(path)
    await write(broker, "two")
    await eventually(lambda: runs(path) == {"one", "two"})
    projector.stop()
    await running


async def test_without_topics_it_waits_for_an_engine_to_make_them(places: Places) -> None:
    path = places.new()
    broker = MemoryBroker()
    projector = Projector(SETTINGS, broker, HistoryStore(path, "app"))
    told: list[str] = []
    running = asyncio.create_task(projector.run(on_trouble=told.append))
    await eventually(lambda: told)
    names = (SETTINGS.states_topic, SETTINGS.dead_letters_topic, SETTINGS.logs_topic)
    await broker.ensure_topics([TopicSpec(name, 2) for name in names])
    await write(broker, "one")
    await eventually(lambda: runs(path) == {"one"})
    projector.stop()
    await running


async def test_topics_made_anew_begin_a_new_history(places: Places) -> None:
    path = places.new()
    first = Projector(SETTINGS, await broker_with("one", "two"), HistoryStore(path, "app"))
    await first.catch_up()
    await first.close()
    second = Projector(SETTINGS, await broker_with("three"), HistoryStore(path, "app"))
    await second.catch_up()
    await second.close()
    assert runs(path) == {"three"}


async def test_without_a_database_the_last_records_are_read_and_no_more(places: Places) -> None:
    path = places.new()
    broker = await broker_with(*(f"run-{number}" for number in range(10)))
    projector = Projector(SETTINGS, broker, HistoryStore(path, "app"), last_records=2 * 12)
    assert await projector.catch_up() == 12
    assert projector.is_cut
    await projector.close()
    assert runs(path) == {"run-8", "run-9"}


async def test_what_is_too_much_is_forgotten(places: Places) -> None:
    path = places.new()
    broker = await broker_with(*(f"run-{number}" for number in range(10)))
    settings = Settings(app="app", history_retention_seconds=1e10, history_retention_runs=3)
    projector = Projector(settings, broker, HistoryStore(path, "app"))
    await projector.catch_up()
    await projector.close()
    assert runs(path) == {"run-7", "run-8", "run-9"}
