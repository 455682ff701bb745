"""Prometheus: what is counted and what was seen, as an answer to a scrape; the only importer of prometheus_client.

Nothing is kept in the library's own metrics: each scrape reads the numbers as they are then.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from engine import metrics
from engine.broker import Partition
from engine.errors import EngineError
from engine.http_probe import get
from engine.metrics import BOUNDS, OTHER, Counts, FlowCounts, Gauges, Histogram, Labels, Metric
from engine.vital_signs import Vital
from engine.vitals import PART_SECONDS, Vitals

#: Values of labels, and the number.
Sample = tuple[tuple[str, ...], float]
#: How far a history has got.
Offsets = Callable[[], Awaitable[Mapping[Partition, int]]]

_LE = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]


class EngineMetrics:
    """Answers scrapes of one engine: ``await EngineMetrics(counts, gauges, vitals).scrape(accept)``."""

    def __init__(self, counts: Counts, gauges: Callable[[], Gauges], vitals: Vitals) -> None:
        self._counts, self._gauges, self._vitals = counts, gauges, vitals
        self._process = ProcessCollector(registry=None)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The answer and its content type, in the format that the ``Accept`` header asks for."""
        vital = await self._vitals.look()
        families = [*_counted(self._counts), *_gauged(self._gauges()), *_seen(vital), _build()]
        encode, content_type = choose_encoder(accept)
        # Beside the loop: the text of many flows takes some milliseconds.
        return await asyncio.to_thread(lambda: encode(_Families([*families, *self._process.collect()]))), content_type


class DashboardMetrics:
    """Answers scrapes of the dashboard's process: how far the history is, and what the one engine says where there is one.

    With no engine, with several or with one that does not answer it tells itself what it has seen of Kafka and Dask.
    """

    def __init__(self, vitals: Vitals, offsets: Offsets, engines: Sequence[str]) -> None:
        """``offsets`` asks the history for its ``offsets()``, and may raise EngineError."""
        self._vitals, self._offsets, self._engines = vitals, offsets, engines

    async def scrape(self) -> tuple[bytes, str]:
        """The answer and its content type."""
        vital, told = await asyncio.gather(self._vitals.look(), self._engine())
        try:
            offsets = await self._offsets()
        except EngineError:  # the history's own page says why
            families = [_family(metrics.HISTORY_READABLE, [((), 0)])]
        else:
            behind = vital.behind(offsets) or {}
            lags = [((topic, str(partition)), float(records)) for (topic, partition), records in sorted(behind.items())]
            families = [_family(metrics.HISTORY_READABLE, [((), 1)]), _family(metrics.PROJECTOR_LAG, lags)]
        if not told:
            families += [*_seen(vital), _build()]
        return generate_latest(_Families(families)) + told, CONTENT_TYPE_PLAIN_0_0_4

    async def _engine(self) -> bytes:
        if len(self._engines) != 1:
            return b""
        try:
            async with asyncio.timeout(2 * PART_SECONDS):
                status, body = await get(self._engines[0], "/metrics")
        except (EngineError, TimeoutError):  # /readyz of the dashboard says that it does not answer
            return b""
        return body if status == 200 else b""


class _Families:
    """What the library takes for a registry."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def _counted(counts: Counts) -> Iterator[Family]:
    yield _family(metrics.EVENTS, counts.events.items())
    yield _family(metrics.DEAD_LETTERS, counts.letters.items())
    for metric, states in ((metrics.FLOW_RUNS, _flow_runs), (metrics.TASK_RUNS, _task_runs)):
        yield _family(metric, [((flow, state), n) for flow, one in counts.flows.items() for state, n in states(one)])
    yield _histogram(metrics.START, ((flow, one.start) for flow, one in counts.flows.items()))
    yield _histogram(metrics.DURATION, ((flow, one.duration) for flow, one in counts.flows.items()))


def _flow_runs(one: FlowCounts) -> list[tuple[str, int]]:
    return [(state.value, count) for state, count in one.flow_runs.items()]


def _task_runs(one: FlowCounts) -> list[tuple[str, int]]:
    return [(state.value, count) for state, count in one.task_runs.items()]


def _gauged(gauges: Gauges) -> Iterator[Family]:
    for metric, by_flow in ((metrics.OPEN_RUNS, gauges.open_runs), (metrics.PARKED_RUNS, gauges.parked_runs)):
        labels = Labels()
        yield _family(metric, _summed(((labels.of(flow),), count) for flow, count in by_flow.items()))
    yield _family(metrics.WAITING_RUNS, [((), gauges.waiting_runs)])
    yield _family(metrics.UNTOLD_CHANGES, [((), gauges.untold_changes)])
    yield _family(metrics.PART_READY, [((part,), state == "ok") for part, state in gauges.parts.items()])


def _seen(vital: Vital) -> Iterator[Family]:
    services = {"kafka": vital.lags, "dask": vital.dask}
    yield _family(metrics.REACHABLE, [((service,), found is not None) for service, found in services.items()])
    if vital.lags is not None:
        labels = Labels()
        named = [(lag, labels.of(lag.topic)) for lag in vital.lags]
        places = (((lag.group, topic, OTHER if topic == OTHER else str(lag.partition)), lag.lag) for lag, topic in named)
        yield _family(metrics.CONSUMER_LAG, _summed(places))
    if (dask := vital.dask) is not None:
        yield _family(metrics.DASK_WORKERS, [((), len(dask.workers))])
        yield _family(metrics.DASK_THREADS, [((), dask.threads)])
        tasks = {"queued": dask.tasks_queued, "waiting": dask.tasks_waiting, "processing": dask.tasks_processing}
        yield _family(metrics.DASK_TASKS, [((state,), count) for state, count in tasks.items() if count is not None])
        yield _family(metrics.DASK_MEMORY, [((), sum(worker.memory_bytes for worker in dask.workers))])
        yield _family(metrics.DASK_MEMORY_LIMIT, [((), sum(worker.memory_limit_bytes for worker in dask.workers))])


def _build() -> Family:
    try:
        release = version("kafka-dask-engine")
    except PackageNotFoundError:  # a checkout on the path
        release = "unknown"
    return _family(metrics.BUILD, [((release, platform.python_version()), 1)])


def _summed(samples: Iterable[Sample]) -> list[Sample]:
    sums: dict[tuple[str, ...], float] = {}
    for labels, number in samples:
        sums[labels] = sums.get(labels, 0) + number
    return list(sums.items())


def _family(metric: Metric, samples: Iterable[Sample]) -> Family:
    made: CounterMetricFamily | GaugeMetricFamily
    if metric.kind is metrics.Kind.COUNTER:
        made = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
    else:
        made = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, number in samples:
        made.add_metric(labels, number)
    return made


def _histogram(metric: Metric, observed: Iterable[tuple[str, Histogram]]) -> Family:
    made = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for label, histogram in observed:
        made.add_metric([label], list(zip(_LE, histogram.cumulative(), strict=True)), histogram.sum)
    return made
