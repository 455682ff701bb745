"""``live``: pages that somebody looks at while 10,000 states a second change, on real Kafka, in a real Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from playwright.async_api import Page, async_playwright

from engine.broker import OffsetReader, Outgoing, TopicSpec
from engine.devstack import DevStack
from engine.history import History
from engine.kafka import KafkaBroker
from engine.settings import Settings
from engine.stack_options import StackOptions
from tests.benchmarks.history import PARTITIONS, _run
from tests.benchmarks.meters import load
from tests.benchmarks.stack import ROOT

APP = "bench-live"
SECONDS = 25.0
#: So often a batch is written.
_TICK_SECONDS = 0.1
#: Runs side by side.
_OPEN = 500
_PATIENCE_SECONDS = 120.0
#: Counts what the server sends to the page, and what keeps its only thread for more than 50 ms.
_WATCH = """
window.seen = {messages: 0, characters: 0, long: []};
const Real = window.EventSource;
window.EventSource = class extends Real {
  addEventListener(name, hear, ...more) {
    super.addEventListener(name, event => {
      if (event instanceof MessageEvent) { window.seen.messages += 1; window.seen.characters += event.data.length; }
      return hear.call(this, event);
    }, ...more);
  }
};
const note = list => window.seen.long.push(...list.getEntries().map(one => one.duration));
new PerformanceObserver(note).observe({type: "longtask"});
"""
#: How long until the page has drawn twice.
_FRAMES = "() => new Promise(end => { const t = performance.now(); const f = requestAnimationFrame;"
_FRAMES += " f(() => f(() => end(performance.now() - t))) })"


async def live(rate: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium on PATH")
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        # Kafka and Dask, no engine: it is not what is measured, and would need the two cores for itself.
        options = StackOptions(app=APP, directory=Path(folder) / "stack", http="", workers=1, fresh=True, signals=False)
        async with DevStack(options, lambda line: None) as running:
            settings = Settings(app=APP, kafka=running.kafka, dask=running.dask, history=str(Path(folder) / "history.db"))
            broker = KafkaBroker(settings)
            names = (settings.dead_letters_topic, settings.logs_topic)
            await broker.ensure_topics([TopicSpec(settings.states_topic, PARTITIONS), *(TopicSpec(name, 1) for name in names)])
            async with _dashboard(settings) as (url, process), async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                pages = {path: await browser.new_page() for path in ("/runs", "/")}
                for path, page in pages.items():
                    await page.add_init_script(_WATCH)
                    await page.goto(url + path)
                clicked = await browser.new_page()
                await clicked.goto(f"{url}/runs")
                await _measure(settings, broker, rate, url, process, pages, clicked)
                await browser.close()
            await broker.close()


async def _measure(
    settings: Settings,
    broker: KafkaBroker,
    rate: int,
    url: str,
    dashboard: psutil.Process,
    pages: dict[str, Page],
    clicked: Page,
) -> None:
    [projector] = [one for one in dashboard.children(recursive=True) if "history" in one.cmdline()][-1:]
    command = (sys.executable, "-m", "tests.benchmarks.live", settings.kafka, str(rate))
    producer = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert producer.stdout is not None
    await producer.stdout.readline()  # its records are ready, and it begins
    before = {name: sum(one.cpu_times()[:2]) for name, one in (("dashboard", dashboard), ("projector", projector))}
    seen_before = {path: await page.evaluate("window.seen") for path, page in pages.items()}
    reader = broker.offset_reader()
    began, lags = time.monotonic(), list[int]()
    answers, frames, clicks = list[float](), list[float](), list[float]()
    async with httpx.AsyncClient() as client:
        while producer.returncode is None:
            lags.append(await _lag(settings, reader))
            answers.append(await _timed(client.get(f"{url}/runs")))
            frames.append(await pages["/runs"].evaluate(_FRAMES))
            clicks.append(await _timed(_click(clicked, len(clicks))))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(producer.wait(), 0.5)
    seconds = time.monotonic() - began
    written = int((await producer.stdout.read()).split()[-1])
    used = {name: sum(one.cpu_times()[:2]) - before[name] for name, one in (("dashboard", dashboard), ("projector", projector))}
    print(f"\nlive: {written:,} state changes in {seconds:.1f} s = {written / seconds:,.0f}/s; load of the machine {load()}")
    for path, page in pages.items():
        seen, first = await page.evaluate("window.seen"), seen_before[path]
        sent, size = seen["messages"] - first["messages"], seen["characters"] - first["characters"]
        long = seen["long"][len(first["long"]) :]
        print(f"  {path}: {sent / seconds:.2f} messages/s of {size / max(1, sent) / 1024:.0f} KiB; {_long(long)}")
    print(f"  frames of /runs, two of them: {_spread(frames)}")
    print(f"  a click on a filter until its page is there: {_spread(clicks)}")
    print(f"  /runs of the server: {_spread(answers)}")
    for name, one in (("dashboard", dashboard), ("projector", projector)):
        print(f"  {name}: {used[name] / seconds:.0%} of a core, {one.memory_info().rss / 2**20:.0f} MiB")
    print(f"  records behind: median {statistics.median(lags):,.0f}, most {max(lags):,}", flush=True)
    ended, behind = time.monotonic(), await _lag(settings, reader)
    while await _lag(settings, reader):
        if time.monotonic() - ended > _PATIENCE_SECONDS:
            raise SystemExit("the projector does not catch up")
        await asyncio.sleep(0.02)
    await reader.close()
    print(f"  {behind:,} behind at the end, caught up {time.monotonic() - ended:.1f} s later", flush=True)


@contextlib.asynccontextmanager
async def _dashboard(settings: Settings) -> AsyncIterator[tuple[str, psutil.Process]]:
    flags = (
        "--app",
        settings.app,
        "--kafka",
        settings.kafka,
        "--dask",
        settings.dask,
        "--history",
        settings.history,
        "--http",
        "127.0.0.1:0",
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "dashboard", "--json", *flags),
        cwd=ROOT,
        env=os.environ | {"ENGINE_LOG_LEVEL": "ERROR"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        url = msgspec.json.decode(await process.stdout.readline())["http"]
        async with httpx.AsyncClient() as client:
            while (await client.get(f"{url}/runs")).status_code != 200:  # noqa: ASYNC110  # another process makes it
                await asyncio.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _lag(settings: Settings, reader: OffsetReader) -> int:
    """First how far the history is: what comes meanwhile counts as behind."""
    with History.open(settings.history_path) as history:
        offsets = history.offsets()
    ends = (await reader.read([], [settings.states_topic])).ends
    return sum(max(0, end - offsets.get(place, 0)) for place, end in ends.items())


async def _click(page: Page, number: int) -> None:
    await page.get_by_role("link", name=("Failed", "All")[number % 2], exact=True).click()
    await page.wait_for_load_state("load")


async def _timed(work: Any) -> float:
    began = time.monotonic()
    await work
    return (time.monotonic() - began) * 1000


def _spread(values: list[float]) -> str:
    ordered = sorted(values)
    return f"median {statistics.median(ordered):.0f} ms, 95% {ordered[int(len(ordered) * 0.95)]:.0f}, most {ordered[-1]:.0f}"


def _long(durations: list[float]) -> str:
    if not durations:
        return "no task of the page took more than 50 ms"
    return f"{len(durations)} tasks of the page took more than 50 ms, the longest {max(durations):.0f} ms"


# --- The producer, a process of its own ---------------------------------------------------------------------------------


async def _produce(kafka: str, rate: int) -> None:
    settings = Settings(app=APP, kafka=kafka)
    broker = KafkaBroker(settings)
    sink = broker.sink()
    await sink.start()
    records = list(itertools.islice(_records(settings.states_topic, rate), int(rate * SECONDS)))
    print("ready", flush=True)
    began, written, size = time.monotonic(), 0, int(rate * _TICK_SECONDS)
    while written < len(records):
        batch = records[written : written + size]
        await sink.write(batch)
        written += len(batch)
        await asyncio.sleep(max(0.0, began + written / rate - time.monotonic()))
    await sink.close()
    await broker.close()
    print(written, flush=True)


def _records(topic: str, rate: int) -> Iterator[Outgoing]:
    """Packed runs of three changes each, so many of them side by side, from now on."""
    chance, begin = random.Random(3), time.time() + 5.0
    under_way: list[tuple[int, Iterator[Any]]] = []
    for number in itertools.count():
        under_way.append((number % PARTITIONS, _run(f"live-{number}", number, begin + number * 3 / rate, chance, packed=True)))
        if len(under_way) > _OPEN:
            partition, run = under_way.pop(chance.randrange(_OPEN))
            for value, headers in run:
                yield Outgoing(topic, None, value, headers, partition)


if __name__ == "__main__":
    asyncio.run(_produce(sys.argv[1], int(sys.argv[2])))
