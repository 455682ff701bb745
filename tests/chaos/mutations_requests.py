"""Mutations of what became of requests: single faults, planted into the histories of a good trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tests.chaos.histories import Asked, Effect, Histories
from tests.chaos.mutable_log import Log, data_of, kind_of, run_of, with_data

#: Chooses the place where a fault is planted.
Pick = Callable[[Sequence[Any]], Any]
Mutation = Callable[[Histories, Pick], Histories]
_ANOTHER = "f" * 32


def end_otherwise_under_an_owner_who_knew(histories: Histories, pick: Pick) -> Histories:
    """Somebody takes the partition over behind the cancellation, and leads the run to its end all the same."""
    log = Log(histories)
    asked = pick(log.cancellations())
    run_id, here = run_of(asked), log.records.index(asked)
    old = next(one for one in reversed(log.records[:here]) if kind_of(one) == "ownership" and one.partition == asked.partition)
    mine = [one for one in log.records[here:] if one.partition == asked.partition]
    next_one = next((n for n, one in enumerate(mine) if kind_of(one) == "ownership"), len(mine))
    new = msgspec.structs.replace(old, offset=1_000_000)
    for one in [one for one in mine[:next_one] if data_of(one).get("epoch") == old.offset]:
        log.records[log.records.index(one)] = with_data(one, epoch=new.offset)
    log.records.insert(here + 1, new)
    return _end_well(log, run_id)


def end_otherwise_than_was_read(histories: Histories, pick: Pick) -> Histories:
    """The owner has begun a run with a key that was scheduled behind the cancellation, so he has read that."""
    log = Log(histories)
    asked = pick(log.cancellations())
    end = next(one for one in log.ends() if run_of(one) == run_of(asked))
    keyed = next(one for one in log.scheduled() if data_of(one).get("key") is not None)
    epoch = data_of(end)["epoch"]
    text = (keyed.value or "").replace(run_of(keyed), _ANOTHER)
    first = msgspec.structs.replace(
        keyed, partition=asked.partition, value=text, headers=keyed.headers | {"ce_subject": _ANOTHER}
    )
    running = next(one for one in log.of(run_of(keyed)) if kind_of(one) == "flow_run.running")
    begun = msgspec.structs.replace(first, headers=running.headers | {"ce_subject": _ANOTHER}, value=running.value)
    log.records.insert(log.records.index(asked) + 1, first)
    log.records.insert(log.records.index(end), with_data(begun, run_id=_ANOTHER, epoch=epoch))
    return _end_well(log, run_of(asked))


def cancel_what_nobody_asked(histories: Histories, pick: Pick) -> Histories:
    """The cancellation is not there."""
    log = Log(histories)
    gone = run_of(pick(log.cancellations()))
    log.records = [one for one in log.records if kind_of(one) != "cancellation" or run_of(one) != gone]
    asked = [one for one in histories.asked if one.whom != gone]
    return msgspec.structs.replace(log.histories(), asked=asked)


def lose_a_cancellation(histories: Histories, pick: Pick) -> Histories:
    run_id = run_of(pick([one for one in Log(histories).ends() if kind_of(one) == "flow_run.completed"]))
    asked = Asked("cancel", run_id, "request", 1.0, is_acknowledged=True)
    return msgspec.structs.replace(histories, asked=[*histories.asked, asked])


def invent_a_cancellation(histories: Histories, pick: Pick) -> Histories:
    gone = run_of(pick(Log(histories).cancellations()))
    return msgspec.structs.replace(histories, asked=[one for one in histories.asked if one.whom != gone])


def lose_a_repeat(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    lost = pick(_made(histories))
    log.records = [one for one in log.records if run_of(one) != lost]
    return log.histories()


def make_two_of_one_request(histories: Histories, pick: Pick) -> Histories:
    """The same request was answered with another run the second time."""
    asked = pick([one for one in histories.asked if one.made])
    again = msgspec.structs.replace(asked, made=_ANOTHER)
    return msgspec.structs.replace(_with_a_copy(histories, asked.made), asked=[*histories.asked, again])


def repeat_without_a_request(histories: Histories, pick: Pick) -> Histories:
    return _with_a_copy(histories, pick(_made(histories)))


def forget_who_asked(histories: Histories, pick: Pick) -> Histories:
    gone = pick([one for one in histories.asked if one.made])
    return msgspec.structs.replace(histories, asked=[one for one in histories.asked if one.request != gone.request])


def repeat_another_run(histories: Histories, pick: Pick) -> Histories:
    return _change_a_repeat(histories, pick, lambda log, run: {"repeats": run_of(pick(_others(log, run)))})


def repeat_with_another_event(histories: Histories, pick: Pick) -> Histories:
    return _change_a_repeat(histories, pick, lambda log, run: {"event": data_of(pick(_others(log, run)))["event"]})


def run_what_was_to_be_taken(histories: Histories, pick: Pick) -> Histories:
    asked = pick([one for one in histories.asked if one.taken])
    ran = f"{asked.made}/{pick(asked.taken)}"
    effects = [Effect(what, asked.made, ran, 1, 4, asked.at) for what in ("start", "done")]
    return msgspec.structs.replace(histories, effects=[*histories.effects, *effects])


def lose_a_replay(histories: Histories, pick: Pick) -> Histories:
    lost = pick([one.request for one in histories.asked if one.what == "replay"])
    kept = [one for one in histories.logged if one.topic != histories.replays_topic or one.headers["x-engine-replay"] != lost]
    return msgspec.structs.replace(histories, logged=kept)


def leave_a_replayed_letter_unmarked(histories: Histories, pick: Pick) -> Histories:
    asked = pick([one for one in histories.asked if one.what == "replay"])
    return msgspec.structs.replace(
        histories, logged=[one for one in histories.logged if one.headers.get("x-engine-letter") != asked.whom]
    )


def lose_the_run_of_a_replay(histories: Histories, pick: Pick) -> Histories:
    log = Log(histories)
    asked = {one.request for one in histories.asked}
    replays = [one for one in log.scheduled() if ((data_of(one)["event"] or {}).get("replay") or {}).get("id") in asked]
    lost = run_of(pick(replays))
    log.records = [one for one in log.records if run_of(one) != lost]
    return log.histories()


#: What each is to be found as.
REQUEST_MUTATIONS: dict[str, tuple[Mutation, str]] = {
    mutation.__name__: (mutation, kind)
    for mutation, kind in (
        (end_otherwise_under_an_owner_who_knew, "uncancelled"),
        (end_otherwise_than_was_read, "uncancelled"),
        (cancel_what_nobody_asked, "unasked"),
        (lose_a_cancellation, "lost"),
        (invent_a_cancellation, "invented"),
        (lose_a_repeat, "lost"),
        (make_two_of_one_request, "doubled"),
        (repeat_without_a_request, "doubled"),
        (forget_who_asked, "invented"),
        (repeat_another_run, "invented"),
        (repeat_with_another_event, "invented"),
        (run_what_was_to_be_taken, "rerun"),
        (lose_a_replay, "lost"),
        (leave_a_replayed_letter_unmarked, "lost"),
        (lose_the_run_of_a_replay, "lost"),
    )
}


def _end_well(log: Log, run_id: str) -> Histories:
    end = next(one for one in log.ends() if run_of(one) == run_id)
    headers = end.headers | {"ce_type": "engine.flow_run.completed"}
    log.records[log.records.index(end)] = msgspec.structs.replace(with_data(end, state="COMPLETED"), headers=headers)
    return log.histories()


def _made(histories: Histories) -> list[str]:
    return sorted({one.made for one in histories.asked if one.made})


def _with_a_copy(histories: Histories, run_id: str) -> Histories:
    """All of that run once more, as another one."""
    log = Log(histories)
    for one in log.of(run_id):
        text = (one.value or "").replace(run_id, _ANOTHER)
        copy = msgspec.structs.replace(one, value=text, headers=one.headers | {"ce_subject": _ANOTHER})
        log.records.insert(log.records.index(one) + 1, copy)
    return log.histories()


def _others(log: Log, run_id: str) -> list[Any]:
    """Runs of other events."""
    mine = next(data_of(one)["event"]["id"] for one in log.scheduled() if run_of(one) == run_id)
    return [one for one in log.scheduled() if (data_of(one)["event"] or {}).get("id", mine) != mine]


def _change_a_repeat(histories: Histories, pick: Pick, change: Callable[[Log, str], dict[str, Any]]) -> Histories:
    log = Log(histories)
    run_id = pick(_made(histories))
    told = change(log, run_id)
    for number, one in enumerate(log.records):
        if run_of(one) == run_id and kind_of(one) == "flow_run.scheduled":
            log.records[number] = with_data(one, **told)
    return log.histories()
