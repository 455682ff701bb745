"""The history: how fast records become rows, against the engine's best, and how long the queries of pages take."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from engine.apache import ApacheKafka
from engine.broker import Outgoing, Record, TopicSpec
from engine.events import Headers
from engine.history_database import WriteDatabase
from engine.history_places import is_server
from engine.history_schema import RunRow, TaskRow
from engine.history_store import HistoryStore
from engine.kafka import KafkaBroker
from engine.projection import read_all
from engine.projector import BATCH_RECORDS, Projector
from engine.runs import digest
from engine.settings import Settings
from engine.states import Envelope, Failure, Origin, State, StateChange, utc
from tests.benchmarks.history_addresses import visit
from tests.benchmarks.history_pages import add_bad_cases, ask
from tests.postgres_under_test import NoPostgres, PostgresUnderTest

#: The most that the engine has reached, in records/s: packed 6,177 runs/s of 3 records, unpacked 635 runs/s of 6 (README.md).
ENGINE_PACKED, ENGINE_UNPACKED = 6_177 * 3, 635 * 6
PARTITIONS = 8
#: So many runs go through the projector; the others are copies of their rows with other ids, places and times.
PROJECTED = 40_000
#: Runs side by side, and the time over which all of them are spread.
OPEN, SPAN_SECONDS = 500, 86_400.0
#: Records of a batch of a projector that follows an engine closely: most changes of a run come in batches of their own.
FOLLOWED = 500
FLOWS = 50
TOPIC = "bench.states"
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_ERROR = Failure("ValueError", "no such customer", "Traceback (most recent call last):\n" + '  File "orders.py"\n' * 10)
_TIMES = ("scheduled_at", "changed_at", "started_at", "ended_at")

#: What a server of our own has spent.
ServerCpu = Callable[[], float]


async def history(runs: int, server: str | None = None, *, postgres: bool = False) -> None:
    """In a file that is new; or in ``server``, the URL of a database, whose history is dropped; or in a server of its own."""
    with _place(server, postgres=postgres) as (folder, place, server_cpu):
        large = _fill_up(place, runs, server_cpu)
        ask(place, large, SPAN_SECONDS)
        await visit(place, large, SPAN_SECONDS, server_cpu)
        _forget(place, runs)
        some = min(runs, PROJECTED)
        await _over_kafka(folder, place, {"packed": some, "unpacked": some // 4}, server_cpu)


async def rebuild(runs: int, server: str | None = None, *, postgres: bool = False) -> None:
    """As ``history``; all runs go through Kafka and the projector, as when a history is made anew."""
    with _place(server, postgres=postgres) as (folder, place, server_cpu):
        print(f"\nrebuild: {runs:,} packed runs of 3 records", flush=True)
        await _over_kafka(folder, place, {"packed": runs}, server_cpu)


@contextlib.contextmanager
def _place(server: str | None, *, postgres: bool) -> Iterator[tuple[Path, str, ServerCpu]]:
    """A folder, where the history lies, and what a server of our own spends."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as `engine history run` has it
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder, contextlib.ExitStack() as started:
        server_cpu: ServerCpu = _no_server
        if postgres:
            own = _postgres(started)
            server, server_cpu = own.url(), own.cpu_seconds
        yield Path(folder), server or str(Path(folder) / "history.db"), server_cpu


def _no_server() -> float:
    return 0.0


def _postgres(started: contextlib.ExitStack) -> PostgresUnderTest:
    try:
        own = PostgresUnderTest()
    except NoPostgres as error:
        raise SystemExit(str(error)) from error
    started.callback(own.close)
    return own


def _fill_up(place: str, runs: int, server_cpu: ServerCpu) -> str:
    """Fill a database, and say how fast that was. Answers the id of a run with too many tasks."""
    projected = min(runs, PROJECTED)
    print(f"\nhistory: {projected:,} packed runs of 3 records, in batches of {BATCH_RECORDS:,}", flush=True)
    store = HistoryStore(place, "bench")
    store.open(fresh=True)
    _judge("packed, no Kafka", _fill(store, _records(projected, packed=True), server_cpu), ENGINE_PACKED)
    _multiply(store.database, runs)
    rate = _fill(store, _records(min(runs, 20_000), packed=True, prefix="v"), server_cpu)
    _judge("packed, no Kafka, the database full", rate, ENGINE_PACKED)
    rate = _fill(store, _records(min(runs, 5_000), packed=False, prefix="u"), server_cpu)
    _judge("unpacked, no Kafka, the database full", rate, ENGINE_UNPACKED)
    for kind, best, prefix in (("packed", ENGINE_PACKED, "w"), ("unpacked", ENGINE_UNPACKED, "x")):
        records = _records(min(runs, 20_000), packed=kind == "packed", prefix=prefix, apart=True)
        _judge(f"{kind}, no Kafka, the database full, followed closely", _fill(store, records, server_cpu, FOLLOWED), best)
    large = add_bad_cases(store.database, time.time(), SPAN_SECONDS)
    size = _size(store.database, place)
    store.close()
    print(f"  {size / 1e6:,.0f} MB, {size / runs:,.0f} bytes a run", flush=True)
    return large


def _forget(place: str, runs: int) -> None:
    store = HistoryStore(place, "bench")
    store.open()
    for what, kept_seconds, kept_runs in (
        ("nothing", 14 * 86_400.0, 2 * runs),
        ("what is too much", 14 * 86_400.0, runs),
        ("what is too old", SPAN_SECONDS / 2, runs),
    ):
        began, cpu = time.monotonic(), time.process_time()
        forgotten = store.forget(time.time(), kept_seconds, kept_runs, 86_400.0)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        each = f", {seconds / forgotten * 1e6:.0f} µs each, {cpu / forgotten * 1e6:.0f} of our CPU" if forgotten else ""
        print(f"  forgetting {what}: {forgotten:,} runs in {seconds:.2f} s{each}", flush=True)
    store.close()


def _size(db: WriteDatabase, place: str) -> int:
    if not is_server(place):
        return os.stat(place).st_size  # noqa: PTH116  # nothing else runs
    db.run("ANALYZE")  # as the server does by itself after a while
    size = "CAST(sum(pg_total_relation_size(oid)) AS BIGINT)"
    [(found,)] = db.all(f"SELECT {size} FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace")
    return int(found)


class Rate(msgspec.Struct, frozen=True):
    """Records a second, and for each microseconds of CPU of this process and of a server of our own."""

    per_second: float
    cpu_us: float
    server_us: float


def _fill(store: HistoryStore, records: Iterator[Record], server_cpu: ServerCpu, size: int = BATCH_RECORDS) -> Rate:
    """Reading and writing alone: making the records is not counted."""
    seconds, cpu, count, server_began = 0.0, 0.0, 0, server_cpu()
    offsets = store.offsets()
    while batch := list(itertools.islice(records, size)):
        began, cpu_began = time.monotonic(), time.process_time()
        offsets = store.write(read_all(batch, TOPIC), offsets).offsets
        seconds += time.monotonic() - began
        cpu += time.process_time() - cpu_began
        count += len(batch)
    return Rate(count / seconds, cpu / count * 1e6, (server_cpu() - server_began) / count * 1e6)


def _multiply(db: WriteDatabase, runs: int) -> None:
    [(have,)] = db.all("SELECT count(*) FROM runs")
    first = f"WHERE place < {1 << 36}"
    for n in range(1, runs // have):
        other = {
            "place": f"place + {n << 36}",
            "run_id": f"'{n * 2_654_435_761 & 0xFFFFFFFF:08x}' || substr(run_id, 9)",
            "event_id": f"event_id || '-{n}'",
            "event_offset": f"event_offset + {n * 100_000_000}",
        }
        other |= {name: f"{name} - {n * SPAN_SECONDS / max(1, runs // have)!r}" for name in _TIMES}
        with db.transaction():
            for table, struct in (("runs", RunRow), ("task_runs", TaskRow)):
                columns = [other.get(name, name) for name in struct.__struct_fields__]
                db.run(f"INSERT INTO {table} SELECT {', '.join(columns)} FROM {table} {first}")
            rest = "seq, epoch, at, state, attempt, name, worker, text"
            db.run(f"INSERT INTO changes SELECT {other['place']}, {rest} FROM changes {first}")
    print(f"  {db.all('SELECT count(*) FROM runs')[0][0]:,} runs", flush=True)


async def _over_kafka(folder: Path, place: str, runs: Mapping[str, int], server_cpu: ServerCpu) -> None:
    """How fast runs of each kind become rows, off topics that are full."""
    kafka = ApacheKafka(folder / "kafka")
    await kafka.start(lambda line: None)
    try:
        for kind, count in runs.items():
            best = ENGINE_PACKED if kind == "packed" else ENGINE_UNPACKED
            records = _records(count, packed=kind == "packed")
            other = place if is_server(place) else str(folder / f"{kind}.db")
            _judge(*await _off_kafka(kafka.bootstrap, other, records, kind, server_cpu), best)
    finally:
        await kafka.stop()


async def _off_kafka(
    bootstrap: str, place: str, records: Iterator[Record], kind: str, server_cpu: ServerCpu
) -> tuple[str, Rate]:
    """As ``engine history rebuild`` does it."""
    settings = Settings(app=f"bench-{kind}", kafka=bootstrap)
    broker = KafkaBroker(settings)
    beside = [TopicSpec(name, 1) for name in (settings.dead_letters_topic, settings.logs_topic)]
    await broker.ensure_topics([TopicSpec(settings.states_topic, PARTITIONS), *beside])
    sink = broker.sink()
    await sink.start()
    while batch := list(itertools.islice(records, BATCH_RECORDS)):
        await sink.write([Outgoing(settings.states_topic, None, r.value, r.headers, r.partition) for r in batch])
    await sink.close()
    projector = Projector(settings, broker, HistoryStore(place, settings.app), fresh=True)
    began, cpu, server_began = time.monotonic(), time.process_time(), server_cpu()
    count = await projector.catch_up()
    seconds, cpu, server_seconds = time.monotonic() - began, time.process_time() - cpu, server_cpu() - server_began
    await projector.close()
    return f"{kind}, off Kafka ({count:,} records)", Rate(count / seconds, cpu / count * 1e6, server_seconds / count * 1e6)


def _judge(what: str, rate: Rate, best: int) -> None:
    ratio, alone = rate.per_second / best, 1e6 / max(rate.cpu_us, rate.server_us) / best
    server = f" and {rate.server_us:.0f} of the server's" if rate.server_us else ""
    print(
        f"  {what}: {rate.per_second:,.0f} records/s = {ratio:.1f} times the engine's best ({best:,});"
        f" CPU {rate.cpu_us:.0f} µs{server} each, so {alone:.1f} times on a core of its own",
        flush=True,
    )


def _records(runs: int, *, packed: bool, prefix: str = "", apart: bool = False) -> Iterator[Record]:
    """So many runs open at a time; the records of each come in the order of the log, all at once, or ``apart``."""
    chance = random.Random(1)
    begin = time.time() - SPAN_SECONDS
    offsets = [{"": 0, "v": 1 << 40, "u": 1 << 41, "w": 1 << 42, "x": 1 << 43}[prefix]] * PARTITIONS
    under_way: list[tuple[int, Iterator[tuple[bytes, Headers]]]] = []
    for number in range(runs + min(OPEN, runs)):
        if number < runs:
            run = _run(f"{prefix}{number}", number, begin + number * SPAN_SECONDS / runs, chance, packed=packed)
            under_way.append((number % PARTITIONS, run))
        # One ends for each that begins, and all of them in the end.
        while len(under_way) >= OPEN or (under_way and number >= runs):
            chosen = chance.randrange(len(under_way))
            partition, written = under_way[chosen]
            some = list(itertools.islice(written, 1 if apart else None))
            for value, headers in some:
                yield Record(TOPIC, partition, offsets[partition], None, value, headers, int(begin * 1000))
                offsets[partition] += 1
            if not (apart and some):
                under_way.pop(chosen)


def _run(name: str, number: int, at: float, chance: random.Random, *, packed: bool) -> Iterator[tuple[bytes, Headers]]:
    run_id, flow = digest(name), f"flow_{number % FLOWS:02}"
    envelope = Envelope.of("bench", run_id)
    key = f"customer-{chance.randrange(1_000)}" if number % 10 == 0 else None
    event = Origin("/shop", f"event-{name}", "order.created", "orders", number % 4, number // 4, utc(at))
    task = {} if packed else {"task": "price", "task_run_id": f"{run_id}/price/0"}
    fate = chance.random()
    error = _ERROR if fate < 0.04 else None
    end = State.FAILED if error is not None else State.COMPLETED
    entry = {
        "task": "price",
        "index": "0",
        "state": end,
        "attempt": 1,
        "started_at": utc(at + 0.02),
        "ended_at": utc(at + 0.03),
    }
    steps: list[tuple[State, dict[str, object]]] = [
        (State.SCHEDULED, {"event": event, "key": key, "parameters": msgspec.Raw(b'{"order":{"id":"o-1","lines":[1,2,3]}}')}),
        (State.RUNNING, {}),
    ]
    if not packed:
        worker = f"tcp://10.0.0.{number % 8}:4000"
        steps += [(State.SCHEDULED, task), (State.RUNNING, task | {"worker": worker}), (end, task | {"error": error})]
    if fate < 0.99:
        tasks = msgspec.Raw(msgspec.json.encode([entry])) if packed else msgspec.Raw(b"")
        more = {"tasks": tasks} if packed else {}
        steps.append((end, {"result": msgspec.Raw(b'{"total":42}')} | more if error is None else {"error": error} | more))
    for seq, (state, fields) in enumerate(steps):
        change = StateChange(
            run_id=run_id,
            flow=flow,
            state=state,
            seq=seq,
            epoch=0,
            attempt=min(1, seq),
            at=utc(at + 0.01 * seq),
            **fields,  # type: ignore[arg-type]
        )
        yield envelope.write(change, _TRACE)


if __name__ == "__main__":
    asyncio.run(history(int(sys.argv[1])))
