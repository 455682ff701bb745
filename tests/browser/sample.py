"""A history as a day at a shop would leave it: what the browser tests look at, and the screenshots show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.broker import Record
from engine.events import Position
from engine.history_store import HistoryStore
from engine.projection import read_all
from engine.run_logs import LogBatch, LogMail, encode_batch, headers_of, line_of
from engine.states import Failure, Origin, State, utc
from tests.history_records import STATES, TRACE, Topics

S = State
LOGS = "app.logs"
#: What must never be taken for markup, nor steer anything.
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>'\"`{{7*7}}${7*7}</textarea>]]>\u202egnp.\x1b[31m"
TRACEBACK = """Traceback (most recent call last):
  File "handlers/orders.py", line 31, in charge
    return gateway.charge(card, amount)
  File "shop/gateway.py", line 88, in charge
    raise CardDeclined(reply.code)
shop.gateway.CardDeclined: do-not-honour"""


class Writer:
    """Writes to a history database as the projector does."""

    def __init__(self, path: Path) -> None:
        self.topics = Topics(7, gaps=False)
        self.store = HistoryStore(str(path), "app")
        self.store.open()
        self._seqs: dict[str, int] = {}
        self._written = 0

    def change(self, run_id: str, state: State, at: float, **more: Any) -> None:
        """Another state change of a run; its flow is remembered by the caller."""
        seq = self._seqs.get(run_id, -1) + 1
        self._seqs[run_id] = seq
        self.topics.change(run_id, state, seq, at=utc(round(at, 6)), **more)

    def flush(self) -> None:
        """Have it in the database."""
        records = self.topics.records[self._written :]
        self._written = len(self.topics.records)
        self.write(records)

    def write(self, records: Iterable[Record]) -> None:
        self.store.write(read_all(list(records), STATES, LOGS), self.store.offsets())

    def log(self, run: Run, name: str, attempt: int, *lines: tuple[float, int, str]) -> None:
        """Lines that a task run has logged: when, level, message."""
        batch = LogBatch(
            run_id=run.run_id,
            flow=run.flow,
            task=name.partition("/")[0],
            task_run_id=f"{run.run_id}/{name}",
            attempt=attempt,
            trace_id=TRACE[3:35],
            lines=tuple(line_of(at, level, "handlers.orders", message) for at, level, message in lines),
        )
        value = encode_batch(batch)
        mail = LogMail(run.run_id, f"{name}/{attempt}", lines[-1][0], TRACE, len(lines), value)
        self.topics.append(LOGS, 0, value, headers_of("app", mail))

    def close(self) -> None:
        self.store.close()


class Run:
    """A run that is told step by step."""

    def __init__(self, writer: Writer, run_id: str, flow: str, at: float, **more: Any) -> None:
        self.writer, self.run_id, self.flow, self.at = writer, run_id, flow, at
        self._change(S.SCHEDULED, at, **more)

    def begin(self, after: float = 0.02) -> Run:
        self.at += after
        self._change(S.RUNNING, self.at)
        return self

    def end(self, state: State, after: float = 0.02, **more: Any) -> Run:
        self.at += after
        self._change(state, self.at, **more)
        return self

    def schedule(self, task: str, index: str, at: float, parents: Iterable[str] = (), by: str | None = None) -> None:
        names = tuple(f"{self.run_id}/{parent}" for parent in parents)
        spawned = None if by is None else f"{self.run_id}/{by}"
        self._task(task, index, S.SCHEDULED, at, attempt=0, parents=names, spawned_by=spawned)

    def run(self, task: str, index: str, at: float, worker: str = "tcp://10.0.0.7:40331", attempt: int = 1) -> None:
        self._task(task, index, S.RUNNING, at, worker=worker, attempt=attempt)

    def finish(self, task: str, index: str, at: float, state: State = S.COMPLETED, attempt: int = 1, **more: Any) -> None:
        self._task(task, index, state, at, attempt=attempt, **more)

    def do(
        self, task: str, index: str, at: float, queued: float, ran: float, parents: Iterable[str] = (), **more: Any
    ) -> float:
        self.schedule(task, index, at, parents, more.get("by"))
        self.run(task, index, at + queued, more.get("worker", "tcp://10.0.0.7:40331"))
        self.finish(task, index, at + queued + ran)
        self.at = max(self.at, at + queued + ran)
        return at + queued + ran

    def _task(self, task: str, index: str, state: State, at: float, **more: Any) -> None:
        self._change(state, at, task=task, task_run_id=f"{self.run_id}/{task}/{index}", **more)

    def _change(self, state: State, at: float, **more: Any) -> None:
        self.writer.change(self.run_id, state, at, flow=self.flow, **more)


def event(number: int, at: float, *, type: str = "order.created", topic: str = "orders", id: str = "") -> Origin:
    return Origin("/shop", id or f"o-{10_000 + number}", type, topic, number % 4, 52_000 + number, utc(at))


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


class Story:
    """The sample, told up to ``now``; the ids of the runs that tests look for."""

    def __init__(self, writer: Writer, now: float, hostile_seconds: float = 3_300.0) -> None:
        """The run of hostile text is as old as that: in a picture it would be odd."""
        self.writer, self.now = writer, now
        self._number = 0
        self._hour()
        self.summary = self._summary(now - 340)
        self.failed = self._failed(now - 95)
        self.folders = self._folders(now - 48)
        self.running = self._running(now - 9)
        self.hostile = self._hostile(now - hostile_seconds)
        self.waiting = self.new("ship", now - 3, parameters=raw({"order": "o-10491"}), key="c-19").run_id
        topics = writer.topics
        for number in range(3):
            topics._clock = now - 700 + number * 180
            topics.letter(
                Position("orders", number, 52_100 + number), reason=("malformed-data", "invalid-parameters")[number % 2]
            )
        writer.flush()

    def new(self, flow: str, at: float, **more: Any) -> Run:
        self._number += 1
        run_id = f"{(self._number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % (1 << 128):032x}"
        return Run(self.writer, run_id, flow, at, event=event(self._number, at), **more)

    def _hour(self) -> None:
        chance = self.writer.topics.random
        at = self.now - 3_480
        while at < self.now - 20:
            flow = chance.choice(["fulfil", "fulfil", "fulfil", "ship", "ship", "refund"])
            order, customer = f"o-{10_000 + self._number}", f"c-{chance.randrange(40)}"
            run = self.new(flow, at, parameters=raw({"id": order, "customer": customer}), key=customer).begin(
                chance.random() / 30
            )
            end = run.do("price", "0", run.at + 0.003, chance.random() / 50, 0.05 + chance.random() / 3)
            end = run.do("invoice", "1", end + 0.004, chance.random() / 50, 0.1 + chance.random() / 2, ["price/0"])
            luck = chance.random()
            is_rough = 1_500 < self.now - at < 2_000
            if luck < (0.4 if is_rough else 0.015):
                run.end(S.FAILED, error=Failure("TimeoutError", "the price list did not answer within 30 s", TRACEBACK))
            elif luck < (0.5 if is_rough else 0.02):
                run.end(
                    S.CRASHED, error=Failure("WorkerDied", "worker tcp://10.0.0.8:39127 died four times with this task", "")
                )
            elif luck < 0.04:
                run.end(S.CANCELLED, reason="superseded by a newer order")
            else:
                run.end(S.COMPLETED, result=raw({"order": order, "total": round(chance.random() * 200, 2)}))
            at += 3 + chance.random() * 9
            at += chance.random() * 40 if chance.random() < 0.1 else 0

    def _summary(self, at: float) -> str:
        chance = self.writer.topics.random
        parameters = {
            "airport": "JFK",
            "day": "2013-02-11",
            "flights": [{"carrier": c, "delay": n * 7 % 50} for n, c in enumerate(["AA", "B6", "DL", "UA", "VX"])],
        }
        run = self.new("daily_summary", at, parameters=raw(parameters), key="JFK").begin()
        split = run.do("by_carrier", "0", run.at + 0.01, 0.04, 0.42)
        ends = []
        for n in range(6):
            start, worker = split + 0.012, f"tcp://10.0.0.{7 + n % 2}:40331"
            run.schedule("summarise_carrier", f"1.{n}", start, ["by_carrier/0"])
            begun = start + 0.02 + chance.random() / 8
            if n == 3:
                run.run("summarise_carrier", "1.3", begun, worker)
                broken = Failure("ConnectionError", "the delay service reset the connection", TRACEBACK)
                run.finish("summarise_carrier", "1.3", begun + 0.3, S.RETRYING, error=broken, next_attempt_at=utc(begun + 1.3))
                run.run("summarise_carrier", "1.3", begun + 1.34, worker, attempt=2)
                run.finish("summarise_carrier", "1.3", begun + 1.9, attempt=2)
                ends.append(begun + 1.9)
            else:
                run.run("summarise_carrier", f"1.{n}", begun, worker)
                ends.append(begun + 0.4 + chance.random())
                run.finish("summarise_carrier", f"1.{n}", ends[-1])
        run.do("look_up", "2", split + 0.02, 0.05, 0.7, ["by_carrier/0"])
        run.at = run.do("summarise_day", "3", max(ends) + 0.02, 0.03, 0.3, ["summarise_carrier/1", "look_up/2"])
        run.end(S.COMPLETED, result=raw({"airport": "JFK", "flights": 5, "mean_delay_minutes": 21.4, "worst": "B6"}))
        return run.run_id

    def _failed(self, at: float) -> str:
        run = self.new(
            "fulfil",
            at,
            parameters=raw({"id": "o-10480", "customer": "c-7", "lines": [{"sku": "tea", "quantity": 2}]}),
            key="c-7",
        ).begin()
        end = run.do("price", "0", run.at + 0.01, 0.02, 0.2)
        run.schedule("charge", "1", end + 0.01, ["price/0"])
        run.schedule("invoice", "2", end + 0.01, ["charge/1"])
        start, error = end + 0.05, Failure("CardDeclined", "do-not-honour (card ending in 4242)", TRACEBACK)
        for attempt in (1, 2, 3):
            run.run("charge", "1", start, attempt=attempt)
            asks, declined = (
                (start + 0.02, 20, "asking the gateway for 19.00 EUR"),
                (start + 0.27, 30, "the gateway declined: do-not-honour"),
            )
            self.writer.log(run, "charge/1", attempt, (start + 0.01, 10, "card ending in 4242"), asks, declined)
            if attempt < 3:
                run.finish(
                    "charge", "1", start + 0.3, S.RETRYING, attempt, error=error, next_attempt_at=utc(start + 0.3 + attempt)
                )
                start += 0.33 + attempt
        run.finish("charge", "1", start + 0.28, S.FAILED, 3, error=error)
        run.finish("invoice", "2", start + 0.29, S.CANCELLED, 0, reason="charge/1 failed")
        run.at = start + 0.3
        run.end(S.FAILED, error=error)
        return run.run_id

    def _folders(self, at: float) -> str:
        run = self.new("walk", at, parameters=raw({"folder": "/data/incoming"})).begin()

        def walk(index: str, start: float, depth: int, by: str | None) -> float:
            name = f"measure/{index}"
            end = run.do("measure", index, start, 0.03, 0.25 + depth * 0.11, by=by)
            if depth < 3:
                for n in range(3 - depth):
                    walk(f"{index}-{n}", start + 0.15 + n * 0.04, depth + 1, name)
            return end

        walk("0", run.at + 0.01, 0, None)
        run.do("add_up", "1", run.at + 0.02, 0.02, 0.2, ["measure/0"])
        run.end(S.COMPLETED, result=raw(73_412_992))
        return run.run_id

    def _running(self, at: float) -> str:
        run = self.new("fulfil", at, parameters=raw({"id": "o-10490", "customer": "c-3"}), key="c-3").begin()
        end = run.do("price", "0", run.at + 0.01, 0.02, 1.2)
        run.schedule("pick", "1", end + 0.02, ["price/0"])
        run.run("pick", "1", end + 0.1)
        run.schedule("invoice", "2", end + 0.02, ["pick/1"])
        return run.run_id

    def _hostile(self, at: float) -> str:
        run = self.new(HOSTILE, at, parameters=raw({HOSTILE: HOSTILE}), key=HOSTILE).begin()
        run.schedule(HOSTILE, "0", run.at)
        run.run(HOSTILE, "0", run.at + 0.1, worker=HOSTILE)
        run.finish(HOSTILE, "0", run.at + 0.2, S.FAILED, error=Failure(HOSTILE, HOSTILE, HOSTILE))
        run.at += 0.2
        self.writer.log(run, f"{HOSTILE}/0", 1, (run.at, 40, f"{HOSTILE}\n{HOSTILE}"))
        run.end(S.FAILED, error=Failure(HOSTILE, HOSTILE, f"{HOSTILE}\n{HOSTILE}"))
        return run.run_id
