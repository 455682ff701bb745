"""engine.vitals: a look never raises, is shared, and says of each part what is the matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

import engine.vitals as vitals_module
from engine.broker import Broker, Outgoing, Standing, TopicSpec
from engine.errors import SettingsError
from engine.gateway import Gateway
from engine.kafka import KafkaBroker
from engine.memory import MemoryBroker
from engine.settings import Settings, load
from engine.vital_signs import lags_of
from engine.vitals import Vitals

#: A scheduler that cannot be asked, and that says so at once.
SETTINGS = Settings(app="shop", kafka="127.0.0.1:1", dask="nowhere://", http="127.0.0.1:0")


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what would never answer."""
    monkeypatch.setattr(vitals_module, "PART_SECONDS", 0.2)


@pytest.fixture
async def log() -> MemoryBroker:
    """Three events on a topic of two partitions, of which the intake has committed one; a state topic that is empty."""
    log = MemoryBroker()
    await log.ensure_topics([TopicSpec("orders", 2), TopicSpec("shop.states", 2)])
    await log.sink().write([Outgoing("orders", None, b"{}", partition=0) for _ in range(3)])
    intake = log.source(["orders"], group="shop.intake")
    await intake.start()
    await intake.commit({("orders", 0): 1})
    await intake.close()
    return log


@asynccontextmanager
async def looking(log: Broker, *engines: str) -> AsyncIterator[Vitals]:
    vitals = Vitals(msgspec.structs.replace(SETTINGS, engines=engines), log)
    yield vitals
    await vitals.close()


@asynccontextmanager
async def listening(answer: Callable[[asyncio.StreamWriter], None]) -> AsyncIterator[str]:
    """A server that does with each connection as told; gives its address."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        answer(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_lag_is_what_lies_between_the_committed_offset_and_the_end(log: MemoryBroker) -> None:
    async with looking(log) as vitals:
        seen = await vitals.look()
    assert seen.lags is not None
    assert [(lag.group, lag.topic, lag.partition, lag.committed, lag.end, lag.lag) for lag in seen.lags] == [
        ("shop.intake", "orders", 0, 1, 3, 2),
        ("shop.intake", "orders", 1, None, 0, 0),
    ]
    assert seen.kafka_trouble == ""
    assert seen.behind({("orders", 0): 2, ("gone", 0): 7}) == {("orders", 0): 1}


def test_what_retention_has_taken_is_no_lag() -> None:
    standing = Standing({("t", 0): 90}, {("t", 0): 100}, {"g": {("t", 0): 50}})
    assert [lag.lag for lag in lags_of(standing)] == [10]


async def test_a_cluster_and_an_engine_that_are_not_there_are_troubles_and_no_errors(log: MemoryBroker) -> None:
    async with looking(log, "127.0.0.1:1", "ftp://127.0.0.1") as vitals:
        seen = await vitals.look()
    assert seen.dask is None
    assert seen.dask_trouble
    assert [engine.is_ready for engine in seen.engines] == [None, None]
    assert "127.0.0.1:1 does not answer" in seen.engines[0].trouble
    assert "no address" in seen.engines[1].trouble
    assert seen.lags is not None, "one part in trouble leaves the others alone"


@pytest.mark.parametrize(("parts", "is_ready"), [({"dask": "ok"}, True), ({"dask": "gone"}, False)])
async def test_an_engine_says_whether_it_is_ready(log: MemoryBroker, parts: dict[str, str], is_ready: bool) -> None:
    gateway = Gateway(SETTINGS, log.sink(), lambda: parts)
    await gateway.start()
    async with looking(log, gateway.address, f"http://{gateway.address}/") as vitals:
        seen = await vitals.look()
    await gateway.close()
    assert [(engine.is_ready, engine.parts, engine.trouble) for engine in seen.engines] == [(is_ready, parts, "")] * 2


@pytest.mark.parametrize("said", [b"", b"HTTP/1.0 200 OK\r\n\r\n<html>", b"SSH-2.0-x\r\n", b"HTTP/1.0 200 OK\r\n\r\n{}"])
async def test_what_is_no_engine_is_told_from_one_that_is_not_ready(log: MemoryBroker, said: bytes) -> None:
    def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async with listening(answer) as address, looking(log, address) as vitals:
        [found] = (await vitals.look()).engines
    assert (found.is_ready, found.address) == (None, address)
    assert found.trouble


@pytest.mark.usefixtures("little_patience")
async def test_nobody_is_waited_for_who_accepts_and_says_nothing(log: MemoryBroker) -> None:
    async with listening(lambda writer: None) as address:
        silent = msgspec.structs.replace(SETTINGS, kafka=address, dask=f"tcp://{address}", engines=(address,))
        vitals = Vitals(silent, KafkaBroker(silent))
        for _ in range(2):  # what one look has left behind is in nobody's way
            seen = await vitals._ask()
            assert (seen.kafka_trouble, seen.dask_trouble, seen.engines[0].trouble) == ("no answer within 0.2 s",) * 3
        await vitals.close()


async def test_kafka_that_is_not_there_is_a_trouble_with_its_reason() -> None:
    async with looking(KafkaBroker(SETTINGS)) as vitals:
        seen = await vitals.look()
    assert (seen.lags, seen.ends, seen.behind({})) == (None, None, None)
    assert "127.0.0.1:1" in seen.kafka_trouble


async def test_many_who_look_at_once_see_the_same(log: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with looking(log) as vitals:
        first, second = await asyncio.gather(vitals.look(), vitals.look())
        assert first is second
        monkeypatch.setattr(vitals_module, "SHARED_SECONDS", -1.0)
        assert await vitals.look() is not first


async def test_who_goes_away_leaves_the_look_to_the_others(log: MemoryBroker) -> None:
    async with looking(log) as vitals:
        impatient = asyncio.create_task(vitals.look())
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await vitals.look()).lags is not None


def test_engines_beyond_loopback_are_asked_in_plain_text_only_where_that_is_allowed(tmp_path: Path) -> None:
    environment = {"ENGINE_ENGINES": "127.0.0.1:1,https://engine.example"}
    assert load({}, environment, tmp_path).engines == ("127.0.0.1:1", "https://engine.example")
    with pytest.raises(SettingsError, match="engines"):
        load({"engines": ["engine.example:8282"]}, {}, tmp_path)
