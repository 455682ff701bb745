"""The soak: events flow through real processes while the nemesis is at work; then rest, and the checker looks at it all."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.chaos.asker import Asker
from tests.chaos.flows import LETTERED, STARTS
from tests.chaos.follower import Follower
from tests.chaos.histories import Effect, Histories, Sent, read_lines
from tests.chaos.nemesis import Nemesis
from tests.chaos.observers import OffsetWatcher, Producer, Reader, make_topics
from tests.chaos.stack import ENGINE_PREFIX, Stack

#: Runs that are open from the beginning to the end.
VIGILS = 4
#: Far beyond what coming to rest takes; who waits so long waits in vain.
REST_SECONDS = 600.0


class Plan(msgspec.Struct, frozen=True):
    """What a soak is to do."""

    seconds: float = 75.0
    seed: int = 1
    profile: str = "all"
    events_per_second: float = 12.0
    gap_seconds: float = 1.5
    #: Mean seconds between two requests of a person.
    asking_seconds: float = 0.8
    variant: str = "sound"
    session_seconds: float = 2.0
    rest_seconds: float = REST_SECONDS


async def soak(plan: Plan, directory: Path, say: Callable[[str], None] = print) -> Histories:
    """Do it, and answer what was seen."""
    app = f"soak{plan.seed}"
    before = asyncio.all_tasks()
    stack = Stack(directory, app, plan.session_seconds, plan.variant)
    say(f"starting; all is kept in {directory}")
    try:
        await stack.start()
        trial = _Trial(plan, stack, say)
        return await trial.run()
    finally:
        await stack.stop()
        # What Kafka's client leaves of itself where a stop of it was cut short, because the broker was away.
        left = asyncio.all_tasks() - before
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Trial:
    def __init__(self, plan: Plan, stack: Stack, say: Callable[[str], None]) -> None:
        self._plan, self._stack, self._say = plan, stack, say
        self._kafka, self._app = stack.kafka.bootstrap, stack.app
        self._producer = Producer(self._kafka, self._app)
        self._offsets = OffsetWatcher(self._kafka, self._app)
        self._reader = Reader(self._kafka, [f"{self._app}.{name}" for name in ("states", "dead-letters", "replays")])
        self._follower = Follower(self._reader, self._app)
        self._asker = Asker(self._kafka, self._app, plan.seed, plan.asking_seconds, self._follower)
        self._chance = random.Random(plan.seed)  # no secret

    async def run(self) -> Histories:
        stack = self._stack
        await make_topics(self._kafka, [f"{self._app}.{name}" for name in (*STARTS, "vigil", "wake")], 2)
        for number in range(VIGILS):
            await self._producer.send("vigil", f"vigil-{number}", {"number": number, "seconds": 0.0}, ["vigil"])
        await self._until(lambda: len(self._follower.flows) >= VIGILS, "the engines to work")
        watching = asyncio.create_task(self._offsets.run())
        are_over = asyncio.Event()
        following = asyncio.create_task(self._follow(are_over))
        try:
            until = time.time() + self._plan.seconds
            nemesis = Nemesis(stack, self._plan.seed, self._plan.profile, self._plan.gap_seconds)
            # The producer goes on while the last fault is mended; rest begins when both are done.
            await asyncio.gather(nemesis.run(until), self._produce(until), self._asker.run(until))
            await stack.settled()
            self._say(f"the faults are over: {len(stack.faults)} notes in the log, {len(self._producer.sent)} sendings")
            self._say(f"a person has made {len({one.request for one in self._asker.asked})} requests")
            are_over.set()
            await following
            await self._until(self._has_come_to_rest, "everything but the vigils to end")
            snapshots = await stack.snapshots() if stack.names(ENGINE_PREFIX) else []
            await self._producer.send("wake", "wake", {}, [])
            await self._until(lambda: not self._follower.open, "the vigils to end")
            await asyncio.sleep(2.5)  # the last commits, and whatever an engine might still have to say
        finally:
            watching.cancel()
            following.cancel()
            await asyncio.gather(watching, following, return_exceptions=True)
        logged = await self._reader.read_all()
        await self._reader.close()
        await self._producer.close()
        return Histories(
            app=self._app,
            lettered=list(LETTERED),
            sent=self._sent,
            asked=self._asker.asked,
            logged=logged,
            effects=read_lines(stack.effects, Effect),
            faults=stack.faults,
            committed=self._offsets.seen,
            snapshots=snapshots,
        )

    async def _produce(self, until: float) -> None:
        names = list(STARTS)
        number = 0
        due_at = time.time()
        while time.time() < until:
            number += 1
            name = self._chance.choice(names)
            is_poison = self._chance.random() < 0.04
            data = {"number": self._chance.randrange(2, 5) if name in ("wide", "long") else number}
            data |= {"seconds": self._chance.choice([0.0, 0.02, 0.1, 0.6])}
            flows = () if is_poison else STARTS[name]
            await self._producer.send(name, f"event-{number}", data, flows, is_poison=is_poison)
            if self._chance.random() < 0.05 and not is_poison:  # a producer that does not know what it has sent
                await self._producer.send(name, f"event-{number}", data, flows)
            # After a broker's absence not all that was due comes at once.
            due_at = max(due_at + 1 / self._plan.events_per_second, time.time() - 1.0)
            await asyncio.sleep(max(0.0, due_at - time.time()))

    async def _follow(self, are_over: asyncio.Event) -> None:
        while not are_over.is_set():
            await self._follower.look()
            await asyncio.sleep(0.5)

    def _has_come_to_rest(self) -> bool:
        wanted = {(one.id, flow) for one in self._producer.sent if one.is_acknowledged for flow in one.flows}
        is_there = len(self._follower.flows) >= len(wanted) + self._asker.wanted
        is_done = is_there and len(self._follower.open) <= VIGILS
        return is_done and self._is_taken_in()

    def _is_taken_in(self) -> bool:
        """Whether the intake has committed every event; what it has refused is among the letters by then."""
        committed = self._offsets.seen[-1].offsets if self._offsets.seen else {}
        return all(committed.get(f"{one.topic}/{one.partition}", 0) > one.offset for one in self._sent)

    @property
    def _sent(self) -> list[Sent]:
        return [*self._producer.sent, *self._asker.sent()]

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for it, as long as rest may take; what is missing then is the checker's business."""
        deadline = time.monotonic() + self._plan.rest_seconds
        while not condition():
            if time.monotonic() > deadline:
                self._say(f"waited in vain for {what}: {len(self._follower.flows)} runs, {len(self._follower.open)} open")
                return
            await self._follower.look()
            await asyncio.sleep(0.2)
