"""The HTTP API: reads the history, and acts as a person does; starlette routes that others mount and guard.

Who may ask is decided before: everything but GET needs the role that operates. Other methods take JSON alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from engine import api_items as items
from engine import api_requests as requests
from engine import api_rows as rows_as
from engine.actions import Actions, Repeated
from engine.api_documents import Endpoint, document
from engine.command_errors import NotFound
from engine.errors import EngineError
from engine.history import History, RunFilter
from engine.history_schema import RunRow
from engine.letter_desk import Replayed
from engine.log_rows import LogFilter
from engine.repeats import Kind
from engine.run_finder import Histories

T = TypeVar("T")

#: Where it is mounted.
ROOT = "/api/v1"
MAX_BODY_BYTES = 8 * 1024 * 1024
#: Bodies read at once, and how long an answer may take.
BODIES_AT_ONCE = 8
ANSWER_SECONDS = 60.0
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Accepted(msgspec.Struct):
    """A run that was asked to end, or begun."""

    run_id: str


class Dropped(msgspec.Struct):
    """Dead letters that are done with."""

    ids: list[str]


class ReplayedPage(msgspec.Struct):
    """Dead letters that were replayed."""

    items: list[Replayed]


def routes(actions: Actions, histories: Histories, *, max_body_bytes: int = MAX_BODY_BYTES) -> list[Route]:
    """Routes to be mounted at ``ROOT``. ``histories`` is called in a thread, for each request that reads."""
    return _Api(actions, histories, max_body_bytes).routes()


class _Api:
    def __init__(self, actions: Actions, histories: Histories, max_body_bytes: int) -> None:
        self._actions, self._histories, self._max_body_bytes = actions, histories, max_body_bytes
        self._bodies = 0
        self.endpoints = self._endpoints()
        self._document = msgspec.json.encode(document(self.endpoints, ROOT))

    def routes(self) -> list[Route]:
        """One for each path, so that a wrong method is told in JSON, too."""
        by_path: dict[str, dict[str, Endpoint]] = {}
        for endpoint in self.endpoints:
            by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        made = [Route(path, self._route(methods), methods=_METHODS) for path, methods in by_path.items()]
        return [*made, Route("/{path:path}", _unknown, methods=_METHODS)]

    def _endpoints(self) -> Sequence[Endpoint]:
        get, post, r = "GET", "POST", requests
        run, flow = "/runs/{run_id}", "/flows/{name}"
        return (
            Endpoint(get, "/runs", "List runs, the newest first.", self._runs, items.RunPage, r.RunsQuery),
            Endpoint(get, run, "One run with its parameters and result.", self._run, items.RunDetails),
            Endpoint(get, f"{run}/tasks", "The task runs of a run.", self._tasks, items.TaskPage, r.TasksQuery),
            Endpoint(get, f"{run}/changes", "The state changes of a run.", self._changes, items.ChangePage, r.ChangesQuery),
            Endpoint(get, f"{run}/logs", "The log lines of a run.", self._logs, items.LogPage, r.LogsQuery),
            Endpoint(post, f"{run}/cancel", "End a run.", self._cancel, Accepted, None, r.CancelRequest, 202, (409,)),
            Endpoint(
                post,
                f"{run}/retry",
                "Run again what did not complete.",
                self._retry,
                Repeated,
                None,
                r.RepeatRequest,
                202,
                (409,),
            ),
            Endpoint(
                *(post, f"{run}/rerun", "Run again what has ended, all of it or from a task.", self._rerun, Repeated),
                *(None, r.RepeatRequest, 202, (409,)),
            ),
            Endpoint(get, "/flows", "List flows.", self._flows, items.FlowPage),
            Endpoint(get, flow, "One flow with the schema of its parameters.", self._flow, items.FlowDetails),
            Endpoint(post, f"{flow}/runs", "Start a run.", self._start, Accepted, None, r.StartRequest, 202, (422,)),
            Endpoint(get, "/events", "List events that were taken in.", self._events, items.EventPage, r.EventsQuery),
            Endpoint(get, "/dead-letters", "List dead letters.", self._letters, items.LetterPage, r.LettersQuery),
            Endpoint(
                *(post, "/dead-letters/replay", "Have dead letters taken in once more.", self._replay, ReplayedPage),
                *(None, r.ReplayRequest, 202),
            ),
            Endpoint(post, "/dead-letters/drop", "Mark dead letters as done with.", self._drop, Dropped, None, r.DropRequest),
            Endpoint(get, "/openapi.json", "This document.", self._openapi, dict[str, Any]),
        )

    # --- Reading --------------------------------------------------------------------------------------------------------

    async def _runs(self, query: requests.RunsQuery) -> items.RunPage:
        wanted = RunFilter(
            flows=query.flow,
            states=query.state,
            key=query.key,
            since=None if query.since is None else query.since.timestamp(),
            until=None if query.until is None else query.until.timestamp(),
        )
        page = await self._ask(lambda history: history.runs(wanted, cursor=query.cursor, limit=query.limit))
        return items.RunPage([rows_as.run_item(row) for row in page.items], page.cursor)

    async def _run(self, run_id: str) -> items.RunDetails:
        return rows_as.run_details(await self._ask(lambda history: _found(history, run_id)))

    async def _tasks(self, run_id: str, query: requests.TasksQuery) -> items.TaskPage:
        rows = await self._ask(
            lambda history: history.task_runs(_found(history, run_id), limit=query.limit + 1, after=query.after)
        )
        more = len(rows) > query.limit
        made = [rows_as.task_item(row) for row in rows[: query.limit]]
        return items.TaskPage(made, made[-1].name if more else None)

    async def _changes(self, run_id: str, query: requests.ChangesQuery) -> items.ChangePage:
        found = await self._ask(
            lambda history: history.changes(_found(history, run_id), after=query.after, limit=query.limit + 1)
        )
        more = len(found) > query.limit
        made = [rows_as.change_item(change) for change in found[: query.limit]]
        return items.ChangePage(made, made[-1].seq if more else None)

    async def _logs(self, run_id: str, query: requests.LogsQuery) -> items.LogPage:
        wanted = LogFilter(task=query.task, level=query.level, latest=query.latest)
        rows = await self._ask(
            lambda history: history.logs(_found(history, run_id).run_id, after=query.after, limit=query.limit, wanted=wanted)
        )
        made = [rows_as.log_item(row) for row in rows]
        return items.LogPage(made, made[-1].seq if made else query.after)

    async def _flows(self) -> items.FlowPage:
        declared, rows = await self._ask(lambda history: (history.declarations(), history.flows()))
        known = {row.flow: row for row in rows}
        return items.FlowPage([rows_as.flow_item(one, known.get(one.name)) for one in declared])

    async def _flow(self, name: str) -> items.FlowDetails:
        declared, row = await self._ask(lambda history: (history.declarations(), history.flow(name)))
        found = next((one for one in declared if one.name == name), None)
        if found is None:
            raise NotFound("flow", name, f"Known: {', '.join(one.name for one in declared) or 'none'}.")
        return rows_as.flow_details(found, row)

    async def _events(self, query: requests.EventsQuery) -> items.EventPage:
        page = await self._ask(lambda history: history.events(cursor=query.cursor, limit=query.limit))
        return items.EventPage([rows_as.event_item(row) for row in page.items], page.cursor)

    async def _letters(self, query: requests.LettersQuery) -> items.LetterPage:
        page = await self._ask(
            lambda history: history.letters(all=query.all, reasons=query.reason, cursor=query.cursor, limit=query.limit)
        )
        return items.LetterPage([rows_as.letter_line(line) for line in page.items], page.cursor)

    async def _openapi(self) -> msgspec.Raw:
        return msgspec.Raw(self._document)

    # --- Acting ---------------------------------------------------------------------------------------------------------

    async def _cancel(self, run_id: str, body: requests.CancelRequest) -> Accepted:
        await self._actions.cancel(run_id, body.reason)
        return Accepted(run_id)

    async def _retry(self, run_id: str, body: requests.RepeatRequest) -> Repeated:
        return await self._actions.rerun(run_id, Kind.RETRY, from_task=body.from_task, request_id=body.request_id)

    async def _rerun(self, run_id: str, body: requests.RepeatRequest) -> Repeated:
        return await self._actions.rerun(run_id, Kind.RERUN, from_task=body.from_task, request_id=body.request_id)

    async def _start(self, name: str, body: requests.StartRequest) -> Accepted:
        run_id = await self._actions.start(name, body.parameters, data=body.data, key=body.key, request_id=body.request_id)
        return Accepted(run_id)

    async def _replay(self, body: requests.ReplayRequest) -> ReplayedPage:
        if body.value is not None and len(body.ids) != 1:
            raise requests.ApiError(400, "invalid-body", f"value is for one letter, not {len(body.ids)}")
        value = None if body.value is None else body.value.encode()
        return ReplayedPage(await self._actions.replay(body.ids, value=value, flow=body.flow, replay_id=body.replay_id))

    async def _drop(self, body: requests.DropRequest) -> Dropped:
        await self._actions.drop(body.ids)
        return Dropped(body.ids)

    # --- Serving --------------------------------------------------------------------------------------------------------

    async def _ask(self, question: Callable[[History], T]) -> T:
        def ask() -> T:
            with self._histories() as history:
                return question(history)

        return await run_in_threadpool(ask)

    def _route(self, methods: dict[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
            if endpoint is None:
                allowed = ", ".join(methods)
                reason = f"{request.method} is not known here; it takes {allowed}"
                return requests.answer(405, items.ErrorItem("method-not-allowed", reason), {"allow": allowed})
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    content = await endpoint.answers(*await self._arguments(endpoint, request))
            except EngineError as error:
                return requests.refusal(error)
            except TimeoutError:
                # What was asked for may have been done all the same: with a request_id asking again makes it no second time.
                return requests.answer(504, items.ErrorItem("timeout", f"it took longer than {ANSWER_SECONDS:g} s"))
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to be told
            return requests.answer(endpoint.status, content)

        return serve

    async def _arguments(self, endpoint: Endpoint, request: Request) -> list[Any]:
        arguments: list[Any] = list(request.path_params.values())
        if endpoint.body is not None:
            if self._bodies >= BODIES_AT_ONCE:
                raise requests.ApiError(503, "busy", "too many requests are being read at once; try again")
            self._bodies += 1
            try:
                arguments.append(await requests.body_of(request, endpoint.body, self._max_body_bytes))
            finally:
                self._bodies -= 1
        else:
            query = requests.query_of(request.query_params, endpoint.query or _NoQuery)
            arguments += [query] if endpoint.query is not None else []
        return arguments


class _NoQuery(msgspec.Struct):
    """Of what takes no parameters."""


def _found(history: History, run_id: str) -> RunRow:
    row = history.run(run_id)
    if row is None:
        raise NotFound("run", run_id, "The history may have forgotten it, or be a little behind.")
    return row


async def _unknown(request: Request) -> Response:
    return requests.answer(404, items.ErrorItem("not-found", f"there is no {request.url.path}; see {ROOT}/openapi.json"))
