"""The restorer: makes the ledger of a partition that was taken over, from its latest checkpoint where there is one."""

from __future__ import annotations

import asyncio

from engine.broker import Broker, Partition, Reader, Record
from engine.checkpoints import BlockPlace, Checkpoint, CheckpointUnreadable, read_block, read_body, read_checkpoint, read_part
from engine.ledger import Ledger
from engine.logs import logger
from engine.runs import FlowRun

#: Runs that are read before the event loop has another turn: some milliseconds.
_RUNS_A_TURN = 200
#: Blocks of ids that are read in one go, some MiB: memory holds them beside the ids themselves.
_BLOCKS_AT_ONCE = 16


class Restorer:
    """Reads checkpoints back."""

    def __init__(self, broker: Broker, topic: str, dedup_window_seconds: float) -> None:
        self._broker = broker
        self._topic = topic
        self._window_seconds = dedup_window_seconds

    async def restore(self, number: int, epoch: int, committed: int | None, now: float) -> tuple[Ledger, Checkpoint | None]:
        """The ledger of the partition as its owner from ``epoch`` on begins with it, and the checkpoint it goes on from.

        ``committed`` is the offset of the latest checkpoint. Without one, or where it cannot be used, the ledger begins with
        the beginning of the log. Raises KafkaUnavailable.
        """
        if committed is None:
            return Ledger(number, epoch, self._window_seconds), None
        partition = (self._topic, number)
        reader = self._broker.reader()
        try:
            return await self._restore(reader, Ledger(number, epoch, self._window_seconds), partition, committed, now)
        except CheckpointUnreadable as error:
            # Nothing is lost that the log still holds: what a checkpoint says stands there, too, only longer.
            logger.error(
                "the partition is read from its beginning, which takes longer",
                partition=number,
                checkpoint=committed,
                error=str(error),
                remedy="none is needed, unless no engine has run for longer than state_retention_seconds: raise it then",
            )
            return Ledger(number, epoch, self._window_seconds), None
        finally:
            await reader.close()

    async def _restore(
        self, reader: Reader, ledger: Ledger, partition: Partition, committed: int, now: float
    ) -> tuple[Ledger, Checkpoint]:
        record = _one(await reader.read(partition, [committed]), committed, "its closing record")
        checkpoint = read_checkpoint(record.value, record.headers)
        body = checkpoint.body
        if checkpoint.parts:
            records = await reader.read(partition, checkpoint.parts)
            parts = [_one(records, offset, "a part of it") for offset in checkpoint.parts]
            body = b"".join(read_part(part.value, part.headers) for part in parts)
        ids, held = read_body(checkpoint, body)
        runs: list[FlowRun] = []
        for run in held:
            runs.append(run)
            if not len(runs) % _RUNS_A_TURN:
                await asyncio.sleep(0)
        ledger.restore(committed, checkpoint, ids, runs)
        places = [place for place in ids.blocks if not ledger.seen.is_over(place.last_second, now)]
        await self._restore_blocks(reader, ledger, partition, places, now)
        return ledger, checkpoint

    async def _restore_blocks(
        self, reader: Reader, ledger: Ledger, partition: Partition, places: list[BlockPlace], now: float
    ) -> None:
        problems: list[str] = []
        for start in range(0, len(places), _BLOCKS_AT_ONCE):
            some = places[start : start + _BLOCKS_AT_ONCE]
            records = await reader.read(partition, [place.offset for place in some])
            for place in some:
                record = records.get(place.offset)
                if record is None:
                    # Kafka deletes from the front: the SCHEDULED of these ids lay before it, and are gone, too.
                    if place.last_second > now - self._window_seconds:
                        logger.error(
                            "ids of the dedup window are lost: a repeat of their events makes new runs",
                            partition=ledger.partition,
                            offset=place.offset,
                            remedy="set state_retention_seconds, and the topic's retention.ms, above dedup_window_seconds",
                        )
                    continue
                try:
                    block = read_block(record.value, record.headers)
                    if place is places[0]:
                        ledger.seen.expect([place.last_second for place in places], len(block.ids) // 16)
                    ledger.restore_block(place, block)
                except CheckpointUnreadable as error:
                    problems.append(f"offset {place.offset}: {error}")
                await asyncio.sleep(0)
        if problems:
            # The runs of the checkpoint stand. What is read from the beginning brings back the ids that are still there.
            logger.error("ids of the dedup window are read from the log again", partition=ledger.partition, errors=problems)
            ledger.read_again()


def _one(records: dict[int, Record], offset: int, what: str) -> Record:
    if offset not in records:
        raise CheckpointUnreadable(f"{what}, at offset {offset}, is not on the topic, or no longer")
    return records[offset]
