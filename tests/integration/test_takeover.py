"""Engines, schedulers and owners that die or come back: every run completes, nothing finished runs again, nobody lies."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec

from engine.broker import Outgoing
from engine.events import Headers
from engine.ledger import Ledger
from engine.settings import Settings
from engine.states import Envelope, Ownership, State, StateChange, is_ownership, read, type_of, utc, write_ownership
from tests.app_under_test import Run
from tests.integration import flows_takeover as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import ROOT, child_environment, dask_of_ones_own
from tests.waiting import eventually

S = State


@asynccontextmanager
async def engine_process(
    settings: Settings, log_file: Path, handlers: str = "tests.integration.flows_takeover"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """``engine run`` with these settings; gives the process when it is ready, kills it if it still runs in the end."""
    environment = child_environment(
        TESTED_PREFIX=f"{settings.app}.",
        ENGINE_STATE_PARTITIONS=str(settings.state_partitions),
        ENGINE_EVENT_PARTITIONS=str(settings.event_partitions),
        ENGINE_SESSION_TIMEOUT_SECONDS=str(settings.session_timeout_seconds),
        ENGINE_MAX_OPEN_RUNS=str(settings.max_open_runs),
        ENGINE_POLL_RECORDS=str(settings.poll_records),
    )
    arguments = ("--app", settings.app, "--kafka", settings.kafka, "--dask", settings.dask, "--http", "127.0.0.1:0")
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "engine", "run", handlers, *arguments, "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=environment,
        )
    try:
        assert process.stdout is not None
        ready = await process.stdout.readline()
        assert ready, "it ended instead; see its log"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def notes(folder: Path) -> list[str]:
    file = folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def assert_one_story(run: Run) -> None:
    """Gapless, ended by the run's own end, no task twice through the table."""
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert run.end.is_flow_run
    assert run.end.state is S.COMPLETED
    by_task: dict[str | None, list[State]] = {}
    for change in run.changes:
        by_task.setdefault(change.task_run_id, []).append(change.state)
    assert {tuple(states) for states in by_task.values()} == {(S.SCHEDULED, S.RUNNING, S.COMPLETED)}
    assert all(before.epoch <= after.epoch for before, after in pairwise(run.changes))


async def test_killed_in_the_middle_of_a_run_another_engine_goes_on(apps: Apps, tmp_path: Path) -> None:
    """Twenty pairs of tasks: what had ended is not run again, what runs goes on, what waits is run."""
    watching = apps.make(flows.climb, flows.single)
    settings = watching.settings
    async with engine_process(settings, tmp_path / "first.log") as first:
        await watching.follow_only()
        id = await watching.send("climbs", {"folder": str(tmp_path), "steps": 20, "waiting": 1})
        # One that waits leaves each worker a thread: what Dask has given to a worker stays there behind those that wait.
        await eventually(lambda: len([c for c in watching.changes if c.task == "follow" and c.state is S.COMPLETED]) == 19)
        await eventually(lambda: len([n for n in notes(tmp_path) if n.startswith("begin")]) == 39)
        first.kill()
        await first.wait()
    (tmp_path / "go").touch()  # the tasks that ran end while nobody owns them
    await eventually(lambda: len([n for n in notes(tmp_path) if n.startswith("end")]) == 20)
    second = await apps.start(flows.climb, flows.single, settings=settings)
    run = await watching.run("climb", id)
    assert run.result == sum(range(20)) + 2_000
    assert_one_story(run)
    assert len({change.epoch for change in run.changes[1:]}) == 2, "two owners"
    again = {line: count for line, count in Counter(notes(tmp_path)).items() if count > 1}
    assert again == {}
    assert second.app.readiness()["dask"] == "ok"


async def test_events_sent_while_no_engine_runs_are_done_by_the_next(apps: Apps, tmp_path: Path) -> None:
    watching = apps.make(flows.single)
    async with engine_process(watching.settings, tmp_path / "first.log") as first:
        await watching.follow_only()
        await watching.do("singles", {"folder": str(tmp_path), "number": 0}, "single", id="before")
        first.send_signal(signal.SIGKILL)
        await first.wait()
    await watching.send_many("singles", [(f"e{n}", {"folder": str(tmp_path), "number": n}) for n in range(1, 40)])
    await apps.start(flows.single, settings=watching.settings)
    for n in range(1, 40):
        assert_one_story(await watching.run("single", f"e{n}"))
    assert Counter(notes(tmp_path)) == Counter(f"{word} {n}" for n in range(40) for word in ("begin", "end"))


async def test_a_clean_stop_hands_over(apps: Apps, tmp_path: Path) -> None:
    first = await apps.start(flows.climb)
    id = await first.send("climbs", {"folder": str(tmp_path), "steps": 8, "waiting": 1})
    await eventually(lambda: len([c for c in first.changes if c.task == "follow" and c.state is S.COMPLETED]) == 7)
    await first.stop()
    (tmp_path / "go").touch()
    second = await apps.start(flows.climb, settings=first.settings)
    run = await second.run("climb", id)
    assert run.result == sum(range(8)) + 800
    assert_one_story(run)
    assert max(Counter(notes(tmp_path)).values()) == 1


async def test_a_retry_that_waited_is_made_by_the_next_owner(apps: Apps, tmp_path: Path) -> None:
    """At once: how long it has waited already nobody knows for sure."""
    first = await apps.start(flows.persevere)
    id = await first.send("retries", {"folder": str(tmp_path)})
    await first.heard(task="fail_first", state=S.RETRYING)
    await first.stop()
    second = await apps.start(flows.persevere, settings=first.settings)
    run = await second.run("persevere", id)
    assert run.result == 7
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert run.states("fail_first") == [S.SCHEDULED, S.RUNNING, S.RETRYING, S.RUNNING, S.COMPLETED]
    assert notes(tmp_path) == ["attempt", "attempt", "total"]


async def test_a_failure_told_by_the_first_owner_ends_the_run_under_the_second(apps: Apps, tmp_path: Path) -> None:
    first = await apps.start(flows.stumble)
    id = await first.send("stumbles", {"folder": str(tmp_path)})
    await first.heard(task="fail", state=S.FAILED)
    await first.heard(task="step", state=S.RUNNING)
    await first.stop()
    second = await apps.start(flows.stumble, settings=first.settings)
    await eventually(lambda: second.open_runs == 1)
    (tmp_path / "go").touch()
    run = await second.run("stumble", id)
    assert (run.end.state, run.end.error and run.end.error.message) == (S.FAILED, "a stone in the way")
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert run.states("fail") == [S.SCHEDULED, S.RUNNING, S.FAILED]
    assert run.states("step") == [S.SCHEDULED, S.RUNNING, S.COMPLETED]
    assert run.states("total") == [S.SCHEDULED, S.CANCELLED]
    assert sorted(notes(tmp_path)) == ["begin 0", "end 0", "fail"]


async def test_two_engines_share_the_work_and_every_run_completes_once(apps: Apps, tmp_path: Path) -> None:
    """The second joins in the middle, the first leaves in the middle."""
    first = await apps.start(flows.single, state_partitions=4)
    events = [(f"e{n}", {"folder": str(tmp_path), "number": n}) for n in range(120)]
    await first.send_many("singles", events[:40])
    second = await apps.start(flows.single, settings=first.settings)
    await second.send_many("singles", events[40:80])
    await eventually(lambda: len(first.ends()) >= 60)
    await first.stop()
    await second.send_many("singles", events[80:])
    runs = [await second.run("single", id) for id, _ in events]
    for run in runs:
        assert_one_story(run)
    assert len(second.ends()) == 120
    assert Counter(notes(tmp_path)) == Counter(f"{word} {n}" for n in range(120) for word in ("begin", "end"))
    assert {0} < {run.end.epoch for run in runs}, "the first owned all from offset 0 on; the second has driven runs, too"


class TestStaleOwner:
    async def test_its_changes_are_void_to_subscribers_and_to_the_next_ledger(self, apps: Apps, tmp_path: Path) -> None:
        """An owner that was paused wakes up and says that a run has failed, when another owns the partition already."""
        app = await apps.start(flows.climb, state_partitions=1)
        id = await app.send("climbs", {"folder": str(tmp_path), "steps": 2, "waiting": 1})
        await eventually(lambda: any(c.task == "follow" and c.state is S.COMPLETED for c in app.changes))
        stale_epoch = max(change.epoch for change in app.changes)
        await app.stop()
        second = await apps.start(flows.climb, settings=app.settings)
        await eventually(lambda: second.open_runs == 1)
        run_id = second.run_id("climb", id)
        lie = StateChange(
            run_id=run_id, flow="climb", state=S.FAILED, seq=1_000, epoch=stale_epoch, attempt=1, at=utc(time.time())
        )
        await second.write(self._record(app.settings, lie))
        (tmp_path / "go").touch()
        run = await second.run("climb", id)
        assert run.result == 201
        assert_one_story(run)
        await second.stop()
        # A third owner reads all of it from the log, the lie included.
        ledger = Ledger(0, 10**9, 86_400.0)
        opened: list[str] = []
        for record in await second.records(app.settings.states_topic):
            if is_ownership(type_of(record.headers)):
                ledger.begin_epoch(record.offset)
            elif isinstance(change := read(record.value, record.headers), StateChange):
                found = ledger.read(record.offset, change)
                opened += [found.run_id] if found is not None else []
        assert opened == [run_id]
        assert not ledger.runs

    async def test_before_the_newer_owner_its_changes_count(self, apps: Apps, tmp_path: Path) -> None:
        """The rule is the place in the log, not the number alone: else takeovers would erase history."""
        app = await apps.start(flows.single, state_partitions=1)
        run = await app.do("singles", {"folder": str(tmp_path), "number": 1}, "single")
        await app.stop()
        second = await apps.start(flows.single, settings=app.settings)
        await second.do("singles", {"folder": str(tmp_path), "number": 2}, "single", id="other")
        assert [c.seq for c in (await second.run_of(run.id)).changes] == list(range(6))

    async def test_an_engine_that_hears_of_another_owner_takes_the_partition_back(self, apps: Apps, tmp_path: Path) -> None:
        """The group says it is ours, the log says somebody else wrote after us: begin anew, above them."""
        app = await apps.start(flows.climb, state_partitions=1)
        id = await app.send("climbs", {"folder": str(tmp_path), "steps": 2, "waiting": 1})
        await eventually(lambda: any(c.task == "follow" and c.state is S.COMPLETED for c in app.changes))
        value, headers = write_ownership(app.settings.app, Ownership(0, "somebody else", utc(time.time())))
        # In one write, so in one poll: what lies behind the ownership must not make the engine skip what lies before it.
        behind = [Outgoing(app.settings.states_topic, None, b"{}", (("ce_type", b"of.a.later.version"),), 0)] * 3
        position, *_ = await app.write(Outgoing(app.settings.states_topic, None, value, headers, 0), *behind)
        await eventually(lambda: app.epochs.get(0, 0) > position.offset)
        (tmp_path / "go").touch()
        run = await app.run("climb", id)
        assert run.end.epoch > position.offset
        assert_one_story(run)
        assert max(Counter(notes(tmp_path)).values()) == 1

    @staticmethod
    def _record(settings: Settings, change: StateChange) -> Outgoing:
        value, headers = Envelope.of(settings.app, change.run_id).write(change, "")
        return Outgoing(settings.states_topic, change.run_id.encode(), value, headers, 0)


class TestSchedulerRestart:
    async def test_open_runs_wait_for_it_say_so_and_complete(self, apps: Apps, tmp_path: Path) -> None:
        async with dask_of_ones_own(tmp_path / "dask", child_environment()) as dask:
            app = await apps.start(flows.climb, flows.single, dask=dask.address)
            id = await app.send("climbs", {"folder": str(tmp_path), "steps": 6, "waiting": 1})
            await eventually(lambda: len([c for c in app.changes if c.task == "follow" and c.state is S.COMPLETED]) == 5)
            await dask.kill()
            await eventually(lambda: app.app.readiness()["dask"] != "ok")
            assert dask.address in app.app.readiness()["dask"]
            late = await app.send("singles", {"folder": str(tmp_path), "number": 77})
            (tmp_path / "go").touch()
            await dask.start()
            run = await app.run("climb", id)
            assert run.result == sum(range(6)) + 600
            assert_one_story(run)
            assert_one_story(await app.run("single", late))
            assert app.app.readiness()["dask"] == "ok"
            await app.stop()

    async def test_a_worker_that_dies_takes_no_run_with_it(self, apps: Apps, tmp_path: Path) -> None:
        async with dask_of_ones_own(tmp_path / "dask", child_environment()) as dask:
            app = await apps.start(flows.climb, dask=dask.address)
            id = await app.send("climbs", {"folder": str(tmp_path), "steps": 6, "waiting": 1})
            await eventually(lambda: len([c for c in app.changes if c.task == "follow" and c.state is S.COMPLETED]) == 5)
            dask.kill_worker()
            (tmp_path / "go").touch()
            run = await app.run("climb", id)
            assert run.result == sum(range(6)) + 600
            assert [change.seq for change in run.changes] == list(range(len(run.changes)))
            await app.stop()


RUBBISH = [None, b"", b"\xff", b"[" * 50_000, b'{"run_id": "short", "flow": "x"}']
TYPES: list[Headers] = [(), *((("ce_type", f"engine.{name}".encode()),) for name in ("flow_run.scheduled", "checkpoint"))]


async def test_rubbish_on_the_state_topic_stops_nobody(apps: Apps, tmp_path: Path) -> None:
    """Neither who reads it as news nor who recovers from it."""
    app = await apps.start(flows.single, state_partitions=1)
    topic = app.settings.states_topic
    await app.write(*(Outgoing(topic, b"k", value, headers, 0) for value in RUBBISH for headers in TYPES))
    await app.do("singles", {"folder": str(tmp_path), "number": 1}, "single", id="live")
    await app.stop()
    second = await apps.start(flows.single, settings=app.settings)
    await second.do("singles", {"folder": str(tmp_path), "number": 2}, "single", id="recovered")
    assert len(second.ends()) == 2


async def test_a_scheduled_record_with_a_run_id_that_is_none_is_left_out(apps: Apps, tmp_path: Path) -> None:
    """It decodes, but no run of ours has such an id."""
    app = await apps.start(flows.single, state_partitions=1)
    run = await app.do("singles", {"folder": str(tmp_path), "number": 1}, "single", id="live")
    strange = msgspec.structs.replace(run.changes[0], run_id="not hexadecimal")
    value, headers = Envelope.of(app.settings.app, strange.run_id).write(strange, "")
    await app.write(Outgoing(app.settings.states_topic, b"k", value, headers, 0))
    await app.do("singles", {"folder": str(tmp_path), "number": 2}, "single", id="after")
