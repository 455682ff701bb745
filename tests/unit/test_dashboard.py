"""engine.dashboard: pages, events and readiness over HTTP, whatever is or is not there behind them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import engine.dashboard as dashboard_module
from engine.cli_dashboard import default_history
from engine.dashboard import Dashboard
from engine.errors import SettingsError
from engine.history_opener import is_in_use
from engine.history_store import HistoryStore
from engine.memory import MemoryBroker
from engine.settings import Secret, Settings
from engine.web_origins import SECURITY_HEADERS
from tests.browser.desk import fill
from tests.dashboard_under_test import Beside, a_log, serving
from tests.history_records import Topics, a_run
from tests.unit.test_web_roles import OPERATE, READ
from tests.waiting import eventually_said

#: Everything of the navigation, and what is beside it.
PATHS = [
    *("/", "/runs", "/flows", "/events", "/dead-letters", "/cluster", "/about"),
    *("/login", "/healthz", "/readyz", "/metrics", "/nothing"),
]


def client(dashboard: Dashboard, **more: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{dashboard.address}", trust_env=False, **more)  # type: ignore[arg-type]


@pytest.fixture
async def broker() -> MemoryBroker:
    return await a_log("orders")


async def ready(http: httpx.AsyncClient) -> httpx.Response:
    answer = httpx.Response(503)

    async def is_ready() -> bool:
        nonlocal answer
        answer = await http.get("/readyz")
        return answer.status_code == 200

    await eventually_said(is_ready)
    return answer


async def text_of(http: httpx.AsyncClient, path: str, wanted: str) -> str:
    """A page, when it says what is wanted: the projector may be a moment behind."""
    text = ""

    async def is_said() -> bool:
        nonlocal text
        text = (await http.get(path)).text
        return wanted in text

    await eventually_said(is_said)
    return text


async def test_it_is_ready_when_the_history_has_caught_up(tmp_path: Path, broker: MemoryBroker) -> None:
    topics = Topics(gaps=False)
    topics._clock = time.time() - 60  # what is older than the retention is forgotten
    a_run(topics, "0" * 32)
    for record in topics.records:
        broker.log((record.topic, 0)).append(record)
    async with serving(tmp_path, broker) as dashboard, client(dashboard) as http:
        assert (await ready(http)).json() == {"ready": True, "parts": {"kafka": "ok", "history": "ok"}}
        await text_of(http, "/runs", "0" * 8)


async def test_metrics_say_how_far_the_history_is_and_are_for_those_who_may_look(tmp_path: Path, broker: MemoryBroker) -> None:
    topics = Topics(gaps=False)
    a_run(topics, "0" * 32)
    for record in topics.records:
        broker.log((record.topic, 0)).append(record)
    tokens = {"http_token": Secret(OPERATE), "http_read_token": Secret(READ)}
    async with serving(tmp_path, broker, **tokens) as dashboard, client(dashboard) as http:
        assert (await http.get("/metrics")).status_code == 401
        http.headers["authorization"] = f"Bearer {READ}"
        text = await text_of(http, "/metrics", 'engine_projector_lag_records{partition="0",topic="app.states"} 0.0')
        assert "engine_history_readable 1.0" in text


async def test_events_are_taken_as_the_engine_takes_them(tmp_path: Path, broker: MemoryBroker) -> None:
    async with serving(tmp_path, broker) as dashboard, client(dashboard) as http:
        answer = await http.post("/events/orders", json={"total": 3})
        assert (answer.status_code, answer.json()["positions"]) == (202, ["orders/0/0"])
        assert broker.log(("orders", 0))[0].value == b'{"total":3}'


async def test_every_answer_carries_the_policy(tmp_path: Path, broker: MemoryBroker) -> None:
    async with serving(tmp_path, broker) as dashboard, client(dashboard) as http:
        await ready(http)
        for path in PATHS:
            answer = await http.get(path)
            assert answer.status_code in ((404,) if path == "/nothing" else (200, 303)), path
            assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS, path
            assert "style=" not in answer.text
            assert " onclick" not in answer.text


async def test_a_database_that_is_gone_is_said_and_the_page_goes_on(tmp_path: Path, broker: MemoryBroker) -> None:
    class Lazy(Beside):
        """One that cannot make its database."""

        def __init__(self, settings: Settings, broker: MemoryBroker) -> None:
            super().__init__(settings, broker)
            self._stopping = asyncio.Event()

        async def run(self) -> None:
            await self._stopping.wait()

        def stop(self) -> None:
            self._stopping.set()

    settings = Settings(app="app", http="127.0.0.1:0", history=str(tmp_path / "none" / "history.db"), dask="tcp://127.0.0.1:1")
    dashboard = Dashboard(settings, broker, Lazy(settings, broker))
    listening = asyncio.Event()
    running = asyncio.create_task(dashboard.run(listening.set))
    await listening.wait()
    async with client(dashboard) as http:
        for path in PATHS[:7]:
            answer = await http.get(path)
            assert answer.status_code in (200, 503), path
            assert "Traceback" not in answer.text
        unready = await http.get("/readyz")
        assert unready.status_code == 503
        assert "No such file" in unready.json()["parts"]["history"]
    dashboard.stop()
    await running


#: Pages and what they say of the sample.
SAID = {
    "/flows": "fulfil(order: Order)",
    "/flows/fulfil": "order.customer",
    "/events": "order.created",
    "/events?topic=orders": "no trigger takes type order.archived",
    "/events?topic=payments": "onerror",
    "/dead-letters": "invalid-parameters",
    "/dead-letters/0/0": "c-7",
    "/dead-letters/0/1": "0001 feff",
    "/dead-letters/0/2": "malformed-event",
    "/dead-letters/0/2?as=hex": "malformed-event",
    "/cluster": "app.intake",
    "/about": "app.states",
}


async def test_pages_say_what_is_there_and_take_nothing_of_it_for_markup(filled: httpx.AsyncClient) -> None:
    for path, wanted in SAID.items():
        text = await text_of(filled, path, wanted)
        for markup in ("<img", "<script>", "\u202e", "\x1b"):
            assert markup not in text, path
        assert "{{" not in text.replace("{{7*7}}", ""), path


async def test_what_is_not_there_is_not_found(filled: httpx.AsyncClient) -> None:
    await text_of(filled, "/flows", "fulfil")
    for path in ("/flows/none", "/dead-letters/0/99", "/dead-letters/x/y", "/flows/none/x"):
        assert (await filled.get(path)).status_code == 404, path


async def test_what_cannot_be_done_is_said_and_nothing_written(filled: httpx.AsyncClient, filled_log: MemoryBroker) -> None:
    await text_of(filled, "/dead-letters", "invalid-parameters")
    before = {place: len(filled_log.log(place)) for place in (("app.states", 0), ("app.dead-letters", 0), ("orders", 0))}
    for path, form, status in (
        ("/flows/none/start", {"a": "b"}, 404),
        ("/flows/fulfil/start", {"p:order/lines": "["}, 400),
        ("/flows/fulfil/start", {"p:order/id": "1"}, 400),
        ("/send-event", {"topic": "", "data": "{}"}, 400),
        ("/send-event", {"topic": "app.states", "data": "{}"}, 400),
        ("/send-event", {"topic": "nowhere", "data": "{}"}, 404),
        ("/dead-letters/0/99/drop", {"a": "b"}, 404),
        ("/dead-letters/0/1/replay", {"as": "hex", "value": "xyz"}, 400),
        ("/dead-letters/drop", {"id": "x"}, 400),
        ("/dead-letters/replay", {"a": "b"}, 400),
    ):
        answer = await filled.post(path, data=form)
        assert answer.status_code == status, (path, answer.text)
    assert {place: len(filled_log.log(place)) for place in before} == before


async def test_a_form_sent_twice_makes_one_run(filled: httpx.AsyncClient) -> None:
    await text_of(filled, "/flows/settle", "payment_id")
    form = {"p:payment_id": "p-1", "p:amount": "2", "nonce": "n"}
    places = [(await filled.post("/flows/settle/start", data=form)).headers["hx-redirect"] for _ in range(2)]
    assert places[0] == places[1]
    other = await filled.post("/flows/settle/start", data=form | {"nonce": "m"})
    assert other.headers["hx-redirect"] != places[0]


async def test_pages_say_that_the_history_is_behind_and_go_on(
    tmp_path: Path, filled_log: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_module, "_WATCH_SECONDS", 0.05)
    monkeypatch.setattr(dashboard_module, "CAUGHT_UP_RECORDS", 0)
    async with serving(tmp_path, filled_log) as dashboard, client(dashboard) as http:
        await ready(http)

        async def is_up_to_date() -> bool:
            return "What you see may be old" not in (await http.get("/about")).text

        await eventually_said(is_up_to_date)
        dashboard._projecting._projector.stop()  # type: ignore[attr-defined]
        dashboard._projecting.trouble = "the projector ended with code 1"
        await text_of(http, "/about", "What you see may be old. The history: the projector ended with code 1")
        assert (await http.get("/readyz")).status_code == 503


@pytest.fixture
async def filled_log() -> MemoryBroker:
    """With flows, runs, events and dead letters, hostile ones among them."""
    broker = await a_log("orders", "payments", "clicks")
    await fill(broker)
    return broker


@pytest.fixture
async def filled(tmp_path: Path, filled_log: MemoryBroker) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(tmp_path, filled_log) as dashboard, client(dashboard) as http:
        yield http


@pytest.fixture
async def guarded(tmp_path: Path, broker: MemoryBroker) -> AsyncIterator[httpx.AsyncClient]:
    tokens = {"http_token": Secret(OPERATE), "http_read_token": Secret(READ)}
    async with serving(tmp_path, broker, **tokens) as dashboard, client(dashboard) as http:
        yield http


async def test_with_a_token_one_logs_in_looks_and_leaves(guarded: httpx.AsyncClient) -> None:
    page = await guarded.get("/about", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/about")
    entered = await guarded.post("/login", data={"token": OPERATE, "next": "/about"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/about")
    assert OPERATE not in str(entered.headers)
    page = await guarded.get("/about")
    assert page.status_code == 200
    assert OPERATE not in page.text
    assert READ not in page.text
    assert (await guarded.post("/logout")).status_code == 403, "not without what the page knows"
    csrf = page.text.split('"x-csrf-token": "')[1].split('"')[0]
    left = await guarded.post("/logout", headers={"x-csrf-token": csrf})
    assert (left.status_code, left.headers["location"]) == (303, "/login")
    assert (await guarded.get("/about")).status_code == 401


async def test_a_wrong_token_is_told_so_and_guessing_ends(guarded: httpx.AsyncClient) -> None:
    for _ in range(10):
        wrong = await guarded.post("/login", data={"token": "x" * 20, "next": "//evil.example"})
        assert wrong.status_code == 401
        assert "not valid" in wrong.text
        assert "evil" not in wrong.text
    assert (await guarded.post("/login", data={"token": OPERATE})).status_code == 429


@pytest.mark.parametrize("body", [b"\xff", b"token=" + b"x" * 10_000, b"&" * 500])
async def test_what_is_no_login_is_none(guarded: httpx.AsyncClient, body: bytes) -> None:
    assert (await guarded.post("/login", content=body)).status_code in (400, 401)


async def test_only_who_may_operate_sends_events(guarded: httpx.AsyncClient, broker: MemoryBroker) -> None:
    for token, status in (("", 401), (READ, 403), (OPERATE, 202)):
        headers = {"authorization": f"Bearer {token}"} if token else {}
        assert (await guarded.post("/events/orders", json={}, headers=headers)).status_code == status
    assert len(broker.log(("orders", 0))) == 1


async def test_whether_it_is_ready_is_open_and_why_not_is_for_those_who_may_look(guarded: httpx.AsyncClient) -> None:
    assert (await ready(guarded)).json() == {"ready": True}
    assert "parts" in (await guarded.get("/readyz", headers={"authorization": f"Bearer {READ}"})).json()


@pytest.mark.parametrize("http", ["0.0.0.0:0", ""])
async def test_it_does_not_start_where_all_the_world_could_see_it(tmp_path: Path, http: str) -> None:
    settings = Settings(http=http, allow_plaintext=True, history=str(tmp_path / "history.db"))
    with pytest.raises(SettingsError, match="http"):
        Dashboard(settings, MemoryBroker(), Beside(settings, MemoryBroker()))


async def test_a_port_that_is_taken_is_an_error_that_says_so(tmp_path: Path, broker: MemoryBroker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SettingsError, match="cannot listen there"):
        async with serving(tmp_path, broker, http=f"127.0.0.1:{other.getsockname()[1]}"):
            pass


async def test_it_stops_while_a_live_page_is_open(tmp_path: Path, broker: MemoryBroker) -> None:
    async with serving(tmp_path, broker) as dashboard, client(dashboard) as http:
        await ready(http)
        live = (await http.get("/events")).text.split('sse-connect="')[1].split('"')[0]
        async with http.stream("GET", live) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.aiter_lines()
            await anext(lines)
            dashboard.stop()
            async for _ in lines:
                pass


def test_a_database_is_in_use_while_somebody_writes_to_it(tmp_path: Path) -> None:
    path = str(tmp_path / "history.db")
    assert not is_in_use(path)
    store = HistoryStore(path, "app")
    store.open()
    assert is_in_use(path)
    store.close()
    assert not is_in_use(path)
    assert not is_in_use(str(tmp_path / "nowhere" / "history.db"))


def test_the_history_has_a_place_of_its_own_for_each_app() -> None:
    assert default_history("shop", {"HOME": "/home/ada"}, "linux") == "/home/ada/.local/share/kafka-dask-engine/shop/history.db"
    assert default_history("shop", {"HOME": "/h", "XDG_DATA_HOME": "/d"}, "linux") == "/d/kafka-dask-engine/shop/history.db"
    assert default_history("shop", {"HOME": "/h"}, "darwin").startswith("/h/Library/Application Support/")
