"""The same tests on the log in memory and on real Kafka, and on a SQLite file and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.broker import Broker
from engine.memory import MemoryBroker
from tests.contract.histories import Places
from tests.contract.under_test import Log


@pytest.fixture(params=["memory", "kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each implementation of the contract."""
    if request.param == "memory":
        return MemoryBroker()
    found: Broker = request.getfixturevalue("kafka_broker")
    return found


@pytest_asyncio.fixture
async def log(broker: Broker) -> AsyncIterator[Log]:
    """The broker under test and a way to make parts that are closed in the end."""
    log = Log(broker)
    yield log
    await log.close()


@pytest.fixture(params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """Where histories may lie: each database that they may be in."""
    places = Places(tmp_path, request.getfixturevalue("postgres") if request.param == "postgres" else None)
    yield places
    places.close()
