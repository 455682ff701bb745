"""``engine dead-letters ls``, ``show``, ``replay``, ``drop`` and ``resume``: what could not become a run, or failed as one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from engine import logs
from engine.cli_console import CommandConsole
from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_histories import histories_of
from engine.cli_letters import as_data, as_page, as_table, whole_as_data
from engine.cli_output import json_text, put, say
from engine.cli_times import time_of
from engine.cli_watch import Shown, WatchFlag
from engine.cli_watch import show as repeatedly
from engine.command_errors import UsageError
from engine.kafka import KafkaBroker
from engine.letter_desk import LetterDesk
from engine.letter_lists import Entry, Filter, LetterList, Status
from engine.measures import plural

OwnFlowFlag = Annotated[
    list[str] | None, Parameter(name=["--flow", "--of-flow"], negative=(), help="Only letters of this flow; again for more.")
]
ReasonFlag = Annotated[list[str] | None, Parameter(negative=(), help="Only letters of this reason; may be given again.")]
FlowsFlag = Annotated[
    list[str] | None, Parameter(name="--of-flow", negative=(), help="Only letters of this flow; again for more.")
]
TopicFlag = Annotated[list[str] | None, Parameter(negative=(), help="Only letters whose event came from this topic.")]
SinceFlag = Annotated[
    str | None, Parameter(help="Only letters written since then: 2026-03-01T12:00:00+01:00, or 30m, 2h, 7d ago.")
]
UntilFlag = Annotated[str | None, Parameter(help="Only letters written before then.")]
LimitFlag = Annotated[int | None, Parameter(help="At most so many, the oldest first.")]
Ids = Annotated[str, Parameter(help="Ids of letters, partition/offset.")]


async def ls(
    *,
    reason: ReasonFlag = None,
    of_flow: OwnFlowFlag = None,
    topic: TopicFlag = None,
    since: SinceFlag = None,
    until: UntilFlag = None,
    limit: LimitFlag = None,
    all: Annotated[bool, Parameter(negative=(), show_default=False, help="Dropped, replayed and repeated ones, too.")] = False,
    watch: WatchFlag = False,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """List dead letters, the oldest first; those that were dropped or replayed are left out unless --all."""
    wanted, read = _filter(reason, of_flow, topic, since, until), LetterList()
    async with _desk(app, kafka) as desk:

        async def look() -> Shown:
            entries = await desk.entries(wanted, read)
            shown = _first([entry for entry in entries if all or entry.status is Status.OPEN], limit)
            none = "no dead letters" if not entries else f"no open dead letters; --all shows {len(entries)}"
            return Shown(
                lambda: ((entry.letter.id, as_data(entry)) for entry in shown),
                lambda width: as_table(shown, with_status=all) if shown else None,
                "" if shown else none,
            )

        await repeatedly(look, watch=watch, json=json)


async def show(
    letter_id: str,
    *,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show one dead letter whole: why it is one, its key, headers and value (text, or hexadecimal where it is none)."""
    async with _desk(app, kafka, history) as desk:
        [entry] = await desk.chosen([letter_id])
        [letter] = await desk.whole([entry])
    if json:
        put(json_text(whole_as_data(entry, letter)))
    else:
        CommandConsole(soft_wrap=True).print(as_page(entry, letter))


async def replay(
    *letter_ids: Ids,
    flow: Annotated[str | None, Parameter(help="Into this flow alone, whichever the letter names.")] = None,
    value: Annotated[
        str | None,
        Parameter(allow_leading_hyphen=True, help="Of one letter: with the value in this file; - reads standard input."),
    ] = None,
    replay_id: Annotated[str | None, Parameter(help="Id of the replay: the same id makes no second run of a letter.")] = None,
    reason: ReasonFlag = None,
    of_flow: FlowsFlag = None,
    topic: TopicFlag = None,
    since: SinceFlag = None,
    until: UntilFlag = None,
    limit: LimitFlag = None,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Have letters taken in once more, by id or all open ones that the filters choose; each makes runs of its own."""
    edited = None if value is None else _read(value)
    wanted = _filter(reason, of_flow, topic, since, until)
    async with _desk(app, kafka, history, writes=True) as desk:
        entries = await _chosen(desk, letter_ids, wanted, limit, with_past=replay_id is None)
        if edited is not None and len(entries) != 1:
            raise UsageError("--value", f"it is for one letter, not {len(entries)}", "Name one id.")
        done = await desk.replay(entries, flow=flow, value=edited, replay_id=replay_id)
    for one in done:
        if json:
            put(json_text(one))
    if not json:
        say(f"replayed {plural(len(done), 'dead letter')}; see what becomes of that: engine states tail")


async def drop(
    *letter_ids: Ids,
    reason: ReasonFlag = None,
    of_flow: OwnFlowFlag = None,
    topic: TopicFlag = None,
    since: SinceFlag = None,
    until: UntilFlag = None,
    limit: LimitFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Mark letters as done with, by id or all open ones that the filters choose; Kafka keeps them until they expire."""
    wanted = _filter(reason, of_flow, topic, since, until)
    async with _desk(app, kafka, writes=True) as desk:
        entries = await _chosen(desk, letter_ids, wanted, limit, with_past=False)
        await desk.drop(entries)
    if json:
        for entry in entries:
            put(json_text({"letter": entry.letter.id}))
    else:
        say(f"dropped {plural(len(entries), 'dead letter')}; still listed by: engine dead-letters ls --all")


async def resume(
    topic: Annotated[str, Parameter(help="The topic that dead_letter_limit has stopped.")],
    *,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Let engines go on with a topic that they read no further because nearly all of it became dead letters."""
    async with _desk(app, kafka, writes=True) as desk:
        await desk.resume(topic)
    if json:
        put(json_text({"topic": topic}))
    else:
        say(f"engines that had stopped {topic} go on with it")


@asynccontextmanager
async def _desk(
    app: str | None, kafka: str | None, history: str | None = None, *, writes: bool = False
) -> AsyncIterator[LetterDesk]:
    logs.configure()
    settings = settings_of(app=app, kafka=kafka, history=history)
    broker = KafkaBroker(settings)
    sink = broker.sink()
    try:
        if writes:
            await sink.start()
        yield LetterDesk(settings, broker, sink, histories_of(settings))
    finally:
        if writes:
            await sink.close()
        await broker.close()


async def _chosen(desk: LetterDesk, ids: tuple[str, ...], wanted: Filter, limit: int | None, *, with_past: bool) -> list[Entry]:
    if ids and (wanted != Filter() or limit is not None):
        raise UsageError("ids and filters", "give either", "Ids alone, or --reason, --of-flow, --topic, --since, --until.")
    if ids:
        return await desk.chosen(ids, with_past=with_past)
    if wanted == Filter():
        raise UsageError("which letters", "neither ids nor a filter were given", "All of the last year: --since 365d.")
    return _first([entry for entry in await desk.entries(wanted) if entry.status is Status.OPEN], limit)


def _filter(
    reason: list[str] | None, flow: list[str] | None, topic: list[str] | None, since: str | None, until: str | None
) -> Filter:
    return Filter(
        tuple(reason or ()), tuple(flow or ()), tuple(topic or ()), time_of("--since", since), time_of("--until", until)
    )


def _first(entries: list[Entry], limit: int | None) -> list[Entry]:
    return entries if limit is None else entries[: max(0, limit)]


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(file, f"cannot be read: {error.strerror}", "Check the path.") from error
