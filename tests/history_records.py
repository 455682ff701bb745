"""Records of the state, dead-letter and log topics as engines would have written them, for tests of the history."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.broker import Record
from engine.dead_letters import Details, Mark, Marked, write_letter, write_mark
from engine.declarations import Declaration, write_declaration
from engine.events import Headers, Position
from engine.run_logs import LogBatch, LogMail, encode_batch, headers_of, line_of
from engine.states import Envelope, Failure, Origin, Ownership, State, StateChange, encode, utc, write_ownership

STATES, LETTERS, LOGS = "app.states", "app.dead-letters", "app.logs"
BEGIN = 1_700_000_000.0
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Topics:
    """Three topics that are written to; ``records`` has all of them in an order in which a reader may get them."""

    def __init__(self, seed: int = 0, *, gaps: bool = True) -> None:
        self._gaps = gaps
        self.records: list[Record] = []
        self.random = random.Random(seed)
        self._next: Counter[tuple[str, int]] = Counter()
        self._clock = BEGIN

    def now(self) -> datetime:
        self._clock += self.random.random()
        return utc(round(self._clock, 6))

    def append(self, topic: str, partition: int, value: bytes | None, headers: Headers = (), key: bytes | None = None) -> int:
        offset = self._next[topic, partition]
        # As transactions and compaction do, a gap now and then.
        self._next[topic, partition] += 1 + (self._gaps and self.random.random() < 0.1)
        self.records.append(Record(topic, partition, offset, key, value, headers, int(self._clock * 1000)))
        return offset

    def change(
        self, run_id: str, state: State, seq: int, *, partition: int = 0, at: datetime | None = None, **more: Any
    ) -> StateChange:
        values: dict[str, Any] = {"flow": "fulfil", "epoch": 0, "attempt": 0 if state is State.SCHEDULED else 1} | more
        made = StateChange(run_id=run_id, state=state, seq=seq, at=at or self.now(), **values)
        self.put(made, partition)
        return made

    def put(self, change: StateChange, partition: int = 0) -> None:
        value, headers = Envelope.of("app", change.run_id).write(change, change.traceparent or TRACE)
        self.append(STATES, partition, value, headers)

    def ownership(self, partition: int = 0) -> int:
        return self.append(STATES, partition, *write_ownership("app", Ownership(partition, "me", self.now())))

    def declaration(self, name: str, *, partition: int = 0, at: datetime | None = None, signature: str = "") -> Declaration:
        made = Declaration(name, signature or f"{name}()", at or self.now(), {"type": "object"}, {})
        self.append(STATES, partition, *write_declaration("app", made), name.encode())
        return made

    def letter(
        self, origin: Position, *, partition: int = 0, reason: str = "malformed-data", **more: Any
    ) -> tuple[int, Details]:
        details = Details(reason=reason, error="field x", origin=origin, at=self.now().isoformat(), **more)
        headers = (("ce_id", b"e1"), ("ce_source", b"/shop"), ("ce_type", b"order.created"))
        made = write_letter(LETTERS, details, b"k", b"{bad", headers, 1_000_000)
        return self.append(LETTERS, partition, made.value, made.headers, made.key), details

    def mark(self, letter_id: str, details: Details, marked: Marked, replay: str | None = None) -> None:
        made = write_mark(LETTERS, Mark(marked, letter_id, details.identity, self.now().isoformat(), replay))
        self.append(LETTERS, made.partition or 0, made.value, made.headers)

    def log(self, run_id: str, *messages: str, task: str | None = "price/0", level: int = 20, partition: int = 0) -> None:
        at = self.now().timestamp()
        lines = tuple(line_of(at, level, "orders", message) for message in messages)
        said_by = {} if task is None else {"task": task.partition("/")[0], "task_run_id": f"{run_id}/{task}"}
        value = encode_batch(LogBatch(run_id=run_id, flow="fulfil", attempt=1, trace_id=TRACE[3:35], lines=lines, **said_by))
        mail = LogMail(run_id, f"worker/{len(self.records)}", at, TRACE, len(lines), value)
        self.append(LOGS, partition, value, headers_of("app", mail), run_id.encode())


def origin(offset: int, *, topic: str = "orders") -> Origin:
    return Origin("/shop", f"event-{offset}", "order.created", topic, 0, offset, datetime.fromtimestamp(BEGIN + offset, UTC))


def a_run(topics: Topics, run_id: str, *, partition: int = 0, fails: bool = False, **more: Any) -> list[StateChange]:
    """A run of one task, which is tried twice where it fails."""
    task: dict[str, Any] = {"task": "price", "task_run_id": f"{run_id}/price/0"}
    error = Failure("ValueError", "bad", "Traceback …")
    rest: dict[str, Any] = {"partition": partition, "epoch": more.pop("epoch", 0), "flow": more.get("flow", "fulfil")}
    first = {"parameters": msgspec.Raw(b'{"order":1}'), **more, "epoch": 0}
    made = [topics.change(run_id, State.SCHEDULED, 0, partition=partition, **first)]
    steps: list[tuple[State, dict[str, Any]]] = [
        (State.RUNNING, {}),
        (State.SCHEDULED, task),
        (State.RUNNING, task | {"worker": "tcp://w1"}),
    ]
    if fails:
        steps += [
            (State.RETRYING, task | {"error": error, "next_attempt_at": topics.now()}),
            (State.RUNNING, task | {"attempt": 2, "worker": "tcp://w2"}),
            (State.FAILED, task | {"attempt": 2, "error": error}),
            (State.FAILED, {"error": error}),
        ]
    else:
        steps += [(State.COMPLETED, task), (State.COMPLETED, {"result": msgspec.Raw(b"7")})]
    made += [topics.change(run_id, state, seq, **(rest | fields)) for seq, (state, fields) in enumerate(steps, 1)]
    return made


def a_busy_day(seed: int, runs: int = 10, partitions: int = 3, gaps: bool = True) -> Topics:
    """Runs side by side, with all that a reader has to bear: repeats, void epochs, unknown and unreadable records, letters."""
    topics = Topics(seed, gaps=gaps)
    chance = topics.random
    for partition in range(partitions):
        topics.append(STATES, partition, None)  # so that no epoch is 0, as that of SCHEDULED is
    epochs = {partition: topics.ownership(partition) for partition in range(partitions)}
    waiting: list[tuple[int, list[Record]]] = []
    for number in range(runs):
        scratch = Topics(chance.randrange(1 << 30))
        scratch._clock = topics._clock + number
        partition = number % partitions
        fails = chance.random() < 0.3
        a_run(scratch, f"{number:032x}", fails=fails, event=origin(number // 2), flow=chance.choice(["fulfil", "ship"]))
        waiting.append((partition, scratch.records))
    while waiting:
        partition, records = chance.choice(waiting)
        record = records.pop(0)
        if not records:
            waiting.remove((partition, records))
        change = msgspec.json.decode(record.value or b"", type=StateChange)
        current = change if change.seq == 0 else msgspec.structs.replace(change, epoch=epochs[partition])
        happening = chance.random()
        if happening < 0.1 and current.seq:
            # The owner before goes on without knowing, and says something else.
            topics.put(msgspec.structs.replace(current, epoch=max(0, epochs[partition] - 1), state=State.CRASHED), partition)
        topics.put(current, partition)
        if happening > 0.9:
            topics.put(current, partition)
        elif happening > 0.85:
            epochs[partition] = topics.ownership(partition)
        elif happening > 0.8:
            topics.append(STATES, partition, b"\x00", (("ce_type", b"engine.checkpoint_part"),))
            topics.append(STATES, partition, b"{", (("ce_type", b"engine.flow_run.running"),))
            topics.declaration(f"flow-{partition}", partition=partition)
        elif happening > 0.75:
            place = chance.randrange(2)
            offset, details = topics.letter(Position("orders", 0, chance.randrange(30)), partition=place)
            if chance.random() < 0.5:
                topics.mark(f"{place}/{offset}", details, chance.choice(list(Marked)), "replay-1")
        elif happening > 0.6:
            topics.log(current.run_id, "first", f"of change {current.seq}", partition=int(current.run_id, 16) % 2)
            if happening > 0.72:
                topics.append(LOGS, 0, b"{", (("ce_type", b"engine.logs"),))
    topics.append(LOGS, 0, encode({"of": "the future"}), (("ce_type", b"engine.from_the_future"),))
    topics.append(STATES, 0, encode({"of": "the future"}), (("ce_type", b"engine.from_the_future"),))
    return topics
