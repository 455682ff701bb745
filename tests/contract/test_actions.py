"""engine.actions: what a person does to runs and flows, with a history database and without it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from engine.actions import Actions
from engine.broker import Broker
from engine.command_errors import AlreadyEnded, NotFound, NotRepeatable, ParametersError
from engine.event_fates import Fate
from engine.event_lister import EventLister
from engine.history import History, RunFilter
from engine.history_schema import RunRow
from engine.history_store import HistoryStore
from engine.inline import InlineExecutor
from engine.letter_lists import Status
from engine.memory import MemoryBroker
from engine.projection import read_all
from engine.projector import Projector
from engine.repeats import Kind
from engine.results import ResultStore
from engine.run_finder import Histories
from engine.settings import Settings
from engine.states import State
from tests.app_under_test import AppUnderTest, Run, fresh_settings
from tests.source_reads import noted_reads
from tests.unit import flows_actions as flows
from tests.waiting import eventually, eventually_said

S = State


class Acting:
    """An engine, what a person can do to it, and a history that is brought up to date when a test wants it."""

    def __init__(self, broker: Broker, folder: Path, *, has_history: bool, settings: Settings | None = None) -> None:
        self.settings = settings or fresh_settings(results=f"file://{folder}/results")
        store = ResultStore(self.settings.results, self.settings.app, 1_000_000)
        self.app = AppUnderTest(
            self.settings, [flows.work, flows.count, flows.picky], broker, InlineExecutor(results=store), broker
        )
        self.folder, self._broker, self._path = folder, broker, str(folder / "history.db")
        self._sink = broker.sink()
        histories: Histories | None = (lambda: History.open(self._path)) if has_history else None
        self.actions = Actions(self.settings, broker, self._sink, None, histories)

    async def project(self) -> None:
        projector = Projector(self.settings, self._broker, HistoryStore(self._path, self.settings.app))
        await projector.catch_up()
        await projector.close()

    async def start(self) -> None:
        await self.app.start()
        await self._sink.start()
        await self.project()

    async def close(self) -> None:
        await self.actions.close()
        await self._sink.close()
        await self.app.close()

    @property
    def notes(self) -> Counter[str]:
        file = self.folder / "notes"
        return Counter(file.read_text().splitlines() if file.exists() else [])


@pytest.fixture(params=[True, False], ids=["history", "topics"])
async def acting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Acting]:
    made = Acting(MemoryBroker(), tmp_path, has_history=request.param)
    await made.start()
    yield made
    await made.close()


async def test_a_run_is_started_by_hand_and_the_same_request_makes_no_other(acting: Acting) -> None:
    run_id = await acting.actions.start("count", {"value": 2}, request_id="once")
    run = await acting.app.run_of(run_id)
    assert (run.end.state, run.result) == (S.COMPLETED, 3)
    assert (run.changes[0].event, run.changes[0].key) == (None, None)
    assert await acting.actions.start("count", {"value": 2}, request_id="once") == run_id
    other = await acting.actions.start("count", data={"value": 5, "by": 2}, key="k")
    assert (await acting.app.run_of(other)).result == 7
    assert other != run_id
    assert len(acting.app.ends(run_id)) == 1


async def test_parameters_that_do_not_fit_and_unknown_flows_start_nothing(acting: Acting) -> None:
    with pytest.raises(ParametersError, match="value: expected integer, got string"):
        await acting.actions.start("count", {"value": "two"})
    with pytest.raises(NotFound, match="engine flows ls"):
        await acting.actions.start("nothing", {})
    assert set(await acting.actions.declarations()) == {"work", "count", "picky"}
    assert not acting.app.changes


async def test_what_slips_through_ends_failed_with_the_field(acting: Acting) -> None:
    declared = msgspec.structs.replace((await acting.actions.declarations())["count"], parameters={})
    run = await acting.app.run_of(await acting.actions.start("count", {"value": "two"}, declaration=declared))
    assert run.end.state is S.FAILED
    assert run.end.error is not None
    assert "value" in run.end.error.message


async def test_a_run_is_repeated_and_cancelled_once_it_can_be(acting: Acting) -> None:
    run_id = await acting.actions.start("count", {"value": 2})
    await acting.app.run_of(run_id)
    for projects in (False, True):
        if projects:
            await acting.project()
        with pytest.raises(AlreadyEnded):
            await acting.actions.cancel(run_id)
        with pytest.raises(NotRepeatable):
            await acting.actions.repeat(run_id, Kind.RETRY)
    again = await acting.actions.repeat(run_id, Kind.RERUN)
    assert (await acting.app.run_of(again)).changes[0].repeats == run_id
    if acting.actions._finder._histories is None:
        third = await acting.actions.repeat(run_id, Kind.RERUN)
        assert third != again, "the second has ended"
    for method in (acting.actions.cancel("ab" * 16), acting.actions.repeat("ab" * 16, Kind.RERUN)):
        with pytest.raises(NotFound):
            await method


async def failed(acting: Acting) -> Run:
    (acting.folder / "broken").touch()
    run = await acting.app.do("work", {"folder": str(acting.folder)}, "work")
    assert run.end.state is S.FAILED
    await acting.project()
    (acting.folder / "broken").unlink()
    (acting.folder / "notes").unlink()
    return run


async def test_a_rerun_from_a_task_takes_what_is_stored_and_makes_the_rest(acting: Acting) -> None:
    run = await failed(acting)
    done = await acting.actions.rerun(run.id, from_task="total")
    assert set(done.taken) == {"load/1", "price/2"}
    assert set(done.again) == {"scale/0", "total/3"}
    again = await acting.app.run_of(done.run_id)
    assert (again.end.state, again.result) == (S.COMPLETED, 60)
    assert acting.notes == Counter(["scale", "price 2", "total"]), "what failed has nothing stored"
    taken = [change for change in again.of("load") if change.state is S.COMPLETED]
    assert [change.reason for change in taken] == [f"taken from run {run.id}"]
    assert taken[0].result_ref is not None, "a copy of its own"
    (acting.folder / "notes").unlink()
    third = await acting.actions.rerun(done.run_id, from_task="price")
    assert third.taken == ("load/1",)
    assert (await acting.app.run_of(third.run_id)).result == 60
    assert acting.notes == Counter(["scale", "price 1", "price 2", "price 3", "total"])


async def test_what_may_be_taken_is_on_the_log_for_whoever_owns_it_next(tmp_path: Path) -> None:
    broker = MemoryBroker()
    first = Acting(broker, tmp_path, has_history=False)
    await first.start()
    run = await failed(first)
    await first.app.stop()
    done = await first.actions.rerun(run.id, from_task="total")
    second = Acting(broker, tmp_path, has_history=False, settings=first.settings)
    await second.start()
    try:
        assert (await second.app.run_of(done.run_id)).result == 60
        assert second.notes == Counter(["scale", "price 2", "total"])
    finally:
        await second.close()
        await first.close()


async def test_a_rerun_from_a_task_reads_nothing_that_lies_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting = Acting(MemoryBroker(), tmp_path, has_history=True)
    await acting.start()
    try:
        for number in range(5):
            await acting.app.run_of(await acting.actions.start("count", {"value": number}))
        run = await failed(acting)
        await acting.app.stop()
        read = noted_reads(monkeypatch)
        await acting.actions.rerun(run.id, from_task="total")
        assert run.id.encode() in (read[0].value or b"")
        assert len({record.partition for record in read}) == 1
    finally:
        await acting.close()


async def test_an_unknown_task_is_answered_with_the_tasks_of_the_run(acting: Acting) -> None:
    run = await failed(acting)
    with pytest.raises(NotFound, match="load, price, scale, total"):
        await acting.actions.rerun(run.id, from_task="brew")


async def test_many_runs_are_retried_at_once(acting: Acting) -> None:
    await failed(acting)
    with History.open(str(acting.folder / "history.db")) as history:
        rows = history.runs(RunFilter(states=(S.FAILED,))).items
    [done] = await acting.actions.repeat_all([(row, {}) for row in rows], Kind.RETRY)
    assert (await acting.app.run_of(done.run_id)).end.state is S.COMPLETED
    assert done.repeats == rows[0].run_id


async def test_a_history_that_is_gone_makes_nobody_wait_but_longer(tmp_path: Path) -> None:
    made = Acting(MemoryBroker(), tmp_path, has_history=True)
    await made.start()
    try:
        run_id = await made.actions.start("count", {"value": 2})
        await made.app.run_of(run_id)
        await asyncio.to_thread((tmp_path / "history.db").unlink)
        again = await made.actions.repeat(run_id, Kind.RERUN)
        await eventually(lambda: made.app.ends(again))
    finally:
        await made.close()


async def test_a_run_is_found_by_a_history_that_has_read_nothing_yet(tmp_path: Path) -> None:
    made = Acting(MemoryBroker(), tmp_path, has_history=True)
    await made.start()
    try:
        await asyncio.to_thread((tmp_path / "history.db").unlink)
        empty = HistoryStore(str(tmp_path / "history.db"), made.settings.app)
        empty.open()
        empty.close()
        run_id = await made.actions.start("count", {"value": 2})
        await made.app.run_of(run_id)
        again = await made.actions.repeat(run_id, Kind.RERUN)
        assert (await made.app.run_of(again)).changes[0].repeats == run_id
    finally:
        await made.close()


async def test_a_run_that_the_history_takes_in_while_it_is_asked_is_found(tmp_path: Path) -> None:
    broker, path = MemoryBroker(), str(tmp_path / "history.db")
    made = Acting(broker, tmp_path, has_history=True)

    class Busy(History):
        """The projector writes right after the question for the run."""

        def run(self, run_id: str) -> RunRow | None:
            found = super().run(run_id)
            store = HistoryStore(path, made.settings.app)
            store.open()
            offsets, topic = store.offsets(), made.settings.states_topic
            starts = [offsets[topic, n].next_offset if (topic, n) in offsets else 0 for n in range(2)]
            unread = [record for n, log in enumerate(broker.topic(topic).logs) for record in log[starts[n] :]]
            store.write(read_all(unread, topic), offsets)
            store.close()
            return found

    await made.start()
    busy = Actions(made.settings, broker, broker.sink(), None, lambda: Busy.open(path))
    try:
        run_id = await made.actions.start("count", {"value": 2})
        await made.app.run_of(run_id)
        with pytest.raises(AlreadyEnded):
            await busy.cancel(run_id)
    finally:
        await busy.close()
        await made.close()


async def test_of_each_event_it_is_told_what_became_of_it(tmp_path: Path) -> None:
    broker = MemoryBroker()
    made = Acting(broker, tmp_path, has_history=True)
    await made.start()
    lister = EventLister(made.settings, broker, made.app.topic("picky"))
    try:
        first = await made.app.do("picky", {"value": 7}, "picky", id="a")
        await made.app.send("picky", {"value": 7}, id="a")
        await made.app.send("picky", {"value": 1}, id="b")
        await made.app.send("picky", {"value": "x"}, id="c")
        group, topic = made.settings.intake_group, made.app.topic("picky")

        async def is_taken_in() -> bool:
            standing = await lister.standing()
            taken = standing.committed.get(group, {})
            return sum(taken.get((topic, n), 0) for n in range(2)) == 4

        await eventually_said(is_taken_in)
        standing = await lister.standing()
        records = await lister.latest(standing, 10)
        declared = await made.actions.declarations()
        with History.open(str(tmp_path / "history.db")) as history:
            assert lister.behind(history, standing) > 0
            behind = lister.listed(records, history, declared, standing)
            assert {one.verdict.fate for one in behind} <= {Fate.UNKNOWN, Fate.RAN, Fate.DUPLICATE}
            await made.project()
            listed = lister.listed(records, history, declared, standing)
        fates = sorted((one.id, one.verdict.fate) for one in listed)
        assert fates == [("a", Fate.DUPLICATE), ("a", Fate.RAN), ("b", Fate.WHERE), ("c", Fate.DEAD)]
        assert {one.run_id for item in listed if item.id == "a" for one in item.verdict.runs} == {first.id}
        assert len(await lister.latest(standing, 2)) == 2
    finally:
        await lister.close()
        await made.close()


@pytest.mark.parametrize("has_history", [True, False], ids=["history", "topics"])
async def test_on_kafka_runs_and_letters_are_found_by_their_records_or_by_reading_all(
    kafka_broker: Broker, tmp_path: Path, has_history: bool
) -> None:
    made = Acting(kafka_broker, tmp_path, has_history=has_history)
    await made.start()
    try:
        run = await failed(made)
        done = await made.actions.rerun(run.id, from_task="total")
        assert (set(done.taken), (await made.app.run_of(done.run_id)).result) == ({"load/1", "price/2"}, 60)
        await made.project()
        with pytest.raises(NotRepeatable, match="COMPLETED"):
            await made.actions.repeat(done.run_id, Kind.RETRY)
        with pytest.raises(AlreadyEnded):
            await made.actions.cancel(done.run_id)
        assert (await made.app.run_of(await made.actions.repeat(done.run_id, Kind.RERUN))).end.state is S.COMPLETED
        assert await made.actions.start("count", {"value": 1}, request_id="k")
        await made.app.send("picky", {"value": "x"})
        [record] = await made.app.letters(1)
        await made.project()
        letter_id = f"{record.partition}/{record.offset}"
        replays = [(await made.actions.replay([letter_id]))[0].replay for _ in range(2)]
        assert len(set(replays)) == 2, "the second has seen the mark of the first, which the history has not"
        await made.actions.drop([letter_id])
        [entry] = await made.actions.desk.chosen([letter_id])
        assert (entry.status, entry.replays) == (Status.DROPPED, 2)
    finally:
        await made.close()
