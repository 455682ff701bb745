"""Whether a trial on the log in memory has come to rest: all that was sent is taken in, has ended, and is committed."""

from __future__ import annotations

import contextlib

from engine.app import App
from engine.broker import Partition
from engine.errors import TopicError
from engine.memory import MemoryBroker
from engine.settings import Settings

_ENDS = ("completed", "failed", "crashed", "cancelled")


class Log:
    """The log, as somebody sees it who looks from outside."""

    def __init__(self, broker: MemoryBroker, settings: Settings) -> None:
        self._broker, self._settings = broker, settings
        #: What was looked at, and what was found there.
        self._looked: dict[Partition, int] = {}
        self._opened: set[str] = set()
        self._ended: set[str] = set()

    def runs(self) -> tuple[set[str], set[str]]:
        """Those that were opened, and those that have ended."""
        for place in self.places(self._settings.states_topic):
            records = self._broker.log(place)[self._looked.get(place, 0) :]
            self._looked[place] = self._looked.get(place, 0) + len(records)
            for record in records:
                headers = dict(record.headers)
                kind, run_id = headers["ce_type"].decode(), headers["ce_subject"].decode()
                if kind == "engine.flow_run.scheduled":
                    self._opened.add(run_id)
                elif kind.startswith("engine.flow_run.") and kind.endswith(_ENDS):
                    self._ended.add(run_id)
        return self._opened, self._ended

    def places(self, topic: str) -> list[Partition]:
        """None before the first engine has made the topic."""
        with contextlib.suppress(TopicError):
            return [(topic, number) for number in range(len(self._broker.topic(topic).logs))]
        return []

    def is_taken_in(self, topics: set[str]) -> bool:
        """Whether every event of these topics is committed by the intake."""
        committed = self._broker.group(self._settings.intake_group).committed
        places = [place for topic in topics for place in self.places(topic)]
        return all(committed.get(place, 0) == len(self._broker.log(place)) for place in places)

    def is_read(self, app: App) -> bool:
        """Whether an engine has read the whole state topic, and has nothing to tell that is not on it."""
        places, ledgers = self.places(self._settings.states_topic), app._dispatcher._ledgers
        read = {place: ledger.next_offset for place in places if (ledger := ledgers.get(place[1])) is not None}
        is_read = bool(places) and all(read.get(place, -1) == len(self._broker.log(place)) for place in places)
        return is_read and app._publisher._idle.is_set()

    def is_committed(self, app: App) -> bool:
        """Whether its latest checkpoints are."""
        committed = self._broker.group(self._settings.dispatch_group).committed
        made = app._dispatcher._checkpointer
        return all(committed.get(place) == made.committable(place[1]) for place in self.places(self._settings.states_topic))
