"""What the tests of the whole engine share: a Dask of real processes for the session, and apps on it and on real Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from engine.broker import Broker
from engine.cluster import Cluster
from engine.flows import Flow
from engine.kafka import KafkaBroker
from engine.settings import Settings
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration.dask_under_test import SharedDask, child_environment


@pytest.fixture(scope="session")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers, each a process. A task whose worker dies is given up at once."""
    environment = child_environment(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    shared = SharedDask(tmp_path_factory.mktemp("dask"), environment)
    yield shared.address
    shared.stop()


class Apps:
    """Starts apps and closes them in the end."""

    def __init__(self, kafka: str, dask: str) -> None:
        self.kafka = kafka
        self.dask = dask
        self._stack = AsyncExitStack()

    def settings(self, **options: Any) -> Settings:
        return fresh_settings(**{"kafka": self.kafka, "dask": self.dask, **options})

    def make(
        self, *flows: Flow[..., Any], settings: Settings | None = None, broker: Broker | None = None, **options: Any
    ) -> AppUnderTest:
        """An app that has not started; with ``settings`` of another one it shares its topics and groups."""
        settings = settings or self.settings(**options)
        cluster = Cluster(
            settings.app,
            settings.dask,
            connect_timeout_seconds=2.0,
            results=settings.results,
            max_result_bytes=settings.max_result_bytes,
            max_run_tasks=settings.max_run_tasks,
        )
        made = AppUnderTest(settings, flows, broker or KafkaBroker(settings), cluster, KafkaBroker(settings))
        self._stack.push_async_callback(made.close)
        return made

    async def start(self, *flows: Flow[..., Any], settings: Settings | None = None, **options: Any) -> AppUnderTest:
        made = self.make(*flows, settings=settings, **options)
        await made.start()
        return made

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture(autouse=True)
def let_go(tmp_path: Path) -> Iterator[None]:
    """What waits for the file ``go`` goes on when its test is over, however that ended: the next one needs the threads."""
    yield
    (tmp_path / "go").touch()


@pytest.fixture
async def apps(kafka: str, dask: str) -> AsyncIterator[Apps]:
    """Starts apps on real Kafka and real Dask processes."""
    apps = Apps(kafka, dask)
    yield apps
    await apps.close()
