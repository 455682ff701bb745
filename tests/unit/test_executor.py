"""engine.executor: the keys by which runs and calls find each other on the cluster."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.executor import ITEM, LIST, VALUE, Call, Report, decode_reports, encode_reports, index_of, key_of, run_of, values_at
from engine.states import Failure, State

RUN_ID = "0123456789abcdef" * 2


#: Of a flow's call, of an element of a map, of either in a later attempt of the flow, of a child, of the result.
INDICES = st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,6})?(~[0-9]{1,2})?|[0-9a-f]{16}|result", fullmatch=True)


@given(st.from_regex(r"[A-Za-z0-9_.]{0,12}", fullmatch=True), INDICES)
def test_a_key_says_which_run_and_which_call_it_belongs_to(task: str, index: str) -> None:
    key = key_of(task, RUN_ID, index)
    assert (run_of(key), index_of(key)) == (RUN_ID, index)


def test_keys_are_the_same_for_every_owner_and_begin_with_the_task() -> None:
    assert key_of("price", RUN_ID, "3") == f"price-{RUN_ID}-3"
    assert key_of("", RUN_ID, "3") == f"result-{RUN_ID}-3"


@pytest.mark.parametrize("key", ["", "price", "inc-0123", "a-b-c", f"price-{RUN_ID}", "price-" + "0" * 31 + "-1"])
def test_keys_of_others_are_not_ours(key: str) -> None:
    assert run_of(key) is None


CALL = Call(
    index="1.7",
    task="price",
    function="m:price",
    flow="fulfil",
    run_id=RUN_ID,
    arguments=b"\x00\xff",
    dependencies=(f"list-{RUN_ID}-0",),
    places=((2, 0, 7),),
    attempt=2,
    depth=1,
    is_async=False,
    returns=True,
    is_final=True,
    inline_result_bytes=5,
    timeout_seconds=None,
    traceparent="",
    scheduled_at=1.5,
    is_walked=True,
    map_index=7,
    spawned_by="0",
)
REPORT = Report(RUN_ID, "1.7", State.FAILED, 2, 1.0, 2.0, "w", Failure("E", "m", "t"))


def test_calls_and_reports_survive_the_way_between_processes() -> None:
    full = msgspec.structs.replace(REPORT, tail=("a",), handled=("b",), spawned=(CALL,), continuation=CALL, length=3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(CALL), type=Call) == CALL
    assert decode_reports(encode_reports([REPORT, full])) == [REPORT, full]


@pytest.mark.parametrize(
    ("fields", "has_value"),
    [({}, False), ({"result": b"1"}, True), ({"kept": "too large"}, True), ({"stored": "r"}, True), ({"length": 0}, True)],
)
def test_a_report_says_whether_it_says_something_of_the_value(fields: dict[str, Any], has_value: bool) -> None:
    ended = msgspec.structs.replace(REPORT, state=State.COMPLETED, error=None, **fields)
    assert (ended.has_value, ended.is_urgent) == (has_value, has_value)
    assert REPORT.is_urgent


def test_results_are_put_where_the_places_say() -> None:
    assert values_at((), [1, 2]) == [1, 2]
    assert values_at(((LIST, 1, 3), (ITEM, 0, 1), (VALUE, 0, 0)), [[7, 8], "a", "b"]) == [["a", "b"], 8, [7, 8]]
