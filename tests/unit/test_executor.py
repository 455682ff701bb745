"""engine.executor: the keys by which runs and calls find each other on the cluster."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.executor import Call, Report, key_of, run_of
from engine.states import Failure, State

RUN_ID = "0123456789abcdef" * 2


@given(st.from_regex(r"[A-Za-z0-9_.]{0,12}", fullmatch=True), st.integers(0, 10**6))
def test_a_key_says_which_run_it_belongs_to(task: str, index: int) -> None:
    assert run_of(key_of(task, RUN_ID, index)) == RUN_ID


def test_keys_are_the_same_for_every_owner_and_begin_with_the_task() -> None:
    assert key_of("price", RUN_ID, 3) == f"price-{RUN_ID}-3"
    assert key_of("", RUN_ID, 3) == f"result-{RUN_ID}-3"


@pytest.mark.parametrize("key", ["", "price", "inc-0123", "a-b-c", f"price-{RUN_ID}", "price-" + "0" * 31 + "-1"])
def test_keys_of_others_are_not_ours(key: str) -> None:
    assert run_of(key) is None


def test_calls_and_reports_survive_the_way_between_processes() -> None:
    call = Call(
        index=1,
        task="price",
        function="m:price",
        flow="fulfil",
        run_id=RUN_ID,
        arguments=b"\x00\xff",
        dependencies=(0,),
        attempt=2,
        depth=1,
        is_async=False,
        returns=True,
        inline_result_bytes=5,
        timeout_seconds=None,
        traceparent="",
        scheduled_at=1.5,
    )
    report = Report(RUN_ID, 1, State.FAILED, 2, 1.0, 2.0, "w", Failure("E", "m", "t"), None, None)
    for value in (call, report):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value
