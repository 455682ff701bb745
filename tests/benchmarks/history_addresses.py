"""What the pages and the API of a dashboard take on a full history, from request to the last byte, without a socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import quote

import httpx
from starlette.routing import Mount

from engine import api
from engine.actions import Actions
from engine.history import History
from engine.memory import MemoryBroker
from engine.settings import Settings
from engine.web_app import build
from tests.benchmarks.history_pages import ROUNDS, tell


async def visit(place: str, large: str, span_seconds: float, server_cpu: Callable[[], float]) -> None:
    """Get everything some times over, and print the median and the most, and the CPU of this process and of a server of ours.

    ``large`` is the run with too many tasks.
    """
    print(f"  addresses, {ROUNDS} times each, ms:                          median      most       CPU")
    settings, broker = Settings(app="bench", history=place), MemoryBroker()
    actions = Actions(settings, broker, broker.sink(), None, lambda: History.open(place))
    # As the dashboard mounts it; what lives is not asked, for that is not this time.
    mounted = Mount(api.ROOT, routes=api.routes(actions, lambda: History.open(place)))
    app = build(settings, broker=broker, more_routes=[mounted])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        for address in _addresses(place, large, span_seconds):
            await http.get(address)  # the first time its template is compiled, once in the life of a dashboard
            took, cpu = [], -time.process_time() - server_cpu()
            for _ in range(ROUNDS):
                began = time.monotonic()
                answer = await http.get(address)
                took.append((time.monotonic() - began) * 1000)
                if answer.status_code != 200:
                    raise SystemExit(f"{address}: {answer.status_code} {answer.text[:500]}")
            cpu += time.process_time() + server_cpu()
            tell(address if len(address) < 52 else f"{address[:49]}...", took, cpu / ROUNDS * 1000)
    app.state.parts.reader.close()


def _addresses(place: str, large: str, span_seconds: float) -> list[str]:
    middle = quote(f"{time.time() - span_seconds / 2!r},0")
    with History.open(place) as found:
        [run] = found.runs(limit=1).items
        [line] = found.letters(all=True, limit=1).items
    letter = f"{line.row.partition}/{line.row.place}"
    return [
        *("/", "/runs", f"/runs?cursor={middle}", "/runs?flow=flow_01&state=failed&state=crashed&since=1h"),
        *("/runs?" + "&".join(f"state={state}" for state in ("running", "completed", "failed", "cancelled")),),
        *(f"/runs?q={run.run_id[:3]}", f"/runs?q={run.event_id}", "/runs?key=customer-7&state=failed"),
        *(f"/runs/{run.run_id}{tab}" for tab in ("", "/graph", "/logs", "/changes")),
        *(f"/runs/{large}{tab}" for tab in ("", "/graph", "/logs", "/changes", "/task?name=resize/0.7")),
        *("/flows", "/flows/flow_01", "/events", f"/events?cursor={middle}"),
        *("/dead-letters", "/dead-letters?all=1", "/dead-letters?reason=too-large", f"/dead-letters/{letter}"),
        *("/cluster", "/about"),
        *(f"{api.ROOT}/{path}" for path in ("runs", f"runs/{run.run_id}", "flows", "events", "dead-letters")),
    ]
