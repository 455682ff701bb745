"""engine.repeats: which runs may be repeated, and what their repeats are."""

from __future__ import annotations

import msgspec
import pytest

from engine.command_errors import NotFound, NotRepeatable
from engine.repeats import Kind, Story, repeat
from engine.settings import Settings
from engine.states import Origin, State, StateChange, utc
from engine.translator import write_scheduled

RUN = "ab" * 16
SCHEDULED = StateChange(
    run_id=RUN,
    flow="fulfil",
    state=State.SCHEDULED,
    seq=0,
    epoch=0,
    attempt=0,
    at=utc(1.0),
    parameters=msgspec.Raw(b'{"a":1}'),
    event=Origin("/s", "1", "t", "orders", 0, 3),
    key="customer",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)


def history(end: State | None, *others: StateChange) -> Story:
    made = Story()
    made.take(RUN, SCHEDULED)
    if end is not None:
        made.take(RUN, msgspec.structs.replace(SCHEDULED, state=end, seq=2))
    for change in others:
        made.take(RUN, change)
    return made


def made(history: Story, kind: Kind = Kind.RETRY, request: str | None = None) -> StateChange:
    return repeat(RUN, history, kind, request, 5.0)


@pytest.mark.parametrize("state", [State.FAILED, State.CRASHED, State.CANCELLED])
def test_a_retry_is_the_same_with_another_id_and_says_what_it_repeats(state: State) -> None:
    change = made(history(state))
    assert change.run_id != RUN
    assert (change.repeats, change.seq, change.epoch, change.traceparent) == (RUN, 0, 0, None)
    assert (change.flow, change.parameters, change.event, change.key) == (
        *(SCHEDULED.flow, SCHEDULED.parameters),
        *(SCHEDULED.event, "customer"),
    )
    assert write_scheduled(Settings(), change, "").key == b"customer"
    keyless = msgspec.structs.replace(change, key=None)
    assert write_scheduled(Settings(), keyless, "").key == change.run_id.encode()


def test_what_completed_is_rerun_and_not_retried() -> None:
    with pytest.raises(NotRepeatable, match="runs rerun"):
        made(history(State.COMPLETED))
    assert made(history(State.COMPLETED), Kind.RERUN).repeats == RUN


def test_what_is_open_or_unknown_is_not_repeated() -> None:
    with pytest.raises(NotRepeatable, match="runs watch"):
        made(history(None), Kind.RERUN)
    with pytest.raises(NotFound):
        made(Story())


def test_a_request_makes_the_same_run_and_another_request_another() -> None:
    failed = history(State.FAILED)
    assert made(failed, request="a").run_id == made(failed, request="a").run_id
    assert len({made(failed, request="a").run_id, made(failed, request="b").run_id, made(failed, request="1").run_id}) == 3
    assert made(failed).run_id != made(failed, request="1").run_id


def test_sent_again_while_the_repeat_is_open_it_is_the_same_and_then_the_next() -> None:
    first = made(history(State.FAILED))
    assert made(history(State.FAILED, first)).run_id == first.run_id
    end = msgspec.structs.replace(first, state=State.FAILED, seq=2, repeats=None)
    assert made(history(State.FAILED, first, end)).run_id != first.run_id
