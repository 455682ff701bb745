"""engine.attach: the futures of a run in another process's hands, and a run that never notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Future, Scheduler, Variable
from distributed.client import FutureCancelledError

import engine
from engine.arguments import dump
from engine.cluster import in_process
from engine.command_errors import NotFound, UsageError
from engine.errors import DaskUnavailable, TaskCrashed, TaskFailed
from engine.executor import Call, RunEnd, encode_call, encode_end
from engine.reporter import ReportPlugin
from engine.scheduler import RunsPlugin
from engine.sharing import Attached
from engine.states import Failure, State
from tests.integration import flows_durable as durable
from tests.integration import flows_graphs as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import scheduler_holds
from tests.waiting import eventually

RUN = "0123456789abcdef" * 2


def plus_one(value: int) -> int:
    return value + 1


def amount_of(paid: Any) -> int:
    return int(paid.amount)


def tell(value: Any) -> Any:
    return value


async def eventually_free(address: str, run_id: str) -> None:
    """Wait until nothing on the scheduler bears the run's name."""
    async with asyncio.timeout(20):
        while any(run_id in name for names in (await scheduler_holds(address)).values() for name in names):
            pass  # each look is a round trip


class TestARunOfAnEngine:
    async def test_gives_its_futures_by_task_and_map_index_and_dependents_run_without_gathering(
        self, apps: Apps, tmp_path: Path
    ) -> None:
        app = await apps.start(flows.spread_when)
        before = await scheduler_holds(apps.dask)
        id = await app.send("waiting", {"values": [5, 6], "folder": str(tmp_path)})
        run_id = app.run_id("spread_when", id)
        await app.heard(task="double_when", state=State.RUNNING)
        async with await engine.attach(run_id, apps.dask, app.settings.app) as attached:
            assert attached.tasks == ["double_when", "total"]
            elements = attached.futures("double_when")
            assert [future.status for future in attached.futures()] == ["pending"] * 3
            assert attached.final is attached.future("total")
            mine = attached.client.submit(plus_one, elements[1])
            assert mine.status == "pending"
            (tmp_path / "6").touch()
            assert await mine == 13
            assert await elements[1] == 12
            assert elements[0].status == "pending"
            (tmp_path / "5").touch()
            assert await attached.final == 22
            assert (await app.run("spread_when", id)).result == 22
            assert await attached.client.submit(plus_one, elements[0]) == 11, "the run has ended, what we hold is there"
            with pytest.raises(NotFound):
                await attached.refresh()
        with pytest.raises(NotFound, match=rf"{run_id}.*engine runs show {run_id}"):
            await engine.attach(run_id, apps.dask)
        await eventually_free(apps.dask, run_id)
        clients = set((await scheduler_holds(apps.dask))["clients"])
        assert clients <= {*before["clients"], "engine-runs"}, "the pseudo-client of the plugin is one for all runs"

    async def test_goes_on_when_the_attachment_is_closed(self, apps: Apps, tmp_path: Path) -> None:
        app = await apps.start(flows.spread_when)
        id = await app.send("waiting", {"values": [5, 6], "folder": str(tmp_path)})
        run_id = app.run_id("spread_when", id)
        await app.heard(task="double_when", state=State.RUNNING)
        attached = await engine.attach(run_id, apps.dask)
        (tmp_path / "5").touch()
        assert await attached.futures("double_when")[0] == 10
        await attached.close()
        await attached.close()
        assert run_id not in (await scheduler_holds(apps.dask))["attached"]
        (tmp_path / "6").touch()
        run = await app.run("spread_when", id)
        assert run.result == 22
        assert len(run.of("double_when")) == 6, "SCHEDULED, RUNNING, COMPLETED of each: nothing ran twice"
        await eventually_free(apps.dask, run_id)

    async def test_gives_its_futures_to_a_synchronous_client_as_a_notebook_has_it(self, apps: Apps, tmp_path: Path) -> None:
        app = await apps.start(flows.spread_when)
        id = await app.send("waiting", {"values": [5], "folder": str(tmp_path)})
        await app.heard(task="double_when", state=State.RUNNING)
        client = await asyncio.to_thread(Client, apps.dask, set_as_default=False)
        try:
            attached = await engine.attach(app.run_id("spread_when", id), client)
            mine = client.submit(plus_one, attached.future("double_when"))
            (tmp_path / "5").touch()
            assert await asyncio.to_thread(mine.result, 20) == 11
            await attached.close()
            assert client.status == "running", "it is not ours to close"
            del mine
            assert (await app.run("spread_when", id)).result == 10
            await eventually_free(apps.dask, app.run_id("spread_when", id))
        finally:
            await asyncio.to_thread(client.close)

    async def test_retries_though_its_failed_task_is_wanted_elsewhere(self, apps: Apps, tmp_path: Path) -> None:
        """Where Dask has an error it runs nothing; to others a task that will be tried again is simply not done yet."""
        app = await apps.start(flows.second_time)
        id = await app.send("waiting", {"folder": str(tmp_path)})
        run_id = app.run_id("second_time", id)
        await app.heard(task="fail_first", state=State.RUNNING)
        async with await engine.attach(run_id, apps.dask) as attached, plain_client(apps.dask) as other:
            result = await Variable(f"run-{run_id}", client=other).get(timeout=5)
            mine = attached.client.submit(plus_one, attached.future("fail_first"))
            (tmp_path / "first").touch()
            await app.heard(task="fail_first", state=State.RETRYING)
            assert attached.future("fail_first").status == "pending"
            (tmp_path / "second").touch()
            run = await app.run("second_time", id)
            assert run.result == 10
            assert await mine == 6
            assert await attached.future("fail_first") == 5
            assert await result == 10
            result.release()
        await eventually_free(apps.dask, run_id)

    async def test_retries_though_its_variable_was_read(self, apps: Apps, tmp_path: Path) -> None:
        """Plain Dask, without engine.attach."""
        app = await apps.start(flows.second_time)
        id = await app.send("waiting", {"folder": str(tmp_path)})
        await app.heard(task="fail_first", state=State.RUNNING)
        async with plain_client(apps.dask) as client:
            result = await Variable(f"run-{app.run_id('second_time', id)}", client=client).get(timeout=5)
            (tmp_path / "first").touch()
            (tmp_path / "second").touch()
            assert (await app.run("second_time", id)).result == 10
            assert await result == 10
            result.release()
        await eventually_free(apps.dask, app.run_id("second_time", id))


class TestTheFinalFutureOfAFlowThatHasNotReturned:
    async def test_is_there_from_the_begin_and_is_what_the_run_comes_to_under_whichever_engine(
        self, apps: Apps, tmp_path: Path
    ) -> None:
        """One that waits for an event and is tried again, one that fails, one that is cancelled."""
        first = await apps.start(durable.settle)
        topic, settings = first.topic("bills"), first.settings
        async with plain_client(apps.dask) as client:
            run_ids = [first.run_id("settle", name) for name in ("paid", "unpaid", "cancelled")]
            # Asked for before there is such a run.
            asked = [asyncio.create_task(Variable(f"run-{run_id}", client=client).get(timeout=60)) for run_id in run_ids]
            for name in ("paid", "unpaid", "cancelled"):
                data = {"order": name, "folder": str(tmp_path), "topic": topic}
                await first.send("bills", data, id=name, type="bill.written")
            paid, unpaid, cancelled = await asyncio.gather(*asked)
            mine = client.submit(amount_of, paid)
            async with await engine.attach(run_ids[0], apps.dask) as attached:
                assert attached.tasks == []
                assert attached.futures() == []
                assert attached.final is not None
                assert [one.status for one in (attached.final, paid, unpaid, cancelled)] == ["pending"] * 4
                await first.stop()
                second = await apps.start(durable.settle, settings=settings)
                await second.send("bills", {"order": "paid", "amount": 5}, type="bill.paid")
                await second.send("bills", {"order": "unpaid", "amount": -1}, type="bill.paid")
                assert await attached.final == durable.Paid("paid", 5)
            assert await mine == 5
            with pytest.raises(TaskFailed, match="ValueError: that is not enough"):
                await unpaid
            await second.cancel(run_ids[2])
            with pytest.raises(FutureCancelledError):
                await cancelled
            ends = {"paid": State.COMPLETED, "unpaid": State.FAILED, "cancelled": State.CANCELLED}
            assert {name: (await second.run("settle", name)).end.state for name in ends} == ends
            for future in (paid, unpaid, cancelled, mine):
                future.release()
        for run_id in run_ids:
            await eventually_free(apps.dask, run_id)


@asynccontextmanager
async def plain_client(address: str) -> AsyncIterator[Client]:
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        yield client


class Engine:
    """Speaks to the plugin as an engine does, with keys of every shape and tasks that are plain functions."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client._send_to_scheduler({"op": "engine-own", "app": "shop", "partition": 0, "epoch": 1})

    def submit(self, calls: dict[str, Any], shared: str | None = None) -> None:
        """``calls``: ``task-index`` and the value that it gives."""
        encoded = [encode_call(call_of(*name.split("-"), value, is_final=name == shared)) for name, value in calls.items()]
        self.client._send_to_scheduler({"op": "engine-submit", "app": "shop", "runs": [(RUN, 0, 1, False, False, encoded)]})

    async def attach(self, address: str, count: int, client: Client | None = None) -> Attached:
        """Attach as soon as so many calls are there: a client holds back what it submits for some milliseconds."""
        async with asyncio.timeout(20):
            while True:
                try:
                    attached = await engine.attach(RUN, client or address)
                except NotFound:
                    continue
                if len(attached.futures()) >= count:
                    return attached
                await attached.close()

    def begin(self, *, is_tried_again: bool = False) -> None:
        """The run has begun, and has no call yet."""
        self.client._send_to_scheduler({"op": "engine-submit", "app": "shop", "runs": [(RUN, 0, 1, False, is_tried_again, [])]})

    def release(self, end: RunEnd | None = None) -> None:
        told = None if end is None else encode_end(end)
        self.client._send_to_scheduler({"op": "engine-release", "run_id": RUN, "keep_seconds": 0, "end": told})

    def cancel(self) -> None:
        self.client._send_to_scheduler({"op": "engine-cancel", "run_id": RUN})


def call_of(task: str, index: str, value: Any, *, is_final: bool = False, function: str = f"{__name__}:tell") -> Call:
    """A call that gives ``value``."""
    return Call(
        index=index,
        task=task,
        function=function,
        flow="told",
        run_id=RUN,
        arguments=dump(((value,), {}), task, RUN).data,
        dependencies=(),
        places=(),
        attempt=1,
        depth=0,
        is_async=False,
        returns=is_final,
        is_final=is_final,
        inline_result_bytes=1_000,
        timeout_seconds=None,
        traceparent=f"00-{'1' * 32}-{'2' * 16}-00",
        scheduled_at=0.0,
        is_taken=True,
    )


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with in_process() as address:
        yield address


@pytest.fixture
async def fake(address: str) -> AsyncIterator[Engine]:
    async with plain_client(address) as client:
        await client.register_plugin(RunsPlugin())
        await client.register_plugin(ReportPlugin())
        yield Engine(client)


@pytest.fixture
async def attached(fake: Engine, address: str) -> AsyncIterator[Attached]:
    """Attached to a run with calls of every kind."""
    names = [
        "price-10",
        "price-2",
        "map-3.10",
        "map-3.9",
        "map-3.0",
        "map-11.0",
        "child-00ffee0123456789",
        "other-1.0",
        "result-12",
    ]
    fake.submit({name: name for name in names}, shared="result-12")
    async with await fake.attach(address, len(names) - 1) as attached:
        yield attached


class TestAPromise:
    """The final future of a run none of whose calls is sure to give its result."""

    @pytest.fixture
    async def final(self, fake: Engine, address: str) -> AsyncIterator[Future]:
        async with plain_client(address) as client:
            fake.begin()
            yield await Variable(f"run-{RUN}", client=client).get(timeout=10)

    async def test_is_kept_by_what_the_flow_returned(self, fake: Engine, final: Future, address: str) -> None:
        assert final.status == "pending"
        fake.release(RunEnd(result=call_of("", "final", {"a": 1})))
        assert await final == {"a": 1}
        final.release()
        await eventually_free(address, RUN)

    async def test_is_kept_by_the_call_that_turns_out_to_be_the_final_one(self, fake: Engine, final: Future) -> None:
        fake.submit({"price-0": 7}, shared="price-0")
        fake.submit({"price-0~2": 8}, shared="price-0~2")
        assert final.status == "pending", "who knows whether it is the last attempt"
        fake.release()
        assert await final == 8

    @pytest.mark.parametrize(("is_crash", "kind"), [(False, TaskFailed), (True, TaskCrashed)])
    async def test_of_a_run_that_fails_fails(
        self, fake: Engine, final: Future, address: str, is_crash: bool, kind: type[Exception]
    ) -> None:
        above = final.client.submit(plus_one, final)
        fake.release(RunEnd(Failure("ValueError", "no", ""), is_crash))
        with pytest.raises(kind, match="ValueError: no"):
            await final
        with pytest.raises(kind, match="ValueError: no"):
            await above
        above.release()
        final.release()
        await eventually_free(address, RUN)

    @pytest.mark.parametrize("by", ["cancel", "release"])
    async def test_of_a_run_that_is_cancelled_or_says_nothing_is_cancelled(
        self, fake: Engine, final: Future, address: str, by: str
    ) -> None:
        above = final.client.submit(plus_one, final)
        await eventually_there(address, above.key)
        fake.cancel() if by == "cancel" else fake.release()
        for future in (final, above):
            with pytest.raises(FutureCancelledError):
                await future
        await eventually_free(address, RUN)

    async def test_that_nobody_asked_for_runs_nothing_and_leaves_nothing(self, fake: Engine, address: str) -> None:
        fake.begin(is_tried_again=True)
        async with await fake.attach(address, 0):
            pass
        fake.release(RunEnd(result=call_of("", "final", 1, function="no_such_module:f")))
        await eventually_free(address, RUN)

    async def test_holds_for_who_was_just_given_it_when_the_run_ends(self, fake: Engine, address: str) -> None:
        """They have yet to say that they have it, and Dask would let them wait for ever for a key that it knows no more."""
        async with plain_client(address) as client:
            say, unsaid = client._send_to_scheduler, []
            client._send_to_scheduler = unsaid.append
            fake.begin()
            final = await Variable(f"run-{RUN}", client=client).get(timeout=10)
            fake.release(RunEnd(result=call_of("", "final", 3)))
            async with asyncio.timeout(20), plain_client(address) as other:
                while await other.run_on_scheduler(_state_of, final.key) != "memory":
                    pass
            for message in unsaid:
                say(message)
            client._send_to_scheduler = say
            async with asyncio.timeout(10):
                assert await final == 3
            final.release()

    async def test_that_is_kept_ends_no_worker(self, fake: Engine, final: Future, address: str) -> None:
        """Dask's heartbeat fails on what has run without a span, and a worker whose heartbeat fails gives up."""
        fake.release(RunEnd(result=call_of("", "final", 1)))
        assert await final == 1
        [(worker, seen_at)] = (await final.client.run_on_scheduler(_heartbeats)).items()
        for _ in range(2):
            async with asyncio.timeout(20):
                while (latest := (await final.client.run_on_scheduler(_heartbeats))[worker]) == seen_at:
                    pass  # each look is a round trip
            seen_at = latest

    async def test_of_an_earlier_run_of_the_same_id_is_not_taken_for_the_new_ones(
        self, fake: Engine, final: Future, address: str
    ) -> None:
        fake.release(RunEnd(result=call_of("", "final", 1)))
        assert await final == 1
        fake.begin()
        async with plain_client(address) as client:
            new = await Variable(f"run-{RUN}", client=client).get(timeout=10)
            await eventually(final.cancelled)
            assert new.status == "pending"


def _heartbeats(dask_scheduler: Scheduler) -> dict[str, float]:
    return {address: worker.last_seen for address, worker in dask_scheduler.workers.items()}


def _state_of(key: str, dask_scheduler: Scheduler) -> str | None:
    task = dask_scheduler.tasks.get(key)
    return None if task is None else str(task.state)


async def eventually_there(address: str, key: str) -> None:
    async with asyncio.timeout(20):
        while key not in (await scheduler_holds(address))["tasks"]:
            pass  # each look is a round trip


class TestFutures:
    async def test_come_by_call_and_map_index_and_spawned_ones_last(self, attached: Attached) -> None:
        assert attached.tasks == ["other", "price", "map", "child"]
        assert await asyncio.gather(*attached.futures("map")) == ["map-3.0", "map-3.9", "map-3.10", "map-11.0"]
        everything = [
            "other-1.0",
            "price-2",
            "map-3.0",
            "map-3.9",
            "map-3.10",
            "price-10",
            "map-11.0",
            "child-00ffee0123456789",
        ]
        assert await asyncio.gather(*attached.futures()) == everything
        assert await attached.final == "result-12"
        assert attached.futures("no such task") == []

    async def test_are_had_one_by_one(self, attached: Attached) -> None:
        assert await attached.future("map", 9) == "map-3.9"
        assert await attached.future("map", map_index=10) == "map-3.10"
        assert await attached.future("map", index="11.0") == "map-11.0"
        assert await attached.future("map", 0, index="3.0") == "map-3.0"
        assert await attached.future("price", index="2") == "price-2"
        assert await attached.future("child") == "child-00ffee0123456789"

    async def test_that_are_several_are_not_chosen_from(self, attached: Attached) -> None:
        with pytest.raises(UsageError, match=r"2 such calls: 3\.0, 11\.0.*index="):
            attached.future("map", 0)
        with pytest.raises(UsageError, match=r"2 such calls: 2, 10"):
            attached.future("price")

    @pytest.mark.parametrize(
        ("task", "where", "hint"),
        [
            ("prize", {}, "tasks other, price, map, child"),
            ("map", {"map_index": 1}, r"calls 3\.0, 3\.9, 3\.10, 11\.0"),
            ("price", {"map_index": 0}, "calls 2, 10"),
            ("price", {"index": "3"}, "calls 2, 10"),
        ],
    )
    async def test_that_are_not_there_are_not_found_and_those_that_are_get_listed(
        self, attached: Attached, task: str, where: dict[str, Any], hint: str
    ) -> None:
        with pytest.raises(NotFound, match=rf"{hint}.*refresh"):
            attached.future(task, **where)

    async def test_of_later_calls_come_with_a_refresh(self, attached: Attached, fake: Engine) -> None:
        fake.submit({"late-13": 7})
        assert "late" not in attached.tasks
        known = attached.future("child")
        async with asyncio.timeout(20):
            while "late" not in attached.tasks:
                await attached.refresh()
        assert await attached.future("late") == 7
        assert attached.future("child") is known

    async def test_that_are_made_while_their_tasks_end_do_not_hang(self, fake: Engine, address: str) -> None:
        """News of a key that comes before its future is made must not be lost."""
        async with plain_client(address) as client:
            for _ in range(20):
                fake.submit({f"t-{n}": n for n in range(30)})
                attached = await fake.attach(address, 1, client)
                async with asyncio.timeout(20):
                    while len(attached.futures()) < 30:
                        await attached.refresh()
                    assert await asyncio.gather(*attached.futures()) == list(range(30))
                fake.release()
                await attached.close()
                await eventually_free(address, RUN)

    async def test_do_not_hang_when_news_overtake_the_answer(self, fake: Engine, address: str) -> None:
        fake.submit({"t-0": 5})
        await (await fake.attach(address, 1)).close()
        async with plain_client(address) as client:
            ask = client.scheduler.engine_keys

            async def slow(**question: Any) -> Any:
                answer = await ask(**question)
                await client.submit(plus_one, 1)  # this comes behind all that the scheduler has told by now
                return answer

            client.scheduler.engine_keys = slow
            async with await engine.attach(RUN, client) as attached, asyncio.timeout(5):
                assert await attached.future("t") == 5

    async def test_of_a_run_that_ends_while_they_are_made_do_not_hang(self, fake: Engine, address: str) -> None:
        async with plain_client(address) as client:
            fake.submit({"t-0": 5})
            attached = await fake.attach(address, 1, client)
            ask = client.scheduler.engine_keys

            async def slow(**question: Any) -> Any:
                answer = await ask(**question)
                fake.cancel()
                async with asyncio.timeout(20):
                    while RUN in (await scheduler_holds(address))["runs"]:
                        pass  # each look is a round trip
                return answer

            await attached.close()
            client.scheduler.engine_keys = slow
            async with await engine.attach(RUN, client) as attached:
                assert attached.final is not None
                with pytest.raises(FutureCancelledError):
                    await attached.final


class TestARunThatIsNotOpen:
    @pytest.mark.parametrize("run_id", [RUN, "x", "../" + RUN, ""])
    async def test_is_not_found_and_leaves_nothing(self, fake: Engine, address: str, run_id: str) -> None:
        with pytest.raises(NotFound, match="engine runs show"):
            await engine.attach(run_id, address)
        assert (await scheduler_holds(address))["clients"] == [fake.client.id]

    async def test_is_not_found_where_no_engine_was_ever_connected(self, address: str) -> None:
        with pytest.raises(NotFound):
            await engine.attach(RUN, address)

    async def test_is_not_found_where_it_is_another_apps(self, attached: Attached, address: str) -> None:
        with pytest.raises(NotFound):
            await engine.attach(RUN, address, app="other")
        await (await engine.attach(RUN, address, app="shop")).close()

    async def test_begins_anew_though_its_earlier_results_are_wanted(self, fake: Engine, address: str) -> None:
        """A run id comes again where its log was cleared; what somebody kept must not be taken for its result."""
        fake.submit({"t-0": "old"})
        async with plain_client(address) as client:
            attached = await fake.attach(address, 1, client)
            kept = attached.future("t")
            waiting = client.submit(plus_one, kept, workers=["tcp://127.0.0.1:1"], key="waiting")
            assert await kept == "old"
            while "waiting" not in await client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)):
                pass  # else the run might begin anew first, and what waits would wait for the new one's
            fake.release()
            fake.submit({"t-0": "new"})
            await eventually(lambda: kept.cancelled() and waiting.cancelled())
            async with await fake.attach(address, 1) as second:
                assert await second.future("t") == "new"
            await attached.close()
            waiting.release()
        fake.release()
        await eventually_free(address, RUN)


async def test_a_scheduler_that_is_not_there_is_named(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_CONNECT_TIMEOUT_SECONDS", "0.2")
    with pytest.raises(DaskUnavailable, match=f"127.0.0.1:{unused_tcp_port}"):
        await engine.attach(RUN, f"tcp://127.0.0.1:{unused_tcp_port}")


async def test_a_client_that_is_gone_leaves_nothing(attached: Attached, fake: Engine, address: str) -> None:
    await attached.client.close()
    assert RUN not in (await scheduler_holds(address))["attached"]
    fake.release()
    await eventually_free(address, RUN)


async def test_of_two_attachments_of_a_client_either_may_close_first(fake: Engine, address: str) -> None:
    fake.submit({"t-0": 5})
    async with plain_client(address) as client:
        first = await fake.attach(address, 1, client)
        async with await engine.attach(RUN, client) as second:
            await first.close()
            fake.release()
            assert await client.submit(plus_one, second.future("t")) == 6
            assert RUN in (await scheduler_holds(address))["attached"]
        await eventually_free(address, RUN)
