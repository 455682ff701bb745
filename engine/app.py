"""The app: builds the parts from settings, starts and stops them in order; decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from engine.awaited import AwaitedEvents
from engine.broker import Broker, TopicSpec
from engine.declarer import Declarer
from engine.dispatcher import Dispatcher
from engine.driver import Driver
from engine.errors import DaskUnavailable, EngineError, KafkaUnavailable
from engine.executor import Executor
from engine.flows import Flow
from engine.gateway import Gateway
from engine.intake import Intake
from engine.leftovers import Leftovers
from engine.letter_writer import LetterWriter
from engine.log_writer import LogWriter
from engine.logs import logger
from engine.metrics import Counts, Gauges
from engine.prometheus import EngineMetrics
from engine.publisher import Publisher
from engine.pulse import Pulse
from engine.settings import Settings
from engine.telemetry import Tracer
from engine.triggers import Triggers
from engine.vitals import Vitals

R = TypeVar("R")

_RETRY_SECONDS = 1.0


class App:
    """One engine: intake, dispatcher, publisher and HTTP endpoint on one event loop."""

    def __init__(self, settings: Settings, flows: Mapping[str, Flow[..., Any]], broker: Broker, executor: Executor) -> None:
        self.settings = settings
        self._broker = broker
        self._executor = executor
        self._tracer = Tracer.from_environment(f"engine-{settings.app}")
        # One producer each, because a slow write of one must not hold the other's batch back.
        self._intake_sink = broker.sink()
        self._state_sink = broker.sink()
        self._triggers = Triggers(flows.values())
        counts = Counts(flows, [*self._triggers.topics, settings.replays_topic])
        lettered = [name for name, flow in flows.items() if flow.on_failure is not None]
        self._letters = LetterWriter(settings, broker, self._intake_sink, lettered, counts)
        self._publisher = Publisher(self._state_sink, settings.states_topic, self._tracer, self._letters, counts)
        self._declarer = Declarer(settings, flows, self._state_sink)
        self._events = AwaitedEvents(broker)
        driver = Driver(settings, flows, executor, self._publisher, self._tracer, self._events)
        self._waitlist = driver.waitlist
        self._log_sink = broker.sink()
        self._log_writer = LogWriter(settings, self._log_sink, driver.logs)
        executor.on_logs = self._log_writer.take
        leftovers = Leftovers(executor, settings.result_ttl_seconds)
        self._dispatcher = Dispatcher(settings, broker, self._state_sink, driver, self._publisher, leftovers)
        # Also where no event starts anything: what was started by hand leaves letters, and takes their replays.
        offer = self._dispatcher.offer
        self._intake = Intake(settings, broker, self._intake_sink, self._triggers, self._tracer, offer, counts, lettered)
        self._publisher.on_end = self._intake.stops.count_end
        self._vitals = Vitals(settings, broker)
        scrape = EngineMetrics(counts, self.gauges, self._vitals).scrape
        self._gateway = Gateway(settings, self._intake_sink, self.readiness, scrape) if settings.http else None
        self._pulse = Pulse(broker, settings.states_topic)
        self._stop = asyncio.Event()
        self._is_started = False

    @property
    def http(self) -> str | None:
        """Where the HTTP endpoint listens, ``host:port``; None where it is off."""
        return self._gateway.address if self._gateway is not None and self._is_started else None

    def readiness(self) -> dict[str, str]:
        """Each part and "ok", or what it waits for."""
        parts = {
            "kafka": self._pulse.trouble,
            "dask": self._executor.trouble,
            "events": self._events.trouble,
            "publisher": self._publisher.trouble,
            "dispatcher": "" if self._is_started else "starting",
            "intake": self._intake.trouble or self._intake.stops.trouble,
        }
        return {part: trouble or "ok" for part, trouble in parts.items()}

    def gauges(self) -> Gauges:
        """How much is open and waits, now."""
        begun = self._waitlist.begun()
        return Gauges(
            open_runs={flow: count for flow, (count, _) in begun.items()},
            parked_runs={flow: count for flow, (_, count) in begun.items()},
            waiting_runs=len(self._waitlist),
            untold_changes=self._publisher.backlog,
            parts=self.readiness(),
        )

    def stop(self) -> None:
        """Make ``run`` return, in order."""
        self._stop.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start, run until ``stop``, close. Raises the error of a part that died, after closing the others."""
        try:
            await self._start()
            async with asyncio.TaskGroup() as group:
                publisher = group.create_task(self._publisher.run(), name="engine-publisher")
                letters = group.create_task(self._letters.run(), name="engine-letters")
                pulse = group.create_task(self._pulse.run(), name="engine-pulse")
                declaring = group.create_task(self._declarer.run(), name="engine-declare")
                logs = group.create_task(self._log_writer.run(), name="engine-logs")
                parts = [
                    group.create_task(self._dispatcher.run(), name="engine-dispatcher"),
                    group.create_task(self._intake.run(), name="engine-intake"),
                ]
                on_ready()
                stop = group.create_task(self._stop.wait(), name="engine-stop")
                await asyncio.wait([stop, publisher, letters, *parts], return_when=asyncio.FIRST_COMPLETED)
                await self._wind_down(parts)
                pulse.cancel()
                declaring.cancel()
                logs.cancel()
                letters.cancel()
                publisher.cancel()
                stop.cancel()
        except* EngineError as errors:
            raise _first(errors) from errors
        finally:
            await self._close()

    async def _start(self) -> None:
        settings = self.settings
        if self._gateway is not None:
            # Before a group is joined: who cannot listen, again and again perhaps, must take no partition from those that run.
            self._gateway.check()
        await self._patiently(lambda: self._broker.ensure_topics(self._topics()))
        for sink in (self._intake_sink, self._state_sink):
            await self._patiently(sink.start)
        await self._patiently(self._declarer.declare)
        await self._patiently(self._dispatcher.start)
        await self._patiently(self._intake.start)
        if self._gateway is not None:
            await self._gateway.start()
        self._is_started = True
        logger.info("engine started", app=settings.app, kafka=settings.kafka, dask=settings.dask, http=self.http)

    async def _wind_down(self, parts: list[asyncio.Task[None]]) -> None:
        """Order matters: nothing new comes in before what runs has been told, and offsets go last."""
        if self._gateway is not None:
            await self._gateway.close()
        self._intake.stop()
        self._dispatcher.stop()
        _, stuck = await asyncio.wait(parts, timeout=self.settings.grace_seconds)
        for part in stuck:
            # It waits for Kafka, for ever if need be. What it has in hand is not committed, so somebody takes it in again.
            part.cancel()
        if stuck:
            await asyncio.wait(stuck)
        await self._dispatcher.close()
        await self._intake.close()
        await self._log_writer.drain()

    async def _close(self) -> None:
        if not self._is_started and self._gateway is not None:
            await self._gateway.close()
        await self._vitals.close()
        # Each waits for what it has under way, and none for another.
        await asyncio.gather(*(sink.close() for sink in (self._intake_sink, self._state_sink, self._log_sink)))
        await self._broker.close()
        await asyncio.to_thread(self._tracer.close)
        logger.info("engine stopped", app=self.settings.app)

    def _topics(self) -> list[TopicSpec]:
        settings = self.settings
        replicas = settings.replication_factor
        config = {
            "retention.ms": str(int(settings.state_retention_seconds * 1000)),
            # A dead letter is its record and a few headers more: it must fit wherever the record did.
            "max.message.bytes": str(settings.max_record_bytes + 131_072),
        }
        # Lines are small; their records' limit is Kafka's own, whatever that of state changes is.
        logs = {"retention.ms": str(int(settings.logs_retention_seconds * 1000))}
        own = [
            TopicSpec(settings.logs_topic, settings.event_partitions, replicas, logs),
            TopicSpec(settings.states_topic, settings.state_partitions, replicas, config),
            TopicSpec(settings.dead_letters_topic, settings.event_partitions, replicas, config),
            # One partition: replays are few, and keep the order in which they were asked for.
            TopicSpec(settings.replays_topic, 1, replicas, config),
        ]
        return own + [TopicSpec(topic, settings.event_partitions, replicas) for topic in self._triggers.topics]

    async def _patiently(self, connect: Callable[[], Awaitable[R]]) -> R:
        """Try until it works or the time for connecting is over, saying what is waited for."""
        deadline = time.monotonic() + self.settings.connect_timeout_seconds
        told = ""
        while True:
            try:
                return await connect()
            except (KafkaUnavailable, DaskUnavailable) as error:
                if self._stop.is_set() or time.monotonic() > deadline:
                    raise
                if str(error) != told:
                    told = str(error)
                    logger.warning("waiting", reason=told)
                await asyncio.sleep(_RETRY_SECONDS)


def _first(errors: BaseExceptionGroup[EngineError]) -> EngineError:
    """The error to show: the parts die of one cause, and its first telling is enough."""
    for error in errors.exceptions:
        return error if isinstance(error, EngineError) else _first(error)
    raise errors
