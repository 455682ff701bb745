"""Kafka that takes no state changes: the engine bounds what waits, says so, and tells all of it when Kafka is back."""

from __future__ import annotations

from collections.abc import Sequence

from engine.broker import Outgoing
from engine.errors import KafkaUnavailable
from engine.events import Position
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker, MemorySink
from engine.states import State
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration import flows_letters as flows
from tests.waiting import eventually

EVENTS, OPEN_RUNS = 300, 20


class StuckSink(MemorySink):
    """Answers like a producer whose buffer has been full for too long, while its broker is stuck."""

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        """See MemorySink."""
        if isinstance(self._broker, StuckBroker) and self in self._broker.stuck:
            raise KafkaUnavailable("memory", "the producer's buffer is full")
        return await super().write(records)


class StuckBroker(MemoryBroker):
    """A log that may stop to take what some of its producers write. The first two are the intake's and the publisher's."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck: list[MemorySink] = []
        self.sinks: list[MemorySink] = []

    def sink(self) -> MemorySink:
        """See MemoryBroker."""
        self.sinks.append(StuckSink(self))
        return self.sinks[-1]


async def test_what_waits_for_kafka_is_bounded_said_and_told_in_the_end() -> None:
    broker = StuckBroker()
    app = AppUnderTest(fresh_settings(max_open_runs=OPEN_RUNS), [flows.errand], broker, InlineExecutor(), broker)
    try:
        await app.start()
        await app.do("errands", {"name": "tea"}, "errand", id="before")
        broker.stuck = broker.sinks[1:2]
        await app.send_many("errands", [(f"e{n}", {"name": f"n{n}"}) for n in range(EVENTS)])
        await eventually(lambda: app.open_runs > OPEN_RUNS)
        await eventually(lambda: "buffer is full" in app.app.readiness()["publisher"])
        # Of a run there are five changes after its SCHEDULED; no run begins beyond those that may be open.
        publisher = app.app._publisher
        await eventually(lambda: publisher.backlog > 0)
        assert publisher.backlog <= 5 * OPEN_RUNS
        assert len(app.ends()) == 1
        broker.stuck = []
        await eventually(lambda: len(app.ends()) == EVENTS + 1)
        assert {end.state for end in app.ends()} == {State.COMPLETED}
        assert len({end.run_id for end in app.ends()}) == EVENTS + 1
        await eventually(lambda: app.app.readiness()["publisher"] == "ok")
    finally:
        await app.close()


async def test_an_engine_that_stops_while_kafka_takes_nothing_ends_and_leaves_all_to_the_next() -> None:
    """Events in hand that it cannot take in, and changes that it cannot tell."""
    broker, settings = StuckBroker(), fresh_settings(grace_seconds=0.1)
    app = AppUnderTest(settings, [flows.errand], broker, InlineExecutor(), broker)
    try:
        await app.start()
        broker.stuck = broker.sinks[1:2]
        await app.send("errands", {"name": "tea"}, id="e0")
        await eventually(lambda: app.app._publisher.backlog or app.app.readiness()["publisher"] != "ok")
        broker.stuck = broker.sinks[:2]
        await app.send_many("errands", [(f"e{n}", {"name": f"n{n}"}) for n in range(1, EVENTS)])
        await eventually(lambda: "buffer is full" in app.app.readiness()["intake"])
        await app.stop()
    finally:
        await app.close()
    broker.stuck = []
    after = AppUnderTest(settings, [flows.errand], broker, InlineExecutor(), broker)
    try:
        await after.start()  # nobody else is in the groups any more
        await eventually(lambda: len(after.ends()) == EVENTS)
        assert {end.run_id for end in after.ends()} == {app.run_id("errand", f"e{n}") for n in range(EVENTS)}
    finally:
        await after.close()
