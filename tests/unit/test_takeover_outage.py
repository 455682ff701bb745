"""engine.dispatcher: Kafka that goes away in the middle of a takeover is waited for; the engine does not end."""

from __future__ import annotations

from collections.abc import Collection

from engine import Event, flow, on, task
from engine.broker import Partition, Reader, Record
from engine.errors import KafkaUnavailable
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker
from engine.states import State
from tests.app_under_test import AppUnderTest, fresh_settings


@task
def double(number: int) -> int:
    return 2 * number


@flow(on("numbers"))
def doubled(event: Event[int]) -> int:
    return double(event.data)


class OutOfReach:
    """A reader that reaches the log only after some tries."""

    def __init__(self, inner: Reader, left: list[None]) -> None:
        self._inner, self._left = inner, left

    async def read(self, partition: Partition, offsets: Collection[int]) -> dict[int, Record]:
        if self._left:
            self._left.pop()
            raise KafkaUnavailable("memory", "gone in the middle of a takeover")
        return await self._inner.read(partition, offsets)

    async def close(self) -> None:
        await self._inner.close()


class GoneBroker(MemoryBroker):
    def __init__(self) -> None:
        super().__init__()
        self.failures: list[None] = []

    def reader(self) -> Reader:  # type: ignore[override]
        return OutOfReach(super().reader(), self.failures)


async def test_an_engine_that_loses_kafka_in_the_middle_of_a_takeover_goes_on_with_it_when_kafka_is_back() -> None:
    broker, settings = GoneBroker(), fresh_settings()
    first = AppUnderTest(settings, (doubled,), broker, InlineExecutor(), broker)
    await first.start()
    await first.do("numbers", 1, "doubled")
    await first.close()  # leaves a checkpoint behind, which the next one reads as it takes over

    broker.failures[:] = [None] * 3
    second = AppUnderTest(settings, (doubled,), broker, InlineExecutor(), broker)
    await second.start()
    try:
        assert (await second.do("numbers", 2, "doubled")).end.state is State.COMPLETED
        assert not broker.failures, "nothing was asked of the log"
    finally:
        await second.close()
