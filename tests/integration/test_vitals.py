"""engine.vitals and /metrics on real Kafka and Dask processes: what a look sees of an engine that is at work."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from engine.kafka import KafkaBroker
from engine.states import State
from engine.vital_signs import Vital
from engine.vitals import Vitals
from tests.integration import flows_cancel as flows
from tests.integration.conftest import Apps
from tests.waiting import PATIENCE_SECONDS


def of_intake(vital: Vital, group: str) -> Counter[str]:
    """Lag by topic."""
    lags: Counter[str] = Counter()
    for lag in vital.lags or ():
        if lag.group == group:
            lags[lag.topic] += lag.lag
    return lags


async def test_a_look_sees_lag_workers_and_readiness_while_tasks_run(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.everything, http="127.0.0.1:0")
    assert app.app.http is not None
    settings = msgspec.structs.replace(app.settings, engines=(app.app.http,))
    run_id = app.run_id("everything", await app.send("all", {"folder": str(tmp_path)}))
    await app.heard(task="spin", state=State.RUNNING)
    vitals = Vitals(settings, KafkaBroker(settings))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            seen = await vitals._ask()
            dask = seen.dask
            assert (seen.kafka_trouble, seen.dask_trouble) == ("", "")
            assert dask is not None
            # The heartbeat of a worker comes every half second or so.
            if sum(worker.executing for worker in dask.workers) and sum(of_intake(seen, settings.intake_group).values()) == 0:
                break
    assert len(dask.workers) == 2
    assert dask.threads == sum(worker.threads for worker in dask.workers) > 0
    assert all(worker.status == "running" and worker.memory_bytes > 1_000_000 for worker in dask.workers)
    assert (dask.tasks_processing or 0) >= 1
    assert (dask.tasks_queued, dask.tasks_waiting) != (None, None)
    assert app.topic("all") in of_intake(seen, settings.intake_group)
    [engine] = seen.engines
    assert (engine.is_ready, engine.parts["intake"]) == (True, "ok")
    assert seen.ends is not None
    assert sum(end for (topic, _), end in seen.ends.items() if topic == settings.states_topic) > 5
    await vitals.close()

    async with httpx.AsyncClient(base_url=f"http://{app.app.http}", trust_env=False) as client:
        text = (await client.get("/metrics")).text
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    assert [sample.value for sample in found["engine_dask_workers"]] == [2]
    assert {sample.labels["service"]: sample.value for sample in found["engine_reachable"]} == {"kafka": 1, "dask": 1}
    assert {sample.labels["group"] for sample in found["engine_consumer_lag_records"]} >= {settings.intake_group}
    assert [sample.value for sample in found["engine_open_runs"]] == [1]
    await app.cancel(run_id)
    await app.run_of(run_id)
