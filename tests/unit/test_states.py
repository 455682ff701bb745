"""engine.states: the table, and state changes exactly as the outer contract has them."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EventError, IllegalTransition
from engine.events import Reason
from engine.states import (
    TRANSITIONS,
    Envelope,
    Epochs,
    Failure,
    Origin,
    Ownership,
    State,
    StateChange,
    encode,
    follow,
    is_ownership,
    is_scheduled,
    later,
    read,
    type_of,
    utc,
    write_ownership,
)

RUN_ID = "0123456789abcdef" * 2
TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
AT = datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
ENVELOPE = Envelope.of("shop", RUN_ID)


def change(state: State = State.RUNNING, seq: int = 1, **fields: Any) -> StateChange:
    values: dict[str, Any] = {"epoch": 7, "attempt": 1, "at": AT} | fields
    return StateChange(run_id=RUN_ID, flow="fulfil", state=state, seq=seq, **values)


@pytest.mark.parametrize(("state", "new_state"), list(itertools.product([None, *State], State)))
def test_a_transition_is_legal_only_as_a_row_of_the_table(state: State | None, new_state: State) -> None:
    if (state, new_state) in TRANSITIONS:
        assert follow("it", state, new_state) is new_state
    else:
        with pytest.raises(IllegalTransition, match=f"it cannot go from {state or 'nothing'} to {new_state}"):
            follow("it", state, new_state)


def test_the_table_is_the_documented_one() -> None:
    """SCHEDULED → RUNNING → (RETRYING → RUNNING)* → an end; cancelled and crashed from every open state."""
    ends = {State.COMPLETED, State.FAILED, State.CRASHED, State.CANCELLED}
    assert {state for state in State if state.is_end} == ends
    after = {state: {new for old, new in TRANSITIONS if old is state} for state in [None, *State]}
    assert after.pop(None) == {State.SCHEDULED}
    assert after.pop(State.SCHEDULED) == {State.RUNNING, State.CANCELLED, State.CRASHED}
    assert after.pop(State.RUNNING) == {State.RETRYING, *ends}
    assert after.pop(State.RETRYING) == {State.RUNNING, State.CANCELLED, State.CRASHED}
    assert set(after) == ends
    assert not any(after.values())  # nothing follows an end


@given(st.integers(0, 4_000_000_000_000_000))
def test_a_time_always_shows_its_microseconds(microseconds: int) -> None:
    at = utc(microseconds / 1e6)
    value, headers = ENVELOPE.write(change(at=at), TRACEPARENT)
    shown = msgspec.json.decode(value)["at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", shown)
    assert dict(headers)["ce_time"].decode() == shown
    assert abs(at.timestamp() - microseconds / 1e6) < 2e-6


def test_headers_are_a_cloudevent_in_binary_mode() -> None:
    _, headers = ENVELOPE.write(change(), TRACEPARENT)
    assert headers == (
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{RUN_ID}/7/1".encode()),
        ("ce_source", b"/engine/shop"),
        ("ce_type", b"engine.flow_run.running"),
        ("ce_subject", RUN_ID.encode()),
        ("ce_time", b"2026-02-03T04:05:06.000007Z"),
        ("ce_sequence", b"1"),
        ("traceparent", TRACEPARENT.encode()),
        ("content-type", b"application/json"),
    )


@pytest.mark.parametrize("state", State)
def test_the_type_says_whose_change_it_is_and_which(state: State) -> None:
    _, of_flow = ENVELOPE.write(change(state), TRACEPARENT)
    _, of_task = ENVELOPE.write(change(state, task="price", task_run_id=f"{RUN_ID}/price/0"), TRACEPARENT)
    assert type_of(of_flow) == f"engine.flow_run.{state.value.lower()}".encode()
    assert type_of(of_task) == f"engine.task_run.{state.value.lower()}".encode()
    assert is_scheduled(type_of(of_flow)) == (state is State.SCHEDULED)
    assert not is_scheduled(type_of(of_task))


def test_the_data_of_a_scheduled_run() -> None:
    origin = Origin("/shop", "42", "order.created", "orders", 3, 99)
    scheduled = change(State.SCHEDULED, 0, epoch=0, attempt=0, parameters=msgspec.Raw(b'{"order":{"id":"a"}}'), event=origin)
    value, _ = ENVELOPE.write(scheduled, TRACEPARENT)
    assert msgspec.json.decode(value) == {
        "run_id": RUN_ID,
        "flow": "fulfil",
        "state": "SCHEDULED",
        "seq": 0,
        "epoch": 0,
        "attempt": 0,
        "at": "2026-02-03T04:05:06.000007Z",
        "parameters": {"order": {"id": "a"}},
        "event": {
            "source": "/shop",
            "id": "42",
            "type": "order.created",
            "topic": "orders",
            "partition": 3,
            "offset": 99,
        },
    }


def test_the_data_of_a_task_run() -> None:
    running = change(
        task="price", task_run_id=f"{RUN_ID}/price/2", map_index=0, parents=(f"{RUN_ID}/load/0",), worker="tcp://w"
    )
    value, _ = ENVELOPE.write(running, TRACEPARENT)
    assert msgspec.json.decode(value) == {
        "run_id": RUN_ID,
        "flow": "fulfil",
        "state": "RUNNING",
        "seq": 1,
        "epoch": 7,
        "attempt": 1,
        "at": "2026-02-03T04:05:06.000007Z",
        "task": "price",
        "task_run_id": f"{RUN_ID}/price/2",
        "map_index": 0,
        "parents": [f"{RUN_ID}/load/0"],
        "worker": "tcp://w",
    }


@pytest.mark.parametrize(
    ("state", "fields", "expected"),
    [
        (State.COMPLETED, {"result": msgspec.Raw(b"[1]")}, {"result": [1]}),
        (State.COMPLETED, {"result": msgspec.Raw(b"null")}, {"result": None}),
        (State.COMPLETED, {"result_ref": "r", "reason": "too large"}, {"result_ref": "r", "reason": "too large"}),
        (
            State.FAILED,
            {"error": Failure("ValueError", "bad", "Traceback …")},
            {"error": {"type": "ValueError", "message": "bad", "traceback": "Traceback …"}},
        ),
    ],
)
def test_the_data_of_an_end(state: State, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    value, _ = ENVELOPE.write(change(state, **fields), TRACEPARENT)
    shown = msgspec.json.decode(value)
    assert {key: shown[key] for key in shown.keys() - {"run_id", "flow", "state", "seq", "epoch", "attempt", "at"}} == expected


def test_what_was_written_is_read_with_its_span() -> None:
    written = change(State.FAILED, error=Failure("E", "m"), next_attempt_at=AT, worker="w")
    value, headers = ENVELOPE.write(written, TRACEPARENT)
    assert read(value, headers) == msgspec.structs.replace(written, traceparent=TRACEPARENT)


def test_an_ownership_record_is_read_back() -> None:
    ownership = Ownership(3, "host-1", AT)
    value, headers = write_ownership("shop", ownership)
    assert is_ownership(type_of(headers))
    assert read(value, headers) == ownership


@pytest.mark.parametrize(
    "headers", [(), (("ce_type", b"engine.checkpoint"),), (("ce_type", b"order.created"),), (("ce_type", b"\xff"),)]
)
def test_readers_skip_what_they_do_not_know(headers: Any) -> None:
    assert read(b"\xff not even JSON", headers) is None


@pytest.mark.parametrize(
    "value",
    [None, b"", b"x", b"\xff\xfe", b"{", b"[" * 100_000, b"NaN", b"9" * 5_000, b"null", b"{}", b'{"run_id": 1}'],
    ids=lambda value: repr(value)[:12],
)
@pytest.mark.parametrize("ce_type", [b"engine.flow_run.running", b"engine.task_run.failed", b"engine.ownership"])
def test_a_record_that_says_it_is_ours_and_is_not_is_an_error(value: bytes | None, ce_type: bytes) -> None:
    with pytest.raises(EventError, match=ce_type.decode()) as caught:
        read(value, (("ce_type", ce_type),))
    assert caught.value.reason == Reason.MALFORMED_DATA


def test_a_newer_version_may_add_fields() -> None:
    value, headers = ENVELOPE.write(change(), TRACEPARENT)
    wider = msgspec.json.encode({**msgspec.json.decode(value), "from_the_future": [1]})
    assert read(wider, headers) == msgspec.structs.replace(change(), traceparent=TRACEPARENT)


def test_changes_of_an_older_epoch_are_void_after_a_newer_ownership() -> None:
    epochs = Epochs()
    assert epochs.admits(change(epoch=3))
    epochs.begin(5)
    assert not epochs.admits(change(epoch=3))
    assert epochs.admits(change(epoch=5))
    assert epochs.admits(change(epoch=8))
    epochs.begin(2)  # read again after a rebalance: nothing goes back
    assert not epochs.admits(change(epoch=3))


def test_scheduled_of_a_run_belongs_to_no_epoch_but_that_of_a_task_does() -> None:
    epochs = Epochs()
    epochs.begin(5)
    assert epochs.admits(change(State.SCHEDULED, 0, epoch=0))
    assert not epochs.admits(change(State.SCHEDULED, 1, epoch=0, task="t", task_run_id="r/t/0"))


def test_values_without_json_are_refused() -> None:
    assert encode({"a": (1, AT)}) == b'{"a":[1,"2026-02-03T04:05:06.000007Z"]}'
    with pytest.raises(TypeError):
        encode(object())


@given(st.floats(0, 4e9), st.floats(0, 1e6))
def test_a_later_moment_is_exact_and_never_a_whole_second(seconds: float, wait_seconds: float) -> None:
    moment = later(utc(seconds), wait_seconds)
    assert abs(moment - utc(seconds) - timedelta(seconds=wait_seconds)) <= timedelta(microseconds=1)
    assert moment.microsecond
    assert later(utc(1795453088.45434), 0.05) == utc(1795453088.45434) + timedelta(seconds=0.05)
