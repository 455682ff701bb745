"""Decoding of checkpoints as owners leave them to each other: an independent reader, which knows no engine code."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.chaos.histories import Logged

CHECKPOINT = "engine.checkpoint"
PART = "engine.checkpoint_part"
IDS = "engine.ids"


class Held(msgspec.Struct, frozen=True):
    """What a checkpoint says of an open run."""

    state: str
    seq: int
    #: By task run id.
    tasks: dict[str, str]


class Checkpoint(msgspec.Struct, frozen=True):
    """A checkpoint, put together from its records."""

    partition: int
    offset: int
    epoch: int
    #: The ownership record after its writer's own, where one lies before it: the writer had lost the partition, or somebody
    #: who was paused while he took it over has come back.
    voided_by: int | None
    #: Whoever goes on from it reads on from here.
    from_offset: int
    runs: dict[str, Held]
    #: Of the runs seen in the dedup window.
    run_ids: frozenset[str]
    #: Runs that were left on the log: from where to read those of a flow, or of one of its keys, again.
    lanes: dict[tuple[str, str | None], int]
    #: What is known of them all the same: the seq of each change; nothing of what has ended.
    told: dict[str, frozenset[int]]

    def leaves(self, flow: str, key: str, offset: int) -> bool:
        """Whether a run whose SCHEDULED lies there is read again, later."""
        return any(self.lanes.get(lane, offset + 1) <= offset for lane in ((flow, None), (flow, key)))

    @property
    def is_void(self) -> bool:
        """Whoever goes on from it must find out that he cannot."""
        return self.voided_by is not None


class OwnRecords:
    """The records that owners write for owners."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Logged] = {}

    def keep(self, record: Logged) -> None:
        """A part of a body or a block of ids: read when a checkpoint asks for it."""
        self._kept[record.partition, record.offset] = record

    def close(self, record: Logged, epochs: Sequence[int]) -> Checkpoint:
        """The checkpoint that this record closes; ``epochs`` are those that have begun where it lies.

        Raises ValueError, LookupError or TypeError.
        """
        data: dict[str, Any] = json.loads(record.value or "")
        parts = data.get("parts") or ()
        if parts:
            body = "".join(self._kept[record.partition, offset].value or "" for offset in parts)
        else:
            body = base64.b64decode(data.get("body") or "", validate=True).decode()
        first, *lines = body.splitlines()
        if len(body.encode()) != int(data["size"]):
            raise ValueError(f"the body has {len(body.encode())} bytes, {data['size']} were written")
        ids = json.loads(first)
        blocks = [json.loads(self._kept[record.partition, place[0]].value or "") for place in ids.get("blocks", ())]
        return Checkpoint(
            record.partition,
            record.offset,
            int(data["epoch"]),
            next((epoch for epoch in epochs if epoch > int(data["epoch"])), None),
            int(data["from_offset"]),
            {run["run_id"]: _held(run) for run in map(json.loads, lines)},
            frozenset(run_id for block in (ids["tail"], *blocks) for run_id in _run_ids(block)),
            {(flow, key): offset for (flow, key), offset in ids.get("shelf", ())},
            {run_id: frozenset(change["seq"] for change in changes) for run_id, changes in ids.get("told", {}).items()},
        )


def _held(run: dict[str, Any]) -> Held:
    return Held(run["state"], int(run["seq"]), {name: task[0] for name, task in (run.get("tasks") or {}).items()})


def _run_ids(block: dict[str, Any]) -> list[str]:
    ids = base64.b64decode(block["ids"], validate=True)
    if len(ids) != 16 * sum(count for _, count in block["seconds"]):
        raise ValueError("a block of ids is not as long as it says")
    return [ids[start : start + 16].hex() for start in range(0, len(ids), 16)]
