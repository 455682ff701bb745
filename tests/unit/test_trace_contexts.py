"""engine.trace_contexts: ids that follow from what they describe, within the producer's trace."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.events import valid_traceparent
from engine.trace_contexts import attempt_context, child_of, is_sampled, run_context, start_context, trace_id_of

TRACE_ID = "0123456789abcdef0123456789abcdef"
SAMPLED = f"00-{TRACE_ID}-0123456789abcdef-01"
UNSAMPLED = f"00-{TRACE_ID}-0123456789abcdef-00"
RUN_ID = "fedcba9876543210" * 2


def span_id(traceparent: str) -> str:
    return traceparent[36:52]


def test_whether_a_trace_is_sampled_is_its_last_bit() -> None:
    assert [is_sampled(f"{SAMPLED[:-2]}{flags}") for flags in ("00", "01", "02", "03", "0f", "fe")] == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert not is_sampled(None)
    assert not is_sampled("")


def test_the_trace_id_of_no_trace_is_empty() -> None:
    assert (trace_id_of(SAMPLED), trace_id_of(None), trace_id_of("")) == (TRACE_ID, "", "")


@given(st.lists(st.one_of(st.text(max_size=4), st.integers()), min_size=1, max_size=3))
def test_a_child_follows_from_what_it_describes_and_stays_in_the_trace(identity: list[Any]) -> None:
    child = child_of(SAMPLED, *identity)
    assert child == child_of(SAMPLED, *identity)
    assert valid_traceparent(child) == child
    assert trace_id_of(child) == TRACE_ID
    assert is_sampled(child)
    assert span_id(child) != span_id(SAMPLED)


def test_children_of_different_things_differ() -> None:
    run = run_context(SAMPLED, RUN_ID)
    contexts = [run, attempt_context(run, f"{RUN_ID}/t/0", 1), attempt_context(run, f"{RUN_ID}/t/0", 2)]
    contexts.append(attempt_context(run, f"{RUN_ID}/t/1", 1))
    contexts += [start_context(run, RUN_ID, 1), start_context(run, RUN_ID, 2)]
    assert len(set(contexts)) == 6


def test_a_trace_that_nobody_samples_is_passed_on_unchanged() -> None:
    assert child_of(UNSAMPLED, "x") == UNSAMPLED
    assert run_context(UNSAMPLED, RUN_ID) == UNSAMPLED
    assert child_of("", "x") == ""
