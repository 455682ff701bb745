"""engine.cluster and its scheduler plugin, straight: what is held, let go, refused, and what never goes by in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from distributed import Client, Queue, Variable, Worker
from distributed.core import Status

from engine.cluster import Cluster, in_process
from engine.dask_probe import DaskProbe
from engine.errors import DaskUnavailable
from engine.executor import Call, Report, Submission
from engine.flows import Flow
from engine.parcels import Outcome, PackedRun, Parcel
from engine.planning import Limits
from engine.progress import Progress
from engine.recording import Recording
from engine.restarter import Restarter
from engine.runs import FlowRun
from engine.scheduler import NAME
from engine.states import State, StateChange, utc
from tests.integration import flows_graphs as flows
from tests.integration import flows_growing, flows_packed
from tests.integration.dask_under_test import scheduler_holds
from tests.waiting import eventually, eventually_said

RUN_ID = "0123456789abcdef" * 2


class Owner:
    """An engine's connection, and what it heard."""

    def __init__(self, address: str) -> None:
        self.cluster = Cluster("shop", address, connect_timeout_seconds=2.0)
        self.reports: list[Report] = []
        self.outcomes: list[Outcome] = []
        self.resets = 0

    async def start(self, epoch: int) -> Owner:
        await self.cluster.start(self)
        self.own(epoch)
        return self

    def own(self, epoch: int) -> None:
        self.epoch = epoch
        self.cluster.own(0, epoch)

    def submit(self, calls: Sequence[Call], run_id: str = RUN_ID, *, is_anew: bool = False) -> None:
        self.cluster.submit([Submission(run_id, 0, self.epoch, tuple(calls), is_anew)])

    def ended(self) -> dict[str, State]:
        return {report.index: report.state for report in self.reports if report.state is not State.RUNNING}

    def on_reports(self, reports: Sequence[Report]) -> None:
        self.reports += reports

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes

    def on_deaths(self, run_ids: Sequence[str], reason: str) -> None:
        raise AssertionError("nothing was packed")

    def on_refused(self, parcel_id: str) -> None:
        raise AssertionError("nothing was packed")

    def on_reset(self) -> None:
        self.resets += 1


class Owners:
    def __init__(self, address: str) -> None:
        self.address = address
        self._made: list[Owner] = []

    async def start(self, epoch: int) -> Owner:
        self._made.append(Owner(self.address))
        return await self._made[-1].start(epoch)

    async def close(self) -> None:
        for owner in self._made:
            await owner.cluster.close()


@pytest.fixture
async def owners() -> AsyncIterator[Owners]:
    async with in_process(workers=2) as address:
        owners = Owners(address)
        yield owners
        await owners.close()


def calls_of(flow: Flow[..., Any], parameters: bytes, run_id: str = RUN_ID) -> tuple[Call, ...]:
    scheduled = StateChange(
        run_id=run_id,
        flow=flow.name,
        state=State.SCHEDULED,
        seq=0,
        epoch=0,
        attempt=0,
        at=utc(1.5),
        parameters=msgspec.Raw(parameters),
    )
    run = FlowRun(scheduled, 0)
    trace = f"00-{'1' * 32}-{'2' * 16}-00"
    advance = Recording(flow, run, trace, 1.0, Limits(1_000, 100_000)).start()
    progress = Progress(run, 1, window=100_000)
    progress.begin(1.0)
    return progress.plan(advance.planned, advance.outcome, (), 1.0).submit


async def test_all_is_held_until_it_is_released(owners: Owners) -> None:
    owner = await owners.start(1)
    owner.submit(calls_of(flows.diamond, b'{"value": 5}'))
    await eventually(lambda: len(owner.ended()) == 4)
    held = await scheduler_holds(owners.address)
    assert held["runs"] == [RUN_ID]
    assert held["variables"] == [f"run-{RUN_ID}"]
    assert len(held["tasks"]) == 4
    owner.cluster.release(RUN_ID, 0.0)
    owner.submit(calls_of(flows.one, b'{"value": 1}', "f" * 32), "f" * 32)  # what comes after it has been looked at
    await eventually(lambda: any(report.run_id == "f" * 32 for report in owner.reports))
    held = await scheduler_holds(owners.address)
    assert held["runs"] == ["f" * 32]
    assert [key for key in held["tasks"] if RUN_ID in key] == []
    assert held["variables"] == [f"run-{'f' * 32}"]


async def test_a_kept_result_stays_and_what_led_to_it_goes(owners: Owners) -> None:
    owner = await owners.start(1)
    owner.submit(calls_of(flows.composite, b'{"skus": ["a", "bb"]}'))
    await eventually(lambda: len(owner.ended()) == 4)
    owner.cluster.release(RUN_ID, 600.0)
    async with Client(owners.address, asynchronous=True, set_as_default=False) as client:
        future = await Variable(f"run-{RUN_ID}", client=client).get(timeout=5)
        assert (await future)["count"] == 2

        def in_memory(dask_scheduler: Any) -> list[str]:
            return [str(key) for key, task in dask_scheduler.tasks.items() if task.state == "memory"]

        kept = await client.run_on_scheduler(in_memory)
    assert kept == [future.key]


async def test_a_run_of_the_same_id_runs_anew_where_the_first_has_left_its_result(owners: Owners) -> None:
    """After a Kafka that was cleared, beside a Dask that was not: without it the second would wait for ever."""
    owner = await owners.start(1)
    calls = calls_of(flows.outgrow, b'{"size": 5000}')
    owner.submit(calls)
    await eventually(owner.ended)
    owner.cluster.release(RUN_ID, 600.0)
    owner.reports.clear()
    owner.submit(calls)
    await eventually(lambda: owner.ended() == {"0": State.COMPLETED})


async def test_a_new_owner_hears_what_the_first_one_missed(owners: Owners) -> None:
    first = await owners.start(1)
    calls = calls_of(flows.break_down, b'{"value": 5}')
    first.submit(calls)
    await eventually(lambda: len(first.ended()) == 2)
    second = await owners.start(2)
    second.submit(calls, is_anew=True)
    await eventually(lambda: len(second.ended()) == 2)
    assert second.ended() == first.ended()
    ran = {(report.index, report.started_at) for owner in (first, second) for report in owner.reports if report.started_at}
    assert len(ran) == 2, "nothing ran twice"


async def test_what_a_stale_owner_submits_runs_nowhere(owners: Owners) -> None:
    stale, current = await owners.start(1), await owners.start(2)
    current.submit(calls_of(flows.one, b'{"value": 1}', "e" * 32), "e" * 32)
    await eventually(current.ended)  # the scheduler has heard of its epoch
    stale.submit(calls_of(flows.one, b'{"value": 1}'))
    stale.own(1)  # nor does it help to insist
    stale.submit(calls_of(flows.one, b'{"value": 1}'))
    stale.own(3)  # what comes after on the same stream
    stale.submit(calls_of(flows.one, b'{"value": 1}', "f" * 32), "f" * 32)
    await eventually(stale.ended)
    held = await scheduler_holds(owners.address)
    assert held["runs"] == ["e" * 32, "f" * 32]
    assert [key for key in held["tasks"] if RUN_ID in key] == []
    assert {report.run_id for report in stale.reports} == {"f" * 32}


async def test_an_owner_that_is_refused_is_told_so(owners: Owners) -> None:
    """A stale one, or one whose state topic was made anew beside a scheduler that remembers the old one."""
    current = await owners.start(5_000)
    current.submit(calls_of(flows.one, b'{"value": 1}'))
    await eventually(current.ended)
    with structlog.testing.capture_logs() as lines:
        await owners.start(3)
        await eventually(lambda: any(line.get("latest_epoch") == 5_000 for line in lines))
    [line] = [line for line in lines if "latest_epoch" in line]
    assert (line["partition"], line["epoch"], line["log_level"]) == (0, 3, "error")
    assert "restart the scheduler" in line["remedy"]


async def test_a_stale_owner_disturbs_no_run_of_the_current_one(owners: Owners) -> None:
    stale, current = await owners.start(1), await owners.start(2)
    calls = calls_of(flows.outgrow, b'{"size": 5000}')
    current.submit(calls)
    await eventually(current.ended)
    stale.submit(calls)
    stale.cluster.release(RUN_ID, 0.0)
    other = "f" * 32
    stale.own(3)  # comes after the others on the same stream
    stale.submit(calls_of(flows.one, b'{"value": 1}', other), other)
    await eventually(lambda: any(report.run_id == other for report in stale.reports))
    held = await scheduler_holds(owners.address)
    assert RUN_ID in held["runs"]
    assert calls[0].key in held["tasks"]


async def do_another_run(owner: Owner, run_id: str, partition: int) -> None:
    """Return when the scheduler has taken in everything that the owner has sent before."""
    owner.cluster.own(partition, 2)
    calls = calls_of(flows.one, b'{"value": 1}', run_id)
    owner.cluster.submit([Submission(run_id, partition, 2, calls)])
    await eventually(lambda: any(report.run_id == run_id for report in owner.reports))


async def test_a_stale_owner_lets_no_packed_run_of_the_current_one_go(owners: Owners, tmp_path: Path) -> None:
    """The end that it has written is void: the current owner asks for the outcome, and the run must not run again for it."""
    stale = await owners.start(1)
    parameters = msgspec.json.encode({"number": 1, "how": "", "folder": str(tmp_path)})
    run = PackedRun(RUN_ID, parameters, f"00-{'1' * 32}-{'2' * 16}-00", 1.0)
    parcel = Parcel("a" * 32, "small", flows_packed.small.reference, (run,), 1_000)
    stale.cluster.send(parcel, [(0, 1)])
    await eventually(lambda: stale.outcomes)
    current = await owners.start(2)
    await do_another_run(current, "e" * 32, 0)  # its epoch is known by then
    stale.cluster.release_parcels([RUN_ID], 0.0)
    await do_another_run(stale, "f" * 32, 1)  # and what the stale one has said was heard
    current.cluster.send(msgspec.structs.replace(parcel, parcel_id="b" * 32), [(0, 2)])
    await eventually(lambda: current.outcomes)
    assert [outcome.state for outcome in current.outcomes] == [State.COMPLETED]
    assert (tmp_path / "notes").read_text() == "1\n"
    current.cluster.release_parcels([RUN_ID], 0.0)
    current.cluster.send(msgspec.structs.replace(parcel, parcel_id="c" * 32), [(0, 2)])
    await eventually(lambda: len(current.outcomes) == 2)
    assert (tmp_path / "notes").read_text() == "1\n1\n", "what its owner lets go is gone"


async def test_a_failed_attempt_waits_until_the_next_one_is_submitted(owners: Owners, tmp_path: Path) -> None:
    owner = await owners.start(1)
    calls = calls_of(flows.persevere, msgspec.json.encode({"attempt": 2, "folder": str(tmp_path)}))
    owner.submit(calls)
    await eventually(lambda: any(report.retry_in_seconds for report in owner.reports))
    owner.submit(calls)  # the same attempt again, as after a change of owner, wakes nobody
    held = await scheduler_holds(owners.address)
    assert {call.key for call in calls} <= set(held["tasks"])
    assert len((tmp_path / "notes").read_text().splitlines()) == 1
    owner.submit([msgspec.structs.replace(calls[0], attempt=2)])
    await eventually(lambda: owner.ended() == {"0": State.COMPLETED, "1": State.COMPLETED})
    assert [report.result for report in owner.reports if report.result] == [b"4"]


async def test_who_waits_for_a_child_when_the_run_is_let_go_waits_no_longer(owners: Owners, tmp_path: Path) -> None:
    """A worker that was taken for dead goes on, and its task ends the run; the attempt that came after it waits still."""
    owner = await owners.start(1)
    owner.submit(calls_of(flows_growing.wait_below, msgspec.json.encode({"folder": str(tmp_path)})))

    async def is_waited_for() -> bool:
        return bool((await scheduler_holds(owners.address))["awaited"])

    await eventually_said(is_waited_for)
    owner.cluster.release(RUN_ID, 0.0)
    await eventually(lambda: "lost" in (tmp_path / "notes").read_text())
    held = await scheduler_holds(owners.address)
    assert (held["awaited"], held["queues"], held["runs"]) == ([], [], [])
    (tmp_path / "go").touch()


async def test_children_are_held_by_the_runs_queue(owners: Owners, tmp_path: Path) -> None:
    owner = await owners.start(1)
    owner.submit(calls_of(flows_growing.wait_below, msgspec.json.encode({"folder": str(tmp_path)})))

    def held_by_the_queue(dask_scheduler: Any) -> int:
        holder = dask_scheduler.clients.get(f"queue-run-{RUN_ID}")
        return 0 if holder is None else len(holder.wants_what)

    async with Client(owners.address, asynchronous=True, set_as_default=False) as client:

        async def are_held() -> bool:
            return await client.run_on_scheduler(held_by_the_queue) == 2

        await eventually_said(are_held)
    (tmp_path / "go").touch()
    await eventually(lambda: owner.ended().get("0") is State.COMPLETED)


async def test_who_waits_in_a_runs_queue_waits_no_longer_than_the_run(owners: Owners) -> None:
    """A notebook that follows the children of a run, which may have none."""
    owner = await owners.start(1)
    owner.submit(calls_of(flows.spread, b'{"values": [1]}'))

    def waiters(dask_scheduler: Any) -> int:
        return len(dask_scheduler.extensions["queues"].queues[f"run-{RUN_ID}"]._getters)

    async with Client(owners.address, asynchronous=True, set_as_default=False) as client:
        queue = await Queue(f"run-{RUN_ID}", client=client)
        following = asyncio.create_task(queue.get())

        async def is_waiting() -> bool:
            return await client.run_on_scheduler(waiters) == 1

        await eventually_said(is_waiting)
        owner.cluster.release(RUN_ID, 0.0)
        with pytest.raises(TimeoutError, match="has ended"):
            await following
    assert (await scheduler_holds(owners.address))["queues"] == []


async def test_a_scheduler_that_knows_no_engine_is_looked_at_without_a_word_in_its_log(
    owners: Owners, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("distributed.core"), "handlers", [caplog.handler])  # it passes nothing on
    caplog.set_level(logging.WARNING, "distributed.core")
    probe = DaskProbe(owners.address, 5.0)
    seen = await probe.ask()
    assert (len(seen.workers), seen.tasks_queued) == (2, None)
    assert "engine_tasks" not in caplog.text
    await owners.start(1)
    assert (await probe.ask()).tasks_queued == 0
    await probe.close()


async def test_runs_that_have_gone_leave_nothing_in_the_schedulers_memory(owners: Owners) -> None:
    """One after the other, so that there is nothing to do in between: Dask would keep a span of each, and its groups."""
    owner = await owners.start(1)

    def remembered(dask_scheduler: Any) -> tuple[int, int]:
        spans = dask_scheduler.extensions["spans"].spans.values()
        return len(spans), sum(len(span.groups) for span in spans)

    async with Client(owners.address, asynchronous=True, set_as_default=False) as client:
        for number in range(120):
            run_id = f"{number:032x}"
            owner.submit(calls_of(flows.diamond, b'{"value": 5}', run_id), run_id)
            await eventually(lambda: len(owner.ended()) == 4)
            owner.cluster.release(run_id, 0.0)
            owner.reports.clear()
        spans, groups = await client.run_on_scheduler(remembered)
    assert (spans, groups <= 30) == (1, True), groups


async def test_a_worker_that_is_restarted_leaves_its_nanny_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to close by the scheduler it would tell its nanny, which then starts it no more; its data has nowhere to go."""
    is_over = asyncio.Event()
    monkeypatch.setattr("engine.restarter._end_process", is_over.set)
    told: list[object] = []
    async with (
        in_process(workers=1) as address,
        Client(address, asynchronous=True, set_as_default=False) as client,
    ):
        kept = client.submit(sum, [1, 2])
        await kept
        [worker] = [one for one in Worker._instances if one.scheduler.address == address and one.status == Status.running]
        worker.stream_handlers["close"] = lambda **order: told.append(order)
        restarter = Restarter(worker)
        restarter.begin("stuck", lambda: None)
        await is_over.wait()
        await worker.finished()
        assert restarter._timer is not None
        restarter._timer.cancel()
    assert not told


async def test_a_wide_graph_goes_in_pieces(owners: Owners) -> None:
    owner = await owners.start(1)
    owner.submit(calls_of(flows.spread, b'{"values": [' + b"1," * 1_500 + b"1]}"))
    await eventually(lambda: len(owner.ended()) == 1_502)
    [result] = [report.result for report in owner.reports if report.result]
    assert result == b"3002"


async def test_a_scheduler_of_another_release_is_named_rather_than_used(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is submitted could not be read there."""
    monkeypatch.setattr("engine.cluster.VERSION", "99.0")
    with pytest.raises(DaskUnavailable, match=r"it runs engine .* with Dask .*, this process engine 99\.0") as raised:
        await owners.start(1)
    assert owners.address in str(raised.value)


async def test_a_failed_task_is_no_trouble_of_the_cluster(owners: Owners) -> None:
    owner = await owners.start(1)
    owner.submit(calls_of(flows.break_down, b'{"value": 5}'))
    await eventually(lambda: len(owner.ended()) == 2)
    await scheduler_holds(owners.address)
    assert owner.cluster.trouble == ""


async def test_a_scheduler_that_did_not_answer_for_a_while_is_used_again(owners: Owners) -> None:
    """One lost answer must not keep runs from beginning for ever."""
    owner = await owners.start(epoch=1)

    def break_down(dask_scheduler: Any) -> None:
        async def fail() -> None:
            raise TimeoutError("too busy")

        dask_scheduler.plugins[NAME].answer = dask_scheduler.handlers["engine_token"]
        dask_scheduler.handlers["engine_token"] = fail

    def mend(dask_scheduler: Any) -> None:
        dask_scheduler.handlers["engine_token"] = dask_scheduler.plugins[NAME].answer

    async with Client(owners.address, asynchronous=True, set_as_default=False) as client:
        await client.run_on_scheduler(break_down)
        await eventually(lambda: "too busy" in owner.cluster.trouble)
        await client.run_on_scheduler(mend)
        await eventually(lambda: not owner.cluster.trouble)
    assert owner.resets == 1
    owner.submit(calls_of(flows.one, b'{"value": 1}'))
    await eventually(lambda: bool(owner.ended()))
