"""What takes turns: the engine, and the loop; how to send each one events, and how to tell that it has done them.

The client shares the cores with what it measures. While a round runs it sends batches that were encoded before, then
asks Kafka ten times a second how long the topic of ends has become; it reads that topic when the round is over, and
takes the end of the last run from the broker's own stamp. What the client still costs is measured and printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence

import msgspec

from engine.broker import Outgoing, Record
from engine.events import Event, to_headers
from engine.kafka import KafkaBroker
from engine.states import type_of
from tests.benchmarks.ends import Ends
from tests.benchmarks.flows import TOPIC
from tests.benchmarks.loop import TOPIC_IN, TOPIC_OUT
from tests.benchmarks.meters import Meter, spent
from tests.benchmarks.sending import Sender

_LOOK_SECONDS = 0.1
#: What is there is read after so long without news, even where the round seems not to be over.
_CALM_SECONDS = 1.0
#: A round in which nothing at all happens for so long has failed.
_PATIENCE_SECONDS = 60.0
_FAILURES = (b"engine.flow_run.failed", b"engine.flow_run.crashed", b"engine.flow_run.cancelled")


class Round(msgspec.Struct, frozen=True):
    """What one round showed."""

    count: int
    #: From before the first event was sent to the append of the last end.
    seconds: float
    #: Seconds of CPU by part of the stack.
    cpu: dict[str, float]
    #: What the subject wrote, in order within each partition.
    records: list[Record]

    @property
    def rate(self) -> float:
        return self.count / self.seconds


class Subject:
    """One of those that take turns."""

    def __init__(self, name: str, broker: KafkaBroker, kafka: str, out_topic: str, meter: Meter) -> None:
        self.name = name
        self.sender = Sender(kafka)
        #: Records that one run of a kind leaves on its topic, as counted in earlier rounds.
        self.records_a_run: dict[str, int] = {}
        self._ends = Ends(broker, out_topic)
        self._meter = meter
        self._sent = 0

    async def open(self) -> None:
        await self.sender.start()
        await self._ends.open()

    async def close(self) -> None:
        await self._ends.close()
        await self.sender.close()

    def event(self, kind: str, number: int) -> tuple[str, Outgoing]:
        """A new event that starts a run of ``kind``, and its id."""
        raise NotImplementedError

    def count_ends(self, records: Sequence[Record]) -> int:
        """How many runs ended. Raises SystemExit where one has failed."""
        raise NotImplementedError

    def last_end(self, records: Sequence[Record]) -> float:
        """When the broker appended the last end."""
        raise NotImplementedError

    async def run(self, kind: str, number: int, count: int) -> Round:
        """Send ``count`` events at once and wait for the end of the last one."""
        prepared = self.sender.prepare([self.event(kind, number)[1] for _ in range(count)])
        before, began = self._meter.cpu_seconds(), time.time()
        await self.sender.send(prepared)
        records, after = await self.settle(kind, count)
        return Round(count, self.last_end(records) - began, spent(before, after), records)

    async def settle(self, kind: str, count: int) -> tuple[list[Record], dict[str, float]]:
        """All that was written until ``count`` runs had ended, and the CPU spent when that was so."""
        expected = self.records_a_run.get(kind, 0) * count
        records: list[Record] = []
        ended = unread = 0
        news_at = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            was, unread = unread, await self._ends.unread()
            if unread != was:
                news_at = time.monotonic()
            calm_seconds = time.monotonic() - news_at
            if calm_seconds > _PATIENCE_SECONDS:
                raise SystemExit(f"{self.name}: {ended} of {count} runs of {kind} ended, then nothing came any more")
            if unread and (unread + len(records) >= expected or calm_seconds > _CALM_SECONDS):
                spent_so_far = self._meter.cpu_seconds()
                fresh = await self._ends.read()
                unread = 0
                records += fresh
                ended += self.count_ends(fresh)
                if ended >= count:
                    # The least of all rounds: a round may have records of the engine's own besides.
                    self.records_a_run[kind] = min(self.records_a_run.get(kind, len(records)), len(records) // count)
                    return records, spent_so_far


class EngineSubject(Subject):
    """The engine: every state change of every run is on the state topic."""

    def __init__(
        self, broker: KafkaBroker, kafka: str, states_topic: str, meter: Meter, *, name: str = "engine", topic: str = TOPIC
    ) -> None:
        super().__init__(name, broker, kafka, states_topic, meter)
        self._topic = topic

    def event(self, kind: str, number: int) -> tuple[str, Outgoing]:
        self._sent += 1
        event_id = f"{os.getpid()}-{self._sent}"
        headers = to_headers(Event(id=event_id, source="/bench", type=kind, data=None))
        return event_id, Outgoing(self._topic, None, b'{"number":%d}' % number, headers)

    def count_ends(self, records: Sequence[Record]) -> int:
        ended = 0
        for record in records:
            ce_type = type_of(record.headers)
            ended += ce_type == b"engine.flow_run.completed"
            if ce_type in _FAILURES:
                error = json.loads(record.value or b"{}").get("error", {})
                raise SystemExit(f"a run has not completed: {error.get('type')}: {error.get('message')}")
        return ended

    def last_end(self, records: Sequence[Record]) -> float:
        ends = [r.timestamp_ms for r in records if type_of(r.headers) == b"engine.flow_run.completed"]
        return max(ends) / 1e3


class LoopSubject(Subject):
    """The loop written by hand: one record an event, its result."""

    def __init__(self, broker: KafkaBroker, kafka: str, meter: Meter) -> None:
        super().__init__("loop", broker, kafka, TOPIC_OUT, meter)

    def event(self, kind: str, number: int) -> tuple[str, Outgoing]:
        self._sent += 1
        event_id = f"{os.getpid()}-{self._sent}"
        return event_id, Outgoing(TOPIC_IN, None, json.dumps({"id": event_id, "type": kind, "number": number}).encode())

    def count_ends(self, records: Sequence[Record]) -> int:
        return len(records)

    def last_end(self, records: Sequence[Record]) -> float:
        return max(record.timestamp_ms for record in records) / 1e3
