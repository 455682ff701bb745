"""What the pages of a dashboard ask of a full history, how long each takes, and the bad cases that are put into it first."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator

import msgspec

from engine.events import Position
from engine.history import History, RunFilter
from engine.history_database import Put, WriteDatabase
from engine.history_schema import Attempt, LetterRow, TaskRow
from engine.log_rows import LogFilter, LogsRow, row_of
from engine.run_logs import Line, LogBatch, encode_batch
from engine.states import State, utc

#: Dead letters, and how many of ten were dealt with; later ones of runs, all dealt with; tasks of the run that has too many.
LETTERS, DEALT_WITH, LETTERS_OF_RUNS, TASKS = 60_000, 9, 20_000, 50_000
#: Runs that have said something, and records of twenty lines of the one that has too many tasks.
LOGGED, TALK = 100_000, 1_000
ROUNDS = 15


def add_bad_cases(db: WriteDatabase, now: float, span_seconds: float) -> str:
    """Put letters into a history, the latest all dealt with, and many tasks into its last run; answers that run's id."""
    columns = LetterRow.__struct_fields__
    letters, marks = [], []
    query = "SELECT scheduled_at, event_offset FROM runs WHERE event_partition = 0 ORDER BY scheduled_at DESC LIMIT ?"
    times: list[tuple[float, int]] = [(now - span_seconds * (1 - n / LETTERS), 1 << 40 | n) for n in range(LETTERS)]
    times += [(at + 1, offset) for at, offset in db.all(query, [LETTERS_OF_RUNS])]
    for number, (at, offset) in enumerate(times):
        is_of_run = number >= LETTERS
        given = {
            "identity": f"{number:032x}",
            "at": at,
            "reason": "run-failed" if is_of_run else "malformed-data",
            "error": "no JSON",
            "event_topic": "orders",
        }
        given |= {"event_partition": 0 if is_of_run else number % 4, "event_offset": offset}
        given |= {"headers": b"[]", "value": b"{" * 200}
        given |= {"partition": number % 4, "place": number // 4, "size": 200}
        letters.append([given.get(name) for name in columns])
        if number % 10 < DEALT_WITH or number > LETTERS - 20_000:
            marks.append(
                [number % 4, LETTERS + number // 4, f"{number % 4}/{number // 4}", given["identity"], "dropped", at, None]
            )
    [(place, run_id)] = db.all("SELECT place, run_id FROM runs ORDER BY place DESC LIMIT 1")
    attempts = msgspec.json.encode([Attempt(1, now, now, now, "tcp://10.0.0.1:4000", "COMPLETED")])
    tasks = [
        TaskRow(
            *(place, f"resize/0.{n}", "resize", "COMPLETED" if n % 9 else "RUNNING", 1, n),
            *(now, now + n / 1e3, now + n / 1e3 + 0.5, None, "tcp://10.0.0.1:4000"),
            attempts=attempts,
        )
        for n in range(TASKS)
    ]
    with db.transaction():
        db.put_all(Put("letters", columns), letters)
        db.put_all(Put("marks", ("partition", "place", "letter", "identity", "marked", "at", "replay")), marks)
        db.put_all(Put("task_runs", TaskRow.__struct_fields__), map(msgspec.structs.astuple, tasks))
        db.run("UPDATE runs SET tasks = ? WHERE place = ?", [TASKS, place])
        logged = [name for (name,) in db.all("SELECT run_id FROM runs ORDER BY place DESC LIMIT ?", [LOGGED])]
        db.put_all(Put("logs", ("place", "run_id", "at", "name", "lines", "size", "content")), _logs(logged, run_id, now))
    return str(run_id)


def _logs(run_ids: list[str], large: str, now: float) -> Iterator[LogsRow]:
    """A record of three lines of each run, and a talk of one of them."""
    said = [(run_id, 3) for run_id in run_ids] + [(large, 20)] * TALK
    for number, (run_id, count) in enumerate(said):
        lines = tuple(Line(utc(now), "info" if n else "error", "shop", f"line {n} of {number}") for n in range(count))
        name = {"task": "price", "task_run_id": f"{run_id}/price/0"}
        batch = LogBatch(run_id=run_id, flow="flow_01", attempt=1, lines=lines, **name)
        yield row_of(number << 12, now, batch, encode_batch(batch))


def ask(place: str, large: str, span_seconds: float) -> None:
    """Ask everything some times over, and print the median and the most. ``large`` is the run with too many tasks."""
    print(f"  queries, {ROUNDS} times each, ms:                  median      most")
    with History.open(place) as found:
        for name, question in _questions(found, large, span_seconds).items():
            took = []
            for _ in range(ROUNDS):
                began = time.monotonic()
                question()
                took.append((time.monotonic() - began) * 1000)
            tell(name, took)


def tell(name: str, took: list[float], cpu: float | None = None) -> None:
    """Print the median and the most of some milliseconds, and what CPU each took."""
    spent = "" if cpu is None else f" {cpu:>9.1f}"
    print(f"    {name:<52} {statistics.median(took):>9.2f} {max(took):>9.2f}{spent}", flush=True)


def _questions(found: History, large: str, span_seconds: float) -> dict[str, Callable[[], object]]:
    chance = random.Random(7)
    now = time.time()
    middle = f"{now - span_seconds / 2!r},0"
    some = [run.run_id for run in [*found.runs(limit=50).items, *found.runs(cursor=middle, limit=50).items]]
    flows = [row.flow for row in found.flows()]
    failed, hour = [State.FAILED, State.CRASHED], now - 3_600

    def runs(**wanted: object) -> Callable[[], object]:
        return lambda: found.runs(RunFilter(**wanted), limit=50)  # type: ignore[arg-type]

    def key() -> str:
        return f"customer-{chance.randrange(1_000)}"

    return {
        "runs, newest": runs(),
        "runs, a page in the middle": lambda: found.runs(cursor=middle, limit=50),
        "runs of a flow": lambda: found.runs(RunFilter(flows=[chance.choice(flows)]), limit=50),
        "runs, failed or crashed": runs(states=failed),
        "runs, failed, of a flow": runs(flows=flows[:1], states=[State.FAILED]),
        "runs, failed, a page in the middle": lambda: found.runs(RunFilter(states=failed), cursor=middle, limit=50),
        "runs of a state nobody is in": runs(states=[State.RETRYING]),
        "runs of three flows in all states": runs(flows=flows[:3], states=list(State)),
        "runs of a key": lambda: found.runs(RunFilter(key=key()), limit=50),
        "runs of a key, failed": lambda: found.runs(RunFilter(key=key(), states=[State.FAILED]), limit=50),
        "runs of a key, of a flow": lambda: found.runs(RunFilter(key=key(), flows=flows[:1]), limit=50),
        "runs of a key nobody has, failed, of a flow": runs(key="nobody", flows=flows[:1], states=failed),
        "runs of a flow nobody has": runs(flows=["nope"]),
        "runs since an hour, failed": runs(states=[State.FAILED], since=hour),
        "runs before yesterday, cancelled": runs(states=[State.CANCELLED], until=now - span_seconds / 2),
        "one run, its tasks and changes": lambda: _one(found, chance.choice(some)),
        f"a run with {TASKS:,} tasks: first page": lambda: _one(found, large),
        f"a run with {TASKS:,} tasks: page in the middle": lambda: _page(found, large, "resize/0.3"),
        f"a run with {TASKS:,} tasks: counts by task": lambda: _counts(found, large),
        "logs of a run": lambda: found.logs(chance.choice(some), limit=500),
        "logs of a run with 20,003 lines, the latest": lambda: found.logs(large, limit=501, wanted=LogFilter(latest=True)),
        "logs of a run with 20,003 lines, errors": lambda: found.logs(large, limit=501, wanted=LogFilter(level="error")),
        "runs whose id begins so": lambda: found.runs_like(chance.choice(some)[:3]),
        "events": lambda: found.events(limit=50),
        "events, a page in the middle": lambda: found.events(cursor=middle, limit=50),
        "one event": lambda: found.event(Position("orders", 0, chance.randrange(1_000))),
        "events of an id": lambda: found.positions_of(f"event-{chance.randrange(1_000)}"),
        "dead letters, open, behind 20,000 others": lambda: found.letters(limit=50),
        "dead letters, open, of a reason": lambda: found.letters(reasons=["too-large"], limit=50),
        "dead letters, all": lambda: found.letters(all=True, limit=50),
        "workers": lambda: found.workers(now - 86_400),
        f"flows ({len(flows)}), success rate and p50/p95": found.flows,
        "minutes of the last hour": lambda: found.minutes(now),
        "open runs and the oldest": found.open_runs,
        "offsets": found.offsets,
    }


def _one(found: History, run_id: str) -> None:
    run = found.run(run_id)
    if run is None:
        raise SystemExit(f"run {run_id} is not there")
    found.task_runs(run)
    found.changes(run)
    found.repeats(run_id)


def _page(found: History, run_id: str, after: str) -> None:
    run = found.run(run_id)
    if run is not None:
        found.task_runs(run, after=after)


def _counts(found: History, run_id: str) -> None:
    run = found.run(run_id)
    if run is not None:
        found.task_counts(run)
