"""Mutations of what became of events and runs: single faults, planted into the histories of a good trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from tests.chaos.histories import Effect, Fault, Histories, Logged, Sent
from tests.chaos.mutable_log import ENDS, Log, data_of, kind_of, run_of, with_data

#: Chooses the place where a fault is planted.
Pick = Callable[[Sequence[Any]], Any]
_RUN = "x-engine-run"
Mutation = Callable[[Histories, Pick], Histories]


def drop_a_change(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    log.records.remove(pick(log.inner()))
    return log.histories()


def drop_an_end(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    log.records.remove(pick(log.ends()))
    return log.histories()


def drop_a_run(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    lost = run_of(pick(log.scheduled()))
    log.records = [one for one in log.records if run_of(one) != lost]
    return log.histories()


def repeat_with_another_seq(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    one = pick(log.inner())
    log.records.insert(log.records.index(one) + 1, with_data(one, seq=data_of(one)["seq"] + 1))
    return log.histories()


def repeat_with_another_content(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    one = pick(log.inner())
    log.records.insert(log.records.index(one) + 1, with_data(one, state="CANCELLED", attempt=77))
    return log.histories()


def swap_two_changes(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    run_id = run_of(pick(log.inner()))
    mine = [one for one in log.of(run_id) if kind_of(one) != "flow_run.scheduled"]
    # Of one owner: put before its ownership, or behind the next one's, a change would be void, which is another fault.
    pairs = [pair for pair in pairwise(mine) if data_of(pair[0])["epoch"] == data_of(pair[1])["epoch"]]
    first, second = pick(pairs)
    here, there = log.records.index(first), log.records.index(second)
    log.records[here], log.records[there] = second, first
    return log.histories()


def end_twice(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    end = pick(log.ends())
    log.records.insert(log.records.index(end) + 1, with_data(end, seq=data_of(end)["seq"] + 1, state="CRASHED"))
    return log.histories()


def go_on_after_the_end(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    end = pick(log.ends())
    seq = data_of(end)["seq"] + 1
    log.records.insert(log.records.index(end) + 1, with_data(end, seq=seq, state="RUNNING", task="t", task_run_id="r/t/9"))
    return log.histories()


def lose_an_event(histories: Histories, pick: Pick) -> Histories:
    one = Sent("/chaos/trial", "nobody-has-seen-it", "single", 0, pick(range(1_000, 2_000)), flows=("single",))
    return msgspec.structs.replace(histories, sent=[*histories.sent, one])


def lose_a_letter(histories: Histories, pick: Pick) -> Histories:
    lost = pick(_of_records(histories)).headers
    names = ("x-engine-origin", "x-engine-replay-of")
    logged = [one for one in histories.logged if any(one.headers.get(name) != lost.get(name) for name in names)]
    return msgspec.structs.replace(histories, logged=logged, committed=[])


def lose_the_letter_of_a_run(histories: Histories, pick: Pick) -> Histories:
    lost = pick(_of_runs(histories)).headers[_RUN]
    return msgspec.structs.replace(histories, logged=[one for one in histories.logged if one.headers.get(_RUN) != lost])


def write_the_letter_of_a_run_after_its_end(histories: Histories, pick: Pick) -> Histories:
    late = pick(_of_runs(histories)).headers[_RUN]
    logged = [
        msgspec.structs.replace(one, at=one.at + 60.0) if one.headers.get(_RUN) == late else one for one in histories.logged
    ]
    return msgspec.structs.replace(histories, logged=logged)


def write_a_letter_that_nobody_asked_for(histories: Histories, pick: Pick) -> Histories:
    letter = pick(_of_runs(histories))
    run_id = run_of(pick([one for one in Log(histories).scheduled() if data_of(one)["flow"] not in histories.lettered]))
    forged = msgspec.structs.replace(letter, offset=letter.offset + 1_000, headers=letter.headers | {_RUN: run_id})
    return msgspec.structs.replace(histories, logged=[*histories.logged, forged])


def write_the_letter_of_another_event(histories: Histories, pick: Pick) -> Histories:
    letter = pick(_of_runs(histories))
    headers = letter.headers | {"x-engine-origin": "single/0/0"}
    forged = msgspec.structs.replace(letter, offset=letter.offset + 1_000, headers=headers)
    return msgspec.structs.replace(histories, logged=[*histories.logged, forged])


def mark_a_letter_that_is_none(histories: Histories, pick: Pick) -> Histories:
    headers = {"x-engine-mark": pick(["dropped", "replayed"]), "x-engine-letter": "0/12345"}
    return msgspec.structs.replace(
        histories, logged=[*histories.logged, Logged(histories.letters_topic, 0, 99_999, 1.0, headers)]
    )


def refuse_a_good_event(histories: Histories, pick: Pick) -> Histories:
    letter = pick(_of_records(histories))
    good = pick([one for one in histories.sent if one.flows and not one.replay])
    headers = letter.headers | {"x-engine-origin": good.place, "x-engine-replay-of": ""}
    forged = msgspec.structs.replace(letter, offset=letter.offset + 1_000, headers=headers)
    return msgspec.structs.replace(histories, logged=[*histories.logged, forged])


def run_an_event_twice(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    run_id, other = run_of(pick(log.scheduled())), "f" * 32
    for one in log.of(run_id):
        text = (one.value or "").replace(run_id, other)
        copy = msgspec.structs.replace(one, value=text, headers=one.headers | {"ce_subject": other})
        log.records.insert(log.records.index(one) + 1, copy)
    return log.histories()


def invent_a_run(histories: Histories, pick: Pick) -> Histories:
    forgotten = pick([one for one in histories.sent if one.flows])
    sent = [one for one in histories.sent if (one.id, one.replay) != (forgotten.id, forgotten.replay)]
    return msgspec.structs.replace(histories, sent=sent)


def merge_two_events(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    one = pick(log.scheduled())
    event = data_of(one)["event"]
    log.records.insert(log.records.index(one) + 1, with_data(one, event=event | {"id": "another"}))
    return log.histories()


def run_a_finished_task_again(histories: Histories, pick: Pick) -> Histories:
    done = pick([one for one in histories.effects if one.what == "done"])
    again = [msgspec.structs.replace(done, what=what, pid=done.pid + 1, at=done.at + 9.0) for what in ("start", "done")]
    # An engine's death is no excuse.
    kill = Fault(done.at + 1.0, "kill", "engine", "engine-0", 1)
    return msgspec.structs.replace(histories, effects=[*histories.effects, *again], faults=[*histories.faults, kill])


def run_a_task_twice_at_a_time(histories: Histories, pick: Pick) -> Histories:
    start = pick([one for one in histories.effects if one.what == "start"])
    twin = msgspec.structs.replace(start, pid=start.pid + 1, at=start.at)
    index = histories.effects.index(start)
    effects = [*histories.effects[: index + 1], twin, *histories.effects[index + 1 :]]
    return msgspec.structs.replace(histories, effects=effects)


def make_an_end_up(histories: Histories, pick: Pick) -> Histories:
    done = pick([one for one in histories.effects if one.what == "done" and not _is_packed(histories, one)])
    effects = [one for one in histories.effects if one != done]
    return msgspec.structs.replace(histories, effects=effects)


def admit_a_void_change(histories: Histories, pick: Pick) -> Histories:
    """A paused owner's change lands after the next one's ownership record, and the engine counts it all the same."""
    log = Log(histories)
    inner = [one for one in log.inner() if _old_epoch(log, one) is not None]
    one = pick(inner)
    log.records[log.records.index(one)] = with_data(one, epoch=_old_epoch(log, one))
    return log.histories()


def write_without_ownership(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    one = pick(log.inner())
    log.records[log.records.index(one)] = with_data(one, epoch=10_000)
    return log.histories()


def break_a_trace(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    one = pick(log.changes())
    headers = one.headers | {"traceparent": f"00-{'e' * 32}-{'1' * 16}-00"}
    log.records[log.records.index(one)] = msgspec.structs.replace(one, headers=headers)
    return log.histories()


def skip_a_state(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    one = pick([one for one in log.changes() if kind_of(one).endswith(".running")])
    log.records[log.records.index(one)] = with_data(one, state="RETRYING")
    return log.histories()


def leave_a_task_open(histories: Histories, pick: Pick) -> Histories:
    """A task's end is not there, and the later changes have closed ranks."""
    log = Log(histories)
    lost = pick([one for one in log.inner() if kind_of(one).startswith("task_run.") and kind_of(one).endswith(ENDS)])
    seq = data_of(lost)["seq"]
    log.records.remove(lost)
    for number, one in enumerate(log.records):
        if run_of(one) == run_of(lost) and data_of(one).get("seq", 0) > seq:
            log.records[number] = with_data(one, seq=data_of(one)["seq"] - 1)
    return log.histories()


def write_garbage(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    one = pick(log.inner())
    log.records[log.records.index(one)] = msgspec.structs.replace(one, value=pick(["", "{", "[]", '{"seq": "x"}', "null"]))
    return log.histories()


#: What each is to be found as.
RUN_MUTATIONS: dict[str, tuple[Mutation, str]] = {
    mutation.__name__: (mutation, kind)
    for mutation, kind in (
        (drop_a_change, "gap"),
        (drop_an_end, "unfinished"),
        (drop_a_run, "lost"),
        (repeat_with_another_seq, "illegal"),
        (repeat_with_another_content, "contradiction"),
        (swap_two_changes, "gap"),
        (end_twice, "second end"),
        (go_on_after_the_end, "after end"),
        (lose_an_event, "lost"),
        (lose_a_letter, "lost"),
        (lose_the_letter_of_a_run, "no letter"),
        (write_the_letter_of_a_run_after_its_end, "no letter"),
        (write_a_letter_that_nobody_asked_for, "letter"),
        (write_the_letter_of_another_event, "letter"),
        (mark_a_letter_that_is_none, "invented"),
        (refuse_a_good_event, "refused"),
        (run_an_event_twice, "doubled"),
        (invent_a_run, "invented"),
        (merge_two_events, "merged"),
        (run_a_finished_task_again, "rerun"),
        (run_a_task_twice_at_a_time, "parallel"),
        (make_an_end_up, "phantom"),
        (admit_a_void_change, "gap"),
        (write_without_ownership, "unfounded"),
        (break_a_trace, "trace"),
        (skip_a_state, "illegal"),
        (leave_a_task_open, "open task"),
        (write_garbage, "unreadable"),
    )
}


def _of_runs(histories: Histories) -> list[Logged]:
    return [one for one in histories.logged if one.topic == histories.letters_topic and _RUN in one.headers]


def _of_records(histories: Histories) -> list[Logged]:
    return [one for one in histories.logged if "x-engine-reason" in one.headers and _RUN not in one.headers]


def _old_epoch(log: Log, one: Logged) -> int | None:
    """The epoch before the one in force where the record lies."""
    begun = [two.offset for two in log.records if kind_of(two) == "ownership" and two.partition == one.partition]
    before = [offset for offset in begun if offset < data_of(one)["epoch"]]
    return before[-1] if before else None


def _is_packed(histories: Histories, effect: Effect) -> bool:
    return not any(data_of(one).get("task_run_id") == effect.task_run_id for one in Log(histories).changes())
