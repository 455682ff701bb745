"""``engine dev``: the whole stack on this machine, with the engine as its child; decides what is watched and says what runs."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from engine.cli_flags import AppFlag, DaskFlag, HandlersFlag, HttpFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.dask_processes import default_workers
from engine.devstack import DASHBOARD, DevStack
from engine.handler_paths import import_paths, watched_paths
from engine.hook_loader import load_addressees
from engine.jaeger_process import find_jaeger
from engine.loader import load
from engine.log_follower import LogFollower
from engine.settings import Settings
from engine.stack_options import StackOptions
from engine.web_roles import check_access

_DEFAULT_HANDLERS = "handlers"
_USUAL = Settings()


async def dev(
    handlers: HandlersFlag = None,
    *,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    dask: DaskFlag = None,
    http: HttpFlag = None,
    workers: Annotated[int | None, Parameter(help="Dask workers, two threads each; one per core unless given.")] = None,
    kafka_port: Annotated[int | None, Parameter(help="Port of the Kafka that is started.")] = None,
    fresh: Annotated[bool, Parameter(negative=(), show_default=False, help="Start with empty topics.")] = False,
    jaeger: Annotated[bool, Parameter(negative=(), show_default=False, help="Start Jaeger, too, and trace it all.")] = False,
    reload: Annotated[bool, Parameter(help="Load handlers anew when their files change.")] = True,
    json: JsonFlag = False,
) -> None:
    """Run Kafka, Dask workers, the engine and its HTTP endpoint on this machine, until Ctrl-C stops them all, in order.

    --kafka and --dask use what runs already. Data stays in the user's cache folder between starts (--fresh empties it).
    With --json: one line {"kafka", "dask", "http", "jaeger", "otlp", "pid"} on standard output when all is ready.
    """
    # Kafka and Dask by flag alone: what engine.toml names is likely the production's, and this starts its own.
    settings = settings_of(app=app, kafka=kafka or _USUAL.kafka, dask=dask or _USUAL.dask, handlers=handlers, http=http)
    settings = msgspec.structs.replace(settings, handlers=settings.handlers or _usual_handlers())
    # Before anything is started: what is wrong with a handler is said at once.
    flows = load(settings.handlers)
    if settings.http:
        check_access(settings)
    options = _options(settings, kafka, dask, workers, kafka_port, fresh, reload)
    if jaeger:
        options = msgspec.structs.replace(options, jaeger=find_jaeger(settings.jaeger))
    began = asyncio.get_running_loop().time()
    following: asyncio.Task[None] | None = None
    try:
        stack = DevStack(options, say)
        following = asyncio.create_task(LogFollower(stack.directory / "logs" / "engine.log").run(), name="dev-log")
        async with stack:
            if json:
                jaeger_url, otlp = (stack.jaeger.url, stack.jaeger.otlp) if stack.jaeger else (None, None)
                where = {"kafka": stack.kafka, "dask": stack.dask, "http": stack.http or None, "jaeger": jaeger_url}
                put(json_text(where | {"otlp": otlp, "pid": os.getpid()}))
            _tell(stack, settings, len(flows), asyncio.get_running_loop().time() - began)
            await stack.wait()
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def engine_command(settings: Settings, *, log: str = "json") -> tuple[str, ...]:
    """How the stack starts the engine; Kafka, Dask and HTTP it learns from the stack, by variables."""
    return (*_engine("run", settings.handlers), "--app", settings.app, "--log", log)


def _options(
    settings: Settings,
    kafka: str | None,
    dask: str | None,
    workers: int | None,
    kafka_port: int | None,
    fresh: bool,
    reload: bool,
) -> StackOptions:
    # The usual ports where they can be had: then every other command finds what runs here without being told.
    if kafka is None and kafka_port is None and _is_free(_USUAL.kafka):
        kafka_port = int(_USUAL.kafka.rpartition(":")[2])
    usual_dask = _USUAL.dask.removeprefix("tcp://")
    scheduler_arguments = ("--port", usual_dask.rpartition(":")[2]) if dask is None and _is_free(usual_dask) else ()
    http = settings.http
    if http == _USUAL.http and not _is_free(http):
        http = f"{http.rpartition(':')[0]}:0"
    made = StackOptions(
        app=settings.app,
        kafka=kafka,
        kafka_port=kafka_port,
        dask=dask,
        scheduler_arguments=scheduler_arguments,
        engine=engine_command(settings, log="console" if sys.stderr.isatty() else "json"),
        check=_engine("flows", "ls", settings.handlers),
        http=http,
        handler_paths=watched_paths(settings.handlers) if reload else (),
        import_paths=import_paths(settings.handlers),
        workers=workers or default_workers(),
        fresh=fresh,
    )
    # One that is named they find where it is: as a flag everybody on the machine could read a password in it.
    where = () if settings.history_path else ("--history", str(made.data_directory() / "history.db"))
    # Kafka's own topics are emptied with --fresh, those of another one are not.
    again = ("--fresh",) if fresh and kafka is None else ()
    companions = _companions(settings, ("--app", settings.app, *where, *again))
    # Beside nothing that is to be told it would only take memory; a reload may bring something.
    notify = {"notify": _engine("notify", settings.handlers, "--app", settings.app, "--skip-unusable")}
    companions |= notify if load_addressees(settings).targets else {}
    return msgspec.structs.replace(made, companions=companions, reloaded=notify)


def _companions(settings: Settings, where: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The dashboard, which fills the history; the history alone where HTTP is off."""
    if not settings.http:
        return {"history": _engine("history", "run", where)}
    return {DASHBOARD: _engine("dashboard", where, "--log", "console" if sys.stderr.isatty() else "json")}


def _usual_handlers() -> tuple[str, ...]:
    return (_DEFAULT_HANDLERS,) if Path(_DEFAULT_HANDLERS).is_dir() else ()


def _engine(*words: str | Sequence[str]) -> tuple[str, ...]:
    flat = [part for word in words for part in ([word] if isinstance(word, str) else word)]
    return (sys.executable, "-m", "engine", *flat)


def _is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except OSError:
        return False  # Taken: another one is used.
    return True


def _tell(stack: DevStack, settings: Settings, flows: int, seconds: float) -> None:
    where = "" if stack.kafka == _USUAL.kafka else f" --kafka {stack.kafka}"
    where += "" if settings.app == _USUAL.app else f" --app {settings.app}"
    cluster = "" if stack.dask == _USUAL.dask else f" --dask {stack.dask}"
    what = (
        f"{flows} {'flow' if flows == 1 else 'flows'} of {', '.join(settings.handlers)}"
        if settings.handlers
        else "no handlers; name some to run flows"
    )
    jaeger = f"  Jaeger {stack.jaeger.url} (spans: OTLP/HTTP at {stack.jaeger.otlp})\n" if stack.jaeger else ""
    say(
        f"\nReady after {seconds:.1f} s: {what}\n"
        f"  Kafka  {stack.kafka}\n"
        f"  Dask   {stack.dask}\n"
        f"  HTTP   {stack.http or 'off'}\n{jaeger}"
        f"  data   {stack.directory}\n"
        f"In another terminal: engine states tail{where}\n"
        f"                     engine doctor{where}{cluster}{''.join(f' {name}' for name in settings.handlers)}\n"
        "Ctrl-C stops everything.\n"
    )
