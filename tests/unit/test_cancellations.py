"""engine.cancellations: a record by which somebody wants a run to end, and what its owner makes of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cancellations import MAX_REASON, Cancellation, is_cancellation, read_cancellation, write_cancellation
from engine.endings import cancelled
from engine.errors import EventError
from engine.ledger import Ledger
from engine.runs import FlowRun
from engine.states import State, read, type_of, utc
from tests.unit.test_ledger import RUN_IDS, change, feed, scheduled

S = State
ASKED = Cancellation(RUN_IDS[0], utc(5.0), "enough")


def test_a_record_says_what_was_written_and_readers_of_changes_skip_it() -> None:
    value, headers = write_cancellation("shop", ASKED)
    assert is_cancellation(type_of(headers))
    assert read_cancellation(value) == ASKED
    assert read(value, headers) is None
    assert dict(headers)["ce_subject"] == ASKED.run_id.encode()


def test_a_reason_is_cut_and_never_empty() -> None:
    long = msgspec.structs.replace(ASKED, reason="x" * (MAX_REASON + 1))
    assert len(read_cancellation(write_cancellation("shop", long)[0]).reason) == MAX_REASON
    empty = msgspec.structs.replace(ASKED, reason="")
    assert read_cancellation(write_cancellation("shop", empty)[0]).reason == "cancelled"


@given(st.one_of(st.none(), st.binary(), st.sampled_from([b"{}", b"[" * 10_000, b'{"run_id": 7, "at": "now"}'])))
def test_what_is_none_is_an_event_error(value: bytes | None) -> None:
    with pytest.raises(EventError):
        read_cancellation(value)


def test_all_that_is_open_ends_and_the_run_last() -> None:
    run = FlowRun(scheduled(), 1)
    run.apply(change(RUN_IDS[0], S.RUNNING, 1))
    for seq, (index, state) in enumerate([("0", S.SCHEDULED), ("1", S.SCHEDULED), ("1", S.RUNNING), ("2", S.SCHEDULED)], 2):
        run.apply(change(RUN_IDS[0], state, seq, task="t", task_run_id=f"{RUN_IDS[0]}/t/{index}"))
    run.apply(change(RUN_IDS[0], S.RUNNING, 6, task="t", task_run_id=f"{RUN_IDS[0]}/t/2"))
    run.apply(change(RUN_IDS[0], S.COMPLETED, 7, task="t", task_run_id=f"{RUN_IDS[0]}/t/2"))
    run.cancelled = "enough"
    made = cancelled(run, 9.0, epoch=4)
    assert [(one.task_run_id and one.task_run_id[-1], one.state, one.reason, one.seq) for one in made] == [
        ("0", S.CANCELLED, "cancelled", 8),
        ("1", S.CANCELLED, "cancelled", 9),
        (None, S.CANCELLED, "enough", 10),
    ]
    assert {one.epoch for one in made} == {4}


def test_the_ledger_answers_the_open_run_once_and_only_while_it_is_open() -> None:
    ledger = feed(Ledger(0, epoch=0, dedup_window_seconds=60.0), [None, scheduled()])
    assert ledger.cancel(2, msgspec.structs.replace(ASKED, run_id=RUN_IDS[1])) is None
    run = ledger.cancel(3, ASKED)
    assert run is not None
    assert (run.run_id, run.cancelled) == (RUN_IDS[0], "enough")
    assert ledger.cancel(3, ASKED) is None, "read before"
    assert ledger.next_offset == 4
    ledger.close(RUN_IDS[0])
    assert ledger.cancel(4, ASKED) is None


def test_a_run_that_ended_behind_the_cancellation_is_not_open_and_one_that_did_not_is_flagged() -> None:
    ledger = feed(Ledger(0, epoch=6, dedup_window_seconds=60.0), [None, scheduled(), scheduled(RUN_IDS[1])])
    for offset, run_id in ((3, RUN_IDS[0]), (4, RUN_IDS[1])):
        ledger.cancel(offset, msgspec.structs.replace(ASKED, run_id=run_id))
    ledger.read(5, change(RUN_IDS[0], S.CANCELLED, 1))
    ledger.begin_epoch(6)
    assert {run.run_id: run.cancelled for run in ledger} == {RUN_IDS[1]: "enough"}


def test_a_run_that_waits_on_the_log_is_cancelled_when_it_is_opened() -> None:
    ledger = feed(Ledger(0, epoch=0, dedup_window_seconds=60.0), [None])
    ledger.shelf.put(("f", None), 1)
    ledger.skip(1)
    assert ledger.cancel(2, ASKED) is None
    run = ledger.open_late(1, scheduled())
    assert run is not None
    assert run.cancelled == "enough"
    other = ledger.open_late(1, scheduled(RUN_IDS[1]))
    assert other is not None
    assert other.cancelled is None
