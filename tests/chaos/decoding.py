"""Decoding of the state topic and the dead letters as DESIGN.md has them: an independent reader, which knows no engine code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.chaos.checkpoints import CHECKPOINT, IDS, PART, Checkpoint, OwnRecords
from tests.chaos.histories import Histories, Logged

OWNERSHIP = "engine.ownership"
CANCELLATION = "engine.cancellation"
RUN_PREFIXES = ("engine.flow_run.", "engine.task_run.")


class Event(msgspec.Struct, frozen=True):
    """What a SCHEDULED says of the event behind it."""

    source: str
    id: str
    #: "topic/partition/offset" of the event, and of the replay where it is one.
    place: str
    replay: str = ""
    replay_place: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        """Events with the same are one event."""
        return self.source, self.id, self.replay


class Change(msgspec.Struct, frozen=True):
    """One state change, and where it lies."""

    partition: int
    offset: int
    at: float
    run_id: str
    flow: str
    state: str
    seq: int
    epoch: int
    attempt: int
    task: str
    task_run_id: str
    trace_id: str
    #: The ordering key, of a SCHEDULED.
    key: str
    #: The run that this one repeats.
    repeats: str
    event: Event | None

    @property
    def is_scheduled(self) -> bool:
        """Whether it opens a run."""
        return not self.task_run_id and self.state == "SCHEDULED"

    @property
    def says(self) -> tuple[object, ...]:
        """What must be the same wherever it is repeated."""
        return self.epoch, self.state, self.task_run_id, self.attempt


class Letter(msgspec.Struct, frozen=True):
    """One dead letter."""

    partition: int
    offset: int
    at: float
    #: "topic/partition/offset" of the refused record.
    origin: str
    flow: str
    #: The run whose end it is about; empty where a record was refused.
    run_id: str
    #: The replay that was refused.
    replay: str


class Mark(msgspec.Struct, frozen=True):
    """That a letter was dropped or replayed."""

    partition: int
    offset: int
    #: "partition/offset" of the letter.
    letter: str
    #: The replay, where it is one.
    replay: str


class Cancellation(msgspec.Struct, frozen=True):
    """That somebody wants a run to end."""

    partition: int
    offset: int
    run_id: str


class Topics:
    """What lies on the topics, ruled by the ownership records."""

    def __init__(self, histories: Histories) -> None:
        #: Changes that count, repeats included, partition by partition in the order of the log.
        self.valid: list[Change] = []
        #: Changes of owners that had lost the partition.
        self.void: list[Change] = []
        #: Changes whose epoch no ownership record has begun.
        self.unfounded: list[Change] = []
        #: Where, and why.
        self.unreadable: list[tuple[str, str]] = []
        #: By partition: offset, time and owner of each epoch's beginning.
        self.epochs: dict[int, list[tuple[int, float, str]]] = {}
        #: By partition and offset of the closing record.
        self.checkpoints: dict[tuple[int, int], Checkpoint] = {}
        self.letters: list[Letter] = []
        self.marks: list[Mark] = []
        self.cancellations: list[Cancellation] = []
        #: Ids of what is on the replays topic.
        self.replays = {one.headers.get("x-engine-replay", "") for one in _of(histories, histories.replays_topic)}
        for record in _of(histories, histories.letters_topic):
            self._take_letter(record)
        self._own = OwnRecords()
        for record in sorted(_of(histories, histories.states_topic), key=lambda one: (one.partition, one.offset)):
            self._take(record)

    def _take(self, record: Logged) -> None:
        ce_type = record.headers.get("ce_type", "")
        epochs = self.epochs.setdefault(record.partition, [])
        epoch = epochs[-1][0] if epochs else -1
        try:
            if ce_type == OWNERSHIP:
                epochs.append((record.offset, record.at, str(_data(record)["owner"])))
            elif ce_type in (PART, IDS):
                self._own.keep(record)
            elif ce_type == CHECKPOINT:
                self.checkpoints[record.partition, record.offset] = self._own.close(record, [begun for begun, _, _ in epochs])
            elif ce_type == CANCELLATION:
                self.cancellations.append(Cancellation(record.partition, record.offset, str(_data(record)["run_id"])))
            elif ce_type.startswith(RUN_PREFIXES):
                self._rule(_change(record, _data(record)), epoch)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # It says it is one of ours and is not: that is a finding, and the others are read all the same.
            self.unreadable.append((f"{record.topic}/{record.partition}/{record.offset}", repr(error)))

    def _rule(self, change: Change, epoch: int) -> None:
        if change.is_scheduled or change.epoch == epoch:
            self.valid.append(change)
        elif change.epoch < epoch:
            self.void.append(change)
        else:
            self.unfounded.append(change)

    def _take_letter(self, record: Logged) -> None:
        place, headers = (record.partition, record.offset), record.headers
        if "x-engine-mark" in headers:
            self.marks.append(Mark(*place, headers.get("x-engine-letter", ""), headers.get("x-engine-replay", "")))
            return
        names = ("x-engine-origin", "x-engine-flow", "x-engine-run", "x-engine-replay-of")
        self.letters.append(Letter(*place, record.at, *(headers.get(name, "") for name in names)))


def _of(histories: Histories, topic: str) -> Iterator[Logged]:
    return (one for one in histories.logged if one.topic == topic)


def _data(record: Logged) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(record.value or "")
    return data


def _change(record: Logged, data: dict[str, Any]) -> Change:
    traceparent = record.headers.get("traceparent", "")
    return Change(
        *(record.partition, record.offset, record.at),
        *(data["run_id"], data["flow"], data["state"], int(data["seq"]), int(data["epoch"]), int(data["attempt"])),
        *(data.get("task") or "", data.get("task_run_id") or "", traceparent[3:35], data.get("key") or ""),
        repeats=data.get("repeats") or "",
        event=None if data.get("event") is None else _event(data["event"]),
    )


def _event(told: dict[str, Any]) -> Event:
    replay = told.get("replay")
    lies = ("topic", "partition", "offset")
    return Event(
        told["source"],
        told["id"],
        "/".join(str(told[name]) for name in lies),
        "" if replay is None else replay["id"],
        "" if replay is None else "/".join(str(replay[name]) for name in lies),
    )
