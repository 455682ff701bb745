"""Stops of the intake: a topic of which too much becomes dead letters is read no further, until somebody has looked.

Nothing is lost meanwhile: its records stay in Kafka and its offsets where they are. It goes on at a restart, or when a
``resumed`` record for the topic comes by on the dead-letter topic, which is read only while a topic is stopped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from engine.broker import Broker, Outgoing, Partition, Record, Source
from engine.errors import EngineError
from engine.logs import logger
from engine.runs import FlowRun
from engine.states import State, StateChange

#: So many records of a topic, or runs that came of them, are looked back on; before there were as many, nothing is judged.
LIMIT_RECORDS = 100
_RESUMED = "x-engine-resumed"
_LOOK_SECONDS = 0.05


class LetterLimit:
    """Counts, by topic, how many of the last hundred records became dead letters, at once or when their runs had failed."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._last: dict[str, deque[bool]] = {}
        #: Stopped topics, and how many of their last records became dead letters.
        self.stopped: dict[str, int] = {}

    def count(self, topic: str, *, is_dead: bool) -> bool:
        """Take in what a record became; True where the topic is to be stopped now."""
        if not self._limit or topic in self.stopped:
            return False
        last = self._last.setdefault(topic, deque(maxlen=LIMIT_RECORDS))
        last.append(is_dead)
        if len(last) < LIMIT_RECORDS or sum(last) < self._limit * LIMIT_RECORDS:
            return False
        self.stopped[topic] = sum(last)
        return True

    def resume(self, topic: str) -> None:
        """Begin to count anew."""
        self.stopped.pop(topic, None)
        self._last.pop(topic, None)

    def describe(self, topic: str) -> str:
        """Why the topic is stopped, and what to do."""
        return (
            f"topic {topic} is read no further: {self.stopped[topic]} of its last {LIMIT_RECORDS} records became letters, "
            f"dead_letter_limit is {self._limit:g}. When nearly everything fails the cause is one for all, a deployment or a "
            "producer that has changed, say, and each record read would be a letter to be replayed by hand. "
            f"See `engine dead-letters ls --topic {topic}`, mend the cause, then `engine dead-letters resume {topic}`, "
            "or restart the engine; nothing is lost meanwhile"
        )


class Stops:
    """Which topics the intake has stopped."""

    def __init__(self, broker: Broker, letters_topic: str, limit: float, lettered: Collection[str] = ()) -> None:
        """``lettered`` are the flows whose runs become dead letters where they fail."""
        self._broker = broker
        self._lettered = frozenset(lettered)
        self._letters_topic = letters_topic
        self._limit = LetterLimit(limit)
        self._source: Source | None = None
        self._stopped_at_ms = 0

    @property
    def trouble(self) -> str:
        """Why topics are stopped; empty where none is."""
        return "; ".join(self._limit.describe(topic) for topic in self._limit.stopped)

    def is_stopped(self, topic: str) -> bool:
        """Whether the topic is not to be taken in."""
        return topic in self._limit.stopped

    def count(self, topic: str, flows: Collection[str], *, is_dead: bool) -> None:
        """Take in what a record became: letters, runs of these flows, or nothing."""
        if is_dead or self._lettered.isdisjoint(flows):  # what comes of the others is known when their runs have ended
            self._count(topic, is_dead)

    def count_end(self, run: FlowRun, end: StateChange) -> None:
        """Take in how a run has ended."""
        # A replay says nothing of what comes on the topic now.
        if run.flow in self._lettered and run.event is not None and run.event.topic and run.event.replay is None:
            self._count(run.event.topic, end.state in (State.FAILED, State.CRASHED))

    def _count(self, topic: str, is_dead: bool) -> None:
        if self._limit.count(topic, is_dead=is_dead):
            self._stopped_at_ms = self._stopped_at_ms or int(time.time() * 1000)
            logger.error("intake of a topic stopped", topic=topic, error=self._limit.describe(topic))

    async def look(self) -> list[str]:
        """The topics that go on now."""
        if not self._limit.stopped:
            return []
        try:
            if self._source is None:
                self._source = self._broker.source([self._letters_topic], group=None, on_assigned=self._begin)
                await self._source.start()
            records = await self._source.poll(timeout_seconds=_LOOK_SECONDS, max_records=1_000)
        except EngineError as error:
            # Kafka is away, and so nothing is read anyhow: the next look tries again, with a source of its own.
            logger.warning("cannot see whether stopped topics go on", error=str(error))
            await self.close()
            return []
        resumed = [topic for record in records if (topic := resumed_topic(record)) is not None and self.is_stopped(topic)]
        for topic in resumed:
            self._limit.resume(topic)
            logger.info("intake of a topic goes on", topic=topic)
        if not self._limit.stopped:
            await self.close()
            self._stopped_at_ms = 0
        return resumed

    async def close(self) -> None:
        """Free what was opened."""
        source, self._source = self._source, None
        if source is not None:
            await source.close()

    async def _begin(self, assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        # From the moment of the stop on: an earlier word was about an earlier stop.
        source = self._source
        if source is None:
            return {}
        ends = await source.end_offsets(assigned)
        found = {place: await source.offset_at(place, self._stopped_at_ms) for place in assigned}
        return {place: ends[place] if at is None else at for place, at in found.items()}


def write_resumed(topic: str, letters_topic: str) -> Outgoing:
    """The record that lets a stopped topic go on."""
    return Outgoing(letters_topic, None, None, ((_RESUMED, topic.encode()),))


def resumed_topic(record: Record) -> str | None:
    """The topic that goes on, where the record says so: it has this header alone, and a letter never does."""
    if len(record.headers) == 1 and record.headers[0][0] == _RESUMED:
        return record.headers[0][1].decode(errors="replace")
    return None
