"""The history that a command looks at: the database where there is one, else one made in memory from the topics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from engine import logs
from engine.broker import Broker
from engine.cli_output import say
from engine.declaration_reader import DeclarationReader
from engine.declarations import Declaration
from engine.history import History
from engine.history_opener import is_there
from engine.history_places import IN_MEMORY
from engine.history_store import HistoryStore
from engine.kafka import KafkaBroker
from engine.projector import Projector
from engine.run_finder import Histories
from engine.settings import Settings

#: Without a database so many records are read of each topic, the latest: some seconds.
LAST_RECORDS = 200_000


class Look:
    """A history that a command looks at, perhaps again and again."""

    def __init__(
        self, history: History, projector: Projector | None = None, reopen: Callable[[], History] | None = None
    ) -> None:
        self.history = history
        self._projector, self._reopen = projector, reopen

    @property
    def is_cut(self) -> bool:
        """Whether it was made of the last records of the topics alone."""
        return self._projector is not None and self._projector.is_cut

    async def again(self) -> None:
        """See what has come since. Raises KafkaUnavailable, TopicError and the errors of the history."""
        if self._projector is not None:  # else a projector of its own keeps the database up to date
            await self._projector.catch_up()
        elif self._reopen is not None:
            # Whoever deletes a database makes another one at its place.
            self.history = self._reopen()


@asynccontextmanager
async def looking(settings: Settings) -> AsyncIterator[Look]:
    """An open history. Raises KafkaUnavailable, TopicError and the errors of the history."""
    logs.configure(level="WARNING")
    if (histories := histories_of(settings)) is not None:
        with ExitStack() as opened:

            def reopen() -> History:
                opened.close()
                return opened.enter_context(histories())

            yield Look(reopen(), reopen=reopen)
        return
    broker = KafkaBroker(settings)
    store = HistoryStore(IN_MEMORY, settings.app)
    projector = Projector(settings, broker, store, last_records=LAST_RECORDS, with_logs=False)
    try:
        records = await projector.catch_up()
        if projector.is_cut:
            say(f"no history database (setting history): read the last {records:,} records alone; older runs are missing")
        yield Look(History(store.reader()), projector)
    finally:
        await projector.close()
        await broker.close()


async def declared(settings: Settings, broker: Broker, look: Look) -> dict[str, Declaration]:
    """The flows that engines have declared, by name; raises as ``looking`` does."""
    # What engines said at their start may be older than the last records of the topic.
    known = {one.name: one for one in look.history.declarations()}
    return known or await DeclarationReader(settings, broker, histories_of(settings)).all()


@asynccontextmanager
async def history_of(settings: Settings) -> AsyncIterator[History]:
    """The same, for one look."""
    async with looking(settings) as look:
        yield look.history


def histories_of(settings: Settings) -> Histories | None:
    """How to open the database; None where there is none."""
    path = settings.history_path
    return (lambda: History.open(path)) if is_there(path) else None
