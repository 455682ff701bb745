"""The stack of ``engine dev`` with real Dask processes; a small HTTP server stands where the engine will be."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest
from distributed import Client

from engine.command_errors import StackError
from engine.dask_processes import answers, get
from engine.devstack import DevStack
from engine.stack_options import StackOptions
from tests.waiting import eventually

#: Answers every path with its environment and the version of the handler that it imported.
ENGINE = """
import http.server, json, os, signal, sys
import shipping
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        names = [n for n in os.environ if n.startswith(("ENGINE_", "OTEL_"))]
        self.wfile.write(json.dumps({"version": shipping.VERSION, **{n: os.environ[n] for n in names}}).encode())
    def log_message(self, *arguments): pass
host, port = os.environ["ENGINE_HTTP"].split(":")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer((host, int(port)), Answer).serve_forever()
"""


#: Listens where Jaeger's own configuration would have it, and answers everything.
JAEGER = f"""#!{sys.executable}
import http.server, json, sys, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments): pass
told = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
pages = told["extensions"]["jaeger_query"]["http"]["endpoint"]
spans = told["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
for endpoint in (pages, spans):
    host, port = endpoint.split(":")
    server = http.server.HTTPServer((host, int(port)), Answer)
    threading.Thread(target=server.serve_forever).start()
"""


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    folder = tmp_path / "handlers"
    folder.mkdir()
    (folder / "shipping.py").write_text("VERSION = 1\n")
    return folder


@pytest.fixture
def options(tmp_path: Path, handlers: Path) -> StackOptions:
    """A stack that brings everything but Kafka, which its stand-in for the engine does not look at."""
    return StackOptions(
        directory=tmp_path / "stack",
        kafka="127.0.0.1:9",
        engine=(sys.executable, "-c", ENGINE),
        check=(sys.executable, "-c", "import shipping"),
        http="127.0.0.1:0",
        handler_paths=(handlers,),
        import_paths=(handlers,),
        workers=1,
        threads_per_worker=1,
        signals=False,
        grace_seconds=5.0,
        backoff_seconds=0.05,
    )


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
async def stack(options: StackOptions, lines: list[str]) -> AsyncIterator[DevStack]:
    async with DevStack(options, lines.append) as stack:
        yield stack


async def answer(stack: DevStack) -> dict[str, str | int]:
    host, port = stack.http.removeprefix("http://").split(":")
    status, body = await get(host, int(port), "/")
    assert status == 200
    return json.loads(body)


def version_seen_by_a_worker() -> int:
    import shipping  # type: ignore[import-not-found]

    return shipping.VERSION


async def test_everything_is_up_and_knows_where_the_rest_is(stack: DevStack) -> None:
    assert set(stack.pids) == {"scheduler", "worker-0", "engine"}
    assert (await answer(stack)).items() >= {
        "version": 1,
        "ENGINE_KAFKA": stack.kafka,
        "ENGINE_DASK": stack.dask,
        "ENGINE_HTTP": stack.http.removeprefix("http://"),
    }.items()
    async with Client(stack.dask, asynchronous=True, set_as_default=False) as client:
        assert await client.submit(version_seen_by_a_worker, pure=False) == 1


async def test_all_of_it_listens_on_loopback_alone(stack: DevStack) -> None:
    found = set()
    for pid in stack.pids.values():
        process = psutil.Process(pid)
        found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert found == {"127.0.0.1"}


async def test_leaving_leaves_no_process(options: StackOptions) -> None:
    async with DevStack(options) as stack:
        processes = [psutil.Process(pid) for pid in stack.pids.values()]
    await eventually(lambda: not any(process.is_running() for process in processes))


async def test_a_worker_that_dies_comes_back(stack: DevStack, lines: list[str]) -> None:
    old = stack.pids["worker-0"]
    os.kill(old, signal.SIGKILL)
    await eventually(lambda: "Dask: worker-0 is back" in lines)
    assert stack.pids["worker-0"] != old
    async with Client(stack.dask, asynchronous=True, set_as_default=False) as client:
        assert await client.submit(os.getpid, pure=False) == stack.pids["worker-0"]


async def test_workers_that_die_at_the_same_time_wait_for_no_other_to_come_back(
    options: StackOptions, lines: list[str]
) -> None:
    """They are started one after the other, and the first one is up before the second is begun."""
    async with DevStack(msgspec.structs.replace(options, workers=2, start_seconds=20.0), lines.append) as stack:
        for name in ("worker-0", "worker-1"):
            os.kill(stack.pids[name], signal.SIGKILL)
        await eventually(lambda: {"Dask: worker-0 is back", "Dask: worker-1 is back"} <= set(lines))
    assert not [line for line in lines if "not ready" in line]


async def test_a_scheduler_that_dies_comes_back_where_it_was_with_its_workers(stack: DevStack, lines: list[str]) -> None:
    before, address = stack.pids, stack.dask
    os.kill(before["scheduler"], signal.SIGKILL)
    await eventually(lambda: any("the scheduler is back" in line for line in lines))
    assert stack.dask == address
    assert stack.pids["worker-0"] != before["worker-0"]
    assert stack.pids["engine"] == before["engine"]
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        assert await client.submit(os.getpid, pure=False) == stack.pids["worker-0"]


async def test_an_engine_that_dies_comes_back_where_it_was(stack: DevStack, lines: list[str]) -> None:
    ready = [line for line in lines if line.startswith("engine: ready")]
    os.kill(stack.pids["engine"], signal.SIGKILL)
    await eventually(lambda: len([line for line in lines if line.startswith("engine: ready")]) > len(ready))
    assert (await answer(stack))["version"] == 1


async def test_a_changed_handler_reaches_engine_and_workers(stack: DevStack, handlers: Path, lines: list[str]) -> None:
    (handlers / "shipping.py").write_text("VERSION = 2\n")
    await eventually(lambda: "reloaded" in lines)
    assert (await answer(stack))["version"] == 2
    async with Client(stack.dask, asynchronous=True, set_as_default=False) as client:
        assert await client.submit(version_seen_by_a_worker, pure=False) == 2


async def test_a_handler_that_does_not_load_leaves_the_old_one_at_work(
    stack: DevStack, handlers: Path, lines: list[str]
) -> None:
    before = stack.pids
    (handlers / "shipping.py").write_text("VERSION = = 2\n")
    await eventually(lambda: any("the old handlers go on" in line and "SyntaxError" in line for line in lines))
    assert stack.pids == before
    assert (await answer(stack))["version"] == 1
    (handlers / "shipping.py").write_text("VERSION = 3\n")
    await eventually(lambda: "reloaded" in lines)
    assert (await answer(stack))["version"] == 3


async def test_jaeger_is_told_to_all_and_comes_back_where_it_was(
    options: StackOptions, lines: list[str], tmp_path: Path
) -> None:
    program = tmp_path / "jaeger"
    program.write_text(JAEGER)
    program.chmod(0o755)
    async with DevStack(msgspec.structs.replace(options, jaeger=program), lines.append) as stack:
        assert stack.jaeger is not None
        told = await answer(stack)
        assert told["OTEL_EXPORTER_OTLP_ENDPOINT"] == stack.jaeger.otlp
        assert told["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == f"{stack.jaeger.otlp}/v1/traces"
        assert told["ENGINE_TRACES"] == stack.jaeger.url
        worker = psutil.Process(stack.pids["worker-0"]).environ()
        assert worker["OTEL_EXPORTER_OTLP_ENDPOINT"] == stack.jaeger.otlp
        assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in psutil.Process(stack.pids["jaeger"]).environ()
        before = stack.pids["jaeger"]
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: f"Jaeger: back, without the traces that it had, at {stack.jaeger.url}" in lines)
        assert stack.pids["jaeger"] != before
        assert stack.pids["engine"] > 0


async def test_a_program_that_is_no_jaeger_ends_the_stack_with_its_story(options: StackOptions, tmp_path: Path) -> None:
    program = tmp_path / "jaeger"
    program.write_text("#!/bin/sh\necho unknown flag: $1\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(StackError, match=r"(?s)jaeger: ended with code 3.*unknown flag: --config"):
        async with DevStack(msgspec.structs.replace(options, jaeger=program)):
            pass


async def test_an_engine_that_does_not_start_ends_the_stack_with_its_story(options: StackOptions) -> None:
    broken = msgspec.structs.replace(options, engine=(sys.executable, "-c", "raise SystemExit('no such flow')"))
    stack = DevStack(broken)
    with pytest.raises(StackError, match=r"(?s)engine: ended with code 1.*no such flow"):
        async with stack:
            pass
    assert stack.pids == {}


async def test_a_taken_http_port_is_found_out_before_anything_starts(options: StackOptions) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = msgspec.structs.replace(options, http=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(StackError, match="cannot listen"):
            async with DevStack(taken):
                pass


async def test_a_dashboard_answers_in_place_of_the_engine_and_knows_it(options: StackOptions) -> None:
    """Killed, it comes back at the same address."""
    beside = msgspec.structs.replace(options, dask="tcp://127.0.0.1:9", companions={"dashboard": options.engine or ()})
    async with DevStack(beside) as stack:
        told = await answer(stack)
        assert stack.http == f"http://{told['ENGINE_HTTP']}"
        host, _, port = str(told["ENGINE_ENGINES"]).rpartition(":")
        assert host == "127.0.0.1"
        status, body = await get(host, int(port), "/")
        engine = json.loads(body)
        assert (status, engine["ENGINE_HTTP"]) == (200, told["ENGINE_ENGINES"])
        before = stack.pids["dashboard"]
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: stack.pids.get("dashboard") not in (None, before))
        await stack._children.get("dashboard").until(lambda: answers(told["ENGINE_HTTP"], "/"), 30.0)


async def test_one_folder_has_one_stack(options: StackOptions) -> None:
    alone = msgspec.structs.replace(options, dask="tcp://127.0.0.1:9", engine=None)
    async with DevStack(alone):
        with pytest.raises(StackError, match="another one"):
            async with DevStack(alone):
                pass


async def test_kafka_of_its_own_is_real_and_stops_with_the_rest(tmp_path: Path, kafka: str, lines: list[str]) -> None:
    """``kafka``, the session's, is asked for only because tests are skipped where no Kafka can be had."""
    options = StackOptions(directory=tmp_path, dask="tcp://127.0.0.1:9", signals=False)
    async with DevStack(options, lines.append) as stack:
        assert stack.kafka != kafka
        process = psutil.Process(stack.pids["kafka"])
        assert process.is_running()
    await eventually(lambda: not process.is_running())
    assert any(line.startswith("Kafka: ready at 127.0.0.1:") for line in lines)


async def test_a_kafka_that_dies_ends_the_stack(tmp_path: Path, kafka: str) -> None:
    options = StackOptions(directory=tmp_path, dask="tcp://127.0.0.1:9", signals=False)
    async with DevStack(options) as stack:
        os.kill(stack.pids["kafka"], signal.SIGKILL)
        with pytest.raises(StackError, match="Kafka: ended with code -9"):
            await stack.wait()


async def test_told_to_stop_twice_it_kills_what_still_runs(options: StackOptions) -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
    alone = msgspec.structs.replace(
        options, dask="tcp://127.0.0.1:9", engine=(sys.executable, "-c", deaf), http="", grace_seconds=60.0
    )
    stack = await DevStack(alone).__aenter__()
    engine = psutil.Process(stack.pids["engine"])
    await eventually(lambda: (stack.directory / "logs" / "engine.log").read_text() == "up\n")
    stack.stop()
    await stack.wait()
    leaving = asyncio.create_task(stack.__aexit__(None, None, None))
    await eventually(lambda: not stack.pids)
    assert engine.is_running()
    stack.stop()
    await asyncio.wait_for(leaving, 20.0)
    assert not engine.is_running()


STACK_IN_A_PROCESS = """
import asyncio, json, sys
from pathlib import Path
import msgspec
from engine.devstack import DevStack
from engine.stack_options import StackOptions
async def main():
    options = StackOptions(directory=Path(sys.argv[1]), kafka="127.0.0.1:9", workers=1)
    async with DevStack(options, lambda line: print(line, file=sys.stderr, flush=True)) as stack:
        print(json.dumps(stack.pids), flush=True)
        await stack.wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_however_it_is_told_to_end_nothing_is_left(tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process of the death of its parent")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STACK_IN_A_PROCESS, str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    children = [psutil.Process(pid) for pid in json.loads(await process.stdout.readline()).values()]
    process.send_signal(number)
    _, said = await process.communicate()
    assert process.returncode == (0 if number != signal.SIGKILL else -9), said.decode()
    await eventually(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


async def test_told_to_end_while_it_starts_it_leaves_nothing_either(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STACK_IN_A_PROCESS, str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    itself = psutil.Process(process.pid)
    await eventually(itself.children)
    children = itself.children()
    process.send_signal(signal.SIGTERM)
    out, said = await process.communicate()
    assert (out, process.returncode) == (b"", 1)
    assert b"InterruptedStartError" in said
    await eventually(lambda: not any(child.is_running() for child in children))
