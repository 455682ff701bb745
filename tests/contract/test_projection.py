"""engine.projection: what records of the topics make of the rows of a run, its task runs and their attempts."""

from __future__ import annotations

import msgspec
import pytest

from engine.dead_letters import Marked
from engine.errors import EventError
from engine.events import Position
from engine.history import History, RunFilter
from engine.history_schema import KEPT_BYTES
from engine.letter_lists import LetterList, Status
from engine.log_rows import LogFilter
from engine.projection import read_all
from engine.states import State, StateChange
from engine.subscriber import Deduplicator
from engine.task_rows import attempts_of
from tests.contract.histories import Places, take
from tests.history_records import BEGIN, LETTERS, LOGS, STATES, TRACE, Topics, a_busy_day, a_run, origin


def test_a_run_has_its_event_its_result_and_its_times(places: Places) -> None:
    topics = Topics()
    changes = a_run(topics, "run", event=origin(5), key="ann")
    run = places.history(topics).run("run")
    assert run is not None
    assert (run.state, run.seq, run.run_key, run.tasks, run.tasks_ended) == ("COMPLETED", 5, "ann", 1, 1)
    assert (run.event_id, run.event_topic, run.event_partition, run.event_offset) == ("event-5", "orders", 0, 5)
    assert (run.parameters, run.result) == (b'{"order":1}', b"7")
    times = [changes[seq].at.timestamp() for seq in (0, 1, 5)]
    assert [run.scheduled_at, run.started_at, run.ended_at] == times
    assert run.traceparent is not None


def test_a_run_is_shown_in_the_trace_in_which_it_has_begun(places: Places) -> None:
    """Its event was sent twice, each time in a trace of its own, and the later one was begun first."""
    topics = Topics()
    topics.change("run", State.SCHEDULED, 0)
    begun_in = f"00-{'2' * 32}-{'b' * 16}-01"
    topics.change("run", State.RUNNING, 1, traceparent=begun_in)
    run = places.history(topics).run("run")
    assert run is not None
    assert run.traceparent == begun_in


def test_attempts_say_how_long_each_was_queued_and_on_which_worker_it_ran(places: Places) -> None:
    topics = Topics()
    changes = a_run(topics, "run", fails=True)
    found = places.history(topics)
    run = found.run("run")
    assert run is not None
    [task] = found.task_runs(run)
    first, second = attempts_of(task.attempts)
    at = [change.at.timestamp() for change in changes]
    assert (first.queued_at, first.started_at, first.ended_at) == (at[2], at[3], at[4])
    assert (first.worker, first.outcome, first.error) == ("tcp://w1", State.RETRYING, "ValueError: bad")
    due = changes[4].next_attempt_at
    assert due is not None
    assert (second.attempt, second.queued_at, second.started_at) == (2, due.timestamp(), at[5])
    assert (second.worker, second.outcome) == ("tcp://w2", State.FAILED)
    assert (run.state, run.error_type, task.state, task.attempt) == ("FAILED", "ValueError", "FAILED", 2)
    assert [worker.worker for worker in found.workers(BEGIN)] == ["tcp://w2", "tcp://w1"]


def test_the_tasks_of_a_packed_run_come_with_its_end(places: Places) -> None:
    topics = Topics()
    topics.change("run", State.SCHEDULED, 0)
    entries = [
        {
            "task": "price",
            "index": "0",
            "state": "COMPLETED",
            "attempt": 1,
            "started_at": topics.now(),
            "ended_at": topics.now(),
        },
        {"task": "ship", "index": "1", "state": "FAILED", "attempt": 2, "error": {"type": "E", "message": "bad"}},
    ]
    topics.change("run", State.FAILED, 1, tasks=msgspec.Raw(msgspec.json.encode(entries)))
    found = places.history(topics)
    run = found.run("run")
    assert run is not None
    assert (run.packed, run.tasks, run.tasks_ended) == (1, 2, 2)
    assert [(task.name, task.state, task.error_message) for task in found.task_runs(run)] == [
        ("price/0", "COMPLETED", None),
        ("ship/1", "FAILED", "bad"),
    ]


def test_the_changes_kept_are_those_that_a_subscriber_gets(places: Places) -> None:
    for seed in range(places.examples(20)):
        topics = a_busy_day(seed)
        found = places.history(topics)
        known: dict[int, Deduplicator] = {}
        expected: dict[str, list[int]] = {}
        for record in topics.records:
            if record.topic in (LETTERS, LOGS):
                continue
            one = known.setdefault(record.partition, Deduplicator())
            [reading] = read_all([record], STATES).readings
            said = reading.said
            if hasattr(said, "owner"):
                one.begin_epoch(record.offset)
            elif isinstance(said, StateChange) and one.is_new(said):
                expected.setdefault(said.run_id, []).append(said.seq)  # type: ignore[union-attr]
        for run_id, seqs in expected.items():
            run = found.run(run_id)
            assert run is not None
            assert [change.seq for change in found.changes(run)] == seqs
        assert len(found.runs(limit=1_000).items) == len(expected)


def test_a_run_whose_beginning_has_expired_is_shown_with_what_is_left(places: Places) -> None:
    topics = Topics()
    a_run(topics, "run")
    topics.records = topics.records[3:]
    run = places.history(topics).run("run")
    assert run is not None
    assert (run.state, run.tasks, run.tasks_ended, run.parameters) == ("COMPLETED", 1, 1, None)


def test_large_payloads_are_cut_and_their_size_is_known(places: Places) -> None:
    topics = Topics()
    large = b'"' + b"x" * 1_000_000 + b'"'
    a_run(topics, "run", parameters=msgspec.Raw(large))
    run = places.history(topics).run("run")
    assert run is not None
    assert run.parameters is not None
    assert (len(run.parameters), run.parameters_size) == (KEPT_BYTES, len(large))


def test_unreadable_records_are_told_and_passed_over(places: Places) -> None:
    topics = Topics()
    topics.append(STATES, 0, b"{", (("ce_type", b"engine.flow_run.running"),))
    a_run(topics, "run")
    [(where, why)] = read_all(topics.records, STATES).unreadable
    assert where == f"{STATES}/0/0"
    assert "cannot be read" in why
    assert places.history(topics).run("run") is not None


def test_a_number_that_no_row_can_hold_makes_its_record_unreadable_and_no_other(places: Places) -> None:
    topics = Topics()
    a_run(topics, "good")
    far = 1 << 63
    topics.change("huge", State.SCHEDULED, 0, event=msgspec.structs.replace(origin(1), offset=far))
    topics.change("huge", State.RUNNING, far)
    topics.letter(Position("orders", 0, far))
    topics.change("packed", State.SCHEDULED, 0)
    entries = [{"task": "price", "index": "0", "state": "COMPLETED", "attempt": far}]
    topics.change("packed", State.COMPLETED, 1, tasks=msgspec.Raw(msgspec.json.encode(entries)))
    assert len(read_all(topics.records, STATES).unreadable) == 2
    found = places.history(topics)
    assert {run.run_id for run in found.runs().items} == {"good", "packed"}
    assert [line.row.event_offset for line in found.letters().items] == [None]


def test_pages_of_runs_hold_each_run_once_the_newest_first(places: Places) -> None:
    topics = a_busy_day(3, runs=25)
    found = places.history(topics)
    for wanted in (
        RunFilter(),
        RunFilter(flows=["fulfil"]),
        RunFilter(flows=["ship", "fulfil"], states=[State.COMPLETED, State.FAILED]),
    ):
        paged, cursor = [], None
        while True:
            page = found.runs(wanted, cursor=cursor, limit=4)
            paged += page.items
            cursor = page.cursor
            if cursor is None:
                break
        assert paged == found.runs(wanted, limit=1_000).items
        assert [run.scheduled_at for run in paged] == sorted((run.scheduled_at for run in paged), reverse=True)
        assert len({run.run_id for run in paged}) == len(paged)
        assert all(run.flow in wanted.flows or not wanted.flows for run in paged)
    assert len(found.runs(limit=1_000).items) == 25
    assert found.runs(RunFilter(key="nobody")).items == []
    with pytest.raises(EventError, match="no cursor"):
        found.runs(cursor="x")


def test_a_run_is_found_by_the_beginning_of_its_id_where_no_other_has_it(places: Places) -> None:
    topics = Topics()
    for run_id in ("abc1", "abc2", "xyz"):
        a_run(topics, run_id)
    found = places.history(topics)
    assert found.run("ab") is None
    assert [run.run_id for name in ("abc1", "x") if (run := found.run(name))] == ["abc1", "xyz"]


def test_events_have_the_runs_they_made_or_the_letter_that_says_why_none(places: Places) -> None:
    topics = Topics()
    a_run(topics, "one", event=origin(1))
    a_run(topics, "two", event=origin(1), flow="ship")
    topics.letter(Position("orders", 0, 9))
    found = places.history(topics)
    page = found.events()
    assert {(event.offset, tuple(run.run_id for run in event.runs), len(event.letters)) for event in page.items} == {
        (1, ("one", "two"), 0),
        (9, (), 1),
    }
    first = found.events(limit=1)
    assert first.items + found.events(cursor=first.cursor).items == page.items
    assert found.positions_of("event-1") == [Position("orders", 0, 1)]
    event = found.event(Position("orders", 0, 9))
    assert event is not None
    assert (event.source, event.id, event.letters[0].reason) == ("/shop", "e1", "malformed-data")
    assert found.event(Position("orders", 0, 99)) is None


def test_what_became_of_letters_is_what_the_command_says(places: Places) -> None:
    topics = Topics(5)
    place = Position("orders", 0, 1)
    first, details = topics.letter(place)
    topics.letter(place)  # a copy
    topics.mark(f"0/{first}", details, Marked.REPLAYED, "r1")
    topics.mark(f"0/{first}", details, Marked.DROPPED)
    topics.letter(Position("orders", 0, 2), partition=1)
    listed = LetterList()
    for record in topics.records:
        listed.add(record)
    expected = {entry.letter.id: (entry.status, entry.replays) for entry in listed.entries()}
    found = places.history(topics)
    lines = found.letters(all=True).items
    assert {f"{line.row.partition}/{line.row.place}": (line.status, line.replays) for line in lines} == expected
    assert [line.status for line in found.letters().items] == [Status.OPEN]
    first_page = found.letters(all=True, limit=2)
    assert first_page.items + found.letters(all=True, cursor=first_page.cursor).items == lines


def test_a_page_of_open_letters_looks_at_a_bounded_number_and_goes_on_from_there(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(History, "LOOKED_AT", 4)
    topics = Topics(gaps=False)
    for number in range(12):
        letter, details = topics.letter(Position("orders", 0, number), partition=number % 2)
        if number not in (0, 9):
            topics.mark(f"{number % 2}/{letter}", details, Marked.DROPPED)
    found = places.history(topics)
    pages = [found.letters(limit=3)]
    while pages[-1].cursor is not None:
        pages.append(found.letters(cursor=pages[-1].cursor, limit=3))
    assert [[line.row.event_offset for line in page.items] for page in pages] == [[9], [], [0], []]
    assert found.letters(all=True, limit=50).cursor is None


def test_flows_are_judged_by_their_last_runs_and_minutes_count_states(places: Places) -> None:
    topics = Topics()
    for number in range(4):
        a_run(topics, f"run-{number}", fails=number == 0)
    topics.change("open", State.SCHEDULED, 0)
    found = places.history(topics)
    [flow] = found.flows()
    assert (flow.flow, flow.runs, flow.success_rate, len(flow.last)) == ("fulfil", 4, 0.75, 4)
    assert flow.p50_seconds is not None
    assert flow.p95_seconds is not None
    assert 0 < flow.p50_seconds <= flow.p95_seconds
    counts: dict[str, int] = {}
    for _, state, count in found.minutes(topics.now().timestamp()):
        counts[state] = counts.get(state, 0) + count
    assert counts == {"SCHEDULED": 5, "RUNNING": 4, "COMPLETED": 3, "FAILED": 1}
    open_counts, oldest = found.open_runs()
    assert open_counts == {"SCHEDULED": 1, "RUNNING": 0, "RETRYING": 0}
    assert oldest is not None
    assert oldest.run_id == "open"


def test_lines_of_a_run_come_in_their_order_page_by_page_and_as_they_are_wanted(places: Places) -> None:
    topics = Topics()
    a_run(topics, "run")
    for number in range(200):
        topics.log("run", f"{number} a", f"{number} b", task=f"price/0.{number}", level=40 if number == 7 else 20)
        topics.log("other", "not mine")
    topics.log("run", "of the flow", task=None, level=10)
    found = places.history(topics)
    lines = found.logs("run")
    assert [line.message for line in lines] == [f"{n} {part}" for n in range(200) for part in "ab"] + ["of the flow"]
    assert [line.seq for line in lines] == sorted({line.seq for line in lines})
    paged = found.logs("run", limit=3)
    while page := found.logs("run", after=paged[-1].seq, limit=150):
        paged += page
    assert paged == lines
    assert found.logs("run", limit=5, wanted=LogFilter(latest=True)) == lines[-5:]
    assert found.logs("run", wanted=LogFilter(latest=True)) == lines
    assert [line.message for line in found.logs("run", wanted=LogFilter(level="warning"))] == ["7 a", "7 b"]
    assert len(found.logs("run", wanted=LogFilter(task="price"))) == 400
    assert [line.message for line in found.logs("run", wanted=LogFilter(task="price/0.19"))] == ["19 a", "19 b"]
    first, last = lines[0], lines[-1]
    assert (first.name, first.attempt, first.level, first.logger) == ("price/0.0", 1, "info", "orders")
    assert (first.trace_id, last.name, last.level) == (TRACE[3:35], None, "debug")
    assert BEGIN < first.at < last.at
    assert found.logs("nobody") == []


def test_a_reader_sees_what_a_projector_has_written(places: Places) -> None:
    place = places.new()
    topics = Topics()
    a_run(topics, "run")
    store = places.store(topics.records, place)
    with History.open(place) as found:
        assert found.run("run") is not None
        assert found.offsets() == {(STATES, 0): topics.records[-1].offset + 1}
        before = found.version()
        assert found.version() == before
        a_run(topics, "next")
        take(store, topics.records)
        assert found.version() != before
        assert found.is_current()
        # What no topic can have said nobody is asked for, by whatever command.
        assert found.run("\udcff") is None
        assert found.event(Position("orders", 0, 1 << 70)) is None


def test_of_each_flow_the_newest_declaration_is_kept(places: Places) -> None:
    topics = Topics()
    old, new = topics.now(), topics.now()
    topics.declaration("fulfil", at=new, signature="fulfil(order)")
    topics.declaration("fulfil", at=old, signature="fulfil()")
    other = topics.declaration("another")
    topics.append(STATES, 0, b"{", (("ce_type", b"engine.flow"),))
    found = places.history(topics)
    assert [(one.name, one.signature) for one in found.declarations()] == [
        ("another", "another()"),
        ("fulfil", "fulfil(order)"),
    ]
    assert found.declarations()[0] == other
    assert not found.runs().items
