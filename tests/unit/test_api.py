"""engine.api: what it answers, refuses and documents, on an engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from engine import api_requests
from engine.actions import Actions
from engine.api import ROOT, routes
from engine.command_errors import UsageError
from engine.errors import EngineError, KafkaUnavailable, RecordTooLarge, TopicError
from engine.history import History
from engine.history_errors import HistoryUnavailable
from engine.history_store import HistoryStore
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker
from engine.projector import Projector
from engine.results import ResultStore
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.unit import flows_actions as flows


class Api:
    """The API of an engine that runs, and its history, which follows when ``project`` is called."""

    def __init__(self, app: AppUnderTest, broker: MemoryBroker, client: httpx.AsyncClient, path: str) -> None:
        self.app, self.client = app, client
        self._broker, self._path = broker, path
        self.document: dict[str, Any] = {}

    async def project(self) -> None:
        projector = Projector(self.app.settings, self._broker, HistoryStore(self._path, self.app.settings.app))
        await projector.catch_up()
        await projector.close()

    async def get(self, path: str, expected: int = 200, **query: Any) -> Any:
        return self._checked(await self.client.get(path, params=query), "get", path, expected)

    async def post(self, path: str, body: object = None, expected: int = 202) -> Any:
        return self._checked(await self.client.post(path, json={} if body is None else body), "post", path, expected)

    def _checked(self, answer: httpx.Response, method: str, path: str, expected: int) -> Any:
        """The content, which is as the document says."""
        assert answer.status_code == expected, answer.text
        found = [known for known in self.document["paths"] if _fits(known, path)]
        operation = self.document["paths"][min(found, key=lambda known: known.count("{"))][method]
        schema = operation["responses"][str(expected)]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": self.document["components"]}).validate(answer.json())
        return answer.json()


def _fits(known: str, path: str) -> bool:
    parts, given = known.split("/"), path.split("/")
    return len(parts) == len(given) and all(a == b or a.startswith("{") for a, b in zip(parts, given, strict=True))


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    broker = MemoryBroker()
    settings = fresh_settings(results=f"file://{tmp_path}/results")
    store = ResultStore(settings.results, settings.app, 1_000_000)
    handled = [flows.work, flows.count, flows.picky]
    app = AppUnderTest(settings, handled, broker, InlineExecutor(results=store), broker)
    path, sink = str(tmp_path / "history.db"), broker.sink()
    actions = Actions(settings, broker, sink, None, lambda: History.open(path))
    served = Starlette(routes=[Mount(ROOT, routes=routes(actions, lambda: History.open(path), max_body_bytes=1_000))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url=f"http://localhost{ROOT}") as client:
        made = Api(app, broker, client, path)
        await app.start()
        made.document = (await client.get("/openapi.json")).json()
        await made.project()
        yield made
        await actions.close()
        await app.close()


async def test_the_document_describes_every_route(api: Api) -> None:
    document = await api.get("/openapi.json")
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        *("/runs", "/runs/{run_id}", "/runs/{run_id}/tasks", "/runs/{run_id}/changes", "/runs/{run_id}/logs"),
        *("/runs/{run_id}/cancel", "/runs/{run_id}/retry", "/runs/{run_id}/rerun"),
        *("/flows", "/flows/{name}", "/flows/{name}/runs", "/events"),
        *("/dead-letters", "/dead-letters/replay", "/dead-letters/drop", "/openapi.json"),
    }
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = {parameter["name"] for parameter in document["paths"]["/runs"]["get"]["parameters"]}
    assert {"flow", "state", "key", "since", "until", "cursor", "limit"} == names


async def test_a_run_is_started_seen_and_repeated(api: Api) -> None:
    started = await api.post("/flows/count/runs", {"parameters": {"value": 2}, "request_id": "r"})
    run_id = started["run_id"]
    await api.app.run_of(run_id)
    assert (await api.post("/flows/count/runs", {"parameters": {"value": 2}, "request_id": "r"}))["run_id"] == run_id
    await api.project()
    run = await api.get(f"/runs/{run_id}")
    assert (run["state"], run["parameters"], run["result"], run["event"]) == ("COMPLETED", {"value": 2}, 3, None)
    changes = await api.get(f"/runs/{run_id}/changes", limit=2)
    assert [change["state"] for change in changes["items"]] == ["SCHEDULED", "RUNNING"]
    rest = await api.get(f"/runs/{run_id}/changes", after=changes["after"])
    assert ([change["state"] for change in rest["items"]], rest["after"]) == (["COMPLETED"], None)
    assert (await api.get(f"/runs/{run_id}/logs"))["items"] == []
    assert (await api.post(f"/runs/{run_id}/cancel", {}, 409))["error"] == "not-in-this-state"
    assert (await api.post(f"/runs/{run_id}/retry", {}, 409))["error"] == "not-in-this-state"
    again = await api.post(f"/runs/{run_id}/rerun")
    assert again["repeats"] == run_id
    await api.app.run_of(again["run_id"])


async def test_a_run_has_its_tasks_and_is_run_again_from_one(api: Api, tmp_path: Path) -> None:
    run = await api.app.do("work", {"folder": str(tmp_path)}, "work")
    await api.project()
    tasks = await api.get(f"/runs/{run.id}/tasks", limit=4)
    assert [task["name"] for task in tasks["items"]] == ["load/1", "price/2.0", "price/2.1", "price/2.2"]
    assert tasks["items"][0]["attempts"][0]["outcome"] == "COMPLETED"
    assert len((await api.get(f"/runs/{run.id}/tasks", after=tasks["after"]))["items"]) == 2
    done = await api.post(f"/runs/{run.id}/rerun", {"from_task": "total"})
    assert (done["taken"], done["again"]) == (["load/1", "price/2"], ["scale/0", "total/3"])
    await api.app.run_of(done["run_id"])
    assert "load, price" in (await api.post(f"/runs/{run.id}/rerun", {"from_task": "brew"}, 404))["reason"]


async def test_lists_have_pages_and_filters(api: Api) -> None:
    for number in range(3):
        await api.app.do("counts", {"value": number}, "count", id=str(number))
    await api.project()
    first = await api.get("/runs", limit=2, flow=["count", "work"], state="COMPLETED")
    second = await api.get("/runs", limit=2, cursor=first["cursor"])
    assert (len(first["items"]), len(second["items"]), second["cursor"]) == (2, 1, None)
    assert (await api.get("/runs", since="2100-01-01T00:00:00Z"))["items"] == []
    events = await api.get("/events", limit=2)
    assert len(events["items"]) == 2
    assert len(events["items"][0]["runs"]) == 1
    assert (await api.get("/runs", 400, cursor="x"))["reason"] == "'x' is no cursor of a list"


async def test_flows_say_what_they_take_and_how_they_do(api: Api) -> None:
    await api.app.do("counts", {"value": 1}, "count")
    await api.project()
    listed = {flow["name"]: flow for flow in (await api.get("/flows"))["items"]}
    assert set(listed) == {"work", "count", "picky"}
    assert (listed["count"]["runs"], listed["count"]["success_rate"], listed["work"]["runs"]) == (1, 1.0, 0)
    flow = await api.get("/flows/count")
    assert flow["parameters"]["$defs"]["Parameters"]["required"] == ["value"]
    assert "count, picky, work" in (await api.get("/flows/nothing", 404))["reason"]


async def test_dead_letters_are_replayed_and_dropped(api: Api) -> None:
    await api.app.send("counts", {"value": "x"})
    await api.app.send("counts", {"value": "y"})
    await api.app.letters(2)
    await api.project()
    letters = (await api.get("/dead-letters"))["items"]
    assert {letter["reason"] for letter in letters} == {"invalid-parameters"}
    assert (await api.get("/dead-letters", reason="invalid-parameters"))["items"] == letters
    assert (await api.get("/dead-letters", reason="too-large"))["items"] == []
    ids = [letter["id"] for letter in letters]
    done = await api.post("/dead-letters/replay", {"ids": ids[:1], "value": '{"value": 4}'})
    assert [one["letter"] for one in done["items"]] == ids[:1]
    await api.post("/dead-letters/drop", {"ids": ids[1:]}, 200)
    await api.project()
    assert (await api.get("/dead-letters"))["items"] == []
    assert {letter["status"] for letter in (await api.get("/dead-letters", all="true"))["items"]} == {"replayed", "dropped"}
    assert (await api.post("/dead-letters/replay", {"ids": ids, "value": "1"}, 400))["error"] == "invalid-body"
    assert (await api.post("/dead-letters/drop", {"ids": ["x"]}, 400))["error"] == "usage"
    assert (await api.post("/dead-letters/drop", {"ids": []}, 400))["error"] == "invalid-body"


@pytest.mark.parametrize(
    ("path", "query", "text"),
    [
        ("/runs", {"limit": 0}, "limit"),
        ("/runs", {"limit": 1_001}, "limit"),
        ("/runs", {"state": "DONE"}, "state"),
        ("/runs", {"flwo": "x"}, "flwo is unknown; known: flow, state"),
        ("/runs", {"since": "yesterday"}, "since"),
        ("/flows", {"limit": 1}, "limit is unknown"),
    ],
)
async def test_a_query_that_means_nothing_is_refused_by_name(api: Api, path: str, query: dict[str, Any], text: str) -> None:
    assert text in (await api.get(path, 400, **query))["reason"]


async def test_what_is_not_there_is_told_in_json(api: Api) -> None:
    assert (await api.get("/runs/nothing", 404))["error"] == "not-found"
    assert (await api.post("/runs/nothing/cancel", {}, 404))["error"] == "not-found"
    assert (await api.post("/flows/nothing/runs", {}, 404))["error"] == "not-found"
    assert (await api.post("/flows/count/runs", {"parameters": {"value": "x"}}, 422))["error"] == "invalid-parameters"
    unknown = await api.client.get("/nothing")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "not-found")
    wrong = await api.client.delete("/runs")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]) == (405, "GET", "method-not-allowed")


async def test_bodies_are_json_and_bounded(api: Api) -> None:
    form = await api.client.post("/flows/count/runs", data={"parameters": "x"})
    assert (form.status_code, form.json()["error"]) == (415, "unsupported-media-type")
    plain = await api.client.post("/flows/count/runs", content=b'{"parameters": {"value": 1}}')
    assert plain.status_code == 415
    assert (await api.post("/flows/count/runs", {"parameters": {"value": "x" * 2_000}}, 413))["error"] == "too-large"
    assert (await api.post("/flows/count/runs", {"odd": 1}, 400))["error"] == "invalid-body"
    headers = {"content-type": "application/json"}
    broken = await api.client.post("/flows/count/runs", content=b"{", headers=headers)
    assert (broken.status_code, broken.json()["error"]) == (400, "invalid-body")
    assert not api.app.changes


async def test_a_history_that_is_not_there_is_told_with_when_to_ask_again(api: Api, tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "history.db").unlink)
    answer = await api.client.get("/runs")
    assert (answer.status_code, answer.json()["error"]) == (503, "history-unavailable")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KafkaUnavailable("k", "gone"), 503),
        (HistoryUnavailable("/x", "locked"), 503),
        (TopicError("t", "does not exist", "Make it."), 404),
        (RecordTooLarge("t", 2, 1), 413),
        (UsageError("x", "wrong", "Correct it."), 400),
        (EngineError("odd"), 500),
    ],
)
def test_errors_have_the_status_of_their_kind(error: EngineError, status: int) -> None:
    answer = api_requests.refusal(error)
    assert answer.status_code == status
    assert set(msgspec.json.decode(answer.body)) == {"error", "reason"}
