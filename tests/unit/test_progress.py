"""engine.progress: how a run goes on, from reports to state changes and submissions, also for a second owner."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import task
from engine.arguments import child_index
from engine.errors import EngineError
from engine.executor import Call, Report, index_of, key_of
from engine.handles import MapHandle, unmapped
from engine.planning import Outcome
from engine.progress import Progress
from engine.states import TRANSITIONS, Failure, State, StateChange, utc
from engine.steps import Step
from tests.unit.driven import CHAIN, DIAMOND, ONE, Driven, dag, rebuilt, short, t
from tests.unit.recorded import BAD, RUN_ID, Gone, run_of
from tests.unit.samples.orders import add, double, listing, total

COMPLETED, FAILED, CRASHED, RUNNING = State.COMPLETED, State.FAILED, State.CRASHED, State.RUNNING


class TestOneOwner:
    def test_one_task(self) -> None:
        driven = Driven(ONE)
        assert short(driven.told) == ["run RUNNING", "0 SCHEDULED"]
        assert driven.submitted == ["0"]
        assert driven.hear(0, RUNNING) == ["0 RUNNING"]
        assert driven.hear(0, COMPLETED, result=b"42") == ["0 COMPLETED", "run COMPLETED"]
        assert bytes(driven.told[-1].result) == b"42"
        assert [change.seq for change in driven.told] == [1, 2, 3, 4, 5]
        assert {change.epoch for change in driven.told} == {9}
        assert driven.progress.is_ended

    def test_an_end_that_comes_first_tells_the_start_first_at_the_workers_time(self) -> None:
        driven = Driven(ONE)
        assert driven.hear(0, COMPLETED, result=b"1") == ["0 RUNNING", "0 COMPLETED", "run COMPLETED"]
        running = driven.told[2]
        assert (running.at, running.worker, running.attempt) == (utc(11.0), "tcp://w", 1)
        assert driven.told[3].at == utc(12.0)

    def test_a_diamond_is_submitted_whole_and_told_with_parents(self) -> None:
        driven = Driven(DIAMOND)
        assert sorted(driven.submitted) == ["0", "1", "2", "3"]
        assert driven.told[4].parents == (f"{RUN_ID}/t/1", f"{RUN_ID}/t/2")
        for index in (0, 2, 1):
            driven.hear(index, COMPLETED)
        assert driven.hear(3, COMPLETED, result=b"1")[-1] == "run COMPLETED"

    def test_independent_calls_are_submitted_in_the_order_of_the_flow(self) -> None:
        assert Driven(dag((), (), (), collect=(0, 1, 2))).submitted == ["0", "1", "2", "result"]

    def test_a_run_without_tasks_ends_at_once_with_its_plain_result(self) -> None:
        driven = Driven(dag())
        assert short(driven.told) == ["run RUNNING", "run COMPLETED"]
        assert bytes(driven.told[-1].result) == b"7"

    def test_a_plain_result_waits_for_all_tasks(self) -> None:
        driven = Driven(dag((), ()))
        assert driven.hear(1, COMPLETED) == ["1 RUNNING", "1 COMPLETED"]
        assert driven.hear(0, COMPLETED)[-1] == "run COMPLETED"
        assert bytes(driven.told[-1].result) == b"7"

    def test_a_failure_cancels_what_needs_it_and_fails_the_run(self) -> None:
        driven = Driven(DIAMOND)
        driven.hear(0, COMPLETED)
        assert driven.hear(1, FAILED) == ["1 RUNNING", "1 FAILED", "3 CANCELLED"]
        assert driven.told[-1].reason == "upstream"
        assert driven.told[-2].error == BAD
        assert not driven.progress.is_ended  # the independent branch goes on
        assert driven.hear(2, COMPLETED) == ["2 RUNNING", "2 COMPLETED", "run FAILED"]
        assert driven.told[-1].error == BAD

    def test_the_first_of_two_failures_is_the_runs(self) -> None:
        driven = Driven(dag((), ()))
        driven.hear(1, FAILED, error=Failure("First", ""))
        driven.hear(0, CRASHED, error=Failure("Second", ""))
        assert (driven.told[-1].state, driven.told[-1].error) == (FAILED, Failure("First", ""))

    def test_infrastructure_that_fails_crashes_the_run_even_before_it_began(self) -> None:
        driven = Driven(CHAIN)
        assert driven.hear(0, CRASHED, started_at=0.0) == ["0 CRASHED", "1 CANCELLED", "run CRASHED"]

    @pytest.mark.parametrize("state", [RUNNING, COMPLETED, FAILED, CRASHED])
    def test_repeated_and_late_reports_change_nothing(self, state: State) -> None:
        driven = Driven(dag((), ()))
        driven.hear(0, COMPLETED)
        assert driven.hear(0, state) == []
        driven.hear(1, RUNNING)
        assert driven.hear(1, RUNNING) == []
        driven.hear(1, COMPLETED)
        assert driven.hear(1, state) == []

    def test_reports_of_calls_that_nobody_made_change_nothing(self) -> None:
        assert Driven(ONE).hear("17", COMPLETED) == []

    def test_a_composite_result_is_put_together_and_is_no_task_run(self) -> None:
        driven = Driven(dag((), (), collect=(0, 1)))
        assert sorted(driven.submitted) == ["0", "1", "result"]
        driven.hear(0, COMPLETED)
        assert driven.hear(1, COMPLETED) == ["1 RUNNING", "1 COMPLETED"]
        assert driven.hear("result", RUNNING) == []
        assert driven.hear("result", COMPLETED, result=b"[1,2]") == ["run COMPLETED"]
        assert bytes(driven.told[-1].result) == b"[1,2]"

    def test_a_composite_result_of_a_failed_task_is_not_waited_for(self) -> None:
        driven = Driven(dag((), (), collect=(0, 1)))
        driven.hear(0, COMPLETED)
        assert driven.hear(1, FAILED)[-1] == "run FAILED"

    def test_a_composite_result_may_fail_itself(self) -> None:
        driven = Driven(dag((), collect=(0,)))
        driven.hear(0, COMPLETED)
        assert driven.hear("result", CRASHED) == ["run CRASHED"]

    def test_a_result_that_stayed_says_where_and_why(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, COMPLETED, kept="too large: 9 bytes")
        end = driven.told[-1]
        assert bytes(end.result) == b""
        assert end.reason == "too large: 9 bytes"
        assert RUN_ID in (end.result_ref or "")
        assert driven.progress.keeps_result

    def test_a_result_that_is_in_the_store_need_not_be_kept_on_the_cluster(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, COMPLETED, kept="too large: 9 bytes", stored="shop/r/t/0")
        assert driven.told[-1].result_ref == "shop/r/t/0"
        assert driven.told[-2].result_ref == "shop/r/t/0"
        assert not driven.progress.keeps_result

    @pytest.mark.parametrize("state", [FAILED, CRASHED])
    def test_a_run_whose_flow_cannot_be_gone_through_ends_at_once(self, state: State) -> None:
        progress = Progress(run_of(), epoch=9)
        changes = progress.begin(10.0).changes + progress.plan((), Outcome(state, BAD), (), 10.0).changes
        assert short(changes) == ["run RUNNING", f"run {state}"]
        assert (changes[-1].error, progress.is_ended) == (BAD, True)

    def test_remarks_of_a_worker_are_on_the_end(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, FAILED, remark="worker restarted")
        assert driven.told[-2].reason == "worker restarted"


class TestRetries:
    def test_a_failed_attempt_waits_and_is_submitted_again_alone(self) -> None:
        """What needs it waits on the cluster all the while: it is not submitted again."""
        driven = Driven(dag((), (0,), (1,), returns=2))
        driven.hear(0, COMPLETED)
        assert driven.hear(1, FAILED, retry_in_seconds=2.0, remark="why") == ["1 RUNNING", "1 RETRYING"]
        retrying = driven.told[-1]
        assert (retrying.attempt, retrying.error, retrying.next_attempt_at) == (1, BAD, utc(14.0))
        assert retrying.reason == "why"
        assert driven.step.retries == [("1", 2.0)]
        assert driven.retry(1) == [("1", 2)]
        assert driven.step.changes == []
        assert driven.hear(1, COMPLETED, attempt=2) == ["1 RUNNING", "1 COMPLETED"]
        assert driven.told[-1].attempt == 2

    def test_attempts_spent_end_the_task(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, FAILED, retry_in_seconds=2.0)
        driven.retry(0)
        assert driven.hear(0, FAILED, attempt=2) == ["0 RUNNING", "0 FAILED", "run FAILED"]

    @pytest.mark.parametrize("state", [RUNNING, COMPLETED, FAILED, CRASHED])
    def test_what_is_heard_of_an_attempt_that_is_over_changes_nothing(self, state: State) -> None:
        driven = Driven(ONE)
        driven.hear(0, FAILED, retry_in_seconds=2.0)
        assert driven.hear(0, state, retry_in_seconds=2.0) == []
        assert driven.step.retries == []  # it is not scheduled twice
        driven.retry(0)
        assert driven.hear(0, state, attempt=1) == []
        assert driven.hear(0, RUNNING, attempt=2) == ["0 RUNNING"]

    def test_a_worker_that_dies_is_told_as_a_retry_and_nothing_is_submitted(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING)
        for _ in range(2):  # a repeat changes nothing
            driven.hear(0, State.RETRYING, error=BAD, remark="worker died")
        assert short(driven.told)[-1] == "0 RETRYING"
        retrying = driven.told[-1]
        assert (retrying.attempt, retrying.error, retrying.reason, retrying.next_attempt_at) == (1, BAD, "worker died", None)
        assert driven.submitted == []
        assert driven.retry(0) == []
        assert driven.hear(0, COMPLETED, attempt=1) == [], "of the worker that is gone"
        assert driven.hear(0, COMPLETED, attempt=2, result=b"1") == ["0 RUNNING", "0 COMPLETED", "run COMPLETED"]

    def test_a_death_that_comes_first_tells_the_start_first(self) -> None:
        driven = Driven(ONE)
        assert driven.hear(0, State.RETRYING) == ["0 RUNNING", "0 RETRYING"]

    def test_another_owner_after_a_death_hears_of_the_attempt_that_is_under_way(self) -> None:
        first = Driven(ONE)
        first.hear(0, RUNNING)
        first.hear(0, State.RETRYING)
        second = Driven(ONE, log=first.told)
        assert second.hear(0, State.RETRYING) == []
        assert second.hear(0, COMPLETED, attempt=2, result=b"1") == ["0 RUNNING", "0 COMPLETED", "run COMPLETED"]

    def test_one_of_two_that_wait_does_not_take_the_other_one_along(self) -> None:
        driven = Driven(dag((), (), (0, 1), returns=2))
        driven.hear(0, FAILED, retry_in_seconds=2.0)
        driven.hear(1, FAILED, retry_in_seconds=2.0)
        assert driven.retry(0) == [("0", 2)]
        assert driven.retry(1) == [("1", 2)]

    def test_a_retry_beside_a_failure_submits_nothing_that_failed(self) -> None:
        driven = Driven(dag((), (), collect=(0, 1)))
        driven.hear(1, FAILED, retry_in_seconds=2.0)
        driven.hear(0, FAILED)
        assert driven.retry(1) == [("1", 2)]

    def test_a_retry_of_a_run_that_is_over_does_nothing(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, COMPLETED)
        assert driven.retry(0) == []


class TestLostResults:
    def test_what_is_pending_is_submitted_again_with_all_it_needs(self) -> None:
        driven = Driven(DIAMOND)
        driven.hear(0, COMPLETED)
        driven.hear(1, COMPLETED)
        assert sorted(call.index for call in driven.progress.resubmit().submit) == ["0", "1", "2", "3"]

    def test_nothing_is_submitted_again_for_a_run_that_is_over(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, COMPLETED)
        assert driven.progress.resubmit().submit == ()

    def test_a_needed_result_that_cannot_be_made_again_fails_the_run(self) -> None:
        driven = Driven(CHAIN)
        driven.hear(0, COMPLETED)
        driven.progress.resubmit()
        assert driven.hear(0, FAILED) == ["1 CANCELLED", "run FAILED"]

    def test_a_needed_result_is_made_again_by_the_retry_policy(self) -> None:
        driven = Driven(CHAIN)
        driven.hear(0, COMPLETED)
        driven.progress.resubmit()
        assert driven.hear(0, FAILED, retry_in_seconds=2.0) == []
        assert driven.step.retries == [("0", 2.0)]
        assert driven.retry(0) == [("0", 2)]
        assert driven.hear(0, COMPLETED, attempt=2) == []
        assert driven.hear(1, COMPLETED, result=b"1")[-1] == "run COMPLETED"


class TestAnotherOwner:
    def test_a_run_goes_on_where_it_was_and_waits_for_its_result(self) -> None:
        first = Driven(CHAIN)
        first.hear(0, COMPLETED)
        first.hear(1, RUNNING)
        second = Driven(CHAIN, first.told)
        assert second.told == []
        assert second.submitted == ["0", "1"]
        assert second.hear(1, COMPLETED, result=b"1") == ["1 COMPLETED", "run COMPLETED"]

    def test_a_result_told_but_not_yet_the_runs_end_is_fetched(self) -> None:
        first = Driven(ONE)
        first.hear(0, COMPLETED, result=b"1")
        second = Driven(ONE, first.told[:-1])
        assert second.submitted == ["0"]
        assert second.hear(0, COMPLETED, result=b"1") == ["run COMPLETED"]

    def test_a_wait_for_the_next_attempt_is_not_held_again(self) -> None:
        first = Driven(CHAIN)
        first.hear(0, FAILED, retry_in_seconds=2.0)
        second = Driven(CHAIN, first.told)
        assert [(call.index, call.attempt) for call in second.step.submit] == [("0", 2), ("1", 1)]
        assert second.hear(0, COMPLETED, attempt=2)[0] == "0 RUNNING"

    def test_an_attempt_whose_retrying_never_reached_the_log_counts(self) -> None:
        """Its submitter died while Kafka was away: what is on the cluster is attempt 2 under the same key."""
        first = Driven(ONE)
        first.hear(0, FAILED, retry_in_seconds=2.0)
        second = Driven(ONE, first.told[:2])
        assert second.hear(0, FAILED, attempt=2, retry_in_seconds=2.0) == ["0 RUNNING", "0 RETRYING"]
        assert second.retry(0) == [("0", 3)]

    def test_a_failure_told_before_still_cancels_and_fails(self) -> None:
        first = Driven(DIAMOND)
        first.hear(0, FAILED)
        upto = short(first.told).index("0 FAILED") + 1
        second = Driven(DIAMOND, first.told[:upto])
        assert short(second.told) == ["1 CANCELLED", "2 CANCELLED", "3 CANCELLED", "run FAILED"]
        assert second.told[-1].error == BAD
        assert second.submitted == []


def mapped() -> Any:
    return total(add.map(double.map(listing(2)), right=1))


class TestMaps:
    def test_elements_are_told_and_submitted_when_the_length_is_known(self) -> None:
        driven = Driven(mapped)
        # What the flow has called is told at once, so that the next owner can check it.
        assert sorted(short(driven.told)) == ["0 SCHEDULED", "3 SCHEDULED", "run RUNNING"]
        assert driven.submitted == ["0"]
        told = driven.hear(0, COMPLETED, length=2)
        assert told == ["0 RUNNING", "0 COMPLETED", "1.0 SCHEDULED", "1.1 SCHEDULED", "2.0 SCHEDULED", "2.1 SCHEDULED"]
        assert sorted(driven.submitted) == ["1.0", "1.1", "2.0", "2.1", "3"]
        assert [change.map_index for change in driven.told[-2:]] == [0, 1]
        for index in ("1.0", "1.1", "2.1", "2.0"):
            driven.hear(index, COMPLETED)
        assert driven.hear(3, COMPLETED, result=b"4")[-1] == "run COMPLETED"

    def test_a_whole_map_stands_among_the_parents_before_its_length_is_known(self) -> None:
        [whole] = [change for change in Driven(mapped).told if change.task == "billing.total"]
        assert whole.parents == (f"{RUN_ID}/add/2",)

    def test_another_owner_hears_the_length_from_the_cluster_or_the_log(self) -> None:
        first = Driven(mapped)
        first.hear(0, COMPLETED, length=2)
        second = Driven(mapped, first.told)
        assert second.told == []
        assert second.submitted == ["0"]  # completed, but only its report says how long it is
        assert second.hear(0, COMPLETED, length=2) == []
        assert sorted(second.submitted) == ["1.0", "1.1", "2.0", "2.1", "3"]

    def test_a_map_over_nothing_goes_on_at_once(self) -> None:
        driven = Driven(mapped)
        driven.hear(0, COMPLETED, length=0)
        assert driven.submitted == ["3"]

    def test_what_cannot_be_mapped_fails_the_run_and_cancels_what_needs_it(self) -> None:
        driven = Driven(mapped)
        assert driven.hear(0, COMPLETED) == ["0 RUNNING", "0 COMPLETED", "3 CANCELLED", "run FAILED"]
        assert driven.told[-1].error is not None
        assert "which has no length" in driven.told[-1].error.message

    def test_a_failed_element_cancels_its_row_and_what_takes_all_the_others_go_on(self) -> None:
        driven = Driven(mapped)
        driven.hear(0, COMPLETED, length=2)
        assert driven.hear("1.0", FAILED) == ["1.0 RUNNING", "1.0 FAILED", "2.0 CANCELLED", "3 CANCELLED"]
        driven.hear("1.1", COMPLETED)
        assert driven.hear("2.1", COMPLETED)[-1] == "run FAILED"

    def test_a_failed_list_cancels_maps_that_have_no_elements_yet(self) -> None:
        driven = Driven(mapped)
        assert driven.hear(0, FAILED) == ["0 RUNNING", "0 FAILED", "3 CANCELLED", "run FAILED"]

    def test_no_more_elements_than_the_window_are_on_the_cluster(self) -> None:
        def wide() -> Any:
            return total(double.map(list(range(10))))

        driven = Driven(wide, window=4)
        assert driven.submitted == ["0.0", "0.1", "0.2", "0.3"]
        running = set(driven.submitted)
        seen = set(running)
        while running:
            assert len(running) <= 4
            index = min(running)
            driven.hear(index, COMPLETED)
            running.remove(index)
            more = [index for index in driven.submitted if "." in index]
            assert seen.isdisjoint(more)
            seen.update(more)
            running.update(more)
        assert len(seen) == 10
        assert "1" in driven.calls
        assert driven.hear(1, COMPLETED, result=b"90")[-1] == "run COMPLETED"

    def test_a_failure_among_many_lets_the_rest_of_the_map_go_on(self) -> None:
        def wide() -> Any:
            double.map(list(range(6)))

        driven = Driven(wide, window=2)
        driven.hear("0.0", FAILED)
        for place in range(1, 6):
            driven.hear(f"0.{place}", COMPLETED)
        assert driven.told[-1].state is FAILED
        assert len([change for change in driven.told if change.state is COMPLETED]) == 5


A, B = "a" * 16, "b" * 16


def child_of(driven: Driven, index: str, *dependencies: str, by: str = "0") -> Call:
    keys = tuple(key_of("t", RUN_ID, needed) for needed in dependencies)
    call = next(iter(driven.calls.values()))
    values = {"is_final": False, "returns": False, "is_walked": False}
    return msgspec.structs.replace(call, index=index, spawned_by=by, dependencies=keys, **values)


class TestChildren:
    def test_a_child_is_told_with_its_parent_and_not_submitted_again(self) -> None:
        driven = Driven(ONE)
        assert driven.hear(0, RUNNING, spawned=(child_of(driven, A),)) == ["0 RUNNING", f"{A} SCHEDULED"]
        assert (driven.told[-1].spawned_by, driven.submitted) == (f"{RUN_ID}/t/0", [])

    def test_the_run_waits_for_children_that_nobody_waits_for(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        assert driven.hear(0, COMPLETED, result=b"1") == ["0 COMPLETED"]
        assert driven.hear(A, COMPLETED) == [f"{A} RUNNING", f"{A} COMPLETED", "run COMPLETED"]
        assert bytes(driven.told[-1].result) == b"1"

    def test_a_value_that_waits_for_children_comes_with_a_second_report(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        assert driven.hear(0, COMPLETED, tail=(A,)) == ["0 COMPLETED"]
        assert driven.hear(A, COMPLETED) == [f"{A} RUNNING", f"{A} COMPLETED"]
        assert driven.hear(0, COMPLETED, tail=(A,), result=b"[1]") == ["run COMPLETED"]
        assert bytes(driven.told[-1].result) == b"[1]"

    def test_a_failed_child_leaves_what_waits_for_its_value_without_one(self) -> None:
        driven = Driven(CHAIN)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        driven.hear(0, COMPLETED, tail=(A,))
        assert driven.hear(A, FAILED) == [f"{A} RUNNING", f"{A} FAILED", "1 CANCELLED", "run FAILED"]

    def test_a_child_may_have_failed_before_its_parent_returned_it(self) -> None:
        driven = Driven(CHAIN)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        assert driven.hear(A, FAILED) == [f"{A} RUNNING", f"{A} FAILED"]
        assert driven.hear(0, COMPLETED, tail=(A,)) == ["0 COMPLETED", "1 CANCELLED", "run FAILED"]

    def test_a_failure_that_the_parent_has_dealt_with_does_not_fail_the_run(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        driven.hear(A, FAILED)
        assert driven.hear(0, COMPLETED, result=b"1", handled=(A,)) == ["0 COMPLETED", "run COMPLETED"]

    def test_a_failure_that_nobody_has_dealt_with_fails_the_run(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        driven.hear(0, COMPLETED, result=b"1")
        assert driven.hear(A, FAILED)[-1] == "run FAILED"

    def test_a_child_that_takes_from_a_failed_one_is_cancelled(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A), child_of(driven, B, A)))
        driven.hear(0, COMPLETED, result=b"1")
        assert driven.told[-2].parents == (f"{RUN_ID}/t/{A}",)
        assert driven.hear(A, FAILED) == [f"{A} RUNNING", f"{A} FAILED", f"{B} CANCELLED", "run FAILED"]

    def test_one_started_by_what_has_failed_already_is_cancelled_at_once(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        driven.hear(A, FAILED)
        told = driven.hear(0, RUNNING, spawned=(child_of(driven, B, A),))
        assert told == [f"{B} SCHEDULED", f"{B} CANCELLED"]

    def test_children_told_twice_are_taken_once(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        assert driven.hear(0, RUNNING, spawned=(child_of(driven, A),)) == []


class TestChildrenOfAnotherOwner:
    @staticmethod
    def begun() -> Driven:
        first = Driven(ONE)
        first.hear(0, RUNNING, spawned=(child_of(first, A),))
        return first

    def test_the_parent_is_asked_for_again_where_a_child_is_open_though_it_has_completed(self) -> None:
        first = Driven(dag(()))  # whose value nobody needs
        child = child_of(first, A)
        first.hear(0, RUNNING, spawned=(child,))
        first.hear(0, COMPLETED)
        second = Driven(dag(()), first.told)
        assert second.submitted == ["0"]
        assert second.hear(0, RUNNING, spawned=(child,)) == []
        assert second.hear(0, COMPLETED) == []
        assert second.hear(A, COMPLETED) == [f"{A} RUNNING", f"{A} COMPLETED", "run COMPLETED"]

    def test_a_child_that_is_not_started_again_is_cancelled_before_the_run_ends(self) -> None:
        second = Driven(ONE, self.begun().told)
        assert second.hear(0, COMPLETED, result=b"1") == ["0 COMPLETED", f"{A} CANCELLED", "run COMPLETED"]
        assert second.told[-2].reason == "not started again"

    def test_a_failure_that_the_parent_has_dealt_with_stays_dealt_with(self) -> None:
        first = self.begun()
        first.hear(A, FAILED)
        first.hear(0, COMPLETED, result=b"1", handled=(A,))
        assert first.told[-1].state is COMPLETED
        second = Driven(ONE, first.told[:-1])
        assert second.hear(0, COMPLETED, result=b"1", handled=(A,)) == ["run COMPLETED"]

    def test_a_failure_that_was_dealt_with_is_known_though_nothing_is_heard_of_the_parent_again(self) -> None:
        first = Driven(CHAIN)
        first.hear(0, RUNNING, spawned=(child_of(first, A),))
        first.hear(A, FAILED)
        first.hear(0, COMPLETED, handled=(A,))
        second = Driven(CHAIN, first.told)
        assert second.hear(1, COMPLETED, result=b"1")[-1] == "run COMPLETED"

    def test_a_failure_that_a_failed_attempt_has_dealt_with_is_known_too(self) -> None:
        first = self.begun()
        first.hear(A, FAILED)
        first.hear(0, FAILED, handled=(A,), retry_in_seconds=1.0)
        second = Driven(ONE, first.told)
        assert second.hear(0, COMPLETED, attempt=2, result=b"1")[-1] == "run COMPLETED"

    def test_a_child_that_waited_for_its_next_attempt_gets_it(self) -> None:
        first = self.begun()
        failed: dict[str, Any] = {"error": BAD, "retry_in_seconds": 2.0}
        first.hear(A, FAILED, **failed)
        second = Driven(ONE, first.told)
        child = child_of(second, A)
        assert second.hear(0, RUNNING, spawned=(child,)) == []
        assert second.hear(A, FAILED, **failed) == [], "that was told"
        assert second.step.retries == [(A, 2.0)]
        assert second.retry(A) == [(A, 2)]
        assert second.hear(A, COMPLETED, attempt=2) == [f"{A} RUNNING", f"{A} COMPLETED"]

    def test_the_flows_result_is_not_waited_for_where_a_child_that_it_needs_has_failed(self) -> None:
        body = dag((), (), collect=(0, 1))
        first = Driven(body)
        child = child_of(first, A)
        first.hear(0, RUNNING, spawned=(child,))
        first.hear(0, COMPLETED, tail=(A,))
        first.hear(A, FAILED)
        second = Driven(body, first.told)  # while the other call still runs
        for state, fields in [(RUNNING, {"spawned": (child,)}), (COMPLETED, {"tail": (A,)})]:
            second.hear(0, state, **fields)
        assert second.hear(1, COMPLETED)[-1] == "run FAILED"

    def test_an_element_that_is_not_come_to_again_is_cancelled_before_the_run_ends(self) -> None:
        first = Driven(mapped)
        first.hear(0, COMPLETED, length=1)
        second = Driven(mapped, first.told)  # the cluster has lost all, and this time there is no list
        assert second.hear(0, FAILED) == ["3 CANCELLED", "1.0 CANCELLED", "2.0 CANCELLED", "run FAILED"]

    def test_what_is_told_of_a_call_before_it_is_a_node_is_not_lost(self) -> None:
        def body() -> Any:
            return total(double.map(listing(1)))

        first = Driven(body)
        first.hear(0, COMPLETED, length=1)
        child = child_of(first, A, by="1.0")
        second = Driven(body, first.told)
        second.hear("1.0", RUNNING, spawned=(child,))
        second.hear(A, COMPLETED)
        second.hear("1.0", COMPLETED)
        assert second.told == []
        told = second.hear(0, COMPLETED, length=1)
        assert told == ["1.0 RUNNING", f"{A} SCHEDULED", f"{A} RUNNING", f"{A} COMPLETED", "1.0 COMPLETED"]


class TestLostWithAWait:
    """The cluster has lost everything while calls wait for their next attempts."""

    def test_what_waits_goes_with_what_needs_it_when_the_wait_is_over(self) -> None:
        driven = Driven(dag((), (0,), (), (2,), returns=1))
        driven.hear(0, FAILED, retry_in_seconds=2.0)
        submitted = [(call.index, call.attempt) for call in driven.progress.resubmit().submit]
        assert sorted(submitted) == [("2", 1), ("3", 1)]
        assert sorted(driven.retry(0)) == [("0", 2), ("1", 1)]

    def test_what_needs_two_that_wait_goes_with_the_last(self) -> None:
        driven = Driven(dag((), (), (0, 1), returns=2))
        driven.hear(0, FAILED, retry_in_seconds=2.0)
        driven.hear(1, FAILED, retry_in_seconds=2.0)
        assert driven.progress.resubmit().submit == ()
        assert driven.retry(0) == [("0", 2)]
        assert sorted(driven.retry(1)) == [("1", 2), ("2", 1)]

    def test_what_is_called_later_and_needs_what_waits_does_not_take_it_along(self) -> None:
        driven = Driven(flow_of([("call", ()), ("map", ()), ("map", (0,))], "plain"), window=1)
        driven.hear(0, FAILED, retry_in_seconds=2.0)
        driven.progress.resubmit()
        assert "2.0 SCHEDULED" in driven.hear("1.0", COMPLETED)
        assert driven.submitted == [], "or the attempt that is over would run once more, and nobody hear of the next"
        assert driven.retry(0) == [("0", 2), ("2.0", 1)]

    def test_a_child_goes_on_with_its_next_attempt_before_its_parent_can_start_it_as_new(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        driven.hear(A, FAILED, retry_in_seconds=2.0)
        assert sorted((call.index, call.attempt) for call in driven.progress.resubmit().submit) == [("0", 1), (A, 2)]
        assert driven.retry(A) == []
        assert driven.hear(A, COMPLETED, attempt=2) == [f"{A} RUNNING", f"{A} COMPLETED"]

    def test_a_child_that_had_ended_and_is_started_again_gets_its_next_attempt(self) -> None:
        """Its parent waits for it in its thread."""
        driven = Driven(ONE)
        driven.hear(0, RUNNING, spawned=(child_of(driven, A),))
        driven.hear(A, FAILED, retry_in_seconds=2.0)
        driven.retry(A)
        driven.hear(A, COMPLETED, attempt=2)
        assert [call.index for call in driven.progress.resubmit().submit] == ["0"]
        assert driven.hear(A, FAILED, retry_in_seconds=2.0) == []
        assert driven.retry(A) == [(A, 2)]


class TestAsyncFlows:
    def test_a_failure_that_the_flow_has_dealt_with_does_not_fail_the_run(self) -> None:
        async def body() -> Any:
            try:
                await t()
            except EngineError as error:
                return f"{error}"

        driven = Driven(body)
        assert driven.hear(0, FAILED) == ["0 RUNNING", "0 FAILED", "run COMPLETED"]
        assert bytes(driven.told[-1].result) == b'"ValueError: bad"'

    def test_a_failure_that_it_never_looked_at_fails_the_run(self) -> None:
        async def body() -> Any:
            t()
            return await t()

        driven = Driven(body)
        driven.hear(0, FAILED)
        assert driven.hear(1, COMPLETED, result=b"1")[-1] == "run FAILED"

    def test_results_are_told_so_that_the_next_owner_hears_them(self) -> None:
        async def body() -> Any:
            one = await double(1)
            return await add(one, await double(one))

        first = Driven(body)
        first.hear(0, COMPLETED, result=b"2")
        assert bytes(first.told[-2].result) == b"2"
        second = Driven(body, first.told)
        assert second.told == []
        assert second.submitted == ["1"]
        second.hear(1, COMPLETED, result=b"4")
        assert second.hear(2, COMPLETED, result=b"6") == ["2 RUNNING", "2 COMPLETED", "run COMPLETED"]
        assert bytes(second.told[-1].result) == b"6"

    def test_a_cancelled_call_is_told_to_the_flow_with_the_failure_behind_it(self) -> None:
        async def body() -> Any:
            try:
                await double(t())
            except EngineError as error:
                return f"{error}"

        driven = Driven(body)
        assert driven.hear(0, FAILED) == ["0 RUNNING", "0 FAILED", "1 CANCELLED", "run COMPLETED"]
        assert bytes(driven.told[-1].result) == b'"ValueError: bad"'

    def test_the_next_owner_tells_the_flow_of_the_same_failure_behind_a_cancelled_call(self) -> None:
        async def body() -> Any:
            try:
                await double(t())
            except EngineError as error:
                return f"{error}; {await t()}"

        first = Driven(body)
        first.hear(0, FAILED)
        cancelled = first.told[-2]
        assert (cancelled.state, cancelled.error, cancelled.cause) == (State.CANCELLED, BAD, f"{RUN_ID}/t/0")
        second = Driven(body, first.told)
        assert (second.told, second.fetches, second.submitted) == ([], [], ["2"])
        assert second.hear(2, COMPLETED, result=b"1")[-1] == "run COMPLETED"
        assert bytes(second.told[-1].result) == b'"ValueError: bad; 1"'

    def test_a_call_that_takes_what_has_no_value_is_cancelled_when_it_is_made(self) -> None:
        async def body() -> Any:
            failed: Any = t()
            never = double(failed)
            walked = double.map(listing(failed))
            try:
                await never
            except EngineError:
                try:
                    await total(walked)
                except EngineError as error:
                    return f"{error}"

        driven = Driven(body)
        driven.hear(0, FAILED)
        assert [change for change in driven.told if change.task == "billing.total" and change.state is RUNNING] == []
        assert driven.told[-1].state is COMPLETED
        assert bytes(driven.told[-1].result) == b'"ValueError: bad"'

    def test_a_flow_that_raises_ends_the_run_when_what_it_called_has_ended(self) -> None:
        async def body() -> Any:
            t()
            await t()
            raise LookupError("mine")

        driven = Driven(body)
        driven.hear(1, COMPLETED, result=b"null")
        assert not driven.progress.is_ended
        assert driven.hear(0, COMPLETED)[-1] == "run FAILED"
        assert driven.told[-1].error is not None
        assert driven.told[-1].error.message == "mine"

    def test_a_value_that_was_lost_is_made_again_and_told_to_nobody_but_the_flow(self) -> None:
        async def body() -> Any:
            return len(await listing(9))  # type: ignore[misc]

        driven = Driven(body)
        driven.hear(0, COMPLETED, kept="too large", length=9)
        assert driven.fetches == ["0"]
        assert driven.do(driven.progress.remake("0")) == []
        assert driven.submitted == ["0"]
        assert driven.hear(0, COMPLETED, kept="too large", length=9) == []
        assert driven.step.fetch == "0"


@task
def lists(*needed: Any) -> Any:
    """Its value has a length that its first report tells."""


#: What a generated flow does next: a call, a call that lists, a map over it or over a sequence; with what is taken.
Move = tuple[str, tuple[int, ...]]


def flow_of(moves: list[Move], returns: str) -> Any:
    """A flow of these moves; each takes results of earlier ones, a map stands for its whole where it is taken."""

    def fulfil() -> Any:
        made: list[Any] = []
        for kind, taken in moves:
            handles = [made[index] for index in taken]
            maps = [handle for handle in handles if isinstance(handle, MapHandle)]
            match kind:
                case "call":
                    made.append(t(*handles))
                case "list":
                    made.append(lists(*handles))
                case "map":
                    made.append(t.map(list(range(len(taken) + 1)), unmapped(handles)))
                case "walk" if maps:
                    made.append(t.map(maps[0]))
                case "walk":
                    made.append(t.map(lists(*handles)))
        if returns == "last" and made:
            return made[-1]
        return made if returns == "all" else 7

    return fulfil


@st.composite
def flows(draw: st.DrawFn) -> Any:
    size = draw(st.integers(0, 5))
    kinds = st.sampled_from(["call", "call", "list", "map", "walk"])
    moves = [
        (draw(kinds), tuple(sorted(draw(st.sets(st.integers(0, index - 1), max_size=2)))) if index else ())
        for index in range(size)
    ]
    return moves, draw(st.sampled_from(["plain", "last", "all"]))


class Cluster:
    """Runs what is submitted, a call at a time in a random order, as the scheduler and its plugin do.

    Each key runs once; a failed attempt with another to come waits until that is submitted; what a task starts is there
    at once; what it returns may wait for that.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        #: Children whose failure was dealt with: a task that is run again after its end was told says so to its owner alone.
        self.handled: set[str] = set()
        self.lose()

    def lose(self) -> None:
        self.calls: dict[str, Call] = {}
        #: Calls that are between two attempts.
        self.gated: set[str] = set()
        #: Calls that wait in their thread for their children, and those.
        self.waiting: dict[str, list[str]] = {}
        #: Calls whose value is put together from these.
        self.continued: dict[str, list[str]] = {}
        #: Whether it has a value, by index.
        self.ended: dict[str, bool] = {}
        self.reports: dict[str, Report] = {}
        self.spawned: list[Report] = []

    def do(self, calls: Iterable[Call]) -> None:
        for call in calls:
            known = self.calls.get(call.index)
            if known is None or (call.index in self.gated and call.attempt > known.attempt):
                self.calls[call.index] = call
                self.gated.discard(call.index)

    def told(self) -> list[Report]:
        """What a new owner is told of what has happened."""
        return [*self.spawned, *self.reports.values()]

    def run(self) -> list[Report]:
        """Go on with one call, if one can; now and then something old is told again."""
        open_calls = [call for index, call in self.calls.items() if index not in self.ended and index not in self.gated]
        heard: list[Report] = []
        if ready := [call for call in open_calls if self._is_ready(call)]:
            heard = self._go_on(self.chance.choice(ready))
        self._lose_what_needs_a_failure()
        if self.reports and self.chance.random() < 0.2:
            heard.append(self.chance.choice(self.told()))
        return heard

    def _is_ready(self, call: Call) -> bool:
        if call.index in self.waiting:
            return all(child in self.ended for child in self.waiting[call.index])
        needed = self.continued.get(call.index) or [index_of(key) for key in call.dependencies]
        return all(self.ended.get(index) for index in needed)

    def _lose_what_needs_a_failure(self) -> None:
        for call in list(self.calls.values()) * 2:
            needed = self.continued.get(call.index) or [index_of(key) for key in call.dependencies]
            if call.index not in self.ended and any(self.ended.get(index) is False for index in needed):
                self.ended[call.index] = False  # unreported: the engine knows what is downstream of a failure

    def _go_on(self, call: Call) -> list[Report]:
        index = call.index
        if (tail := self.continued.get(index)) is not None:
            self.ended[index] = True
            return [self._keep(self._end(call, tail=tuple(tail), **self._value(call)))] if call.has_news else []
        if (children := self.waiting.pop(index, None)) is not None:
            if self.chance.random() < 0.2 and call.deaths < 2:
                return [self._die(call)]
            handled = tuple(child for child in children if not self.ended[child])
            return self._finish(call, [], handled)
        # What an attempt does is mostly the same again, as it should be.
        mostly = random.Random(f"{call.key}/{call.attempt - call.deaths}")
        own = mostly if self.chance.random() < 0.9 else self.chance
        children = []
        heard: list[Report] = []
        if call.task and "a" not in index[:1] and own.random() < 0.3 and not call.spawned_by:
            started = [self._child(call, number, own) for number in range(own.randint(1, 2))]
            children = [child.index for child in started]
            report = msgspec.structs.replace(self._report(call, RUNNING), spawned=tuple(started))
            self.do(child for child in started if child.index not in self.calls)
            self.spawned.append(report)
            heard.append(report)
        elif self.chance.random() < 0.4:
            heard.append(self._report(call, RUNNING))
        if call.task and heard and self.chance.random() < 0.1 and call.deaths < 2:
            return [*heard, self._die(call)]
        if children and own.random() < 0.3:
            self.waiting[index] = children
            return heard
        return heard + self._finish(call, children if own.random() < 0.5 else [], ())

    def _die(self, call: Call) -> Report:
        """Its worker dies, and another one is to run it: that is its next attempt."""
        self.calls[call.index] = msgspec.structs.replace(call, attempt=call.attempt + 1, deaths=call.deaths + 1)
        died = msgspec.structs.replace(self._report(call, State.RETRYING), error=Failure("WorkerDied", call.index))
        return self._keep(died)

    def _finish(self, call: Call, tail: list[str], handled: tuple[str, ...]) -> list[Report]:
        fate = self.chance.random()
        if fate < 0.15 and call.attempt - call.deaths < 3 and call.task:
            self.gated.add(call.index)
            error = Failure("E", call.index)
            report = msgspec.structs.replace(self._report(call, FAILED), error=error, retry_in_seconds=1.0, handled=handled)
        elif fate < 0.3:
            self.ended[call.index] = False
            state = CRASHED if fate < 0.18 else FAILED
            report = msgspec.structs.replace(self._report(call, state), error=Failure("E", call.index), handled=handled)
            if state is CRASHED and self.chance.random() < 0.5:
                report = msgspec.structs.replace(report, started_at=0.0)
        elif tail:
            self.continued[call.index] = tail
            report = self._end(call, tail=tuple(tail))
        else:
            self.ended[call.index] = True
            report = self._end(call, handled=handled, **self._value(call))
        return [self._keep(report)]

    def _value(self, call: Call) -> dict[str, Any]:
        value: dict[str, Any] = {"result": b"1"} if call.returns else {}
        if call.is_walked:
            value["length"] = random.Random(call.key).randint(0, 3)
        return value

    def _child(self, call: Call, number: int, own: random.Random) -> Call:
        index = child_index(call.index, call.attempt - call.deaths, number, "t", b"%d" % own.randint(0, 9))
        values = {"index": index, "task": "t", "attempt": 1, "dependencies": (), "places": (), "map_index": None}
        plain = {"returns": False, "is_final": False, "is_walked": False, "spawned_by": call.index}
        return msgspec.structs.replace(call, **values, **plain)

    def _report(self, call: Call, state: State) -> Report:
        return Report(RUN_ID, call.index, state, call.attempt, 20.0, 21.0, "w")

    def _end(self, call: Call, **fields: Any) -> Report:
        return msgspec.structs.replace(self._report(call, COMPLETED), **fields)

    def _keep(self, report: Report) -> Report:
        self.reports.pop(report.index, None)
        self.reports[report.index] = report
        return report


class Lead:
    """An owner of a run, and the cluster it leads it on."""

    def __init__(self, body: Any, log: list[StateChange], cluster: Cluster, epoch: int, window: int) -> None:
        self.log = log
        self.cluster = cluster
        self.retries: list[str] = []
        self.has_submitted = False
        run = rebuilt(log)
        self.progress = Progress(run, epoch, window=window)
        self.take(self.progress.begin(10.0))
        gone = Gone(body, run=run, at=run.running_at)
        assert gone.outcome is not None
        self.take(self.progress.plan(gone.planned, gone.outcome, gone.handled, 10.0))

    def take(self, step: Step) -> None:
        self.log += step.changes
        self.retries += [index for index, _ in step.retries]
        if not step.submit:
            return
        told = [] if self.has_submitted else self.cluster.told()
        self.has_submitted = True
        self.cluster.do(step.submit)
        for report in told:
            self.hear(report)

    def hear(self, report: Report) -> None:
        self.cluster.handled.update(report.handled)
        self.take(self.progress.report(report, 22.0))

    def reset(self) -> None:
        """The cluster has lost everything."""
        self.cluster.lose()
        self.take(self.progress.resubmit())

    def retry(self, chance: random.Random) -> None:
        self.take(self.progress.retry(self.retries.pop(chance.randrange(len(self.retries)))))


@settings(max_examples=300)
@given(flows(), st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 2), st.sampled_from([1, 2, 1_000]))
def test_whoever_drives_a_run_its_history_is_legal_gapless_and_ends(
    flow: Any, seed: int, takeovers: int, losses: int, window: int
) -> None:
    """Any order of reports, repeats, owners that die at any change, a cluster that forgets: one legal history to the end."""
    chance = random.Random(seed)
    body = flow_of(*flow)
    cluster = Cluster(chance)
    log: list[StateChange] = []
    lead = Lead(body, log, cluster, 1, window)
    for _ in range(600):
        if lead.progress.is_ended and not takeovers:
            break
        if takeovers and (lead.progress.is_ended or chance.random() < 0.1):
            # The owner dies, and the last changes it made never reach the log.
            takeovers -= 1
            end = next((i for i, change in enumerate(log) if change.is_flow_run and change.state.is_end), len(log))
            del log[chance.randint(0, end) :]
            if losses and chance.random() < 0.5:
                losses -= 1
                cluster.lose()
            lead = Lead(body, log, cluster, lead.progress._epoch + 1, window)
        elif lead.retries and chance.random() < 0.5:
            lead.retry(chance)
        elif losses and chance.random() < 0.1:
            losses -= 1
            lead.reset()
        else:
            for report in cluster.run():
                lead.hear(report)

    assert lead.progress.is_ended, short(log)
    assert [change.seq for change in log] == list(range(1, len(log) + 1))
    states: dict[str | None, State | None] = {None: State.SCHEDULED}
    for change in log:
        assert (states.get(change.task_run_id), change.state) in TRANSITIONS
        states[change.task_run_id] = change.state
    assert log[-1].is_flow_run
    assert log[-1].state.is_end
    ends = [change.task_run_id for change in log if change.state.is_end]
    assert len(set(ends)) == len(ends)
    assert set(ends) == set(states), "every task run that was told of has ended"
    if log[-1].state is COMPLETED:
        handled = cluster.handled.union(*(change.handled for change in log))
        unhandled = [
            i for i, state in states.items() if state in (FAILED, CRASHED) and str(i).rpartition("/")[2] not in handled
        ]
        assert unhandled == []
    else:
        assert log[-1].error is not None
