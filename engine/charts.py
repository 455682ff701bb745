"""Charts: counts to rectangles and lines in a box of known size; pure, and knows no markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.history_schema import MINUTE
from engine.states import State

WIDTH, HEIGHT = 960.0, 120.0
#: From the bottom of a bar to its top.
STACK = (State.COMPLETED, State.CANCELLED, State.CRASHED, State.FAILED)
_GAP = 0.22


class Bar(msgspec.Struct, frozen=True):
    """A part of a bar; ``y`` grows downwards."""

    state: str
    x: float
    y: float
    width: float
    height: float


class Column(msgspec.Struct, frozen=True):
    """A minute: where it stands, what ended in it by state, and how many runs were scheduled."""

    minute: int
    x: float
    width: float
    counts: dict[str, int]
    scheduled: int
    bars: list[Bar]


class Chart(msgspec.Struct, frozen=True):
    """Minutes side by side; what was scheduled is a line over them."""

    columns: list[Column]
    #: ``x,y`` pairs as an SVG polyline wants them.
    line: str
    #: The value of the top edge.
    top: int
    totals: dict[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not any(self.totals.values())


def last_hour(counts: Iterable[tuple[int, str, int]], now: float, minutes: int = 60) -> Chart:
    """The chart of runs by the minute they ended in, and of those scheduled, up to the current minute."""
    known: dict[int, dict[str, int]] = {}
    for minute, state, count in counts:
        known.setdefault(minute, {})[state] = count
    last = int(now // MINUTE) * MINUTE
    shown = [last - MINUTE * (minutes - 1 - number) for number in range(minutes)]
    heights = [max(sum(known.get(m, {}).get(s, 0) for s in STACK), known.get(m, {}).get(State.SCHEDULED, 0)) for m in shown]
    top = nice(max(heights, default=0))
    step = WIDTH / minutes
    columns: list[Column] = []
    points: list[str] = []
    totals: dict[str, int] = {}
    for number, minute in enumerate(shown):
        by_state = known.get(minute, {})
        scheduled = by_state.get(State.SCHEDULED, 0)
        ended = {state.value: by_state[state] for state in STACK if by_state.get(state)}
        for state, count in [*ended.items(), (State.SCHEDULED.value, scheduled)]:
            totals[state] = totals.get(state, 0) + count
        x, y, bars = number * step + step * _GAP / 2, HEIGHT, []
        for state, count in ended.items():
            height = count / top * HEIGHT
            y -= height
            bars.append(Bar(state, round(x, 2), round(y, 2), round(step * (1 - _GAP), 2), round(height, 2)))
        columns.append(Column(minute, round(number * step, 2), round(step, 2), ended, scheduled, bars))
        points.append(f"{number * step + step / 2:.1f},{HEIGHT - scheduled / top * HEIGHT:.1f}")
    return Chart(columns, " ".join(points), top, totals)


def spark(values: Sequence[float], width: float, height: float) -> list[tuple[float, float, float]]:
    """Bars for values, the first at the left: x, width, height; even the least is to be seen."""
    top = max(values, default=0.0) or 1.0
    step = width / max(1, len(values))
    return [
        (round(n * step, 2), round(step * 0.8, 2), round(max(0.06, max(0.0, value) / top) * height, 2))
        for n, value in enumerate(values)
    ]


def nice(value: float) -> int:
    """A round number that is no less than ``value``, and little more: a good edge of an axis."""
    size = 1
    while True:
        for tenths in (10, 12, 15, 20, 30, 40, 50, 60, 80):
            if tenths * size >= value * 10 and tenths * size % 10 == 0:
                return tenths * size // 10
        size *= 10
