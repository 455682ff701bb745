"""Mutations of what owners of partitions do and know: single faults, planted into the histories of a good trial."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tests.chaos.histories import Committed, Fault, Histories, Logged
from tests.chaos.mutable_log import Log, data_of, kind_of, run_of, with_data

Pick = Callable[[Sequence[Any]], Any]
Mutation = Callable[[Histories, Pick], Histories]
Lines = list[dict[str, Any]]


def commit_past_an_event(histories: Histories, pick: Pick) -> Histories:
    one = pick([one for one in histories.sent if one.flows or one.is_poison])
    early = Committed(0.0, {f"{one.topic}/{one.partition}": one.offset + 1}, {0: 1, 1: 1}, {})
    return msgspec.structs.replace(histories, committed=[early, *histories.committed])


def commit_what_is_no_checkpoint(histories: Histories, pick: Pick) -> Histories:
    one = pick(Log(histories).changes())
    early = Committed(0.0, {f"{one.topic}/{one.partition}": one.offset}, {one.partition: one.offset + 1}, {})
    return msgspec.structs.replace(histories, committed=[early, *histories.committed])


def commit_a_void_checkpoint(histories: Histories, pick: Pick) -> Histories:
    """Its writer had lost the partition before it wrote."""
    one = pick([one for one in _closing(histories) if _epochs_before(histories, one)])
    old = with_data(one, epoch=pick(_epochs_before(histories, one)))
    seen = Committed(0.0, {f"{one.topic}/{one.partition}": one.offset}, {one.partition: one.offset + 1}, {})
    logged = [old if other is one else other for other in histories.logged]
    return msgspec.structs.replace(histories, logged=logged, committed=[seen])


def forget_a_run_in_a_checkpoint(histories: Histories, pick: Pick) -> Histories:
    return _change_a_run_in_a_checkpoint(histories, pick, lambda run: None)


def be_behind_in_a_checkpoint(histories: Histories, pick: Pick) -> Histories:
    return _change_a_run_in_a_checkpoint(histories, pick, lambda run: run | {"seq": run["seq"] - 1}, least_seq=1)


def be_ahead_in_a_checkpoint(histories: Histories, pick: Pick) -> Histories:
    return _change_a_run_in_a_checkpoint(histories, pick, lambda run: run | {"seq": run["seq"] + 1})


def tell_another_state_in_a_checkpoint(histories: Histories, pick: Pick) -> Histories:
    other = {"SCHEDULED": "RUNNING", "RUNNING": "RETRYING", "RETRYING": "RUNNING"}
    return _change_a_run_in_a_checkpoint(histories, pick, lambda run: run | {"state": other[run["state"]]})


def forget_a_task_in_a_checkpoint(histories: Histories, pick: Pick) -> Histories:
    return _change_a_run_in_a_checkpoint(histories, pick, lambda run: run | {"tasks": {}}, has_tasks=True)


def forget_an_id_in_a_checkpoint(histories: Histories, pick: Pick) -> Histories:
    def forget(lines: list[dict[str, Any]]) -> None:
        tail = lines[0]["tail"]
        second, count = tail["seconds"][0]
        tail["ids"] = base64.b64encode(base64.b64decode(tail["ids"])[16:]).decode()
        tail["seconds"][0] = [second, count - 1]

    return _change_a_checkpoint(histories, pick, forget, lambda lines: bool(lines[0]["tail"]["seconds"]))


def forget_a_run_in_memory(histories: Histories, pick: Pick) -> Histories:
    one = pick([one for one in histories.snapshots if one.runs])
    gone = pick(sorted(one.runs))
    runs = {run_id: told for run_id, told in one.runs.items() if run_id != gone}
    snapshots = [msgspec.structs.replace(other, runs=runs) if other is one else other for other in histories.snapshots]
    return msgspec.structs.replace(histories, snapshots=snapshots)


def be_behind_in_memory(histories: Histories, pick: Pick) -> Histories:
    one = pick([one for one in histories.snapshots if one.runs])
    late = pick(sorted(one.runs))
    runs = one.runs | {late: (one.runs[late][0], one.runs[late][1] - 1)}
    snapshots = [msgspec.structs.replace(other, runs=runs) if other is one else other for other in histories.snapshots]
    return msgspec.structs.replace(histories, snapshots=snapshots)


def end_by_itself(histories: Histories, pick: Pick) -> Histories:
    one = Fault(pick([1.0, 2.0]), "exit", pick(["engine", "worker", "scheduler"]), "x", 4, 1)
    return msgspec.structs.replace(histories, faults=[*histories.faults, one])


def leave_in_disorder(histories: Histories, pick: Pick) -> Histories:
    one = Fault(1.0, "left", "engine", "engine-0", 4, pick([1, -9]))
    return msgspec.structs.replace(histories, faults=[*histories.faults, one])


#: What each is to be found as.
OWNER_MUTATIONS: dict[str, tuple[Mutation, str]] = {
    mutation.__name__: (mutation, kind)
    for mutation, kind in (
        (commit_past_an_event, "offset"),
        (commit_what_is_no_checkpoint, "offset"),
        (commit_a_void_checkpoint, "offset"),
        (forget_a_run_in_a_checkpoint, "checkpoint"),
        (be_behind_in_a_checkpoint, "checkpoint"),
        (be_ahead_in_a_checkpoint, "checkpoint"),
        (tell_another_state_in_a_checkpoint, "checkpoint"),
        (forget_a_task_in_a_checkpoint, "checkpoint"),
        (forget_an_id_in_a_checkpoint, "checkpoint"),
        (forget_a_run_in_memory, "ledger"),
        (be_behind_in_memory, "ledger"),
        (end_by_itself, "died"),
        (leave_in_disorder, "died"),
    )
}


def _closing(histories: Histories) -> list[Logged]:
    return [one for one in histories.logged if kind_of(one) == "checkpoint"]


def _epochs_before(histories: Histories, record: Logged) -> list[int]:
    epochs = [one.offset for one in histories.logged if kind_of(one) == "ownership" and one.partition == record.partition]
    return [offset for offset in epochs if offset < data_of(record)["epoch"]]


def _lines(histories: Histories, closing: Logged) -> Lines:
    """The body of a checkpoint."""
    data = data_of(closing)
    if parts := data.get("parts"):
        by_offset = {one.offset: one.value or "" for one in histories.logged if _is_part(one, closing)}
        body = "".join(by_offset[offset] for offset in parts)
    else:
        body = base64.b64decode(data["body"]).decode()
    ids, *runs = [json.loads(line) for line in body.splitlines()]
    return [ids, *({**run, "from_offset": data["from_offset"], "closing": closing.offset} for run in runs)]


def _is_part(one: Logged, closing: Logged) -> bool:
    return (one.topic, one.partition) == (closing.topic, closing.partition)


def _change_a_checkpoint(
    histories: Histories, pick: Pick, change: Callable[[Lines], None], fits: Callable[[Lines], bool]
) -> Histories:
    closing = pick([one for one in _closing(histories) if fits(_lines(histories, one))])
    lines = _lines(histories, closing)
    change(lines)
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    other = with_data(closing, parts=[], body=base64.b64encode(body).decode(), size=len(body))
    return msgspec.structs.replace(histories, logged=[other if one is closing else one for one in histories.logged])


def _change_a_run_in_a_checkpoint(
    histories: Histories,
    pick: Pick,
    change: Callable[[dict[str, Any]], dict[str, Any] | None],
    *,
    least_seq: int = 0,
    has_tasks: bool = False,
) -> Histories:
    ends = {run_of(one): one.offset for one in Log(histories).ends()}

    def is_apt(run: dict[str, Any]) -> bool:
        """What was read ahead is read again, and what ends while it is written may be left out."""
        is_certain = run["offset"] < run["from_offset"] and ends[run["run_id"]] > run["closing"]
        return is_certain and run["seq"] >= least_seq and (not has_tasks or bool(run.get("tasks")))

    def change_one(lines: Lines) -> None:
        run = pick([line for line in lines[1:] if is_apt(line)])
        changed = change(run)
        lines[lines.index(run)] = changed or {}
        if changed is None:
            lines.remove({})

    return _change_a_checkpoint(histories, pick, change_one, lambda lines: any(map(is_apt, lines[1:])))
