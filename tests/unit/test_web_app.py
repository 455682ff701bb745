"""Pages from a history that the real projection has filled: what they show, do and refuse, and that nothing is markup."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
import pytest_asyncio
from starlette.applications import Starlette

from engine.command_errors import AlreadyEnded
from engine.repeats import Kind
from engine.settings import Settings
from engine.states import State
from engine.web_app import build
from tests.browser.sample import HOSTILE, Run, Story, Writer
from tests.browser.serving import Noted, Shown, a_vital
from tests.waiting import eventually

NOW = 1_800_000_000.0
FORM = {"content-type": "application/x-www-form-urlencoded", "hx-request": "true"}


class Web:
    """The application, its history's writer, and a browser's part."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.writer = Writer(folder / "history.db")
        self.actions = Noted()
        settings = Settings(app="app", history=str(folder / "history.db"))
        given = {"actions": self.actions, "vitals": Shown(a_vital(NOW)), "now": lambda: NOW} | more
        self.app: Starlette = build(settings, **given)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1")

    async def get(self, path: str, status: int = 200) -> str:
        answer = await self.http.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def run(self, number: int = 1, at: float = NOW - 60, **more: Any) -> Run:
        return Run(self.writer, f"{number:032x}", more.pop("flow", "fulfil"), at, **more)

    async def close(self) -> None:
        await self.http.aclose()
        self.app.state.parts.live.close()
        self.app.state.parts.reader.close()
        self.writer.close()


@pytest_asyncio.fixture
async def web(tmp_path: Path) -> AsyncIterator[Web]:
    made = Web(tmp_path)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Story]:
    """A history with everything in it, filled once."""
    path = tmp_path_factory.mktemp("shop") / "history.db"
    writer = Writer(path)
    story = Story(writer, NOW, hostile_seconds=130)
    writer.close()
    return path, story


@pytest_asyncio.fixture
async def shown(shop: tuple[Path, Story]) -> AsyncIterator[httpx.AsyncClient]:
    app = build(Settings(app="app", history=str(shop[0])), actions=Noted(), vitals=Shown(a_vital(NOW)), now=lambda: NOW)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        yield client
    app.state.parts.reader.close()


def delete(folder: Path) -> None:
    for path in folder.glob("history.db*"):
        path.unlink()


def addresses(story: Story) -> list[str]:
    tabs = [f"/runs/{story.hostile}{tab}" for tab in ("", "/graph", "/logs", "/changes", f"/task?name={quote(HOSTILE + '/0')}")]
    return ["/", "/runs", f"/runs?q={quote(HOSTILE)}&key={quote(HOSTILE)}&flow={quote(HOSTILE)}&since={quote(HOSTILE)}", *tabs]


async def test_nothing_from_an_event_becomes_markup(shown: httpx.AsyncClient, shop: tuple[Path, Story]) -> None:
    for address in addresses(shop[1]):
        answer = await shown.get(address)
        assert answer.status_code == 200, address
        assert "<img" not in answer.text
        assert not re.search(r"<script(?! src=\"/static/)", answer.text)
        assert not re.search(r"<[^>]*\son[a-z]+=", re.sub(r"\"[^\"]*\"|'[^']*'", "", answer.text))
        assert not set(answer.text) & set("\x1b\u202e\x00\r"), "what steers shows as an escape"
    page = (await shown.get(f"/runs/{shop[1].hostile}")).text
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
    assert "\\u202egnp.\\x1b[31m" in page


async def test_health_says_a_verdict_with_reasons_and_figures(shown: httpx.AsyncClient) -> None:
    text = (await shown.get("/")).text
    assert re.search(r"It works, but needs a look: .*\.", text)
    for word in ("3 dead letters wait", "3 Dask workers run", "worker-8", "Latest failures", "CardDeclined", "app.intake"):
        assert word in text


async def test_runs_are_filtered_by_the_address(web: Web) -> None:
    web.run(1, flow="fulfil", key="c-1").begin().end(State.COMPLETED)
    web.run(2, flow="ship", key="c-2").begin()
    web.run(3, flow="ship", at=NOW - 7_200).begin().end(State.FAILED)
    web.writer.flush()

    async def shown(query: str) -> set[int]:
        return {int(found, 16) for found in re.findall(r'id="row-(\w+)"', await web.get(f"/runs{query}"))}

    assert await shown("") == {1, 2, 3}
    assert await shown("?flow=ship") == {2, 3}
    assert await shown("?state=FAILED&state=COMPLETED") == {1, 3}
    assert await shown("?key=c-2") == {2}
    assert await shown("?since=1h") == {1, 2}
    assert await shown(f"?q={2:032x}") == {2}
    assert await shown("?q=000") == {1, 2, 3}
    assert await shown("?q=000&flow=fulfil") == {1}
    assert await shown("?state=NONSENSE&since=yesterday") == {1, 2, 3}
    assert "No such runs" in await web.get("/runs?key=nobody")


async def test_a_long_list_is_paged_and_older_pages_are_not_live(web: Web) -> None:
    for number in range(120):
        web.run(number, at=NOW - 1_000 + number)
    web.writer.flush()
    path, seen = "/runs", []
    while True:
        text = await web.get(path)
        seen += [int(found, 16) for found in re.findall(r'id="row-(\w+)"', text)]
        assert ("sse-connect" in text) == (path == "/runs")
        found = re.search(r'rel="next" href="([^"]+)"', text)
        if found is None:
            break
        path = found[1].replace("&amp;", "&")
    assert seen == list(range(119, -1, -1))
    assert "is no cursor" in await web.get("/runs?cursor=x", 409)


async def test_empty_pages_say_the_next_command(web: Web) -> None:
    assert "engine events send" in await web.get("/")
    assert "engine events send" in await web.get("/runs")
    assert "engine runs ls" in await web.get("/runs/nothing", 404)


async def test_without_a_history_the_page_says_what_makes_one(tmp_path: Path) -> None:
    app = build(Settings(app="app", history=str(tmp_path / "none.db")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        answer = await http.get("/")
    assert answer.status_code == 503
    assert "engine history run" in answer.text


async def test_a_replaced_history_is_read_anew(web: Web, tmp_path: Path) -> None:
    web.run(1)
    web.writer.flush()
    assert f"{1:032x}" in await web.get("/runs")
    web.writer.close()
    delete(tmp_path)
    web.writer = Writer(tmp_path / "history.db")
    web.run(2)
    web.writer.flush()
    text = await web.get("/runs")
    assert f"{2:032x}" in text
    assert f"{1:032x}" not in text


async def test_a_run_is_explained_on_its_page(shown: httpx.AsyncClient, shop: tuple[Path, Story]) -> None:
    text = (await shown.get(f"/runs/{shop[1].failed}")).text
    for word in (
        "CardDeclined",
        "do-not-honour",
        "File &#34;handlers/orders.py&#34;",
        "order.created",
        "orders/",
        "c-7",
        "charge/1",
    ):
        assert word in text
    assert "0af7651916cd43dd8448eb211c80319c" in text, "the trace id, to copy"
    assert "waited to be tried again 1.00 s" in text
    assert text.count("attempt 3 ran and failed") >= 1
    task = (await shown.get(f"/runs/{shop[1].failed}/task?name=charge/1")).text
    assert task.count("CardDeclined: do-not-honour (card") == 3
    logs = (await shown.get(f"/runs/{shop[1].failed}/logs")).text
    assert logs.count("asking the gateway") == 3
    worse = (await shown.get(f"/runs/{shop[1].failed}/logs?level=warning&task=charge")).text
    assert (worse.count("the gateway declined"), worse.count("asking the gateway")) == (3, 0)
    changes = (await shown.get(f"/runs/{shop[1].failed}/changes")).text
    assert changes.count("Retrying") == 2


async def test_a_trace_is_linked_where_a_place_for_traces_is_set(shop: tuple[Path, Story]) -> None:
    app = build(Settings(app="app", history=str(shop[0]), traces="http://jaeger:16686"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        text = (await http.get(f"/runs/{shop[1].failed}")).text
    assert 'href="http://jaeger:16686/trace/0af7651916cd43dd8448eb211c80319c"' in text
    app.state.parts.reader.close()


async def test_a_run_is_found_by_the_beginning_of_its_id(web: Web) -> None:
    web.run(0xAB << 120)
    web.writer.flush()
    assert f"{0xAB << 120:032x}" in await web.get("/runs/ab00")


async def test_a_megabyte_of_parameters_is_cut_with_a_note(web: Web) -> None:
    web.run(1, parameters=msgspec.Raw(b'{"text":"' + b"x" * 1_000_000 + b'"}'))
    web.writer.flush()
    text = await web.get(f"/runs/{1:032x}")
    assert len(text) < 40_000
    assert "The first 8.0 KiB of 976.6 KiB" in text or "The first 8.0 KiB of 977 KiB" in text
    raw = await web.http.get(f"/runs/{1:032x}/raw/parameters")
    assert raw.headers["content-type"].startswith("text/plain")
    assert raw.headers["x-content-type-options"] == "nosniff"
    assert len(raw.content) == 65_536


async def test_a_run_of_many_tasks_is_paged_and_drawn_by_task(web: Web) -> None:
    run = web.run(1).begin()
    run.do("split", "0", NOW - 50, 0.1, 0.1)
    for n in range(1_500):
        run.do("price", f"1.{n}", NOW - 49, 0.1, 0.1, ["split/0"])
    run.finish("price", "1.1500", NOW - 40, State.FAILED)
    web.writer.flush()
    text = await web.get(f"/runs/{1:032x}")
    assert text.count("data-row") == 200
    assert "200 of 1,502 task runs" in text
    assert "1,500 completed" in text
    failed = await web.get(f"/runs/{1:032x}?state=FAILED")
    assert re.findall(r'id="task-([^"]+)"', failed) == ["price/1.1500"]
    following = re.search(r'href="([^"]+)">The next ones', text)
    assert following is not None
    following_names = re.findall(r'id="task-([^"]+)"', await web.get(following[1].replace("&amp;", "&")))
    assert len(set(following_names) - set(re.findall(r'id="task-([^"]+)"', text))) == 200
    run.end(State.FAILED)
    web.writer.flush()
    assert "<option>price</option><option>split</option>" in await web.get(f"/runs/{1:032x}")
    graph = await web.get(f"/runs/{1:032x}/graph")
    assert graph.count('class="box"') == 2
    assert "1,501" in graph


async def test_actions_are_done_and_said(web: Web) -> None:
    first, second = f"{1:032x}", f"{2:032x}"
    answer = await web.http.post(f"/runs/{first}/cancel", content="reason=wrong+prices", headers=FORM)
    assert (answer.status_code, answer.headers["hx-trigger"]) == (204, '{"said": "The run is being cancelled"}')
    answer = await web.http.post(f"/runs/{first}/repeat", content="kind=rerun&from_task=charge", headers=FORM)
    assert answer.headers["hx-redirect"] == f"/runs/{'f' * 32}?new=1"
    await web.http.post("/runs/cancel", content=f"id={first}&id={second}&id={first}", headers=FORM)
    answer = await web.http.post("/runs/repeat", content=f"kind=retry&id={second}", headers=FORM)
    assert answer.headers["hx-trigger"] == '{"said": "1 run is being retried"}'
    assert web.actions.done == [
        ("cancel", first, "wrong prices"),
        ("repeat", first, Kind.RERUN, "charge"),
        ("cancel", first, "cancelled from the dashboard"),
        ("cancel", second, "cancelled from the dashboard"),
        ("repeat", second, Kind.RETRY, None),
    ]


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/runs/x/repeat", "kind=other", 400),
        ("/runs/cancel", "", 400),
        ("/runs/cancel", "&".join(f"id={n}" for n in range(201)), 400),
        ("/runs/cancel", "id=" + "x" * 300_000, 413),
        ("/runs/cancel", "id=%ff", 400),
    ],
)
async def test_a_form_that_makes_no_sense_is_refused(web: Web, path: str, content: str, status: int) -> None:
    assert (await web.http.post(path, content=content, headers=FORM)).status_code == status
    assert web.actions.done == []


async def test_what_goes_wrong_with_an_action_is_told_on_the_page(web: Web) -> None:
    web.actions.error = AlreadyEnded("<b>", "COMPLETED")
    answer = await web.http.post("/runs/x/cancel", content="reason=", headers=FORM)
    assert answer.status_code == 409
    assert "run &lt;b&gt; is COMPLETED already" in answer.text
    answer = await web.http.post("/runs/cancel", content="id=1&id=2", headers=FORM)
    assert answer.headers["hx-retarget"] == "#trouble"
    assert "0 of 2 runs will be cancelled" in answer.text


async def test_whoever_may_only_read_sees_no_actions(tmp_path: Path) -> None:
    web = Web(tmp_path, actions=None)
    web.run(1).begin().end(State.FAILED)
    web.writer.flush()
    for path in ("/runs", f"/runs/{1:032x}"):
        assert 'hx-post="/runs/' not in (await web.get(path)).replace('<form data-bulk hx-post="/runs/cancel"', "")
    assert (await web.http.post("/runs/cancel", content="id=1", headers=FORM)).status_code == 404
    await web.close()


class Stream:
    """A live stream as the server sends it."""

    def __init__(self, app: Starlette, path: str) -> None:
        self.chunks: list[str] = []
        self.status = 0
        self._gone = asyncio.Event()
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
            "scheme": "http", "server": ("127.0.0.1", 80), "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._receive, self._send), name="stream")

    async def _receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        if message.get("body"):
            self.chunks.append(message["body"].decode())

    def events(self, name: str) -> list[str]:
        return [chunk for chunk in self.chunks if chunk.startswith(f"event: {name}\n")]

    async def close(self) -> None:
        self._gone.set()
        await self.task


async def test_a_page_is_sent_again_when_the_history_changes_and_only_then(web: Web) -> None:
    run = web.run(1).begin()
    web.writer.flush()
    runs = Stream(web.app, "/runs/live")
    page = Stream(web.app, f"/runs/{1:032x}/live/timeline")
    await eventually(lambda: bool(runs.events("runs")) and bool(page.events("head")) and bool(page.events("body")))
    run.end(State.COMPLETED)
    web.writer.flush()
    await eventually(lambda: "Completed" in runs.events("runs")[-1] and "Completed" in page.events("head")[-1])
    before = len(page.events("head"))
    for number in (2, 3, 4):  # so that this page has looked as well, meanwhile
        web.run(number)
        web.writer.flush()
        await eventually(lambda number=number: f"row-{number:032x}" in runs.events("runs")[-1])
    assert len(page.events("head")) == before, "another run's change is none of this page's"
    assert all(line.startswith("data: ") for line in runs.events("runs")[-1].rstrip("\n").split("\n")[1:])
    await runs.close()
    web.app.state.parts.live.close()
    await asyncio.wait_for(page.task, 30)


async def test_however_fast_the_history_grows_a_page_is_sent_at_most_twice_a_second(web: Web) -> None:
    runs = Stream(web.app, "/runs/live")
    begin = asyncio.get_running_loop().time()
    number = 0
    while len(runs.events("runs")) < 4:
        number += 1
        web.run(number)
        web.writer.flush()
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().time() - begin >= 3 * 0.5
    await runs.close()


async def test_a_history_that_goes_away_is_said_and_the_page_comes_back(web: Web, tmp_path: Path) -> None:
    web.run(1)
    web.writer.flush()
    runs = Stream(web.app, "/runs/live")
    await eventually(lambda: bool(runs.events("runs")))
    web.writer.close()
    delete(tmp_path)
    await eventually(lambda: "history database" in (runs.events("trouble") or [""])[-1])
    web.writer = Writer(tmp_path / "history.db")
    web.run(2)
    web.writer.flush()
    await eventually(
        lambda: f"row-{2:032x}" in runs.events("runs")[-1] and "history database" not in runs.events("trouble")[-1]
    )
    await runs.close()


async def test_a_new_run_is_waited_for_and_opened(web: Web) -> None:
    assert "It is on its way" in await web.get(f"/runs/{1:032x}?new=1")
    wait = Stream(web.app, f"/runs/{1:032x}/live")
    web.run(1)
    web.writer.flush()
    await eventually(lambda: any("data-reload" in chunk for chunk in wait.events("wait")))
    await wait.close()


async def test_live_pages_are_bounded(web: Web) -> None:
    web.app.state.parts.live._streams = 1
    first = Stream(web.app, "/runs/live")
    await eventually(lambda: bool(first.chunks))
    second = Stream(web.app, "/runs/live")
    await second.task
    assert second.status == 503
    await first.close()
    await eventually(lambda: web.app.state.parts.live._open == 0)
