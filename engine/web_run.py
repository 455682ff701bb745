"""The Run page: one run whole: facts, timeline, graph, logs, changes, payloads, and each of its task runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from engine.command_errors import NotFound
from engine.history import History
from engine.history_schema import RunRow
from engine.run_logs import LEVELS
from engine.run_views import TABS, TASKS, Asked, payload, trace_id_of
from engine.states import State
from engine.task_rows import attempts_of
from engine.web_parts import Parts

_REMEDY = "It may have expired, belong to another app, or not be in the history yet: `engine runs ls`."
#: Of what is under way.
REFRESH_SECONDS = 2.0
#: Names of tasks that are offered to begin again from.
_TASKS_OFFERED = 200


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""

    async def look(request: Request, run_id: str, tab: str) -> Mapping[str, Any]:
        asked = _asked(request, parts.now())

        def ask(history: History) -> Mapping[str, Any]:
            run = _found(history, run_id)
            tasks = history.task_names(run, limit=_TASKS_OFFERED) if State(run.state).is_end else []
            view = TABS[tab][1](history, run, asked)
            return {**_facts(parts, run), "repeated_by": history.repeats(run.run_id), "task_names": _offered(tasks), **view}

        found = await parts.reader.ask(ask)
        # What is under way grows, though nothing changes; that of many tasks is dear to draw.
        refresh_seconds = None if found["is_ended"] or found["run"].tasks > TASKS else REFRESH_SECONDS
        return {**found, "tab": tab, "tabs": TABS, "asked": asked, "refresh_seconds": refresh_seconds}

    async def show(request: Request) -> Response:
        run_id, tab = request.path_params["run_id"], request.path_params.get("tab", "timeline")
        if tab not in TABS:
            raise NotFound("page", f"/runs/{run_id}/{tab}", "See the tabs of a run.")
        try:
            context = await look(request, run_id, tab)
        except NotFound:
            if "new" not in request.query_params:
                raise
            # Just begun from this dashboard: its first state change is on the way.
            waits = {"run_id": run_id, "live": f"/runs/{run_id}/live?new=1"}
            return await parts.pages.page(request, "run_wait.html", waits, active="runs")
        run: RunRow = context["run"]
        query = f"?{request.url.query}" if request.url.query else ""
        live = f"/runs/{run.run_id}/live/{tab}{query}"
        return await parts.pages.page(request, "run.html", {**context, "live": live}, active="runs")

    async def live(request: Request) -> Response:
        run_id, tab = request.path_params["run_id"], request.path_params.get("tab", "timeline")
        if tab not in TABS:
            raise NotFound("page", f"/runs/{run_id}/live/{tab}", "See the tabs of a run.")
        fragments = {"head": "_run_head.html", "body": f"_run_{tab}.html"}
        return parts.live.respond(request, fragments, lambda: look(request, run_id, tab))

    async def wait(request: Request) -> Response:
        run_id = request.path_params["run_id"]

        async def appears() -> Mapping[str, Any]:
            return {"run": await parts.reader.ask(lambda history: history.run(run_id))}

        return parts.live.respond(request, {"wait": "_run_wait.html"}, appears)

    async def task(request: Request) -> Response:
        run_id, name = request.path_params["run_id"], request.query_params.get("name", "")[:1_000]

        def ask(history: History) -> Mapping[str, Any]:
            run = _found(history, run_id)
            row = history.task_run(run, name)
            if row is None:
                raise NotFound("task run", name, f"See those of the run: /runs/{run.run_id}")
            attempts = attempts_of(row.attempts)
            return {"run": run, "task": row, "attempts": attempts}

        return await parts.pages.page(request, "task.html", await parts.reader.ask(ask), active="runs")

    async def raw(request: Request) -> Response:
        run_id, which = request.path_params["run_id"], request.path_params["which"]
        run = await parts.reader.ask(lambda history: _found(history, run_id))
        kept = {"parameters": run.parameters, "result": run.result}.get(which)
        if kept is None:
            raise NotFound("payload", which, f"See the run: /runs/{run_id}")
        return PlainTextResponse(kept, headers={"x-content-type-options": "nosniff", "cache-control": "no-store"})

    return [
        Route("/runs/{run_id}", show),
        Route("/runs/{run_id}/task", task),
        Route("/runs/{run_id}/live", wait),
        Route("/runs/{run_id}/live/{tab}", live),
        Route("/runs/{run_id}/raw/{which}", raw),
        Route("/runs/{run_id}/{tab}", show),
    ]


def _asked(request: Request, now: float) -> Asked:
    given = request.query_params
    states = [value.upper() for value in given.getlist("state")]
    level = given.get("level", "").lower()
    return Asked(
        now=now,
        after=given.get("after", "")[:500],
        states=tuple(state for state in State if state.value in states),
        task=given.get("task", "")[:500],
        level=level if level in LEVELS else "",
    )


def _offered(tasks: list[str]) -> list[str]:
    # What the engine itself does in an async flow is no task that one could name.
    return [task for task in tasks if not task.startswith("engine.")]


def _found(history: History, run_id: str) -> RunRow:
    run = history.run(run_id)
    if run is None:
        raise NotFound("run", run_id, _REMEDY)
    return run


def _facts(parts: Parts, run: RunRow) -> dict[str, Any]:
    trace_id = trace_id_of(run)
    return {
        "run": run,
        "is_ended": State(run.state).is_end,
        "may_retry": run.state in (State.FAILED, State.CRASHED, State.CANCELLED),
        "may_act": parts.actions is not None,
        "trace_id": trace_id,
        "trace_href": parts.settings.trace_link(trace_id),
        "parameters": payload(run.parameters, run.parameters_size),
        "result": payload(run.result, run.result_size),
    }
