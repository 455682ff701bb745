"""engine.testing: flows on events in the test's own process."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine import testing
from engine.states import State
from tests.integration import flows_bad, flows_graphs


def test_one_flow_on_one_event() -> None:
    run = testing.run(flows_graphs.two, {"value": 20})
    assert (run.state, run.result(), run.flow, run.error) == (State.COMPLETED, 41, "two", None)
    assert [change.seq for change in run.changes] == list(range(9))
    assert run.end is run.changes[-1]


def test_a_result_is_decoded_to_the_type_asked_for() -> None:
    run = testing.run(flows_graphs.composite, {"skus": ["a"]})
    assert run.result(dict[str, object])["count"] == 1
    with pytest.raises(ValueError, match="Expected"):
        run.result(int)


def test_the_type_of_the_event_is_that_of_the_trigger() -> None:
    assert testing.run(flows_graphs.three, {"value": 1}).result() == 2
    assert testing.run(flows_graphs.three, {"value": 1}, type="number.other").result() == 2
    with pytest.raises(LookupError, match="started 0 runs, not one; dead letters: none"):
        testing.run(flows_graphs.three, {"value": 1}, type="word.new")


def test_a_dead_letter_is_named_where_a_run_was_expected() -> None:
    with pytest.raises(LookupError, match=r"\$.value"):
        testing.run(flows_graphs.two, {"value": "many"})


def test_a_run_that_failed_has_its_error_and_no_result() -> None:
    run = testing.run(flows_graphs.break_down, {"value": 7})
    assert run.state is State.FAILED
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("ValueError", "no 7 here")
    with pytest.raises(LookupError, match="ended FAILED without a result"):
        run.result()


def test_a_result_that_stayed_says_why() -> None:
    run = testing.run(flows_graphs.outgrow, {"size": 50_000})
    assert run.state is State.COMPLETED
    with pytest.raises(LookupError, match="too large"):
        run.result()


def test_on_an_in_process_cluster() -> None:
    assert testing.run(flows_graphs.diamond, {"value": 5}, cluster=True).result() == 23


def test_what_no_worker_could_send_fails_here_too() -> None:
    run = testing.run(flows_bad.hand_on, {"kind": "unpicklable result", "copies": 1})
    assert run.error is not None
    assert run.error.type == "ResultStuck"


class TestBench:
    async def test_several_flows_on_one_event(self) -> None:
        async with testing.bench(flows_graphs.one, flows_graphs.two) as bench:
            outcome = await bench.send("numbers", {"value": 1})
        assert sorted((run.flow, run.result()) for run in outcome.runs) == [("one", 2), ("two", 3)]
        assert outcome.dead_letters == []
        with pytest.raises(LookupError, match="started 2 runs"):
            _ = outcome.run

    async def test_the_same_identity_is_the_same_run(self) -> None:
        async with testing.bench(flows_graphs.one) as bench:
            first = await bench.send("numbers", {"value": 1}, id="e")
            second = await bench.send("numbers", {"value": 2}, id="e")
        assert first.run.run_id == second.run.run_id
        assert second.run.result() == 2

    async def test_records_as_another_producer_writes_them(self) -> None:
        async with testing.bench(flows_graphs.one) as bench:
            bare = await bench.send_record("numbers", b'{"value": 4}', key=b"k")
            bad = await bench.send_record("numbers", b"\xff", (("trace", b"1"),), key=b"k")
            broken = await bench.send_record("numbers", b"{}", (("ce_specversion", b"9"),))
        assert bare.run.result() == 8
        assert bad.runs == broken.runs == []
        [letter] = bad.dead_letters
        assert (letter.key, letter.value, letter.headers[0]) == (b"k", b"\xff", ("trace", b"1"))
        assert dict(broken.dead_letters[0].headers)["x-engine-reason"] == b"malformed-event"

    async def test_one_good_and_one_bad_flow_on_one_event(self) -> None:
        async with testing.bench(flows_graphs.one, flows_graphs.plain, flows_bad.wire_badly) as bench:
            outcome = await bench.send("wirings", {"kind": "raise"})
        assert outcome.run.state is State.FAILED

    async def test_many_events_at_once(self) -> None:
        async with testing.bench(flows_graphs.diamond) as bench:
            outcomes = await asyncio.gather(*(bench.send("diamonds", {"value": n}) for n in range(50)))
        assert [outcome.run.result() for outcome in outcomes] == [4 * n + 3 for n in range(50)]

    async def test_what_the_test_raises_comes_out_and_all_is_closed(self) -> None:
        with pytest.raises(TypeError, match="type object"):
            async with testing.bench(flows_graphs.one) as bench:
                await bench.send("numbers", object())
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]
