"""The embedded stack of ``engine dev``: Kafka, Dask and the engine as processes of ours, watched, reloaded; prints nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from engine.apache import ApacheKafka
from engine.command_errors import InterruptedStartError, StackError
from engine.dask_processes import SCHEDULER, WORKER_PREFIX, DaskProcesses, answers
from engine.errors import EngineError
from engine.jaeger_process import JAEGER, JaegerProcess
from engine.processes import ChildProcess, Children, run_to_end
from engine.stack_lock import StackLock
from engine.stack_options import StackOptions, free_address
from engine.stack_restarts import StackRestarts
from engine.stack_signals import StackSignals

#: Says what happens, for a person to read.
Report = Callable[[str], None]

#: Name of the engine's process, and of the companion that answers HTTP in its place, once it is there.
ENGINE, DASHBOARD = "engine", "dashboard"


class _Ended(msgspec.Struct, frozen=True):
    child: ChildProcess


class _Due(msgspec.Struct, frozen=True):
    name: str


class _Changed(msgspec.Struct, frozen=True):
    pass


class DevStack:
    """``async with DevStack(options, report) as stack: await stack.wait()``; leaving stops all, in order."""

    def __init__(self, options: StackOptions, report: Report = lambda line: None) -> None:
        self._options, self._report = options, report
        self.directory = options.data_directory()
        # All that can happen comes through here, one at a time, so that a reload and a restart never cross.
        self._happenings: asyncio.Queue[_Ended | _Due | _Changed] = asyncio.Queue()
        self._children = Children(self.directory / "logs", lambda child: self._happenings.put_nowait(_Ended(child)))
        self._environment = options.process_environment()
        self._kafka: ApacheKafka | None = None
        self._dask: DaskProcesses | None = None
        #: None where there is none.
        self.jaeger: JaegerProcess | None = None
        if options.jaeger is not None:
            self.jaeger = JaegerProcess(self._children, self.directory, options.jaeger, options.start_seconds, report)
        self._http = options.http
        #: Where the engine itself listens: behind a dashboard at a port of its own.
        self._engine_http = options.http
        self._changed: set[str] = set()
        again = options.backoff_seconds, options.backoff_limit_seconds
        self._restarts = StackRestarts(*again, lambda name: self._happenings.put_nowait(_Due(name)))
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._failure: EngineError | None = None
        self._lock = StackLock(self.directory, options.app)
        self._signals = StackSignals()

    @property
    def kafka(self) -> str:
        """Bootstrap servers."""
        return self._options.kafka or (self._kafka.bootstrap if self._kafka else "")

    @property
    def dask(self) -> str:
        """Address of the scheduler."""
        return self._options.dask or (self._dask.address if self._dask else "")

    @property
    def http(self) -> str:
        """``http://host:port`` of the dashboard, or of the engine where there is none; empty where it is off."""
        return f"http://{self._http}" if self._http and self._options.engine else ""

    @property
    def pids(self) -> dict[str, int]:
        """The processes of the stack by name: kafka, scheduler, worker-0 …, engine."""
        kafka = {} if self._kafka is None or self._kafka.pid is None else {"kafka": self._kafka.pid}
        return kafka | self._children.pids

    async def __aenter__(self) -> DevStack:
        """Start everything. Raises StackError, ApacheError, or InterruptedStartError on Ctrl-C; then nothing is left."""
        if self._options.signals:
            self._signals.take(self.stop)
        starting = asyncio.create_task(self._start(), name="stack-start")
        interrupted = asyncio.create_task(self._stopping.wait(), name="stack-interrupted")
        try:
            await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            self._answer(starting)
        except BaseException:  # whatever it was goes on up; nothing half started stays behind
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._close()
            raise
        finally:
            interrupted.cancel()
        self._spawn(self._supervise(), "stack-supervisor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def wait(self) -> None:
        """Return when the stack is told to stop. Raises StackError when it cannot go on."""
        await self._stopping.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let ``wait`` return; said again while stopping, kill what still runs."""
        if not self._stopping.is_set():
            self._stopping.set()
            return
        self._children.kill()
        if self._kafka is not None and self._kafka.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._kafka.pid, signal.SIGKILL)

    def _answer(self, starting: asyncio.Task[None]) -> None:
        if self._failure is not None:
            raise self._failure
        if not starting.done():
            raise InterruptedStartError
        starting.result()

    async def _start(self) -> None:
        self._lock.take()
        # First of all: what is edited while the others start, or right after, is in force, too.
        for folder, name in self._options.watched():
            self._spawn(self._watch_files(folder, name), f"stack-watch-{folder.name}")
        shutil.rmtree(self.directory / "logs", ignore_errors=True)
        if self._options.engine and self._http:
            self._http = self._engine_http = free_address(self._options.http)
            if DASHBOARD in self._options.companions:
                self._engine_http = free_address("127.0.0.1:0")
        # Kafka's start is mostly waiting, so Dask starts meanwhile.
        kafka = asyncio.create_task(self._start_kafka(), name="stack-start-kafka")
        try:
            if self.jaeger is not None:  # before those that have traces to send, and learn where to
                self._environment |= await self.jaeger.start(self._environment)
            await self._start_dask()
        except BaseException:  # whatever it was goes on up; nothing half started stays behind
            kafka.cancel()
            await asyncio.gather(kafka, return_exceptions=True)
            raise
        await kafka
        # What runs beside the engine starts meanwhile; it waits for the engine's topics by itself.
        companions = [asyncio.create_task(self._start_companion(name)) for name in self._options.companions]
        try:
            if self._options.engine is not None:
                await self._start_engine(self._options.engine)
            await asyncio.gather(*companions)
        except BaseException:  # whatever it was goes on up; nothing half started stays behind
            for starting in companions:
                starting.cancel()
            await asyncio.gather(*companions, return_exceptions=True)
            raise

    async def _start_companion(self, name: str) -> None:
        addresses = {"ENGINE_KAFKA": self.kafka, "ENGINE_DASK": self.dask}
        if name != DASHBOARD:
            await self._children.launch(name, self._options.beside[name], self._environment | addresses)
            return
        addresses |= {"ENGINE_HTTP": self._http, "ENGINE_ENGINES": self._engine_http}
        child = await self._children.launch(name, self._options.beside[name], self._environment | addresses)
        await child.until(lambda: answers(self._http, "/readyz"), self._options.start_seconds)
        self._report(f"dashboard: ready at {self.http}")

    async def _start_kafka(self) -> None:
        if self._options.kafka is not None:
            self._report(f"Kafka: using {self._options.kafka}")
            return
        began = time.monotonic()
        self._kafka = ApacheKafka(self.directory / "kafka", self._options.kafka_port)
        if self._options.fresh:
            self._kafka.fresh()
        await self._kafka.start(lambda line: self._report(f"Kafka: {line}"))
        self._spawn(self._watch_kafka(self._kafka), "stack-watch-kafka")
        self._report(f"Kafka: ready at {self.kafka} ({time.monotonic() - began:.1f} s)")

    async def _start_dask(self) -> None:
        options = self._options
        if options.dask is not None:
            self._report(f"Dask: using {options.dask}")
            return
        began = time.monotonic()
        self._report("Dask: starting a scheduler and its workers")
        self._dask = DaskProcesses(
            self._children,
            self.directory,
            self._environment,
            workers=options.workers,
            threads_per_worker=options.threads_per_worker,
            worker_memory_limit=options.worker_memory_limit,
            scheduler_arguments=options.scheduler_arguments,
            worker_arguments=options.worker_arguments,
            start_seconds=options.start_seconds,
            grace_seconds=options.dask_grace_seconds,
        )
        await self._dask.start()
        self._report(f"Dask: ready at {self.dask}, {options.workers} workers ({time.monotonic() - began:.1f} s)")

    async def _start_engine(self, command: tuple[str, ...]) -> None:
        began = time.monotonic()
        addresses = {"ENGINE_KAFKA": self.kafka, "ENGINE_DASK": self.dask, "ENGINE_HTTP": self._engine_http}
        child = await self._children.launch(ENGINE, command, self._environment | addresses)
        await child.until(lambda: answers(self._engine_http, "/readyz"), self._options.start_seconds)
        where = f" at http://{self._engine_http}" if self._engine_http else ""
        self._report(f"engine: ready{where} ({time.monotonic() - began:.1f} s)")

    async def _supervise(self) -> None:
        while True:
            happening = await self._happenings.get()
            try:
                match happening:
                    case _Ended(child=child):
                        self._on_end(child)
                    case _Due(name=name):
                        await self._start_again(name)
                    case _Changed():
                        await self._reload()
            except EngineError as error:
                # What did not come up has ended, or never will be ready; either way its turn comes again.
                self._report(str(error))
                self._restarts.schedule(error.part if isinstance(error, StackError) else ENGINE)

    def _on_end(self, child: ChildProcess) -> None:
        if self._children.get(child.name) is not child:
            return
        scheduler = self._children.get(SCHEDULER)
        if child.name.startswith(WORKER_PREFIX) and (scheduler is None or scheduler.exit_code is not None):
            return  # It ended because its scheduler did, with which it starts again.
        if child.name in (ENGINE, JAEGER) or child.name in self._options.beside:
            self._report(f"{child.name}: ended with code {child.exit_code}; its log ends with:\n{child.tail()}")
        else:
            self._report(f"Dask: the {child.name} ended with code {child.exit_code}; starting it again")
        self._restarts.schedule(child.name)

    async def _start_again(self, name: str) -> None:
        self._restarts.take(name)
        child = self._children.get(name)
        if child is not None and child.exit_code is None:
            return  # A reload, or the scheduler's return, has started it meanwhile.
        self._restarts.begins(name)
        if name == ENGINE and self._options.engine is not None:
            await self._start_engine(self._options.engine)
        elif name in self._options.beside:
            await self._start_companion(name)
        elif self.jaeger is not None and name == JAEGER:
            await self.jaeger.start(self._environment)
        elif self._dask is not None and name == SCHEDULER:
            # Workers never rejoin a scheduler that came back, and go on with what they have: they end with it.
            await self._dask.stop_workers()
            await self._dask.start()
            self._report(f"Dask: the scheduler is back at {self.dask}, with its workers")
        elif self._dask is not None:
            scheduler = self._children.get(SCHEDULER)
            if scheduler is not None and scheduler.exit_code is None:
                await self._dask.start_workers([name])
                self._report(f"Dask: {name} is back")

    async def _reload(self) -> None:
        changed, self._changed = sorted({Path(path).name for path in self._changed}), set()
        if self._options.check is not None:
            check = ChildProcess(
                "check", self._options.check, log_file=self.directory / "logs" / "check.log", environment=self._environment
            )
            if await run_to_end(check, self._options.start_seconds) != 0:
                self._report(f"{', '.join(changed)} changed, but does not load; the old handlers go on:\n{check.tail()}")
                return
        self._report(f"{', '.join(changed)} changed: loading the handlers anew")
        # The engine goes first, or it would drive runs on workers that are just going.
        await self._children.stop([ENGINE], self._options.grace_seconds)
        if self._dask is not None:
            await self._dask.restart_workers()
        else:
            self._report("Dask: its workers are not ours; they keep the handlers that they have loaded")
        if self._options.engine is not None:
            await self._start_engine(self._options.engine)
        for name in self._options.reloaded:
            await self._children.stop([name], self._options.grace_seconds)
            await self._start_companion(name)
        self._report("reloaded")

    async def _watch_files(self, folder: Path, only: str | None) -> None:
        from watchfiles import PythonFilter, awatch  # part of the stack extra

        async for changes in awatch(folder, watch_filter=PythonFilter(), recursive=only is None):
            files = {file for _, file in changes if only in (None, Path(file).name)}
            if files and not self._changed:
                self._happenings.put_nowait(_Changed())
            self._changed |= files

    async def _watch_kafka(self, kafka: ApacheKafka) -> None:
        code = await kafka.wait()
        self._failure = StackError("Kafka", f"ended with code {code}", f"Its log is {kafka.log_file}.")
        self._stopping.set()

    async def _close(self) -> None:
        # The supervisor goes first, or it would start again what we stop.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._restarts.close()
        self._stopping.set()
        if self.pids:
            self._report("stopping")
        # Left in the reverse order: the engine, which still writes to Kafka; the workers; their scheduler; Kafka.
        async with contextlib.AsyncExitStack() as steps:
            steps.callback(self._signals.give_back)
            steps.callback(self._lock.give_up)
            if self._kafka is not None:
                steps.push_async_callback(self._kafka.stop)
            # After all whose last spans it takes.
            steps.push_async_callback(self._children.stop, [JAEGER], self._options.grace_seconds)
            if self._dask is not None:
                steps.push_async_callback(self._dask.stop_scheduler)
                steps.push_async_callback(self._dask.stop_workers)
            # Those beside the engine end after it: they may see its last words.
            steps.push_async_callback(self._children.stop, list(self._options.beside), self._options.grace_seconds)
            steps.push_async_callback(self._children.stop, [ENGINE], self._options.grace_seconds)

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)
        self._tasks.append(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = StackError(task.get_name(), f"{type(error).__name__}: {error}", "This is a bug; please report it.")
            self._stopping.set()
