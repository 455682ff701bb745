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
        await self._restore_blocks(reader, ledger, partition, places)
        return ledger, checkpoint

    async def _restore_blocks(self, reader: Reader, ledger: Ledger, partition: Partition, places: list[BlockPlace]) -> None:
        for place in places:
            records = await reader.read(partition, [place.offset])
            try:
                record = _one(records, place.offset, "a block of ids")
                ledger.restore_block(place, read_block(record.value, record.headers))
            except CheckpointUnreadable as error:
                # The runs of the checkpoint count more than these ids. Reading from the beginning brings those back that the
                # log still holds as SCHEDULED, and does no harm to the runs.
                logger.error(
                    "ids of the dedup window are read from the log again", partition=ledger.partition, error=str(error)
                )
                ledger.next_offset = 0
            await asyncio.sleep(0)


def _one(records: dict[int, Record], offset: int, what: str) -> Record:
    if offset not in records:
        raise CheckpointUnreadable(f"{what}, at offset {offset}, is not on the topic, or no longer")
    return records[offset]
