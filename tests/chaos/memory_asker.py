"""A person at a trial within this process: cancels, repeats and replays certain runs as soon as that can be, each twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from engine.actions import Actions, Repeated
from engine.command_errors import AlreadyEnded, NotRepeatable
from engine.memory import MemoryBroker
from engine.repeats import Kind
from engine.runs import run_id_of
from engine.settings import Settings
from engine.states import encode
from tests.chaos.histories import Asked, Sent
from tests.chaos.resting import Log

#: What is done to the run of which flow and event. Those that are cancelled take seconds, unless they are.
REQUESTS = (
    ("cancel", "long", "l"),
    ("cancel", "long", "m"),
    ("retry", "bad", "e"),
    ("rerun", "single", "a"),
    ("rerun from", "kept", "k"),
    ("replay", "bad", "i"),
)
_POLL_SECONDS = 0.03
_GOOD = {"number": 2, "seconds": 0.0}

Act = Callable[[], Awaitable[Repeated | None]]


class MemoryAsker:
    """Outlives engines. ``run`` goes on where it was cancelled."""

    def __init__(
        self, broker: MemoryBroker, settings: Settings, log: Log, source: str, requests: Sequence[tuple[str, str, str]]
    ) -> None:
        self._broker, self._settings, self._log, self._source = broker, settings, log, source
        self._actions = Actions(settings, broker, broker.sink())
        self._left = list(requests)
        self.asked: list[Asked] = []
        #: Replays, as events that were sent.
        self.sent: list[Sent] = []

    @property
    def is_done(self) -> bool:
        """Whether everything was asked for, and answered."""
        return not self._left

    @property
    def made(self) -> set[str]:
        """Runs that repeat others."""
        return {one.made for one in self.asked if one.made}

    async def run(self) -> None:
        """Ask for everything."""
        while self._left:
            opened, ended = self._log.runs()
            for request in list(self._left):
                what, flow, id = request
                run_id = run_id_of(self._settings.app, flow, self._source, id)
                if run_id in (opened if what == "cancel" else ended) and await self._ask(what, flow, id, run_id):
                    self._left.remove(request)
            await asyncio.sleep(_POLL_SECONDS)

    async def _ask(self, what: str, flow: str, id: str, run_id: str) -> bool:
        """False where it is too early."""
        request = f"{what} {id}"
        whom = run_id
        act: Act
        if what == "cancel":
            act = partial(self._cancel, run_id)
        elif what == "replay":
            found = self._letter(run_id)
            if found is None:
                return False
            whom = found
            act = partial(self._replay, whom, request)
        else:
            kind = Kind.RETRY if what == "retry" else Kind.RERUN
            from_task = "work" if what == "rerun from" else None
            act = partial(self._actions.rerun, run_id, kind, from_task=from_task, request_id=request)
        asked = Asked(what.partition(" ")[0], whom, request, time.time())
        for _ in range(2):  # a person who does not know whether he has asked
            self.asked.append(asked)
            try:
                done = await act()
            except NotRepeatable:
                return False  # What was seen of its end does not count.
            except AlreadyEnded:
                break  # It had ended before it could be cancelled; or it was.
            answered = msgspec.structs.replace(asked, at=time.time(), is_acknowledged=True)
            if done is not None:
                answered = msgspec.structs.replace(answered, made=done.run_id, taken=done.taken)
            self.asked.append(answered)
        if what == "replay":
            self._note(id, flow, request)
        return True

    async def _cancel(self, run_id: str) -> None:
        await self._actions.cancel(run_id, "a person had enough")

    async def _replay(self, letter_id: str, request: str) -> None:
        await self._actions.replay([letter_id], value=encode(_GOOD), replay_id=request)

    def _letter(self, run_id: str) -> str | None:
        for topic, partition in self._log.places(self._settings.dead_letters_topic):
            for record in self._broker.log((topic, partition)):
                if ("x-engine-run", run_id.encode()) in record.headers:
                    return f"{partition}/{record.offset}"
        return None

    def _note(self, id: str, flow: str, request: str) -> None:
        for place in self._log.places(self._settings.replays_topic):
            for record in self._broker.log(place):
                headers = {name: content.decode() for name, content in record.headers}
                if headers.get("x-engine-replay") == request:
                    told = {"flows": (flow,), "replay": request, "origin": headers["x-engine-origin"], "at": time.time()}
                    self.sent.append(Sent(self._source, id, *place, record.offset, **told))

    async def close(self) -> None:
        """Free everything."""
        await self._actions.close()
