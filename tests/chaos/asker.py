"""The asker: a person at a trial, who cancels runs, repeats them and replays dead letters, by a seed.

Each request goes out as those of the command line do, and again, as the same one, until it is answered.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from engine.actions import Actions, Repeated
from engine.command_errors import AlreadyEnded, NotFound, NotRepeatable
from engine.errors import KafkaUnavailable, TopicError
from engine.kafka import KafkaBroker
from engine.repeats import Kind
from engine.settings import Settings
from tests.chaos.flows import STARTS
from tests.chaos.follower import Follower
from tests.chaos.histories import Asked, Logged, Sent

#: How often each kind comes.
_WEIGHTS = {"cancel": 5, "retry": 2, "rerun": 2, "rerun from": 2, "replay": 3}
#: A request that takes longer is made once more.
_PATIENCE_SECONDS = 30.0
#: What makes a run of any flow end well; the first is also a small number of elements.
_GOOD = {"number": 2, "seconds": 0.0}

#: Does what is asked; answers the new run, where there is one.
Act = Callable[[], Awaitable[Repeated | None]]


class Asker:
    """One person. What it asks for follows from the seed and from what the follower has seen."""

    def __init__(self, kafka: str, app: str, seed: int, gap_seconds: float, follower: Follower) -> None:
        settings = Settings(app=app, kafka=kafka)
        self._app, self._gap_seconds, self._follower = app, gap_seconds, follower
        self._broker = KafkaBroker(settings)
        self._sink = self._broker.sink(delivery_seconds=5.0)
        self._actions = Actions(settings, self._broker, self._sink)
        self._chance = random.Random(seed)  # no secret
        self._number = 0
        #: Runs that were cancelled or repeated, and letters that were replayed: each once.
        self._had: set[tuple[str, str]] = set()
        self._replays: dict[str, Sent] = {}
        self.asked: list[Asked] = []
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "cancel": self._cancel,
            "retry": partial(self._repeat, Kind.RETRY),
            "rerun": partial(self._repeat, Kind.RERUN),
            "rerun from": partial(self._repeat, Kind.RERUN, "work"),
            "replay": self._replay,
        }

    async def run(self, until: float) -> None:
        """Until that time, and until the last request is answered."""
        await self._sink.start()
        try:
            while True:
                await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._gap_seconds)
                if time.time() >= until:
                    return
                [kind] = self._chance.choices([*_WEIGHTS], [*_WEIGHTS.values()])
                await self._kinds[kind]()
        finally:
            await self._actions.close()
            await self._sink.close()
            await self._broker.close()

    @property
    def wanted(self) -> int:
        """Runs that are there because somebody asked for them."""
        made = {one.made for one in self.asked if one.made}
        return len(made) + sum(len(one.flows) for one in self._replays.values())

    def sent(self) -> list[Sent]:
        """The replays, as events that were sent: each where the follower has seen it."""
        found: list[Sent] = []
        seen = {record.headers.get("x-engine-replay", "") for record in self._follower.replays}
        for record in self._follower.replays:
            if (replay := self._replays.get(record.headers.get("x-engine-replay", ""))) is not None:
                found.append(msgspec.structs.replace(replay, partition=record.partition, offset=record.offset, at=record.at))
        return found + [replay for id, replay in self._replays.items() if id not in seen]

    async def _cancel(self) -> None:
        """Most of all what takes long; others may end meanwhile."""
        candidates = [run_id for run_id in self._follower.open if self._follower.flows[run_id] != "vigil"]
        long = [run_id for run_id in candidates if self._follower.flows[run_id] == "long"]
        run_id = self._one("cancel", long if self._chance.random() < 0.8 else candidates)
        if run_id is not None:

            async def act() -> None:
                await self._actions.cancel(run_id, "a person had enough")

            await self._ask("cancel", run_id, act)

    async def _repeat(self, kind: Kind, from_task: str | None = None) -> None:
        flows, ended = self._follower.flows, self._follower.ended
        candidates = [run_id for run_id in ended if flows.get(run_id) not in (None, "vigil")]
        if kind is Kind.RETRY:
            candidates = [run_id for run_id in candidates if ended[run_id] != "completed"]
        if from_task is not None:
            candidates = [run_id for run_id in candidates if flows[run_id] == "kept" and ended[run_id] == "completed"]
        run_id = self._one("repeat", candidates)
        if run_id is not None:
            request = self._request()

            async def act() -> Repeated:
                return await self._actions.rerun(run_id, kind, from_task=from_task, request_id=request)

            await self._ask(kind.value, run_id, act, request)

    async def _replay(self) -> None:
        """Most with a value that can be read, or that does not fail; the others as they are."""
        letters = {_identity(letter): letter for letter in reversed(self._follower.letters)}
        identity = self._one("replay", [*letters])
        if identity is not None:
            letter, request = letters[identity], self._request()
            value = json.dumps(_GOOD).encode() if self._chance.random() < 0.7 else None
            self._replays[request] = self._as_sent(letter, request, is_edited=value is not None)
            letter_id = f"{letter.partition}/{letter.offset}"

            async def act() -> None:
                await self._actions.replay([letter_id], value=value, replay_id=request)

            await self._ask("replay", letter_id, act, request)

    async def _ask(self, what: str, whom: str, act: Act, request: str = "") -> None:
        asked = Asked(what, whom, request or self._request(), time.time())
        is_unsure = self._chance.random() < 0.2  # somebody who does not know whether he has asked
        while True:
            self.asked.append(asked)
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    done = await act()
            except (KafkaUnavailable, TopicError, TimeoutError):
                await asyncio.sleep(0.2)  # It may be there or not; both are right, and it is asked once more.
                continue
            except (AlreadyEnded, NotRepeatable, NotFound):
                # It has ended meanwhile; or what the follower saw of its end does not count, and it is still open.
                self._replays.pop(request, None)
                return
            answered = msgspec.structs.replace(asked, at=time.time(), is_acknowledged=True)
            if done is not None:
                answered = msgspec.structs.replace(answered, made=done.run_id, taken=done.taken)
            self.asked.append(answered)
            if not is_unsure:
                return
            is_unsure = False

    def _one(self, what: str, candidates: Sequence[str]) -> str | None:
        left = [one for one in candidates if (what, one) not in self._had]
        if not left:
            return None
        one = self._chance.choice(left)
        self._had.add((what, one))
        return one

    def _request(self) -> str:
        self._number += 1
        return f"request-{self._number}"

    def _as_sent(self, letter: Logged, request: str, *, is_edited: bool) -> Sent:
        headers = letter.headers
        topic = headers["x-engine-origin"].partition("/")[0].removeprefix(f"{self._app}.")
        is_poison = not headers.get("x-engine-run") and not is_edited
        flows = (headers["x-engine-flow"],) if headers.get("x-engine-flow") else STARTS[topic]
        return Sent(
            headers["ce_source"],
            headers["ce_id"],
            f"{self._app}.replays",
            flows=() if is_poison else flows,
            is_poison=is_poison,
            replay=request,
            origin=headers["x-engine-origin"],
        )


def _identity(letter: Logged) -> str:
    """The same for each copy of one letter, which may have been written more than once."""
    names = ("x-engine-run",) if letter.headers.get("x-engine-run") else ("x-engine-origin", "x-engine-replay-of")
    return " ".join(letter.headers.get(name, "") for name in names)
