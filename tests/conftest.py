"""What all tests share: a real Kafka for the session, and the proof that nothing is left behind."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, settings

from engine.apache import ApacheKafka
from engine.command_errors import ApacheError
from engine.kafka import KafkaBroker
from engine.settings import Settings
from tests.postgres_under_test import NoPostgres, PostgresUnderTest

#: A child process or a task that is on its way out gets so long.
LEAVING_SECONDS = 5.0

# Time says nothing on a machine that does other things as well; what an example proves does not depend on it.
# Without the phase that explains: it traces every line, and Python 3.11 can spin for ever where a test's timeout ends that.
phases = [phase for phase in Phase if phase is not Phase.explain]
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=phases)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail the session when a child process outlives it."""
    yield
    # Python's own resource tracker ends with the interpreter.
    children = [p for p in psutil.Process().children(recursive=True) if not _is_resource_tracker(p)]
    _, alive = psutil.wait_procs(children, timeout=LEAVING_SECONDS)
    assert not alive, f"left behind: {alive}"


@pytest.fixture(autouse=True)
def no_task_left(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves asyncio tasks behind."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("watched_tasks")


@pytest_asyncio.fixture
async def watched_tasks() -> AsyncIterator[None]:
    """Set up before every other fixture of an async test, so it looks when they are gone."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=LEAVING_SECONDS)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Kafka: its bootstrap address. Without one, tests are skipped, but fail where CI is set."""
    server = ApacheKafka(tmp_path_factory.mktemp("kafka"))
    try:
        asyncio.run(server.start(print))
    except ApacheError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    yield server.bootstrap
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresUnderTest]:
    """A real PostgreSQL. Without one, tests are skipped, but fail where CI is set."""
    try:
        server = PostgresUnderTest()
    except NoPostgres as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    yield server
    server.close()


@pytest.fixture
def kafka_settings(kafka: str) -> Settings:
    """Settings for the real Kafka, with a session that times out quickly."""
    return Settings(kafka=kafka, session_timeout_seconds=3.0, grace_seconds=3.0)


@pytest.fixture
def kafka_broker(kafka_settings: Settings) -> KafkaBroker:
    """The real Kafka behind the broker contract."""
    return KafkaBroker(kafka_settings)


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True
