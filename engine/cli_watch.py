"""What a command shows, once or again and again: a table that changes on a terminal, for a program what is new or different."""

from __future__ import annotations

import io
from asyncio import sleep
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console, RenderableType
from rich.live import Live

from engine.cli_console import CommandConsole
from engine.cli_output import json_text, put, say

WatchFlag = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Look again and again; with --json what is new or has changed.")
]

#: Between two looks.
LOOK_SECONDS = 2.0


class Shown(msgspec.Struct, frozen=True):
    """What one look has found."""

    #: For a program: values, a line each, by what they are of.
    items: Callable[[], Iterable[tuple[str, Any]]]
    #: For a terminal of so many characters; None where there is nothing.
    drawn: Callable[[int], RenderableType | None]
    #: What there is to say to a person beside it.
    words: str = ""
    #: Whether nothing more will come, so that nobody need look again.
    is_over: bool = False


async def show(
    look: Callable[[], Awaitable[Shown]],
    *,
    watch: bool,
    json: bool,
    again: Callable[[], Awaitable[None]] | None = None,
    soft_wrap: bool = False,
) -> None:
    """Show what ``look`` finds; with ``watch`` until it is over, or Ctrl-C, with ``again`` before each further look.

    Raises what those two do.
    """
    told: dict[str, str] = {}
    with _screen(is_on=watch and not json) as screen:
        while True:
            shown = await look()
            if json:
                lines = {about: json_text(item) for about, item in shown.items()}
                for about, line in lines.items():
                    if told.get(about) != line:
                        put(line)
                # What is not in the list any more is forgotten: this does not grow while one watches.
                told = lines
            elif watch:
                screen.update(shown.drawn(screen.console.width) or shown.words, refresh=True)
            else:
                _print(shown, soft_wrap=soft_wrap)
            if not watch or shown.is_over:
                return
            await sleep(LOOK_SECONDS)
            if again is not None:
                await again()


def _print(shown: Shown, *, soft_wrap: bool) -> None:
    console = CommandConsole(soft_wrap=soft_wrap)
    drawn = shown.drawn(console.width)
    if drawn is not None:
        console.print(drawn)
    if shown.words:
        say(shown.words)


def _screen(*, is_on: bool) -> Live:
    """What shows a list that changes; where it is off, or output is no terminal, nothing moves."""
    console = CommandConsole() if is_on else Console(file=io.StringIO())
    return Live(console=console, auto_refresh=False, vertical_overflow="crop")
