"""engine.prometheus: scrapes of an engine on the log in memory and of a dashboard beside it, read as Prometheus does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from engine import Event, flow, on, task
from engine.broker import Partition
from engine.history_errors import HistoryUnavailable
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker
from engine.metrics import METRICS, Kind
from engine.prometheus import DashboardMetrics
from engine.states import State
from engine.vitals import Vitals
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.waiting import PATIENCE_SECONDS

OF_THE_DASHBOARD = {"engine_projector_lag_records", "engine_history_readable"}


@task
def halve(number: int) -> float:
    if not number:
        raise ValueError("nothing to halve")
    return number / 2


@flow(on("numbers"), on_failure="dead-letter")
def halved(number: int) -> float:
    return halve(number)


@flow(on("numbers", where=lambda event: event.data["number"] < 0))
def refused(event: Event[dict[str, int]]) -> None:
    raise ValueError("never below zero")


@pytest.fixture
async def app() -> AsyncIterator[AppUnderTest]:
    """An engine whose Dask scheduler cannot be asked: its calls run in this process."""
    broker = MemoryBroker()
    settings = fresh_settings(http="127.0.0.1:0", dask="nowhere://")
    app = AppUnderTest(settings, (halved, refused), broker, InlineExecutor(), broker)
    await app.start()
    yield app
    await app.close()


async def scraped(app: AppUnderTest, accept: str = "") -> tuple[str, str]:
    """Text and content type."""
    async with httpx.AsyncClient(base_url=f"http://{app.app.http}", trust_env=False) as client:
        answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    return answer.text, answer.headers["content-type"]


def values(families: Mapping[str, Metric], name: str, **labels: str) -> list[float]:
    """The values of samples of this name that have these labels."""
    return [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def by_name(text: str) -> dict[str, Metric]:
    return {family.name: family for family in plain(text)}


async def test_a_scrape_tells_what_the_engine_has_done_and_how_it_is(app: AppUnderTest) -> None:
    run = await app.do("numbers", {"number": 8}, "halved")
    await app.send_record("numbers", b"{")
    topic = app.topic("numbers")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            text, content_type = await scraped(app)
            found = by_name(text)
            if values(found, "engine_events_total", topic=topic, outcome="refused") == [1]:
                break
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    for state in (State.SCHEDULED, State.RUNNING, State.COMPLETED):
        assert values(found, "engine_flow_runs_total", flow="halved", state=state) == [1]
        assert values(found, "engine_task_runs_total", flow="halved", state=state) == [1]
    assert values(found, "engine_flow_runs_total", flow="refused", state="SCHEDULED") == [0]
    assert values(found, "engine_events_total", topic=topic, outcome="started") == [1]
    assert values(found, "engine_dead_letters_total", reason="malformed-data", topic=topic) == [2], "one for each flow"
    assert values(found, "engine_event_to_start_seconds_count", flow="halved") == [1]
    assert values(found, "engine_flow_run_duration_seconds_bucket", flow="halved", le="+Inf") == [1]
    took = (run.end.at - run.changes[1].at).total_seconds()
    assert values(found, "engine_flow_run_duration_seconds_sum", flow="halved") == [pytest.approx(took, abs=0.01)]
    assert values(found, "engine_part_ready", part="intake") == [1]
    assert values(found, "engine_reachable") == [1, 0], "Kafka answers, Dask does not"
    lagging = values(found, "engine_consumer_lag_records", group=app.settings.intake_group)
    assert lagging
    assert values(found, "engine_open_runs", flow="halved") == [0]
    assert values(found, "process_resident_memory_bytes")[0] > 1_000_000


async def test_a_run_that_fails_counts_with_its_letter(app: AppUnderTest) -> None:
    run = await app.do("numbers", {"number": 0}, "halved")
    assert run.end.state is State.FAILED
    found = by_name((await scraped(app))[0])
    assert values(found, "engine_flow_runs_total", flow="halved", state="FAILED") == [1]
    assert values(found, "engine_dead_letters_total", topic=app.topic("numbers"), reason="run-failed") == [1]


async def test_every_metric_is_told_with_its_own_name_help_and_type(app: AppUnderTest) -> None:
    lines = (await scraped(app))[0].splitlines()
    for metric in METRICS:
        if metric.name in OF_THE_DASHBOARD or metric.name.startswith("engine_dask"):
            continue
        assert f"# HELP {metric.name} {metric.help}" in lines
        assert f"# TYPE {metric.name} {metric.kind.value}" in lines
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(
        {line for line in lines if line.startswith("# TYPE")}
    )


async def test_open_metrics_is_told_to_whoever_asks_for_it(app: AppUnderTest) -> None:
    text, content_type = await scraped(app, "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in open_metrics(text)}
    assert {metric.name.removesuffix("_total") for metric in METRICS if metric.kind is Kind.COUNTER} <= names


async def test_a_dashboard_tells_how_far_the_history_is_and_what_its_one_engine_says(app: AppUnderTest) -> None:
    await app.do("numbers", {"number": 8}, "halved")
    states = app.settings.states_topic
    vitals = Vitals(app.settings, app.log)
    ends = (await vitals.look()).ends
    assert ends is not None
    place = max((place for place in ends if place[0] == states), key=lambda place: ends[place])

    async def offsets() -> Mapping[Partition, int]:
        return {place: ends[place] - 2}

    assert app.app.http is not None
    text, _ = await DashboardMetrics(vitals, offsets, [app.app.http]).scrape()
    found = by_name(text.decode())
    assert values(found, "engine_projector_lag_records", topic=states, partition=str(place[1])) == [2]
    assert values(found, "engine_flow_runs_total", flow="halved", state="COMPLETED") == [1]
    assert len(values(found, "engine_build_info")) == 1
    await vitals.close()


@pytest.mark.parametrize("engines", [[], ["127.0.0.1:1"], ["127.0.0.1:1", "127.0.0.1:2"]])
async def test_without_one_engine_a_dashboard_tells_what_it_sees_itself(app: AppUnderTest, engines: list[str]) -> None:
    async def offsets() -> Mapping[Partition, int]:
        raise HistoryUnavailable("history.db", "there is no such file")

    vitals = Vitals(app.settings, app.log)
    found = by_name((await DashboardMetrics(vitals, offsets, engines).scrape())[0].decode())
    await vitals.close()
    assert values(found, "engine_history_readable") == [0]
    assert values(found, "engine_reachable", service="kafka") == [1]
    assert len(values(found, "engine_build_info")) == 1
    assert "engine_flow_runs" not in found
