"""Kafka that takes less than it did: what is too large says so, nothing is lost, and no partition waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from engine.broker import TopicSpec
from engine.states import State
from tests.integration import flows_letters
from tests.integration import flows_mortal as flows
from tests.integration.conftest import Apps

S = State


@pytest.fixture
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    yield admin
    await admin.close()


async def limit(admin: AIOKafkaAdminClient, topic: str, size: int) -> None:
    """From now on the topic takes no larger batch."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs={"max.message.bytes": str(size)})
    await admin.alter_configs([resource])


async def test_a_state_change_above_the_topics_limit_is_told_in_part_and_its_run_completes(
    apps: Apps, admin: AIOKafkaAdminClient, tmp_path: Path
) -> None:
    app = await apps.start(flows.split)
    (tmp_path / "before").mkdir()
    run = await app.do("splits", {"folder": str(tmp_path / "before"), "parts": 100}, "split")
    assert len(run.of("count")[0].parents) == 100
    await limit(admin, app.settings.states_topic, 4_000)  # while the engine runs
    run = await app.do("splits", {"folder": str(tmp_path), "parts": 100}, "split")
    assert (run.end.state, run.result) == (S.COMPLETED, 100)
    scheduled = run.of("count")[0]
    assert (scheduled.parents, scheduled.reason) == ((), "too large for the state topic, left out: parents")
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))


async def test_a_letter_above_its_topics_limit_goes_without_its_value_and_the_next_event_runs(
    apps: Apps, admin: AIOKafkaAdminClient, tmp_path: Path
) -> None:
    app = apps.make(flows_letters.errand, event_partitions=1)
    settings = app.settings
    await app.log.ensure_topics([TopicSpec(settings.dead_letters_topic, 1, config={"max.message.bytes": "3000"})])
    await app.start()
    position = await app.send_record("errands", b'{"name": 7, "shop": "' + b"x" * 10_000 + b'"}', app.headers("poison"))
    id = await app.send("errands", {"name": "tea", "needs": str(tmp_path / "nothing"), "shop": "y" * 5_000})
    assert (await app.run("errand", id)).end.state is S.FAILED
    assert (await app.do("errands", {"name": "tea"}, "errand")).result == "TEA"
    poison, failed = (dict(letter.headers) for letter in await app.letters(2))
    assert (poison["x-engine-reason"], poison["x-engine-value"]) == (b"too-large", b"absent")
    assert poison["x-engine-origin"] == str(position).encode()
    assert (failed["x-engine-reason"], failed["x-engine-value"]) == (b"run-failed", b"absent")
