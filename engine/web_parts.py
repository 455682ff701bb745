"""What pages are made from: the history, live updates, templates, the actions, and what is known of the cluster now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

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


#: States as the pages order them, what is open first.
STATES: Sequence[str] = ("SCHEDULED", "RUNNING", "RETRYING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
