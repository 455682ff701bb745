"""``engine events ls`` and ``tail``: events straight from their topic, with the runs each made, or why it made none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from engine.broker import Broker, Partition, Record, Source, Standing
from engine.cli_console import CommandConsole
from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_histories import Look, declared, looking
from engine.cli_output import json_text, put, short
from engine.cli_watch import Shown, WatchFlag
from engine.cli_watch import show as repeatedly
from engine.declarations import Declaration
from engine.event_fates import Fate
from engine.event_lister import EventLister, Listed
from engine.events import Position
from engine.kafka import KafkaBroker
from engine.settings import Settings

TopicArgument = Annotated[str, Parameter(help="The topic of the events.")]
LimitFlag = Annotated[int, Parameter(help="At most so many, the latest.")]
FateFlag = Annotated[list[Fate] | None, Parameter(negative=(), help="Only events of this fate; may be given again.")]

_STYLES = {Fate.RAN: "green", Fate.DEAD: "red", Fate.WAITING: "yellow", Fate.UNKNOWN: "yellow"}
_MOST = 10_000
_POLL_SECONDS, _LOOK_SECONDS = 0.2, 1.0
#: What became of an event is waited for so long before it is shown all the same, and of so many at a time.
_PATIENCE_SECONDS = 10.0
_MAX_PENDING = 1_000
#: A database is waited for so long until it has what the topics have.
_BEHIND_SECONDS = 3.0
#: On a terminal of fewer characters, ids and types get so many.
_WIDE, _NARROW_COLUMN = 120, 14
_TEXT_WIDTH = 200


async def ls(
    topic: TopicArgument,
    *,
    limit: LimitFlag = 50,
    fate: FateFlag = None,
    watch: WatchFlag = False,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """List the last events of a topic, the newest first: which runs each made, or why it made none."""
    settings = settings_of(app=app, kafka=kafka, history=history)
    none = f"no such events on {topic}" if fate else f"no events on {topic}; `engine events send {topic}` sends one"
    async with _view(settings, topic) as view:

        async def look() -> Shown:
            listed = [one for one in await view.latest(_bounded(limit)) if not fate or one.verdict.fate in fate]
            listed.reverse()
            return Shown(
                lambda: ((f"{one.partition}/{one.offset}", _data(one)) for one in listed),
                lambda width: _table(listed, width) if listed else None,
                "" if listed else none,
            )

        await repeatedly(look, watch=watch, json=json)


async def tail(
    topic: TopicArgument,
    *,
    limit: LimitFlag = 10,
    follow: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Go on with those that come, until Ctrl-C.")
    ] = False,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show the last events of a topic, the oldest first, and with --follow each that comes as soon as its fate is known."""
    settings = settings_of(app=app, kafka=kafka, history=history)
    console = CommandConsole(soft_wrap=True)

    def show(one: Listed) -> None:
        if json:
            put(json_text(_data(one)))
        else:
            console.print(_line(one))

    async with _view(settings, topic) as view:
        for one in await view.latest(_bounded(limit)):
            show(one)
        if follow:
            async for one in view.follow():
                show(one)


class _View:
    """Events of a topic with their verdicts."""

    def __init__(self, settings: Settings, broker: Broker, topic: str, look: Look, declared: Mapping[str, Declaration]) -> None:
        self._broker, self._topic, self._look, self._declared = broker, topic, look, declared
        self.lister = EventLister(settings, broker, topic)
        self._ends: dict[Partition, int] = {}

    async def latest(self, limit: int) -> list[Listed]:
        """The last events, the oldest first."""
        standing = await self.lister.standing()
        self._ends = {place: end for place, end in standing.ends.items() if place[0] == self._topic}
        records = await self.lister.latest(standing, limit) if limit else []
        await self._look.again()
        deadline = time.monotonic() + _BEHIND_SECONDS
        while self._is_behind(standing) and time.monotonic() < deadline:  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(_POLL_SECONDS)  # until the projector of the database has come so far
        return self._judge(records, standing)

    async def follow(self) -> AsyncIterator[Listed]:
        """What comes after those, each when its fate is settled, or has not been for too long."""

        async def begin(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
            return {place: self._ends[place] for place in assigned if place in self._ends}

        source: Source = self._broker.source([self._topic], group=None, on_assigned=begin)
        pending: dict[Position, tuple[Record, float]] = {}
        standing: Standing | None = None
        stood_at = looked_at = 0.0
        try:
            await source.start()
            while True:
                room = _MAX_PENDING - len(pending)
                if room > 0:
                    for record in await source.poll(timeout_seconds=_POLL_SECONDS, max_records=room):
                        pending[record.position] = record, time.monotonic() + _PATIENCE_SECONDS
                if not pending or time.monotonic() - looked_at < _LOOK_SECONDS:
                    await asyncio.sleep(0 if room > 0 else _POLL_SECONDS)
                    continue
                if standing is None or not self._is_behind(standing) or looked_at - stood_at > _BEHIND_SECONDS:
                    # What it says of the intake counts when the history has come as far as the topics were then.
                    standing, stood_at = await self.lister.standing(), time.monotonic()
                await self._look.again()
                looked_at = time.monotonic()
                for one in self._judge([record for record, _ in pending.values()], standing):
                    place = Position(one.topic, one.partition, one.offset)
                    if one.verdict.fate.is_settled or looked_at > pending[place][1]:
                        del pending[place]
                        yield one
        finally:
            await source.close()

    def _is_behind(self, standing: Standing) -> bool:
        return self.lister.behind(self._look.history, standing) > 0

    def _judge(self, records: Sequence[Record], standing: Standing) -> list[Listed]:
        return self.lister.listed(records, self._look.history, self._declared, standing, is_cut=self._look.is_cut)


@asynccontextmanager
async def _view(settings: Settings, topic: str) -> AsyncIterator[_View]:
    broker = KafkaBroker(settings)
    view: _View | None = None
    try:
        async with looking(settings) as look:
            view = _View(settings, broker, topic, look, await declared(settings, broker, look))
            yield view
    finally:
        if view is not None:
            await view.lister.close()
        await broker.close()


def _bounded(limit: int) -> int:
    return max(0, min(limit, _MOST))


def _data(one: Listed) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(one)
    return made


def _table(listed: Sequence[Listed], width: int) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("AT", "EVENT", "TYPE", "ID", "FATE", "WHY"):
        # Why is what one looks for: where there is little room, ids and types give way.
        most = _NARROW_COLUMN if width < _WIDE and column in ("TYPE", "ID") else None
        table.add_column(column, overflow="fold" if column == "WHY" else "ellipsis", no_wrap=column != "WHY", max_width=most)
    for one in listed:
        table.add_row(
            Text(f"{one.at.astimezone():%m-%d %H:%M:%S}", "dim"),
            f"{one.partition}/{one.offset}",
            Text(short(one.type or "", 40)),
            Text(short(one.id or "", 40)),
            Text(one.verdict.fate.value, _STYLES.get(one.verdict.fate, "dim")),
            Text(short(one.verdict.text, _TEXT_WIDTH)),
        )
    return table


def _line(one: Listed) -> Text:
    return Text.assemble(
        (f"{one.at.astimezone():%H:%M:%S}  {one.partition}/{one.offset}  ", "dim"),
        (one.verdict.fate.value.ljust(11), _STYLES.get(one.verdict.fate, "dim")),
        f"  {short(one.type or '', 40)}  ",
        (short(one.id or "", 60), "bold"),
        "  ",
        (short(one.verdict.text, _TEXT_WIDTH), "dim"),
    )
