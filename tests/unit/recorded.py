"""Flows gone through in tests as the engine does it, without an engine: bodies in, calls, graphs and arguments out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from engine.arguments import load
from engine.executor import values_at
from engine.flows import Flow, flow, on
from engine.graph import Graph, Node
from engine.planning import Advance, Feed, Limits, Outcome, Planned, PlannedCall, PlannedMap, PlannedSleep
from engine.recording import Recording
from engine.runs import FlowRun
from engine.states import Failure, State, StateChange, encode, utc

RUN_ID = "0123456789abcdef" * 2
LIMITS = Limits(inline_result_bytes=1_000, max_tasks=1_000)
BAD = Failure("ValueError", "bad", "Traceback …")


def scheduled(**fields: Any) -> StateChange:
    """The first change of a run."""
    values: dict[str, Any] = {"flow": "fulfil", "run_id": RUN_ID} | fields
    return StateChange(state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.0), **values)


def run_of(flow: str = "fulfil", **parameters: Any) -> FlowRun:
    """A new run."""
    return FlowRun(scheduled(flow=flow, parameters=msgspec.Raw(json.dumps(parameters).encode())), 5)


def declared(body: Callable[..., Any]) -> Flow[..., Any]:
    """A flow of that function, as if it stood at the top of a module."""
    body.__qualname__ = body.__name__
    return flow(on("orders"))(body)


class Gone:
    """A flow that is gone through for a run, with all that it has asked for."""

    def __init__(
        self,
        what: Callable[..., Any] | Flow[..., Any],
        history: Sequence[Feed] = (),
        *,
        run: FlowRun | None = None,
        limits: Limits = LIMITS,
        at: float = 2.0,
        **parameters: Any,
    ) -> None:
        declaration = what if isinstance(what, Flow) else declared(what)
        self.run = run or run_of(declaration.name, **parameters)
        self.recording = Recording(declaration, self.run, "00-x", at, limits)
        self.planned: list[Planned] = []
        self.handled: list[str] = []
        self.outcome: Outcome | None = None
        self.last = Advance()
        self._take(self.recording.start(history))

    def _take(self, advance: Advance) -> Advance:
        self.planned += advance.planned
        self.handled += advance.handled
        self.outcome = advance.outcome or self.outcome
        self.last = advance
        return advance

    def feed(self, *feeds: Feed) -> Advance:
        return self._take(self.recording.feed(feeds))

    @property
    def failure(self) -> Failure:
        assert self.outcome is not None, self.planned
        assert self.outcome.failure is not None, self.outcome
        return self.outcome.failure

    @property
    def result(self) -> Any:
        assert self.outcome is not None, self.planned
        assert self.outcome.failure is None, self.outcome.failure.traceback
        assert self.outcome.result is not None, self.planned
        return json.loads(self.outcome.result)

    @property
    def called(self) -> list[str]:
        """What it has asked for, in short and in order."""
        return [short(one) for one in self.planned]

    @property
    def graph(self) -> Graph:
        """What it has planned so far, as a graph whose maps of known length are whole."""
        return graph_of(self.planned, self.run)


def short(planned: Planned) -> str:
    match planned:
        case PlannedCall():
            return f"{planned.call.task or 'result'}/{planned.call.index}"
        case PlannedMap():
            return f"{planned.call.task}/{planned.call.index}[{'?' if planned.length is None else planned.length}]"
        case PlannedSleep():
            return f"sleep/{planned.index}"
    return f"{type(planned).__name__.removeprefix('Planned').lower()}/{planned.index}"


def graph_of(planned: Sequence[Planned], run: FlowRun | None = None, max_tasks: int = 1_000) -> Graph:
    graph = Graph(RUN_ID, max_tasks, (run or run_of()).actual_index)
    for one in planned:
        if isinstance(one, PlannedCall):
            graph.plan_call(one)
        elif isinstance(one, PlannedMap):
            graph.plan_map(one)
    graph.admit(max_tasks)
    return graph


def arguments(node: Node, *results: Any) -> Any:
    """What a worker hands to the function of a call."""
    return load(node.call.arguments, values_at(node.call.places, results))


def done(index: str, value: Any = None, at: float = 3.0, *, length: int | None = None) -> Feed:
    return Feed(index, at, State.COMPLETED, encode(value), length=length)


def bad(index: str, at: float = 3.0, *, cause: str | None = None, state: State = State.FAILED) -> Feed:
    return Feed(index, at, state, failure=BAD, cause=cause)
