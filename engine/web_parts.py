"""What pages are made from: the history, live updates, templates, the actions, and what is known of the cluster now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from engine.broker import Broker
from engine.declarations import Declaration
from engine.events import Position
from engine.history_reader import HistoryReader
from engine.repeats import Kind
from engine.settings import Settings
from engine.web_live import Live
from engine.web_pages import Pages


class Acting(Protocol):
    """What a person does to runs; each is a record on a topic."""

    async def cancel(self, run_id: str, reason: str) -> None:
        """Stop a run. Raises NotFound, AlreadyEnded, KafkaUnavailable."""

    async def repeat(self, run_id: str, kind: Kind, *, from_task: str | None = None, request_id: str | None = None) -> str:
        """Run once more; answers the id of the new run. Raises NotFound, NotRepeatable, KafkaUnavailable."""

    async def declarations(self) -> dict[str, Declaration]:
        """The flows that engines have declared. Raises KafkaUnavailable, TopicError."""

    async def start(
        self, flow: str, parameters: Mapping[str, Any] | None = None, *, key: str | None = None, request_id: str | None = None
    ) -> str:
        """Start a run by hand; answers its id. Raises NotFound, ParametersError, KafkaUnavailable."""

    async def send_event(
        self, topic: str, data: bytes, *, type: str = "", source: str = "", id: str | None = None, key: str | None = None
    ) -> Position:
        """Send an event; answers where it lies. Raises TopicError, RecordTooLarge, KafkaUnavailable."""

    async def replay(self, ids: Sequence[str], *, value: bytes | None = None, flow: str | None = None) -> Sequence[object]:
        """Have dead letters taken in once more. Raises UsageError, NotFound, KafkaUnavailable."""

    async def drop(self, ids: Sequence[str]) -> None:
        """Mark dead letters as done with. Raises UsageError, NotFound, KafkaUnavailable."""


class Looking(Protocol):
    """What is known of Kafka, Dask and the engines at this moment; never raises, and leaves unknown what it cannot find out."""

    async def look(self) -> Any:
        """A Vital."""


class Parts(msgspec.Struct, frozen=True):
    """Handed to every page module's ``routes``."""

    settings: Settings
    pages: Pages
    reader: HistoryReader
    live: Live
    now: Callable[[], float]
    actions: Acting | None = None
    vitals: Looking | None = None
    #: For events straight from their topics.
    broker: Broker | None = None


#: States as the pages order them, what is open first.
STATES: Sequence[str] = ("SCHEDULED", "RUNNING", "RETRYING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
